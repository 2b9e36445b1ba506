"""scratchlm tokenizer, as a person would type it."""

import io
import itertools
import json
import re
import sys

import pytest

from runs import TEXT
from scratchlm import tokenizers
from scratchlm.cli import learning, main
from scratchlm.tokenizers.shown import visible


@pytest.fixture
def folder(tmp_path, monkeypatch, capsys):
    """A folder with a text and a tokenizer that was trained on it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.txt").write_text(TEXT * 3, encoding="utf-8")
    assert main(["tokenizer", "train", "my.txt", "--vocab-size=280", "--special=<|user|>"]) == 0
    assert capsys.readouterr().out == "tokenizer.json: 282 tokens, <|user|>, <|endoftext|>\n"
    return tmp_path


def stdin(monkeypatch, data):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


def test_encode_and_decode_are_inverse(folder, capsys, monkeypatch):
    text = "A and b went up, <|user|> \u6f22\n"
    assert main(["tokenizer", "encode", "tokenizer.json", text]) == 0
    ids = capsys.readouterr().out.strip()
    assert main(["tokenizer", "decode", "tokenizer.json", *ids.split()]) == 0
    assert capsys.readouterr().out == text + "\n"
    stdin(monkeypatch, ids.encode())
    assert main(["tokenizer", "decode", "tokenizer.json", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"text": text}
    stdin(monkeypatch, text.encode())
    assert main(["tokenizer", "encode", "tokenizer.json", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"ids": list(map(int, ids.split())), "bytes": len(text.encode())}


def test_special_tokens_are_text_unless_they_are_allowed(folder, capsys):
    assert main(["tokenizer", "encode", "tokenizer.json", "<|user|>"]) == 0
    assert "280" not in capsys.readouterr().out.split()
    assert main(["tokenizer", "encode", "tokenizer.json", "<|user|><|endoftext|>", "--allow-special=<|user|>"]) == 0
    ids = capsys.readouterr().out.split()
    assert ids[0] == "280"
    assert "281" not in ids
    assert main(["tokenizer", "encode", "tokenizer.json", "<|user|><|endoftext|>", "--allow-special=all"]) == 0
    assert capsys.readouterr().out == "280 281\n"
    assert main(["tokenizer", "decode", "tokenizer.json", "280", "65", "--special"]) == 0
    assert capsys.readouterr().out == "<|user|>b\n"


def test_the_side_of_pairs_is_named(folder, capsys):
    sides = tokenizers.CharacterTokenizer("abc"), tokenizers.SymbolTokenizer(["AH", "B"])
    tokenizers.PairTokenizer(*sides).save("pair.json")
    for command in ("encode", "show"):
        assert main(["tokenizer", command, "pair.json", "ab"]) == 2
        assert "pair.json has a tokenizer for each side of pairs; say which the text is of: --side source" in (
            capsys.readouterr().err
        )
    for side, text, ids in (("source", "cab", "2 0 1\n"), ("target", "B AH", "4 3\n")):
        assert main(["tokenizer", "encode", "pair.json", text, "--side", side]) == 0
        assert capsys.readouterr().out == ids
        assert main(["tokenizer", "show", "pair.json", text, "--side", side, "--json"]) == 0
        assert [token["id"] for token in json.loads(capsys.readouterr().out)["tokens"]] == [*map(int, ids.split())]
    for side in ("source", "target"):  # the same for both
        assert main(["tokenizer", "encode", "tokenizer.json", "a", "--side", side]) == 0
    assert len(set(capsys.readouterr().out.splitlines())) == 1


def test_pairs_with_an_empty_side_are_counted(folder, capsys):
    (folder / "my.tsv").write_text("ein Tag\ta day\n\n\tno source\nzwei\ttwo\n", encoding="utf-8")
    assert main(["tokenizer", "train", "my.tsv", "--vocab-size=258", "--out=pairs.json"]) == 0
    assert "2 of 4 pairs have an empty side and are left out (the first: line 2)" in capsys.readouterr().err


def test_show_names_the_merges_that_made_a_token(folder, capsys):
    assert main(["tokenizer", "show", "tokenizer.json", "went down"]) == 0
    out = capsys.readouterr().out
    assert "bytes per token" in out
    tokenizer = tokenizers.load("tokenizer.json")
    merged = [token for token in tokenizer.encode("went down") if token >= 256]
    assert merged
    for token in merged:
        data = tokenizer.token_bytes(token)
        (row,) = [line for line in out.splitlines() if line.split()[:1] == [str(token)]]
        assert row.split()[1] == visible(data)
        assert data.hex(" ") in row
        assert row.count("(") == len(data) - 1, "each merge is shown"
    assert main(["tokenizer", "show", "tokenizer.json", "went down", "--json"]) == 0
    tokens = json.loads(capsys.readouterr().out)["tokens"]
    assert b"".join(bytes.fromhex(token["bytes"]) for token in tokens) == b"went down"
    assert all(token["made_of"] for token in tokens)


def test_a_byte_is_shown_as_a_person_can_see_it():
    assert visible(b" a\n\t\x00\xe6") == r"\x20a\x0a\x09\x00\xe6"
    assert visible(" \u6f22\n".encode()) == "\u00b7\u6f22\u21b5"


def test_a_run_can_be_asked_for_its_tokenizer(folder, capsys):
    tiny = ["--steps=2", "--eval-every=2", "--batch-size=2", "--device=cpu", "--model.dim=16", "--model.depth=1"]
    command = ["train", "gpt", "--data=my.txt", "--tokenizer=bpe", "--vocab-size=280", "--out=run", "--model.heads=2"]
    assert main([*command, "--model.context=8", *tiny]) == 0
    assert "trained a bpe tokenizer of 280 tokens" in capsys.readouterr().err
    assert tokenizers.load("run/tokenizer.json").vocab_size == 280
    assert main(["tokenizer", "show", "run", "went"]) == 0
    assert main(["train", "gpt", "--data=my.txt", "--tokenizer=tokenizer.json", "--out=run2", "--model.heads=2",
                 "--model.context=8", *tiny]) == 0  # fmt: skip
    assert tokenizers.load("run2/tokenizer.json").sha256 == tokenizers.load("tokenizer.json").sha256


def test_a_text_that_supports_fewer_tokens_is_said(folder, capsys):
    (folder / "short.txt").write_text("abab", encoding="utf-8")
    assert main(["tokenizer", "train", "short.txt", "--out=short.json"]) == 0
    assert "1,024 tokens were asked for, the text supports 258" in capsys.readouterr().err


BAD = [
    (["train"], "name the texts to learn from"),
    (["train", "missing.txt", "--out=x.json"], "cannot read missing.txt"),
    (["train", "shakespear", "--out=x.json"], "did you mean 'shakespeare"),
    (["train", "my.txt"], "is there already"),
    (["train", "my.txt", "--out=a/b.json"], "there is no folder a"),
    (["train", "my.txt", "--out="], "is there already, or no name"),
    (["train", "my.txt", "--out=x.json", "--vocab-size=10"], "at least 256"),
    (["train", "my.txt", "--out=x.json", "--vocab-size=-1"], "at least 256"),
    (["train", "my.txt", "--out=x.json", "--vocab-size=2.5"], "2.5"),
    (["train", "my.txt", "--out=x.json", "--pattern=("], "no regular expression"),
    (["train", "my.txt", "--out=x.json", "--ties=last"], "last"),
    (["train", "my.txt", "--out=x.json", "--workers=0"], "number of workers is 0"),
    (["train", "my.txt", "--out=x.json", "--special="], "is empty, or there twice"),
    (["train", "binary.txt", "--out=x.json"], "binary.txt is binary"),
    (["train", "latin.txt", "--out=x.json"], "byte 3 is 0xe9"),
    (["encode", "missing.json", "a"], "cannot read the tokenizer missing.json"),
    (["encode", "my.txt", "a"], "no tokenizer file"),
    (["encode", "tokenizer.json", "<|user|>", "--strict"], "the text has the special token '<|user|>' at position 0"),
    (["encode", "tokenizer.json", "a", "--allow-special=<|usr|>"], "did you mean '<|user|>'"),
    (["decode", "tokenizer.json", "282"], "no token has the id 282"),
    (["decode", "tokenizer.json", "--", "-1"], "no token has the id -1"),
    (["decode", "tokenizer.json", "a"], "ids are whole numbers"),
    (["show", "missing.json", "a"], "cannot read the tokenizer"),
    (["export", "tokenizer.json"], "--to"),
    (["export", "tokenizer.json", "--to=word"], "no format 'word': choose from: hf, minbpe, tiktoken"),
    (["export", "tokenizer.json", "--to=minbpe"], "train one with --ties first"),
    (["export", "tokenizer.json", "--to=hf", "--out=my.txt"], "is there already"),
    (["export", "missing.json", "--to=hf"], "cannot read the tokenizer"),
    (["import", "missing.bpe", "--out=x.json"], "cannot read missing.bpe"),
    (["import", "my.txt", "--out=x.json"], "is no vocabulary that is known here"),
    (["import", "gpt2", "--pattern=gpt4", "--out=x.json"], "has a pattern and special tokens of its own"),
    (["import", "my.txt", "--special=a", "--out=x.json"], "give a name and its id"),
]


@pytest.mark.parametrize(("command", "message"), BAD, ids=[" ".join(command) for command, _ in BAD])
def test_bad_input_is_one_line_and_leaves_nothing(command, message, folder, capsys):
    (folder / "binary.txt").write_bytes(b"ab\0")
    (folder / "latin.txt").write_bytes("caf\u00e9".encode("latin-1"))
    before = sorted(folder.iterdir())
    assert main(["tokenizer", *command]) == 2
    shown = capsys.readouterr()
    assert message in shown.err
    assert shown.err.count("\n") == 1
    assert shown.out == ""
    assert sorted(folder.iterdir()) == before


def test_train_with_a_vocabulary_size_needs_bpe(folder, capsys):
    assert main(["train", "gpt", "--data=my.txt", "--vocab-size=300", "--out=run"]) == 2
    assert "that of a char tokenizer is not for choosing" in capsys.readouterr().err
    assert main(["train", "gpt", "--data=my.txt", "--tokenizer=tokenizer.json", "--vocab-size=300", "--out=run"]) == 2
    assert "tokenizer.json has its own" in capsys.readouterr().err
    assert not (folder / "run").exists()


def test_what_is_exported_can_be_imported(folder, capsys):
    assert main(["tokenizer", "train", "my.txt", "--ties=first", "--vocab-size=280", "--out=first.json"]) == 0
    for to, file, back in [
        ("hf", "tokenizer.hf.json", []),
        ("minbpe", "tokenizer.model", []),
        ("tiktoken", "tokenizer.tiktoken", ["--pattern=gpt4", "--special=<|endoftext|>=280"]),
    ]:
        assert main(["tokenizer", "export", "first.json", f"--to={to}"]) == 0
        out = capsys.readouterr().out
        assert f"{file}: 281 tokens, <|endoftext|>" in out
        assert ("pat_str=" in out) == (to == "tiktoken")
        assert main(["tokenizer", "import", file, *back, f"--out={to}.json"]) == 0
        assert tokenizers.load(f"{to}.json").sha256 == tokenizers.load("first.json").sha256


def test_a_published_vocabulary_can_be_named(folder, capsys, monkeypatch):
    """Tiny in place of the real one, which packages have: tests/test_vocabularies.py takes that."""
    for place in ("scratchlm.cli.tokenizer", "scratchlm.training.material"):
        monkeypatch.setattr(f"{place}.named_vocabulary", lambda name: tokenizers.load("tokenizer.json"))
    assert main(["tokenizer", "encode", "gpt2", "A and b"]) == 0
    ids = capsys.readouterr().out
    assert main(["tokenizer", "import", "gpt2", "--out=gpt2.json"]) == 0
    capsys.readouterr()
    assert main(["tokenizer", "encode", "gpt2.json", "A and b"]) == 0
    assert capsys.readouterr().out == ids
    tiny = ["--steps=2", "--eval-every=2", "--batch-size=2", "--device=cpu", "--model.dim=16", "--model.depth=1"]
    command = ["train", "gpt", "--data=my.txt", "--tokenizer=gpt2", "--model.heads=2", "--model.context=8", *tiny]
    assert main([*command, "--vocab-size=300", "--out=run"]) == 2
    assert "gpt2 has its own" in capsys.readouterr().err
    assert main([*command, "--out=run"]) == 0
    assert tokenizers.load("run/tokenizer.json").sha256 == tokenizers.load("tokenizer.json").sha256


def test_a_tree_of_any_depth_is_shown(folder, capsys):
    chain = [(65, 66), *((256 + at, 66) for at in range(2000))]  # b, and then one c more in each token
    tokenizers.BPETokenizer(chain, pattern="none").save("deep.json")
    assert main(["tokenizer", "show", "deep.json", "b" + "c" * 2001, "--json"]) == 0
    (token,) = json.loads(capsys.readouterr().out)["tokens"]
    assert token["made_of"].count("(") == 32


def test_a_file_that_comes_while_a_tokenizer_is_trained_stays(folder, capsys, monkeypatch):
    original = learning.follow

    def follow(steps):
        (folder / "late.json").write_text("mine", encoding="utf-8")
        return original(steps)

    monkeypatch.setattr(learning, "follow", follow)
    assert main(["tokenizer", "train", "my.txt", "--out=late.json"]) == 2
    assert "is there already" in capsys.readouterr().err
    assert (folder / "late.json").read_text(encoding="utf-8") == "mine"


def test_a_disk_that_is_full_leaves_no_half_file(folder, capsys, monkeypatch):
    def full(self, *arguments, **options):
        raise OSError(28, "No space left on device")

    before = sorted(folder.iterdir())
    monkeypatch.setattr("pathlib.Path.write_text", full)
    assert main(["tokenizer", "train", "my.txt", "--out=x.json"]) == 2
    assert "cannot write x.json: No space left on device" in capsys.readouterr().err
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize(
    "command",
    [
        ["tokenizer", "train", "n" * 300, "--out=x.json"],
        ["tokenizer", "train", "my.txt", f"--out={'n' * 300}"],
        ["tokenizer", "encode", "n" * 300, "a"],
        ["train", "gpt", "--data=my.txt", f"--tokenizer={'n' * 300}", "--out=run"],
    ],
    ids=["text", "out", "tokenizer", "run"],
)
def test_a_name_that_is_too_long_is_one_line(command, folder, capsys):
    assert main(command) == 2
    err = capsys.readouterr().err
    assert "too long" in err
    assert err.count("\n") == 1


def test_nested_json_is_no_tokenizer(folder, capsys):
    (folder / "deep.json").write_text("[" * 200_000, encoding="utf-8")
    assert main(["tokenizer", "encode", "deep.json", "a"]) == 2
    assert "deep.json is no tokenizer file" in capsys.readouterr().err


def test_neighbouring_pieces_differ_in_colour_on_any_terminal(folder, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "linux")  # 16 colours
    monkeypatch.delenv("COLORTERM", raising=False)
    assert main(["tokenizer", "show", "tokenizer.json", "went up the hill"]) == 0
    pieces = capsys.readouterr().out.splitlines()[0]
    styles = re.findall("\x1b\\[([0-9;]+)m[^\x1b]", pieces)
    styles = [style for style in styles if style != "0"]
    assert len(styles) > 3
    assert all(one != other for one, other in itertools.pairwise(styles))
