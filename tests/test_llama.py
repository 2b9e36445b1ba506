"""Llama is Llama: the same numbers as transformers' LlamaForCausalLM and, with QK-norm, as its Qwen3ForCausalLM."""

import math

import pytest
import torch
import torch.nn.functional as F
from transformers import LlamaConfig as TheirConfig
from transformers import LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM
from transformers.models.llama import modeling_llama
from transformers.models.qwen3 import modeling_qwen3

from scratchlm.data.batches import Batch
from scratchlm.evaluation import loss_sum
from scratchlm.model import record
from scratchlm.models.llama import Llama, LlamaConfig, RMSNorm, Rotation, grouped_attention

SHAPE = {"vocab_size": 61, "context": 32, "dim": 48, "depth": 3, "heads": 6, "hidden_dim": 40}
VARIANTS = {
    "grouped": {"kv_heads": 2},
    "one-head": {"kv_heads": 1, "tied": True, "rope_base": 100.0, "norm_eps": 1e-3},
    "full": {"kv_heads": 6, "rope_base": 10_000.0},
    "qk-norm": {"kv_heads": 3, "qk_norm": True, "tied": True, "rope_base": 1_000_000.0},
}
NAMES = {  # theirs: our module, and its part where several are fused
    "embed_tokens": ("token_embedding", None),
    "input_layernorm": ("attention_norm", None),
    "self_attn.q_proj": ("attention.query", None),
    "self_attn.k_proj": ("attention.key_value", "key"),
    "self_attn.v_proj": ("attention.key_value", "value"),
    "self_attn.o_proj": ("attention.output", None),
    "self_attn.q_norm": ("attention.query_norm", None),
    "self_attn.k_norm": ("attention.key_norm", None),
    "post_attention_layernorm": ("mlp_norm", None),
    "mlp.gate_proj": ("mlp.gate_hidden", "gate"),
    "mlp.up_proj": ("mlp.gate_hidden", "hidden"),
    "mlp.down_proj": ("mlp.output", None),
    "norm": ("final_norm", None),
    "lm_head": ("head", None),
}


def place(name):
    """Our parameter, and the half of its rows, in which one of theirs lies."""
    *before, own = name.removeprefix("model.").removesuffix(".weight").rsplit("layers.", 1)
    prefix, own = (f"blocks.{own.split('.', 1)[0]}.", own.split(".", 1)[1]) if before else ("", own)
    module, part = NAMES[own]
    halves = next((parts for end, parts in Llama.fused.items() if module.endswith(end)), ())
    return f"{prefix}{module}.weight", None if part is None else halves.index(part)


def within(tensor, half):
    return tensor if half is None else tensor.chunk(2)[half]


class Wide:
    """torch, in which what their code calls float32 is float64: they narrow norms and softmax in any dtype."""

    float32 = torch.float64

    def __getattr__(self, name):
        return getattr(torch, name)


@pytest.fixture(params=[(name, dtype) for name in VARIANTS for dtype in (torch.float32, torch.float64)], ids=str)
def pair(request, monkeypatch):
    """Our model and theirs with the same weights, norms perturbed."""
    name, dtype = request.param
    if dtype == torch.float64:
        for module in (modeling_llama, modeling_qwen3):
            monkeypatch.setattr(module, "torch", Wide())
    config = LlamaConfig(**SHAPE, **VARIANTS[name])
    kind, shape = (Qwen3ForCausalLM, Qwen3Config) if config.qk_norm else (LlamaForCausalLM, TheirConfig)
    theirs = kind(
        shape(
            vocab_size=config.vocab_size, max_position_embeddings=config.context, hidden_size=config.dim,
            num_hidden_layers=config.depth, num_attention_heads=config.heads, num_key_value_heads=config.kv_heads,
            head_dim=config.head_dim, intermediate_size=config.hidden_dim, rms_norm_eps=config.norm_eps,
            tie_word_embeddings=config.tied, attn_implementation="eager", use_cache=False,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_base}, bos_token_id=None,
            eos_token_id=None,
        )
    ).to(dtype)  # fmt: skip
    ours = Llama(config).to(dtype)
    own, filled = dict(ours.named_parameters()), 0
    with torch.no_grad():
        for their_name, their in theirs.named_parameters():
            their.add_(torch.randn_like(their), alpha=0.2)
            name, half = place(their_name)
            within(own[name], half).copy_(their)
            filled += their.numel()
    assert filled == sum(parameter.numel() for parameter in own.values()) == config.parameters
    return ours, theirs


def tolerance(model):
    error = 2e-5 if next(model.parameters()).dtype == torch.float32 else 1e-10
    return {"rtol": error, "atol": error}


def test_logits_loss_and_every_gradient_equal_transformers(pair):
    ours, theirs = pair
    tokens = torch.randint(0, ours.config.vocab_size, (3, ours.context))
    logits = theirs(tokens).logits
    features, _ = ours(tokens)
    torch.testing.assert_close(ours.readout(features), logits, **tolerance(ours))
    total, count = loss_sum(ours, Batch(tokens[:, :-1], tokens[:, 1:]))
    expected = F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    torch.testing.assert_close(total / count, expected, **tolerance(ours))
    torch.testing.assert_close(theirs(tokens, labels=tokens).loss, expected.float(), rtol=1e-5, atol=1e-5)
    expected.backward()
    (total / count).backward()
    gradients = {name: parameter.grad for name, parameter in ours.named_parameters()}
    for their_name, their in theirs.named_parameters():
        name, half = place(their_name)
        torch.testing.assert_close(
            within(gradients[name], half), their.grad, **tolerance(ours), msg=lambda m, n=their_name: f"{n}: {m}"
        )


def test_cached_decoding_equals_transformers_greedy(pair):
    ours, theirs = pair
    prompt = torch.randint(0, ours.config.vocab_size, (1, 5))
    state = ours.initial_state(1, capacity=ours.context)
    chunk, written = prompt, prompt[0].tolist()
    for _ in range(20):
        features, state = ours(chunk, state)
        chunk = ours.readout(features[:, -1]).argmax(-1, keepdim=True)
        written.append(chunk.item())
    everything = torch.ones_like(prompt)  # the prompt may have their padding token in it
    expected = theirs.generate(
        prompt, attention_mask=everything, max_new_tokens=20, do_sample=False, pad_token_id=0, use_cache=True
    )
    assert written == expected[0].tolist()


@pytest.mark.parametrize(("new", "visible"), [(7, 7), (1, 7), (3, 7), (1, 1), (0, 4)])
@pytest.mark.parametrize("groups", [1, 2, 6])
def test_grouped_attention_equals_the_written_out_equation(new, visible, groups):
    query = torch.randn(2, 6, new, 8, dtype=torch.float64, requires_grad=True)
    keys, values = (torch.randn(2, groups, visible, 8, dtype=torch.float64, requires_grad=True) for _ in range(2))
    fused = grouped_attention(query, keys, values)
    written = torch.zeros_like(fused)
    for head in range(6):  # head i of the queries reads head i // (6 / groups) of keys and values
        shared = head * groups // 6
        scores = query[:, head] @ keys[:, shared].mT / math.sqrt(8)
        hidden = torch.ones(new, visible, dtype=torch.bool).triu(visible - new + 1)
        written[:, head] = scores.masked_fill(hidden, -math.inf).softmax(-1) @ values[:, shared]
    torch.testing.assert_close(fused, written, rtol=1e-12, atol=1e-12)
    leaves, probe = (query, keys, values), torch.randn_like(fused)
    for one, other in zip(
        torch.autograd.grad(fused, leaves, probe), torch.autograd.grad(written, leaves, probe), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_rotated_products_depend_on_the_distance_alone():
    config = LlamaConfig(**SHAPE, kv_heads=2, rope_base=50.0)
    query, key = torch.randn(2, 8, dtype=torch.float64)
    rotation = Rotation.at(0, 30, config, query)
    queries, keys = rotation.turn(query.expand(30, 8)), rotation.turn(key.expand(30, 8))
    products = queries @ keys.T
    for distance in range(-29, 30):
        along = products.diagonal(distance)
        torch.testing.assert_close(along, along[:1].expand_as(along), rtol=0, atol=1e-5)  # float32 angles
    torch.testing.assert_close(queries.norm(dim=1), query.norm().expand(30), rtol=1e-6, atol=0)
    for i in range(4):  # the pair (i, i + K/2) is a complex number that is turned by t * base^(-2i/K)
        turned = torch.complex(query[i], query[i + 4]) * torch.exp(1j * torch.arange(30) * 50.0 ** (-2 * i / 8))
        torch.testing.assert_close(
            torch.complex(queries[:, i], queries[:, i + 4]), turned.to(torch.complex128), rtol=0, atol=1e-5
        )
    later = Rotation.at(11, 4, config, query)
    assert torch.equal(later.cos, rotation.cos[11:15])
    assert torch.equal(later.sin, rotation.sin[11:15])


@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0])
def test_the_norms_written_out_gradient_equals_torch(scale):
    norm = RMSNorm(12, 1e-5).double()
    with torch.no_grad():
        norm.weight.add_(torch.randn(12, dtype=torch.float64))
    x = (scale * torch.randn(3, 5, 2, 12, dtype=torch.float64)).transpose(1, 2).requires_grad_()
    expected = F.rms_norm(x, (12,), norm.weight, 1e-5)
    torch.testing.assert_close(norm(x), expected, rtol=1e-12, atol=1e-12)
    probe = torch.randn_like(expected)
    for one, other in zip(
        torch.autograd.grad(norm(x), (x, norm.weight), probe),
        torch.autograd.grad(expected, (x, norm.weight), probe),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_squared_relu_is_its_equation():
    model = Llama(LlamaConfig(**SHAPE, kv_heads=2, mlp="relu2")).double()
    x, mlp = torch.randn(2, 5, 48, dtype=torch.float64), model.blocks[0].mlp
    expected = x.new_zeros(2, 5, 40)
    hidden = x @ mlp.hidden.weight.T
    expected[hidden > 0] = hidden[hidden > 0] ** 2
    torch.testing.assert_close(mlp(x), expected @ mlp.output.weight.T, rtol=1e-12, atol=1e-12)
    assert model.config.parameters == sum(parameter.numel() for parameter in model.parameters())


def test_record_shows_each_head_and_changes_nothing():
    model = Llama(LlamaConfig(**SHAPE, kv_heads=2)).double().eval()
    tokens = torch.randint(0, 61, (2, 9))
    plain, _ = model(tokens)
    with record(model) as shown:
        features, _ = model(tokens)
    torch.testing.assert_close(features, plain, rtol=1e-12, atol=1e-12)
    assert list(shown) == [f"blocks.{index}.attention.weights" for index in range(3)]
    assert all(tensors[0].shape == (2, 6, 9, 9) for tensors in shown.values())


def test_zero_output_starts_with_equal_odds_and_with_blocks_that_do_nothing():
    model = Llama(LlamaConfig(**SHAPE, kv_heads=2, zero_output=True)).double()
    tokens = torch.randint(0, 61, (2, 9))
    features, _ = model(tokens)
    torch.testing.assert_close(features, model.final_norm(model.token_embedding(tokens)))
    assert (model.readout(features) == 0).all()
    named = {name for name, parameter in model.named_parameters() if (parameter == 0).all()}
    assert named == {"head.weight"} | {
        f"blocks.{i}.{part}.output.weight" for i in range(3) for part in ("attention", "mlp")
    }


def test_under_autocast_the_memory_is_narrow():
    model = Llama(LlamaConfig(**SHAPE, kv_heads=2, qk_norm=True)).eval()
    tokens = torch.randint(0, 61, (2, 9))
    with torch.autocast("cpu", torch.bfloat16):
        features, state = model(tokens, model.initial_state(2, capacity=9))
    assert {tensor.dtype for memory in state.memories for tensor in (memory.keys, memory.values)} == {torch.bfloat16}
    torch.testing.assert_close(features.float(), model(tokens)[0], rtol=0.1, atol=0.1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kv_heads": 4}, "6 heads cannot share 4 kv_heads"),
        ({"heads": 7, "kv_heads": 1}, "dim 48 cannot be shared by 7 heads"),
        ({"heads": 16, "kv_heads": 1}, "even width"),
        ({"kv_heads": 0}, "kv_heads is 0"),
        ({"kv_heads": 2, "rope_base": 0.0}, "rope_base is 0.0"),
        ({"kv_heads": 2, "norm_eps": math.inf}, "norm_eps is inf"),
        ({"kv_heads": 2, "dropout": 1.0}, "dropout is 1.0"),
    ],
)
def test_shapes_that_cannot_be_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        LlamaConfig(**{**SHAPE, **changes})


def test_published_shapes_have_their_published_sizes():
    sizes = {"llama-7b": 6_738_415_616, "llama-3-8b": 8_030_261_248, "llama-3.2-1b": 1_235_814_400}
    for name, parameters in sizes.items():
        assert LlamaConfig(**Llama.presets[name]["model"]).parameters == parameters, name
