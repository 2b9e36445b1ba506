"""Models out of a run's folder: built, given the weights of a checkpoint or the mean of several."""

import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from scratchlm.checkpoint.folder import MODEL, Checkpoint, RunFolder
from scratchlm.config import RunConfig
from scratchlm.errors import InputError
from scratchlm.model import LanguageModel
from scratchlm.models import MODELS
from scratchlm.tokenizers import Tokenizer


def build_model(config: RunConfig) -> LanguageModel:
    """A new model of a run's shape, its weights drawn from torch's generator."""
    return MODELS[config.arch](config.model)


def meta_model(config: RunConfig) -> LanguageModel:
    """A model of a run's shape without memory, to count with. Raises InputError for a shape beyond any memory."""
    try:
        with torch.device("meta"):
            return build_model(config)
    except (RuntimeError, TypeError, OverflowError) as error:
        raise InputError(f"no model can have the shape {config.model}: it is too large for any memory") from error


def is_finite(tensor: Tensor) -> bool:
    """Whether every value is a number, without the copies that isfinite().all() makes."""
    return tensor.numel() == 0 or bool(torch.stack(tensor.aminmax()).isfinite().all())


def mean_weights(several: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The arithmetic mean of weights of one shape, the oldest first, summed in float64.

    What is no floating-point number (counters, masks) is the newest. At least one is needed.
    Paper: Vaswani et al. 2017, section 6.1.
    """
    total: dict[str, Tensor] = {}
    newest: Mapping[str, Tensor] = {}
    count = 0
    for count, newest in enumerate(several, 1):
        for name, tensor in newest.items():
            if tensor.is_floating_point():
                total[name] = total[name].add_(tensor) if count > 1 else tensor.to(torch.float64, copy=True)
    return {name: (total[name] / count).to(last.dtype) if name in total else last for name, last in newest.items()}


def fitting_weights(model: LanguageModel, checkpoint: Checkpoint) -> dict[str, Tensor]:
    """The weights of a checkpoint. Raises InputError where they are not this model's, or are no numbers."""
    weights, own = checkpoint.weights(), model.state_dict()
    for name in sorted(own.keys() | weights.keys()):
        ours, theirs = own.get(name), weights.get(name)
        if ours is None or theirs is None or ours.shape != theirs.shape or ours.dtype != theirs.dtype:
            has, wants = ("nothing" if t is None else f"{t.dtype} {tuple(t.shape)}" for t in (theirs, ours))
            raise InputError(f"{checkpoint.path} does not fit its config.json: {name} has {has}, expected {wants}")
        if not is_finite(theirs):
            raise InputError(f"{checkpoint.path} is damaged: {name} has values that are no numbers")
    return weights


def plain_weights(run: RunFolder, checkpoint: Checkpoint) -> dict[str, Tensor]:
    """The weights of the run's architecture by itself, from a checkpoint that was verified."""
    return fitting_weights(meta_model(run.config()), checkpoint)


def restore_weights(model: LanguageModel, *checkpoints: Checkpoint) -> None:
    """Give a model the weights of a checkpoint, or the mean of those of several, the oldest first.

    Raises InputError where they do not fit, or are no numbers.
    """
    weights = (fitting_weights(model, checkpoint) for checkpoint in checkpoints)
    model.load_state_dict(next(weights) if len(checkpoints) == 1 else mean_weights(weights))


def load(
    path: str | Path, checkpoint: str = "last", device: torch.device | str = "cpu", average: int = 1
) -> tuple[LanguageModel, Tokenizer]:
    """The model and the tokenizer of a run, ready to be used: weights only, no pickle.

    `checkpoint` is "last", "best" or a step. A damaged newest checkpoint is passed over with a warning.
    `average`: the mean of the weights of so many checkpoints, the newest up to that one.
    Raises InputError where the folder is no run, is damaged, or has fewer checkpoints than are to be averaged.
    """
    run = RunFolder.open(path)
    found, damaged = run.find(checkpoint)
    for message in damaged:
        warnings.warn(f"{message}; the checkpoint of step {found.step} is used", stacklevel=2)
    return load_checkpoint(run, found, device, average)


def load_checkpoint(
    run: RunFolder, checkpoint: Checkpoint, device: torch.device | str, average: int = 1
) -> tuple[LanguageModel, Tokenizer]:
    """The model and the tokenizer of a checkpoint that was verified; those averaged with it are verified here."""
    config, tokenizer = run.config(), run.tokenizer()
    if config.model.vocab_size < tokenizer.vocab_size:  # imported models may have rows that stand for no token
        raise InputError(f"{run.path} is damaged: its tokenizer has {tokenizer.vocab_size} tokens, "
                         f"its model {config.model.vocab_size}")  # fmt: skip
    averaged = run.newest(checkpoint, average)
    for older in averaged[:-1]:
        older.verify(MODEL)
    model = build_model(config)
    restore_weights(model, *averaged)
    return model.to(device).eval(), tokenizer
