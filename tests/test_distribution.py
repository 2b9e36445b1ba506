"""Several processes: what they compute equals one process, and whoever dies, is stopped or is told nonsense."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import two_processes
from scratchlm.models import MODELS

TESTS = Path(__file__).parent
FAST = [*two_processes.names(["gpt", "transformer"]), *two_processes.RUNS]


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
    return compared(tmp_path_factory.mktemp("two"), FAST)


@pytest.mark.parametrize("name", FAST)
def test_two_processes(told, name):
    assert told.get(name, "not reached, since a check before it failed") == ""


@pytest.mark.slow
@pytest.mark.parametrize("arch", [name for name in MODELS if name not in ("gpt", "transformer")])
def test_two_processes_of_every_architecture(tmp_path, arch):
    names = two_processes.names([arch])
    assert compared(tmp_path, names) == dict.fromkeys(names, "")
