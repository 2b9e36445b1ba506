"""What saves time or memory and changes nothing else: 16-bit products, parts of a batch, activations computed again."""

import dataclasses
import math
from functools import partial

import pytest
import torch
from torch.utils import _pytree as pytree

from contract import LENGTH, begin, tokens_for, whole
from runs import same_end
from scratchlm import runtime
from scratchlm.errors import InputError
from scratchlm.models import MODELS
from scratchlm.training import loop
from scratchlm.training.material import training_batches
from scratchlm.training.sharding import recompute_activations
from scratchlm.training.step import Training, TrainingStep
from two_processes import CPU, close, data, settings

ARCHITECTURES = {name: (name, {}) for name in MODELS} | {
    f"cnn-{block}": ("cnn", {"block": block}) for block in ("gcnn", "tcn", "wavenet")
}
everywhere = pytest.mark.parametrize("name", ARCHITECTURES)


def make(name, dropout=0.0):
    arch, changed = ARCHITECTURES[name]
    config = MODELS[arch].Config.tiny()
    dropouts = {field.name: dropout for field in dataclasses.fields(config) if field.name.endswith("dropout")}
    torch.manual_seed(0)
    return MODELS[arch](dataclasses.replace(config, **changed, **dropouts))


def one_batch(name):
    arch, _ = ARCHITECTURES[name]
    return training_batches(settings(arch), data(arch)).batch(2)


def losses_and_gradients(step, batch, dtype=torch.float32):
    step.zero_grad()
    with runtime.autocast(CPU, dtype):
        lowered, plain, _ = step(batch)
    lowered.backward()
    return plain.detach(), {name: parameter.grad for name, parameter in step.model.named_parameters()}


@everywhere
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 1e-2), (torch.float16, 1e-3)])
def test_a_step_in_16_bits_is_near_to_that_in_32(name, dtype, tolerance):
    """The loss to 1 % (fp16 0.1 %) and the gradient's direction to a cosine of 0.99 (0.999); gradients are float32."""
    step, batch = TrainingStep(make(name)), one_batch(name)
    loss, gradients = losses_and_gradients(step, batch)
    narrow_loss, narrow = losses_and_gradients(step, batch, dtype)
    assert narrow_loss.dtype == torch.float32
    assert abs(narrow_loss - loss) <= tolerance * loss
    assert {gradient.dtype for gradient in narrow.values()} == {torch.float32}
    assert narrow.keys() == gradients.keys()
    one, two = (torch.cat([g.flatten() for g in each.values()]) for each in (gradients, narrow))
    assert torch.cosine_similarity(one, two, 0) > 1 - tolerance


@everywhere
def test_decoding_in_16_bits_is_near_to_the_training_path(name):
    """Token by token, with both kinds of memory, to 2 % of the largest feature; memory is as narrow as activations."""
    model = make(name).eval()
    tokens = tokens_for(model)
    with torch.no_grad(), runtime.autocast(CPU, torch.bfloat16):
        expected = whole(model, tokens).float()
        state = model(tokens[:, :1], begin(model, tokens))[1]
        kinds = [leaf.dtype for leaf in pytree.tree_leaves(state) if isinstance(leaf, torch.Tensor)]
        for capacity in (None, LENGTH):
            state, parts = begin(model, tokens, capacity), []
            for token in tokens.split(1, 1):
                features, state = model(token, state)
                parts.append(features.float())
                assert kinds == [leaf.dtype for leaf in pytree.tree_leaves(state) if isinstance(leaf, torch.Tensor)]
            assert (torch.cat(parts, 1) - expected).abs().max() <= 2e-2 * expected.abs().max()
    assert name in ("bigram", "cnn", "cnn-gcnn", "cnn-wavenet") or torch.bfloat16 in kinds


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_run_in_16_bits_learns(new_run, precision):
    run = new_run(
        precision=precision, steps=60, eval_every=60, model={"context": 16, "dim": 16, "depth": 2, "heads": 2}
    )
    started, *_ = list(loop.train(run))
    assert started.precision == precision
    lines = run.metrics()
    assert lines[-1]["val_loss"] < 0.7 * lines[0]["loss"]
    assert {tensor.dtype for tensor in run.checkpoint("last").weights().values()} == {torch.float32}


# --- fp16 and its scaler ---------------------------------------------------------------------------------------------


def narrow_training(scale):
    config = settings("gpt", precision="fp16")
    torch.manual_seed(0)
    training = Training(MODELS["gpt"](config.model), config, CPU)
    training.scaler.load_state_dict({**training.scaler.state_dict(), "scale": scale})
    return training, training_batches(config, data("gpt"))


def test_a_step_that_overflows_is_left_out():
    training, batches = narrow_training(2.0**60)
    before = {name: tensor.clone() for name, tensor in training.model.state_dict().items()}
    updated = training.update(*batches.part(0, 0, 1), [None])
    assert training.scaler.get_scale() == 2.0**59, "and the scale is halved"
    assert all(torch.equal(tensor, before[name]) for name, tensor in training.model.state_dict().items())
    assert updated.loss.isfinite()
    assert updated.grad_norm == 0
    training.scaler.load_state_dict({**training.scaler.state_dict(), "scale": 1024.0})
    assert training.update(*batches.part(0, 0, 1), [None]).grad_norm > 0
    assert not all(torch.equal(tensor, before[name]) for name, tensor in training.model.state_dict().items())


@pytest.mark.parametrize("scale", [1.0, 1024.0])
def test_what_was_scaled_is_unscaled_before_it_is_clipped(scale):
    """The gradient's norm is that of a training in float32, to 1 %."""
    training, batches = narrow_training(scale)
    torch.manual_seed(0)
    config = settings("gpt")
    expected = Training(MODELS["gpt"](config.model), config, CPU).update(*batches.part(0, 0, 1), [None])
    updated = training.update(*batches.part(0, 0, 1), [None])
    torch.testing.assert_close(updated.grad_norm, expected.grad_norm, rtol=1e-2, atol=0)
    assert expected.grad_norm > config.optim.grad_clip


def begin_with_scale(monkeypatch, scale):
    scaler = torch.amp.GradScaler
    monkeypatch.setattr(torch.amp, "GradScaler", partial(scaler, init_scale=scale))


def test_a_run_goes_on_after_steps_that_overflow(new_run, monkeypatch):
    begin_with_scale(monkeypatch, 2.0**22)
    run = new_run(precision="fp16", log_every=1)
    assert list(loop.train(run))[-1].reason == "finished"
    lines = run.metrics()
    assert lines[0]["grad_norm"] == 0
    assert all(math.isfinite(line["loss"]) for line in lines)
    together = new_run(precision="fp16", log_every=len(lines), eval_every=len(lines))
    list(loop.train(together))
    taken = [line["grad_norm"] for line in lines if line["grad_norm"]]
    assert len(taken) < len(lines), "some steps were left out"
    assert together.metrics()[-1]["grad_norm"] == pytest.approx(sum(taken) / len(taken), rel=1e-6)


def test_a_scaler_goes_on_where_it_was(new_run, monkeypatch):
    begin_with_scale(monkeypatch, 2.0**22)
    straight, stopped = new_run(precision="fp16"), new_run(precision="fp16", steps=4, horizon=12)
    list(loop.train(straight))
    list(loop.train(stopped))
    begin_with_scale(monkeypatch, 2.0**60)  # what a new one would begin with
    list(loop.train(stopped, steps=12))
    same_end(stopped, straight)
    saved = straight.checkpoint("last").optimizer()
    assert saved["scaler|scale"] < 2.0**22, "there was something to go on with"


def test_a_run_whose_scale_collapses_has_diverged(new_run, monkeypatch):
    """Gradients that are never finite while the loss is: no scale is small enough, and nothing would be learned."""
    begin_with_scale(monkeypatch, 2.0**-10)
    run = new_run(precision="fp16", steps=100, eval_every=100)

    class Broken(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient * math.inf

    losses = TrainingStep.losses
    monkeypatch.setattr(TrainingStep, "losses", lambda self, x, targets: losses(self, Broken.apply(x), targets))
    with pytest.raises(loop.DivergenceError, match=r"in fp16.*--precision fp32"):
        list(loop.train(run))


# --- what is chosen -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("capability", "dtype"),
    [((7, 0), torch.float32), ((7, 5), torch.float32), ((8, 0), torch.bfloat16), ((9, 0), torch.bfloat16)],
)
def test_auto_goes_by_what_a_chip_computes(monkeypatch, capability, dtype):
    """V100, T4, A100, H100: older ones say that they support bf16, too."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_: True)
    chosen, why = runtime.choose_precision("auto", torch.device("cuda"))
    assert chosen == dtype
    assert "{}.{}".format(*capability) in why


@pytest.mark.parametrize("device", ["cpu", "mps"])
def test_auto_is_exact_elsewhere(device):
    assert runtime.choose_precision("auto", torch.device(device))[0] == torch.float32


def test_what_cannot_be_computed_is_refused(new_run):
    with pytest.raises(InputError, match="fp16 needs a scaler"):
        runtime.choose_precision("fp16", torch.device("mps"))
    with pytest.raises(InputError, match="choose from: auto, fp32, bf16, fp16"):
        runtime.choose_precision("fp8", CPU)
    with pytest.raises(InputError, match="fp16 and shard"):
        new_run(precision="fp16", shard=True)


# --- parts of a batch, chunks of the loss, activations computed again -------------------------------------------------


@pytest.mark.parametrize("arch", ["gpt", "transformer", "rnn"])
def test_four_parts_of_eight_are_a_batch_of_32(arch):
    """In float64 to 1e-9: with padding, where a mean of the parts' means would be another loss; and 5 uneven parts."""
    config = dataclasses.replace(settings(arch), batch_size=32, batch_tokens=32 * 8)
    batches = training_batches(config, data(arch))
    ends = []
    for parts in (1, 4, 5):
        torch.manual_seed(0)
        model = MODELS[arch](config.model).double()
        training = Training(model, dataclasses.replace(config, accumulate=parts), CPU)
        norms = [training.update(*batches.part(step, 0, 1), [None] * parts).grad_norm for step in range(3)]
        ends.append((torch.stack(norms), model.state_dict()))
    if arch == "transformer":
        parts = [{batches.batch(step).part(index, 4).target_count for index in range(4)} for step in range(3)]
        assert max(map(len, parts)) > 1
    for norms, weights in ends[1:]:
        close(norms, ends[0][0], "gradient norms")
        for name, tensor in weights.items():
            close(tensor, ends[0][1][name], name)


def kept_bytes(step, batch):
    """What autograd keeps from forward to backward, each storage once, parameters not counted."""
    parameters = {parameter.untyped_storage().data_ptr() for parameter in step.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = (storage.nbytes(), storage)  # held, so that no other takes its place
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = step(batch)[0]
    assert loss.isfinite()
    return sum(size for size, _ in kept.values())


@everywhere
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_loss_in_chunks_is_the_same(name, smoothing):
    """To 1e-9 in float64, in chunks that do not come out even, with less memory."""
    batch, model = one_batch(name), make(name).double()
    step = TrainingStep(model, label_smoothing=smoothing)
    loss, gradients = losses_and_gradients(step, batch)
    gradients = {key: value.clone() for key, value in gradients.items()}
    for rows in (1, 7, 10_000):
        step.loss_rows = rows
        same, chunked = losses_and_gradients(step, batch)
        close(same, loss, "loss")
        for key, gradient in gradients.items():
            close(chunked[key], gradient, key)
    if name != "bigram":  # whose features are its logits
        whole_loss = kept_bytes(TrainingStep(model, label_smoothing=smoothing), batch)
        assert kept_bytes(TrainingStep(model, label_smoothing=smoothing, loss_rows=7), batch) < whole_loss


@everywhere
def test_activations_that_are_computed_again_are_the_same(name):
    """Losses and gradients bit for bit, with dropout: its random numbers are drawn again as they were."""
    batch, plain, again = one_batch(name), make(name, dropout=0.3), make(name, dropout=0.3)
    recompute_activations(again)
    told = []
    for model in (plain, again):
        torch.manual_seed(1)
        told.append(losses_and_gradients(TrainingStep(model), batch))
    assert torch.equal(told[0][0], told[1][0])
    for key, gradient in told[0][1].items():
        assert torch.equal(told[1][1][key], gradient), key
    if name != "bigram":
        assert kept_bytes(TrainingStep(again), batch) < kept_bytes(TrainingStep(plain), batch)


# --- compilation ------------------------------------------------------------------------------------------------------


def compiled_training(config, batches):
    torch.manual_seed(0)
    return Training(MODELS[config.arch](config.model), config, CPU, example=batches.part(0, 0, 1)[0])


def check_compiled(arch):
    """Six updates of batches of several shapes are those of an eager training; the random state stays."""
    config = settings(arch)
    batches = training_batches(config, data(arch))
    eager = compiled_training(config, batches)
    before = torch.get_rng_state()
    training = compiled_training(dataclasses.replace(config, compile="on"), batches)
    assert training.compilation.startswith("compiled (")
    assert torch.equal(torch.get_rng_state(), before)
    assert training.model.state_dict().keys() == eager.model.state_dict().keys(), "no name has a prefix"
    for step in range(6):
        part = batches.part(step, 0, 1)
        one, two = eager.update(*part, [None]), training.update(*part, [None])
        torch.testing.assert_close(two, one, rtol=1e-4, atol=1e-5)
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


@pytest.fixture
def fresh_compiler():
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch.compiler.reset()


@pytest.mark.parametrize("arch", ["gpt", pytest.param("transformer", marks=pytest.mark.slow)])
def test_a_traced_step_equals_an_eager_one(monkeypatch, fresh_compiler, arch):
    """All that a compiler does but for making machine code: one graph, of pairs another where there is but one pair."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    assert check_compiled(arch) <= (1 if arch == "gpt" else 2)


@pytest.mark.slow
@pytest.mark.parametrize("arch", list(MODELS))
def test_a_compiled_step_equals_an_eager_one(fresh_compiler, arch):
    check_compiled(arch)


def without_a_compiler(module, dynamic):
    class Fails(torch.nn.Module):
        def forward(self, *_):
            raise RuntimeError("\n  C++ compile error: no compiler is here\nand much more")

    return Fails()


def test_auto_goes_on_where_nothing_compiles(new_run, monkeypatch):
    monkeypatch.setattr(torch, "compile", without_a_compiler)
    run, plain = new_run(compile="auto"), new_run()
    started, *_ = list(loop.train(run))
    assert "C++ compile error: no compiler is here" in started.compilation
    assert "\n" not in started.compilation
    list(loop.train(plain))
    same_end(run, plain)


def test_on_is_refused_where_nothing_compiles(new_run, monkeypatch):
    monkeypatch.setattr(torch, "compile", without_a_compiler)
    with pytest.raises(InputError, match=r"no compiler is here.*--compile auto or off"):
        list(loop.train(new_run(compile="on")))
