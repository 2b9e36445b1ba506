"""What an architecture's tensors are called on the hub, and how they lie there."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scratchlm.checkpoint import is_finite
from scratchlm.errors import InputError

WIDENED = (torch.float32, torch.float16, torch.bfloat16)  # become float32 without loss


@dataclass(frozen=True)
class Place:
    """The hub's name of a tensor; `transposed`: the matrix lies there as (in, out), a Conv1D's, and not as a Linear's.

    A square matrix has the same shape both ways, so that only this table knows.
    """

    name: str
    transposed: bool = False


def places_of(
    modules: Mapping[str, tuple[str, bool]], ours: str = "", theirs: str = "", parts: Sequence[str] = ("weight", "bias")
) -> dict[str, Place]:
    """The tensors of modules: {our module: (theirs, whether its matrix is transposed)}, each name behind its prefix."""
    return {
        f"{ours}{module}.{part}": Place(f"{theirs}{name}.{part}", transposed and part == "weight")
        for module, (name, transposed) in modules.items()
        for part in parts
    }


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How an architecture lies in a folder of the hub.

    Attributes:
        architecture: The class that config.json names.
        read_shape: config.json -> the settings of our model. Raises InputError for what that cannot be.
        write_shape: Our model's settings -> the keys of config.json. Raises InputError likewise.
        places: Depth -> the place of each of our tensors.
        aliases: A tensor's name on the hub -> other names under which it may be there, too or instead.
        buffers: Depth -> names of what may be there and is no weight.
    """

    architecture: str
    read_shape: Callable[[Mapping[str, Any]], dict[str, Any]]
    write_shape: Callable[[Any], dict[str, Any]]
    places: Callable[[int], dict[str, Place]]
    aliases: Mapping[str, Sequence[str]]
    buffers: Callable[[int], set[str]]

    def ours(self, tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], depth: int) -> dict[str, Tensor]:
        """Weights of ours, in float32, out of the hub's; `expected` has their names and shapes.

        Raises InputError, which names the tensors, where one is missing, left over, or not what it should be.
        """
        found = self._without_aliases(tensors)
        places, buffers = self.places(depth), self.buffers(depth)
        missing = [place.name for place in places.values() if place.name not in found]
        extra = sorted(found.keys() - {place.name for place in places.values()} - buffers)
        if missing or extra:
            wrong = [f"{what}: {_a_few(names)}" for what, names in (("missing", missing), ("unknown", extra)) if names]
            raise InputError(
                f"these are not the weights of a {self.architecture} of {depth} blocks; {'; '.join(wrong)}"
            )
        return {name: _ours(found[place.name], place, tuple(expected[name].shape)) for name, place in places.items()}

    def theirs(self, weights: Mapping[str, Tensor], depth: int) -> dict[str, Tensor]:
        """The hub's tensors out of weights of ours, each once."""
        places = self.places(depth)
        return {
            place.name: (weights[name].mT if place.transposed else weights[name]).contiguous()
            for name, place in places.items()
        }

    def _without_aliases(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found = dict(tensors)
        for name, others in self.aliases.items():
            there = [alias for alias in (name, *others) if alias in found]
            for alias in there[1:]:
                one, other = found[there[0]], found.pop(alias)
                if one.dtype != other.dtype or not torch.equal(one, other):
                    raise InputError(
                        f"{alias} differs from {there[0]}, and the two are one tensor in a {self.architecture}; "
                        "take the weights from a model that ties them"
                    )
            if there:
                found[name] = found.pop(there[0])
        return found


def _ours(tensor: Tensor, place: Place, shape: tuple[int, ...]) -> Tensor:
    lies = tuple(reversed(shape)) if place.transposed else shape
    if tuple(tensor.shape) != lies:
        raise InputError(f"{place.name} has the shape {tuple(tensor.shape)}; by config.json it is {lies}")
    if tensor.dtype not in WIDENED or tensor.layout != torch.strided:
        raise InputError(
            f"{place.name} is {tensor.dtype}, {tensor.layout}; dense float32, float16 and bfloat16 can be read: save "
            "the model in one of these"
        )
    # one copy at most: a tensor that lies as it should stays a view of the file
    turned = tensor.mT if place.transposed else tensor
    ours = turned.to(torch.float32, memory_format=torch.contiguous_format).contiguous()
    if not is_finite(ours):
        raise InputError(f"{place.name} has values that are no numbers; get the file again")
    return ours


def _a_few(names: Sequence[str], shown: int = 5) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more
