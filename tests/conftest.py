"""One thread a worker, no network, and the same examples in every run."""

import importlib.metadata
import importlib.util
import socket

import pytest
import torch
import uvicorn
from hypothesis import HealthCheck, settings

from runs import run_maker
from scratchlm.cli import main, progress
from scratchlm.models import MODELS
from scratchlm.training import loop

torch.set_num_threads(1)
settings.register_profile(
    "repeatable", derandomize=True, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(self, address, *rest):
        raise OSError(f"a test tried to reach {address}")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def toy_registered(monkeypatch):
    """The toy architecture of tests/toy.py, registered for one test as a user would register their own."""
    monkeypatch.setattr(MODELS, "_paths", dict(MODELS._paths))
    MODELS.register("toy", "toy:Toy")


@pytest.fixture
def new_run(tmp_path):
    """A function that makes a run's folder, with some settings changed."""
    return run_maker(tmp_path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run that nobody stopped."""
    run = run_maker(tmp_path_factory.mktemp("whole"))()
    list(loop.train(run))
    return run


@pytest.fixture(scope="session")
def kept(tmp_path_factory):
    """The folder of what the pages' commands need, each made once."""
    return tmp_path_factory.mktemp("kept")


@pytest.fixture
def desk(tmp_path, kept, monkeypatch):
    """A folder to type in what pages tell. What takes minutes, the network or other processes is tested elsewhere."""
    from pages import Desk

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch, "compile", lambda module, **_: module)
    monkeypatch.setattr(progress, "launch", lambda processes, arguments: main(arguments))
    monkeypatch.setattr(uvicorn.Server, "run", lambda self, sockets: sockets[0].close())  # play would not end
    return Desk(tmp_path, kept)


@pytest.fixture(scope="session")
def port():
    """The Hugging Face port: one file of a package whose own import needs much that nothing else here does."""
    try:
        files = importlib.metadata.files("pyvene")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("pyvene is not there; `make test` installs it, without what it depends on")
    file = next(file for file in files if file.name == "modelings_backpack_gpt2.py")
    spec = importlib.util.spec_from_file_location("backpack_port", file.locate())
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def microformer():
    """A folder of the hub's with a GPT-2 that was trained: files of a package, which is never imported."""
    try:
        files = importlib.metadata.files("microformer-mgm")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("microformer-mgm is not there; `make test` installs it, without what it depends on")
    return next(file for file in files if file.parts[-2:] == ("general_model", "config.json")).locate().parent
