"""Boxes in boxes, and what flows between them, as SVG: plain shapes and text, no scripts, no addresses.

What follows on each other is joined by an arrow down the middle; what goes past something runs in a lane beside it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Literal

from scratchlm.inspect.tracing import Phase

PAD, GAP, LINE, LANE = 10, 22, 15, 14  # pixels: in a box, between two, of a line of text, from lane to lane
LETTER, BOLD = 6.4, 7.6  # pixels that a letter of a line, and of a name, takes at most, on average
DOT, PILL = 8, 22  # a sum's radius, height of a pill's first line
GUTTER = 44  # between the two columns of a model that reads a source
STYLE = """
.scratchlm text { font: 11px ui-sans-serif, system-ui, "Segoe UI", Helvetica, Arial, sans-serif; fill: #4a5763; }
.scratchlm .name { font-size: 12.5px; font-weight: 600; fill: #16202a; }
.scratchlm .kind { font-size: 11px; font-weight: 400; fill: #4a5763; }
.scratchlm .page { fill: #ffffff; stroke: none; }
.scratchlm rect { fill: #ffffff; stroke: #b8c4ce; }
.scratchlm .odd { fill: #f3f6f9; }
.scratchlm .product { fill: #e6eef6; stroke: #2f7fc1; }
.scratchlm .mark { stroke: none; fill: #8b6bb8; }
.scratchlm .embedding { fill: #2a9d6f; } .scratchlm .linear { fill: #2f7fc1; } .scratchlm .norm { fill: #c79a1e; }
.scratchlm path, .scratchlm circle { fill: none; stroke: #6c7a87; stroke-width: 1.3; }
.scratchlm .side { stroke: #d9652b; }
.scratchlm .tip { stroke: none; fill: #6c7a87; } .scratchlm .sidetip { stroke: none; fill: #d9652b; }
.scratchlm .label { fill: #b04a17; }
@media (prefers-color-scheme: dark) {
.scratchlm text { fill: #aebac6; } .scratchlm .name { fill: #eef3f7; }
.scratchlm .kind { fill: #aebac6; } .scratchlm .page { fill: #0f151b; }
.scratchlm rect { fill: #161d25; stroke: #42505d; } .scratchlm .odd { fill: #1e2732; }
.scratchlm .product { fill: #1b2d3e; stroke: #2f7fc1; } .scratchlm .label { fill: #f0925f; }
.scratchlm path, .scratchlm circle { stroke: #8b98a5; } .scratchlm .tip { fill: #8b98a5; }
.scratchlm .side { stroke: #e57d48; } .scratchlm .sidetip { fill: #e57d48; }
.scratchlm .mark { fill: #a58bd0; stroke: none; } .scratchlm .embedding { fill: #2fb380; }
.scratchlm .linear { fill: #4a94d4; } .scratchlm .norm { fill: #c79a1e; }
}
"""


@dataclass
class Item:
    """Something in a column: a module's box, a pill of products, or the dot of a sum.

    `lines`: its text, the name first, beside which its `kind` stands. `sources`: the items that it reads, by number,
    or -1, -2, ... for what the box around it is given, whose names are that box's `inputs`. `data`: what programs can
    read out of the picture.
    """

    what: Literal["module", "product", "sum"]
    lines: list[str] = field(default_factory=list)
    kind: str = ""
    sources: list[int] = field(default_factory=list)
    phases: list[Phase] = field(default_factory=list)
    inputs: list[str] = field(default_factory=list)
    inside: list["Item"] = field(default_factory=list)
    mark: str = ""
    data: dict[str, object] = field(default_factory=dict)


def draw(root: Item, title: str) -> str:
    """The text of an SVG file that shows a box with all that lies in it."""
    width, height = (side + 2 * PAD for side in _size(root))
    page = _Page()
    page.box(root, PAD, PAD, width - 2 * PAD, depth=0)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="scratchlm" viewBox="0 0 {width:.0f} {height:.0f}" '
        f'width="{width:.0f}" height="{height:.0f}" role="img" aria-label="{escape(title)}">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n"
        f'<rect class="page" width="{width:.0f}" height="{height:.0f}"/>\n' + "\n".join(page.parts) + "\n</svg>\n"
    )


def _columns(box: Item) -> tuple[list[int], list[int], list[int]]:
    """The items of a box that stand across both columns, in the source's, and in the other. Most have one column."""
    everything = range(len(box.inside))
    source = [at for at in everything if box.inside[at].phases == ["source"]]
    if not source or len({tuple(item.phases) for item in box.inside}) == 1:
        return [], [], list(everything)
    both = [at for at in everything if len(box.inside[at].phases) > 1]
    return both, source, [at for at in everything if at not in both and at not in source]


def _lanes(box: Item, column: Sequence[int]) -> dict[int, tuple[int, list[int]]]:
    """What goes past something in a column: source -> its lane, counted from the column, and who reads it there."""
    readers: dict[int, list[int]] = {}
    for place, at in enumerate(column):
        for source in box.inside[at].sources:
            before = column[place - 1] if place else -1
            if source != before and (source < 0 or source in column):
                readers.setdefault(source, []).append(at)
    lanes: dict[int, tuple[int, list[int]]] = {}
    for source in sorted(readers, key=lambda one: max(readers[one]) - one):
        span = (source, max(readers[source]))
        taken = {lane for other, (lane, to) in lanes.items() if other < span[1] and max(to) > span[0]}
        lanes[source] = next(lane for lane in range(len(readers)) if lane not in taken), readers[source]
    return lanes


def _text_width(lines: Sequence[str]) -> float:
    widths = [len(line) * (LETTER if number else BOLD) for number, line in enumerate(lines)]
    return max(widths, default=0)


def _column_size(box: Item, column: Sequence[int]) -> tuple[float, float]:
    if not column:
        return 0, 0
    sizes = [_size(box.inside[at]) for at in column]
    lanes = _lanes(box, column)
    side = LANE * (1 + max((lane for lane, _ in lanes.values()), default=-1)) + (6 if lanes else 0)
    return side + max(width for width, _ in sizes), sum(height for _, height in sizes) + GAP * len(sizes)


def _size(item: Item) -> tuple[float, float]:
    """Width and height that an item needs."""
    if item.what == "sum":
        return 2 * DOT, 2 * DOT
    if item.what == "product":
        return _text_width(["", *item.lines]) + 4 * PAD, PILL + LINE * (len(item.lines) - 1)
    title = len(item.lines[0]) * BOLD + len(item.kind) * LETTER + PAD
    width, height = max(title, _text_width(item.lines)) + 2 * PAD + 6, LINE * len(item.lines) + 1.2 * PAD
    if item.inside:
        top, left, right = (_column_size(item, column) for column in _columns(item))
        beside = left[0] + right[0] + (GUTTER if left[0] else 0)
        width = max(width, 2 * PAD + max(top[0], beside))
        height += top[1] + max(left[1], right[1]) + PAD / 2
    return width, height


class _Page:
    """Draws into a list of elements."""

    def __init__(self) -> None:
        self.parts: list[str] = []

    def box(self, item: Item, x: float, y: float, width: float, depth: int) -> None:
        """A box that is as wide as told and as high as it must be."""
        height = _size(item)[1]
        data = "".join(f' data-{key}="{escape(str(value))}"' for key, value in item.data.items())
        self.parts.append(f"<g{data}>")
        odd = "odd" if depth % 2 else "even"
        self.parts.append(
            f'<rect class="{odd}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" rx="6"/>'
        )
        if item.mark:
            self.parts.append(
                f'<rect class="mark {item.mark}" x="{x:.1f}" y="{y + 6:.1f}" width="4" height="{height - 12:.1f}"/>'
            )
        for number, line in enumerate(item.lines):
            kind = "" if number else item.kind
            self.text(line, x + PAD + 4, y + PAD + LINE * (number + 0.5) - 1, "" if number else "name", kind=kind)
        if item.inside:
            self._inside(item, x + PAD, y + LINE * len(item.lines) + 0.7 * PAD, width - 2 * PAD, depth)
        self.parts.append("</g>")

    def text(self, line: str, x: float, y: float, of: str = "", anchor: str = "", kind: str = "") -> None:
        """A line of text, and behind it the kind of what it names."""
        told = (f' class="{of}"' if of else "") + (f' text-anchor="{anchor}"' if anchor else "")
        behind = f' <tspan class="kind" dx="4">{escape(kind)}</tspan>' if kind else ""
        self.parts.append(f'<text x="{x:.1f}" y="{y:.1f}"{told}>{escape(line)}{behind}</text>')

    def line(self, points: Sequence[tuple[float, float]], of: str = "", tip: str = "") -> None:
        """A line along some points, with a tip, `down` or `right`, at its end."""
        path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
        told = f' class="{of}"' if of else ""
        self.parts.append(f'<path{told} d="{path}"/>')
        if tip:
            x, y = points[-1]
            corners = {"down": (-4, -6, 4, -6), "right": (-6, -4, -6, 4), "left": (6, -4, 6, 4)}[tip]
            one, other = (f"{x + corners[at]:.1f} {y + corners[at + 1]:.1f}" for at in (0, 2))
            self.parts.append(f'<path class="{of}tip" d="M{x:.1f} {y:.1f}L{one}L{other}Z"/>')

    def _inside(self, box: Item, x: float, y: float, width: float, depth: int) -> None:
        both, source, rest = _columns(box)
        places: dict[int, tuple[float, float, float]] = {}  # of each item: its middle, top and bottom
        if both:
            self._column(box, both, x, y, width, depth, places)
            y += _column_size(box, both)[1]
        if source:
            own, other = _column_size(box, source)[0], _column_size(box, rest)[0]
            spare = (width - own - other - GUTTER) / 2
            self._column(box, source, x, y, own + spare, depth, places)
            self._column(box, rest, x + own + spare + GUTTER, y, other + spare, depth, places)
            self._across(box, (both, source, rest), places, x + own + spare + GUTTER / 2)
        else:
            self._column(box, rest, x, y, width, depth, places)

    def _across(
        self,
        box: Item,
        columns: tuple[list[int], list[int], list[int]],
        places: dict[int, tuple[float, float, float]],
        gutter: float,
    ) -> None:
        """What runs from one column into another."""
        both, source, rest = columns
        for at in (*source, *rest):
            for one in box.inside[at].sources:
                middle, top, _ = places[at]
                if one in both:
                    bottom = places[one][2]
                    self.line([(middle, bottom), (middle, top)], tip="down")
                elif at in rest and one in source:
                    from_middle, _, bottom = places[one]
                    left = gutter + GUTTER / 2
                    path = [(from_middle, bottom), (from_middle, bottom + GAP / 2), (gutter, bottom + GAP / 2)]
                    self.line([*path, (gutter, top + 14), (left, top + 14)], "side", "right")

    def _column(
        self,
        box: Item,
        column: Sequence[int],
        x: float,
        y: float,
        width: float,
        depth: int,
        places: dict[int, tuple[float, float, float]],
    ) -> None:
        lanes = _lanes(box, column)
        side = LANE * (1 + max((lane for lane, _ in lanes.values()), default=-1)) + (6 if lanes else 0)
        left, middle, start = x + side, x + side + (width - side) / 2, y
        for place, at in enumerate(column):
            item = box.inside[at]
            y += GAP
            wide, high = _size(item)
            if (column[place - 1] if place else -1) in item.sources:
                self.line([(middle, y - GAP), (middle, y)], tip="down")
            places[at] = (middle, y, y + high)
            if item.what == "module":
                self.box(item, left, y, width - side, depth + 1)
            elif item.what == "product":
                self.parts.append(
                    f'<rect class="product" x="{middle - wide / 2:.1f}" y="{y:.1f}" width="{wide:.1f}" '
                    f'height="{high:.1f}" rx="11"/>'
                )
                for number, line in enumerate(item.lines):
                    self.text(line, middle, y + 15 + LINE * number, anchor="middle")
            else:
                self.parts.append(f'<circle cx="{middle:.1f}" cy="{y + DOT:.1f}" r="{DOT}"/>')
                self.line([(middle - 4, y + DOT), (middle + 4, y + DOT)])
                self.line([(middle, y + DOT - 4), (middle, y + DOT + 4)])
            y += high
        for source, (lane, readers) in lanes.items():
            at_x = left - 8 - LANE * lane
            if source >= 0:
                begin = places[source][2] + 7
                path = [(middle, begin - 7), (middle, begin), (at_x, begin)]
            elif source == -1:
                path = [(middle, start), (middle, start + 12), (at_x, start + 12)]
            else:
                path = [(at_x, start)]
                self.text(box.inputs[-source - 1], at_x + 4, start + 8, "label")
            for reader in readers:
                item, (_, top, _) = box.inside[reader], places[reader]
                wide, high = _size(item)
                edge = left if item.what == "module" else middle - wide / 2
                to = top + min(14, high / 2)
                self.line([*path, (at_x, to), (edge, to)], "side", "right")
