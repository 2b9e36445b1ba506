"""A run is held against what its preset gave when it was measured, and only if it has the preset's settings."""

import dataclasses
import json
import statistics

import pytest

from scratchlm.cli import main, progress
from scratchlm.config import make_config, preset_settings, without_vocabulary
from scratchlm.files import read_json
from scratchlm.inspect.curves import loss_figure
from scratchlm.models import MODELS
from scratchlm.training import expected as module
from scratchlm.training import loop
from scratchlm.training.expected import FILE, Expected, all_expected, deciding, expected_of
from scratchlm.training.setup import create_run

DATA = "f" * 64


def config(**changes):
    model = {"vocab_size": 65, **changes.pop("model", {})}
    return make_config({"arch": "gpt", "steps": 100, "model": {"context": 8, "dim": 8, "heads": 2, **model}, **changes})


def expected(validation, **more):
    measured = {"date": "2026-11-26", "torch": "2.13.0", "threads": 1}
    return Expected(preset="gpt/laptop", settings={}, validation=validation, measured=measured, **more)


THREE = expected({1: {10: 2.0, 20: 1.5}, 2: {10: 2.2, 20: 1.51}, 3: {10: 2.1, 20: 1.49, 30: 1.4}})


def test_a_band_is_the_seeds_spread_or_two_percent():
    wide, narrow = THREE.band(10), THREE.band(20)
    half = 3 * statistics.stdev([2.0, 2.2, 2.1])
    assert (wide.low, wide.high) == pytest.approx((2.1 - half, 2.1 + half))
    assert (narrow.low, narrow.high) == pytest.approx((1.5 - 0.03, 1.5 + 0.03)), "3 sd would be 0.03 as well"
    tight = expected({1: {10: 2.0}, 2: {10: 2.0}}).band(10)
    assert (tight.low, tight.high) == pytest.approx((1.96, 2.04))
    assert wide.seeds == 3


def test_one_seed_has_two_percent_and_says_so():
    band = expected({7: {10: 2.0}}).band(10)
    assert (band.low, band.high, band.seeds) == (pytest.approx(1.96), pytest.approx(2.04), 1)
    assert "(1 seed)" in band.verdict(2.0)


def test_nothing_is_expected_where_nothing_was_measured():
    assert THREE.steps == [10, 20], "the third seed alone was scored at step 30"
    assert [THREE.band(step) for step in (0, 9, 21, 30)] == [None] * 4
    assert [band.step for band in THREE.bands()] == [10, 20]


def test_between_two_evaluations_the_band_lies_along_a_line_and_says_so():
    one, other, between = THREE.band(10), THREE.band(20), THREE.band(15)
    assert between.low == pytest.approx((one.low + other.low) / 2)
    assert between.high == pytest.approx((one.high + other.high) / 2)
    assert between.between == (10, 20)
    assert "along a line from step 10 to 20" in between.verdict(1.8)
    assert one.between is None
    assert "along a line" not in one.verdict(2.0)


def test_verdicts():
    band = expected({1: {500: 1.82}, 2: {500: 1.83}}).band(500)
    assert band.verdict(1.82) == "on track: 1.8200, expected 1.7885 to 1.8615 at step 500 (2 seeds)"
    assert band.verdict(1.7).startswith("below what is expected: 1.7000, ")
    assert band.verdict(1.9).startswith("above what is expected: 1.9000, ")


SAME = [
    {"seed": 5}, {"eval_every": 7}, {"log_every": 1}, {"keep": 9}, {"save_minutes": 1.0}, {"accumulate": 2},
    {"compile": "auto"}, {"logger": "tensorboard"}, {"device": "cpu"}, {"patience": 3}, {"preset": "laptop"},
    {"steps": 200, "horizon": 100}, {"window": 8}, {"data": "the same text in a file"},
]  # fmt: skip
OTHER = [
    {"steps": 101}, {"steps": 100, "horizon": 99}, {"batch_size": 17}, {"window": 4}, {"optim": {"lr": 2e-3}},
    {"optim": {"warmup": 99}}, {"model": {"dropout": 0.0}}, {"model": {"depth": 3}}, {"model": {"vocab_size": 66}},
    {"label_smoothing": 0.1}, {"pairs": True}, {"base": "../gpt"},
]  # fmt: skip


@pytest.mark.parametrize("changes", SAME, ids=str)
def test_what_decides_nothing_may_differ(changes):
    assert deciding(config(**changes), DATA) == deciding(config(), DATA)


@pytest.mark.parametrize("changes", OTHER, ids=str)
def test_what_decides_a_curve_may_not_differ(changes):
    assert deciding(config(**changes), DATA) != deciding(config(), DATA)


def test_every_setting_is_known_to_decide_or_not():
    """A new setting has to be put into one of the lists above."""
    known = {name for changes in (*SAME, *OTHER) for name in changes} | {"arch", "optim", "lora", "carry"}
    known |= {"batch_tokens"}  # of pairs
    told_by_the_tokens = {"prepared", "source", "target", "split", "errors", "tokenizer", "vocab_size"}
    computed = {"precision", "checkpoint_activations", "loss_rows", "shard"}
    assert {field.name for field in dataclasses.fields(config())} == known | told_by_the_tokens | computed


@pytest.fixture
def measured(monkeypatch, tmp_path):
    """A function that makes the package's file of expectations another one."""

    def write(content):
        file = tmp_path / "expected.json"
        file.write_text(json.dumps(content), encoding="utf-8")
        monkeypatch.setattr(module, "FILE", file)
        all_expected.cache_clear()

    yield write
    all_expected.cache_clear()


def entry(settings, loss=2.0, steps=(2, 4), torch="1.0.0"):
    """As benchmarks/expected.py writes it."""
    validation = {str(step): loss for step in steps}
    return {
        "settings": settings,
        "measured": {"date": "2020-01-01", "torch": torch, "threads": 1},
        "seeds": {"1": {"validation": validation, "training": {}}},
    }


def test_only_the_measured_settings_and_text_are_found(measured):
    measured({"gpt/laptop": entry(deciding(config(), DATA))})
    found = expected_of(config(seed=3), DATA)
    assert found.preset == "gpt/laptop"
    assert found.measured["torch"] == "1.0.0", "a band of seeds holds for other versions of torch as well"
    assert expected_of(config(), "e" * 64) is None
    assert expected_of(config(batch_size=8), DATA) is None


FLAGS = ["--steps=4", "--batch-size=2", "--device=cpu", "--window=8", "--model.dim=8", "--model.depth=1"]


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A run, its validation losses by step, its text, and the settings that decided them."""
    folder = tmp_path_factory.mktemp("first")
    (folder / "text.txt").write_text("To be, or not to be, that is the question.\n" * 40, encoding="utf-8")
    run, _ = create_run({"arch": "rnn", "data": str(folder / "text.txt"), "steps": 4, "batch_size": 2, "window": 8,
                         "eval_every": 2, "model": {"dim": 8, "depth": 1}, "device": "cpu",
                         "optim": MODELS["rnn"].presets["laptop"]["optim"]}, folder / "run")  # fmt: skip
    list(loop.train(run))
    return run, {str(line["step"]): line["val_loss"] for line in run.metrics() if "val_loss" in line}


@pytest.mark.parametrize(
    ("times", "said"),
    [(1, "on track: "), (100, "below what is expected: "), (0.01, "above what is expected: "), (None, None)],
)
def test_a_run_says_whether_it_is_on_track(first, measured, tmp_path, monkeypatch, capsys, times, said):
    """A run is repeated, after its own losses, or so many times as much, were written down as what is expected."""
    run, losses = first
    monkeypatch.setattr(loop, "SAMPLE_TOKENS", 3)
    monkeypatch.setattr(progress, "FINAL_TOKENS", 3)
    checksum = read_json(run.path / "config.json")["data_checksum"]
    one = entry(deciding(run.config(), DATA if times is None else checksum))
    one["seeds"]["1"]["validation"] = {step: loss * (times or 1) for step, loss in losses.items()}
    measured({"rnn/laptop": one})
    settings = ["--data", run.config().data, "--model.hidden-dim=256", "--eval-every=1", "--optim.warmup=100"]
    assert main(["train", "rnn", *FLAGS, *settings, "--out", str(tmp_path / "second")]) == 0
    told = [line for line in capsys.readouterr().err.splitlines() if "expected" in line]
    assert [line.startswith(said or "") for line in told] == [True] * (0 if said is None else 3), "at steps 2, 3 and 4"
    assert sum("along a line from step 2 to 4" in line for line in told) == (said is not None)
    drawn = (tmp_path / "second/loss.svg").read_text(encoding="utf-8")
    assert ("expected to step 4" in drawn) == (said is not None)


def test_the_picture_has_the_band_as_far_as_the_run_came():
    metrics = [{"step": step, "loss": 2.0, "tokens": 1000 * step, "val_loss": 2.0, "val_bits_per_byte": 2.9}
               for step in range(1, 11)]  # fmt: skip
    (axes,) = loss_figure(metrics, "a run", [(2, 1.9, 2.1), (10, 1.8, 2.0), (20, 1.7, 1.9)]).axes
    band, measured_steps = axes.collections
    assert len(measured_steps.get_segments()) == 2, "a single step is to be seen as well"
    corners = band.get_paths()[0].vertices
    assert corners[:, 0].min() == pytest.approx(0.002)
    assert corners[:, 0].max() == pytest.approx(0.010)
    assert not loss_figure(metrics, "a run").axes[0].collections
    assert not loss_figure([], "a run", [(2, 1.9, 2.1)]).axes[0].collections


@pytest.mark.parametrize("name", json.loads(FILE.read_text(encoding="utf-8")))
def test_what_is_expected_was_measured_with_the_preset_as_it_is(name):
    """Whoever changes a preset measures it again: python benchmarks/expected.py PRESET."""
    one = all_expected()[name]
    arch, _, preset = name.partition("/")
    own = without_vocabulary(preset_settings(arch, preset))
    shape = {**own.get("model", {}), "vocab_size": one.settings["model"]["vocab_size"]}
    now = make_config({"arch": arch, **own, "model": shape, "pairs": "batch_tokens" in one.settings})
    assert deciding(now, one.settings["data_checksum"]) == one.settings
    assert 1 <= one.steps[-1] <= own["steps"]
    assert len(one.validation) >= 2
    assert {"date", "torch", "threads", "command"} <= set(one.measured)
    losses = [loss for of_one in one.validation.values() for loss in of_one.values()]
    assert all(0 < loss < 10 for loss in losses)


def test_presets_show_tells_what_is_expected(measured, capsys):
    measured({"gpt/laptop": entry({})})
    assert main(["presets", "show", "laptop", "gpt"]) == 0
    shown = capsys.readouterr().out
    assert "#   step 2: 1.9600 to 2.0400 (1 seed" in shown
    assert "measured on 2020-01-01 with torch 1.0.0" in shown
    measured({})
    assert main(["presets", "show", "laptop", "gpt"]) == 0
    assert "#" not in capsys.readouterr().out
    assert MODELS["gpt"].presets["laptop"]["steps"] == 3000
