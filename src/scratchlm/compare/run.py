"""A comparison is carried out: a generator of records that prints nothing, as training's is.

All that it does is a function of the folder: what is trained already is passed over, what was interrupted goes on.
"""

import shutil
import threading
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scratchlm import runtime, tokenizers
from scratchlm.checkpoint import RunFolder
from scratchlm.compare.measure import measure
from scratchlm.compare.plan import PLAN, Comparison, Entry, plain, with_steps
from scratchlm.compare.report import draw
from scratchlm.compare.seeds import across_seeds
from scratchlm.errors import InputError
from scratchlm.files import read_json, write_json
from scratchlm.training.loop import train
from scratchlm.training.records import DivergenceError, Ended, Record
from scratchlm.training.setup import create_run

RESULTS, DIVERGED = "results.json", "diverged.json"
SWEEP_FACTORS = (1 / 3, 1.0, 3.0)  # of the preset's rate
SWEEP_SHARE = 10  # a run of a sweep has so many times fewer steps


@dataclass(frozen=True, kw_only=True)
class Begins:
    """The training of a model begins or goes on; the records that follow are its own. `lr`: its highest rate."""

    arch: str
    run: RunFolder
    lr: float
    sweep: bool


@dataclass(frozen=True, kw_only=True)
class Diverged:
    """A model's training broke off, as the message says; the others go on. `sweep`: only a try of a rate did."""

    arch: str
    message: str
    sweep: bool


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """A sweep has found a rate: validation losses by rate, None where it diverged."""

    arch: str
    tried: dict[float, float | None]
    lr: float


@dataclass(frozen=True, kw_only=True)
class Measuring:
    """All are trained; now they are scored, timed and weighed."""


@dataclass(frozen=True, kw_only=True)
class Compared:
    """The comparison is complete, as results.json has it."""

    results: dict[str, Any]
    already: bool = False


Happening = Begins | Record | Diverged | Chosen | Measuring | Compared


def compare(comparison: Comparison, stop: threading.Event | None = None) -> Iterator[Happening]:
    """Train, score and draw what is not yet trained, scored and drawn. `stop`: once set, all is saved and it ends.

    It was stopped if the last record is not `Compared`. A model that diverges is reported and the others finish.
    Raises InputError where the folder is damaged, or where the text has changed meanwhile.
    """
    folder, stop = RunFolder(comparison.folder), stop or threading.Event()
    with folder.lock():
        if (folder.path / RESULTS).exists():
            yield Compared(results=read_json(folder.path / RESULTS), already=True)
            return
        folder.clean()
        rows = yield from (_rows if comparison.request.seeds == 1 else _rows_of_seeds)(comparison, stop)
        if rows is None:
            return
        results = {
            "request": plain(comparison.request),
            "versions": runtime.versions(),
            "rows": rows,
            "vocab_size": comparison.entries[0].config.model.vocab_size,
        }
        draw(results, folder.path)
        write_json(folder.path / RESULTS, results)  # last: where it is, the rest is
        yield Compared(results=results)


def _rows(comparison: Comparison, stop: threading.Event) -> Generator[Happening, None, list[dict[str, Any]] | None]:
    """Train all models and measure them. Returns a row for each, or None where `stop` was set meanwhile."""
    diverged: dict[str, str] = {}
    for entry in comparison.entries:
        chosen = None
        if comparison.request.sweep:
            chosen = yield from _sweep(comparison, entry, stop)
        settings = with_steps(entry.config, entry.config.steps, chosen)
        message = yield from _train(comparison, settings, entry.arch, comparison.run(entry).path, False, stop)
        if message is not None:
            diverged[entry.arch] = message
        if stop.is_set():
            return None
    yield Measuring()
    return measure(comparison, diverged, stop)


def _rows_of_seeds(
    comparison: Comparison, stop: threading.Event
) -> Generator[Happening, None, list[dict[str, Any]] | None]:
    """Carry out the comparison of each seed. Returns the rows of them together, or None as above."""
    found, seeds = [], range(comparison.request.seed, comparison.request.seed + comparison.request.seeds)
    for part in map(comparison.with_seed, seeds):
        if not (part.folder / PLAN).exists():
            part.keep(tokenizers.load(comparison.tokenizer))
        for happening in compare(part, stop):
            if isinstance(happening, Compared):
                found.append(happening.results)
            else:
                yield happening
        if stop.is_set():
            return None
    return across_seeds(found)


def _train(
    comparison: Comparison, settings: dict[str, Any], arch: str, path: Path, sweep: bool, stop: threading.Event
) -> Generator[Happening, None, str | None]:
    """Train one run to its end. Returns what is to be said of it if it diverged."""
    if stop.is_set():
        return None
    run, new = RunFolder(path), not path.exists()
    if new:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            create_run({**settings, "tokenizer": str(comparison.tokenizer), "vocab_size": None}, path)
        except InputError as error:
            raise InputError(f"{arch} cannot begin as {comparison.folder} has it planned: {error}") from error
    if {name: tokens.sha256() for name, tokens in run.splits().items()} != comparison.tokens:
        if new:
            shutil.rmtree(path)
        raise InputError(
            f"{comparison.request.data} is no longer the text with which the comparison in {comparison.folder} began; "
            "bring it back, or begin another comparison with --out"
        )
    if (path / DIVERGED).exists():
        message: str = read_json(path / DIVERGED)["message"]
        yield Diverged(arch=arch, message=message, sweep=sweep)
        return message
    begins = Begins(arch=arch, run=run, lr=run.config().optim.lr, sweep=sweep)
    try:
        for number, record in enumerate(train(run, stop=stop)):
            if isinstance(record, Ended) and record.already:
                break
            if number == 0:
                yield begins
            yield record
    except DivergenceError as error:
        message = f"loss {error.loss:.4g} at step {error.step:,}, with a learning rate of {error.lr:.3g}"
        write_json(path / DIVERGED, {"message": message})
        yield Diverged(arch=arch, message=message, sweep=sweep)
        return message
    return None


def _sweep(comparison: Comparison, entry: Entry, stop: threading.Event) -> Generator[Happening, None, float]:
    """Train shortly at a few rates. Returns the rate with the lowest validation loss, the preset's if all diverge."""
    config = entry.config
    tried: dict[float, float | None] = {}
    for factor in SWEEP_FACTORS:
        lr = float(f"{config.optim.lr * factor:.3g}")
        settings = with_steps(config, max(1, config.steps // SWEEP_SHARE), lr)
        path = comparison.folder / "sweep" / f"{entry.arch}_{lr:g}"
        message = yield from _train(comparison, settings, entry.arch, path, True, stop)
        if stop.is_set():
            return config.optim.lr
        tried[lr] = RunFolder(path).metrics()[-1]["val_loss"] if message is None else None
    losses = {lr: loss for lr, loss in tried.items() if loss is not None}
    chosen = min(losses, key=lambda lr: losses[lr]) if losses else config.optim.lr
    yield Chosen(arch=entry.arch, tried=tried, lr=chosen)
    return chosen
