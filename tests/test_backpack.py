"""The Backpack is the released one: the port's logits and gradients; what makes it a Backpack holds exactly."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from scratchlm.layers import CausalSelfAttention
from scratchlm.model import record
from scratchlm.models import backpack
from scratchlm.models.backpack import Backpack, BackpackConfig, SenseNetwork, SenseSum
from scratchlm.models.gpt import GPTConfig

CONFIG = BackpackConfig(vocab_size=61, context=32, dim=24, depth=3, heads=4, senses=6, dropout=0.0)
NAMES = {  # ours: theirs; the star says that theirs is stored transposed
    "trunk.token_embedding.weight": "gpt2_model.wte.weight",
    "trunk.position_embedding.weight": "gpt2_model.wpe.weight",
    "trunk.final_norm": "gpt2_model.ln_f",
    "attention_norm": "ln_1",
    "attention.query_key_value": "*attn.c_attn",
    "attention.output": "*attn.c_proj",
    "mlp_norm": "ln_2",
    "mlp.hidden": "*mlp.c_fc",
    "mlp.output": "*mlp.c_proj",
    "contextualisation.query_key": "sense_weight_net.c_attn",
    "sense_network.embedding_norm": "sense_network.ln",
    "sense_network.mlp_norm": "sense_network.block.ln_1",
    "sense_network.mlp.hidden": "*sense_network.block.mlp.c_fc",
    "sense_network.mlp.output": "*sense_network.block.mlp.c_proj",
    "sense_network.senses_norm": "sense_network.block.ln_2",
    "sense_network.senses_mlp.hidden": "*sense_network.final_mlp.c_fc",
    "sense_network.senses_mlp.output": "*sense_network.final_mlp.c_proj",
}


def theirs_of(name: str) -> tuple[str, bool]:
    """The port's name of one of our parameters, and whether its weight is transposed."""
    prefix, rest = "backpack.", name
    if name.startswith("trunk.blocks."):
        _, _, index, rest = name.split(".", 3)
        prefix += f"gpt2_model.h.{index}."
    for ours, theirs in NAMES.items():
        if rest.startswith(f"{ours}.") or rest == ours:
            transposed = theirs.startswith("*") and rest.endswith("weight")
            return prefix + theirs.lstrip("*") + rest.removeprefix(ours), transposed
    raise AssertionError(name)


@pytest.fixture(params=[torch.float32, torch.float64], ids=str)
def pair(port, request):
    """Our model and theirs with the same weights, biases and norms perturbed."""
    theirs = port.BackpackGPT2LMHeadModel(
        port.BackpackGPT2Config(
            vocab_size=CONFIG.vocab_size, n_positions=CONFIG.context, n_embd=CONFIG.dim, n_layer=CONFIG.depth,
            n_head=CONFIG.heads, num_senses=CONFIG.senses, attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0,
            bos_token_id=0, eos_token_id=0,
        )
    ).to(request.param)  # fmt: skip
    ours = Backpack(CONFIG).to(request.param)
    parameters = dict(theirs.named_parameters())
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            their_name, transposed = theirs_of(name)
            their = parameters.pop(their_name)
            their += 0.15 * torch.randn_like(their)
            parameter.copy_(their.T if transposed else their)
    assert not parameters, "every one of their parameters has its place in ours"
    return ours, theirs


def test_logits_alpha_and_every_gradient_equal_the_ports(pair, record_property):
    ours, theirs = pair
    single = next(ours.parameters()).dtype == torch.float32
    tokens = torch.randint(0, CONFIG.vocab_size, (3, CONFIG.context))
    expected = theirs(tokens)
    features, _ = ours(tokens)
    logits = ours.readout(features)
    assert 0.3 < logits.std() < 3, "the error below is one of logits of usual size"
    error = (logits - expected.logits).abs().max().item()
    record_property("error", error)
    assert error <= (2e-6 if single else 1e-10)
    alpha, _, _ = ours.read(tokens, ours.initial_state(3))
    bound = {"rtol": 0, "atol": 1e-6 if single else 1e-12}
    torch.testing.assert_close(alpha, expected.contextualization, **bound)
    for one in (logits, expected.logits):
        F.cross_entropy(one[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).backward()
    gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        their_name, transposed = theirs_of(name)
        gradient = gradients[their_name].T if transposed else gradients[their_name]
        torch.testing.assert_close(
            parameter.grad,
            gradient,
            rtol=1e-4 if single else 1e-9,
            atol=1e-6 if single else 1e-10,
            msg=lambda m, n=name: f"{n}: {m}",
        )


def test_the_released_weights_need_the_inverse_layer_scaling(pair):
    ours, theirs = pair
    without = Backpack(replace(CONFIG, inverse_layer_scaling=False)).to(next(ours.parameters()).dtype)
    without.load_state_dict(ours.state_dict())
    tokens = torch.randint(0, CONFIG.vocab_size, (3, CONFIG.context))
    difference = (without.readout(without(tokens)[0]) - theirs(tokens).logits).abs().max()
    assert difference > 0.02, "a model of the same weights, and another one"


# Shapes and starts


def tiny(**changes):
    """A Backpack in float64, in eval, its weights moved to where every part matters."""
    model = Backpack(replace(CONFIG, **changes)).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model


def some_tokens(rows=3, length=12, vocab_size=CONFIG.vocab_size):
    return torch.randint(0, vocab_size, (rows, length))


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("preset", "trunk", "alpha", "mlp", "last", "norms", "total"),
    [
        ("micro", 30_145_536, 295_680, 1_181_568, 10_034_688, 2_304, 41_659_776),
        ("mini", 71_886_080, 820_480, 3_280_000, 27_865_600, 3_840, 103_856_000),
        ("small", 124_051_968, 1_181_184, 4_722_432, 40_123_392, 4_608, 170_083_584),
    ],
)
def test_the_papers_sizes_to_the_unit(preset, trunk, alpha, mlp, last, norms, total):
    config = BackpackConfig(**Backpack.presets[preset]["model"])
    with torch.device("meta"):
        model = Backpack(config)
    network = model.sense_network
    assert count(model.trunk) == config.trunk.parameters == trunk
    assert count(model.contextualisation) == alpha
    assert count(network.mlp) == mlp
    assert count(network.senses_mlp) == last
    assert sum(map(count, (network.embedding_norm, network.mlp_norm, network.senses_norm))) == norms
    assert count(network) == mlp + last + norms
    assert count(model) == config.parameters == total


@pytest.mark.parametrize(("senses", "total"), [(1, 74_351_360), (4, 75_582_080), (16, 80_504_960), (64, 100_196_480)])
def test_the_ablations_sizes_to_the_unit(senses, total):
    """Table 8: both networks inside the senses are as wide as the stream, which the text says of the second alone."""
    config = BackpackConfig(**{**Backpack.presets["mini"]["model"], "senses": senses, "sense_width": 1})
    with torch.device("meta"):
        model = Backpack(config)
    assert count(model) == config.parameters == total
    assert count(model.trunk) + count(model.contextualisation) == 72_706_560


def sense_deviation(dim, depth, inner):
    """The deviation of a sense's entries at the start: W4 of `inner` columns on gelu of N(0, 0.02^2 dim)."""
    x = torch.linspace(-12, 12, 20001, dtype=torch.float64)
    inside = F.gelu(0.02 * math.sqrt(dim) * x, approximate="tanh")
    square = torch.trapezoid(inside**2 * torch.exp(-(x**2) / 2) / math.sqrt(2 * math.pi), x).item()
    return 0.02 / math.sqrt(2 * depth) * math.sqrt(inner * square)


def test_initialisation_is_the_released_codes():
    config = BackpackConfig(vocab_size=500, context=128, dim=128, depth=8, heads=4, senses=8)
    model = Backpack(config).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert (parameter == 0).all(), name
        elif "norm" in name:
            assert (parameter == 1).all(), name
        else:
            expected = 0.02 / math.sqrt(2 * 8) if name.endswith("output.weight") else 0.02
            assert parameter.std().item() == pytest.approx(expected, rel=0.03), name
            assert parameter.mean().item() == pytest.approx(0, abs=expected / 30), name
    assert sense_deviation(768, 12, 3072) == pytest.approx(0.074, rel=0.01)  # at the size that was released
    with torch.no_grad():
        senses = model.senses(torch.arange(500))
        assert senses.std().item() == pytest.approx(sense_deviation(128, 8, 512), rel=0.05)
        tokens = some_tokens(2, 128, 500)
        logits = model.readout(model(tokens)[0][:, :-1])
    assert F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).item() == pytest.approx(
        math.log(500), rel=0.01
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"senses": 0}, "senses is 0; it must be at least 1"),
        ({"sense_width": 0}, "sense_width is 0; it must be at least 1"),
        ({"senses": 5}, "dim 24 cannot be shared by 5 senses; make dim a multiple of senses"),
        ({"heads": 5}, "dim 24 cannot be shared by 5 heads; make dim a multiple of heads"),
        ({"dropout": 1.0}, "dropout is 1.0; it must be at least 0 and below 1"),
    ],
)
def test_a_shape_that_cannot_be_is_refused(changes, words):
    with pytest.raises(ValueError, match=f"^{words}$"):
        replace(CONFIG, **changes)


@pytest.mark.parametrize(("dim", "senses"), [(768, 16), (40, 10), (52, 13), (12, 3), (2, 1), (68, 4)])
def test_a_backpack_around_a_trunk_has_keys_of_four_or_more(dim, senses):
    trunk = GPTConfig(vocab_size=61, context=32, dim=dim, depth=3, heads=2, dropout=0.0)
    config = BackpackConfig.around(trunk)
    assert config.senses == senses
    assert config.trunk == replace(trunk, inverse_layer_scaling=True)


def test_a_state_of_senses_of_another_shape_is_refused():
    model, tokens = tiny(), some_tokens()
    for changes in ({"senses": 3}, {"sense_width": 2}):
        with pytest.raises(ValueError, match=r"6 senses with keys of width 4, made of 96 numbers a token; start one"):
            model(tokens, tiny(**changes).initial_state(3))


# What makes it a Backpack


def test_a_sense_is_the_same_wherever_its_token_stands(monkeypatch):
    """No position, no neighbour and no row of the batch has a part in it.

    Bit for bit within a call, and between calls that hold the same tokens; otherwise to rounding, since a product of
    matrices adds up in an order that depends on how many rows it has.
    """
    model = tiny()
    table = model.senses(torch.arange(CONFIG.vocab_size))
    shown = []

    def apply(weights, senses, index, original=SenseSum.apply):
        shown.append(senses[index])  # (B, S, L, D)
        return original(weights, senses, index)

    monkeypatch.setattr(SenseSum, "apply", apply)
    for tokens in (torch.arange(32)[None], some_tokens(3, 32), some_tokens(5, 20), some_tokens(1, 8)):
        one, other = tokens, tokens.flatten()[torch.randperm(tokens.numel())].view(tokens.shape)
        shown.clear()
        model(one)
        model(other)
        own = {}
        for token, sense in zip(
            [*one.flatten().tolist(), *other.flatten().tolist()],
            [*shown[0].flatten(0, 1), *shown[1].flatten(0, 1)],
            strict=True,
        ):
            assert torch.equal(own.setdefault(token, sense), sense), token
        torch.testing.assert_close(shown[0], table[one], rtol=1e-12, atol=1e-12)


@settings(max_examples=15)
@given(st.lists(st.integers(0, 12), max_size=3).map(sorted), st.sampled_from([None, 12]))
def test_alpha_shares_out_one_for_each_sense(cuts, capacity):
    model, tokens = tiny(), some_tokens()
    state = model.initial_state(3, capacity)
    for start, end in zip([0, *cuts], [*cuts, 12], strict=True):
        alpha, _, state = model.read(tokens[:, start:end], state)
        assert alpha.shape == (3, CONFIG.senses, end - start, end)
        assert (alpha >= 0).all()
        torch.testing.assert_close(alpha.sum(-1), torch.ones(3, CONFIG.senses, end - start).double())
        for new in range(end - start):
            assert (alpha[:, :, new, start + new + 1 :] == 0).all(), "what comes later has no part, exactly"
        if start == 0 and end > 0:
            assert (alpha[:, :, 0, 0] == 1).all()


def test_alpha_has_the_same_say_in_training_and_in_a_recording():
    model, tokens = tiny(), some_tokens()
    expected, _, _ = model.read(tokens, model.initial_state(3))
    with record(model) as shown:
        model(tokens)
    (alpha,) = shown["contextualisation.weights"]
    torch.testing.assert_close(alpha, expected, rtol=1e-12, atol=1e-14)


def test_logits_are_the_sum_of_what_each_sense_adds():
    model, tokens = tiny(), some_tokens()
    alpha, _, _ = model.read(tokens, model.initial_state(3))
    added = model.readout(model.senses(tokens))  # (B, S, L, V): what each sense pushes up and down in any context
    expected = torch.einsum("blts,bslv->btv", alpha, added)
    for state in (None, model.initial_state(3)):
        torch.testing.assert_close(model.readout(model(tokens, state)[0]), expected, rtol=1e-12, atol=1e-12)


def test_the_embedding_gets_gradient_from_its_three_uses():
    model, tokens = tiny(), some_tokens()
    embedding = model.trunk.token_embedding
    table = embedding.weight

    def gradient(trunk, senses, readout):
        """With those uses alone in the graph: ids come as (B, T) for the trunk and as (U,) for the senses."""
        kept = {2: trunk, 1: senses}
        hook = embedding.register_forward_hook(lambda _, ids, out: out if kept[ids[0].ndim] else out.detach())
        features, _ = model(tokens)
        hook.remove()
        logits = F.linear(features, table if readout else table.detach())
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
        return torch.autograd.grad(loss, table)[0]

    parts = [gradient(True, False, False), gradient(False, True, False), gradient(False, False, True)]
    assert all(part.abs().max() > 1e-4 for part in parts)
    torch.testing.assert_close(sum(parts), gradient(True, True, True), rtol=1e-10, atol=1e-12)
    assert [name for name, _ in model.named_parameters() if name.endswith("token_embedding.weight")] == [
        "trunk.token_embedding.weight"
    ]


def test_word2vecs_cbow_is_a_backpack_of_one_sense_and_equal_weights():
    """The vector of a context is the mean of its words' vectors (Mikolov et al. 2013, section 3.1)."""
    model, tokens = tiny(senses=1), some_tokens()
    with torch.no_grad():
        for parameter in model.contextualisation.parameters():
            parameter.zero_()
    vectors = model.senses(torch.arange(CONFIG.vocab_size))[:, 0]
    for features in (model(tokens)[0], model(tokens, model.initial_state(3))[0]):
        for end in range(1, 13):
            context = F.embedding_bag(tokens[:, :end], vectors, mode="mean")
            torch.testing.assert_close(features[:, end - 1], context, rtol=1e-12, atol=1e-12)


def test_one_attention_layer_by_itself_is_a_backpack():
    """Its heads are the senses, C(x)_l = O_l V_l x, and its attention is alpha."""
    attention = CausalSelfAttention(24, 6, 0.0, bias=False).double()
    x = torch.randn(3, 12, 24).double()
    with record(attention) as shown:
        expected, _ = attention(x)
    (alpha,) = shown["weights"]
    values = attention.query_key_value.weight[48:].unflatten(0, (6, 4))  # (L, K, D)
    outputs = attention.output.weight.unflatten(1, (6, 4)).transpose(0, 1)  # (L, D, K)
    matrices = outputs @ values
    network = SenseNetwork(replace(CONFIG, sense_width=1)).double()
    with torch.no_grad():
        network.senses_mlp.output.weight.copy_(matrices.flatten(0, 1))
        network.senses_mlp.output.bias.zero_()
    torch.testing.assert_close(network.mix(alpha, x[:, None]), expected, rtol=1e-12, atol=1e-12)
    senses = torch.einsum("ldg,btg->btld", matrices, x).flatten(0, 1)
    summed = SenseSum.apply(alpha, senses, torch.arange(36).view(3, 12))
    torch.testing.assert_close(summed, expected, rtol=1e-12, atol=1e-12)


# How it is computed


def naive_sum(weights, senses, index):
    """Equation 1 as it stands, with the senses of every position."""
    return torch.einsum("blts,bsld->btd", weights, senses[index])


@pytest.mark.parametrize(("rows", "new", "visible"), [(2, 3, 3), (1, 1, 5), (3, 2, 4), (2, 0, 3)])
def test_the_sum_and_its_gradients_are_equation_1s(rows, new, visible):
    """Also for weights that no softmax made; the third token of four is in none of the rows."""
    weights = torch.randn(rows, 2, new, visible, dtype=torch.float64, requires_grad=True)
    senses = torch.randn(4, 2, 3, dtype=torch.float64, requires_grad=True)
    index = torch.tensor([0, 1, 3])[torch.randint(0, 3, (rows, visible))]
    total, expected = SenseSum.apply(weights, senses, index), naive_sum(weights, senses, index)
    torch.testing.assert_close(total, expected, rtol=1e-12, atol=1e-12)
    probe = torch.randn_like(total)
    for one, other in zip(
        torch.autograd.grad(total, (weights, senses), probe),
        torch.autograd.grad(expected, (weights, senses), probe),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    if new:
        assert torch.autograd.gradcheck(lambda w, s: SenseSum.apply(w, s, index), (weights, senses))


@pytest.mark.parametrize(("rows", "new", "visible"), [(2, 3, 3), (1, 1, 5), (3, 2, 4), (2, 0, 3)])
def test_the_sum_may_come_before_the_last_matrix(rows, new, visible):
    """Also for weights that do not sum to one, as when an intervention has turned a sense up."""
    network = tiny().sense_network
    weights = torch.randn(rows, CONFIG.senses, new, visible, dtype=torch.float64)
    inside = torch.randn(rows, 1, visible, 96, dtype=torch.float64)
    senses = network.senses_mlp.output(inside[:, 0]).unflatten(-1, (CONFIG.senses, 24))  # (B, S, L, D)
    expected = torch.einsum("blts,bsld->btd", weights, senses)
    torch.testing.assert_close(network.mix(weights, inside), expected, rtol=1e-11, atol=1e-11)


def bytes_saved(compute, model):
    """Bytes kept for the backward pass, each storage once, parameters left out; and the largest of them."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage  # kept alive: a freed address could come again
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = compute()
    assert out[0].requires_grad
    sizes = [storage.nbytes() for storage in kept.values()]
    return sum(sizes), max(sizes)


def test_training_keeps_no_sense_of_every_position(monkeypatch):
    """B * T * k * d numbers, which the paper's recipe would have 1.6 GB of, are not kept for the backward pass."""
    model = Backpack(replace(CONFIG, dim=96, senses=12)).train()
    tokens = some_tokens(16, 32)
    position_senses = tokens.numel() * 12 * 96 * 4

    def above_the_trunk():
        everything, largest = bytes_saved(lambda: model(tokens), model)
        trunk, _ = bytes_saved(lambda: model.trunk(tokens), model)
        return everything - trunk, largest

    above, largest = above_the_trunk()
    assert above < position_senses, "not even all of it together"
    assert largest < position_senses / 2
    monkeypatch.setattr(SenseSum, "apply", naive_sum)
    above, largest = above_the_trunk()
    assert above > position_senses
    assert largest == position_senses


def test_senses_are_computed_once_for_each_different_token():
    model, tokens = tiny(), some_tokens(4, 24)
    rows = []
    model.sense_network.embedding_norm.register_forward_pre_hook(lambda _, x: rows.append(x[0][..., 0].numel()))
    model(tokens)
    assert rows == [tokens.unique().numel()]
    assert rows[0] < tokens.numel()
    state = model.initial_state(4)
    rows.clear()
    for chunk in tokens.split([10, 13, 1], 1):
        _, state = model(chunk, state)
    assert rows == [chunk.unique().numel() for chunk in tokens.split([10, 13, 1], 1)]


def test_no_sense_outlives_a_change_of_weights():
    model, tokens = tiny(), some_tokens()
    with torch.no_grad():
        before, _ = model(tokens)
        model(tokens, model.initial_state(3))
        for parameter in model.sense_network.parameters():
            parameter.mul_(1.1)
        fresh = Backpack(CONFIG).double().eval()
        fresh.load_state_dict(model.state_dict())
        after, _ = model(tokens)
        streamed, _ = model(tokens, model.initial_state(3))
        expected, _ = fresh(tokens)
    assert not torch.allclose(before, after)
    assert torch.equal(after, expected)
    torch.testing.assert_close(streamed, expected, rtol=1e-11, atol=1e-11)


def test_dropout_acts_in_training_alone_and_alike_on_all_occurrences(monkeypatch):
    model = Backpack(replace(CONFIG, dropout=0.3))
    tokens = torch.tensor([[5, 7, 5, 5]])
    given = []

    def apply(weights, senses, index):
        given.append((weights, senses[index]))
        return naive_sum(weights, senses, index)

    monkeypatch.setattr(backpack.SenseSum, "apply", apply)
    model.train()
    model(tokens)
    model(tokens)
    (weights, senses), (_, again) = given
    assert torch.equal(senses[0, 0], senses[0, 2])
    assert not torch.equal(senses, again)
    torch.testing.assert_close(weights.sum(-1), torch.ones(1, CONFIG.senses, 4)), "alpha itself drops nothing"
    model.eval()
    assert torch.equal(model(tokens)[0], model(tokens)[0])
