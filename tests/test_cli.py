"""The command line as a person or a script meets it: what it prints, what it leaves behind, how it ends."""

import io
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from scratchlm import __version__
from scratchlm.cli import main, progress
from scratchlm.cli import sample as sampling
from scratchlm.cli import train as training
from scratchlm.files import read_json, write_json
from scratchlm.models import MODELS
from scratchlm.training.loop import Evaluated, Progress, train

TEXT = "".join(f"the quick brown fox jumps over the lazy dog - {number} times.\n" for number in range(60))
TINY = {
    "--data": "small.txt",
    "--steps": 4,
    "--eval-every": 2,
    "--log-every": 1,
    "--model.dim": 16,
    "--model.depth": 1,
    "--model.heads": 2,
    "--model.context": 16,
    "--model.dropout": 0,
    "--optim.lr": 0.003,
    "--optim.min-lr": 0.0003,
    "--optim.warmup": 2,
    "--batch-size": 4,
    "--device": "cpu",
    "--out": "run",
}
TOY = {key: value for key, value in TINY.items() if not key.startswith("--model")} | {"--window": 16}
DIVERGING = {"--optim.lr": 1e30, "--optim.schedule": "constant", "--optim.warmup": 0, "--optim.grad-clip": 0}
FIELDS = {"step", "loss", "tokens", "lr", "grad_norm", "seconds"}
LAST = Path("checkpoints/step_000004")
LAPTOP = MODELS["gpt"].presets["laptop"]


def given(settings, changes=()):
    """Flags of these settings, some changed; None leaves one out, a list is several values."""
    flags = []
    for name, value in {**settings, **dict(changes)}.items():
        if value is not None:
            flags += [name, *(value if isinstance(value, list) else [value])]
    return [str(flag) for flag in flags]


def tiny(**changes):
    return ["train", "gpt", *given(TINY, {"--" + name.replace("_", "-"): value for name, value in changes.items()})]


@dataclass
class Result:
    code: int
    out: str
    err: str


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run, which no test may change."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "small.txt").write_text(TEXT, encoding="utf-8")
    assert main(["train", "gpt", *given(TINY, {"--data": folder / "small.txt", "--out": folder / "run"})]) == 0
    return folder / "run"


@pytest.fixture
def cli(tmp_path, monkeypatch, capsys):
    """The command line in a folder of its own, with a text in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SCRATCHLM_CACHE", str(tmp_path / "cache"))
    Path("small.txt").write_text(TEXT, encoding="utf-8")

    def call(*arguments, stdin=b""):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        return Result(code, *capsys.readouterr())

    return call


@pytest.fixture
def copy(cli, trained):
    """A copy of the finished run, to be changed, as the folder "run"."""
    return Path(shutil.copytree(trained, "run", symlinks=True))


@pytest.fixture
def refuse(cli):
    """Expect a refusal: exit code 2, one line with these words, nothing created or changed."""

    def call(*arguments, words=(), **options):
        before = contents(Path.cwd())
        result = cli(*arguments, **options)
        assert result.code == 2
        assert result.out == ""
        assert re.fullmatch(r"scratchlm: .+\n", result.err), result.err
        for word in [words] if isinstance(words, str) else words:
            assert word in result.err
        assert changed(before, Path.cwd()) == []
        return result

    return call


def contents(folder):
    return {path: path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


def changed(before, folder):
    """Which files and folders are not as they were."""
    after = contents(folder)
    return [str(path) for path in sorted(before.keys() | after.keys()) if before.get(path, 0) != after.get(path, 0)]


def pointer(path):
    return path.readlink().name if path.is_symlink() else path.read_text(encoding="utf-8").strip()


def read(path):
    return json.loads(Path(path).read_text(encoding="utf-8"))


def strict(text):
    """JSON as the standard has it: no NaN, no Infinity; one object on one line."""

    def refuse(name):
        raise ValueError(f"{name} is no JSON")

    assert text.count("\n") == 1
    return json.loads(text, parse_constant=refuse)


def metrics(run):
    file = Path(run) / "metrics.jsonl"
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []


def without_seconds(lines):
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def reseal(path, **changes):
    """Change a JSON file as scratchlm would, checksum included."""
    write_json(path, {**read_json(path), **changes})


def edit(path, **changes):
    """Change a JSON file by hand; None removes a key."""
    content = {key: value for key, value in {**read(path), **changes}.items() if value is not None}
    path.write_text(json.dumps(content), encoding="utf-8")


def plain(text):
    """Help without its boxes and line breaks."""
    return re.sub(r"[\s│╭╮╰╯─]+", " ", text)


# --- train -------------------------------------------------------------------------------------------------------


def test_train_leaves_a_whole_run(cli):
    result = cli(*tiny())
    assert result.code == 0
    run = Path("run")
    files = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file() and not path.parent.is_symlink()}
    step = {"model.safetensors", "optimizer.safetensors", "state.json"}
    assert files - {"checkpoints/last", "checkpoints/best"} == {
        *(".lock", "config.json", "tokenizer.json", "manifest.json", "metrics.jsonl", "samples.txt"),
        *("loss.svg", "loss.png"),
        *(f"data/{name}" for name in ("manifest.json", "train_00000.npy", "validation_00000.npy", "test_00000.npy")),
        *(f"checkpoints/step_{number:06d}/{name}" for number in (2, 4) for name in step),
    }
    assert pointer(run / "checkpoints/last") == "step_000004"
    assert pointer(run / "checkpoints/best") == "step_000004"
    for path in run.rglob("*.json"):
        assert read(path)["format_version"] == 1, path

    lines = metrics(run)
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    for line in lines:
        scored = {"val_loss", "val_bits_per_byte"} if line["step"] in (2, 4) else set()
        assert line.keys() == FIELDS | scored
        assert line["tokens"] == line["step"] * 4 * 16
        assert line["grad_norm"] > 0
    assert lines[-1]["val_bits_per_byte"] == pytest.approx(lines[-1]["val_loss"] / math.log(2))
    assert lines[0]["seconds"] < lines[-1]["seconds"]

    samples = (run / "samples.txt").read_text(encoding="utf-8")
    assert [line for line in samples.splitlines() if line.startswith("--- ")] == [
        *("--- step 2 ---", "--- step 4 ---"),
        *(f"--- final sample {number} ---" for number in (1, 2, 3)),
    ]
    assert result.out.strip("\n")
    assert f"--- final sample 1 ---\n{result.out.strip()}\n" in samples.replace("---\n\n", "---\n")
    assert result.err.splitlines()[-1] == "write with it: scratchlm sample run"
    assert read("run/manifest.json")["seed"] == 1337
    assert (run / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert not [path for path in Path().iterdir() if path.name.startswith(".")]


def test_train_on_a_folder(cli):
    Path("texts/deep").mkdir(parents=True)
    for name, text in {"b.txt": TEXT, "a.md": "# a\r\n", "deep/c.jsonl": '{"text": "c"}\n"d"\n'}.items():
        Path("texts", name).write_bytes(text.encode())
    Path("texts/.hidden.txt").write_text("HIDDEN", encoding="utf-8")
    Path("texts/picture.png").write_bytes(b"\x89PNG\0")
    assert cli(*tiny(data="texts")).code == 0
    tokenizer = read("run/tokenizer.json")
    assert set(tokenizer["characters"]) == set(TEXT + "#cd")
    assert tokenizer["special_tokens"] == {"<|endoftext|>": len(tokenizer["characters"])}
    tokens = sum(split["tokens"] for split in read("run/data/manifest.json")["splits"].values())
    assert tokens == len(TEXT + "# a\ncd") + 3  # an end between two of four documents


def test_train_on_json_lines(cli):
    Path("lines.jsonl").write_text("\n".join([json.dumps({"text": TEXT}), json.dumps("É" * 40)]), encoding="utf-8")
    assert cli(*tiny(data="lines.jsonl")).code == 0
    assert set(read("run/tokenizer.json")["characters"]) == set(TEXT + "É")


@pytest.mark.parametrize("flag", [["--data", "-"], ["--data=-"]])
def test_train_on_standard_input(cli, flag):
    result = cli("train", "gpt", *given(TINY, {"--data": None}), *flag, stdin=b"\xef\xbb\xbf" + TEXT.encode())
    assert result.code == 0, result.err
    assert set(read("run/tokenizer.json")["characters"]) == set(TEXT)


@pytest.mark.parametrize(
    ("flags", "kind"),
    [
        (["--data=text.txt", "--vocab-size=300"], "bpe"),
        (["--data=text.txt", "--tokenizer=char"], "char"),
        (["--data=text.txt", "--tokenizer", "byte"], "byte"),
        (["--data=pairs.tsv", "--tokenizer=char+symbols"], "pair"),
        (["--source=sources.txt", "--target=sources.txt", "--tokenizer=char"], "char"),
    ],
)
def test_a_presets_tokenizer_gives_way_with_its_size(cli, flags, kind):
    """The Backpack's preset wanted 4,096 tokens of any tokenizer that was named."""
    sources = [f"{a} {b}" for a in "abcde" for b in "abcdefgh"]
    Path("text.txt").write_text(TEXT, encoding="utf-8")
    Path("sources.txt").write_text("\n".join(sources), encoding="utf-8")
    Path("pairs.tsv").write_text("\n".join(f"{source}\tX Y" for source in sources), encoding="utf-8")
    shape = ["--model.dim=16", "--model.depth=1", "--steps=2", "--batch-size=2", "--device=cpu", "--out=run"]
    result = cli("train", "backpack", *flags, *shape)
    assert result.code == 0, result.err
    assert read("run/tokenizer.json")["kind"] == kind


def test_train_replaces_bad_bytes_on_request(cli):
    Path("latin.txt").write_bytes(TEXT.encode() + b"\xe9")
    assert cli(*tiny(data="latin.txt", errors="replace")).code == 0
    assert "\ufffd" in read("run/tokenizer.json")["characters"]


def test_runs_without_a_name_are_numbered(cli):
    Path("empty").mkdir()
    for folder, changes in {"runs/gpt": {"out": None}, "runs/gpt-2": {"out": None}, "empty": {"out": "empty"}}.items():
        result = cli(*tiny(steps=1, **changes))
        assert result.code == 0
        assert result.err.endswith(f"scratchlm sample {folder}\n")
        assert Path(folder, "config.json").is_file()


def test_settings_come_from_flag_then_file_then_preset(cli):
    Path("my.toml").write_text(
        'arch = "gpt"\npreset = "nanogpt-cpu"\nsteps = 2\nlog_every = 2\n'
        "[model]\ndim = 32\nheads = 2\n[optim]\nlr = 0.005\n",
        encoding="utf-8",
    )
    flags = dict.fromkeys(["--steps", "--log-every", "--model.heads", "--optim.lr"], None)
    assert cli("train", "gpt", *given(TINY, flags), "--config", "my.toml").code == 0
    config = read("run/config.json")
    assert (config["model"]["dim"], config["model"]["heads"], config["model"]["bias"]) == (16, 2, False)
    assert (config["steps"], config["log_every"], config["eval_every"], config["seed"]) == (2, 2, 2, 5)
    assert (config["optim"]["lr"], config["optim"]["beta2"], config["optim"]["eps"]) == (0.005, 0.99, 1e-8)
    assert (config["preset"], config["split"]) == ("nanogpt-cpu", [0.9, 0.1, 0.0])
    shown = plain(cli("train", "gpt", "--config", "my.toml", "--preset", "laptop", "--help").out)
    for text in ("[default: laptop]", "(n_embd). [default: 32]", "--steps INT Optimizer steps. [default: 2]"):
        assert text in shown


def test_config_json_repeats_a_run(cli, copy):
    assert cli("train", "gpt", "--config", "run/config.json", "--out", "again").code == 0
    assert without_seconds(metrics("again")) == without_seconds(metrics("run"))
    assert (Path("again") / LAST / "model.safetensors").read_bytes() == (copy / LAST / "model.safetensors").read_bytes()


def test_without_a_size_the_run_fits_the_machine(cli, monkeypatch):
    monkeypatch.setattr(training, "FIT_SECONDS", 1e-3)
    result = cli(*tiny(steps=None))
    assert result.code == 0
    assert f"{LAPTOP['steps']:,} steps of the preset laptop" in result.err
    assert read("run/config.json")["steps"] < LAPTOP["steps"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "--help"], ["scratchlm train ARCH", "gpt"]),
        (
            ["train", "gpt", "--help"],
            ["[default: laptop]", f"--steps INT Optimizer steps. [default: {LAPTOP['steps']}]"],
        ),
        (
            ["train", "gpt", "-h"],
            [f"--model.dim INT Width of the residual stream (n_embd). [default: {LAPTOP['model']['dim']}]"],
        ),
        (["train", "gpt", "--preset", "nanogpt-gpu", "--help"], ["(n_layer). [default: 6]", "rate. [default: 0.001]"]),
        (["train", "gpt", "--preset=gpt2", "--help"], ["rate. [default: 0.0006]", "[default: 0.99 0.005 0.005]"]),
        (["sample", "--help"], ["--temperature FLOAT", "[default: 0.8]"]),
        (["presets"], ["list", "show"]),
        ([], ["train", "resume", "sample", "eval", "info", "data", "presets", "doctor"]),
    ],
)
def test_help(cli, arguments, words):
    result = cli(*arguments)
    assert result.code == 0
    for word in words:
        assert word in plain(result.out)
    assert [path.name for path in Path().iterdir()] == ["small.txt"]


def test_a_carried_state_is_trained_scored_and_refused_where_the_context_ends(cli, toy_registered):
    result = cli("train", "toy", *given(TOY), "--carry")
    assert result.code == 0
    assert "nats with the state carried" in result.err
    scored = [line for line in metrics("run") if "val_loss" in line]
    score = strict(cli("eval", "run", "--json").out)
    assert score["carried_nats_per_token"] == scored[-1]["carried_nats_per_token"]
    assert "in one pass with the state carried: " in cli("eval", "run").out
    assert "--carry" in plain(cli("train", "toy", "--help").out)
    refused = cli(*tiny(out="other"), "--carry")
    assert (refused.code, refused.err.count("\n"), Path("other").exists()) == (2, 1, False)
    assert "carry needs a model without a context limit" in refused.err


def test_an_architecture_of_ones_own(cli, toy_registered):
    result = cli("train", "toy", *given(TOY))
    assert result.code == 0
    assert result.err.startswith("toy, ")
    assert cli("resume", "run", "--steps", 6).code == 0
    assert cli("sample", "run", "--tokens", 40).out.count("") > 40
    assert strict(cli("eval", "run", "--json").out)["step"] == 6
    for shown in (cli("info", "run"), cli("info", "toy")):
        assert "ToyLayer" in shown.out
        assert "None" not in shown.out
    assert "--model.dim INT Width of the hidden vectors. [default: 16]" in plain(cli("train", "toy", "--help").out)
    tuned = cli("finetune", "run", "--data", "small.txt", "--lora.rank", 2, "--steps", 2, "--out", "lora")
    assert tuned.code == 0
    assert "an adapter of rank 2 beside" in tuned.err
    assert cli("merge", "lora", "--out", "merged").code == 0
    assert cli("sample", "merged", "--tokens", 4).code == 0


@pytest.mark.parametrize("name", ["a$_$.txt", "[b].txt", "new\nline.txt"])
def test_a_text_may_have_an_odd_name(cli, name):
    Path("small.txt").rename(name)
    result = cli(*tiny(data=name, steps=1))
    assert result.code == 0
    assert "are not" not in result.err
    assert Path("run/loss.svg").is_file()


@pytest.mark.parametrize("name", ["x:dog:y", "[red]", "[/b]", "a b", "é"])
def test_a_run_may_have_an_odd_name(cli, copy, name):
    Path(name).parent.mkdir(exist_ok=True)
    copy.rename(name)
    assert cli("info", name).out.startswith(f"gpt in {name}\n")
    assert cli("resume", name).err.startswith(f"{name} is finished")
    assert cli("sample", name, "--tokens", 3).code == 0


# --- bad input ---------------------------------------------------------------------------------------------------

FILES = {
    "broken.toml": b"steps = = 3",
    "broken.json": b'{"steps": ',
    "deep.json": b"[" * 100_000,
    "list.json": b"[1]",
    "latin.toml": b'data = "\xe9"',
    "toy.toml": b'arch = "toy"',
    "key.toml": b"stepz = 3",
    "shape.toml": b"[model]\ndimm = 16",
    "table.toml": b"model = 3",
    "optim.json": b'{"optim": [1]}',
    "preset.toml": b"preset = 3",
    "type.toml": b'keep = "x"',
    "horizon.toml": b"horizon = -3",
    "vocabulary.toml": b"[model]\nvocab_size = 7",
    "empty.txt": b"",
    "binary.txt": b"abc\0def",
    "latin.txt": b"good text \xe9",
    "utf16.txt": "text".encode("utf-16"),
    "short.txt": b"ab",
    "bad.jsonl": b'{"text": "a"}\nxx\n',
    "field.jsonl": b'{"words": "a"}\n',
    "half.jsonl": b'"' + b"a" * 500 + b'\\ud800"\n',
    "cut.tok": b'{"format_version": 1, "kind": "ch',
    "version.tok": b'{"format_version": 2, "kind": "byte"}',
    "kind.tok": b'{"format_version": 1, "kind": ["char"]}',
    "list.tok": b'{"format_version": 1, "kind": "char", "characters": ["a", "b"], "special_tokens": {}}',
    "full/something": b"",
    "pictures/a.png": b"",
}
BAD = {
    "missing arch": (["train"], ["gpt"]),
    "missing arch, flags": (["train", "--steps", 4], ["gpt"]),
    "unknown arch": (["train", "gtp"], ["'gtp'", "'gpt'"]),
    "unknown command": (["trian"], ["trian", "train"]),
    "unknown flag": (["train", "gpt", "--stepz", 4], ["--stepz", "--steps"]),
    "a word too many": (["train", "gpt", "more"], ["more"]),
    "flag without value": (["train", "gpt", "--preset"], ["--preset"]),
    "unknown preset": (["train", "gpt", "--preset", "lap"], ["'lap'", "'laptop'"]),
    **{
        f"{name} {value}": (tiny(**{name: value}), words)
        for name, value, words in [
            ("steps", "four", ["--steps", "four"]),
            ("steps", "2.5", ["2.5"]),
            ("steps", 0, ["steps is 0", "at least 1"]),
            ("steps", -1, ["steps is -1", "at least 1"]),
            ("seed", -1, ["-1"]),
            ("keep", 0, ["keep is 0"]),
            ("patience", 0, ["patience is 0"]),
            ("save_minutes", "nan", ["nan"]),
            ("accumulate", 5, ["accumulate is 5", "4 windows"]),
            ("window", 17, ["window is 17", "16"]),
            ("optim.lr", "nan", ["optim.lr", "nan"]),
            ("optim.lr", "inf", ["optim.lr", "inf"]),
            ("optim.lr", -1, ["optim.lr", "-1"]),
            ("optim.beta1", 1, ["optim.beta1", "below 1"]),
            ("optim.schedule", "step", ["step", "cosine"]),
            ("model.heads", 3, ["dim 16", "3 heads"]),
            ("model.dropout", "nan", ["dropout", "nan"]),
            ("model.depth", 0, ["depth is 0"]),
            ("model.activation", "relu", ["relu", "gelu"]),
            ("model.dim", 10**13, ["memory"]),
            ("split", [0.9, 0.05, 0.1], ["0.1", "sum to 1"]),
            ("split", ["nan", "nan", "nan"], ["nan"]),
            ("split", [0.9, 0.05], ["--split"]),
            ("split", [1, 0, 0], ["validation", "--split"]),
            ("device", "nonsense", ["nonsense", "cpu"]),
            ("config", "nope.toml", ["nope.toml", "No such file"]),
            ("config", "broken.toml", ["broken.toml", "line 1"]),
            ("config", "broken.json", ["broken.json", "line 1"]),
            ("config", "deep.json", ["deep.json"]),
            ("config", "list.json", ["list.json"]),
            ("config", "latin.toml", ["latin.toml"]),
            ("config", "toy.toml", ["toy.toml", "'toy'", "'gpt'"]),
            ("config", "key.toml", ["stepz", "'steps'"]),
            ("config", "shape.toml", ["model.dimm", "'dim'"]),
            ("config", "table.toml", ["model"]),
            ("config", "optim.json", ["optim"]),
            ("config", "preset.toml", ["preset", "3"]),
            ("config", "type.toml", ["keep", "'x'", "int"]),
            ("config", "horizon.toml", ["horizon", "-3"]),
            ("config", "vocabulary.toml", ["vocab_size is 7"]),
            ("data", "nope", ["'nope'", "shakespeare"]),
            ("data", "shakespere", ["'shakespere'", "'shakespeare'"]),
            ("data", "nope.txt", ["nope.txt", "No such file"]),
            ("data", "", ["data"]),
            ("data", "two\nlines.txt", ["lines.txt"]),
            ("data", "x" * 300 + ".txt", ["xxx"]),
            ("data", "empty.txt", ["empty.txt is empty"]),
            ("data", "binary.txt", ["binary.txt", "byte 3"]),
            ("data", "latin.txt", ["latin.txt", "byte 10 is 0xe9", "--errors replace"]),
            ("data", "utf16.txt", ["utf16.txt", "UTF-16"]),
            ("data", "short.txt", ["window of 16", "longer text"]),
            ("data", "bad.jsonl", ["bad.jsonl, line 2"]),
            ("data", "field.jsonl", ["field.jsonl, line 1", '"text"']),
            ("data", "half.jsonl", ["ud800"]),
            ("data", "pictures", ["pictures", ".txt"]),
            ("tokenizer", "word", ["'word'", "byte", "char"]),
            ("tokenizer", "full", ["'full'", "byte", "char"]),
            ("tokenizer", "cut.tok", ["cut.tok"]),
            ("tokenizer", "version.tok", ["version.tok", "version 2"]),
            ("tokenizer", "kind.tok", ["kind.tok"]),
            ("tokenizer", "list.tok", ["list.tok"]),
            ("out", "full", ["full is there already", "--out"]),
            ("out", "small.txt", ["small.txt is there already", "--out"]),
            ("out", "small.txt/run", ["small.txt/run"]),
            ("out", "", ["out"]),
            ("out", "x" * 300, ["xxx"]),
        ]
    },
    **{
        f"{' '.join(arguments)}": (arguments, words)
        for arguments, words in [
            (["info", "gtp"], ["'gtp'", "'gpt'"]),
            (["info", "full"], ["full", "config.json"]),
            (["info", "gpt", "--preset", "lap"], ["'lap'", "'laptop'"]),
            (["info", "gpt", "--vocab-size", "0"], ["vocab"]),
            (["info", "gpt", "--vocab-size", "-1"], ["-1", "at least 1"]),
            (["info", "gpt", "--vocab-size", "99999999999999999999"], ["99999999999999999999"]),
            (["presets", "show", "lap"], ["'lap'", "'laptop'"]),
            (["presets", "show", "llama"], ["architecture", "speedrun-5min", "NAME llama"]),
            (["data", "show", "nope"], ["'nope'", "shakespeare"]),
            (["data", "show", "shakespeare-tiny", "--characters", "-5"], ["-5"]),
            (["data", "get", "names", "--from", "small.txt"], ["small.txt", "sha256"]),
            (["data", "get", "names", "--from", "nope.txt"], ["nope.txt"]),
            (["doctor", "--json"], ["--json"]),
        ]
    },
}


@pytest.mark.parametrize(("arguments", "words"), BAD.values(), ids=[re.sub(r"x{9,}", "xxx", name) for name in BAD])
def test_bad_input(refuse, arguments, words):
    for name, data in FILES.items():
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_bytes(data)
    refuse(*arguments, words=words)


def test_cuda_where_there_is_none(refuse, copy, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for arguments in (tiny(device="cuda", out="other"), ["sample", "run", "--device", "cuda"]):
        refuse(*arguments, words=["cuda", "--device cpu"])


def test_a_missing_logger_leaves_nothing(refuse, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    refuse(*tiny(logger="wandb"), words="pip install 'scratchlm[wandb]'")


@pytest.mark.parametrize(
    "arguments",
    [[*tiny(data=None, out="other"), "--data=-"], ["sample", "run", "--prompt=-"], ["eval", "run", "--data=-"]],
)
def test_a_closed_standard_input(copy, monkeypatch, capsys, arguments):
    monkeypatch.setattr(sys, "stdin", None)
    assert main(arguments) == 2
    assert re.fullmatch(r"scratchlm: .*standard input.*\n", capsys.readouterr().err)
    assert not Path("other").exists()


# --- resume ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [[], ["--steps", 4]])
def test_resume_of_a_finished_run_changes_nothing(cli, copy, steps):
    before = contents(copy)
    result = cli("resume", "run", *steps)
    assert (result.code, result.out) == (0, "")
    assert result.err == "run is finished: all 4 steps are done; --steps N trains it for longer\n"
    assert changed(before, copy) == []


def test_resume_of_a_run_that_stopped_early_changes_nothing(cli):
    result = cli(*tiny(steps=40, patience=1, **{"optim.lr": 0, "optim.min_lr": 0}))
    assert "stopped early at step 4" in result.err
    assert "scratchlm sample run (the best was step 2: --checkpoint best)" in result.err
    before = contents(Path("run"))
    result = cli("resume", "run")
    assert result.code == 0
    assert "stopped early" in result.err
    assert changed(before, Path("run")) == []


def test_resume_for_longer(cli, copy):
    result = cli("resume", "run", "--steps", 6)
    assert result.code == 0
    assert "going on after step 4" in result.err
    assert result.err.endswith("scratchlm sample run\n")
    lines = without_seconds(metrics("run"))
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert pointer(copy / "checkpoints/last") == "step_000006"
    config = read("run/config.json")
    assert (config["steps"], config["horizon"]) == (6, 4)
    samples = (copy / "samples.txt").read_text(encoding="utf-8")
    assert samples.count("--- step 4 ---") == samples.count("--- step 6 ---") == 1


def test_resume_refuses(refuse, copy):
    Path("empty").mkdir()
    refuse("resume", "run", "--steps", 3, words=["--steps is 3", "planned for 4"])
    refuse("resume", "run", "--steps", "x", words=["--steps", "x"])
    refuse("resume", "nope", words=["nope", "scratchlm train"])
    refuse("resume", "empty", words=["empty", "config.json", "scratchlm train"])
    refuse("resume", words="DIRECTORY")


def test_resume_where_the_device_is_gone(cli, copy, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    edit(copy / "config.json", device="cuda")
    before = contents(copy)
    result = cli("resume", "run", "--steps", 5)
    assert (result.code, changed(before, copy)) == (2, [])
    remedy = re.findall(r"use (--device cpu)", result.err)
    assert cli("resume", "run", "--steps", 5, *(remedy[0].split() if remedy else [])).code == (0 if remedy else 2)


@pytest.mark.parametrize(
    ("number", "code", "kind", "step"), [(signal.SIGINT, 130, Evaluated, 2), (signal.SIGTERM, 143, Progress, 3)]
)
def test_a_stopped_and_resumed_run_is_as_in_one_go(cli, trained, monkeypatch, number, code, kind, step):
    def signalled(*arguments, **options):
        for record in train(*arguments, **options):
            yield record
            if isinstance(record, kind) and record.step == step:
                signal.raise_signal(number)

    before = signal.getsignal(number)
    with monkeypatch.context() as patched:
        patched.setattr(progress, "train", signalled)
        result = cli(*tiny())
    assert result.code == code
    assert result.err.endswith(f"stopped at step {step}, everything is saved; go on with: scratchlm resume run\n")
    assert signal.getsignal(number) is before
    assert cli("resume", "run").code == 0
    assert without_seconds(metrics("run")) == without_seconds(metrics(trained))
    last, straight = Path("run") / LAST, trained / LAST
    assert (last / "model.safetensors").read_bytes() == (straight / "model.safetensors").read_bytes()
    at, expected = read(last / "state.json")["position"], read(straight / "state.json")["position"]
    assert {**at, "seconds": 0} == {**expected, "seconds": 0}


# --- sample ------------------------------------------------------------------------------------------------------


def test_sample_is_decided_by_its_seed(cli, trained):
    result = cli("sample", trained, "--tokens", 12, "--prompt", "the ")
    assert result.code == 0
    assert re.fullmatch(r"the .{12}\n", result.out, re.DOTALL)
    loss = metrics(trained)[-1]["val_loss"]
    assert result.err == f"{trained}: weights of step 4, validation loss {loss:.4f} nats per token\n"
    assert cli("sample", trained, "--tokens", 12, "--prompt", "the ").out == result.out
    assert cli("sample", trained, "--tokens", 12, "--prompt", "the ", "--seed", 1).out != result.out
    older = cli("sample", trained, "--tokens", 12, "--prompt", "the ", "--checkpoint", 2)
    assert "weights of step 2" in older.err
    assert "the best is step 4" in older.err


def test_sample_without_chance(cli, trained):
    greedy = ["sample", trained, "--tokens", 12, "--temperature"]
    assert cli(*greedy, 0).out == cli(*greedy, 0, "--seed", 5).out == cli(*greedy, 9, "--top-k", 1).out
    assert cli(*greedy, 0).out != cli(*greedy, 9).out
    assert cli(*greedy, 1e-300).code in (0, 2)  # a traceback would be neither


def test_sample_as_json(cli, trained):
    flags = ["sample", trained, "--tokens", 12, "--samples", 2, "--prompt", "the ", "--prompt", "", "--seed", 3]
    shown, result = cli(*flags), cli(*flags, "--json")
    found = strict(result.out)
    assert found.keys() == {"step", "seed", "samples"}
    assert (found["step"], found["seed"]) == (4, 3)
    assert [sample["prompt"] for sample in found["samples"]] == ["the ", "the ", "", ""]
    assert all(sample.keys() == {"prompt", "text", "tokens"} for sample in found["samples"])
    assert all(len(sample["tokens"]) == len(sample["text"]) == 12 for sample in found["samples"])
    assert len({sample["text"] for sample in found["samples"]}) == 4
    texts = [sample["prompt"] + sample["text"] for sample in found["samples"]]
    later = "".join(f"--- {number} ---\n{text}\n" for number, text in enumerate(texts[1:], 2))
    assert shown.out == f"{texts[0]}\n{later}"
    assert shown.err == result.err
    single = strict(cli(*flags[:4], "--prompt", "the ", "--seed", 3, "--json").out)
    assert single["samples"] == found["samples"][:1]


def test_sample_stops_before_a_string(cli, trained):
    flags = ["sample", trained, "--tokens", 60, "--json"]
    text = strict(cli(*flags).out)["samples"][0]["text"]
    first, second = text[20:22], text[30:33]
    stopped = strict(cli(*flags, "--stop", second, "--stop", first).out)["samples"][0]["text"]
    assert stopped == text[: min(text.find(first), text.find(second))]


@pytest.mark.parametrize("flag", [["--prompt", "-"], ["--prompt=-"]])
def test_sample_reads_a_prompt_from_standard_input(cli, trained, refuse, flag):
    result = cli("sample", trained, *flag, "--tokens", 5, stdin=b"the fox")
    assert result.code == 0, result.err
    assert result.out.startswith("the fox")
    refuse("sample", trained, "--prompt=-", stdin=b"fox \xff", words=["standard input", "byte 4"])


def test_a_prompt_may_start_with_a_hyphen(cli, trained):
    result = cli("sample", trained, "--prompt", "- once", "--tokens", 5)
    assert result.code == 0, result.err
    assert result.out.startswith("- once")


def test_sample_past_the_context_says_so_once(cli, trained):
    result = cli("sample", trained, "--tokens", 100, "--samples", 2)
    assert result.code == 0
    assert result.err.count("the context of 16") == 1
    assert "the context" not in cli("sample", trained, "--tokens", 16).err
    result = cli("sample", trained, "--tokens", 1, "--prompt", TEXT[:40])
    assert result.out.startswith(TEXT[:40])
    assert result.err.count("the context of 16") == 1


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--prompt", "café"], ["'é'", "position 3", "--tokenizer byte"]),
        (["--temperature", "-1"], ["temperature is -1"]),
        (["--temperature", "nan"], ["temperature is nan"]),
        (["--temperature", "hot"], ["--temperature", "hot"]),
        (["--top-k", "0"], ["top-k is 0"]),
        (["--top-k", "1.5"], ["1.5"]),
        (["--top-p", "0"], ["top-p is 0"]),
        (["--top-p", "1.1"], ["top-p is 1.1"]),
        (["--min-p", "nan"], ["min-p is nan"]),
        (["--seed", "-1"], ["--seed is -1"]),
        (["--seed", str(1 << 63)], [f"--seed is {1 << 63}"]),
        (["--tokens", "0"], ["--tokens is 0"]),
        (["--tokens", "-1"], ["--tokens is -1"]),
        (["--samples", "0"], ["--samples 0"]),
        (["--stop", ""], ["stop string is empty"]),
        (["--checkpoint", "3"], ["'3'", "last, best, 2, 4"]),
        (["--checkpoint", "newest"], ["'newest'", "last, best, 2, 4"]),
        (["--device", "tpu"], ["'tpu'", "cpu"]),
        (["more"], ["more"]),
    ],
)
def test_sample_refuses(refuse, trained, flags, words):
    refuse("sample", trained, *flags, words=words)


@pytest.fixture(scope="module")
def bytewise(tmp_path_factory):
    """A run on bytes, of text whose characters have three of them."""
    folder = tmp_path_factory.mktemp("bytewise")
    (folder / "text.txt").write_text("日本語の文章。" * 200, encoding="utf-8")
    changes = {"--data": folder / "text.txt", "--tokenizer": "byte", "--out": folder / "run"}
    assert main(["train", "gpt", *given(TINY, changes)]) == 0
    return folder / "run"


def test_bytes_are_shown_as_whole_characters(bytewise, monkeypatch):
    written = []
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    monkeypatch.setattr(sys.stdout, "write", written.append)
    monkeypatch.setattr(sampling, "stream", lambda *_, **__: ((0, byte) for byte in "é本😀".encode()[:-1]))
    assert main(["sample", str(bytewise), "--prompt", "日😀"]) == 0
    assert [text for text in written if text] == ["日😀", "é", "本", "\n"]


def test_a_model_of_bytes_writes(cli, bytewise):
    flags = ["sample", bytewise, "--prompt", "日本😀", "--tokens", 64, "--temperature"]
    for temperature in (0, 1):
        text = cli(*flags, temperature).out
        assert text.startswith("日本😀")
        sample = strict(cli(*flags, temperature, "--json").out)["samples"][0]
        assert text == f"{sample['prompt']}{sample['text']}\n"
        whole = bytes(sample["tokens"]).decode("utf-8", "replace")
        assert whole.startswith(sample["text"])
        assert whole[len(sample["text"]) :] in ("", "\ufffd")


def test_an_interrupted_sample_ends_quietly(cli, trained, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(sampling, "stream", interrupted)
    try:
        code = cli("sample", trained).code
    except SystemExit as end:  # the same to the shell
        code = end.code
    assert code == 130


def test_json_stands_alone_without_standard_error(trained, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stderr", None)
    assert main(["sample", str(trained), "--tokens", "3", "--json"]) == 0
    assert strict(capsys.readouterr().out)["step"] == 4


# --- eval --------------------------------------------------------------------------------------------------------


def test_eval_is_the_loss_of_the_run(cli, trained):
    result = cli("eval", trained, "--json")
    score, line = strict(result.out), metrics(trained)[-1]
    assert result.code == 0
    assert score.keys() == {"nats_per_token", "perplexity", "bits_per_byte", "tokens", "bytes", "step"}
    assert score["nats_per_token"] == pytest.approx(line["val_loss"], rel=1e-6)
    assert score["bits_per_byte"] == pytest.approx(line["val_bits_per_byte"], rel=1e-6)
    assert score["perplexity"] == pytest.approx(math.exp(score["nats_per_token"]))
    assert (
        score["tokens"] == score["bytes"] == read(trained / "data/manifest.json")["splits"]["validation"]["tokens"] - 1
    )
    assert score["step"] == 4
    shown = cli("eval", trained)
    assert f"{line['val_loss']:.4f} nats per token" in shown.out
    assert "weights of step 4" in shown.err
    older = strict(cli("eval", trained, "--json", "--checkpoint", 2).out)
    assert older["nats_per_token"] == pytest.approx(metrics(trained)[1]["val_loss"], rel=1e-6)


def test_eval_of_other_text_and_windows(cli, trained):
    score = strict(cli("eval", trained, "--json").out)
    narrow = strict(cli("eval", trained, "--json", "--window", 4).out)
    assert narrow["tokens"] == score["tokens"]
    assert narrow["nats_per_token"] != score["nats_per_token"]
    test = strict(cli("eval", trained, "--json", "--split", "test").out)
    assert test["tokens"] == read(trained / "data/manifest.json")["splits"]["test"]["tokens"] - 1
    assert test["nats_per_token"] != score["nats_per_token"]
    other = strict(cli("eval", trained, "--json", "--data", "small.txt").out)
    assert other["tokens"] == len(TEXT) - 1
    for flag in (["--data=-"], ["--data", "-"]):
        result = cli("eval", trained, "--json", *flag, stdin=TEXT.encode())
        assert result.code == 0, result.err
        assert strict(result.out) == other


def test_eval_refuses(refuse, cli, trained):
    refuse("eval", trained, "--window", 17, words=["17", "1 to 16"])
    refuse("eval", trained, "--window", -1, words=["-1", "1 to 16"])
    refuse("eval", trained, "--checkpoint", 3, words=["'3'", "last, best, 2, 4"])
    refuse("eval", trained, "--data", "nope.txt", words="nope.txt")
    refuse("eval", trained, "--split", "train", words=["train", "val", "test"])
    Path("foreign.txt").write_text("the ünknown", encoding="utf-8")
    refuse("eval", trained, "--data", "foreign.txt", words=["'ü'", "position 4"])
    refuse("eval", trained, "--data=-", stdin=b"t", words="1 tokens")


def test_eval_refuses_a_window_of_nothing(refuse, trained):
    refuse("eval", trained, "--window", 0, words="0")


def test_eval_of_text_in_another_encoding(cli, refuse, trained):
    Path("latin.txt").write_bytes(b"the the the \xff\n")
    refuse("eval", trained, "--data", "latin.txt", words=["latin.txt", "byte 12", "--errors replace"])
    refuse("eval", trained, "--data", "latin.txt", "--errors", "replace", words="\ufffd")


def test_eval_of_an_empty_test_split(cli, refuse):
    assert cli(*tiny(split=[0.9, 0.1, 0], steps=1)).code == 0
    refuse("eval", "run", "--split", "test", words=["no test split", "--split"])


# --- info, doctor, presets, data ---------------------------------------------------------------------------------


def test_info(cli, trained):
    parameters = sum(tensor.numel() for tensor in load_file(trained / LAST / "model.safetensors").values())
    result = cli("info", trained)
    assert result.code == 0
    for text in (str(trained), "CausalSelfAttention", f"parameters           {parameters:,} ", "windows of 16"):
        assert text in result.out
    assert "124,439,808" in cli("info", "gpt", "--preset", "gpt2").out
    assert "vocabulary 300" in cli("info", "gpt", "--vocab-size", 300).out


@pytest.mark.parametrize("preset", ["laptop", "gpt2-xl"])
def test_info_cuts_nothing_off(cli, monkeypatch, preset):
    monkeypatch.delenv("COLUMNS", raising=False)
    assert "…" not in cli("info", "gpt", "--preset", preset).out


def test_doctor_and_version(cli):
    assert cli("--version").out == f"scratchlm {__version__}\n"
    result = cli("doctor")
    assert result.code == 0
    found = dict(line.split(maxsplit=1) for line in result.out.splitlines())
    assert found["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    assert {"python", "device", "cuda", "cores", "precision"} <= found.keys()


@pytest.mark.parametrize("preset", ["laptop", "nanogpt-cpu", "gpt2"])
def test_presets_are_shown_as_settings(cli, preset):
    assert re.search(rf"^gpt +{preset} ", cli("presets", "list").out, re.MULTILINE)
    Path("shown.toml").write_text(cli("presets", "show", preset).out, encoding="utf-8")
    result = cli(*tiny(config="shown.toml", steps=1, accumulate=1, **{"optim.lr": None}))
    assert result.code == 0, result.err
    config, settings = read("run/config.json"), MODELS["gpt"].presets[preset]
    assert config["preset"] == preset
    assert config["optim"]["lr"] == settings["optim"]["lr"]


def test_presets_of_one_name_are_told_apart_by_the_architecture(cli):
    assert 'arch = "gpt"' in cli("presets", "show", "laptop").out
    assert 'arch = "gru"' in cli("presets", "show", "laptop", "gru").out
    result = cli("presets", "show", "gpt2", "gru")
    assert (result.code, result.out) == (2, "")
    assert "no preset 'gpt2' of gru" in result.err


def test_data(cli):
    listed = cli("data", "list").out
    assert re.search(r"^shakespeare +here ", listed, re.MULTILINE)
    assert re.search(r"^names +to be fetched ", listed, re.MULTILINE)
    shown = cli("data", "show", "shakespeare-tiny", "--characters", 14).out
    for text in ("licence", "sha256", "1,189,045 characters"):
        assert text in shown
    assert shown.endswith("\n\nFirst Citizen:\n")
    assert "scratchlm data get names" in cli("data", "show", "names").out
    assert "from small.txt" not in cli("data", "get", "shakespeare-tiny", "--from", "small.txt").out
    assert not Path("cache").exists()


# --- damaged and diverged runs -----------------------------------------------------------------------------------


def put(name, data):
    return lambda run: (run / name).write_bytes(data)


def cut(name):
    return lambda run: (run / name).write_bytes((run / name).read_bytes()[:-7])


def flip(name):
    def damage(run):
        data = bytearray((run / name).read_bytes())
        data[-1] ^= 1
        (run / name).write_bytes(data)

    return damage


def swap_characters(run):
    characters = read(run / "tokenizer.json")["characters"]
    edit(run / "tokenizer.json", characters=characters[:-1] + "~")


ALL = ("sample", "eval", "resume")
DAMAGE = {  # what nothing can be done about
    "config broken": (put("config.json", b"{"), ALL, "config.json"),
    "config of version 2": (lambda run: edit(run / "config.json", format_version=2), ALL, "version 2"),
    "config without version": (lambda run: edit(run / "config.json", format_version=None), ALL, "config.json"),
    "config without arch": (lambda run: edit(run / "config.json", arch=None), ALL, "config.json"),
    "config changed by hand": (lambda run: edit(run / "config.json", seed=2), ALL, "config.json"),
    "config of another shape": (
        lambda run: reseal(run / "config.json", model={**read(run / "config.json")["model"], "dim": 32}),
        ALL,
        "does not fit",
    ),
    "config of another run": (lambda run: reseal(run / "config.json", run="0" * 32), ALL, "another run"),
    "tokenizer of another size": (put("tokenizer.json", b'{"format_version": 1, "kind": "byte"}'), ALL, "tokenizer"),
    "tokenizer of the same size": (swap_characters, ALL, "tokenizer"),
    "tokenizer missing": (lambda run: (run / "tokenizer.json").unlink(), ALL, "tokenizer.json"),
    "tokens flipped": (flip("data/validation_00000.npy"), ("eval", "resume"), "validation_00000.npy"),
    "tokens missing": (lambda run: shutil.rmtree(run / "data"), ("eval", "resume"), "data"),
    "tokens of another run": (
        lambda run: reseal(run / "data/manifest.json", note=1),
        ("eval", "resume"),
        "another run",
    ),
    "manifest not UTF-8": (put("data/manifest.json", b"\xff"), ("eval", "resume"), "data"),
    "metrics not UTF-8": (put("metrics.jsonl", b"\xff\n"), ("resume",), "metrics.jsonl"),
    "metrics broken": (put("metrics.jsonl", b"{\n{\n"), ("resume",), "metrics.jsonl"),
    "no checkpoint": (lambda run: shutil.rmtree(run / "checkpoints"), ("sample", "eval"), "no checkpoint"),
    "both checkpoints": (
        lambda run: [flip(path.relative_to(run) / "model.safetensors")(run) for path in run.glob("checkpoints/step*")],
        ALL,
        "no checkpoint of run is whole",
    ),
}
PASSED_OVER = {  # the checkpoint before is whole
    "weights cut off": (cut(LAST / "model.safetensors"), "model.safetensors is damaged"),
    "weights empty": (put(LAST / "model.safetensors", b""), "model.safetensors is damaged"),
    "weights flipped": (flip(LAST / "model.safetensors"), "model.safetensors is damaged"),
    "weights missing": (lambda run: (run / LAST / "model.safetensors").unlink(), "model.safetensors"),
    "weights of another step": (
        lambda run: shutil.copy(run / "checkpoints/step_000002/model.safetensors", run / LAST),
        "model.safetensors is damaged",
    ),
    "state missing": (lambda run: (run / LAST / "state.json").unlink(), "state.json"),
    "state without hashes": (lambda run: edit(run / LAST / "state.json", sha256=None), "state.json is damaged"),
    "state of another step": (
        lambda run: shutil.copy(run / "checkpoints/step_000002/state.json", run / LAST),
        "state.json belongs to another",
    ),
}


def flags_of(command):
    return {"sample": ["--tokens", 4], "eval": [], "resume": ["--steps", 6]}[command]


@pytest.mark.parametrize(
    ("command", "damage", "word"),
    [
        pytest.param(command, *case[::2], id=f"{name}, {command}")
        for name, case in DAMAGE.items()
        for command in case[1]
    ],
)
def test_a_damaged_run_is_refused(refuse, copy, command, damage, word):
    damage(copy)
    refuse(command, "run", *flags_of(command), words=word)


@pytest.mark.parametrize("command", ALL)
@pytest.mark.parametrize("name", PASSED_OVER)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(cli, copy, name, command):
    damage, word = PASSED_OVER[name]
    damage(copy)
    result = cli(command, "run", *flags_of(command))
    assert result.code == 0
    assert word in result.err
    assert "step 2" in result.err
    assert "Traceback" not in result.err


def test_a_damaged_optimizer_matters_to_resume_alone(cli, copy):
    flip(LAST / "optimizer.safetensors")(copy)
    assert "weights of step 4" in cli("sample", "run", "--tokens", 4).err
    result = cli("resume", "run", "--steps", 6)
    assert result.code == 0
    assert "optimizer.safetensors is damaged" in result.err
    assert "going on after step 2" in result.err


def test_a_checkpoint_that_was_named_is_not_replaced_by_another(refuse, copy):
    flip(LAST / "model.safetensors")(copy)
    refuse("sample", "run", "--checkpoint", 4, words="model.safetensors is damaged")


@pytest.mark.parametrize("name", ["step_000004.bak", "step_abc"])
def test_a_stray_folder_is_no_checkpoint(cli, copy, name):
    shutil.copytree(copy / LAST, copy / "checkpoints" / name)
    assert cli("sample", "run", "--tokens", 3).code == 0


def finite(checkpoint):
    return all(bool(tensor.isfinite().all()) for tensor in load_file(checkpoint / "model.safetensors").values())


def test_a_diverging_run_says_so(cli):
    result = cli("train", "gpt", *given(TINY, {"--steps": 20, **DIVERGING}))
    assert result.code == 3
    assert result.out == ""
    last = result.err.splitlines()[-1]
    assert last.startswith("scratchlm: the run diverged at step 2 in fp32: ")
    for word in ("learning rate 1e+30", "gradient norm", "step 0 is kept", "--optim.lr", "--optim.grad-clip 1"):
        assert word in last
    assert "Traceback" not in result.err
    assert "write with it" not in result.err
    assert finite(Path("run/checkpoints/step_000000"))
    assert cli("sample", "run", "--tokens", 3).code == 0


def test_a_run_that_diverges_later_keeps_its_good_checkpoint(cli, copy):
    optim = {**read("run/config.json")["optim"], "lr": 1e30, "warmup": 0, "grad_clip": 0.0}
    reseal(copy / "config.json", optim=optim, steps=12, horizon=12)
    before = contents(copy / LAST)
    result = cli("resume", "run")
    assert result.code == 3
    assert "the checkpoint of step 4 is kept" in result.err
    assert changed(before, copy / LAST) == []
    assert pointer(copy / "checkpoints/last") == pointer(copy / "checkpoints/best") == "step_000004"


@pytest.mark.parametrize("steps", [1, 20])
def test_weights_that_are_no_numbers_are_never_saved(cli, steps):
    result = cli("train", "gpt", *given(TINY, {"--steps": steps, "--eval-every": 1, "--keep": 1, **DIVERGING}))
    assert result.code == 3
    saved = [path for path in Path("run/checkpoints").glob("step_*") if path.is_dir()]
    assert saved
    assert all(map(finite, saved))
    assert all(math.isfinite(value) for line in metrics("run") for value in line.values())


def test_json_holds_for_a_hopeless_model(cli):
    assert cli(*tiny(steps=2, **{"optim.lr": 20, "optim.warmup": 0})).code == 0
    score = strict(cli("eval", "run", "--json").out)
    assert score["nats_per_token"] > 710  # beyond what exp can say


# --- as a process of its own -------------------------------------------------------------------------------------


def start(*arguments, **options):
    command = [sys.executable, "-m", "scratchlm", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, env=environment, encoding="utf-8", **pipes, **options)


@pytest.mark.parametrize("flag", ["--help", "--version"])
def test_help_needs_no_torch(flag):
    script = f"import sys; from scratchlm.cli import main; code = main(['{flag}']); print(code, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.splitlines()[-1] == "0 False"
    assert done.stderr == ""


def test_signals_end_a_training_with_all_saved(cli, tmp_path):
    processes = {}
    for number, code in {signal.SIGINT: 130, signal.SIGTERM: 143}.items():
        flags = given(TINY, {"--steps": 10**6, "--eval-every": 10, "--out": code})
        processes[code] = number, start("train", "gpt", *flags, cwd=tmp_path)
    try:
        for code, (number, process) in processes.items():
            deadline = time.monotonic() + 180
            # any checkpoint but the first: that of step 10 may be gone again before anybody looks
            while not any(Path(str(code), "checkpoints").glob("step_*[1-9]*")):
                assert process.poll() is None, process.stderr.read()
                assert time.monotonic() < deadline
                time.sleep(0.02)
            process.send_signal(number)
        for code, (_, process) in processes.items():
            out, err = process.communicate(timeout=60)
            assert (process.returncode, out) == (code, "")
            assert "Traceback" not in err
            assert err.endswith(f"everything is saved; go on with: scratchlm resume {code}\n")
    finally:
        for _, process in processes.values():
            process.kill()
    for code in processes:
        config, last = Path(str(code), "config.json"), pointer(Path(str(code), "checkpoints/last"))
        saved = int(last.removeprefix("step_"))
        assert saved >= 10
        reseal(config, steps=saved + 3)
        result = cli("resume", code)
        assert result.code == 0
        assert f"going on after step {saved:,}\n" in result.err
        assert [line["step"] for line in metrics(str(code))] == list(range(1, saved + 4))


@pytest.mark.parametrize("arguments", [["--help"], ["sample", "--tokens", 100_000]])
def test_a_reader_that_leaves_is_no_fault(trained, arguments):
    process = start(arguments[0], *([trained] if len(arguments) > 1 else []), *arguments[1:])
    try:
        if arguments[0] == "sample":
            assert process.stdout.read(5)
        process.stdout.close()
        assert "Traceback" not in process.stderr.read()
        assert process.wait(timeout=60) == 141
    finally:
        process.kill()
        process.stderr.close()
