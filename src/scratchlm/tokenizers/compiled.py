"""The tokenizers' inner loops compiled by numba, where it is installed (`pip install 'scratchlm[fast]'`).

`merges` and `merge_long` are the functions of merging.py as they stand; `encode` does in one loop what the tokenizer
does in several numpy calls without numba.
"""

from typing import Any

import numpy as np
from numba import njit
from numba.extending import register_jitable

from scratchlm.tokenizers import merging

register_jitable(merging.link)
merges = njit(cache=True)(merging.merges)
merge_long = njit(cache=True)(merging.merge_long)
SHORT, NONE = merging.SHORT, merging.NONE
PROBES = 32  # places that a chunk is looked for at; where a text was made to collide, it is merged anew


@njit(cache=True)
def pair_table(pairs: np.ndarray, tokens: np.ndarray) -> Any:
    """The dictionary `ranks` of `merge_long`. Shapes: pairs (M,) int64, tokens (M,) int64."""
    table = {-1: -1}
    for at in range(len(pairs)):
        table[pairs[at]] = tokens[at]
    return table


@njit(cache=True)
def merge_short(ids: np.ndarray, ranks: Any, made: np.ndarray) -> int:
    """Merge the ids in place; returns how many are left. `made`: memory for what each pair makes. Shapes: ids (N,)."""
    size = len(ids)
    for at in range(size - 1):
        made[at] = ranks.get(ids[at] << 32 | ids[at + 1], NONE)
    while size > 1:
        first = 0
        for at in range(1, size - 1):
            if made[at] < made[first]:
                first = at
        token = made[first]
        if token == NONE:
            break
        ids[first] = token
        size -= 1
        for at in range(first + 1, size):
            ids[at] = ids[at + 1]
            made[at - 1] = made[at]
        if first < size - 1:
            made[first] = ranks.get(token << 32 | ids[first + 1], NONE)
        if first > 0:
            made[first - 1] = ranks.get(ids[first - 1] << 32 | token, NONE)
    return size


@njit(cache=True)
def encode(base: np.ndarray, starts: np.ndarray, ranks: Any) -> np.ndarray:
    """The tokens of a text. Each chunk is merged where it comes first; where it comes again, its tokens are copied.

    Shapes: base (N,), the ids that the text has before any merge; starts (C,), where the chunks start in it
    -> (tokens,) uint32.
    """
    out = np.empty(len(base), np.uint32)
    made = np.empty(SHORT, np.int64)
    begins, ends = np.empty(len(starts), np.int64), np.empty(len(starts), np.int64)  # where a chunk's tokens are
    bits = 4
    while 1 << bits < 2 * len(starts):
        bits += 1
    slots = np.zeros(1 << bits, np.int64)  # by hash: a chunk + 1, or 0
    filled = 0
    for chunk in range(len(starts)):
        start = starts[chunk]
        end = starts[chunk + 1] if chunk + 1 < len(starts) else len(base)
        code = np.uint64(end - start)
        for at in range(start, end):
            code = (code ^ np.uint64(base[at])) * np.uint64(0x9E3779B97F4A7C15)
        slot = np.int64(code >> np.uint64(64 - bits))
        begins[chunk] = filled
        found, probes = -1, 0
        while slots[slot] and found < 0 and probes < PROBES:
            other = slots[slot] - 1
            begin = starts[other]
            same = starts[other + 1] - begin == end - start
            for at in range(end - start if same else 0):
                if base[begin + at] != base[start + at]:
                    same = False
                    break
            if same:
                found = other
            else:
                slot = (slot + 1) & ((1 << bits) - 1)
                probes += 1
        if found >= 0:
            for at in range(begins[found], ends[found]):
                out[filled] = out[at]
                filled += 1
        else:
            if probes < PROBES:
                slots[slot] = chunk + 1
            ids = base[start:end].astype(np.int64)
            if len(ids) > SHORT:
                for token in merge_long(ids, ranks):  # type: ignore[bad-argument-type] - compiled for arrays
                    out[filled] = token
                    filled += 1
            else:
                size = merge_short(ids, ranks, made)
                for at in range(size):
                    out[filled] = ids[at]
                    filled += 1
        ends[chunk] = filled
    return out[:filled]
