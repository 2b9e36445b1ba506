"""What is shown of a model and of a run is true."""

import pytest
import torch

from scratchlm.inspect.curves import loss_figure, save_loss_curve
from scratchlm.inspect.modules import flops_per_token, module_rows
from scratchlm.models.gpt import GPT, GPTConfig

METRICS = [{"step": step, "loss": 3.0 / step, "tokens": step * 1000, "lr": 0.1, "grad_norm": 1.0, "seconds": 0.1 * step,
            **({"val_loss": 3.2 / step, "val_bits_per_byte": 4.6 / step} if step % 5 == 0 else {})}
           for step in range(1, 21)]  # fmt: skip


def test_the_module_tree_counts_every_parameter():
    model = GPT(GPT.Config.tiny())
    rows = list(module_rows(model))
    total = sum(parameter.numel() for parameter in model.parameters())
    assert rows[0].parameters == total
    own = sum(torch.Size(shape).numel() for row in rows for shape in row.shapes.values())
    assert own == total
    assert {row.name for row in rows} >= {"blocks.1.attention.query_key_value", "final_norm"}
    depths = {row.name: row.depth for row in rows}
    assert depths["blocks.1.attention"] == 3


@pytest.mark.parametrize("shape", [
    {"vocab_size": 61, "context": 32, "dim": 24, "depth": 3, "heads": 4},
    {"vocab_size": 50257, "context": 1024, "dim": 768, "depth": 12, "heads": 12},
])  # fmt: skip
def test_operations_are_those_of_the_matrix_products(shape):
    config = GPTConfig(**shape)
    with torch.device("meta"):
        model = GPT(config)
    window, d = config.context, config.dim
    products = config.depth * (2 * 12 * d * d + 4 * window * d) + 2 * config.vocab_size * d
    assert flops_per_token(model, window) == products
    if window == 1024:
        assert products * window == 291_648_307_200  # counted by hand for GPT-2 of 124M parameters


def test_the_curve_shows_the_run(tmp_path):
    axes = loss_figure(METRICS, "gpt on shakespeare").axes[0]
    training, validation = axes.get_lines()
    assert training.get_ydata().tolist() == [line["loss"] for line in METRICS]
    assert validation.get_xdata().tolist() == [0.005, 0.010, 0.015, 0.020]
    assert axes.get_ylabel() == "loss (nats per token)"
    assert "0.160" in axes.texts[0].get_text()
    files = save_loss_curve(METRICS, "gpt on shakespeare", tmp_path)
    assert files[0].read_text(encoding="utf-8").startswith("<?xml")
    assert files[1].read_bytes().startswith(b"\x89PNG")


def test_a_run_without_an_evaluation_has_a_curve_too(tmp_path):
    save_loss_curve(METRICS[:3], "gpt", tmp_path)
    save_loss_curve([], "gpt", tmp_path)
    assert (tmp_path / "loss.svg").stat().st_size > 1000
