"""The Transformer equals torch's own layers and transformers' Marian, and nothing is seen that may not be."""

import contextlib
import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import MarianConfig, MarianMTModel

from scratchlm.data.batches import IGNORED
from scratchlm.inspect.modules import flops_per_token
from scratchlm.layers import CausalSelfAttention, LayerNorm
from scratchlm.model import Source, record
from scratchlm.models import transformer
from scratchlm.models.transformer import KeysValues, SourceAttention, Transformer, TransformerConfig, sinusoids

pytestmark = pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")
SHAPE = {"context": 16, "source_context": 16, "dim": 24, "depth": 2, "heads": 4, "hidden_dim": 40}
NO_DROPOUT = {"dropout": 0.0, "embedding_dropout": 0.0}
CONFIG = TransformerConfig(vocab_size=31, **SHAPE, **NO_DROPOUT)
EXACT = {"rtol": 1e-12, "atol": 1e-12}


class TorchTransformer(nn.Module):
    """nn.Transformer with our embeddings: what the paper's sections 3.4 and 3.5 leave to its user."""

    def __init__(self, config: TransformerConfig, final_norms: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.vocab_size, config.dim)
        self.core = nn.Transformer(
            config.dim, config.heads, config.depth, config.depth, config.hidden_dim, 0.0,
            batch_first=True, norm_first=config.norm == "pre",
        )  # fmt: skip
        self.core.encoder.enable_nested_tensor = False  # it would set padded positions to zeros
        if not final_norms:  # they are there whatever the norm, and the paper has none
            self.core.encoder.norm = self.core.decoder.norm = None
        self.register_buffer("positions", sinusoids(config.context, config.dim))

    def embed(self, ids):
        x = self.embedding(ids) * math.sqrt(self.embedding.embedding_dim)
        return x + self.positions[: ids.shape[1]].to(x.dtype)

    def forward(self, source, tokens):
        blocked = torch.arange(source.ids.shape[1]) >= source.lengths[:, None]
        features = self.core(
            self.embed(source.ids),
            self.embed(tokens),
            tgt_mask=torch.ones(tokens.shape[1], tokens.shape[1], dtype=torch.bool).triu(1),
            src_key_padding_mask=blocked,
            memory_key_padding_mask=blocked,
        )
        return features @ self.embedding.weight.T


def parts(name):
    """Our parameters, in order, that make up one of nn.Transformer's."""
    if name == "embedding.weight":
        return [name]
    _, stack, *rest = name.split(".")
    if rest[0] == "norm":
        return [f"{stack}_norm.{rest[1]}"]
    _, index, layer, *rest = rest
    block = f"{'encoder' if stack == 'encoder' else 'blocks'}.{index}"
    kind = rest[-1].rpartition("_")[2]  # weight or bias
    norms = {"encoder": ["attention", "feed_forward"], "decoder": ["attention", "cross_attention", "feed_forward"]}
    if layer.startswith("norm"):
        return [f"{block}.{norms[stack][int(layer[4]) - 1]}_norm.{kind}"]
    if layer.startswith("linear"):
        return [f"{block}.feed_forward.{'hidden' if layer == 'linear1' else 'output'}.{kind}"]
    attention = f"{block}.{'cross_attention' if layer == 'multihead_attn' else 'attention'}"
    if rest[0] == "out_proj":
        return [f"{attention}.output.{kind}"]
    if layer == "multihead_attn":
        return [f"{attention}.query.{kind}", f"source_memories.{index}.key_value.{kind}"]
    if stack == "encoder":
        return [f"{attention}.query.{kind}", f"{block}.keys_values.key_value.{kind}"]
    return [f"{attention}.query_key_value.{kind}"]


def perturbed(module):
    """Every parameter off its start, biases and norms too."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return module


def twins(config, final_norms, dtype=torch.float64):
    """Our model and nn.Transformer with the same weights."""
    ours, theirs = Transformer(config).to(dtype), TorchTransformer(config, final_norms).to(dtype)
    if final_norms:
        ours.encoder_norm, ours.decoder_norm = (LayerNorm(config.dim).to(dtype) for _ in range(2))
    else:
        ours.encoder_norm = ours.decoder_norm = nn.Identity()
    ours.positions = sinusoids(config.context, config.dim).to(dtype)
    mine = dict(perturbed(ours).named_parameters())
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            parameter.copy_(torch.cat([mine.pop(part) for part in parts(name)]))
    assert not mine, "every one of our parameters has its place in theirs"
    return ours, theirs


def pairs_batch(vocab_size, generator=None):
    """A padded batch: the source, the target's tokens, and its targets with IGNORED where it is padded."""
    source = Source(torch.randint(vocab_size, (4, 9), generator=generator), torch.tensor([9, 1, 4, 7]))
    tokens, targets = (torch.randint(vocab_size, (4, 8), generator=generator) for _ in range(2))
    targets[torch.arange(8) >= torch.tensor([3, 8, 5, 1])[:, None]] = IGNORED
    return source, tokens, targets


def logits_of(model, source, tokens):
    return model.readout(model(tokens, model.initial_state(len(tokens), source=source))[0])


def cross_entropy(logits, targets):
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED)


@pytest.mark.parametrize("final_norms", [False, True])
@pytest.mark.parametrize("norm", ["post", "pre"])
def test_logits_and_every_gradient_equal_torchs_transformer(norm, final_norms):
    ours, theirs = twins(dataclasses.replace(CONFIG, norm=norm), final_norms)
    source, tokens, targets = pairs_batch(CONFIG.vocab_size)
    mine, expected = logits_of(ours, source, tokens), theirs(source, tokens)
    torch.testing.assert_close(mine, expected, **EXACT)
    cross_entropy(mine, targets).backward()
    cross_entropy(expected, targets).backward()
    gradients = {name: parameter.grad for name, parameter in ours.named_parameters()}
    for name, parameter in theirs.named_parameters():
        assert parameter.grad.abs().max() > 0, name
        mine = torch.cat([gradients.pop(part) for part in parts(name)])
        torch.testing.assert_close(mine, parameter.grad, **EXACT, msg=lambda m, n=name: f"{n}: {m}")
    assert not gradients


def test_a_training_curve_is_that_of_torchs_transformer():
    """200 steps of Adam from the same weights on the same batches."""
    config = TransformerConfig(vocab_size=11, context=16, dim=16, depth=1, heads=2, hidden_dim=32, **NO_DROPOUT)
    ours, theirs = twins(config, final_norms=False)
    curves = []
    for model, forward in ((ours, lambda *batch: logits_of(ours, *batch)), (theirs, theirs)):
        generator, losses = torch.Generator().manual_seed(0), []
        optimizer = torch.optim.Adam(model.parameters(), 3e-3, betas=(0.9, 0.98), eps=1e-9)
        for _ in range(200):
            source, tokens, targets = pairs_batch(config.vocab_size, generator)
            targets = torch.where(targets == IGNORED, targets, source.ids[:, :1])  # something to learn
            loss = cross_entropy(forward(source, tokens), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        curves.append(losses)
    assert curves[0] == pytest.approx(curves[1], abs=1e-4)
    assert sum(curves[0][-20:]) < 0.8 * sum(curves[0][:20]), "the curve falls"


@pytest.mark.parametrize("bias", [True, False])
def test_attention_and_each_heads_weights_equal_torchs(bias):
    config = dataclasses.replace(CONFIG, bias=bias)
    theirs = nn.MultiheadAttention(config.dim, config.heads, bias=bias, batch_first=True).double()
    memory, attention = KeysValues(config).double(), SourceAttention(config).double()
    causal = CausalSelfAttention(config.dim, config.heads, 0.0, bias).double()
    perturbed(theirs)
    with torch.no_grad():
        for kind in ("weight", "bias") if bias else ("weight",):
            packed, output = getattr(theirs, f"in_proj_{kind}"), getattr(theirs.out_proj, kind)
            getattr(causal.query_key_value, kind).copy_(packed)
            getattr(attention.query, kind).copy_(packed[: config.dim])
            getattr(memory.key_value, kind).copy_(packed[config.dim :])
            for layer in (causal, attention):
                getattr(layer.output, kind).copy_(output)
    x, y = torch.randn(3, 5, config.dim).double(), torch.randn(3, 7, config.dim).double()
    blocked = torch.arange(7) >= torch.tensor([7, 1, 4])[:, None]
    every = {"need_weights": True, "average_attn_weights": False}

    expected, weights = theirs(x, y, y, key_padding_mask=blocked, **every)
    torch.testing.assert_close(attention(x, memory(y), blocked), expected, **EXACT)
    with record(attention) as shown:
        torch.testing.assert_close(attention(x, memory(y), blocked), expected, **EXACT)
    torch.testing.assert_close(shown["weights"][0], weights, **EXACT)

    expected, weights = theirs(x, x, x, attn_mask=torch.ones(5, 5, dtype=torch.bool).triu(1), **every)
    torch.testing.assert_close(causal(x)[0], expected, **EXACT)
    with record(causal) as shown:
        causal(x)
    torch.testing.assert_close(shown["weights"][0], weights, **EXACT)


MARIAN = {
    "attention.query": "self_attn.q_proj", "attention.output": "self_attn.out_proj",
    "cross_attention.query": "encoder_attn.q_proj", "cross_attention.output": "encoder_attn.out_proj",
    "attention_norm": "self_attn_layer_norm", "cross_attention_norm": "encoder_attn_layer_norm",
    "feed_forward.hidden": "fc1", "feed_forward.output": "fc2", "feed_forward_norm": "final_layer_norm",
}  # fmt: skip


def marian_parts(name):
    """Marian's parameters, in order, that make up one of ours."""
    if name == "embedding.weight":
        return ["model.shared.weight"]
    stack, index, rest = name.split(".", 2)
    rest, kind = rest.rsplit(".", 1)
    prefix = f"model.{'encoder' if stack == 'encoder' else 'decoder'}.layers.{index}"
    packed = {
        "attention.query_key_value": ("self_attn", "qkv"),
        "keys_values.key_value": ("self_attn", "kv"),
        "key_value": ("encoder_attn", "kv"),
    }
    if rest in packed:
        attention, letters = packed[rest]
        return [f"{prefix}.{attention}.{letter}_proj.{kind}" for letter in letters]
    return [f"{prefix}.{MARIAN[rest]}.{kind}"]


def test_logits_equal_marians():
    theirs = MarianMTModel(
        MarianConfig(
            vocab_size=CONFIG.vocab_size, d_model=CONFIG.dim, max_position_embeddings=CONFIG.context,
            encoder_layers=CONFIG.depth, decoder_layers=CONFIG.depth, encoder_attention_heads=CONFIG.heads,
            decoder_attention_heads=CONFIG.heads, encoder_ffn_dim=CONFIG.hidden_dim, decoder_ffn_dim=CONFIG.hidden_dim,
            activation_function="relu", scale_embedding=True, share_encoder_decoder_embeddings=True, pad_token_id=0,
            decoder_start_token_id=0, eos_token_id=0,
        )
    ).double().eval()  # fmt: skip
    ours = Transformer(CONFIG).double().eval()
    parameters = dict(perturbed(theirs).named_parameters())
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            parameter.copy_(torch.cat([parameters.pop(part) for part in marian_parts(name)]))
        tables = [parameters.pop(f"model.{stack}.embed_positions.weight") for stack in ("encoder", "decoder")]
        frequencies = sinusoids(CONFIG.context, CONFIG.dim)
        halves = torch.cat([frequencies[:, ::2], frequencies[:, 1::2]], 1)  # all sines, then all cosines
        for table in tables:
            table.copy_(halves)
        ours.positions = halves
    assert not parameters, "every one of their parameters has its place in ours"
    source, tokens, _ = pairs_batch(CONFIG.vocab_size)
    seen = (torch.arange(9) < source.lengths[:, None]).long()
    expected = theirs(input_ids=source.ids, attention_mask=seen, decoder_input_ids=tokens).logits
    torch.testing.assert_close(logits_of(ours, source, tokens), expected, rtol=1e-9, atol=1e-9)


def features_of(model, source, tokens, written_out):
    if not written_out:
        return model(tokens, model.initial_state(len(tokens), source=source))[0]
    with record(model):
        return model(tokens, model.initial_state(len(tokens), source=source))[0]


@pytest.mark.parametrize("written_out", [False, True])
@pytest.mark.parametrize("norm", ["post", "pre"])
def test_nothing_leaks(norm, written_out):
    """Bit for bit: what a position may not see can hold any token."""
    model = perturbed(Transformer(dataclasses.replace(CONFIG, norm=norm)))
    source, tokens, targets = pairs_batch(CONFIG.vocab_size)
    features = features_of(model, source, tokens, written_out)

    padded = torch.arange(9) >= source.lengths[:, None]
    changed = Source(torch.where(padded, (source.ids + 5) % 31, source.ids), source.lengths)
    assert torch.equal(features_of(model, changed, tokens, written_out), features), "padding of the source"

    changed = torch.where(targets == IGNORED, (tokens + 5) % 31, tokens)
    counted = targets != IGNORED
    assert torch.equal(features_of(model, source, changed, written_out)[counted], features[counted]), "of the target"

    for at in range(1, 8):
        changed = torch.cat([tokens[:, :at], (tokens[:, at:] + 5) % 31], 1)
        assert torch.equal(features_of(model, source, changed, written_out)[:, :at], features[:, :at]), "the future"

    ids = source.ids.clone()
    ids[1] = (ids[1] + 5) % 31
    after = features_of(model, Source(ids, source.lengths), tokens, written_out)
    others = torch.tensor([0, 2, 3])
    assert torch.equal(after[others], features[others]), "the source of another row"
    assert (after[1] != features[1]).any(-1).all(), "and each position of a row sees its own"


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@pytest.mark.parametrize("norm", ["post", "pre"])
def test_fused_and_written_out_paths_agree_also_without_a_source(norm):
    """Rows of an empty source too: their attention is zeros, and gradients are finite."""
    model = perturbed(Transformer(dataclasses.replace(CONFIG, norm=norm)).double())
    source, tokens, targets = pairs_batch(CONFIG.vocab_size)
    source.lengths[2] = 0
    outcomes = []
    for written_out in (False, True):
        model.zero_grad()
        with torch.autograd.detect_anomaly():  # no NaN on the way either
            features = features_of(model, source, tokens, written_out)
            cross_entropy(model.readout(features), targets).backward()
        outcomes.append([features.detach(), *(parameter.grad.clone() for parameter in model.parameters())])
    for fused, written in zip(*outcomes, strict=True):
        assert fused.isfinite().all()
        torch.testing.assert_close(fused, written, **EXACT)
    with record(model) as shown:
        features_of(model, source, tokens, written_out=False)
    names = ["encoder.{}.attention", "blocks.{}.attention", "blocks.{}.cross_attention"]
    assert set(shown) == {f"{name.format(index)}.weights" for name in names for index in range(CONFIG.depth)}
    for name, (weights,) in shown.items():
        width = {"e": (9, 9), "a": (8, 8), "c": (8, 9)}[name[0] if name[0] == "e" else name.split(".")[2][0]]
        assert weights.shape == (4, CONFIG.heads, *width)
        blind = torch.tensor([False, False, width[1] == 9, False])
        assert (weights[blind] == 0).all()
        sums = weights[~blind].sum(-1)
        torch.testing.assert_close(sums, torch.ones_like(sums))


def without_a_source_the_output_bias_is_left(written_out):
    attention, memory = perturbed(SourceAttention(CONFIG)), KeysValues(CONFIG)
    x = torch.randn(2, 5, CONFIG.dim)
    blocked = torch.tensor([[True] * 5, [False] * 5])
    empty = torch.zeros(2, 0, dtype=torch.bool)
    for source, mask, rows in ((memory(x), blocked, [0]), (memory(x[:, :0]), empty, [0, 1])):
        with record(attention) if written_out else contextlib.nullcontext():
            attended = attention(x, source, mask)
        for row in rows:
            assert torch.equal(attended[row], attention.output.bias.expand(5, -1))


@pytest.mark.parametrize("written_out", [False, True])
def test_a_row_without_a_source_gets_the_output_bias_alone(written_out):
    without_a_source_the_output_bias_is_left(written_out)


@pytest.mark.parametrize("written_out", [False, True])
def test_mutant_that_blocks_with_a_large_negative_number_is_caught(written_out, monkeypatch):
    """Scores of -1e9 where -inf is meant: a row that may see nothing takes the mean of all that is blocked."""
    fused = F.scaled_dot_product_attention

    def weights(query, keys, blocked):
        scores = query @ keys.transpose(-2, -1) / math.sqrt(query.shape[-1])
        return scores.masked_fill(blocked[:, None, None], -1e9).softmax(-1)

    def attention(query, keys, values, seen, dropout):
        return fused(query, keys, values, torch.zeros(seen.shape).masked_fill(~seen, -1e9), dropout)

    monkeypatch.setattr(transformer, "source_weights", weights)
    monkeypatch.setattr(F, "scaled_dot_product_attention", attention)
    with pytest.raises(AssertionError):
        without_a_source_the_output_bias_is_left(written_out)


def test_positions_are_the_papers():
    table = sinusoids(300, 24)
    for position in (0, 1, 7, 299):
        for i in range(12):
            angle = position / 10000 ** (2 * i / 24)
            assert table[position, 2 * i].item() == pytest.approx(math.sin(angle), abs=1e-12)
            assert table[position, 2 * i + 1].item() == pytest.approx(math.cos(angle), abs=1e-12)
    for shift in (1, 5, 100):  # a fixed rotation of each pair moves every position by `shift`
        angles = shift * 10000 ** (-torch.arange(0, 24, 2, dtype=torch.float64) / 24)
        sine, cosine = table[:, ::2], table[:, 1::2]
        moved = torch.stack([sine * angles.cos() + cosine * angles.sin(), cosine * angles.cos() - sine * angles.sin()])
        expected = torch.stack([table[:, ::2], table[:, 1::2]])
        torch.testing.assert_close(moved[:, :-shift], expected[:, shift:], **EXACT)
    odd = torch.arange(9) / 10000 ** (6 / 7)  # the last wavelength of an odd width has a sine alone
    torch.testing.assert_close(sinusoids(9, 7)[:, 6], odd.double().sin(), rtol=1e-6, atol=1e-6)


def test_embeddings_are_scaled_and_shared_by_three():
    model = Transformer(CONFIG).double()
    ids = torch.randint(CONFIG.vocab_size, (2, 5))
    expected = math.sqrt(CONFIG.dim) * model.embedding.weight[ids] + model.positions[3:8]
    torch.testing.assert_close(model.embed(ids, 3), expected, **EXACT)
    features = torch.randn(2, 5, CONFIG.dim).double()
    torch.testing.assert_close(model.readout(features), features @ model.embedding.weight.T, **EXACT)
    assert "positions" not in model.state_dict()
    assert sum(parameter.shape[0] == CONFIG.vocab_size for parameter in model.parameters()) == 1


def test_initialisation_is_the_papers():
    config = TransformerConfig(vocab_size=2000, dim=128, depth=2, heads=4, hidden_dim=512)
    model = Transformer(config)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert (parameter == 0).all(), name
        elif "norm" in name:
            assert (parameter == 1).all(), name
        elif name == "embedding.weight":
            assert parameter.std().item() == pytest.approx(128**-0.5, rel=0.01)
        else:
            fans = 128 + 512 if "feed_forward" in name else 2 * 128  # of each matrix, not of those stored together
            bound = math.sqrt(6 / fans)
            for matrix in parameter.split(128) if fans == 256 else [parameter]:
                assert 0.99 * bound < matrix.abs().max().item() <= bound, name
                assert matrix.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02), name
    source = Source(torch.randint(2000, (8, 30)), torch.full((8,), 30))
    tokens, targets = torch.randint(2000, (2, 8, 30))
    loss = cross_entropy(logits_of(model.eval(), source, tokens), targets)
    assert loss.item() == pytest.approx(math.log(2000) + 0.5, abs=0.1)  # logits of unit variance


@pytest.mark.parametrize("norm", ["post", "pre"])
def test_a_reset_model_is_a_new_one(norm):
    """Also one that was made without memory, whose every number is whatever the memory held."""
    config = dataclasses.replace(CONFIG, norm=norm)
    expected = Transformer(config)
    torch.manual_seed(3)
    expected.reset_parameters()  # of a new model, whose layers have drawn numbers of their own before
    with torch.device("meta"):
        bare = Transformer(config)
    bare.to_empty(device="cpu")
    for tensor in [*bare.parameters(), *bare.buffers()]:
        tensor.detach().fill_(math.nan)
    for model in (bare, perturbed(Transformer(config))):
        torch.manual_seed(3)
        model.reset_parameters()
        for name, parameter in [*expected.named_parameters(), *expected.named_buffers()]:
            assert torch.equal(dict([*model.named_parameters(), *model.named_buffers()])[name], parameter), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_positions_are_as_exact_as_the_dtype_that_a_model_is_made_in(dtype):
    default = torch.get_default_dtype()
    try:
        torch.set_default_dtype(dtype)
        model = Transformer(CONFIG)
    finally:
        torch.set_default_dtype(default)
    assert model.positions.dtype == dtype
    assert torch.equal(model.positions, sinusoids(16, CONFIG.dim).to(dtype))


RATES = {"dropout": 0.1, "embedding_dropout": 0.2, "attention_dropout": 0.3, "hidden_dropout": 0.4}


@pytest.mark.parametrize("norm", ["post", "pre"])
def test_each_dropout_acts_in_its_place_and_in_training_alone(norm, monkeypatch):
    model = Transformer(dataclasses.replace(CONFIG, depth=1, norm=norm, **RATES))
    source, tokens, _ = pairs_batch(CONFIG.vocab_size)
    dropped, fused = [], []
    dropout, attention = F.dropout, F.scaled_dot_product_attention

    def note(x, p=0.5, training=True, inplace=False):
        if training and p:
            dropped.append((p, x.detach()))
        return dropout(x, p, training, inplace)

    def note_fused(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False):
        fused.append(dropout_p)
        return attention(query, key, value, attn_mask, dropout_p, is_causal)

    monkeypatch.setattr(F, "dropout", note)
    monkeypatch.setattr(F, "scaled_dot_product_attention", note_fused)
    features_of(model, source, tokens, written_out=False)
    read, written = (4, 9, CONFIG.dim), (4, 8, CONFIG.dim)
    encoder = [(0.2, read), (0.1, read), (0.4, (4, 9, 40)), (0.1, read)]
    decoder = [(0.2, written), (0.1, written), (0.1, written), (0.4, (4, 8, 40)), (0.1, written)]
    assert [(p, tuple(x.shape)) for p, x in dropped] == encoder + decoder
    assert all((x >= 0).all() for p, x in dropped if p == 0.4), "after the rectifier"
    assert fused == [0.3] * 3
    dropped.clear()
    features_of(model, source, tokens, written_out=True)
    weights = [x for p, x in dropped if p == 0.3]
    assert [tuple(x.shape) for x in weights] == [(4, 4, 9, 9), (4, 4, 8, 8), (4, 4, 8, 9)]
    for x in weights:
        torch.testing.assert_close(x.sum(-1), torch.ones(x.shape[:-1]))
    model.eval()
    dropped.clear()
    fused.clear()
    for written_out in (False, True):
        features_of(model, source, tokens, written_out)
    assert not dropped
    assert fused == [0.0] * 3


@pytest.mark.parametrize("rate", RATES)
def test_each_dropout_makes_training_noisy(rate):
    model = Transformer(dataclasses.replace(CONFIG, **{rate: 0.5}))
    source, tokens, _ = pairs_batch(CONFIG.vocab_size)
    for written_out in (False, True):
        one, two = (features_of(model.train(), source, tokens, written_out) for _ in range(2))
        assert not torch.equal(one, two)
        one, two = (features_of(model.eval(), source, tokens, written_out) for _ in range(2))
        assert torch.equal(one, two)


@pytest.mark.parametrize("capacity", [None, 8])
def test_beams_share_the_memory_of_their_source(capacity):
    model = Transformer(CONFIG).double()
    source, tokens, _ = pairs_batch(CONFIG.vocab_size)
    _, state = model(tokens[:, :3], model.initial_state(4, capacity=capacity, source=source))
    beams = state.select(torch.arange(4).repeat_interleave(3))
    assert beams.batch_size == 12
    for one, many in zip(state.sources, beams.sources, strict=True):
        assert (one.keys.data_ptr(), one.values.data_ptr()) == (many.keys.data_ptr(), many.values.data_ptr())
    moved = torch.tensor([5, 0, 11, 11, 7])
    features, after = model(tokens[moved // 3, 3:], beams.select(moved))
    torch.testing.assert_close(features, model(tokens, model.initial_state(4, source=source))[0][moved // 3, 3:])
    assert after.sources[0].keys.data_ptr() == state.sources[0].keys.data_ptr()
    own = sum(memory.keys.nbytes + memory.values.nbytes for memory in state.memories)
    assert beams.nbytes == 3 * own + (state.nbytes - own) + 12 * 8  # only their own memory, and an index


def test_the_memory_takes_its_dtype_from_activations():
    model = Transformer(CONFIG)
    source, tokens, _ = pairs_batch(CONFIG.vocab_size)
    for capacity in (None, 8):
        with torch.autocast("cpu", torch.bfloat16):
            _, state = model(tokens, model.initial_state(4, capacity=capacity, source=source))
        assert {kv.keys.dtype for kv in [*state.memories, *state.sources]} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("ids", "lengths", "message"),
    [
        ((3, 5), [5, 5, 5], "the source has 3 rows and 3 lengths, the batch 2 rows"),
        ((2, 5), [5], "the source has 2 rows and 1 lengths, the batch 2 rows"),
        ((2, 17), [5, 5], "the source context is 16 tokens, a source has 17"),
        ((2, 5), [-1, 5], "source lengths go from -1 to 5; the ids hold 0 to 5"),
        ((2, 5), [6, 0], "source lengths go from 0 to 6; the ids hold 0 to 5"),
    ],
)
def test_a_source_that_does_not_fit_is_named(ids, lengths, message):
    with pytest.raises(ValueError, match=message):
        Transformer(CONFIG).initial_state(2, source=Source(torch.zeros(ids).long(), torch.tensor(lengths)))


def test_lengths_may_lie_elsewhere_than_the_ids():
    state = (
        Transformer(CONFIG)
        .to("meta")
        .initial_state(2, source=Source(torch.zeros(2, 5, device="meta").long(), torch.tensor([5, 2])))
    )
    assert state.blocked.device.type == "meta"


def test_without_a_source_nothing_is_said():
    model = Transformer(CONFIG)
    with pytest.raises(ValueError, match=r"source=Source\(ids, lengths\)"):
        model.initial_state(2)
    with pytest.raises(ValueError, match=r"initial_state\(rows, source="):
        model(torch.zeros(2, 3).long())


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"source_context": 0}, "source_context is 0"),
        ({"norm": "Pre"}, "norm is 'Pre'; it must be 'post' or 'pre'"),
        ({"hidden_dim": 0}, "hidden_dim is 0"),
        ({"heads": 5}, "dim 24 cannot be shared by 5 heads"),
        *(({name: 1.0}, f"{name} is 1.0") for name in RATES),
    ],
)
def test_a_shape_that_cannot_be_is_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **changed)


@pytest.mark.parametrize(
    ("preset", "layers", "with_embedding"), [("base", 44_138_496, 63.08e6), ("big", 176_357_376, 214.2e6)]
)
def test_presets_have_the_papers_numbers_of_parameters(preset, layers, with_embedding):
    config = TransformerConfig(**Transformer.presets[preset]["model"])
    with torch.device("meta"):
        model = Transformer(config)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count == config.parameters
    assert count - model.embedding.weight.numel() == layers
    assert count == pytest.approx(with_embedding, rel=1e-3)


def test_products_of_the_source_are_counted_too():
    d, f, length = CONFIG.dim, CONFIG.hidden_dim, 16
    layers = 4 * d * d + 2 * d * f + 8 * d * d + 2 * d * f + 3 * 2 * length * d
    products = 2 * (CONFIG.depth * layers + CONFIG.vocab_size * d)
    for device in ("cpu", "meta"):
        with torch.device(device):
            model = Transformer(CONFIG)
        assert flops_per_token(model, length) == products
    short = Transformer(dataclasses.replace(CONFIG, source_context=8))
    assert flops_per_token(short, length) < products, "of a source as long as it can be"


@pytest.mark.parametrize("changed", [{"norm": "pre"}, {"bias": False}, {"norm": "pre", "bias": False}, {}])
def test_parameters_are_counted_for_each_variant(changed):
    config = dataclasses.replace(CONFIG, **changed)
    assert sum(parameter.numel() for parameter in Transformer(config).parameters()) == config.parameters
