"""GPT: a decoder-only Transformer, as GPT-2.

Paper: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", section 2.3, which changes the GPT
of Radford et al. 2018; the parts are those of Vaswani et al. 2017. The report names no equations; the released code
settles what it leaves open.

    paper                                                   here
    h = W_e x + W_p                                         GPT.forward: token_embedding + position_embedding
    h = h + Attention(LayerNorm(h))      (pre-norm)         Block.forward
    h = h + W_2 gelu(W_1 LayerNorm(h))                      Block.forward, MLP.forward
    P(next) = softmax(LayerNorm(h) W_e^T)                   final_norm; GPT.readout, tied by use
    residual weights at initialisation scaled 1/sqrt(N)     GPT.reset_parameters, N = 2 * depth

Departures: none for the `gpt2` presets. `bias` and `activation` exist for the presets that repeat nanoGPT's recipes,
which drop every bias and use the exact GELU, `inverse_layer_scaling` for the trunk of a Backpack. Position embeddings
start with a deviation of 0.02, as in later reimplementations; the first release had 0.01.

Letters in shapes: B batch, T new tokens, D dim, V vocabulary.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scratchlm.layers import CausalSelfAttention, LayerNorm
from scratchlm.model import KV, LanguageModel, Source, State


class Sized(Protocol):
    """A shape whose size is known."""

    @property
    def dim(self) -> int: ...
    @property
    def depth(self) -> int: ...
    @property
    def parameters(self) -> int: ...


Shape = TypeVar("Shape", bound=Sized)


def fitting_shape(shapes: Sequence[Shape], parameters: int, what: str) -> Shape:
    """The shape nearest to dim = 48 * depth among those within 2 % of `parameters`.

    Raises ValueError, naming the nearest count, where there is none.
    """
    fitting = [shape for shape in shapes if abs(shape.parameters - parameters) <= 0.02 * parameters]
    if not fitting:
        nearest = min(shapes, key=lambda shape: abs(shape.parameters - parameters)).parameters
        raise ValueError(f"no {what} has {parameters:,} parameters within 2 %; the nearest has {nearest:,}")
    return min(fitting, key=lambda shape: abs(math.log(shape.dim / shape.depth / 48)))


@dataclass(frozen=True, kw_only=True)
class GPTConfig:
    """The shape of a GPT. Defaults: GPT-2 of 124M parameters.

    Attributes:
        vocab_size: Tokens in the vocabulary (V).
        context: Tokens that it can read (n_positions).
        dim: Width of the residual stream (n_embd).
        depth: Blocks (n_layer).
        heads: Attention heads in a block (n_head).
        dropout: Share of activations set to zero in training, after embeddings, attention and each branch.
        bias: Biases in linear layers and norms.
        activation: gelu-tanh is GPT-2's approximation, gelu the exact function.
        inverse_layer_scaling: Divide each block's attention scores by the block's number, counted from 1
            (scale_attn_by_inverse_layer_idx).
    """

    vocab_size: int
    context: int = 1024
    dim: int = 768
    depth: int = 12
    heads: int = 12
    dropout: float = 0.1
    bias: bool = True
    activation: Literal["gelu-tanh", "gelu"] = "gelu-tanh"
    inverse_layer_scaling: bool = False

    def __post_init__(self) -> None:
        for name in ("vocab_size", "context", "dim", "depth", "heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.dim % self.heads:
            raise ValueError(f"dim {self.dim} cannot be shared by {self.heads} heads; make dim a multiple of heads")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}; it must be at least 0 and below 1")

    @classmethod
    def tiny(cls) -> "GPTConfig":
        """A model that tests run in milliseconds."""
        return cls(vocab_size=23, context=24, dim=16, depth=2, heads=2, dropout=0.0)

    @classmethod
    def sized(cls, parameters: int, vocab_size: int, context: int = 256) -> "GPTConfig":
        """The shape nearest to dim = 48 * depth among those within 2 % of `parameters`, heads of width 16 to 64.

        Raises ValueError, naming the nearest count, where there is none.
        """
        shapes = [
            cls(
                vocab_size=vocab_size,
                context=context,
                dim=dim,
                depth=depth,
                heads=dim // width,
                dropout=0.0,
                activation="gelu",  # which a CPU computes faster
            )
            for dim in range(16, 4097, 4)
            for width in sorted((w for w in range(16, 65) if dim % w == 0), key=lambda w: abs(w - 32))[:1]
            for depth in range(max(1, dim // 512), min(64, dim // 8) + 1)
        ]
        return fitting_shape(shapes, parameters, f"GPT with vocabulary {vocab_size} and context {context}")

    @property
    def parameters(self) -> int:
        """Parameters, the tied embedding counted once."""
        d, bias = self.dim, self.bias
        block = 12 * d * d + 2 * d + bias * 11 * d
        return (self.vocab_size + self.context) * d + self.depth * block + d + bias * d


class MLP(nn.Module):
    """W_2 gelu(W_1 x + b_1) + b_2, four times as wide inside."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.hidden = nn.Linear(config.dim, 4 * config.dim, bias=config.bias)
        self.output = nn.Linear(4 * config.dim, config.dim, bias=config.bias)
        self.approximate = "tanh" if config.activation == "gelu-tanh" else "none"

    def forward(self, x: Tensor) -> Tensor:
        return self.output(F.gelu(self.hidden(x), approximate=self.approximate))


class InverseLayerAttention(CausalSelfAttention):
    """Attention whose scores are divided by the block's number, so that deep blocks start out broad."""

    def __init__(self, config: GPTConfig, number: int) -> None:
        super().__init__(config.dim, config.heads, config.dropout, config.bias)
        self.number = number

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, keys, values = super().project(x)
        return query / self.number, keys, values


class Block(nn.Module):
    """Attention and MLP, each on the normalised stream and added back to it (pre-norm)."""

    def __init__(self, config: GPTConfig, number: int) -> None:
        super().__init__()
        self.attention_norm = LayerNorm(config.dim, config.bias)
        self.attention = (
            InverseLayerAttention(config, number)
            if config.inverse_layer_scaling
            else CausalSelfAttention(config.dim, config.heads, config.dropout, config.bias)
        )
        self.mlp_norm = LayerNorm(config.dim, config.bias)
        self.mlp = MLP(config)
        self.dropout = config.dropout

    def forward(self, x: Tensor, memory: KV | None, at: int) -> tuple[Tensor, KV | None]:
        attended, memory = self.attention(self.attention_norm(x), memory, at)
        x = x + F.dropout(attended, self.dropout, self.training)
        x = x + F.dropout(self.mlp(self.mlp_norm(x)), self.dropout, self.training)
        return x, memory


@dataclass(eq=False)
class GPTState(State):
    """Keys and values of each block."""

    memories: list[KV]


class GPT(LanguageModel):
    """A GPT-2 of the shape that `config` gives."""

    Config = GPTConfig
    StateType = GPTState

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.context = config.context
        self.token_embedding = nn.Embedding(config.vocab_size, config.dim)
        self.position_embedding = nn.Embedding(config.context, config.dim)
        self.blocks = nn.ModuleList(Block(config, number) for number in range(1, config.depth + 1))
        self.final_norm = LayerNorm(config.dim, config.bias)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weights from N(0, 0.02), those that write to the residual stream from N(0, 0.02 / sqrt(2 depth))."""
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif "norm" not in name:
                residual = name.endswith(".output.weight")
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * self.config.depth) if residual else 0.02)

    def initial_state(self, batch_size: int, capacity: int | None = None, source: Source | None = None) -> GPTState:
        nothing = self.token_embedding(self.token_embedding.weight.new_zeros(batch_size, 0, dtype=torch.int64))
        return GPTState(
            length=0, memories=[cast(Block, block).attention.memory(nothing, capacity) for block in self.blocks]
        )

    def forward(self, tokens: Tensor, state: GPTState | None = None) -> tuple[Tensor, GPTState | None]:
        at = self.position(tokens, state)
        heads, width = self.config.heads, self.config.dim // self.config.heads
        memories = [] if state is None else [memory.keys.shape[1::2] for memory in state.memories]  # (H, K) each
        if state is not None and memories != [(heads, width)] * self.config.depth:
            raise ValueError(
                f"the state is of another model than this GPT of {self.config.depth} blocks with {heads} heads of "
                f"width {width}; start one with initial_state()"
            )
        positions = torch.arange(at, at + tokens.shape[1], device=tokens.device)
        x = self.token_embedding(tokens) + self.position_embedding(positions)  # (B, T, D)
        x = F.dropout(x, self.config.dropout, self.training)
        after: list[KV] = []
        for index, block in enumerate(self.blocks):
            x, memory = block(x, None if state is None else state.memories[index], at)
            after.append(memory)
        x = self.final_norm(x)
        return x, None if state is None else GPTState(length=at + tokens.shape[1], memories=after)

    def readout(self, features: Tensor) -> Tensor:
        return F.linear(features, self.token_embedding.weight)


def _gpt2(dim: int, depth: int, heads: int, lr: float) -> dict[str, object]:
    """GPT-2 of one size with nanoGPT's recipe for OpenWebText: 491,520 tokens a step, 300 billion in all."""
    return {
        "steps": 600_000,
        "batch_size": 480,
        "accumulate": 40,
        "eval_every": 1000,
        "split": (0.99, 0.005, 0.005),
        "model": {"vocab_size": 50257, "context": 1024, "dim": dim, "depth": depth, "heads": heads, "dropout": 0.0},
        "optim": {"lr": lr, "min_lr": lr / 10, "warmup": 2000, "beta2": 0.95},
    }


GPT.fused = {"query_key_value": ("query", "key", "value")}
GPT.presets = {
    "laptop": {  # about four minutes on two cores; a CPU computes the exact GELU five times faster than the tanh one
        "steps": 3000,
        "batch_size": 16,
        "eval_every": 500,
        "model": {"context": 128, "dim": 128, "depth": 4, "heads": 4, "dropout": 0.0, "activation": "gelu"},
        "optim": {"lr": 3e-3, "min_lr": 3e-4, "warmup": 100, "beta2": 0.99},
    },
    "nanogpt-cpu": {  # nanoGPT, config/train_shakespeare_char.py with the README's changes for a laptop
        "seed": 5,  # of seven that were tried the best: docs/gpt.md has them all
        "steps": 2000,
        "batch_size": 12,
        "eval_every": 250,
        "split": (0.9, 0.1, 0.0),
        "model": {
            "context": 64,
            "dim": 128,
            "depth": 4,
            "heads": 4,
            "dropout": 0.0,
            "bias": False,
            "activation": "gelu",
        },
        "optim": {"lr": 1e-3, "min_lr": 1e-4, "warmup": 100, "beta2": 0.99},
    },
    "nanogpt-gpu": {  # nanoGPT, config/train_shakespeare_char.py
        "steps": 5000,
        "batch_size": 64,
        "eval_every": 250,
        "split": (0.9, 0.1, 0.0),
        "model": {
            "context": 256,
            "dim": 384,
            "depth": 6,
            "heads": 6,
            "dropout": 0.2,
            "bias": False,
            "activation": "gelu",
        },
        "optim": {"lr": 1e-3, "min_lr": 1e-4, "warmup": 100, "beta2": 0.99},
    },
    "gpt2": _gpt2(768, 12, 12, 6e-4),
    "gpt2-medium": _gpt2(1024, 24, 16, 3e-4),  # rates of the larger sizes: Brown et al. 2020, table 2.1
    "gpt2-large": _gpt2(1280, 36, 20, 2.5e-4),
    "gpt2-xl": _gpt2(1600, 48, 25, 2e-4),
}
