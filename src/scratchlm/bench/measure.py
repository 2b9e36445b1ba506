"""Timing of sides that do the same work, in turns, and the rows that come of it."""

import datetime
import functools
import importlib
import math
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from scratchlm import runtime
from scratchlm.flops import peak_flops, synchronize

OURS = "scratchlm"
SAME_LOSS = 1e-4  # by which share losses of the same weights may differ, as rounding makes them
Side = Callable[[], object]
Status = Literal["measured", "not installed", "failed", "unequal"]


@dataclass(frozen=True)
class Setting:
    """How all rows of one benchmark are measured, and against what.

    Attributes:
        device: Where.
        repeats: Rounds, in each of which every side is timed once.
        least: Seconds that one timing should last: what is shorter is done several times in it.
        nanogpt: The folder of a clone of nanoGPT, which adds its rows.
        precision: That of products in training and generation: fp32, bf16 or fp16.
        compile: Whether our training steps are compiled: off, auto or on.
    """

    device: torch.device
    repeats: int = 7
    least: float = 0.1
    nanogpt: Path | None = None
    precision: str = "fp32"
    compile: Literal["off", "auto", "on"] = "off"

    @functools.cached_property
    def device_name(self) -> str:
        """What the device is called."""
        return _processor() if self.device.type == "cpu" else runtime.device_name(self.device)

    def autocast(self) -> AbstractContextManager[object]:
        """The precision, while it lasts."""
        dtype, _ = runtime.choose_precision(self.precision, self.device)
        return runtime.autocast(self.device, dtype)

    @functools.cached_property
    def peak(self) -> float | None:
        """The device's published peak, if it is known. Units: FLOP/s."""
        return peak_flops(self.device_name, self.precision)


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


@dataclass(frozen=True, kw_only=True)
class Row:
    """One figure.

    Attributes:
        group: One of bench.GROUPS.
        what: What is done.
        unit: That of `ours` and `theirs`.
        ours: The median of our side.
        peer: Who else did it, and how where that is not as we did it; none: nobody.
        contest: The peer is someone else's and does the same work; if not, the ratio says what a part of ours costs.
        theirs: The median of the peer's side.
        ratio: Our time over the peer's, the median of rounds: below 1 ours is faster.
        quartiles: The first and third of the rounds' ratios; without a peer of our values.
        status: measured, or why there is no ratio: the peer is not installed, failed, or did other work (unequal).
        message: What went wrong, or what became of compilation, in words.
        asked: The ratio that is asked for, at most.
        figures: What else is known: tokens per second; operations, the peak of as many a second, their share of it.
        repeats: Rounds.
        threads: Of torch, on the CPU.
        device: Where.
        precision: That of products.
        versions: Of what took part.
        date: The day, in UTC.
    """

    group: str
    what: str
    unit: str
    ours: float
    peer: str | None = None
    contest: bool = False
    theirs: float | None = None
    ratio: float | None = None
    quartiles: tuple[float, float] | None = None
    status: Status = "measured"
    message: str | None = None
    asked: float | None = None
    figures: Mapping[str, float] = field(default_factory=dict)
    repeats: int
    threads: int
    device: str
    precision: str
    versions: Mapping[str, str]
    date: str

    def json(self) -> dict[str, Any]:
        """The row as JSON has it, numbers with the digits that a timing has."""
        return _rounded(asdict(self))


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.4g}") if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _rounded(one) for key, one in value.items()}
    return [_rounded(one) for one in value] if isinstance(value, (list, tuple)) else value


def timed(run: Side, calls: int, device: torch.device) -> float:
    """Seconds of a call, of so many one after another."""
    synchronize(device)
    start = time.perf_counter()
    for _ in range(calls):
        run()
    synchronize(device)
    return (time.perf_counter() - start) / calls


def in_turns(sides: Mapping[str, Side], setting: Setting) -> dict[str, list[float]]:
    """Seconds of a call of each side, round by round, so that what else the machine does falls on all of them.

    Two calls before the first round warm up and say how many make one timing. Every other round goes backwards.
    """
    calls = {}
    for name, run in sides.items():
        run()
        calls[name] = max(1, math.ceil(setting.least / timed(run, 1, setting.device)))
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(setting.repeats):
        for name in list(sides)[:: -1 if number % 2 else 1]:
            seconds[name].append(timed(sides[name], calls[name], setting.device))
    return seconds


def spread(values: Sequence[float]) -> tuple[float, tuple[float, float]]:
    """The median, and the first and third quartile."""
    if len(values) == 1:
        return values[0], (values[0], values[0])
    first, _, third = statistics.quantiles(values, n=4, method="inclusive")
    return statistics.median(values), (first, third)


class UnequalError(Exception):
    """Two sides do not do the same work, so a ratio of their times would say nothing."""


@dataclass(frozen=True)
class Trial:
    """What became of a peer: its side, ready to be timed, or why there is none."""

    run: Side | None
    status: Status = "measured"
    message: str | None = None


def attempt(peer: Any, make: Callable[[], Side]) -> Trial:
    """A peer's side, as far as there is one. What another library raises is no reason to measure nothing else."""
    if peer.version() is None:
        return Trial(None, "not installed", f"{peer.package} is not installed")
    try:
        return Trial(make())
    except UnequalError as error:
        return Trial(None, "unequal", str(error))
    except Exception as error:
        return Trial(None, "failed", f"{type(error).__name__}: {error}")


def row(setting: Setting, group: str, what: str, values: Sequence[float], unit: str, **more: Any) -> Row:
    """A row of our side alone, of the values of all rounds."""
    ours, quartiles = spread(values)
    versions = runtime.versions()
    known: dict[str, Any] = {
        "ours": ours,
        "quartiles": quartiles,
        "repeats": len(values),
        "threads": torch.get_num_threads(),
        "device": f"{setting.device.type}: {setting.device_name}",
        "precision": setting.precision,
        "versions": {name: versions[name] for name in (OURS, "torch")},
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }
    return Row(group=group, what=what, unit=unit, **(known | more))


def row_of(
    setting: Setting,
    group: str,
    what: str,
    seconds: Mapping[str, Sequence[float]],
    peer: Any,
    trials: Mapping[str, Trial],
    per: int = 1,
    **more: Any,
) -> Row:
    """The row of our side against a peer, or alone where that is None or was not timed.

    Units: milliseconds of a call, or of one of the `per` like parts of it.
    """
    times = {name: [1e3 * one / per for one in measured] for name, measured in seconds.items()}
    alone = row(setting, group, what, times[OURS], "ms", **more)
    if peer is None:
        return alone
    trial, version = trials[peer.name], peer.version()
    alone = replace(
        alone, peer=peer.name, contest=peer.equal, status=trial.status, message=trial.message or alone.message
    )
    if trial.run is None:
        return alone
    ratio, quartiles = spread([one / other for one, other in zip(times[OURS], times[peer.name], strict=True)])
    theirs = statistics.median(times[peer.name])
    versions = {**alone.versions, peer.package: version}
    return replace(alone, theirs=theirs, ratio=ratio, quartiles=quartiles, versions=versions)


def peers_of(setting: Setting, arch: str, config: Any) -> Iterator[Any]:
    """The peers of a model, which are no part of this package."""
    for peer in importlib.import_module("scratchlm_peers").model_peers(setting.nanogpt):
        if peer.arch == arch and peer.fits(config):
            yield peer
