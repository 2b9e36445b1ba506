"""A model in pieces: blocks whose activations are computed again, and tensors shared out among processes (FSDP2)."""

import warnings
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeGuard, cast

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.checkpoint import checkpoint

from scratchlm.config import RunConfig
from scratchlm.data.batches import shares
from scratchlm.distribution import World
from scratchlm.errors import InputError
from scratchlm.model import LanguageModel, State

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def check_shares(config: RunConfig, processes: int) -> None:
    """Raises InputError where there is not a window for each part of each process's share of a batch."""
    if not config.pairs and processes * config.accumulate > config.batch_size:
        parts = f" with {config.accumulate} parts each" if config.accumulate > 1 else ""
        raise InputError(
            f"a batch of {config.batch_size} windows cannot be shared out among {processes} processes{parts}; start "
            "fewer, or make the batch larger with --batch-size"
        )


def pieces(model: nn.Module) -> list[nn.Module]:
    """The blocks of a model, an encoder's too: what stands in its lists of modules."""
    found: list[nn.Module] = []
    for child in model.children():
        found += child if type(child) is nn.ModuleList else pieces(child)  # and not one of parametrizations
    return found


def recompute_activations(model: LanguageModel) -> None:
    """Have each block keep its inputs alone, and compute what is inside again for the backward pass.

    Paper: Chen et al. 2016, section 4.
    """
    for piece in pieces(model):
        piece.forward = partial(checkpoint, piece.forward, use_reentrant=False)  # type: ignore[method-assign]


def share_out(model: LanguageModel, device: torch.device) -> None:
    """Shard each block of a model, and then the rest of it, among all processes (FSDP2)."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    parts = cast(list[FSDPModule], [fully_shard(piece, mesh=mesh) for piece in pieces(model)])
    # it warns of views that are changed in place, which no model here does
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module", category=UserWarning)
    # what is in no block stays whole from forward to the end of backward: the read-out, which is called in between and
    # for each of several chunks, is no forward of its own then, which would gather and reduce each time
    fully_shard(model, mesh=mesh, reshard_after_forward=False)
    begin, asked = model.initial_state, [] if model.takes_source else parts

    def in_whole_blocks(*arguments: Any, **named: Any) -> State:
        """It asks the layers inside the blocks what their memory is like, and not the blocks; but for an encoder's."""
        for part in asked:
            part.unshard()
        try:
            return begin(*arguments, **named)
        finally:
            for part in asked:
                part.reshard()

    model.initial_state = in_whole_blocks  # type: ignore[method-assign]
    register_fsdp_forward_method(model, "initial_state")  # it reads parameters before forward
    before_forward, forward, is_inside = model.initial_state, model.forward, False

    def marked_forward(*arguments: Any, **named: Any) -> tuple[Tensor, State]:
        nonlocal is_inside
        is_inside = True
        try:
            return forward(*arguments, **named)
        finally:
            is_inside = False

    def initial_state(*arguments: Any, **named: Any) -> State:
        """A forward of its own, but not inside of forward, whose end would be missed."""
        return (in_whole_blocks if is_inside else before_forward)(*arguments, **named)

    model.forward = marked_forward  # type: ignore[method-assign]
    model.initial_state = initial_state  # type: ignore[method-assign]


def is_shared_out(tensor: Tensor) -> TypeGuard["DTensor"]:
    """Whether it is a DTensor; its module is imported by whoever makes one, since that takes half a second."""
    return hasattr(tensor, "full_tensor")


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor that may be shared out among processes, which all have to ask for it."""
    return tensor.full_tensor() if is_shared_out(tensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """What this process has of a tensor."""
    return tensor.to_local() if is_shared_out(tensor) else tensor


def placed(tensor: Tensor, parameter: Tensor) -> Tensor:
    """A tensor where a parameter is: on its device, and shared out as it is where the shapes are the same."""
    tensor = tensor.to(parameter.device)
    if not is_shared_out(parameter) or tensor.shape != parameter.shape:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor, parameter.device_mesh, parameter.placements, src_data_rank=None)


def collected(tensors: Mapping[str, Tensor], world: World) -> dict[str, Tensor]:
    """The whole tensors for the leading process, one after another; nothing for the others, which have to take part."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        value = whole(tensor)
        if world.leads:
            found[name] = value.cpu() if is_shared_out(tensor) else value
    return found


def carried_tensors(states: list[State | None], world: World) -> dict[str, Tensor]:
    """The carried states of all rows, whichever process and part has them, as "leaf" -> tensor and "length".

    All processes have to ask for it, and the leading one gets it; there is nothing where no state is carried.
    """
    there = [state for state in states if state is not None]
    if not there:
        return {}
    own = [[leaf.cpu() for leaf in pytree.tree_leaves(state)] for state in there]
    everywhere = [leaves for process in world.gather(own) for leaves in process]
    # copies: leaves may be views of one tensor, which a file of tensors refuses
    tensors = {str(leaf): torch.cat(rows) for leaf, rows in enumerate(zip(*everywhere, strict=True))}
    return {**tensors, "length": torch.tensor(there[0].length)}


def restore_carried(
    model: LanguageModel, tensors: Mapping[str, Tensor], parts: int, world: World
) -> list[State | None]:
    """What each part of this process's rows carries, of what `carried_tensors` took, on the model's device."""
    if not tensors:
        return [None] * parts
    device, states = next(model.parameters()).device, list[State | None]()
    rows = shares(len(tensors["0"]), world.size)[world.rank]
    for part in shares(rows.stop - rows.start, parts):
        own = slice(rows.start + part.start, rows.start + part.stop)
        with torch.no_grad():
            nothing, shape = pytree.tree_flatten(model.initial_state(own.stop - own.start))
        leaves = [tensors[str(leaf)][own].to(device, like.dtype) for leaf, like in enumerate(nothing)]
        states.append(replace(pytree.tree_unflatten(leaves, shape), length=int(tensors["length"])))
    return states
