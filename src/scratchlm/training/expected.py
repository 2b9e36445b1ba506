"""What a preset's validation loss was when it was measured, so that a run of the same settings can be held against it.

expected.json beside this file has the measured runs, as benchmarks/expected.py made them. Nothing else is expected: a
run with another setting, text or tokenizer has no band, and neither has a step beyond the last that was measured.
"""

import json
import statistics
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from scratchlm.config import RunConfig, settings_of

FILE = Path(__file__).with_name("expected.json")
DEVIATIONS, LEAST = 3.0, 0.02  # a band is as wide to either side as three deviations of the seeds, or 2 % of their mean
# settings that decide a curve, besides the schedule; of text and of pairs
DECIDING = ("arch", "model", "optim", "label_smoothing", "carry", "base", "lora")


@dataclass(frozen=True, kw_only=True)
class Band:
    """Losses that are expected at a step, in nats per token, from so many seeds.

    `between`: the measured steps that it was interpolated from, along a line; none where it was measured itself.
    """

    step: int
    low: float
    high: float
    seeds: int
    between: tuple[int, int] | None = None

    def verdict(self, loss: float) -> str:
        """A line about a loss at this step."""
        where = "above what is expected" if loss > self.high else "on track"
        if loss < self.low:
            where = "below what is expected"
        seeds = f"{self.seeds} seed{'s' if self.seeds > 1 else ''}"
        drawn = "" if self.between is None else f", along a line from step {self.between[0]:,} to {self.between[1]:,}"
        return f"{where}: {loss:.4f}, expected {self.low:.4f} to {self.high:.4f} at step {self.step:,} ({seeds}{drawn})"


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What was measured of a preset: the settings that decided it, validation losses by seed and step, and how.

    `measured`: when, with which torch, on how many threads.
    """

    preset: str
    settings: Mapping[str, Any]
    validation: Mapping[int, Mapping[int, float]]
    measured: Mapping[str, Any]

    @property
    def steps(self) -> list[int]:
        """Those that all seeds were scored at, in order."""
        return sorted(set.intersection(*(set(losses) for losses in self.validation.values())))

    def band(self, step: int) -> Band | None:
        """What is expected at a step. None before the first that was measured, and after the last."""
        steps = self.steps
        if not steps or not steps[0] <= step <= steps[-1]:
            return None
        after = steps[bisect_left(steps, step)]
        if after == step:
            return self._measured(step)
        before = steps[bisect_left(steps, step) - 1]
        share = (step - before) / (after - before)
        one, other = self._measured(before), self._measured(after)
        low, high = (a + share * (b - a) for a, b in ((one.low, other.low), (one.high, other.high)))
        return Band(step=step, low=low, high=high, seeds=one.seeds, between=(before, after))

    def _measured(self, step: int) -> Band:
        losses = [of_one[step] for of_one in self.validation.values()]
        mean = statistics.fmean(losses)
        deviation = statistics.stdev(losses) if len(losses) > 1 else 0.0
        half = max(DEVIATIONS * deviation, LEAST * mean)
        return Band(step=step, low=mean - half, high=mean + half, seeds=len(losses))

    def bands(self) -> list[Band]:
        """At all steps that were measured."""
        return [self._measured(step) for step in self.steps]


def deciding(config: RunConfig, data_checksum: str) -> dict[str, Any]:
    """The settings that decide a run's curve, as JSON values. Its seed, its evaluations and where it runs do not.

    `data_checksum` is that of the run's tokens, and so of text, split and tokenizer.
    """
    settings = settings_of(config)
    chosen = {name: settings[name] for name in DECIDING}
    batch = {"batch_tokens": config.batch_tokens}
    if not config.pairs:
        batch = {"batch_size": config.batch_size, "window": config.training_window}
    return {**chosen, **batch, "schedule": config.horizon or config.steps, "data_checksum": data_checksum}


@cache
def all_expected() -> dict[str, Expected]:
    """All that was measured, by architecture and preset, as in gpt/laptop."""
    return {
        name: Expected(
            preset=name,
            settings=one["settings"],
            validation={
                int(seed): {int(step): loss for step, loss in run["validation"].items()}
                for seed, run in one["seeds"].items()
            },
            measured=one["measured"],
        )
        for name, one in json.loads(FILE.read_text(encoding="utf-8")).items()
    }


def expected_of(config: RunConfig, data_checksum: str) -> Expected | None:
    """What is expected of a run with these settings on these tokens. None where no such run was measured."""
    settings = deciding(config, data_checksum)
    return next((one for one in all_expected().values() if one.settings == settings), None)
