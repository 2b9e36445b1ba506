"""Full counts and long checks: make test-slow."""

import itertools
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import contract
from runs import die_once, same_end
from scratchlm.config import merge, preset_settings, without_vocabulary
from scratchlm.generation import generate
from scratchlm.models import MODELS
from scratchlm.training import loop
from scratchlm.training.setup import create_run

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", list(MODELS))
def test_any_chunking_of_a_full_context(name):
    model = MODELS[name](MODELS[name].Config.tiny()).double().eval()
    length = model.context or 40
    tokens = contract.tokens_for(model, length=length)
    expected = contract.whole(model, tokens)

    @settings(max_examples=500)
    @given(st.lists(st.integers(0, length), max_size=12).map(sorted), st.sampled_from([None, length, length + 9]))
    def chunked(cuts, capacity):
        contract.close(contract.in_chunks(model, tokens, cuts, capacity)[0], expected)

    chunked()


@pytest.mark.parametrize("dies_in", ["update", "report", "evaluate", "sample", "save"])
def test_a_run_that_dies_at_any_step_goes_on_as_if_nothing_had_happened(new_run, whole, dies_in):
    for at in range(13):
        killed = new_run()
        die_once(killed, dies_in, at)
        list(loop.train(killed))
        same_end(killed, whole)


def test_a_run_that_is_stopped_after_every_step_is_the_run_that_was_never_stopped(new_run, whole):
    stopped = new_run()
    for at in itertools.count(1):
        stop = threading.Event()
        with pytest.MonkeyPatch.context() as patch:
            update = loop._Trainer.update

            def one(self, update=update, stop=stop):
                update(self)
                stop.set()

            stop.clear()
            patch.setattr(loop._Trainer, "update", one)
            if list(loop.train(stopped, stop=stop))[-1].reason == "finished":
                break
        assert at <= 12
    same_end(stopped, whole)


def test_gpt2_writes_the_same_from_its_memory_as_without():
    """The published shape of 124M parameters, in float64: 64 prompt tokens, 16 new ones."""
    shape = MODELS["gpt"].presets["gpt2"]["model"]
    model = MODELS["gpt"](MODELS["gpt"].Config(**shape)).double().eval()
    prompt = torch.randint(0, model.config.vocab_size, (64,)).tolist()
    cached = generate(model, [prompt], 16, temperature=0)[0]
    recomputed = list(prompt)
    with torch.inference_mode():
        for _ in range(16):
            features, _ = model(torch.tensor([recomputed]))
            recomputed.append(model.readout(features[:, -1]).argmax(-1).item())
    assert cached == recomputed


def test_the_laptop_preset_learns_shakespeare(tmp_path):
    """A sixth of the default run: far below what letter frequencies give (3.3) or pairs of letters (2.45)."""
    preset = without_vocabulary(preset_settings("gpt", "laptop"))
    run, _ = create_run(merge(preset, {"arch": "gpt", "device": "cpu", "steps": 500}), tmp_path / "run")
    list(loop.train(run))
    assert run.metrics()[-1]["val_loss"] < 2.2
