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
        documents = _documents(sys.stdin.buffer.read(), "standard input", jsonl=False, errors=errors)
        if not documents:
            raise no_text("standard input")
        return documents
    path = Path(source)
    documents = [
        document
        for file in text_files(path)
        for document in _documents(_bytes(file), str(file), file.suffix == ".jsonl", errors)
    ]
    if not documents:
        raise no_text(path)
    return documents


def text_files(path: Path) -> list[Path]:
    """The files that a path means: itself, or the texts of a folder in order, without hidden ones."""
    if not path.is_dir():
        return [path]
    files = sorted(file for file in path.rglob("*") if file.suffix in SUFFIXES and file.is_file())
    return [file for file in files if not any(part.startswith(".") for part in file.relative_to(path).parts)]


def no_text(path: Path | str) -> InputError:
    """The error for a file or a folder that holds no document."""
    if Path(path).is_dir():
        ends = ", ".join(SUFFIXES)
        return InputError(f"the folder {path} has no text: none of its files that end in {ends} holds any")
    return InputError(f"{path} is empty; give a text to learn from")


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error


def _documents(data: bytes, name: str, jsonl: bool, errors: Errors) -> list[str]:
    text = decode(data, name, errors)
    documents = (
        [read_line(line, f"{name}, line {number}") for number, line in enumerate(text.split("\n"), 1) if line.strip()]
        if jsonl
        else [text]
    )
    return [document for document in documents if document]


def decode(data: bytes, name: str, errors: Errors, at: int = 0) -> str:
    """The text of bytes, or of a stretch of them that starts at byte `at`."""
    if data.isascii() and b"\r" not in data and b"\0" not in data:
        return data.decode("ascii")  # five times as fast as what follows, with the same result
    return "".join(decoded([data], name, errors, at))


def decoded(parts: Iterable[bytes], name: str, errors: Errors, at: int = 0) -> Iterator[str]:
    r"""The text of bytes that come in parts, from byte `at` on: UTF-8 without a byte order mark, line ends as \n."""
    utf8 = codecs.getincrementaldecoder("utf-8")(errors)
    decoder = io.IncrementalNewlineDecoder(utf8, translate=True)  # a line's end may lie between two parts
    first = at == 0
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
        yield from decoded(iter(lambda: sys.stdin.buffer.read(STREAMED), b""), "standard input", errors)
        return
    try:
        with Path(path).open("rb") as file:
            yield from decoded(iter(lambda: file.read(STREAMED), b""), path, errors)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error


def read_line(line: str, place: str) -> str:
    """The text of a JSON line. Raises InputError, which begins with `place`, where it has none."""
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
