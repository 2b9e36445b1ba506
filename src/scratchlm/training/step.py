"""The one module that training goes through: what distribution and compilation wrap is this, and nothing else."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from scratchlm.data.batches import IGNORED, Batch
from scratchlm.evaluation import logits_and_state, loss_and_state
from scratchlm.model import LanguageModel, State


def smoothed_loss(logits: Tensor, targets: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
    """The loss against smoothed targets, and the plain negative log-likelihood, both summed. Units: nats.

    The target distribution is 1 - e on the target and e / V on each of the V tokens, the target among them, which is
    torch's variant of three that are in use. Its least value is the entropy of that distribution and not zero.
    Shapes: logits (N, V), targets (N,), IGNORED where there is none. Paper: Szegedy et al. 2016, section 7.
    """
    log_probabilities = logits.log_softmax(-1)
    counts = targets != IGNORED
    nll = -log_probabilities.gather(-1, targets.clamp(min=0)[:, None])[:, 0]  # (N,)
    spread = -log_probabilities.mean(-1)  # (N,), cross-entropy with the uniform distribution
    plain = nll.where(counts, 0).sum()
    return (1 - smoothing) * plain + smoothing * spread.where(counts, 0).sum(), plain


class TrainingStep(nn.Module):
    """A model together with its loss.

    `carry`: it remembers what the rows' earlier windows left (truncated BPTT). `label_smoothing`: see `smoothed_loss`.
    """

    def __init__(self, model: LanguageModel, carry: bool = False, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.model = model
        self.carry = carry
        self.label_smoothing = label_smoothing

    def forward(self, batch: Batch, state: State | None = None) -> tuple[Tensor, Tensor, State | None]:
        """The loss to be lowered, the targets' negative log-likelihood, and with `carry` the state for what follows.

        Both are sums in nats, and the same one without label smoothing. Without a state in, the rows start anew. The
        state that comes out is cut from the graph.
        """
        if self.carry and state is None:
            state = self.model.initial_state(len(batch.tokens))
        if self.label_smoothing:
            logits, after = logits_and_state(self.model, batch, state)
            lowered, plain = smoothed_loss(logits, batch.targets.flatten(), self.label_smoothing)
        else:
            lowered, after = loss_and_state(self.model, batch, state)
            plain = lowered
        return lowered, plain, after.detach() if self.carry else None


class Updated(NamedTuple):
    """What an update tells, which may still be on the device: means in nats per token, and a norm before clipping."""

    loss: Tensor
    smoothed_loss: Tensor  # what was lowered; without label smoothing the loss
    grad_norm: Tensor


def update(
    step: TrainingStep,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    states: list[State | None],
    grad_clip: float,
) -> Updated:
    """One optimizer step on a global batch, in as many parts as there are carried `states`, which go on to the next."""
    parameters = list(step.parameters())
    device, targets = parameters[0].device, batch.target_count
    totals = torch.zeros(2, device=device)
    for index, part in enumerate(batch.slices(len(states))):
        lowered, plain, states[index] = step(part.to(device), states[index] if batch.continues else None)
        (lowered / targets).backward()  # one division by the whole batch's targets: parts do not matter
        totals += torch.stack([plain.detach(), lowered.detach()])
    norm = nn.utils.clip_grad_norm_(parameters, grad_clip or math.inf)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    loss, smoothed = totals / targets
    return Updated(loss, smoothed, norm)


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
