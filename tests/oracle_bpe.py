"""Byte-pair encoding as its definition says it: slow, short, and what the real one is compared with."""

import itertools
from collections import Counter


def replace(ids, pair, token):
    """From left to right, without overlap."""
    out, at = [], 0
    while at < len(ids):
        both = tuple(ids[at : at + 2]) == pair
        out.append(token if both else ids[at])
        at += 2 if both else 1
    return out


def train(chunks, merges, first_token, ties_first):
    """Count all pairs anew for each merge. `chunks`: base ids of each chunk of the text, in its order."""
    chunks, made = [list(chunk) for chunk in chunks], []
    while len(made) < merges:
        counts = Counter()  # a dict: pairs stand in it in the order in which they come first
        for chunk in chunks:
            counts.update(itertools.pairwise(chunk))
        if not counts:
            break
        most = max(counts.values())
        tied = [pair for pair, count in counts.items() if count == most]
        made.append(tied[0] if ties_first else min(tied))
        chunks = [replace(chunk, made[-1], first_token + len(made) - 1) for chunk in chunks]
    return made


def encode(ids, merges, first_token):
    """Apply the merges one after another, each everywhere."""
    for number, pair in enumerate(merges):
        ids = replace(ids, pair, first_token + number)
    return ids
