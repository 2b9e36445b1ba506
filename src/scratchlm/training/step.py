"""The one module that training goes through: what distribution and compilation wrap is this, and nothing else."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from scratchlm.data.batches import Batch
from scratchlm.evaluation import loss_and_state, loss_sum
from scratchlm.model import LanguageModel, State


class TrainingStep(nn.Module):
    """A model together with its loss. `carry`: it remembers what the rows' earlier windows left (truncated BPTT)."""

    def __init__(self, model: LanguageModel, carry: bool = False) -> None:
        super().__init__()
        self.model = model
        self.carry = carry

    def forward(self, batch: Batch, state: State | None = None) -> tuple[Tensor, int, State | None]:
        """The sum of the targets' losses in nats, their number and, with `carry`, the state for the next window.

        Without a state in, the rows start anew. The state that comes out is cut from the graph.
        """
        if not self.carry:
            return (*loss_sum(self.model, batch), None)
        before = self.model.initial_state(len(batch.tokens)) if state is None else state
        total, after = loss_and_state(self.model, batch, before)
        return total, batch.target_count, after.detach()


def update(
    step: TrainingStep,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    states: list[State | None],
    grad_clip: float,
) -> tuple[Tensor, Tensor]:
    """One optimizer step on a global batch, in as many parts as there are carried `states`, which go on to the next.

    Returns the mean loss in nats per token and the gradient's norm before clipping, which may still be on the device.
    """
    parameters = list(step.parameters())
    device, targets = parameters[0].device, batch.target_count
    total = torch.zeros((), device=device)
    for index, part in enumerate(batch.slices(len(states))):
        part_sum, _, states[index] = step(part.to(device), states[index] if batch.continues else None)
        (part_sum / targets).backward()  # one division by the whole batch's targets: parts do not matter
        total += part_sum.detach()
    norm = nn.utils.clip_grad_norm_(parameters, grad_clip or math.inf)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return total / targets, norm


def state_tensors(states: Sequence[State | None]) -> dict[str, Tensor]:
    """The carried states as "part|leaf" -> tensor, each with its length as "part|length"."""
    tensors = {}
    for part, state in enumerate(states):
        if state is not None:
            # copies: leaves may be views of one tensor, which a file of tensors refuses
            tensors |= {f"{part}|{leaf}": tensor.clone() for leaf, tensor in enumerate(pytree.tree_leaves(state))}
            tensors[f"{part}|length"] = torch.tensor(state.length)
    return tensors


def restore_states(model: LanguageModel, tensors: Mapping[str, Tensor], parts: int) -> list[State | None]:
    """The states that `state_tensors` took, on the model's device."""
    device, states = next(model.parameters()).device, []
    for part in range(parts):
        state = None
        if f"{part}|length" in tensors:
            with torch.no_grad():
                nothing, shape = pytree.tree_flatten(model.initial_state(len(tensors[f"{part}|0"])))
            leaves = [tensors[f"{part}|{leaf}"].to(device) for leaf in range(len(nothing))]
            state = replace(pytree.tree_unflatten(leaves, shape), length=int(tensors[f"{part}|length"]))
        states.append(state)
    return states
