"""Byte-pair encoding against other libraries: training on a text, and encoding it."""

import importlib
from collections.abc import Callable, Iterator
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
    """A vocabulary learned from a text, with the ties of each peer."""
    peers = [peer for peer in _peers() if peer.train]
    for ties in sorted({peer.ties for peer in peers}):
        yield from training_with(ties, [peer for peer in peers if peer.ties == ties], text, vocab_size, setting)


def training_with(ties: Ties, peers: list[Any], text: str, vocab_size: int, setting: Setting) -> Iterator[Row]:
    """The rows of the peers that choose so between pairs that occur equally often."""
    train = partial(BPETokenizer.train, [text], vocab_size=vocab_size, pattern=PATTERN, ties=ties)
    expected = train().encode_array(text)

    def ours(loops: ModuleType | None) -> list[tuple[int, int]]:
        with using(loops):
            return train().merges

    def make(peer: Any) -> Callable[[], object]:
        run, encode = peer.load(peer.train)([text], vocab_size, PATTERN)
        _check_same(expected, encode(run(), text))
        return run

    what = f"train {vocab_size:,} byte pairs on {len(text.encode()) / 1e6:.1f} MB"
    yield from _rows(setting, what, ours, peers, make, len(text.encode()))


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

    what = f"encode {len(text.encode()) / 1e6:.1f} MB"
    yield from _rows(setting, what, ours, [peer for peer in _peers() if peer.encode], make, len(text.encode()))


def _peers() -> list[Any]:
    return importlib.import_module("scratchlm_peers").TOKENIZER_PEERS


def _check_same(ours: Any, theirs: Any) -> None:
    if not np.array_equal(ours, np.asarray(theirs)):
        raise UnequalError("the ids are not the same, so the work differs")


def _rows(
    setting: Setting,
    what: str,
    ours: Callable[[ModuleType | None], object],
    peers: list[Any],
    make: Callable[[Any], Callable[[], object]],
    size: int,
) -> Iterator[Row]:
    """Each of our ways, which must give the same, against each peer; all timed in the same rounds."""
    sides = {words: partial(ours, loops) for words, loops in _ways().items()}
    plain, *compiled = sides.values()
    for run in compiled:
        _check_same(plain(), run())
    trials: dict[str, Trial] = {peer.name: attempt(peer, lambda peer=peer: make(peer)) for peer in peers}
    others = {name: trial.run for name, trial in trials.items() if trial.run is not None}
    seconds = in_turns({OURS + words: run for words, run in sides.items()} | others, setting)
    for words in sides:
        measured = seconds | {OURS: seconds[OURS + words]}
        figures = {"megabytes_per_second": size / 1e6 / spread(measured[OURS])[0]}
        for peer in peers:
            yield row_of(setting, "tokenizers", what + words, measured, peer, trials, figures=figures)
