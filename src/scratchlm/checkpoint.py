"""A run's folder: written, read and verified here; it knows no trainer, so sampling and scoring load without one.

    config.json  tokenizer.json  manifest.json  metrics.jsonl  samples.txt  loss.svg  loss.png  data/
    checkpoints/step_000500/{model.safetensors, optimizer.safetensors, state.json}   last  best

Nothing is pickled. A checkpoint is written beside its place and renamed, so a folder that has its name is whole.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from scratchlm import tokenizers
from scratchlm.config import RunConfig, make_config, settings_of
from scratchlm.data.shards import Tokens, read_shards
from scratchlm.errors import InputError
from scratchlm.model import LanguageModel
from scratchlm.models import MODELS
from scratchlm.tokenizers import Tokenizer

FORMAT_VERSION = 1


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file with this format's version, all of it or nothing."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    text = json.dumps({"format_version": FORMAT_VERSION, **content}, indent=1) + "\n"
    with beside.open("w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file of this format. Raises InputError where it is missing, damaged or of another version."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        version = content.pop("format_version")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise InputError(f"{path} is damaged: {error!r}") from error
    if version != FORMAT_VERSION:
        raise InputError(f"{path} has format version {version!r}; this scratchlm reads version {FORMAT_VERSION}")
    return content


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the CPU. Raises InputError where it is missing or damaged."""
    try:
        return load_file(path)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error}") from error
    except SafetensorError as error:
        raise InputError(f"{path} is damaged: {error}") from error


@dataclass(frozen=True)
class Checkpoint:
    """One saved step of a run."""

    path: Path

    @property
    def step(self) -> int:
        """Optimizer steps that these weights have seen."""
        return int(self.path.name.removeprefix("step_"))

    def state(self) -> dict[str, Any]:
        """What the trainer wrote beside the tensors."""
        return read_json(self.path / "state.json")

    def weights(self) -> dict[str, Tensor]:
        """The model's tensors by name, checked against their hash."""
        return self._tensors("model.safetensors")

    def optimizer(self) -> dict[str, Tensor]:
        """The optimizer's tensors, "parameter|field", and the random states, "random|device"."""
        return self._tensors("optimizer.safetensors")

    def _tensors(self, name: str) -> dict[str, Tensor]:
        file = self.path / name
        tensors = read_tensors(file)
        if _sha256(file) != self.state()["sha256"].get(name):
            raise InputError(f"{file} is damaged: its sha256 is not the one in state.json")
        return tensors


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


class RunFolder:
    """The folder of one run."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @classmethod
    def open(cls, path: str | Path) -> "RunFolder":
        """An existing run. Raises InputError where the folder is none."""
        run = cls(path)
        if not (run.path / "config.json").is_file():
            what = "has no config.json, so it is no run's folder" if run.path.is_dir() else "is no folder"
            raise InputError(f"{path} {what}; give the folder that scratchlm train wrote, such as runs/gpt")
        return run

    def config(self) -> RunConfig:
        """The run's settings."""
        return make_config(read_json(self.path / "config.json"))

    def write_config(self, config: RunConfig) -> None:
        """Write the run's settings."""
        write_json(self.path / "config.json", settings_of(config))

    def tokenizer(self) -> Tokenizer:
        """The run's own tokenizer."""
        return tokenizers.load(self.path / "tokenizer.json")

    def splits(self) -> dict[str, Tokens]:
        """The run's tokens by split."""
        return read_shards(self.path / "data", self.tokenizer())

    # --- metrics -------------------------------------------------------------------------------------------------

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl; a last line that was cut off is left out."""
        try:
            lines = (self.path / "metrics.jsonl").read_text(encoding="utf-8").split("\n")
        except FileNotFoundError:
            return []
        try:
            return [json.loads(line) for line in lines[:-1]]  # what follows the last line's end is not whole
        except ValueError as error:
            raise InputError(f"{self.path / 'metrics.jsonl'} is damaged: {error}") from error

    def append_metrics(self, line: Mapping[str, Any]) -> None:
        """Add a line to metrics.jsonl."""
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8", newline="\n") as file:
            file.write(json.dumps(line) + "\n")

    def cut_metrics(self, lines: int) -> None:
        """Keep the first lines only."""
        kept = "".join(json.dumps(line) + "\n" for line in self.metrics()[:lines])
        path = self.path / "metrics.jsonl"
        beside = path.with_name(f".{path.name}.{os.getpid()}")
        beside.write_text(kept, encoding="utf-8", newline="\n")
        beside.replace(path)

    # --- checkpoints ---------------------------------------------------------------------------------------------

    @property
    def _checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def checkpoints(self) -> list[Checkpoint]:
        """All checkpoints, the oldest first."""
        found = [Checkpoint(path) for path in self._checkpoints.glob("step_*") if path.is_dir()]
        return sorted(found, key=lambda checkpoint: checkpoint.step)

    def checkpoint(self, which: str = "last") -> Checkpoint:
        """A checkpoint by "last", "best" or its step. Raises InputError where there is none."""
        found = self.checkpoints()
        if not found:
            raise InputError(f"{self.path} has no checkpoint yet")
        if which == "last":
            return found[-1]
        step = self.best_step() if which == "best" else int(which) if which.isdecimal() else None
        for checkpoint in found:
            if checkpoint.step == step:
                return checkpoint
        there = ", ".join(["last", *(["best"] if self.best_step() is not None else []), *(str(c.step) for c in found)])
        raise InputError(f"{self.path} has no checkpoint {which!r}; choose from: {there}")

    def best_step(self) -> int | None:
        """The step with the lowest validation loss so far, or None."""
        link = self._checkpoints / "best"
        try:
            name = link.readlink() if link.is_symlink() else link.read_text(encoding="utf-8").strip()
        except OSError:
            return None
        return Checkpoint(Path(name)).step

    def save(
        self, step: int, weights: Mapping[str, Tensor], optimizer: Mapping[str, Tensor], state: Mapping[str, Any]
    ) -> Checkpoint:
        """Write a checkpoint, all of it or nothing, and make it the last one."""
        target = self._checkpoints / f"step_{step:06d}"
        beside = self._checkpoints / f".{target.name}.{os.getpid()}"
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        hashes = {}
        for name, tensors in (("model.safetensors", weights), ("optimizer.safetensors", optimizer)):
            save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, beside / name, {"format": "pt"})
            _sync(beside / name)
            hashes[name] = _sha256(beside / name)
        write_json(beside / "state.json", {**state, "sha256": hashes})
        shutil.rmtree(target, ignore_errors=True)  # of a stretch that is being run again
        beside.rename(target)
        _sync(self._checkpoints)
        self._point("last", target)
        return Checkpoint(target)

    def mark_best(self, checkpoint: Checkpoint) -> None:
        """Make this checkpoint the best one."""
        self._point("best", checkpoint.path)

    def prune(self, keep: int) -> None:
        """Remove all but the newest `keep` checkpoints and the best."""
        best = self.best_step()
        for checkpoint in self.checkpoints()[:-keep]:
            if checkpoint.step != best:
                shutil.rmtree(checkpoint.path)

    def _point(self, name: str, target: Path) -> None:
        link, beside = self._checkpoints / name, self._checkpoints / f".{name}.{os.getpid()}"
        beside.unlink(missing_ok=True)
        try:
            beside.symlink_to(target.name)
        except OSError:  # a file system, or a Windows account, without links
            beside.write_text(target.name + "\n", encoding="utf-8")
        beside.replace(link)


def _sync(path: Path) -> None:
    """Have the system write a file, or a folder's entries, to the disk."""
    if path.is_dir() and os.name == "nt":  # Windows opens no folders
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def build_model(config: RunConfig) -> LanguageModel:
    """A new model of a run's shape, its weights drawn from torch's generator."""
    return MODELS[config.arch](config.model)


def restore_weights(model: LanguageModel, checkpoint: Checkpoint) -> None:
    """Give a model the weights of a checkpoint. Raises InputError where they belong to another shape."""
    weights = checkpoint.weights()
    own = model.state_dict()
    for name in own.keys() | weights.keys():
        ours, theirs = own.get(name), weights.get(name)
        if ours is None or theirs is None or ours.shape != theirs.shape:
            has = "nothing" if theirs is None else f"shape {tuple(theirs.shape)}"
            wants = "nothing" if ours is None else f"shape {tuple(ours.shape)}"
            raise InputError(f"{checkpoint.path} does not fit its config.json: {name} has {has}, expected {wants}")
    model.load_state_dict(weights)


def load(
    path: str | Path, checkpoint: str = "last", device: torch.device | str = "cpu"
) -> tuple[LanguageModel, Tokenizer]:
    """The model and the tokenizer of a run, ready to be used: weights only, no pickle.

    `checkpoint` is "last", "best" or a step. Raises InputError where the folder is no run, or is damaged.
    """
    run = RunFolder.open(path)
    config, tokenizer = run.config(), run.tokenizer()
    if config.model.vocab_size != tokenizer.vocab_size:
        raise InputError(
            f"{path} is damaged: its tokenizer has {tokenizer.vocab_size} tokens, its model {config.model.vocab_size}"
        )
    model = build_model(config)
    restore_weights(model, run.checkpoint(checkpoint))
    return model.to(device).eval(), tokenizer
