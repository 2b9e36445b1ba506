"""Texts larger than memory in pieces: where they may be cut, what is in each, and which of it each split has.

A file is looked at in stretches of PIECE bytes. A piece starts at the first place of a stretch where the text may be
cut and ends where the next one starts, so each can be found, read and encoded by itself, by any process. In JSON lines
that is a line's start; in a text it is where the tokenizer says (`Tokenizer.cuts`), which is never inside a character.
"""

import codecs
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import regex

from scratchlm.data.text import STREAMED, Errors, decode, decoded, read_line, text_files
from scratchlm.errors import InputError

PIECE = 4 << 20  # bytes
LONGEST = 8 << 20  # bytes that are held at once where a text has no place to be cut: two of one letter take 870 MB
LOOKED_AT = 1 << 16  # bytes in which a place is looked for first
_LINE_END = regex.compile(rb"\n|\r(?!\n)")


T = TypeVar("T")


class Source(NamedTuple):
    """A file, and what tells that it is still the same."""

    path: str
    size: int  # bytes
    modified: int  # nanoseconds

    @property
    def has_lines(self) -> bool:
        """Whether it is JSON lines, a document each; else it is one document."""
        return self.path.endswith(".jsonl")

    @property
    def stretches(self) -> int:
        """Pieces that it has at the most."""
        return -(-self.size // PIECE)


class Piece(NamedTuple):
    """Bytes `start` to `end` of the source of this number, with how many texts and characters are in them."""

    source: int
    start: int
    end: int
    texts: int
    characters: int
    crc: int


class Part(NamedTuple):
    """What a split has of a piece: `take` characters after `skip`; `continues`: the document has begun before."""

    piece: Piece
    skip: int
    take: int
    continues: bool


def find_source(path: Path) -> Source:
    """A file as it is now. Raises InputError where it cannot be read, or not twice."""
    try:
        if path.exists() and not path.is_file():
            raise InputError(
                f"{path} is no file, and what is prepared is read twice; write it to a file, and name that"
            )
        with path.open("rb") as file:
            found = os.fstat(file.fileno())
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    return Source(str(path), found.st_size, found.st_mtime_ns)


def _read(source: Source, start: int, end: int) -> bytes:
    try:
        with Path(source.path).open("rb") as file:
            found = os.fstat(file.fileno())
            file.seek(start)
            data = file.read(end - start)
    except OSError as error:
        raise InputError(f"cannot read {source.path}: {error.strerror}") from error
    if (found.st_size, found.st_mtime_ns) != (source.size, source.modified):
        raise changed(source)
    return data


def changed(source: Source) -> InputError:
    """The error for a file that is no longer what it was."""
    return InputError(
        f"{source.path} has changed since its tokens were begun; put it back, or begin anew with another --out"
    )


def first_cut(source: Source, low: int, high: int, cuts: str | None) -> int | None:
    """The first byte from `low` on and before `high` at which the file may be cut, or None."""
    if low == 0:
        return 0
    find, size = _line_start if source.has_lines else _text_cut, LOOKED_AT
    while cuts is not None or source.has_lines:
        end = min(low + size, source.size)
        found = find(_read(source, low - 1, end), end == source.size, cuts or "")
        if found is not None or end >= min(high, source.size):
            return None if found is None or low + found >= high else low + found
        size *= 4
    return None


def _line_start(data: bytes, is_end: bool, _: str) -> int | None:
    for found in _LINE_END.finditer(data):
        if found.end() < len(data):  # else what follows, a \n behind a \r, may not have been read
            return found.end() - 1
    return None


def _text_cut(data: bytes, is_end: bool, cuts: str) -> int | None:
    """The place behind the first byte, at the end or the start of a character, that `cuts` finds first."""
    skip = 1
    while skip < min(4, len(data)) and data[skip] & 0xC0 == 0x80:  # the rest of a character, which has 4 bytes at most
        skip += 1
    # bytes that are no UTF-8 become a surrogate each, and so does no other; a character that is cut off is left out
    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    raw = decoder.decode(data[skip:], final=is_end)
    text = raw.replace("\r\n", "\n").replace("\r", "\n")
    found = regex.compile(rf"(?<![\ud800-\udfff])(?:{cuts})(?![\ud800-\udfff])").search(text, 1)
    if found is None or found.start() >= len(text):
        return None
    at = found.start()
    pairs = enumerate(regex.finditer("\r\n", raw))  # each is two bytes, and one character of the text
    return skip - 1 + len(text[:at].encode("utf-8", "surrogateescape")) + sum(p.start() - n < at for n, p in pairs)


def survey(number: int, source: Source, stretch: int, cuts: str | None, errors: Errors) -> Piece | None:
    """The piece of a source that starts in this stretch of it, if one does.

    Raises InputError where its text cannot be read, or cannot be cut before it is too long to be held.
    """
    start = first_cut(source, stretch * PIECE, (stretch + 1) * PIECE, cuts)
    if start is None:
        return None
    end, low = None, (stretch + 1) * PIECE
    while end is None and stretch * PIECE - start <= LONGEST:
        stretch += 1
        is_last = stretch >= source.stretches
        end = source.size if is_last else first_cut(source, stretch * PIECE, (stretch + 1) * PIECE, cuts)
    if end is None or end - start > LONGEST:
        remedy = (
            "a line is a document here, so make more and shorter ones of it"
            if source.has_lines
            else "break its lines, or choose a tokenizer that cuts a text anywhere, such as --tokenizer byte"
        )
        raise InputError(
            f"{source.path} cannot be cut anywhere between byte {low:,} and byte {end or stretch * PIECE:,}, and more "
            f"than {LONGEST >> 20} MB of it are not held in memory at once; {remedy}"
        )
    data = _read(source, start, end)
    texts = _texts(source, start, data, errors)
    return Piece(number, start, end, len(texts), sum(map(len, texts)), zlib.crc32(data))


def read_part(source: Source, part: Part, errors: Errors) -> list[str]:
    """The texts of a part, which are whole documents but for the first and the last. Raises InputError as needed."""
    data = _read(source, part.piece.start, part.piece.end)
    if zlib.crc32(data) != part.piece.crc:
        raise changed(source)
    pieces, skip, end = [], part.skip, part.skip + part.take
    for text in _texts(source, part.piece.start, data, errors):
        pieces.append(text[max(skip, 0) : max(end, 0)])
        skip, end = skip - len(text), end - len(text)
    return [piece for piece in pieces if piece]


def _texts(source: Source, start: int, data: bytes, errors: Errors) -> list[str]:
    """The texts that these bytes are, from byte `start` on: documents, or a stretch of one."""
    text = decode(data, source.path, errors, start)
    if not source.has_lines:
        return [text] if text else []
    texts = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            texts.append(read_line(line, source.path))
        except InputError:
            read_line(line, f"{source.path}, line {_lines_before(source, start) + number}")
    return [text for text in texts if text]


def _lines_before(source: Source, end: int) -> int:
    blocks = (_read(source, at, min(at + STREAMED, end)) for at in range(0, end, STREAMED))
    return sum(part.count("\n") for part in decoded(blocks, source.path, "replace"))


def parts(pieces: Iterable[Piece], sources: Sequence[Source], ends: Sequence[int]) -> Iterator[tuple[int, Part]]:
    """What each split has of the pieces, in order, with the number of the split; the splits end at these characters.

    They are those of `split_documents`: a document that a cut falls into goes on as another in the next split.
    """
    split, at, before = 0, 0, (-1, -1)  # the split and the source of the part before
    for piece in pieces:
        done = 0
        while done < piece.characters:
            while ends[split] <= at:
                split += 1
            take = min(piece.characters - done, ends[split] - at)
            continues = before == (split, piece.source) and not sources[piece.source].has_lines
            yield split, Part(piece, done, take, continues)
            before, done, at = (split, piece.source), done + take, at + take


def text_bytes(paths: Sequence[str]) -> int:
    """The size of the texts that these paths mean. Raises InputError where there are none."""
    return sum(find_source(file).size for path in paths for file in files_of(path))


def files_of(path: str) -> list[Path]:
    """The files of text that a path means. Raises InputError for what cannot be prepared."""
    if path in ("", "-"):
        raise InputError(
            f"{path!r} is no file: what is prepared is read twice, and again after a kill; write standard input to a "
            "file, and name that"
        )
    if path.endswith(".tsv"):
        raise InputError(f"{path} holds pairs of source and target, which are trained on as they are: --data {path}")
    return text_files(Path(path))


def grouped(sized: Iterable[tuple[T, int]]) -> Iterator[list[T]]:
    """Small things together, in lists of about PIECE bytes."""
    group: list[T] = []
    held = 0
    for one, size in sized:
        group.append(one)
        held += size
        if held >= PIECE:
            yield group
            group, held = [], 0
    if group:
        yield group
