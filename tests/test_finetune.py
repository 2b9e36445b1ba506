"""Runs that start from another's weights, with and without an adapter: trained, killed, moved, damaged, merged."""

import contextlib
import errno
import io
import itertools
import json
import os
import re
import shutil
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from runs import SETTINGS, TEXT, die_once, metrics_without_clock, same_end
from scratchlm import files, lora
from scratchlm.checkpoint import RunFolder, build_model, find_base, load, plain_weights, restore_weights, starting_model
from scratchlm.checkpoint import folder as saving
from scratchlm.checkpoint.weights import mean_weights
from scratchlm.cli import main, progress
from scratchlm.config import make_config, merge
from scratchlm.errors import InputError
from scratchlm.evaluation import evaluate
from scratchlm.files import file_sha256, read_json, write_json
from scratchlm.inspect import curves
from scratchlm.model import record
from scratchlm.tokenizers import exhaust, learn
from scratchlm.training import loop
from scratchlm.training import setup as folders
from scratchlm.training.setup import create_run, finetune_settings
from test_nothing_is_lost import KILLER, MOMENTS, process
from test_pair_runs import LINES
from test_pair_runs import MODEL as PAIRS_MODEL
from test_pair_runs import SETTINGS as PAIRS_SETTINGS

OTHER = "".join(f"{b} came down the hill, {a}, and {a}, went up.\n" for a in "ABCDEFGH" for b in "abcdefgh")
FEW = {"steps": 6, "eval_every": 3, "log_every": 2, "keep": 9, "optim": {"warmup": 2, "lr": 1e-2}}
OWN = {"lstm": {"ranks": {"recurrent": 3}, "alphas": {"token_embedding": 4.0}, "dora": True}}  # for some a setting more
LORA = {"rank": 2, "targets": ("*",), "bias": "all", "dropout": 0.1}
FLAGS = ["--steps=6", "--eval-every=3", "--log-every=2", "--keep=9", "--optim.lr=0.01", "--optim.warmup=2"]
ADAPTER = ["--lora", "--lora.rank=2", "--lora.targets=*", "--lora.bias=all", "--lora.dropout=0.1"]
SHAPES = {
    "gpt": {},
    "lstm": {"arch": "lstm", "model": {"dim": 12, "hidden_dim": 16, "depth": 1}, "window": 16, "carry": True},
    "cnn": {
        "arch": "cnn",
        "model": {"dim": 12, "hidden_dim": 10, "depth": 2, "dilations": 2, "block": "tcn"},
        "window": 16,
    },
    "transformer": {**PAIRS_SETTINGS, "arch": "transformer", "model": PAIRS_MODEL["transformer"]},
}


@pytest.fixture(autouse=True, scope="module")
def quick():
    """Short samples, which draw from no generator of the training, and no pictures."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "SAMPLE_TOKENS", 4)
        patch.setattr(progress, "FINAL_TOKENS", 4)
        patch.setattr(curves, "save_loss_curve", lambda *arguments: [])
        yield


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """Both texts and both sets of pairs, as files."""
    folder = tmp_path_factory.mktemp("texts")
    half = len(LINES) // 2
    for name, content in (("text.txt", TEXT), ("other.txt", OTHER), ("euro.txt", OTHER + 9 * "€" + OTHER),
                          ("pairs.tsv", "\n".join(LINES[:half])), ("others.tsv", "\n".join(LINES[half:]))):  # fmt: skip
        (folder / name).write_text(content + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def base(texts):
    """A function that trains a run of an architecture to start from, once."""

    @cache
    def made(arch):
        data = str(texts / ("pairs.tsv" if arch == "transformer" else "text.txt"))
        run, _ = create_run({**SETTINGS, **SHAPES[arch], "data": data, "steps": 4}, texts / f"base-{arch}")
        list(loop.train(run))
        return run

    return lambda arch="gpt": made(arch)


def start(base, data, folder, adapted=True, **changed):
    """A run that starts from another's newest weights, as the command makes it."""
    lora = {"lora": {**LORA, **(changed.get("lora") or {})}} if adapted else {}
    settings = finetune_settings(base, merge(FEW, {"data": str(data)}, changed, lora))
    settings["base"] = os.path.relpath(base.path, folder)
    return create_run(settings, Path(folder), None, base=(base, base.checkpoint()))[0]


def new_text(arch, texts):
    return texts / ("others.tsv" if arch == "transformer" else "other.txt")


@pytest.fixture
def tune(base, texts, tmp_path):
    def make(arch="gpt", adapted=True):
        own = {"lora": OWN.get(arch)} if adapted else {}
        return start(base(arch), new_text(arch, texts), tmp_path / "tuned", adapted, **own)

    return make


@pytest.fixture(scope="module")
def finished(base, texts):
    """A function that gives a finished adapter of an architecture, which no test may change."""

    @cache
    def made(arch):
        folder = texts / ("adapter" if arch == "gpt" else f"adapter-{arch}")
        run = start(base(arch), new_text(arch, texts), folder, lora=OWN.get(arch))
        list(loop.train(run))
        return run

    return made


@pytest.fixture
def trained(finished):
    return finished("gpt")


@pytest.fixture
def copies(base, trained, tmp_path):
    """The adapter and its base, side by side, to be changed."""
    for run in (trained, base()):
        shutil.copytree(run.path, tmp_path / run.path.name, symlinks=True)
    return RunFolder(tmp_path / "adapter"), RunFolder(tmp_path / "base-gpt")


def call(*arguments):
    """A command in this process. Returns its exit code, standard output and standard error."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(argument) for argument in arguments])
    return code, out.getvalue(), err.getvalue()


def refused(*arguments):
    """A command that must end with one line about bad input. Returns the line."""
    code, out, err = call(*arguments)
    assert (code, out) == (2, ""), err
    assert re.fullmatch(r"scratchlm: .+\n", err), err
    return err


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def score(run, model):
    """The loss of a run's own validation split."""
    split = (run.pairs() if run.config().pairs else run.splits())["validation"]
    return evaluate(model.eval(), split, run.tokenizer().token_lengths(), run.config().training_window).nats_per_token


# Training


@pytest.mark.parametrize("adapted", [True, False], ids=["adapter", "all"])
@pytest.mark.parametrize("arch", SHAPES)
def test_a_run_learns_and_leaves_its_base_as_it_is(arch, adapted, base, tune, finished):
    before, loss = contents(base(arch).path), score(base(arch), load(base(arch).path)[0])
    run = finished(arch) if adapted else tune(arch, False)
    list(loop.train(run))
    assert contents(base(arch).path) == before
    losses = [line["val_loss"] for line in run.metrics() if "val_loss" in line]
    first, last = score(run, load(base(arch).path)[0]), score(run, load(run.path)[0])
    assert last == (pytest.approx(losses[-1], rel=1e-6) if adapted else losses[-1])  # which is merged once it is loaded
    assert last < first, "the new text is learned"
    weights = load_file(run.checkpoint("0").path / "model.safetensors")
    if not adapted:
        assert all(torch.equal(tensor, weights[name]) for name, tensor in base(arch).checkpoint().weights().items())
        return
    assert all(".lora." in f".{name}" for name in weights), "the adapter alone is kept"
    model = starting_model(run)
    assert score(base(arch), model) == loss, "a fresh adapter changes no bit of the loss"
    restore_weights(model, run.checkpoint())
    assert score(run, model) == pytest.approx(last, rel=1e-6)
    assert score(base(arch), model) != loss
    lora.remove(model)
    assert score(base(arch), model) == loss, "without it the base is there, to the bit"


@pytest.mark.parametrize("arch", SHAPES)
def test_an_adapters_run_goes_on_to_the_bit(arch, tune, finished):
    """Stopped in a save and in an evaluation, against the one that nobody stopped."""
    run = tune(arch)
    for function, at in (("update", 2), ("evaluate", 3), ("update", 5)):
        die_once(run, function, at)
    list(loop.train(run))
    same_end(run, finished(arch))


def check_killed(moments, trained, base, texts, folder):
    """Kill a process at each of these calls, the first in the command that begins: whatever is there goes on."""
    begin = ["finetune", str(base.path), f"--data={texts / 'other.txt'}", *ADAPTER, *FLAGS, "--device=cpu", "--out=run"]
    for moment, at in moments:
        go_on = ["resume", "run"] if (folder / "run").exists() else begin
        victim = process(folder, "-c", KILLER, *MOMENTS[moment], str(at), *go_on)
        _, message = victim.communicate(timeout=120)
        assert victim.returncode not in (0, 1, 2, 3), message.decode()
    assert call("resume", folder / "run")[0] == 0
    same_end(RunFolder(folder / "run"), trained)
    assert [path.name for path in (folder / "run").rglob(".*") if path.name != ".lock"] == []


def test_a_killed_process_loses_nothing(trained, base, texts, tmp_path):
    check_killed([("weights", 3)], trained, base(), texts, tmp_path)


@pytest.mark.slow
def test_processes_killed_at_every_moment(trained, base, texts, tmp_path):
    moments = [("state", 1), ("weights", 1), ("rename", 2), ("loss", 1), ("disk", 1), ("sample", 1), ("weights", 1)]
    check_killed(moments, trained, base(), texts, tmp_path)


def test_a_run_of_all_weights_needs_its_base_only_to_begin(copies, texts, tmp_path):
    _, base = copies
    whole, run = (start(base, texts / "other.txt", tmp_path / name, False) for name in ("whole", "run"))
    list(loop.train(whole))
    die_once(run, "update", 4)
    shutil.rmtree(base.path)
    list(loop.train(run))
    same_end(run, whole)
    assert call("eval", run.path)[0] == 0


# What the command says and does


def test_what_is_said_before_it_starts_is_so(base, texts, tmp_path):
    code, _, err = call(
        "finetune", base().path, "--data", texts / "other.txt", *ADAPTER, *FLAGS, "--out", tmp_path / "a"
    )
    assert code == 0
    run = RunFolder(tmp_path / "a")
    kept, moments = run.checkpoint().weights(), run.checkpoint().optimizer()
    trained = sum(tensor.numel() for tensor in kept.values())
    whole = sum(tensor.numel() for tensor in base().checkpoint().weights().values())
    own = sum(tensor.nbytes for name, tensor in moments.items() if name.endswith(("|exp_avg", "|exp_avg_sq")))
    assert {name.partition("|")[0] for name in moments if not name.startswith("random|")} == kept.keys()
    file = run.checkpoint().path / "model.safetensors"
    assert 4 * trained < file.stat().st_size < 4 * trained + 200 * len(kept), "the adapter and the names of its tensors"
    said = re.search(r"starting from (\S+), step 4\n"
                     r"an adapter of rank 2 beside 10 matrices: (\S+) parameters are trained, (\S+)% of (\S+); "
                     r"optimizer (\S+) kB, where all parameters would take (\S+) kB; adapter (\S+) kB\n"
                     r"2 of them are read as tensors, where --lora.dropout has nothing to drop: "
                     r"token_embedding, position_embedding\n", err)  # fmt: skip
    assert said, err
    assert said.groups() == (
        str(base().path), f"{trained:,}", f"{100 * trained / (trained + whole):.3f}", f"{trained + whole:,}",
        f"{own / 1e3:.1f}", f"{8 * whole / 1e3:.1f}", f"{4 * trained / 1e3:.1f}",
    )  # fmt: skip
    assert own == 8 * trained
    code, _, err = call("finetune", base().path, "--data", texts / "other.txt", *FLAGS, "--out", tmp_path / "b")
    assert code == 0
    assert f"all {whole:,} parameters are trained; optimizer {8 * whole / 1e3:.1f} kB\n" in err
    assert RunFolder(tmp_path / "b").config().lora is None


def test_the_command_and_the_library_make_the_same_run(trained, base, texts, tmp_path):
    flags = [*ADAPTER, *FLAGS, "--out", tmp_path / "run"]
    assert call("finetune", base().path, "--data", texts / "other.txt", *flags)[0] == 0
    same_end(RunFolder(tmp_path / "run"), trained)


def test_commands_take_an_adapter(trained, base, tmp_path):
    json_flags = ["--json", "--device", "cpu"]
    evaluated = json.loads(call("eval", trained.path, *json_flags)[1])
    losses = [line["val_loss"] for line in trained.metrics() if "val_loss" in line]
    assert evaluated["nats_per_token"] == pytest.approx(losses[-1], rel=1e-6), "merged where it was beside in training"
    _, one, _ = call("sample", trained.path, "--tokens", 12, "--temperature", 0, *json_flags)
    _, other, _ = call("sample", base().path, "--tokens", 12, "--temperature", 0, *json_flags)
    assert json.loads(one)["step"] == 6
    assert one != other
    copy = shutil.copytree(trained.path, tmp_path / "adapter", symlinks=True)  # beside another base than it names
    shutil.copytree(base().path, tmp_path / "base-gpt", symlinks=True)
    assert call("inspect", "attention", copy, "--text", "A and b")[0] == 0
    assert (copy / "attention.json").exists()
    assert call("info", copy)[0] == 0
    model, tokenizer = load(trained.path)
    with record(model) as shown:
        model(torch.tensor([tokenizer.encode("A and b")]))
    assert "blocks.0.attention.weights" in shown


@pytest.mark.parametrize("arch", SHAPES)
def test_a_merged_run_is_plain_and_scores_alike(arch, finished, texts, tmp_path):
    run, data = finished(arch), ["--data", new_text(arch, texts), "--json"]
    code, _, err = call("merge", run.path, "--out", tmp_path / "merged")
    assert code == 0, err
    merged = RunFolder(tmp_path / "merged")
    assert (merged.config().base, merged.config().lora, merged.has_text) == (None, None, False)
    assert merged.checkpoint().weights().keys() == load(run.path)[0].state_dict().keys()
    source = read_json(merged.path / "manifest.json")["merged"]
    assert (source["sha256"], source["base_sha256"]) == (run.checkpoint().sha256, run.base_sha256)
    before = json.loads(call("eval", run.path, *data)[1])
    after = json.loads(call("eval", merged.path, *data)[1])
    assert {**before, "step": 0} == after


def test_a_merged_run_is_a_base(trained, texts, tmp_path):
    assert call("merge", trained.path, "--out", tmp_path / "merged", "--checkpoint", "3")[0] == 0
    merged = RunFolder(tmp_path / "merged")
    again = start(merged, texts / "other.txt", tmp_path / "again")
    list(loop.train(again))
    model = starting_model(again)
    assert score(trained, model) == score(trained, load(trained.path, "3")[0])
    assert "scratchlm finetune" in refused("resume", merged.path)
    assert "no text" in refused("eval", merged.path)


def test_an_average_is_that_of_the_merged_weights(trained):
    """B A is no mean of the A and of the B: what is averaged is what each checkpoint computes with."""
    several = [plain_weights(trained, trained.checkpoint(step)) for step in ("3", "6")]
    expected = mean_weights(several)
    model = load(trained.path, average=2)[0]
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())
    assert not torch.equal(several[0]["blocks.0.mlp.hidden.weight"], expected["blocks.0.mlp.hidden.weight"])
    shown = json.loads(call("eval", trained.path, "--average", 2, "--json")[1])
    assert shown["nats_per_token"] == score(trained, model)


def test_a_run_without_a_text_can_be_tuned(texts, tmp_path):
    """As an imported one: weights and a tokenizer from elsewhere, with rows that stand for no token."""
    tokenizer = exhaust(learn("char", [TEXT + OTHER], False, None))
    shape = {**SETTINGS["model"], "vocab_size": tokenizer.vocab_size + 3}
    config = make_config({"arch": "gpt", "model": shape, "data": "nowhere", "tokenizer": "char"})
    weights = {name: 0.1 * torch.randn_like(t) for name, t in build_model(config).state_dict().items()}
    imported = RunFolder.create(tmp_path / "imported", config, tokenizer, weights, {"imported": {}})
    for flags in (ADAPTER, []):
        out = tmp_path / f"tuned{len(flags)}"
        code, _, err = call("finetune", imported.path, "--data", texts / "other.txt", *FLAGS, *flags, "--out", out)
        assert code == 0, err
        run = RunFolder(out)
        assert run.config().batch_size == 4
        assert run.config().model.vocab_size == tokenizer.vocab_size + 3
        assert call("eval", out)[0] == call("sample", out, "--tokens", 4)[0] == 0


# Bases that are gone, moved, others


def test_a_base_that_was_moved(copies, texts, tmp_path):
    adapter, base = copies
    expected = call("eval", adapter.path, "--json")[1]
    moved = tmp_path / "elsewhere" / "base"
    moved.parent.mkdir()
    base.path.rename(moved)
    for command in (["sample"], ["eval"], ["merge"], ["resume", "--steps=9"], ["inspect", "attention", "--text=A"]):
        at = 2 if command[0] == "inspect" else 1
        line = refused(*command[:at], adapter.path, *command[at:])
        assert f"{base.path} is no folder" in line
        assert "--base DIR" in line
    assert not (tmp_path / "adapter-merged").exists()
    assert call("eval", adapter.path, "--json", "--base", moved)[1] == expected
    assert call("sample", adapter.path, "--tokens", 4, "--base", moved)[0] == 0
    assert call("merge", adapter.path, "--base", moved)[0] == 0
    assert call("resume", adapter.path, "--base", moved)[0] == 0
    assert call("export", adapter.path, "--to", "hf", "--base", moved)[0] == 0
    looked = ["--text", "A", "--out", tmp_path / "looked", "--base", moved]
    assert call("inspect", "attention", adapter.path, *looked)[0] == 0
    data = ["--data", texts / "other.txt", "--json"]
    merged, own = (json.loads(call("eval", *which, *data)[1])
                   for which in ([tmp_path / "adapter-merged"], [adapter.path, "--base", moved]))  # fmt: skip
    assert merged["nats_per_token"] == own["nats_per_token"]


def test_both_may_be_moved_together(copies, tmp_path, monkeypatch):
    adapter, _ = copies
    expected = call("eval", adapter.path, "--json")[1]
    tmp_path.rename(tmp_path.with_name("moved"))
    try:
        monkeypatch.chdir(tmp_path.with_name("moved") / "adapter")
        for name in (".", "../adapter"):
            assert call("eval", name, "--json")[1] == expected
    finally:
        monkeypatch.undo()
        tmp_path.with_name("moved").rename(tmp_path)


@pytest.mark.skipif(sys.platform == "win32", reason="whose accounts may have no links")
def test_a_base_is_found_through_links(copies, base, texts, tmp_path):
    """Of the adapter's folder, of the base's, and of the folder that the new run is in."""
    adapter, own = copies
    expected = call("eval", adapter.path, "--json")[1]
    (tmp_path / "deep/inside").mkdir(parents=True)
    for name, place in (("links/adapter", adapter.path), ("links/base", own.path), ("shelf", tmp_path / "deep/inside")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).symlink_to(place)
    assert call("eval", tmp_path / "links/adapter", "--json")[1] == expected
    out = ["--data", texts / "other.txt", *ADAPTER, *FLAGS, "--out", tmp_path / "shelf/run"]
    assert call("finetune", tmp_path / "links/base", *out)[0] == 0
    (tmp_path / "links/base").unlink()
    for place in ("shelf/run", "deep/inside/run"):
        assert call("eval", tmp_path / place, "--json")[1] == expected


def test_another_base_is_refused(copies, base, trained, texts, tmp_path):
    adapter, own = copies
    smaller = {**SETTINGS, "model": {**SETTINGS["model"], "dim": 8}, "data": str(texts / "text.txt"), "steps": 2}
    for name, settings in (("seeded", {**smaller, "model": SETTINGS["model"], "seed": 6}), ("smaller", smaller)):
        run, _ = create_run(settings, tmp_path / name)
        list(loop.train(run))
        line = refused("eval", adapter.path, "--base", run.path)
        assert "is for another base" in line
        assert run.path.name in line
        shutil.rmtree(own.path, ignore_errors=True)
        shutil.copytree(run.path, own.path, symlinks=True)  # in the place of its own
        assert "is for another base" in refused("sample", adapter.path)
    assert "is for another base" in refused("eval", adapter.path, "--base", adapter.path)
    with pytest.raises(InputError, match="has no base"):
        find_base(RunFolder(tmp_path / "seeded"))


def test_a_base_that_went_on(copies):
    """The weights that it started from are found by their hash, as long as they are kept."""
    adapter, own = copies
    expected = call("eval", adapter.path, "--json")[1]
    list(loop.train(own, steps=8))
    assert call("eval", adapter.path, "--json")[1] == expected
    (own.checkpoint().path / "state.json").write_text("{", encoding="utf-8")  # a newer one that cannot be read
    assert call("eval", adapter.path, "--json")[1] == expected
    shutil.rmtree(own.checkpoint("4").path)
    assert "or no longer" in refused("eval", adapter.path)


def test_a_damaged_base_is_named(copies):
    adapter, own = copies
    file = own.checkpoint().path / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    for command in ("eval", "sample", "merge"):
        assert f"{file} is damaged" in refused(command, adapter.path)


# Adapters that are damaged


def rewrite(run, change):
    """Change the adapter's tensors, and the hash that is written down of them, as a careful forger would."""
    checkpoint = run.checkpoint()
    file = checkpoint.path / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)
    state = read_json(checkpoint.path / "state.json")
    write_json(checkpoint.path / "state.json", {**state, "sha256": {**state["sha256"], file.name: file_sha256(file)}})


NAME = "blocks.1.mlp.hidden.lora.whole"


def test_a_damaged_adapter_file(copies):
    adapter, _ = copies
    for found in adapter.checkpoints()[:-1]:
        shutil.rmtree(found.path)
    file = adapter.checkpoint().path / "model.safetensors"
    whole = file.read_bytes()
    for content in (b"", whole[:100], whole[:-1], whole[:-1] + bytes([whole[-1] ^ 1])):
        file.write_bytes(content)
        for command in (["eval"], ["sample"], ["merge"], ["resume"]):
            assert f"{file} is damaged" in refused(*command, adapter.path)


@pytest.mark.parametrize(
    ("name", "tensor", "words"),
    [
        (f"{NAME}.A", None, rf"{NAME}\.A has nothing, expected torch\.float32 \(2, 16\)"),
        (f"{NAME}.B", torch.ones(3, 64), r"\(3, 64\), expected torch\.float32 \(64, 2\)"),
        (f"{NAME}.B", torch.ones(64, 2).half(), r"torch\.float16 .*expected torch\.float32"),
        (f"{NAME}.B", torch.full((64, 2), torch.nan), rf"{NAME}\.B has values that are no numbers"),
        (f"{NAME}.magnitude", torch.ones(64), r"magnitude has .*expected nothing"),
        ("blocks.7.mlp.hidden.lora.whole.A", torch.ones(2, 16), r"blocks\.7\S+ has .*expected nothing"),
        ("final_norm.weight", torch.ones(16), r"final_norm\.weight has .*expected nothing"),
    ],
)
def test_an_adapter_file_is_read_strictly(name, tensor, words, copies, tmp_path):
    """PEFT 0.21.2 warns of missing tensors, and passes over those that there are too many of."""
    adapter, _ = copies
    rewrite(adapter, lambda tensors: tensors.pop(name) if tensor is None else tensors.update({name: tensor}))
    for command in ("eval", "merge"):
        assert re.search(words, refused(command, adapter.path))
    assert not (tmp_path / "adapter-merged").exists()


def test_a_merge_beyond_all_numbers(copies):
    adapter, _ = copies
    rewrite(adapter, lambda tensors: [tensors[f"{NAME}.{key}"].fill_(3e38) for key in "AB"])
    assert f"{NAME.partition('.lora')[0]}.weight" in refused("merge", adapter.path)


# Bad input


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--lora.rank=0"], ["lora.rank is 0", "at least 1"]),
        (["--lora.rank=17"], ["rank 17", "blocks.0.attention.query_key_value", "48 x 16", "is 16"]),
        (["--lora", "--lora.targets=c_attn"], ["'c_attn'", "blocks.*.attention.query_key_value.query", "mlp.hidden"]),
        (["--lora", "--lora.alpha=0"], ["lora.alpha is 0"]),
        (["--lora", "--lora.dropout=1"], ["lora.dropout is 1"]),
        (["--lora", "--lora.bias=some"], ["some"]),
        (["--lora", "--model.dim=8"], ["--model.dim"]),
        (["--lora", "--tokenizer=byte"], ["--tokenizer"]),
        (["--checkpoint=77"], ["no checkpoint '77'"]),
        (["--data=missing.txt"], ["missing.txt"]),
        (["--out="], ["--out is empty"]),
    ],
)
def test_bad_input_leaves_nothing_behind(flags, words, base, texts, tmp_path):
    out = [] if any(flag.startswith("--out") for flag in flags) else ["--out", tmp_path / "run"]
    data = [] if any(flag.startswith("--data") for flag in flags) else ["--data", texts / "other.txt"]
    line = refused("finetune", base().path, *data, *FLAGS, *flags, *out)
    assert all(word in line for word in words), line
    assert [*tmp_path.iterdir()] == []


def test_a_base_that_is_none(base, trained, texts, tmp_path):
    out = ["--data", texts / "other.txt", "--out", tmp_path / "run"]
    assert "is an adapter" in refused("finetune", trained.path, "--lora", *out)
    assert "scratchlm merge" in refused("finetune", trained.path, *out)
    assert "no folder" in refused("finetune", tmp_path / "nowhere", *out)
    assert "name the run to start from" in refused("finetune", *out)
    assert "name the text" in refused("finetune", base().path, "--lora", "--out", tmp_path / "run")
    untrained, _ = create_run({**SETTINGS, "data": str(texts / "text.txt")}, tmp_path / "untrained")
    assert "no checkpoint yet" in refused("finetune", untrained.path, *out)
    assert "no adapter" in refused("merge", base().path)
    assert "is there already" in refused("merge", trained.path, "--out", base().path)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("adapter", [["--lora"], []])
def test_a_text_that_the_base_cannot_read(adapter, base, texts, tmp_path):
    line = refused("finetune", base().path, "--data", texts / "euro.txt", *adapter, *FLAGS, "--out", tmp_path / "run")
    assert "'€'" in line
    line = refused("finetune", base().path, "--data", texts / "pairs.tsv", *adapter, *FLAGS, "--out", tmp_path / "run")
    assert "base-gpt has a tokenizer without an end-of-text token" in line
    assert "--tokenizer" not in line, "which there is not"
    transformer = base("transformer").path
    assert "pairs" in refused("finetune", transformer, "--data", texts / "other.txt", *FLAGS, "--out", tmp_path / "run")
    assert [*tmp_path.iterdir()] == []


# A full disk


def test_a_full_disk(trained, base, texts, tmp_path):
    """At each of the first calls that write: a line that says why, and no half of a run."""
    tuned = ["finetune", base().path, "--data", texts / "other.txt", *ADAPTER, *FLAGS, "--out", tmp_path / "run"]
    merged = ["merge", trained.path, "--out", tmp_path / "run"]
    for command, place, name, at in (
        (tuned, folders, "write_shards", 1), (tuned, files.os, "fsync", 1), (tuned, folders, "write_json", 1),
        (merged, saving, "save_file", 1), (merged, files.os, "fsync", 1), (merged, saving, "sync", 2),
        (merged, Path, "rename", 1), (merged, Path, "rename", 2),
    ):  # fmt: skip
        calls, original = itertools.count(1), getattr(place, name)

        def full(*arguments, calls=calls, original=original, at=at):
            if next(calls) == at:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return original(*arguments)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(place, name, full)
            assert "No space left" in refused(*command), name
        assert [*tmp_path.iterdir()] == [], name


def test_metrics_and_resumed_steps(tune):
    """Extended beyond its end, as any run is."""
    run = tune()
    list(loop.train(run))
    before = metrics_without_clock(run)
    assert call("resume", run.path, "--steps", 8)[0] == 0
    assert metrics_without_clock(run)[: len(before)] == before
    assert run.config() == replace(run.config(), steps=8, horizon=6)


# What the defaults are, and settings that mean nothing


def test_the_defaults_of_fine_tuning(base, tmp_path):
    run, shape = base(), base().config()
    manifest = {"imported": {}}
    tokenizer, weights = run.tokenizer(), run.checkpoint().weights()
    imported = RunFolder.create(tmp_path / "imported", replace(shape, accumulate=5), tokenizer, weights, manifest)
    for start, given, expected in (
        (run, {}, (shape.optim.lr, shape.batch_size, shape.window)),
        (run, {"lora": {}}, (3 * shape.optim.lr, shape.batch_size, shape.window)),
        (imported, {}, (3e-5, 4, 16)),
        (imported, {"lora": {}}, (2e-4, 4, 16)),
    ):
        settings = finetune_settings(start, given)
        lr, batch, window = expected
        assert settings["optim"]["lr"] == pytest.approx(lr)
        assert settings["optim"]["min_lr"] == pytest.approx(lr / 10, rel=1e-3)
        assert (settings["batch_size"], settings["window"]) == (batch, window)
        assert settings["accumulate"] <= settings["batch_size"]
    asked = finetune_settings(run, {"optim": {"lr": 1e-5}, "steps": 10})
    assert asked["optim"]["min_lr"] == pytest.approx(1e-6), "never above the highest rate"
    assert asked["optim"]["warmup"] == 1, "of so few steps"
    assert finetune_settings(run, {"optim": {"lr": 1e-5, "min_lr": 0.0}})["optim"]["min_lr"] == 0


def test_flags_say_what_is_trained(base, texts, tmp_path):
    """Whatever is written in them, and not how a word begins."""
    out = ["--data", texts / "other.txt", *FLAGS, "--out", tmp_path / "run"]
    assert "leave one of them out" in refused("finetune", base().path, *out, "--no-lora", "--lora.rank=2")
    assert call("finetune", base().path, *out, "--lora=false")[0] == 0
    config = RunFolder(tmp_path / "run").config()
    assert (config.lora, config.optim.lr) == (None, base().config().optim.lr)
    for command in (["sample"], ["eval"], ["resume"]):
        assert "needs no base" in refused(*command, base().path, "--base", "nowhere")


def test_settings_that_need_a_base_are_not_for_train(tuned_config, texts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("lora.toml").write_text("[lora]\nrank = 2\n", encoding="utf-8")
    for file in ("lora.toml", tuned_config):
        line = refused("train", "gpt", "--config", file, "--data", texts / "text.txt", "--out", "run")
        assert "use scratchlm finetune" in line
        assert not Path("run").exists()


@pytest.fixture
def tuned_config(trained):
    return trained.path / "config.json"


def test_a_run_from_before_there_were_bases_is_read(base, tmp_path):
    shutil.copytree(base().path, tmp_path / "old")
    content = read_json(tmp_path / "old/config.json")
    del content["base_sha256"], content["base"], content["lora"]
    write_json(tmp_path / "old/config.json", content)
    assert call("eval", tmp_path / "old", "--json")[1] == call("eval", base().path, "--json")[1]


def test_a_merge_that_moves_logits_is_refused(copies, monkeypatch):
    adapter, _ = copies
    monkeypatch.setattr("scratchlm.cli.merge.TOLERANCE", 0.0)  # rounding alone is far, then
    assert "logits differ by" in refused("merge", adapter.path)
    assert not adapter.path.with_name("adapter-merged").exists()
