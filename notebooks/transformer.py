# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Transformer
#
# [Open in Colab](https://colab.research.google.com/github/OWNER/scratchlm/blob/main/notebooks/transformer.ipynb)
#
# The Transformer of Vaswani et al. 2017, "Attention Is All You Need", reads one text and writes another: an encoder
# looks at all of the source at once, a decoder writes the target token by token and looks at the source while it does.
# GPT is its decoder alone; here is the whole. Our task is small enough for a minute and shows everything: write a
# number in Roman numerals, 1984 as MCMLXXXIV. What a digit becomes depends on its place, so the encoder has to look
# around, and each letter comes from one digit, so one sees where the decoder looks.

# %% [markdown]
# ## Set up
#
# In the repository this cell does nothing but find it. In Colab it fetches the repository and installs the package.

# %%
import subprocess
import sys
from pathlib import Path

REPOSITORY = "https://github.com/OWNER/scratchlm"
root = next((folder for folder in [Path.cwd(), *Path.cwd().parents] if (folder / "tests/contract.py").is_file()), None)
if root is None:
    root = Path("scratchlm").resolve()
    subprocess.run(["git", "clone", "--depth=1", REPOSITORY, root], check=True)
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "hypothesis", "pytest", "-e", root], check=True)
sys.path += [str(root / "src"), str(root / "tests")]

# %%
import dataclasses
import math
import random
import tempfile

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch import nn

import contract  # the checks that every architecture must pass: tests/contract.py
import scratchlm
from scratchlm import Source
from scratchlm import layers as package_layers
from scratchlm.inspect.attention import attention_figure, attention_layers
from scratchlm.models.transformer import SourceAttention, Transformer, TransformerConfig, TransformerState
from scratchlm.translation import decode, encode_source


def roman(number):
    out = ""
    for value, letters in zip(
        (1000, 900, 500, 400, 100, 90, 50, 40, 10, 9, 5, 4, 1),
        ("M", "CM", "D", "CD", "C", "XC", "L", "XL", "X", "IX", "V", "IV", "I"),
        strict=True,
    ):
        out += letters * (number // value)
        number %= value
    return out


torch.manual_seed(0)
numbers = list(range(1, 4000))
random.Random(0).shuffle(numbers)
folder = Path(tempfile.mkdtemp())
(folder / "roman.tsv").write_text("".join(f"{number}\t{roman(number)}\n" for number in numbers))
shape = {
    "context": 20, "source_context": 8, "dim": 64, "depth": 2, "heads": 4, "hidden_dim": 256, "norm": "pre",
    "dropout": 0.0, "embedding_dropout": 0.0,
}  # fmt: skip
run, _ = scratchlm.create_run(
    {
        "arch": "transformer", "data": str(folder / "roman.tsv"), "tokenizer": "char", "device": "cpu",
        "steps": 500, "batch_tokens": 1024, "eval_every": 250, "model": shape,
        "optim": {"lr": 3e-3, "min_lr": 1e-5, "warmup": 50, "beta2": 0.98, "weight_decay": 0.0},
    },
    folder / "transformer",
)  # fmt: skip
tokenizer = run.tokenizer()
V, end = tokenizer.vocab_size, tokenizer.end_of_text
print(f"{V} tokens: the digits, seven letters, and one that ends a text")
print((folder / "roman.tsv").read_text()[:60])

# %% [markdown]
# ## Build it
#
# Letters in shapes: **B** rows, **S** source tokens, **T** target tokens, **D** width, **H** heads, **K** width of a
# head.
#
# **A batch of pairs.** Sources have different lengths, a batch is a rectangle: shorter rows are filled up, and we
# remember what is filling. The decoder reads the target moved by one: it begins with the end token and must say the
# first letter, reads that and must say the second, and at last the end. A target of $-100$ is not counted.

# %%


def batch_of(numbers):
    sources = [torch.tensor([*tokenizer.encode(str(number)), end]) for number in numbers]
    targets = [torch.tensor([*tokenizer.encode(roman(number)), end]) for number in numbers]
    tokens = [torch.cat([target[-1:], target[:-1]]) for target in targets]

    def pad(rows, value):
        return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value)

    return Source(pad(sources, end), torch.tensor([len(one) for one in sources])), pad(tokens, end), pad(targets, -100)


source, tokens, targets = batch_of([1984, 7, 90])
blocked = torch.arange(source.ids.shape[1]) >= source.lengths[:, None]  # (B, S): True where there is nothing to see
print("source", source.ids, "lengths", source.lengths, "blocked", blocked, sep="\n")
print("the decoder reads", tokens, "and says", targets, sep="\n")

# %% [markdown]
# **Positions.** Attention sees a set, without order. So a vector is added that tells the place: sines and cosines of
# many wavelengths, from $2\pi$ to $10000 \cdot 2\pi$ tokens. Near places have similar vectors.
#
# $$\text{PE}(p, 2i) = \sin\big(p \cdot 10000^{-2i/D}\big) \qquad
# \text{PE}(p, 2i+1) = \cos\big(p \cdot 10000^{-2i/D}\big)$$

# %%


def sinusoids(positions, D):
    angles = torch.arange(positions)[:, None] * 10000 ** (-torch.arange(0, D, 2, dtype=torch.float64) / D)
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(1)


table = sinusoids(40, 64)
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
left.imshow(table, cmap="RdBu_r", aspect="auto")
left.set(xlabel="number of the vector", ylabel="position", title="positions")
image = right.imshow(table @ table.T / 32, cmap="RdBu_r", vmin=-1, vmax=1)
right.set(title="cosine between positions", xlabel="position")
figure.colorbar(image, ax=right)
plt.show()

# %% [markdown]
# **Attention, once for all three uses.** Queries come from whoever looks, keys and values from what is looked at. In
# the encoder both are the source; in the decoder both are the target, and the future is blocked; between the two,
# the target looks at the source. Equation 1 of the paper, with a mask that is True where nothing may be seen:
#
# $$\text{Attention}(Q, K, V) = \text{softmax}\Big(\frac{QK^\top}{\sqrt{d_k}} + \text{mask}\Big)\,V, \qquad
# \text{mask} = -\infty \text{ where blocked, else } 0$$

# %%
H = 4


def heads_of(x):
    return x.unflatten(-1, (H, -1)).transpose(1, 2)  # (B, H, T, K)


def attend(q, k, v, blocked):
    """q (B, T, D), k and v (B, S, D), blocked (B, T or 1, S) -> (B, T, D)"""
    q, k, v = heads_of(q), heads_of(k), heads_of(v)
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
    weights = scores.masked_fill(blocked[:, None], -math.inf).softmax(-1)
    return (weights @ v).transpose(1, 2).flatten(2)


x = torch.randn(3, source.ids.shape[1], 64)
future = torch.ones(1, 9, 9, dtype=torch.bool).triu(1)
print("encoder ", tuple(attend(x, x, x, blocked[:, None]).shape), "blocked: padding")
y = torch.randn(3, 9, 64)
print("decoder ", tuple(attend(y, y, y, future).shape), "blocked: the future")
print("between ", tuple(attend(y, x, x, blocked[:, None]).shape), "blocked: padding of the source")

# %% [markdown]
# **The whole Transformer.** An encoder block attends to the source and thinks (two linear maps, a ReLU between). A
# decoder block attends to the target so far, then to what the encoder made of the source, and thinks. The paper
# normalises *after* each sum:
#
# $$x \leftarrow \text{LayerNorm}\big(x + \text{Sublayer}(x)\big) \qquad \text{FFN}(x) = \max(0, xW_1 + b_1)W_2 + b_2$$
#
# One embedding table serves source, target and read-out; it is multiplied by $\sqrt D$ at the entrance. `w` maps names
# to matrices.

# %%


def linear(x, w, name):
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def added(x, sublayer, w, name):
    """LayerNorm(x + Sublayer(x))"""
    return F.layer_norm(x + sublayer, x.shape[-1:], w[f"{name}_norm.weight"], w[f"{name}_norm.bias"])


def think(x, w, name):
    return linear(linear(x, w, f"{name}.hidden").relu(), w, f"{name}.output")


def encoder_block(x, blocked, w, name):
    q = linear(x, w, f"{name}.attention.query")
    k, v = linear(x, w, f"{name}.keys_values.key_value").chunk(2, -1)
    x = added(x, linear(attend(q, k, v, blocked[:, None]), w, f"{name}.attention.output"), w, f"{name}.attention")
    return added(x, think(x, w, f"{name}.feed_forward"), w, f"{name}.feed_forward")


def decoder_block(x, k_source, v_source, blocked, w, name):
    future = torch.ones(1, x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
    q, k, v = linear(x, w, f"{name}.attention.query_key_value").chunk(3, -1)
    x = added(x, linear(attend(q, k, v, future), w, f"{name}.attention.output"), w, f"{name}.attention")
    q, cross = linear(x, w, f"{name}.cross_attention.query"), f"{name}.cross_attention"
    x = added(x, linear(attend(q, k_source, v_source, blocked[:, None]), w, f"{cross}.output"), w, cross)
    return added(x, think(x, w, f"{name}.feed_forward"), w, f"{name}.feed_forward")


def transformer(source, tokens, w, depth):
    """Source, tokens (B, T) -> logits (B, T, V)"""
    embedding, positions = w["embedding.weight"], sinusoids(64, w["embedding.weight"].shape[1])
    blocked = torch.arange(source.ids.shape[1]) >= source.lengths[:, None]
    memory = embedding[source.ids] * math.sqrt(embedding.shape[1]) + positions[: source.ids.shape[1]]
    for number in range(depth):
        memory = encoder_block(memory, blocked, w, f"encoder.{number}")
    x = embedding[tokens] * math.sqrt(embedding.shape[1]) + positions[: tokens.shape[1]]
    for number in range(depth):
        k, v = linear(memory, w, f"source_memories.{number}.key_value").chunk(2, -1)
        x = decoder_block(x, k, v, blocked, w, f"blocks.{number}")
    return x @ embedding.T


# %% [markdown]
# ## Check it
#
# First torch's layers with random weights: our names on the left, torch's on the right.

# %%
encoder = nn.TransformerEncoderLayer(64, H, 128, dropout=0.0, batch_first=True).double()
decoder = nn.TransformerDecoderLayer(64, H, 128, dropout=0.0, batch_first=True).double()
w = {}
for kind in ("weight", "bias"):
    theirs = dict(encoder.named_parameters())
    qkv = theirs[f"self_attn.in_proj_{kind}"]
    w |= {f"e.attention.query.{kind}": qkv[:64], f"e.keys_values.key_value.{kind}": qkv[64:]}
    w |= {f"e.attention.output.{kind}": theirs[f"self_attn.out_proj.{kind}"]}
    w |= {f"e.feed_forward.{one}.{kind}": theirs[f"linear{n}.{kind}"] for n, one in ((1, "hidden"), (2, "output"))}
    w |= {f"e.{one}_norm.{kind}": theirs[f"norm{n}.{kind}"] for n, one in ((1, "attention"), (2, "feed_forward"))}

    theirs = dict(decoder.named_parameters())
    cross = theirs[f"multihead_attn.in_proj_{kind}"]
    w |= {f"d.attention.query_key_value.{kind}": theirs[f"self_attn.in_proj_{kind}"]}
    w |= {f"d.cross_attention.query.{kind}": cross[:64], f"memory.key_value.{kind}": cross[64:]}
    w |= {f"d.attention.output.{kind}": theirs[f"self_attn.out_proj.{kind}"]}
    w |= {f"d.cross_attention.output.{kind}": theirs[f"multihead_attn.out_proj.{kind}"]}
    w |= {f"d.feed_forward.{one}.{kind}": theirs[f"linear{n}.{kind}"] for n, one in ((1, "hidden"), (2, "output"))}
    norms = ((1, "attention"), (2, "cross_attention"), (3, "feed_forward"))
    w |= {f"d.{one}_norm.{kind}": theirs[f"norm{n}.{kind}"] for n, one in norms}

x, y = torch.randn(3, source.ids.shape[1], 64).double(), torch.randn(3, 9, 64).double()
memory = encoder(x, src_key_padding_mask=blocked)
torch.testing.assert_close(encoder_block(x, blocked, w, "e"), memory)
theirs = decoder(y, memory, tgt_mask=future[0], memory_key_padding_mask=blocked)
k, v = linear(memory, w, "memory.key_value").chunk(2, -1)
torch.testing.assert_close(decoder_block(y, k, v, blocked, w, "d"), theirs)
print("the blocks equal nn.TransformerEncoderLayer and nn.TransformerDecoderLayer")

# %% [markdown]
# Then all of it against `scratchlm.models.transformer`, which keeps the same names. Its sources enter through
# `initial_state`, which runs the encoder once; `forward` is the decoder.

# %%
config = TransformerConfig(vocab_size=V, **shape | {"norm": "post"})
model = Transformer(config).double().eval()
model.positions = sinusoids(20, 64)  # the package has them in float32
for parameter in model.parameters():
    nn.init.normal_(parameter, std=0.2)
features, _ = model(tokens, model.initial_state(3, source=source))
ours = transformer(source, tokens, dict(model.named_parameters()), depth=2)
torch.testing.assert_close(ours, model.readout(features))
print(f"{config.parameters:,} parameters, and the same logits")

# %% [markdown]
# ## Overfit one batch
#
# Sixteen numbers by heart.

# %%


def small_transformer(seed=0):
    torch.manual_seed(seed)
    return Transformer(TransformerConfig(vocab_size=V, **shape))


def loss_of(model, batch):
    source, tokens, targets = batch
    features, _ = model(tokens, model.initial_state(len(tokens), source=source))
    return F.cross_entropy(model.readout(features).flatten(0, 1), targets.flatten())


def learn(model, batches, lr=3e-3):
    optimizer = torch.optim.Adam(model.parameters(), lr, betas=(0.9, 0.98))
    losses = []
    for batch in batches:
        loss = loss_of(model, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


losses = learn(small_transformer(), [batch_of(numbers[:16])] * 60)
plt.figure(figsize=(5, 2.6), layout="constrained")
plt.semilogy(losses)
plt.axhline(math.log(V), color="grey", linestyle=":", label=f"guessing: ln {V} = {math.log(V):.2f}")
plt.xlabel("step")
plt.ylabel("loss, nats")
plt.legend()
plt.show()
print(f"from {losses[0]:.2f} to {losses[-1]:.4f}")
assert losses[-1] < 0.05

# %% [markdown]
# ## Look inside
#
# Training on nine tenths of the numbers; the others are unseen. `create_run` has made the run above.

# %%
for _ in scratchlm.train(run):
    pass
lines = run.metrics()
scored = [line for line in lines if "val_loss" in line]
plt.figure(figsize=(5, 2.6), layout="constrained")
plt.semilogy([line["step"] for line in lines], [line["loss"] for line in lines], label="training")
plt.semilogy([line["step"] for line in scored], [line["val_loss"] for line in scored], "o-", label="validation")
plt.xlabel("step")
plt.ylabel("loss, nats")
plt.legend()
plt.show()

model, tokenizer = scratchlm.load(run.path)


def translate(model, numbers, beam=1):
    sources = [encode_source(str(number), model, tokenizer) for number in numbers]
    return [tokenizer.decode(found[0].tokens) for found in decode(model, sources, end, beam=beam)]


unseen = numbers[-400:]
right = [said == roman(number) for number, said in zip(unseen, translate(model, unseen), strict=True)]
print(f"{sum(right)} of {len(unseen)} unseen numbers are right")
for number, said in list(zip(unseen, translate(model, unseen), strict=True))[:5]:
    print(f"{number:>5} {said}")
assert sum(right) > 0.9 * len(right)

# %% [markdown]
# **Where does it look?** The cross-attention of both layers. Read a row as "having written this, I look here to say
# what comes next". Most heads walk through the digits from left to right: M comes from 1, CM from 9, LXXX from 8, IV
# from 4.

# %%
ids = [end, *tokenizer.encode("MCMLXXXIV")]
labels, source_labels = ["start", *"MCMLXXXIV"], [*"1984", "end"]
one_source = batch_of([1984])[0]
layers = attention_layers(model, ids, one_source)
attention_figure([layer for layer in layers if layer.kind == "cross"], labels, source_labels)

# %% [markdown]
# The digit 9 becomes IX, XC or CM, depending on its place from the *right*, and positions are counted from the left.
# The encoder has to find out how many digits follow: some of its heads look at the end.

# %%
attention_figure([layer for layer in layers if layer.kind == "encoder"], labels, source_labels)

# %% [markdown]
# **How sure is it?** The probability of each letter, given the right ones before. Then the best three that a beam of
# four finds, for a number with more digits than any it has read.

# %%
with torch.no_grad():
    features, _ = model(torch.tensor([ids]), model.initial_state(1, source=one_source))
    probabilities = model.readout(features).softmax(-1)[0]
shown = [tokenizer.encode(letter)[0] for letter in "IVXLCDM"] + [end]
plt.figure(figsize=(5.5, 3), layout="constrained")
plt.imshow(probabilities[:, shown].T, cmap="Blues", vmin=0, vmax=1)
plt.yticks(range(8), [*"IVXLCDM", "end"])
plt.xticks(range(len(labels)), labels)
plt.xlabel("having written")
plt.ylabel("says")
plt.colorbar(label="probability", shrink=0.8)
plt.show()

for found in decode(model, [encode_source("39999", model, tokenizer)], end, beam=4, alternatives=3)[0]:
    print(f"{found.score:+.3f} {tokenizer.decode(found.tokens)}")

# %% [markdown]
# ## Break it
#
# Each of these was seen in public code, and with each the loss falls. For each: the wrong line, its loss, and the
# package's contract suite, nine checks that every architecture must pass (`tests/contract.py`).

# %%


def tiny_transformer():
    torch.manual_seed(0)
    return Transformer(TransformerConfig.tiny()).double().eval()


def batches(steps=100):
    order = random.Random(1)
    return [batch_of(order.sample(numbers[:-400], 64)) for _ in range(steps)]


print("the right model fails:", contract.failed(tiny_transformer) or "no check")
right_model = small_transformer()
curves = {"right": learn(right_model, batches())}


def share_right(model):
    return sum(said == roman(number) for number, said in zip(unseen[:100], translate(model, unseen[:100]), strict=True))


print(f"right: loss {curves['right'][-1]:.3f}, {share_right(right_model)} of 100 unseen numbers")

# %% [markdown]
# **Bug 1: padding is read.** No mask for the filling of shorter sources, in the encoder and between.

# %%
right_forward = SourceAttention.forward
SourceAttention.forward = lambda self, x, source, blocked: right_forward(self, x, source, torch.zeros_like(blocked))
padded = small_transformer()
curves["padding is read"] = learn(padded, batches())
caught_by = contract.failed(tiny_transformer)
short = [number for number in unseen if number < 1000]
filled, _, _ = batch_of([*short, 1984])  # in company of a longer one
beside = [tokenizer.decode(found[0].tokens) for found in decode(padded, filled.ids[:-1].tolist(), end)]
alone = translate(padded, short)
SourceAttention.forward = right_forward
print(f"loss {curves['padding is read'][-1]:.3f}; the right model has {curves['right'][-1]:.3f}")
differ = [pair for pair in zip(short, alone, beside, strict=True) if pair[1] != pair[2]]
print(f"{len(differ)} of {len(short)} short numbers are written otherwise beside 1984, as {differ[0][0]}:")
print(f"  alone {differ[0][1]}, beside it {differ[0][2]}")
print("caught by:", caught_by)
assert "rows" in caught_by

# %% [markdown]
# What a row says may depend on how long its neighbours are: the check **rows** runs each row alone and in company.
#
# **Bug 2: the decoder sees its future.** The encoder's attention copied into the decoder. Trained with the right
# answer as input, it needs only to copy the next letter.

# %%
right_attention = package_layers.fused_attention
package_layers.fused_attention = lambda q, k, v, dropout=0.0: F.scaled_dot_product_attention(
    q, k, v
)  # right: is_causal
seeing = small_transformer()
curves["decoder sees its future"] = learn(seeing, batches())
caught_by = contract.failed(tiny_transformer)
print(f"loss {curves['decoder sees its future'][-1]:.3f}, {share_right(seeing)} of 100 unseen numbers")
print("it writes", translate(seeing, [1984, 7, 90]))
package_layers.fused_attention = right_attention
print("caught by:", caught_by)
assert "causal" in caught_by

# %% [markdown]
# The best loss of all, and it cannot write a word. **causal** needs no training to see it.
#
# **Bug 3: the encoder learns nothing.** The encoder runs under `no_grad`, as is right when one writes and wrong when
# one trains. The decoder learns to make do with a random encoder, so the loss falls.

# %%


def encoder_frozen(model):
    model.initial_state = torch.no_grad()(model.initial_state)
    return model


frozen = encoder_frozen(small_transformer())
curves["encoder learns nothing"] = learn(frozen, batches())
print(f"loss {curves['encoder learns nothing'][-1]:.3f}, {share_right(frozen)} of 100 unseen numbers")
caught_by = contract.failed(lambda: encoder_frozen(tiny_transformer()))
print("caught by:", caught_by)
assert "gradients" in caught_by

# %% [markdown]
# The check **gradients** wants one for every parameter.
#
# **Bug 4: hypotheses move, their sources do not.** A beam search keeps the best rows and drops others. Whoever moves
# the decoder's memory and forgets the sources lets a row go on with another sentence. Training never moves rows.

# %%
right_select = TransformerState.select


def sources_stay(self, rows):
    moved = right_select(self, rows)
    return dataclasses.replace(moved, source_rows=torch.arange(len(rows)) % len(self.blocked))  # right: moved


print("right:", translate(model, [1984, 345, 2026, 3888], beam=4))
TransformerState.select = sources_stay
caught_by = contract.failed(tiny_transformer)
print("wrong:", translate(model, [1984, 345, 2026, 3888], beam=4))
TransformerState.select = right_select
print("caught by:", caught_by)
assert "fork" in caught_by

# %% [markdown]
# The check **fork** selects rows, goes on, and wants what the rows say by themselves. All curves:

# %%
figure, panels = plt.subplots(1, 3, figsize=(10, 2.8), sharey=True, layout="constrained")
for panel, name in zip(panels, [name for name in curves if name != "right"], strict=True):
    panel.semilogy(curves["right"], color="grey", label="right")
    panel.semilogy(curves[name], color="crimson", linestyle="--", label="broken")
    panel.set(title=name, xlabel="step")
panels[0].set_ylabel("loss, nats")
panels[0].legend()
plt.show()
assert all(losses[-1] < 0.5 * losses[0] for losses in curves.values()), "every one of them learns"

# %% [markdown]
# ## Exercises
#
# The answers are in the hidden cells. Write your own into the empty cell below each: it takes the answer's place, and
# the last cell checks it.
#
# **1.** Write `noam(step, dim, warmup)`, the paper's equation 3: the rate rises in proportion to the step until
# `warmup`, then falls with one over the root of the step, and at `warmup` both are equal.

# %% cellView="form" jupyter={"source_hidden": true}
# @title Answer 1


def noam(step, dim, warmup):
    return dim**-0.5 * min(step**-0.5, step * warmup**-1.5)


# %%
# your own `noam`

# %%
peak = (512 * 4000) ** -0.5
assert math.isclose(noam(4000, 512, 4000), peak)
assert math.isclose(noam(1000, 512, 4000), peak / 4)
assert math.isclose(noam(16_000, 512, 4000), peak / 2)
print("right")

# %% [markdown]
# **2.** The loss is a mean over targets, and filling is none. Write `mean_loss(logits, targets)` without
# `ignore_index`: the mean over the targets that are not $-100$.

# %% cellView="form" jupyter={"source_hidden": true}
# @title Answer 2


def mean_loss(logits, targets):
    counts = targets != -100
    return -logits.log_softmax(-1)[counts].gather(-1, targets[counts][:, None]).mean()


# %%
# your own `mean_loss`

# %%
logits = torch.randn(*targets.shape, V)
torch.testing.assert_close(mean_loss(logits, targets), F.cross_entropy(logits.flatten(0, 1), targets.flatten()))
print("right")

# %% [markdown]
# **3.** Show that attention sees a set: without positions, an encoder block gives a permuted source the permuted
# output. Write `permuted_alike(x, order, block)`, which says whether that holds for a function `block` from (B, S, D)
# to (B, S, D). Then tell by it whether the decoder's self-attention is such a function.

# %% cellView="form" jupyter={"source_hidden": true}
# @title Answer 3


def permuted_alike(x, order, block):
    return torch.allclose(block(x[:, order]), block(x)[:, order], atol=1e-9)


# %%
# your own `permuted_alike`

# %%
x, order = torch.randn(2, 9, 64).double(), torch.tensor([3, 1, 4, 0, 5, 8, 2, 6, 7])
nothing = torch.zeros(2, 9, dtype=torch.bool)
assert permuted_alike(x, order, lambda x: encoder_block(x, nothing, w, "e"))
assert not permuted_alike(x, order, lambda x: attend(x, x, x, future)), "the mask knows the order"
print("right")
