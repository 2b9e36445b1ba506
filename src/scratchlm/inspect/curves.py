"""The loss curve of a run, as a picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

TRAINING, VALIDATION = "#9ab8d8", "#c8442c"


def loss_figure(metrics: Sequence[dict[str, Any]], title: str) -> Figure:
    """Training and validation loss against tokens read, in nats per token; the best validation loss is named."""
    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    axes = figure.subplots()
    millions = [line["tokens"] / 1e6 for line in metrics]
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
    axes.set(xlabel="tokens read (millions)", ylabel="loss (nats per token)")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return figure


def save_loss_curve(metrics: Sequence[dict[str, Any]], title: str, folder: Path) -> list[Path]:
    """Draw loss.svg and loss.png into a folder."""
    figure = loss_figure(metrics, title)
    files = [folder / "loss.svg", folder / "loss.png"]
    for file in files:
        figure.savefig(file, dpi=150)
    return files
