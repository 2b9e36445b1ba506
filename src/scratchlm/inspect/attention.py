"""Attention weights over one text: out of any model that has attention, as numbers and as a picture.

Letters in shapes: T tokens that look (queries), S tokens that are looked at (keys), H heads.
"""

import itertools
import math
import re
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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

Kind = Literal["encoder", "decoder", "cross", "senses"]
KINDS: tuple[Kind, ...] = ("encoder", "decoder", "cross", "senses")
# a model may have another one inside, as a Backpack has its trunk
_LAYER = re.compile(r"(?:\w+\.)*?(?:(\w+)\.(\d+)\.(attention|cross_attention)|contextualisation)")

COLOURS = mpl.colormaps["Blues"].with_extremes(bad="#d4d0c8")
AXES: dict[Kind, tuple[str, str]] = {
    "encoder": ("source token that looks\n(query)", "source token looked at (key)"),
    "decoder": ("token that looks\n(query)", "token looked at (key)"),
    "cross": ("target token that looks\n(query)", "source token looked at (key)"),
    "senses": ("prediction after", "token whose sense goes in"),
}
FONT, POINTS, CHARACTER = "DejaVu Sans Mono", 7.5, 0.065  # of token labels; a character's width in inches
LONGEST_LABEL = 12  # characters
LARGEST = 40  # inches that all panels beside or below each other may take


@dataclass(frozen=True, eq=False)
class AttentionLayer:
    """What one layer's heads look at. Layers and heads are counted from 1.

    Of kind "senses", which is no layer of attention: how much of each sense goes into each prediction. There is one
    head for each sense, counted from 0.

    Shapes: weights (H, T, S); row t says how much token t takes from each token, and sums to 1.
    """

    name: str  # of the module
    kind: Kind
    layer: int | None
    heads: list[int]
    weights: Tensor


def _attentions(model: nn.Module) -> dict[str, tuple[Kind, int | None]]:
    """The kind and number of each attention layer, by the module's name."""
    found: dict[str, tuple[Kind, int | None]] = {}
    for name, module in model.named_modules():
        match = _LAYER.fullmatch(name)
        if match and isinstance(module, Recordable):
            stack, number, attention = match.groups()
            kind: Kind = "cross" if attention == "cross_attention" else "encoder" if stack == "encoder" else "decoder"
            found[name] = ("senses", None) if number is None else (kind, int(number) + 1)
    return found


def has_attention(model: nn.Module) -> bool:
    """Whether there is an attention layer to look at."""
    return bool(_attentions(model))


@contextmanager
def looking(model: LanguageModel) -> Iterator[dict[str, list[Tensor]]]:
    """What the layers show while the block runs, without gradients and dropout; the model's mode is left as it was."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad(), record(model) as shown:
            yield shown
    finally:
        model.train(training)


def attention_layers(model: LanguageModel, tokens: Sequence[int], source: Source | None = None) -> list[AttentionLayer]:
    """The attention weights of all layers over one text: the encoder's, the decoder's, those between them, senses.

    `source`: one row, for a model that takes one.
    """
    device = next(model.parameters()).device
    with looking(model) as shown:
        state = None
        if source is not None:
            source = Source(source.ids.to(device), source.lengths.to(device))
            state = model.initial_state(1, source=source)
        model(torch.tensor([tokens], device=device), state)
    layers = []
    for name, (kind, number) in _attentions(model).items():
        (weights,) = shown[f"{name}.weights"][0].cpu()  # (H, T, S)
        first = 0 if kind == "senses" else 1
        layers.append(AttentionLayer(name, kind, number, list(range(first, first + len(weights))), weights))
    return sorted(layers, key=lambda layer: KINDS.index(layer.kind))


def pick(
    layers: Sequence[AttentionLayer], layer: int | None, head: int | None, sense: int | None = None
) -> list[AttentionLayer]:
    """Only this layer of each kind, and only this head of each layer; or only this sense. None: all of them.

    Raises ValueError where there is no such layer, head or sense, or where a sense is to have a layer or a head.
    """
    senses = [one for one in layers if one.kind == "senses"]
    layers = [one for one in layers if one.kind != "senses"]
    if sense is not None:
        if layer is not None or head is not None:
            raise ValueError(f"sense {sense} has no layer and no head; choose the one or the other")
        if not senses:
            raise ValueError(f"there is no sense {sense}: this model has none")
        return [_only(one, sense, "sense") for one in senses]
    if layer is None and head is None:
        return [*layers, *senses]
    depth = max(one.layer or 0 for one in layers)
    if layer is not None and not 1 <= layer <= depth:
        raise ValueError(f"there is no layer {layer}; choose from 1 to {depth}")
    chosen = [one for one in layers if layer in (None, one.layer)]
    return chosen if head is None else [_only(one, head, "head") for one in chosen]


def _only(layer: AttentionLayer, head: int, what: str) -> AttentionLayer:
    if head not in layer.heads:
        raise ValueError(f"there is no {what} {head}; choose from {layer.heads[0]} to {layer.heads[-1]}")
    at = layer.heads.index(head)
    return replace(layer, heads=[head], weights=layer.weights[at : at + 1])


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

    Senses, of which there are many, take several rows. The size is what the labels need, up to a limit; beyond it,
    cells shrink and some labels are left out.
    """
    source, tokens = short(source or []), short(tokens)
    texts = (tokens, tokens)
    sides = {"encoder": (source, source), "decoder": texts, "cross": (tokens, source), "senses": texts}
    longest, longest_label = max(len(source), len(tokens)), max(map(len, source + tokens))
    about_layers = _about(layers, source + tokens)
    layers = _folded(layers)
    columns = max(len(one.heads) for one in layers)
    queries_in_all = sum(len(sides[one.kind][0]) for one in layers)
    # inches from here on
    cell = min(max(0.14, 2.2 / longest), 6 / longest, LARGEST / queries_in_all, LARGEST / columns / longest)
    labels = CHARACTER * longest_label + 0.1
    pitch = max(cell * longest, 1.7) + 0.3
    left, above, below = labels + 0.5, 0.35, labels + 0.5
    width = max(left + columns * pitch + 1.0, 5.5)
    points = min(max(9, 0.7 * width), 20)
    about = textwrap.wrap(about_layers, int(width * 72 / (0.55 * points)))
    top = 0.2 + len(about) * 1.4 * points / 72
    # tokens are written below the last panel of a kind, and in a column that ends before it
    covered = [len(after.heads) if after.kind == one.kind else 0 for one, after in itertools.pairwise(layers)] + [0]
    gaps = [0.05 if columns_below else below for columns_below in covered]
    height = top + sum(above + cell * len(sides[one.kind][0]) for one in layers) + sum(gaps)
    figure = Figure(figsize=(width, height))
    figure.text(0.15 / width, 1 - 0.12 / height, "\n".join(about), size=points, va="top", linespacing=1.3)

    def axes(x: float, y: float, w: float, h: float) -> Axes:
        return figure.add_axes((x / width, 1 - (y + h) / height, w / width, h / height))

    norm = PowerNorm(0.5, 0, 1)  # on a linear scale the many small weights would all look white
    bar = axes(left + columns * pitch, top + above, 0.15, 1.8)
    weight = "weight of the sense" if all(one.kind == "senses" for one in layers) else "attention weight"
    figure.colorbar(ScalarMappable(norm, COLOURS), cax=bar, label=weight, ticks=[0, 0.05, 0.2, 0.5, 1])
    for one, columns_below, gap in zip(layers, covered, gaps, strict=True):
        queries, keys = sides[one.kind]
        top += above
        for column, (head, weights) in enumerate(zip(one.heads, one.weights, strict=True)):
            panel = axes(left + column * pitch, top, cell * len(keys), cell * len(queries))
            later = torch.full_like(weights, one.kind in ("decoder", "senses"), dtype=torch.bool).triu(1)
            shown = weights.masked_fill(later, math.nan).numpy()
            panel.imshow(shown, cmap=COLOURS, norm=norm, aspect="auto", interpolation="nearest")
            senses = one.kind == "senses"
            panel.set_title(f"sense {head}" if senses else f"{one.kind} layer {one.layer}, head {head}", size=9.5)
            last, first = column >= columns_below, column == 0
            write_labels(panel, queries if first else [], keys if last else [], cell, upright=longest_label == 1)
            if first:
                panel.set_ylabel(AXES[one.kind][0], size=8)
            if first and last:
                panel.set_xlabel(AXES[one.kind][1], size=8)
        top += cell * len(queries) + gap
    return figure


def _folded(layers: Sequence[AttentionLayer]) -> list[AttentionLayer]:
    """The layers, senses in rows as long as the layers' are, of four at least."""
    columns = max(4, *(len(one.heads) for one in layers if one.kind != "senses"), 0)
    rows = []
    for one in layers:
        step = columns if one.kind == "senses" else len(one.heads)
        for at in range(0, len(one.heads), step):
            rows.append(replace(one, heads=one.heads[at : at + step], weights=one.weights[at : at + step]))
    return rows


def _about(layers: Sequence[AttentionLayer], labels: Sequence[str]) -> str:
    """How the picture is to be read."""
    about = ""
    if any(one.kind != "senses" for one in layers):
        about += (
            "Each row is a token that looks (query); each cell says how much it takes from the token of that column "
            "(key). The weights of a row sum to 1. "
        )
    if any(one.kind == "decoder" for one in layers):
        about += "A decoder's token looks in order to predict the next one. "
    if any(one.kind == "senses" for one in layers):
        about += (
            "Of a sense, each row is the prediction after that token; each cell says how much of the sense of the "
            "column's token goes into it, and those of a row sum to 1. "
        )
    if any(one.kind in ("decoder", "senses") for one in layers):
        about += "Grey: later tokens, which it may not see."
    return about.rstrip() + marks(labels)


def marks(labels: Sequence[str]) -> str:
    """What the marks in the labels stand for."""
    about = ""
    for mark, what in (("\u00b7", "a space"), ("\u21b5", "a line end")):
        if any(mark in label for label in labels):
            about += f" {mark} is {what}."
    return about


def short(labels: Sequence[str], longest: int = LONGEST_LABEL) -> list[str]:
    """The labels, cut where they would take too much room. Units: longest in characters."""
    return [label if len(label) <= longest else label[: longest - 1] + "\u2026" for label in labels]


def write_labels(panel: Axes, queries: Sequence[str], keys: Sequence[str], cell: float, *, upright: bool) -> None:
    """Write the tokens beside the cells, every second or third where they would touch."""
    step = math.ceil(0.12 / cell)
    font: dict[str, Any] = {"size": POINTS, "family": FONT, "parse_math": False}  # "$" in a token begins no formula
    panel.set_yticks(range(0, len(queries), step), queries[::step], **font)
    panel.set_xticks(range(0, len(keys), step), keys[::step], rotation=0 if upright else 90, **font)
    panel.tick_params(length=2, width=0.5)
    panel.spines[:].set_linewidth(0.5)


def save_labelled(figure: Figure, path: Path) -> list[Path]:
    """Draw path.svg, whose labels are text, and path.png."""
    with mpl.rc_context({"svg.fonttype": "none"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # a script that the font lacks is a box in the PNG
        return save_figure(figure, path)
