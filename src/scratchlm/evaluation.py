"""Exact losses: a whole split, every target counted once."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from scratchlm.data.batches import IGNORED, Batch, evaluation_batches
from scratchlm.data.pair_batches import Pairs, evaluation_pairs
from scratchlm.data.shards import Tokens
from scratchlm.distribution import ALONE, World
from scratchlm.errors import InputError
from scratchlm.generation import inference
from scratchlm.model import LanguageModel

CARRIED_CHUNK = 1024  # tokens of a continuous pass that are read at once; what comes out does not depend on it
LOGITS_IN_MEMORY = 1 << 25  # logits of one batch at most: 128 MiB in float32


def features_and_state(model: LanguageModel, batch: Batch, state: Any) -> tuple[Tensor, Any]:
    """Features of a batch's positions after what `state` remembers, and the state after them.

    Without a state the batch begins anew, from its source where it has one. Shapes: (B * T, D).
    """
    if state is None and batch.source is not None:
        state = model.initial_state(len(batch.tokens), source=batch.source)
    features, state = model(batch.tokens, state)
    return features.flatten(0, 1), state


def wide_logits(model: LanguageModel, features: Tensor) -> Tensor:
    """Logits in float32 or wider, as a loss needs them. Shapes: (N, D) -> (N, V)."""
    logits = model.readout(features)
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def nll(logits: Tensor, targets: Tensor) -> Tensor:
    """The negative log-likelihood of the targets, summed. Shapes: (N, V), (N,), IGNORED where there is none."""
    return F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum")


def loss_and_state(model: LanguageModel, batch: Batch, state: Any = None) -> tuple[Tensor, Any]:
    """The negative log-likelihood of a batch's targets after what `state` remembers, summed, and the state after it.

    Units: nats. The sum is a scalar in float32 or wider, on the model's device.
    """
    features, state = features_and_state(model, batch, state)
    return nll(wide_logits(model, features), batch.targets.flatten()), state


def loss_sum(model: LanguageModel, batch: Batch) -> tuple[Tensor, int]:
    """The negative log-likelihood of a batch's targets, summed, and how many they are. Units: nats."""
    return loss_and_state(model, batch)[0], batch.target_count


@dataclass(frozen=True, kw_only=True)
class Score:
    """How well a model predicts a split: `nats_per_token` over `tokens` targets that stand for `bytes` bytes.

    `carried_nats_per_token` is the loss where every target is predicted with its whole history, if that was asked for.
    """

    nats_per_token: float
    tokens: int
    bytes: int
    carried_nats_per_token: float | None = None

    @property
    def perplexity(self) -> float:
        """Exp of the loss; infinite where that overflows."""
        return math.exp(self.nats_per_token) if self.nats_per_token < 700 else math.inf

    @property
    def bits_per_byte(self) -> float:
        """The same loss for each byte of text, which compares models whatever their tokenizers."""
        return self.nats_per_token * self.tokens / max(self.bytes, 1) / math.log(2)


def _require_targets(tokens: Tokens) -> None:
    if len(tokens) < 2:
        raise InputError(f"the split has {len(tokens)} tokens, and a loss needs two; give more text")


def evaluate(
    model: LanguageModel,
    data: Tokens | Pairs,
    token_lengths: np.ndarray,
    window: int,
    world: World = ALONE,
) -> Score:
    """The loss over a whole split: a text in back-to-back windows, no state carried between them; or each target.

    Shapes: token_lengths (V,), bytes of each token. Units: window in tokens. The model's mode is left as it was.
    The processes of a world share the work and have the same result.
    Raises InputError where the split has no target, or the window does not fit the model.
    """
    if isinstance(data, Pairs):
        if not len(data):
            raise InputError("the split has no pairs to score; give more of them")
        budget = world.size * max(1, min(8192, LOGITS_IN_MEMORY // model.config.vocab_size))
        return score_batches(model, evaluation_pairs(data, budget, not model.takes_source), token_lengths, world)
    if window < 1 or (model.context is not None and window > model.context):
        reads = "1 or more" if model.context is None else f"1 to {model.context}"
        raise InputError(f"a window of {window} tokens does not fit the model: it reads {reads}")
    _require_targets(data)
    rows = world.size * max(1, min(64, LOGITS_IN_MEMORY // (window * model.config.vocab_size)))  # of all processes
    return score_batches(model, evaluation_batches(data, window, rows), token_lengths, world)


def score_batches(
    model: LanguageModel, batches: Iterable[Batch], token_lengths: np.ndarray, world: World = ALONE
) -> Score:
    """The loss over batches, every target counted once. Shapes: token_lengths (V,), bytes of each token."""
    device = next(model.parameters()).device
    total, count, size = 0.0, 0, 0
    with inference(model):
        for whole in batches:
            batch = whole.part(world.rank, world.size)
            batch_sum, batch_count = loss_sum(model, batch.to(device))
            total += batch_sum.item()
            count += batch_count
            size += int(token_lengths[batch.targets[batch.targets != IGNORED].numpy()].sum())
    total, count, size = world.sum(torch.tensor([total, count, size], dtype=torch.float64)).tolist()
    return Score(nats_per_token=total / count, tokens=int(count), bytes=int(size))


def carried_loss(model: LanguageModel, tokens: Tokens) -> float:
    """The mean loss over a split in one continuous pass: every target is predicted with all that comes before it.

    Units: nats per token. One row is read from end to end, so it takes longer than `evaluate`.
    Raises InputError where the split has no target, or where the model's context is limited.
    """
    if model.context is not None:
        raise InputError(
            f"a carried state needs a model without a context limit; this one reads {model.context} tokens"
        )
    _require_targets(tokens)
    device = next(model.parameters()).device
    total = 0.0
    with inference(model):
        state = model.initial_state(1)
        for batch in evaluation_batches(tokens, CARRIED_CHUNK, 1):
            batch_sum, state = loss_and_state(model, batch.to(device), state)
            total += batch_sum.item()
    return total / (len(tokens) - 1)
