"""Pairs of a source and a target, out of files and corpora and into ids. Nothing here knows of torch."""

import warnings
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from scratchlm.data import corpora
from scratchlm.data.shards import SPLITS, dtype_for, split_ends
from scratchlm.data.text import Errors, stream_text
from scratchlm.errors import InputError
from scratchlm.tokenizers import Tokenizer


class Pair(NamedTuple):
    """A source and a target, the line that they come from, and the split that a corpus puts them in."""

    source: str
    target: str
    line: int
    split: str | None = None


def is_pairs(data: str) -> bool:
    """Whether --data means pairs: a corpus of pairs by name, or a path that ends in .tsv."""
    chosen = corpora.CORPORA.get(data)
    return Path(data).suffix.lower() == ".tsv" or (chosen is not None and chosen.pairs and not Path(data).exists())


def read_pairs(data: str, targets: str | None = None, errors: Errors = "strict") -> tuple[list[Pair], list[int]]:
    """The pairs of a corpus by name, of a file with a tab between source and target, or of two files line by line.

    White space around a side is no part of it, and quotation marks are text. Returns besides the numbers of the lines
    that are left out, since a side of them is empty. Raises InputError where lines do not pair up, with their numbers,
    and for standard input.
    """
    if "-" in (data, targets):
        raise InputError(
            "pairs cannot come from standard input (-); write them into a file that ends in .tsv, a tab between source "
            "and target, and name it"
        )
    if "" in (data, targets):
        raise InputError("the name of the data is empty; give pairs as two files, one .tsv file, or a corpus by name")
    pairs, empty = [], []
    for line, row in enumerate(_rows(data, targets, errors), 1):
        source, target, *split = (side.strip() for side in row)
        if source and target:
            pairs.append(Pair(source, target, line, *split))
        else:
            empty.append(line)
    if not pairs:
        place = data if targets is None else f"{data} and {targets}"
        raise InputError(f"no line of {place} has both a source and a target; give pairs to learn from")
    return pairs, empty


def read_whole_pairs(data: str, targets: str | None = None, errors: Errors = "strict") -> list[Pair]:
    """The pairs of `read_pairs`. A warning tells of the lines that are left out."""
    pairs, empty = read_pairs(data, targets, errors)
    if empty:
        warnings.warn(
            f"{len(empty):,} of {len(empty) + len(pairs):,} pairs have an empty side and are left out (the first: line "
            f"{empty[0]:,})",
            stacklevel=2,
        )
    return pairs


def _rows(data: str, targets: str | None, errors: Errors) -> Iterator[tuple[str, ...]]:
    """Source and target of each line, and the split where a corpus names it."""
    if targets is not None:
        sources, translations = _lines(data, errors), _lines(targets, errors)
        if len(sources) != len(translations):
            raise InputError(
                f"{data} has {len(sources):,} line{'s' * (len(sources) != 1)} and {targets} has {len(translations):,}; "
                "each line of the one must have its translation on the same line of the other"
            )
        yield from zip(sources, translations, strict=True)
        return
    try:
        named = not any(mark in data for mark in "./\\") and not Path(data).exists()
    except OSError as error:
        raise InputError(f"cannot read {data}: {error.strerror}") from error
    if named:
        if not corpora.corpus(data).pairs:
            known = ", ".join(name for name, chosen in corpora.CORPORA.items() if chosen.pairs)
            raise InputError(f"the corpus {data} is one text and has no pairs; these have: {known}")
        for line in corpora.get(data).split("\n")[:-1]:
            split, source, target = line.split("\t")
            yield source, target, split
        return
    for line, text in enumerate(_lines(data, errors), 1):
        tabs = text.count("\t")
        if tabs != 1 and text.strip():
            raise InputError(
                f"{data}, line {line} has {tabs or 'no'} tab{'s' * (tabs > 1)}, and a pair has one, between source and "
                "target; mend the line, or give two files with --source and --target"
            )
        yield text.partition("\t")[::2]


def _lines(path: str, errors: Errors) -> list[str]:
    text = "".join(stream_text(path, errors))
    return text.removesuffix("\n").split("\n") if text else []  # splitlines() cuts at other marks too


def split_pairs(pairs: Sequence[Pair], shares: Sequence[float]) -> dict[str, list[Pair]]:
    """The pairs of each split: a corpus's own, or else cuts at these shares of the pairs, in the order of the file.

    Pairs with one source are all where the first of them is, so that no held-out source has been learned from.
    Raises InputError where the shares do not sum to one.
    """
    ends, first = split_ends(len(pairs), shares), {}
    splits: dict[str, list[Pair]] = {name: [] for name in SPLITS}
    for place, pair in enumerate(pairs):
        at = first.setdefault(pair.source, place)
        splits[pair.split or SPLITS[bisect_right(ends, at)]].append(pair)
    return splits


def encode_pairs(pairs: Iterable[Pair], tokenizer: Tokenizer) -> np.ndarray:
    """One array: for each pair its source, the end of a text, its target, the end of a text.

    Shapes: (tokens,) of `dtype_for` the vocabulary.
    Raises InputError where the tokenizer has no end of a text, or no token for something, with the line.
    """
    if tokenizer.end_of_text is None:
        raise InputError(
            "the tokenizer has no end-of-text token, which parts a source from its target; "
            "leave --tokenizer out, or make one with scratchlm tokenizer train"
        )
    end, parts = np.array([tokenizer.end_of_text], np.uint32), []
    sources, targets = tokenizer.source, tokenizer.target
    for pair in pairs:
        try:
            parts += [sources.encode_array(pair.source), end, targets.encode_array(pair.target), end]
        except InputError as error:
            raise InputError(f"line {pair.line} of the pairs: {error}") from error
    dtype = dtype_for(tokenizer.vocab_size)
    return np.concatenate(parts).astype(dtype) if parts else np.empty(0, dtype)
