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
# # LoRA: learn a thin change
#
# [Open in Colab](https://colab.research.google.com/github/OWNER/scratchlm/blob/main/notebooks/lora.ipynb)
#
# To teach a trained model something new one can go on training all of it. LoRA (Hu et al. 2021, "LoRA: Low-Rank
# Adaptation of Large Language Models") leaves every matrix as it is and learns, beside it, a change that is the
# product of two thin matrices. There is little to train, little to save, and the change can be taken off again or
# added into the matrix for good. Here you build it, check it against PEFT and against the package, teach a model of
# Shakespeare to shout, and look at what it learned.

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
import copy
import importlib.util
import tempfile
import warnings

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch import nn

import adapted  # the checks that every adapter must pass: tests/adapted.py
import scratchlm
from scratchlm import lora
from scratchlm.config import LoRAConfig
from scratchlm.data import corpora
from scratchlm.models.gpt import GPT, GPTConfig

torch.manual_seed(0)
close = torch.testing.assert_close

# %% [markdown]
# ## Build it
#
# Letters in shapes: **D** rows of a matrix (outputs), **K** columns (inputs), **R** rank.
#
# **The change.** A layer computes $W x$. Beside it stand $A$, which squeezes the input into R numbers, and $B$, which
# makes outputs of them. A factor $s = \alpha / r$ says how much the change counts, so that another rank needs no
# other learning rate:
#
# $$h = W x + s\, B A\, x \qquad W: D \times K \quad A: r \times K \quad B: D \times r$$

# %%
D, K, R, ALPHA = 64, 48, 4, 8.0
W = torch.randn(D, K) / K**0.5
A = torch.randn(R, K) / K**0.5
B = torch.zeros(D, R)
s = ALPHA / R


def adapted_layer(x, A, B):
    return x @ W.T + s * (x @ A.T) @ B.T


x = torch.randn(10, K)
print("x", tuple(x.shape), "-> A x", tuple((x @ A.T).shape), "-> B A x", tuple((x @ A.T @ B.T).shape))
print(f"W has {W.numel():,} numbers, A and B together {A.numel() + B.numel():,}")

# %% [markdown]
# **The start.** $A$ is drawn at random and $B$ is zero. So at first nothing is changed, not even in the last bit, and
# a fresh adapter can do no harm.
#
# Why not both zero? Look at the gradients, $g$ being that of the output:
#
# $$\frac{\partial}{\partial B} = s\; g\, (A x)^\top \qquad \frac{\partial}{\partial A} = s\; B^\top g\, x^\top$$
#
# Each has the other matrix in it. With $B = 0$ the first step moves $B$ alone; from the second on both move. With
# both zero nothing ever moves.

# %%
assert torch.equal(adapted_layer(x, A, B), x @ W.T)
g = torch.randn(10, D)
for name, start_A, start_B in (("B = 0", A, B), ("both zero", torch.zeros_like(A), B)):
    a, b = start_A.clone().requires_grad_(), start_B.clone().requires_grad_()
    of_a, of_b = torch.autograd.grad((g * adapted_layer(x, a, b)).sum(), [a, b])
    close(of_b, s * g.T @ (x @ start_A.T))
    close(of_a, s * start_B.T @ g.T @ x)
    print(f"{name:9}: gradient of A {of_a.norm():.2f}, of B {of_b.norm():.2f}")

# %% [markdown]
# **What rank means.** $BA$ is a sum of R products of a column and a row. However big it is, it can change the output
# in R directions only: it has R singular values that are not zero.

# %%
B = torch.randn(D, R) * 0.2
singular = torch.linalg.svdvals(s * B @ A)
figure, panels = plt.subplots(1, 3, figsize=(10, 2.6), layout="constrained")
panels[0].imshow(B[:, :1] @ A[:1], cmap="RdBu")
panels[0].set_title("one column times one row", size=9)
panels[1].imshow(B @ A, cmap="RdBu")
panels[1].set_title(f"the sum of {R} of them", size=9)
panels[2].bar(range(12), singular[:12])
panels[2].set_title("singular values of the change", size=9)
plt.show()
assert int((singular > 1e-5).sum()) == R

# %% [markdown]
# **Merging.** The change is a matrix of W's own shape. Add it once, and nothing is computed beside W any more:
#
# $$W' = W + s\, B A$$

# %%
merged = W + s * B @ A
close(adapted_layer(x, A, B), x @ merged.T)
print("merged: the same outputs from one matrix")

# %% [markdown]
# **DoRA in a sentence.** It learns the length of each row apart from its direction (Liu et al. 2024):
# $W' = m \odot (W + s B A) / \lVert W + s B A \rVert$, with $m$ starting as the rows' own lengths.

# %%
m = W.norm(dim=1)
directions = (W + s * B @ A) / (W + s * B @ A).norm(dim=1, keepdim=True)
dora = m[:, None] * directions
close(dora.norm(dim=1), m)
print("every row has the length that m says")

# %% [markdown]
# ## Check it
#
# Against PEFT, the library that most people use, where it is installed; and against the package, on every kind of
# matrix of a GPT: give `scratchlm.lora` our $A$ and $B$ and add the change by hand in a copy.

# %%
if importlib.util.find_spec("peft"):
    with warnings.catch_warnings(action="ignore"):  # of a progress bar that nobody asked for
        import peft

    class One(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(K, D, bias=False)

        def forward(self, x):
            return self.layer(x)

    theirs = peft.get_peft_model(One(), peft.LoraConfig(r=R, lora_alpha=ALPHA, target_modules=["layer"]))
    with torch.no_grad():
        wrapped = theirs.base_model.model.layer
        wrapped.base_layer.weight.copy_(W)
        wrapped.lora_A["default"].weight.copy_(A)
        wrapped.lora_B["default"].weight.copy_(B)
    close(theirs(x), adapted_layer(x, A, B))
    print("equals PEFT", peft.__version__)
else:
    print("PEFT is not installed; the package's own tests compare with it")

# %%
model = GPT(GPTConfig.tiny()).double().eval()
by_hand = copy.deepcopy(model)
chosen = lora.adapt(model, LoRAConfig(rank=2, alpha=6.0))
for _, beside in lora.adaptations(model).values():
    for pair in beside.pairs:
        nn.init.normal_(pair.B, std=0.1)
for matrix in chosen:
    pair = getattr(model.get_submodule(matrix.module).lora, matrix.part)
    with torch.no_grad():
        by_hand.get_submodule(matrix.module).weight[matrix.rows] += 6.0 / 2 * pair.B @ pair.A
tokens = torch.randint(23, (2, 12))
close(model(tokens)[0], by_hand(tokens)[0])
print(len(chosen), "matrices adapted:", ", ".join(matrix.name for matrix in chosen[:4]))

# %% [markdown]
# ## Overfit one batch
#
# First a base: a small GPT that has read Shakespeare for some seconds.

# %%
text = corpora.get("shakespeare-tiny")
run, _ = scratchlm.create_run(
    {
        "arch": "gpt", "data": "shakespeare-tiny", "device": "cpu", "steps": 400, "batch_size": 16, "eval_every": 400,
        "model": {"context": 64, "dim": 64, "depth": 2, "heads": 4, "dropout": 0.0, "activation": "gelu"},
        "optim": {"lr": 5e-3, "min_lr": 5e-4, "warmup": 40, "beta2": 0.99},
    },
    Path(tempfile.mkdtemp()) / "base",
)  # fmt: skip
for _ in scratchlm.train(run):
    pass
base, tokenizer = scratchlm.load(run.path)
print(f"{base.config.parameters:,} parameters, {run.metrics()[-1]['val_loss']:.2f} nats per character\n")
prompt = tokenizer.encode("ROMEO:\n")
print(tokenizer.decode(scratchlm.generate(base, [prompt], 57, temperature=0.7, seed=1)[0]))

# %% [markdown]
# What it shall learn: to SHOUT. All small letters of the text become capital ones. It knows those from the names of
# the speakers, but not how words are spelled with them.

# %%
loud = torch.tensor(tokenizer.encode(text.upper()))
learned, held_out = loud[:-20_000], loud[-20_000:]
print(tokenizer.decode(loud[:130].tolist()))


def loss_on(model, windows):
    return F.cross_entropy(model.readout(model(windows[:, :-1])[0]).flatten(0, 1), windows[:, 1:].flatten())


def score(model):
    with torch.no_grad():
        return loss_on(model, held_out[: 300 * 65].view(300, 65)).item()


def tune(model, steps, lr, batch=None):
    order = torch.Generator().manual_seed(2)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer, losses = torch.optim.AdamW(trained, lr=lr, weight_decay=0.0), []
    for _ in range(steps):
        starts = torch.randint(0, len(learned) - 65, (16,), generator=order)
        loss = loss_on(model, learned[starts[:, None] + torch.arange(65)] if batch is None else batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def with_adapter(rank, **settings):
    torch.manual_seed(3)
    model = copy.deepcopy(base)
    lora.adapt(model, LoRAConfig(rank=rank, alpha=2.0 * rank, **settings))
    return model


model = with_adapter(8)
losses = tune(model, 150, 1e-2, batch=learned[: 4 * 65].view(4, 65))
plt.figure(figsize=(5, 2.4), layout="constrained")
plt.semilogy(losses)
plt.xlabel("step")
plt.ylabel("loss, nats")
plt.title("an adapter of rank 8 learns one batch by heart", size=10)
plt.show()
size = lora.size(model)
print(f"from {losses[0]:.2f} to {losses[-1]:.3f}, training {size.trained:,} numbers of {size.parameters:,}")
assert losses[-1] < 0.5

# %% [markdown]
# ## Look inside
#
# **How much rank does it take?** The same steps with adapters of several ranks, and with all of the weights trained.

# %%
tuned, results = {}, []
for rank in (1, 2, 4, 8, 16):
    tuned[rank] = with_adapter(rank)
    tune(tuned[rank], 120, 1e-2)
    results.append((f"rank {rank}", lora.size(tuned[rank]).trained, score(tuned[rank])))
everything = copy.deepcopy(base).requires_grad_(True)
tune(everything, 120, 3e-3)
results.append(("all weights", base.config.parameters, score(everything)))
print(f"{'before':12} {'':>8}          {score(base):.3f} nats")
for name, count, loss in results:
    print(f"{name:12} {count:8,} trained  {loss:.3f} nats")

plt.figure(figsize=(5, 2.6), layout="constrained")
plt.semilogx([count for _, count, _ in results], [loss for *_, loss in results], "o-")
for name, count, loss in results:
    plt.annotate(name, (count, loss), xytext=(3, 5), textcoords="offset points", size=8)
plt.xlabel("numbers trained")
plt.ylabel("loss on held-out text, nats")
plt.margins(0.15)
plt.show()
print(tokenizer.decode(scratchlm.generate(tuned[8], [tokenizer.encode("ROMEO:\n")], 57, temperature=0.7, seed=1)[0]))

# %% [markdown]
# One direction for each matrix goes most of the way, and each doubling of the rank adds little. All weights go
# further still: they change the embeddings too, and the model is so small that it has little to spare.
#
# **Is the full change of low rank?** Nobody told the full training to be thin. Look at the singular values of what it
# changed, and at those of the adapter of rank 8.

# %%
name = "blocks.0.mlp.hidden"
full = torch.linalg.svdvals((everything.get_submodule(name).weight - base.get_submodule(name).weight).detach())
thin = torch.linalg.svdvals(tuned[8].get_submodule(name).lora.whole.change().detach())
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 2.8), layout="constrained")
left.semilogy(full / full[0], label="all weights trained")
left.semilogy((thin / thin[0]).clamp(min=1e-4)[:8], "o-", label="adapter of rank 8")
left.set(title=f"singular values of the change of {name}", xlabel="number", ylabel="of the largest", ylim=(1e-2, 1.3))
left.legend(fontsize=8)
share = full.square().cumsum(0) / full.square().sum()
right.plot(range(1, len(share) + 1), share)
right.axvline(8, color="grey", linewidth=0.8)
right.set(title="share of the full change that so many directions hold", xlabel="directions", ylim=(0, 1.02))
for panel in (left, right):
    panel.title.set_size(9)
plt.show()
print(f"8 of {len(share)} directions hold {share[7]:.0%} of the full change")

# %% [markdown]
# Not thin, but far from even: a few directions hold most of it. That is what LoRA bets on.
#
# **Which matrices changed?** How long each change is, measured by its matrix.

# %%
sizes = {}
for place, (module, beside) in lora.adaptations(tuned[8]).items():
    for pair in beside.pairs:
        sizes[place] = (pair.change().norm() / module.weight.norm()).item()
plt.figure(figsize=(6, 2.6), layout="constrained")
plt.barh(list(sizes)[::-1], list(sizes.values())[::-1])
plt.xlabel("|change| / |matrix|")
plt.show()

# %% [markdown]
# **On and off.** `merge` puts the changes in; `unmerge` gives the base's bits back; `remove` takes the adapter off.

# %%
model = with_adapter(8)
tune(model, 30, 1e-2)
before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
beside = score(model)
lora.merge(model)
print(f"beside {beside:.4f}, merged {score(model):.4f}")
lora.remove(model)
assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
print(f"removed {score(model):.4f}, the base {score(base):.4f}, to the bit")

# %% [markdown]
# ## Break it
#
# Five bugs of adapters, each seen in a public library. The loss falls with every one of them. The package's checks of
# adapters (`tests/adapted.py`) are run on a tiny model after each; here is what five of them want:
#
# | check | wants |
# |---|---|
# | fresh | an adapter that has learned nothing changes no bit |
# | first_steps | at the first step B moves alone, then both; the base never |
# | written_out | it computes $W + s B A$, the matrices written out |
# | merged | merged and beside say the same |
# | modes | a second merge is refused; train() and eval() merge nothing |


# %%
def failed():
    make, names = adapted.maker(GPT, GPTConfig.tiny()), []
    for name in ("fresh", "first_steps", "written_out", "merged", "modes"):
        try:
            adapted.CHECKS[name](make)
        except AssertionError:
            names.append(name)
    return names


assert not failed()
curves = {"right": tune(with_adapter(4), 60, 1e-2)}

# %% [markdown]
# **Bug 1: the scale is forgotten in the merge.** $W + BA$ where $W + s BA$ is meant: right for $\alpha = r$ alone, as
# it is in many examples. Training never merges, so its curve is the right one to the last digit.

# %%
right_change = lora.LowRank.change
lora.LowRank.change = lambda self: self.B @ self.A  # right: self.scale * (self.B @ self.A)
model = with_adapter(4)
curves["merge without scale"] = tune(model, 60, 1e-2)
beside = score(model)
lora.merge(model)
caught_by = failed()
lora.LowRank.change = right_change
print(f"beside {beside:.3f}, merged {score(model):.3f} nats; caught by: {', '.join(caught_by)}")
assert curves["merge without scale"] == curves["right"]
assert "merged" in caught_by

# %% [markdown]
# **Bug 2: the scale is forgotten everywhere.** Then training and merging agree with each other.

# %%
right_scale = lora.Matrix.scale
lora.Matrix.scale = lambda self, config: 1.0  # right: alpha / rank
model = with_adapter(4)
curves["no scale"] = tune(model, 60, 1e-2)
caught_by = failed()
lora.Matrix.scale = right_scale
print(f"loss {curves['no scale'][-1]:.3f}, right {curves['right'][-1]:.3f}; caught by: {', '.join(caught_by)}")
assert "written_out" in caught_by

# %% [markdown]
# It only learns more slowly. `written_out` compares with the equation and not with itself.
#
# **Bug 3: merged, and beside as well.** A merge that adds to the matrix and leaves the branch running, so the change
# counts twice; and once more with each further merge. Some libraries merge in `eval()`: save then, load, and it is
# there twice.

# %%
right_merge = lora.Adaptation.merge


def add_in_place(self, module, of):
    with torch.no_grad():
        for pair in self.pairs:
            module.weight[pair.rows] += pair.change().to(module.weight.dtype)


model = with_adapter(4)
curves["merged twice"] = tune(model, 60, 1e-2)
heard = [score(model)]
lora.Adaptation.merge = add_in_place
for _ in range(2):
    lora.merge(model)
    heard.append(score(model))
caught_by = failed()
lora.Adaptation.merge = right_merge
print("merged 0, 1, 2 times:", ", ".join(f"{loss:.3f}" for loss in heard), "nats; caught by:", ", ".join(caught_by))
assert {"merged", "modes"} <= set(caught_by)

# %% [markdown]
# **Bug 4: the base is not frozen.** The adapter is laid beside weights that go on learning.

# %%
right_freeze = GPT.requires_grad_
GPT.requires_grad_ = lambda self, requires_grad=True: self
model = with_adapter(4)
curves["base not frozen"] = tune(model, 60, 1e-2)
caught_by = failed()
lora.remove(model)
GPT.requires_grad_ = right_freeze
print(f"loss {curves['base not frozen'][-1]:.3f}, right {curves['right'][-1]:.3f}; caught by: {', '.join(caught_by)}")
print(f"the adapter removed: {score(model):.3f} nats, the base {score(base):.3f}: another model than there was")
assert "first_steps" in caught_by

# %% [markdown]
# **Bug 5: both matrices drawn at random.** The adapter changes something before it has learned anything. Training
# repairs the damage, and who starts the curve at step 10 does not see it.

# %%
right_init = lora.LowRank.__init__


def both_drawn(self, *arguments):
    right_init(self, *arguments)
    nn.init.normal_(self.B, std=0.3)  # right: zeros


lora.LowRank.__init__ = both_drawn
model = with_adapter(4)
print(f"before the first step: {score(model):.3f} nats, the base {score(base):.3f}")
curves["both drawn"] = tune(model, 60, 1e-2)
caught_by = failed()
lora.LowRank.__init__ = right_init
print(f"loss {curves['both drawn'][-1]:.3f}, right {curves['right'][-1]:.3f}; caught by: {', '.join(caught_by)}")
assert "fresh" in caught_by

# %%
figure, panels = plt.subplots(1, 5, figsize=(13, 2.6), sharey=True, layout="constrained")
for panel, name in zip(panels, [name for name in curves if name != "right"], strict=True):
    panel.plot(curves["right"], color="grey", label="right")
    panel.plot(curves[name], color="crimson", linestyle="--", label="broken")
    panel.set_title(name, size=9)
    panel.set_xlabel("step")
panels[0].set_ylabel("loss, nats")
panels[0].legend()
plt.show()
assert all(losses[-1] < losses[0] - 0.5 for losses in curves.values()), "every one of them learns"

# %% [markdown]
# ## Exercises
#
# The answers are in the hidden cells. Write your own into the empty cell below each: it takes the answer's place, and
# the last cell checks it.
#
# **1.** From which rank on does an adapter of an $D \times K$ matrix train as many numbers as the matrix has? Write
# `break_even(outputs, inputs)`; it may be a fraction.

# %% cellView="form" jupyter={"source_hidden": true}
# @title Answer 1


def break_even(outputs, inputs):
    return outputs * inputs / (outputs + inputs)  # r (D + K) = D K


# %%
# your own `break_even`

# %%
assert break_even(64, 64) == 32
assert abs(break_even(3072, 768) - 614.4) < 1e-6
print(f"a matrix of 3072 x 768 breaks even at rank {break_even(3072, 768):.1f}: right")

# %% [markdown]
# **2.** You have a full change, and want the adapter of rank R that is nearest to it. Write `nearest(change, rank)`,
# which returns B (D, R) and A (R, K). (The singular value decomposition knows: Eckart and Young 1936.)

# %% cellView="form" jupyter={"source_hidden": true}
# @title Answer 2


def nearest(change, rank):
    left, values, right = torch.linalg.svd(change, full_matrices=False)
    return left[:, :rank] * values[:rank], right[:rank]


# %%
# your own `nearest`

# %%
change = (everything.get_submodule(name := "blocks.0.mlp.hidden").weight - base.get_submodule(name).weight).detach()
for rank in (1, 8):
    thin_B, thin_A = nearest(change, rank)
    assert (thin_B.shape[1], thin_A.shape[0]) == (rank, rank)
    close((change - thin_B @ thin_A).norm(), torch.linalg.svdvals(change)[rank:].norm(), rtol=1e-3, atol=1e-4)
print("right")

# %% [markdown]
# **3.** Two adapters of ranks 2 and 3 with scales $s_1$, $s_2$ on one matrix are one adapter of rank 5 with scale 1.
# Write `joined(s_1, B_1, A_1, s_2, B_2, A_2)`, which returns its B and A.

# %% cellView="form" jupyter={"source_hidden": true}
# @title Answer 3


def joined(s_1, B_1, A_1, s_2, B_2, A_2):
    return torch.cat([s_1 * B_1, s_2 * B_2], 1), torch.cat([A_1, A_2])


# %%
# your own `joined`

# %%
B_1, A_1, B_2, A_2 = torch.randn(D, 2), torch.randn(2, K), torch.randn(D, 3), torch.randn(3, K)
both_B, both_A = joined(0.5, B_1, A_1, 4.0, B_2, A_2)
assert (both_B.shape[1], both_A.shape[0]) == (5, 5)
close(both_B @ both_A, 0.5 * B_1 @ A_1 + 4.0 * B_2 @ A_2, rtol=1e-4, atol=1e-4)
print("right")
