"""Runs on pairs: from files to a trained model, killed and resumed, for encoder-decoders and decoder-only models."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from runs import die_once, metrics_without_clock, same_end
from scratchlm import checkpoint, evaluation
from scratchlm.cli import progress
from scratchlm.config import OptimConfig, default_preset, make_config
from scratchlm.data.batches import IGNORED
from scratchlm.errors import InputError
from scratchlm.models import MODELS
from scratchlm.training import loop, optim
from scratchlm.training.records import Evaluated, Sampled
from scratchlm.training.setup import create_run
from scratchlm.training.step import Training, smoothed_loss
from scratchlm.translation import Bleu, ErrorRates

WORDS = ["".join(letters) for letters in itertools.product("abc", repeat=4)]
LINES = [f"{word}\t{' '.join(f'S{letter.upper()}' for letter in reversed(word))}" for word in WORDS]
SHAPE = {"dim": 16, "depth": 1, "heads": 2, "dropout": 0.2}
SETTINGS = {
    "steps": 12, "batch_tokens": 70, "eval_every": 4, "log_every": 3, "device": "cpu", "seed": 5,
    "split": (0.8, 0.1, 0.1), "tokenizer": "char+symbols", "optim": {"lr": 1e-2, "warmup": 2},
}  # fmt: skip
MODEL = {
    "transformer": {**SHAPE, "hidden_dim": 24, "context": 12, "source_context": 12},
    "gpt": {**SHAPE, "context": 16},
}


@pytest.fixture
def new_pair_run(tmp_path):
    numbers = itertools.count()
    file = tmp_path / "pairs.tsv"
    file.write_text("\n".join(LINES) + "\n", encoding="utf-8")

    def make(arch="transformer", **changed):
        settings = {**SETTINGS, "arch": arch, "data": str(file), "model": MODEL[arch], **changed}
        return create_run(settings, tmp_path / f"run{next(numbers)}")[0]

    return make


@pytest.mark.parametrize("arch", ["transformer", "gpt"])
def test_a_run_scores_translates_and_reports(new_pair_run, arch):
    run = new_pair_run(arch)
    records = list(loop.train(run))
    scored = [record for record in records if isinstance(record, Evaluated)]
    assert len(scored) == 3
    assert all(isinstance(record.quality, ErrorRates) and record.quality.sources == 8 for record in scored)
    line = run.metrics()[-1]
    assert {"loss", "val_loss", "val_bits_per_byte", "symbol_error_rate", "sequence_error_rate"} <= line.keys()
    assert "smoothed_loss" not in line
    assert line["val_loss"] < run.metrics()[1]["val_loss"], "it learns"
    shown = [record.text for record in records if isinstance(record, Sampled)]
    assert all(" -> " in text and "should be: S" in text for text in shown)
    assert all(text.splitlines()[0].split(" -> ")[0] in WORDS for text in shown)


def test_validation_loss_counts_every_target_once_and_its_bytes(new_pair_run):
    """Against one pair at a time, without batches or padding."""
    run = new_pair_run()
    list(loop.train(run))
    model, tokenizer = checkpoint.load(run.path)
    pairs = run.pairs()["validation"]
    score = evaluation.evaluate(model, pairs, tokenizer.token_lengths(), 1)
    total, count, size = 0.0, 0, 0
    for row in range(len(pairs)):
        batch = pairs.batch(torch.tensor([row]).numpy(), joined=False)
        with torch.no_grad():
            features, _ = model(batch.tokens, model.initial_state(1, source=batch.source))
            total += F.cross_entropy(model.readout(features)[0], batch.targets[0], reduction="sum").item()
        count += batch.targets.numel()
        size += len(tokenizer.target.decode(pairs.target(row).tolist()).encode()) + 1  # each symbol has a space behind
    assert (score.tokens, score.bytes) == (count, size)
    assert score.nats_per_token == pytest.approx(total / count, rel=1e-5)


@pytest.mark.parametrize("arch", ["transformer", "gpt"])
@pytest.mark.parametrize(("dies_in", "at"), [("update", 7), ("evaluate", 8), ("report", 11)])
def test_a_run_that_dies_in_an_epoch_goes_on_bit_for_bit(new_pair_run, arch, dies_in, at):
    killed, untouched = (new_pair_run(arch, label_smoothing=0.1) for _ in range(2))
    list(loop.train(untouched))
    die_once(killed, dies_in, at)
    list(loop.train(killed))
    same_end(killed, untouched)
    count = loop.training_batches(untouched.config(), untouched.pairs()["train"]).count
    assert count > 4
    assert at % count, "in the middle of an epoch"


def test_numbers_alone_go_to_a_logger(tmp_path, monkeypatch):
    """A signature of BLEU is no number, which TensorBoard refuses."""
    rows = [f"{a}\tthe {a} and the {b} went up" for a in WORDS for b in WORDS[:2]]
    (tmp_path / "text.tsv").write_text("\n".join(rows), encoding="utf-8")
    logged = []

    class Logger:
        def log(self, numbers, step):
            logged.append(numbers)

        def close(self):
            pass

    monkeypatch.setattr(progress, "open_logger", lambda *_: Logger())
    shape = {**MODEL["transformer"], "context": 64, "source_context": 64}
    settings = {**SETTINGS, "arch": "transformer", "data": str(tmp_path / "text.tsv"), "model": shape}
    changed = {"tokenizer": "bpe", "vocab_size": 280, "batch_tokens": 400}
    assert progress.follow(create_run({**settings, **changed}, tmp_path / "run")[0]) == 0
    assert any("bleu" in numbers for numbers in logged)
    assert all(isinstance(value, (int, float)) for numbers in logged for value in numbers.values())


def test_few_of_many_pairs_are_translated_while_it_trains(new_pair_run, monkeypatch):
    monkeypatch.setattr(loop, "TRANSLATED", 3)
    run = new_pair_run()
    scored = [record for record in loop.train(run) if isinstance(record, Evaluated)]
    assert {record.quality.sources for record in scored} == {3}
    assert {record.score.tokens for record in scored} == {40}, "the loss is over all of them"


def test_parts_of_a_batch_change_nothing_but_rounding(new_pair_run):
    """Padded rows are not counted: a mean of the parts' means would differ."""
    shape = {**MODEL["transformer"], "dropout": 0.0, "embedding_dropout": 0.0}
    whole, parts = (new_pair_run(model=shape, label_smoothing=0.1, accumulate=n) for n in (1, 5))
    for run in (whole, parts):
        list(loop.train(run))
    for line, expected in zip(metrics_without_clock(parts), metrics_without_clock(whole), strict=True):
        assert line == pytest.approx(expected, rel=1e-3)


# Label smoothing and the schedule

LOGITS = st.lists(st.lists(st.floats(-8, 8), min_size=5, max_size=5), min_size=1, max_size=6)


@given(LOGITS, st.floats(0, 0.99), st.data())
def test_smoothing_is_torchs_and_the_plain_loss_stands_beside_it(rows, smoothing, data):
    logits = torch.tensor(rows, dtype=torch.float64)
    targets = torch.tensor(
        data.draw(st.lists(st.sampled_from([IGNORED, 0, 1, 4]), min_size=len(rows), max_size=len(rows)))
    )
    lowered, plain = smoothed_loss(logits, targets, smoothing)
    options = {"ignore_index": IGNORED, "reduction": "sum"}
    torch.testing.assert_close(plain, F.cross_entropy(logits, targets, **options))
    torch.testing.assert_close(lowered, F.cross_entropy(logits, targets, label_smoothing=smoothing, **options))


@pytest.mark.parametrize(("vocabulary", "floor"), [(11, 0.514), (10_000, 1.246), (37_000, 1.377)])
def test_the_least_smoothed_loss_is_the_entropy_of_its_targets(vocabulary, floor):
    q = torch.full((1, vocabulary), 0.1 / vocabulary, dtype=torch.float64)
    q[0, 3] += 0.9
    lowered, plain = smoothed_loss(q.log(), torch.tensor([3]), 0.1)
    assert lowered.item() == pytest.approx(floor, abs=5e-4)
    assert plain.item() == pytest.approx(-math.log(q[0, 3]))


def test_smoothing_is_what_is_lowered_and_both_are_told(new_pair_run):
    run = new_pair_run(label_smoothing=0.3)
    list(loop.train(run))
    for line in run.metrics():
        assert line["smoothed_loss"] != line["loss"]
    model = MODELS["transformer"](run.config().model)
    batch = loop.training_batches(run.config(), run.pairs()["train"]).batch(0)
    for smoothing in (0.0, 0.3):
        config = replace(run.config(), label_smoothing=smoothing, optim=OptimConfig(lr=0.0, weight_decay=0.0))
        told = Training(model.eval(), config, torch.device("cpu")).update(batch, batch.target_count, [None])
        logits = model.readout(evaluation.features_and_state(model, batch, None)[0])
        for found, e in ((told.loss, 0.0), (told.smoothed_loss, smoothing)):
            expected = F.cross_entropy(logits, batch.targets.flatten(), ignore_index=IGNORED, label_smoothing=e)
            torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(("dim", "peak"), [(512, 6.988e-4), (1024, 4.941e-4), (256, 9.882e-4)])
def test_the_noam_schedule(dim, peak):
    """Vaswani et al. 2017, equation 3: d^-0.5 min(s^-0.5, s w^-1.5), with its steps counted from 1."""
    config = OptimConfig(schedule="noam", lr=(dim * 4000) ** -0.5, warmup=4000)
    assert config.lr == pytest.approx(peak, rel=1e-3)
    for step in (1, 2, 3999, 4000, 4001, 100_000):
        expected = dim**-0.5 * min(step**-0.5, step * 4000**-1.5)
        assert optim.learning_rate(step - 1, 100_000, config) == pytest.approx(expected, rel=1e-12)
    assert optim.learning_rate(150_000, 100_000, config) == optim.learning_rate(99_999, 100_000, config)
    if dim == 512:
        assert optim.learning_rate(0, 100_000, config) == pytest.approx(1.747e-7, rel=1e-3)
        assert optim.learning_rate(99_999, 100_000, config) == pytest.approx(1.398e-4, rel=1e-3)


def test_the_papers_presets_have_its_schedule():
    for name in ("base", "big"):
        preset = MODELS["transformer"].presets[name]
        settings = {**preset, "arch": "transformer", "data": "cmudict"}
        config = make_config(settings)
        assert config.optim.lr == pytest.approx((config.model.dim * config.optim.warmup) ** -0.5)
        assert (config.optim.beta1, config.optim.beta2, config.optim.eps) == (0.9, 0.98, 1e-9)
        assert (config.optim.weight_decay, config.optim.grad_clip, config.label_smoothing) == (0, 0, 0.1)


def test_presets_are_chosen_by_the_data():
    assert default_preset("transformer") == "cmudict"
    assert default_preset("transformer", "cmudict") == "cmudict"
    assert default_preset("transformer", "bible-de-en") == "laptop"
    assert default_preset("transformer", "my.tsv") == "laptop"
    assert default_preset("gpt", "shakespeare") == "laptop"
    assert default_preset("gpt", "gpt2") == "laptop", "a folder may have a preset's name"


# What does not fit


def write(folder, name, text):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_two_files_are_pairs_of_their_own(tmp_path, new_pair_run):
    sources, targets = (
        write(tmp_path, name, "\n".join(line.split("\t")[side] for line in LINES))
        for side, name in ((0, "a"), (1, "b"))
    )
    run = new_pair_run(source=sources, target=targets)
    same = new_pair_run()
    for name in ("train", "validation", "test"):
        assert run.splits()[name].sha256() == same.splits()[name].sha256()


def test_what_makes_no_pairs_is_refused(tmp_path, new_pair_run):
    text = write(tmp_path, "text.txt", "one text\nof two lines\n")
    three, two = write(tmp_path, "three", "a\nb\nc\n"), write(tmp_path, "two", "x\ny\n")
    before = set(tmp_path.iterdir())
    for settings, message in [
        ({"data": text}, r"text.txt is a single text: give two files with --source FILE --target FILE, one .tsv file"),
        ({"source": three, "target": two}, r"three has 3 lines and .*two has 2"),
        ({"source": three}, "--target is missing"),
        ({"target": three}, "--source is missing"),
        ({"carry": True}, "leave carry out"),
        ({"split": (1.0, 0.0, 0.0)}, "no pair to score"),
        ({"split": (0.0, 0.5, 0.5)}, "no pair to learn from"),
        (
            {"batch_tokens": 4},
            "64 of 64 pairs are too long.*; give shorter pairs, a larger batch",
        ),
        ({"label_smoothing": 1.0}, "label_smoothing is 1.0"),
        ({"tokenizer": "char+nonsense"}, "nonsense"),
        (
            {"arch": "gpt", "data": text},
            r"char\+symbols is one for each side of pairs, and .* a single text",
        ),
        ({"data": ""}, "is a single text|empty"),
    ]:
        with pytest.raises(InputError, match=message):
            new_pair_run(**settings)
    assert set(tmp_path.iterdir()) == before


def test_nothing_is_left_out_in_silence(tmp_path, new_pair_run):
    long = ["abcabcabcabcabcabc\tSA", "a\t" + "SA " * 20]
    lines = [*LINES[:40], "\tSA", "abc\t", *long, *LINES[40:]]
    file = write(tmp_path, "some.tsv", "\n".join(lines))
    with pytest.warns() as caught:
        run = new_pair_run(data=file)
    said = " / ".join(str(warning.message) for warning in caught)
    assert "2 of 85 pairs have an empty side and are left out (the first: line 41)" in said
    assert "train: 2 of 66 pairs are too long and are left out; the longest has 2 source and 21 target tokens" in said
    assert sum(len(pairs) for pairs in run.pairs().values()) == 81


def test_targets_of_text_are_scored_by_bleu(tmp_path, new_pair_run):
    rows = [f"{a} {b}\tthe {a} and the {b} went up" for a in WORDS[:12] for b in WORDS[:4]]
    run = new_pair_run(
        data=write(tmp_path, "text.tsv", "\n".join(rows)), tokenizer="bpe", vocab_size=280, batch_tokens=200,
        model={**MODEL["transformer"], "context": 64, "source_context": 64},
    )  # fmt: skip
    records = [record for record in loop.train(run) if isinstance(record, Evaluated)]
    assert all(isinstance(record.quality, Bleu) for record in records)
    assert run.metrics()[-1]["bleu_signature"].startswith("nrefs:1|case:mixed")
