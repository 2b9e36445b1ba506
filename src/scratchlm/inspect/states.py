"""What a recurrent model carries from token to token: its hidden vectors and cells over one text.

Letters in shapes: T tokens, D units.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from scratchlm.inspect.attention import looking
from scratchlm.model import LanguageModel


@dataclass(frozen=True, eq=False)
class CarriedLayer:
    """One vector that a layer carries, after each token. Shapes: values (T, D)."""

    name: str
    values: Tensor


def carried_states(model: LanguageModel, tokens: Sequence[int]) -> list[CarriedLayer]:
    """The vectors of all recurrent layers after each token; none where the model has no such layers.

    Layers are counted from 1. They show a vector for each token, where attention shows a row for each head too.
    """
    if model.takes_source:
        return []
    with looking(model) as shown:
        model(torch.tensor([tokens], device=next(model.parameters()).device), model.initial_state(1))
    found = []
    for name, (values, *_) in shown.items():
        parts = name.split(".")
        if values.dim() == 3:
            number = next((int(part) + 1 for part in parts if part.isdigit()), 1)
            found.append(CarriedLayer(f"layer {number}, {parts[-1]}", values[0].cpu()))
    return found
