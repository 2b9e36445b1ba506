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
# # CNN: a window that slides over the text
#
# [Open in Colab](https://colab.research.google.com/github/OWNER/scratchlm/blob/main/notebooks/cnn.ipynb)
#
# A convolution predicts each token from the few before it, with the same weights at every position. Stack some, let
# each look further apart than the one below, and a prediction depends on hundreds of tokens. Nothing waits for the
# step before, so all positions are computed at once, and yet a text can be written token by token from a small
# memory. The parts are from WaveNet (van den Oord et al. 2016: causal and dilated), from the gated convolutional
# network (Dauphin et al. 2017: the gate), and from Bai et al. (2018), who asked whether one needs anything else. Here
# you build the convolution, its memory and the gate.

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
import tempfile

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch import nn

import contract  # the checks that every architecture must pass: tests/contract.py
import scratchlm
from scratchlm.data import corpora
from scratchlm.models import cnn as package
from scratchlm.models.cnn import CausalConvolution, CNNConfig, GatedBlock

torch.manual_seed(0)
close = torch.testing.assert_close

# %% [markdown]
# ## Build it
#
# **One output.** It is a weighted sum of the input at its own position and of the $k - 1$ inputs before it. The
# weights are matrices, one for each tap. Before the start there are zeros:
#
# $$y_t = b + \sum_{j=0}^{k-1} W_j\, x_{t-(k-1-j)}$$
#
# Letters in shapes: B rows, T positions, C channels in, N channels out, k taps.


# %%
def convolve_by_loops(x, weight, bias, dilation=1):
    outputs, _, taps = weight.shape
    steps = []
    for t in range(x.shape[1]):
        y = bias.expand(len(x), outputs)
        for j in range(taps):
            at = t - (taps - 1 - j) * dilation
            if at >= 0:  # zeros before the start add nothing
                y = y + x[:, at] @ weight[:, :, j].T
        steps.append(y)
    return torch.stack(steps, 1)


B, T, C, N, K = 2, 12, 3, 5, 3
x = torch.randn(B, T, C, dtype=torch.float64)
weight, bias = torch.randn(N, C, K, dtype=torch.float64), torch.randn(N, dtype=torch.float64)
y = convolve_by_loops(x, weight, bias)
print("x", tuple(x.shape), " W", tuple(weight.shape), " y", tuple(y.shape))

# %% [markdown]
# **Causal padding.** torch has a fast convolution, and it knows nothing of past and future: it slides over what it is
# given. So we give it $(k - 1)$ zeros in front, and none behind. All the causality of the model is in that one line.


# %%
def convolve(x, weight, bias, dilation=1):
    reach = (weight.shape[2] - 1) * dilation
    padded = F.pad(x, (0, 0, reach, 0))  # zeros before the first position
    return F.conv1d(padded.transpose(1, 2), weight, bias, dilation=dilation).transpose(1, 2)


for dilation in (1, 2, 3):
    close(convolve(x, weight, bias, dilation), convolve_by_loops(x, weight, bias, dilation))

layer = nn.Conv1d(C, N, K).double()
with torch.no_grad():
    layer.weight.copy_(weight)
    layer.bias.copy_(bias)
close(convolve(x, weight, bias), layer(F.pad(x.transpose(1, 2), (K - 1, 0))).transpose(1, 2))
print("loops = padding and F.conv1d = nn.Conv1d on a padded input")

# %% [markdown]
# Do not trust a drawing of arrows. Ask the gradient who sees whom: the picture has a mark where output $t$ (down)
# depends on input $s$ (across).


# %%
def who_sees_whom(function, length, channels):
    """(T, T): how much each output depends on each input."""
    x = torch.randn(1, length, channels, dtype=torch.float64, requires_grad=True)
    y = function(x)
    found = [torch.autograd.grad(y[0, t].abs().sum(), x, retain_graph=True)[0][0].norm(dim=-1) for t in range(length)]
    return torch.stack(found)


def pictures(panels, ylabel="output"):
    _, axes = plt.subplots(1, len(panels), figsize=(2.3 * len(panels), 2.6), layout="constrained")
    for place, (title, seen) in zip(axes, panels.items(), strict=True):
        place.imshow(seen > 0, cmap="Blues", vmin=0, vmax=1.4)
        place.plot([-0.5, len(seen) - 0.5], [-0.5, len(seen) - 0.5], color="firebrick", linewidth=0.8)
        place.set_title(title, size=9)
        place.set_xticks([])
        place.set_yticks([])
    axes[0].set(xlabel="input", ylabel=ylabel)
    plt.show()


def square(dilation):
    own = torch.randn(C, C, K, dtype=torch.float64)
    return lambda x: convolve(x, own, torch.zeros(C, dtype=torch.float64), dilation)


first, second, third = square(1), square(2), square(4)
pictures({
    "dilation 1": who_sees_whom(first, 20, C),
    "dilation 2": who_sees_whom(second, 20, C),
    "dilation 4": who_sees_whom(third, 20, C),
    "all three, stacked": who_sees_whom(lambda x: third(second(first(x))), 20, C),
})  # fmt: skip

# %% [markdown]
# Nothing is right of the red line, which is the present. Three thin layers together see without gaps.

# %% [markdown]
# **How far it sees.** Each layer adds $(k - 1)$ times its dilation to the past that a position sees:
#
# $$R = 1 + \sum_{\ell} (k - 1)\, d_\ell$$
#
# With dilations 1, 2, 4, ... the reach doubles with each layer. Without them it grows by $k - 1$.


# %%
def receptive_field(taps, dilations):
    return 1 + sum((taps - 1) * dilation for dilation in dilations)


seen = who_sees_whom(lambda x: third(second(first(x))), 20, C)
assert int((seen[-1] > 0).sum()) == receptive_field(K, (1, 2, 4))
print("three taps, dilations 1, 2, 4: sees", receptive_field(K, (1, 2, 4)), "tokens, and the gradient agrees")

layers = range(1, 13)
plt.figure(figsize=(5, 2.4), layout="constrained")
doubling = [receptive_field(3, [2**i for i in range(n)]) for n in layers]
plt.semilogy(layers, doubling, "o-", label="dilations 1, 2, 4, ...")
plt.semilogy(layers, [receptive_field(3, [1] * n) for n in layers], "s-", label="no dilation")
plt.xlabel("layers")
plt.ylabel("tokens seen")
plt.legend(frameon=False)
plt.show()

# %% [markdown]
# **The gate.** A convolution is linear. What makes it a network here is a gate: half of the outputs say what, the
# other half say how much of it, between 0 and 1. The sum with the input lets many such blocks be stacked:
#
# $$[a; g] = \mathrm{conv}(\mathrm{LN}(x)) \qquad x' = x + W_o\, (a \odot \sigma(g)) + b_o$$


# %%
def gated_block(x, norm, weight, bias, output, dilation):
    a, g = convolve(F.layer_norm(x, x.shape[-1:], *norm), weight, bias, dilation).chunk(2, -1)
    gated = a * torch.sigmoid(g)  # (B, T, E)
    return x + gated @ output[0].T + output[1]


# %% [markdown]
# **One token at a time.** To write text we need outputs one by one. Recomputing everything for each new token would
# be a waste: an output needs only the last $(k - 1) d$ inputs. Keep those, and throw the oldest away as a new one
# comes:
#
# $$m_t = [x_{t-(k-1)d+1}, \ldots, x_t]$$


# %%
class Streaming:
    """A convolution that is fed one input at a time."""

    def __init__(self, weight, bias, dilation, rows):
        self.weight, self.bias, self.dilation = weight, bias, dilation
        reach = (weight.shape[2] - 1) * dilation
        self.memory = torch.zeros(rows, reach, weight.shape[1], dtype=weight.dtype)  # the zeros before the start

    def __call__(self, x_t):
        seen = torch.cat([self.memory, x_t[:, None]], 1)  # (B, reach + 1, C)
        self.memory = seen[:, 1:]
        taps = seen[:, :: self.dilation]  # (B, k, C): every d-th one, the newest last
        return torch.einsum("bkc,ock->bo", taps, self.weight) + self.bias


for dilation in (1, 2, 4):
    one_by_one = Streaming(weight, bias, dilation, B)
    streamed = torch.stack([one_by_one(x[:, t]) for t in range(T)], 1)
    close(streamed, convolve(x, weight, bias, dilation))
print("fed one by one, it says the same; it remembers", tuple(one_by_one.memory.shape), "however long the text")

# %% [markdown]
# ## Check it
#
# `convolve` was compared with torch's own above. Now the package's layers, given our weights. `CausalConvolution`
# returns its outputs and what the next chunk needs.

# %%
ours = CausalConvolution(C, N, K, dilation=2, deviation=1.0).double()
with torch.no_grad():
    ours.weight.copy_(weight)
    ours.bias.copy_(bias)
close(ours(x)[0], convolve(x, weight, bias, dilation=2))

config = CNNConfig(vocab_size=23, dim=8, depth=3, dilations=3)
block = GatedBlock(config, index=2).double()  # the third block: a dilation of 4
for parameter in block.parameters():
    nn.init.normal_(parameter, std=0.5)
wide = torch.randn(B, T, 8, dtype=torch.float64)
mine = gated_block(
    wide,
    (block.norm.weight, block.norm.bias),
    block.convolution.weight,
    block.convolution.bias,
    (block.output.weight, block.output.bias),
    dilation=4,
)
close(mine, block(wide, None)[0])
close(F.glu(torch.cat([wide, wide], -1)), wide * torch.sigmoid(wide))  # torch's name for the gate
print("CausalConvolution and GatedBlock compute what we wrote down")

# %% [markdown]
# The package's whole model does it the same way. Its state is the last inputs of each convolution.

# %%
CNN = scratchlm.MODELS["cnn"]
small = CNN(config).double()
tokens = torch.randint(23, (B, T))
whole, _ = small(tokens)
state, parts = small.initial_state(B), []
for t in range(T):
    features, state = small(tokens[:, t : t + 1], state)
    parts.append(features)
close(torch.cat(parts, 1), whole)
print("memories", [tuple(memory.shape) for memories in state.memories for memory in memories])

# %% [markdown]
# ## Overfit one batch
#
# Before any training: can it learn a single batch by heart?

# %%
text = corpora.get("shakespeare-tiny")
tokenizer = scratchlm.tokenizers.CharacterTokenizer.train([text])
V = tokenizer.vocab_size
data = torch.tensor(tokenizer.encode(text))
batch = data[: 8 * 33].view(8, 33)
inputs, targets = batch[:, :-1], batch[:, 1:]


def overfit(model, steps=60, lr=1e-2):
    optimizer, losses = torch.optim.Adam(model.parameters(), lr), []
    for _ in range(steps):
        loss = F.cross_entropy(model.readout(model(inputs)[0]).flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def fresh(kind=CNN, **changed):
    torch.manual_seed(1)
    return kind(CNNConfig(**{"vocab_size": V, "dim": 32, "depth": 4, "dilations": 4, **changed}))


plt.figure(figsize=(6, 2.4), layout="constrained")
for block in ("gated", "gcnn", "tcn", "wavenet"):
    losses = overfit(fresh(block=block))
    plt.plot(losses, label=block)
    assert losses[-1] < losses[0] / 2
plt.xlabel("step")
plt.ylabel("loss")
plt.legend(frameon=False, fontsize=8)
plt.title("one batch by heart, the package's four kinds of block", size=10)
plt.show()

# %% [markdown]
# ## Look inside
#
# Train a small one for some seconds. Six blocks, dilations 1 to 32: it sees 127 characters.

# %%
folder = Path(tempfile.mkdtemp()) / "cnn"
run, _ = scratchlm.create_run(
    {
        "arch": "cnn", "data": "shakespeare-tiny", "device": "cpu", "steps": 260, "batch_size": 8, "window": 160,
        "eval_every": 260, "model": {"dim": 64, "depth": 6, "dilations": 6},
        "optim": {"lr": 5e-3, "min_lr": 5e-4, "warmup": 20, "beta2": 0.99},
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
print(f"it sees {model.config.receptive_field} tokens; validation: {lines[-1]['val_loss']:.3f} nats per character\n")
written = scratchlm.generate(model, [tokenizer.encode("ROMEO:")], 200, temperature=0.7, seed=1)[0]
print(tokenizer.decode(written))

# %% [markdown]
# How far does it see, and how far does it look? The first is the formula; the second is what it has learned. Take the
# log probability of the right next character at one position, and measure its gradient with respect to the embedding
# of each character before it. Average over many positions, before and after training.


# %%
def looks_back(model, windows):
    """The mean length of the gradient of log P(next) with respect to each earlier token's embedding."""
    kept = []
    handle = model.embedding.register_forward_hook(lambda module, given, out: kept.append(out.requires_grad_()))
    logits = model.readout(model(windows[:, :-1])[0][:, -1])
    handle.remove()
    chosen = logits.log_softmax(-1).gather(1, windows[:, -1:]).sum()
    (gradient,) = torch.autograd.grad(chosen, kept[0])
    return gradient.norm(dim=-1).mean(0).flip(0)  # from the newest backwards


validation = run.splits()["validation"]
starts = torch.arange(128) * 150
windows = torch.from_numpy(validation.windows(starts.numpy(), 161))
torch.manual_seed(2)
untrained = CNN(model.config)
field = model.config.receptive_field
plt.figure(figsize=(6, 2.6), layout="constrained")
for label, which in (("before training", untrained), ("after", model)):
    back = looks_back(which, windows)
    plt.semilogy(back / back.sum(), label=label)
    assert (back[:field] > 0).all()
    assert (back[field:] == 0).all()
plt.axvline(field - 0.5, color="firebrick", linewidth=0.8)
plt.xlabel("characters back")
plt.ylabel("share of the gradient")
plt.legend(frameon=False)
plt.show()

# %% [markdown]
# Right of the red line the gradient is exactly 0, at 127 characters, as the formula says. Left of it, most of the
# influence is close by: the next character hangs on the last few. The teeth at 32 and 64 are the widest dilations,
# where a tap looks straight back. What a model can see is not what it uses.
#
# **What does the gate do?** How open the gates of the first block are over a line of text. Each row is a unit. It
# opens for some characters and shuts for others: what passes depends on what is read, and that is what a plain
# convolution cannot do.

# %%
line = tokenizer.encode("First Citizen: We are accounted poor citizens.")
with torch.no_grad():
    first = model.blocks[0]
    mixed, _ = first.convolution(first.norm(model.embedding(torch.tensor([line]))))
    gates = torch.sigmoid(mixed.chunk(2, -1)[1])[0]  # (T, E)
order = gates.std(0).argsort(descending=True)[:16]
plt.figure(figsize=(9, 2.8), layout="constrained")
plt.imshow(gates[:, order].T, cmap="viridis", vmin=0, vmax=1, aspect="auto")
plt.xticks(range(len(line)), [tokenizer.decode([token]) for token in line], size=8, family="monospace")
plt.yticks([])
plt.ylabel("units that change most")
plt.colorbar(label="gate")
plt.show()

# %% [markdown]
# ## Break it
#
# Four bugs that were seen in public code. Each is a convolution that takes the place of the right one; with each the
# loss still falls. The package's contract suite (`tests/contract.py`) has nine checks that every architecture must
# pass. Which of them fail?


# %%
class PaddedOnBothSides(CausalConvolution):
    """nn.Conv1d(padding="same"): each position sees half a kernel of its future."""

    def forward(self, x, memory=None):
        ahead = self.reach // 2
        y, memory = super().forward(F.pad(x, (0, 0, 0, ahead)), memory)
        return y[:, ahead:], memory[:, : self.reach]


class QueueOfTaps(CausalConvolution):
    """A queue of as many inputs as there are taps, right without dilation, under a dilated convolution."""

    def forward(self, x, memory=None):
        y, after = super().forward(x, memory)
        after = after.clone()
        after[:, : self.reach - self.reach // self.dilation] = 0
        return y, after


class ShiftedInPlace(CausalConvolution):
    """The buffer that was passed in is the one that is written: whoever kept the older state has the newer one."""

    def forward(self, x, memory=None):
        y, after = super().forward(x, memory)
        if memory is None:
            return y, after
        with torch.no_grad():
            return y, memory.copy_(after)


class DilationForgotten(CausalConvolution):
    """The dilation is handed over and not used: it runs and it trains, but it sees less far than it should."""

    def __init__(self, inputs, outputs, kernel, dilation, deviation):
        super().__init__(inputs, outputs, kernel, 1, deviation)


def with_convolution(kind, make):
    """A model whose convolutions are of this kind."""
    package.CausalConvolution = kind
    try:
        return make()
    finally:
        package.CausalConvolution = CausalConvolution


def tiny(kind):
    shape = CNNConfig(vocab_size=23, dim=16, depth=3, dilations=3)
    torch.manual_seed(2)
    return with_convolution(kind, lambda: CNN(shape)).double().eval()


# %%
def learn(model, steps=120):
    """Losses on new text at every step."""
    order, optimizer, losses = torch.Generator().manual_seed(3), torch.optim.Adam(model.parameters(), 5e-3), []
    for _ in range(steps):
        starts = torch.randint(len(data) - 49, (16,), generator=order)
        rows = data[starts[:, None] + torch.arange(49)]
        loss = F.cross_entropy(model.readout(model(rows[:, :-1])[0]).flatten(0, 1), rows[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


right_model = fresh()
right = learn(right_model)
assert not contract.failed(lambda: tiny(CausalConvolution))
figure, panels = plt.subplots(1, 4, figsize=(11, 2.6), sharey=True, layout="constrained")
bugs = {PaddedOnBothSides: "causal", QueueOfTaps: "stream", ShiftedInPlace: "rollback", DilationForgotten: None}
learned = {}
for panel, (kind, expected) in zip(panels, bugs.items(), strict=True):
    learned[kind] = with_convolution(kind, fresh)
    losses, caught_by = learn(learned[kind]), contract.failed(lambda kind=kind: tiny(kind))
    print(f"{kind.__name__:18} {losses[0]:.2f} -> {losses[-1]:.2f}, caught by: {', '.join(caught_by) or 'no check'}")
    assert expected in caught_by if expected else not caught_by
    assert losses[-1] < 0.8 * losses[0]
    panel.plot(right, color="grey", label="right")
    panel.plot(losses, color="crimson", linestyle="--", label="broken")
    panel.set_title(kind.__name__, size=9)
    panel.set_xlabel("step")
panels[0].set_ylabel("loss, nats")
panels[0].legend()
plt.show()
print(f"the right one ends at {right[-1]:.2f}")
for name, one in (("right", right_model), ("padded on both sides", learned[PaddedOnBothSides])):
    written = scratchlm.generate(one, [tokenizer.encode("The ")], 40, temperature=0.5, seed=1)[0]
    print(f"{name:20}", repr(tokenizer.decode(written)))

# %% [markdown]
# The one that cheats has by far the best loss, and cannot write. It reads the answer: the character that it should
# predict lies half a kernel ahead. A loss that is too good is a bug until proved otherwise. **causal** needs no
# training to see it: change later tokens, and no earlier feature may move.
#
# `QueueOfTaps` and `ShiftedInPlace` have the right curve to the last digit, since training never uses the memory.
# Only who writes text meets them: **stream** cuts a text into chunks in many ways and wants the features of the
# whole, **rollback** goes on from an older state and wants what comes from it.
#
# `DilationForgotten` passes all nine. It is a causal model in order, only another one than was asked for. What finds
# it is the gradient: it must reach as far as the formula says, and no further.


# %%
def tokens_seen(model):
    long, kept = torch.randint(23, (1, model.config.receptive_field + 5)), []
    handle = model.embedding.register_forward_hook(lambda module, given, out: kept.append(out))
    last = model(long)[0][0, -1]
    handle.remove()
    return int((torch.autograd.grad(last.abs().sum(), kept[0])[0][0].norm(dim=-1) > 0).sum())


for kind in (CausalConvolution, DilationForgotten):
    model_of = tiny(kind)
    print(f"{kind.__name__:18} sees {tokens_seen(model_of)} tokens, should see {model_of.config.receptive_field}")
assert tokens_seen(tiny(CausalConvolution)) == tiny(CausalConvolution).config.receptive_field
assert tokens_seen(tiny(DilationForgotten)) < tiny(DilationForgotten).config.receptive_field

panels = {}
for kind in (CausalConvolution, PaddedOnBothSides, DilationForgotten):
    layers = [kind(C, C, 3, dilation, 1.0).double() for dilation in (1, 2, 4)]

    def stacked(x, layers=layers):
        for layer in layers:
            x, _ = layer(x)
        return x

    panels[kind.__name__] = who_sees_whom(stacked, 20, C)
pictures(panels)

# %% [markdown]
# ## Exercises
#
# The answers are in the hidden cells. Write your own into the empty cell below each: it takes the answer's place, and
# the last cell checks it.
#
# **1.** WaveNet has two taps and dilations 1, 2, 4, ..., 512. How many tokens does it see? Set `sees`.

# %% cellView="form" jupyter={"source_hidden": true}
# @title Answer 1
sees = 1 + sum(2**i for i in range(10))  # 1,024

# %%
# your own `sees`

# %%
assert sees == CNNConfig(vocab_size=1, depth=10, kernel=2, dilations=10, block="wavenet").receptive_field
print(f"{sees}: right")

# %% [markdown]
# **2.** How many bytes does a row's memory take in the model that you trained, whose numbers have 4 bytes each? Write
# `memory_bytes(kernel, dilations, dim)`, dilations being the list of all blocks'.

# %% cellView="form" jupyter={"source_hidden": true}
# @title Answer 2


def memory_bytes(kernel, dilations, dim):
    return sum(4 * (kernel - 1) * dilation * dim for dilation in dilations)


# %%
# your own `memory_bytes`

# %%
shape = model.config
bytes_kept = memory_bytes(shape.kernel, [shape.dilation(index) for index in range(shape.depth)], shape.dim)
assert bytes_kept == model.initial_state(1).nbytes
print(f"{bytes_kept:,} bytes after one token and after a million: right")

# %% [markdown]
# **3.** Two causal convolutions after each other, with nothing between, are one causal convolution with more taps.
# Which? Write `combined(first, second)` for one channel: two vectors of taps, the newest last, to one.

# %% cellView="form" jupyter={"source_hidden": true}
# @title Answer 3


def combined(first, second):
    taps = torch.zeros(len(first) + len(second) - 1, dtype=first.dtype)
    for at, tap in enumerate(second):
        taps[at : at + len(first)] += tap * first  # a convolution of the taps themselves
    return taps


# %%
# your own `combined`

# %%
one, two = torch.randn(3, dtype=torch.float64), torch.randn(4, dtype=torch.float64)
signal, nothing = torch.randn(1, 20, 1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
twice = convolve(convolve(signal, one.view(1, 1, -1), nothing), two.view(1, 1, -1), nothing)
close(convolve(signal, combined(one, two).view(1, 1, -1), nothing), twice)
print("right")

# %% [markdown]
# **4.** A block pads with zeros after its norm. Why not before? Set `padded` to what the norm below makes of a
# padding of zeros; then ask which check would fail, since the memory starts with zeros.

# %% cellView="form" jupyter={"source_hidden": true}
# @title Answer 4
norm_bias = torch.tensor([0.3, -0.1, 0.0, 2.0])
padded = norm_bias  # the norm of zeros is its bias: the first chunk would see other values than a stream, so `stream`

# %%
# your own `padded`

# %%
norm = nn.LayerNorm(4)
with torch.no_grad():
    norm.bias.copy_(torch.tensor([0.3, -0.1, 0.0, 2.0]))
close(norm(torch.zeros(4)), padded)
print("right")
