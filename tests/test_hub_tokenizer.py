"""A tokenizer in a folder of the hub: transformers opens it, and it makes the ids and the text that ours makes."""

import functools
import json
from pathlib import Path

import pytest
import tokenizers as hf
import transformers
from hypothesis import example, given, settings
from hypothesis import strategies as st

from scratchlm.checkpoint import RunFolder, build_model
from scratchlm.cli import main
from scratchlm.config import make_config
from scratchlm.errors import InputError
from scratchlm.interop.vocabularies import import_vocabulary, write_hub_tokenizer
from scratchlm.interop.vocabularies.tokenizer_json import NO_WORD, tokenizer_json
from scratchlm.tokenizers import (
    BPETokenizer,
    ByteTokenizer,
    CharacterTokenizer,
    IdTokenizer,
    PairTokenizer,
    SymbolTokenizer,
)
from scratchlm.tokenizers.base import END_OF_TEXT
from scratchlm.tokenizers.splitting import PATTERNS

CHARACTERS = "".join(sorted("ab<|>\n\r\t \u00a0\u2028\u0301\u200d\ufeff\0Ġé한\U0001f469\U0001f680\U0001d54f"))
SYMBOLS = ["AH", "<unk>", "b\u0301", "[UNK]", "한국", "\U0001f469\u200d\U0001f680", "<|x|>", "\u200d", "\ufeff", "a."]
SPACES = [*" \t\n\v\f\r\x1c\x1d\x1e\x1f\x85\u00a0\u1680\u2003\u2028\u2029\u202f\u205f\u3000", "\r\n", "  "]
TEXT = "To be, or not to be: that's the question. Don't! naïve café 한국 中文 1234 ½\n\n  end\t<|endoftext|>\r\n" * 3
PIECES = [
    *"aAbBsStT' \n\r\t.,!?/-<|>0123456789", "'ll", "'RE", "'\u017f", "  ", "\r\n", " the", " to be", "don't", "<0x41>",
    "\u00a0", "\u0085", "\u3000", "\u200d", "\u0301", "é", "한국", "中文", "½", "\U0001f469\u200d\U0001f680", "\0",
    "\u2028", "\ufeff", "\U0001d54f", "Ġ", "Ċ", END_OF_TEXT, "<|a b|>", "<|endoftext", NO_WORD,
]  # fmt: skip
ANY = st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=20).map("".join)
OF_CHARACTERS = st.text(CHARACTERS, max_size=30)
OF_SYMBOLS = st.lists(st.tuples(st.sampled_from(SYMBOLS), st.sampled_from(SPACES)).map("".join), max_size=12).map(
    "".join
)
CONTEXT = 48


def bpe(pattern="gpt4", level="bytes", documents=True, special=("<|a b|>",), **settings):
    size = 300 if level == "bytes" else 330
    settings |= {"pattern": pattern, "level": level, "documents": documents, "special": special}
    return BPETokenizer.train([TEXT], vocab_size=size, coverage=0.97, **settings)


KINDS = {
    "char": (lambda: CharacterTokenizer(CHARACTERS, end_of_text=True), OF_CHARACTERS),
    "char, no end": (lambda: CharacterTokenizer(CHARACTERS), OF_CHARACTERS),
    "symbols": (lambda: SymbolTokenizer(SYMBOLS, end_of_text=True), OF_SYMBOLS),
    "symbols, no end": (lambda: SymbolTokenizer([*SYMBOLS, END_OF_TEXT, "naïve"]), OF_SYMBOLS),
    "ids": (lambda: IdTokenizer(40), st.lists(st.integers(0, 39)).map(lambda ids: "\n".join(map(str, ids)))),
    "byte": (ByteTokenizer, ANY),
    **{f"bpe {pattern}": (functools.partial(bpe, pattern), ANY) for pattern in PATTERNS},
    "bpe own pattern": (lambda: bpe(r"\p{L}+|[^\p{L}]", special=(), ties="first"), ANY),
    "bpe, no end": (lambda: bpe(documents=False, special=()), ANY),
    "bpe, no merges": (lambda: BPETokenizer([], special_tokens={END_OF_TEXT: 256}), ANY),
    "bpe of characters": (lambda: bpe(level="characters"), ANY),
    "bpe of characters, uncut": (lambda: bpe("none", level="characters", documents=False), ANY),
}


@pytest.fixture(scope="module", params=KINDS)
def opened(request, tmp_path_factory):
    """A tokenizer of ours, texts for it, and what AutoTokenizer opens of it."""
    make, texts = KINDS[request.param]
    ours, folder = make(), tmp_path_factory.mktemp("hub")
    write_hub_tokenizer(ours, folder, CONTEXT)
    return ours, texts, transformers.AutoTokenizer.from_pretrained(folder), folder


def alike(ours, theirs, text):
    ids = ours.encode(text)
    assert theirs(text)["input_ids"] == ids
    assert theirs(text, add_special_tokens=False)["input_ids"] == ids
    assert theirs.decode(ids) == ours.decode(ids)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_a_text_has_the_same_ids_and_comes_back(opened, data):
    ours, texts, theirs, _ = opened
    alike(ours, theirs, data.draw(texts))


def test_what_is_known_of_it_is_the_same(opened):
    ours, _, theirs, folder = opened
    assert (len(theirs), theirs.model_max_length) == (ours.vocab_size, CONTEXT)
    assert theirs.eos_token_id == theirs.bos_token_id == ours.end_of_text
    assert theirs.eos_token == (None if ours.end_of_text is None else END_OF_TEXT)
    assert theirs.unk_token is None
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert settings["clean_up_tokenization_spaces"] is False  # which would take the space out of "a ."
    assert theirs.pad_token is None
    assert {path.name for path in folder.iterdir()} == {"tokenizer.json", "tokenizer_config.json"}


def test_it_opens_by_name_and_beside_a_gpt2(opened, tmp_path):
    """AutoTokenizer would make GPT-2's own tokenizer where a config.json says gpt2 and the class is left out."""
    ours, _, theirs, folder = opened
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    content = {"model_type": "gpt2", "vocab_size": ours.vocab_size, "bos_token_id": None, "eos_token_id": None}
    (tmp_path / "config.json").write_text(json.dumps(content), encoding="utf-8")
    text = {"char": "ab <\n", "symbols": "AH [UNK]", "ids": " 3 12\n"}.get(ours.kind, TEXT)
    for cls in (transformers.AutoTokenizer, transformers.PreTrainedTokenizerFast):
        again = cls.from_pretrained(tmp_path)
        alike(ours, again, text)
        assert again.get_vocab() == theirs.get_vocab()


def test_ends_are_left_out_on_request(opened):
    """A special token has a name there, which skip_special_tokens leaves out, as ours does always."""
    ours, _, theirs, _ = opened
    if ours.end_of_text is None:
        return
    some = ours.encode("ab" if ours.kind == "char" else "AH a." if ours.kind == "symbols" else "naïve")
    ids = [ours.end_of_text, *some, ours.end_of_text, *some, ours.end_of_text]
    assert theirs.decode(ids, skip_special_tokens=True) == ours.decode(ids)
    assert theirs.decode(ids).count(END_OF_TEXT) == 3


@pytest.mark.parametrize("kind", ["byte", "bpe gpt4"])
@settings(max_examples=40, deadline=None)
@given(ids=st.lists(st.integers(0, 255), max_size=12))
@example(ids=[0xF0, 0x9F, 0x41, 0xE2, 0x82, 0xFF])
def test_bytes_that_are_no_text_decode_alike(kind, ids):
    ours, theirs = backend(kind)
    assert theirs.decode(ids) == ours.decode(ids)


@functools.cache
def backend(kind):
    ours = KINDS[kind][0]()
    return ours, hf.Tokenizer.from_str(tokenizer_json(ours))


@pytest.mark.parametrize("kind", ["char", "char, no end", "symbols", "symbols, no end", "ids"])
@settings(max_examples=40, deadline=None)
@given(text=ANY)
@example(text="[UNK] <unk> z")
@example(text=END_OF_TEXT + "z")
@example(text=NO_WORD)
def test_what_ours_does_not_know_is_an_error_there(kind, text):
    ours, theirs = backend(kind)
    theirs.encode_special_tokens = True  # as tokenizer_config.json has it
    try:
        expected = ours.encode(text)
    except InputError:
        with pytest.raises(Exception, match="Missing \\[UNK\\] token"):
            theirs.encode(text)
    else:
        assert theirs.encode(text).ids == expected


@pytest.mark.parametrize("kind", ["bpe gpt4", "bpe of characters"])
def test_a_special_token_in_a_text_is_text_unless_it_is_asked_for(kind, tmp_path):
    ours = KINDS[kind][0]()
    write_hub_tokenizer(ours, tmp_path, None)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    text = f"to be<|a b|>{END_OF_TEXT}"
    alike(ours, theirs, text)
    assert ours.end_of_text not in theirs(text)["input_ids"]
    expected = ours.encode(text, allowed_special="all")
    assert expected[-1] == ours.end_of_text
    assert theirs(text, split_special_tokens=False)["input_ids"] == expected
    assert theirs.model_max_length > 1 << 40  # any


def test_special_tokens_past_a_gap_keep_their_ids(tmp_path):
    ours = BPETokenizer(bpe().merges, special_tokens={END_OF_TEXT: 400, "<|x|>": 405})
    write_hub_tokenizer(ours, tmp_path, CONTEXT)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs.eos_token_id == 400
    assert theirs.convert_tokens_to_ids("<|x|>") == 405
    alike(ours, theirs, TEXT)


# refused

PAIR = PairTokenizer(CharacterTokenizer("ab"), SymbolTokenizer(["AH"]))
REFUSED = {
    "pair": (PAIR, "one for each side of pairs, which share no ids; train with one for both"),
    "the same twice": (PairTokenizer(ByteTokenizer(), ByteTokenizer()), "which share no ids"),
    "a symbol": (SymbolTokenizer(["a", END_OF_TEXT], end_of_text=True), "cannot hold the symbol '<|endoftext|>'"),
    "bytes merged": (BPETokenizer([(1, 2)], characters="ab"), "cannot hold merges of bytes beside characters"),
    "alike": (BPETokenizer([(256, 257), (258, 256), (257, 256), (256, 260)], characters="ab"), "two are 'aba'"),
    "a byte's name": (
        BPETokenizer([(256, 257), *((261 + at, 257 + at) for at in range(1, 5))], characters="<0x41>"),
        "two are '<0x41>'",
    ),
    "a character": (
        BPETokenizer([], characters="ab", special_tokens={"c": 258}),
        "would take the character 'c' in any text for the special token",
    ),
    "a token": (
        BPETokenizer([(256, 257)], characters="ab", special_tokens={"ab": 259}),
        "cannot hold the special token 'ab': it writes the token 258 so",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_tokenizer_json_cannot_say_is_refused(case, tmp_path):
    ours, message = REFUSED[case]
    with pytest.raises(InputError) as caught:
        write_hub_tokenizer(ours, tmp_path, CONTEXT)
    assert message in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_words_of_another_library_are_not_read(tmp_path):
    theirs = hf.Tokenizer(hf.models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    theirs.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(InputError, match="has a model of the type WordLevel"):
        import_vocabulary(tmp_path)


# from a run


def make_run(folder, tokenizer):
    shape = {"vocab_size": tokenizer.vocab_size, "context": 8, "dim": 8, "depth": 1, "heads": 1, "senses": 2}
    config = make_config({"arch": "backpack", "model": shape})
    folder.mkdir()
    tokenizer.save(folder / "tokenizer.json")
    run = RunFolder(folder)
    run.write_config(config, "")
    run.save(1, build_model(config).state_dict(), {}, {"best_step": None, "best_loss": None, "val_loss": None})


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_an_exported_run_has_its_tokenizer_with_it(here, capsys):
    ours = KINDS["char"][0]()
    make_run(here / "run", ours)
    assert main(["export", "run", "--to", "hf", "--out", "hub"]) == 0
    assert "tokenizer.json, tokenizer_config.json" in capsys.readouterr().out
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained("hub")
    assert theirs.model_max_length == 8
    alike(ours, theirs, CHARACTERS)


def test_a_run_of_pairs_is_refused_as_a_whole(here, capsys):
    make_run(here / "run", PAIR)
    assert main(["export", "run", "--to", "hf", "--out", "hub"]) == 2
    assert "which share no ids" in capsys.readouterr().err
    assert [path.name for path in here.iterdir()] == ["run"]


@pytest.mark.parametrize("kind", ["char", "symbols", "ids", "byte", "bpe of characters"])
def test_the_command_for_tokenizers_writes_the_same_file(kind, here, capsys):
    ours = KINDS[kind][0]()
    ours.save("ours.json")
    assert main(["tokenizer", "export", "ours.json", "--to=hf"]) == 0
    assert f"tokenizer.hf.json: {ours.vocab_size} tokens" in capsys.readouterr().out
    write_hub_tokenizer(ours, here, None)
    assert Path("tokenizer.hf.json").read_bytes() == Path("tokenizer.json").read_bytes()
    if kind != "bpe of characters":
        assert import_vocabulary(here / "tokenizer.hf.json").to_json() == ours.to_json()
    for to in ("tiktoken", "minbpe"):
        assert main(["tokenizer", "export", "ours.json", f"--to={to}", "--out=x.model"]) == 2
        assert "export to hf, or train one of" in capsys.readouterr().err
        assert not Path("x.model").exists()
