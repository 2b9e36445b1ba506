"""The scanner against the expressions, and texts in blocks."""

import itertools
import random

import numpy as np
import pytest
import regex
from hypothesis import given
from hypothesis import strategies as st

from scratchlm.errors import InputError
from scratchlm.tokenizers import splitting
from scratchlm.tokenizers.splitting import PATTERNS, SCANNED

# what the patterns tell apart, and what they might confuse: U+017F is an s in any case, U+1C no white space
MARKS = [
    *"ab'sStTrReEvVlLmMdD  \n\n\r\t.!(12345",
    *"\u017f\u00e9\u6f22\u5b57\u00a0\u3000\u00b2\u2167\U0001f600\u200b\x1c\x85\u0663\u01c5\u0301\u212a\u0130\udc80",
]
TEXTS = st.text(st.sampled_from(MARKS) | st.characters(exclude_categories=["Cs"]))
OTHERS = [r"\w+", r"(a)|(b+)", r"\s*", r".", r"a(?=b)|[^a]+"]


def chunks(text, pattern):
    starts = splitting.chunk_starts(splitting.code_points(text), pattern).tolist()
    return [text[start:end] for start, end in itertools.pairwise([*starts, len(text)])]


@pytest.mark.parametrize("pattern", SCANNED)
@given(TEXTS)
def test_the_scanner_finds_what_the_expression_finds(pattern, text):
    assert chunks(text, pattern) == regex.findall(PATTERNS[pattern], text)


@pytest.mark.parametrize("pattern", SCANNED)
@pytest.mark.parametrize("count", [5_000, pytest.param(1_000_000, marks=pytest.mark.slow)])
def test_the_scanner_finds_it_in_random_texts(pattern, count):
    draw, expression = random.Random(count), regex.compile(PATTERNS[pattern])
    for _ in range(count):
        text = "".join(draw.choices(MARKS, k=draw.randint(0, 12)))
        assert chunks(text, pattern) == expression.findall(text), repr(text)


@pytest.mark.parametrize("pattern", SCANNED)
def test_the_scanner_knows_each_code_point(pattern):
    for start in range(0, 0x110000, 0x4000):
        text = "a".join(map(chr, range(start, start + 0x4000)))
        assert chunks(text, pattern) == regex.findall(PATTERNS[pattern], text)


@pytest.mark.parametrize("pattern", [*SCANNED, "none", r"\S+|\s+"])
@given(st.lists(st.text(st.sampled_from("ab \n1.'s\u6f22"))), st.integers(1, 9))
def test_blocks_have_the_chunks_of_the_whole(pattern, parts, size):
    expression = splitting.compile_pattern(pattern)
    cut = list(splitting.blocks(parts, pattern, size))
    assert "".join(cut) == "".join(parts)
    assert [c for block in cut for c in splitting.split(block, expression)] == splitting.split(
        "".join(parts), expression
    )


@pytest.mark.parametrize("text", ["a word and a word " * 200, "Zeile\n" * 600, "слово за словом " * 200])
def test_blocks_are_not_much_longer_than_asked_for(text):
    assert max(map(len, splitting.blocks([text], "gpt4", 100))) < 120


@pytest.mark.parametrize("pattern", [*SCANNED, *OTHERS])
@given(TEXTS)
def test_different_chunks_are_numbered_in_the_order_of_the_text(pattern, text):
    expression = splitting.compile_pattern(pattern)
    expected = [chunk.encode("utf-8", "surrogateescape") for chunk in splitting.split(text, expression)]
    found, which = splitting.chunks_of(text, pattern, expression)
    assert [found[number] for number in which] == expected
    assert found == list(dict.fromkeys(expected))
    assert b"".join(expected) == text.encode("utf-8", "surrogateescape"), "nothing is lost"


@given(
    st.lists(st.integers(13, 18) | st.integers(0, 40), min_size=1), st.integers(1, 3), st.randoms(use_true_random=False)
)
def test_equal_chunks_are_equal_at_any_length(lengths, letters, draw):
    pieces = [bytes(draw.choices(range(letters), k=length)) for length in lengths if length]
    starts = np.cumsum([0, *map(len, pieces)])[:-1]
    found, which = splitting.distinct(b"".join(pieces), starts)
    assert [found[number] for number in which] == pieces
    assert found == list(dict.fromkeys(pieces))


def test_a_chunk_of_15_bytes_is_not_taken_for_the_start_of_a_longer_one():
    """Found by atheris."""
    found, which = splitting.distinct(b"+" * 19 + b"." + b"+" * 15, np.array([0, 19, 20]))
    assert (found, which.tolist()) == ([b"+" * 19, b".", b"+" * 15], [0, 1, 2])


def test_chunks_with_one_hash_are_told_apart(monkeypatch):
    """A hash that is always the same."""
    pieces = [bytes([1, draw % 7, draw % 5]) * (1 + draw % 9) for draw in range(500)]
    starts = np.cumsum([0, *map(len, pieces)])[:-1]
    monkeypatch.setattr(splitting, "MIX", np.uint64(0))
    found, which = splitting.distinct(b"".join(pieces), starts)
    assert [found[number] for number in which] == pieces


@pytest.mark.parametrize(("pattern", "message"), [("", "is empty"), ("(", "is no regular expression")])
def test_a_bad_pattern_is_refused(pattern, message):
    with pytest.raises(InputError, match=message):
        splitting.compile_pattern(pattern)
