"""scratchlm translate, and train, eval and the other commands with pairs, as a person or a script meets them."""

import io
import itertools
import json
import os
import sys

import pytest

from scratchlm import translation
from scratchlm.checkpoint import load
from scratchlm.cli import main
from scratchlm.cli import train as training
from scratchlm.model import Source

WORDS = ["".join(letters) for letters in itertools.product("abc", repeat=4)]
LINES = [f"{word}\t{' '.join(letter.upper() for letter in reversed(word))}" for word in WORDS]
FLAGS = [
    "--data", "pairs.tsv", "--tokenizer", "char+symbols", "--steps", "8", "--eval-every", "4", "--keep", "3",
    "--batch-tokens", "100", "--optim.warmup", "2", "--optim.lr", "0.01", "--device", "cpu",
    "--split", "0.8", "0.1", "0.1",
    "--model.dim", "16", "--model.depth", "1", "--model.heads", "2", "--model.context", "12",
]  # fmt: skip
SIDES = {"transformer": ["--model.source-context", "8", "--model.hidden-dim", "16"], "gpt": []}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Trained runs of pairs by architecture, which no test may change."""
    folder = tmp_path_factory.mktemp("pairs")
    (folder / "pairs.tsv").write_text("\n".join(LINES) + "\n", encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for arch, sides in SIDES.items():
            assert main(["train", arch, *FLAGS, *sides, "--out", arch]) == 0
    return {arch: str(folder / arch) for arch in SIDES}


@pytest.fixture
def call(capsys, monkeypatch, tmp_path):
    """Run a command in an empty folder: its exit code, what it prints and what it says."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments, typed=None):
        if typed is not None:
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(typed.encode())))
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def refuse(call):
    """Expect a refusal: exit code 2, nothing printed, one line with these words."""

    def run(*arguments, words, typed=None):
        code, out, err = call(*arguments, typed=typed)
        assert (code, out) == (2, ""), err
        assert err.splitlines()[-1].startswith("scratchlm: ")
        assert "Traceback" not in err
        for word in words:
            assert word in err.splitlines()[-1], err

    return run


def expected(directory, source, beam=4):
    """The library's own translations of a source."""
    model, tokenizer = load(directory)
    ids = translation.encode_source(source, model, tokenizer)
    found = translation.decode(model, [ids], tokenizer.end_of_text, beam=beam, alternatives=beam)[0]
    return [(one.score, tokenizer.target.decode(one.tokens)) for one in found]


@pytest.mark.parametrize("arch", SIDES)
def test_a_text_a_file_and_standard_input_are_translated_alike(runs, call, tmp_path, arch):
    sources = ["abca", "", "cab", " b "]
    best = [expected(runs[arch], source.strip())[0][1] if source else "" for source in sources]
    text = "\n".join(sources) + "\n"
    (tmp_path / "file.txt").write_text(text, encoding="utf-8")
    for arguments, typed in ((["file.txt"], None), (["-"], text), ([], text), ([text], None)):
        code, out, err = call("translate", runs[arch], *arguments, typed=typed)
        assert code == 0
        assert out.removesuffix("\n").split("\n") == best
        assert "weights of step 8" in err


def test_alternatives_come_with_their_scores(runs, call):
    best = expected(runs["transformer"], "abca", beam=3)
    code, out, _ = call("translate", runs["transformer"], "abca", "--beam", 3, "--alternatives", 3)
    assert code == 0
    assert out.splitlines() == [f"{score:.4f}\t{target}" for score, target in best]
    code, out, _ = call("translate", runs["transformer"], "abca", "--beam", 3, "--alternatives", 3, "--json")
    (described,) = json.loads(out)["translations"]
    assert described["source"] == "abca"
    assert [(one["score"], one["target"]) for one in described["targets"]] == best
    assert all(one["log_probability"] <= 0 for one in described["targets"])


def test_greedy_and_averaged(runs, call):
    code, out, _ = call("translate", runs["transformer"], "abca", "--beam", 1)
    assert (code, out.strip()) == (0, expected(runs["transformer"], "abca", beam=1)[0][1])
    code, _, err = call("translate", runs["transformer"], "abca", "--average", 2)
    assert code == 0
    assert "mean of the weights of steps 4, 8" in err


def test_standard_input_may_come_in_odd_forms(runs, call, refuse, monkeypatch, tmp_path):
    (tmp_path / "two.jsonl").write_text('"ab"\n"ba"\n', encoding="utf-8")
    (tmp_path / "empty").write_text("", encoding="utf-8")
    refuse("translate", runs["transformer"], "two.jsonl", words=["line 1: the character"])
    refuse("translate", runs["transformer"], "empty", words=["empty is empty; give a source on each line"])
    refuse("translate", runs["transformer"], typed="", words=["standard input is empty"])
    refuse("translate", runs["transformer"], typed="ab\naz\n", words=["line 2: the character 'z'"])
    code, _, err = call("translate", runs["gpt"], "cab.cab")
    assert code == 2
    assert "there is no file cab.cab, so this is taken for a text" in err
    monkeypatch.setattr(sys, "stdin", None)
    refuse("translate", runs["transformer"], words=["standard input is closed; give a file"])


def test_what_a_person_types_wrong_ends_nothing(runs, call, monkeypatch):
    class Terminal(io.TextIOWrapper):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stdin", Terminal(io.BytesIO(b"abz\n\ncab\n")))
    code, out, err = call("translate", runs["transformer"])
    assert code == 0
    assert out.splitlines()[-1] == expected(runs["transformer"], "cab")[0][1]
    assert "the character 'z' at position 2" in err


def test_a_pipe_is_read_as_a_file(runs, call):
    read, write = os.pipe()
    os.write(write, b"cab\n")
    os.close(write)
    _, out, _ = call("translate", runs["transformer"], f"/dev/fd/{read}")
    os.close(read)
    assert out.removesuffix("\n") == expected(runs["transformer"], "cab")[0][1]


def test_many_lines_are_translated_in_their_order(runs, call, monkeypatch, tmp_path):
    monkeypatch.setattr("scratchlm.cli.translate.LINES", 7)
    (tmp_path / "file.txt").write_text("\n".join(WORDS[:20]), encoding="utf-8")
    _, out, _ = call("translate", runs["transformer"], "file.txt", "--beam", 2)
    assert out.splitlines() == [expected(runs["transformer"], word, beam=2)[0][1] for word in WORDS[:20]]


def test_what_cannot_be_translated_is_refused(runs, refuse, tmp_path):
    transformer, gpt = runs["transformer"], runs["gpt"]
    (tmp_path / "latin.txt").write_bytes("ä".encode("latin-1"))
    for arguments, words in [
        ([transformer, "abcz"], ["the character 'z' at position 3"]),
        ([transformer, "abcabcabcabc"], ["'abcabcabcabc' has 13 tokens with its end", "trained to read 8"]),
        ([gpt, "a" * 12], ["has 13 tokens with its end", "trained to read 11"]),
        ([transformer, "abc", "--beam", 0], ["--beam 0"]),
        ([transformer, "abc", "--beam", 2, "--alternatives", 3], ["--alternatives is 3 and --beam 2"]),
        ([transformer, "abc", "--length-penalty", -1], ["--length-penalty is -1"]),
        ([transformer, "abc", "--average", 9], ["--keep"]),
        ([transformer, "latin.txt"], ["latin.txt is not UTF-8"]),
        (["nowhere", "abc"], ["nowhere is no folder"]),
    ]:
        refuse("translate", *arguments, words=words)


def test_a_run_of_a_text_translates_nothing(call, refuse, tmp_path):
    (tmp_path / "text.txt").write_text("a text to learn from\n" * 40, encoding="utf-8")
    shape = ["--model.dim", 16, "--model.depth", 1, "--model.heads", 2, "--model.context", 16]
    code, _, _ = call("train", "gpt", "--data", "text.txt", "--steps", 2, *shape, "--device", "cpu", "--out", "run")
    assert code == 0
    (tmp_path / "pairs.tsv").write_text("\n".join(LINES), encoding="utf-8")
    refuse("eval", "run", "--data", "pairs.tsv", words=["pairs.tsv hold pairs", "run learned from a text"])
    refuse("eval", "run", "--source", "pairs.tsv", words=["--source FILE with --target FILE"])
    refuse("translate", "run", "abc", words=["run is a gpt that learned to write from a text", "--data cmudict"])


def test_eval_gives_losses_and_error_rates(runs, call, tmp_path):
    code, out, _ = call("eval", runs["transformer"], "--split", "test", "--json")
    figures = json.loads(out)
    assert code == 0
    assert {"nats_per_token", "bits_per_byte", "symbol_error_rate", "sequence_error_rate", "sources"} <= figures.keys()
    assert (figures["sources"], figures["beam"], figures["tokens"]) == (9, 1, 45)
    (tmp_path / "more.tsv").write_text("\n".join(LINES[-9:]), encoding="utf-8")  # the same as the test split
    again = json.loads(call("eval", runs["transformer"], "--data", "more.tsv", "--json")[1])
    assert again == figures
    for name, side in (("a", 0), ("b", 1)):
        (tmp_path / name).write_text("\n".join(line.split("\t")[side] for line in LINES[-9:]), encoding="utf-8")
    again = json.loads(call("eval", runs["transformer"], "--source", "a", "--target", "b", "--json")[1])
    assert again == figures
    code, out, _ = call("eval", runs["gpt"], "--beam", 2)
    assert code == 0
    assert "translated with a beam of 2: symbols wrong" in out


def test_training_says_what_it_reads_and_how_good_it_is(call, tmp_path):
    (tmp_path / "pairs.tsv").write_text("\n".join(LINES), encoding="utf-8")
    flags = [*FLAGS, *SIDES["transformer"], "--label-smoothing", "0.1"]
    code, _, err = call("train", "transformer", *flags, "--out", "run")
    assert code == 0
    assert "8 steps of up to 100 tokens of either side" in err
    assert "symbols wrong" in err
    assert "translate with it: scratchlm translate run" in err
    assert (tmp_path / "run" / "loss.png").stat().st_size > 1000
    assert "should be" in (tmp_path / "run" / "samples.txt").read_text(encoding="utf-8")
    code, _, err = call("resume", "run", "--steps", 12)
    assert code == 0
    assert "going on after step 8" in err


def test_no_flags_mean_the_dictionary_and_fit_the_machine(call, monkeypatch):
    seen = {}
    monkeypatch.setattr(training, "_train", lambda settings, out, nproc, fit: seen.update(settings, fit=fit) or 0)
    assert call("train", "transformer")[0] == 0
    assert (seen["data"], seen["preset"], seen["fit"]) == ("cmudict", "cmudict", training.FIT_SECONDS)
    seen.clear()
    assert call("train", "transformer", "--source", "a", "--target", "b")[0] == 0
    assert (seen["preset"], seen["source"], seen["target"], seen.get("data")) == ("laptop", "a", "b", None)
    seen.clear()
    assert call("train", "transformer", "--preset", "base")[0] == 0
    assert (seen["data"], seen["preset"], seen["fit"]) == ("cmudict", "base", None)


def test_data_stand_over_the_pairs_of_a_file_of_settings(call, monkeypatch, tmp_path):
    seen = {}
    monkeypatch.setattr(training, "_train", lambda settings, out, nproc, fit: seen.update(settings) or 0)
    (tmp_path / "c.toml").write_text('source = "a"\ntarget = "b"\n', encoding="utf-8")
    assert call("train", "transformer", "--config", "c.toml", "--data", "p.tsv")[0] == 0
    assert (seen["data"], seen.get("source"), seen.get("target")) == ("p.tsv", None, None)


def test_bad_pairs_are_refused_before_anything_is_written(refuse, tmp_path):
    (tmp_path / "text.txt").write_text("a text\n" * 50, encoding="utf-8")
    (tmp_path / "three.tsv").write_text("a\tb\tc\n", encoding="utf-8")
    (tmp_path / "two").write_text("a\nb\n", encoding="utf-8")
    before = set(tmp_path.iterdir())
    for arguments, words in [
        (["transformer", "--data", "text.txt"], ["text.txt is a single text", "--source FILE --target FILE"]),
        (["transformer", "--data", "shakespeare"], ["shakespeare is a single text"]),
        (["transformer", "--data", "three.tsv"], ["three.tsv, line 1 has 2 tabs"]),
        (["transformer", "--source", "two", "--target", "text.txt"], ["two has 2 lines and text.txt has 50"]),
        (["transformer", "--source", "two"], ["--target is missing"]),
        (["transformer", "--source", "two", "--data", "three.tsv"], ["--data and --source"]),
        (["rnn", "--data", "three.tsv", "--carry"], ["leave carry out"]),
    ]:
        refuse("train", *arguments, "--out", "run", words=words)
    refuse("compare", "gpt", "rnn", "--data", "three.tsv", "--budget", "params=100k,tokens=1M", words=["holds pairs"])
    refuse("compare", "gpt", "transformer", "--data", "text.txt", "--budget", "params=100k,tokens=1M",
           words=["transformer translates a source"])  # fmt: skip
    assert set(tmp_path.iterdir()) == before


def test_a_sample_of_a_model_that_needs_a_source_is_refused(runs, refuse):
    for directory in runs.values():
        refuse("sample", directory, words=[f"give it a source: scratchlm translate {directory} TEXT"])


def test_the_source_is_read_once_for_all_beams(runs, monkeypatch):
    """What an encoder made is kept once a source, whatever the beam."""
    model, tokenizer = load(runs["transformer"])
    seen = []
    original = type(model).initial_state

    def initial_state(self, batch_size, capacity=None, source: Source | None = None):
        seen.append(len(source.ids))
        return original(self, batch_size, capacity, source)

    monkeypatch.setattr(type(model), "initial_state", initial_state)
    ids = translation.encode_source("abc", model, tokenizer)
    translation.decode(model, [ids], tokenizer.end_of_text, beam=4)
    assert seen == [1]
