"""What a training run looks like: records in, a bar, lines and pictures out, all on standard error."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from scratchlm.checkpoint import RunFolder, load
from scratchlm.distribution import RESTARTS, joined, launch, launched
from scratchlm.errors import InputError
from scratchlm.files import read_json
from scratchlm.generation import Sampling, stream
from scratchlm.models import MODELS
from scratchlm.runtime import check_devices, choose_device
from scratchlm.tokenizers import whole_characters
from scratchlm.training.expected import Expected, expected_of
from scratchlm.training.loggers import open_logger, require_logger
from scratchlm.training.loop import SAMPLE_TEMPERATURE, train
from scratchlm.training.records import DivergenceError, Ended, Evaluated, PassedOver, Record, Sampled, Started
from scratchlm.training.records import Progress as Line

PLAIN_SECONDS = 15.0  # between lines where there is no terminal to draw a bar on
FINAL_SAMPLES, FINAL_TOKENS = 3, 400
EXIT_CODES: dict[int, int] = {signal.SIGINT: 130, signal.SIGTERM: 143}

console = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False, markup=False)


def say(text: str) -> None:
    """A line for the person at the terminal; of several processes one speaks."""
    if launched().leads:
        console.print(text)


def follow(
    run: RunFolder,
    steps: int | None = None,
    nproc: int | None = None,
    computed: Mapping[str, Any] | None = None,
) -> int:
    """Train the run and show it, in so many processes of this machine. Returns the exit code.

    `computed`: settings of how a step is computed, in place of the run's.
    """
    settings = computed or {}
    # what the first process alone looks at is refused here, or others would wait for it
    run.tokenizer()
    require_logger(run.config().logger)
    if nproc is not None and nproc > 1:
        check_devices(settings.get("device", run.config().device), nproc)
        extended = [] if steps is None else ["--steps", str(steps)]
        base = [] if run.moved_base is None else ["--base", str(run.moved_base)]
        return launch(nproc, ["resume", str(run.path), *extended, *base, *_flags(settings)])
    return _lead(run, steps, settings) if launched().leads else _take_part(run, steps, settings)


def _flags(settings: Mapping[str, Any]) -> list[str]:
    """Settings as `resume` takes them."""
    flags: list[str] = []
    for name, value in settings.items():
        flag = name.replace("_", "-")
        flags += [f"--{flag}" if value else f"--no-{flag}"] if isinstance(value, bool) else [f"--{flag}", str(value)]
    return flags


def check_processes(nproc: int | None) -> None:
    """Raises InputError for a number of processes that cannot be."""
    if nproc is not None and nproc < 1:
        raise InputError(f"--nproc is {nproc}; it must be at least 1")
    if nproc is not None and launched().size > 1:
        raise InputError("torchrun has started these processes already; leave --nproc out")


@contextmanager
def together(settings: Mapping[str, Any], out: str | None) -> Iterator[Callable[[Callable[[], None]], None]]:
    """What makes a run's folder, called once where torchrun has started several processes; they are connected here.

    Where it starts them anew, since one has died, the folder is there, and they go on with it.
    Raises InputError where they could not all know the folder's name.
    """
    if launched().size == 1:
        yield lambda create: create()
        return
    if out is None:
        raise InputError("several processes need the run's folder by name; give it with --out DIR")
    made = Path(out) / "manifest.json"
    again = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0" and made.is_file()
    if again and read_json(made).get("argv") != sys.argv:
        raise InputError(f"{out} is another run's folder; name another with --out")
    device, _ = choose_device(settings.get("device", "auto"))
    with joined(device) as world:
        yield lambda create: None if again else world.lead(create)


def _take_part(run: RunFolder, steps: int | None, computed: Mapping[str, Any]) -> int:
    """What one of several processes does that is not the first: its share of the work, in silence."""
    reason = ""
    try:
        with stopping() as (stop, received):
            for record in train(run, steps=steps, stop=stop, computed=computed):
                reason = record.reason if isinstance(record, Ended) else ""
    except DivergenceError:
        return 3
    return EXIT_CODES[received[0] if received else signal.SIGTERM] if reason == "stopped" else 0


def _lead(run: RunFolder, steps: int | None, computed: Mapping[str, Any]) -> int:
    if (again := os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) != "0":
        most = os.environ.get("TORCHELASTIC_MAX_RESTARTS", RESTARTS)
        say(f"a process died, and all go on from the newest checkpoint (time {again} of {most} at most)")
    logger = open_logger(run.config().logger, run.path)
    view = View(run)
    try:
        with stopping() as (stop, received), view.bar:
            for record in train(run, steps=steps, stop=stop, computed=computed):
                view.show(record)
                if isinstance(record, Line):
                    numbers = {k: v for k, v in record.line().items() if k != "step" and not isinstance(v, str)}
                    logger.log(numbers, record.step)
    except DivergenceError as error:
        say(f"scratchlm: {error}")
        return 3
    except OSError as error:
        say(f"scratchlm: the run stopped at step {view.step:,}, since a file could not be written: {error}; "
            f"what was saved before is whole: make room, then scratchlm resume {run.path}")  # fmt: skip
        return 2
    finally:
        logger.close()
    assert view.ended is not None
    if view.ended.reason == "stopped":
        say(f"stopped at step {view.step:,}, everything is saved; go on with: scratchlm resume {run.path}")
        return EXIT_CODES[received[0] if received else signal.SIGTERM]  # or another process was told to stop
    finish(run, view, view.ended)
    return 0


@contextmanager
def stopping() -> Iterator[tuple[threading.Event, list[int]]]:
    """An event that SIGINT and SIGTERM set; a second Ctrl-C interrupts at once."""
    stop, received = threading.Event(), []

    def handle(number: int, frame: Any) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        received.append(number)
        stop.set()

    before = {number: signal.signal(number, handle) for number in EXIT_CODES}
    try:
        yield stop, received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class View:
    """The bar and the lines of one run."""

    def __init__(self, run: RunFolder) -> None:
        self.run = run
        self.tokenizer = run.tokenizer()
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rates]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self.task = self.bar.add_task("training", total=None, rates="")
        self.step, self.steps = 0, 0
        self.utilisation: float | None = None
        self.ended: Ended | None = None
        self.scored: Evaluated | None = None
        self.expected: Expected | None = None
        self._before: Line | None = None
        self._said = time.monotonic()

    def show(self, record: Record) -> None:
        match record:
            case Started():
                self._started(record)
            case Line():
                self._progress(record)
            case Evaluated():
                self.scored = record
                best = (
                    "the best so far"
                    if not record.worse
                    else (
                        f"best at step {record.best_step:,} ({record.best_loss:.4f}), worse for {record.worse} "
                        f"evaluation{'s' if record.worse > 1 else ''}"
                    )
                )
                carried = record.score.carried_nats_per_token
                say(
                    f"step {record.step:,}: validation loss {record.score.nats_per_token:.4f} nats per token, "
                    f"{record.score.bits_per_byte:.4f} bits per byte ({best})"
                    + ("" if carried is None else f"; {carried:.4f} nats with the state carried")
                    + ("" if record.quality is None else f"; {record.quality}")
                )
                if self.expected is not None and (band := self.expected.band(record.step)) is not None:
                    say(band.verdict(record.score.nats_per_token))
            case Sampled():
                say("\n".join(f"  | {line}" for line in record.text.strip("\n").splitlines()))
                self.keep(f"--- step {record.step} ---\n{record.text}\n\n")
            case PassedOver():
                say(f"{record.message}; going on from the checkpoint of step {record.step:,}")
            case Ended():
                self.ended, self.step = record, record.step

    def _started(self, record: Started) -> None:
        config, self.step, self.steps = record.config, record.step, record.config.steps
        self.utilisation = record.utilisation
        if record.precision == "fp32":  # which is what was measured
            self.expected = expected_of(config, read_json(self.run.path / "config.json")["data_checksum"])
        self.bar.update(self.task, total=self.steps, completed=self.step)
        parts = f" in {config.accumulate} parts" if config.accumulate > 1 else ""
        rows, window = config.batch_size, config.training_window
        size = f"{rows} x {window} = {rows * window:,} tokens"
        if config.pairs:
            sides = "of either side" if MODELS[config.arch].takes_source else "of source and target together"
            size = f"up to {config.batch_tokens:,} tokens {sides}"
        where = record.device if record.processes == 1 else f"{record.processes} x {record.device.partition(':')[0]}"
        say(
            f"{config.arch}, {record.parameters:,} parameters, on {where} in {record.precision}; {config.data_name}: "
            f"{record.train_tokens:,} training tokens ({self.tokenizer.kind}, vocabulary {self.tokenizer.vocab_size:,})"
        )
        say(f"{self.steps:,} steps of {size}{parts}: the text {record.epochs:.2f} times; run folder {self.run.path}")
        if record.compilation:
            say(record.compilation)
        if config.shard and record.processes == 1:
            say("--shard shares the model out among several processes, and this is one: nothing is shared out")
        if record.step:
            say(f"going on after step {record.step:,}")

    def _progress(self, line: Line) -> None:
        before, self._before, self.step = self._before, line, line.step
        if before is None:
            rate = line.tokens / max(line.seconds, 1e-9) if line.step <= 100 else 0.0
        else:
            rate = (line.tokens - before.tokens) / max(line.seconds - before.seconds, 1e-9)
        rates = f"loss {line.loss:.3f}  {rate:,.0f} tokens/s" if rate else f"loss {line.loss:.3f}"
        if rate and self.utilisation is not None:
            rates += f"  MFU {rate * self.utilisation:.1%}"
        self.bar.update(self.task, completed=line.step, rates=rates)
        if console.is_terminal or time.monotonic() - self._said < PLAIN_SECONDS:
            return
        self._said = time.monotonic()
        left = f", {(self.steps - line.step) * line.tokens / line.step / rate:,.0f} s left" if rate else ""
        say(f"step {line.step:,} of {self.steps:,}: {rates}{left}")

    def keep(self, text: str) -> None:
        """Add to the run's samples."""
        with (self.run.path / "samples.txt").open("a", encoding="utf-8", newline="\n") as file:
            file.write(text)


def finish(run: RunFolder, view: View, ended: Ended) -> None:
    """The end of a run: how it ended, the curve, the last samples, and what to do next."""
    best = run.best()
    if ended.reason == "early" and best:
        say(f"{run.path} stopped early at step {ended.step:,}: best at step {best[0]:,} ({best[1]:.4f})")
        if ended.already:
            return
    if ended.already:
        say(f"{run.path} is finished: all {ended.step:,} steps are done; --steps N trains it for longer")
        return
    try:  # the run is complete and saved: what is drawn now cannot fail it
        _draw(run, view)
    except Exception as error:
        say(f"the run is complete, but its pictures and samples are not: {error!r}")
    better = f" (the best was step {best[0]:,}: --checkpoint best)" if best and best[0] != ended.step else ""
    use = "translate with it: scratchlm translate" if run.config().pairs else "write with it: scratchlm sample"
    say(f"{use} {run.path}{better}")


def _draw(run: RunFolder, view: View) -> None:
    from scratchlm.inspect.curves import save_loss_curve  # matplotlib takes a second to import

    config = run.config()
    bands = [] if view.expected is None else view.expected.bands()
    expected = [(band.step, band.low, band.high) for band in bands]
    files = save_loss_curve(run.metrics(), f"{config.arch} on {config.data_name}", run.path, expected)
    if not config.pairs:  # their translations were shown, and kept, at the last evaluation
        _write(run, view, config.seed)
    say(f"\nloss curve: {', '.join(map(str, files))}; samples: {run.path / 'samples.txt'}")


def _write(run: RunFolder, view: View, seed: int) -> None:
    model, tokenizer = load(run.path)
    rows: list[list[int]] = [[] for _ in range(FINAL_SAMPLES)]
    prompts, sampling = [[tokenizer.start]] * FINAL_SAMPLES, Sampling(temperature=SAMPLE_TEMPERATURE)
    end, size = tokenizer.end_of_text, tokenizer.vocab_size
    for row, token in stream(model, prompts, FINAL_TOKENS, sampling, seed=seed, end=end, slide=True, vocab_size=size):
        rows[row].append(token)
    texts = [whole_characters(tokenizer, row) for row in rows]
    for number, text in enumerate(texts, 1):
        view.keep(f"--- final sample {number} ---\n{text}\n\n")
    say("\na sample at the end:\n")
    print(texts[0].strip("\n"), flush=True)
