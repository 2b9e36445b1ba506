"""The model behind docs/scaling.md against what really is counted, and the page against the model."""

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from scratchlm.checkpoint.weights import meta_model
from scratchlm.config import RunConfig
from scratchlm.data.batches import Batch
from scratchlm.flops import training_flops
from scratchlm.models.gpt import GPTConfig

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import scaling
import scaling_measure
import scaling_model
from scaling_model import SHAPES, Setting

CONTENT = json.loads(scaling.FILE.read_text(encoding="utf-8"))
KEPT = CONTENT["measured"]["memory"]
SMALL = GPTConfig(vocab_size=97, context=40, dim=64, depth=3, heads=4, dropout=0.0, activation="gelu")


def test_the_page_has_the_tables_of_the_committed_coefficients():
    page = scaling.PAGE.read_text(encoding="utf-8")
    assert scaling.written(page, scaling.tables(CONTENT, {})) == page


def test_coefficients_of_ones_own_stand_over_those_assumed():
    plain, faster = scaling.tables(CONTENT, {}), scaling.tables(CONTENT, {"share": [0.7, 0.7]})
    assert plain["plan"] != faster["plan"]
    assert plain["checked"] == faster["checked"]


@pytest.mark.parametrize("size", list(SHAPES))
def test_operations_are_those_counted(size):
    shape = replace(SHAPES[size][0], depth=2)
    model = meta_model(RunConfig(arch="gpt", model=shape))
    tokens = torch.zeros(1, shape.context, dtype=torch.int64)
    counted = training_flops(model, Batch(tokens, tokens)) / shape.context
    assert scaling_model.per_token_flops(shape) == pytest.approx(counted, rel=2e-3)
    parameters = sum(p.numel() for p in model.blocks[0].parameters())
    assert scaling_model.block_parameters(shape) == parameters


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("recompute", [False, True])
def test_what_blocks_keep_is_what_autograd_holds(precision, recompute):
    shape = {name: getattr(SMALL, name) for name in ("vocab_size", "context", "dim", "depth", "heads")}
    kept, copies = scaling_measure.blocks_kept(shape, precision, recompute)
    tokens = 3 * SMALL.context
    rest = kept - tokens * SMALL.depth * scaling_model.block_bytes(SMALL, KEPT, precision, recompute)
    assert 0 <= rest <= 0.05 * kept + 12 * tokens * SMALL.dim  # the last norm's, and the embeddings'
    blocks = 24 * SMALL.depth * SMALL.dim**2
    assert copies == (blocks if precision == "bf16" and not recompute else 0)


def test_a_ring_sends_all_but_a_share_of_the_bytes():
    rate = 1e9
    assert scaling_model.ring_seconds(8e9, 1, rate, 1e-5, 2) == 0
    assert scaling_model.ring_seconds(8e9, 2, rate, 0, 2) == pytest.approx(8)
    assert scaling_model.ring_seconds(8e9, 1024, rate, 0, 2) == pytest.approx(16, rel=1e-2)
    assert scaling_model.ring_seconds(0, 1024, rate, 1e-5, 2) == pytest.approx(2046e-5)


def test_ddp_reduces_once_and_fsdp_gathers_for_each_part():
    whole = 4 * SMALL.parameters
    assert scaling_model.collective_bytes(SMALL, 1, Setting(), 4) == (0, 0, 0)
    assert scaling_model.collective_bytes(SMALL, 8, Setting(), 4) == (whole, 0, 0)
    reduced, gathered, scattered = scaling_model.collective_bytes(SMALL, 8, Setting(shard=True), 4)
    assert (reduced, scattered) == (0, 4 * whole)
    assert 4 * whole < gathered < 8 * whole


def test_sharing_out_divides_the_states_and_not_the_copies():
    shape, _ = SHAPES["7B"]
    alone, shared = (
        scaling_model.memory(shape, gpus, Setting(shard=True), 1, KEPT, 80_000_000_000) for gpus in (1, 64)
    )
    assert alone["weights, gradients, moments"] == 64 * shared["weights, gradients, moments"] == 16 * shape.parameters
    assert alone["copies"] == shared["copies"]


def test_muons_operations_are_those_of_its_products():
    from torch.utils.flop_counter import FlopCounterMode

    from scratchlm.training.muon import orthogonalised

    with FlopCounterMode(display=False) as counter:
        orthogonalised(torch.empty(4, SMALL.dim, SMALL.dim, device="meta"))
        orthogonalised(torch.empty(2, 4 * SMALL.dim, SMALL.dim, device="meta"))
    assert scaling_model.muon_flops(SMALL) == SMALL.depth * counter.get_total_flops()


def test_youngs_interval_costs_least():
    gpu = {"save_bytes_per_second": 1e9, "gpu_hours_between_failures": 50000}
    shape, _ = SHAPES["7B"]
    saving, between = scaling_model.saving(shape, gpu), 50000 * 3600 / 1024
    best = scaling_model.young_interval(shape, 1024, gpu)

    def cost(interval):
        return saving / interval + interval / 2 / between

    assert cost(best) < min(cost(best * 0.9), cost(best * 1.1))
    assert best == pytest.approx(math.sqrt(2 * saving * between))
