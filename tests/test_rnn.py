"""The recurrences are torch's: nn.RNN, nn.LSTM and nn.GRU in outputs and all gradients, and their two paths agree."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize

from scratchlm.model import record
from scratchlm.models import MODELS
from scratchlm.models.bigram import Bigram, BigramConfig
from scratchlm.models.gru import GatedRecurrentUnit
from scratchlm.models.lstm import LongShortTermMemory
from scratchlm.models.rnn import Elman
from scratchlm.recurrence import Recurrence, _Unrolled, variational_dropout
from tasks import COPY_VOCABULARY, copy_memory

THEIRS = {Elman: nn.RNN, LongShortTermMemory: nn.LSTM, GatedRecurrentUnit: nn.GRU}
RECURRENT = ["rnn", "lstm", "gru"]
INPUT, HIDDEN = 6, 10

every_layer = pytest.mark.parametrize("layer", THEIRS, ids=lambda layer: layer.__name__)


def weights_of(layer):
    return [layer.input.weight, layer.recurrent.weight, layer.input.bias, layer.recurrent.bias]


def make(layer, dtype=torch.float64):
    """A layer, its inputs' width and its hidden width unequal, its biases not 0."""
    made = layer(INPUT, HIDDEN).to(dtype)
    with torch.no_grad():
        for weight in weights_of(made):
            weight.normal_(std=0.5)
    return made


def inputs(layer, steps, rows, dtype=torch.float64):
    x = torch.randn(steps, rows, INPUT, dtype=dtype, requires_grad=True)
    return x, tuple(torch.randn(rows, HIDDEN, dtype=dtype, requires_grad=True) for _ in layer.vectors)


def agree(ours, theirs, tolerance):
    """The largest difference, measured by the largest entry where that is above 1 (a gradient sums over all steps)."""
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert one.shape == other.shape
        if other.numel():
            assert (one - other).abs().max() <= tolerance * max(1, other.abs().max())


def all_gradients(outputs, leaves, probes):
    return torch.autograd.grad(outputs, leaves, probes, retain_graph=True)


@every_layer
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.float64, 1e-12)], ids=str)
@pytest.mark.parametrize(("steps", "rows"), [(1, 1), (1, 4), (9, 3), (60, 5)])
def test_outputs_and_all_gradients_equal_torch(layer, dtype, tolerance, steps, rows):
    ours, theirs = make(layer, dtype), THEIRS[layer](INPUT, HIDDEN).to(dtype)
    with torch.no_grad():
        for one, other in zip(weights_of(ours), theirs.parameters(), strict=True):
            assert one.shape == other.shape
            other.copy_(one)
    x, memory = inputs(layer, steps, rows, dtype)
    hidden, after = ours(x, memory)
    first = tuple(vector[None] for vector in memory)
    expected, last = theirs(x, first if len(first) > 1 else first[0])
    expected_after = tuple(vector[0] for vector in (last if isinstance(last, tuple) else (last,)))
    agree([hidden, *after], [expected, *expected_after], tolerance)
    probes = [torch.randn_like(tensor) for tensor in (hidden, *after)]
    agree(
        all_gradients((hidden, *after), [x, *memory, *weights_of(ours)], probes),
        all_gradients((expected, *expected_after), [x, *memory, *theirs.parameters()], probes),
        tolerance,
    )


@every_layer
@pytest.mark.parametrize("steps", [0, 1, 9])
def test_all_steps_at_once_equal_the_plain_loop(layer, steps):
    ours = make(layer)
    x, memory = inputs(layer, steps, 3)
    hidden, after = ours(x, memory)
    with record(ours) as shown:
        plain, plain_after = ours(x, memory)
    assert list(shown) == list(layer.vectors)
    assert shown["hidden"][0].shape == (3, steps, HIDDEN)
    agree([hidden, *after], [plain, *plain_after], 1e-12)
    probes = [torch.randn_like(tensor) for tensor in (hidden, *after)]
    leaves = [x, *memory, *weights_of(ours)]
    fast, slow = (
        torch.autograd.grad(outputs, leaves, probes, allow_unused=True, materialize_grads=True)
        for outputs in ((hidden, *after), (plain, *plain_after))
    )
    agree(fast, slow, 1e-12)


@every_layer
def test_gradients_equal_finite_differences(layer):
    ours = make(layer)
    x, memory = inputs(layer, 4, 2)
    weights = [weight.detach().requires_grad_() for weight in weights_of(ours)]
    assert torch.autograd.gradcheck(lambda *tensors: _Unrolled.apply(layer, *tensors), (x, *weights, *memory))


@every_layer
def test_a_second_derivative_is_refused_and_the_plain_loop_has_it(layer):
    ours = make(layer)
    x, memory = inputs(layer, 4, 2)
    with pytest.raises(RuntimeError, match=r"no second derivative; inside `with record\(model\):`"):
        torch.autograd.grad(ours(x, memory)[0].sum(), x, create_graph=True)
    with record(ours):
        (once,) = torch.autograd.grad(ours(x, memory)[0].sum(), x, create_graph=True)
    (twice,) = torch.autograd.grad(once.square().sum(), x)
    assert twice.abs().sum() > 0


@every_layer
def test_going_back_twice_and_odd_strides(layer):
    """What was kept is not written to; the gradient of a sum has strides of 0; a chunk may be a view."""
    ours = make(layer)
    x, memory = inputs(layer, 5, 3)
    hidden, _ = ours(x, memory)
    first = torch.autograd.grad(hidden.sum(), [x, *weights_of(ours)], retain_graph=True)
    agree(torch.autograd.grad(hidden.sum(), [x, *weights_of(ours)]), first, 0)
    batch_first = x.detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_()
    assert not batch_first.is_contiguous()
    hidden, _ = ours(batch_first, memory)
    agree(torch.autograd.grad(hidden.sum(), [batch_first, *weights_of(ours)]), first, 1e-12)


@every_layer
def test_sixteen_bits(layer):
    """Sums over the steps are taken in 32 bits; what comes out has the type of the activations."""
    ours = make(layer)
    x, memory = inputs(layer, 50, 3)
    expected, _ = ours(x, memory)
    half = make(layer, torch.bfloat16)
    half.load_state_dict(ours.state_dict())
    hidden, after = half(x.bfloat16(), tuple(vector.bfloat16() for vector in memory))
    assert {tensor.dtype for tensor in (hidden, *after)} == {torch.bfloat16}
    assert (hidden - expected).abs().mean() < 0.02
    hidden.sum().backward()
    assert half.recurrent.weight.grad.dtype == torch.bfloat16
    single = ours.float()
    with torch.autocast("cpu", torch.bfloat16):
        begun = single.initial_memory(x.float()[:0])
        hidden, after = single(x.float(), begun)
    assert {tensor.dtype for tensor in (hidden, *begun, *after)} == {torch.bfloat16}


@every_layer
def test_a_parametrised_weight_is_the_one_that_runs(layer):
    """As a low-rank adaptation does: the matrix is read through the module."""

    class Plus(nn.Module):
        def __init__(self, like):
            super().__init__()
            self.change = nn.Parameter(0.1 * torch.randn_like(like))

        def forward(self, weight):
            return weight + self.change

    ours = make(layer)
    x, memory = inputs(layer, 5, 3)
    before, _ = ours(x, memory)
    for linear in (ours.input, ours.recurrent):
        parametrize.register_parametrization(linear, "weight", Plus(linear.weight))
    hidden, _ = ours(x, memory)
    with record(ours):
        plain, _ = ours(x, memory)
    agree([hidden], [plain], 1e-12)
    assert (hidden - before).abs().max() > 1e-3
    hidden.sum().backward()
    for linear in (ours.input, ours.recurrent):
        assert linear.parametrizations.weight[0].change.grad.abs().sum() > 0


@pytest.mark.parametrize("name", RECURRENT)
def test_the_loop_stays_outside_a_compiled_graph(name):
    model = MODELS[name](MODELS[name].Config.tiny()).double()
    tokens = torch.randint(0, 23, (2, 8))
    graphs = []

    def backend(graph, example):
        graphs.append(graph)
        return graph

    compiled = torch.compile(model, backend=backend)
    torch.testing.assert_close(compiled(tokens)[0], model(tokens)[0], rtol=1e-12, atol=1e-12)
    called = [str(node.target) for graph in graphs for node in graph.graph.nodes]
    assert any("layer_norm" in name for name in called), "the rest is compiled"
    assert not any("addmm" in name or "tanh" in name or "sigmoid" in name for name in called)
    torch.compiler.reset()


def built(name, **shape):
    return MODELS[name](MODELS[name].Config(**{"vocab_size": 23, "dim": 16, "hidden_dim": 24, "depth": 3, **shape}))


@pytest.mark.parametrize("name", RECURRENT)
def test_initialisation(name):
    model = built(name, dim=64, hidden_dim=48)
    for block in model.blocks:
        layer = block.recurrence
        for matrix in layer.recurrent.weight.chunk(layer.gates):
            torch.testing.assert_close(matrix @ matrix.T, torch.eye(48), rtol=1e-5, atol=1e-5)
        bound = math.sqrt(6 / (64 + 48))
        assert 0.98 * bound < layer.input.weight.abs().max() <= bound
        forget = torch.arange(len(layer.input.bias)).div(48, rounding_mode="floor") == 1
        assert torch.equal(layer.input.bias, forget.float() if name == "lstm" else torch.zeros_like(layer.input.bias))
        assert not layer.recurrent.bias.any()
        assert block.mlp_output.weight.std().item() == pytest.approx(0.02 / math.sqrt(6), rel=0.05)
    tokens = torch.randint(0, 23, (4, 32))
    features, _ = model(tokens)
    assert features.mean(-1).abs().max() < 1e-5, "a final norm"
    loss = F.cross_entropy(model.readout(features[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
    assert loss.item() == pytest.approx(math.log(23), rel=0.05)


@pytest.mark.parametrize("name", RECURRENT)
def test_the_memory_has_one_size_and_keeps_nothing_else_alive(name):
    model = built(name)
    state = model.initial_state(2)
    vectors = len(model.blocks[0].recurrence.vectors)
    assert state.nbytes == 2 * 3 * vectors * 24 * 4
    for length in (1, 70, 0, 5):
        _, after = model(torch.zeros(2, length, dtype=torch.int64), state)
        assert after.nbytes == state.nbytes
        for tensor in itertools.chain(*after.memories):
            assert tensor.untyped_storage().nbytes() == tensor.nbytes
        state = after.detach()
    assert state.length == 76
    other, _ = model(torch.zeros(5, 3, dtype=torch.int64))
    assert other.shape == (5, 3, 16), "a batch of another size needs no reset"
    assert (state.reset(torch.tensor([1])).memories[0][0][1] == 0).all()


@pytest.mark.parametrize(
    "make_state",
    [
        lambda: built("rnn", hidden_dim=16).initial_state(2),
        lambda: built("rnn", depth=2).initial_state(2),
    ],
    ids=["width", "depth"],
)
def test_a_state_of_another_model_is_refused(make_state):
    with pytest.raises(ValueError, match="of another model than this RNN of 3 blocks with 24 hidden units"):
        built("rnn")(torch.zeros(2, 3, dtype=torch.int64), make_state())


@pytest.mark.parametrize(("field", "value"), [("dim", 0), ("hidden_dim", -1), ("depth", 0), ("dropout", 1.0)])
def test_a_shape_that_cannot_be_is_refused(field, value):
    with pytest.raises(ValueError, match=f"{field} is {value}; it must be"):
        MODELS["rnn"].Config(vocab_size=5, **{field: value})


def test_each_part_runs_once_for_all_steps():
    """ScratchLMs, RNN: norms, MLP and head run anew for each token."""
    model = built("rnn")
    state, calls = model.initial_state(2), []
    for name, module in model.named_modules():
        if not list(module.children()):
            module.register_forward_hook(lambda module, args, output, name=name: calls.append(name))
    model.readout(model(torch.zeros(2, 50, dtype=torch.int64), state)[0])
    assert len(calls) == len(set(calls))


def test_the_residual_branch_is_not_squashed():
    """ScratchLMs, RNN: a second tanh keeps what a block adds within -1 and 1."""
    block = built("rnn").blocks[0]
    with torch.no_grad():
        block.recurrence_output.weight.mul_(1000)
        x = torch.randn(5, 2, 16)
        added = block(x, block.recurrence.initial_memory(x[:0]))[0] - x
    assert added.abs().max() > 10


def test_dropout_drops_the_same_at_all_steps_and_in_training_alone():
    x = torch.ones(50, 2, 400)
    dropped = variational_dropout(x, 0.25, training=True)
    assert torch.equal(dropped, dropped[:1].expand_as(dropped))
    assert not torch.equal(dropped[0, 0], dropped[0, 1])
    assert (dropped == 0).float().mean().item() == pytest.approx(0.25, abs=0.06)
    assert dropped.max().item() == pytest.approx(1 / 0.75)
    assert variational_dropout(x, 0.25, training=False) is x
    model, tokens = built("gru", dropout=0.3), torch.randint(0, 23, (1, 8))
    assert not torch.equal(model(tokens)[0], model(tokens)[0])
    model.eval()
    assert torch.equal(model(tokens)[0], model(tokens)[0])


@pytest.mark.parametrize("name", RECURRENT)
def test_record_changes_nothing_and_names_each_block(name):
    model = built(name).double()
    tokens = torch.randint(0, 23, (2, 9))
    plain, _ = model(tokens)
    with record(model) as shown:
        features, _ = model(tokens)
    torch.testing.assert_close(features, plain, rtol=1e-12, atol=1e-12)
    vectors = model.blocks[0].recurrence.vectors
    assert list(shown) == [f"blocks.{index}.recurrence.{vector}" for index in range(3) for vector in vectors]


def test_a_trained_bigram_is_the_table_of_counts():
    """The loss is least where the softmax of a row is the share of each next token."""
    tokens = torch.randint(0, 4, (1, 400)) * torch.randint(0, 2, (1, 400))
    model = Bigram(BigramConfig(vocab_size=4))
    optimizer = torch.optim.Adam(model.parameters(), 0.1)
    for _ in range(200):
        optimizer.zero_grad()
        features, _ = model(tokens[:, :-1])
        F.cross_entropy(model.readout(features)[0], tokens[0, 1:]).backward()
        optimizer.step()
    counts = torch.zeros(4, 4).index_put((tokens[0, :-1], tokens[0, 1:]), torch.ones(399), accumulate=True)
    features, _ = model(torch.arange(4)[None])
    torch.testing.assert_close(model.readout(features)[0].softmax(-1), counts / counts.sum(1, True), atol=1e-3, rtol=0)


def test_what_the_copy_task_asks():
    batch = copy_memory(3, 20, torch.Generator().manual_seed(0))
    assert batch.tokens.shape == batch.targets.shape == (3, 40)
    assert batch.tokens.max() < COPY_VOCABULARY
    assert torch.equal(batch.targets[:, -10:], batch.tokens[:, :10])
    assert (batch.targets[:, :-10] < 0).all()
    assert ((batch.tokens[:, :10] > 0) & (batch.tokens[:, :10] < 9)).all()
    assert (batch.tokens[:, 10:29] == 0).all()
    assert (batch.tokens[:, 29:] == 9).all()
    assert batch.target_count == 30


def test_the_base_of_recurrences_is_no_layer():
    with pytest.raises(TypeError, match="abstract"):
        Recurrence(1, 1)
