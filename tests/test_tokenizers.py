"""Characters and bytes: text to ids and back, the file that a tokenizer travels in, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scratchlm import tokenizers
from scratchlm.errors import InputError
from scratchlm.tokenizers import (
    BPETokenizer,
    ByteTokenizer,
    CharacterTokenizer,
    IncrementalDecoder,
    PairTokenizer,
    SymbolTokenizer,
    exhaust,
    learn_pair,
)

SPECIAL = "<|endoftext|>"
LONE = "\ud83d"  # the first half of a surrogate pair
# a training text, and a text of its characters
LEARNT = st.text(min_size=1).flatmap(lambda seen: st.tuples(st.just(seen), st.text(st.sampled_from(sorted(set(seen))))))
# starts, middles and ends of characters, forbidden bytes and the end of a text, so that broken characters are common
BYTE_IDS = st.lists(
    st.integers(0, 256)
    | st.sampled_from([0x41, 0x80, 0xBF, 0xC2, 0xC0, 0xE2, 0x82, 0xAC, 0xED, 0xA0, 0xF0, 0x9F, 0x98, 0xF4, 0xFF, 256])
)


def reads_back(tokenizer, text, ids):
    """The text has these ids by every way of encoding, and they are the text by every way of decoding."""
    assert tokenizer.encode(text) == ids
    assert all(type(token) is int for token in tokenizer.encode(text))
    array = tokenizer.encode_array(text)
    assert array.dtype == np.uint32
    assert array.tolist() == ids
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode_bytes(ids) == text.encode()
    assert tokenizer.token_lengths()[array].sum() == len(text.encode())


@given(st.text())
def test_bytes_are_those_of_utf8_and_read_back(text):
    reads_back(ByteTokenizer(), text, list(text.encode()))


@given(LEARNT, st.booleans())
def test_characters_are_numbered_by_code_point_and_read_back(learnt, documents):
    seen, text = learnt
    tokenizer = CharacterTokenizer.train([seen[:2], seen[2:]], documents=documents)
    order = sorted(set(seen))
    assert tokenizer.vocab_size == len(order) + documents
    reads_back(tokenizer, text, [order.index(character) for character in text])


@given(BYTE_IDS)
def test_incremental_decoding_equals_decoding_at_once(ids):
    tokenizer = ByteTokenizer()
    decoder = IncrementalDecoder(tokenizer)
    parts = [decoder.push(token) for token in ids]
    assert "".join(parts) + decoder.flush() == tokenizer.decode(ids)


@given(st.text())
def test_incremental_decoding_shows_each_character_once_it_is_whole(text):
    decoder, shown = IncrementalDecoder(ByteTokenizer()), ""
    for character in text:
        *early, last = character.encode()
        assert [decoder.push(token) for token in early] == [""] * len(early)
        shown += decoder.push(last)
    assert shown == text
    assert decoder.flush() == ""


@given(st.text(min_size=1), st.booleans())
def test_a_saved_character_tokenizer_is_the_same_one(tmp_path_factory, seen, documents):
    path = tmp_path_factory.mktemp("characters") / "tokenizer.json"
    tokenizer = CharacterTokenizer.train([seen], documents=documents)
    tokenizer.save(path)
    loaded = tokenizers.load(path)
    assert type(loaded) is CharacterTokenizer
    assert loaded.sha256 == tokenizer.sha256
    assert path.read_bytes() == tokenizer.to_json().encode()
    assert (loaded.vocab_size, loaded.end_of_text, loaded.start) == (
        tokenizer.vocab_size,
        tokenizer.end_of_text,
        tokenizer.start,
    )
    reads_back(loaded, seen, tokenizer.encode(seen))


def test_a_saved_byte_tokenizer_is_the_same_one(tmp_path):
    path = tmp_path / "tokenizer.json"
    ByteTokenizer().save(str(path))
    loaded = tokenizers.load(str(path))
    assert type(loaded) is ByteTokenizer
    assert loaded.sha256 == ByteTokenizer().sha256
    reads_back(loaded, "é😀", list("é😀".encode()))


def test_the_hash_tells_tokenizers_apart():
    different = [
        ByteTokenizer(),
        CharacterTokenizer("ab"),
        CharacterTokenizer("ac"),
        CharacterTokenizer("ba"),
        CharacterTokenizer("ab", end_of_text=True),
    ]
    assert len({tokenizer.sha256 for tokenizer in different}) == len(different)
    assert CharacterTokenizer("ab").sha256 == CharacterTokenizer.train(["ba"]).sha256


@pytest.mark.parametrize(
    ("tokenizer", "end", "start"),
    [
        (ByteTokenizer(), 256, 256),
        (CharacterTokenizer("ab", end_of_text=True), 2, 2),
        (CharacterTokenizer("\t\nab"), None, 1),
        (CharacterTokenizer("ab"), None, 0),
    ],
    ids=["byte", "char of documents", "char with lines", "char"],
)
def test_end_and_start_of_a_text(tokenizer, end, start):
    assert (tokenizer.end_of_text, tokenizer.start) == (end, start)
    if end is not None:
        assert tokenizer.token_bytes(end) == b""
        assert tokenizer.token_lengths()[end] == 0
        assert tokenizer.decode([*tokenizer.encode("a"), end, *tokenizer.encode("b")]) == "ab"


@pytest.mark.parametrize("tokenizer", [ByteTokenizer(), CharacterTokenizer.train([SPECIAL], documents=True)])
def test_special_tokens_in_a_text_are_plain_text(tokenizer):
    ids = tokenizer.encode(SPECIAL)
    assert len(ids) == len(SPECIAL)
    assert tokenizer.end_of_text not in ids
    assert tokenizer.decode(ids) == SPECIAL


@pytest.mark.parametrize("unknown", ["b", "\0", "z", "é", "€", "😁", "\U0010ffff", LONE])
@pytest.mark.parametrize("before", ["", "a", "c\n😀"])
def test_an_unknown_character_is_named_with_its_position(before, unknown):
    tokenizer = CharacterTokenizer.train(["\nac😀"])
    for encode in (tokenizer.encode, tokenizer.encode_array):
        with pytest.raises(InputError) as caught:
            encode(f"{before}{unknown}a{unknown}")
        assert f"the character {unknown!r} at position {len(before)} was not in the training text" in str(caught.value)
        assert "--tokenizer byte" in str(caught.value)


def test_half_a_surrogate_pair_is_named():
    with pytest.raises(InputError, match=r"'\\ud83d' at position 2 is half a surrogate pair"):
        ByteTokenizer().encode(f"é😀{LONE}a{LONE}")
    for make in (lambda: CharacterTokenizer(f"ab{LONE}"), lambda: CharacterTokenizer.train(["b", f"{LONE}a"])):
        with pytest.raises(InputError, match=r"'\\ud83d' at position \d is half a surrogate pair"):
            make()


@pytest.mark.parametrize(
    ("tokenizer", "last"),
    [(ByteTokenizer(), 256), (CharacterTokenizer("ab"), 1), (CharacterTokenizer("ab", end_of_text=True), 2)],
)
def test_an_unknown_id_is_named_with_the_known_ones(tokenizer, last):
    for bad in (-1, last + 1, 10**9):
        for read in (
            tokenizer.token_bytes,
            lambda token: tokenizer.decode([0, token]),
            lambda token: tokenizer.decode_bytes([0, token]),
            IncrementalDecoder(tokenizer).push,
        ):
            with pytest.raises(InputError, match=f"no token has the id {bad}; this tokenizer has 0 to {last}$"):
                read(bad)


@pytest.mark.parametrize("texts", [[], [""], ["", ""]])
@pytest.mark.parametrize("documents", [False, True])
def test_an_empty_training_text_is_refused(texts, documents):
    with pytest.raises(InputError, match="the text is empty"):
        CharacterTokenizer.train(texts, documents=documents)


@pytest.mark.parametrize("characters", ["", "aba"])
def test_a_vocabulary_has_each_character_once(characters):
    with pytest.raises(InputError, match="each one once"):
        CharacterTokenizer(characters)


def changed(tokenizer=CharacterTokenizer("ab"), **changes):  # noqa: B008 - tokenizers do not change
    """A good file's text with some of its values changed; None takes one out."""
    content = {**json.loads(tokenizer.to_json()), **changes}
    return json.dumps({name: value for name, value in content.items() if value is not None})


PAIR = PairTokenizer(CharacterTokenizer("ab"), SymbolTokenizer(["AH", "B"]))
NO_FILE = "is no tokenizer file of scratchlm, or it is damaged"
DAMAGED = {
    "empty": ("", NO_FILE),
    "cut": (CharacterTokenizer("ab").to_json()[:-5], NO_FILE),
    "no UTF-8": (b'{"kind": "\xff"}', NO_FILE),
    "a list": ("[]", NO_FILE),
    "a number": ("3", NO_FILE),
    "nothing": ("null", NO_FILE),
    "no names": ("{}", NO_FILE),
    "no kind": (changed(kind=None), NO_FILE),
    "no version": (changed(format_version=None), NO_FILE),
    "newer version": (changed(format_version=2), "has format version 2; this scratchlm reads version 1"),
    "version in words": (changed(format_version="1"), "has format version '1'; this scratchlm reads version 1"),
    "near kind": (changed(kind="chars"), "unknown tokenizer 'chars': did you mean 'char'?"),
    "far kind": (changed(kind="zzz"), "unknown tokenizer 'zzz': choose from: bpe, byte, char"),
    "kind in a list": (changed(kind=["char"]), "unknown tokenizer"),
    "no characters": (changed(characters=None), "is damaged"),
    "empty characters": (changed(characters=""), "is damaged"),
    "a character twice": (changed(characters="aa"), "is damaged"),
    "characters as number": (changed(characters=5), "is damaged"),
    "characters in a list": (changed(characters=["a", "b"]), "is damaged"),
    "half a character": (changed(characters=f"a{LONE}"), "is damaged"),
    "no special tokens": (changed(special_tokens=None), "is damaged"),
    "special tokens as number": (changed(special_tokens=5), "is damaged"),
    "special token on a character": (changed(special_tokens={SPECIAL: 0}), "is damaged"),
    "unknown special token": (changed(special_tokens={"<|pad|>": 2}), "is damaged"),
    "no symbols": (changed(SymbolTokenizer("ab"), symbols=None), "is damaged"),
    "symbols as one string": (changed(SymbolTokenizer("ab"), symbols="ab"), "its symbols are str, not a list"),
    "a symbol twice": (changed(SymbolTokenizer("ab"), symbols=["a", "a"]), "each one once"),
    "a symbol with a space": (changed(SymbolTokenizer("ab"), symbols=["a b"]), "has white space, which parts symbols"),
    "a number for a symbol": (changed(SymbolTokenizer("ab"), symbols=[1]), "is damaged"),
    "special token on a symbol": (changed(SymbolTokenizer("ab"), special_tokens={SPECIAL: 1}), "its special tokens ar"),
    "a pair without a target": (changed(PAIR, target=None), "is damaged"),
    "a pair of the unknown": (
        changed(PAIR, target={"kind": "char5"}),
        "its target is an unknown 'char5': did you mean",
    ),
    "a pair of a pair": (changed(PAIR, source=json.loads(changed(PAIR))), "a side of a pair cannot be a pair itself"),
    "a pair of a damaged side": (changed(PAIR, source={"kind": "char", "characters": ""}), "is damaged"),
    "byte with settings": (changed(ByteTokenizer(), size=3), "a byte tokenizer has no settings, this has size"),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_file_is_refused(damage, tmp_path):
    content, message = DAMAGED[damage]
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError) as caught:
        tokenizers.load(path)
    assert isinstance(caught.value, ValueError)
    assert str(path) in str(caught.value)
    assert message in str(caught.value)


@pytest.mark.parametrize("name", ["missing.json", "."])
def test_a_file_that_cannot_be_read_is_named(name, tmp_path):
    with pytest.raises(InputError, match="cannot read the tokenizer") as caught:
        tokenizers.load(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)


@pytest.mark.parametrize(
    ("texts", "vocab_size", "end"), [(["cab"], 3, None), (["ca", "b"], 4, 3), (["caab", "b", "\n"], 5, 4)]
)
def test_train_by_kind_parts_documents_only_where_there_are_several(texts, vocab_size, end):
    tokenizer = tokenizers.train("char", texts)
    assert type(tokenizer) is CharacterTokenizer
    assert (tokenizer.vocab_size, tokenizer.end_of_text) == (vocab_size, end)
    assert type(tokenizers.train("byte", texts)) is ByteTokenizer


def test_train_loads_a_file_and_a_kind_comes_before_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("mine.json", "byte"):
        CharacterTokenizer("xyz").save(name)
    assert tokenizers.train("mine.json", ["other text"]).sha256 == CharacterTokenizer("xyz").sha256
    assert tokenizers.train(str(tmp_path / "mine.json"), []).sha256 == CharacterTokenizer("xyz").sha256
    assert type(tokenizers.train("byte", ["text"])) is ByteTokenizer
    Path("bad.json").write_text("{", encoding="utf-8")
    with pytest.raises(InputError, match=r"bad\.json is no tokenizer file"):
        tokenizers.train("bad.json", ["text"])


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("chr", "did you mean 'char'"),
        ("bytes", "did you mean 'byte'"),
        ("", "choose from: bpe, byte, char"),
        (".", "choose"),
    ],
)
def test_train_refuses_what_is_neither_kind_nor_file(name, remedy):
    with pytest.raises(InputError, match=remedy) as caught:
        tokenizers.train(name, ["text"])
    assert f"no tokenizer {name!r}: it is neither a file nor a kind" in str(caught.value)


# Symbols

SYMBOLS = st.text(st.characters(exclude_categories=["Cs", "Z"]), min_size=1).filter(lambda text: text.split() == [text])
# symbols that were learned, and some of them with white space of any kind between
PHRASES = st.lists(SYMBOLS | st.just(SPECIAL), min_size=1).flatmap(
    lambda learnt: st.tuples(
        st.just(learnt),
        st.lists(st.tuples(st.sampled_from(learnt), st.sampled_from([" ", "\n", "\t ", "\u2003", "\x85"]))),
    )
)


@given(PHRASES, st.booleans())
def test_symbols_are_numbered_in_order_and_read_back(tmp_path_factory, phrases, documents):
    learnt, said = phrases
    tokenizer = SymbolTokenizer.train([" ".join(learnt[:2]), "\n".join(learnt[2:])], documents=documents)
    order, text = sorted(set(learnt)), "".join(symbol + space for symbol, space in said)
    ids = tokenizer.encode(text)
    assert tokenizer.symbols == order
    assert (tokenizer.vocab_size, tokenizer.end_of_text) == (len(order) + documents, len(order) if documents else None)
    assert ids == [order.index(symbol) for symbol, _ in said]
    assert tokenizer.decode(ids) == " ".join(text.split())
    assert tokenizer.encode(tokenizer.decode(ids)) == ids
    spaced = "".join(f"{symbol} " for symbol, _ in said).encode()
    assert tokenizer.decode_bytes(ids) == spaced
    assert tokenizer.token_lengths()[ids].sum() == len(spaced)
    path = tmp_path_factory.mktemp("symbols") / "tokenizer.json"
    tokenizer.save(path)
    loaded = tokenizers.load(path)
    assert type(loaded) is SymbolTokenizer
    assert (loaded.to_json(), loaded.encode(text), loaded.start) == (tokenizer.to_json(), ids, tokenizer.start)


def test_an_unknown_symbol_is_named_with_its_position():
    tokenizer = SymbolTokenizer.train(["AH B", "C"])
    with pytest.raises(InputError, match=r"the symbol 'A' at position 5 was not in the training text.*leave it out"):
        tokenizer.encode("AH  \nA AH XX")
    assert tokenizer.encode(" \n") == []
    assert tokenizer.encode_array("").dtype == np.uint32


@pytest.mark.parametrize("texts", [[], [" \n"]])
def test_no_symbols_are_refused(texts):
    with pytest.raises(InputError, match="the text is empty: there is no symbol to learn from"):
        SymbolTokenizer.train(texts)
    with pytest.raises(InputError, match=r"'\\ud83d' at position 0 is half a surrogate pair"):
        SymbolTokenizer([LONE])


# Pairs


def test_one_tokenizer_is_that_of_both_sides():
    for tokenizer in (ByteTokenizer(), CharacterTokenizer("ab"), SymbolTokenizer("ab"), BPETokenizer([])):
        assert tokenizer.source is tokenizer.target is tokenizer


def test_the_sides_of_a_pair_share_one_id_space(tmp_path):
    PAIR.save(tmp_path / "pair.json")
    for pair in (PAIR, tokenizers.load(tmp_path / "pair.json")):
        assert (pair.vocab_size, pair.end_of_text, pair.start) == (5, 4, 4)
        assert [pair.token_bytes(token) for token in range(5)] == [b"a", b"b", b"AH ", b"B ", b""]
        assert pair.token_lengths().tolist() == [1, 1, 3, 2, 0]
        assert (pair.source.encode("ba"), pair.target.encode(" B AH\n")) == ([1, 0], [3, 2])
        assert pair.source.encode_array("a").dtype == pair.target.encode_array("B").dtype == np.uint32
        for view in (pair, pair.source, pair.target, pair.source.target):
            assert view.decode([1, 0]) == "ba"
            assert view.decode(np.array([3, 2])) == "B AH"
            assert view.decode([1, 0, 4, 3, 2, 4]) == "baB AH"
            assert (view.vocab_size, view.end_of_text, view.sha256) == (5, 4, PAIR.sha256)
            for bad in (-1, 5):
                with pytest.raises(InputError, match=f"no token has the id {bad}; this tokenizer has 0 to 4"):
                    view.decode([bad])
        with pytest.raises(InputError, match=r"two sides; encode with its \.source or its \.target"):
            pair.encode("ab")
        with pytest.raises(InputError, match="the character 'c' at position 1"):
            pair.source.encode("ac")
        with pytest.raises(InputError, match="the symbol 'b' at position 0"):
            pair.target.encode("b")


def test_symbols_of_both_sides_stay_apart():
    pair = PairTokenizer(SymbolTokenizer(["A", "B"]), SymbolTokenizer(["C", "D"]))
    assert pair.decode([0, 1, 4, 2, 3, 4]) == "A B C D"
    assert pair.decode([0, 2, 0]) == "A C A"
    assert pair.decode([0, 1, 4]) == pair.source.decode(pair.source.encode(" A\nB ")) == "A B"
    assert pair.decode([]) == ""
    mixed = PairTokenizer(SymbolTokenizer(["A", "B"]), CharacterTokenizer("xy "))
    assert mixed.decode([0, 1, 5, 3, 2, 5]) == "A B yx"
    assert mixed.decode([*mixed.source.encode("B"), *mixed.target.encode("x ")]) == "B x "


def test_symbols_one_by_one_have_the_last_space_too():
    symbols = SymbolTokenizer(["A", "B"])
    decoder = tokenizers.IncrementalDecoder(symbols)
    parts = [decoder.push(token) for token in (0, 1)] + [decoder.flush()]
    assert "".join(parts) == "A B " == symbols.decode([0, 1]) + " "


@given(LEARNT, PHRASES)
def test_pairs_learn_each_side_by_itself(sources, targets):
    (seen, text), (symbols, _) = sources, targets
    pair = exhaust(learn_pair("char+symbols", [seen], symbols))
    assert isinstance(pair, PairTokenizer)
    assert pair.vocab_size == len(set(seen)) + len(set(symbols)) + 1
    assert pair.source.decode(pair.source.encode(text)) == text
    assert max(pair.source.encode(seen)) < min(pair.target.encode(" ".join(symbols)))
    assert pair.end_of_text not in pair.target.encode(" ".join(symbols))


def test_a_pair_may_be_of_any_kinds_and_files(tmp_path):
    CharacterTokenizer("xyz").save(tmp_path / "mine.json")
    pair = exhaust(learn_pair(f"{tmp_path / 'mine.json'}+bpe", ["ignored"], ["to be or not to be"] * 9, 260))
    assert (pair.vocab_size, pair.source.encode("zx")) == (3 + 260 + 1, [2, 0])
    assert pair.target.decode(pair.target.encode("not two")) == "not two"
    both = exhaust(learn_pair("byte+byte", ["a"], ["b"]))
    assert (both.source.encode("é"), both.target.encode("é")) == ([195, 169], [257 + 195, 257 + 169])


def test_another_name_means_one_tokenizer_for_both_sides(tmp_path):
    both = exhaust(learn_pair("char", ["ab"], ["bc"]))
    assert (type(both), both.characters, both.end_of_text) == (CharacterTokenizer, "abc", 3)
    shared = exhaust(learn_pair("bpe", ["to be or not"] * 9, ["sein oder nicht"] * 9, 270))
    assert shared.source is shared.target is shared
    assert (shared.vocab_size, shared.end_of_text) == (271, 270)
    path = tmp_path / "a+b"
    CharacterTokenizer("xyz", end_of_text=True).save(path)
    assert exhaust(learn_pair(str(path), [], [])).encode("z") == [2]
    CharacterTokenizer("xyz").save(path)
    with pytest.raises(InputError, match="has no end-of-text token, which parts a source from its target"):
        exhaust(learn_pair(str(path), [], []))


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("char+symbol", None, "no tokenizer 'symbol': it is neither a file nor a kind; did you mean 'symbols'"),
        ("char+", None, "no tokenizer ''"),
        ("char+symbols+bpe", None, "no tokenizer 'char\\+symbols\\+bpe'"),
        ("pair", None, "named by those of its two sides, as in --tokenizer char\\+symbols"),
        ("pair+char", None, "named by those of its two sides"),
        ("char+symbols", 300, "that of a char tokenizer is not for choosing"),
    ],
)
def test_a_name_that_means_no_pair_is_refused(name, size, message):
    with pytest.raises(InputError, match=message):
        exhaust(learn_pair(name, ["a"], ["b"], size))


def test_a_word_has_the_space_before_it_unless_that_is_a_token_of_its_own():
    merged = BPETokenizer.train(["the sea the sea the sea"], vocab_size=262)
    (sea,) = merged.encode_word("sea")
    assert merged.token_bytes(sea) == b" sea"
    assert ByteTokenizer().encode_word("sea") == list(b"sea")
    assert CharacterTokenizer(" aes").decode(CharacterTokenizer(" aes").encode_word("sea")) == "sea"
    assert CharacterTokenizer("aes").encode_word("sea") == [2, 1, 0], "a vocabulary may have no space"
    with pytest.raises(InputError, match="'x' at position 0"):
        CharacterTokenizer("aes").encode_word("x")
