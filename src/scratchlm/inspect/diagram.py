"""A model as a picture: its tree of modules, what each has, costs and keeps, and how data runs from top to bottom.

One SVG of plain shapes and text, light or dark as whoever looks at it prefers, without scripts or addresses.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import nn
from torch.nn.utils.parametrize import is_parametrized, type_before_parametrizations

from scratchlm.inspect.drawing import Item, draw
from scratchlm.inspect.tracing import Step, Trace, trace
from scratchlm.model import LanguageModel

LONGEST = 60  # letters of a line


def diagram(model: LanguageModel, title: str, window: int) -> str:
    """The picture of a model, as the text of an SVG file; FLOPs and activations are those of one window.

    Give it on the meta device, where it takes no memory. Equal modules that follow each other are drawn once.
    """
    return draw(_Reader(model, window).root(title), title)


def shape(sizes: Sequence[int]) -> str:
    """Sizes with times signs between them; a scalar is 1."""
    return "\N{MULTIPLICATION SIGN}".join(map(str, sizes)) or "1"


def size(count: float) -> str:
    """Bytes for people."""
    unit = next(((name, by) for name, by in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)) if count >= by), ("B", 1))
    return f"{count / unit[1]:,.{0 if unit[1] == 1 else 1}f} {unit[0]}"


def _spread(numbers: Sequence[float], text: Callable[[Any], str] = size) -> str:
    """One number, or from the least to the most, where that is another text."""
    least, most = text(min(numbers)), text(max(numbers))
    return least if least == most else f"{least} to {most}"


class _Reader:
    """Makes items of modules."""

    def __init__(self, model: LanguageModel, window: int) -> None:
        self.window = window
        self.modules = dict(model.named_modules())
        self.traces = trace(model, window)
        reads = ((name, read) for name, one in self.traces.items() for step in one.steps for read in step.reads)
        self.tied = {read.rpartition(".")[0]: name or "the readout" for name, read in reads}

    def _sum(self, name: str, what: str) -> int:
        """Of a module and all below it."""
        below = (one for one in self.traces if not name or one == name or one.startswith(name + "."))
        return sum(getattr(self.traces[one], what) for one in below)

    def root(self, title: str) -> Item:
        """The box of the whole model."""
        drawn = self._module([""], title, "")
        drawn.lines += _wrapped(
            f"of one window of {self.window:,} tokens in training; keeps: bytes that the backward pass needs, in "
            "float32, attention and recurrences written out"
        )
        return drawn

    def _module(self, names: Sequence[str], label: str, kind: str, times: int = 1) -> Item:
        """One box for modules that are equal, of which `times` follow each other."""
        module, traces = self.modules[names[0]], [self.traces.get(name, Trace()) for name in names]
        one = traces[0]
        parameters = sum(parameter.numel() for parameter in module.parameters())
        flops, kept = self._sum(names[0], "flops"), [self._sum(name, "kept") for name in names]
        own = {name: shape(parameter.shape) for name, parameter in _own(module)}
        lines = [
            ", ".join([*self._facts(names), *(f"{name} {sizes}" for name, sizes in own.items())]),
            self._costs(parameters, flops),
            f"{_given(traces)}keeps {_spread(kept)}",
            *(f"{name} inside {shape(sizes)}" for name, sizes in one.shown.items()),
        ]
        if times > 1:
            lines.append(f"{times} together: {self._costs(times * parameters, times * flops)}")
        if names[0] in self.tied:
            lines.append(f"weight is tied: {self.tied[names[0]]} uses it too")
        if isinstance(module, nn.Embedding):
            lines.append("looks up a row for each number that it is given")
        return Item(
            what="module",
            lines=[label, *(part for line in lines if line for part in _wrapped(line))],
            kind=kind + (f" \N{MULTIPLICATION SIGN} {times}" if times > 1 else ""),
            inputs=one.inputs,
            inside=self._inside(names),
            mark=_mark(module),
            data={"name": names[0], "copies": len(names), "parameters": parameters, "flops": flops, "kept": sum(kept)},
        )

    def _costs(self, parameters: int, flops: int) -> str:
        return f"{parameters:,} parameters" + (f", {flops / self.window:,.0f} FLOPs a token" if flops else "")

    def _facts(self, names: Sequence[str]) -> Iterator[str]:
        """The whole numbers that a module of ours was made with, such as its heads."""
        modules = [self.modules[name] for name in names]
        if type_before_parametrizations(modules[0]).__module__.startswith("torch."):
            return
        for key, value in vars(modules[0]).items():
            if type(value) is int and not key.startswith("_"):
                yield f"{key} {_spread([vars(module)[key] for module in modules], str)}"

    def _inside(self, names: Sequence[str]) -> list[Item]:
        """What lies in a box: the modules of a list stand for it."""
        prefix = [f"{name}." if name else "" for name in names]
        if is_parametrized(self.modules[names[0]]):  # what makes its weight is no part of what it does
            return []
        steps = self.traces.get(names[0], Trace()).steps
        called = {step.name for step in steps}
        missing = [
            Step(kind="module", name=name)
            for name, child in self.modules[names[0]].named_children()
            if name not in called and any(True for _ in child.parameters())
        ]
        if not any(step.kind == "module" for step in [*steps, *missing]):
            return []
        items: list[Item] = []
        ends: list[tuple[int, int]] = []  # the first and the last item of each step
        for step in [*steps, *missing]:
            first = len(items)
            sources = sorted({ends[one][1] if one >= 0 else one for one in step.sources if one < len(ends)})
            if step.kind == "module":
                children = [start + step.name for start in prefix]
                if isinstance(self.modules[children[0]], nn.ModuleList):
                    items += self._of_list(children, step.name)
                else:
                    kind = _kind(self.modules[children[0]])
                    items.append(self._module(children, step.name, kind))
                for number in range(first + 1, len(items)):
                    items[number].sources = [number - 1]
                for item in items[first:]:
                    item.phases = step.phases
            else:
                items.append(Item(what=step.kind, lines=self._products(step), phases=step.phases))
            items[first].sources = sources
            ends.append((first, len(items) - 1))
        return items

    def _products(self, step: Step) -> list[str]:
        if step.kind == "sum":
            return []
        reads = [f"uses {read}, tied" for read in step.reads]
        what = "readout" if step.phases == ["readout"] else "products of its own"
        return [f"{what}: {step.flops / self.window:,.0f} FLOPs a token", *reads]

    def _of_list(self, lists: Sequence[str], label: str) -> list[Item]:
        """One box for modules of a list that follow each other and are equal."""
        numbers = [name for name, _ in self.modules[lists[0]].named_children()]
        groups: list[list[str]] = []
        for number in numbers:
            alike = groups and self._signature(f"{lists[0]}.{groups[-1][0]}") == self._signature(f"{lists[0]}.{number}")
            groups[-1].append(number) if alike else groups.append([number])
        items = []
        for group in groups:
            kind = _kind(self.modules[f"{lists[0]}.{group[0]}"])
            span = group[0] if len(group) == 1 else f"{group[0]} to {group[-1]}"
            names = [f"{one}.{number}" for one in lists for number in group]
            items.append(self._module(names, f"{label} {span}", kind, len(group)))
        return items

    def _signature(self, name: str) -> object:
        """What two modules have in common that are drawn as one."""
        module, one = self.modules[name], self.traces.get(name, Trace())
        return (
            _kind(module),
            [(key, parameter.shape) for key, parameter in module.named_parameters()],
            one.flops,
            one.output[:1],
            one.calls,
            [(step.kind, step.name, step.sources) for step in one.steps],
            [self._signature(f"{name}.{child}") for child, _ in module.named_children()],
        )


def _kind(module: nn.Module) -> str:
    """What a module is; a parametrization makes a class of its own of it."""
    return type_before_parametrizations(module).__name__


def _own(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """A module's own parameters, and those that its parametrized weights are made of."""
    yield from module.named_parameters(recurse=False)
    if is_parametrized(module):
        for name, parameter in module.named_parameters():
            if name.startswith("parametrizations."):
                yield name.removeprefix("parametrizations."), parameter


def _given(traces: Sequence[Trace]) -> str:
    """What modules give: the first tensor, and others where they are of one size in all of these modules."""
    one = traces[0]
    if not one.output:
        return ""
    first, others = shape(one.output[0]), one.output[1:]
    if others and all(other.output == one.output for other in traces):
        same = 1 + others.count(one.output[0]) if len(set(one.output)) == 1 else 1
        rest = {shape(sizes): others.count(sizes) for sizes in others if same == 1}
        first = f"{same} of {first}" if same > 1 else first
        first += "".join(f" and {count} of {sizes}" if count > 1 else f" and {sizes}" for sizes, count in rest.items())
    return f"gives {first}" + (f" in each of {one.calls:,} calls" if one.calls > 1 else "") + "; "


def _mark(module: nn.Module) -> str:
    if isinstance(module, nn.Embedding):
        return "embedding"
    if any(True for _ in module.children()) and not is_parametrized(module):
        return ""
    name = _kind(module).lower()
    return "linear" if isinstance(module, nn.Linear) else "norm" if "norm" in name else "other"


def _wrapped(line: str) -> list[str]:
    """A line in parts that are not too long."""
    parts, rest = [], line
    while len(rest) > LONGEST and " " in rest[:LONGEST]:
        at = max(rest.rfind(mark, 0, LONGEST) for mark in (", ", "; ")) + 1 or rest.rfind(" ", 0, LONGEST)
        parts.append(rest[:at])
        rest = rest[at:].strip()
    return [*parts, rest]
