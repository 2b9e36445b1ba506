"""Sources in, targets out: the one place that decodes parallel data, and says how good what comes out is.

A model that takes a source reads it through its initial state; any other one reads it as the start of its sequence,
before the end token that parts source from target.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import sacrebleu
import torch
from rapidfuzz.distance import Levenshtein

from scratchlm.beams import Hypothesis, beam_search
from scratchlm.data.pair_batches import Pairs
from scratchlm.errors import InputError
from scratchlm.model import LanguageModel, Source
from scratchlm.tokenizers import Tokenizer

EXTRA_TOKENS = 50  # a target is at most so much longer than its source (Vaswani et al. 2017, section 6.1)
LENGTH_PENALTY = 0.6  # likewise
BATCH_TOKENS = 4096  # source tokens that are decoded together, those of all beams counted


def source_limit(model: LanguageModel) -> int | None:
    """Tokens that a source may have, its end token counted; None: no limit."""
    if model.takes_source:
        return model.source_context
    return None if model.context is None else model.context - 1  # one position at least for the target


def encode_source(text: str, model: LanguageModel, tokenizer: Tokenizer) -> list[int]:
    """Ids of a source, its end token last. Raises InputError where the model cannot read so many."""
    assert tokenizer.end_of_text is not None
    ids, limit = [*tokenizer.source.encode(text), tokenizer.end_of_text], source_limit(model)
    if limit is not None and len(ids) > limit:
        start = text if len(text) <= 40 else f"{text[:40]}..."
        raise InputError(
            f"the source {start!r} has {len(ids)} tokens with its end, and the model was trained to read {limit}; "
            "shorten it, or give it in parts"
        )
    return ids


def decode(
    model: LanguageModel,
    sources: Sequence[Sequence[int]],
    end: int,
    *,
    beam: int = 1,
    length_penalty: float = LENGTH_PENALTY,
    alternatives: int = 1,
) -> list[list[Hypothesis]]:
    """The best targets of each source, as many as there are to be `alternatives`; a beam of one is greedy.

    `sources` hold ids, their end token last. Raises ValueError as `beam_search` does.
    """
    found: list[list[Hypothesis]] = [[]] * len(sources)
    for rows in _batches([len(source) for source in sources], BATCH_TOKENS // max(1, beam)):
        batch = [sources[row] for row in rows]
        given, prompts = None, batch
        if model.takes_source:
            given, prompts = as_source(batch, end), [[end]] * len(batch)
        limits = [
            len(source) - 1 + EXTRA_TOKENS
            if model.context is None
            else min(len(source) - 1 + EXTRA_TOKENS, model.context - len(prompt))
            for source, prompt in zip(batch, prompts, strict=True)
        ]
        options = {"beam": beam, "length_penalty": length_penalty, "alternatives": alternatives}
        decoded = beam_search(model, prompts, limits, end=end, source=given, **options)
        for row, hypotheses in zip(rows, decoded, strict=True):
            found[row] = hypotheses
    return found


def as_source(sources: Sequence[Sequence[int]], fill: int) -> Source:
    """Sources side by side, right-padded with `fill`."""
    lengths = [len(source) for source in sources]
    ids = torch.full((len(sources), max(lengths)), fill)
    for row, source in enumerate(sources):
        ids[row, : len(source)] = torch.tensor(source)
    return Source(ids, torch.tensor(lengths))


def _batches(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Rows of like length together, so many that their padded tokens fit the budget, or one."""
    rows: list[int] = []
    for row in np.argsort(lengths, kind="stable").tolist():
        if rows and (len(rows) + 1) * lengths[row] > budget:
            yield rows
            rows = []
        rows.append(row)
    if rows:
        yield rows


@dataclass(frozen=True, kw_only=True)
class Translated:
    """A source, what the model made of it, and what it should have: any of the references."""

    source: str
    target: str
    references: tuple[str, ...]


def translate_pairs(
    model: LanguageModel,
    tokenizer: Tokenizer,
    pairs: Pairs,
    *,
    beam: int = 1,
    length_penalty: float = LENGTH_PENALTY,
) -> list[Translated]:
    """The best target of each source of parallel text, in its order; a source's several targets are its references."""
    assert tokenizer.end_of_text is not None
    references: dict[tuple[int, ...], list[str]] = {}
    for pair in range(len(pairs)):
        targets = references.setdefault(tuple(pairs.source(pair).tolist()), [])
        targets.append(tokenizer.target.decode(pairs.target(pair).tolist()))
    end = tokenizer.end_of_text
    decoded = decode(model, [[*source, end] for source in references], end, beam=beam, length_penalty=length_penalty)
    return [
        Translated(
            source=tokenizer.source.decode(source),
            target=tokenizer.target.decode(hypotheses[0].tokens),
            references=tuple(targets),
        )
        for (source, targets), hypotheses in zip(references.items(), decoded, strict=True)
    ]


def a_few(translated: Sequence[Translated], count: int = 6) -> list[Translated]:
    """Some of them, from all over."""
    count = min(count, len(translated))
    return [translated[at * len(translated) // count] for at in range(count)]


def as_lines(translated: Sequence[Translated]) -> str:
    """Each with what it should have been, for people."""
    return "".join(
        f"{one.source} -> {one.target}"
        + ("  (right)\n" if one.target in one.references else f"  (should be: {' or '.join(one.references)})\n")
        for one in translated
    )


@dataclass(frozen=True, kw_only=True)
class ErrorRates:
    """How many symbols are wrong, as the share of the references' symbols, and how many sequences have any wrong.

    Of a source's references the one nearest to the target counts. With phonemes these are PER and WER.
    """

    symbol_error_rate: float
    sequence_error_rate: float
    sources: int

    def fields(self) -> dict[str, Any]:
        """The figures by name."""
        return {"symbol_error_rate": self.symbol_error_rate, "sequence_error_rate": self.sequence_error_rate}

    def __str__(self) -> str:
        return (
            f"symbols wrong {self.symbol_error_rate:.2%}, sequences wrong {self.sequence_error_rate:.2%} "
            f"of {self.sources:,}"
        )


@dataclass(frozen=True, kw_only=True)
class Bleu:
    """BLEU as sacrebleu computes it, with its signature. `interval`: half the width of 95 % by bootstrap, if asked.

    `exact` is the share of targets that equal a reference: all that can be said where targets have fewer than the four
    words in a row that BLEU counts.
    """

    bleu: float
    signature: str
    sources: int
    exact: float
    interval: float | None = None

    def fields(self) -> dict[str, Any]:
        """The figures by name."""
        return {
            "bleu": self.bleu,
            "bleu_signature": self.signature,
            "exact": self.exact,
            **({} if self.interval is None else {"bleu_interval": self.interval}),
        }

    def __str__(self) -> str:
        interval = "" if self.interval is None else f" +- {self.interval:.1f}"
        return (
            f"BLEU {self.bleu:.1f}{interval} over {self.sources:,} sources ({self.signature}), "
            f"exactly right {self.exact:.1%}"
        )


Quality = ErrorRates | Bleu


def error_rates(translated: Sequence[Translated]) -> ErrorRates:
    """Edit distances between symbols that white space parts, summed over all sources."""
    edits, symbols, wrong = 0, 0, 0
    for one in translated:
        target = one.target.split()
        distances = [(Levenshtein.distance(target, ref.split()), len(ref.split())) for ref in one.references]
        distance, length = min(distances, key=lambda pair: pair[0])  # of equally near ones the first
        edits, symbols, wrong = edits + distance, symbols + length, wrong + (distance > 0)
    return ErrorRates(
        symbol_error_rate=edits / max(1, symbols), sequence_error_rate=wrong / len(translated), sources=len(translated)
    )


def bleu(translated: Sequence[Translated], bootstrap: int = 0) -> Bleu:
    """Corpus BLEU. `bootstrap`: samples of sources that an interval is made of; none without."""
    most = max(len(one.references) for one in translated)
    # sacrebleu takes a missing reference as None, which its types do not say
    streams: list[Any] = [[(*one.references, *[None] * most)[i] for one in translated] for i in range(most)]
    metric = sacrebleu.BLEU()
    options = {"n_bootstrap": bootstrap} if bootstrap else {}
    score = metric.corpus_score([one.target for one in translated], streams, **options)
    return Bleu(
        bleu=score.score,
        signature=str(metric.get_signature()),
        sources=len(translated),
        exact=sum(one.target in one.references for one in translated) / len(translated),
        interval=getattr(score, "_ci", None) if bootstrap else None,
    )


def measure(translated: Sequence[Translated], tokenizer: Tokenizer, bootstrap: int = 0) -> Quality:
    """Error rates where the targets are symbols, BLEU where they are text."""
    return error_rates(translated) if tokenizer.target.symbolic else bleu(translated, bootstrap)
