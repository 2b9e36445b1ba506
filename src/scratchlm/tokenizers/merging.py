"""Byte-pair encoding's training: which pair of neighbours becomes a token next.

Papers: Gage 1994, "A New Algorithm for Data Compression"; Sennrich et al. 2016, algorithm 1, which counts all pairs
anew for each merge. Here a merge touches only what it changes:

- Equal chunks stay equal, so each one is there once, with a weight: how often it occurs.
- A merge of (a, b) into c changes only pairs beside a merged place, and each new pair has c in it. So all places of a
  pair are found in one pass, from left to right, and later they only get fewer: what the heap holds for a pair is
  never too low, and the pair on top is the right one if it is up to date; else it goes back as what it is now.

`merges` and `merge_long` are plain Python that numba compiles as it stands (compiled.py).
"""

import heapq
import itertools
from collections.abc import Iterator, Mapping, MutableSequence, Sequence

Merge = tuple[int, int, int]  # left id, right id, how often they stood side by side


def link(
    pair: int,
    place: int,
    weight: int,
    slots: dict[int, int],
    pairs: list[int],
    counts: list[int],
    firsts: list[int],
    lasts: list[int],
    places: list[int],
    nexts: list[int],
    fresh: list[int],
) -> None:
    """Count one more place of a pair; a pair that is not known yet gets a slot, and is named in `fresh`."""
    slot = slots.get(pair, 0)
    if slot == 0:
        slot = len(pairs)
        slots[pair] = slot
        pairs.append(pair)
        counts.append(0)
        firsts.append(len(places))
        lasts.append(0)
        fresh.append(slot)
    else:
        nexts[lasts[slot]] = len(places)
    lasts[slot] = len(places)
    places.append(place)
    nexts.append(0)
    counts[slot] += weight


def merges(
    ids: MutableSequence[int], ends: Sequence[int], weights: Sequence[int], token: int, ties_first: bool
) -> Iterator[Merge]:
    """The merges in order, until no pair is left: the first makes the id `token`, the second `token + 1`, and so on.

    Of pairs that occur equally often, the one with the smallest ids is taken, or with `ties_first` the one whose
    first place comes first.
    Shapes: ids (N,), the chunks one after another, at least one, overwritten; ends (chunks,), where each ends in
    `ids`; weights (chunks,), how often each occurs.
    """
    size = len(ids)
    before = [at - 1 for at in range(size)]  # the neighbours of a place as merged so far; -1: the chunk ends there
    after = [at + 1 for at in range(size)]
    weight_at = [0 for _ in range(size)]
    start = 0
    for chunk in range(len(ends)):
        end = ends[chunk]
        for at in range(start, end):
            weight_at[at] = weights[chunk]
        before[start], after[end - 1] = -1, -1
        start = end

    slots = {-1: 0}  # the number of each pair, which is left << 32 | right; number 0 is none
    pairs, counts = [0], [0]  # by number: the pair, how often it occurs
    firsts, lasts = [0], [0]  # by number: the ends of its chain
    places, nexts = [0], [0]  # links of the chains: where a pair's left token is; the next link, 0 at the end
    fresh = [0]  # numbers of pairs that the newest merge has made
    fresh.clear()
    heap = [(0, 0, 0)]  # minus the count, what decides between equals, the number
    heap.clear()

    for at in range(size):
        if after[at] >= 0:
            pair = ids[at] << 32 | ids[after[at]]
            link(pair, at, weight_at[at], slots, pairs, counts, firsts, lasts, places, nexts, fresh)
    while True:
        for number in fresh:
            order = places[firsts[number]] if ties_first else pairs[number]
            heapq.heappush(heap, (-counts[number], order, number))
        fresh.clear()

        count, left, right, number = 0, 0, 0, 0
        while heap:
            negative, order, number = heapq.heappop(heap)
            left, right = pairs[number] >> 32, pairs[number] & 0xFFFFFFFF
            now = order
            if ties_first and counts[number]:
                while True:  # places that have been merged away are no longer the first
                    at = places[firsts[number]]
                    if ids[at] == left and after[at] >= 0 and ids[after[at]] == right:
                        break
                    firsts[number] = nexts[firsts[number]]
                now = at
            if negative == -counts[number] and now == order:
                count = counts[number]
                break
            if counts[number]:
                heapq.heappush(heap, (-counts[number], now, number))
        if count == 0:
            return
        yield left, right, count

        chain = firsts[number]
        while chain:
            at, chain = places[chain], nexts[chain]
            second = after[at]
            if ids[at] != left or second < 0 or ids[second] != right:
                continue
            previous, following, weight = before[at], after[second], weight_at[at]
            ids[at], ids[second], after[at] = token, -1, following
            if previous >= 0:
                counts[slots[ids[previous] << 32 | left]] -= weight
                pair = ids[previous] << 32 | token
                link(pair, previous, weight, slots, pairs, counts, firsts, lasts, places, nexts, fresh)
            if following >= 0:
                before[following] = at
                counts[slots[right << 32 | ids[following]]] -= weight
                pair = token << 32 | ids[following]
                link(pair, at, weight, slots, pairs, counts, firsts, lasts, places, nexts, fresh)
        counts[number] = 0
        token += 1


SHORT = 64  # ids up to which looking through them all is faster than a heap
NONE = 1 << 62


def merge_short(ids: list[int], ranks: Mapping[int, int]) -> list[int]:
    """The tokens of one chunk: of all neighbours that make a token, those of the lowest id first, from the left.

    `ranks` has the token that a pair makes, by left << 32 | right.
    """
    get = ranks.get
    made = [get(left << 32 | right, NONE) for left, right in itertools.pairwise(ids)]
    while made and (token := min(made)) != NONE:
        at = made.index(token)
        ids[at : at + 2] = [token]
        del made[at]
        if at < len(made):
            made[at] = get(token << 32 | ids[at + 1], NONE)
        if at:
            made[at - 1] = get(ids[at - 1] << 32 | token, NONE)
    return ids


def merge_long(ids: MutableSequence[int], ranks: Mapping[int, int]) -> list[int]:
    """What `merge_short` does, in O(n log n) steps for n ids: a long chunk takes no more time for each id."""
    size = len(ids)
    before = [at - 1 for at in range(size)]
    after = [at + 1 for at in range(size)]
    heap = [0]  # token << 32 | place of its left half
    heap.clear()
    for at in range(size - 1):
        token = ranks.get(ids[at] << 32 | ids[at + 1], -1)
        if token >= 0:
            heap.append(token << 32 | at)
    heapq.heapify(heap)
    while heap:
        top = heapq.heappop(heap)
        token, at = top >> 32, top & 0xFFFFFFFF
        second = after[at]
        if ids[at] < 0 or second >= size:
            continue
        made = ranks.get(ids[at] << 32 | ids[second], -1)
        if made != token:
            continue  # one of its halves has gone into another token
        following, previous = after[second], before[at]
        ids[at], ids[second], after[at] = token, -1, following
        if following < size:
            before[following] = at
            made = ranks.get(token << 32 | ids[following], -1)
            if made >= 0:
                heapq.heappush(heap, made << 32 | at)
        if previous >= 0:
            made = ranks.get(ids[previous] << 32 | token, -1)
            if made >= 0:
                heapq.heappush(heap, made << 32 | previous)
    return [token for token in ids if token >= 0]
