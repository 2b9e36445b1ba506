"""Tiny runs, and what it means that two of them are the same."""

import contextlib
import itertools

import pytest
import torch

from scratchlm.training import loop
from scratchlm.training.setup import create_run

TEXT = "".join(f"{a} and {b} went up the hill, {b} and {a} came down.\n" for a in "ABCDEFGH" for b in "abcdefgh")
SETTINGS = {
    "arch": "gpt", "steps": 12, "batch_size": 6, "eval_every": 4, "log_every": 3, "device": "cpu", "seed": 5,
    "model": {"context": 16, "dim": 16, "depth": 2, "heads": 2, "dropout": 0.2},
    "optim": {"lr": 1e-2, "min_lr": 1e-3, "warmup": 2},
}  # fmt: skip


def run_maker(folder):
    text, numbers = folder / "text.txt", itertools.count()
    text.write_text(TEXT, encoding="utf-8")

    def make(**changed):
        return create_run({**SETTINGS, "data": str(text), **changed}, folder / f"run{next(numbers)}")[0]

    return make


def metrics_without_clock(run):
    return [{key: value for key, value in line.items() if key != "seconds"} for line in run.metrics()]


def same_end(run, other):
    """Both folders end with the same weights, optimizer, random states and metrics, bit for bit."""
    one, two = run.checkpoint("last"), other.checkpoint("last")
    assert one.step == two.step
    for tensors, expected in ((one.weights(), two.weights()), (one.optimizer(), two.optimizer())):
        assert tensors.keys() == expected.keys()
        assert all(torch.equal(tensors[name], expected[name]) for name in expected)
    assert metrics_without_clock(run) == metrics_without_clock(other)
    assert run.best() == other.best()
    positions = [{k: v for k, v in c.state()["position"].items() if k != "seconds"} for c in (one, two)]
    assert positions[0] == positions[1]


def die_once(run, function, at):
    """Train the run until the trainer calls this function at this step, and end as if the process had died there."""
    original = getattr(loop._Trainer, function)

    def die(self, *arguments):
        if self.at.step == at:
            raise SystemExit
        return original(self, *arguments)

    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(SystemExit):
        patch.setattr(loop._Trainer, function, die)
        list(loop.train(run))
