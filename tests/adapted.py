"""The checks that every architecture must pass with an adapter beside it, in float64.

Each takes a function that makes a fresh model without one, and raises AssertionError where the adapter lies.
"""

import copy
import math
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint

from contract import in_chunks, tokens_for, whole
from scratchlm import lora
from scratchlm.config import LoRAConfig
from scratchlm.models import MODELS
from scratchlm.models.cnn import CNNConfig

EVERYTHING = LoRAConfig(rank=2, targets=("*",), bias="all")
DIRECTIONS = replace(EVERYTHING, dora=True)
WAYS = (LoRAConfig(rank=2, rslora=True, alpha=3.0), DIRECTIONS)


def shapes():
    """The registered architectures, and the blocks that the CNN has besides."""
    found = {name: (MODELS[name], MODELS[name].Config.tiny()) for name in MODELS}
    for block, hidden_dim in (("gcnn", 6), ("tcn", 10), ("wavenet", 7)):
        found[f"cnn-{block}"] = (MODELS["cnn"], replace(CNNConfig.tiny(), block=block, hidden_dim=hidden_dim))
    return found


def maker(model, config):
    """A function that makes the same model each time, no parameter of which is 0 or 1 throughout."""

    def make():
        torch.manual_seed(0)
        made = model(config).double().eval()
        return shaken(made)

    return make


def shaken(model, by=0.1):
    """The model, what is trained of it moved at random."""
    generator = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += by * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return model


def adapted(make, config):
    """A model with an adapter that changes something."""
    model = make()
    lora.adapt(model, config)
    return shaken(model)


def logits(model):
    """Of a fixed batch; without gradients, since torch takes another kernel where a tensor wants one."""
    with torch.no_grad():
        return model.readout(whole(model, tokens_for(model)))


def loss(model):
    tokens = tokens_for(model)
    return F.cross_entropy(model.readout(whole(model, tokens)[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(model, before):
    """Bit for bit, the sign of zero too, and under the same names."""
    after = model.state_dict()
    assert after.keys() == before.keys()
    for name, tensor in before.items():
        assert after[name].dtype == tensor.dtype
        assert torch.equal(after[name].reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8)), name


def classes(model):
    """By name and bases, since each module with a parametrization of its own has a class of its own."""
    return [(type(module).__name__, type(module).__bases__) for module in model.modules()]


def changed_tensors(model, config, base, tensors):
    """What the papers make of the base's matrices and biases, from the adapter's tensors by their names.

    DoRA's norm is a constant (Liu et al. 2024, section 4.3).
    """
    found = {}
    for name, module in base.named_modules():
        prefix = f"{name}.lora."
        for part in dict.fromkeys(key.removeprefix(prefix).split(".")[0] for key in tensors if key.startswith(prefix)):
            if part == "bias":
                found[f"{name}.bias"] = module.bias.detach() + tensors[f"{prefix}bias.shift"]
                continue
            a, b, magnitude = (tensors.get(f"{prefix}{part}.{key}") for key in ("A", "B", "magnitude"))
            weight = found.get(f"{name}.weight", module.weight.detach())
            matrix, rows = weight.flatten(1), slice(None)
            if part != "whole":
                [parts] = [parts for end, parts in model.fused.items() if f".{name}".endswith(f".{end}")]
                each, at = len(matrix) // len(parts), parts.index(part)
                rows = slice(at * each, at * each + each)
            scale = config.alpha / (math.sqrt(len(a)) if config.rslora else len(a))
            own = matrix[rows] + scale * torch.einsum("or,ri->oi", b, a)
            if magnitude is not None:
                own = magnitude[:, None] * own / torch.linalg.vector_norm(own.detach(), dim=1, keepdim=True)
            matrix = matrix.clone()
            matrix[rows] = own
            found[f"{name}.weight"] = matrix.view_as(weight)
    return found


def with_tensors(base, tensors):
    """The base, some of its parameters replaced."""
    for name, tensor in tensors.items():
        place, _, last = name.rpartition(".")
        module = base.get_submodule(place)
        with torch.no_grad():
            if parametrize.is_parametrized(module, last):  # by the model itself
                setattr(module, last, tensor)
            else:
                getattr(module, last).copy_(tensor)
    return base


def parts_of(model):
    """Targets that name each fused matrix by its parts but the first, which stays as it is."""
    return [matrix.name for matrix in lora.matrices(model) if matrix.part != "whole" and matrix.rows.start]


def fresh(make):
    """An adapter that has learned nothing changes no bit."""
    for config in WAYS:
        model = make().requires_grad_(False)
        before = logits(model)
        lora.adapt(model, config)
        assert torch.equal(logits(model), before)
        lora.merge(model)
        close(logits(model), before)  # a matrix that the model itself makes of others is split into them anew


def first_steps(make):
    """At step 0 B moves and A does not, from step 1 on both do; the base has no gradients and never moves."""
    model = make()
    before = state(model)
    chosen = lora.adapt(model, replace(EVERYTHING, bias="none"))
    names = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert len(names) == 2 * len(chosen)
    optimizer = torch.optim.SGD(names.values(), 0.1)
    for step in range(2):
        loss(model).backward()
        for name, parameter in model.named_parameters():
            assert (parameter.grad is not None) == (name in names), name
        for name, parameter in names.items():
            assert bool(parameter.grad.any()) == (name.endswith("B") or step > 0), (step, name)
        optimizer.step()
        optimizer.zero_grad()
    lora.remove(model)
    same(model, before)


def written_out(make):
    """It computes W_0 + s B A, or DoRA's rows of length m, wherever it reads a matrix, and b + shift; all parts too."""
    parts = parts_of(make())
    for config in (*WAYS, EVERYTHING, *([LoRAConfig(rank=3, targets=tuple(parts), dora=True)] if parts else [])):
        model = adapted(make, config)
        expected = with_tensors(make(), changed_tensors(model, config, make(), model.state_dict()))
        close(logits(model), logits(expected))


def gradients(make):
    """Gradients are those of the matrices written out, DoRA's norm a constant."""
    base = make()
    if any(parametrize.is_parametrized(module) for module in base.modules()):
        return  # `functional_call` cannot replace what a parametrization gives
    for config in (EVERYTHING, DIRECTIONS):
        model = adapted(make, config)
        loss(model).backward()
        leaves = {
            name: parameter.detach().clone().requires_grad_()
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
        }

        class Loss(nn.Module):
            def __init__(self, base):
                super().__init__()
                self.base = base

            def forward(self):
                return loss(self.base)

        tensors = changed_tensors(model, config, base, leaves)
        torch.func.functional_call(Loss(base), {f"base.{name}": tensor for name, tensor in tensors.items()}).backward()
        for name, leaf in leaves.items():
            torch.testing.assert_close(model.get_parameter(name).grad, leaf.grad, rtol=1e-9, atol=1e-11)


def alone(make):
    """Each matrix, or part of one, adapted by itself changes the model, in one chunk and in several, and merged alike.

    So it fails where a model reads a linear module's matrix as a tensor and does not say so, be it with a memory alone.
    """
    base = logits(make())
    for matrix in lora.matrices(make()):
        model = adapted(make, LoRAConfig(rank=2, targets=(matrix.name,)))
        before = logits(model)
        assert not torch.allclose(before, base), f"{matrix.name} is adapted, and nothing changes"
        with torch.no_grad():
            close(model.readout(in_chunks(model, tokens_for(model), [5], None)[0]), before)
        lora.merge(model)
        close(logits(model), before)


def merged(make):
    """Merged, nothing is computed beside the matrices and the logits are the same; unmerged they are so to the bit."""
    for config in WAYS:
        model = adapted(make, config)
        before, whole_state = logits(model), state(model)
        lora.merge(model)
        close(logits(model), before)
        for _, adaptation in lora.adaptations(model).values():
            for parameter in adaptation.parameters():
                parameter.data.zero_()  # nothing of it is read
        close(logits(model), before)
        own = {name: tensor for name, tensor in whole_state.items() if ".lora." in f".{name}"}
        with pytest.raises(ValueError, match="unmerge it first"):  # it would be lost
            model.load_state_dict(own, strict=False)
        lora.unmerge(model)
        model.load_state_dict(own, strict=False)
        same(model, whole_state)
        assert torch.equal(logits(model), before)


def cycles(make):
    """Merged and unmerged again and again in a narrow dtype, where a subtraction would drift: no bit has moved."""
    for config in (EVERYTHING, DIRECTIONS):
        model = adapted(lambda: make().bfloat16(), config)
        before = state(model)
        for _ in range(3):
            lora.merge(model)
            lora.unmerge(model)
        same(model, before)


def modes(make):
    """Neither train() nor eval() merges, and a second merge is refused and changes nothing."""
    model = adapted(make, EVERYTHING)
    before = state(model)
    assert model.train().eval() is model
    same(model.train(), before)
    same(model.eval(), before)
    lora.merge(model)
    same(model.train().eval(), state(model))
    once = logits(model)
    try:
        lora.merge(model)
    except ValueError as error:
        refusal = str(error)
        assert "merged already" in refusal
    else:
        raise AssertionError("it was merged twice")
    assert torch.equal(logits(model), once)
    lora.unmerge(model)
    lora.unmerge(model)  # nothing to undo
    same(model, before)


def removed(make):
    """Removed, merged or not, the base is there bit by bit, biases and classes too, and can be adapted again."""
    for config in WAYS:
        for merge_first in (False, True):
            model = make()
            before, first, kinds = state(model), logits(model), classes(model)
            lora.adapt(model, config)
            shaken(model)
            if merge_first:
                lora.merge(model)
            lora.remove(model)
            same(model, before)
            assert classes(model) == kinds
            assert all(parameter.requires_grad for parameter in model.parameters())
            assert not lora.adaptations(model)
            assert torch.equal(logits(model), first)
        assert lora.adapt(model, config)


def folded(make):
    """Folded, it is a plain model with the base's names and the adapted logits; a copy's folding leaves the original.

    The plain model learns as any other.
    """
    for config in WAYS:
        names, kinds = make().state_dict().keys(), classes(make())
        model = adapted(make, config)
        before, whole_state = logits(model), state(model)
        twin = copy.deepcopy(model)
        same(twin, whole_state)
        assert torch.equal(logits(twin), before)
        lora.fold(twin)
        assert twin.state_dict().keys() == names
        assert classes(twin) == kinds
        close(logits(twin), before)
        same(model, whole_state)
        assert torch.equal(logits(model), before)
        loss(twin).backward()
        assert all(parameter.grad is not None for parameter in twin.parameters())
        assert all(parameter.grad is None for parameter in model.parameters())
        lora.merge(model)
        lora.fold(model)  # merged before: not added again
        close(logits(model), before)


def lengths(make):
    """DoRA: each row of what it computes with is as long as its magnitude, whatever B A has become."""
    model = make()
    lora.adapt(model, DIRECTIONS)
    for by in (0.0, 0.05, 0.5):
        shaken(model, by)
        lora.merge(model)
        for name, (module, adaptation) in lora.adaptations(model).items():
            for pair in adaptation.pairs:
                rows = module.weight.detach().flatten(1)[pair.rows]
                close(torch.linalg.vector_norm(rows, dim=1), pair.magnitude.detach().abs())
                assert pair.magnitude.requires_grad, name
        lora.unmerge(model)


def dropout(make):
    """Zeros are drawn once, for what the change reads: not for W_0 x, nor between A and B, nor in use or a merge."""
    for dora in (False, True):
        config = LoRAConfig(rank=2, dropout=0.5, dora=dora)
        model = adapted(make, config)
        before = logits(model)
        for name, (module, adaptation) in lora.adaptations(model).items():
            if adaptation.handle is None:
                continue
            [pair] = adaptation.pairs
            assert torch.equal(module(torch.eye(pair.A.shape[1]).double()), module(torch.eye(pair.A.shape[1]).double()))
            x = torch.randn(5, 3, pair.A.shape[1], dtype=torch.float64)
            plain = F.linear(x, module.weight, module.bias)
            model.train()
            torch.manual_seed(1)
            y = module(x)
            torch.manual_seed(1)
            x = F.dropout(x, 0.5)
            change = config.alpha / 2 * x @ pair.A.t() @ pair.B.t()
            if dora:
                base = F.linear(x, module.weight)
                factors = pair.magnitude / (module.weight + config.alpha / 2 * pair.B @ pair.A).norm(dim=1)
                change = (factors - 1) * base + factors * change
            torch.testing.assert_close(y, plain + change, rtol=1e-12, atol=1e-12, msg=name)
            model.eval()
        assert torch.equal(logits(model), before)
        model.train()
        lora.merge(model)
        model.eval()
        close(logits(model), before)


def recomputed(make):
    """With each block's activations computed anew in the backward pass, gradients are the same."""
    for reentrant in (False, True):
        model = adapted(make, EVERYTHING)
        if reentrant and (model.takes_source or isinstance(model.blocks[0], nn.Embedding)):
            return  # torch's older kind needs blocks whose inputs are tensors that want gradients
        loss(model).backward()
        expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
        model.zero_grad()
        for block in model.blocks:
            block.forward = partial(checkpoint, block.forward, use_reentrant=reentrant)
        loss(model).backward()
        for name, grad in expected.items():
            close(model.get_parameter(name).grad, grad)


def adapter_alone(make):
    """What a checkpoint holds is the adapter, merged or not, and with the base it is the whole model."""
    for config in WAYS:
        model = adapted(make, config)
        kept = {name: tensor.clone() for name, tensor in lora.trained_tensors(model).items()}
        assert kept.keys() == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        size = lora.size(model)
        assert size.trained * 8 == size.saved_bytes == sum(tensor.nbytes for tensor in kept.values())
        lora.merge(model)
        assert lora.trained_tensors(model).keys() == kept.keys()
        assert all(torch.equal(tensor, kept[name]) for name, tensor in lora.trained_tensors(model).items())
        lora.unmerge(model)
        other = make()
        lora.adapt(other, config)
        result = other.load_state_dict(kept, strict=False)
        assert not result.unexpected_keys
        assert torch.equal(logits(other), logits(model))


CHECKS = {
    check.__name__: check
    for check in (
        fresh, first_steps, written_out, gradients, alone, merged, cycles, modes, removed, folded, lengths, dropout,
        recomputed, adapter_alone,
    )
}  # fmt: skip
