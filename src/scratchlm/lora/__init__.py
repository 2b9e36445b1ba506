"""Low-rank adaptation of any model: `targets` says what can be adapted, `adapter` does it."""

from scratchlm.lora.adapter import (
    Adaptation,
    LowRank,
    Shift,
    Size,
    adapt,
    adaptations,
    fold,
    merge,
    remove,
    size,
    trained_tensors,
    unmerge,
)
from scratchlm.lora.targets import WHOLE, Matrix, choose, matrices

__all__ = [
    "WHOLE",
    "Adaptation",
    "LowRank",
    "Matrix",
    "Shift",
    "Size",
    "adapt",
    "adaptations",
    "choose",
    "fold",
    "matrices",
    "merge",
    "remove",
    "size",
    "trained_tensors",
    "unmerge",
]
