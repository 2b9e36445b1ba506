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
# # RNN, LSTM, GRU: a memory of one size
#
# [Open in Colab](https://colab.research.google.com/github/OWNER/scratchlm/blob/main/notebooks/rnn.ipynb)
#
# A recurrent network reads a text from left to right and carries one vector along. Each token changes the vector, and
# the next token is predicted from it. The memory has the same size after ten tokens and after ten million. Elman
# described it in "Finding Structure in Time" (1990). It forgets quickly, so Hochreiter and Schmidhuber gave it gates
# ("Long Short-Term Memory", 1997; the forget gate is from Gers et al. 2000), and Cho et al. made them fewer (the GRU,
# 2014). Here you build all three, send gradients back through time by hand, and see what a gate buys.

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
import itertools
import math
import tempfile

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch import nn

import contract  # the checks that every architecture must pass: tests/contract.py
import scratchlm
from scratchlm.data import corpora
from scratchlm.models.gru import GatedRecurrentUnit
from scratchlm.models.lstm import LongShortTermMemory
from scratchlm.models.rnn import Elman

torch.manual_seed(0)
close = torch.testing.assert_close

# %% [markdown]
# ## Build it
#
# **One step.** The new memory is a mix of what is read and what was remembered, squashed to between -1 and 1:
#
# $$h_t = \tanh(W_{ih}\, x_t + b_{ih} + W_{hh}\, h_{t-1} + b_{hh})$$
#
# Letters in shapes: B rows of a batch, T steps, E width of the input, H width of the memory.


# %%
def elman_step(x, memory, weights):
    w_ih, w_hh, b_ih, b_hh = weights
    (h,) = memory
    return (torch.tanh(x @ w_ih.T + b_ih + h @ w_hh.T + b_hh),)


B, T, E, H = 2, 6, 3, 4
weights = [0.5 * torch.randn(shape, dtype=torch.float64) for shape in [(H, E), (H, H), (H,), (H,)]]
x = torch.randn(B, T, E, dtype=torch.float64)
h0 = torch.zeros(B, H, dtype=torch.float64)
(h1,) = elman_step(x[:, 0], (h0,), weights)
print("x_1", tuple(x[:, 0].shape), " h_0", tuple(h0.shape), " h_1", tuple(h1.shape))

# %% [markdown]
# **Many steps.** A text is a loop over that step. The weights are the same at each step, so a text of any length
# needs no more of them.


# %%
def unroll(step, x, memory, weights):
    """The memory after each step: a list of T tuples of (B, H)."""
    memories = []
    for x_t in x.unbind(1):
        memory = step(x_t, memory, weights)
        memories.append(memory)
    return memories


hidden = torch.stack([h for (h,) in unroll(elman_step, x, (h0,), weights)], 1)
print("hidden", tuple(hidden.shape), "= (B, T, H)")

# %% [markdown]
# **How long does it remember?** Give it one pulse at the first step, then nothing, and measure how long the vector
# stays. Take for $W_{hh}$ a rotation (which keeps lengths) times a factor.

# %%
rotation = torch.linalg.qr(torch.randn(32, 32, dtype=torch.float64))[0]
pulse = torch.zeros(1, 60, 1, dtype=torch.float64)
pulse[:, 0] = 1
figure, axes = plt.subplots(figsize=(6, 2.6), layout="constrained")
for factor in (0.7, 0.9, 1.0, 1.2):
    parts = [0.2 * torch.ones(32, 1), factor * rotation, torch.zeros(32), torch.zeros(32)]
    steps = unroll(elman_step, pulse, (torch.zeros(1, 32).double(),), [part.double() for part in parts])
    axes.semilogy([h.norm() for (h,) in steps], label=f"{factor}")
axes.set(xlabel="steps after the pulse", ylabel="length of $h_t$", ylim=(1e-4, 10))
axes.legend(title="rotation times", frameon=False, loc="lower left", fontsize=8)
plt.show()

# %% [markdown]
# Below 1 the pulse fades by the same factor at each step. Above 1 the vector grows until tanh holds it, and then it
# lives a life of its own. Only near 1 does it keep what it was told, and even there tanh wears it down. This is the
# whole problem with the simple network; the rest of the notebook is about it.

# %% [markdown]
# **Backpropagation through time, by hand.** Training needs the slope of a loss with respect to the weights, through
# all steps (Werbos 1990). Let $\gamma_t$ be what the rest of the network wants of $h_t$, the gradient of its own
# loss. Write $a_t$ for what is inside the tanh. Walk backwards:
#
# $$\delta_t = \gamma_t + W_{hh}^\top\, \mathrm{d}a_{t+1} \qquad \mathrm{d}a_t = \delta_t \odot (1 - h_t^2)$$
#
# $$\mathrm{d}W_{ih} = \sum_t \mathrm{d}a_t\, x_t^\top \qquad
# \mathrm{d}W_{hh} = \sum_t \mathrm{d}a_t\, h_{t-1}^\top \qquad
# \mathrm{d}b = \sum_t \mathrm{d}a_t$$
#
# The first equation has the idea in it: a step is to blame for its own error and for what it handed on.


# %%
def backward_by_hand(x, h0, hidden, gamma, w_hh):
    d_ih, d_hh, d_b = 0, 0, 0
    da = torch.zeros_like(h0)  # after the last step nothing is handed on
    for t in reversed(range(x.shape[1])):
        before = hidden[:, t - 1] if t else h0
        delta = gamma[:, t] + da @ w_hh  # a batch has its vectors as rows, so W^T da is da @ W
        da = delta * (1 - hidden[:, t] ** 2)
        d_ih, d_hh, d_b = d_ih + da.T @ x[:, t], d_hh + da.T @ before, d_b + da.sum(0)
    return d_ih, d_hh, d_b, d_b  # both biases are added to the same sum


gamma = torch.randn(B, T, H, dtype=torch.float64)
by_hand = backward_by_hand(x, h0, hidden, gamma, weights[1])

leaves = [weight.clone().requires_grad_() for weight in weights]
again = torch.stack([h for (h,) in unroll(elman_step, x, (h0,), leaves)], 1)
close(by_hand, torch.autograd.grad((gamma * again).sum(), leaves))
print("by hand = autograd, for", ", ".join(str(tuple(gradient.shape)) for gradient in by_hand))

# %% [markdown]
# Look at the path from step $t$ back to step $t - 1$: it is multiplied by $W_{hh}^\top$ and by $1 - h^2 \le 1$, at
# each step again. Fifty steps back is a product of fifty such factors. We shall measure it.

# %% [markdown]
# **The LSTM.** It keeps a second vector, the cell $c$, and never multiplies it by a matrix. Three gates between 0 and
# 1 say, for each unit, what is written, what is kept, and what is shown:
#
# $$i, f, o = \sigma(W_{ih} x_t + b_{ih} + W_{hh} h_{t-1} + b_{hh}) \qquad g = \tanh(\ldots)$$
#
# $$c_t = f \odot c_{t-1} + i \odot g \qquad h_t = o \odot \tanh(c_t)$$
#
# So $\partial c_t / \partial c_{t-1} = f$ along the cell: the network itself decides how fast a thing fades.


# %%
def lstm_step(x, memory, weights):
    w_ih, w_hh, b_ih, b_hh = weights
    h, c = memory
    i, f, g, o = (x @ w_ih.T + b_ih + h @ w_hh.T + b_hh).chunk(4, -1)  # four stacked matrices, one product
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


# %% [markdown]
# **The GRU.** It has one vector and two gates. $z$ says how much of the old is kept, $r$ how much of the old the new
# may look at:
#
# $$r, z = \sigma(W x_t + b + U h_{t-1} + b') \qquad n = \tanh(W_n x_t + b_n + r \odot (U_n h_{t-1} + b_n'))$$
#
# $$h_t = (1 - z) \odot n + z \odot h_{t-1}$$


# %%
def gru_step(x, memory, weights):
    w_ih, w_hh, b_ih, b_hh = weights
    (h,) = memory
    p_r, p_z, p_n = (x @ w_ih.T + b_ih).chunk(3, -1)
    q_r, q_z, q_n = (h @ w_hh.T + b_hh).chunk(3, -1)
    r, z = torch.sigmoid(p_r + q_r), torch.sigmoid(p_z + q_z)
    n = torch.tanh(p_n + r * q_n)
    return ((1 - z) * n + z * h,)


# %% [markdown]
# ## Check it
#
# torch's layers keep their weights in the same four tensors, gates in the same order. Copy ours in and compare; then
# do the same with the layers of `scratchlm`, which go back through time with equations like those above and not with
# autograd.

# %%
CELLS = {  # our step, vectors of memory, gates, torch's layer, the package's
    "Elman": (elman_step, 1, 1, nn.RNN, Elman),
    "LSTM": (lstm_step, 2, 4, nn.LSTM, LongShortTermMemory),
    "GRU": (gru_step, 1, 3, nn.GRU, GatedRecurrentUnit),
}


def leaves_for(gates, inputs, width):
    shapes = [(gates * width, inputs), (gates * width, width), (gates * width,), (gates * width,)]
    return [(torch.randn(shape, dtype=torch.float64) / width**0.5).requires_grad_() for shape in shapes]


for name, (step, vectors, gates, torch_layer, our_layer) in CELLS.items():
    own = leaves_for(gates, E, H)
    states = unroll(step, x, (h0,) * vectors, own)
    ours = torch.stack([memory[0] for memory in states], 1)
    gradients_ours = torch.autograd.grad((gamma * ours).sum(), own)

    reference = torch_layer(E, H, batch_first=True).double()
    layer = our_layer(E, H).double()
    theirs = [layer.input.weight, layer.recurrent.weight, layer.input.bias, layer.recurrent.bias]
    with torch.no_grad():
        for mine, one, other in zip(own, reference.parameters(), theirs, strict=True):
            one.copy_(mine)
            other.copy_(mine)
    close(ours, reference(x)[0])
    outputs, _ = layer(x.transpose(0, 1), (h0,) * vectors)  # the package's layers want time first
    close(ours, outputs.transpose(0, 1))
    close(gradients_ours, torch.autograd.grad((gamma * outputs.transpose(0, 1)).sum(), theirs))
    print(f"{name:6} equals nn.{torch_layer.__name__} and scratchlm's {our_layer.__name__}, gradients too")

# %% [markdown]
# ## What a gate buys
#
# How much of the last memory depends on the one $k$ steps earlier? Take the layers as they are before training and
# send a gradient back from the end. The gated ones are there several times, the gate that keeps ($f$ of the LSTM, $z$
# of the GRU) opened by another bias. The package starts an LSTM with 1.


# %%
def reach(step, vectors, weights, steps=80, width=64):
    """The length of the gradient of the last memory with respect to each earlier one."""
    inputs = torch.randn(1, steps, 16, generator=torch.Generator().manual_seed(1))
    memory = tuple(torch.zeros(1, width, requires_grad=True) for _ in range(vectors))
    memories = unroll(step, inputs, memory, weights)
    last = torch.cat(memories[-1], -1)
    probe = torch.randn(last.shape, generator=torch.Generator().manual_seed(2))
    found = torch.autograd.grad((last * probe).sum(), list(itertools.chain(*memories)))
    lengths = [torch.cat(found[at : at + vectors]).norm().item() for at in range(0, len(found), vectors)]
    return lengths[::-1]


def started(layer, width, keep=None):
    """A layer before training, the bias of its gate that keeps being `keep`."""
    made = layer(16, width)
    made.reset_parameters()
    if keep is not None:  # i, f, g, o or r, z, n: it is the second in both
        nn.init.constant_(made.input.bias.chunk(made.gates)[1], keep)
    return made


def weights_of(made):
    parts = (made.input.weight, made.recurrent.weight, made.input.bias, made.recurrent.bias)
    return [tensor.detach() for tensor in parts]


STARTS = {
    "Elman": ("Elman", None),
    "GRU": ("GRU", None),
    "GRU, bias 4": ("GRU", 4.0),
    "LSTM, bias 0": ("LSTM", 0.0),
    "LSTM, bias 1": ("LSTM", 1.0),
    "LSTM, bias 4": ("LSTM", 4.0),
}
figure, axes = plt.subplots(figsize=(6, 3.2), layout="constrained")
for label, (name, keep) in STARTS.items():
    step, vectors, _, _, layer = CELLS[name]
    torch.manual_seed(3)
    axes.semilogy(reach(step, vectors, weights_of(started(layer, 64, keep))), label=label)
axes.set(xlabel="steps back from the end", ylabel="length of the gradient")
axes.legend(frameon=False, fontsize=8)
plt.show()

# %% [markdown]
# Almost straight lines on this scale: each network has a factor by which the past fades with every step. A gate makes
# that factor a thing that can be set, by a bias at the start and by training later.
#
# Does it matter? A task says so. The first symbol is one of eight; then comes noise; at the end the network must say
# the first symbol. Guessing has a loss of $\ln 8 = 2.08$.

# %%
SYMBOLS, NOISE, WAIT = 8, 4, 25


def recall_batch(rows, generator):
    first = torch.randint(SYMBOLS, (rows,), generator=generator)
    noise = SYMBOLS + torch.randint(NOISE, (rows, WAIT), generator=generator)
    return torch.cat([first[:, None], noise], 1), first


class Recall(nn.Module):
    def __init__(self, layer, keep):
        super().__init__()
        self.embedding = nn.Embedding(SYMBOLS + NOISE, 16)
        self.layer = started(layer, 48, keep)
        self.readout = nn.Linear(48, SYMBOLS)

    def forward(self, tokens):
        x = self.embedding(tokens.T)  # (T, B, 16)
        hidden, _ = self.layer(x, self.layer.initial_memory(x[:0]))
        return self.readout(hidden[-1])


def learn_to_recall(layer, keep, steps=220):
    torch.manual_seed(4)
    model, generator, losses = Recall(layer, keep), torch.Generator().manual_seed(5), []
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(steps):
        tokens, first = recall_batch(32, generator)
        loss = F.cross_entropy(model(tokens), first)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses


recalled = {label: learn_to_recall(CELLS[name][4], keep) for label, (name, keep) in STARTS.items()}
figure, axes = plt.subplots(figsize=(6, 3.2), layout="constrained")
for label, losses in recalled.items():
    axes.plot(losses, label=label)
axes.axhline(torch.tensor(8.0).log(), color="grey", linewidth=0.8, linestyle=":")
axes.set(xlabel="step", ylabel="loss", title=f"say the first symbol after {WAIT} of noise", xlim=(-5, 320))
axes.legend(frameon=False, fontsize=8, loc="center right")
plt.show()

# %% [markdown]
# A gate that begins open learns the task in a few dozen steps. One that begins half shut has no gradient that would
# tell it to open: it finds the way late, or not in this time. The simple network has no gate to open.
#
# ## Overfit one batch
#
# The first thing to do with any model: can it learn a single batch by heart? If not, something is broken, and no
# amount of data will help. Here are the package's three models, whole: an embedding, blocks around the recurrence, a
# read-out.

# %%
text = corpora.get("shakespeare-tiny")
tokenizer = scratchlm.tokenizers.CharacterTokenizer.train([text])
V = tokenizer.vocab_size
ids = torch.tensor(tokenizer.encode(text[:4000]))
batch = ids[: 8 * 33].view(8, 33)
tokens, targets = batch[:, :-1], batch[:, 1:]
print(V, "characters; tokens", tuple(tokens.shape), "targets", tuple(targets.shape))


def overfit(model, steps=60, lr=1e-2):
    optimizer, losses = torch.optim.Adam(model.parameters(), lr), []
    for _ in range(steps):
        features, _ = model(tokens)
        loss = F.cross_entropy(model.readout(features).flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def fresh(kind):
    torch.manual_seed(6)
    return kind(kind.Config(vocab_size=V, dim=32, hidden_dim=64, depth=2))


figure, axes = plt.subplots(figsize=(6, 2.6), layout="constrained")
for name in ("rnn", "lstm", "gru"):
    losses = overfit(fresh(scratchlm.MODELS[name]))
    axes.plot(losses, label=name)
    assert losses[-1] < 0.3
axes.set(xlabel="step", ylabel="loss", title="one batch by heart")
axes.legend(frameon=False)
plt.show()

# %% [markdown]
# ## Look inside
#
# Train a small LSTM on Shakespeare for some seconds, through the package: `create_run` makes a folder with everything
# in it, `train` is a generator of what happens.

# %%
folder = Path(tempfile.mkdtemp()) / "lstm"
run, _ = scratchlm.create_run(
    {
        "arch": "lstm", "data": "shakespeare-tiny", "device": "cpu", "steps": 260, "batch_size": 16, "window": 80,
        "eval_every": 260, "model": {"dim": 64, "hidden_dim": 128, "depth": 1},
        "optim": {"lr": 1e-2, "min_lr": 1e-3, "warmup": 20},
    },
    folder,
)  # fmt: skip
for _ in scratchlm.train(run):
    pass
lines = run.metrics()
plt.figure(figsize=(6, 2.2), layout="constrained")
plt.plot([line["step"] for line in lines], [line["loss"] for line in lines])
plt.xlabel("step")
plt.ylabel("nats per character")
plt.show()
model, tokenizer = scratchlm.load(folder)
print(f"validation: {lines[-1]['val_loss']:.3f} nats per character\n")
prompt = tokenizer.encode("ROMEO:")
print(tokenizer.decode(scratchlm.generate(model, [prompt], 200, temperature=0.7, seed=1)[0]))

# %% [markdown]
# Its memory has one size. That is the strength of the family, and its limit.

# %%
state = model.initial_state(1)
for count in (1, 10, 1000):
    _, after = model(torch.zeros(1, count, dtype=torch.int64), state)
    print(f"after {count:5} tokens: {after.nbytes} bytes, length {after.length}")

# %% [markdown]
# `record` lets the layers show what they carry. Which unit knows what? Name some properties of a position in the
# text, and for each look for the cell that follows it best (the largest correlation) on one stretch of text. Then
# look at another stretch.

# %%
validation = torch.from_numpy(run.splits()["validation"].windows(torch.zeros(1).long().numpy(), 6001)).long()
with torch.no_grad(), scratchlm.record(model) as shown:
    model(validation[:, :6000])
cells = shown["blocks.0.recurrence.cell"][0][0]  # (T, H)
read = tokenizer.decode(validation[0, :6000].tolist())

column, in_word, properties = 0, 0, []
for character in read:
    column = 0 if character == "\n" else column + 1
    in_word = in_word + 1 if character.isalpha() else 0
    properties.append((column, in_word, float(character.isupper())))
wanted = torch.tensor(properties)  # (T, 3)


def correlation(a, b):
    a, b = a - a.mean(0), b - b.mean(0)
    return (a.T @ b) / (a.norm(dim=0)[:, None] * b.norm(dim=0))


NAMES = ("how far into the line", "how far into the word", "capital letters")
found = correlation(cells[:4000], wanted[:4000])  # (H, 3)
again = correlation(cells[4000:], wanted[4000:])
best = found.abs().argmax(0)
for at, name in enumerate(NAMES):
    unit = int(best[at])
    here, there = found[unit, at], again[unit, at]
    print(f"unit {unit:3} follows {name!r}: {here:+.2f} where it was chosen, {there:+.2f} elsewhere")


# %%
def coloured(characters, values, title, width=64):
    """Characters in rows, each on the colour of its value."""
    rows = -(-len(characters) // width)
    grid = torch.full((rows * width,), float("nan"))
    grid[: len(values)] = values
    most = values.abs().max()
    _, axes = plt.subplots(figsize=(9, 0.24 * rows + 0.4), layout="constrained")
    axes.imshow(grid.view(rows, width), cmap="RdBu", vmin=-most, vmax=most, aspect="auto")
    for at, (character, value) in enumerate(zip(characters, values, strict=True)):
        axes.text(
            at % width,
            at // width,
            character.replace("\n", "↵"),
            color="white" if value.abs() > 0.6 * most else "black",
            ha="center",
            va="center",
            size=7,
            family="monospace",
        )
    axes.set_title(title, size=9, loc="left")
    axes.axis("off")
    plt.show()


for at, name in enumerate(NAMES):
    unit = int(best[at])
    part = slice(4000, 4000 + 64 * 5)
    coloured(read[part], cells[part, unit] - cells[:, unit].mean(), f"unit {unit}: {name}")

# %% [markdown]
# Nobody told it that there are lines and words. It needed to know, to guess the next character.

# %% [markdown]
# ## Break it
#
# Five real bugs, each seen in public code, each a line or two. With every one of them the loss still falls, so "the
# loss goes down" proves little. What finds them is the package's contract suite: nine checks that every architecture
# must pass (`tests/contract.py`). Each bug is a model of its own here.

# %%
RNN, LSTM = scratchlm.MODELS["rnn"], scratchlm.MODELS["lstm"]


class StateKeptInTheModule(RNN):
    """The memory is an attribute, so a batch begins where the batch before it ended."""

    kept = None

    def forward(self, tokens, state=None):
        before = state or self.kept
        if before is None or before.batch_size != len(tokens):
            before = self.initial_state(len(tokens))
        features, after = super().forward(tokens, before)
        self.kept = after.detach()
        return features, None if state is None else after


class EachCallStartsAnew(RNN):
    """forward() resets the memory. Training never notices; a written token follows from the last one alone."""

    def forward(self, tokens, state=None):
        features, after = super().forward(tokens, self.initial_state(len(tokens)))
        if state is None:
            return features, None
        after.length += state.length
        return features, after


class BatchReadAsTime(RNN):
    """batch_first forgotten: the recurrence runs over the rows of the batch."""

    def forward(self, tokens, state=None):
        if state is not None:
            return super().forward(tokens, state)
        return super().forward(tokens.T)[0].transpose(0, 1), None


class CellNotCarried(LSTM):
    """Whoever writes hands on h, and forgets c."""

    def forward(self, tokens, state=None):
        if state is not None:
            memories = [(h, torch.zeros_like(c)) for h, c in state.memories]
            state = dataclasses.replace(state, memories=memories)
        return super().forward(tokens, state)


class GraphCutInside(RNN):
    """The state is detached in forward(), where it should not be: training through it loses its past."""

    def forward(self, tokens, state=None):
        return super().forward(tokens, None if state is None else state.detach())


# %%
def tiny(kind):
    torch.manual_seed(8)
    return kind(kind.Config.tiny()).double().eval()


figure, panels = plt.subplots(1, 5, figsize=(13, 2.6), sharey=True, layout="constrained")
right = {kind: overfit(fresh(kind)) for kind in (RNN, LSTM)}
assert not contract.failed(lambda: tiny(RNN))
assert not contract.failed(lambda: tiny(LSTM))
bugs = {
    StateKeptInTheModule: "causal",
    EachCallStartsAnew: "stream",
    BatchReadAsTime: "rows",
    CellNotCarried: "stream",
    GraphCutInside: "gradients",
}
for panel, (kind, expected) in zip(panels, bugs.items(), strict=True):
    losses, caught_by = overfit(fresh(kind)), contract.failed(lambda kind=kind: tiny(kind))
    print(f"{kind.__name__:20} loss {losses[0]:.2f} -> {losses[-1]:.2f}, caught by: {', '.join(caught_by)}")
    assert expected in caught_by
    assert losses[-1] < losses[0] / 2
    panel.plot(right[LSTM if issubclass(kind, LSTM) else RNN], color="grey", label="right")
    panel.plot(losses, color="crimson", linestyle="--", label="broken")
    panel.set_title(kind.__name__, size=9)
    panel.set_xlabel("step")
panels[0].set_ylabel("loss, nats")
panels[0].legend()
plt.show()

# %% [markdown]
# What the checks do, in a sentence each. **causal** changes later tokens and wants earlier features unmoved; a second
# call that gives something else for the same tokens fails it too. **stream** cuts a text into chunks in many ways and
# wants the features of the whole. **rows** runs each row alone. **gradients** carries a state from chunk to chunk and
# wants the gradients of the whole.
#
# A sixth bug passes all nine: a forget bias of 0. It is a right LSTM, badly begun. No property of its output is
# false; only a task that needs the memory shows it, as above:

# %%
ends = {label: sum(losses[-20:]) / 20 for label, losses in recalled.items()}
for label, loss in ends.items():
    print(f"{label:20} loss over the last 20 steps: {loss:.3f}")
assert ends["LSTM, bias 4"] < ends["LSTM, bias 0"] - 0.5

# %% [markdown]
# ## Exercises
#
# The answers are in the hidden cells. Write your own into the empty cell below each: it takes the answer's place, and
# the last cell checks it.
#
# **1.** An LSTM layer has `inputs` inputs and `width` units. How many parameters, with the biases that torch gives
# it? Write `lstm_parameters(inputs, width)`.

# %% cellView="form" jupyter={"source_hidden": true}
# @title Answer 1


def lstm_parameters(inputs, width):
    return 4 * width * (inputs + width + 2)


# %%
# your own `lstm_parameters`

# %%
for inputs, width in ((3, 4), (128, 192)):
    assert lstm_parameters(inputs, width) == sum(weight.numel() for weight in nn.LSTM(inputs, width).parameters())
print("right")

# %% [markdown]
# **2.** Which forget bias keeps half of a cell for 100 steps, if nothing else reaches the gate? Set `bias`.

# %% cellView="form" jupyter={"source_hidden": true}
# @title Answer 2
kept_each_step = 0.5 ** (1 / 100)
bias = math.log(kept_each_step / (1 - kept_each_step))  # the inverse of the sigmoid

# %%
# your own `bias`

# %%
assert abs(torch.sigmoid(torch.tensor(bias)) ** 100 - 0.5) < 1e-3
print(f"{bias:.2f}: right")

# %% [markdown]
# **3.** The first memory can be trained too. Extend the walk backwards: write `first_gradient(hidden, gamma, w_hh)`,
# the gradient of $h_0$. Shapes: hidden and gamma (B, T, H), w_hh (H, H).

# %% cellView="form" jupyter={"source_hidden": true}
# @title Answer 3


def first_gradient(hidden, gamma, w_hh):
    da = torch.zeros_like(hidden[:, 0])
    for t in reversed(range(hidden.shape[1])):
        da = (gamma[:, t] + da @ w_hh) * (1 - hidden[:, t] ** 2)
    return da @ w_hh  # what the first step hands on


# %%
# your own `first_gradient`

# %%
start = h0.clone().requires_grad_()
again = torch.stack([h for (h,) in unroll(elman_step, x, (start,), weights)], 1)
close(first_gradient(hidden, gamma, weights[1]), torch.autograd.grad((gamma * again).sum(), start)[0])
print("right")

# %% [markdown]
# **4.** The GRU's paper resets the memory before the product, $U_n (r \odot h)$; torch resets the product,
# $r \odot (U_n h)$, which is another function. But for some matrices $U_n$ both are the same, whatever $h$ and $r$
# are. Set `u` to such a matrix (4, 4) with no zero on its diagonal.

# %% cellView="form" jupyter={"source_hidden": true}
# @title Answer 4
u = torch.diag(torch.tensor([0.5, -1.0, 2.0, 0.3], dtype=torch.float64))  # each unit looks at itself alone

# %%
# your own `u`

# %%
assert u.diagonal().abs().min() > 0
for _ in range(5):
    h, r = torch.randn(4, dtype=torch.float64), torch.rand(4, dtype=torch.float64)
    close(u @ (r * h), r * (u @ h))
full = torch.randn(4, 4, dtype=torch.float64)
assert not torch.allclose(full @ (r * h), r * (full @ h))
print("right")
