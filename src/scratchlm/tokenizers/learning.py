"""Byte-pair encoding out of texts, which may be larger than memory: count the chunks, then merge.

All that training needs of a text is how often each different chunk occurs. So the text is read in blocks, which worker
processes may count, and only the different chunks are kept: their number grows much slower than the text. The result
depends neither on the size of the blocks nor on the number of workers.
"""

import collections
import functools
import importlib
import importlib.util
import itertools
import multiprocessing
from array import array
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from types import ModuleType
from typing import Literal

import numpy as np
import regex

from scratchlm.errors import InputError
from scratchlm.tokenizers import merging
from scratchlm.tokenizers.base import Learning
from scratchlm.tokenizers.splitting import BLOCK, SMALL, blocks, chunks_of, compile_pattern, slices, split

Text = str | Iterable[str]  # a document, or the parts of one that is larger than memory
Ties = Literal["gpt2", "ids", "first"]
Level = Literal["bytes", "characters"]
Counts = dict[bytes, int]
WORTH_COMPILING = 50_000  # base ids of the different chunks from which on numba's start is made up for


@functools.cache
def compiled_loops() -> ModuleType | None:
    """compiled.py, where numba is installed and works."""
    if importlib.util.find_spec("numba") is None:
        return None
    try:
        return importlib.import_module("scratchlm.tokenizers.compiled")
    except (ImportError, RuntimeError):  # it does not go with this numpy, or finds no folder for what it compiles
        return None


_HALF_PAIR = regex.compile(r"[\ud800-\udfff]")


def count_chunks(texts: Sequence[str], pattern: str) -> Counts:
    """How often each chunk occurs in the texts, in the order in which they come first."""
    expression, total = compile_pattern(pattern), Counts()
    for text in texts:
        half = _HALF_PAIR.search(text)
        if half:
            raise InputError(
                f"a text has {half.group()!r}, half a surrogate pair, which UTF-8 cannot write; leave it out"
            )
        if len(text) <= SMALL:
            chunks: Iterable[bytes] = (chunk.encode() for chunk in split(text, expression))
            counts: Iterable[int] = itertools.repeat(1)
        else:
            chunks, which = chunks_of(text, pattern, expression)
            counts = np.bincount(which).tolist()
        for chunk, count in zip(chunks, counts, strict=False):
            total[chunk] = total.get(chunk, 0) + count
    return total


def _tasks(texts: Iterable[Text], pattern: str, size: int) -> Iterator[list[str]]:
    """The texts' blocks, small ones together, in lists of about `size` characters."""
    task: list[str] = []
    held = 0
    for text in texts:
        parts = [text] if isinstance(text, str) else text
        pieces = (piece for part in parts for piece in slices(part, size))
        for block in blocks(pieces, pattern, size):
            task.append(block)
            held += len(block)
            if held >= size:
                yield task
                task, held = [], 0
    if task:
        yield task


def count_texts(
    texts: Iterable[Text], pattern: str, workers: int = 1, size: int = BLOCK
) -> Generator[Learning, None, Counts]:
    """`count_chunks` of texts that may be larger than memory, in `workers` processes; returns the counts.

    Held are the counts, and two blocks of `size` characters for each worker.
    """
    total, characters = Counts(), 0

    def add(counts: Counts) -> None:
        for chunk, count in counts.items():
            total[chunk] = total.get(chunk, 0) + count

    if workers == 1:
        for task in _tasks(texts, pattern, size):
            add(count_chunks(task, pattern))
            characters += sum(map(len, task))
            yield Learning(stage="characters counted", done=characters)
        return total
    waiting: collections.deque[tuple[int, Future[Counts]]] = collections.deque()
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        for task in itertools.chain(_tasks(texts, pattern, size), [None]):
            if task is not None:
                waiting.append((sum(map(len, task)), pool.submit(count_chunks, task, pattern)))
            while waiting and (task is None or len(waiting) > 2 * workers):
                length, counted = waiting.popleft()
                add(counted.result())  # in the order of the text, whoever is done first
                characters += length
                yield Learning(stage="characters counted", done=characters)
    return total


def frequent_characters(counts: Counts, coverage: float) -> str:
    """The most frequent characters that together are `coverage` of the text, the most frequent one first.

    A character is taken as long as those before it are less than `coverage`. Source: sentencepiece, character_coverage.
    """
    characters: collections.Counter[str] = collections.Counter()
    for chunk, count in counts.items():
        for character in chunk.decode():
            characters[character] += count
    total, covered, taken = sum(characters.values()), 0, []
    for character, count in sorted(characters.items(), key=lambda item: (-item[1], item[0])):
        if covered >= coverage * total:
            break
        taken.append(character)
        covered += count
    return "".join(taken)


class Sequences:
    """The base ids of all different chunks, one after another, with where each ends and how often it occurs."""

    def __init__(self, chunks: Iterable[tuple[Sequence[int], int]]) -> None:
        self.ids, self.ends, self.weights = array("q"), array("q"), array("q")  # 8 bytes each, where a list has 36
        for ids, count in chunks:
            if len(ids) > 1:
                self.ids.extend(ids)
                self.ends.append(len(self.ids))
                self.weights.append(count)


def learn_merges(
    sequences: Sequences, first_token: int, number: int, ties_first: bool
) -> Generator[Learning, None, list[tuple[int, int]]]:
    """The first `number` merges, or as many as there are, which make the ids from `first_token` on."""
    made: list[tuple[int, int]] = []
    compiled = compiled_loops() if len(sequences.ids) >= WORTH_COMPILING else None
    if not sequences.ids or number == 0:
        return made
    if compiled is None:
        found = merging.merges(sequences.ids.tolist(), sequences.ends, sequences.weights, first_token, ties_first)
    else:
        arrays = (np.frombuffer(part, np.int64) for part in (sequences.ids, sequences.ends, sequences.weights))
        found = compiled.merges(*arrays, first_token, ties_first)
    for left, right, _ in itertools.islice(found, number):
        made.append((left, right))
        if len(made) % 64 == 0:
            yield Learning(stage="tokens made", done=len(made), total=number)
    return made
