"""scratchlm play, as a person starts and ends it."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

from playing import characters, make_run
from scratchlm.cli import main


@pytest.fixture
def refuse(capsys):
    """Expect exit code 2, nothing printed, and one line with these words."""

    def run(*arguments, words):
        assert main(["play", *map(str, arguments)]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.count("\n") == 1
        assert words in captured.err

    return run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("play") / "run", "gpt", characters()).path


def test_what_is_refused_at_once(refuse, folder, tmp_path):
    refuse(tmp_path / "nothing", words="is no folder; give the folder that scratchlm train wrote")
    refuse(tmp_path, words="has no config.json")
    refuse(folder, tmp_path, words="has no config.json")
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "config.json").write_text((folder / "config.json").read_text().replace("gpt", "tpg"))
    refuse(damaged, words="is damaged")
    refuse(folder, "--host", "0.0.0.0", words="add --allow-remote")
    refuse(folder, "--host", "192.168.0.7", words="add --allow-remote")
    refuse(folder, "--port", "65536", words="from 0 to 65535")
    refuse(folder, "--port", "x", words="--port")
    refuse(folder, "--concurrent", "0", words="--concurrent is 0")
    refuse(folder, "--token", "two words", words="--token must be")
    refuse(folder, "--token", "", words="--token must be")
    refuse(folder, "--device", "tpu", words="--device")
    refuse(folder, "--host", "no.such.host.invalid", "--allow-remote", words="no address")
    refuse("x" * 5000, words="cannot read")


def test_a_port_that_is_taken(refuse, folder):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        refuse(folder, "--port", taken.getsockname()[1], words="choose another with --port")


@pytest.mark.parametrize("missing", ["fastapi", "uvicorn"])
def test_what_is_missing_is_named(refuse, folder, monkeypatch, missing):
    monkeypatch.delitem(sys.modules, "scratchlm.serve.app", raising=False)  # or it would not be imported again
    monkeypatch.setitem(sys.modules, missing, None)
    refuse(folder, words="install scratchlm[serve]")


@contextlib.contextmanager
def playing(*arguments):
    """A server in a process of its own: its address, and the process."""
    command = [sys.executable, "-m", "scratchlm", "play", *map(str, arguments), "--port", "0", "--no-open"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )  # fmt: skip
    try:
        yield process.stdout.readline().strip(), process
    finally:
        process.kill()
        process.communicate()


@pytest.fixture
def loopback(monkeypatch):
    """Connections are made, which conftest refuses."""
    import _socket

    monkeypatch.setattr(socket.socket, "connect", _socket.socket.connect)


def asked(url, **headers):
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=60) as answer:
        return answer.read()


def test_it_plays_until_it_is_interrupted(folder, loopback):
    """The address is printed, the page's server answers, Ctrl-C ends it with 130 and nothing is left."""
    with playing(folder) as (url, process):
        assert url.startswith("http://127.0.0.1:")
        assert "loading" in process.stdout.readline()
        while json.loads(asked(f"{url}api/runs"))["runs"][0]["status"] == "loading":
            time.sleep(0.05)
        assert json.loads(asked(f"{url}api/runs"))["runs"][0]["status"] == "ready"
        body = json.dumps({"run": "a", "prompt": "a", "tokens": 1000}).encode()
        request = urllib.request.Request(f"{url}api/generate", body, {"content-type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as stream:
            assert b"start" in stream.readline()
            process.send_signal(signal.SIGINT)  # while a text is being written
            _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (130, "")


def test_it_is_interrupted_while_torch_is_imported(folder):
    """Which nothing else can interrupt."""
    with playing(folder) as (url, process):
        time.sleep(0.6)
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=60)
    assert url.startswith("http")
    assert (process.returncode, said[1]) == (130, "")


def test_other_machines_are_let_in_with_a_token(folder, loopback):
    with playing(folder, "--host", "0.0.0.0", "--allow-remote") as (url, _):
        (port, token) = re.fullmatch(r"http://[^/]+:(\d+)/\?token=([\w-]{22})", url).groups()
        with pytest.raises(urllib.error.HTTPError, match="401"):
            asked(f"http://127.0.0.1:{port}/api/runs")
        assert b'"runs"' in asked(f"http://127.0.0.1:{port}/api/runs", authorization=f"Bearer {token}")


def test_the_page_is_answered_before_torch_is_there():
    script = (
        "import sys, scratchlm.serve.app, scratchlm.cli.play; print('torch' in sys.modules, 'numpy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["False", "False"]
