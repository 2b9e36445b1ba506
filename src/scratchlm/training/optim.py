"""The optimizer's groups and the learning rate, a pure function of the step."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from scratchlm.config import OptimConfig
from scratchlm.training.muon import Muon
from scratchlm.training.sharding import placed


def parameter_groups(model: nn.Module, config: OptimConfig) -> list[dict[str, Any]]:
    """Matrices decay, and embeddings where the settings say so; biases and norms, which have one dimension, never.

    With Muon a group of its own has the matrices inside the network, and in how many `parts` each is cut. Each group's
    rate is `ratio` times that of the run. Each parameter that is trained is in one group, and no group is empty.
    """
    hidden = hidden_matrices(model) if config.name == "muon" else {}
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    embeddings = {p for module in model.modules() if isinstance(module, nn.Embedding) for p in module.parameters()}
    spared = set() if config.decay_embeddings else embeddings
    for parameter in model.parameters():
        if parameter.requires_grad and parameter not in hidden:
            (free if parameter in spared or parameter.ndim < 2 else decayed).append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": config.weight_decay, "ratio": 1.0},
        {"params": free, "weight_decay": 0.0, "ratio": 1.0},
        {
            "params": list(hidden),
            "weight_decay": config.weight_decay,
            "ratio": config.muon_ratio,
            "parts": list(hidden.values()),
        },
    ]
    return [group for group in groups if group["params"]]


def hidden_matrices(model: nn.Module) -> dict[nn.Parameter, int]:
    """The trained matrices that map one hidden vector to another, and how many of them were fused into each.

    They are all but embeddings and a linear readout, which is the model's own child with a row for each token.
    Convolutions have three dimensions and are none: their taps are maps of different inputs.
    """
    fused = getattr(model, "fused", {})
    vocabulary = getattr(getattr(model, "config", None), "vocab_size", None)
    found: dict[nn.Parameter, int] = {}
    for name, module in model.named_modules():
        reads_out = isinstance(module, nn.Linear) and "." not in name and module.out_features == vocabulary
        if isinstance(module, nn.Embedding) or reads_out:
            continue
        parts = next((parts for end, parts in fused.items() if f".{name}".endswith(f".{end}")), ("whole",))
        for own, parameter in module.named_parameters(recurse=False):
            if parameter.ndim == 2 and parameter.requires_grad:
                found[parameter] = len(parts) if own == "weight" else 1
    return found


def make_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW over `parameter_groups`, in one fused kernel where there is one, or Muon with it.

    Paper: Loshchilov and Hutter 2019, algorithm 2.
    """
    fused = next(model.parameters()).device.type in ("cpu", "cuda")
    groups, betas = parameter_groups(model, config), (config.beta1, config.beta2)
    if config.name == "muon":
        return Muon(groups, config.momentum, lr=config.lr, betas=betas, eps=config.eps, fused=fused)
    return torch.optim.AdamW(groups, lr=config.lr, betas=betas, eps=config.eps, fused=fused)


def learning_rate(step: int, steps: int, config: OptimConfig) -> float:
    """The rate of a step, counted from 0, in a run of `steps`: linear warm-up, then the schedule.

    Past the end it stays at its last.

    With p = (step - warmup) / (steps - warmup), which is 1 as the run ends:
    cosine: min + (lr - min) * (1 + cos(pi * p)) / 2.
    linear: min + (lr - min) * (1 - p).
    noam: with s = step + 1, lr * min(s / warmup, sqrt(warmup / s)), which is Vaswani et al. 2017, equation 3, where
    lr = (dim * warmup)^-0.5.
    """
    if config.schedule == "noam":
        count, warmup = min(step, steps - 1) + 1, max(1, config.warmup)
        return config.lr * min(count / warmup, math.sqrt(warmup / count))
    if step < config.warmup:
        return config.lr * (step + 1) / (config.warmup + 1)
    if config.schedule == "constant":
        return config.lr
    done = min(1.0, (step - config.warmup) / max(1, steps - config.warmup))
    left = 1 - done if config.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2
    return config.min_lr + (config.lr - config.min_lr) * left


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as "parameter|field" -> tensor: names outlive a change of order."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    return {
        f"{names[parameter]}|{field}": value if isinstance(value, Tensor) else torch.tensor(value)
        for parameter, state in optimizer.state.items()
        for field, value in state.items()
    }


def restore_optimizer(
    model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Iterable[tuple[str, Tensor]]
) -> None:
    """Give the optimizer the state that `optimizer_tensors` took."""
    parameters = dict(model.named_parameters())
    for key, tensor in tensors:
        name, field = key.split("|")
        # torch keeps a fused step's counter in float32 beside the parameter
        optimizer.state[parameters[name]][field] = placed(tensor, parameters[name])
