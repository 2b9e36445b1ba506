"""Documents out of a file, a folder, JSON lines or standard input, as UTF-8 and nothing else."""

import codecs
import io
import itertools
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

from scratchlm.errors import InputError

Errors = Literal["strict", "replace"]
STREAMED = 1 << 20  # bytes that are read at once
SUFFIXES = (".txt", ".text", ".md", ".jsonl")  # what is read of a folder


def read_documents(source: str, errors: Errors = "strict") -> list[str]:
    r"""The documents that a path, or "-" for standard input, holds.

    A text is one document, a folder one or more for each of its texts, JSON lines one for each line. A byte order
    mark is dropped, line ends become "\\n". Raises InputError with the file and the place of what is wrong.
    """
    if not source:
        raise InputError("--data is empty; give a corpus by name, a file, a folder, or - for standard input")
    if source == "-":
        if sys.stdin is None:
            raise InputError("standard input is closed; give a file with --data FILE")
        return _documents(sys.stdin.buffer.read(), "standard input", jsonl=False, errors=errors)
    path = Path(source)
    if not path.is_dir():
        return _documents(_bytes(path), str(path), path.suffix == ".jsonl", errors)
    files = sorted(file for file in path.rglob("*") if file.suffix in SUFFIXES and file.is_file())
    files = [file for file in files if not any(part.startswith(".") for part in file.relative_to(path).parts)]
    documents = [
        document
        for file in files
        for document in _documents(_bytes(file), str(file), file.suffix == ".jsonl", errors, empty=True)
    ]
    if not documents:
        raise InputError(
            f"the folder {path} has no text: none of its files that end in {', '.join(SUFFIXES)} holds any"
        )
    return documents


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error


def _documents(data: bytes, name: str, jsonl: bool, errors: Errors, empty: bool = False) -> list[str]:
    text = _decode(data, name, errors)
    documents = (
        [_field(line, f"{name}, line {number}") for number, line in enumerate(text.split("\n"), 1) if line.strip()]
        if jsonl
        else [text]
    )
    documents = [document for document in documents if document]
    if not documents and not empty:
        raise InputError(f"{name} is empty; give a text to learn from")
    return documents


def _decode(data: bytes, name: str, errors: Errors) -> str:
    return "".join(_decoded([data], name, errors))


def _decoded(parts: Iterable[bytes], name: str, errors: Errors) -> Iterator[str]:
    r"""The text of bytes that come in parts: UTF-8 without a byte order mark, line ends as \n."""
    utf8 = codecs.getincrementaldecoder("utf-8")(errors)
    decoder = io.IncrementalNewlineDecoder(utf8, translate=True)  # a line's end may lie between two parts
    at, first = 0, True
    for part in itertools.chain(parts, [None]):
        data = b"" if part is None else part
        if at == 0 and data.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise InputError(f"{name} is UTF-16, as its first two bytes say; save it as UTF-8")
        null = data.find(b"\0")
        if null >= 0:
            raise InputError(f"{name} is binary: byte {at + null} is zero; give a text in UTF-8")
        pending = len(utf8.getstate()[0])  # bytes of a character that the part before has begun
        try:
            text = decoder.decode(data, final=part is None)  # type: ignore[bad-argument-type] - the stubs want text
        except UnicodeDecodeError as error:
            raise InputError(
                f"{name} is not UTF-8: byte {at - pending + error.start} is 0x{error.object[error.start]:02x} "
                f"({error.reason}); save it as UTF-8, or give --errors replace to put U+FFFD there"
            ) from error
        if text:
            yield text.removeprefix("\ufeff") if first else text
            first = False
        at += len(data)


def stream_text(path: str, errors: Errors = "strict") -> Iterator[str]:
    """A text file, or standard input for "-", in parts, so that it may be larger than memory.

    Raises InputError as `read_documents` does; an empty text is none.
    """
    if path == "-":
        if sys.stdin is None:
            raise InputError("standard input is closed; give a file")
        yield from _decoded(iter(lambda: sys.stdin.buffer.read(STREAMED), b""), "standard input", errors)
        return
    try:
        with Path(path).open("rb") as file:
            yield from _decoded(iter(lambda: file.read(STREAMED), b""), path, errors)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error


def _field(line: str, place: str) -> str:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{place} is not JSON: {error}") from error
    text = value.get("text") if isinstance(value, dict) else value
    if not isinstance(text, str):
        raise InputError(f'{place} has no text: give {{"text": "..."}} or a string on each line')
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{place} has {text[error.start]!r}, which is half a surrogate pair") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")
