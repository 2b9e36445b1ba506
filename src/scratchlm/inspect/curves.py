"""Loss curves as pictures: of one run, and of several beside each other."""

import re
from collections.abc import Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

TRAINING, VALIDATION = "#9ab8d8", "#c8442c"
# told apart on white and on black, and by their markers where colours are not seen
COLOURS = ("#2f7fc1", "#d9652b", "#2a9d6f", "#b565c7", "#a8862a", "#d14d72", "#4c9aa6", "#7a7f87")
MARKERS = "os^Dvp*X"


def _axes(figure: Figure, xlabel: str) -> Axes:
    axes = figure.subplots()
    axes.set(xlabel=xlabel, ylabel="loss (nats per token)")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return axes


Expectations = Sequence[tuple[int, float, float]]  # step, lowest and highest validation loss that is expected


def loss_figure(metrics: Sequence[dict[str, Any]], title: str, expected: Expectations = ()) -> Figure:
    """Training and validation loss against tokens read, in nats per token; the best validation loss is named.

    `expected` is drawn as a band as far as the lines reach.
    """
    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    axes = _axes(figure, "tokens read (millions)")
    millions = [line["tokens"] / 1e6 for line in metrics]
    steps = [line["step"] for line in metrics]
    if band := [one for one in expected if steps and one[0] <= steps[-1]]:
        at = np.interp([step for step, _, _ in band], steps, millions)
        lows, highs = [low for _, low, _ in band], [high for _, _, high in band]
        label = f"validation, expected to step {band[-1][0]:,}"
        axes.fill_between(at, lows, highs, color=VALIDATION, alpha=0.18, linewidth=0, label=label)
        axes.vlines(at, lows, highs, color=VALIDATION, alpha=0.35, linewidth=4)  # a band of one step has no width
    axes.plot(millions, [line["loss"] for line in metrics], color=TRAINING, linewidth=1, label="training")
    scored = [line for line in metrics if "val_loss" in line]
    if scored:
        at, losses = [line["tokens"] / 1e6 for line in scored], [line["val_loss"] for line in scored]
        axes.plot(at, losses, color=VALIDATION, marker="o", markersize=4, label="validation")
        best = min(scored, key=lambda line: line["val_loss"])
        axes.annotate(
            f"best {best['val_loss']:.3f} nats, {best['val_bits_per_byte']:.3f} bits per byte (step {best['step']:,})",
            (best["tokens"] / 1e6, best["val_loss"]),
            xytext=(-4, 28),
            textcoords="offset points",
            ha="right",
            arrowprops={"arrowstyle": "-", "color": VALIDATION},
        )
    axes.set_title(title, parse_math=False)  # a dollar sign in a file's name is no formula
    axes.legend(frameon=False)
    return figure


def save_loss_curve(
    metrics: Sequence[dict[str, Any]], title: str, folder: Path, expected: Expectations = ()
) -> list[Path]:
    """Draw loss.svg and loss.png into a folder."""
    return save_figure(loss_figure(metrics, title, expected), folder / "loss")


Curve = Sequence[tuple[float, float]]


def comparison_figure(curves: Mapping[str, Sequence[Curve]], xlabel: str) -> Figure:
    """Validation losses of several models, each a curve of (x, nats per token), in their order's colours and markers.

    The curves that follow a model's first are drawn thin: those of the seeds that it is the mean of.
    """
    figure = Figure(figsize=(4.8, 3.5), layout="constrained")
    axes = _axes(figure, xlabel)
    for number, (name, (points, *seeds)) in enumerate(curves.items()):
        for of_one in seeds:
            axes.plot([x for x, _ in of_one], [loss for _, loss in of_one], color=COLOURS[number % len(COLOURS)],
                      linewidth=0.8, alpha=0.6)  # fmt: skip
        axes.plot(
            [x for x, _ in points],
            [loss for _, loss in points],
            color=COLOURS[number % len(COLOURS)],
            marker=MARKERS[number % len(MARKERS)],
            markersize=4,
            label=name,
        )
    axes.set_xlim(left=0)
    axes.set_ylabel("validation loss (nats per token)")
    if curves:
        axes.legend(frameon=False)
    return figure


def save_figure(figure: Figure, path: Path) -> list[Path]:
    """Draw a figure into path.svg and path.png."""
    files = [path.with_suffix(".svg"), path.with_suffix(".png")]
    for file in files:
        figure.savefig(file, dpi=150)
    return files


def inline_svg(figure: Figure, name: str) -> str:
    """A figure as an element of a page, which takes the page's colour and font; `name` keeps its ids apart."""
    drawn = StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(drawn, format="svg", transparent=True)
    svg = drawn.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r' xmlns(:xlink)?="[^"]*"', "", svg)  # a page knows them, and has no address in it then
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}_", svg)
    svg = re.sub(r'(<svg) (?:width|height)="[^"]*"(.*?) (?:width|height)="[^"]*"', r"\1\2", svg, count=1)
    return svg.replace("#000000", "currentColor").strip()
