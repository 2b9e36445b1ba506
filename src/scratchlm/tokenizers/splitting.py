"""Text into chunks that no merge crosses: a pattern by name, or any regular expression.

    gpt2    Radford et al. 2019, released encoder.py: contractions, words and numbers with a space before them, the rest
    gpt4    tiktoken's cl100k_base: any one mark before a word, numbers of three digits at most, lines kept together
    o200k   tiktoken's o200k_base: as gpt4, and a word ends where capitals follow small letters
    none    no cut at all

A regular expression takes 0.1 s for a megabyte. Whoever looks at gpt2 and gpt4 sees that where a chunk starts follows
from the classes of a few characters around it, so these two have a scanner that looks at all places at once with numpy:
ten times as fast, and equal to the expression for any text (tests/test_splitting.py).
"""

import functools
from collections.abc import Iterable, Iterator

import numpy as np
import regex

from scratchlm.errors import InputError

PATTERNS = {
    "gpt2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "gpt4": r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|"
    r"\s*[\r\n]|\s+(?!\S)|\s+",
    "o200k": r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "none": r"(?s:.+)",
}
SCANNED = ("gpt2", "gpt4")
BLOCK = 1 << 20  # characters that are looked at at once
SMALL = 1 << 12  # characters up to which the expression is faster than the scanner
OTHER, LETTER, NUMBER, SPACE, NEWLINE = range(5)  # what a character is to the patterns
MIX = np.uint64(0x9E3779B97F4A7C15)  # 2**64 over the golden ratio: spreads its multiples evenly
EDGE = 5  # before the first and after the last


def compile_pattern(pattern: str) -> regex.Pattern[str]:
    """The expression of a pattern's name, or of an expression. Raises InputError where it is none."""
    if not pattern:
        raise InputError(f"the pattern is empty; give one of {', '.join(PATTERNS)}, or a regular expression")
    try:
        return regex.compile(PATTERNS.get(pattern, pattern))
    except regex.error as error:
        raise InputError(
            f"the pattern {pattern!r} is no regular expression ({error}); give one, or {', '.join(PATTERNS)}"
        ) from error


def code_points(text: str) -> np.ndarray:
    """Shapes: (N,) uint32, or uint8 where all are ASCII. Escaped bytes (surrogates) are let through."""
    if text.isascii():
        return np.frombuffer(text.encode("ascii"), dtype=np.uint8)
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)


@functools.cache
def _classes(size: int) -> np.ndarray:
    """The class of each code point below `size`, as the regex module's Unicode says. Shapes: (size,) uint8."""
    table = np.full(size, OTHER, dtype=np.uint8)
    everything = "".join(map(chr, range(size)))
    for expression, kind in ((r"\p{L}+", LETTER), (r"\p{N}+", NUMBER), (r"\s+", SPACE), (r"[\r\n]+", NEWLINE)):
        for found in regex.finditer(expression, everything):
            table[found.start() : found.end()] = kind
    return table


def chunk_starts(codes: np.ndarray, pattern: str) -> np.ndarray:
    """Where the chunks of the pattern gpt2 or gpt4 start. Shapes: codes (N,) -> (number of chunks,) int64."""
    kinds = _classes(128 if codes.dtype == np.uint8 else 0x110000)[codes]
    marks = np.zeros(len(codes) + 3, dtype=bool)  # whether a chunk starts; what is set past the end counts for nothing
    (_mark_gpt2 if pattern == "gpt2" else _mark_gpt4)(codes, kinds, marks)
    return np.flatnonzero(marks[: len(codes)])


def _neighbours(kinds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The class before and the class after each place, EDGE where there is none."""
    edge = np.array([EDGE], dtype=np.uint8)
    return np.concatenate([edge, kinds[:-1]])[: len(kinds)], np.concatenate([kinds[1:], edge])[: len(kinds)]


def _mark_gpt2(codes: np.ndarray, kinds: np.ndarray, marks: np.ndarray) -> None:
    """A chunk is a run of one class, with the space before it: white space leaves its last to what follows."""
    size = len(kinds)
    kinds = np.minimum(kinds, SPACE)  # a newline is white space like any other
    before, after = _neighbours(kinds)
    last = (kinds == SPACE) & (after < SPACE)
    marks[:size] = (kinds != before) | last
    marks[1 : size + 1][last & (codes == ord(" "))] = False
    _mark_contractions(codes, np.flatnonzero((codes == ord("'")) & marks[:size]), marks, any_case=False)


def _mark_gpt4(codes: np.ndarray, kinds: np.ndarray, marks: np.ndarray) -> None:
    """A word takes any one mark or space before it; newlines go with the marks or the white space before them."""
    size = len(kinds)
    before, after = _neighbours(kinds)
    last = (kinds == SPACE) & (after < SPACE)
    marks[:size] = (kinds != before) & ~((kinds == NEWLINE) & ((before == OTHER) | (before == SPACE))) | last
    marks[1 : size + 1][last & ((after == LETTER) | ((after == OTHER) & (codes == ord(" "))))] = False
    single = (kinds == OTHER) & (after == LETTER) & marks[:size]
    marks[1 : size + 1][single] = False
    _mark_contractions(codes, np.flatnonzero(single & (codes == ord("'"))), marks, any_case=True)

    number = np.flatnonzero(kinds == NUMBER)  # a number is cut after each third digit
    if len(number):
        starts = np.maximum.accumulate(np.where(before[number] != NUMBER, number, 0))
        marks[number[(number - starts) % 3 == 0]] = True

    # white space between newlines goes with them, unless marks have taken the newlines before it
    starts = np.flatnonzero((kinds == SPACE) & (before == NEWLINE))
    if len(starts):
        runs = np.append(np.flatnonzero(kinds != before), size)
        which = np.searchsorted(runs, starts)
        taken = before[runs[which - 1]] == OTHER
        ends = runs[which + 1]
        inside = (ends < size) & (kinds[np.minimum(ends, size - 1)] == NEWLINE)
        marks[starts[inside & ~taken]] = False


def _mark_contractions(codes: np.ndarray, at: np.ndarray, marks: np.ndarray, any_case: bool) -> None:
    """Make chunks of 's 't 're 've 'm 'll 'd. Shapes: at (apostrophes,), those that may start one."""
    padded = np.concatenate([codes, np.zeros(2, codes.dtype)])
    first, second = padded[at + 1], padded[at + 2]
    if any_case:
        first = np.where(first == 0x17F, ord("s"), first) | 0x20  # U+017F, the long s, is an s too
        second = second | 0x20
    one = np.isin(first, [ord(letter) for letter in "stmd"])
    two = np.zeros_like(one)
    for a, b in ("re", "ve", "ll"):
        two |= (first == ord(a)) & (second == ord(b))
    marks[at[one | two] + 1] = False
    marks[at[one] + 2] = True
    marks[at[two] + 3] = True


# where these patterns start a chunk whatever stands around, and end the one before it as they would at the text's end
CUTS = {
    "gpt2": r"(?<=\p{L})(?=[^\p{L}\p{N}]\p{L})|(?<=\s)(?=\s\S)|(?<=\S\n)(?=\S)",
    "gpt4": r"(?<=\p{L})(?=[^\r\n\p{L}\p{N}]\p{L})|(?<=\n)(?=\S)",
    "o200k": r"(?<=\p{L})(?=[^\r\n\p{L}\p{N}\p{M}']\p{L})|(?<=\n)(?=[^\s/])",
}


def blocks(parts: Iterable[str], pattern: str, size: int) -> Iterator[str]:
    """A text that comes in parts, in blocks of `size` characters or a little more that have the chunks of the whole.

    It is cut where CUTS says, such as before a space between two letters. Where there is no such place a block is
    longer; of other expressions nothing is known, so there the text is one block.
    """
    held, searched = "", size
    cuts = regex.compile(CUTS[pattern]) if pattern in CUTS else None
    for part in parts:
        held += part
        while cuts is not None and len(held) > searched:
            cut = cuts.search(held, searched)
            if cut is None:
                searched = len(held)
                break
            yield held[: cut.start()]
            held, searched = held[cut.start() :], size
    if held:
        yield held


def slices(text: str, size: int) -> Iterator[str]:
    """The text in parts of `size` characters."""
    return (text[start : start + size] for start in range(0, len(text), size))


def byte_starts(codes: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Places among code points as places among the bytes of UTF-8. Shapes: codes (N,), starts (C,) -> (C,) int64."""
    if codes.dtype == np.uint8:
        return starts
    escaped = (codes >= 0xDC80) & (codes <= 0xDCFF)  # a byte that is no UTF-8
    sizes = 1 + (codes > 0x7F).astype(np.int64) + (codes > 0x7FF) + (codes > 0xFFFF) - 2 * escaped
    return (np.cumsum(sizes) - sizes)[starts]


def distinct(data: bytes, starts: np.ndarray) -> tuple[list[bytes], np.ndarray]:
    """The different chunks in the order in which they come first, and which of them each chunk is.

    Shapes: starts (C,), where the chunks start in `data` -> (C,) int64.
    """
    lengths = np.diff(starts, append=len(data))
    # nearly all chunks are shorter than 16 bytes: such a one and its length fit into two integers
    words = np.ndarray(len(data) + 9, "<u8", data + bytes(16), strides=(1,))  # the eight bytes from each place on
    size = np.minimum(lengths, 16).astype(np.uint64)  # 16 is longer, and in the highest byte like no shorter one
    masks = np.array([(1 << 8 * n) - 1 for n in range(9)], np.uint64)
    low = words[starts] & masks[np.minimum(size, 8)]
    high = words[np.minimum(starts + 8, len(data))] & masks[np.maximum(size, 8) - 8] | size << np.uint64(56)
    # of the chunks with one hash the first stands for those that are equal to it
    bits = max(len(starts), 8).bit_length() + 1
    slots = ((low ^ high * MIX) * MIX) >> np.uint64(64 - bits)
    first = np.empty(1 << bits, np.int64)
    first[slots[::-1]] = np.arange(len(starts))[::-1]  # what is written last stays
    same = first[slots]
    rest = np.flatnonzero((lengths > 15) | (low != low[same]) | (high != high[same]))
    table: dict[bytes, int] = {}
    chunks = zip(_cut_out(data, starts[rest], lengths[rest]), rest.tolist(), strict=True)
    same[rest] = [table.setdefault(chunk, at) for chunk, at in chunks]

    are_first = same == np.arange(len(starts))
    firsts = np.flatnonzero(are_first)
    return _cut_out(data, starts[firsts], lengths[firsts]), (np.cumsum(are_first) - 1)[same]


def _cut_out(data: bytes, starts: np.ndarray, lengths: np.ndarray) -> list[bytes]:
    return [data[start:end] for start, end in zip(starts.tolist(), (starts + lengths).tolist(), strict=True)]


def chunks_of(text: str, pattern: str, expression: regex.Pattern[str]) -> tuple[list[bytes], np.ndarray]:
    """The different chunks of a text in the order in which they come first, and which of them each chunk is.

    `expression` is the pattern's. Escaped bytes (PEP 383) are let through; half surrogate pairs raise
    UnicodeEncodeError.
    """
    data = text.encode("utf-8", "surrogateescape")
    if pattern in SCANNED:
        codes = code_points(text)
        return distinct(data, byte_starts(codes, chunk_starts(codes, pattern)))
    table: dict[bytes, int] = {}
    chunks = split(text, expression)
    which = [table.setdefault(chunk.encode("utf-8", "surrogateescape"), len(table)) for chunk in chunks]
    return list(table), np.array(which, dtype=np.int64)


def split(text: str, expression: regex.Pattern[str]) -> list[str]:
    """The chunks of a text; what the expression passes over is a chunk too, so that nothing is lost."""
    chunks, at = [], 0
    for found in expression.finditer(text):
        if found.start() > at:
            chunks.append(text[at : found.start()])
        if found.end() > found.start():
            chunks.append(found.group())
        at = found.end()
    if at < len(text):
        chunks.append(text[at:])
    return chunks
