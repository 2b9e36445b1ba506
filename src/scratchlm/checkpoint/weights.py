"""Models out of a run's folder: built, given the weights of a checkpoint or the mean of several."""

import os
import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from scratchlm.checkpoint.folder import MODEL, Checkpoint, RunFolder
from scratchlm.config import RunConfig
from scratchlm.errors import InputError
from scratchlm.lora import Matrix, adapt, fold, trained_tensors
from scratchlm.model import LanguageModel
from scratchlm.models import MODELS
from scratchlm.tokenizers import Tokenizer


def build_model(config: RunConfig) -> LanguageModel:
    """A new model of a run's shape, its weights drawn from torch's generator."""
    return MODELS[config.arch](config.model)


class _Undrawn(TorchFunctionMode):
    """Leave out what draws initial values, which are replaced, or which tensors without memory have not.

    On the meta device torch would import what its compiler consists of for it: 1.3 s and 75 MB (torch 2.13).
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def meta_model(config: RunConfig) -> LanguageModel:
    """A model of a run's shape without memory, to count with. Raises InputError for a shape beyond any memory."""
    try:
        with torch.device("meta"), _Undrawn():
            return build_model(config)
    except (RuntimeError, TypeError, OverflowError) as error:
        raise InputError(f"no model can have the shape {config.model}: it is too large for any memory") from error


def _filled(config: RunConfig, checkpoint: Checkpoint) -> LanguageModel:
    """A run's architecture with the weights of a checkpoint, which are in memory once. Raises InputError as needed."""
    with _Undrawn():
        model = build_model(config)
    model.load_state_dict(fitting_weights(model, checkpoint), assign=True)
    return model


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
    """The weights of a checkpoint. Raises InputError where they are not this model's, or are no numbers.

    Of a model with an adapter they are the adapter's.
    """
    weights, own = checkpoint.weights(), trained_tensors(model)
    for name in sorted(own.keys() | weights.keys()):
        ours, theirs = own.get(name), weights.get(name)
        if ours is None or theirs is None or ours.shape != theirs.shape or ours.dtype != theirs.dtype:
            has, wants = ("nothing" if t is None else f"{t.dtype} {tuple(t.shape)}" for t in (theirs, ours))
            raise InputError(f"{checkpoint.path} does not fit its config.json: {name} has {has}, expected {wants}")
        if not is_finite(theirs):
            raise InputError(f"{checkpoint.path} is damaged: {name} has values that are no numbers")
    return weights


def restore_weights(
    model: LanguageModel, checkpoint: Checkpoint, placed: Callable[[Tensor, Tensor], Tensor] | None = None
) -> None:
    """Give a model the weights of a checkpoint, or its adapter those of one.

    `placed` puts a tensor where one of the model's is, if these are shared out among processes.
    Raises InputError where they do not fit, or are no numbers.
    """
    weights = fitting_weights(model, checkpoint)
    if placed is not None:
        own = trained_tensors(model)
        weights = {name: placed(tensor, own[name]) for name, tensor in weights.items()}
    model.load_state_dict(weights, strict=False)  # all that is trained, and nothing else


_REMEDY = "put it back, or name it with --base DIR"


def base_seen_from(folder: Path, base: RunFolder) -> str:
    """The path of a base as an adapter's config.json has it: both folders may move together."""
    return os.path.relpath(base.path.resolve(), folder.resolve())


def find_base(run: RunFolder) -> Checkpoint:
    """The checkpoint that a run started from, verified.

    Raises InputError where it is not there, or no longer, or is another one.
    """
    named = run.config().base
    if named is None:
        raise InputError(f"{run.path} has no base: its weights are all in it")
    folder = run.moved_base or Path(os.path.normpath(run.path.resolve() / named))
    try:
        found = RunFolder.open(folder).checkpoints()
    except InputError as error:
        raise InputError(f"{run.path} needs its base, which cannot be read ({error}); {_REMEDY}") from error
    for checkpoint in reversed(found):
        try:
            meant = checkpoint.sha256 == run.base_sha256
        except InputError:  # its state.json is damaged, and another may be the one
            continue
        if meant:
            checkpoint.verify(MODEL)
            return checkpoint
    raise InputError(
        f"{run.path} is for another base than {folder}: no checkpoint there has the weights with the sha256 "
        f"{run.base_sha256[:12]}..., or no longer, since it was trained further; {_REMEDY}"
    )


def starting_model(run: RunFolder) -> LanguageModel:
    """A run's model before its first step: drawn, or with its base's weights and, if it trains one, a fresh adapter.

    Raises InputError as `find_base` does, and where the adapter does not fit the model.
    """
    config = run.config()
    if config.base is None:
        return build_model(config)
    model = _filled(config, find_base(run))
    lay_adapter(model, config)
    return model


def lay_adapter(model: LanguageModel, config: RunConfig) -> list[Matrix]:
    """Lay a run's adapter beside a model, if it has one, and return what it adapts.

    Raises InputError where it does not fit.
    """
    undrawn = _Undrawn() if next(model.parameters()).is_meta else nullcontext()
    try:
        with undrawn:
            return [] if config.lora is None else adapt(model, config.lora)
    except ValueError as error:
        raise InputError(str(error)) from error


def plain_model(run: RunFolder, checkpoint: Checkpoint) -> LanguageModel:
    """The run's architecture by itself, an adapter's changes in its weights, from a verified checkpoint."""
    config = run.config()
    if config.lora is None:
        return _filled(config, checkpoint)
    model = starting_model(run)
    restore_weights(model, checkpoint)
    try:
        fold(model)
    except ValueError as error:
        raise InputError(f"{checkpoint.path}: {error}") from error
    return model


def plain_weights(run: RunFolder, checkpoint: Checkpoint) -> dict[str, Tensor]:
    """The weights of `plain_model`."""
    return plain_model(run, checkpoint).state_dict()


def load(
    path: str | Path,
    checkpoint: str = "last",
    device: torch.device | str = "cpu",
    average: int = 1,
    base: str | Path | None = None,
) -> tuple[LanguageModel, Tokenizer]:
    """The model and the tokenizer of a run, ready to be used: weights only, no pickle.

    `checkpoint` is "last", "best" or a step. A damaged newest checkpoint is passed over with a warning.
    `average`: the mean of the weights of so many checkpoints, the newest up to that one.
    `base`: where the base of an adapter's run is, if it has moved. The adapter's changes are in the model's weights.
    Raises InputError where the folder is no run, is damaged, has fewer checkpoints than are to be averaged, or lacks
    its base.
    """
    run = RunFolder.open(path, base)
    found, damaged = run.find(checkpoint)
    for message in damaged:
        warnings.warn(f"{message}; the checkpoint of step {found.step} is used", stacklevel=2)
    return load_checkpoint(run, found, device, average)


def load_checkpoint(
    run: RunFolder,
    checkpoint: Checkpoint,
    device: torch.device | str,
    average: int = 1,
) -> tuple[LanguageModel, Tokenizer]:
    """The model and the tokenizer of a checkpoint that was verified; those averaged with it are verified here."""
    config, tokenizer = run.config(), run.tokenizer()
    if config.model.vocab_size < tokenizer.vocab_size:  # imported models may have rows that stand for no token
        raise InputError(f"{run.path} is damaged: its tokenizer has {tokenizer.vocab_size} tokens, "
                         f"its model {config.model.vocab_size}")  # fmt: skip
    averaged = run.newest(checkpoint, average)
    for older in averaged[:-1]:
        older.verify(MODEL)
    model = plain_model(run, checkpoint)
    if average > 1:
        model.load_state_dict(mean_weights(plain_weights(run, one) for one in averaged))
    return model.to(device).eval(), tokenizer
