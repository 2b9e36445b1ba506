"""Pairs: one tokenizer for sources and another for targets, in one id space and one file."""

import itertools
from collections.abc import Generator, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np

from scratchlm.errors import InputError, did_you_mean
from scratchlm.tokenizers.base import Learning, Tokenizer, learn

EXAMPLE = "char+symbols"
Side = Literal["source", "target"]


class PairTokenizer(Tokenizer):
    """The source's ids come first, then the target's, then the end of a text.

    `source` and `target` are the same tokenizer with a side chosen: a text is encoded by that side. All three know
    all ids, and are saved as one file.
    """

    kind = "pair"

    def __init__(self, sources: Tokenizer, targets: Tokenizer, side: Side | None = None) -> None:
        """`sources` and `targets` have ids of their own; an end of a text that they may have is not used.

        Raises InputError where one of them is a pair itself.
        """
        if isinstance(sources, PairTokenizer) or isinstance(targets, PairTokenizer):
            raise InputError("a side of a pair cannot be a pair itself; give a tokenizer of one text")
        self._sides, self._side = (sources, targets), side
        self.end_of_text = sources.vocab_size + targets.vocab_size
        self.vocab_size = self.end_of_text + 1

    @property
    def source(self) -> "PairTokenizer":
        return PairTokenizer(*self._sides, side="source")

    @property
    def target(self) -> "PairTokenizer":
        return PairTokenizer(*self._sides, side="target")

    @property
    def own_ids(self) -> range:
        parts = {"source": range(self._sides[0].vocab_size), "target": range(self._sides[0].vocab_size, self.start)}
        return range(self.vocab_size) if self._side is None else parts[self._side]

    @property
    def symbolic(self) -> bool:
        return self._sides[self._side != "source"].symbolic

    @classmethod
    def train(cls, texts: Iterable[str], *, documents: bool = False) -> Self:
        raise InputError(f"the tokenizer of pairs is named by those of its two sides, as in --tokenizer {EXAMPLE}")

    def encode_array(self, text: str) -> np.ndarray:
        sources, targets = self._sides
        if self._side is None:
            raise InputError("a tokenizer of pairs has two sides; encode with its .source or its .target")
        if self._side == "source":
            return sources.encode_array(text)
        return targets.encode_array(text) + np.uint32(sources.vocab_size)

    def _part(self, token: int) -> int:
        """0 for a token of the source, 1 for one of the target, 2 for the end of a text."""
        self.check_id(token)
        return int(token >= self._sides[0].vocab_size) + int(token == self.end_of_text)

    def token_bytes(self, token: int) -> bytes:
        part = self._part(token)
        return b"" if part == 2 else self._sides[part].token_bytes(token - part * self._sides[0].vocab_size)

    def decode(self, ids: Iterable[int]) -> str:
        """The texts of both sides, one after another; the space behind a symbol is left out at the end alone."""
        texts = [
            (self._sides[part], [token - part * self._sides[0].vocab_size for token in run])
            for part, run in itertools.groupby(ids, self._part)
            if part < 2
        ]
        before = "".join(Tokenizer.decode(side, tokens) for side, tokens in texts[:-1])
        return before + "".join(side.decode(tokens) for side, tokens in texts[-1:])

    @property
    def start(self) -> int:
        return self.vocab_size - 1

    def settings(self) -> dict[str, Any]:
        sources, targets = ({"kind": side.kind, **side.settings()} for side in self._sides)
        return {"source": sources, "target": targets}

    @classmethod
    def from_settings(cls, settings: dict[str, Any]) -> Self:
        sides: list[Tokenizer] = []
        for name in ("source", "target"):
            content = dict(settings[name])
            kind = content.pop("kind")
            if kind not in Tokenizer.kinds:
                raise InputError(f"its {name} is an unknown {kind!r}: {did_you_mean(kind, Tokenizer.kinds)}")
            sides.append(Tokenizer.kinds[kind].from_settings(content))
        return cls(sides[0], sides[1])


def learn_pair(
    name: str, sources: Sequence[str], targets: Sequence[str], vocab_size: int | None = None
) -> Generator[Learning, None, Tokenizer]:
    """The tokenizer of pairs that a name means: "char+symbols" has one for each side, another name one for both.

    Each name is a kind, which is trained on its side, or a file, as in `learn`. Tells how far it is, and returns the
    tokenizer. Raises InputError where it has no end of a text, which parts source and target.
    """
    names = name.split("+")
    if len(names) == 2 and not Path(name).is_file():
        made: list[Tokenizer] = []
        for part, texts in zip(names, (sources, targets), strict=True):
            chosen = vocab_size if part == "bpe" or "bpe" not in names else None
            made.append((yield from learn(part, texts, False, chosen)))
        return PairTokenizer(made[0], made[1])
    tokenizer = yield from learn(name, [*sources, *targets], True, vocab_size)
    if tokenizer.end_of_text is None:
        raise InputError(
            f"the tokenizer {name} has no end-of-text token, which parts a source from its target; "
            "leave --tokenizer out, or make one with scratchlm tokenizer train"
        )
    return tokenizer
