"""Windows of tokens: for training a pure function of (seed, step), for evaluation all of a split, in order.

Letters in shapes: B batch, T tokens of a window.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from scratchlm.data.shards import Tokens
from scratchlm.errors import InputError
from scratchlm.model import Source

IGNORED = -100  # a target that is not counted


def shares(rows: int, parts: int) -> list[slice]:
    """`parts` neighbouring ranges of so many rows, as even as can be; some are empty where there are fewer rows."""
    ends = [part * (rows // parts) + min(part, rows % parts) for part in range(parts + 1)]
    return [slice(start, end) for start, end in pairwise(ends)]


@dataclass(frozen=True, eq=False)
class Batch:
    """What a model reads and what it should say: tokens (B, T), targets (B, T), IGNORED where there is none.

    `continues`: each row goes on where that row of the batch before ended.
    """

    tokens: Tensor
    targets: Tensor
    source: Source | None = None
    continues: bool = False

    def to(self, device: torch.device) -> "Batch":
        """The batch on a device."""
        source = self.source and Source(self.source.ids.to(device), self.source.lengths.to(device))
        tokens, targets = (ids.to(device, non_blocking=True) for ids in (self.tokens, self.targets))
        return replace(self, tokens=tokens, targets=targets, source=source)

    def part(self, index: int, parts: int) -> "Batch":
        """One of `parts` parts of the rows (see `shares`); where there is no row for it, a row without targets."""
        rows = shares(len(self.tokens), parts)[index]
        silent = rows.start == rows.stop  # so that all parts are computed alike, in all processes
        if silent:
            rows = slice(0, 1)
        source = self.source and Source(self.source.ids[rows], self.source.lengths[rows])
        targets = torch.full_like(self.targets[rows], IGNORED) if silent else self.targets[rows]
        return replace(self, tokens=self.tokens[rows], targets=targets, source=source)

    @property
    def target_count(self) -> int:
        """Targets that count."""
        return int((self.targets != IGNORED).sum())


SORTED = 1 << 22  # windows up to which an epoch's order is sorted and held, in 32 MB
ROUNDS = 8  # four would do if each mixed as if at random (Luby and Rackoff 1988)


def _random_bits(seed: int, epoch: int, count: int) -> np.ndarray:
    """The first of an epoch's numbers of 64 random bits. Shapes: (count,) uint64."""
    # raw output of a bit generator: numpy keeps its stream for good, which it does not promise of permutation()
    return np.random.Philox(key=seed, counter=[0, 0, 0, epoch]).random_raw(count)


@lru_cache(maxsize=8)
def _phase(seed: int, epoch: int) -> int:
    """An epoch's first number, which says where its first window starts."""
    return int(_random_bits(seed, epoch, 1)[0])


@lru_cache(maxsize=2)
def epoch_order(seed: int, epoch: int, count: int) -> np.ndarray:
    """The numbers 0 .. count - 1 in an epoch's random order. Shapes: (count,) int64."""
    return np.argsort(_random_bits(seed, epoch, count + 1)[1:], kind="stable")


def places_in_order(seed: int, epoch: int, count: int, turns: np.ndarray) -> np.ndarray:
    """Which of the places 0 .. count - 1 come at these turns of an epoch, each at one of them, in a random order.

    Up to SORTED places it is `epoch_order`. Above, a Feistel network on so many bits as `count` has, whose two halves
    are mixed with each other's in turn, is a bijection of 0 .. 2**bits - 1; what falls outside goes through it again
    until it does not. That takes no memory and a few steps for each turn, whatever the count.
    Shapes: turns (B,) int64 -> (B,) int64. Paper: Black and Rogaway 2002, "Ciphers with Arbitrary Finite Domains".
    """
    if count <= SORTED:
        return epoch_order(seed, epoch, count)[turns]
    keys = _random_bits(seed, epoch, ROUNDS + 1)[1:]
    bits = (count - 1).bit_length()
    high, low = bits // 2, bits - bits // 2
    high_of, low_of, low_mask = np.uint64(64 - high), np.uint64(64 - low), np.uint64((1 << low) - 1)
    out, outside = turns.astype(np.uint64), np.arange(len(turns))
    while len(outside):
        left, right = out[outside] >> np.uint64(low), out[outside] & low_mask
        for first, second in keys.reshape(-1, 2):
            left ^= _mixed(right ^ first) >> high_of
            right ^= _mixed(left ^ second) >> low_of
        out[outside] = left << np.uint64(low) | right
        outside = outside[out[outside] >= count]
    return out.astype(np.int64)


def _mixed(numbers: np.ndarray) -> np.ndarray:
    """Each bit out depends on each bit in: the finalizer of splitmix64 (Steele et al. 2014). Shapes: (B,) uint64."""
    numbers = (numbers ^ numbers >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ numbers >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return numbers ^ numbers >> np.uint64(31)


class TrainingWindows:
    """The global batch: windows of a split in an order that (seed, step) alone decides.

    An epoch is a permutation of back-to-back windows whose first start is drawn anew, so each window is read once an
    epoch and their cuts move from epoch to epoch. A batch may span two epochs, or many where the text is small.
    """

    def __init__(self, tokens: Tokens, window: int, batch_size: int, seed: int) -> None:
        """Raises InputError where the split is shorter than one window."""
        if len(tokens) <= window:
            fits = f"--window {len(tokens) - 1} or less" if len(tokens) > 1 else "two tokens at the least"
            raise InputError(
                f"the training text has {len(tokens)} tokens, and a window of {window} needs "
                f"{window + 1}: give a longer text, or {fits}"
            )
        self._tokens, self._window, self._batch_size, self._seed = tokens, window, batch_size, seed
        self.count = max(1, (len(tokens) - window) // window)  # windows of an epoch
        self._phases = min(window, len(tokens) - self.count * window)

    def epochs(self, steps: int) -> float:
        """How often the text has been read after so many steps."""
        return steps * self._batch_size / self.count

    def tokens(self, steps: int) -> int:
        """Tokens that have been read after so many steps."""
        return steps * self._batch_size * self._window

    def batch(self, step: int) -> Batch:
        """The batch of a step, counted from 0. Shapes: (batch_size, window)."""
        return self.part(step, 0, 1)[0]

    def part(self, step: int, part: int, parts: int) -> tuple[Batch, int]:
        """Some rows of a step's batch, those of `shares`, and the target count of all; the others stay unread.

        Shapes: (rows, window).
        """
        rows = shares(self._batch_size, parts)[part]
        epochs, turns = np.divmod(step * self._batch_size + np.arange(rows.start, rows.stop), self.count)
        starts = np.empty(len(turns), dtype=np.int64)
        for epoch in np.unique(epochs).tolist():
            inside = epochs == epoch
            places = places_in_order(self._seed, epoch, self.count, turns[inside])
            starts[inside] = _phase(self._seed, epoch) % self._phases + places * self._window
        windows = torch.from_numpy(self._tokens.windows(starts, self._window + 1))
        return Batch(windows[:, :-1], windows[:, 1:]), self._batch_size * self._window


class CarriedStreams:
    """The global batch for a state that is carried: the next windows of `batch_size` contiguous streams of a split.

    Row r of a step goes on where row r of the step before ended, until the streams end and an epoch with them. The
    first start is drawn anew each epoch: the cuts move, and with them what does not fill a window of each stream, which
    an epoch leaves out before its first start and after its last window. Each other token is read once an epoch.
    """

    def __init__(self, tokens: Tokens, window: int, batch_size: int, seed: int) -> None:
        """Raises InputError where the split is shorter than one window of each stream."""
        if len(tokens) <= window * batch_size:
            raise InputError(
                f"the training text has {len(tokens)} tokens, and {batch_size} streams with a window of {window} need "
                f"{window * batch_size + 1}: give a longer text, a smaller --window or a smaller --batch-size"
            )
        self._tokens, self._window, self._batch_size, self._seed = tokens, window, batch_size, seed
        self.count = max(1, (len(tokens) - window) // (window * batch_size))  # windows of a stream
        self._phases = len(tokens) - self.count * window * batch_size  # the last target is one past the last window

    def epochs(self, steps: int) -> float:
        """How often the text has been read after so many steps."""
        return steps / self.count

    def tokens(self, steps: int) -> int:
        """Tokens that have been read after so many steps."""
        return steps * self._batch_size * self._window

    def batch(self, step: int) -> Batch:
        """The batch of a step, counted from 0. Shapes: (batch_size, window)."""
        return self.part(step, 0, 1)[0]

    def part(self, step: int, part: int, parts: int) -> tuple[Batch, int]:
        """Some rows of a step's batch, those of `shares`, and the target count of all; the others stay unread.

        Shapes: (rows, window).
        """
        epoch, place = divmod(step, self.count)
        first = _phase(self._seed, epoch) % self._phases
        rows = shares(self._batch_size, parts)[part]
        starts = first + (np.arange(rows.start, rows.stop) * self.count + place) * self._window
        windows = torch.from_numpy(self._tokens.windows(starts, self._window + 1))
        return Batch(windows[:, :-1], windows[:, 1:], continues=place > 0), self._batch_size * self._window


def evaluation_batches(tokens: Tokens, window: int, batch_size: int) -> Iterator[Batch]:
    """A whole split in back-to-back windows: every token but the first is a target once; the last may be shorter."""
    targets = max(0, len(tokens) - 1)
    whole = targets // window
    for first in range(0, whole, batch_size):
        starts = np.arange(first, min(first + batch_size, whole)) * window
        windows = torch.from_numpy(tokens.windows(starts, window + 1))
        yield Batch(windows[:, :-1], windows[:, 1:])
    if targets % window:
        rest = torch.from_numpy(tokens.windows(np.array([whole * window]), targets % window + 1))
        yield Batch(rest[:, :-1], rest[:, 1:])
