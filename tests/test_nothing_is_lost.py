"""Runs that are killed, whose files are damaged, or whose disk is full, lose nothing and lie about nothing.

A seeded sample of each runs in make test, the full counts in make test-slow.
"""

import contextlib
import errno
import io
import itertools
import json
import os
import random
import shutil
import subprocess
import sys
import time
from functools import cache, partial
from pathlib import Path

import pytest
import torch

from runs import SETTINGS, TEXT, metrics_without_clock, same_end
from scratchlm import files
from scratchlm.checkpoint import RunFolder, is_finite
from scratchlm.checkpoint import folder as saving
from scratchlm.cli import main
from scratchlm.errors import InputError
from scratchlm.training import loop
from scratchlm.training.setup import create_run

FLAGS = [
    "--data=text.txt", "--eval-every=5", "--log-every=3", "--batch-size=6", "--keep=3", "--seed=5",
    "--device=cpu", "--model.context=16", "--model.dim=16", "--model.depth=2", "--model.heads=2",
    "--model.dropout=0.2", "--optim.lr=0.01", "--optim.warmup=2",
]  # fmt: skip
# kills its own process at the given call of a function, so that no moment of a save or an evaluation is missed
KILLER = """
import importlib, os, signal, sys
module, name, at = sys.argv[1], sys.argv[2], int(sys.argv[3])
module, _, inside = module.partition(":")
place = importlib.import_module(module)
place = getattr(place, inside) if inside else place
original, calls = getattr(place, name), iter(range(1, 1 << 30))
def killing(*arguments, **options):
    if next(calls) == at:
        os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))
    return original(*arguments, **options)
setattr(place, name, killing)
from scratchlm.cli import main
raise SystemExit(main(sys.argv[4:]))
"""
MOMENTS = {  # what a save and an evaluation are made of
    "weights": ("scratchlm.checkpoint.folder", "save_file"),
    "disk": ("scratchlm.checkpoint.folder", "sync"),
    "state": ("scratchlm.checkpoint.folder", "write_json"),
    "rename": ("pathlib:Path", "rename"),
    "loss": ("scratchlm.evaluation", "loss_sum"),
    "sample": ("scratchlm.training.loop", "stream"),
}


def process(folder, *command):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, *command], cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )


def train_or_resume(folder):
    """The command that goes on, or begins; folder/steps says how long the run is."""
    steps = (folder / "steps").read_text(encoding="utf-8")
    return ["resume", "run"] if (folder / "run").exists() else ["train", "gpt", *FLAGS, f"--steps={steps}", "--out=run"]


def begin(folder, steps):
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    (folder / "steps").write_text(str(steps), encoding="utf-8")


def finish(folder):
    done = process(folder, "-m", "scratchlm", *train_or_resume(folder))
    _, message = done.communicate(timeout=120)
    assert done.returncode == 0, message.decode()


@pytest.fixture(scope="module")
def never_killed(tmp_path_factory):
    """A function that trains a run of so many steps, and nobody kills it."""

    @cache
    def trained(steps):
        folder = tmp_path_factory.mktemp("never_killed")
        begin(folder, steps)
        finish(folder)
        return RunFolder(folder / "run")

    return trained


def kill_somewhere(folder, seconds):
    """Kill a training this long after it was seen to have begun. Returns whether it was still alive."""
    victim = process(folder, "-m", "scratchlm", *train_or_resume(folder))
    before = (folder / "run").exists() and RunFolder(folder / "run").checkpoints()[-1].step
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and victim.poll() is None:  # until it has got past what the last one did
        found = RunFolder(folder / "run").checkpoints() if (folder / "run").exists() else []
        if found and found[-1].step > (before or -1):
            break
        time.sleep(0.002)
    time.sleep(seconds)
    alive = victim.poll() is None
    victim.kill()
    victim.communicate()
    return alive


def kill_at(folder, moment, call):
    victim = process(folder, "-c", KILLER, *MOMENTS[moment], str(call), *train_or_resume(folder))
    _, message = victim.communicate(timeout=120)
    assert victim.returncode not in (1, 2, 3), message.decode()
    return victim.returncode != 0


def check_killed(folder, never_killed, kills, steps):
    begin(folder, steps)
    killed = [kill(folder) for kill in kills]
    assert all(killed), "each of them must have hit a living process"
    finish(folder)
    same_end(RunFolder(folder / "run"), never_killed(steps))
    left = [path.name for path in (folder / "run").rglob(".*") if path.name != ".lock"]
    assert left == [], "nothing half-written stays"


def drawn_kills(seed, moments, anywhere):
    draw = random.Random(seed)
    kills = [partial(kill_at, moment=moment, call=draw.randint(1, 6)) for moment in moments]
    kills += [partial(kill_somewhere, seconds=draw.uniform(0, 0.15)) for _ in range(anywhere)]
    draw.shuffle(kills)
    return kills


def test_killed_in_a_save_and_in_an_evaluation(tmp_path, never_killed):
    check_killed(tmp_path, never_killed, drawn_kills(1, ["weights", "rename", "loss"], 1), steps=200)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", range(2))
def test_killed_twenty_times(tmp_path, never_killed, seed):
    check_killed(tmp_path, never_killed, drawn_kills(seed, [*MOMENTS, *MOMENTS], 8), steps=1500)


# --- damaged files -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def healthy(tmp_path_factory):
    """A run of three checkpoints, another of the same shape, and what each command gives from each checkpoint."""
    folder = tmp_path_factory.mktemp("healthy")
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    settings = {**SETTINGS, "data": str(folder / "text.txt"), "keep": 3}
    for name, seed in (("run", 5), ("other", 6)):
        run, _ = create_run({**settings, "seed": seed}, folder / name)
        list(loop.train(run))
    expected = {}
    for step in (4, 8, 12):
        for command in ("sample", "eval"):
            _, out, _ = call(command, folder / "run", "--json", "--checkpoint", step)
            expected[command, step] = json.loads(out)
    longer = shutil.copytree(folder / "run", folder / "longer", symlinks=True)
    list(loop.train(RunFolder(longer), steps=14))
    return folder, expected, RunFolder(longer)


def call(*arguments):
    """A command in this process. Returns its exit code, standard output and standard error."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(argument) for argument in arguments])
    return code, out.getvalue(), err.getvalue()


def readable_files(run):
    """What sample, eval or resume read."""
    names = ["config.json", "tokenizer.json", "metrics.jsonl", "data/manifest.json"]
    names += [f"data/{path.name}" for path in (run / "data").glob("*.npy")]
    names += [str(path.relative_to(run)) for path in run.glob("checkpoints/step_*/*")]
    return sorted(names)


def damage(draw, run, other):
    """Spoil one file in one way. Returns its name and the way."""
    name = draw.choice(readable_files(run))
    way = draw.choice(["cut", "emptied", "flipped", "swapped", "removed"])
    path = run / name
    content = path.read_bytes()
    if way == "removed":
        path.unlink()
    elif way == "swapped":
        siblings = [other / name]
        if "checkpoints" in name:
            siblings += [p for p in run.glob(f"checkpoints/step_*/{path.name}") if p != path]
        path.write_bytes(draw.choice(siblings).read_bytes())
    elif way == "flipped":
        spoilt = bytearray(content)
        spoilt[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        path.write_bytes(spoilt)
    else:
        path.write_bytes(content[: draw.randrange(len(content))] if way == "cut" else b"")
    return name, way


def check_damage(case, healthy, folder):
    root, expected, longer = healthy
    draw = random.Random(case)
    run = Path(shutil.copytree(root / "run", folder / f"run{case}", symlinks=True))
    name, way = damage(draw, run, root / "other")
    command = draw.choice(["sample", "eval", "resume"])
    flags = ["--steps", "14"] if command == "resume" else ["--json"]
    code, out, err = call(command, run, *flags)
    what = f"case {case}: {name} {way}, {command}: {code}\n{err}"
    assert "Traceback" not in err, what
    assert code in (0, 2), what
    if code == 2:
        assert err.count("\n") == 1, what
        assert Path(name).name in err or Path(name).parent.name in err, what
    elif command == "resume":
        assert metrics_without_clock(RunFolder(run)) == metrics_without_clock(longer), what
        same_end(RunFolder(run), longer)
    else:
        found = json.loads(out)
        assert found == expected[command, found["step"]], what
        assert found["step"] == 12 or f"step_{12:06d}" in err, what
    shutil.rmtree(run)


@pytest.mark.parametrize("start", [0, 20])
def test_damaged_files_are_recovered_from_or_named(start, healthy, tmp_path):
    for case in range(start, start + 20):
        check_damage(case, healthy, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("start", range(1000, 1400, 100))
def test_hundreds_of_damaged_files_are_recovered_from_or_named(start, healthy, tmp_path):
    for case in range(start, start + 100):
        check_damage(case, healthy, tmp_path)


# --- a full disk -------------------------------------------------------------------------------------------------

WRITES = [(saving, "save_file"), (saving, "sync"), (Path, "rename"), (files.os, "fsync"),
          (saving, "replace_file"), (files, "replace_file")]  # fmt: skip


@pytest.mark.parametrize(("place", "name"), WRITES, ids=[name for _, name in WRITES])
def test_a_full_disk_ends_the_run_with_its_reason_and_loses_nothing(place, name, new_run, whole):
    """An error at each call in turn: the checkpoints that were there are whole, and the run can go on."""
    for at in itertools.chain(range(1, 4), (7, 12)):
        run, calls, original = new_run(), itertools.count(1), getattr(place, name)

        def full(*arguments, calls=calls, original=original, at=at):
            if next(calls) == at:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return original(*arguments)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(place, name, full)
            code, _, err = call("resume", run.path)
        if next(calls) <= at:
            assert code == 0  # so many calls there were not
            continue
        assert code == 2
        assert "No space left on device" in err
        for found in run.checkpoints():
            found.verify(saving.MODEL, saving.OPTIMIZER)
        assert call("resume", run.path)[0] == 0
        same_end(run, whole)


if sys.platform != "win32":  # which has no limit on the size of a file

    def test_a_write_that_the_system_cuts_short(tmp_path):
        """A real limit on the size of a file, which the library that writes tensors meets in the middle of its work."""
        begin(tmp_path, 40)
        limit = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        limit += "resource.setrlimit(resource.RLIMIT_FSIZE, (40000, 40000)); "
        code = limit + "import sys; from scratchlm.cli import main; sys.exit(main(sys.argv[1:]))"
        victim = process(tmp_path, "-c", code, *train_or_resume(tmp_path))
        _, message = victim.communicate(timeout=120)
        assert victim.returncode == 2, message.decode()
        assert "could not be written" in message.decode()
        assert "Traceback" not in message.decode()
        for found in RunFolder(tmp_path / "run").checkpoints():
            found.verify(saving.MODEL, saving.OPTIMIZER)
        assert not list((tmp_path / "run/checkpoints").glob(".*")), "nothing half-written stays"


def test_a_disk_too_small_is_refused_before_the_first_step(new_run, monkeypatch):
    run = new_run()
    monkeypatch.setattr(loop.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 10**6, 1000))
    code, _, err = call("resume", run.path)
    assert (code, "MB are free" in err) == (2, True)
    assert run.checkpoints() == []


# --- one at a time -----------------------------------------------------------------------------------------------


def test_a_run_that_is_being_trained_is_refused_to_a_second_process(new_run):
    run = new_run()
    records = loop.train(run)
    next(records)
    code, _, err = call("resume", run.path)
    assert (code, f"is being trained by another process ({os.getpid()})" in err) == (2, True)
    with pytest.raises(InputError, match="another process"):
        list(loop.train(run))
    records.close()
    assert list(loop.train(run))[-1].reason == "finished"


def test_the_lock_of_a_process_that_died_is_nobodys(new_run):
    run = new_run()
    (run.path / ".lock").touch()
    (run.path / ".owner").write_text("999999", encoding="utf-8")
    assert list(loop.train(run))[-1].reason == "finished"
    assert not (run.path / ".owner").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_no_numbers_are_found(value):
    tensor = torch.zeros(3, 5)
    assert is_finite(tensor)
    assert is_finite(tensor[:0])
    tensor[1, 2] = value
    assert not is_finite(tensor)
