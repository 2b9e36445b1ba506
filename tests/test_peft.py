"""Adapters in PEFT's files: PEFT computes the same with them, both ways, and trains the same; the rest is refused.

The base on PEFT's side is transformers' GPT2LMHeadModel with the weights of ours.
"""

import copy
import json
import math
import os
import re
import sys
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

import scratchlm
from scratchlm.checkpoint import RunFolder, build_model, lay_adapter, restore_weights, starting_model
from scratchlm.cli import main
from scratchlm.config import LoRAConfig, make_config
from scratchlm.errors import InputError
from scratchlm.interop.hub.gpt2 import places
from scratchlm.interop.peft import export_adapter, import_adapter
from scratchlm.interop.peft.writing import _whole
from scratchlm.lora import LowRank, Matrix, adaptations, merge, trained_tensors
from scratchlm.models.gpt import GPT
from scratchlm.tokenizers import ByteTokenizer

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")
pytestmark = [
    pytest.mark.filterwarnings("ignore:::peft"),  # of ties, which are looked at here, and of deprecations
    pytest.mark.filterwarnings("ignore:::transformers"),
]

SHAPE = {"vocab_size": ByteTokenizer.vocab_size, "context": 16, "dim": 32, "depth": 2, "heads": 4, "dropout": 0.0}
FILES = "adapter_config.json", "adapter_model.safetensors"
QUERY_VALUE = ("query", "value")
DEPTH = range(2)


def perturbed(tensors, size=0.1):
    generator = torch.Generator().manual_seed(7)
    return {name: tensor + size * torch.randn(tensor.shape, generator=generator) for name, tensor in tensors.items()}


def make_base(path, arch="gpt", shape=SHAPE):
    """A run with weights none of which is zero or one."""
    config = make_config({"arch": arch, "model": shape})
    torch.manual_seed(1)
    return RunFolder.create(path, config, ByteTokenizer(), perturbed(build_model(config).state_dict()), {})


def make_adapter(base, path, **lora):
    """A run with an adapter that changes what the model says."""
    config = replace(base.config(), base=os.path.relpath(base.path, path), lora=LoRAConfig(**lora))
    model = build_model(config)
    model.load_state_dict(base.checkpoint().weights())
    lay_adapter(model, config)
    weights = perturbed(trained_tensors(model))
    return RunFolder.create(path, config, base.tokenizer(), weights, {}, base.checkpoint().sha256)


def adapted(run):
    """The model with its adapter beside it."""
    model = starting_model(run)
    restore_weights(model, run.checkpoint())
    return model.eval()


def hugging_face(run):
    """The base as transformers has it."""
    shape = run.config().model
    config = transformers.GPT2Config(
        vocab_size=shape.vocab_size, n_positions=shape.context, n_embd=shape.dim, n_layer=shape.depth,
        n_head=shape.heads, attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    model, weights = transformers.GPT2LMHeadModel(config).eval(), run.checkpoint().weights()
    theirs = {
        place.name: weights[name].mT if place.transposed else weights[name]
        for name, place in places(shape.depth, "", "transformer.").items()
        if name in weights
    }
    said = model.load_state_dict(theirs, strict=False)
    assert said.missing_keys == ["lm_head.weight"]
    assert not said.unexpected_keys
    return model


IDS = torch.randint(SHAPE["vocab_size"], (3, 16), generator=torch.Generator().manual_seed(2))


@torch.no_grad()
def logits(model):
    return model.readout(model(IDS)[0]) if isinstance(model, GPT) else model(IDS).logits


def same(one, other, base=None):
    """The same logits, to 1e-6 of the largest; and others than the base's."""
    assert float((one - other).abs().max()) <= 1e-6 * float(other.abs().max())
    assert base is None or float((one - base).abs().max()) > 0.05


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_base(tmp_path_factory.mktemp("base") / "base")


def export(run, folder):
    export_adapter(run, run.checkpoint(), folder)
    return folder


def read(folder, base, out):
    return import_adapter(folder, base, base.checkpoint(), out)


def laid(base, **config):
    """The base with an adapter of PEFT's that changes what it says."""
    model = peft.get_peft_model(hugging_face(base), peft.LoraConfig(task_type="CAUSAL_LM", **config)).eval()
    with torch.no_grad():
        for name, tensor in perturbed({n: p for n, p in model.named_parameters() if p.requires_grad}).items():
            model.get_parameter(name).copy_(tensor)
    return model


def saved(model, folder):
    model.save_pretrained(folder)
    return folder


@pytest.mark.skipif(sys.platform == "win32", reason="whose accounts may have no links")
def test_a_run_that_is_made_through_a_link_finds_its_base(base, tmp_path):
    """Where a link leads elsewhere, the base as seen from the run's name is not that as seen from its folder."""
    folder = export(make_adapter(base, tmp_path / "ours", targets=("query",)), tmp_path / "theirs")
    (tmp_path / "deep/inside").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "deep/inside")
    run = read(folder, base, tmp_path / "link/run")
    assert scratchlm.load(run.path)[0] is not None


# --- ours, opened by PEFT, saved by it, and back ---------------------------------------------------------------------

OURS = {
    "whole": {"targets": ("query_key_value",)},
    "all": {},
    "parts": {"targets": QUERY_VALUE},
    "parts of other ranks": {"targets": QUERY_VALUE, "ranks": {"query": 2}, "alphas": {"blocks.1.*.value": 5.0}},
    "one part": {"targets": ("value",), "rank": 3},
    "rslora": {"rslora": True, "rank": 8, "alpha": 3.0},
    "rslora of parts": {"rslora": True, "targets": (*QUERY_VALUE, "mlp.hidden"), "ranks": {"value": 3}},
    "patterns": {"ranks": {"mlp.hidden": 2, "blocks.1.*.query_key_value": 7}, "alphas": {"mlp.output": 4.5}},
    "dora": {"dora": True},
    "dora of parts": {"dora": True, "targets": ("query", "mlp.output")},
    "biases of adapted modules": {"bias": "lora_only", "targets": (*QUERY_VALUE, "mlp.output")},
    "all biases": {"bias": "all", "targets": QUERY_VALUE, "dora": True},
    "positions": {"targets": ("position_embedding", "mlp.hidden"), "dropout": 0.25},
}


@pytest.mark.parametrize("lora", OURS.values(), ids=OURS.keys())
def test_peft_computes_the_same_and_gives_it_back(lora, base, tmp_path):
    run = make_adapter(base, tmp_path / "run", **{"rank": 4, "alpha": 8.0, **lora})
    folder, before = export(run, tmp_path / "peft"), logits(hugging_face(base))
    theirs = peft.PeftModel.from_pretrained(hugging_face(base), folder)
    there = peft.get_peft_model_state_dict(theirs, save_embedding_layers=False)
    assert {name: tensor.shape for name, tensor in there.items()} == {
        name: tensor.shape for name, tensor in load_file(folder / FILES[1]).items()
    }, "PEFT passes over what it does not expect, and what it misses"
    model = adapted(run)
    expected = logits(model)
    same(logits(theirs), expected, before)

    theirs.save_pretrained(tmp_path / "again", save_embedding_layers=False)
    back = read(tmp_path / "again", base, tmp_path / "back")
    same(logits(adapted(back)), expected)
    assert (back.config().lora.dropout, back.config().lora.bias) == (run.config().lora.dropout, run.config().lora.bias)

    merge(model)
    same(logits(model), expected)
    same(logits(scratchlm.load(back.path)[0]), expected)
    same(logits(theirs.merge_and_unload()), expected)


@given(
    parts=st.lists(
        st.tuples(st.sampled_from(["query", "key", "value"]), st.integers(1, 4), st.floats(0.5, 20)),
        min_size=1, max_size=3, unique_by=lambda part: part[0],
    ),
    dora=st.booleans(),
    rslora=st.booleans(),
)  # fmt: skip
def test_one_pair_of_a_matrix_is_the_pairs_of_its_parts(parts, dora, rslora):
    """The exact conversion of ranks one after another: in float64, rounding apart."""
    torch.manual_seed(0)
    weight = torch.randn(12, 5, dtype=torch.float64)
    expected, pairs = weight.clone(), []
    for name, rank, alpha in parts:
        rows = slice(start := 4 * ("query", "key", "value").index(name), start + 4)
        matrix = Matrix(module="m", part=name, rows=rows, shape=(4, 5), called=True, embedding=False)
        pair = LowRank(weight[rows], matrix, LoRAConfig(rank=rank, alpha=alpha, dora=dora, rslora=rslora))
        with torch.no_grad():
            for parameter in pair.parameters():
                parameter.add_(torch.randn_like(parameter))
            expected[rows] = pair.changed(weight[rows])
        pairs.append(pair)
    whole = _whole(pairs, weight, pairs[0].scale)
    summed = weight + pairs[0].scale * whole["B"] @ whole["A"]
    if dora:
        torch.testing.assert_close(summed.norm(dim=1), whole["lengths"])
        summed *= (whole["magnitude"] / summed.norm(dim=1))[:, None]
    torch.testing.assert_close(summed, expected)


def test_the_files_say_what_they_are(base, tmp_path):
    run = make_adapter(base, tmp_path / "run", rank=4, alpha=8.0, targets=QUERY_VALUE, ranks={"blocks.1.*.value": 6})
    folder = export(run, tmp_path / "peft")
    assert {path.name for path in folder.iterdir()} == set(FILES)
    content = json.loads((folder / FILES[0]).read_text())
    assert content["base_model_name_or_path"] == "base-hf"
    assert content["target_modules"] == [f"transformer.h.{i}.attn.c_attn" for i in DEPTH]
    # both patterns: rank 8 and alpha 16 for twice alpha / r = 2, in the second block another rank
    assert sorted([content["r"], *content["rank_pattern"].values()]) == [8, 10]
    assert sorted([content["lora_alpha"], *content["alpha_pattern"].values()]) == [16, 20]
    tensors = load_file(folder / FILES[1])
    first = "base_model.model.transformer.h.0.attn.c_attn."
    assert tensors[f"{first}lora_A.weight"].shape == (8, 32)
    B = tensors[f"{first}lora_B.weight"]
    assert B.shape == (96, 8)
    assert not any(bool(block.any()) for block in (B[32:64], B[:32, 4:], B[64:, :4]))
    assert b'"__metadata__":{"format":"pt"}' in (folder / FILES[1]).read_bytes()[:4096]


# --- training --------------------------------------------------------------------------------------------------------

TRAINED = {
    "whole": {"targets": ("query_key_value",)},
    "all": {},
    "parts": {"targets": QUERY_VALUE},
    "rslora": {"rslora": True},
    "dora": {"dora": True},
    "dora of parts": {"dora": True, "targets": QUERY_VALUE},
    "biases": {"bias": "all", "targets": ("query_key_value",)},
    "biases and dora": {"bias": "all", "dora": True, "targets": ("query_key_value",)},
    "dropout": {"dropout": 0.2, "targets": ("query_key_value", "mlp.hidden")},
    "dropout and dora": {"dropout": 0.2, "dora": True, "targets": ("query_key_value", "mlp.hidden")},
}


def both_sides(base, folder, lora):
    """Our model and PEFT's with the same adapter, in training, and pairs of parameters that are the same.

    Each pair with the place of ours in theirs: a part of a fused matrix is a block of it.
    """
    run = make_adapter(base, folder / "run", **{"rank": 4, "alpha": 8.0, **lora})
    ours = adapted(run).train()
    theirs = peft.PeftModel.from_pretrained(hugging_face(base), export(run, folder / "peft"), is_trainable=True).train()
    modules = {
        name.removesuffix(".weight"): theirs.base_model.model.get_submodule(place.name.removesuffix(".weight"))
        for name, place in places(SHAPE["depth"], "", "transformer.").items()
        if name.endswith(".weight")
    }
    pairs = []
    for name, (_, beside) in adaptations(ours).items():
        module, at = modules[name], 0
        for pair in beside.pairs:
            ranks = slice(at, at := at + len(pair.A))
            pairs.append((pair.A, module.lora_A["default"].weight, (ranks,)))
            pairs.append((pair.B, module.lora_B["default"].weight, (pair.rows, ranks)))
            if pair.magnitude is not None:
                pairs.append((pair.magnitude, module.lora_magnitude_vector["default"].weight, (pair.rows,)))
        if hasattr(beside, "bias"):
            bias = module.base_layer.bias if beside.pairs else module.bias
            pairs.append((beside.bias.shift, bias, (slice(None),)))
    assert {id(p) for p in ours.parameters() if p.requires_grad} == {id(one) for one, _, _ in pairs}
    assert {id(p) for p in theirs.parameters() if p.requires_grad} == {id(other) for _, other, _ in pairs}
    return ours, theirs, pairs


def loss_of(model, ids):
    scores = model.readout(model(ids)[0]) if isinstance(model, GPT) else model(ids).logits
    return F.cross_entropy(scores[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


@pytest.mark.parametrize("lora", TRAINED.values(), ids=TRAINED.keys())
def test_gradients_are_pefts(lora, base, tmp_path):
    ours, theirs, pairs = both_sides(base, tmp_path, lora)
    losses = []
    for model in (ours, theirs):
        torch.manual_seed(3)  # dropout is drawn in the same order
        loss = loss_of(model, IDS)
        loss.backward()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    for one, other, place in pairs:
        assert bool(one.grad.any())
        assert float((one.grad - other.grad[place]).abs().max()) <= 1e-5


@pytest.mark.parametrize(
    "lora",
    [
        pytest.param(lora, id=name, marks=[] if name in ("whole", "parts", "dora") else pytest.mark.slow)
        for name, lora in TRAINED.items()
    ],
)
def test_a_hundred_steps_are_pefts(lora, base, tmp_path):
    ours, theirs, pairs = both_sides(base, tmp_path, lora)
    masks = {}  # PEFT would learn the zeros, too, that stand where a row is of another part
    for _, other, place in pairs:
        masks.setdefault(other, torch.zeros_like(other))[place] = 1
    for other, mask in masks.items():
        other.register_hook(mask.mul)
    curves = []
    for model in (ours, theirs):
        # without decay, which would draw PEFT's biases to zero and ours to the base's
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3, weight_decay=0)
        generator = torch.Generator().manual_seed(4)
        torch.manual_seed(5)
        curve = []
        for _ in range(100):
            ids = torch.randint(8, (2, 12), generator=generator)
            optimizer.zero_grad()
            loss = loss_of(model, ids)
            loss.backward()
            optimizer.step()
            curve.append(loss.item())
        curves.append(torch.tensor(curve))
    assert curves[0][-10:].mean() < curves[0][:10].mean() - 0.5
    assert float((curves[0] - curves[1]).abs().max()) <= 1e-4


# --- PEFT's, read here -----------------------------------------------------------------------------------------------

THEIRS = {
    "one name": {"target_modules": ["c_attn"]},
    "a name that two modules have": {"target_modules": ["c_proj", "nothing"]},
    "an expression": {"target_modules": r".*\.h\.1\.(attn|mlp)\.c_\w+"},
    "an expression of all of a name": {"target_modules": r"transformer\.h\.\d\.mlp\.c_(fc|p)"},
    "all linear": {"target_modules": "all-linear", "rank_pattern": {"c_proj": 2, r"h\.0\..*": 3}},
    "patterns": {
        "target_modules": ["c_attn", "c_fc"],
        "rank_pattern": {"h.0.attn.c_attn": 6},
        "alpha_pattern": {"^transformer.h.1.mlp.c_fc": 3, "c_fc": 5},
    },
    "one layer": {"target_modules": ["attn.c_attn"], "layers_to_transform": 0},
    "layers": {"target_modules": ["c_attn", "wpe"], "layers_to_transform": [1], "layers_pattern": "h"},
    "rslora": {"target_modules": ["c_attn"], "use_rslora": True, "rank_pattern": {"h.1.attn.c_attn": 2}},
    "dora": {"target_modules": ["c_attn", "c_fc"], "use_dora": True},
    "biases of adapted modules": {"target_modules": ["c_attn"], "bias": "lora_only", "lora_dropout": 0.1},
    "all biases": {"target_modules": ["mlp.c_proj"], "bias": "all", "use_dora": True},
    "positions": {"target_modules": ["wpe", "c_fc"], "init_lora_weights": "gaussian"},
    "full names": {"target_modules": ["transformer.h.0.attn.c_attn"], "layers_to_transform": [1]},
}


@pytest.mark.parametrize("config", THEIRS.values(), ids=THEIRS.keys())
def test_what_peft_saves_computes_the_same_here(config, base, tmp_path):
    theirs = laid(base, r=4, lora_alpha=8, **config)
    expected = logits(theirs)
    run = read(saved(theirs, tmp_path / "peft"), base, tmp_path / "run")
    same(logits(adapted(run)), expected, logits(hugging_face(base)))
    same(logits(scratchlm.load(run.path)[0]), expected)
    assert run.checkpoint().step == 0
    assert run.base_sha256 == base.checkpoint().sha256
    folder = export(run, tmp_path / "again")
    assert load_file(folder / FILES[1]).keys() == load_file(tmp_path / "peft" / FILES[1]).keys()
    same(logits(peft.PeftModel.from_pretrained(hugging_face(base), folder)), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened(dtype, base, tmp_path):
    theirs = laid(base, r=4, target_modules=["c_attn"])
    folder = saved(theirs, tmp_path / "peft")
    halved = {name: tensor.to(dtype) for name, tensor in load_file(folder / FILES[1]).items()}
    save_file(halved, folder / FILES[1])
    weights = read(folder, base, tmp_path / "run").checkpoint().weights()
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    name = "base_model.model.transformer.h.1.attn.c_attn.lora_A.weight"
    assert torch.equal(weights["blocks.1.attention.query_key_value.lora.whole.A"], halved[name].float())


# --- a change of the tied embedding, row by row ----------------------------------------------------------------------


def with_embeddings(base, reads, writes):
    """Logits of the base with one embedding to read with, and one to write with."""
    model = copy.deepcopy(hugging_face(base))
    model.transformer.wte.weight, model.lm_head.weight = nn.Parameter(reads), nn.Parameter(writes)
    return logits(model)


@pytest.fixture
def embedding(base):
    return base.checkpoint().weights()["token_embedding.weight"]


def test_wte_alone(base, embedding, tmp_path):
    theirs = laid(base, target_modules=["wte"])
    change = theirs.base_model.model.transformer.wte.get_delta_weight("default")
    folder = saved(theirs, tmp_path / "peft")
    same(logits(theirs), with_embeddings(base, embedding + change, embedding))
    same(logits(theirs.merge_and_unload()), with_embeddings(base, embedding + change, embedding + change))
    with pytest.raises(InputError, match=r"transformer.wte is adapted without lm_head, so that .* reads alone"):
        read(folder, base, tmp_path / "run")


def test_lm_head_alone(base, embedding, tmp_path):
    theirs = laid(base, target_modules=["lm_head"])
    change = theirs.base_model.model.lm_head.get_delta_weight("default")
    folder = saved(theirs, tmp_path / "peft")
    assert "base_model.model.lm_head.base_layer.weight" in load_file(folder / FILES[1])
    same(logits(theirs), with_embeddings(base, embedding, embedding + change))
    same(logits(theirs.merge_and_unload()), with_embeddings(base, embedding + change, embedding + change))
    with pytest.raises(InputError, match=r"lm_head is adapted without transformer.wte, so that .* writes alone"):
        read(folder, base, tmp_path / "run")


def test_both_tied(base, embedding, tmp_path):
    theirs = laid(base, target_modules=["wte", "lm_head"], ensure_weight_tying=True)
    change = theirs.base_model.model.transformer.wte.get_delta_weight("default")
    expected = with_embeddings(base, embedding + change, embedding + change)
    same(logits(theirs), expected, logits(hugging_face(base)))
    folder = saved(theirs, tmp_path / "peft")
    again = peft.PeftModel.from_pretrained(hugging_face(base), folder)
    same(logits(again), with_embeddings(base, embedding + change, embedding))  # what it saved, it does not load
    twice = embedding + 2 * change
    same(logits(theirs.merge_and_unload()), with_embeddings(base, twice, twice))

    run = read(folder, base, tmp_path / "run")
    same(logits(adapted(run)), expected)
    same(logits(scratchlm.load(run.path)[0]), expected)
    with pytest.raises(InputError, match=r"changes token_embedding.*twice.*scratchlm merge"):
        export(run, tmp_path / "again")
    assert main(["merge", str(run.path), "--out", str(tmp_path / "merged")]) == 0
    same(logits(hugging_face(RunFolder.open(tmp_path / "merged"))), expected)

    tensors = load_file(folder / FILES[1])
    tensors["base_model.model.lm_head.lora_A.weight"][0, 0] += 1
    save_file(tensors, folder / FILES[1])
    with pytest.raises(InputError, match=r"lm_head.lora_A.weight is not .*wte.lora_embedding_B transposed"):
        read(folder, base, tmp_path / "other")


def test_both_untied(base, embedding, tmp_path):
    theirs = laid(base, target_modules=["wte", "lm_head"])
    changes = [
        module.get_delta_weight("default")
        for module in (theirs.base_model.model.transformer.wte, theirs.base_model.model.lm_head)
    ]
    same(logits(theirs), with_embeddings(base, *(embedding + change for change in changes)))
    with pytest.raises(InputError, match="have a change each"):
        read(saved(theirs, tmp_path / "peft"), base, tmp_path / "run")


def test_a_saved_lm_head(base, embedding, tmp_path):
    theirs = laid(base, target_modules=["c_attn"], modules_to_save=["lm_head"])
    head = theirs.base_model.model.lm_head.modules_to_save["default"].weight.detach()
    assert float((head - embedding).abs().max()) > 0.1
    assert torch.equal(theirs.base_model.model.transformer.wte.weight, embedding)
    folder = saved(theirs, tmp_path / "peft")
    assert torch.equal(load_file(folder / FILES[1])["base_model.model.lm_head.weight"], head)
    with pytest.raises(InputError, match=r"modules_to_save is \['lm_head'\].*one matrix here"):
        read(folder, base, tmp_path / "run")


# --- what is refused -------------------------------------------------------------------------------------------------

A0 = "base_model.model.transformer.h.0.attn.c_attn.lora_A.weight"


@pytest.fixture(scope="module")
def good(base, tmp_path_factory):
    folder = saved(laid(base, r=4, target_modules=["c_attn"]), tmp_path_factory.mktemp("good") / "peft")
    return json.loads((folder / FILES[0]).read_text()), load_file(folder / FILES[1])


def write(folder, config, tensors):
    folder.mkdir()
    (folder / FILES[0]).write_text(config if isinstance(config, str) else json.dumps(config))
    save_file(tensors, folder / FILES[1])
    return folder


TENSORS = {
    "missing": (lambda t: t.pop(A0), rf"missing: {A0}$"),
    "unknown": (lambda t: t.update({f"{A0}.more": t[A0].clone()}), rf"unknown: {A0}.more$"),
    "adapter's name": (lambda t: t.update({A0.replace("A.", "A.default."): t.pop(A0)}), "missing: .*; unknown: "),
    "shape": (lambda t: t.update({A0: torch.zeros(4, 31)}), rf"{A0} has the shape \(4, 31\).* \(4, 32\)"),
    "rank": (lambda t: t.update({A0: torch.zeros(5, 32)}), rf"{A0} has the shape \(5, 32\).* \(4, 32\)"),
    "dtype": (lambda t: t.update({A0: torch.zeros(4, 32, dtype=torch.int32)}), "int32; float32, float16"),
    "no numbers": (lambda t: t[A0].fill_(math.nan), "no numbers"),
}


@pytest.mark.parametrize(("change", "message"), TENSORS.values(), ids=TENSORS.keys())
def test_tensors_that_do_not_fit_are_named(change, message, good, base, tmp_path):
    config, tensors = copy.deepcopy(good)
    change(tensors)
    with pytest.raises(InputError, match=message):
        read(write(tmp_path / "peft", config, tensors), base, tmp_path / "run")
    assert not (tmp_path / "run").exists()


CONFIGS = [
    ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
    ({"peft_type": None}, "peft_type is None"),
    ({"task_type": "SEQ_CLS"}, "task_type is 'SEQ_CLS'"),
    ({"bias": "some"}, "bias is 'some'"),
    ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'.*path_initial_model"),
    ({"init_lora_weights": "pissa_niter_16"}, "init_lora_weights is 'pissa_niter_16'"),
    ({"init_lora_weights": "olora"}, "init_lora_weights is 'olora'"),
    ({"init_lora_weights": "corda"}, "init_lora_weights is 'corda'.*changed the base's weights"),
    ({"init_lora_weights": "lora_ga"}, "init_lora_weights is 'lora_ga'.*changed the base's weights"),
    ({"init_lora_weights": "loftq"}, "init_lora_weights is 'loftq'.*changed the base's weights"),
    ({"modules_to_save": ["ln_f"]}, r"modules_to_save is \['ln_f'\].*leaves its base"),
    ({"use_qalora": True}, "use_qalora is True, which is not known"),
    ({"lora_bias": True}, "lora_bias is True"),
    ({"trainable_token_indices": [1]}, "trainable_token_indices is"),
    ({"exclude_modules": ["h.0.attn.c_attn"]}, "exclude_modules is"),
    ({"target_parameters": ["x"]}, "target_parameters is"),
    ({"made_up": {"some": "thing"}}, "made_up is"),
    ({"r": 0}, "rank is 0"),
    ({"r": 33}, "rank 33 is larger than the matrix"),
    ({"r": "4"}, "r is '4', and no int"),
    ({"r": True}, "r is True, and no int"),
    ({"lora_alpha": -1}, "alpha is -1"),
    ({"lora_alpha": 10**400}, "int too large"),
    ({"lora_dropout": 1}, "dropout is 1"),
    ({"rank_pattern": {"c_attn": "x"}}, "c_attn is 'x', and no int"),
    ({"rank_pattern": [8]}, "rank_pattern is"),
    ({"alpha_pattern": {"(": 8}}, "unterminated|missing"),
    ({"use_dora": 1}, "use_dora is 1, and no bool"),
    ({"target_modules": None}, "target_modules is None"),
    ({"target_modules": ["q_proj"]}, "names no matrix of a GPT-2"),
    ({"target_modules": []}, "names no matrix of a GPT-2"),
    ({"target_modules": "("}, "unterminated|missing"),
    ({"layers_to_transform": [0], "layers_pattern": "layers"}, "layers_pattern is 'layers'"),
    ({"use_dora": True}, "missing: .*lora_magnitude_vector"),
    ({"bias": "all"}, "missing: .*base_layer.bias"),
    ({"target_modules": ["c_attn", "c_fc"]}, "missing: .*c_fc.lora_A"),
    ({"use_dora": True, "target_modules": ["wpe"]}, "for each column of an embedding"),
]


@pytest.mark.parametrize(("change", "message"), CONFIGS, ids=[str(change)[:40] for change, _ in CONFIGS])
def test_settings_that_mean_something_else_are_named(change, message, good, base, tmp_path):
    config, tensors = copy.deepcopy(good)
    with pytest.raises(InputError, match=message):
        read(write(tmp_path / "peft", {**config, **change}, tensors), base, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_folders_that_are_no_adapter_are_refused(good, base, tmp_path):
    config, tensors = good
    with pytest.raises(InputError, match=r"cannot read .*adapter_config.json.*save_pretrained"):
        read(tmp_path / "none", base, tmp_path / "run")
    for number, damaged in enumerate(["{", "[]", "9" * 5000]):
        with pytest.raises(InputError, match=r"adapter_config.json is (damaged|no adapter's)"):
            read(write(tmp_path / f"config{number}", damaged, tensors), base, tmp_path / "run")
    folder = write(tmp_path / "peft", config, tensors)
    (folder / FILES[1]).write_bytes(b"nonsense")
    with pytest.raises(InputError, match="is damaged"):
        read(folder, base, tmp_path / "run")
    (folder / FILES[1]).unlink()
    with pytest.raises(InputError, match="has no tensors"):
        read(folder, base, tmp_path / "run")
    torch.save(tensors, folder / "adapter_model.bin")
    with pytest.raises(InputError, match="a pickle, which is not read"):
        read(folder, base, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_base_that_the_adapter_is_not_for(good, base, tmp_path):
    folder = write(tmp_path / "peft", *good)
    lstm = make_base(tmp_path / "lstm", "lstm", {"vocab_size": 257, "dim": 8})
    with pytest.raises(InputError, match=r"lstm is a run of lstm; .* plain run of a gpt"):
        read(folder, lstm, tmp_path / "run")
    with pytest.raises(InputError, match="is an adapter itself"):
        read(folder, make_adapter(base, tmp_path / "adapter"), tmp_path / "run")
    wider = make_base(tmp_path / "wider", shape={**SHAPE, "dim": 64})
    with pytest.raises(InputError, match=r"has the shape \(4, 32\); for this base it is \(4, 64\)"):
        read(folder, wider, tmp_path / "run")
    deeper = make_base(tmp_path / "deeper", shape={**SHAPE, "depth": 3})
    with pytest.raises(InputError, match=r"missing: .*h\.2\.attn"):
        read(folder, deeper, tmp_path / "run")


def test_runs_that_cannot_be_exported_are_refused(base, tmp_path, capsys):
    def refused(run, message):
        assert main(["export", str(run.path), "--to", "peft", "--out", str(tmp_path / "out")]) == 2
        assert re.search(message, capsys.readouterr().err)
        assert not (tmp_path / "out").exists()

    refused(base, "has no adapter, which is what --to peft writes; --to hf")
    lstm = make_base(tmp_path / "lstm", "lstm", {"vocab_size": 257, "dim": 8})
    refused(make_adapter(lstm, tmp_path / "lstm-lora"), r"adapter of a lstm.*scratchlm merge")
    tied = make_adapter(base, tmp_path / "tied", targets=("token_embedding",))
    refused(tied, r"changes token_embedding.*twice.*scratchlm merge .*tied, then --to hf")
    dora = make_adapter(base, tmp_path / "dora", targets=("position_embedding",), dora=True)
    refused(dora, r"DoRA of an embedding.*each column.*scratchlm merge")
    weights = base.checkpoint().weights()
    weights["blocks.0.attention.query_key_value.weight"][40] = 0  # a key's, which the adapter leaves alone
    pruned = RunFolder.create(tmp_path / "pruned", base.config(), base.tokenizer(), weights, {})
    refused(make_adapter(pruned, tmp_path / "zeros", targets=("query",), dora=True), "has a row of zeros")


def test_the_command_writes_the_folder(base, tmp_path, capsys):
    run = make_adapter(base, tmp_path / "run")
    assert main(["export", str(run.path), "--to", "peft"]) == 0
    assert "adapter_config.json, adapter_model.safetensors" in capsys.readouterr().out
    theirs = peft.PeftModel.from_pretrained(hugging_face(base), tmp_path / "run-peft")
    same(logits(theirs), logits(adapted(run)))
    assert main(["export", str(run.path), "--to", "peft"]) == 2
    assert "is there already" in capsys.readouterr().err


def test_a_model_without_biases(tmp_path):
    """Its base has zeros there on the hub, which the adapter says nothing of."""
    plain = make_base(tmp_path / "plain", shape={**SHAPE, "bias": False})
    run = make_adapter(plain, tmp_path / "run", bias="all")
    assert json.loads((export(run, tmp_path / "peft") / FILES[0]).read_text())["bias"] == "none"
    same(logits(adapted(read(tmp_path / "peft", plain, tmp_path / "back"))), logits(adapted(run)))
