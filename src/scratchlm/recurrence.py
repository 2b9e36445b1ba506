"""What the recurrent models share: the layer around a recurrence, the blocks that it stands in, the memory it carries.

A model's file gives the cell: its equation (`step`), and the same over all steps at once with backpropagation through
time written out (`unroll`, `unroll_backward`). Everything here is time-major: a recurrence reads a step of all rows.

Letters in shapes: T new tokens, B batch, D dim, H hidden_dim, I width of a layer's input, G gates, V vocabulary.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scratchlm.layers import LayerNorm
from scratchlm.model import LanguageModel, Recordable, Source, State

Memory = tuple[Tensor, ...]  # the vectors (B, H) that a layer carries from step to step, the hidden vector first


class Recurrence(Recordable, ABC):
    """One recurrent layer, its weights laid out as those of torch's.

    `input` is weight_ih_l0 (G H, I) with bias_ih_l0 (G H), `recurrent` weight_hh_l0 (G H, H) with bias_hh_l0 (G H).
    """

    gates: ClassVar[int]  # that of the config
    vectors: ClassVar[tuple[str, ...]] = ("hidden",)  # names of the memory's

    def __init__(self, input_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.input = nn.Linear(input_dim, self.gates * hidden_dim)
        self.recurrent = nn.Linear(hidden_dim, self.gates * hidden_dim)

    def reset_parameters(self) -> None:
        """Each gate's input matrix Xavier-uniform, its recurrent one orthogonal (it keeps lengths); biases 0."""
        for rows in self.input.weight.chunk(self.gates):
            nn.init.xavier_uniform_(rows)
        for rows in self.recurrent.weight.chunk(self.gates):
            nn.init.orthogonal_(rows)
        nn.init.zeros_(self.input.bias)
        nn.init.zeros_(self.recurrent.bias)

    @abstractmethod
    def step(self, projected: Tensor, memory: Memory) -> Memory:
        """The cell's equation: one step. Shapes: projected = W_ih x_t + b_ih (B, G H), memory (B, H) each."""

    @staticmethod
    @abstractmethod
    def unroll(x: Tensor, weights: Memory, memory: Memory) -> tuple[Tensor, Memory, Memory]:
        """All steps at once, weights being W_ih, W_hh, b_ih, b_hh.

        Shapes: x (T, B, I) -> all hidden vectors (T, B, H), the memory after them, and what `unroll_backward` keeps.
        """

    @staticmethod
    @abstractmethod
    def unroll_backward(
        kept: Memory, recurrent: Tensor, gradient: Tensor, memory: Memory
    ) -> tuple[Tensor, Tensor, Tensor, Memory]:
        """Backpropagation through time, from the gradients of the hidden vectors (T, B, H) and of the last memory.

        Shapes: gradients of W_ih x_t + b_ih and of W_hh h_{t-1} + b_hh (T, B, G H), h_{t-1} itself (T, B, H), and the
        gradients of the first memory (B, H) each.
        """

    def initial_memory(self, nothing: Tensor) -> Memory:
        """Zeros, on the device and in the dtype of what the layer computes. Shapes: (0, B, I) -> (B, H) each."""
        zeros = self.input(nothing).new_zeros(nothing.shape[1], self.recurrent.in_features)
        return (zeros,) * len(self.vectors)

    def forward(self, x: Tensor, memory: Memory) -> tuple[Tensor, Memory]:  # (T, B, I) -> (T, B, H)
        if self.listener is not None or (len(x) == 1 and not torch.is_grad_enabled()):  # fast prepares more than a step
            return self.plain(x, memory)
        if torch.compiler.is_compiling():  # a graph would hold each step; a decorator would load the compiler, 1.4 s
            return torch.compiler.disable(self.fast)(x, memory)
        return self.fast(x, memory)

    def plain(self, x: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        """The loop as it is written in books, which `fast` equals; autograd differentiates it."""
        steps = [memory]
        for projected in self.input(x).unbind(0):
            steps.append(self.step(projected, steps[-1]))
        states = [torch.stack(vectors)[1:] for vectors in zip(*steps, strict=True)]  # (T, B, H) each
        for name, vectors in zip(self.vectors, states, strict=True):
            if self.listener is not None:
                self.listener(name, vectors.transpose(0, 1))
        return states[0], steps[-1]

    def fast(self, x: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        """All steps in one function with a backward pass of its own; 16-bit numbers are summed in 32 bits."""
        kept = memory[0].dtype
        weights = (self.input.weight, self.recurrent.weight, self.input.bias, self.recurrent.bias)
        wide = torch.promote_types(x.dtype, torch.float32)
        hidden, *after = _Unrolled.apply(type(self), *(tensor.to(wide) for tensor in (x, *weights, *memory)))
        return hidden.to(kept), tuple(vector.to(kept) for vector in after)


class _Unrolled(torch.autograd.Function):
    """A layer over all steps. What does not wait for the step before is one product for all of them."""

    @staticmethod
    def forward(ctx: Any, layer: type[Recurrence], x: Tensor, *tensors: Tensor) -> Any:  # type: ignore[override]
        weights, memory = tensors[:4], tensors[4:]
        hidden, memory, kept = layer.unroll(x, weights, memory)
        ctx.layer = layer
        ctx.save_for_backward(x, *weights[:2], *kept)
        return hidden, *memory

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *memory: Tensor) -> Any:  # type: ignore[override]
        if torch.is_grad_enabled():  # create_graph=True
            raise RuntimeError(
                "the fast recurrence has no second derivative; inside `with record(model):` the plain loop runs, "
                "and autograd can differentiate that twice"
            )
        x, w_input, w_recurrent, *kept = ctx.saved_tensors
        *flat, first = ctx.layer.unroll_backward(tuple(kept), w_recurrent, gradient, memory)
        projected, recurrent, before = (tensor.flatten(0, 1) for tensor in flat)  # (T B, G H), (T B, H)
        # the gradient of a weight is a sum over all steps: one product
        weights = (projected.t() @ x.flatten(0, 1), recurrent.t() @ before, projected.sum(0), recurrent.sum(0))
        return None, (projected @ w_input).view_as(x), *weights, *first


@dataclass(frozen=True, kw_only=True)
class RecurrentConfig:
    """The shape of a recurrent model; a subclass documents it for its cell."""

    gates = 1  # blocks of rows in each matrix of a recurrence
    hidden_per_dim = 1  # in the shapes that `sized` tries

    vocab_size: int
    dim: int = 128
    hidden_dim: int = 256
    depth: int = 2
    dropout: float = 0.0

    def __post_init__(self) -> None:
        for name in ("vocab_size", "dim", "hidden_dim", "depth"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}; it must be at least 0 and below 1")

    @classmethod
    def tiny(cls) -> Self:
        """A model that tests run in milliseconds."""
        return cls(vocab_size=23, dim=12, hidden_dim=16, depth=2)

    @classmethod
    def sized(cls, parameters: int, vocab_size: int, context: int = 256) -> Self:
        """The shape nearest to dim = 64 * depth among those within 2 % of `parameters`, whatever the context.

        Raises ValueError, naming the nearest count, where there is none.
        """
        shapes = [
            cls(vocab_size=vocab_size, dim=dim, hidden_dim=dim * cls.hidden_per_dim, depth=depth)
            for dim in range(8, 2049, 2)
            for depth in range(max(1, dim // 512), min(32, dim // 8) + 1)
        ]
        fitting = [shape for shape in shapes if abs(shape.parameters - parameters) <= 0.02 * parameters]
        if not fitting:
            nearest = min(shapes, key=lambda shape: abs(shape.parameters - parameters))
            raise ValueError(
                f"no {cls.__name__.removesuffix('Config')} with vocabulary {vocab_size} has {parameters:,} parameters "
                f"within 2 %; the nearest has {nearest.parameters:,}"
            )
        return min(fitting, key=lambda shape: abs(math.log(shape.dim / shape.depth / 64)))

    @property
    def parameters(self) -> int:
        """Parameters, the tied embedding counted once."""
        d, h = self.dim, self.hidden_dim
        recurrence = self.gates * h * (d + h + 2) + h * d + d
        return self.vocab_size * d + self.depth * (recurrence + 8 * d * d + 9 * d) + 2 * d


def variational_dropout(x: Tensor, share: float, training: bool) -> Tensor:
    """Dropout with one mask for all steps. Shapes: (T, B, D) -> (T, B, D). Paper: Gal and Ghahramani 2016, figure 1."""
    return x * F.dropout(torch.ones_like(x[:1]), share) if training and share else x


class Block(nn.Module):
    """x <- x + W_o h(LN(x)), then x <- x + W_2 gelu(W_1 LN(x)): a residual block with a recurrence for attention."""

    def __init__(self, recurrence: Recurrence, config: RecurrentConfig) -> None:
        super().__init__()
        self.recurrence_norm = LayerNorm(config.dim)
        self.recurrence = recurrence
        self.recurrence_output = nn.Linear(config.hidden_dim, config.dim)
        self.mlp_norm = LayerNorm(config.dim)
        self.mlp_hidden = nn.Linear(config.dim, 4 * config.dim)
        self.mlp_output = nn.Linear(4 * config.dim, config.dim)
        self.dropout = config.dropout

    def forward(self, x: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        hidden, memory = self.recurrence(self.recurrence_norm(x), memory)
        x = x + variational_dropout(self.recurrence_output(hidden), self.dropout, self.training)
        hidden = F.gelu(self.mlp_hidden(self.mlp_norm(x)))
        return x + variational_dropout(self.mlp_output(hidden), self.dropout, self.training), memory


@dataclass(eq=False)
class RecurrentState(State):
    """The memory of each block's recurrence: tensors (B, H), of one size however many tokens were read."""

    memories: list[Memory]


class RecurrentModel(LanguageModel):
    """A language model of residual blocks around a recurrence, which the subclass names in `Layer`."""

    Config = RecurrentConfig
    StateType: ClassVar[type[RecurrentState]] = RecurrentState
    Layer: ClassVar[type[Recurrence]]
    read_as_tensors = ("recurrence.input", "recurrence.recurrent")

    def __init__(self, config: RecurrentConfig) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.dim)
        layers = (self.Layer(config.dim, config.hidden_dim) for _ in range(config.depth))
        self.blocks = nn.ModuleList(Block(layer, config) for layer in layers)
        self.final_norm = LayerNorm(config.dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Recurrences as they say; the rest as GPT-2: N(0, 0.02), into the residual stream N(0, 0.02/sqrt(2 depth))."""
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif "norm" not in name:
                residual = name.endswith("_output.weight")
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * self.config.depth) if residual else 0.02)
        for block in self.blocks:
            cast(Block, block).recurrence.reset_parameters()

    def initial_state(
        self, batch_size: int, capacity: int | None = None, source: Source | None = None
    ) -> RecurrentState:
        nothing = self.token_embedding(self.token_embedding.weight.new_zeros(0, batch_size, dtype=torch.int64))
        memories = [cast(Block, block).recurrence.initial_memory(nothing) for block in self.blocks]
        return self.StateType(length=0, memories=memories)

    def forward(self, tokens: Tensor, state: RecurrentState | None = None) -> tuple[Tensor, RecurrentState | None]:
        at = self.position(tokens, state)
        before = self.initial_state(len(tokens)) if state is None else state
        wanted = [(self.config.hidden_dim,) * len(self.Layer.vectors)] * self.config.depth
        if [tuple(vector.shape[1] for vector in memory) for memory in before.memories] != wanted:
            raise ValueError(
                f"the state is of another model than this {type(self).__name__} of {self.config.depth} blocks with "
                f"{self.config.hidden_dim} hidden units; start one with initial_state()"
            )
        x = self.token_embedding(tokens.t())  # (T, B, D)
        memories: list[Memory] = []
        for block, memory in zip(self.blocks, before.memories, strict=True):
            x, after = block(x, memory)
            memories.append(after)
        x = self.final_norm(x).transpose(0, 1)  # (B, T, D)
        return x, None if state is None else self.StateType(length=at + tokens.shape[1], memories=memories)

    def readout(self, features: Tensor) -> Tensor:
        return F.linear(features, self.token_embedding.weight)
