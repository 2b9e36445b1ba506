"""Byte-pair encoding against other libraries: training on a text, and encoding it."""

import importlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np

from scratchlm.bench.measure import OURS, Row, Setting, Trial, UnequalError, attempt, in_turns, row_of, spread
from scratchlm.data import corpora
from scratchlm.tokenizers import BPETokenizer, bpe, learning
from scratchlm.tokenizers.learning import Ties

CORPUS, VOCABULARY, PATTERN = "shakespeare-tiny", 4096, "gpt4"


@contextmanager
def using(loops: ModuleType | None) -> Iterator[None]:
    """As if numba were there, or were not."""
    before = learning.compiled_loops
    learning.compiled_loops = bpe.compiled_loops = lambda: loops  # type: ignore[assignment]
    try:
        yield
    finally:
        learning.compiled_loops = bpe.compiled_loops = before


def rows(setting: Setting) -> Iterator[Row]:
    """Rows without numba and, where it is installed, with it."""
    text = corpora.get(CORPUS)
    yield from training(text, VOCABULARY, setting)
    yield from encoding(text, VOCABULARY, setting)


def _ways() -> dict[str, ModuleType | None]:
    """What our loops run in, by the words of a row."""
    compiled = learning.compiled_loops()
    return {"": None} | ({} if compiled is None else {", with numba": compiled})


def training(text: str, vocab_size: int, setting: Setting) -> Iterator[Row]:
    """A vocabulary learned from a text."""
    sample = text[: len(text) // 10]

    def ours(loops: ModuleType | None, ties: Ties) -> BPETokenizer:
        with using(loops):
            return BPETokenizer.train([text], vocab_size=vocab_size, pattern=PATTERN, ties=ties)

    def make(peer: Any) -> Callable[[], object]:
        train, encode = peer.load(peer.train)([text], vocab_size, PATTERN)
        _check_same(ours(None, peer.ties).encode_array(sample), encode(train(), sample))
        return train

    sides = {words: partial(ours, loops, "ids") for words, loops in _ways().items()}
    what = f"train {vocab_size:,} byte pairs on {len(text.encode()) / 1e6:.1f} MB"
    yield from _rows(setting, what, sides, [peer for peer in _peers() if peer.train], make, len(text.encode()))


def encoding(text: str, vocab_size: int, setting: Setting) -> Iterator[Row]:
    """A text encoded into an array, nothing of it known before."""
    tokenizer = BPETokenizer.train([text], vocab_size=vocab_size, pattern=PATTERN)
    expected = tokenizer.encode_array(text)

    def ours(loops: ModuleType | None) -> np.ndarray:
        with using(loops):
            tokenizer._cache.clear()
            return tokenizer.encode_array(text)

    def make(peer: Any) -> Callable[[], object]:
        run = peer.load(peer.encode)(text, tokenizer)
        _check_same(expected, run())
        return run

    for loops in _ways().values():
        _check_same(expected, ours(loops))
    sides = {words: partial(ours, loops) for words, loops in _ways().items()}
    what = f"encode {len(text.encode()) / 1e6:.1f} MB"
    yield from _rows(setting, what, sides, [peer for peer in _peers() if peer.encode], make, len(text.encode()))


def _peers() -> list[Any]:
    return importlib.import_module("scratchlm_peers").TOKENIZER_PEERS


def _check_same(ours: Any, theirs: Any) -> None:
    if not np.array_equal(ours, np.asarray(theirs)):
        raise UnequalError("its ids are not ours, so the work differs")


def _rows(
    setting: Setting,
    what: str,
    sides: Mapping[str, Callable[[], object]],
    peers: list[Any],
    make: Callable[[Any], Callable[[], object]],
    size: int,
) -> Iterator[Row]:
    """Each of our sides against each peer, all timed in the same rounds."""
    trials: dict[str, Trial] = {peer.name: attempt(peer, lambda peer=peer: make(peer)) for peer in peers}
    others = {name: trial.run for name, trial in trials.items() if trial.run is not None}
    seconds = in_turns({OURS + words: run for words, run in sides.items()} | others, setting)
    for words in sides:
        measured = seconds | {OURS: seconds[OURS + words]}
        figures = {"megabytes_per_second": size / 1e6 / spread(measured[OURS])[0]}
        for peer in peers or [None]:
            yield row_of(setting, "tokenizers", what + words, measured, peer, trials, figures=figures)
