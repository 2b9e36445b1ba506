"""scratchlm data: corpora by name."""

from collections import Counter
from typing import Annotated

from cyclopts import App, Parameter

from scratchlm.cli.flags import Int
from scratchlm.data import corpora
from scratchlm.errors import InputError

app = App(name="data", help="List, show and fetch corpora.", version_flags=[])


@app.command(name="list")
def list_() -> int:
    """List the corpora, and whether they are on this machine."""
    for name, chosen in corpora.CORPORA.items():
        here = "here" if corpora.available(name) else "to be fetched"
        print(f"{name:<18} {here:<14} {chosen.about}")
    return 0


@app.command
def show(name: str, /, *, characters: Int = 500) -> int:
    """Show where a corpus comes from, and how it starts.

    Parameters
    ----------
    name
        The corpus.
    characters
        Of its text.
    """
    chosen = corpora.corpus(name)
    if characters < 0:
        raise InputError(f"--characters is {characters}; it must be 0 or more")
    for title, value in (("about", chosen.about), ("source", chosen.source), ("licence", chosen.licence)):
        print(f"{title:<8} {value}")
    print(f"sha256   {chosen.sha256}")
    if corpora.available(name):
        text = corpora.get(name)
        print(f"size     {len(text):,} characters, {len(set(text))} distinct")
        if chosen.pairs:
            splits = Counter(line.partition("\t")[0] for line in text.removesuffix("\n").split("\n"))
            print("pairs    " + ", ".join(f"{count:,} {split}" for split, count in splits.items()))
        print(f"\n{text[:characters]}")
    else:
        print(f"\nnot on this machine yet: scratchlm data get {name}")
    return 0


@app.command
def get(name: str, /, *, from_: Annotated[str | None, Parameter(name="--from", show_default=False)] = None) -> int:
    """Fetch a corpus, unless it is here already.

    Parameters
    ----------
    name
        The corpus.
    from_
        A file that holds its text, for a machine without a network.
    """
    chosen = corpora.corpus(name)
    text = corpora.get(name, from_)
    print(f"{name}: {len(text):,} characters from {from_ or chosen.source}; licence: {chosen.licence}")
    return 0
