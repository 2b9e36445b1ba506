"""How data runs through a model: what each module computes, gives and keeps, and which of them feeds which.

The model reads one window while every call of a module and every operation is watched. Shapes are all that is needed,
so it may be on the meta device, where a model of any size takes no memory. Nothing here knows an architecture: a sum
is found where an addition runs, a tied weight where a module's matrix is used outside of it.
"""

import inspect
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from scratchlm.inspect.modules import read_window
from scratchlm.model import LanguageModel, record

Phase = Literal["source", "tokens", "readout"]


@dataclass
class Step:
    """Something that happens in a module's forward pass: a module of its own runs, products are taken, two are added.

    `sources`: what it reads, as numbers of earlier steps, or -1, -2, ... for the module's inputs; none: token numbers.
    `reads`: the parameters of other modules that its products use. Units: flops for the window.
    """

    kind: Literal["module", "product", "sum"]
    name: str = ""
    sources: list[int] = field(default_factory=list)
    phases: list[Phase] = field(default_factory=list)
    flops: int = 0
    reads: list[str] = field(default_factory=list)


@dataclass
class Trace:
    """What one module did. Its modules' part is theirs: a sum over the tree is the whole of it.

    `output`: shapes of the tensors that a call gave. `kept`: bytes that the backward pass needs besides parameters,
    counted where they are needed first. `inputs`: names of the tensors that it is given. `shown`: shapes of what it
    shows to a recorder.
    """

    calls: int = 0
    flops: int = 0
    kept: int = 0
    output: list[tuple[int, ...]] = field(default_factory=list)
    inputs: list[str] = field(default_factory=list)
    shown: dict[str, tuple[int, ...]] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)


def trace(model: LanguageModel, window: int) -> dict[str, Trace]:
    """The trace of each module, by name, that of the model by "", for one window in training.

    Attention and recurrences run as they are written out, which shows all products, and keeps more for the backward
    pass than the fused paths do.
    """
    tracer = _Tracer(model)
    training = model.training
    model.train()
    with ExitStack() as stack:
        shown = stack.enter_context(record(model))
        stack.enter_context(tracer.hooks())
        stack.enter_context(saved_tensors_hooks(tracer.keep, lambda tensor: tensor))
        stack.enter_context(tracer.counter)
        stack.enter_context(tracer)
        read_window(model, window)
    model.train(training)
    for name, (tensor, *_) in shown.items():
        layer, _, what = name.rpartition(".")
        tracer.traces[layer].shown[what] = tuple(tensor.shape)
    return dict(tracer.traces)


def _floats(values: Any) -> Iterator[Tensor]:
    for leaf in pytree.tree_leaves(values):
        if isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.numel():
            yield leaf


def _is_empty(values: Any) -> bool:
    """Whether tensors are there and none holds a number: a model asks a layer so for the memory of nothing."""
    sizes = [leaf.numel() for leaf in pytree.tree_leaves(values) if isinstance(leaf, Tensor)]
    return bool(sizes) and not any(sizes)


class _Tracer(TorchDispatchMode):
    """Watches a forward pass. In each module's frame a storage is the value of a step, which views of it share.

    Values that other operations make of it are its too, but not `itself`: a sum takes one value as it is.
    """

    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        self.model = model
        self.counter = FlopCounterMode(display=False)
        self.traces: dict[str, Trace] = defaultdict(Trace)
        self.phase: Phase = "source"
        self._active = [""]
        self._values: dict[str, dict[int, int]] = defaultdict(dict)
        self._itself: dict[str, set[int]] = defaultdict(set)
        self._alive: dict[int, Any] = {}  # a storage's id is its own only as long as it lives
        self._kept: set[int] = set()
        self._owners = {self._id(parameter): name for name, parameter in model.named_parameters()}
        self._constant = {self._id(buffer) for buffer in model.buffers()} | set(self._owners)

    def _id(self, tensor: Tensor) -> int:
        storage = tensor.untyped_storage()
        self._alive[id(storage)] = storage
        return id(storage)

    def hooks(self) -> ExitStack:
        """Watch each module's calls until the stack is closed.

        Dropout, activations and what else has neither parameters nor modules are part of the module around them.
        """
        stack = ExitStack()
        for name, module in self.model.named_modules():
            if name and not [*module.parameters(), *module.children()]:
                continue
            for handle in (
                module.register_forward_pre_hook(self._entering(name), with_kwargs=True),
                module.register_forward_hook(self._leaving(name), with_kwargs=True),
            ):
                stack.callback(handle.remove)
        return stack

    def keep(self, tensor: Tensor) -> Tensor:
        """A tensor is saved for the backward pass."""
        storage = self._id(tensor)
        if storage not in self._constant and storage not in self._kept:
            self._kept.add(storage)
            self.traces[self._active[-1]].kept += tensor.untyped_storage().nbytes()
        return tensor

    def _levels(self, name: str) -> Iterator[tuple[str, str]]:
        """The frames in which a module's call is a step, outermost first, and the step's name in each.

        A part may be called without what it is a part of: then that counts as called.
        """
        parts = name.split(".")
        within = next(one for one in reversed(self._active) if not one or name.startswith(one + "."))
        for depth in range(within.count(".") + 1 if within else 0, len(parts)):
            yield ".".join(parts[:depth]), parts[depth]

    def _entering(self, name: str) -> Callable[..., None]:
        def enter(module: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> None:
            if not name:
                self.phase = "tokens"
                return
            if _is_empty((args, kwargs)):
                self._active.append(self._active[-1])
                return
            given = [self._id(tensor) for tensor in _floats((args, kwargs))]
            given = [storage for storage in dict.fromkeys(given) if storage not in self._constant]
            for frame, part in self._levels(name):
                step = self._step(frame, part)
                if self.phase not in step.phases:
                    step.phases.append(self.phase)
                    if len(step.phases) == 1:
                        step.sources = self._sources(frame, given)
            inner = self.traces[name]
            names = self._named(module, args, kwargs)
            inner.inputs = inner.inputs or list(dict.fromkeys(names[storage] for storage in given))
            for storage in given:
                if names[storage] in inner.inputs:
                    self._values[name].setdefault(storage, -1 - inner.inputs.index(names[storage]))
                    self._itself[name].add(storage)
            inner.calls += 1
            self._active.append(name)

        return enter

    def _named(self, module: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> dict[int, str]:
        """Which of its parameters, as its forward method calls them, a module is given a storage for."""
        bound = inspect.signature(module.forward).bind(*args, **kwargs).arguments
        return {self._id(tensor): name for name, value in reversed(bound.items()) for tensor in _floats(value)}

    def _leaving(self, name: str) -> Callable[..., None]:
        def leave(module: nn.Module, args: Any, kwargs: Mapping[str, Any], output: Any) -> None:
            if name:
                self._active.pop()
            if _is_empty((args, kwargs)):
                return
            self.traces[name].output = [tuple(tensor.shape) for tensor in _floats(output)]
            if not name:
                self.phase = "readout"
                return
            for frame, part in self._levels(name):
                number = self.traces[frame].steps.index(self._step(frame, part))
                for storage in map(self._id, _floats(output)):
                    self._values[frame][storage] = number
                    self._itself[frame].add(storage)

        return leave

    def _step(self, frame: str, part: str) -> Step:
        steps = self.traces[frame].steps
        found = next((step for step in steps if step.kind == "module" and step.name == part), None)
        if found is None:
            found = Step(kind="module", name=part)
            steps.append(found)
        return found

    def _sources(self, frame: str, storages: list[int]) -> list[int]:
        """The steps that made these values. Of one that is not known: the last step before."""
        if not storages:
            return []
        known = {self._values[frame][one] for one in storages if one in self._values[frame]}
        return sorted(known or {len(self.traces[frame].steps) - 2})

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = self.counter.get_total_flops()
        result = func(*args, **(kwargs or {}))
        flops = self.counter.get_total_flops() - before
        frame = self._active[-1]
        self.traces[frame].flops += flops
        values, itself = self._values[frame], self._itself[frame]
        given = [self._id(tensor) for tensor in _floats((args, kwargs))]
        known = [values[storage] for storage in given if storage in values]
        number: int | None = max(known, default=None)
        added = func is torch.ops.aten.add.Tensor and len(given) == 2 and not self._constant & set(given)
        made = bool(flops)  # a step, and not a change of what another step made
        if flops:
            number = self._product(frame, flops, sorted(set(known)), given)
        elif added and itself & set(given) and args[0].shape[-1] == args[1].shape[-1]:
            made, number = True, self._sum(frame, [values.get(one, len(self.traces[frame].steps) - 1) for one in given])
        if number is not None:
            for storage in map(self._id, _floats(result)):
                if storage not in self._constant and (made or storage not in values):
                    values[storage] = number
                    if made:
                        itself.add(storage)
        return result

    def _product(self, frame: str, flops: int, sources: list[int], given: list[int]) -> int:
        steps = self.traces[frame].steps
        if not steps or steps[-1].kind != "product" or steps[-1].phases != [self.phase]:
            steps.append(Step(kind="product", phases=[self.phase]))
        step, number = steps[-1], len(steps) - 1
        step.flops += flops
        step.sources = sorted({*step.sources, *(one for one in sources if one < number)})
        names = (self._owners[one] for one in given if one in self._owners)
        step.reads += [name for name in names if name.rpartition(".")[0] != frame and name not in step.reads]
        return number

    def _sum(self, frame: str, sources: list[int]) -> int:
        steps, wanted = self.traces[frame].steps, sorted(set(sources))
        for number, step in enumerate(steps):
            if step.kind == "sum" and step.sources == wanted:  # the same again, of a later token
                return number
        steps.append(Step(kind="sum", sources=wanted, phases=[self.phase]))
        return len(steps) - 1
