"""Several seeds of a comparison as one: the mean of each figure, and how far the seeds spread around it."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

UNITS = ("nats_per_token", "bits_per_byte")


def across_seeds(results: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row for each architecture, out of the results of each seed; the lowest mean validation loss first.

    Figures are means over the seeds with which it did not diverge; one that diverged with fewer seeds comes first.
    The rows of the single seeds are in `runs`.
    """
    runs: dict[str, list[dict[str, Any]]] = {}
    for one in results:
        for row in one["rows"]:
            runs.setdefault(row["architecture"], []).append({"seed": one["request"]["seed"], **row})
    rows = [_row(of_one) for of_one in runs.values()]
    return sorted(rows, key=lambda row: (len(row["runs"]) - len(finished(row)), *_loss(row)))


def finished(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The runs of an architecture that did not diverge."""
    return [run for run in row["runs"] if run["status"] == "finished"]


def differences(row: Mapping[str, Any], other: Mapping[str, Any]) -> list[float]:
    """Validation losses of another architecture less those of this one, with each seed that both finished."""
    losses = [
        {run["seed"]: run["validation"]["nats_per_token"] for run in finished(one)} for one in (row, other)
    ]  # the same seed, so the same batches
    return [losses[1][seed] - loss for seed, loss in losses[0].items() if seed in losses[1]]


def _loss(row: Mapping[str, Any]) -> list[float]:
    return [] if row["validation"] is None else [row["validation"]["nats_per_token"]]


def _row(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The figures of one architecture. What no seed changes, and the sample, are those of the first that finished."""
    done = [run for run in runs if run["status"] == "finished"] or runs
    first, rates = done[0], {run["learning_rate"] for run in done}
    messages = [f"seed {run['seed']}: {run['message']}" for run in runs if run["message"] is not None]
    return {
        **{name: value for name, value in first.items() if name != "seed"},
        "message": "; ".join(messages) or None,
        "learning_rate": first["learning_rate"] if len(rates) == 1 else None,  # each seed's sweep chose for itself
        **{
            name: _mean(run[name] for run in done)
            for name in ("seconds", "training_tokens_per_second", "generation_tokens_per_second")
        },
        **{split: _scores([run[split] for run in done if run[split] is not None]) for split in ("validation", "test")},
        "curve": [
            {name: _mean(point[name] for point in points) for name in points[0]}
            for points in zip(*(run["curve"] for run in done), strict=False)
        ],
        "runs": [{name: value for name, value in run.items() if name != "sample"} for run in runs],
    }


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def _scores(scores: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Mean losses and, where there are two or more, their sample standard deviation."""
    if not scores:
        return None
    losses = {unit: [score[unit] for score in scores] for unit in UNITS}
    found = {**scores[0], **{unit: statistics.fmean(values) for unit, values in losses.items()}}
    if "carried_nats_per_token" in found:
        found["carried_nats_per_token"] = _mean(score["carried_nats_per_token"] for score in scores)
    several = len(scores) > 1
    found["spread"] = {unit: statistics.stdev(values) for unit, values in losses.items()} if several else None
    return found
