"""What a comparison leaves to be looked at: a table, curves, samples, and one page that opens offline."""

import math
import statistics
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from scratchlm.compare.seeds import UNITS, differences, finished
from scratchlm.files import replace_file
from scratchlm.inspect.curves import COLOURS, comparison_figure, inline_svg, save_figure

AXES = {"tokens": ("tokens read in training (millions)", 1e6), "seconds": ("seconds of training", 1.0)}
TRUNK = "trunk's parameters"
COLUMNS = (
    "model",
    "validation, nats per token",
    "validation, bits per byte",
    "test, nats per token",
    "test, bits per byte",
    "training, tokens/s",
    "generation, tokens/s",
    "state at 256 tokens",
    "state at its longest",
    TRUNK,
    "parameters",
    "FLOPs per token",
)


def draw(results: Mapping[str, Any], folder: Path) -> None:
    """Write table.md, samples.txt, loss_tokens and loss_seconds as svg and png, and report.html into a folder."""
    replace_file(folder / "table.md", table(results).encode())
    replace_file(folder / "samples.txt", _samples(results["rows"]).encode(errors="replace"))
    figures = {}
    for axis, (label, scale) in AXES.items():
        curves = {
            row["architecture"]: [
                [(point[axis] / scale, point["nats_per_token"]) for point in run["curve"]]
                for run in (row, *(finished(row) if "runs" in row else ()))
            ]
            for row in _drawn(results["rows"])
        }
        figure = comparison_figure(curves, label)
        save_figure(figure, folder / f"loss_{axis}")
        figures[axis] = inline_svg(figure, axis)
    replace_file(folder / "report.html", page(results, figures).encode(errors="replace"))


def _drawn(rows: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The models that have a curve: one that diverged would press the others' flat."""
    return [row for row in rows if row["curve"] and row["status"] == "finished"]


def columns(results: Mapping[str, Any]) -> list[str]:
    """The columns of the table; that of the trunk is there where it was what the budget made equal."""
    of_trunk = results["request"]["budget"].get("trunk")  # results of before there was such a budget have none
    return [name for name in COLUMNS if name != TRUNK or of_trunk]


def cells(row: Mapping[str, Any], columns: Iterable[str]) -> list[str]:
    """A row of the table."""
    name = row["architecture"] + ("" if row["sized"] else " (floor)")
    if row["status"] == "diverged":
        name += " (diverged)"
    elif row["message"] is not None:
        name += f" (diverged with {len(row['runs']) - len(finished(row))} of {len(row['runs'])} seeds)"
    states = row["state_bytes"] or [None, None]
    losses = [
        "-" if row[split] is None else _with_spread(row[split], unit)
        for split in ("validation", "test")
        for unit in UNITS
    ]
    values = [
        name,
        *losses,
        _number(row["training_tokens_per_second"]),
        _number(row["generation_tokens_per_second"]),
        _state(states[0], 256),
        _state(states[1], None),
        _number(row.get("trunk_parameters")),
        _number(row["parameters"]),
        _number(row["flops_per_token"]),
    ]
    named = dict(zip(COLUMNS, values, strict=True))
    return [named[column] for column in columns]


def _with_spread(score: Mapping[str, Any], unit: str) -> str:
    """A loss; after it, where it is the mean of several seeds, their sample standard deviation."""
    spread = score.get("spread")
    return f"{score[unit]:.4f}" + (f" ± {spread[unit]:.4f}" if spread is not None else "")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def _state(state: Mapping[str, int] | None, usual: int | None) -> str:
    """The bytes of a state, and after how many tokens where those are not the usual."""
    if state is None:
        return "-"
    at = "" if state["tokens"] == usual else f" at {state['tokens']:,}"
    return f"{state['bytes']:,} B{at}"


def table(results: Mapping[str, Any]) -> str:
    """The table as Markdown, its columns aligned."""
    names = columns(results)
    lines = [names, *(cells(row, names) for row in results["rows"])]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, [("-" * width if not at else "-" * (width - 1) + ":") for at, width in enumerate(widths)])
    aligned = (
        [
            cell.rjust(width) if at else cell.ljust(width)
            for at, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        for line in lines
    )
    return "".join(f"| {' | '.join(line)} |\n" for line in aligned)


def _samples(rows: Iterable[Mapping[str, Any]]) -> str:
    written = ((row["architecture"], row["sample"]) for row in rows)
    return "".join(f"--- {name} ---\n{text}\n\n" for name, text in written if text is not None)


def page(results: Mapping[str, Any], figures: Mapping[str, str]) -> str:
    """The report: one page without scripts or addresses, so that it opens offline."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    rows = results["rows"]
    drawn = [row["architecture"] for row in _drawn(rows)]
    return environment.get_template("report.html.jinja").render(
        results=results,
        request=results["request"],
        budget=results["request"]["budget"],
        rows=rows,
        done=[row for row in rows if row["status"] == "finished"],
        columns=columns(results),
        cells=cells,
        colours={name: COLOURS[number % len(COLOURS)] for number, name in enumerate(drawn)},
        figures={name: Markup(svg) for name, svg in figures.items()},  # noqa: S704 - drawn here, its texts escaped
        runs=[run for row in rows for run in row.get("runs", [row])],
        facts=_facts(rows),
        guessing=math.log(results["vocab_size"]),
    )


def _facts(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """What the figures say, in sentences."""
    done = [row for row in rows if row["status"] == "finished"]
    sized = [row for row in done if row["sized"]]
    facts = []
    if done:
        best, *others = sorted(done, key=lambda row: row["validation"]["nats_per_token"])
        facts.append(
            f"{best['architecture']} predicts best: {best['validation']['nats_per_token']:.4f} nats per token on the "
            f"validation text, {best['test']['nats_per_token']:.4f} on the test text"
            + (f", means of {len(finished(best))} seeds." if "runs" in best else ".")
        )
        if "runs" in best and others:
            facts += _pair(best, others[0])
    for what, key in (("trains", "training_tokens_per_second"), ("writes", "generation_tokens_per_second")):
        fastest = max((row for row in sized if row[key]), key=lambda row: row[key], default=None)
        if fastest is not None:
            facts.append(
                f"{fastest['architecture']} {what} fastest of the sized models: {fastest[key]:,.0f} tokens per second."
            )
    for row in rows:
        if row["message"] is not None:
            rest = (
                "its curve is not drawn" if row["status"] == "diverged" else "its figures are those of the other seeds"
            )
            facts.append(f"{row['architecture']} diverged: {row['message']}; {rest}.")
    return facts


def _pair(best: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """How sure the first place is: the two with the same seed, and so the same batches, beside each other."""
    apart = differences(best, second)
    if not apart:
        return []
    spread = f" ± {statistics.stdev(apart):.4f}" if len(apart) > 1 else ""
    below = sum(difference > 0 for difference in apart)
    return [
        f"{best['architecture']} is below {second['architecture']} with {below} of {len(apart)} seeds, on average by "
        f"{statistics.fmean(apart):.4f}{spread} nats per token on the validation text."
    ]
