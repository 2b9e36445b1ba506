"""Counted operations against formulas, against a step that really runs, and the table of devices."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from scratchlm.config import LoRAConfig, RunConfig
from scratchlm.data.batches import Batch
from scratchlm.flops import mfu, peak_flops, square_product, training_flops
from scratchlm.lora import adapt
from scratchlm.model import Source, record
from scratchlm.models import MODELS
from scratchlm.training.step import Training


def batch_for(model, rows=2, tokens=7):
    """Rows of tokens of which all differ, which a Backpack's count takes for granted."""
    ids = torch.arange(rows * tokens).view(rows, tokens) % model.config.vocab_size
    source = Source(ids[:, :5].clone(), torch.tensor([5, 3])) if model.takes_source else None
    return Batch(ids, ids.roll(1), source)


@pytest.mark.parametrize(("preset", "vocab_size"), [("gpt2", 50257), ("nanogpt-cpu", 65)])
def test_a_gpts_count_is_the_formulas(preset, vocab_size):
    """6 N + 12 L H Q T for each token, N without position embeddings: Chowdhery et al. 2022, appendix B."""
    config = MODELS["gpt"].Config(**{**MODELS["gpt"].presets[preset]["model"], "vocab_size": vocab_size})
    with torch.device("meta"):
        model = MODELS["gpt"](config)
    tokens = torch.zeros(3, config.context, dtype=torch.int64)
    counted = training_flops(model, Batch(tokens, tokens)) / tokens.numel()
    parameters = config.parameters - config.context * config.dim
    formula = 6 * parameters + 12 * config.depth * config.dim * config.context
    assert counted == pytest.approx(formula, rel=2e-3)  # the formula multiplies by biases and norms too
    if preset == "gpt2":
        assert counted * 1024 == 3 * 291_648_307_200  # the products of one forward pass, counted by hand


@pytest.mark.parametrize("name", list(MODELS))
def test_a_count_is_that_of_the_step_that_runs(name):
    model = MODELS[name](MODELS[name].Config.tiny())
    batch = batch_for(model)
    before = torch.get_rng_state()
    counted = training_flops(model, batch)
    assert torch.equal(before, torch.get_rng_state())
    assert all(parameter.grad is None for parameter in model.parameters())
    training = Training(model, RunConfig(arch=name, model=model.config), torch.device("cpu"))
    with record(model), FlopCounterMode(display=False) as counter:
        training.update(batch, batch.target_count, [None])
    assert counted == counter.get_total_flops()
    assert (counted > 0) == (name != "bigram")  # which looks up and multiplies nothing


def test_what_is_frozen_needs_no_gradient():
    torch.manual_seed(0)
    model = MODELS["gpt"](MODELS["gpt"].Config.tiny())
    whole = training_flops(model, batch_for(model))
    adapt(model, LoRAConfig(rank=1, targets=("query_key_value",)))
    assert whole / 2 < training_flops(model, batch_for(model)) < whole


def test_only_known_devices_have_a_peak():
    assert peak_flops("NVIDIA H100 80GB HBM3", "bf16") == 989.5e12
    assert peak_flops("NVIDIA A100-SXM4-40GB", "bf16") == peak_flops("A100-PCIE-40GB", "bf16") == 312e12
    assert peak_flops("NVIDIA H100 PCIe", "bf16") < peak_flops("NVIDIA H200", "bf16")
    assert peak_flops("Tesla V100-SXM2-32GB", "bf16") is None  # it has no such products
    for part in (
        "NVIDIA A100-SXM4-40GB MIG 1g.5gb",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA GeForce RTX 3090 Ti",
    ):
        assert peak_flops(part, "fp16") is None
    assert mfu(3e12, 2.0, 6e12) == 0.25
    assert mfu(3e12, 2.0, peak_flops("a toaster", "fp32")) is None


def test_a_product_draws_nothing_from_the_runs_stream():
    before = torch.get_rng_state()
    product, operations = square_product(torch.device("cpu"), "bf16", size=8)
    assert (product().shape, product().dtype, operations) == ((8, 8), torch.bfloat16, 1024)
    assert torch.equal(before, torch.get_rng_state())
