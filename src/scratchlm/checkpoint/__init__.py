"""A run's folder and the models in it; no trainer is needed to load one."""

from scratchlm.checkpoint.folder import MODEL, OPTIMIZER, Checkpoint, RunFolder, read_tensors
from scratchlm.checkpoint.weights import (
    base_seen_from,
    build_model,
    find_base,
    fitting_weights,
    is_finite,
    lay_adapter,
    load,
    load_checkpoint,
    meta_model,
    plain_model,
    plain_weights,
    restore_weights,
    starting_model,
)

__all__ = [
    "MODEL",
    "OPTIMIZER",
    "Checkpoint",
    "RunFolder",
    "base_seen_from",
    "build_model",
    "find_base",
    "fitting_weights",
    "is_finite",
    "lay_adapter",
    "load",
    "load_checkpoint",
    "meta_model",
    "plain_model",
    "plain_weights",
    "read_tensors",
    "restore_weights",
    "starting_model",
]
