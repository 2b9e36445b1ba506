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
# # Training: the loop, and how to find what is wrong with it
#
# [Open in Colab](https://colab.research.google.com/github/OWNER/scratchlm/blob/main/notebooks/training.ipynb)
#
# A training loop is short: take a batch, compute the loss, send gradients back, move the weights, repeat. And it is
# where most bugs live, since a wrong loop learns too, only worse. Here you build each part from its equation: batches
# and epochs, AdamW (Loshchilov and Hutter 2019), the schedule, clipping (Pascanu et al. 2013), accumulation over
# parts of a batch, mixed precision (Micikevicius et al. 2018), and a stop from which a run goes on bit for bit. Then
# comes what to do, in which order, when a model does not learn.

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
import threading

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import scratchlm
from scratchlm.config import OptimConfig, make_config
from scratchlm.data import corpora
from scratchlm.data.batches import IGNORED, Batch, TrainingWindows
from scratchlm.data.shards import Tokens
from scratchlm.models.gpt import GPT, GPTConfig
from scratchlm.training.optim import learning_rate, make_optimizer
from scratchlm.training.records import Evaluated, Progress, Saved
from scratchlm.training.step import Training

torch.manual_seed(0)
close = torch.testing.assert_close
text = corpora.get("shakespeare-tiny")
tokenizer = scratchlm.tokenizers.CharacterTokenizer.train([text])
data, V = torch.tensor(tokenizer.encode(text)), tokenizer.vocab_size

# %% [markdown]
# ## Build it
#
# **Batches.** Cut the text into windows of T tokens and read them in a random order; when all have been read, one
# epoch is over. The next one has another order, and its cuts are moved, so that no pair of neighbours is parted for
# ever. The targets are the tokens moved by one. Letters in shapes: **B** rows, **T** tokens of a window, **V** tokens
# in the vocabulary.


# %%
def epoch_starts(length, window, seed, epoch):
    """Where the windows of an epoch start, in the order in which they are read."""
    generator = torch.Generator().manual_seed(seed * 1000 + epoch)
    phase = int(torch.randint(window, (1,), generator=generator))
    count = (length - 1 - phase) // window  # each window has a target after its last token
    return phase + window * torch.randperm(count, generator=generator)


figure, axes = plt.subplots(figsize=(8, 2), layout="constrained")
for epoch in range(4):
    for turn, start in enumerate(epoch_starts(60, 8, seed=1, epoch=epoch).tolist()):
        axes.barh(epoch, 7.6, left=start, color=plt.cm.viridis(turn / 7))
        axes.text(start + 3.8, epoch, turn, ha="center", va="center", color="white", size=8)
axes.set(xlabel="token", ylabel="epoch", yticks=range(4), title="which window is read when")
axes.invert_yaxis()
plt.show()

# %% [markdown]
# The order is a function of the seed and the epoch. Nothing has to be remembered to know what step 1,000 reads: that
# is what makes it possible to stop and go on.

# %%
starts = epoch_starts(len(data), 32, seed=1, epoch=0)[:4]
rows = data[starts[:, None] + torch.arange(33)]
tokens, targets = rows[:, :-1], rows[:, 1:]
print("tokens", tuple(tokens.shape), "targets", tuple(targets.shape))
print("reads ", repr(tokenizer.decode(tokens[0].tolist())))
print("to say", repr(tokenizer.decode(targets[0].tolist())))

# %% [markdown]
# **AdamW.** Keep a running mean of the gradients and one of their squares. Step by the first over the root of the
# second: then each weight moves by about the rate, however large its gradients are. Both means start at 0, which the
# hats undo. Weight decay pulls matrices to zero, beside that and not through the gradient:
#
# $$m_t = \beta_1 m_{t-1} + (1 - \beta_1) g_t \qquad v_t = \beta_2 v_{t-1} + (1 - \beta_2) g_t^2 \qquad
# \hat m = \frac{m_t}{1 - \beta_1^t} \quad \hat v = \frac{v_t}{1 - \beta_2^t}$$
#
# $$w_t = w_{t-1} - \eta \lambda w_{t-1} - \eta\, \frac{\hat m}{\sqrt{\hat v} + \epsilon}$$


# %%
def adamw(w, g, m, v, t, lr, beta1=0.9, beta2=0.95, eps=1e-8, decay=0.1):
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g**2
    m_hat, v_hat = m / (1 - beta1**t), v / (1 - beta2**t)
    return w - lr * decay * w - lr * m_hat / (v_hat.sqrt() + eps), m, v


# %% [markdown]
# **The rate.** It begins small, since the means know nothing yet; it rises for some steps, then falls on half a
# cosine:
#
# $$\eta_t = \eta_{\max} \frac{t + 1}{w + 1} \;\; (t < w) \qquad
# \eta_t = \eta_{\min} + (\eta_{\max} - \eta_{\min})\, \frac{1 + \cos(\pi p)}{2}, \quad p = \frac{t - w}{n - w}$$


# %%
def cosine(t, steps, peak, least, warmup):
    if t < warmup:
        return peak * (t + 1) / (warmup + 1)
    p = (t - warmup) / (steps - warmup)
    return least + (peak - least) * (1 + math.cos(math.pi * p)) / 2


plt.figure(figsize=(6, 2.4), layout="constrained")
for schedule in ("cosine", "linear", "noam", "constant"):
    settings = OptimConfig(lr=1.0, min_lr=0.1, warmup=50, schedule=schedule)
    plt.plot([learning_rate(t, 500, settings) for t in range(500)], label=schedule)
plt.xlabel("step")
plt.ylabel("rate")
plt.title("the package's schedules", size=10)
plt.legend(fontsize=8)
plt.show()

# %% [markdown]
# **Clipping.** Now and then a batch has a huge gradient. All gradients together are one long vector; if it is longer
# than $c$, it is shortened to $c$, and keeps its direction:
#
# $$g \leftarrow g \cdot \min\Big(1, \frac{c}{\lVert g \rVert}\Big) \qquad \lVert g \rVert = \sqrt{\sum_i g_i^2}
# \;\text{ over all weights}$$


# %%
def clipped(gradients, most):
    norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
    return [gradient * min(1.0, most / (norm.item() + 1e-6)) for gradient in gradients], norm


# %% [markdown]
# **Accumulation.** A batch that does not fit the memory is read in parts, and their gradients are added up. The loss
# of a batch is a mean over its targets. So each part gives its *sum*, divided by the number of targets in the *whole*
# batch:
#
# $$L = \frac{1}{N} \sum_{\text{parts } k}\; \sum_{i \in k} \ell_i \qquad\text{and not}\qquad
# \frac 1K \sum_k \frac{1}{N_k} \sum_{i \in k} \ell_i$$
#
# With rows of one length the two are the same. With padding they are not: in the second a target counts more where it
# has few others beside it.

# %%
losses = torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 9.0])  # seven targets in the first part, one in the second
first, second = losses[:7], losses[7:]
print("mean over targets ", losses.mean().item())
print("sums over N       ", ((first.sum() + second.sum()) / 8).item())
print("mean of two means ", ((first.mean() + second.mean()) / 2).item())

# %% [markdown]
# **Mixed precision.** Numbers of 16 bits take half the memory, and are multiplied faster where the chip knows them.
# But bf16 has 8 bits for the digits: about two and a half decimal ones. Products bear that, sums do not.

# %%
one = torch.tensor(1.0, dtype=torch.bfloat16)
print("1 + 0.003 in bf16:", (one + 0.003).item(), "  1 + 0.005:", (one + 0.005).item())
total = torch.tensor(0.0, dtype=torch.bfloat16)
for _ in range(1000):
    total += 1
print("1 added a thousand times in bf16:", total.item())
for dtype in (torch.float32, torch.bfloat16, torch.float16):
    info = torch.finfo(dtype)
    print(f"{str(dtype)[6:]:9} next after 1: 1 + {info.eps:.1e}   largest {info.max:.1e}   smallest {info.tiny:.1e}")

# %% [markdown]
# A step of training changes a weight by a thousandth of itself, and 1 + 0.003 is 1. So weights, their means and the
# loss stay in float32, and only products are computed in 16 bits: that is what *mixed* means, and what
# `torch.autocast` does.

# %%
layer = nn.Linear(64, 64)
with torch.autocast("cpu", torch.bfloat16):
    product = layer(torch.randn(2, 64))
print("weight", layer.weight.dtype, " product", product.dtype)

# %% [markdown]
# **To stop and go on** one needs all that the next step depends on: the weights, the optimizer's means and its count
# of steps, the number of the step (which says the rate and the batch), and the state of the random generators, where
# dropout is used.
#
# ## Check it
#
# AdamW, five steps, against `torch.optim.AdamW` and the package's `make_optimizer`; then clipping and the schedule.

# %%
model = GPT(GPTConfig(vocab_size=V, context=32, dim=32, depth=1, heads=2, dropout=0.0)).double()
twin = GPT(model.config).double()
twin.load_state_dict(model.state_dict())
settings = OptimConfig(lr=1e-2)
theirs = make_optimizer(model, settings)
spared = {parameter for group in theirs.param_groups if not group["weight_decay"] for parameter in group["params"]}
print("no decay:", sum(p.numel() for p in spared), "numbers (biases and norms); decay:", sum(
    p.numel() for p in model.parameters() if p not in spared))  # fmt: skip


def loss_on(model, tokens, targets):
    return F.cross_entropy(model.readout(model(tokens)[0]).flatten(0, 1), targets.flatten(), ignore_index=IGNORED)


ours = {name: (p.detach().clone(), torch.zeros_like(p), torch.zeros_like(p)) for name, p in twin.named_parameters()}
for t in range(1, 6):
    theirs.zero_grad()
    loss_on(model, tokens, targets).backward()
    theirs.step()
    twin.load_state_dict({name: w for name, (w, _, _) in ours.items()}, strict=False)
    twin.zero_grad()
    loss_on(twin, tokens, targets).backward()
    for name, p in twin.named_parameters():
        w, m, v = ours[name]
        ours[name] = adamw(w, p.grad, m, v, t, lr=1e-2, decay=0.1 if p.ndim >= 2 else 0.0)
for name, p in model.named_parameters():
    close(ours[name][0], p.detach())
print("AdamW by hand = torch.optim.AdamW, after five steps, in all", len(ours), "tensors")

# %%
gradients = [p.grad.clone() for p in model.parameters()]
by_hand, norm = clipped(gradients, 0.1)
close(nn.utils.clip_grad_norm_(model.parameters(), 0.1), norm)
close([p.grad for p in model.parameters()], by_hand, rtol=1e-5, atol=1e-8)

settings = OptimConfig(lr=3e-3, min_lr=3e-4, warmup=20)
for t in range(200):
    assert abs(cosine(t, 200, 3e-3, 3e-4, 20) - learning_rate(t, 200, settings)) < 1e-12
only = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=3e-3)
torchs = torch.optim.lr_scheduler.CosineAnnealingLR(only, T_max=100, eta_min=3e-4)
for t in range(100):
    assert abs(only.param_groups[0]["lr"] - cosine(t, 100, 3e-3, 3e-4, 0)) < 1e-9
    only.step()
    torchs.step()
print("clipping and the schedule equal torch's and the package's")

# %% [markdown]
# Batches: the package's windows are drawn otherwise than ours, and promise the same. Each epoch reads every window
# once, and a batch can be had without those before it. Accumulation: with the package's `Training`, one part or three
# give the same weights.

# %%
places = Tokens.of(np.arange(2000))  # each token is its own place, so that no two windows look alike
windows = TrainingWindows(places, window=16, batch_size=8, seed=5)
seen = np.concatenate([windows.batch(step).tokens.numpy() for step in range(windows.count // 8 + 1)])[: windows.count]
different = len(np.unique(seen, axis=0))
print(f"an epoch has {windows.count} windows; of the first {windows.count} that are read {different} are different")
assert different == windows.count

shape = {"context": 32, "dim": 32, "depth": 1, "heads": 2, "dropout": 0.0, "vocab_size": V}
padded = targets.clone()
padded[0, 4:], padded[1, 20:] = IGNORED, IGNORED  # rows of several lengths
weights = {}
for parts in (1, 3):
    torch.manual_seed(0)
    made = GPT(GPTConfig(**shape)).double()
    config = make_config({"arch": "gpt", "model": shape, "accumulate": parts, "batch_size": 4, "optim": {"lr": 1e-2}})
    training = Training(made, config, torch.device("cpu"))
    for _ in range(3):
        training.update(Batch(tokens, padded), int((padded != IGNORED).sum()), [None] * parts)
    weights[parts] = torch.cat([p.detach().flatten() for p in made.parameters()])
close(weights[1], weights[3])
print("one part or three: the same weights")

# %% [markdown]
# ## Overfit one batch
#
# Here begins the debugging notebook. A model does not learn, or not well. Do these five things, in this order; each
# takes seconds, and none needs much data.
#
# **1. Look at the data**, as the model gets it: decode tokens and targets, as above.
#
# **2. The loss before the first step.** A fresh model knows nothing, so it should be $\ln V$. Much more: the outputs
# are too large, or something is wrong with the loss.


# %%
def small_gpt(seed=0):
    torch.manual_seed(seed)
    return GPT(GPTConfig(vocab_size=V, context=64, dim=48, depth=2, heads=4, dropout=0.0, activation="gelu"))


model = small_gpt()
with torch.no_grad():
    print(f"loss {loss_on(model, tokens, targets):.3f}, ln {V} = {math.log(V):.3f}")
    assert abs(loss_on(model, tokens, targets) - math.log(V)) < 0.1

# %% [markdown]
# **3. Does every weight get a gradient?** One that gets none is not used, or cut off.

# %%
loss_on(model, tokens, targets).backward()
without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
print("without a gradient:", [name for name in without if "position" not in name] or "none")
unread = (model.position_embedding.weight.grad.abs().sum(1) == 0).sum()
print(f"positions without one: {unread} of 64, since the rows have 32 tokens")
assert not without

# %% [markdown]
# **4. One batch by heart.** It must reach almost zero.
#
# **5. The same with targets in a random order.** A model may learn a batch by heart even so. But on new data it can
# do no better than to know how frequent each character is; if it does, the answer leaks into the question.


# %%
def learn(model, give, steps, lr=3e-3):
    optimizer, losses = torch.optim.AdamW(model.parameters(), lr=lr), []
    for step in range(steps):
        loss = loss_on(model, *give(step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def fresh_rows(step, shuffled=False):
    generator = torch.Generator().manual_seed(step)
    starts = torch.randint(len(data) - 33, (16,), generator=generator)
    rows = data[starts[:, None] + torch.arange(33)]
    tokens, targets = rows[:, :-1], rows[:, 1:]
    if shuffled:
        targets = targets.flatten()[torch.randperm(targets.numel(), generator=generator)].view_as(targets)
    return tokens, targets


frequency = data.bincount(minlength=V) / len(data)
entropy = -(frequency * frequency.clamp(min=1e-12).log()).sum().item()
by_heart = learn(small_gpt(), lambda step: (tokens, targets), 200)
nothing_to_learn = learn(small_gpt(), lambda step: fresh_rows(step, shuffled=True), 150)
something = learn(small_gpt(), fresh_rows, 150)
plt.figure(figsize=(6, 2.8), layout="constrained")
plt.plot(by_heart, label="one batch by heart")
plt.plot(something, label="new batches")
plt.plot(nothing_to_learn, label="new batches, targets shuffled")
plt.axhline(entropy, color="grey", linestyle=":", label="frequencies alone")
plt.xlabel("step")
plt.ylabel("loss, nats")
plt.legend(fontsize=8, loc="center right")
plt.show()
assert by_heart[-1] < 0.2
assert sum(nothing_to_learn[-20:]) / 20 > entropy - 0.1

# %% [markdown]
# ## Look inside
#
# A run of the package. `train` is a generator: it yields what happens, and whoever asks for the next record lets it
# go on. So a loop around it can watch, draw, and stop.

# %%
settings = {
    "arch": "gpt", "data": "shakespeare-tiny", "device": "cpu", "steps": 240, "batch_size": 16, "window": 48,
    "eval_every": 120, "log_every": 5, "seed": 3,
    "model": {"context": 48, "dim": 48, "depth": 2, "heads": 4, "dropout": 0.1, "activation": "gelu"},
    "optim": {"lr": 5e-3, "min_lr": 5e-4, "warmup": 30, "grad_clip": 1.0},
}  # fmt: skip
folder = Path(tempfile.mkdtemp())
whole, _ = scratchlm.create_run(settings, folder / "whole")
progress = []
for record in scratchlm.train(whole):
    if isinstance(record, Progress):
        progress.append(record)
    if isinstance(record, Evaluated):
        print(f"step {record.step}: validation {record.score.nats_per_token:.3f} nats, best {record.best_loss:.3f}")

figure, panels = plt.subplots(1, 3, figsize=(11, 2.5), layout="constrained")
for panel, name in zip(panels, ("loss", "lr", "grad_norm"), strict=True):
    panel.plot([record.step for record in progress], [getattr(record, name) for record in progress])
    panel.set(title=name, xlabel="step")
panels[2].axhline(1.0, color="firebrick", linewidth=0.8)
plt.show()

# %% [markdown]
# The gradient's norm tells of trouble before the loss does. Above the red line it was clipped.
#
# **Stop and go on, bit for bit.** The same run in a second folder, stopped in the middle; then `train` once more. It
# even has dropout, so the generators must be where they were.

# %%
parted, _ = scratchlm.create_run(settings, folder / "parted")
stop = threading.Event()
for record in scratchlm.train(parted, stop=stop):
    if isinstance(record, Progress) and record.step >= 75:
        stop.set()
    if isinstance(record, Saved):
        print("saved at step", record.step)
for _ in scratchlm.train(parted):
    pass
one, two = whole.checkpoint("last"), parted.checkpoint("last")
for kind, a, b in (
    ("weights", one.weights(), two.weights()),
    ("optimizer and generators", one.optimizer(), two.optimizer()),
):
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
    print(f"{kind}: {len(a)} tensors, all bits equal")
lines = [[{**line, "seconds": 0} for line in run.metrics()] for run in (whole, parted)]
assert lines[0] == lines[1]
print("and all", len(lines[0]), "lines of metrics")

# %% [markdown]
# **How far does a step move a weight?** The length of the step over the length of the matrix. A fresh model has small
# matrices, so its first steps are long for them; then the ratio must come down. A thousandth is usual in large
# models, a hundredth in one as small as this. Near 1 it jumps about; at a millionth it stands still.

# %%
model, moved = small_gpt(), {}
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
for step in range(100):
    optimizer.zero_grad()
    loss_on(model, *fresh_rows(step)).backward()
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.ndim == 2}
    optimizer.step()
    for name, old in before.items():
        new = model.get_parameter(name).detach()
        moved.setdefault(name, []).append(((new - old).norm() / old.norm()).item())
plt.figure(figsize=(6, 2.8), layout="constrained")
for name in ("token_embedding.weight", "blocks.0.attention.query_key_value.weight", "blocks.1.mlp.output.weight"):
    plt.semilogy(moved[name], label=name)
plt.axhline(1e-3, color="grey", linestyle=":")
plt.xlabel("step")
plt.ylabel("|step| / |matrix|")
plt.legend(fontsize=8)
plt.show()

# %% [markdown]
# ## Break it
#
# A whole loop in one class, to break it at one place at a time. Its batches are lines of the plays: short and long
# ones, padded.


# %%
LINES = [line + "\n" for line in text.splitlines()[:6000] if line.strip()]
EVERY_LINE = [torch.tensor(tokenizer.encode(line)[:64]) for line in LINES]
STEPS = 120


class Loop:
    """A right loop, in its parts."""

    accumulate = 4

    def __init__(self):
        self.model, self.step, self.losses, self.rates = small_gpt(), 0, [], []
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3)

    def batch(self, step):
        chosen = torch.randint(len(EVERY_LINE), (16,), generator=torch.Generator().manual_seed(step))
        rows = [EVERY_LINE[at] for at in sorted(chosen.tolist(), key=lambda at: len(EVERY_LINE[at]))]
        tokens = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        return tokens[:, :-1], self.targets(nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=IGNORED))

    def targets(self, rows):
        return rows[:, 1:]

    def rate(self):
        return cosine(self.step, STEPS, 5e-3, 5e-4, 20)

    def backward(self, tokens, targets):
        """Gradients of the mean over the batch's targets, in parts."""
        self.optimizer.zero_grad()
        count, total = (targets != IGNORED).sum(), 0.0
        for part, wanted in zip(tokens.chunk(self.accumulate), targets.chunk(self.accumulate), strict=True):
            logits = self.model.readout(self.model(part)[0]).flatten(0, 1).float()
            loss = F.cross_entropy(logits, wanted.flatten(), ignore_index=IGNORED, reduction="sum") / count
            loss.backward()
            total += loss.item()
        return total

    def update(self):
        self.losses.append(self.backward(*self.batch(self.step)))
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate()
        self.rates.append(self.rate())
        self.optimizer.step()
        self.step += 1

    def run(self, until):
        while self.step < until:
            self.update()
        return self

    def saved(self):
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "step": self.step}

    def restored(self, saved):
        self.model.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.step = saved["step"]
        return self


# %% [markdown]
# Six bugs. Each is one of its parts, written a little wrong.


# %%
class MeanOfMeans(Loop):
    """Each part's loss is the mean over its own targets; then the mean of the parts."""

    def backward(self, tokens, targets):
        self.optimizer.zero_grad()
        total = 0.0
        for part, wanted in zip(tokens.chunk(self.accumulate), targets.chunk(self.accumulate), strict=True):
            loss = loss_on(self.model, part, wanted) / self.accumulate  # right: the sum over the whole batch's targets
            loss.backward()
            total += loss.item()
        return total


class ScheduleOfParts(Loop):
    """scheduler.step() stands in the inner loop: the rate falls four times as fast."""

    def rate(self):
        return cosine(min(self.step * self.accumulate, STEPS), STEPS, 5e-3, 5e-4, 20)


class ForgetsTheMoments(Loop):
    """Only weights are restored: the optimizer begins anew."""

    def restored(self, saved):
        self.model.load_state_dict(saved["model"])
        self.step = saved["step"]
        return self


class KeepsGradients(Loop):
    """zero_grad() is forgotten: each step has all gradients so far in it."""

    def backward(self, tokens, targets):
        zero_grad, self.optimizer.zero_grad = self.optimizer.zero_grad, lambda: None
        total = super().backward(tokens, targets)
        self.optimizer.zero_grad = zero_grad
        return total


class TargetsNotMoved(Loop):
    """Each position is to say the token that it reads."""

    def targets(self, rows):
        return rows[:, :-1]


class AllInSixteenBits(Loop):
    """The weights themselves are bf16, not only products."""

    def __init__(self):
        super().__init__()
        self.model.to(torch.bfloat16)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3)


# %% [markdown]
# Six checks, a few lines each, which know nothing of the bugs. The package's tests have them all (`test_training.py`,
# `test_precision.py`, `test_nothing_is_lost.py`).


# %%
def parts_do_not_matter(kind):
    """The gradient is the same in one part and in four."""
    found = []
    for parts in (1, 4):
        loop = kind()
        loop.accumulate = parts
        loop.backward(*loop.batch(0))
        found.append(torch.cat([p.grad.flatten() for p in loop.model.parameters()]).float())
    close(found[0], found[1], rtol=1e-3, atol=1e-5)


def schedule_ends_with_the_run(kind):
    """The rate is that of the schedule at every step."""
    loop = kind()
    for loop.step in range(STEPS):
        assert abs(loop.rate() - cosine(loop.step, STEPS, 5e-3, 5e-4, 20)) < 1e-12


def resume_is_exact(kind):
    """Stopped and gone on is the same as never stopped, to the bit."""
    whole = kind().run(8)
    parted = kind().restored(kind().run(5).saved()).run(8)
    for a, b in zip(whole.model.parameters(), parted.model.parameters(), strict=True):
        assert torch.equal(a, b)


def a_batch_has_its_own_gradient(kind):
    """Going back twice from the same weights gives the same gradient."""
    loop, found = kind(), []
    for _ in range(2):
        loop.backward(*loop.batch(0))
        found.append([p.grad.clone() for p in loop.model.parameters()])
    for a, b in zip(*found, strict=True):
        close(a, b)


def targets_come_next(kind):
    """A target is the token that is read one later."""
    tokens, targets = kind().batch(0)
    assert torch.equal(torch.where(targets[:, :-1] == IGNORED, tokens[:, 1:], targets[:, :-1]), tokens[:, 1:])


def steps_are_not_lost(kind):
    """At a small rate too, nearly every weight moves."""
    loop = kind().run(3)
    loop.rate = lambda: 1e-5
    before = loop.model.blocks[0].mlp.hidden.weight.detach().clone()
    loop.update()
    assert (loop.model.blocks[0].mlp.hidden.weight != before).float().mean() > 0.9


CHECKS = (parts_do_not_matter, schedule_ends_with_the_run, resume_is_exact, a_batch_has_its_own_gradient,
          targets_come_next, steps_are_not_lost)  # fmt: skip


def failed(kind):
    names = []
    for check in CHECKS:
        try:
            check(kind)
        except AssertionError:
            names.append(check.__name__)
    return names


# %%
assert not failed(Loop)
right = Loop().run(STEPS).losses
bugs = {
    MeanOfMeans: "parts_do_not_matter",
    ScheduleOfParts: "schedule_ends_with_the_run",
    ForgetsTheMoments: "resume_is_exact",
    KeepsGradients: "a_batch_has_its_own_gradient",
    TargetsNotMoved: "targets_come_next",
    AllInSixteenBits: "steps_are_not_lost",
}
figure, panels = plt.subplots(2, 3, figsize=(10, 4.6), sharex=True, sharey=True, layout="constrained")
for panel, (kind, expected) in zip(panels.flat, bugs.items(), strict=True):
    loop = kind().run(STEPS // 2)
    losses = loop.losses + kind().restored(loop.saved()).run(STEPS).losses  # stopped and gone on in the middle
    caught_by = failed(kind)
    print(f"{kind.__name__:18} {losses[0]:.2f} -> {sum(losses[-10:]) / 10:.2f}   caught by: {', '.join(caught_by)}")
    assert expected in caught_by
    assert sum(losses[-10:]) / 10 < losses[0] - 0.5
    panel.plot(right, color="grey", label="right")
    panel.plot(losses, color="crimson", linestyle="--", linewidth=1, label="broken")
    panel.set_title(kind.__name__, size=9)
panels[0, 0].set_ylabel("loss, nats")
panels[0, 0].legend()
plt.show()
print(f"the right loop: {right[0]:.2f} -> {sum(right[-10:]) / 10:.2f}")

# %% [markdown]
# Each of them learns. `TargetsNotMoved` is too good to be true. `MeanOfMeans` says a better figure than the right
# loop, because it counts another thing: short lines, which are easy, weigh more. `ForgetsTheMoments` and
# `AllInSixteenBits` cannot be told from the right loop here, and cost later: the one at every stop, the other when
# the rate has become small. The rest look like a model that is a little too small, or a rate that is not quite right.
# That is how people spend weeks on the wrong knob. A check takes a second.

# %% [markdown]
# ## Exercises
#
# The answers are in the hidden cells. Write your own into the empty cell below each: it takes the answer's place, and
# the last cell checks it.
#
# **1.** How many steps are needed to read `count` windows `epochs` times, with `batch` windows a step? Write
# `steps_for(epochs, count, batch)`; the last batch may reach into the next epoch.

# %% cellView="form" jupyter={"source_hidden": true}
# @title Answer 1


def steps_for(epochs, count, batch):
    return math.ceil(epochs * count / batch)


# %%
# your own `steps_for`

# %%
steps = steps_for(3, windows.count, 8)
assert windows.epochs(steps) >= 3 > windows.epochs(steps - 1)
print(f"{steps} steps for 3 epochs of {windows.count} windows: right")

# %% [markdown]
# **2.** In its very first step, Adam (without decay) moves a weight whose gradient is 1000 by how much, at a rate of
# 0.01? And one whose gradient is 0.001? Set `big` and `small`.

# %% cellView="form" jupyter={"source_hidden": true}
# @title Answer 2
big = small = 0.01  # the first means are the gradient and its square: g / |g| is 1

# %%
# your own `big` and `small`

# %%
w = nn.Parameter(torch.zeros(2))
w.grad = torch.tensor([1000.0, 0.001])
torch.optim.Adam([w], lr=0.01).step()
assert abs(abs(w[0].item()) - big) < 1e-5
assert abs(abs(w[1].item()) - small) < 1e-5
print("right: the size of a gradient does not matter at first, only its sign")

# %% [markdown]
# **3.** The linear schedule falls straight from the peak to the least after the warm-up. Write `linear(t, steps,
# peak, least, warmup)`.

# %% cellView="form" jupyter={"source_hidden": true}
# @title Answer 3


def linear(t, steps, peak, least, warmup):
    if t < warmup:
        return peak * (t + 1) / (warmup + 1)
    return least + (peak - least) * (1 - (t - warmup) / (steps - warmup))


# %%
# your own `linear`

# %%
settings = OptimConfig(lr=3e-3, min_lr=3e-4, warmup=20, schedule="linear")
for t in range(200):
    assert abs(linear(t, 200, 3e-3, 3e-4, 20) - learning_rate(t, 200, settings)) < 1e-12
print("right")

# %% [markdown]
# **4.** Two processes have 300 and 100 targets. Each computes the mean loss of its own, and the gradients of both are
# then averaged. By which factor must the first multiply its mean, so that the result is the mean over all 400
# targets? Set `factor`.

# %% cellView="form" jupyter={"source_hidden": true}
# @title Answer 4
factor = 2 * 300 / 400  # its mean times 300 is its sum; the average of two divides by 2

# %%
# your own `factor`

# %%
a, b = torch.randn(300), torch.randn(100)
close((factor * a.mean() + (2 - factor) * b.mean()) / 2, torch.cat([a, b]).mean())
print("right")
