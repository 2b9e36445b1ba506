"""Exact losses: a whole split, every target counted once."""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from scratchlm.data.batches import IGNORED, Batch, evaluation_batches
from scratchlm.data.shards import Tokens
from scratchlm.errors import InputError
from scratchlm.model import LanguageModel

LOGITS_IN_MEMORY = 1 << 25  # logits of one batch at most: 128 MiB in float32


def loss_sum(model: LanguageModel, batch: Batch) -> tuple[Tensor, int]:
    """The negative log-likelihood of a batch's targets, summed, and how many they are.

    Units: nats. The sum is a scalar in float32 or wider, on the model's device.
    """
    state = None
    if batch.source is not None:
        state = model.initial_state(len(batch.tokens), source=batch.source)
    features, _ = model(batch.tokens, state)
    logits = model.readout(features).flatten(0, 1)  # (B * T, V)
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    return F.cross_entropy(logits, batch.targets.flatten(), ignore_index=IGNORED, reduction="sum"), batch.target_count


@dataclass(frozen=True, kw_only=True)
class Score:
    """How well a model predicts a split: `nats_per_token` over `tokens` targets that stand for `bytes` bytes."""

    nats_per_token: float
    tokens: int
    bytes: int

    @property
    def perplexity(self) -> float:
        """Exp of the loss; infinite where that overflows."""
        return math.exp(self.nats_per_token) if self.nats_per_token < 700 else math.inf

    @property
    def bits_per_byte(self) -> float:
        """The same loss for each byte of text, which compares models whatever their tokenizers."""
        return self.nats_per_token * self.tokens / max(self.bytes, 1) / math.log(2)


def evaluate(model: LanguageModel, tokens: Tokens, token_lengths: np.ndarray, window: int) -> Score:
    """The loss over a whole split, cut in back-to-back windows, no state carried between them.

    Shapes: token_lengths (V,), bytes of each token. Units: window in tokens. The model's mode is left as it was.
    Raises InputError where the split has no target, or the window does not fit the model.
    """
    if window < 1 or (model.context is not None and window > model.context):
        raise InputError(f"a window of {window} tokens does not fit the model: it reads 1 to {model.context}")
    if len(tokens) < 2:
        raise InputError(f"the split has {len(tokens)} tokens, and a loss needs two; give more text")
    device = next(model.parameters()).device
    rows = max(1, min(64, LOGITS_IN_MEMORY // (window * model.config.vocab_size)))
    total, count, size = 0.0, 0, 0
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            for batch in evaluation_batches(tokens, window, rows):
                batch_sum, batch_count = loss_sum(model, batch.to(device))
                total += batch_sum.item()
                count += batch_count
                size += int(token_lengths[batch.targets.numpy()].sum())
    finally:
        model.train(training)
    return Score(nats_per_token=total / count, tokens=count, bytes=size)
