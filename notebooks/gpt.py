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
# # GPT
#
# [Open in Colab](https://colab.research.google.com/github/OWNER/scratchlm/blob/main/notebooks/gpt.ipynb)
#
# A GPT reads a text from left to right and says, at every position, how probable each token is as the next one. Each
# position looks back at all earlier ones and takes what it needs from them: that is attention. The architecture is
# GPT-2's (Radford et al. 2019, "Language Models are Unsupervised Multitask Learners"); its parts are those of
# Vaswani et al. 2017. Here you build it from its equations, check it, train it, look inside and break it.

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
from scratchlm import layers
from scratchlm.data import corpora
from scratchlm.inspect.attention import attention_figure, attention_layers
from scratchlm.models.gpt import GPT, GPTConfig

torch.manual_seed(0)
text = corpora.get("shakespeare-tiny")
tokenizer = scratchlm.tokenizers.CharacterTokenizer.train([text])
data = torch.tensor(tokenizer.encode(text))
print(f"{len(text):,} characters, {tokenizer.vocab_size} different ones")
print(text[:120])

# %% [markdown]
# ## Build it
#
# Letters in shapes: **B** rows of a batch, **T** tokens, **D** width, **H** heads, **K** width of a head, **V** tokens
# in the vocabulary. We begin with two rows of eight characters.

# %%
B, T, D, H = 2, 8, 16, 2
K, V = D // H, tokenizer.vocab_size
tokens = data[: B * T].view(B, T)
print([tokenizer.decode(row) for row in tokens.tolist()])
print(tokens)

# %% [markdown]
# **Embedding.** A token is a number without meaning. A table gives each token a vector, a second table gives each
# position one, and a position starts out as their sum:
#
# $$x_t = W_e[\text{token}_t] + W_p[t]$$

# %%
token_table = torch.randn(V, D)
position_table = torch.randn(T, D)
x = token_table[tokens] + position_table[torch.arange(T)]
print("x", tuple(x.shape), "= (B, T, D)")

# %% [markdown]
# **Queries, keys, values.** Each position asks a question (its query), says what it has (its key) and what it gives
# to whoever comes (its value). All three are linear maps of the same vector:
#
# $$q_t = W_q x_t \qquad k_t = W_k x_t \qquad v_t = W_v x_t$$
#
# A head is a slice of K numbers with an attention of its own. Note the order: first cut D into H pieces of K, *then*
# move the heads before the positions.

# %%
W_q, W_k, W_v = (torch.randn(D, D) / math.sqrt(D) for _ in range(3))


def heads_of(x):
    """(B, T, D) -> (B, H, T, K)"""
    return x.view(x.shape[0], x.shape[1], H, K).transpose(1, 2)


q, k, v = (heads_of(x @ W.T) for W in (W_q, W_k, W_v))
print("q", tuple(q.shape), "= (B, H, T, K)")

# %% [markdown]
# **Scores.** How well the key of position $s$ answers the query of position $t$ is their inner product. The inner
# product of two random vectors of K numbers has a standard deviation of $\sqrt K$; dividing by that keeps the softmax
# from being all or nothing at the start.
#
# $$a_{ts} = \frac{q_t \cdot k_s}{\sqrt K}$$

# %%
raw = q @ k.transpose(-2, -1)
scores = raw / math.sqrt(K)
print("scores", tuple(scores.shape), "= (B, H, T, T)")
print(f"deviation {raw.std():.2f} before and {scores.std():.2f} after the division by sqrt({K}) = {math.sqrt(K):.2f}")

# %% [markdown]
# **Mask and softmax.** Position $t$ must not see what comes after it: it is trained to predict exactly that. So later
# positions get a score of $-\infty$, whose exponential is 0.
#
# $$w_{ts} = \frac{e^{a_{ts}}}{\sum_{r \le t} e^{a_{tr}}} \quad (s \le t), \qquad w_{ts} = 0 \quad (s > t)$$

# %%
future = torch.ones(T, T, dtype=torch.bool).triu(1)  # True above the diagonal: row t, column s > t
masked = scores.masked_fill(future, -math.inf)
weights = masked.softmax(-1)

figure, panels = plt.subplots(1, 3, figsize=(10, 3.2), layout="constrained")
titles = ("scores", "scores with the mask", "weights: each row sums to 1")
for panel, matrix, title in zip(panels, (scores, masked, weights), titles, strict=True):
    panel.imshow(matrix[0, 0], cmap="Blues")
    panel.set(title=title, xlabel="key (position s)", xticks=range(T), yticks=range(T))
panels[0].set_ylabel("query (position t)")
plt.show()

# %% [markdown]
# **Output.** Each position takes the weighted mean of the values. The heads are laid side by side again and mixed by
# one more matrix:
#
# $$\text{head}_t = \sum_{s \le t} w_{ts} v_s \qquad
# \text{Attention}(x)_t = W_o\,[\text{head}^1_t; \dots; \text{head}^H_t]$$

# %%
W_o = torch.randn(D, D) / math.sqrt(D)
heads = weights @ v
attended = heads.transpose(1, 2).flatten(2) @ W_o.T
print("heads", tuple(heads.shape), "-> side by side (B, T, D) -> output", tuple(attended.shape))

# %% [markdown]
# Attention only moves vectors between positions. Three more parts make it a GPT. **Layer norm** brings each vector to
# mean 0 and variance 1, then lets the model choose a scale and a shift for each of the D numbers:
#
# $$\text{LN}(x) = \frac{x - \text{mean}(x)}{\sqrt{\text{var}(x) + 10^{-5}}} \odot g + b$$

# %%


def layer_norm(x, g, b):
    mean = x.mean(-1, keepdim=True)
    variance = (x - mean).square().mean(-1, keepdim=True)
    return (x - mean) / torch.sqrt(variance + 1e-5) * g + b


normal = layer_norm(x, torch.ones(D), torch.zeros(D))
print(f"before: mean {x[0, 0].mean():+.2f}, variance {x[0, 0].var(correction=0):.2f}")
print(f"after:  mean {normal[0, 0].mean():+.2f}, variance {normal[0, 0].var(correction=0):.2f}")

# %% [markdown]
# **MLP.** At each position by itself, four times as wide inside, with the tanh form of GELU that GPT-2 used:
#
# $$\text{MLP}(x) = W_2\,\text{gelu}(W_1 x + b_1) + b_2 \qquad
# \text{gelu}(z) = \tfrac z2\Big(1 + \tanh\big(\sqrt{2/\pi}\,(z + 0.044715\,z^3)\big)\Big)$$

# %%


def gelu(z):
    return z / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))


z = torch.linspace(-4, 4, 200)
plt.figure(figsize=(4.5, 2.4), layout="constrained")
plt.plot(z, gelu(z), label="gelu")
plt.plot(z, z.relu(), "--", label="relu")
plt.legend()
plt.show()

# %% [markdown]
# **The whole GPT.** A block adds to a stream what attention says, then what the MLP says, each having read the
# *normalised* stream. After the last block, the logit of a token is how well the stream agrees with that token's row
# of the embedding table: the same table as at the entrance ("tied weights").
#
# $$x \leftarrow x + \text{Attention}(\text{LN}(x)) \qquad x \leftarrow x + \text{MLP}(\text{LN}(x)) \qquad
# \text{logits} = \text{LN}(x)\, W_e^\top$$
#
# These 25 lines are all of it. `w` maps names to matrices; one matrix holds $W_q, W_k, W_v$ on top of each other.

# %%


def attention(x, w, name, heads):
    batch, length, dim = x.shape
    qkv = x @ w[f"{name}.query_key_value.weight"].T + w[f"{name}.query_key_value.bias"]
    q, k, v = (part.view(batch, length, heads, dim // heads).transpose(1, 2) for part in qkv.chunk(3, -1))
    scores = q @ k.transpose(-2, -1) / math.sqrt(dim // heads)
    future = torch.ones(length, length, dtype=torch.bool).triu(1)
    mixed = scores.masked_fill(future, -math.inf).softmax(-1) @ v
    return mixed.transpose(1, 2).flatten(2) @ w[f"{name}.output.weight"].T + w[f"{name}.output.bias"]


def mlp(x, w, name):
    hidden = gelu(x @ w[f"{name}.hidden.weight"].T + w[f"{name}.hidden.bias"])
    return hidden @ w[f"{name}.output.weight"].T + w[f"{name}.output.bias"]


def gpt(tokens, w, depth, heads):
    """(B, T) -> logits (B, T, V)"""
    x = w["token_embedding.weight"][tokens] + w["position_embedding.weight"][: tokens.shape[1]]
    for block in (f"blocks.{number}" for number in range(depth)):
        norm = layer_norm(x, w[f"{block}.attention_norm.weight"], w[f"{block}.attention_norm.bias"])
        x = x + attention(norm, w, f"{block}.attention", heads)
        norm = layer_norm(x, w[f"{block}.mlp_norm.weight"], w[f"{block}.mlp_norm.bias"])
        x = x + mlp(norm, w, f"{block}.mlp")
    x = layer_norm(x, w["final_norm.weight"], w["final_norm.bias"])
    return x @ w["token_embedding.weight"].T


# %% [markdown]
# ## Check it
#
# A formula that looks right is a guess. First each part against torch's own, at random numbers: the weighted mean of
# values, the whole attention with its four matrices, the norm, and GELU.

# %%
torch.testing.assert_close(heads, F.scaled_dot_product_attention(q, k, v, is_causal=True))

theirs = nn.MultiheadAttention(D, H, bias=False, batch_first=True)
theirs.load_state_dict({"in_proj_weight": torch.cat([W_q, W_k, W_v]), "out_proj.weight": W_o})
torch.testing.assert_close(attended, theirs(x, x, x, attn_mask=future, need_weights=False)[0])

g, b = torch.randn(2, D)
torch.testing.assert_close(layer_norm(x, g, b), F.layer_norm(x, (D,), g, b))
torch.testing.assert_close(gelu(z), F.gelu(z, approximate="tanh"))
print("four parts equal torch's")

# %% [markdown]
# The loss is the mean negative log-probability of the token that really came next. The targets are the tokens moved by
# one: position $t$ must say token $t + 1$.
#
# $$\text{loss} = -\frac 1N \sum_t \log P(\text{token}_{t+1} \mid \text{token}_1 \dots \text{token}_t)$$

# %%


def loss_of(logits, targets):
    return -logits.log_softmax(-1).gather(-1, targets[..., None]).mean()


inputs, targets = data[:T][None], data[1 : T + 1][None]
print("inputs ", repr(tokenizer.decode(inputs[0].tolist())))
print("targets", repr(tokenizer.decode(targets[0].tolist())))
logits = torch.randn(1, T, V)
torch.testing.assert_close(loss_of(logits, targets), nn.CrossEntropyLoss()(logits.flatten(0, 1), targets.flatten()))

# %% [markdown]
# Now all of it against `scratchlm.models.gpt`, which has the same names: give our function the weights of the
# package's model. In float64 the two agree to the last digits, so nothing can hide behind rounding.

# %%
config = GPTConfig(vocab_size=V, context=32, dim=32, depth=3, heads=4, dropout=0.0)
model = GPT(config).double().eval()
for parameter in model.parameters():
    nn.init.normal_(parameter, std=0.3)  # far from zeros and ones, so that every bias and every scale counts
rows = data[: 4 * 32].view(4, 32)
features, _ = model(rows)
torch.testing.assert_close(gpt(rows, dict(model.named_parameters()), depth=3, heads=4), model.readout(features))
print(f"{config.parameters:,} parameters, and the same logits")

# %% [markdown]
# ## Overfit one batch
#
# Before any training on much data: can it learn one batch by heart? A model that cannot is broken, and it takes
# seconds to know. Random guessing costs $\ln V$ nats a token.

# %%


def small_gpt(seed=0, context=32):
    torch.manual_seed(seed)
    return GPT(GPTConfig(vocab_size=V, context=context, dim=64, depth=2, heads=4, dropout=0.0, activation="gelu"))


def batch_loss(model, windows):
    """Each window gives its first tokens as inputs and its last ones as targets."""
    features, _ = model(windows[:, :-1])
    return F.cross_entropy(model.readout(features).flatten(0, 1), windows[:, 1:].flatten())


one_batch = data[1000 : 1000 + 8 * 33].view(8, 33)
model = small_gpt()
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
losses = []
for _ in range(200):
    loss = batch_loss(model, one_batch)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())

plt.figure(figsize=(5, 2.6), layout="constrained")
plt.semilogy(losses)
plt.axhline(math.log(V), color="grey", linestyle=":", label=f"guessing: ln {V} = {math.log(V):.2f}")
plt.xlabel("step")
plt.ylabel("loss, nats")
plt.legend()
plt.show()
print(f"from {losses[0]:.2f} to {losses[-1]:.3f}")
assert losses[-1] < 0.1

# %% [markdown]
# What is left of the loss is at the first positions, where the text could still be any of the eight rows: nobody could
# know. Given twelve characters, it says the rest by heart.

# %%
start, row = 12, one_batch[3, :32].tolist()
written = scratchlm.generate(model, [row[:start]], max_new_tokens=20, temperature=0)[0]
print("given  ", repr(tokenizer.decode(row[:start])))
print("written", repr(tokenizer.decode(written[start:])))
assert written == row

# %% [markdown]
# ## Look inside
#
# Now a model that has read a little. `create_run` and `train` are what the command line uses; the folder that they
# leave is what `scratchlm sample`, `inspect` and `play` take. Muon is an optimizer for matrices that learns this in
# half of AdamW's steps.

# %%
run, _ = scratchlm.create_run(
    {
        "arch": "gpt", "data": "shakespeare-tiny", "device": "cpu",
        "steps": 400, "batch_size": 16, "eval_every": 200,
        "model": {"context": 64, "dim": 96, "depth": 2, "heads": 4, "dropout": 0.0, "activation": "gelu"},
        "optim": {"name": "muon", "lr": 0.01, "min_lr": 0.001, "warmup": 50},
    },
    Path(tempfile.mkdtemp()) / "gpt",
)  # fmt: skip
for _ in scratchlm.train(run):
    pass
lines = run.metrics()
plt.figure(figsize=(5, 2.6), layout="constrained")
plt.plot([line["step"] for line in lines], [line["loss"] for line in lines], label="training")
scored = [line for line in lines if "val_loss" in line]
plt.plot([line["step"] for line in scored], [line["val_loss"] for line in scored], "o-", label="validation")
plt.xlabel("step")
plt.ylabel("loss, nats")
plt.legend()
plt.show()

model, tokenizer = scratchlm.load(run.path)
prompt = tokenizer.encode("ROMEO:\n")
print(tokenizer.decode(scratchlm.generate(model, [prompt], max_new_tokens=57, temperature=0.7, seed=1)[0]))

# %% [markdown]
# **Where is it surprised?** The probability that it gave to each character of a line, having read those before.
# Word beginnings are hard; once a word has begun, the rest is easy.

# %%
line = "ROMEO:\nWhat light through yonder window breaks?"
ids = torch.tensor([tokenizer.encode(line)])
with torch.no_grad():
    log_probabilities = model.readout(model(ids)[0]).log_softmax(-1)[0]
surprise = -log_probabilities[:-1].gather(-1, ids[0, 1:, None])[:, 0]

plt.figure(figsize=(10, 2.4), layout="constrained")
plt.bar(range(len(surprise)), surprise, color=plt.cm.Blues(0.3 + 0.7 * surprise / surprise.max()))
plt.xticks(range(len(surprise)), [c.replace(" ", "·").replace("\n", "↵") for c in line[1:]])
plt.ylabel("surprise, nats")
plt.show()

# %% [markdown]
# **Who looks where?** Each row is a character that looks, each column one that it looks at.

# %%
shown = line[7:25]
attention_figure(attention_layers(model, tokenizer.encode(shown)), [c.replace(" ", "·") for c in shown])

# %% [markdown]
# One line proves little. Over two hundred windows: how much does each head give to the character itself, to the one
# before, and to the last space? Heads specialise, though nobody told them to: look for one that has become a pointer to
# the character before.

# %%
windows = data[500_000 : 500_000 + 200 * 48].view(200, 48)
space = tokenizer.encode(" ")[0]
before = torch.cat([torch.zeros(200, 1, dtype=torch.bool), windows[:, :-1] == space], 1)  # a word begins here
last_space = (torch.arange(48) * before).cummax(1).values - 1  # (200, 48)
with torch.no_grad(), scratchlm.record(model) as recorded:
    model(windows)
print("layer head   itself  before  last space")
for name, (weights,) in recorded.items():  # (200, H, 48, 48)
    rows = weights[:, :, 24:]  # those with enough to look at
    places = {
        "itself": torch.arange(24, 48).expand(200, 24),
        "before": torch.arange(23, 47).expand(200, 24),
        "last space": last_space[:, 24:].clamp(min=0),
    }
    shares = [rows.gather(-1, at[:, None, :, None].expand(-1, 4, -1, 1)).mean((0, 2, 3)) for at in places.values()]
    for head in range(4):
        itself, previous, at_space = (f"{share[head]:.0%}" for share in shares)
        print(f"{int(name.split('.')[1]) + 1:>5} {head + 1:>4} {itself:>8} {previous:>7} {at_space:>11}")

# %% [markdown]
# **What does it think so far?** The read-out can be laid on the stream after any block, not only after the last one
# (the "logit lens"). Each cell is the best guess for the next character at that depth, the darker the surer. Before the
# first block it has only the character itself, which is what the tied table gives back.

# %%
stream = []
hooks = [model.blocks[0].register_forward_pre_hook(lambda _, inputs: stream.append(inputs[0]))]
hooks += [block.register_forward_hook(lambda _, __, out: stream.append(out[0])) for block in model.blocks]
with torch.no_grad():
    model(ids[:, :32])
    guesses = [model.readout(model.final_norm(x)).softmax(-1)[0] for x in stream]
for hook in hooks:
    hook.remove()

best = torch.stack([guess.max(-1).values for guess in guesses])
plt.figure(figsize=(10, 2.2), layout="constrained")
plt.imshow(best, cmap="Blues", vmin=0, vmax=1, aspect="auto")
for depth, guess in enumerate(guesses):
    for at, token in enumerate(guess.argmax(-1).tolist()):
        mark = tokenizer.decode([token]).replace(" ", "·").replace("\n", "↵")
        plt.text(at, depth, mark, ha="center", va="center", color="white" if best[depth, at] > 0.6 else "black")
plt.xticks(range(32), [c.replace(" ", "·").replace("\n", "↵") for c in line[:32]])
plt.yticks(range(len(guesses)), ["before the blocks", *(f"after block {number}" for number in range(1, len(guesses)))])
plt.xlabel("character read")
plt.show()

# %% [markdown]
# **What has it learned about characters and positions?** Left: characters whose vectors point the same way are used
# the same way; vowels find each other, and so do small and capital letters. Right: near positions have similar
# vectors, so that "a little before me" is something that attention can ask for.

# %%
shown = [c for c in " aeiouybcdfghklmnprstwAEIOBCDFGHLMNRSTW.,;:!?'\n" if c in tokenizer.characters]
rows = model.token_embedding.weight.detach()[[tokenizer.encode(c)[0] for c in shown]]
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.6), layout="constrained")
for panel, vectors, title in (
    (left, rows - rows.mean(0), "characters"),
    (right, model.position_embedding.weight.detach(), "positions"),
):
    unit = F.normalize(vectors, dim=-1)
    image = panel.imshow(unit @ unit.T, cmap="RdBu_r", vmin=-1, vmax=1)
    panel.set_title(f"cosine between {title}")
names = [c.replace(" ", "·").replace("\n", "↵") for c in shown]
left.set_xticks(range(len(shown)), names, size=7)
left.set_yticks(range(len(shown)), names, size=7)
figure.colorbar(image, ax=[left, right], shrink=0.8)
plt.show()

# %% [markdown]
# ## Break it
#
# The loss of a broken model falls too. That is what makes these bugs live long. Below are four that have been seen in
# public code. For each: the wrong line, its training curve beside the right one, and then the package's contract
# suite, nine checks that every architecture must pass (`tests/contract.py`).

# %%


def training_losses(model, steps=120):
    order = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(steps):
        starts = torch.randint(0, len(data) - 33, (16,), generator=order)
        loss = batch_loss(model, data[starts[:, None] + torch.arange(33)])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@torch.no_grad()
def streamed_loss(model, windows):
    """The same loss, but each token is read by itself, after what the state remembers of those before."""
    state, losses = model.initial_state(len(windows)), []
    for at in range(windows.shape[1] - 1):
        features, state = model(windows[:, at : at + 1], state)
        losses.append(F.cross_entropy(model.readout(features[:, 0]), windows[:, at + 1]))
    return torch.stack(losses).mean()


def tiny_gpt():
    torch.manual_seed(0)
    return GPT(GPTConfig.tiny()).double().eval()


held_out = data[-32 * 65 :].view(32, 65)


right_model = small_gpt()
curves = {"right": training_losses(right_model)}
print("the right model fails:", contract.failed(tiny_gpt) or "no check")

# %% [markdown]
# **Bug 1: a mask that is off by one.** `triu(2)` for `triu(1)`: position $t$ sees position $t + 1$, which is its own
# target.

# %%


def peeking_attention(query, keys, values, dropout=0.0):
    length, visible = query.shape[2], keys.shape[2]
    future = torch.ones(length, visible, dtype=torch.bool).triu(visible - length + 2)  # right: + 1
    return F.scaled_dot_product_attention(query, keys, values, attn_mask=~future)


right_attention, layers.fused_attention = layers.fused_attention, peeking_attention
peeking = small_gpt()
curves["mask off by one"] = training_losses(peeking)
print(f"loss {curves['mask off by one'][-1]:.2f}; the right model has {curves['right'][-1]:.2f}")
caught_by = contract.failed(tiny_gpt)
print("caught by:", caught_by)
assert "causal" in caught_by
print(tokenizer.decode(scratchlm.generate(peeking, [tokenizer.encode("The ")], 28, temperature=0.7)[0]))
layers.fused_attention = right_attention

# %% [markdown]
# A loss far too good to be true, and a model that cannot write: when it writes, the next character is not there to be
# copied. The check **causal** needs no training at all: change the later tokens, and no earlier feature may move.
#
# **Bug 2: a cached step thinks that it is at position 0.** When it writes, a GPT keeps the keys and values that it has
# computed and reads only the newest token. Whoever then numbers the positions of the *chunk* and not of the text gives
# each new token position 0. We let the model that was trained above read held-out text in one chunk, and then token by
# token, as in writing.

# %%


def position_zero(model):
    lookup = model.position_embedding.forward
    model.position_embedding.forward = lambda positions: lookup(torch.arange(len(positions)))  # right: positions
    return model


curves["cached step at position 0"] = training_losses(position_zero(small_gpt()))
print(f"loss {curves['cached step at position 0'][-1]:.4f}; the right model has {curves['right'][-1]:.4f}")
caught_by = contract.failed(lambda: position_zero(tiny_gpt()))
print("caught by:", caught_by)
assert "stream" in caught_by
for name, one in (("right", lambda model: model), ("wrong", position_zero)):
    changed = one(scratchlm.load(run.path)[0])
    at_once, one_by_one = batch_loss(changed, held_out), streamed_loss(changed, held_out)
    print(f"{name}: loss {at_once:.3f} read at once, {one_by_one:.3f} token by token")
    print(repr(tokenizer.decode(scratchlm.generate(changed, [prompt], 50, temperature=0.5, seed=2)[0])))

# %% [markdown]
# The same curve to the last digit, since training reads a text in one chunk. Only writing is wrong, and bad writing
# is easily blamed on a small model. The check **stream** cuts a text into chunks in many ways and wants the features
# of the whole each time.
#
# **Bug 3: heads mixed up with rows.** `view(B, H, T, K)` where `view(B, T, H, K).transpose(1, 2)` is meant has the
# right shape. On a tensor that lies in memory with the positions first, it deals out the numbers of one row to another.

# %%


def mixed_rows(model):
    for block in model.blocks:

        def project(x, layer=block.attention):
            batch, length, dim = x.shape
            qkv = layer.query_key_value(x.transpose(0, 1))  # (T, B, 3 D)
            return qkv.reshape(3, batch, layer.heads, length, dim // layer.heads).unbind(0)

        block.attention.project = project
    return model


curves["heads mixed with rows"] = training_losses(mixed_rows(small_gpt()))
print(f"loss {curves['heads mixed with rows'][-1]:.3f}; the right model has {curves['right'][-1]:.3f}")
caught_by = contract.failed(lambda: mixed_rows(tiny_gpt()))
print("caught by:", caught_by)
assert "rows" in caught_by

# %% [markdown]
# The check **rows** runs each row of a batch alone and wants what it had in company.
#
# **Bug 4: no scale.** The scores are not divided by $\sqrt K$.

# %%


def unscaled_attention(query, keys, values, dropout=0.0):
    future = layers.future_mask(query.shape[2], keys.shape[2], query.device)
    return (query @ keys.transpose(-2, -1)).masked_fill(future, -math.inf).softmax(-1) @ values


layers.fused_attention = unscaled_attention
curves["no scale"] = training_losses(small_gpt())
print(f"loss {curves['no scale'][-1]:.3f}; the right model has {curves['right'][-1]:.3f}")
print("caught by the contract:", contract.failed(tiny_gpt) or "no check")
try:
    torch.testing.assert_close(layers.fused_attention(q, k, v), F.scaled_dot_product_attention(q, k, v, is_causal=True))
except AssertionError as error:
    print("caught by the comparison with torch:", str(error).splitlines()[0])
else:
    raise AssertionError("the comparison with torch must notice a missing scale")
layers.fused_attention = right_attention

# %% [markdown]
# Nothing is inconsistent here: it is a proper language model, only another one than GPT. So no check of consistency
# can see it, and the curve hardly can. This is what a **comparison with a reference** is for, and why the package has
# both. All curves together:

# %%
figure, panels = plt.subplots(1, 4, figsize=(12, 2.8), sharey=True, layout="constrained")
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
# **1.** How many parameters has a GPT-2 of V = 50,257 tokens, context 1024, D = 768 and 12 blocks? Write
# `parameters(V, context, D, depth)`. The paper says 117M; the released model has another number.

# %% cellView="form" jupyter={"source_hidden": true}
# @title Answer 1


def parameters(V, context, D, depth):
    attention = D * 3 * D + 3 * D + D * D + D
    mlp = D * 4 * D + 4 * D + 4 * D * D + D
    norms = 2 * 2 * D
    return V * D + context * D + depth * (attention + mlp + norms) + 2 * D


# %%
# your own `parameters`

# %%
assert parameters(50257, 1024, 768, 12) == GPTConfig(vocab_size=50257).parameters
print(f"{parameters(50257, 1024, 768, 12):,}: right")

# %% [markdown]
# **2.** Write `step(q, keys, values, k, v)`: attention of *one* new position, with what was kept of the earlier ones.
# It returns the output and the keys and values to keep. Shapes: q, k, v (B, H, 1, K), keys, values (B, H, S, K).
# Why does it need no mask?

# %% cellView="form" jupyter={"source_hidden": true}
# @title Answer 2


def step(q, keys, values, k, v):
    keys, values = torch.cat([keys, k], 2), torch.cat([values, v], 2)
    weights = (q @ keys.transpose(-2, -1) / math.sqrt(q.shape[-1])).softmax(-1)  # nothing later than it is there
    return weights @ values, keys, values


# %%
# your own `step`

# %%
keys, values, outputs = k[:, :, :0], v[:, :, :0], []
for t in range(T):
    now = slice(t, t + 1)
    output, keys, values = step(q[:, :, now], keys, values, k[:, :, now], v[:, :, now])
    outputs.append(output)
torch.testing.assert_close(torch.cat(outputs, 2), heads)
print("one at a time equals all at once: right")

# %% [markdown]
# **3.** A fresh model should know nothing. What loss do you expect from our `small_gpt()` before its first step? Set
# `expected`; the check allows 0.1.

# %% cellView="form" jupyter={"source_hidden": true}
# @title Answer 3
expected = math.log(V)  # each of V tokens about equally probable: small weights make small logits

# %%
# your own `expected`

# %%
with torch.no_grad():
    fresh = batch_loss(small_gpt(seed=1), one_batch).item()
assert abs(fresh - expected) < 0.1
print(f"expected {expected:.2f}, found {fresh:.2f}: right")
