"""The runs that are played with: what their folders say without torch, and their models once those are loaded."""

import json
import logging
import math
import time
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from scratchlm.errors import InputError
from scratchlm.files import read_json
from scratchlm.models import MODELS
from scratchlm.serve.turns import Worker

if TYPE_CHECKING:  # it imports torch
    from scratchlm.serve.player import Player

QUIET = 60.0  # seconds after which a run whose metrics do not grow is not being trained
MOST_LINES = 2000  # of a curve in one answer
SHOWN = ("step", "tokens", "loss", "val_loss", "val_bits_per_byte", "seconds")  # of a line of metrics.jsonl
WRITES = "It continues text and does not chat."
TRANSLATES = "It makes a target of a source, as in the pairs that it learned from, and does not chat."


class NotReadyError(Exception):
    """A run whose model is not loaded."""


class Run:
    """One run's folder, and its model once that is loaded."""

    def __init__(self, id_: str, path: str, checkpoint: str, device: str) -> None:
        """Raises InputError where there is no run's folder, or one that is damaged."""
        self.id, self.path, self.name = id_, Path(path), path
        self._checkpoint, self._device = checkpoint, device
        try:
            there, folder = (self.path / "config.json").is_file(), self.path.is_dir()
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror}") from error
        if not there:
            what = "has no config.json, so it is no run's folder" if folder else "is no folder"
            raise InputError(f"{path} {what}; give the folder that scratchlm train wrote, such as runs/gpt")
        self.config = read_json(self.path / "config.json")
        if self.config.get("arch") not in MODELS or not isinstance(self.config.get("model"), dict):
            raise InputError(f"{self.path / 'config.json'} is damaged: it names no architecture and shape")
        self.status: Literal["loading", "waiting", "ready", "failed"] = "loading"
        self.message = ""
        self.player: Player | None = None
        self._loading: Future[None] | None = None

    # --- the model -----------------------------------------------------------------------------------------------

    def begin(self, worker: Worker) -> None:
        """Have the model loaded for the first time."""
        if self._loading is None:
            self.load(worker)

    def load(self, worker: Worker) -> Future[None]:
        """Have the model loaded, or the newest checkpoint's in its place; there is one loading at a time."""
        if self._loading is None or self._loading.done():
            self._loading = worker.submit(self._load)
        return self._loading

    def _load(self) -> None:
        try:
            from scratchlm.serve.player import Player  # imports torch, with which most of the time goes

            if self.newest is None:
                self.status, self.message = "waiting", "it has no checkpoint yet; the first one is loaded when it comes"
                return
            self.player = Player.load(self.path, self._checkpoint, self._device)
        except InputError as error:
            self.message = str(error)
        except Exception as error:
            logging.getLogger(__name__).exception("cannot load %s", self.path)
            self.message = f"it could not be loaded ({type(error).__name__}); the terminal says more"
        else:
            self.status, self.message = "ready", ""
            return
        if self.player is None:
            self.status = "failed"

    def refresh(self, worker: Worker) -> None:
        """Load the first checkpoint of a run that had none, once it is there."""
        if self.status == "waiting" and self.newest is not None:
            self.load(worker)

    def ready(self) -> "Player":
        """The loaded model. Raises NotReadyError where there is none."""
        if self.player is None:
            what = f": {self.message}" if self.message else ""
            raise NotReadyError(f"{self.name} is {self.status}{what}")
        return self.player

    # --- the folder ----------------------------------------------------------------------------------------------

    @property
    def newest(self) -> int | None:
        """The step of the newest checkpoint in the folder."""
        try:
            names = [path.name.removeprefix("step_") for path in (self.path / "checkpoints").glob("step_*")]
        except OSError:
            return None
        return max((int(name) for name in names if name.isascii() and name.isdigit()), default=None)

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl that are whole; what is no number is left out of them."""
        try:
            data = (self.path / "metrics.jsonl").read_bytes()
        except OSError:
            return []
        lines = []
        for line in data.splitlines(keepends=True):
            try:
                parsed = json.loads(line) if line.endswith(b"\n") else None
            except ValueError:
                continue
            if isinstance(parsed, dict) and _is_number(parsed.get("step")):
                lines.append({key: parsed[key] for key in SHOWN if _is_number(parsed.get(key))})
        return lines

    @property
    def steps(self) -> int | None:
        """Steps that the run is to take; none where its weights came from elsewhere."""
        return self.config.get("steps") if self.config.get("data_checksum") else None

    def is_training(self, metrics: list[dict[str, Any]]) -> bool:
        """Whether its metrics have grown in the last minute, and are not at their end."""
        try:
            age = time.time() - (self.path / "metrics.jsonl").stat().st_mtime
        except OSError:
            return False
        return age < QUIET and self.steps is not None and (not metrics or metrics[-1]["step"] < self.steps)

    def curve(self, after: int) -> dict[str, Any]:
        """The lines of its metrics after a step; of very many, some, with all in which the model was evaluated."""
        metrics = self.metrics()
        lines = [line for line in metrics if line["step"] > after]
        stride = -(-len(lines) // MOST_LINES)
        kept = [line for at, line in enumerate(lines) if at % stride == 0 or "val_loss" in line or at == len(lines) - 1]
        scored = [line for line in metrics if "val_loss" in line]
        best = min(scored, key=lambda line: line["val_loss"], default=None)
        band = None if self.player is None else self.player.band
        return {"lines": kept, "training": self.is_training(metrics), "steps": self.steps, "best": best, "band": band}

    def described(self) -> dict[str, Any]:
        """The run as the page shows it."""
        shape, metrics = self.config["model"], self.metrics()
        described: dict[str, Any] = {
            "id": self.id,
            "name": self.name,
            "arch": self.config["arch"],
            "title": self.config["arch"],
            "status": self.status,
            "message": self.message,
            "parameters": None,
            "step": self.newest,
            "newest": self.newest,
            "steps": self.steps,
            "training": self.is_training(metrics),
            "val_loss": None,
            "vocab_size": shape.get("vocab_size"),
            "context": shape.get("context"),
            "device": None,
            "pairs": bool(self.config.get("pairs")),
            "layers": shape.get("depth", 1),
            "heads": shape.get("heads", 0),
            "senses": shape.get("senses", 0),
            "views": [],
            "example": None,
            "note": TRANSLATES if self.config.get("pairs") else WRITES,
        }
        if self.player is not None:
            described |= self.player.described()
            scored = (line["val_loss"] for line in metrics if line["step"] == self.player.step and "val_loss" in line)
            described["val_loss"] = next(scored, self.player.val_loss)
        if metrics:
            described["views"] = [*described["views"], "curve"]
        return described


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
