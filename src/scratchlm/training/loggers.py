"""Viewers that metrics can go to besides metrics.jsonl, each behind two calls."""

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from scratchlm.errors import InputError


class Logger(Protocol):
    """Where metrics go."""

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Show these values at a step."""

    def close(self) -> None:
        """Write out what is still held."""


class NoLogger:
    """Nowhere: metrics.jsonl is written in any case."""

    def log(self, metrics: dict[str, float], step: int) -> None:
        pass

    def close(self) -> None:
        pass


class TensorBoardLogger:
    """Event files in the run's folder, for `tensorboard --logdir`."""

    def __init__(self, folder: Path) -> None:
        require_logger("tensorboard")
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder / "tensorboard"))

    def log(self, metrics: dict[str, float], step: int) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class ProjectLogger:
    """W&B, or trackio, which has the same calls and keeps everything on this machine."""

    def __init__(self, package: str, folder: Path) -> None:
        module = _import(package, package)
        self._module: Any = module
        module.init(project="scratchlm", name=folder.name)

    def log(self, metrics: dict[str, float], step: int) -> None:
        self._module.log(metrics, step=step)

    def close(self) -> None:
        self._module.finish()


def _import(module: str, extra: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(f"--logger {extra} needs a package: pip install 'scratchlm[{extra}]'") from error


def require_logger(name: str) -> None:
    """Raise InputError where the logger's package is not installed."""
    if name != "none":
        _import(name, name)


def open_logger(name: str, folder: Path) -> Logger:
    """The logger that a run's settings name. Raises InputError where its package is not installed."""
    if name == "none":
        return NoLogger()
    return TensorBoardLogger(folder) if name == "tensorboard" else ProjectLogger(name, folder)
