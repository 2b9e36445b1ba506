"""A whole architecture in one small file, as a user would add one: an Elman network of two layers."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from scratchlm.model import LanguageModel, State


@dataclass(frozen=True, kw_only=True)
class ToyConfig:
    """A small Elman network.

    Attributes:
        vocab_size: Tokens in the vocabulary.
        dim: Width of the hidden vectors.
    """

    vocab_size: int
    dim: int = 16

    def __post_init__(self):
        if self.dim < 1:
            raise ValueError(f"dim is {self.dim}; it must be at least 1")

    @classmethod
    def tiny(cls):
        return cls(vocab_size=23)

    @classmethod
    def sized(cls, parameters, vocab_size, context=256):
        def count(dim):
            return 2 * vocab_size * dim + vocab_size + 2 * (2 * dim * dim + dim)

        dim = min(range(1, 2049), key=lambda dim: abs(count(dim) - parameters))
        if abs(count(dim) - parameters) > 0.02 * parameters:
            raise ValueError(f"no Toy has {parameters:,} parameters within 2 %; the nearest has {count(dim):,}")
        return cls(vocab_size=vocab_size, dim=dim)


class ToyLayer(nn.Module):
    """h_t = tanh(W x_t + U h_{t-1} + b)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.input = nn.Linear(dim, dim)
        self.recurrent = nn.Linear(dim, dim, bias=False)

    def forward(self, x: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        steps = []
        for one in self.input(x).unbind(1):
            hidden = torch.tanh(one + self.recurrent(hidden))
            steps.append(hidden)
        return torch.stack(steps, 1) if steps else x, hidden


@dataclass(eq=False)
class ToyState(State):
    hidden: list[Tensor]  # (B, D) of each layer


class Toy(LanguageModel):
    """An Elman network of two layers."""

    Config = ToyConfig

    def __init__(self, config: ToyConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.dim)
        self.blocks = nn.ModuleList(ToyLayer(config.dim) for _ in range(2))
        self.head = nn.Linear(config.dim, config.vocab_size)

    def initial_state(self, batch_size, capacity=None, source=None):
        nothing = self.embedding(self.embedding.weight.new_zeros(batch_size, 0, dtype=torch.int64))
        return ToyState(length=0, hidden=[nothing.new_zeros(batch_size, self.config.dim) for _ in self.blocks])

    def forward(self, tokens, state=None):
        at = self.position(tokens, state)
        before = state if state is not None else self.initial_state(len(tokens))
        x, hidden = self.embedding(tokens), []
        for layer, last in zip(self.blocks, before.hidden, strict=True):
            y, h = layer(x, last)
            x = x + y
            hidden.append(h)
        return x, None if state is None else ToyState(length=at + tokens.shape[1], hidden=hidden)

    def readout(self, features):
        return self.head(features)
