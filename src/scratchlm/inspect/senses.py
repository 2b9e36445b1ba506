"""Senses of words: what each pushes up and down, which words are near by it, what it adds to one prediction.

Paper: Hewitt et al. 2023, sections 4.2 (what a sense pushes up and down), 4.3 (similarity by sense) and equation 1.

Letters in shapes: N words, L senses, D width of a sense, T tokens read, U different ones, C of a chunk, V vocabulary.
"""

import math
import textwrap
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import FuncNorm, LinearSegmentedColormap, PowerNorm
from matplotlib.figure import Figure
from torch import Tensor

from scratchlm.inspect.attention import CHARACTER, FONT, LARGEST, POINTS, looking, marks, short, write_labels
from scratchlm.model import LanguageModel

BESIDE = 4  # words beside each other in a picture
CHUNK = 1024  # tokens whose senses are there at once: 50 MB of them at 16 senses of width 768
Ranking = list[tuple[int, float]]  # tokens with a value each, the strongest first

UP, DOWN = "#0b3c6f", "#97290f"
STRENGTH = LinearSegmentedColormap.from_list("strength", mpl.colormaps["Blues"]([0.0, 0.2, 0.4]))  # dark text on it
SIGNED = mpl.colormaps["RdBu"]


@dataclass(frozen=True)
class Sense:
    """What one sense of a word does, whatever the context.

    `up` and `down` are the tokens whose logits it raises and lowers most where it goes in with weight 1; `spread` is
    the standard deviation of what it does to all logits: none is a sense that changes no probability. `neighbours` are
    the tokens whose same sense is nearest, by cosine. Units: nats, but for cosines.
    """

    up: Ranking
    down: Ranking
    spread: float
    neighbours: Ranking


@dataclass(frozen=True, eq=False)
class Contributions:
    """What each sense of each token read adds to one logit of the prediction after the last of them.

    A logit counts against those of other tokens only, so what a sense adds to all of them alike is left out: `added`
    sums to `logit - mean`, where `mean` is that of all logits.
    Shapes: weights (T, L), how much of each sense goes in; added (T, L), that times what the sense does to the logit
    beyond what it does to all logits in the mean.
    Units: nats.
    """

    target: int
    logit: float
    mean: float
    probability: float
    weights: Tensor
    added: Tensor


def token_senses(model: LanguageModel, tokens: Tensor) -> Tensor:
    """C(x) of each token. Shapes: (...) int64 -> (..., L, D). Raises ValueError where the model has no senses."""
    if not model.has_senses:
        raise ValueError(f"{type(model).__name__} has no senses; give a model whose class says has_senses")
    network: Any = model  # the promise of has_senses
    return network.senses(tokens)


def word_senses(model: LanguageModel, words: Sequence[Sequence[int]]) -> Tensor:
    """The senses of words by their tokens; of a word of several, for each sense the mean over its tokens.

    Shapes: -> (N, L, D). Raises ValueError where a word has no token.
    """
    if not all(words):
        raise ValueError("a word has no token; give each word one at least")
    device = next(model.parameters()).device
    with looking(model):
        return torch.stack([token_senses(model, torch.tensor(word, device=device)).mean(0) for word in words])


def similarities(senses: Tensor) -> Tensor:
    """The cosine of each two words, sense by sense; the least over senses is the paper's Sim_min.

    Shapes: (N, L, D) -> (N, N, L).
    """
    unit = F.normalize(senses, dim=-1)
    return torch.einsum("nld,mld->nml", unit, unit)


def look_up(
    model: LanguageModel, words: Sequence[Sequence[int]], vocabulary: Sequence[int], top: int = 10
) -> list[list[Sense]]:
    """What each sense of each word does, with `top` tokens out of `vocabulary` in each list.

    A word is no neighbour of itself, nor are its own tokens. Raises ValueError where a word has no token.
    """
    senses = word_senses(model, words)
    allowed = torch.tensor(vocabulary, device=senses.device)
    top = min(top, len(vocabulary))
    nearest = _nearest(model, senses, words, allowed, top)
    found = []
    for word, near in zip(senses, nearest, strict=True):
        found.append([Sense(*parts) for parts in zip(*pushed(model, word, vocabulary, top), near, strict=True)])
    return found


def pushed(
    model: LanguageModel, senses: Tensor, vocabulary: Sequence[int], top: int = 10
) -> tuple[list[Ranking], list[Ranking], list[float]]:
    """What each sense of a word pushes up and down most, `top` tokens out of `vocabulary` each, and its spread.

    Shapes: senses (L, D) -> lists of L.
    """
    allowed, top = torch.tensor(vocabulary, device=senses.device), min(top, len(vocabulary))
    with torch.no_grad():
        scores = model.readout(senses)[:, allowed]  # (L, V)
    up, down = (scores.topk(top, largest=largest) for largest in (True, False))
    lists = [_rankings(values, allowed[at]) for values, at in (up, down)]
    return lists[0], lists[1], scores.std(-1, correction=0).tolist()


def _nearest(
    model: LanguageModel, senses: Tensor, words: Sequence[Sequence[int]], allowed: Tensor, top: int
) -> list[list[Ranking]]:
    """The nearest tokens by each sense, without ever holding the senses of the whole vocabulary."""
    unit = F.normalize(senses, dim=-1)  # (N, L, D)
    own = torch.zeros(len(words), int(allowed.max()) + 1, dtype=torch.bool, device=allowed.device)
    for row, word in zip(own, words, strict=True):
        row[[token for token in word if token < len(row)]] = True
    best = unit.new_empty(*unit.shape[:2], 0)
    tokens = allowed.new_empty(*unit.shape[:2], 0)
    for chunk in allowed.split(CHUNK):
        with looking(model):
            others = F.normalize(token_senses(model, chunk), dim=-1)  # (C, L, D)
        cosines = torch.einsum("nld,cld->nlc", unit, others).masked_fill(own[:, None, chunk], -torch.inf)
        best, tokens = torch.cat([best, cosines], -1), torch.cat([tokens, chunk.expand_as(cosines)], -1)
        best, kept = best.topk(min(top, best.shape[-1]))
        tokens = tokens.gather(-1, kept)
    return [_rankings(*both) for both in zip(best, tokens, strict=True)]


def _rankings(values: Tensor, tokens: Tensor) -> list[Ranking]:
    """Lists of tokens with their values, a list a sense, without those that were ruled out. Shapes: (L, top) both."""
    rows = zip(tokens.tolist(), values.tolist(), strict=True)
    return [[pair for pair in zip(*row, strict=True) if pair[1] != -torch.inf] for row in rows]


def contributions(model: LanguageModel, tokens: Sequence[int], targets: Sequence[int]) -> Contributions:
    """What each sense of these tokens adds to a logit of the prediction after them: the largest among `targets`.

    weight * (E_target C - mean_v E_v C), which all together are the logit less the mean of all logits.
    Raises ValueError where there is no token, or where they do not fit the model's context.
    Paper: equation 1, with E applied to each part of the sum, which it may be as there is nothing between.
    """
    if not tokens:
        raise ValueError("a prediction comes after a token; give one at least")
    device = next(model.parameters()).device
    read = torch.tensor([tokens], device=device)
    unique, index = read[0].unique(return_inverse=True)
    with looking(model) as shown:
        features, _ = model(read)
        logits = model.readout(features[0, -1])  # (V,)
        target = targets[int(logits[list(targets)].argmax())]
        with torch.enable_grad():  # a readout is linear, so this gradient is the target's row of E less the mean row
            last = features[0, -1].requires_grad_()
            each = model.readout(last)
            (direction,) = torch.autograd.grad(each[target] - each.mean(), last)  # (D,)
        effects = (token_senses(model, unique) @ direction)[index]  # (T, L)
    weights = shown["contextualisation.weights"][0][0, :, -1].mT  # (T, L)
    return Contributions(
        target=target,
        logit=logits[target].item(),
        mean=logits.mean().item(),
        probability=logits.softmax(-1)[target].item(),
        weights=weights.cpu(),
        added=(weights * effects).cpu(),
    )


# --- pictures, in inches -----------------------------------------------------------------------------------------


def _page(width: float, height: float, about: str) -> tuple[Figure, Callable[..., Axes]]:
    """A figure with these words above `height`, where the rest begins, and a function that places axes below there."""
    points = min(max(9, 0.6 * width), 14)
    lines = textwrap.wrap(about, int((width - 0.3) * 72 / (0.53 * points)))
    top = 0.15 + len(lines) * 1.4 * points / 72
    height += top
    figure = Figure(figsize=(width, height))
    figure.text(0.15 / width, 1 - 0.12 / height, "\n".join(lines), size=points, va="top", linespacing=1.3,
                parse_math=False)  # fmt: skip

    def axes(x: float, y: float, w: float, h: float) -> Axes:
        placed = figure.add_axes((x / width, 1 - (top + y + h) / height, w / width, h / height))
        placed.spines[:].set_linewidth(0.5)
        placed.tick_params(length=0)
        return placed

    return figure, axes


def _scale(figure: Figure, bar: Axes, colours: ScalarMappable, label: str) -> None:
    figure.colorbar(colours, cax=bar)
    bar.set_ylabel(label, size=8)
    bar.tick_params(labelsize=7, length=2)


def _width(text: str) -> int:
    """Columns of a text in a font of one width, in which East Asian characters take two."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


def _fill(labels: Sequence[str], columns: int) -> str:
    """As many of the labels as there is room for, one at least."""
    line = ""
    for label in short(labels):
        longer = f"{line}\u00a0\u00a0{label}" if line else label  # a browser would make one space of two
        if line and _width(longer) > columns:
            break
        line = longer
    return line


def senses_figure(
    words: Sequence[str], senses: Sequence[Sequence[Sense]], label: Callable[[int], str], about: str = ""
) -> Figure:
    """Words by senses: in each cell the tokens that the sense pushes up most, and below those that it pushes down.

    The shade is the sense's spread. `label` writes a token; `about` is said besides what is said of any words.
    """
    lists = [[[[label(token) for token, _ in part] for part in (one.up, one.down)] for one in word] for word in senses]
    explained = (
        "What each sense does to the logits wherever its word occurs. "
        "\u25b2 tokens it pushes up most, \u25bc tokens it pushes down most: the strongest first, as many as fit. "
        "Shade: how strongly it tells tokens apart, the standard deviation of what it adds to all logits; "
        "the scale is this picture's own. "
        "How much of a sense goes into a prediction, the context decides."
    ) + marks([token for word in lists for one in word for part in one for token in part])
    spreads = torch.tensor([[one.spread for one in word] for word in senses])  # (N, L)
    bands = math.ceil(len(words) / BESIDE)
    beside, rows, column = math.ceil(len(words) / bands), len(senses[0]), 3.6
    row = min(0.4, LARGEST / rows / bands)
    high = 0.45 + row * rows  # of a band
    figure, axes = _page(0.7 + column * beside + 1.1, high * bands + 0.25, f"{explained} {about}".strip())
    norm = PowerNorm(0.5, 0, spreads.max().item() or 1)
    for band in range(bands):
        part = slice(band * beside, (band + 1) * beside)
        panel = axes(0.7, 0.4 + high * band, column * len(words[part]), row * rows)
        panel.imshow(spreads[part].T.numpy(), cmap=STRENGTH, norm=norm, aspect="auto", interpolation="nearest")
        _write_senses(panel, words[part], lists[part], column, POINTS * min(1, row / 0.4))
    bar = axes(0.7 + column * beside + 0.2, 0.4, 0.15, min(2.0, row * rows))
    _scale(figure, bar, ScalarMappable(norm, STRENGTH), "standard deviation (nats)")
    return figure


def _write_senses(
    panel: Axes, words: Sequence[str], lists: Sequence[Sequence[Sequence[Sequence[str]]]], column: float, points: float
) -> None:
    """The words above their columns, and in each cell the two lists of its sense."""
    font: dict[str, Any] = {"family": FONT, "parse_math": False}  # "$" in a token begins no formula
    rows, room = len(lists[0]), int((column - 0.15) / (1.05 * CHARACTER * points / POINTS))  # pixels are whole
    for at, word in enumerate(lists):
        for sense, parts in enumerate(word):
            for part, mark, colour, lift in zip(parts, "\u25b2\u25bc", (UP, DOWN), (-0.22, 0.22), strict=True):
                text = f"{mark} {_fill(part, room - 2)}"
                x = at - 0.5 + 0.07 / column
                panel.text(x, sense + lift, text, size=points, color=colour, va="center", clip_on=True, **font)
    panel.set_xticks(range(len(words)), short(words, 36), size=10, weight="bold", **font)
    panel.xaxis.tick_top()
    panel.set_yticks(range(rows), [f"sense {sense}" for sense in range(rows)], size=1.07 * points)
    for edge in range(1, rows):
        panel.axhline(edge - 0.5, color="white", linewidth=1)
    for edge in range(1, len(words)):
        panel.axvline(edge - 0.5, color="white", linewidth=4)


def contributions_figure(shown: Contributions, tokens: Sequence[str], target: str) -> Figure:
    """Tokens by senses: what each adds to the target's logit, with the sums of rows and columns as bars.

    All bars have one scale.
    """
    count, senses = shown.added.shape
    tokens = short(tokens)
    cell, column = min(max(0.18, 1.6 / count), 0.34, LARGEST / count), min(0.34, LARGEST / senses)
    explained = (
        f"What comes right after these tokens: how much each sense of each token adds to the logit of {target}, beyond "
        "what it adds to all logits in the mean. A cell is that times the weight that the context gives the sense: "
        f"blue speaks for this token, red against it. All cells together are {shown.logit - shown.mean:.2f}, the logit "
        f"({shown.logit:.2f}) less the mean of all logits ({shown.mean:.2f}); the probability is "
        f"{shown.probability:.1%}. Bars: the sum of each row and of each column, on one scale."
    ) + marks([*tokens, target])
    left, bars = 0.3 + CHARACTER * max(map(len, tokens)), 1.2
    width, height = max(column * senses, 2.0), max(cell * count, 0.3)
    figure, axes = _page(left + width + 0.15 + bars + 0.6 + 1.1, 0.5 + height + 0.15 + bars + 0.7, explained)
    panel = axes(left, 0.45, width, height)
    most = shown.added.abs().max().item() or 1
    norm = FuncNorm((_signed_root, _signed_square), -most, most)  # one large cell would make the others look white
    panel.imshow(shown.added.numpy(), cmap=SIGNED, norm=norm, aspect="auto", interpolation="nearest")
    write_labels(panel, tokens, [], cell, upright=True)
    panel.set_xticks(range(senses), map(str, range(senses)), size=POINTS)
    panel.xaxis.tick_top()
    panel.xaxis.set_label_position("top")
    panel.set_xlabel("sense", size=8)
    of_tokens, of_senses = shown.added.sum(1), shown.added.sum(0)
    every = torch.cat([of_tokens, of_senses, of_tokens.new_zeros(1)])
    room = 0.02 * (every.max() - every.min()).item() or 1
    limits = every.min().item() - room, every.max().item() + room  # of both, whose bars are as long in inches too
    beside = axes(left + width + 0.15, 0.45, bars, height)
    _bars(beside, of_tokens, limits, map(int, panel.get_yticks()), along="y")
    below = axes(left, 0.45 + height + 0.15, width, bars)
    _bars(below, of_senses, limits, range(senses), along="x")
    bar = axes(left + width + 0.15 + bars + 0.65, 0.45, 0.13, min(2.0, max(height, 1.0)))
    _scale(figure, bar, ScalarMappable(norm, SIGNED), "added, less the mean (nats)")
    bar.set_yticks([-most, -most / 4, 0, most / 4, most], [f"{most * part:.2g}" for part in (-1, -0.25, 0, 0.25, 1)])
    return figure


def _signed_root(x: Any) -> Any:
    return np.sign(x) * np.sqrt(np.abs(x))


def _signed_square(x: Any) -> Any:
    return np.sign(x) * np.square(x)


def _signed(value: float) -> str:
    """Two digits, so that a small one is not written as zero."""
    return f"{value:+.2g}" if abs(value) < 99 else f"{value:+.0f}"


def _bars(
    panel: Axes, sums: Tensor, limits: tuple[float, float], numbered: Iterable[int], *, along: Literal["x", "y"]
) -> None:
    """A bar for each row (along y) or column (along x) of the panel beside it, some of them with their numbers."""
    values, numbered = sums.tolist(), list(numbered)
    ends = (-0.5, len(values) - 0.5)
    colours = [SIGNED(0.85 if value > 0 else 0.15) for value in values]
    font: dict[str, Any] = {"labels": [_signed(values[at]) for at in numbered], "size": POINTS - 1, "family": FONT}
    if along == "y":
        panel.barh(range(len(values)), values, color=colours)
        panel.axvline(0, color="black", linewidth=0.5)
        panel.set(ylim=ends[::-1], xlim=limits, xticks=[])
        panel.set_yticks(numbered, **font)
        panel.yaxis.tick_right()
    else:
        panel.bar(range(len(values)), values, color=colours)
        panel.axhline(0, color="black", linewidth=0.5)
        panel.set(xlim=ends, ylim=limits, yticks=[])
        panel.set_xticks(numbered, rotation=90, **font)
    panel.spines[:].set_visible(False)
