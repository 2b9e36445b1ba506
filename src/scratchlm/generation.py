"""The one generator: any model, through its state; and sampling as pure functions on logits.

Letters in shapes: B rows, V vocabulary.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
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


def check_prompts(model: LanguageModel, prompts: Sequence[Sequence[int]]) -> None:
    """Raises ValueError for a prompt that is empty or has an id outside of the vocabulary."""
    vocab_size = model.config.vocab_size
    for prompt in prompts:
        if not prompt:
            raise ValueError("a prompt is empty; give the tokenizer's start token")
        if not 0 <= min(prompt) <= max(prompt) < vocab_size:
            raise ValueError(
                f"a prompt has ids from {min(prompt)} to {max(prompt)}; the model knows 0 to {vocab_size - 1}"
            )


def readable(model: LanguageModel, source: Source | None, prompts: int) -> Source | None:
    """The source on the model's device.

    Raises ValueError where the model takes none, or it has another number of rows than there are prompts, or an id
    outside of the vocabulary.
    """
    if source is None:
        return None
    if not model.takes_source:
        raise ValueError(f"{type(model).__name__} reads no source; leave it out, or write it into the prompts")
    ids, lengths, vocab_size = source.ids, source.lengths, model.config.vocab_size
    if not len(ids) == len(lengths) == prompts:
        raise ValueError(
            f"the source has {len(ids)} rows and {len(lengths)} lengths for {prompts} prompts; give one for each"
        )
    if ids.numel() and not 0 <= ids.min() <= ids.max() < vocab_size:
        raise ValueError(
            f"the source has ids from {ids.min()} to {ids.max()}; the model knows 0 to {vocab_size - 1}, in padding too"
        )
    device = next(model.parameters()).device
    return Source(ids.to(device), lengths.to(device))


def check_context(context: int | None, prompt: int, new: int, unread: int) -> None:
    """`prompt` and `new` tokens fit, of which the model never reads the last `unread`."""
    if context is not None and prompt > context:
        raise ValueError(f"the context is {context} tokens, and a prompt has {prompt}; shorten it")
    if context is not None and prompt + new - unread > context:
        raise ValueError(
            f"the context is {context} tokens, and prompt and new tokens need {prompt + new - unread}; "
            f"ask for {context + unread - prompt} new tokens or fewer"
        )


@contextmanager
def evaluating(model: LanguageModel) -> Iterator[None]:
    """Without dropout; each of the model's modules is left in the mode that it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:  # one by one: a model may share a part with another that is in another mode
            module.training = training


def gradient_mode(model: LanguageModel) -> Callable[[], AbstractContextManager[object]]:
    """What makes the mode without gradients that this model can be computed in."""
    # what gathers a model that is shared out keeps the tensors that it makes first, and training could not use them
    shared_out = any(hasattr(parameter, "full_tensor") for parameter in model.parameters())
    return torch.no_grad if shared_out else torch.inference_mode


@contextmanager
def inference(model: LanguageModel) -> Iterator[None]:
    """Without gradients and dropout; each of the model's modules is left in the mode that it was in."""
    with evaluating(model), gradient_mode(model)():
        yield


def readable_end(ids: Sequence[int], context: int | None) -> Sequence[int]:
    """What is read of a text that slides: all of it, or where it exceeds the context its newest half of a context."""
    return ids if context is None or len(ids) <= context else ids[-max(1, context // 2) :]


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
    vocab_size: int | None = None,
    watch: Callable[[Sequence[int], Tensor], None] | None = None,
) -> Iterator[tuple[int, int]]:
    """(row, token) for each new token, row by row, as they are drawn.

    The shortest prompt is read in parallel, then each row is fed its own tokens until its prompt ends, so ragged
    prompts need no mask. A row ends after `max_new_tokens`, or before its token `end`.
    Units: `max_new_tokens` in tokens. `slide`: at the context's end, start again from the newest half of it.
    `vocab_size`: ids from it on are never drawn. A model may have more rows than its tokenizer has tokens.
    `watch` is given the rows that draw next, and the logits (rows, V) that they draw from.
    Raises ValueError for an empty prompt, for an id outside of the vocabulary, for a source that the model does not
    take or that has not one row a prompt, for a vocabulary without tokens, and without `slide` where prompt and new
    tokens do not fit the context.
    """
    sampling = sampling or Sampling()
    if vocab_size is not None and vocab_size < 1:
        raise ValueError(f"the vocabulary size is {vocab_size}; it must be at least 1, or left out")
    check_prompts(model, prompts)
    source = readable(model, source, len(prompts))
    if not prompts or max_new_tokens < 1:
        return
    context, rows = model.context, [list(prompt) for prompt in prompts]
    if slide:
        rows = [list(readable_end(row, context)) for row in rows]
    longest = max(map(len, rows))
    total = longest + max_new_tokens
    check_context(context, longest, 0 if slide else max_new_tokens, unread=1)
    device = next(model.parameters()).device
    generators = [row_generator(seed, row) for row in range(len(prompts))]
    left = [max_new_tokens] * len(rows)
    read = 0  # tokens of every row that the state has consumed
    capacity = total - 1 if context is None else min(total - 1, context)
    without_gradients = gradient_mode(model)
    with evaluating(model):
        state = None
        known = min(map(len, rows))
        while any(left):
            with without_gradients():  # not while a token is handed out: what is done with it is not ours
                if state is None:
                    state = model.initial_state(len(rows), capacity=capacity, source=source)
                chunk = torch.tensor([row[read:known] for row in rows], device=device)
                features, state = model(chunk, state)
                read = known
                # a row draws only for itself, and only once its prompt has ended, so no other row changes its draws
                active = [index for index, row in enumerate(rows) if len(row) == read and left[index]]
                drawn: list[int] = []
                if active:
                    logits = model.readout(features[active, -1])[:, :vocab_size]  # (rows that draw, V)
                    if watch is not None:
                        watch(active, logits)
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
                read, state = known - max(1, capacity // 2), None


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
    vocab_size: int | None = None,
) -> list[list[int]]:
    """Each prompt with its continuation.

    Row i draws from a generator of its own, made of (seed, i): what it says does not depend on the other rows.
    `vocab_size`: ids from it on are never drawn.
    Raises ValueError as `stream` and `Sampling` do.
    """
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    rows = [list(prompt) for prompt in prompts]
    drawn = stream(model, prompts, max_new_tokens, sampling, seed=seed, end=end, source=source, vocab_size=vocab_size)
    for row, token in drawn:
        rows[row].append(token)
    return rows


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
