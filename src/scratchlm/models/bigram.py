"""Bigram: a table of what follows what, the smallest model that obeys the contract and the floor of a comparison.

Paper: Shannon 1948, "A Mathematical Theory of Communication", section 3, the second-order approximation to English.

    P(next | last) = softmax(table[last])       Bigram.forward; the features are the logits already

Departures: the table is trained and not counted.

Letters in shapes: B batch, T new tokens, V vocabulary.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from scratchlm.model import LanguageModel, Source, State


@dataclass(frozen=True, kw_only=True)
class BigramConfig:
    """The shape of a bigram model.

    Attributes:
        vocab_size: Tokens in the vocabulary (V).
    """

    vocab_size: int

    sized: ClassVar[None] = None  # the vocabulary alone is its size: a comparison takes it as it is

    def __post_init__(self) -> None:
        if self.vocab_size < 1:
            raise ValueError(f"vocab_size is {self.vocab_size}; it must be at least 1")

    @classmethod
    def tiny(cls) -> "BigramConfig":
        """A model that tests run in milliseconds."""
        return cls(vocab_size=23)

    @property
    def parameters(self) -> int:
        """Parameters: a logit for each pair."""
        return self.vocab_size**2


@dataclass(eq=False)
class BigramState(State):
    """Nothing: the next token follows from the last one alone. A tensor (B, 0) says how many rows there are."""

    nothing: Tensor


class Bigram(LanguageModel):
    """A table of logits (V, V): row i says what follows token i."""

    Config = BigramConfig
    StateType = BigramState

    def __init__(self, config: BigramConfig) -> None:
        super().__init__()
        self.config = config
        self.blocks = nn.ModuleList([nn.Embedding(config.vocab_size, config.vocab_size)])
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Near to a uniform distribution: N(0, 0.02)."""
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.02)

    def initial_state(self, batch_size: int, capacity: int | None = None, source: Source | None = None) -> BigramState:
        return BigramState(length=0, nothing=next(self.parameters()).new_zeros(batch_size, 0))

    def forward(self, tokens: Tensor, state: BigramState | None = None) -> tuple[Tensor, BigramState | None]:
        at = self.position(tokens, state)
        (table,) = self.blocks
        logits = table(tokens)  # (B, T, V)
        return logits, None if state is None else BigramState(length=at + tokens.shape[1], nothing=state.nothing)

    def readout(self, features: Tensor) -> Tensor:
        return features


Bigram.presets = {
    "laptop": {
        "steps": 1000,
        "batch_size": 16,
        "eval_every": 250,
        "optim": {"lr": 0.1, "min_lr": 0.01, "warmup": 0, "weight_decay": 0.0},
    },
}
