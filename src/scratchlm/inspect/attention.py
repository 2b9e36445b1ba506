"""Attention weights over one text: out of any model that has attention, as numbers and as a picture.

Letters in shapes: T tokens that look (queries), S tokens that are looked at (keys), H heads.
"""

import math
import re
import textwrap
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import matplotlib as mpl
import torch
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from torch import Tensor, nn

from scratchlm.inspect.curves import save_figure
from scratchlm.model import LanguageModel, Recordable, Source, record

Kind = Literal["encoder", "decoder", "cross"]
KINDS: tuple[Kind, ...] = ("encoder", "decoder", "cross")
_LAYER = re.compile(r"(\w+)\.(\d+)\.(attention|cross_attention)")

COLOURS = mpl.colormaps["Blues"].with_extremes(bad="#d4d0c8")
NAMES: dict[Kind, tuple[str, str]] = {
    "encoder": ("source token", "source token"),
    "decoder": ("token", "token"),
    "cross": ("target token", "source token"),
}
FONT, POINTS, CHARACTER = "DejaVu Sans Mono", 7.5, 0.065  # of token labels; a character's width in inches
LONGEST_LABEL = 12  # characters
LARGEST = 40  # inches that all panels beside or below each other may take


@dataclass(frozen=True, eq=False)
class AttentionLayer:
    """What one layer's heads look at. Layers and heads are counted from 1.

    Shapes: weights (H, T, S); row t says how much token t takes from each token, and sums to 1.
    """

    name: str  # of the module
    kind: Kind
    layer: int
    heads: list[int]
    weights: Tensor


def _attentions(model: nn.Module) -> dict[str, tuple[Kind, int]]:
    """The kind and number of each attention layer, by the module's name."""
    found: dict[str, tuple[Kind, int]] = {}
    for name, module in model.named_modules():
        match = _LAYER.fullmatch(name)
        if match and isinstance(module, Recordable):
            stack, number, attention = match.groups()
            kind: Kind = "cross" if attention == "cross_attention" else "encoder" if stack == "encoder" else "decoder"
            found[name] = (kind, int(number) + 1)
    return found


def has_attention(model: nn.Module) -> bool:
    """Whether there is an attention layer to look at."""
    return bool(_attentions(model))


def attention_layers(model: LanguageModel, tokens: Sequence[int], source: Source | None = None) -> list[AttentionLayer]:
    """The attention weights of all layers over one text: first the encoder's, then the decoder's, then between them.

    `source`: one row, for a model that takes one.
    """
    training, device = model.training, next(model.parameters()).device
    model.eval()
    try:
        with torch.no_grad(), record(model) as shown:
            state = None
            if source is not None:
                source = Source(source.ids.to(device), source.lengths.to(device))
                state = model.initial_state(1, source=source)
            model(torch.tensor([tokens], device=device), state)
    finally:
        model.train(training)
    layers = []
    for name, (kind, number) in _attentions(model).items():
        (weights,) = shown[f"{name}.weights"][0].cpu()  # (H, T, S)
        layers.append(AttentionLayer(name, kind, number, list(range(1, len(weights) + 1)), weights))
    return sorted(layers, key=lambda layer: KINDS.index(layer.kind))


def pick(layers: Sequence[AttentionLayer], layer: int | None, head: int | None) -> list[AttentionLayer]:
    """Only this layer of each kind, and only this head of each layer; None: all of them.

    Raises ValueError where there is no such layer or head.
    """
    depth, heads = max(one.layer for one in layers), max(one.heads[-1] for one in layers)
    for what, number, most in (("layer", layer, depth), ("head", head, heads)):
        if number is not None and not 1 <= number <= most:
            raise ValueError(f"there is no {what} {number}; choose from 1 to {most}")
    chosen = [one for one in layers if layer in (None, one.layer)]
    if head is not None:
        chosen = [replace(one, heads=[head], weights=one.weights[head - 1 : head]) for one in chosen]
    return chosen


def described(layers: Sequence[AttentionLayer]) -> list[dict[str, Any]]:
    """The layers as JSON values, weights rounded to five digits."""
    return [
        {
            "name": one.name,
            "kind": one.kind,
            "layer": one.layer,
            "heads": [
                {"head": head, "weights": [[round(weight, 5) for weight in row] for row in weights]}
                for head, weights in zip(one.heads, one.weights.tolist(), strict=True)
            ],
        }
        for one in layers
    ]


def attention_figure(
    layers: Sequence[AttentionLayer], tokens: Sequence[str], source: Sequence[str] | None = None
) -> Figure:
    """A row of panels for each layer, a panel for each head; `tokens` and `source` are how the tokens are written.

    The size is what the labels need, up to a limit; beyond it, cells shrink and some labels are left out.
    """
    source, tokens = _short(source or []), _short(tokens)
    sides = {"encoder": (source, source), "decoder": (tokens, tokens), "cross": (tokens, source)}
    longest, longest_label = max(len(source), len(tokens)), max(map(len, source + tokens))
    columns = max(len(one.heads) for one in layers)
    queries_in_all = sum(len(sides[one.kind][0]) for one in layers)
    # inches from here on
    cell = min(max(0.14, 2.2 / longest), 6 / longest, LARGEST / queries_in_all, LARGEST / columns / longest)
    labels = CHARACTER * longest_label + 0.1
    pitch = max(cell * longest, 1.7) + 0.3
    left, above, below = labels + 0.5, 0.35, labels + 0.5
    width = max(left + columns * pitch + 1.0, 5.5)
    points = min(max(9, 0.7 * width), 20)
    about = textwrap.wrap(_about(layers, source + tokens), int(width * 72 / (0.55 * points)))
    top = 0.2 + len(about) * 1.4 * points / 72
    height = top + sum(above + cell * len(sides[one.kind][0]) + below for one in layers)
    figure = Figure(figsize=(width, height))
    figure.text(0.15 / width, 1 - 0.12 / height, "\n".join(about), size=points, va="top", linespacing=1.3)

    def axes(x: float, y: float, w: float, h: float) -> Axes:
        return figure.add_axes((x / width, 1 - (y + h) / height, w / width, h / height))

    norm = PowerNorm(0.5, 0, 1)  # on a linear scale the many small weights would all look white
    bar = axes(left + columns * pitch, top + above, 0.15, 1.8)
    figure.colorbar(ScalarMappable(norm, COLOURS), cax=bar, label="attention weight", ticks=[0, 0.05, 0.2, 0.5, 1])
    for one in layers:
        queries, keys = sides[one.kind]
        top += above
        for column, (head, weights) in enumerate(zip(one.heads, one.weights, strict=True)):
            panel = axes(left + column * pitch, top, cell * len(keys), cell * len(queries))
            later = torch.full_like(weights, one.kind == "decoder", dtype=torch.bool).triu(1)
            shown = weights.masked_fill(later, math.nan).numpy()
            panel.imshow(shown, cmap=COLOURS, norm=norm, aspect="auto", interpolation="nearest")
            panel.set_title(f"{one.kind} layer {one.layer}, head {head}", size=9.5)
            _label(panel, queries if column == 0 else [], keys, cell, upright=longest_label == 1)
            if column == 0:
                looking, looked_at = NAMES[one.kind]
                panel.set_ylabel(f"{looking} that looks\n(query)", size=8)
                panel.set_xlabel(f"{looked_at} looked at (key)", size=8)
        top += cell * len(queries) + below
    return figure


def _about(layers: Sequence[AttentionLayer], labels: Sequence[str]) -> str:
    """How the picture is to be read."""
    about = (
        "Each row is a token that looks (query); each cell says how much it takes from the token of that column (key). "
        "The weights of a row sum to 1."
    )
    if any(one.kind == "decoder" for one in layers):
        about += " A decoder's token looks in order to predict the next one. Grey: later tokens, which it may not see."
    for mark, what in (("\u00b7", "a space"), ("\u21b5", "a line end")):
        if any(mark in label for label in labels):
            about += f" {mark} is {what}."
    return about


def _short(labels: Sequence[str]) -> list[str]:
    """The labels, cut where they would take too much room."""
    return [label if len(label) <= LONGEST_LABEL else label[: LONGEST_LABEL - 1] + "\u2026" for label in labels]


def _label(panel: Axes, queries: Sequence[str], keys: Sequence[str], cell: float, *, upright: bool) -> None:
    """Write the tokens beside the cells, every second or third where they would touch."""
    step = math.ceil(0.12 / cell)
    font: dict[str, Any] = {"size": POINTS, "family": FONT, "parse_math": False}  # "$" in a token begins no formula
    panel.set_yticks(range(0, len(queries), step), queries[::step], **font)
    panel.set_xticks(range(0, len(keys), step), keys[::step], rotation=0 if upright else 90, **font)
    panel.tick_params(length=2, width=0.5)
    panel.spines[:].set_linewidth(0.5)


def save_attention(figure: Figure, folder: Path) -> list[Path]:
    """Draw attention.svg, whose labels are text, and attention.png into a folder."""
    with mpl.rc_context({"svg.fonttype": "none"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # a script that the font lacks is a box in the PNG
        return save_figure(figure, folder / "attention")
