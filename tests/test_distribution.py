"""Several processes: what they compute equals one process, and whoever dies, is stopped or is told nonsense."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import two_processes
from runs import TEXT, same_end
from scratchlm import runtime
from scratchlm.checkpoint import RunFolder
from scratchlm.cli import main, progress
from scratchlm.errors import InputError
from scratchlm.models import MODELS
from scratchlm.training.setup import check_memory

TESTS = Path(__file__).parent
FAST = [
    *two_processes.names(["gpt"], ["plain", "everything", "lora", "muon"]),
    *two_processes.names(["transformer"], ["plain", "everything"]),
    "elsewhere", "same-ddp", "same-bf16-fsdp", "reference",
]  # fmt: skip


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def compared(folder, names):
    """Run checks in two processes. Returns what each of them told."""
    environment = {
        **os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()),
        "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    both = [
        subprocess.Popen(
            [sys.executable, str(TESTS / "two_processes.py"), str(folder), *names],
            env={**environment, "RANK": str(rank)}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        messages = [process.communicate(timeout=280)[1] for process in both]
    finally:
        for process in both:
            process.kill()
    assert [process.returncode for process in both] == [0, 0], messages
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    return {"folder": folder, **compared(folder, FAST)}


@pytest.mark.parametrize("name", FAST)
def test_two_processes(told, name):
    assert told.get(name, "not reached, since a check before it failed") == ""


@pytest.mark.slow
@pytest.mark.parametrize("arch", list(MODELS))
def test_two_processes_of_every_architecture(tmp_path, arch):
    names = two_processes.names([arch])
    assert compared(tmp_path, names) == dict.fromkeys(names, "")


@pytest.mark.slow
def test_two_processes_go_on_with_runs(tmp_path):
    names = list(two_processes.RUNS)
    assert compared(tmp_path, names) == dict.fromkeys(names, "")


# --- whoever dies, is stopped or is told nonsense ---------------------------------------------------------------------

LONG = {"steps": 300, "eval_every": 20, "log_every": 5, "keep": 3}
linux = pytest.mark.skipif(sys.platform != "linux", reason="processes are found in /proc")


def start(*arguments, module=("scratchlm",), **environment):
    return subprocess.Popen(
        [sys.executable, "-m", *module, *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def end(process, timeout=240):
    """Its exit code and what it said, samples left out."""
    try:
        message = process.communicate(timeout=timeout)[1]
    finally:
        process.kill()
    return process.returncode, [line for line in message.splitlines() if not line.startswith("  |")]


def wait_for(what, process=None, seconds=120):
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        assert process is None or process.poll() is None, process.communicate()[1]
        time.sleep(0.02)


def newest(run):
    found = run.checkpoints()
    return found[-1].step if found else -1


def workers(run):
    """The processes that train a run, by rank."""
    found = {}
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"resume\0{run.path}\0".encode() in (place / "cmdline").read_bytes():
                environment = dict(one.partition("=")[::2] for one in (place / "environ").read_text().split("\0"))
                if "RANK" in environment:
                    found[int(environment["RANK"])] = int(place.name)
    return found


def kill_and_finish(run, *kills):
    """Kill these processes (a rank, once the run has got to a step), and wait for the end."""
    process = start("resume", run.path, "--nproc", 2)
    for rank, step in kills:
        wait_for(lambda step=step: newest(run) >= step, process)
        os.kill(workers(run)[rank], signal.SIGKILL)
    code, said = end(process)
    assert code == 0, said
    return said


@linux
def test_a_killed_process_is_replaced(told, new_run):
    """From the newest checkpoint on, bit for bit as if nothing had been."""
    run = new_run(**LONG)
    said = kill_and_finish(run, (1, 100))
    assert any("a process died" in line for line in said)
    same_end(run, RunFolder(told["folder"] / "reference" / "run"))


@linux
@pytest.mark.slow
@pytest.mark.parametrize("ranks", [(0,), (1, 0, 1)])
def test_killed_more_than_once(told, new_run, ranks):
    run = new_run(**LONG)
    kill_and_finish(run, *((rank, 40 + 60 * at) for at, rank in enumerate(ranks)))
    same_end(run, RunFolder(told["folder"] / "reference" / "run"))


@linux
@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_told_to_stop(told, new_run, number, code):
    """It is saved, even where the command itself is killed, and any number of processes goes on."""
    run = new_run(**LONG)
    process = start("resume", run.path, "--nproc", 2)
    wait_for(lambda: newest(run) >= 20, process)
    process.send_signal(number)
    found, said = end(process)
    assert found == code
    assert f"stopped at step {newest(run)}, everything is saved; go on with: scratchlm resume {run.path}" in said
    wait_for(lambda: not workers(run))
    assert not any("Traceback" in line for line in said)
    at = newest(run)
    assert 20 <= at < 300
    process = start("resume", run.path, *(["--nproc", 2] if number == signal.SIGTERM else []))
    code, said = end(process)
    assert code == 0, said
    assert f"going on after step {at}" in said
    if number == signal.SIGTERM:
        same_end(run, RunFolder(told["folder"] / "reference" / "run"))


@pytest.mark.slow
def test_a_run_that_diverges_is_not_started_again(new_run):
    run = new_run(**{**LONG, "optim": {"lr": 1e6, "warmup": 0, "grad_clip": 0.0}})
    code, said = end(start("resume", run.path, "--nproc", 2))
    assert code == 3
    assert sum("diverged" in line for line in said) == 1
    assert not any("Traceback" in line or "died" in line for line in said)


@pytest.mark.slow
def test_what_is_refused_is_said_once(new_run):
    """By one process of two, and nothing is tried again."""
    for spoil, message in (
        (lock, "is being trained by another process"),
        (damage, "damaged|sha256"),
        (narrow, "cannot be shared out"),
    ):
        run = new_run(**LONG)
        with spoil(run):
            code, said = end(start("resume", run.path, "--nproc", 2))
        assert code == 2
        assert len(said) == 1, said
        assert re.search(message, said[0])


@contextlib.contextmanager
def lock(run):
    with run.lock():
        yield


@contextlib.contextmanager
def damage(run):
    file = run.path / "tokenizer.json"
    file.write_text(file.read_text(encoding="utf-8").replace("A", "Z", 1), encoding="utf-8")
    yield


@contextlib.contextmanager
def narrow(run):
    run.write_config(replace(run.config(), batch_size=1))
    yield


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--nproc", "0"], "--nproc is 0; it must be at least 1"),
        (["--nproc", "7"], "a batch of 6 windows cannot be shared out among 7 processes"),
        (["--nproc", "2", "--accumulate", "4"], "among 2 processes with 4 parts each"),
        (["--nproc", "two"], "nproc"),
    ],
)
def test_nonsense_is_refused_before_anything_starts(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text(TEXT, encoding="utf-8")
    shape = ["--model.context=16", "--model.dim=16", "--model.depth=1", "--model.heads=2", "--batch-size=6"]
    assert main(["train", "gpt", "--data=text.txt", "--device=cpu", "--steps=5", "--out=run", *shape, *arguments]) == 2
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1
    assert message in told[0]
    assert not Path("run").exists()


def test_each_process_needs_a_device_of_its_own(new_run, monkeypatch, capsys):
    """Else those without one would leave, and the others wait for them."""
    run = new_run(device="auto")
    monkeypatch.setattr(runtime, "cuda_works", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(progress, "launch", None)  # is not reached
    assert main(["resume", str(run.path), "--nproc", "2"]) == 2
    assert "2 processes need as many CUDA devices, and this machine has 1" in capsys.readouterr().err


def test_processes_share_the_memory_of_a_machine(monkeypatch):
    config = two_processes.settings("gpt")
    weights = sum(parameter.nbytes for parameter in MODELS["gpt"](config.model).parameters())
    batch = 8 * config.batch_size * config.window
    monkeypatch.setattr(runtime, "memory_bytes", lambda: 4 * weights + batch)
    check_memory(config)
    check_memory(replace(config, shard=True))
    with pytest.raises(InputError, match="this model in 2 processes needs more"):
        check_memory(config, 2)
    monkeypatch.setattr(runtime, "memory_bytes", lambda: 5 * weights + batch)  # each draws all of the model
    check_memory(replace(config, shard=True), 2)


def test_torchrun_and_nproc_do_not_mix(new_run, monkeypatch, capsys):
    run = new_run()
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    assert main(["resume", str(run.path), "--nproc", "2"]) == 2
    assert "torchrun has started these processes already" in capsys.readouterr().err
    assert main(["train", "gpt", "--data", "shakespeare", "--device=cpu"]) == 2
    assert "give it with --out DIR" in capsys.readouterr().err


@linux
@pytest.mark.slow
def test_a_full_disk_ends_the_run(new_run, monkeypatch):
    """The first process cannot write; neither it nor the other is started again, and it says what to do."""
    run = new_run(**LONG)
    program = (
        "import errno, os, sys; from scratchlm.checkpoint import folder; original = folder.save_file\n"
        "def full(tensors, path, *rest):\n"
        "    if 'step_000040' in str(path): raise OSError(errno.ENOSPC, 'No space left on device', str(path))\n"
        "    return original(tensors, path, *rest)\n"
        "folder.save_file = full"
    )
    (run.path.parent / "sitecustomize.py").write_text(
        f"import os\nif 'RANK' in os.environ:\n    exec({program!r})\n", encoding="utf-8"
    )
    paths = os.pathsep.join([str(run.path.parent), os.environ.get("PYTHONPATH", "")])
    code, said = end(start("resume", run.path, "--nproc", 2, PYTHONPATH=paths))
    assert code == 2
    assert sum("could not be written" in line for line in said) == 1
    assert not any("a process died" in line for line in said)
    assert newest(run) == 20


@linux
@pytest.mark.slow
def test_two_nodes_by_torchrun(told, new_run, tmp_path):
    """Two agents with a process each; the whole is started again in mid-run and ends as two of one machine."""
    port, run = free_port(), RunFolder(tmp_path / "nodes")
    flags = ["--config", str(new_run(**LONG).path / "config.json"), f"--out={run.path}"]
    torchrun = ["--nnodes=2", "--nproc-per-node=1", "--max-restarts=2", "--rdzv-backend=c10d", "--rdzv-id=7",
                f"--rdzv-endpoint=127.0.0.1:{port}", "-m", "scratchlm"]  # fmt: skip
    nodes = [
        start(*torchrun, "train", "gpt", *flags, module=["torch.distributed.run"],
              TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1")
        for _ in range(2)
    ]  # fmt: skip
    wait_for(lambda: run.path.exists() and newest(run) >= 60, seconds=200)
    victims = [
        place.name for place in Path("/proc").glob("[0-9]*")
        if (place / "cmdline").is_file() and f"--out={run.path}" in read(place / "cmdline")
        and "torch.distributed.run" not in read(place / "cmdline")
    ]  # fmt: skip
    assert len(victims) == 2
    os.kill(int(victims[0]), signal.SIGKILL)
    ends = [end(node) for node in nodes]
    assert [code for code, _ in ends] == [0, 0], ends
    same_end(run, RunFolder(told["folder"] / "reference" / "run"))


def read(file):
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
