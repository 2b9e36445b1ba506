"""scratchlm tokenizer: train one, use it, look into it, and carry it from and to other libraries."""

import itertools
import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter
from rich.console import Console
from rich.table import Table
from rich.text import Text

from scratchlm import tokenizers
from scratchlm.cli import learning
from scratchlm.cli.flags import Int, OptionalInt
from scratchlm.data import corpora
from scratchlm.data.pairs import is_pairs, read_whole_pairs
from scratchlm.data.text import Errors, read_documents, stream_text
from scratchlm.errors import InputError
from scratchlm.interop.vocabularies import PUBLISHED, export_vocabulary, import_vocabulary, named_vocabulary
from scratchlm.tokenizers import BPETokenizer, PairTokenizer, Tokenizer
from scratchlm.tokenizers.bpe import VOCABULARY
from scratchlm.tokenizers.pair import Side
from scratchlm.tokenizers.shown import visible
from scratchlm.tokenizers.splitting import PATTERNS

app = App(
    name="tokenizer",
    help="Train tokenizers, use them, look into them, carry them to other libraries.",
    version_flags=[],
)

COLOURS = ("white on blue", "black on yellow", "white on magenta", "black on cyan")  # told apart by any terminal
Words = Annotated[list[str] | None, Parameter(negative_iterable=(), show_default=False, allow_leading_hyphen=True)]
AsJson = Annotated[bool, Parameter(name="--json", negative=())]
OptionalText = Annotated[str | None, Parameter(allow_leading_hyphen=True, show_default=False)]


@app.command
def train(
    *files: str,
    vocab_size: Int = VOCABULARY,
    pattern: str = "gpt4",
    ties: Literal["gpt2", "ids", "first"] = "gpt2",
    level: Literal["bytes", "characters"] = "bytes",
    coverage: float = 0.9995,
    special: Words = None,
    workers: OptionalInt = None,
    errors: Errors = "strict",
    out: str = "tokenizer.json",
) -> int:
    """Train a byte-pair encoding on files, folders or corpora. A text file may be larger than memory.

    Parameters
    ----------
    files
        Texts: files, folders, JSON lines, corpora by name; of pairs both sides.
    vocab_size
        Tokens: bytes, characters and merges. Special tokens come on top.
    pattern
        How a text is cut into chunks that no token crosses: gpt2, gpt4, o200k, none, or a regular expression.
    ties
        Which of two pairs that occur equally often is merged first: as transformers' tokenizers do (gpt2), as rustbpe
        does (ids), as minbpe does (first).
    level
        What is merged: bytes, or characters, of which rare ones are written in bytes.
    coverage
        Share of the text that single characters cover, at the level characters.
    special
        A special token, besides the one that ends a text. Given several times: several.
    workers
        Processes that count; without it as many as there are cores, for texts above 32 MB.
    errors
        Bytes that are not UTF-8: strict stops, replace puts U+FFFD there.
    out
        The tokenizer's file.
    """
    if not files:
        raise InputError("name the texts to learn from: files, folders, or corpora by name (scratchlm data list)")
    path = _new_file(out)
    if workers is None:
        paths = [path for name in files for path in (Path(name), *Path(name).rglob("*"))]
        size = sum(path.stat().st_size for path in paths if path.is_file())
        workers = (os.cpu_count() or 1) if size > 32 << 20 else 1
    steps = BPETokenizer.learn(
        _texts(files, errors), documents=True, vocab_size=vocab_size, pattern=pattern, ties=ties, level=level,
        coverage=coverage, special=special or [], workers=workers,
    )  # fmt: skip
    tokenizer = learning.follow(steps)
    _save(tokenizer, path)
    print(f"{path}: {_described(tokenizer)}")
    return 0


@app.command
def encode(
    tokenizer: str,
    text: OptionalText = None,
    /,
    *,
    side: Side | None = None,
    allow_special: Words = None,
    strict: bool = False,
    json_: AsJson = False,
) -> int:
    """Print the ids of a text.

    Parameters
    ----------
    tokenizer
        A tokenizer's file, a run's folder, or a vocabulary by name.
    text
        The text; without it, or with -, standard input.
    side
        source or target: the side of pairs that the text is of, where the two have tokenizers of their own.
    allow_special
        A special token that the text may have, or all. What is not allowed is ordinary text.
    strict
        Refuse a text that has a special token that is not allowed.
    json_
        Print one JSON object instead.
    """
    opened, read = _of_side(open_tokenizer(tokenizer), side, tokenizer), _text(text)
    if isinstance(opened, BPETokenizer):
        allowed = "all" if allow_special == ["all"] else allow_special or []
        ids = opened.encode(read, allowed_special=allowed, strict=strict)
    elif allow_special or strict:
        raise InputError(f"{tokenizer} is a {opened.kind} tokenizer, in which no text makes a special token")
    else:
        ids = opened.encode(read)
    print(json.dumps({"ids": ids, "bytes": len(read.encode())}) if json_ else " ".join(map(str, ids)))
    return 0


@app.command
def decode(
    tokenizer: str,
    *ids: Annotated[str, Parameter(allow_leading_hyphen=True)],
    special: bool = False,
    json_: AsJson = False,
) -> int:
    """Print the text of ids.

    Parameters
    ----------
    tokenizer
        A tokenizer's file, a run's folder, or a vocabulary by name.
    ids
        The ids; without them they are read from standard input.
    special
        Write special tokens by name, instead of leaving them out.
    json_
        Print one JSON object instead.
    """
    opened = open_tokenizer(tokenizer)
    words = " ".join(ids or [_text(None)]).replace(",", " ").split()
    try:
        numbers = [int(word) for word in words]
    except ValueError as error:
        raise InputError(f"ids are whole numbers, this is none: {error}") from error
    text = (
        opened.decode(numbers, special=True) if special and isinstance(opened, BPETokenizer) else opened.decode(numbers)
    )
    print(json.dumps({"text": text}, ensure_ascii=False) if json_ else text)
    return 0


@app.command
def show(tokenizer: str, text: OptionalText = None, /, *, side: Side | None = None, json_: AsJson = False) -> int:
    """Show how a text is cut into tokens: coloured, with ids, bytes, and the merges that made each.

    Parameters
    ----------
    tokenizer
        A tokenizer's file, a run's folder, or a vocabulary by name.
    text
        The text; without it, or with -, standard input.
    side
        source or target: the side of pairs that the text is of, where the two have tokenizers of their own.
    json_
        Print one JSON object instead.
    """
    opened, read = _of_side(open_tokenizer(tokenizer), side, tokenizer), _text(text)
    ids = opened.encode(read)
    if json_:
        tokens = [
            {"id": token, "bytes": opened.token_bytes(token).hex(), "made_of": _tree(opened, token)} for token in ids
        ]
        print(json.dumps({"tokens": tokens}, ensure_ascii=False))
        return 0
    console = Console(emoji=False, markup=False, highlight=False)
    pieces = Text()
    for number, token in enumerate(ids):
        shown = visible(opened.token_bytes(token))
        pieces.append(shown, style=COLOURS[number % len(COLOURS)])
        pieces.append("\n" if opened.token_bytes(token).endswith(b"\n") else "" if console.color_system else "|")
    console.print(pieces)
    table = Table(box=None, pad_edge=False)
    for column, justify in (("id", "right"), ("token", "left"), ("bytes", "left"), ("made of", "left")):
        table.add_column(column, justify=justify, overflow="fold")  # type: ignore[arg-type]
    for token in dict.fromkeys(ids):
        data = opened.token_bytes(token)
        table.add_row(str(token), visible(data), data.hex(" "), _tree(opened, token))
    console.print(table)
    size = len(read.encode())
    print(f"{len(ids):,} tokens for {size:,} bytes: {size / max(len(ids), 1):.2f} bytes per token")
    return 0


@app.command(name="export")
def export_(tokenizer: str, /, *, to: str, out: str | None = None) -> int:
    """Write a tokenizer's file for another library, which encodes alike with it.

    Parameters
    ----------
    tokenizer
        A tokenizer's file, a run's folder, or a vocabulary by name.
    to
        hf (the tokenizer.json of tokenizers and transformers), or, of byte-pair encodings, tiktoken or minbpe.
    out
        The file; without it tokenizer.tiktoken, tokenizer.hf.json or tokenizer.model.
    """
    names = {"tiktoken": "tokenizer.tiktoken", "hf": "tokenizer.hf.json", "minbpe": "tokenizer.model"}
    path = _new_file(names.get(to, to) if out is None else out)
    opened = open_tokenizer(tokenizer)
    export_vocabulary(opened, to, path)
    print(f"{path}: {_described(opened)}")
    if to == "tiktoken" and isinstance(opened, BPETokenizer):
        expression = PATTERNS.get(opened.pattern, opened.pattern)
        print(f"tiktoken wants besides: pat_str={expression!r}, special_tokens={opened.special_tokens!r}")
    return 0


@app.command(name="import")
def import_(
    path: str,
    /,
    *,
    pattern: str | None = None,
    special: Words = None,
    out: str = "tokenizer.json",
) -> int:
    """Make a tokenizer of another library's file, or of a published vocabulary by name: gpt2, cl100k, o200k.

    Parameters
    ----------
    path
        A .tiktoken file, a tokenizer.json of tokenizers, a .model of minbpe, GPT-2's vocab.bpe beside its encoder.json
        (or merges.txt beside vocab.json), a folder of these, or a published vocabulary's name.
    pattern
        How that vocabulary cuts text, where its file does not say it: gpt2, gpt4, o200k, none, or an expression.
    special
        A special token as NAME=ID, where the file does not say it. Given several times: several.
    out
        The tokenizer's file.
    """
    written = _new_file(out)
    named = path in PUBLISHED and not Path(path).exists()
    if named and (pattern is not None or special):
        raise InputError(f"the vocabulary {path} has a pattern and special tokens of its own; leave yours out")
    tokens = None if special is None else dict(map(_name_and_id, special))
    tokenizer = named_vocabulary(path) if named else import_vocabulary(path, pattern, tokens)
    _save(tokenizer, written)
    print(f"{written}: {_described(tokenizer)}")
    return 0


def _name_and_id(word: str) -> tuple[str, int]:
    name, equals, number = word.rpartition("=")
    if not equals or not number.isascii() or not number.isdigit():
        raise InputError(f"--special is {word!r}; give a name and its id, as in --special '<|endoftext|>=50256'")
    return name, int(number)


def open_tokenizer(name: str) -> Tokenizer:
    """The tokenizer of a file, of a run's folder, or of a published vocabulary."""
    path = Path(name)
    if name in PUBLISHED and not path.exists():
        return named_vocabulary(name)
    return tokenizers.load(path / "tokenizer.json" if path.is_dir() else path)


def _of_side(opened: Tokenizer, side: Side | None, name: str) -> Tokenizer:
    if side is None and isinstance(opened, PairTokenizer):
        raise InputError(
            f"{name} has a tokenizer for each side of pairs; say which the text is of: --side source or --side target"
        )
    return opened.source if side == "source" else opened.target if side == "target" else opened


def _tree(tokenizer: Tokenizer, token: int, depth: int = 32) -> str:
    """The merges that made a token, innermost first: ((t h) e). A part that lies deeper is shown as it is."""
    halves = tokenizer.halves(token) if isinstance(tokenizer, BPETokenizer) and depth else None
    if halves is None:
        return visible(tokenizer.token_bytes(token))
    return "(" + " ".join(_tree(tokenizer, half, depth - 1) for half in halves) + ")"


def _described(tokenizer: Tokenizer) -> str:
    special = list(tokenizer.special_tokens) if isinstance(tokenizer, BPETokenizer) else []
    return ", ".join([f"{tokenizer.vocab_size:,} tokens", *special])


def _texts(names: Iterable[str], errors: Errors) -> Iterable[Any]:
    """The documents that the names mean, large files in parts."""
    for name in names:
        path = Path(name)
        if is_pairs(name):
            learned = (pair for pair in read_whole_pairs(name, errors=errors) if pair.split in (None, "train"))
            yield from itertools.chain.from_iterable((pair.source, pair.target) for pair in learned)
        elif name not in ("", "-") and not path.exists() and not any(mark in name for mark in "./\\"):
            yield corpora.get(name)
        elif path.is_file() and path.suffix != ".jsonl":
            yield stream_text(name, errors)
        else:
            yield from read_documents(name, errors)


def _text(text: str | None) -> str:
    if text not in (None, "-"):
        return text
    if sys.stdin is None:
        raise InputError("standard input is closed; give the text as an argument")
    try:
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        raise InputError(f"standard input is not UTF-8: byte {error.start}") from error


def _new_file(out: str) -> Path:
    path = Path(out)
    if not out or path.exists():
        raise InputError(f"{out!r} is there already, or no name; name another file with --out")
    if not path.parent.is_dir():
        raise InputError(f"there is no folder {path.parent}; make it, or name another file with --out")
    if not os.access(path.parent, os.W_OK):
        raise InputError(f"the folder {path.parent} cannot be written; name another file with --out")
    return path


def _save(tokenizer: Tokenizer, path: Path) -> None:
    _new_file(str(path))  # it may have come while the tokenizer was trained
    try:
        tokenizer.save(path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}; name another file with --out") from error
