"""scratchlm data: corpora by name, and texts of any size as token shards."""

import os
from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter

from scratchlm import tokenizers
from scratchlm.cli import learning
from scratchlm.cli.flags import Int, OptionalInt
from scratchlm.data import corpora
from scratchlm.data.pieces import text_bytes
from scratchlm.data.prepare import Preparation
from scratchlm.data.prepare import prepare as start
from scratchlm.data.shards import SHARD_TOKENS, Prepared
from scratchlm.errors import InputError

WORTH_WORKERS = 32 << 20  # bytes from which on a process for each core is made up for

app = App(name="data", help="List, show and fetch corpora; make token shards of texts.", version_flags=[])


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


@app.command
def prepare(
    *files: Annotated[str, Parameter(allow_leading_hyphen=True)],
    out: str | None = None,
    tokenizer: str = "char",
    vocab_size: OptionalInt = None,
    split: Annotated[tuple[float, float, float], Parameter(negative_iterable=())] = (0.9, 0.05, 0.05),
    workers: OptionalInt = None,
    errors: Literal["strict", "replace"] = "strict",
    shard_tokens: Int = SHARD_TOKENS,
) -> int:
    """Make token shards of texts of any size, for train --data FOLDER: in parallel, in little memory.

    It may be stopped, or killed, at any time: the same command goes on.

    Parameters
    ----------
    files
        Texts: files, folders, JSON lines. A text is a document, and so is a line of JSON lines.
    out
        The folder of the shards.
    tokenizer
        A kind that is trained on the texts (char, symbols, byte, bpe), a published vocabulary (gpt2, cl100k, o200k), a
        tokenizer's file.
    vocab_size
        Tokens of a bpe tokenizer that is trained, special ones not counted; without it 1024.
    split
        Shares of training, validation and test text.
    workers
        Processes that read and encode; without it as many as there are cores, for texts above 32 MB.
    errors
        Bytes that are not UTF-8: strict stops, replace puts U+FFFD there.
    shard_tokens
        Tokens of a file.
    """
    if not files:
        raise InputError("name the texts: files, folders, or JSON lines")
    if not out:
        raise InputError("name the folder of the shards: --out shards")
    how = Preparation(
        tokenizer=_tokenizer(tokenizer), vocab_size=vocab_size, split=split, errors=errors, shard_tokens=shard_tokens
    )
    if workers is None:
        workers = min(os.cpu_count() or 1, 60) if text_bytes(files) > WORTH_WORKERS else 1  # Windows waits for no more
    try:
        manifest = learning.follow(start(files, Path(out), how, workers), "tokens")
    except KeyboardInterrupt:
        learning.console.print(f"stopped; the same command goes on, and what is in {out} is not made again")
        return 130
    _describe(Path(out), manifest)
    return 0


@app.command
def verify(folder: str, /) -> int:
    """Check every file of a folder of token shards against its hash.

    Parameters
    ----------
    folder
        What data prepare wrote.
    """
    prepared = Prepared(Path(folder))
    prepared.splits(hashed=True)
    _describe(Path(folder), prepared.manifest)
    print("every file is as its hash says")
    return 0


def _tokenizer(name: str) -> str | tokenizers.Tokenizer:
    """A kind, or the tokenizer that a name means."""
    from scratchlm.interop.vocabularies import PUBLISHED, named_vocabulary

    if name in tokenizers.Tokenizer.kinds:
        return name
    if name in PUBLISHED and not Path(name).is_file():
        return named_vocabulary(name)
    return tokenizers.exhaust(tokenizers.learn(name, (), documents=False))


def _describe(folder: Path, manifest: dict[str, Any]) -> None:
    """What is in a folder of shards, a line for each split."""
    for name, split in manifest["splits"].items():
        counts = f"{split['tokens']:>15,} tokens  {split['bytes']:>15,} bytes  {split['documents']:>9,} documents"
        print(f"{name:<11} {counts}  {len(split['shards'])} shards")
    print(f"{folder}: {manifest['vocab_size']:,} different tokens, {manifest['dtype']}")
