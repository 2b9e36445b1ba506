"""The one generator: any model, through its state; sampling as pure functions on logits, and beam search.

Letters in shapes: B rows, V vocabulary.
"""

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from scratchlm.model import LanguageModel, Source


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Only the k largest logits, ties with the last of them too; the rest become -inf. Shapes: (B, V) -> (B, V)."""
    smallest = logits.topk(min(k, logits.shape[-1])).values[..., -1:]
    return logits.masked_fill(logits < smallest, -math.inf)


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Only the smallest set of tokens whose probabilities reach p, the one that crosses it included.

    Shapes: (B, V) -> (B, V). Paper: Holtzman et al. 2020, section 3.1 (nucleus sampling).
    """
    ascending, order = logits.sort(descending=False)
    dropped = ascending.softmax(-1).cumsum(-1) <= 1 - p
    dropped[..., -1] = False  # at least one stays
    return logits.masked_fill(dropped.scatter(-1, order, dropped), -math.inf)


def keep_min_p(logits: Tensor, p: float) -> Tensor:
    """Only tokens at least p times as probable as the most probable one. Shapes: (B, V) -> (B, V).

    Paper: Nguyen et al. 2024, section 3.
    """
    probabilities = logits.softmax(-1)
    return logits.masked_fill(probabilities < p * probabilities.amax(-1, keepdim=True), -math.inf)


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is drawn. Temperature 0 takes the most probable one, of equals the lowest id."""

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"the temperature is {self.temperature}; it must be 0 (greedy) or more")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top-k is {self.top_k}; it must be at least 1")
        for name, p in (("top-p", self.top_p), ("min-p", self.min_p)):
            if p is not None and not 0 < p <= 1:
                raise ValueError(f"{name} is {p}; it must be above 0 and at most 1")

    def filter(self, logits: Tensor) -> Tensor:
        """The logits to draw from: temperature, then top-k, top-p and min-p. Shapes: (B, V) -> (B, V)."""
        logits = logits / self.temperature
        if self.top_k is not None:
            logits = keep_top_k(logits, self.top_k)
        if self.top_p is not None and self.top_p < 1:
            logits = keep_top_p(logits, self.top_p)
        if self.min_p is not None:
            logits = keep_min_p(logits, self.min_p)
        return logits

    def draw(self, logits: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """The next token of each row, from the row's own generator. Shapes: (B, V) -> (B,) int64 on the CPU."""
        if self.temperature == 0:
            return logits.argmax(-1).cpu()
        logits = (logits - logits.amax(-1, keepdim=True)).double()  # the smallest temperatures make no infinities
        probabilities = self.filter(logits).softmax(-1).cpu()
        draws = [torch.multinomial(row, 1, generator=g) for row, g in zip(probabilities, generators, strict=True)]
        return torch.cat(draws)


def row_generator(seed: int, row: int) -> torch.Generator:
    """The generator that row `row` draws from, whatever batch it is in."""
    if seed < 0:
        raise ValueError(f"the seed is {seed}; it must be at least 0")
    state = int(np.random.SeedSequence([row, seed]).generate_state(1, np.uint64)[0])
    return torch.Generator().manual_seed(state >> 1)


def _check_prompts(model: LanguageModel, prompts: Sequence[Sequence[int]]) -> None:
    vocab_size = model.config.vocab_size
    for prompt in prompts:
        if not prompt:
            raise ValueError("a prompt is empty; give the tokenizer's start token")
        if not 0 <= min(prompt) <= max(prompt) < vocab_size:
            raise ValueError(
                f"a prompt has ids from {min(prompt)} to {max(prompt)}; the model knows 0 to {vocab_size - 1}"
            )


def _check_context(context: int | None, prompt: int, new: int, unread: int) -> None:
    """`prompt` and `new` tokens fit, of which the model never reads the last `unread`."""
    if context is not None and prompt > context:
        raise ValueError(f"the context is {context} tokens, and a prompt has {prompt}; shorten it")
    if context is not None and prompt + new - unread > context:
        raise ValueError(
            f"the context is {context} tokens, and prompt and new tokens need {prompt + new - unread}; "
            f"ask for {context + unread - prompt} new tokens or fewer"
        )


@contextmanager
def _decoding(model: LanguageModel) -> Iterator[None]:
    """Without gradients and dropout; the model is left in the mode that it was in."""
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(training)


def stream(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    sampling: Sampling | None = None,
    *,
    seed: int = 0,
    end: int | None = None,
    source: Source | None = None,
    slide: bool = False,
) -> Iterator[tuple[int, int]]:
    """(row, token) for each new token, row by row, as they are drawn.

    The shortest prompt is read in parallel, then each row is fed its own tokens until its prompt ends, so ragged
    prompts need no mask. A row ends after `max_new_tokens`, or before its token `end`.
    Units: `max_new_tokens` in tokens. `slide`: at the context's end, start again from the newest half of it.
    Raises ValueError for an empty prompt, for an id outside of the vocabulary, and without `slide` where prompt and
    new tokens do not fit the context.
    """
    sampling = sampling or Sampling()
    _check_prompts(model, prompts)
    if not prompts or max_new_tokens < 1:
        return
    context, rows = model.context, [list(prompt) for prompt in prompts]
    if context is not None and slide:
        rows = [row if len(row) <= context else row[-max(1, context // 2) :] for row in rows]
    longest = max(map(len, rows))
    total = longest + max_new_tokens
    _check_context(context, longest, 0 if slide else max_new_tokens, unread=1)
    device = next(model.parameters()).device
    generators = [row_generator(seed, row) for row in range(len(prompts))]
    left = [max_new_tokens] * len(rows)
    read = 0  # tokens of every row that the state has consumed
    capacity = total - 1 if context is None else min(total - 1, context)
    with _decoding(model):
        state = model.initial_state(len(rows), capacity=capacity, source=source)
        known = min(map(len, rows))
        while any(left):
            chunk = torch.tensor([row[read:known] for row in rows], device=device)
            features, state = model(chunk, state)
            read = known
            # a row draws only for itself, and only once its prompt has ended, so no other row changes its draws
            active = [index for index, row in enumerate(rows) if len(row) == read and left[index]]
            if active:
                logits = model.readout(features[active, -1])  # (rows that draw, V)
                drawn = sampling.draw(logits, [generators[index] for index in active]).tolist()
                for index, token in zip(active, drawn, strict=True):
                    rows[index].append(token)
                    left[index] = 0 if token == end else left[index] - 1
                    if token != end:
                        yield index, token
            for row in rows:
                if len(row) == read:  # an ended row is fed something, which nobody sees
                    row.append(row[-1])
            known = read + 1
            if state.length == capacity and any(left):
                read = known - max(1, capacity // 2)
                state = model.initial_state(len(rows), capacity=capacity, source=source)


def generate(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    seed: int = 0,
    end: int | None = None,
    source: Source | None = None,
) -> list[list[int]]:
    """Each prompt with its continuation.

    Row i draws from a generator of its own, made of (seed, i): what it says does not depend on the other rows.
    Raises ValueError as `stream` and `Sampling` do.
    """
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    rows = [list(prompt) for prompt in prompts]
    for row, token in stream(model, prompts, max_new_tokens, sampling, seed=seed, end=end, source=source):
        rows[row].append(token)
    return rows


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


def _most_probable(logits: Tensor, count: int) -> tuple[list[list[float]], list[list[int]]]:
    """Log-probabilities and ids of each row's `count` best tokens, of equals the lowest id first.

    `topk` does not say which of equal values it takes, and a GPU's order may change. `argmax` takes the first; four of
    them cost a third of `topk` with its ties put right, a twentieth of a stable sort (64 x 37,000, CPU, November 2026).
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32), copy=True)
    total = logits.logsumexp(-1, keepdim=True)
    values, tokens = [], []
    for _ in range(count):
        best = logits.argmax(-1, keepdim=True)  # (B, 1)
        values.append(logits.gather(-1, best) - total)
        tokens.append(best)
        logits.scatter_(-1, best, -math.inf)
    return torch.cat(values, -1).tolist(), torch.cat(tokens, -1).tolist()


class _Beam:
    """The hypotheses of one prompt: those that live, the best first, and those that have ended."""

    def __init__(self, size: int, longest: int, end: int, length_penalty: float) -> None:
        self.size, self.longest, self.end, self.length_penalty = size, longest, end, length_penalty
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
    Raises ValueError as `stream` does, and for a beam, alternatives, a penalty or an end token that make no sense.
    Paper: Wu et al. 2016, section 7; Vaswani et al. 2017, section 6.1 (beam 4, penalty 0.6, source + 50 tokens).
    """
    if beam < 1:
        raise ValueError(f"the beam is {beam}; it must be at least 1")
    if not 1 <= alternatives <= beam:
        raise ValueError(f"alternatives is {alternatives}; it must be at least 1 and at most the beam, {beam}")
    if not 0 <= length_penalty < math.inf:
        raise ValueError(f"the length penalty is {length_penalty}; it must be 0 (none) or more")
    if not 0 <= end < model.config.vocab_size:
        raise ValueError(f"the end token is {end}; the model knows 0 to {model.config.vocab_size - 1}")
    longest = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else list(max_new_tokens)
    if len(longest) != len(prompts):
        raise ValueError(f"max_new_tokens has {len(longest)} numbers for {len(prompts)} prompts; give one for each")
    _check_prompts(model, prompts)
    for prompt, new in zip(prompts, longest, strict=True):
        if new < 0:
            raise ValueError(f"max_new_tokens is {new}; it must be 0 or more")
        _check_context(model.context, len(prompt), new, unread=0)  # the last token is read: the end follows it
    beams = [_Beam(beam, new, end, length_penalty) for new in longest]
    with _decoding(model):
        for length in sorted(set(map(len, prompts))):
            group = [index for index, prompt in enumerate(prompts) if len(prompt) == length]
            _search(model, [prompts[i] for i in group], [beams[i] for i in group], alternatives, _rows(source, group))
    return [one.finished[:alternatives] for one in beams]


def _rows(source: Source | None, rows: list[int]) -> Source | None:
    return source and Source(source.ids[rows], source.lengths[rows])


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
    state = model.initial_state(len(prompts), source=source)
    chunk = torch.tensor(prompts, device=device)
    running = list(beams)
    for step in itertools.count():  # each live hypothesis has so many tokens, and a row of the batch
        features, state = model(chunk, state)
        logits = model.readout(features[:, -1])  # (rows, V)
        ends = (logits[:, end] - logits.logsumexp(-1)).tolist()
        choices = [list(zip(*both, strict=True)) for both in zip(*_most_probable(logits, count), strict=True)]
        parents, row, going_on = [], 0, []
        for one in running:
            rows = range(row, row + len(one.live))
            row = rows.stop
            forced = step == one.longest
            came_from = one.advance([[(ends[r], end)] if forced else choices[r] for r in rows])
            if not one.decided(alternatives):
                going_on.append(one)
                parents += [rows[parent] for parent in came_from]
        if not going_on:
            return
        running = going_on
        chunk = torch.tensor([[tokens[-1]] for one in running for _, tokens in one.live], device=device)
        state = state.select(torch.tensor(parents))


class StopAt:
    """Text up to the first of some stop strings; what may yet become one is held back."""

    def __init__(self, stops: Sequence[str]) -> None:
        """Raises ValueError for an empty stop string."""
        if not all(stops):
            raise ValueError("a stop string is empty; leave it out")
        self._stops = stops
        self._held = ""
        self.stopped = False

    def push(self, text: str) -> str:
        """What may be shown now that `text` has come."""
        if self.stopped:
            return ""
        self._held += text
        found = [(at + len(stop), at) for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            self.stopped = True
            return self._held[: min(found)[1]]
        kept = max((n for stop in self._stops for n in range(1, len(stop)) if self._held.endswith(stop[:n])), default=0)
        shown, self._held = self._held[: len(self._held) - kept], self._held[len(self._held) - kept :]
        return shown

    def flush(self) -> str:
        """What was held back, if no stop string came."""
        return "" if self.stopped else self._held
