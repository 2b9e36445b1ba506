"""CNN's convolution is nn.Conv1d's, its blocks are the papers', its memory is exact and its reach what it says."""

import copy
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import weight_norm
from torch.utils._python_dispatch import TorchDispatchMode

from contract import CHECKS, in_chunks, tokens_for
from scratchlm import generation
from scratchlm.checkpoint import load
from scratchlm.evaluation import loss_sum
from scratchlm.models.cnn import CNN, CausalConvolution, CNNConfig
from scratchlm.training import loop
from tasks import COPY_VOCABULARY, SYMBOLS, copy_memory

TINY = {  # what the presets stand for, as small as tests want it
    "gated": {},
    "gated, narrow": {"hidden_dim": 5, "kernel": 4},
    "gcnn": {"block": "gcnn", "dilations": 1},
    "gcnn-bottleneck": {"block": "gcnn", "dilations": 1, "hidden_dim": 12, "depth": 2},
    "tcn": {"block": "tcn", "dilations": 2, "hidden_dim": 20, "depth": 2},
    "tcn of one width": {"block": "tcn", "depth": 1, "dilations": 1},
    "wavenet": {"block": "wavenet", "kernel": 2, "hidden_dim": 12},
}


def tiny(name, **changes):
    torch.manual_seed(0)
    return CNN(CNNConfig(**{**vars(CNNConfig.tiny()), **TINY[name], **changes})).double().eval()


@pytest.fixture(params=TINY)
def model(request):
    return tiny(request.param)


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("name", [name for name in TINY if name != "gated"])  # which is the registered one
def test_every_block_obeys_the_contract(name, check):
    CHECKS[check](lambda: tiny(name))


# --- the convolution ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("new", [1, 2, 33])
@pytest.mark.parametrize(("kernel", "dilation"), [(2, 1), (3, 1), (3, 8), (4, 5)])
def test_outputs_and_gradients_equal_torchs_convolution(dtype, new, kernel, dilation):
    error = 2e-6 if dtype == torch.float32 else 1e-12
    ours = CausalConvolution(12, 20, kernel, dilation, deviation=1 / math.sqrt(12 * kernel)).to(dtype)
    theirs = nn.Conv1d(12, 20, kernel, dilation=dilation).to(dtype)
    with torch.no_grad():
        ours.bias.normal_()
    theirs.load_state_dict(ours.state_dict())
    past, x = (torch.randn(3, length, 12, dtype=dtype, requires_grad=True) for length in (ours.reach, new))
    for memory in (None, past):
        before = torch.zeros(3, ours.reach, 12, dtype=dtype) if memory is None else memory
        y, kept = ours(x, memory)
        expected = theirs(torch.cat([before, x], 1).transpose(1, 2)).transpose(1, 2)
        torch.testing.assert_close(y, expected, rtol=error, atol=error)
        assert torch.equal(kept, torch.cat([before, x], 1)[:, -ours.reach :])
        probe = torch.randn_like(y) / math.sqrt(3 * new)
        leaves = [x] if memory is None else [x, memory]
        one = torch.autograd.grad(y, [*leaves, *ours.parameters()], probe)
        other = torch.autograd.grad(expected, [*leaves, *theirs.parameters()], probe)
        for ours_gradient, their_gradient in zip(one, other, strict=True):
            torch.testing.assert_close(ours_gradient, their_gradient, rtol=error, atol=error)


def test_memory_is_replaced_and_starts_with_zeros():
    convolution = CausalConvolution(4, 4, 3, 2, deviation=1.0)
    y, memory = convolution(torch.randn(2, 0, 4))
    assert y.shape == (2, 0, 4)
    assert torch.equal(memory, torch.zeros(2, 4, 4))
    before = memory.clone()
    convolution(torch.randn(2, 1, 4), memory)
    assert torch.equal(memory, before)


def test_a_memory_keeps_nothing_else_alive(model):
    state = model.initial_state(2)
    for length in (70, 0, 5, 1):
        _, state = model(torch.zeros(2, length, dtype=torch.int64), state)
        for tensor in itertools.chain(*state.memories):
            one_token = tensor[:, :1].nbytes if length == 1 else 0  # a view is as good, and costs no copy
            assert tensor.untyped_storage().nbytes() == tensor.nbytes + one_token


@pytest.mark.parametrize("name", ["gated", "tcn"])
def test_a_parametrization_of_the_weight_acts_in_both_forms(name):
    class Change(nn.Module):
        def __init__(self, weight):
            super().__init__()
            self.change = nn.Parameter(torch.randn_like(weight))

        def forward(self, weight):
            return weight + 0.1 * self.change

    model = tiny(name)
    tokens = tokens_for(model)
    plain, _ = model(tokens)
    for module in [module for module in model.modules() if isinstance(module, CausalConvolution)]:
        parametrize.register_parametrization(module, "weight", Change(module.weight.detach()))
    changed, _ = model(tokens)
    assert not torch.allclose(changed, plain)
    torch.testing.assert_close(in_chunks(model, tokens, list(range(1, 12)), None)[0], changed, rtol=1e-9, atol=1e-9)
    changed.sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for name, parameter in model.named_parameters() if "change" in name)


# --- the blocks --------------------------------------------------------------------------------------------------


class ReferenceTCN(nn.Module):
    """Bai et al.'s network out of torch's own modules: padded on both sides, and the tail cut off."""

    def __init__(self, dim, hidden, depth, kernel):
        super().__init__()
        self.levels = nn.ModuleList()
        for level in range(depth):
            inputs, outputs = dim if level == 0 else hidden, dim if level == depth - 1 else hidden
            same = {"kernel_size": kernel, "dilation": 2**level, "padding": (kernel - 1) * 2**level}
            self.levels.append(
                nn.ModuleDict(
                    {
                        "first": weight_norm(nn.Conv1d(inputs, hidden, **same)),
                        "second": weight_norm(nn.Conv1d(hidden, outputs, **same)),
                        "shortcut": nn.Conv1d(inputs, outputs, 1) if inputs != outputs else nn.Identity(),
                    }
                )
            )

    def forward(self, x):
        for level in self.levels:
            y = level["first"](x)[..., : x.shape[-1]].relu()
            y = level["second"](y)[..., : x.shape[-1]].relu()
            x = (level["shortcut"](x) + y).relu()
        return x


@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 2e-6), (torch.float64, 1e-12)], ids=str)
def test_tcn_equals_one_built_of_torchs_modules(dtype, error):
    config = CNNConfig(vocab_size=31, dim=10, hidden_dim=14, depth=3, kernel=3, dilations=3, block="tcn")
    ours, theirs = CNN(config).to(dtype), ReferenceTCN(10, 14, 3, 3).to(dtype)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.copy_(torch.randn_like(parameter) / math.sqrt(parameter[0].numel()))
    weights = {}
    for name, tensor in ours.blocks.state_dict().items():
        weights[f"levels.{name}"] = tensor.unsqueeze(-1) if name.endswith("shortcut.weight") else tensor
    theirs.load_state_dict(weights)
    tokens = torch.randint(0, 31, (2, 40))
    features, _ = ours(tokens)
    expected = theirs(ours.embedding(tokens).transpose(1, 2)).transpose(1, 2)
    torch.testing.assert_close(features, expected, rtol=error, atol=error)
    probe = torch.randn_like(features) / math.sqrt(80)
    features.backward(probe)
    gradients = {name: parameter.grad for name, parameter in ours.blocks.named_parameters()}
    expected.backward(probe)
    for name, parameter in theirs.levels.named_parameters():
        gradient = parameter.grad.squeeze(-1) if name.endswith("shortcut.weight") else parameter.grad
        torch.testing.assert_close(gradients[name], gradient, rtol=10 * error, atol=error, msg=lambda m, n=name: n + m)


def causal(weight, bias, x, dilation):
    """torch's convolution over (B, T, C), zeros before the start."""
    padded = F.pad(x.transpose(1, 2), ((weight.shape[2] - 1) * dilation, 0))
    return F.conv1d(padded, weight, bias, dilation=dilation).transpose(1, 2)


def test_wavenet_is_the_papers_residual_and_skip_network():
    model = tiny("wavenet")
    dim, hidden = model.config.dim, model.config.hidden_dim
    tokens = tokens_for(model)
    x, skips = model.embedding(tokens), 0
    for index, block in enumerate(model.blocks):
        weight, bias = block.convolution.weight, block.convolution.bias
        signal = causal(weight[:hidden], bias[:hidden], x, model.config.dilation(index))
        gate = causal(weight[hidden:], bias[hidden:], x, model.config.dilation(index))
        z = torch.tanh(signal) * torch.sigmoid(gate)
        skips = skips + F.linear(z, block.output.weight[-hidden:], block.output.bias[-hidden:])
        if index < len(model.blocks) - 1:
            x = x + F.linear(z, block.output.weight[:dim], block.output.bias[:dim])
    expected = model.last[1](skips.relu()).relu()
    torch.testing.assert_close(model(tokens)[0], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["gcnn", "gcnn-bottleneck"])
def test_gcnn_is_the_papers_gated_network(name):
    def gated(y):
        linear, gate = y.chunk(2, -1)
        return linear * torch.sigmoid(gate)

    model = tiny(name)
    tokens = tokens_for(model)
    x = model.embedding(tokens)
    for block in model.blocks:
        y = x if block.reduce is None else gated(block.reduce(x))
        y = gated(causal(block.convolution.weight, block.convolution.bias, y, 1))
        y = y if block.expand is None else gated(block.expand(y))
        x = (x + y) / math.sqrt(2)
    torch.testing.assert_close(model(tokens)[0], x, rtol=1e-12, atol=1e-12)


def test_gated_is_a_pre_norm_residual_stack():
    model = tiny("gated")
    tokens = tokens_for(model)
    x = model.embedding(tokens)
    for block, dilation in zip(model.blocks, (1, 1, 2), strict=True):
        nn.init.normal_(block.norm.bias)  # what is padded before the norm would show it
        y = causal(block.convolution.weight, block.convolution.bias, block.norm(x), dilation)
        x = x + block.output(y[..., :16] * torch.sigmoid(y[..., 16:]))
    torch.testing.assert_close(model(tokens)[0], model.last(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["gcnn", "gcnn-bottleneck", "tcn"])
def test_weights_are_the_same_normed_folded_and_cached(name):
    model = tiny(name)
    tokens = tokens_for(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 + 0.3 * torch.rand_like(parameter))  # no longer the norms of the start
    expected, _ = model(tokens)
    with parametrize.cached():
        torch.testing.assert_close(model(tokens)[0], expected, rtol=1e-12, atol=1e-12)
    folded = copy.deepcopy(model)
    for module in folded.modules():
        if parametrize.is_parametrized(module):
            parametrize.remove_parametrizations(module, "weight")
    assert len(list(folded.parameters())) < len(list(model.parameters()))
    torch.testing.assert_close(folded(tokens)[0], expected, rtol=1e-12, atol=1e-12)


# --- reach and memory --------------------------------------------------------------------------------------------


def test_a_feature_depends_on_exactly_the_receptive_field(model):
    reach = model.config.receptive_field
    inputs = []
    model.embedding.register_forward_hook(
        lambda *hooked: inputs.append(hooked[-1].detach().requires_grad_()) or inputs[-1]
    )
    features, _ = model(torch.randint(0, 23, (1, 2 * reach + 3)))
    for at in (0, reach - 1, reach, 2 * reach + 2):
        (gradient,) = torch.autograd.grad((features[0, at] ** 2).sum(), inputs[-1], retain_graph=True)
        seen = (gradient[0] != 0).any(-1).nonzero().flatten().tolist()
        assert seen == list(range(max(0, at - reach + 1), at + 1))


def test_presets_reach_as_far_as_their_papers():
    reach = {name: CNNConfig(vocab_size=65, **preset["model"]).receptive_field for name, preset in CNN.presets.items()}
    assert reach == {"laptop": 265, "gcnn": 37, "gcnn-bottleneck": 57, "tcn": 29, "wavenet": 1024}


def test_overlapping_windows_score_as_the_stream_does(model):
    """Windows that overlap by R - 1 tokens which are not scored again: the loss of one pass over everything."""
    unscored, length, window = model.config.receptive_field - 1, 120, 40
    text = torch.randint(0, 23, (length + 1,))

    def losses(features, targets):
        return F.cross_entropy(model.readout(features), targets, reduction="none")

    state, streamed = model.initial_state(1), []
    for token, target in itertools.pairwise(text):
        features, state = model(token.view(1, 1), state)
        streamed.append(losses(features[0], target.view(1)))
    scored = [losses(model(text[None, :window])[0][0], text[1 : window + 1])]
    done = window
    while done < length:
        start = done - unscored
        end = min(start + window, length)
        features, _ = model(text[None, start:end])
        scored.append(losses(features[0, unscored:], text[done + 1 : end + 1]))
        done = end
    torch.testing.assert_close(torch.cat(scored), torch.cat(streamed), rtol=1e-10, atol=1e-10)


class Operations(TorchDispatchMode):
    """Every operation, with the numbers that it puts out."""

    def __init__(self):
        super().__init__()
        self.done = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.done.append((str(function), result.numel() if isinstance(result, torch.Tensor) else None))
        return result


@torch.inference_mode()
def test_a_token_costs_the_same_wherever_it_stands(model):
    done, sizes = {}, {}
    for position in (10, 4000):
        _, state = model(torch.randint(0, 23, (1, position)), model.initial_state(1))
        _, state = model(torch.randint(0, 23, (1, 1)), state)
        with Operations() as operations:
            _, state = model(torch.randint(0, 23, (1, 1)), state)
        done[position], sizes[position] = operations.done, state.nbytes
        assert state.length == position + 2
    assert len(done[10]) > 10
    assert done[10] == done[4000]
    assert sizes[10] == sizes[4000]


@torch.inference_mode()
def test_generation_follows_the_training_path_far_beyond_the_receptive_field(model):
    written = generation.generate(model, [[5]], 60, temperature=0)[0]
    features, _ = model(torch.tensor([written]))
    assert model.readout(features)[0, :-1].argmax(-1).tolist() == written[1:]


# --- the start, the settings, a run ------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", CNN.presets)
def test_a_preset_starts_near_the_uniform_distribution(preset):
    model = CNN(CNNConfig(vocab_size=65, **CNN.presets[preset]["model"])).eval()
    tokens = torch.randint(0, 65, (2, 200))
    with torch.no_grad():
        features, _ = model(tokens)
        loss = F.cross_entropy(model.readout(features[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
    assert loss.item() == pytest.approx(math.log(65), rel=0.1)


@pytest.mark.parametrize("name", TINY)
def test_dropout_acts_in_training_alone(name):
    model = tiny(name, dropout=0.3)
    tokens = tokens_for(model)
    assert torch.equal(model(tokens)[0], model(tokens)[0])
    model.train()
    assert not torch.equal(model(tokens)[0], model(tokens)[0])


@pytest.mark.parametrize("context", [1, 3, 16, 100, 256, 1024, 4096])
def test_sized_sees_the_context_and_not_much_more(context):
    config = CNNConfig.sized(1_000_000, vocab_size=65, context=context)
    assert context <= config.receptive_field <= max(2 * context, 3)
    built = CNN(config)
    assert sum(parameter.numel() for parameter in built.parameters()) == pytest.approx(1_000_000, rel=0.02)


def test_sized_says_how_far_a_cnn_can_see():
    with pytest.raises(ValueError, match="no CNN sees 10,000,000 tokens; the furthest sees 2,097,239"):
        CNNConfig.sized(1_000_000, vocab_size=65, context=10_000_000)
    assert CNNConfig(vocab_size=65, depth=64, dilations=20).receptive_field == 2_097_239
    with pytest.raises(ValueError, match="no CNN with vocabulary 65 that sees 2097239 tokens"):
        CNNConfig.sized(3, vocab_size=65, context=2_097_239)


@pytest.mark.parametrize(("ours", "other"), [("tcn of one width", "gated"), ("gated", "tcn of one width")])
def test_a_state_of_other_blocks_is_refused(ours, other):
    ours, other = (tiny(name, depth=2, dilations=2) for name in (ours, other))
    with pytest.raises(ValueError, match=r"its blocks have \[\d, \d\] memories, this CNN's \[\d, \d\]; start"):
        ours(torch.zeros(2, 3, dtype=torch.int64), other.initial_state(2))


@pytest.mark.parametrize(("changes", "message"), [
    ({"dim": 0}, "dim is 0; it must be at least 1"),
    ({"depth": -1}, "depth is -1; it must be at least 1"),
    ({"hidden_dim": 0}, "hidden_dim is 0; it must be at least 1, or left out"),
    ({"kernel": 1}, "kernel is 1; it must be at least 2"),
    ({"dilations": 0}, "dilations is 0; it must be 1 to 3: each takes one of the 3 blocks"),
    ({"dilations": 4}, "dilations is 4; it must be 1 to 3"),
    ({"depth": 40, "dilations": 21}, "dilations is 21; it must be 1 to 20"),
    ({"dropout": 1.0}, "dropout is 1.0; it must be at least 0 and below 1"),
])  # fmt: skip
def test_bad_shapes_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        CNNConfig(**{**vars(CNNConfig.tiny()), **changes})


@pytest.mark.parametrize("name", ["gated", "tcn"])
def test_a_run_is_saved_and_loaded_with_its_parametrizations(new_run, name):
    shape = {key: value for key, value in vars(CNNConfig.tiny()).items() if key != "vocab_size"} | TINY[name]
    run = new_run(arch="cnn", window=16, steps=4, model=shape)
    records = list(loop.train(run))
    assert records[-1].reason == "finished"
    model, tokenizer = load(run.path)
    assert isinstance(model, CNN)
    saved = run.checkpoint("last").weights()
    assert saved.keys() == model.state_dict().keys()
    assert generation.generate(model, [tokenizer.encode("A and")], 4, seed=1)


def train_to_copy(depth, steps):
    """A model of the default's kind after so many steps of the task with a wait of 200, and its loss in nats."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    model = CNN(CNNConfig(vocab_size=COPY_VOCABULARY, dim=32, depth=depth, dilations=depth))
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(steps):
        total, count = loss_sum(model, copy_memory(16, 200, generator))
        optimizer.zero_grad()
        (total / count).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    batch = copy_memory(100, 200, torch.Generator().manual_seed(1))
    with torch.no_grad():
        total, count = loss_sum(model, batch)
        said = model.readout(model(batch.tokens)[0][:, -10:]).argmax(-1)
    assert count == 100 * 10
    return model, total.item() / count, (said == batch.targets[:, -10:]).double().mean().item()


@pytest.mark.slow
def test_a_stack_that_reaches_far_enough_solves_copy_memory():
    model, loss, right = train_to_copy(depth=8, steps=700)
    assert model.config.receptive_field == 511
    assert loss < 0.01
    assert right == 1


@pytest.mark.slow
def test_a_stack_that_does_not_reach_the_symbols_cannot_copy_them():
    model, loss, right = train_to_copy(depth=6, steps=300)
    assert model.config.receptive_field == 127 < 200
    assert loss > 0.98 * math.log(SYMBOLS)
    assert right < 0.2
