"""Every registered architecture, and the toy one, obeys the contract."""

import dataclasses

import pytest
import torch

from contract import CHECKS, begin
from scratchlm.models import MODELS
from toy import Toy

ARCHITECTURES = {**{name: MODELS[name] for name in MODELS}, "toy": Toy}


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_contract(name, check):
    model = ARCHITECTURES[name]

    def make():
        torch.manual_seed(0)
        return model(model.Config.tiny()).double().eval()

    CHECKS[check](make)


@pytest.mark.parametrize("name", list(MODELS))
def test_declarations(name):
    model = MODELS[name]
    config = model.Config.tiny()
    built = model(config)
    assert built.config == config
    assert len(built.blocks) > 0
    with pytest.raises(ValueError, match="vocab_size is 0"):
        model.Config(vocab_size=0)


@pytest.mark.parametrize("name", [name for name in MODELS if MODELS[name].Config.sized is not None])
@pytest.mark.parametrize("parameters", [100_000, 1_000_000, 10_000_000])
def test_sized_is_within_two_percent(name, parameters):
    model = MODELS[name]
    config = model.Config.sized(parameters, vocab_size=65)
    with torch.device("meta"):
        built = model(config)
    assert sum(p.numel() for p in built.parameters()) == pytest.approx(parameters, rel=0.02)
    with pytest.raises(ValueError, match="nearest"):
        model.Config.sized(1000, vocab_size=50257)


@pytest.mark.parametrize("name", list(MODELS))
def test_state_of_another_batch_is_refused(name):
    model = MODELS[name](MODELS[name].Config.tiny())
    with pytest.raises(ValueError, match="2 rows, the tokens 3"):
        model(torch.zeros(3, 4, dtype=torch.int64), begin(model, torch.zeros(2, 4, dtype=torch.int64)))


@pytest.mark.parametrize("other", list(MODELS))
@pytest.mark.parametrize("name", list(MODELS))
def test_state_of_another_model_is_refused(name, other):
    model, config = MODELS[name](MODELS[name].Config.tiny()), MODELS[other].Config.tiny()
    if other == name:  # another shape of the same class
        if not hasattr(config, "depth"):
            return
        config = dataclasses.replace(config, depth=config.depth + 1)
    tokens = torch.zeros(3, 4, dtype=torch.int64)
    state = begin(MODELS[other](config), tokens)
    with pytest.raises(ValueError, match=r"start (one )?with initial_state\(\)"):
        model(tokens, state)


@pytest.mark.parametrize("name", [name for name in MODELS if hasattr(MODELS[name].Config, "dim")])
def test_state_of_another_width_is_refused(name):
    config = MODELS[name].Config.tiny()
    wider = {field: 2 * getattr(config, field) for field in ("dim", "hidden_dim") if getattr(config, field, None)}
    tokens = torch.zeros(3, 4, dtype=torch.int64)
    state = begin(MODELS[name](dataclasses.replace(config, **wider)), tokens)
    with pytest.raises(ValueError, match=r"start one with initial_state\(\)"):
        MODELS[name](config)(tokens, state)


@pytest.mark.parametrize("name", [name for name in MODELS if MODELS[name](MODELS[name].Config.tiny()).context])
def test_overflow_of_the_context_is_refused(name):
    model = MODELS[name](MODELS[name].Config.tiny())
    tokens = torch.zeros(1, model.context, dtype=torch.int64)
    _, state = model(tokens, begin(model, tokens))
    with pytest.raises(ValueError, match=f"context is {model.context} tokens, {model.context + 1} are needed"):
        model(torch.zeros(1, 1, dtype=torch.int64), state)
