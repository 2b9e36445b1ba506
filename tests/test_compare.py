"""Comparisons: the same budget for each, a report that opens offline, and nothing lost when it is interrupted."""

import contextlib
import dataclasses
import io
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure

import toy
from runs import TEXT, metrics_without_clock
from scratchlm import evaluation, tokenizers
from scratchlm.checkpoint import RunFolder, load
from scratchlm.cli import compare as cli_compare
from scratchlm.cli import main
from scratchlm.compare import measure, plan, report, run
from scratchlm.compare.budget import Budget, parse_budget
from scratchlm.compare.run import Chosen, Compared, Measuring, compare
from scratchlm.compare.seeds import across_seeds
from scratchlm.errors import InputError
from scratchlm.files import read_json, write_json
from scratchlm.inspect.curves import COLOURS
from scratchlm.models import MODELS
from scratchlm.models.backpack import BackpackConfig
from scratchlm.models.gpt import GPTConfig
from scratchlm.tokenizers import BPETokenizer
from scratchlm.training import loop

STEPS = 12
FLAGS = ["--budget", f"params=15.6k,tokens={STEPS * 64}", "--window", "16", "--batch-size", "4", "--device", "cpu"]
LEFT = {
    "comparison.json", "tokenizer.json", "gpt", "toy", "floor", "results.json", "table.md", "samples.txt",
    "report.html", "loss_tokens.svg", "loss_tokens.png", "loss_seconds.svg", "loss_seconds.png",
}  # fmt: skip
CLOCK = ("seconds", "training_tokens_per_second", "generation_tokens_per_second", "curve")


@dataclass(frozen=True, kw_only=True)
class FloorConfig(toy.ToyConfig):
    """A model that is not sized: it is what it is."""

    dim: int = 4
    sized = None


class Floor(toy.Toy):
    Config = FloorConfig


def make_small(put):
    """Fewer checkpoints and shorter samples than a user gets."""
    put(plan, "EVALUATIONS", 3)
    put(loop, "SAMPLE_TOKENS", 4)
    put(measure, "SAMPLE_TOKENS", 32)


@pytest.fixture(scope="module", autouse=True)
def registered():
    """Two more architectures, as a user would register their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MODELS, "_paths", dict(MODELS._paths))
        MODELS.register("toy", "toy:Toy")
        MODELS.register("floor", f"{__name__}:Floor")
        make_small(patch.setattr)
        yield


@dataclass
class Result:
    code: int
    out: str
    err: str


def run_cli(*arguments):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(argument) for argument in arguments])
    return Result(code, out.getvalue(), err.getvalue())


def write_text(folder):
    (folder / "text.txt").write_text(TEXT * 2, encoding="utf-8")
    return folder / "text.txt"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A comparison that nobody interrupted: its folder and what it said."""
    folder = tmp_path_factory.mktemp("finished")
    text = write_text(folder)
    return folder / "out", run_cli("compare", "gpt", "toy", "floor", "--data", text, "--out", folder / "out", *FLAGS)


def results_of(folder):
    return read_json(folder / "results.json")


def rows_of(folder):
    return {row["architecture"]: row for row in results_of(folder)["rows"]}


def same_results(folder, other):
    """The same rows but for what a clock says."""
    rows, expected = rows_of(folder), rows_of(other)
    assert list(rows) == list(expected)
    for name, row in rows.items():
        for key in row.keys() - set(CLOCK):
            assert row[key] == expected[name][key], (name, key)
        assert [point["nats_per_token"] for point in row["curve"]] == [
            point["nats_per_token"] for point in expected[name]["curve"]
        ]


def prepared(folder, text, measuring=lambda arch: None, **changed):
    budget = Budget(params=15_600, tokens=STEPS * 64)
    names = {"architectures": ("gpt", "toy", "floor"), "data": str(text), "budget": budget, "window": 16}
    return plan.prepare(plan.Request(**{**names, "batch_size": 4, "device": "cpu", **changed}), folder, measuring)


# --- what it leaves ----------------------------------------------------------------------------------------------


def test_it_says_and_leaves_what_it_promises(finished):
    folder, result = finished
    assert result.code == 0, result.err
    assert {path.name for path in folder.iterdir() if not path.name.startswith(".")} == LEFT
    assert result.out == (folder / "table.md").read_text(encoding="utf-8")
    assert "floor: 333 parameters, a floor that is not sized, 12 steps" in result.err
    assert f"open {folder / 'report.html'}" in result.err
    for name in ("loss_tokens", "loss_seconds"):
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert "</svg>" in (folder / f"{name}.svg").read_text(encoding="utf-8")


def test_each_has_the_budget_and_the_same_batches(finished):
    folder, _ = finished
    rows = rows_of(folder)
    for name in ("gpt", "toy"):
        assert rows[name]["sized"]
        assert rows[name]["parameters"] == pytest.approx(15_600, rel=0.02)
    assert not rows["floor"]["sized"]
    assert {row["tokens"] for row in rows.values()} == {STEPS * 64}
    configs = [RunFolder(folder / name).config() for name in rows]
    shared = ("data", "tokenizer", "seed", "batch_size", "window", "steps", "split")
    assert len({tuple(getattr(config, name) for name in shared) for config in configs}) == 1
    assert len({(folder / name / "data/manifest.json").read_bytes() for name in rows}) == 1
    laptop = MODELS["gpt"].presets["laptop"]["optim"]
    assert RunFolder(folder / "gpt").config().optim.lr == laptop["lr"] == rows["gpt"]["learning_rate"]
    assert all(config.optim.warmup == STEPS // 10 for config in configs)


def test_the_figures_are_those_of_the_runs(finished):
    folder, _ = finished
    results = results_of(folder)
    losses = [row["validation"]["nats_per_token"] for row in results["rows"]]
    assert losses == sorted(losses)
    assert json.loads((folder / "results.json").read_bytes())["format_version"] == 1
    for name, row in rows_of(folder).items():
        run = RunFolder(folder / name)
        model, tokenizer = load(run.path)
        assert row["parameters"] == sum(parameter.numel() for parameter in model.parameters())
        for split in ("validation", "test"):
            score = evaluation.evaluate(model, run.splits()[split], tokenizer.token_lengths(), 16)
            assert row[split]["nats_per_token"] == score.nats_per_token
            assert row[split]["bits_per_byte"] == score.bits_per_byte
        last = run.metrics()[-1]
        assert (row["steps"], row["tokens"], row["seconds"]) == (last["step"], last["tokens"], last["seconds"])
        assert row["validation"]["nats_per_token"] == last["val_loss"] == row["curve"][-1]["nats_per_token"]
        assert row["training_tokens_per_second"] == pytest.approx(last["tokens"] / last["seconds"])
        assert row["generation_tokens_per_second"] > 0
        assert row["sample"] in (folder / "samples.txt").read_text(encoding="utf-8")
        assert len(row["sample"]) == measure.SAMPLE_TOKENS
        carried = row["validation"]["carried_nats_per_token"]
        if name == "gpt":
            config = model.config
            assert carried is None
            assert row["state_bytes"] == [{"tokens": 16, "bytes": 2 * 16 * config.dim * config.depth * 4}] * 2
        else:
            assert carried == evaluation.carried_loss(model, run.splits()["validation"])
            size = 2 * model.config.dim * 4
            assert row["state_bytes"] == [{"tokens": 256, "bytes": size}, {"tokens": 4096, "bytes": size}]
    # products alone: two layers of two matrices, and the head
    dim = RunFolder(folder / "toy").config().model.dim
    assert rows_of(folder)["toy"]["flops_per_token"] == pytest.approx(2 * (4 * dim**2 + results["vocab_size"] * dim))


def test_the_table_has_a_row_for_each(finished):
    folder, result = finished
    lines = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in result.out.splitlines()]
    assert len(lines) == 5
    assert all(len(line) == 11 for line in lines)
    assert lines[1][1:] == ["-" * (len(cell) - 1) + ":" for cell in lines[1][1:]], "Markdown, numbers to the right"
    rows = rows_of(folder)
    for cells, row in zip(lines[2:], rows.values(), strict=True):
        assert cells[0] == row["architecture"] + ("" if row["sized"] else " (floor)")
        assert cells[1] == f"{row['validation']['nats_per_token']:.4f}"
        assert cells[4] == f"{row['test']['bits_per_byte']:.4f}"
        assert cells[9] == f"{row['parameters']:,}"


class Page(HTMLParser):
    """Tags that are closed in order, ids, addresses, and the text that a reader sees."""

    VOID = ("meta", "br", "img", "link", "input", "hr")

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.ids, self.addresses, self.text, self.policy = [], [], [], [], "", ""

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.tags.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        self.ids += [values["id"]] if "id" in values else []
        self.addresses += [v for k, v in attributes if k in ("src", "href", "xlink:href", "action", "data", "poster")]
        if values.get("http-equiv") == "Content-Security-Policy":
            self.policy = values["content"]

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data if self.open and self.open[-1] != "style" else ""


def read_page(folder):
    source = (folder / "report.html").read_text(encoding="utf-8")
    parsed = Page()
    parsed.feed(source)
    parsed.close()
    assert parsed.open == [], "every element is closed"
    return source, parsed


def test_the_report_opens_offline(finished):
    source, parsed = read_page(finished[0])
    assert "http:" not in source
    assert "https:" not in source
    assert not {"script", "link", "iframe", "img"} & set(parsed.tags)
    assert "@import" not in source
    assert parsed.policy.startswith("default-src 'none'; style-src 'unsafe-inline'")
    assert parsed.addresses, "the curves' marks"
    assert {address.removeprefix("#") for address in parsed.addresses} <= set(parsed.ids)
    assert parsed.tags.count("svg") == 2
    assert len(parsed.ids) == len(set(parsed.ids)), "the two figures' ids are apart"
    for part in ("prefers-color-scheme: dark", 'name="viewport"', "@media (max-width"):
        assert part in source


def test_the_report_says_what_each_figure_means(finished):
    folder, _ = finished
    _, parsed = read_page(folder)
    text = " ".join(parsed.text.split())
    for term in (
        "nats per token",
        "bits per byte",
        "validation, test",
        "generation, tokens/s",
        "state",
        "FLOPs per token",
    ):
        assert term in text
    rows = rows_of(folder)
    best = next(iter(rows.values()))
    assert f"{best['architecture']} predicts best: {best['validation']['nats_per_token']:.4f} nats per token" in text
    for row in rows.values():
        assert f"{row['validation']['nats_per_token']:.4f}" in text
        assert " ".join(row["sample"].split()) in text


def test_a_report_is_written_whatever_bytes_a_path_has(finished, tmp_path):
    results = results_of(finished[0])
    results["request"]["data"] = "caf\udce9.txt"  # how Python reads a name that is not UTF-8
    report.draw(results, tmp_path)
    assert "caf?.txt" in read_page(tmp_path)[1].text


def test_what_a_text_holds_cannot_become_markup(finished):
    results = results_of(finished[0])
    results["request"]["data"] = "<script>alert(1)</script>"
    results["rows"][0]["sample"] = "</pre><img src=x>"
    source = report.page(results, {"tokens": "", "seconds": ""})
    assert "<script" not in source
    assert "<img" not in source


# --- at equal trunks -----------------------------------------------------------------------------------------------

TRUNK = Budget(params=15_600, trunk=True, tokens=2 * 64)
NO_TRUNK = dataclasses.replace(TRUNK, trunk=False)


def test_at_equal_trunks_the_contextual_network_is_identical(tmp_path):
    text, folder = write_text(tmp_path), tmp_path / "out"
    flags = ["--budget", "trunk=15.6k,tokens=128", *FLAGS[2:]]
    result = run_cli("compare", "gpt", "backpack", "floor", "--data", text, "--out", folder, *flags)
    assert result.code == 0, result.err
    rows, models = rows_of(folder), {name: load(folder / name)[0] for name in ("gpt", "backpack")}
    gpt, backpack = models["gpt"].config, models["backpack"].config
    assert backpack.trunk == dataclasses.replace(gpt, inverse_layer_scaling=True)
    shapes = [{name: p.shape for name, p in module.named_parameters()} for module in models.values()]
    trunk = {name.removeprefix("trunk."): shape for name, shape in shapes[1].items() if name.startswith("trunk.")}
    assert trunk == shapes[0], "the same weights, one by one"
    assert rows["gpt"]["trunk_parameters"] == rows["gpt"]["parameters"] == rows["backpack"]["trunk_parameters"]
    assert rows["gpt"]["parameters"] == pytest.approx(15_600, rel=0.02)
    assert rows["backpack"]["parameters"] == backpack.parameters > rows["gpt"]["parameters"]
    assert not rows["floor"]["sized"]
    d, senses, window = backpack.dim, backpack.senses, 16
    weighing = 2 * d * 2 * d + 2 * window * d + 2 * senses * window * d  # queries and keys, scores, the sum of senses
    making = 2 * (4 + 4 + 4 + 4 * senses) * d * d  # the senses' network: d -> 4 d -> d -> 4 d -> senses * d
    assert rows["backpack"]["flops_per_token"] == rows["gpt"]["flops_per_token"] + weighing + making
    lines = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in result.out.splitlines()]
    at = lines[0].index("trunk's parameters")
    assert {cells[0]: cells[at] for cells in lines[2:]} == {
        name + ("" if row["sized"] else " (floor)"): f"{row['trunk_parameters']:,}" for name, row in rows.items()
    }
    text = " ".join(read_page(folder)[1].text.split())
    assert "The contextual network of each model, its trunk, has about 15,600 parameters (all but floor" in text
    assert "trunk's parameters" in text
    with pytest.raises(InputError, match="--budget was trunk=15600,tokens=128 and is params=15600,tokens=128 now"):
        prepared(folder, tmp_path / "text.txt", architectures=("gpt", "backpack", "floor"), budget=NO_TRUNK)


def test_a_folder_of_before_there_were_trunk_budgets_goes_on(finished, tmp_path):
    """Its request has no `trunk`, nor have its results."""
    folder = shutil.copytree(finished[0], tmp_path / "out", symlinks=True)
    written, results = read_json(folder / "comparison.json"), results_of(folder)
    for content in (written, results):
        del content["request"]["budget"]["trunk"]
    for row in results["rows"]:
        del row["trunk_parameters"]
    write_json(folder / "comparison.json", written)
    write_json(folder / "results.json", results)
    command = ["compare", "gpt", "toy", "floor", "--data", finished[0].parent / "text.txt", "--out", folder, *FLAGS]
    assert run_cli(*command).out == finished[1].out
    (folder / "results.json").unlink()
    assert run_cli(*command).code == 0
    same_results(folder, finished[0])


# --- again, and otherwise ----------------------------------------------------------------------------------------


def test_the_same_command_again_changes_nothing(finished):
    folder, result = finished
    files = {file: file.stat().st_mtime_ns for file in folder.rglob("*") if file.name not in (".lock", ".owner")}
    again = run_cli("compare", "gpt", "toy", "floor", "--data", folder.parent / "text.txt", "--out", folder, *FLAGS)
    assert (again.code, again.out) == (0, result.out)
    assert f"{folder} is finished" in again.err
    assert all(file.stat().st_mtime_ns == at for file, at in files.items() if file != folder)


def test_another_command_is_told_what_differs(finished):
    folder, _ = finished
    text = folder.parent / "text.txt"
    flags = ["--budget", "params=15.6k,tokens=2k", *FLAGS[2:], "--seed", "3"]
    result = run_cli("compare", "toy", "gpt", "--data", text, "--out", folder, *flags)
    assert (result.code, result.err.count("\n")) == (2, 1)
    for part in (
        "the architectures were gpt toy floor and are toy gpt now",
        "--budget was params=15600,tokens=768 and is params=15600,tokens=2000 now",
        "--seed was 1337 and is 3 now",
        "--out",
    ):
        assert part in result.err


def test_stopped_by_a_signal_it_goes_on_as_if_it_had_not_been(finished, tmp_path, monkeypatch):
    original, text = loop._Trainer.update, write_text(tmp_path)

    def update(self):
        original(self)
        if self.config.arch == "gpt" and self.at.step == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    command = ["compare", "gpt", "toy", "floor", "--data", text, "--out", tmp_path / "out", *FLAGS]
    monkeypatch.setattr(loop._Trainer, "update", update)
    stopped = run_cli(*command)
    assert stopped.code == 143
    assert "the same command goes on" in stopped.err
    monkeypatch.undo()
    assert run_cli(*command).code == 0
    same_results(tmp_path / "out", finished[0])


KILLER = """
import os, signal, sys
import test_compare
from scratchlm.cli import main
from scratchlm.models import MODELS
from scratchlm.training import loop
MODELS.register("toy", "toy:Toy")
MODELS.register("floor", "test_compare:Floor")
test_compare.make_small(setattr)
original = loop._Trainer.update
def killing(self):
    if self.config.arch == "toy" and self.at.step == 7:
        os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))
    return original(self)
loop._Trainer.update = killing
sys.exit(main(sys.argv[1:]))
"""


def test_killed_it_goes_on_as_if_it_had_not_been(finished, tmp_path):
    text = write_text(tmp_path)
    command = ["compare", "gpt", "toy", "floor", "--data", str(text), "--out", str(tmp_path / "out"), *FLAGS]
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    victim = subprocess.run(
        [sys.executable, "-c", KILLER, *command],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}, capture_output=True, timeout=120, check=False,
    )  # fmt: skip
    assert victim.returncode not in (0, 1, 2, 3), victim.stderr.decode()
    assert len(RunFolder(tmp_path / "out/toy").metrics()) > 0
    assert run_cli(*command).code == 0
    same_results(tmp_path / "out", finished[0])


def test_stopped_or_killed_while_it_measures_or_draws_it_does_so_again(finished, tmp_path, monkeypatch):
    def die(*arguments):
        raise SystemExit

    comparison, stop = prepared(tmp_path / "out", write_text(tmp_path)), threading.Event()
    for happening in compare(comparison, stop):
        if isinstance(happening, Measuring):
            stop.set()
    assert not isinstance(happening, Compared)
    monkeypatch.setattr(report, "save_figure", die)
    with pytest.raises(SystemExit):
        list(compare(comparison))
    assert not (tmp_path / "out/results.json").exists()
    monkeypatch.undo()
    assert isinstance(list(compare(comparison))[-1], Compared)
    same_results(tmp_path / "out", finished[0])


@pytest.mark.parametrize("begun", [True, False])
@pytest.mark.parametrize(("changed", "message"), [
    (TEXT + TEXT[::-1], "no longer the text with which the comparison"),
    (TEXT + TEXT.swapcase(), "toy cannot begin as .* has it planned: the character"),
])  # fmt: skip
def test_a_text_that_changed_meanwhile_is_noticed(tmp_path, begun, changed, message):
    text = write_text(tmp_path)
    comparison, stop = prepared(tmp_path / "out", text, architectures=("toy", "floor")), threading.Event()
    if begun:
        for happening in compare(comparison, stop):
            if isinstance(happening, loop.Evaluated):
                stop.set()
        message = message.replace("toy", "floor")
    text.write_text(changed, encoding="utf-8")
    with pytest.raises(InputError, match=message):
        list(compare(comparison))
    assert not comparison.run(comparison.entries[begun]).path.exists(), "a model with other tokens"
    text.unlink()
    assert prepared(tmp_path / "out", text, architectures=("toy", "floor")).tokens == comparison.tokens


def test_a_tokenizer_is_learned_once_for_all(tmp_path, monkeypatch):
    text = write_text(tmp_path)
    changes = {"architectures": ("toy", "floor"), "tokenizer": "bpe", "vocab_size": 270}
    comparison = prepared(tmp_path / "out", text, **changes)
    monkeypatch.setattr(BPETokenizer, "learn", lambda *a, **k: pytest.fail("the plan's tokenizer is there"))
    assert isinstance(list(compare(comparison))[-1], Compared)
    assert results_of(tmp_path / "out")["request"]["tokenizer"] == "bpe"
    names = {RunFolder(tmp_path / "out" / name).tokenizer().sha256 for name in ("toy", "floor")}
    assert names == {tokenizers.load(comparison.tokenizer).sha256}


def test_a_comparison_of_an_older_plan_is_refused_by_name(tmp_path):
    prepared(tmp_path / "out", write_text(tmp_path))
    written = read_json(tmp_path / "out/comparison.json")
    del written["tokens_sha256"]
    write_json(tmp_path / "out/comparison.json", written)
    with pytest.raises(InputError, match="of an older scratchlm; begin another with --out"):
        prepared(tmp_path / "out", tmp_path / "text.txt")


def test_a_missing_file_is_named(tmp_path):
    command = ["compare", "toy", "floor", "--data", write_text(tmp_path), "--out", tmp_path / "out", *FLAGS]
    assert run_cli(*command).code == 0
    (tmp_path / "out/results.json").unlink()
    (tmp_path / "out/toy/data/manifest.json").unlink()
    result = run_cli(*command)
    assert result.code == 2
    assert f"scratchlm: cannot read {tmp_path / 'out/toy/data/manifest.json'}" in result.err
    assert "could not be written" not in result.err


def test_a_reader_who_leaves_is_no_full_disk(finished):
    """What `scratchlm compare ... | true` sees."""
    folder, _ = finished

    class Left(io.StringIO):
        def write(self, text):
            raise BrokenPipeError(32, "Broken pipe")

    err = io.StringIO()
    text = folder.parent / "text.txt"
    comparison = prepared(folder, text)
    with contextlib.redirect_stdout(Left()), contextlib.redirect_stderr(err), pytest.raises(BrokenPipeError):
        cli_compare._follow(comparison)
    assert "could not be written" not in err.getvalue()


# --- divergence --------------------------------------------------------------------------------------------------

ABSURD = {"lr": 1e30, "min_lr": 1e30, "warmup": 0, "grad_clip": 0.0}


def test_a_model_that_diverges_is_reported_and_the_others_finish(finished, tmp_path, monkeypatch):
    monkeypatch.setattr(toy.Toy, "presets", {"absurd": {"optim": ABSURD}})
    text, folder = write_text(tmp_path), tmp_path / "out"
    command = ["compare", "toy", "gpt", "--data", text, "--out", folder, *FLAGS]
    result = run_cli(*command)
    assert result.code == 0
    assert "toy diverged: loss nan at step" in result.err
    rows = rows_of(folder)
    assert list(rows) == ["gpt", "toy"], "what diverged comes last"
    assert (rows["toy"]["status"], rows["toy"]["validation"], rows["toy"]["test"]) == ("diverged", None, None)
    assert rows["gpt"]["validation"] == rows_of(finished[0])["gpt"]["validation"]
    assert "| toy (diverged) |" in result.out
    assert "toy diverged: loss nan" in result.err
    assert "; the others go on" in result.err
    _, parsed = read_page(folder)
    assert "toy diverged: loss nan at step" in " ".join(parsed.text.split())
    (folder / "results.json").unlink()
    monkeypatch.setattr(loop._Trainer, "update", lambda self: pytest.fail("nothing is trained twice"))
    assert run_cli(*command).code == 0
    assert rows_of(folder)["toy"]["message"] == rows["toy"]["message"]


def test_a_finite_loss_far_worse_than_guessing_is_a_divergence_too(tmp_path, monkeypatch):
    monkeypatch.setattr(toy.Toy, "presets", {"absurd": {"optim": {**ABSURD, "lr": 10.0, "min_lr": 10.0}}})
    run_cli("compare", "toy", "floor", "--data", write_text(tmp_path), "--out", tmp_path / "out", *FLAGS)
    row = rows_of(tmp_path / "out")["toy"]
    assert row["validation"]["nats_per_token"] > 1.5 * math.log(results_of(tmp_path / "out")["vocab_size"])
    assert row["status"] == "diverged"
    assert "where guessing gives" in row["message"]
    floor = {**rows_of(tmp_path / "out")["floor"], "status": "finished", "message": None}
    drawn = []
    monkeypatch.setattr(report, "comparison_figure", lambda curves, label: drawn.append(list(curves)) or Figure())
    report.draw({**results_of(tmp_path / "out"), "rows": [row, floor]}, tmp_path)
    assert drawn == [["floor"]] * 2, "beside it the others would be flat lines"
    source, parsed = read_page(tmp_path)
    assert re.findall(r'<i class="key" style="background: (.*?)">', source) == [COLOURS[0]], "the colour of its line"
    assert "its curve is not drawn" in parsed.text


# --- seeds -------------------------------------------------------------------------------------------------------

SEEDS = [*FLAGS, "--seeds", "2", "--seed", "7"]


@pytest.fixture(scope="module")
def repeated(tmp_path_factory):
    """A comparison of two architectures with the seeds 7 and 8 that nobody interrupted."""
    folder = tmp_path_factory.mktemp("repeated")
    text = write_text(folder)
    return folder / "out", run_cli("compare", "gpt", "toy", "--data", text, "--out", folder / "out", *SEEDS)


def test_each_seed_is_a_comparison_of_its_own(repeated, tmp_path):
    folder, result = repeated
    assert result.code == 0, result.err
    own = {"seed_7", "seed_8", *LEFT} - {"gpt", "toy", "floor"}
    assert {path.name for path in folder.iterdir() if not path.name.startswith(".")} == own
    alone = ["compare", "gpt", "toy", "--data", write_text(tmp_path), "--out", tmp_path / "out", *FLAGS, "--seed", "8"]
    assert run_cli(*alone).code == 0
    same_results(folder / "seed_8", tmp_path / "out")
    for name in ("gpt", "toy"):
        seven, eight = (RunFolder(folder / seed / name) for seed in ("seed_7", "seed_8"))
        assert (seven.config().seed, eight.config().seed) == (7, 8)
        assert seven.metrics()[-1]["val_loss"] != eight.metrics()[-1]["val_loss"]
        assert {split: ids.sha256() for split, ids in seven.splits().items()} == {
            split: ids.sha256() for split, ids in eight.splits().items()
        }
        assert seven.tokenizer().sha256 == eight.tokenizer().sha256
    text = folder.parent / "text.txt"
    again = run_cli("compare", "gpt", "toy", "--data", text, "--out", folder / "seed_8", *FLAGS, "--seed", "8")
    assert again.out == (folder / "seed_8/table.md").read_text(encoding="utf-8"), "which its command shows"


def test_losses_have_mean_and_spread(repeated):
    folder, result = repeated
    single = [rows_of(folder / seed) for seed in ("seed_7", "seed_8")]
    assert "with 2 of 2 seeds" in read_page(folder)[1].text or "with 1 of 2 seeds" in read_page(folder)[1].text
    for name, row in rows_of(folder).items():
        for split in ("validation", "test"):
            for unit in ("nats_per_token", "bits_per_byte"):
                one, other = (rows[name][split][unit] for rows in single)
                assert row[split][unit] == pytest.approx((one + other) / 2, rel=1e-12)
                assert row[split]["spread"][unit] == pytest.approx(abs(one - other) / 2**0.5, rel=1e-9)
                assert f"{row[split][unit]:.4f} ± {row[split]['spread'][unit]:.4f}" in result.out
        assert [run["seed"] for run in row["runs"]] == [7, 8]
        for one, rows in zip(row["runs"], single, strict=True):
            assert {**one, "sample": rows[name]["sample"]} == {"seed": one["seed"], **rows[name]}
        assert row["sample"] == single[0][name]["sample"]
        middle = [sum(point["nats_per_token"] for point in points) / 2 for points in zip(
            *(rows[name]["curve"] for rows in single), strict=True
        )]  # fmt: skip
        assert [point["nats_per_token"] for point in row["curve"]] == pytest.approx(middle)
        carried = [rows[name]["validation"]["carried_nats_per_token"] for rows in single]
        assert row["validation"]["carried_nats_per_token"] == (
            None if name == "gpt" else pytest.approx(sum(carried) / 2)
        )


def test_the_report_of_seeds_opens_and_has_each(repeated):
    folder, _ = repeated
    source, parsed = read_page(folder)
    assert "http:" not in source
    assert "https:" not in source
    assert len(parsed.ids) == len(set(parsed.ids))
    text = " ".join(parsed.text.split())
    runs = [one for row in results_of(folder)["rows"] for one in row["runs"]]
    assert len(runs) == 4
    for one in runs:
        assert f"{one['validation']['nats_per_token']:.4f}" in text
        assert f"{one['test']['nats_per_token']:.4f}" in text
    assert f"{sum(one['seconds'] for one in runs):,.0f} seconds of training, without evaluations" in text
    assert "with each of 2 seeds, 7 to 8" in text
    assert "their sample standard deviation" in text
    assert "Thin lines are single seeds" in text


def test_the_same_seeds_again_change_nothing_and_others_are_refused(repeated):
    folder, result = repeated
    files = {file: file.stat().st_mtime_ns for file in folder.rglob("*") if file.name not in (".lock", ".owner")}
    command = ["compare", "gpt", "toy", "--data", folder.parent / "text.txt", "--out", folder]
    again = run_cli(*command, *SEEDS)
    assert (again.code, again.out) == (0, result.out)
    assert all(file.stat().st_mtime_ns == at for file, at in files.items() if file != folder)
    more = run_cli(*command, *FLAGS, "--seed", "7", "--seeds", "3")
    assert (more.code, "--seeds was 2 and is 3 now" in more.err) == (2, True)


def test_stopped_in_the_second_seed_it_goes_on_as_if_it_had_not_been(repeated, tmp_path, monkeypatch):
    original, folder = loop._Trainer.update, tmp_path / "out"

    def update(self):
        original(self)
        if (self.config.arch, self.config.seed, self.at.step) == ("toy", 8, 5):
            os.kill(os.getpid(), signal.SIGTERM)

    def die(*arguments):
        raise SystemExit

    command = ["compare", "gpt", "toy", "--data", write_text(tmp_path), "--out", folder, *SEEDS]
    with monkeypatch.context() as patch:
        patch.setattr(loop._Trainer, "update", update)
        assert run_cli(*command).code == 143
    assert (folder / "seed_7/results.json").exists()
    assert RunFolder(folder / "seed_8/toy").metrics()[-1]["step"] == 5
    with monkeypatch.context() as patch:
        patch.setattr(run, "across_seeds", die)
        comparison = prepared(folder, tmp_path / "text.txt", architectures=("gpt", "toy"), seed=7, seeds=2)
        with pytest.raises(SystemExit):
            list(compare(comparison))
    assert (folder / "seed_8/results.json").exists()
    assert not (folder / "results.json").exists()
    assert run_cli(*command).code == 0
    for name in (".", "seed_7", "seed_8"):
        rows, expected = rows_of(folder / name), rows_of(repeated[0] / name)
        assert {arch: (row["validation"], row["test"], row["sample"]) for arch, row in rows.items()} == {
            arch: (row["validation"], row["test"], row["sample"]) for arch, row in expected.items()
        }


def test_seeds_that_diverged_are_left_out_and_named(repeated, tmp_path):
    results = [results_of(repeated[0] / seed) for seed in ("seed_7", "seed_8")]
    best = results_of(repeated[0])["rows"][0]["architecture"]
    for row in results[1]["rows"]:
        if row["architecture"] == best:
            row |= {"status": "diverged", "message": "loss nan at step 1", "validation": None, "test": None}
    rows = across_seeds(results)
    assert [row["architecture"] for row in rows][1] == best, "what diverged with a seed comes last"
    first = next(row for row in results[0]["rows"] if row["architecture"] == best)
    assert (rows[1]["status"], rows[1]["message"]) == ("finished", "seed 8: loss nan at step 1")
    assert rows[1]["validation"] == {**first["validation"], "spread": None}
    report.draw({**results_of(repeated[0]), "rows": rows}, tmp_path)
    text = " ".join(read_page(tmp_path)[1].text.split())
    assert f"{best} (diverged with 1 of 2 seeds)" in text
    assert f"{best} diverged: seed 8: loss nan at step 1; its figures are those of the other seeds." in text
    for row in rows:  # the lowest loss is the best, whatever diverged with another seed
        row["validation"]["nats_per_token"] = 1.0 if row["architecture"] == best else 2.0
    report.draw({**results_of(repeated[0]), "rows": rows}, tmp_path)
    assert f"{best} predicts best: 1.0000" in " ".join(read_page(tmp_path)[1].text.split())
    for row in results[0]["rows"]:
        row |= {"status": "diverged", "message": "loss nan at step 2", "validation": None, "test": None}
    gone = next(row for row in across_seeds(results) if row["architecture"] == best)
    assert (gone["status"], gone["validation"], gone["test"]) == ("diverged", None, None)
    report.draw({**results_of(repeated[0]), "rows": across_seeds(results)}, tmp_path)
    assert f"{best} (diverged)" in read_page(tmp_path)[1].text


def test_seeds_with_sweeps_and_time(tmp_path, monkeypatch):
    """The steps are measured once; each seed's sweep chooses for itself."""
    rates = {"toy": 3.0, "floor": 6.0}
    monkeypatch.setattr(plan, "seconds_per_step", lambda config, tokens, device: rates.pop(config.arch))
    monkeypatch.setattr(run, "SWEEP_FACTORS", (1.0, 3.0))
    budget = Budget(params=15_600, seconds=60.0)
    changes = {"architectures": ("toy", "floor"), "budget": budget, "sweep": True, "seeds": 2}
    comparison = prepared(tmp_path / "out", write_text(tmp_path), **changes)
    chosen = [happening.arch for happening in compare(comparison) if isinstance(happening, Chosen)]
    assert chosen == ["toy", "floor"] * 2
    for name, row in rows_of(tmp_path / "out").items():
        assert [one["steps"] for one in row["runs"]] == [{"toy": 20, "floor": 10}[name]] * 2
        found = {one["learning_rate"] for one in row["runs"]}
        assert row["learning_rate"] == (found.pop() if len(found) == 1 else None)
        assert (tmp_path / "out/seed_1338/sweep").is_dir()


# --- sweep and time ----------------------------------------------------------------------------------------------


def test_a_sweep_takes_the_best_of_three_rates(tmp_path, monkeypatch):
    monkeypatch.setattr(toy.Toy, "presets", {"slow": {"optim": {"lr": 3e-3, "min_lr": 3e-4}}})
    monkeypatch.setattr(Floor, "presets", {"absurd": {"optim": ABSURD}})
    text, folder = write_text(tmp_path), tmp_path / "out"
    result = run_cli("compare", "toy", "floor", "--data", text, "--out", folder, *FLAGS, "--sweep")
    assert result.code == 0, result.err
    tried = {}
    for path in (folder / "sweep").glob("toy_*"):
        config = RunFolder(path).config()
        assert config.steps == STEPS // 10
        assert config.optim.min_lr == pytest.approx(config.optim.lr / 10)
        tried[config.optim.lr] = RunFolder(path).metrics()[-1]["val_loss"]
    assert sorted(tried) == pytest.approx([1e-3, 3e-3, 9e-3])
    row = rows_of(folder)["toy"]
    assert row["learning_rate"] == min(tried, key=lambda lr: tried[lr])
    assert row["steps"] == STEPS
    assert rows_of(folder)["floor"]["status"] == "diverged", "where all rates diverge, the preset's is reported"
    assert result.err.count("this rate of floor diverged: loss") == 3
    assert result.err.count("\nfloor diverged: loss") == 2, "when it trains, and at the end"
    assert f"toy: learning rate {row['learning_rate']:.3g} is taken" in result.err


def test_a_time_pays_for_steps_by_their_measured_rate(tmp_path, monkeypatch):
    rates, measured = {"gpt": 0.5, "toy": 2.0, "floor": 3.0}, []
    monkeypatch.setattr(plan, "seconds_per_step", lambda config, tokens, device: rates[config.arch])
    text = write_text(tmp_path)
    request = {"budget": Budget(params=15_600, seconds=13.0), "measuring": measured.append}
    comparison = prepared(tmp_path / "out", text, **request)
    assert {entry.arch: entry.config.steps for entry in comparison.entries} == {"gpt": 26, "toy": 6, "floor": 4}
    assert measured == ["gpt", "toy", "floor"]
    monkeypatch.undo()
    again = prepared(tmp_path / "out", text, **request)
    assert again.entries == comparison.entries, "it is measured once"
    assert len(measured) == 3
    with pytest.raises(InputError, match="--budget was params=15600,time=13s and is params=15600,time=14s now"):
        prepared(tmp_path / "out", text, budget=Budget(params=15_600, seconds=14.0))
    assert again.resumed
    list(compare(again))
    read = {name: row["tokens"] for name, row in rows_of(tmp_path / "out").items()}
    assert read == {"gpt": 26 * 64, "toy": 6 * 64, "floor": 4 * 64}, "the tokens that were read"


# --- bad input ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "budget"), [
    ("params=1M,tokens=5M", Budget(params=1_000_000, tokens=5_000_000)),
    ("tokens=5M", Budget(params=1_000_000, tokens=5_000_000)),
    ("params=1.5m, time=3m", Budget(params=1_500_000, seconds=180)),
    ("time=90", Budget(seconds=90)),
    ("time=0.5h,params=20k", Budget(params=20_000, seconds=1800)),
    ("params=1G,tokens=1000", Budget(params=10**9, tokens=1000)),
    ("params=1.001k,tokens=8.2m", Budget(params=1001, tokens=8_200_000)),
    ("trunk=2M,tokens=1.3M", Budget(params=2_000_000, trunk=True, tokens=1_300_000)),
    ("time=3m,trunk=20k", Budget(params=20_000, trunk=True, seconds=180)),
])  # fmt: skip
def test_budgets(text, budget):
    assert parse_budget(text) == budget


@pytest.mark.parametrize(("text", "message"), [
    ("", "does not say how long"),
    ("params=1M", "does not say how long to train; give it as"),
    ("params=0,tokens=5M", "params is 0; it must be at least 1"),
    ("params=-1M,tokens=5M", "params is -1M; it must be at least 1"),
    ("tokens=0.4", "tokens is 0.4; it must be at least 1"),
    ("time=0s", "time is 0s; it must be above 0"),
    ("time=-3m", "time is -3m; it must be above 0"),
    ("tokens=5M,time=3m", "tokens and time"),
    ("trunk=0,tokens=5M", "trunk is 0; it must be at least 1"),
    ("trunk=1M", "does not say how long to train"),
    ("params=1M,trunk=1M,tokens=5M", "has params, which count all of a model, and trunk, which count a part: give one"),
    ("tokens=5M,tokens=6M", "names tokens twice"),
    ("tokens=many", "tokens is 'many'; it must be a number, which k, m, g may follow"),
    ("tokens=5h", "tokens is '5h'; it must be a number"),
    ("time=3d", "which s, m, h may follow"),
    ("tokens=1e9", "tokens is '1e9'"),
    ("tokens=nan", "tokens is 'nan'"),
    ("token=5M", "no 'token': did you mean 'tokens'"),
    ("5M", "'5M', which is no name=value"),
    ("tokens=", "tokens is ''"),
    ("tokens=٣", "tokens is '٣'"),
])  # fmt: skip
def test_bad_budgets_are_refused(text, message, tmp_path):
    with pytest.raises(InputError, match=message):
        parse_budget(text)
    result = run_cli("compare", "gpt", "toy", "--budget", text, "--out", tmp_path / "out")
    assert (result.code, result.err.count("\n"), list(tmp_path.iterdir())) == (2, 1, [])


@given(st.text(alphabet="paramstruoken=,.0123456789kMGh -", max_size=30))
def test_any_text_is_a_budget_or_an_input_error(text):
    with contextlib.suppress(InputError):
        budget = parse_budget(text)
        assert budget.params >= 1
        assert (budget.tokens or 0) >= 1 or (budget.seconds or 0) > 0


@pytest.mark.parametrize(("architectures", "changed", "message"), [
    (["gpt", "tyo"], {}, "unknown architecture 'tyo': did you mean 'toy'"),
    (["gpt", "toy", "gpt"], {}, "gpt is named twice"),
    (["gpt"], {}, "needs two architectures or more"),
    ([], {}, "needs two architectures or more"),
    (["gpt", "toy"], {"--budget": "params=3,tokens=5k"}, "params=3 cannot be met: no GPT .* the nearest has"),
    (["toy", "gpt"], {"--budget": "params=900G,tokens=5k"}, "cannot be met: no Toy .* the nearest has"),
    (["backpack", "gpt"], {"--budget": "trunk=3,tokens=5k"}, "trunk=3 cannot be met: no GPT .* the nearest has"),
    (["gpt", "toy"], {"--budget": "params=15.6k,tokens=63"}, "less than one step of 4 x 16 = 64 tokens"),
    (["gpt", "toy"], {"--window": "0"}, "--window is 0"),
    (["gpt", "toy"], {"--window": "-4"}, "--window is -4"),
    (["gpt", "toy"], {"--batch-size": "0"}, "batch_size is 0"),
    (["gpt", "toy"], {"--window": "99999", "--batch-size": "1", "--budget": "tokens=1M,params=4M"}, "text has"),
    (["gpt", "toy"], {"--seed": "-1"}, "the seed is -1"),
    (["gpt", "toy"], {"--seeds": "0"}, "--seeds is 0; it must be at least 1"),
    (["gpt", "toy"], {"--seeds": "2.5"}, "2.5"),
    (["gpt", "toy"], {"--seed": str(2**63 - 1), "--seeds": "2"}, "the seed is 9223372036854775808"),
    (["gpt", "toy"], {"--device": "abacus"}, "device is 'abacus'"),
    (["gpt", "toy"], {"--data": "-"}, "cannot come from standard input"),
    (["gpt", "toy"], {"--data": "nowhere.txt"}, "cannot read nowhere.txt"),
    (["toy", "floor"], {"--data": "short.txt"}, "the training text has 8 tokens"),
    (["toy", "floor"], {
        "--data": "one.txt", "--batch-size": "1", "--tokenizer": "bpe", "--vocab-size": "275",
        "--budget": "params=100k,tokens=5k",
    }, "the test text has 1 tokens.*: give a longer"),
    (["toy", "floor"], {"--budget": "time=1s,params=3"}, "cannot be met: no Toy"),
    (["toy", "floor"], {"--out": "x" * 300}, "cannot read x+: "),
    (["gpt", "toy"], {"--tokenizer": "runes"}, "runes"),
    (["gpt", "toy"], {"--out": ""}, "--out is empty"),
    (["gpt", "toy"], {"--out": "text.txt"}, "text.txt is there already and is no comparison"),
    (["gpt", "toy"], {"--out": "full"}, "full is there already and is no comparison"),
])  # fmt: skip
def test_bad_input_is_one_line_and_leaves_nothing(tmp_path, monkeypatch, architectures, changed, message):
    monkeypatch.chdir(tmp_path)
    write_text(tmp_path)
    word = " abcdefghijklmnopqrs"
    Path("one.txt").write_text(word * 18 + " a b c d e f g h i j" + word, encoding="utf-8")
    Path("short.txt").write_text("too short", encoding="utf-8")
    Path("full").mkdir()
    Path("full/thesis.doc").touch()
    before = sorted(tmp_path.rglob("*"))
    flags = dict(zip(FLAGS[::2], FLAGS[1::2], strict=True)) | {"--data": "text.txt", "--out": "out"} | changed
    result = run_cli("compare", *architectures, *(word for flag in flags.items() for word in flag))
    assert (result.code, result.out, result.err.count("\n")) == (2, "", 1), result.err
    assert re.search(message, result.err), result.err
    assert sorted(tmp_path.rglob("*")) == before


def test_a_class_whose_sized_is_wrong_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(toy.ToyConfig, "sized", classmethod(lambda cls, *asked: cls(vocab_size=asked[1], dim=3)))
    with pytest.raises(InputError, match=r"toy was to have 15,600 parameters and has .*: its Config.sized is wrong"):
        prepared(tmp_path / "out", write_text(tmp_path), architectures=("toy", "floor"))
    small = GPTConfig(vocab_size=60, context=16, dim=16, depth=1, heads=1)
    wrong = classmethod(lambda cls, *asked: cls.around(dataclasses.replace(small, vocab_size=asked[1])))
    monkeypatch.setattr(BackpackConfig, "sized_trunk", wrong)
    with pytest.raises(InputError, match=r"backpack was to have 15,600 parameters in its trunk and has .*sized_trunk"):
        prepared(tmp_path / "out", write_text(tmp_path), architectures=("gpt", "backpack"), budget=TRUNK)


def test_a_comparison_is_one_process_at_a_time(tmp_path):
    comparison = prepared(tmp_path / "out", write_text(tmp_path))
    happenings = compare(comparison)
    next(happenings)
    with pytest.raises(InputError, match="by another process"):
        list(compare(comparison))
    happenings.close()


def test_runs_of_a_comparison_are_ordinary_runs(finished):
    folder, _ = finished
    result = run_cli("eval", folder / "toy", "--json")
    figures = json.loads(result.out)
    row = rows_of(folder)["toy"]
    assert figures["nats_per_token"] == row["validation"]["nats_per_token"]
    assert figures["carried_nats_per_token"] == row["validation"]["carried_nats_per_token"]
    assert "carried_nats_per_token" not in json.loads(run_cli("eval", folder / "gpt", "--json").out)
    assert "with the state carried" in run_cli("eval", folder / "toy").out
    assert metrics_without_clock(RunFolder(folder / "toy"))
    assert torch.isfinite(next(load(folder / "gpt")[0].parameters())).all()
