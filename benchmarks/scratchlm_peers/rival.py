"""A model of other parts, with the weights of one of ours, so that both can be shown to do the same work."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor, nn

from scratchlm.config import OptimConfig
from scratchlm.data.batches import Batch
from scratchlm.training.optim import make_optimizer


@dataclass(frozen=True, kw_only=True)
class Rival:
    """A model that is measured against ours.

    `loss`: mean nats per target of a batch. `generate`: greedy, from prompts (B, T), a number of new tokens and the
    source or None; gives (B, T + new).
    """

    module: nn.Module
    loss: Callable[[Batch], Tensor]
    generate: Callable[..., Tensor] | None = None
    optimizer: Callable[[nn.Module, OptimConfig], torch.optim.Optimizer] = make_optimizer

    def compiled(self) -> Self:
        """The same with all that leads to its loss compiled, as ours has it, inside its module or not."""
        return replace(self, loss=torch.compile(self.loss))


def greedily(next_logits: Callable[[Tensor], Tensor], prompts: Tensor, new: int) -> Tensor:
    """Generation without memory: all is read again for each token. `next_logits`: (B, T) -> (B, V)."""
    tokens = prompts
    with torch.inference_mode():
        for _ in range(new):
            tokens = torch.cat([tokens, next_logits(tokens).argmax(-1, keepdim=True)], 1)
    return tokens
