"""What a benchmark leaves: results.json, table.md, and its ratios as a chart."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from scratchlm.bench import GROUPS
from scratchlm.bench.measure import Row
from scratchlm.files import replace_file, write_json
from scratchlm.inspect.curves import COLOURS, MARKERS, save_figure


def results_of(rows: Iterable[Row]) -> dict[str, Any]:
    """Rows as JSON has them."""
    return {"rows": [row.json() for row in rows]}


def write(results: Mapping[str, Any], folder: Path) -> None:
    """Write results.json, table.md and ratios as svg and png into a folder."""
    write_json(folder / "results.json", results)
    replace_file(folder / "table.md", table(results["rows"]).encode())
    if any(row["ratio"] is not None for row in results["rows"]):
        save_figure(figure(results["rows"]), folder / "ratios")


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table in Markdown for each group, and what they were measured on."""
    parts = []
    for group in GROUPS:
        own = [row for row in rows if row["group"] == group]
        if not own:
            continue
        against = any(row["peer"] for row in own)
        head = ["what", "here", "against", "ratio (quartiles)"] if against else ["what", "here", "quartiles"]
        lines = [[row["what"], ours(row), *((theirs(row), ratio(row)) if against else (between(row),))] for row in own]
        parts.append(f"{group.capitalize()}, {conditions(own)}:\n\n" + _markdown([head, *lines]))
    return "\n".join(parts)


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    head, *rest = (f"| {' | '.join(line)} |\n" for line in lines)
    return head + "|" + "---|" * len(lines[0]) + "\n" + "".join(rest)


def number(value: float) -> str:
    """Three digits, and all before the point."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def ours(row: Mapping[str, Any]) -> str:
    """Our value with what follows from it."""
    figures = row["figures"]
    parts = [f"{number(row['ours'])} {row['unit']}"]
    parts += [f"{number(figures['tokens_per_second'])} tokens/s"] if "tokens_per_second" in figures else []
    parts += [f"{number(figures['megabytes_per_second'])} MB/s"] if "megabytes_per_second" in figures else []
    parts += [f"MFU {figures['mfu']:.0%}"] if "mfu" in figures else []
    parts += [f"{figures['share_of_peak']:.0%} of its peak"] if "share_of_peak" in figures else []
    return ", ".join(parts)


def theirs(row: Mapping[str, Any]) -> str:
    """The peer and its value, or why it has none."""
    if row["peer"] is None:
        return "-"
    return row["peer"] + (f": {number(row['theirs'])} {row['unit']}" if row["ratio"] is not None else "")


def between(row: Mapping[str, Any]) -> str:
    """The quartiles."""
    first, third = row["quartiles"]
    return f"{number(first)} to {number(third)}"


def ratio(row: Mapping[str, Any]) -> str:
    """The ratio with its spread and what was asked of it, or why there is none."""
    if row["peer"] is None:
        return "-"
    if row["ratio"] is None:
        return row["status"]
    asked = "" if row["asked"] is None else f", asked {row['asked']:.2f}"
    return f"{row['ratio']:.2f} ({row['quartiles'][0]:.2f} to {row['quartiles'][1]:.2f}{asked})"


def conditions(rows: Sequence[Mapping[str, Any]]) -> str:
    """What the rows were measured on, how often and when."""
    device, _, name = rows[0]["device"].partition(": ")
    plural = "s" if any(row["threads"] > 1 for row in rows) else ""
    threads = f", {_range(rows, 'threads')} thread{plural}" if device == "cpu" else ""
    versions = {package: version for row in rows for package, version in row["versions"].items()}
    packages = ", ".join(f"{package} {version}" for package, version in versions.items())
    return f"{name}{threads}, medians of {_range(rows, 'repeats')}, {_range(rows, 'date')}, {packages}"


def _range(rows: Sequence[Mapping[str, Any]], name: str) -> str:
    """What the rows have under a name: the one value, or the least and the most."""
    values = [row[name] for row in rows]
    least, most = min(values), max(values)
    return f"{least}" if least == most else f"{least} to {most}"


def figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Our time over the peer's for each row that has a ratio: a point, hollow where it is no contest.

    A bar shows its quartiles, a black line the ratio that is asked for.
    """
    drawn = [row for row in rows if row["ratio"] is not None][::-1]
    drawing = Figure(figsize=(9.6, 1.0 + 0.28 * len(drawn)), layout="constrained")
    axes = drawing.subplots()
    axes.axvline(1, color="#7a7f87", linewidth=1)
    for place, row in enumerate(drawn):
        index = GROUPS.index(row["group"])
        colour, (first, third) = COLOURS[index], row["quartiles"]
        axes.plot([first, third], [place, place], color=colour, linewidth=3, alpha=0.5)
        filling = colour if row["contest"] else "white"
        axes.plot(
            row["ratio"], place, color=colour, marker=MARKERS[index], markerfacecolor=filling, markersize=6,
            linestyle="",
        )  # fmt: skip
        label, at = f"{row['ratio']:.2f}", (max(row["ratio"], third), place)
        axes.annotate(label, at, xytext=(6, 0), textcoords="offset points", va="center", fontsize=7)
        if row["asked"] is not None:
            axes.plot(row["asked"], place, color="black", marker="|", markersize=10)
    names = [f"{row['what']}, against {row['peer']}" for row in drawn]
    axes.set_yticks(range(len(drawn)), names, fontsize=7, parse_math=False)
    axes.set_ylim(-0.8, len(drawn) - 0.2)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    label = "our time over theirs: left of 1 ours is faster; hollow: what a part of ours costs, no contest"
    drawing.supxlabel(label, fontsize=9)
    axes.grid(axis="x", alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return drawing
