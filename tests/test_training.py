"""The loop: groups, schedule, accumulation, exact resume, early stopping, divergence."""

import itertools
import json
import math
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from runs import SETTINGS, die_once, metrics_without_clock, same_end
from scratchlm import checkpoint, evaluation
from scratchlm.cli import main
from scratchlm.config import OptimConfig
from scratchlm.data.batches import Batch, CarriedStreams, TrainingWindows
from scratchlm.data.shards import Tokens
from scratchlm.errors import InputError
from scratchlm.layers import LayerNorm
from scratchlm.models import MODELS
from scratchlm.models.llama import RMSNorm
from scratchlm.training import loop, optim, setup
from scratchlm.training.step import TrainingStep
from toy import Toy


@pytest.mark.parametrize("decay_embeddings", [True, False])
@pytest.mark.parametrize("name", list(MODELS))
def test_each_parameter_is_in_one_group(name, decay_embeddings):
    model = MODELS[name](MODELS[name].Config.tiny())
    groups = optim.parameter_groups(model, OptimConfig(weight_decay=0.1, decay_embeddings=decay_embeddings))
    listed = [id(parameter) for group in groups for parameter in group["params"]]
    assert len(listed) == len(set(listed))
    assert set(listed) == {id(parameter) for parameter in model.parameters()}
    rate = {parameter: group["weight_decay"] for group in groups for parameter in group["params"]}
    assert {n for n, p in model.named_parameters() if rate[p] == 0.0} == {
        f"{prefix}.{own}"
        for prefix, module in model.named_modules()
        for own, _ in module.named_parameters(recurse=False)
        if isinstance(module, (LayerNorm, RMSNorm))
        or own == "bias"
        or (isinstance(module, torch.nn.Embedding) and not decay_embeddings)
    }
    assert set(rate.values()) <= {0.1, 0.0}
    assert all(group["params"] for group in groups), "torch refuses an optimizer of no parameters"


@pytest.mark.parametrize("decay_embeddings", [True, False])
def test_a_parameter_that_is_tied_by_assignment_is_in_one_group(decay_embeddings):
    model = torch.nn.ModuleDict({"embedding": torch.nn.Embedding(5, 4), "head": torch.nn.Linear(4, 5, bias=False)})
    model["head"].weight = model["embedding"].weight
    (group,) = optim.parameter_groups(model, OptimConfig(weight_decay=0.1, decay_embeddings=decay_embeddings))
    assert len(group["params"]) == 1
    assert group["weight_decay"] == (0.1 if decay_embeddings else 0.0)


def test_nanogpt_groups_have_its_published_sizes():
    shape = {**MODELS["gpt"].presets["nanogpt-cpu"]["model"], "vocab_size": 65}
    decayed, free = optim.parameter_groups(MODELS["gpt"](MODELS["gpt"].Config(**shape)), OptimConfig())
    assert len(decayed["params"]) == 18
    assert sum(parameter.numel() for parameter in decayed["params"]) == 802_944
    assert sum(parameter.numel() for parameter in free["params"]) == 804_096 - 802_944


def test_embeddings_are_spared_where_asked():
    """One step without a gradient shrinks what decays by lr * weight_decay, and nothing else."""
    model = MODELS["backpack"](MODELS["backpack"].Config.tiny()).double()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = optim.make_optimizer(model, OptimConfig(lr=0.01, weight_decay=0.5, decay_embeddings=False))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        kept = "embedding.weight" in name or parameter.ndim < 2
        torch.testing.assert_close(parameter, before[name] * (1.0 if kept else 1 - 0.01 * 0.5), rtol=1e-12, atol=0)


def test_the_cosine_schedule():
    config = OptimConfig(lr=1e-3, min_lr=1e-4, warmup=100)
    rates = [optim.learning_rate(step, 2000, config) for step in range(2100)]
    assert rates[0] == pytest.approx(1e-3 / 101)
    assert rates[99] == pytest.approx(1e-3 * 100 / 101)
    assert rates[100] == pytest.approx(1e-3)
    assert rates[1050] == pytest.approx((1e-3 + 1e-4) / 2)
    assert rates[2000] == rates[2099] == pytest.approx(1e-4)
    assert all(later < earlier for earlier, later in itertools.pairwise(rates[100:2000]))
    flat = replace(config, schedule="constant")
    assert {optim.learning_rate(step, 2000, flat) for step in (100, 1500, 3000)} == {1e-3}
    assert optim.learning_rate(0, 10, OptimConfig(lr=1.0, warmup=0)) == 1.0


def test_the_linear_schedule():
    config = OptimConfig(lr=6e-4, min_lr=0.0, warmup=5000, schedule="linear")
    rates = [optim.learning_rate(step, 100_000, config) for step in range(100_010)]
    assert rates[0] == pytest.approx(6e-4 / 5001)
    assert rates[4999] == pytest.approx(6e-4 * 5000 / 5001)
    for step in (5000, 5001, 52_500, 99_999):
        assert rates[step] == pytest.approx(6e-4 * (100_000 - step) / 95_000, rel=1e-9)
    assert rates[100_000] == rates[-1] == 0.0
    floor = replace(config, min_lr=1e-4)
    assert optim.learning_rate(52_500, 100_000, floor) == pytest.approx((6e-4 + 1e-4) / 2)
    assert optim.learning_rate(100_000, 100_000, floor) == pytest.approx(1e-4)


def test_the_backpacks_presets_have_the_released_recipe():
    presets = MODELS["backpack"].presets
    for name in ("micro", "mini", "small"):
        config = OptimConfig(**presets[name]["optim"])
        assert config == OptimConfig(
            lr=6e-4, min_lr=0.0, warmup=5000, schedule="linear", beta2=0.999, decay_embeddings=False
        )
        assert presets[name]["batch_size"] * presets[name]["model"]["context"] == 524_288
    assert OptimConfig(**presets["laptop"]["optim"]).decay_embeddings


def test_a_run_learns_and_leaves_what_it_promises(new_run):
    run = new_run(steps=60, eval_every=20)
    records = list(loop.train(run))
    kinds = [type(record).__name__ for record in records]
    assert kinds[:2] == ["Started", "Saved"], "step 0 is saved before the first step"
    assert records[-1] == loop.Ended(step=60, reason="finished")
    for at, kind in enumerate(kinds):
        if kind == "Evaluated":
            assert "Saved" in kinds[at - 2 : at], "saved first, evaluated after"
    lines = run.metrics()
    assert [line["step"] for line in lines] == sorted({*range(3, 61, 3), 20, 40})
    assert all({"step", "loss", "tokens", "lr", "grad_norm", "seconds"} <= line.keys() for line in lines)
    assert [line["step"] for line in lines if "val_loss" in line] == [20, 40, 60]
    assert lines[0]["loss"] == pytest.approx(math.log(run.tokenizer().vocab_size), rel=0.15)
    assert lines[-1]["val_loss"] < 0.7 * lines[0]["loss"]
    assert lines[-1]["tokens"] == 60 * 6 * 16
    assert {c.step for c in run.checkpoints()} >= {40, 60}
    assert len(run.checkpoints()) <= 3, "the newest two and the best"


def test_a_line_is_the_mean_of_its_steps(new_run):
    each, third = new_run(log_every=1), new_run(log_every=3)
    for run in (each, third):
        list(loop.train(run))
    losses = {line["step"]: line["loss"] for line in each.metrics()}
    for line, before in zip(third.metrics()[1:], third.metrics(), strict=False):
        steps = range(before["step"] + 1, line["step"] + 1)
        assert line["loss"] == pytest.approx(sum(losses[step] for step in steps) / len(steps), rel=1e-12)


@pytest.mark.parametrize("stops", [(1,), (3,), (4, 8), (2, 7), (5, 6, 11)])
def test_a_resumed_run_is_the_run_that_was_never_stopped(new_run, whole, stops):
    stopped = new_run()
    for at in stops:
        stop = threading.Event()
        count = itertools.count(1)
        original = loop._Trainer.update

        def update(self, count=count, at=at, stop=stop, original=original):
            original(self)
            if self.at.step == at:
                stop.set()

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loop._Trainer, "update", update)
            assert list(loop.train(stopped, stop=stop))[-1] == loop.Ended(step=at, reason="stopped")
        torch.manual_seed(99)  # whatever another program drew in between
    list(loop.train(stopped))
    same_end(stopped, whole)


@pytest.mark.parametrize("dies_in", ["update", "report", "evaluate", "sample"])
@pytest.mark.parametrize("at", [3, 4, 6, 8, 12])
def test_a_run_that_dies_anywhere_goes_on_as_if_nothing_had_happened(new_run, whole, dies_in, at):
    killed = new_run()
    die_once(killed, dies_in, at)
    list(loop.train(killed))
    same_end(killed, whole)


def test_a_finished_run_is_left_alone_and_can_be_extended(new_run):
    run, longer = new_run(), new_run()
    list(loop.train(run))
    files = {file: file.stat().st_mtime_ns for file in run.path.rglob("[!.]*")}
    assert list(loop.train(run)) == [loop.Ended(step=12, reason="finished", already=True)]
    assert files == {file: file.stat().st_mtime_ns for file in run.path.rglob("[!.]*")}
    assert list(loop.train(run, steps=16))[-1] == loop.Ended(step=16, reason="finished")
    assert (run.config().steps, run.config().horizon) == (16, 12)
    late = [line["lr"] for line in run.metrics() if line["step"] > 13]
    assert set(late) == {1e-3}, "beyond the horizon the last rate goes on"
    list(loop.train(longer))
    list(loop.train(longer, steps=14))
    list(loop.train(longer, steps=16))
    assert longer.config().horizon == 12
    weights = run.checkpoint("last").weights()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in longer.checkpoint("last").weights().items())


@pytest.mark.parametrize("accumulate", [2, 3, 4, 6])
def test_accumulation_changes_nothing_but_rounding(new_run, accumulate):
    exact = {"model": {**SETTINGS["model"], "dropout": 0.0}}
    whole, parts = new_run(**exact), new_run(**exact, accumulate=accumulate)
    for run in (whole, parts):
        list(loop.train(run))
    for line, expected in zip(parts.metrics(), whole.metrics(), strict=True):
        assert line["loss"] == pytest.approx(expected["loss"], rel=1e-4)
        assert line["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-3)


def test_the_step_divides_once_by_all_targets():
    """Gradients of a batch whose parts have unequal numbers of targets: a mean of means would differ."""
    model = MODELS["gpt"](MODELS["gpt"].Config.tiny()).double()
    batch = TrainingWindows(Tokens.of(torch.randint(0, 23, (200,)).numpy()), 8, 4, seed=1).batch(0)
    batch = Batch(batch.tokens, batch.targets.clone())
    batch.targets[0, 2:] = -100
    total, count = evaluation.loss_sum(model, batch)
    (total / count).backward()
    expected = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    for part in (batch.part(index, 4) for index in range(4)):
        (evaluation.loss_sum(model, part)[0] / count).backward()
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-12, atol=1e-12)


def test_early_stopping_keeps_the_best(new_run, monkeypatch):
    scores = iter([3.0, 2.0, 2.5, 2.6, 2.7])
    real = evaluation.evaluate
    monkeypatch.setattr(loop, "evaluate", lambda *a: replace(real(*a), nats_per_token=next(scores)))
    run = new_run(steps=40, eval_every=2, patience=3, keep=1)
    records = list(loop.train(run))
    assert records[-1] == loop.Ended(step=10, reason="early")
    scored = [record for record in records if isinstance(record, loop.Evaluated)]
    assert [(record.best_step, record.worse) for record in scored] == [(2, 0), (4, 0), (4, 1), (4, 2), (4, 3)]
    assert run.best() == (4, 2.0)
    assert [c.step for c in run.checkpoints()] == [4, 10]
    assert sum(isinstance(record, loop.Sampled) for record in records) == 2, "a sample whenever it improves"


@pytest.mark.parametrize("broken", ["loss", "gradient"])
def test_a_run_that_diverges_stops_and_keeps_the_last_good_checkpoint(new_run, monkeypatch, broken):
    run = new_run(log_every=4)
    original = TrainingStep.forward
    calls = itertools.count(1)

    def forward(self, *arguments):
        lowered, plain, state = original(self, *arguments)
        if next(calls) == 6:
            plain = plain * math.nan if broken == "loss" else plain
            lowered = lowered + (lowered - lowered.detach()) * math.inf if broken == "gradient" else lowered
        return lowered, plain, state

    monkeypatch.setattr(TrainingStep, "forward", forward)
    with pytest.raises(loop.DivergenceError, match=r"diverged at step 6 in fp32: .*learning rate .*norm .*--optim.lr"):
        list(loop.train(run))
    assert run.checkpoint("last").step == 4
    assert all(tensor.isfinite().all() for tensor in run.checkpoint("last").weights().values())


def test_seconds_are_those_of_training_alone(new_run, monkeypatch):
    def slow(function):
        def wrapped(self, *arguments):
            clock[0] += 1000.0
            return function(self, *arguments)

        return wrapped

    clock = [0.0]
    monkeypatch.setattr(loop.time, "perf_counter", lambda: clock[0])
    for name in ("save", "append_metrics", "find"):
        monkeypatch.setattr(loop.RunFolder, name, slow(getattr(loop.RunFolder, name)))
    monkeypatch.setattr(loop._Trainer, "evaluate", slow(loop._Trainer.evaluate))
    original = loop._Trainer.update

    def update(self):
        original(self)
        clock[0] += 1.0

    monkeypatch.setattr(loop._Trainer, "update", update)
    run = new_run()
    for record in loop.train(run):
        clock[0] += 1000.0  # who reads the records takes his time
        if isinstance(record, loop.Saved) and record.step == 8:
            break
    for _ in loop.train(run):
        clock[0] += 1000.0
    assert [(line["step"], line["seconds"]) for line in run.metrics()] == [(at, at) for at in (3, 4, 6, 8, 9, 12)]


def test_a_measured_step_is_a_whole_update(new_run, monkeypatch):
    def slow(owner, name):
        original = getattr(owner, name)

        def wrapped(*arguments, **named):
            clock[0] += 1.0
            return original(*arguments, **named)

        monkeypatch.setattr(owner, name, wrapped)

    clock = [0.0]
    monkeypatch.setattr(setup.time, "perf_counter", lambda: clock[0])
    run = new_run(accumulate=2)
    for owner, name in (
        (TrainingWindows, "part"), (torch.Tensor, "backward"), (torch.optim.AdamW, "step"),
        (torch.nn.utils, "clip_grad_norm_"),
    ):  # fmt: skip
        slow(owner, name)
    config, train = run.config(), run.splits()["train"]
    assert setup.seconds_per_step(config, train, torch.device("cpu")) == 5, "a batch, two parts, clipping, AdamW"


def test_a_run_without_a_checkpoint_is_extended_for_good(new_run):
    run = new_run()
    die_once(run, "save", 0)
    next(records := loop.train(run, steps=15))
    records.close()
    assert run.config().steps == 15
    assert list(loop.train(run))[-1] == loop.Ended(step=15, reason="finished")


def test_an_evaluation_counts_once_towards_patience_however_often_the_run_is_stopped(new_run, monkeypatch):
    real = evaluation.evaluate
    monkeypatch.setattr(loop, "evaluate", lambda *a: replace(real(*a), nats_per_token=2.0))  # never better again
    run = new_run(steps=40, eval_every=2, patience=3)
    for _ in range(4):
        stop = threading.Event()
        for record in loop.train(run, stop=stop):
            if isinstance(record, loop.Evaluated):
                stop.set()
        score = run.checkpoint("last").state()["val_loss"]
        assert score == 2.0, "stopping after an evaluation loses nothing of it"
    assert record == loop.Ended(step=8, reason="early")


def test_time_between_checkpoints_decides_when_they_are_taken_and_nothing_else(new_run):
    often, seldom = new_run(save_minutes=1e-9, keep=3), new_run()
    records = list(loop.train(often))
    assert [record.step for record in records if isinstance(record, loop.Saved)] == list(range(13))
    list(loop.train(seldom))
    assert metrics_without_clock(often) == metrics_without_clock(seldom)


def test_evaluation_and_samples_draw_nothing_from_training(new_run):
    """Evaluating more often changes no training loss, though dropout is on."""
    often, seldom = new_run(eval_every=1, log_every=1), new_run(eval_every=12, log_every=1)
    for run in (often, seldom):
        list(loop.train(run))
    assert [line["loss"] for line in often.metrics()] == [line["loss"] for line in seldom.metrics()]


def test_weights_and_tokenizer_load_from_the_folder_alone(new_run, tmp_path):
    run = new_run()
    list(loop.train(run))
    moved = tmp_path / "elsewhere"
    run.path.rename(moved)
    (tmp_path / "text.txt").unlink()
    model, tokenizer = checkpoint.load(moved)
    assert not model.training
    run = checkpoint.RunFolder.open(moved)
    score = evaluation.evaluate(model, run.splits()["validation"], tokenizer.token_lengths(), 16)
    assert score.nats_per_token == run.metrics()[-1]["val_loss"]
    best, _ = checkpoint.load(moved, "best")
    assert all(p.isfinite().all() for p in best.parameters())
    assert json.loads((moved / "config.json").read_text(encoding="utf-8"))["format_version"] == 1


def test_the_file_of_a_checkpoint_is_whole_or_not_there(new_run, monkeypatch):
    run = new_run()

    def fail(*arguments):
        raise OSError(28, "No space left on device")

    records = loop.train(run)
    next(records)
    next(records)
    monkeypatch.setattr(checkpoint.folder, "sync", fail)
    with pytest.raises(OSError, match="No space left"):
        list(records)
    assert [c.step for c in run.checkpoints()] == [0]
    monkeypatch.undo()
    list(loop.train(run))
    assert run.checkpoint("last").step == 12


# --- carried streams ---------------------------------------------------------------------------------------------

CARRIED = {"arch": "toy", "carry": True, "window": 16, "batch_size": 30, "model": {}}  # 5 steps an epoch


def test_windows_with_a_carried_state_are_one_long_window():
    model = Toy(Toy.Config.tiny()).double()
    step = TrainingStep(model, carry=True)
    tokens = torch.randint(0, 23, (3, 33))
    whole, _, _ = step(Batch(tokens[:, :-1], tokens[:, 1:]))
    first, _, state = step(Batch(tokens[:, :16], tokens[:, 1:17]))
    second, _, after = step(Batch(tokens[:, 16:32], tokens[:, 17:33]), state)
    torch.testing.assert_close(first + second, whole, rtol=1e-12, atol=1e-12)
    assert (state.length, after.length) == (16, 32)
    assert not any(leaf.requires_grad for leaf in after.hidden), "a step's graph ends with it"
    features = [model(tokens[:, :32])[0], model(tokens[:, :16])[0], model(tokens[:, 16:32], state)[0]]
    torch.testing.assert_close(torch.cat(features[1:], 1), features[0], rtol=1e-12, atol=1e-12)


def test_without_carry_no_state_goes_in_or_out():
    batch = Batch(torch.ones(2, 4, dtype=torch.int64), torch.ones(2, 4, dtype=torch.int64))
    assert TrainingStep(Toy(Toy.Config.tiny()))(batch)[2] is None


@settings(max_examples=60)
@given(st.integers(1, 9), st.integers(1, 5), st.integers(0, 80), st.integers(0, 5), st.integers(0, 40))
def test_streams_go_on_where_they_ended_and_read_each_token_once_an_epoch(window, rows, more, seed, step):
    ids = np.arange(window * rows + 1 + more)
    streams = CarriedStreams(Tokens.of(ids), window, rows, seed)
    epoch, place = divmod(step, streams.count)
    batches = [streams.batch(epoch * streams.count + at) for at in range(streams.count)]
    assert [batch.continues for batch in batches] == [at > 0 for at in range(streams.count)]
    for before, after in itertools.pairwise(batches):
        assert torch.equal(after.tokens[:, 0], before.tokens[:, -1] + 1)
    read = torch.cat([batch.tokens.flatten() for batch in batches])
    assert len(read) == len(set(read.tolist())) == streams.count * window * rows
    assert len(ids) - len(read) <= window * (rows + 1), "what an epoch leaves out is less than a window of each stream"
    again = CarriedStreams(Tokens.of(ids), window, rows, seed).batch(step)
    assert torch.equal(again.tokens, batches[place].tokens), "a function of seed and step"
    assert all(torch.equal(batch.targets, batch.tokens + 1) for batch in batches)


@settings(max_examples=20)
@given(st.integers(1, 9), st.integers(1, 5), st.integers(0, 80), st.integers(0, 5))
def test_streams_leave_nothing_out_in_every_epoch(window, rows, more, seed):
    ids = np.arange(window * rows + 1 + more)
    streams, read = CarriedStreams(Tokens.of(ids), window, rows, seed), set()
    for epoch in range(1500):  # each start is one of 90 at the most
        for at in (0, streams.count - 1):  # the tokens at the two ends are in the first or the last windows
            batch = streams.batch(epoch * streams.count + at)
            read |= {*batch.tokens.flatten().tolist(), *batch.targets.flatten().tolist()}
        if {0, len(ids) - 1} <= read:
            return
    raise AssertionError(f"never read: {sorted({0, len(ids) - 1} - read)}")


@pytest.mark.parametrize(("accumulate", "dies_in", "at"), [(1, "update", 5), (4, "evaluate", 8), (4, "report", 10)])
def test_a_carried_run_that_dies_goes_on_bit_for_bit(new_run, toy_registered, accumulate, dies_in, at):
    killed, untouched = (new_run(**CARRIED, accumulate=accumulate) for _ in range(2))
    list(loop.train(untouched))
    die_once(killed, dies_in, at)
    list(loop.train(killed))
    same_end(killed, untouched)
    carried = [name for name in untouched.checkpoint("last").optimizer() if name.startswith("carried|")]
    assert len(carried) == 3, "two layers and the length, whatever the parts"


def test_the_state_is_carried_to_the_end_of_an_epoch_and_starts_anew(new_run, toy_registered, monkeypatch):
    original, lengths = TrainingStep.forward, []

    def forward(self, batch, state=None):
        lengths.append(0 if state is None else state.length)
        return original(self, batch, state)

    monkeypatch.setattr(TrainingStep, "forward", forward)
    run = new_run(**CARRIED)
    list(loop.train(run))
    count = CarriedStreams(run.splits()["train"], 16, 30, 5).count
    assert 2 < count < 8, "twelve steps cross the end of an epoch"
    assert lengths == [16 * (step % count) for step in range(12)]


def test_a_carried_state_changes_what_is_learned_and_parts_change_nothing_but_rounding(new_run, toy_registered):
    fresh, carried, parts = new_run(**{**CARRIED, "carry": False}), new_run(**CARRIED), new_run(**CARRIED, accumulate=4)
    for run in (fresh, carried, parts):
        list(loop.train(run))
    losses = [[line["loss"] for line in run.metrics()] for run in (fresh, carried, parts)]
    assert losses[0] != losses[1]
    assert losses[2] == pytest.approx(losses[1], rel=1e-5)
    scored = [line for line in carried.metrics() if "val_loss" in line]
    assert all(line["carried_nats_per_token"] != line["val_loss"] for line in scored)
    model, _ = checkpoint.load(carried.path)
    assert scored[-1]["carried_nats_per_token"] == evaluation.carried_loss(model, carried.splits()["validation"])
    assert not any("carried_nats_per_token" in line for line in fresh.metrics())


@pytest.mark.parametrize(("settings", "message"), [
    ({"carry": True}, "carry needs a model without a context limit.*gpt reads 16 tokens; leave carry out"),
    ({**CARRIED, "batch_size": 400}, "400 streams with a window of 16 need 6401: give a longer text, a smaller"),
])  # fmt: skip
def test_what_cannot_be_carried_is_refused(new_run, toy_registered, tmp_path, settings, message):
    before = set(tmp_path.iterdir())
    with pytest.raises(InputError, match=message):
        new_run(**settings)
    assert set(tmp_path.iterdir()) - before <= {tmp_path / "text.txt"}


def test_a_run_goes_on_computed_in_another_way(new_run):
    """What is computed stays; a refused change leaves the settings as they were."""
    exact = {**SETTINGS["model"], "dropout": 0.0}
    run, untouched = new_run(steps=8, model=exact), new_run(steps=8, model=exact)
    list(loop.train(untouched))
    die_once(run, "update", 5)
    assert main(["resume", str(run.path), "--accumulate", "99"]) == 2
    assert main(["resume", str(run.path), "--device", "mps"]) == 2
    assert run.config() == untouched.config()
    changed = ["--accumulate", "2", "--checkpoint-activations", "--loss-rows", "7", "--device", "cpu"]
    assert main(["resume", str(run.path), *changed]) == 0
    config = run.config()
    assert (config.accumulate, config.checkpoint_activations, config.loss_rows) == (2, True, 7)
    for line, expected in zip(run.metrics(), untouched.metrics(), strict=True):
        assert line["loss"] == pytest.approx(expected["loss"], rel=1e-4)


def test_a_run_goes_on_in_another_precision(new_run, toy_registered):
    """Into fp16, whose scaler begins then, and out of it; a carried state follows."""
    run = new_run(steps=2, log_every=1)
    list(loop.train(run))
    for steps, precision in ((4, "fp16"), (6, "fp32"), (8, "fp16")):
        list(loop.train(run, steps=steps, computed={"precision": precision}))
    assert [line["step"] for line in run.metrics()][-1] == 8
    carried = new_run(**{**CARRIED, "steps": 3})
    list(loop.train(carried, computed={"precision": "bf16"}))
    list(loop.train(carried, steps=6, computed={"precision": "fp32"}))
    assert carried.checkpoint("last").step == 6
