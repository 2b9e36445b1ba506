"""Beam search: the most probable continuations, as far as a search of a few hypotheses at once finds them.

Letters in shapes: B rows, V vocabulary.
"""

import itertools
import math
import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from scratchlm.generation import check_context, check_prompts, inference, readable
from scratchlm.model import LanguageModel, Source

LARGEST_PENALTY = 10.0  # far beyond any use; its power of any length is still a number


@dataclass(frozen=True, kw_only=True)
class Hypothesis:
    """One way to go on from a prompt.

    Attributes:
        tokens: The new tokens, without the end token.
        log_probability: Of the tokens and the end token after them, in nats.
        score: The log-probability over the length penalty.
    """

    tokens: list[int]
    log_probability: float
    score: float


def _largest(logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The largest logits of each row and their ids, of equals the lowest id first. Shapes: (B, V) -> (B, count) each.

    `topk` does not say which of equal values it takes, and on a GPU that may change; `argmax` takes the first. Four of
    them cost a third of a `topk` with its ties put right and a twentieth of a stable sort (64 x 37,000, one core of a
    CPU, November 2026).
    """
    logits, values, ids = logits.clone(), [], []
    for _ in range(count):
        ids.append(logits.argmax(-1, keepdim=True))
        values.append(logits.gather(-1, ids[-1]))
        logits.scatter_(-1, ids[-1], -math.inf)
    return torch.cat(values, -1), torch.cat(ids, -1)


class _Beam:
    """The hypotheses of one prompt: those that live, the best first, and those that have ended."""

    def __init__(self, prompt: int, size: int, longest: int, end: int, length_penalty: float) -> None:
        self.prompt, self.size, self.longest, self.end, self.length_penalty = prompt, size, longest, end, length_penalty
        self.live: list[tuple[float, list[int]]] = [(0.0, [])]
        self.finished: list[Hypothesis] = []  # the best first

    def score(self, log_probability: float, length: int) -> float:
        """Paper: Wu et al. 2016, equation 14, without coverage. `length` counts the end token."""
        return log_probability / ((5 + length) / 6) ** self.length_penalty

    def advance(self, choices: Sequence[Iterable[tuple[float, int]]]) -> list[int]:
        """Each live hypothesis goes on with its choices, (log-probability, token); which of them the new ones follow.

        Of all continuations the best are kept, as many as have a place: what has ended keeps its own.
        """
        found = [
            (total + value, parent, token)
            for parent, ((total, _), row) in enumerate(zip(self.live, choices, strict=True))
            for value, token in row
            if value > -math.inf
        ]
        found.sort(key=lambda one: -one[0])  # stable: of equals first the better parent's, then the lowest id
        before, self.live, parents = self.live, [], []
        for total, parent, token in found[: self.size - len(self.finished)]:
            tokens = before[parent][1]
            if token == self.end:
                score = self.score(total, len(tokens) + 1)
                self.finished.append(Hypothesis(tokens=tokens, log_probability=total, score=score))
            else:
                self.live.append((total, [*tokens, token]))
                parents.append(parent)
        self.finished.sort(key=lambda one: -one.score)
        return parents

    def decided(self, wanted: int) -> bool:
        """No live hypothesis can come to be one of the `wanted` best.

        A log-probability only falls, and the penalty is largest at the greatest length: a score stays below this bound.
        """
        if not self.live:
            return True
        bound = self.score(self.live[0][0], self.longest + 1)
        return len(self.finished) >= wanted and self.finished[wanted - 1].score >= bound


def beam_search(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int | Sequence[int],
    *,
    end: int,
    beam: int = 4,
    length_penalty: float = 0.6,
    alternatives: int = 1,
    source: Source | None = None,
) -> list[list[Hypothesis]]:
    """The `alternatives` best continuations of each prompt that the search finds, the best first.

    A beam is the best `beam` hypotheses of one length. One that ends keeps its place, so a beam of 1 is greedy decoding
    whatever the penalty, and `beam` hypotheses are found in all. A search ends as soon as no other can be among the
    wanted. Prompts of one length are read as one batch, which the prompts that are done with leave.
    Units: `max_new_tokens` (for all, or for each prompt) in tokens, without the end token, which is then forced.
    Raises ValueError as `stream` does, for a beam, alternatives, a penalty or an end token out of range, and where the
    logits after a prompt are no numbers, or its end is impossible.
    Paper: Wu et al. 2016, section 7; Vaswani et al. 2017, section 6.1 (beam 4, penalty 0.6, source + 50 tokens).
    """
    if beam < 1:
        raise ValueError(f"the beam is {beam}; it must be at least 1")
    if not 1 <= alternatives <= beam:
        raise ValueError(f"alternatives is {alternatives}; it must be at least 1 and at most the beam, {beam}")
    if not 0 <= length_penalty <= LARGEST_PENALTY:
        raise ValueError(f"the length penalty is {length_penalty}; it must be from 0 (none) to {LARGEST_PENALTY:g}")
    if not 0 <= end < model.config.vocab_size:
        raise ValueError(f"the end token is {end}; the model knows 0 to {model.config.vocab_size - 1}")
    each = max_new_tokens if isinstance(max_new_tokens, Iterable) else [max_new_tokens] * len(prompts)
    longest = list(map(operator.index, each))  # integers of numpy too
    if len(longest) != len(prompts):
        raise ValueError(f"max_new_tokens has {len(longest)} numbers for {len(prompts)} prompts; give one for each")
    check_prompts(model, prompts)
    source = readable(model, source, len(prompts))
    for prompt, new in zip(prompts, longest, strict=True):
        if new < 0:
            raise ValueError(f"max_new_tokens is {new}; it must be 0 or more")
        check_context(model.context, len(prompt), new, unread=0)  # the last token is read: the end follows it
    beams = [_Beam(prompt, beam, new, end, length_penalty) for prompt, new in enumerate(longest)]
    with inference(model):
        for length in sorted(set(map(len, prompts))):
            group = [index for index, prompt in enumerate(prompts) if len(prompt) == length]
            sources = source and Source(source.ids[group], source.lengths[group])
            _search(model, [prompts[i] for i in group], [beams[i] for i in group], alternatives, sources)
    return [one.finished[:alternatives] for one in beams]


def _search(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    beams: Sequence[_Beam],
    alternatives: int,
    source: Source | None,
) -> None:
    """Fill the beams of prompts of one length."""
    device = next(model.parameters()).device
    end, count = beams[0].end, min(beams[0].size, model.config.vocab_size)
    state = model.initial_state(len(prompts), source=source)  # growing: a fitted one is no faster, as select copies it
    chunk = torch.tensor(prompts, device=device)
    running = list(beams)
    for step in itertools.count():  # each live hypothesis has so many tokens, and a row of the batch
        features, state = model(chunk, state)
        logits = model.readout(features[:, -1])  # (rows, V)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        total = logits.logsumexp(-1, keepdim=True)
        best, ids = _largest(logits, count)  # (rows, count)
        ends = (logits[:, end] - total[:, 0]).tolist()
        choices = [list(zip(*row, strict=True)) for row in zip((best - total).tolist(), ids.tolist(), strict=True)]
        parents, row, going_on = [], 0, []
        for one in running:
            rows = range(row, row + len(one.live))
            row = rows.stop
            forced = step == one.longest
            came_from = one.advance([[(ends[r], end)] if forced else choices[r] for r in rows])
            if not one.live and not one.finished:
                raise ValueError(_why_not(one, endless=forced and all(ends[r] == -math.inf for r in rows)))
            if not one.decided(alternatives):
                going_on.append(one)
                parents += [rows[parent] for parent in came_from]
        if not going_on:
            return
        running = going_on
        chunk = torch.tensor([[tokens[-1]] for one in running for _, tokens in one.live], device=device)
        state = state.select(torch.tensor(parents))


def _why_not(beam: _Beam, endless: bool) -> str:
    """Why no hypothesis of a beam goes on. `endless`: since each must end here, and none can."""
    if endless:
        return (
            f"no hypothesis of prompt {beam.prompt} can end after {beam.longest} tokens: the end token {beam.end} has "
            "probability 0 there; allow another number of tokens, or give an end token that the model can say"
        )
    return (
        f"after prompt {beam.prompt} the model's logits say nothing: one is NaN or infinite, or all are -inf; "
        "check its weights"
    )
