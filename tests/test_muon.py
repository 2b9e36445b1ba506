"""Muon: its equations, the parameters that it takes, and runs with it that are resumed."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from runs import die_once, same_end
from scratchlm import lora
from scratchlm.checkpoint import build_model
from scratchlm.config import LoRAConfig, OptimConfig
from scratchlm.models import MODELS
from scratchlm.models.llama import Llama, LlamaConfig
from scratchlm.training import loop, muon, optim
from scratchlm.training.muon import Muon, orthogonalised

CONFIG = OptimConfig(name="muon", lr=0.01, weight_decay=0.3, momentum=0.9, muon_ratio=2.0)


def tiny(name):
    torch.manual_seed(0)
    return MODELS[name](MODELS[name].Config.tiny())


@pytest.mark.parametrize("shape", [(16, 16), (16, 48), (48, 16), (1, 5), (3, 1)])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_singular_values_become_about_one_and_singular_vectors_stay(shape, scale):
    matrices = scale * torch.randn(4, *shape, dtype=torch.float64)
    result = orthogonalised(matrices)
    assert result.shape == matrices.shape
    u, values, vh = torch.linalg.svd(matrices, full_matrices=False)
    turned = u.mT @ result @ vh.mT  # diagonal, where the singular vectors are the same
    large = values / values.norm(dim=-1, keepdim=True) > 0.01  # five iterations lift by 3.4445^5 at most
    assert large.any()
    band = turned.diagonal(dim1=-2, dim2=-1)[large]
    assert 0.6 < band.min() <= band.max() < 1.3
    torch.testing.assert_close(turned, torch.diag_embed(turned.diagonal(dim1=-2, dim2=-1)), rtol=0, atol=1e-9)


def test_nothing_and_not_a_number_stay_what_they_are():
    assert (orthogonalised(torch.zeros(1, 4, 6)) == 0).all()
    assert orthogonalised(torch.full((1, 4, 6), float("nan"))).isnan().all()


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has it since 2.9")
def test_fifty_steps_equal_torch(monkeypatch):
    """Theirs narrows to bfloat16 in any case, so for once it is told not to."""
    monkeypatch.setattr(torch.Tensor, "bfloat16", lambda self: self.clone())
    shapes = [(8, 8), (8, 8), (24, 8), (8, 24), (5, 7)]
    start = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
    ours, theirs = ([nn.Parameter(tensor.clone()) for tensor in start] for _ in range(2))
    own = Muon([{"params": ours, "parts": [1] * 5, "weight_decay": 0.3}], 0.9, lr=0.02)
    reference = torch.optim.Muon(theirs, lr=0.02, weight_decay=0.3, momentum=0.9, adjust_lr_fn="match_rms_adamw")
    inputs = {size: torch.randn(6, size, dtype=torch.float64) for size in (5, 7, 8, 24)}
    monkeypatch.setattr(muon, "AT_ONCE", 128)  # two of the matrices of 8 x 8, and one of others
    for _ in range(50):
        for parameters, optimizer in ((ours, own), (theirs, reference)):
            optimizer.zero_grad()
            for matrix in parameters:
                (inputs[matrix.shape[1]] @ matrix.T - inputs[matrix.shape[0]]).square().mean().backward()
            optimizer.step()
    for one, other, first in zip(ours, theirs, start, strict=True):
        assert (one - first).abs().max() > 0.1
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", list(MODELS))
def test_each_parameter_is_in_one_group_and_hidden_matrices_are_muons(name):
    model = tiny(name)
    groups = optim.parameter_groups(model, CONFIG)
    listed = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(listed) == sorted(id(parameter) for parameter in model.parameters())
    assert all(group["params"] for group in groups)
    taken = {id(parameter) for group in groups if "parts" in group for parameter in group["params"]}
    linear = {
        id(module.weight)
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear) and path != "head"  # the readouts of ours are tied, or called so
    }
    assert taken == linear
    assert name == "bigram" or taken
    for group in groups:
        assert group["ratio"] == (2.0 if "parts" in group else 1.0)
        assert group["weight_decay"] in (0.0, 0.3)


def test_a_fused_matrix_is_as_many_as_it_has_parts():
    """And each moves as if it were a parameter of its own."""
    model = tiny("gpt").double()
    parts = optim.hidden_matrices(model)
    assert [parts[block.attention.query_key_value.weight] for block in model.blocks] == [3, 3]
    assert [parts[block.attention.output.weight] for block in model.blocks] == [1, 1]
    fused = nn.Parameter(torch.randn(12, 5, dtype=torch.float64))
    alone = [nn.Parameter(third.clone()) for third in fused.detach().chunk(3)]
    gradient = torch.randn_like(fused)
    fused.grad = gradient
    for parameter, third in zip(alone, gradient.chunk(3), strict=True):
        parameter.grad = third.clone()
    Muon([{"params": [fused], "parts": [3]}], 0.9, lr=0.02).step()
    Muon([{"params": alone, "parts": [1, 1, 1]}], 0.9, lr=0.02).step()
    torch.testing.assert_close(fused, torch.cat(list(alone)), rtol=1e-12, atol=1e-12)


def test_a_step_is_as_long_as_one_of_adamw():
    """Its root mean square is 0.2 of the rate, whatever the shape; and decay is decoupled."""
    for shape in ((64, 64), (16, 128), (128, 16)):
        parameter = nn.Parameter(torch.ones(shape, dtype=torch.float64))
        parameter.grad = torch.randn(shape, dtype=torch.float64)
        Muon([{"params": [parameter], "parts": [1], "weight_decay": 0.5}], 0.95, lr=0.1).step()
        moved = parameter - (1 - 0.1 * 0.5)
        assert moved.square().mean().sqrt().item() == pytest.approx(0.1 * 0.2, rel=0.15)


def test_what_is_not_muons_moves_as_with_adamw():
    model, other = tiny("llama"), tiny("llama")
    both = optim.make_optimizer(model, CONFIG), optim.make_optimizer(other, OptimConfig(lr=0.01, weight_decay=0.3))
    tokens = torch.randint(0, 23, (3, 12))
    hidden = optim.hidden_matrices(model)
    for one, optimizer in zip((model, other), both, strict=True):
        F.cross_entropy(one.readout(one(tokens[:, :-1])[0]).flatten(0, 1), tokens[:, 1:].flatten()).backward()
        optimizer.step()
    for (name, parameter), twin in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(parameter, twin) == (parameter not in hidden), name


def test_a_readout_of_its_own_is_adamws_though_it_is_as_wide_as_the_vocabulary():
    shape = {"dim": 16, "depth": 1, "heads": 2, "kv_heads": 2, "hidden_dim": 16}
    model = Llama(LlamaConfig(vocab_size=16, context=8, **shape))  # as many tokens as hidden units
    hidden = optim.hidden_matrices(model)
    block = model.blocks[0]
    linear = (*block.attention.children(), *block.mlp.children())
    assert set(hidden) == {module.weight for module in linear if isinstance(module, nn.Linear)}


def test_an_adapter_is_trained_by_it():
    model = tiny("llama").requires_grad_(False)
    lora.adapt(model, LoRAConfig(rank=2))
    optimizer = optim.make_optimizer(model, CONFIG)
    before = {name: tensor.clone() for name, tensor in lora.trained_tensors(model).items()}
    tokens = torch.randint(0, 23, (3, 12))
    for _ in range(2):
        F.cross_entropy(model.readout(model(tokens[:, :-1])[0]).flatten(0, 1), tokens[:, 1:].flatten()).backward()
        optimizer.step()
    assert all(not torch.equal(tensor, before[name]) for name, tensor in lora.trained_tensors(model).items())


def test_a_parameter_without_a_gradient_stays():
    one, other = nn.Parameter(torch.ones(3, 3)), nn.Parameter(torch.ones(3, 3))
    one.grad = torch.randn(3, 3)
    optimizer = Muon([{"params": [one, other], "parts": [1, 1], "weight_decay": 0.5}], 0.95, lr=0.1)
    optimizer.step()
    assert torch.equal(other, torch.ones(3, 3))
    assert not torch.equal(one, torch.ones(3, 3))
    assert optimizer.step(lambda: 1.5) == 1.5


@pytest.mark.parametrize("arch", ["gpt", "llama"])
def test_twenty_steps_are_ten_and_ten_more_to_the_bit(new_run, arch):
    shape = {"context": 16, "dim": 16, "depth": 2, "heads": 2, "dropout": 0.2}
    if arch == "llama":
        shape |= {"kv_heads": 1, "hidden_dim": 24}
    settings = {"arch": arch, "steps": 20, "eval_every": 10, "model": shape, "optim": {**vars(CONFIG), "warmup": 2}}
    whole, killed = new_run(**settings), new_run(**settings)
    list(loop.train(whole))
    die_once(killed, "update", 13)  # it goes on from the checkpoint of step 10
    list(loop.train(killed))
    same_end(killed, whole)
    kept = whole.checkpoint("last").optimizer()
    assert sum(name.endswith("|momentum") for name in kept) == len(optim.hidden_matrices(build_model(whole.config())))
    assert whole.metrics()[-1]["val_loss"] < 0.85 * whole.metrics()[0]["loss"]


def test_each_group_has_its_own_rate(new_run, monkeypatch):
    run, rates = new_run(optim={**vars(CONFIG), "lr": 0.01, "warmup": 0}, steps=1), []
    monkeypatch.setattr(Muon, "step", lambda self: rates.extend(group["lr"] for group in self.param_groups))
    list(loop.train(run))
    assert rates == [0.01, 0.01, 0.02]
