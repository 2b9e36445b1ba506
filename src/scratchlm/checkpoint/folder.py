"""A run's folder: written, read and verified here.

    config.json  tokenizer.json  manifest.json  metrics.jsonl  samples.txt  loss.svg  loss.png  data/
    checkpoints/step_000500/{model.safetensors, optimizer.safetensors, state.json}   last  best

A run that was imported, or merged, has no data, metrics and pictures: a tokenizer, weights at step 0, and where they
come from. A run with an adapter keeps the adapter alone: its base's weights stay in the base's folder.

Nothing is pickled. A checkpoint is written beside its place, synced and renamed: a folder that has its name is whole.
Every file that is read is bound to the run: config.json names it and the hashes of its tokenizer, its tokens and its
base's weights, each state.json names it again, with the hashes of its tensors and of the metrics up to there.
"""

import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from scratchlm import tokenizers
from scratchlm.config import RunConfig, make_config, settings_of
from scratchlm.data.pair_batches import Pairs
from scratchlm.data.shards import Tokens, read_prepared, read_shards
from scratchlm.errors import InputError
from scratchlm.files import file_sha256, new_folder, read_json, replace_file, sync, write_json
from scratchlm.tokenizers import Tokenizer

MODEL, OPTIMIZER = "model.safetensors", "optimizer.safetensors"
_NAME = re.compile(r"step_(\d{6,})")
_BINDINGS = ("run", "tokenizer_sha256", "data_checksum", "base_sha256")  # what config.json has besides settings


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the CPU. Raises InputError where it is missing or damaged."""
    try:
        return load_file(path)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error}") from error
    except (SafetensorError, ValueError, KeyError) as error:
        raise InputError(f"{path} is damaged: {error}") from error


class Checkpoint:
    """One saved step of a run."""

    def __init__(self, path: Path, run: str) -> None:
        self.path, self._run = path, run

    @property
    def step(self) -> int:
        """Optimizer steps that these weights have seen."""
        return int(self.path.name.removeprefix("step_"))

    def state(self) -> dict[str, Any]:
        """What was written beside the tensors. Raises InputError where it is damaged or not of this run and step."""
        state = read_json(self.path / "state.json")
        if state.get("run") != self._run or state.get("step") != self.step:
            raise InputError(f"{self.path / 'state.json'} belongs to another run or step")
        return state

    def verify(self, *files: str) -> None:
        """Raise InputError unless these files are the ones that were saved."""
        hashes = self.state()["sha256"]
        for name in files:
            file = self.path / name
            try:
                found = file_sha256(file)
            except OSError as error:
                raise InputError(f"cannot read {file}: {error.strerror}") from error
            if found != hashes.get(name):
                raise InputError(f"{file} is damaged: its sha256 is not the one in state.json")

    @property
    def sha256(self) -> str:
        """The hash of the model's tensors, as written down when they were saved."""
        return self.state()["sha256"].get(MODEL, "")

    def weights(self) -> dict[str, Tensor]:
        """The model's tensors by name; of a run with an adapter the adapter's."""
        return read_tensors(self.path / MODEL)

    def optimizer(self) -> dict[str, Tensor]:
        """The optimizer's tensors, "parameter|field", and the random states, "random|generator"."""
        return read_tensors(self.path / OPTIMIZER)


class RunFolder:
    """The folder of one run. `base`: where that of an adapter's base is, if it is no longer where config.json says."""

    def __init__(self, path: str | Path, base: str | Path | None = None) -> None:
        self.path = Path(path)
        self.moved_base = None if base is None else Path(base)

    @classmethod
    def open(cls, path: str | Path, base: str | Path | None = None) -> "RunFolder":
        """An existing run. Raises InputError where the folder is none, or has a base named and needs none."""
        run = cls(path, base)
        try:
            found, folder = (run.path / "config.json").is_file(), run.path.is_dir()
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror}") from error
        if not found:
            what = "has no config.json, so it is no run's folder" if folder else "is no folder"
            raise InputError(f"{path} {what}; give the folder that scratchlm train wrote, such as runs/gpt")
        if base is not None and run.config().lora is None:
            raise InputError(f"{path} has no adapter, and needs no base; leave --base out")
        return run

    @classmethod
    def create(
        cls,
        folder: Path,
        config: RunConfig,
        tokenizer: Tokenizer,
        weights: Mapping[str, Tensor],
        manifest: Mapping[str, Any],
        base_sha256: str = "",
    ) -> "RunFolder":
        """A new run of weights from elsewhere, without a text; of an adapter with the hash of its base's weights.

        Raises InputError where the folder cannot be written.
        """
        with new_folder(folder) as beside:
            run = cls(beside)
            tokenizer.save(beside / "tokenizer.json")
            run.write_config(config, "", base_sha256)
            write_json(beside / "manifest.json", manifest)
            run.save(0, weights, {}, {"best_step": None, "best_loss": None, "val_loss": None})
        return cls(folder)

    def _root(self) -> dict[str, Any]:
        root = {"base_sha256": "", **read_json(self.path / "config.json")}  # older ones have no base
        if not all(isinstance(root.get(name), str) for name in _BINDINGS):
            raise InputError(f"{self.path / 'config.json'} is damaged: it names no run, no tokenizer or no data")
        return root

    def config(self) -> RunConfig:
        """The run's settings."""
        return make_config({name: value for name, value in self._root().items() if name not in _BINDINGS})

    def write_config(self, config: RunConfig, data_checksum: str | None = None, base_sha256: str = "") -> None:
        """Write the run's settings; of a new run, with the checksum of its tokens and the hash of its base's weights.

        Either is empty where it has none.
        """
        if data_checksum is None:
            bindings = {name: self._root()[name] for name in _BINDINGS}
        else:
            tokenizer = tokenizers.load(self.path / "tokenizer.json")
            values = (uuid.uuid4().hex, tokenizer.sha256, data_checksum, base_sha256)
            bindings = dict(zip(_BINDINGS, values, strict=True))
        write_json(self.path / "config.json", {**settings_of(config), **bindings})

    def tokenizer(self) -> Tokenizer:
        """The run's own tokenizer. Raises InputError where it is another."""
        tokenizer, expected = tokenizers.load(self.path / "tokenizer.json"), self._root()["tokenizer_sha256"]
        if tokenizer.sha256 != expected:
            raise InputError(f"{self.path / 'tokenizer.json'} is damaged or another run's: its sha256 starts with "
                             f"{tokenizer.sha256[:12]}, config.json says {expected[:12]}")  # fmt: skip
        return tokenizer

    @property
    def has_text(self) -> bool:
        """Whether it was trained on a text of its own; else its weights were imported, or merged."""
        return bool(self._root()["data_checksum"])

    def manifest(self) -> dict[str, Any]:
        """Where the run comes from: versions, seed, and what was "imported" or "merged"; empty where nobody knows."""
        file = self.path / "manifest.json"
        return read_json(file) if file.is_file() else {}

    @property
    def base_sha256(self) -> str:
        """The hash of the weights that the run started from; empty where it has no base."""
        return self._root()["base_sha256"]

    def splits(self) -> dict[str, Tokens]:
        """The run's tokens by split. Raises InputError where it has none, since it was imported or merged."""
        if not self.has_text:
            raise InputError(f"{self.path} has weights from elsewhere and no text; give one, with --data or --text")
        read = read_shards if (place := self.config().prepared) is None else read_prepared
        return read(self.path / (place or "data"), self.tokenizer(), self._root()["data_checksum"])

    def pairs(self) -> dict[str, Pairs]:
        """The run's pairs by split, where its data are pairs."""
        end = self.tokenizer().end_of_text
        assert end is not None
        return {name: Pairs(tokens, end) for name, tokens in self.splits().items()}

    # --- metrics -------------------------------------------------------------------------------------------------

    @property
    def _metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl; a last line that was cut off is left out."""
        try:
            return [json.loads(line) for line in self._metric_lines()]
        except ValueError as error:
            raise InputError(f"{self._metrics} is damaged: {error}") from error

    def _metric_lines(self) -> list[bytes]:
        try:
            return self._metrics.read_bytes().splitlines(keepends=True) if self._metrics.exists() else []
        except OSError as error:
            raise InputError(f"cannot read {self._metrics}: {error.strerror}") from error

    def append_metrics(self, line: Mapping[str, Any]) -> None:
        """Add a line to metrics.jsonl."""
        with self._metrics.open("ab") as file:
            file.write(json.dumps(line).encode() + b"\n")

    def metrics_mark(self) -> dict[str, Any]:
        """How many lines there are now and what they hash to, for `cut_metrics`; they are on the disk by then."""
        if self._metrics.exists():
            sync(self._metrics)
        lines = self._metric_lines()
        return {"lines": len(lines), "sha256": hashlib.sha256(b"".join(lines)).hexdigest()}

    def cut_metrics(self, mark: Mapping[str, Any]) -> None:
        """Drop the lines written after a mark. Raises InputError where those before it are not what they were."""
        lines = self._metric_lines()
        kept = b"".join(lines[: mark["lines"]])
        if hashlib.sha256(kept).hexdigest() != mark["sha256"]:
            raise InputError(
                f"{self._metrics} is damaged: its first {mark['lines']} lines are not those of the checkpoint"
            )
        if len(lines) > mark["lines"]:
            replace_file(self._metrics, kept)

    # --- checkpoints ---------------------------------------------------------------------------------------------

    @property
    def _checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def checkpoints(self) -> list[Checkpoint]:
        """All checkpoints, the oldest first."""
        run = self._root()["run"]
        found = [Checkpoint(path, run) for path in self._checkpoints.glob("step_*")
                 if _NAME.fullmatch(path.name) and path.is_dir()]  # fmt: skip
        return sorted(found, key=lambda checkpoint: checkpoint.step)

    def find(self, which: str = "last", *files: str) -> tuple[Checkpoint, list[str]]:
        """A checkpoint by "last", "best" or its step, and what is wrong with newer ones that had to be passed over.

        Raises InputError where there is none, or where the one that was named is damaged.
        """
        found, damaged = self.checkpoints(), []
        if not found:
            raise InputError(f"{self.path} has no checkpoint yet")
        best = self.best() if which != "last" else None
        for checkpoint in reversed(found):
            if which != "last" and str(checkpoint.step) != (str(best[0]) if which == "best" and best else which):
                continue
            try:
                checkpoint.verify(*(files or (MODEL,)))
            except InputError as error:
                if which != "last":
                    raise
                damaged.append(str(error))
            else:
                return checkpoint, damaged
        if damaged:
            raise InputError(f"no checkpoint of {self.path} is whole: {'; '.join(damaged)}")
        there = ", ".join(["last", *(["best"] if best is not None else []), *(str(c.step) for c in found)])
        raise InputError(f"{self.path} has no checkpoint {which!r}; choose from: {there}")

    def checkpoint(self, which: str = "last") -> Checkpoint:
        """A checkpoint as `find` finds it."""
        return self.find(which)[0]

    def newest(self, checkpoint: Checkpoint, count: int) -> list[Checkpoint]:
        """The `count` newest checkpoints up to this one, the oldest first, without step 0, which has learned nothing.

        Raises InputError where there are fewer.
        """
        if count < 1:
            raise InputError(f"the weights of {count} checkpoints have no mean; average at least 1")
        found = [other for other in self.checkpoints() if 0 < other.step < checkpoint.step] + [checkpoint]
        if len(found) < count:
            has = "is only 1 trained checkpoint" if len(found) == 1 else f"are only {len(found)} trained checkpoints"
            raise InputError(f"{count} checkpoints are to be averaged, and there {has} up to step {checkpoint.step} in "
                             f"{self.path}; average fewer, or train with --keep {count}")  # fmt: skip
        return found[-count:]

    def best(self) -> tuple[int, float] | None:
        """The step with the lowest validation loss so far and that loss, as the newest readable checkpoint says."""
        for checkpoint in reversed(self.checkpoints()):
            try:
                state = checkpoint.state()
            except InputError:
                continue
            return None if state["best_step"] is None else (state["best_step"], state["best_loss"])
        return None

    def set_aside(self, checkpoint: Checkpoint) -> None:
        """Take a damaged checkpoint out of the way, without deleting it."""
        aside = checkpoint.path.with_name(f"damaged_{checkpoint.path.name}")
        shutil.rmtree(aside, ignore_errors=True)
        checkpoint.path.rename(aside)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Nobody else trains the run meanwhile; the lock of a process that has died is nobody's.

        Raises InputError where another process trains it.
        """
        lock, owner = FileLock(self.path / ".lock", timeout=0), self.path / ".owner"
        try:
            with lock:
                owner.write_text(str(os.getpid()), encoding="utf-8")
                try:
                    yield
                finally:
                    owner.unlink(missing_ok=True)
        except Timeout as error:
            pid = owner.read_text(encoding="utf-8") if owner.exists() else "unknown"
            raise InputError(
                f"{self.path} is being trained by another process ({pid}); wait for it, or stop it"
            ) from error

    def save(
        self, step: int, weights: Mapping[str, Tensor], optimizer: Mapping[str, Tensor], state: Mapping[str, Any]
    ) -> Checkpoint:
        """Write a checkpoint, all of it or nothing, and make it the last one.

        `state` has "best_step", "best_loss", "val_loss" (or None) and what the caller needs to go on, as JSON values.
        Raises OSError where it cannot be written; what was there before is there still.
        """
        target = self._checkpoints / f"step_{step:06d}"
        beside = self._checkpoints / f".{target.name}.{os.getpid()}"
        try:
            shutil.rmtree(beside, ignore_errors=True)
            beside.mkdir(parents=True)
            paths = [beside / MODEL, beside / OPTIMIZER]
            for path, tensors in zip(paths, (weights, optimizer), strict=True):
                try:
                    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path, {"format": "pt"})
                except SafetensorError as error:  # what it makes of a full disk
                    raise OSError(f"{path}: {error}") from error
            with ThreadPoolExecutor(4) as pool:  # the files are hashed while the disk is waited for
                synced, hashed = pool.map(sync, paths), pool.map(file_sha256, paths)
                sha256 = {path.name: found for path, found, _ in zip(paths, hashed, synced, strict=True)}
            run = self._root()["run"]
            content = {**state, "run": run, "step": step, "sha256": sha256, "metrics": self.metrics_mark()}
            write_json(beside / "state.json", content)
            sync(beside)
            old = self._checkpoints / f".old.{os.getpid()}"
            if target.exists():  # of a stretch that is being run again
                target.rename(old)
            beside.rename(target)
            shutil.rmtree(old, ignore_errors=True)
            sync(self._checkpoints)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
        self._point("last", target)
        return Checkpoint(target, run)

    def update_state(self, checkpoint: Checkpoint, state: Mapping[str, Any]) -> None:
        """Write down what is known of a checkpoint since it was saved: its score, the metrics up to now."""
        before = checkpoint.state()
        kept = {name: before[name] for name in ("run", "step", "sha256")}
        write_json(checkpoint.path / "state.json", {**state, **kept, "metrics": self.metrics_mark()})
        if state["best_step"] is not None:
            self._point("best", self._checkpoints / f"step_{state['best_step']:06d}")

    def prune(self, keep: int, best: int | None) -> None:
        """Remove all but the newest `keep` checkpoints and the best."""
        for checkpoint in self.checkpoints()[:-keep]:
            if checkpoint.step != best:
                shutil.rmtree(checkpoint.path)

    def clean(self) -> None:
        """Remove what a run that was killed had begun to write."""
        for folder in (self.path, self._checkpoints):
            for path in [*folder.glob(".*.[0-9]*")]:
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()

    def _point(self, name: str, target: Path) -> None:
        """Links for people; programs read state.json."""
        link, beside = self._checkpoints / name, self._checkpoints / f".{name}.{os.getpid()}"
        beside.unlink(missing_ok=True)
        try:
            beside.symlink_to(target.name)
        except OSError:  # a file system, or a Windows account, without links
            beside.write_text(target.name + "\n", encoding="utf-8")
        beside.replace(link)
