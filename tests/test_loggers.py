"""Metrics reach the viewers that were asked for."""

import sys
from types import SimpleNamespace

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from scratchlm.errors import InputError
from scratchlm.training.loggers import open_logger


def test_tensorboard_reads_what_was_logged(tmp_path):
    logger = open_logger("tensorboard", tmp_path)
    for step in (10, 20):
        logger.log({"loss": 1.0 / step, "lr": 0.1}, step)
    logger.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    logged = [(event.step, event.value) for event in events.Scalars("loss")]
    assert logged == [(10, pytest.approx(0.1)), (20, pytest.approx(0.05))]


@pytest.mark.parametrize("package", ["trackio", "wandb"])
def test_projects_get_the_calls_that_both_packages_have(tmp_path, monkeypatch, package):
    calls = []
    fake = SimpleNamespace(
        init=lambda **given: calls.append(("init", given)),
        log=lambda metrics, step: calls.append(("log", metrics, step)),
        finish=lambda: calls.append(("finish",)),
    )
    monkeypatch.setitem(sys.modules, package, fake)
    logger = open_logger(package, tmp_path / "gpt-2")
    logger.log({"loss": 0.5}, 10)
    logger.close()
    assert calls == [("init", {"project": "scratchlm", "name": "gpt-2"}), ("log", {"loss": 0.5}, 10), ("finish",)]


@pytest.mark.parametrize("package", ["tensorboard", "trackio", "wandb"])
def test_a_viewer_that_is_not_installed_is_named_with_its_remedy(tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=rf"pip install 'scratchlm\[{package}\]'"):
        open_logger(package, tmp_path)


def test_none_is_a_logger_too(tmp_path):
    logger = open_logger("none", tmp_path)
    logger.log({"loss": 0.5}, 10)
    logger.close()
    assert list(tmp_path.iterdir()) == []
