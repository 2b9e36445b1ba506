"""What a checkpoint holds of a training besides weights: the optimizer, random states, carried states, fp16's scale.

All of it is free of rank: whole tensors by name, so that another number of processes goes on with them.
"""

from torch import Tensor, tensor

from scratchlm import runtime
from scratchlm.model import State
from scratchlm.training.optim import optimizer_tensors, restore_optimizer
from scratchlm.training.sharding import carried_tensors, collected, restore_carried
from scratchlm.training.step import Training


def _take(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Remove from `tensors` those whose names start so, and return them by the rest of their names."""
    return {name.removeprefix(prefix): tensors.pop(name) for name in [*tensors] if name.startswith(prefix)}


def tensors_of(training: Training, states: list[State | None]) -> dict[str, Tensor]:
    """All of it, for the leading process; the others have to take part."""
    world = training.world
    tensors = collected(optimizer_tensors(training.model, training.optimizer), world)
    for rank, random in enumerate(world.gather(runtime.random_state())):
        tensors |= {f"random|{rank}|{name}": state for name, state in random.items()}
    tensors |= {f"carried|{name}": leaf for name, leaf in carried_tensors(states, world).items()}
    return tensors | {f"scaler|{name}": tensor(value) for name, value in training.scaler.state_dict().items()}


def give_back(training: Training, tensors: dict[str, Tensor], seed: int, step: int) -> list[State | None]:
    """Put a training where `tensors_of` was taken, at this step. Returns what its parts of a batch carry."""
    random, carried, scaler = (_take(tensors, prefix) for prefix in ("random|", "carried|", "scaler|"))
    restore_optimizer(training.model, training.optimizer, tensors.items())
    if scaler:  # else it was not in fp16 before
        training.scaler.load_state_dict({name: value.item() for name, value in scaler.items()})
    if own := _take(random, f"{training.world.rank}|"):
        runtime.set_random_state(own)
    else:  # it was taken in fewer processes
        runtime.seed_process(seed, step, training.world.rank)
    with training.autocast():  # in which the memory is as wide as the steps make it
        return restore_carried(training.model, carried, training.parts, training.world)
