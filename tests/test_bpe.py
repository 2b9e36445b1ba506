"""Byte-pair encoding against its definition, rustbpe, tokenizers and tiktoken; special tokens; what is refused."""

import json
import pickle
import random

import pytest
import regex
import rustbpe
import tiktoken
from hypothesis import assume, given
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

import oracle_bpe
from scratchlm import tokenizers
from scratchlm.data import corpora
from scratchlm.data.shards import encode_documents
from scratchlm.errors import InputError
from scratchlm.tokenizers import (
    BPETokenizer,
    ByteTokenizer,
    CharacterTokenizer,
    IncrementalDecoder,
    bpe,
    learning,
    merging,
)
from scratchlm.tokenizers.splitting import PATTERNS

pytestmark = pytest.mark.filterwarnings("ignore:.*tokens were asked for")  # short texts support few
PLAYS = corpora.get("shakespeare-tiny")
# overlaps, ties without end, and all that the patterns look at
ADVERSARIAL = (
    "aaaa abab aab " * 20
    + "".join(f"{a}{b}" for a in "abcde" for b in "abcde")
    + "don't 12345 \n\n  \t\u6f22\u5b57 \U0001f600\x00\xa0"
)
TEXTS = {"plays": PLAYS[:40_000], "adversarial": ADVERSARIAL, "no spaces": "ab" * 500 + "ba" * 300}
ANY = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("ab 's\n1"))
SPECIALS = ("<|endoftext|>", "<|end|>", "<|end|>of", "\u6f22")


@pytest.fixture(params=["plain", "compiled"])
def loops(request, monkeypatch):
    """Each test runs with the plain loops and with the compiled ones, however short its texts are."""
    compiled = learning.compiled_loops()
    assert compiled is not None, "numba belongs to the extra dev"
    for module in (bpe, learning):
        monkeypatch.setattr(module, "compiled_loops", lambda: None if request.param == "plain" else compiled)
        monkeypatch.setattr(module, "WORTH_COMPILING", 0)
    monkeypatch.setattr(bpe, "SMALL", 0)


@pytest.fixture(scope="module")
def tokenizer():
    return BPETokenizer.train([PLAYS[:200_000]], vocab_size=1500, special=SPECIALS)


# training


@pytest.mark.parametrize("ties", ["gpt2", "ids", "first"])
@given(st.lists(st.text(st.sampled_from("abc "), max_size=30), max_size=4))
def test_training_is_what_the_definition_says(ties, texts):
    assume(any(texts))
    found = BPETokenizer.train(texts, vocab_size=300, ties=ties, pattern="gpt2")
    chunks = [found._base_ids(c.encode()) for text in texts for c in regex.findall(PATTERNS["gpt2"], text)]
    assert found.merges == oracle_bpe.train(chunks, 44, 256, ties == "first")


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("pattern", ["gpt2", "gpt4", "none"])
def test_ties_first_takes_the_pair_that_comes_first(pattern, text, loops):
    """Minbpe's rule: the first of the largest counts in a dict that is filled from left to right."""
    part = TEXTS[text][:4000]
    found = BPETokenizer.train([part], vocab_size=306, ties="first", pattern=pattern)
    chunks = [list(chunk.encode()) for chunk in regex.findall(PATTERNS[pattern], part)]
    assert found.merges == oracle_bpe.train(chunks, 50, 256, ties_first=True)


def train_rustbpe(texts, pattern, vocab_size):
    reference = rustbpe.Tokenizer()
    reference.train_from_iterator(texts, vocab_size, pattern=PATTERNS[pattern])
    return {bytes(token): rank for token, rank in reference.get_mergeable_ranks()}


def train_hf(texts, pattern, vocab_size):
    reference = Tokenizer(models.BPE())
    cut = pre_tokenizers.Split(Regex(PATTERNS[pattern]), "isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    reference.pre_tokenizer = pre_tokenizers.Sequence([cut, to_bytes])
    reference.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False)
    reference.train_from_iterator(texts, trainer)
    return reference


def as_bytes(token):
    """A token of the tokenizers library, in whose text each byte is one printable character."""
    values = {chr(256 + at): value for at, value in enumerate(bpe.byte_values("gpt2")[188:])}
    return bytes(values.get(character, ord(character)) for character in token)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("pattern", ["gpt2", "gpt4"])
def test_ties_by_ids_make_the_vocabulary_of_rustbpe(pattern, text, loops):
    texts = [TEXTS[text], ADVERSARIAL[::-1]]
    found = BPETokenizer.train(texts, vocab_size=500, ties="ids", pattern=pattern)
    assert found.mergeable_ranks() == train_rustbpe(texts, pattern, 500)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("pattern", ["gpt2", "gpt4"])
def test_ties_as_gpt2_make_the_vocabulary_of_tokenizers(pattern, text, loops):
    texts = [TEXTS[text], ADVERSARIAL[::-1]]
    found = BPETokenizer.train(texts, vocab_size=500, pattern=pattern)
    reference = train_hf(texts, pattern, 500)
    assert found.mergeable_ranks() == {as_bytes(token): number for token, number in reference.get_vocab().items()}
    assert found.encode(PLAYS[:50_000]) == reference.encode(PLAYS[:50_000]).ids


@pytest.mark.slow
@pytest.mark.parametrize("pattern", ["gpt2", "gpt4"])
def test_a_whole_corpus_makes_the_vocabularies_of_both(pattern, loops):
    text = corpora.get("shakespeare")
    ids = BPETokenizer.train([text], vocab_size=8192, ties="ids", pattern=pattern)
    assert ids.mergeable_ranks() == train_rustbpe([text], pattern, 8192)
    gpt2, reference = BPETokenizer.train([text], vocab_size=8192, pattern=pattern), train_hf([text], pattern, 8192)
    assert gpt2.mergeable_ranks() == {as_bytes(token): number for token, number in reference.get_vocab().items()}
    assert gpt2.encode(text) == reference.encode(text).ids


def test_counts_do_not_overflow(loops):
    """32 bits would call 2**32 + 1 a single occurrence."""
    sequences = learning.Sequences([([3, 4], 1000), ([1, 2], (1 << 32) + 1)])
    merges = tokenizers.exhaust(learning.learn_merges(sequences, 256, 2, ties_first=False))
    assert merges == [(1, 2), (3, 4)]


@given(st.lists(st.integers(0, 2), min_size=1, max_size=40))
def test_counts_never_grow_and_no_token_is_made_twice(ids):
    found = list(merging.merges(list(ids), [len(ids)], [1], 3, False))
    counts = [count for _, _, count in found]
    assert counts == sorted(counts, reverse=True)
    tokens = [bytes([number]) for number in range(3)]
    for left, right, _ in found:
        tokens.append(tokens[left] + tokens[right])
    assert len(set(tokens)) == len(tokens)
    assert tokens[-1] == bytes(ids) or len(ids) < 2, "until no pair is left"


@pytest.mark.parametrize("ties", ["gpt2", "first"])
@pytest.mark.parametrize("pattern", ["gpt4", "none"])
def test_neither_blocks_nor_workers_change_the_result(ties, pattern, monkeypatch):
    texts = [PLAYS[:30_000], "", "\u6f22" * 3000, ADVERSARIAL]
    in_parts = [[PLAYS[:7], PLAYS[7:20_000], PLAYS[20_000:30_000]], [], ["\u6f22" * 1000] * 3, ADVERSARIAL]
    expected = tokenizers.exhaust(learning.count_texts(texts, pattern))
    for size, workers, given_texts in [(500, 1, texts), (3000, 1, in_parts), (4000, 2, texts), (9000, 3, in_parts)]:
        counts = tokenizers.exhaust(learning.count_texts(given_texts, pattern, workers, size))
        assert counts == expected
        assert list(counts) == list(expected), "the order decides ties"
    alone = BPETokenizer.train(texts, vocab_size=350, ties=ties, pattern=pattern)
    assert BPETokenizer.train(in_parts, vocab_size=350, ties=ties, pattern=pattern, workers=2).sha256 == alone.sha256


def test_a_text_that_supports_fewer_tokens_is_said():
    with pytest.warns(UserWarning, match="300 tokens were asked for, the text supports 258: no pair is left"):
        assert BPETokenizer.train(["abc"], vocab_size=300).vocab_size == 258
    with pytest.warns(UserWarning, match="supports 256"):
        assert BPETokenizer.train(["a"], vocab_size=300).encode("a") == [64]


def test_special_tokens_come_on_top():
    found = BPETokenizer.train([PLAYS[:3000]], vocab_size=300, special=["<a>", "<b>"], documents=True)
    assert found.special_tokens == {"<a>": 300, "<b>": 301, "<|endoftext|>": 302}
    assert (found.vocab_size, found.end_of_text, found.start) == (303, 302, 302)
    plain = BPETokenizer.train([PLAYS[:3000]], vocab_size=300)
    assert plain.merges == found.merges
    assert plain.decode([plain.start]) == "\n"


BAD = {
    "too small": ({"vocab_size": 255}, "at least 256"),
    "no pattern": ({"pattern": "("}, "no regular expression"),
    "coverage": ({"coverage": 0.0}, "the coverage is 0.0"),
    "workers": ({"workers": 0}, "the number of workers is 0"),
    "ties": ({"ties": "last"}, "ties is 'last'; it must be one of gpt2, ids, first"),
    "level": ({"level": "words"}, "level is 'words'"),
    "no name": ({"special": [""]}, "'' is empty, or there twice"),
    "a name twice": ({"special": ["<a>", "<a>"]}, "'<a>' is empty, or there twice"),
    "too many characters": ({"level": "characters", "vocab_size": 256}, "256 bytes and 3 characters are 259"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_settings_are_refused(case):
    settings, message = BAD[case]
    with pytest.raises(InputError, match=regex.sub(r"([()'.])", r"\\\1", message)):
        BPETokenizer.train(["abc"], **settings)


@pytest.mark.parametrize("texts", [[], [""], [[]], [["", ""]]])
def test_empty_texts_are_refused(texts):
    with pytest.raises(InputError, match="the text is empty"):
        BPETokenizer.train(texts)


def test_half_a_surrogate_pair_in_a_training_text_is_refused():
    for lone in ("\ud83d", "\udc80"):
        with pytest.raises(InputError, match="half a surrogate pair"):
            BPETokenizer.train([f"ab{lone}"])


def test_many_short_documents_are_counted_as_one_long_one(monkeypatch):
    lines = PLAYS[:60_000].splitlines(keepends=True)
    assert len(lines) > 1500
    expected = tokenizers.exhaust(learning.count_texts(lines, "gpt4"))
    monkeypatch.setattr(learning, "SMALL", 0)
    assert tokenizers.exhaust(learning.count_texts(lines, "gpt4", size=100)) == expected
    assert sum(map(len, learning._tasks(["ab"] * 5000, "gpt4", 1000))) == 5000
    assert [len(task) for task in learning._tasks(["ab"] * 1200, "gpt4", 1000)] == [500, 500, 200]


def test_one_string_is_no_list_of_texts():
    with pytest.raises(InputError, match="give a list of texts"):
        BPETokenizer.train("the cat sat on the mat")


def test_a_shortage_is_said_by_every_way_of_training():
    with pytest.warns(UserWarning, match="300 tokens were asked for, the text supports 258"):
        tokenizers.train("bpe", ["abc"], vocab_size=300)


@pytest.mark.parametrize("error", [ImportError, RuntimeError])
def test_a_numba_that_does_not_work_is_as_none(error, monkeypatch):
    def broken(name):
        raise error(name)

    learning.compiled_loops.cache_clear()
    monkeypatch.setattr(learning.importlib, "import_module", broken)
    assert learning.compiled_loops() is None
    learning.compiled_loops.cache_clear()


# encoding


def test_a_text_that_was_made_to_collide_is_encoded_all_the_same(tokenizer):
    """Many different words whose hash begins alike: the table gives up on them after a few places."""
    draw, words = random.Random(0), []
    while len(words) < 3000:
        word = " " + "".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=7))
        code = len(word)
        for value in word.encode().translate(tokenizer._byte_ids):
            code = ((code ^ value) * 0x9E3779B97F4A7C15) % (1 << 64)
        if code >> 57 == 0:
            words.append(word)
    text = "".join(words) * 2
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bpe, "compiled_loops", lambda: None)
        expected = tokenizer.encode(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bpe, "WORTH_COMPILING", 0)
        assert tokenizer.encode(text) == expected


@pytest.mark.parametrize("long", [False, True])
def test_a_tokenizer_travels_to_another_process(tokenizer, long):
    tokenizer.encode(PLAYS[: 100_000 if long else 10])  # a long text makes numba's table
    copied = pickle.loads(pickle.dumps(tokenizer))
    assert copied.sha256 == tokenizer.sha256
    assert copied.encode(PLAYS[:100_000]) == tokenizer.encode(PLAYS[:100_000])


@given(ANY)
def test_encoding_is_what_the_definition_says(tokenizer, text):
    expected = [
        token
        for chunk in regex.findall(PATTERNS["gpt4"], text)
        for token in oracle_bpe.encode(tokenizer._base_ids(chunk.encode()), tokenizer.merges, 256)
    ]
    assert tokenizer.encode(text) == expected


@given(st.lists(st.integers(0, 3), max_size=120), st.integers(0, 200))
def test_short_and_long_chunks_are_merged_alike(ids, merges):
    learnt = BPETokenizer.train(
        ['!"#$' * 3 + "".join(map(chr, range(33, 37)))], vocab_size=256 + merges, pattern="none"
    )
    expected = oracle_bpe.encode(ids, learnt.merges, 256)
    assert merging.merge_short(list(ids), learnt._ranks) == expected
    assert merging.merge_long(list(ids), learnt._ranks) == expected


def test_a_corpus_has_the_ids_of_tiktoken(tokenizer, loops):
    reference = tiktoken.Encoding(
        "ours", pat_str=PATTERNS["gpt4"], mergeable_ranks=tokenizer.mergeable_ranks(), special_tokens={}
    )
    for text in (PLAYS, ADVERSARIAL, "\u6f22\u5b57\u3000" * 3000, "x" * 5000, "\U0001f600" * 5000):
        ids = tokenizer.encode_array(text)
        assert ids.tolist() == reference.encode_ordinary(text)
        assert tokenizer.decode(ids.tolist()) == text


@pytest.mark.parametrize("count", [2_000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_random_texts_have_the_ids_of_tiktoken(tokenizer, count):
    ranks, draw = tokenizer.mergeable_ranks(), random.Random(count)
    for pattern in ("gpt2", "gpt4"):
        ours = BPETokenizer(tokenizer.merges, pattern=pattern)
        reference = tiktoken.Encoding("ours", pat_str=PATTERNS[pattern], mergeable_ranks=ranks, special_tokens={})
        for _ in range(count):
            text = "".join(draw.choices(" \n\t'aetsTS1.\u017f\u6f22\U0001f600\u00a0", k=draw.randint(0, 20)))
            assert ours.encode(text) == reference.encode_ordinary(text), repr(text)


@given(ANY, st.integers(1, 50))
def test_all_ways_of_encoding_are_one(tokenizer, text, times):
    text *= times
    expected = tokenizer.encode(text)
    for small, blocks, worth in [(0, bpe.BLOCK, 1 << 60), (0, 7, 1 << 60), (0, bpe.BLOCK, 0), (0, 50, 0)]:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in (("SMALL", small), ("BLOCK", blocks), ("WORTH_COMPILING", worth)):
                patch.setattr(bpe, name, value)
            assert tokenizer.encode(text) == expected


class Counting(dict):
    """A dictionary that counts how often it is looked into."""

    looks = 0

    def get(self, *arguments):
        self.looks += 1
        return super().get(*arguments)


LONG = {
    "one letter": "a" * (1 << 17),
    "base64": "".join(
        random.Random(1).choices("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/", k=1 << 17)
    ),
    "emoji": "\U0001f600\U0001f468\u200d\U0001f469" * (1 << 13),
    "white space": " \n\t" * (1 << 15),
}


@pytest.mark.parametrize("name", LONG)
@pytest.mark.parametrize("pattern", ["gpt4", "none"])
def test_a_chunk_of_any_length_takes_steps_in_proportion(name, pattern):
    """A quadratic path would let one line of base64 stop a server. Looks into the ranks bound the steps of the heap."""
    text = LONG[name]
    learnt = BPETokenizer.train([PLAYS[:50_000], text[:2000]], vocab_size=700, pattern=pattern)
    learnt._ranks = Counting(learnt._ranks)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bpe, "compiled_loops", lambda: None)
        ids = learnt.encode(text)
    assert learnt.decode(ids) == text
    assert learnt._ranks.looks <= 5 * len(text.encode())


# bytes and text


@given(st.binary())
def test_any_bytes_read_back(tokenizer, data):
    assert tokenizer.decode_bytes(tokenizer.encode_bytes(data)) == data


@given(st.text(), st.sampled_from(["gpt2", "gpt4", "none", r"\w+", r"a|b"]))
def test_any_text_reads_back_whatever_the_pattern(tokenizer, text, pattern):
    ours = BPETokenizer(tokenizer.merges, pattern=pattern)
    ids = ours.encode(text)
    assert ours.decode(ids) == text
    assert ours.token_lengths()[ids].sum() == len(text.encode())
    assert ours.encode_bytes(text.encode()) == ids


def test_a_tokenizer_without_merges_encodes_bytes(loops):
    plain = BPETokenizer([], byte_order="value")
    assert plain.encode(PLAYS[:5000]) == list(PLAYS[:5000].encode())
    assert plain.encode("") == []


def test_large_bytes_that_are_no_text_read_back(tokenizer, loops):
    data = random.Random(3).randbytes(20_000)
    assert tokenizer.decode_bytes(tokenizer.encode_bytes(data)) == data


@given(st.lists(st.integers(0, 1500)))
def test_decoding_one_by_one_equals_decoding_at_once(tokenizer, ids):
    decoder = IncrementalDecoder(tokenizer)
    assert "".join(map(decoder.push, ids)) + decoder.flush() == tokenizer.decode(ids)


def test_half_a_surrogate_pair_is_named(tokenizer):
    for lone in ("\ud83d", "\udc80"):  # the second would stand for a byte, if it were let through
        with pytest.raises(InputError, match="at position 2 is half a surrogate pair"):
            tokenizer.encode(f"ab{lone}")


# special tokens


def hostile():
    """Texts that spell special tokens in every way that a reader might fall for."""
    for name in SPECIALS:
        yield from (name, f"a{name}b", name * 3, f" {name}\n", name[:-1] + name)
    yield "".join(SPECIALS) * 2000  # long enough for every path


@pytest.mark.parametrize("text", list(hostile()), ids=range(21))
def test_no_text_makes_a_special_token_unless_it_is_allowed(tokenizer, text, loops):
    for encode in (
        tokenizer.encode,
        lambda t: tokenizer.encode_array(t).tolist(),
        lambda t: tokenizer.encode_bytes(t.encode()),
    ):
        ids = encode(text)
        assert max(ids) < 1500
        assert tokenizer.decode(ids) == text
    assert tokenizer.encode(text) == BPETokenizer(tokenizer.merges).encode(text)


@pytest.mark.parametrize(
    ("text", "allowed", "special"),
    [
        ("a<|end|>b", "all", [1501]),
        ("a<|end|>ofb", "all", [1502]),
        ("a<|end|>ofb", ["<|end|>"], [1501]),
        ("a<|end|>o<|end|>of", "all", [1501, 1502]),
        ("\u6f22<|endoftext|>", ["<|endoftext|>"], [1500]),
        ("\u6f22<|endoftext|>", "all", [1503, 1500]),
        ("nothing", "all", []),
        ("<|end|>", [], []),
    ],
)
def test_allowed_special_tokens_are_the_longest_that_match(tokenizer, text, allowed, special):
    ids = tokenizer.encode(text, allowed_special=allowed)
    assert [token for token in ids if token >= 1500] == special
    assert tokenizer.decode(ids, special=True) == text
    assert tokenizer.decode(ids) == tokenizer.decode([token for token in ids if token < 1500])


@pytest.mark.parametrize("text", ["<|endoftext|>", "say <|endoftext|>", "\u6f22"])
def test_strict_refuses_what_is_not_allowed(tokenizer, text):
    with pytest.raises(InputError, match="the text has the special token"):
        tokenizer.encode(text, strict=True)
    assert tokenizer.encode(text, allowed_special="all", strict=True)[-1] >= 1500
    assert tokenizer.encode("plain", strict=True) == tokenizer.encode("plain")
    with pytest.raises(InputError, match=r"no special token '<\|endoftxt\|>': did you mean '<\|endoftext\|>'"):
        tokenizer.encode(text, allowed_special=["<|endoftxt|>"])


@pytest.mark.parametrize(
    ("special", "message"),
    [
        ({"<a>": 255}, "cannot have the id 255"),
        ({"<a>": 1 << 40}, "cannot have the id"),
        ({"<a>": 300.0}, "cannot have the id 300.0"),
        ({"": 256}, "must not be empty"),
        ({"<a>": 256, "<b>": 256}, "must differ"),
    ],
)
def test_special_tokens_that_cannot_be_are_refused(special, message):
    with pytest.raises(InputError, match=message):
        BPETokenizer([], special_tokens=special)


def test_no_document_of_a_run_makes_a_special_token(tokenizer):
    ids = encode_documents([f"a{name}b" for name in SPECIALS], tokenizer)
    assert [token for token in ids.tolist() if token >= 1500] == [tokenizer.end_of_text] * 3  # between the documents


def test_a_file_cannot_ask_for_all_memory():
    doubling = [(97, 97), *((256 + at, 256 + at) for at in range(60))]
    with pytest.raises(InputError, match="no text has taught that"):
        BPETokenizer(doubling)


def test_two_tokens_of_the_same_bytes_have_no_ranks():
    with pytest.raises(InputError, match=r"two tokens, 257 and 259, are the bytes b'abc'"):
        BPETokenizer([(97, 98), (256, 99), (98, 99), (97, 258)], byte_order="value").mergeable_ranks()


def test_ids_between_special_tokens_stand_for_nothing():
    holed = BPETokenizer([], special_tokens={"<a>": 260})
    assert holed.vocab_size == 261
    assert holed.token_bytes(260) == b""
    assert holed.token_lengths()[256:].tolist() == [0] * 5
    for bad in (-1, 256, 259, 261):
        with pytest.raises(InputError, match=f"no token has the id {bad}"):
            holed.token_bytes(bad)


# the level of characters


def test_frequent_characters_cover_the_share_that_was_asked_for():
    counts = {b"aaaa": 10, b"bb": 20, "\u6f22".encode(): 20}  # 40 a, 40 b, 20 of the third
    for coverage, expected in [
        (0.3, "a"),
        (0.4, "a"),
        (0.41, "ab"),
        (0.8, "ab"),
        (0.81, "ab\u6f22"),
        (1.0, "ab\u6f22"),
    ]:
        assert learning.frequent_characters(counts, coverage) == expected


@given(ANY)
def test_rare_characters_fall_back_to_their_bytes(text):
    with_characters = CHARACTERS
    ids = with_characters.encode(text)
    assert with_characters.decode(ids) == text
    for token in ids:
        if token < 256:
            assert with_characters.token_bytes(token) not in [c.encode() for c in with_characters.characters]
    assert with_characters.token_lengths()[ids].sum() == len(text.encode())


CHARACTERS = BPETokenizer.train(
    [PLAYS[:20_000] + "\u6f22\u5b57" * 99], vocab_size=500, level="characters", coverage=0.99
)


def test_characters_are_merged_as_characters():
    assert "\u6f22" in CHARACTERS.characters
    assert len(CHARACTERS.encode("\u6f22\u5b57" * 8)) < 8
    assert CHARACTERS.decode(CHARACTERS.encode("<0x41>\u00e9")) == "<0x41>\u00e9", "a byte is an id, not a spelling"
    assert CHARACTERS.decode_bytes(CHARACTERS.encode_bytes(b"a\xff\xfeb")) == b"a\xff\xfeb"
    chunks = [
        p
        for c in regex.findall(PATTERNS["gpt4"], PLAYS[:20_000] + "\u6f22\u5b57" * 99)
        for p in CHARACTERS._pieces(c.encode())
    ]
    assert CHARACTERS.merges[:40] == oracle_bpe.train(chunks, 40, CHARACTERS.base_size, ties_first=False)
    with pytest.raises(InputError, match="no ranks by bytes"):
        CHARACTERS.mergeable_ranks()


# the file


@pytest.mark.parametrize("which", ["bytes", "characters", "by value"])
def test_a_saved_tokenizer_is_the_same_one(which, tokenizer, tmp_path):
    saved = {
        "bytes": tokenizer,
        "characters": CHARACTERS,
        "by value": BPETokenizer.train(
            [PLAYS[:9000]], vocab_size=300, ties="ids", pattern=r"\S+|\s+", special=["<a b>"]
        ),
    }[which]
    saved.save(tmp_path / "tokenizer.json")
    loaded = tokenizers.load(tmp_path / "tokenizer.json")
    assert type(loaded) is BPETokenizer
    assert loaded.sha256 == saved.sha256
    assert loaded.encode(PLAYS[:5000] + "\u00e9\x00") == saved.encode(PLAYS[:5000] + "\u00e9\x00")
    assert (loaded.vocab_size, loaded.end_of_text, loaded.special_tokens) == (
        saved.vocab_size,
        saved.end_of_text,
        saved.special_tokens,
    )


DAMAGE = {
    "a merge changed": lambda file: file["merges"].__setitem__(3, "1 2"),
    "a merge in between": lambda file: file["merges"].pop(5),
    "a merge of nothing": lambda file: file.update(merges=["5000 1"]),
    "a merge of words": lambda file: file.update(merges=["a b"]),
    "a merge of three": lambda file: file.update(merges=["1 2 3"]),
    "a merge twice": lambda file: file.update(merges=["1 2"] * 2),
    "merges as number": lambda file: file.update(merges=3),
    "no merges": lambda file: file.pop("merges"),
    "another byte order": lambda file: file.update(byte_order="alphabet"),
    "no pattern": lambda file: file.update(pattern="("),
    "characters twice": lambda file: file.update(characters="aa"),
    "a special token on a byte": lambda file: file["special_tokens"].update({"<a>": 3}),
    "a special token in words": lambda file: file["special_tokens"].update({"<a>": "3"}),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_refused(damage, tokenizer, tmp_path):
    content = json.loads(tokenizer.to_json())
    DAMAGE[damage](content)
    if damage != "a merge changed":  # the others would be refused if somebody had written them so
        own = {name: value for name, value in content.items() if name not in ("format_version", "kind")}
        content["sha256"] = bpe.content_sha256(own)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(InputError, match="damaged") as caught:
        tokenizers.load(path)
    assert str(path) in str(caught.value)


def test_other_kinds_have_no_size_to_choose(tmp_path):
    tokenizer = tokenizers.train("bpe", [PLAYS[:5000]], vocab_size=300)
    assert tokenizer.vocab_size == 300
    assert tokenizers.train("bpe", [PLAYS[:5000], "b"]).special_tokens == {"<|endoftext|>": 1024}
    tokenizer.save(tmp_path / "mine.json")
    for name in ("char", "byte", str(tmp_path / "mine.json")):
        with pytest.raises(InputError, match=r"the vocabulary size is 300.*leave --vocab-size out"):
            tokenizers.train(name, ["abc"], vocab_size=300)
    assert ByteTokenizer.covers_any_text
    assert not CharacterTokenizer.covers_any_text
