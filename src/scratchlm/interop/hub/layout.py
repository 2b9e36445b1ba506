"""What an architecture's tensors are called on the hub, and how they lie there."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
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
        architectures: The classes that config.json may name; the first is written.
        read_shape: config.json -> the settings of our model. Raises InputError for what that cannot be.
        write_shape: Our model's settings -> the keys of config.json. Raises InputError likewise.
        places: Depth -> the place of each of our tensors.
        aliases: A tensor's name on the hub -> other names under which it may be there, too or instead.
        buffers: Depth -> names of what may be there and is no weight.
        prefix: What all names of a file may lack, those that do not begin with it apart.
    """

    architectures: Sequence[str]
    read_shape: Callable[[Mapping[str, Any]], dict[str, Any]]
    write_shape: Callable[[Any], dict[str, Any]]
    places: Callable[[int], dict[str, Place]]
    aliases: Mapping[str, Sequence[str]]
    buffers: Callable[[int], set[str]]
    prefix: str = ""

    def find(self, tensors: Mapping[str, Tensor], depth: int) -> dict[str, Place]:
        """Where each of our tensors is in a file that has these.

        Raises InputError, which names the tensors, where one is missing or left over, or differs from its alias.
        """
        prefix = "" if any(name.startswith(self.prefix) for name in tensors) else self.prefix
        left = set(tensors) - {name.removeprefix(prefix) for name in self.buffers(depth)}
        places, missing = dict[str, Place](), list[str]()
        for ours, place in self.places(depth).items():
            names = [name.removeprefix(prefix) for name in (place.name, *self.aliases.get(place.name, ()))]
            there = [name for name in names if name in left]
            for alias in there[1:]:
                self._check_tied(tensors, there[0], alias)
            left -= set(there)
            places[ours] = replace(place, name=(there or names)[0])
            if not there:
                missing.append(names[0])
        if missing or left:
            wrong = (("missing", missing), ("unknown", sorted(left)))
            raise InputError(
                f"these are not the weights of a {self.architectures[0]} of {depth} blocks; "
                + "; ".join(f"{what}: {_a_few(names)}" for what, names in wrong if names)
            )
        return places

    def theirs(self, weights: Mapping[str, Tensor], depth: int) -> dict[str, Tensor]:
        """The hub's tensors out of weights of ours, each once; a bias that the model does without is zero there."""
        return {
            place.name: (
                torch.zeros(weights[name.removesuffix("bias") + "weight"].shape[0])
                if name.endswith("bias") and name not in weights
                else (weights[name].mT if place.transposed else weights[name]).contiguous()
            )
            for name, place in self.places(depth).items()
        }

    def _check_tied(self, tensors: Mapping[str, Tensor], name: str, alias: str) -> None:
        one, other = tensors[name], tensors[alias]
        if not torch.equal(one, other):
            raise InputError(
                f"{alias} differs from {name}, and the two are one tensor in a {self.architectures[0]}; "
                "take the weights from a model that ties them"
            )


def our_tensor(tensor: Tensor, place: Place, shape: tuple[int, ...]) -> Tensor:
    """A weight of ours, in float32, out of the hub's.

    Raises InputError where it has not this shape, is of a type that cannot be read, or has values that are no numbers.
    """
    lies = tuple(reversed(shape)) if place.transposed else shape
    if tuple(tensor.shape) != lies:
        raise InputError(f"{place.name} has the shape {tuple(tensor.shape)}; by config.json it is {lies}")
    if tensor.dtype not in WIDENED:
        raise InputError(
            f"{place.name} is {tensor.dtype}; float32, float16 and bfloat16 can be read: save the model in one of these"
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
