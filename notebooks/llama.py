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
# # Llama
#
# [Open in Colab](https://colab.research.google.com/github/OWNER/scratchlm/blob/main/notebooks/llama.ipynb)
#
# Llama (Touvron et al. 2023, section 2.2) is what became of the GPT: the same stream of vectors, attention and MLP,
# with four parts exchanged. Positions are no longer added but *turned* (rotary positions, Su et al. 2021), the norm
# does without a mean (RMS norm, Zhang and Sennrich 2019), the MLP has a gate (SwiGLU, Shazeer 2020), and several heads
# of queries share keys and values (grouped queries, Ainslie et al. 2023). Here you build the four, check them, train
# them, look inside and break them. The GPT's notebook has what is not new: attention, the mask, the stream.

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
import math
import tempfile

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch import nn

import contract  # the checks that every architecture must pass: tests/contract.py
import scratchlm
from scratchlm.data import corpora
from scratchlm.inspect.attention import attention_figure, attention_layers
from scratchlm.model import KV
from scratchlm.models.llama import Llama, LlamaConfig, RMSNorm, Rotation

torch.manual_seed(0)
text = corpora.get("shakespeare-tiny")
tokenizer = scratchlm.tokenizers.CharacterTokenizer.train([text])
data, V = torch.tensor(tokenizer.encode(text)), tokenizer.vocab_size

# %% [markdown]
# ## Build it
#
# Letters in shapes: **B** rows, **T** tokens, **D** width, **H** heads of queries, **G** heads of keys and values,
# **K** width of a head.
#
# **RMS norm.** Layer norm takes off the mean and divides by the deviation. It turned out that only the division
# matters: bring each vector to a root mean square of 1, then scale each of its D numbers.
#
# $$y = \frac{x}{\sqrt{\text{mean}(x^2) + \epsilon}} \odot g$$

# %%


def rms_norm(x, g, eps=1e-5):
    return x / torch.sqrt(x.square().mean(-1, keepdim=True) + eps) * g


x = 3 + 2 * torch.randn(2, 5, 16)
y = rms_norm(x, torch.ones(16))
print("lengths before", [round(n, 1) for n in x[0].norm(dim=-1).tolist()])
print("lengths after ", [round(n, 1) for n in y[0].norm(dim=-1).tolist()], "= sqrt(16)")

# %% [markdown]
# **Rotary positions.** A GPT adds a vector for "position 7" to the token. But attention seldom cares for 7; it cares
# for "three before me". So take the query and the key in pairs of numbers, see each pair as a point in the plane, and
# turn it by an angle that grows with the position $t$. Pair $i$ of a head of width K turns by
#
# $$\theta_{t,i} = t \cdot b^{-2i/K}, \qquad
# \begin{pmatrix} x_i \\ x_{i+K/2} \end{pmatrix} \mapsto
# \begin{pmatrix} \cos\theta & -\sin\theta \\ \sin\theta & \cos\theta \end{pmatrix}
# \begin{pmatrix} x_i \\ x_{i+K/2} \end{pmatrix}$$
#
# The first pair turns by one radian a token, the last ones hardly at all: the hands of a clock, from seconds to years.

# %%


def rotate(x, start=0, base=10_000.0):
    """(..., T, K) -> (..., T, K): position start + t for row t."""
    T, K = x.shape[-2:]
    speeds = base ** (-torch.arange(0, K, 2) / K)  # (K / 2,)
    angles = (start + torch.arange(T))[:, None] * speeds  # (T, K / 2)
    a, b = x.chunk(2, -1)
    return torch.cat([a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()], -1)


one = torch.zeros(24, 8)
one[:, :4] = 1  # the same vector at 24 positions: each pair is the point (1, 0)
turned = rotate(one, base=100.0)
figure, panels = plt.subplots(1, 4, figsize=(10, 2.6), layout="constrained")
for pair, panel in enumerate(panels):
    panel.scatter(turned[:, pair], turned[:, pair + 4], c=range(24), cmap="viridis")
    panel.set(title=f"pair {pair}", aspect="equal", xlim=(-1.2, 1.2), ylim=(-1.2, 1.2))
figure.suptitle("one vector at positions 0 (dark) to 23 (light)")
plt.show()

# %% [markdown]
# **Why it works.** Turning both by the same angle changes no inner product, so only the *difference* of the positions
# is left in a score:
#
# $$(R_t q) \cdot (R_s k) = q \cdot R_{s-t}\,k$$
#
# We see it: put one query and one key at all pairs of positions. Each diagonal, which is one distance, has one colour.

# %%
q, k = torch.randn(2, 32)
scores = rotate(q.expand(24, 32)) @ rotate(k.expand(24, 32)).T
plt.figure(figsize=(3.8, 3.2), layout="constrained")
plt.imshow(scores, cmap="RdBu_r")
plt.xlabel("position of the key")
plt.ylabel("position of the query")
plt.colorbar(label="score")
plt.show()
for distance in (0, 3, 11):
    along = scores.diagonal(-distance)
    print(f"distance {distance:>2}: from {along.min():.4f} to {along.max():.4f}")

# %% [markdown]
# **Grouped queries.** While it writes, a model keeps the keys and values of all that it has read, and reads all of
# them for each new token. That is most of the work. So let H heads of queries share G < H heads of keys and values;
# head $h$ of queries uses head $\lfloor hG/H \rfloor$. Neighbours share.

# %%


def grouped_attention(q, k, v):
    """q (B, H, T, K), k and v (B, G, T, K) -> (B, H, T, K)."""
    shared = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(shared, 1), v.repeat_interleave(shared, 1)  # (B, H, T, K)
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
    future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    return scores.masked_fill(future, -math.inf).softmax(-1) @ v


q = torch.randn(2, 4, 6, 8)
k, v = torch.randn(2, 2, 2, 6, 8)
print("queries", tuple(q.shape), "keys", tuple(k.shape), "->", tuple(grouped_attention(q, k, v).shape))
for groups in (32, 8, 1):
    kept = 2 * groups * 128 * 32 * 2  # keys and values, width of a head, layers, two bytes each
    print(f"Llama 3 8B with {groups:>2} heads of keys: {kept // 1024:>3} KiB a token, {kept / 2**17:.1f} GiB at 8,192")

# %% [markdown]
# **SwiGLU.** The MLP gets a second entrance. One branch says *what*, the other, through $\text{silu}(z) =
# z\,\sigma(z)$, *how much*, and they are multiplied number by number:
#
# $$\text{MLP}(x) = W_2\,\big(\text{silu}(W_g x) \odot W_1 x\big)$$

# %%


def gated_mlp(x, W_g, W_1, W_2):
    gate = x @ W_g.T
    return (gate * torch.sigmoid(gate) * (x @ W_1.T)) @ W_2.T


# %% [markdown]
# **The whole Llama.** No biases anywhere. `w` maps names to matrices: one holds $W_k$ above $W_v$, one $W_g$ above
# $W_1$. Compare it with `gpt` in the GPT's notebook.

# %%


def attention(x, w, name, config):
    def heads(x, count):
        return x.unflatten(-1, (count, config.head_dim)).transpose(1, 2)

    W_k, W_v = w[f"{name}.key_value.weight"].chunk(2)
    q = rotate(heads(x @ w[f"{name}.query.weight"].T, config.heads), base=config.rope_base)
    k = rotate(heads(x @ W_k.T, config.kv_heads), base=config.rope_base)
    mixed = grouped_attention(q, k, heads(x @ W_v.T, config.kv_heads))
    return mixed.transpose(1, 2).flatten(2) @ w[f"{name}.output.weight"].T


def llama(tokens, w, config):
    """(B, T) -> logits (B, T, V)"""
    x = w["token_embedding.weight"][tokens]
    for block in (f"blocks.{number}" for number in range(config.depth)):
        x = x + attention(rms_norm(x, w[f"{block}.attention_norm.weight"]), w, f"{block}.attention", config)
        W_g, W_1 = w[f"{block}.mlp.gate_hidden.weight"].chunk(2)
        x = x + gated_mlp(rms_norm(x, w[f"{block}.mlp_norm.weight"]), W_g, W_1, w[f"{block}.mlp.output.weight"])
    return rms_norm(x, w["final_norm.weight"]) @ w["head.weight"].T


# %% [markdown]
# ## Check it
#
# Each part against torch's own at random numbers. For rotary positions torch has none, but it has complex numbers:
# turning a point by $\theta$ is multiplying by $e^{i\theta}$.

# %%
x, g = torch.randn(2, 5, 16), torch.randn(16)
torch.testing.assert_close(rms_norm(x, g), nn.functional.rms_norm(x, (16,), g, eps=1e-5))

angles = torch.arange(5)[:, None] * 10_000.0 ** (-torch.arange(0, 16, 2) / 16)
points = torch.complex(*x.chunk(2, -1)) * torch.polar(torch.ones(5, 8), angles)
torch.testing.assert_close(rotate(x), torch.cat([points.real, points.imag], -1))

theirs = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
torch.testing.assert_close(grouped_attention(q, k, v), theirs)

matrices = torch.randn(24, 16), torch.randn(24, 16), torch.randn(16, 24)
W_g, W_1, W_2 = matrices
torch.testing.assert_close(gated_mlp(x, *matrices), F.linear(F.silu(F.linear(x, W_g)) * F.linear(x, W_1), W_2))
print("four parts equal torch's")

# %% [markdown]
# Then all of it against `scratchlm.models.llama`, with the same weights, in float64.

# %%
config = LlamaConfig(
    vocab_size=V, context=32, dim=32, depth=3, heads=4, kv_heads=2, hidden_dim=48, rope_base=10_000.0
)  # fmt: skip
model = Llama(config).double().eval()
for parameter in model.parameters():
    nn.init.normal_(parameter, std=0.3)
rows = data[: 4 * 32].view(4, 32)
ours, theirs = llama(rows, dict(model.named_parameters()), config), model.readout(model(rows)[0])
torch.testing.assert_close(ours, theirs)
print(f"{config.parameters:,} parameters, the same logits, at most {(ours - theirs).abs().max():.0e} apart")

# %% [markdown]
# ## Overfit one batch
#
# Can it learn eight rows by heart?

# %%


def small_llama(seed=0):
    torch.manual_seed(seed)
    shape = {"dim": 64, "depth": 2, "heads": 4, "kv_heads": 2, "hidden_dim": 172}
    return Llama(LlamaConfig(vocab_size=V, context=64, **shape, rope_base=1000.0, tied=True))


def batch_loss(model, windows):
    features, _ = model(windows[:, :-1])
    return F.cross_entropy(model.readout(features).flatten(0, 1), windows[:, 1:].flatten())


def learn(model, batches, lr=3e-3):
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    losses = []
    for windows in batches:
        loss = batch_loss(model, windows)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


one_batch = data[1000 : 1000 + 8 * 33].view(8, 33)
model = small_llama()
losses = learn(model, [one_batch] * 150)
plt.figure(figsize=(5, 2.6), layout="constrained")
plt.semilogy(losses)
plt.axhline(math.log(V), color="grey", linestyle=":", label=f"guessing: ln {V} = {math.log(V):.2f}")
plt.xlabel("step")
plt.ylabel("loss, nats")
plt.legend()
plt.show()
print(f"from {losses[0]:.2f} to {losses[-1]:.3f}")
assert losses[-1] < 0.15

# %% [markdown]
# ## Look inside
#
# A model that has read a little. `create_run` and `train` are what the command line uses.

# %%
run, _ = scratchlm.create_run(
    {
        "arch": "llama", "data": "shakespeare-tiny", "device": "cpu",
        "steps": 350, "batch_size": 16, "eval_every": 350,
        "model": {
            "context": 64, "dim": 96, "depth": 2, "heads": 4, "kv_heads": 2, "hidden_dim": 256,
            "rope_base": 1000.0, "tied": True,
        },
        "optim": {"name": "muon", "lr": 0.01, "min_lr": 0.001, "warmup": 20},
    },
    Path(tempfile.mkdtemp()) / "llama",
)  # fmt: skip
for _ in scratchlm.train(run):
    pass
print(f"validation loss {run.metrics()[-1]['val_loss']:.3f} nats per character")
model, tokenizer = scratchlm.load(run.path)
prompt = tokenizer.encode("ROMEO:\n")
print(tokenizer.decode(scratchlm.generate(model, [prompt], max_new_tokens=57, temperature=0.7, seed=1)[0]))

# %% [markdown]
# **Who looks where?** Heads 1 and 2 share keys and values, and so do 3 and 4. They ask different questions of them.

# %%
line = "ROMEO:\nWhat light through yonder window breaks?"
shown = line[7:25]
attention_figure(attention_layers(model, tokenizer.encode(shown)), [c.replace(" ", "·") for c in shown])

# %% [markdown]
# **Does it look by distance?** Over a few hundred windows of the text, the mean weight that each head gives to the
# position so many tokens back. A head with a narrow peak is a pointer: "the one before". No table of positions told
# it; it has learned queries and keys whose angles agree at that distance.

# %%
windows = data[500_000 : 500_000 + 200 * 48].view(200, 48)
with torch.no_grad(), scratchlm.record(model) as shown:
    model(windows)
figure, panels = plt.subplots(1, 2, figsize=(8, 2.6), sharey=True, layout="constrained")
for number, panel in enumerate(panels):
    weights = shown[f"blocks.{number}.attention.weights"][0].mean(0)  # (H, T, T), mean over the windows
    for head, matrix in enumerate(weights):
        panel.plot([matrix[24:].diagonal(24 - d).mean() for d in range(25)], label=f"head {head + 1}")
    panel.set(title=f"layer {number + 1}", xlabel="tokens back")
panels[0].set_ylabel("mean weight")
panels[0].legend()
plt.show()

# %% [markdown]
# **Which pairs does it use?** A fast pair tells neighbours apart, a slow one carries meaning. The length of the queries
# in each pair shows what each head has made of them.

# %%
attention_layer = model.blocks[0].attention
with torch.no_grad():
    x = model.blocks[0].attention_norm(model.token_embedding(windows))
    query = attention_layer.project(x, Rotation.at(0, 48, model.config, x))[0]  # (B, H, T, K)
a, b = query.chunk(2, -1)
lengths = torch.sqrt((a**2 + b**2).mean((0, 2)))  # (H, K / 2)
wavelengths = (
    2 * math.pi * model.config.rope_base ** (torch.arange(0, model.config.head_dim, 2) / model.config.head_dim)
)
plt.figure(figsize=(6.5, 2.6), layout="constrained")
plt.imshow(lengths, cmap="Blues", aspect="auto")
plt.xticks(range(len(wavelengths)), [f"{wave:.0f}" for wave in wavelengths], size=8)
plt.yticks(range(4), [f"head {head + 1}" for head in range(4)])
plt.xlabel("wavelength of the pair, in tokens")
plt.colorbar(label="length of queries")
plt.show()

# %% [markdown]
# **How fast does it learn?** GPT and Llama on the same batches, near the same size; one seed each.

# %%


def batches(steps=120, seed=0):
    order = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        starts = torch.randint(0, len(data) - 33, (16,), generator=order)
        yield data[starts[:, None] + torch.arange(33)]


torch.manual_seed(0)
GPT = scratchlm.MODELS["gpt"]
gpt = GPT(GPT.Config(vocab_size=V, context=64, dim=64, depth=2, heads=4, dropout=0.0, activation="gelu"))
right = small_llama()
curves = {"right": learn(right, batches())}
gpt_losses = learn(gpt, batches())
plt.figure(figsize=(5, 2.6), layout="constrained")
plt.plot(gpt_losses, label=f"GPT, {gpt.config.parameters:,} parameters")
plt.plot(curves["right"], label=f"Llama, {right.config.parameters:,} parameters")
plt.xlabel("step")
plt.ylabel("loss, nats")
plt.legend()
plt.show()

# %% [markdown]
# ## Break it
#
# Rotary positions are the part of this architecture that is broken most often, since every wrong version of them
# trains. Each bug below was seen in public code. For each: the wrong line, its loss, and the package's contract suite,
# nine checks that every architecture must pass (`tests/contract.py`).

# %%


def tiny_llama():
    torch.manual_seed(0)
    return Llama(LlamaConfig.tiny()).double().eval()


@torch.no_grad()
def streamed_loss(model, windows):
    """The same loss, but each token is read by itself, after what the state remembers of those before."""
    state, losses = model.initial_state(len(windows)), []
    for at in range(windows.shape[1] - 1):
        features, state = model(windows[:, at : at + 1], state)
        losses.append(F.cross_entropy(model.readout(features[:, 0]), windows[:, at + 1]))
    return torch.stack(losses).mean()


held_out = data[-32 * 65 :].view(32, 65)
print("the right model fails:", contract.failed(tiny_llama) or "no check")

# %% [markdown]
# **Bug 1: with a memory, the angles start again at 0.** Training reads a text in one chunk from the start and is right.
# Each token that is written later is turned as if it were the first. We let both read held-out text in one chunk, and
# then token by token as in writing, with the model that was trained above.

# %%
right_at = Rotation.at
Rotation.at = lambda start, new, config, like: right_at(0, new, config, like)  # right: start
curves["angles start at 0"] = learn(small_llama(), batches())
print(f"loss {curves['angles start at 0'][-1]:.4f}; the right model has {curves['right'][-1]:.4f}")
print(f"wrong: {batch_loss(model, held_out):.3f} read at once, {streamed_loss(model, held_out):.3f} token by token")
caught_by = contract.failed(tiny_llama)
Rotation.at = right_at
print(f"right: {batch_loss(model, held_out):.3f} read at once, {streamed_loss(model, held_out):.3f} token by token")
print("caught by:", caught_by)
assert "stream" in caught_by

# %% [markdown]
# The same loss to the last digit. The check **stream** reads a text in chunks of all sizes and wants the features of
# the whole.
#
# **Bug 2: keys that are turned twice.** The memory holds keys that were turned already; turning all of the memory at
# each step turns the old ones again and again. This too is right in training, where nothing is kept.

# %%
right_append = KV.append


def turns_again(self, keys, values, at):
    keys, values, kept = right_append(self, keys, values, at)
    rotation = Rotation.at(0, at, LlamaConfig.tiny(), keys)
    return torch.cat([rotation.turn(keys[:, :, :at]), keys[:, :, at:]], 2), values, kept  # right: keys, values, kept


KV.append = turns_again
caught_by = contract.failed(tiny_llama)
KV.append = right_append
print("caught by:", caught_by)
assert "stream" in caught_by

# %% [markdown]
# **Bug 3: a norm over the positions too.** `mean((-2, -1))` for `mean(-1)`, or a `flatten` too many: the size of later
# vectors changes the earlier ones. The loss falls, and a little of the future is in it.

# %%
right_norm = RMSNorm.forward
RMSNorm.forward = lambda self, x: (
    x / torch.sqrt(x.square().mean((-2, -1), keepdim=True) + self.eps) * self.weight  # right: mean(-1)
)
curves["norm over positions"] = learn(small_llama(), batches())
caught_by = contract.failed(tiny_llama)
RMSNorm.forward = right_norm
print(f"loss {curves['norm over positions'][-1]:.3f}; the right model has {curves['right'][-1]:.3f}")
print("caught by:", caught_by)
assert "causal" in caught_by

# %% [markdown]
# **Bug 4: pairs of the other kind.** The paper pairs the numbers 0 and 1, 2 and 3, ...; the weights in circulation pair
# $i$ and $i + K/2$. A model that is trained *and* used with either is right. But load weights that were trained with
# the one into code with the other, and every score is wrong. We do so with the model that was trained above.

# %%


def turns_neighbours(self, x):
    half = x.shape[-1] // 2
    a, b = x[..., ::2], x[..., 1::2]  # right: x.chunk(2, -1)
    cos, sin = self.cos[..., :half], self.sin[..., half:]
    return torch.stack([a * cos - b * sin, b * cos + a * sin], -1).flatten(-2)


right_turn = Rotation.turn
Rotation.turn = turns_neighbours
curves["pairs of neighbours"] = learn(small_llama(), batches())
caught_by = contract.failed(tiny_llama)
with torch.no_grad():
    loss_with_other_pairs = batch_loss(model, held_out).item()
    logits = model.readout(model(held_out[:, :64])[0])
Rotation.turn = right_turn
with torch.no_grad():
    loss_with_own_pairs = batch_loss(model, held_out).item()
    expected = model.readout(model(held_out[:, :64])[0])
print("caught by the contract:", caught_by or "no check")
print(f"trained model: loss {loss_with_own_pairs:.3f} with its own pairs, {loss_with_other_pairs:.3f} with the others")
try:
    torch.testing.assert_close(logits, expected)
except AssertionError as error:
    print("caught by comparing logits with a reference that has the same weights:", str(error).splitlines()[0])
else:
    raise AssertionError("a comparison must notice the other pairs")
assert not caught_by

# %% [markdown]
# It is a proper model of another kind, so no check of consistency can see it. That is why the package also compares
# its logits with those of transformers' `LlamaForCausalLM`, with the same weights (`tests/test_llama.py`). All curves:

# %%
figure, panels = plt.subplots(1, 3, figsize=(10, 2.8), sharey=True, layout="constrained")
for panel, name in zip(panels, [name for name in curves if name != "right"], strict=True):
    panel.plot(curves["right"], color="grey", label="right")
    panel.plot(curves[name], color="crimson", linestyle="--", label="broken")
    panel.set(title=name, xlabel="step")
panels[0].set_ylabel("loss, nats")
panels[0].legend()
plt.show()
assert all(losses[-1] < 0.8 * losses[0] for losses in curves.values()), "every one of them learns"

# %% [markdown]
# ## Exercises
#
# The answers are in the hidden cells. Write your own into the empty cell below each: it takes the answer's place, and
# the last cell checks it.
#
# **1.** Write `kept_bytes(config, tokens)`: how many bytes of keys and values a Llama keeps for one row of so many
# tokens, in float32.

# %% cellView="form" jupyter={"source_hidden": true}
# @title Answer 1


def kept_bytes(config, tokens):
    return 2 * config.depth * config.kv_heads * config.head_dim * tokens * 4


# %%
# your own `kept_bytes`

# %%
state = model.initial_state(1, capacity=64)
assert kept_bytes(model.config, 64) == state.nbytes
print(f"{state.nbytes:,} bytes for 64 tokens: right")

# %% [markdown]
# **2.** Write `unrotate(x, start)`, which undoes `rotate(x, start)`, in one line. What does it say about how much of a
# vector a rotation loses?

# %% cellView="form" jupyter={"source_hidden": true}
# @title Answer 2


def unrotate(x, start=0):
    a, b = rotate(torch.cat([x.chunk(2, -1)[0], -x.chunk(2, -1)[1]], -1), start).chunk(2, -1)
    return torch.cat([a, -b], -1)  # mirrored, turned, mirrored: turned back. Nothing is lost, and no length changes


# %%
# your own `unrotate`

# %%
x = torch.randn(2, 5, 16)
torch.testing.assert_close(unrotate(rotate(x, 7), 7), x)
print("right")

# %% [markdown]
# **3.** An MLP of GPT has 8 D² weights, one of Llama three matrices of D times the hidden width. Write `hidden_of(D)`:
# the width that gives both as many weights, rounded. Llama 7B has D = 4096 and a hidden width of 11,008, which is that
# rounded up to a multiple of 256.

# %% cellView="form" jupyter={"source_hidden": true}
# @title Answer 3


def hidden_of(D):
    return round(8 * D * D / (3 * D))


# %%
# your own `hidden_of`

# %%
assert hidden_of(4096) == 10_923
assert 256 * math.ceil(hidden_of(4096) / 256) == 11_008
print("right")
