"""The contract that every architecture obeys.

An autoregressive language model is a state machine: it reads tokens and remembers something of them. Architectures
differ in what they remember (keys and values, a hidden vector, the last inputs of a convolution), so there is one
interface, and with it one trainer, one evaluator, one generator and one test suite for all of them:

    features, state = model(tokens, state)     # (B, T) int64 -> (B, T, D); without a state in, none comes out
    logits = model.readout(features)           # (B, T, D) -> (B, T, V)

Training reads one big chunk from the start, decoding reads many small ones: both run the same code.

Letters in shapes: B batch, T new tokens, S visible tokens, D width, H heads, K a key's, W a value's, V vocabulary.
"""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree


class WriteLog:
    """Who wrote each slot of one preallocated buffer last, so that a stale state is refused and not read as garbage."""

    def __init__(self, buffer: Tensor, stamps: list[int]) -> None:
        self.buffer = buffer
        self.stamps = stamps  # the stamp of the write that filled each slot
        self.newest = max(stamps, default=0)

    def write(self, start: int, end: int, stamp: int) -> int:
        """Claim slots start..end for the continuation of the state whose own last write was `stamp`."""
        written = self.stamps[start - 1] if 0 < start <= len(self.stamps) else (0 if start == 0 else None)
        if written != stamp:
            raise ValueError(
                f"this state of length {start} is stale: its preallocated memory was continued from an earlier state "
                "and holds other tokens now; fork a state with state.select(rows) before continuing it twice"
            )
        if end == start:
            return stamp
        self.newest += 1
        del self.stamps[start:]
        self.stamps.extend([self.newest] * (end - start))
        return self.newest


@dataclass(eq=False)
class KV:
    """What one attention layer remembers: keys (B, H, S, K) and values (B, H, S, W).

    Without a log it grows by new tensors and is differentiable. With one, S is a fixed capacity, written in place
    without gradients; slots past the state's length are dead, and only one continuation is alive.
    """

    keys: Tensor
    values: Tensor
    log: WriteLog | None = None
    stamp: int = 0

    @classmethod
    def empty(cls, keys: Tensor, values: Tensor, capacity: int | None) -> Self:
        """A memory of nothing, from the keys and values of an empty chunk, whose device and dtype it takes.

        Shapes: keys (B, H, 0, K), values (B, H, 0, W). Units: capacity in tokens, None to grow.
        """
        if capacity is None:
            return cls(keys, values)
        if capacity < 0:
            raise ValueError(f"capacity is {capacity}; give the number of tokens to hold, or None to grow")
        keys, values = (x.new_zeros(*x.shape[:2], capacity, x.shape[3]) for x in (keys, values))
        return cls(keys, values, WriteLog(keys, []))

    def append(self, keys: Tensor, values: Tensor, at: int) -> tuple[Tensor, Tensor, "KV"]:
        """All keys, all values and the new memory, after a chunk that starts `at` tokens.

        Shapes: keys (B, H, T, K), values (B, H, T, W) -> (B, H, at + T, K), (B, H, at + T, W).
        Raises ValueError where the chunk does not fit the capacity, or where this memory is stale.
        """
        if self.log is None:
            if at:  # the first chunk, which is all of it in training, is not copied
                keys, values = torch.cat([self.keys, keys], 2), torch.cat([self.values, values], 2)
            return keys, values, KV(keys, values)
        end, capacity = at + keys.shape[2], self.keys.shape[2]
        if end > capacity:
            raise ValueError(f"the state holds {capacity} tokens, {end} are needed; ask for capacity={end} or more")
        stamp = self.log.write(at, end, self.stamp)
        self.keys[:, :, at:end] = keys.detach()
        self.values[:, :, at:end] = values.detach()
        return self.keys[:, :, :end], self.values[:, :, :end], KV(self.keys, self.values, self.log, stamp)


def _unflatten_kv(tensors: Any, context: Any) -> KV:
    keys, values = tensors
    log, stamp = context
    if log is not None and log.buffer is not keys:  # a copy of the buffer has a history of its own from here on
        log = WriteLog(keys, list(log.stamps))
    return KV(keys, values, log, stamp)


pytree.register_pytree_node(KV, lambda kv: ([kv.keys, kv.values], (kv.log, kv.stamp)), _unflatten_kv)


@dataclass(eq=False)
class State:
    """What a model remembers of the `length` tokens that it has consumed. Every tensor in it is batch-first.

    An architecture's state subclasses it, adds fields of tensors, KV or lists of them, and is decorated with
    `@dataclass(eq=False)`. It is a pytree, so what follows is one tree map each.
    """

    length: int

    def __init_subclass__(cls) -> None:
        def flatten(state: State) -> tuple[list[Any], Any]:
            names = [f.name for f in dataclasses.fields(state) if f.name != "length"]
            return [getattr(state, name) for name in names], (state.length, names)

        def unflatten(children: Any, context: Any) -> State:
            length, names = context
            return cls(length=length, **dict(zip(names, children, strict=True)))

        pytree.register_pytree_node(cls, flatten, unflatten)

    def _map(self, function: Callable[[Tensor], Tensor]) -> Self:
        return pytree.tree_map_only(Tensor, function, self)

    @property
    def batch_size(self) -> int:
        """Rows."""
        return pytree.tree_leaves(self)[0].shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors, preallocated slots included."""
        return sum(leaf.nbytes for leaf in pytree.tree_leaves(self) if isinstance(leaf, Tensor))

    def select(self, rows: Tensor) -> Self:
        """A copy made of these rows: forks, reorders and shrinks a batch. Shapes: rows (N,) int64."""
        return self._map(lambda tensor: tensor.index_select(0, rows.to(tensor.device)))

    def detach(self) -> Self:
        """The same memory, cut from the graph that made it."""
        return self._map(lambda tensor: tensor.detach() if tensor.requires_grad else tensor)

    def to(self, device: torch.device | str) -> Self:
        """The same memory on `device`."""
        return self._map(lambda tensor: tensor.to(device))

    def reset(self, rows: Tensor) -> Self:
        """A copy in which these rows remember nothing. Shapes: rows (N,) int64.

        Raises ValueError where the memory grows with the tokens: all rows of it share one length.
        """
        if any(isinstance(leaf, KV) for leaf in pytree.tree_leaves(self, is_leaf=lambda x: isinstance(x, KV))):
            raise ValueError(
                f"{type(self).__name__} grows with its tokens, so one row cannot start over; "
                "start a new state with model.initial_state()"
            )
        return self._map(lambda tensor: tensor.index_fill(0, rows.to(tensor.device), 0))


@dataclass(frozen=True, eq=False)
class Source:
    """What an encoder-decoder reads: ids (B, S) int64, right-padded, and lengths (B,) int64."""

    ids: Tensor
    lengths: Tensor


class Recordable(nn.Module):
    """A layer that hands its inner tensors to whoever listens (see `record`)."""

    listener: Callable[[str, Tensor], None] | None = None


class LanguageModel(nn.Module, ABC):
    """The base of all architectures; the module's docstring says what it promises.

    A subclass names its `Config`, a frozen dataclass whose instance lies in `config`, and takes states of its own
    class, a `State`.
    """

    Config: ClassVar[type]
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}  # run settings by name; the first is the default
    takes_source: ClassVar[bool] = False
    has_senses: ClassVar[bool] = False  # `senses(tokens)`, whose weighted sum its features are
    fused: ClassVar[Mapping[str, tuple[str, ...]]] = {}  # module -> whose its matrix's rows are, in equal parts
    read_as_tensors: ClassVar[tuple[str, ...]] = ()  # linear modules whose matrix is read, not only called
    StateType: ClassVar[type[State]] = State  # what `initial_state` gives

    config: Any
    blocks: nn.ModuleList  # what is sharded, checkpointed and compiled piece by piece
    context: int | None = None  # tokens that it can read; None: no limit
    source_context: int | None = None

    @abstractmethod
    def initial_state(self, batch_size: int, capacity: int | None = None, source: Source | None = None) -> Any:
        """The memory of nothing, for `batch_size` rows.

        Units: capacity in tokens: memory is then preallocated, written in place and without gradients; None: it
        grows and is differentiable. `source` is for models that take one.
        """

    @abstractmethod
    def forward(self, tokens: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """Features of each position, and the state after them where one was given.

        Shapes: tokens (B, T) int64, T may be 0 -> (B, T, D).
        Raises ValueError where the tokens do not fit the context, or the state another batch.
        """

    @abstractmethod
    def readout(self, features: Tensor) -> Tensor:
        """Logits of the next token. Shapes: (..., D) -> (..., V)."""

    def position(self, tokens: Tensor, state: State | None) -> int:
        """Tokens consumed before this chunk, once it is known that the chunk fits."""
        at = 0 if state is None else state.length
        if state is not None and not isinstance(state, self.StateType):
            raise ValueError(f"{type(state).__name__} is no state of {type(self).__name__}; start with initial_state()")
        if state is not None and state.batch_size != len(tokens):
            raise ValueError(f"the state has {state.batch_size} rows, the tokens {len(tokens)}; use state.select(rows)")
        if self.context is not None and at + tokens.shape[1] > self.context:
            raise ValueError(
                f"the context is {self.context} tokens, {at + tokens.shape[1]} are needed; start anew with the newest"
            )
        return at


@contextmanager
def record(model: nn.Module) -> Iterator[dict[str, list[Tensor]]]:
    """Everything that the model's layers show while the block runs: "blocks.0.attention.weights" -> a tensor a call.

    The written-out paths run while it lasts, since a fused kernel has nothing to show.
    """
    shown: dict[str, list[Tensor]] = {}
    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, Recordable)]
    for prefix, layer in layers:

        def listener(name: str, tensor: Tensor, prefix: str = prefix) -> None:
            shown.setdefault(f"{prefix}.{name}".lstrip("."), []).append(tensor.detach())

        layer.listener = listener
    try:
        yield shown
    finally:
        for _, layer in layers:
            layer.listener = None
