"""GPT is GPT-2: the same numbers as transformers' GPT2LMHeadModel, and its own two attention paths agree."""

import math

import pytest
import torch
import torch.nn.functional as F
from transformers import GPT2Config, GPT2LMHeadModel

from scratchlm import layers
from scratchlm.data.batches import Batch
from scratchlm.evaluation import loss_sum
from scratchlm.model import record
from scratchlm.models.gpt import GPT, GPTConfig

CONFIG = GPTConfig(vocab_size=61, context=32, dim=24, depth=3, heads=4, dropout=0.0)
NAMES = {  # ours: theirs; the star says that theirs is stored transposed
    "token_embedding.weight": "wte.weight",
    "position_embedding.weight": "wpe.weight",
    "attention_norm": "ln_1",
    "attention.query_key_value": "*attn.c_attn",
    "attention.output": "*attn.c_proj",
    "mlp_norm": "ln_2",
    "mlp.hidden": "*mlp.c_fc",
    "mlp.output": "*mlp.c_proj",
    "final_norm": "ln_f",
}


def theirs_of(name: str) -> tuple[str, bool]:
    """transformers' name of one of our parameters, and whether its weight is transposed."""
    prefix, rest = "transformer.", name
    if name.startswith("blocks."):
        _, index, rest = name.split(".", 2)
        prefix += f"h.{index}."
    for ours, theirs in NAMES.items():
        if rest.startswith(ours):
            transposed = theirs.startswith("*") and rest.endswith("weight")
            return prefix + theirs.lstrip("*") + rest.removeprefix(ours), transposed
    raise AssertionError(name)


@pytest.fixture(params=[torch.float32, torch.float64], ids=str)
def pair(request):
    """Our model and theirs with the same weights, biases and norms perturbed."""
    theirs = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=CONFIG.vocab_size, n_positions=CONFIG.context, n_embd=CONFIG.dim, n_layer=CONFIG.depth,
            n_head=CONFIG.heads, attn_implementation="eager", attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0,
        )
    ).to(request.param)  # fmt: skip
    ours = GPT(CONFIG).to(request.param)
    parameters = dict(theirs.named_parameters())
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            their_name, transposed = theirs_of(name)
            their = parameters.pop(their_name)
            their += 0.3 * torch.randn_like(their)
            parameter.copy_(their.T if transposed else their)
    assert not parameters, "every one of their parameters has its place in ours"
    return ours, theirs


def tolerance(model):
    error = 1e-5 if next(model.parameters()).dtype == torch.float32 else 1e-10
    return {"rtol": error, "atol": error}


def test_logits_loss_and_every_gradient_equal_transformers(pair):
    ours, theirs = pair
    tokens = torch.randint(0, CONFIG.vocab_size, (3, CONFIG.context))
    logits = theirs(tokens).logits
    features, _ = ours(tokens)
    torch.testing.assert_close(ours.readout(features), logits, **tolerance(ours))
    total, count = loss_sum(ours, Batch(tokens[:, :-1], tokens[:, 1:]))
    expected = F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    torch.testing.assert_close(total / count, expected, **tolerance(ours))
    own_loss = theirs(tokens, labels=tokens).loss  # always in float32
    torch.testing.assert_close(own_loss, expected.float(), rtol=1e-5, atol=1e-5)
    expected.backward()
    (total / count).backward()
    gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        their_name, transposed = theirs_of(name)
        expected_gradient = gradients[their_name].T if transposed else gradients[their_name]
        torch.testing.assert_close(
            parameter.grad, expected_gradient, **tolerance(ours), msg=lambda m, n=name: f"{n}: {m}"
        )


def test_cached_decoding_equals_transformers_greedy(pair):
    ours, theirs = pair
    prompt = torch.randint(0, CONFIG.vocab_size, (1, 5))
    state = ours.initial_state(1, capacity=CONFIG.context)
    chunk, written = prompt, prompt[0].tolist()
    for _ in range(20):
        features, state = ours(chunk, state)
        chunk = ours.readout(features[:, -1]).argmax(-1, keepdim=True)
        written.append(chunk.item())
    expected = theirs.generate(prompt, max_new_tokens=20, do_sample=False, pad_token_id=0, eos_token_id=None)
    assert written == expected[0].tolist()


@pytest.mark.parametrize(("new", "visible"), [(7, 7), (1, 7), (3, 7), (1, 1), (0, 4)])
def test_fused_attention_equals_the_written_out_equation(new, visible):
    query = torch.randn(2, 3, new, 8, dtype=torch.float64, requires_grad=True)
    keys, values = (torch.randn(2, 3, visible, 8, dtype=torch.float64, requires_grad=True) for _ in range(2))
    fused = layers.fused_attention(query, keys, values)
    weights = layers.attention_weights(query, keys)
    written = weights @ values
    torch.testing.assert_close(fused, written, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3, new, dtype=torch.float64))
    for position in range(new):
        assert (weights[..., position, visible - new + position + 1 :] == 0).all()
    leaves = (query, keys, values)
    probe = torch.randn_like(fused)
    for one, other in zip(
        torch.autograd.grad(fused, leaves, probe), torch.autograd.grad(written, leaves, probe), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_record_shows_each_head_and_changes_nothing():
    model = GPT(CONFIG).double().eval()
    tokens = torch.randint(0, CONFIG.vocab_size, (2, 9))
    plain, _ = model(tokens)
    with record(model) as shown:
        features, _ = model(tokens)
    torch.testing.assert_close(features, plain, rtol=1e-12, atol=1e-12)
    assert list(shown) == [f"blocks.{index}.attention.weights" for index in range(CONFIG.depth)]
    assert all(tensors[0].shape == (2, CONFIG.heads, 9, 9) for tensors in shown.values())
    model(tokens)
    assert all(len(tensors) == 1 for tensors in shown.values()), "nothing is shown once the block has ended"


def test_layer_norm_equals_torch():
    x = torch.randn(4, 7, 24, dtype=torch.float64) * 3 + 1
    for bias in (True, False):
        ours, theirs = layers.LayerNorm(24, bias).double(), torch.nn.LayerNorm(24, bias=bias).double()
        with torch.no_grad():
            for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
                one.copy_(torch.randn_like(one))
                other.copy_(one)
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-12, atol=1e-12)


def test_initialisation_is_gpt2s():
    config = GPTConfig(vocab_size=500, context=256, dim=256, depth=8, heads=4)
    model = GPT(config)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert (parameter == 0).all(), name
        elif "norm" in name:
            assert (parameter == 1).all(), name
        else:
            expected = 0.02 / math.sqrt(2 * 8) if name.endswith("output.weight") else 0.02
            assert parameter.std().item() == pytest.approx(expected, rel=0.02), name
            assert parameter.mean().item() == pytest.approx(0, abs=expected / 30), name
    tokens = torch.randint(0, 500, (2, 256))
    features, _ = model.eval()(tokens)
    loss = F.cross_entropy(model.readout(features[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
    assert loss.item() == pytest.approx(math.log(500), rel=0.03)


def test_the_exact_gelu_is_another_model():
    tokens = torch.randint(0, CONFIG.vocab_size, (1, 8))
    approximate = GPT(CONFIG).double()
    exact = GPT(GPTConfig(**{**vars(CONFIG), "activation": "gelu"})).double()
    with torch.no_grad():
        for parameter in approximate.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    exact.load_state_dict(approximate.state_dict())
    difference = (approximate(tokens)[0] - exact(tokens)[0]).abs().max().item()
    assert 1e-6 < difference < 1e-1


def test_dropout_acts_in_training_alone():
    model = GPT(GPTConfig(**{**vars(CONFIG), "dropout": 0.3}))
    tokens = torch.randint(0, CONFIG.vocab_size, (1, 8))
    model.train()
    assert not torch.equal(model(tokens)[0], model(tokens)[0])
    model.eval()
    assert torch.equal(model(tokens)[0], model(tokens)[0])
