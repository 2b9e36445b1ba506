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
# # Comparing models: what a difference means
#
# [Open in Colab](https://colab.research.google.com/github/OWNER/scratchlm/blob/main/notebooks/comparison.ipynb)
#
# "Ours is better by 0.02." Better at the same size? On the same text, after as much of it? With another seed too?
# Most wrong results in this field come from a comparison that was not one. Melis et al. ("On the State of the Art of
# Evaluation in Neural Language Models", 2018) tuned several architectures with the same care, and the order of the
# published figures turned round; Bouthillier et al. ("Accounting for Variance in Machine Learning Benchmarks", 2021)
# measured how far luck alone moves a result. Here you make budgets equal, learn to read several seeds, run a small
# comparison, and watch five ways to be fooled.

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
import itertools
import math
import statistics
import tempfile

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F

import contract  # the checks that every architecture must pass: tests/contract.py
import scratchlm
from scratchlm.compare.budget import parse_budget
from scratchlm.compare.plan import Request, prepare
from scratchlm.compare.report import table
from scratchlm.compare.run import Compared, compare
from scratchlm.compare.seeds import differences
from scratchlm.data import corpora
from scratchlm.inspect.curves import comparison_figure
from scratchlm.inspect.modules import flops_per_token
from scratchlm.models.cnn import CNN, CausalConvolution, CNNConfig
from scratchlm.models.rnn import RNN, RNNConfig

torch.manual_seed(0)
close = torch.testing.assert_close
MODELS = scratchlm.MODELS
text = corpora.get("shakespeare-tiny")[:160_000]
tokenizer = scratchlm.tokenizers.CharacterTokenizer.train([text])
data, V = torch.tensor(tokenizer.encode(text)), tokenizer.vocab_size

# %% [markdown]
# ## Build it
#
# **Equal size.** Architectures count their parameters in different ways. So the *number* is made equal, and each
# takes the shape that its number gives. The number of a model of width D grows with $D^2$; try widths and take the
# nearest:
#
# $$D^* = \arg\min_D\; \lvert n(D) - n_{\text{budget}} \rvert$$

# %%
BUDGET = 85_000


def parameters(name, width):
    """Of a model of this width, two blocks deep."""
    shapes = {"cnn": {"dilations": 2}, "gpt": {"heads": 1, "context": 64}}
    shape = shapes.get(name, {"hidden_dim": width})
    return MODELS[name].Config(vocab_size=V, dim=width, depth=2, **shape).parameters


widths = {}
plt.figure(figsize=(6, 2.8), layout="constrained")
for name in ("rnn", "lstm", "gru", "cnn", "gpt"):
    counts = [parameters(name, width) for width in range(8, 97, 2)]
    widths[name] = min(range(8, 97, 2), key=lambda width, name=name: abs(parameters(name, width) - BUDGET))
    plt.plot(range(8, 97, 2), counts, label=f"{name}: {widths[name]}")
    print(f"{name:5} of width 64: {parameters(name, 64):7,} parameters; for {BUDGET:,}: width {widths[name]}")
plt.axhline(BUDGET, color="grey", linestyle=":")
plt.xlabel("width, two blocks")
plt.ylabel("parameters")
plt.legend(title="width for 85,000", fontsize=8, title_fontsize=8)
plt.show()

# %% [markdown]
# "The same width" would have given some of them twice as many parameters as others.
#
# **Equal text.** A step reads batch x window tokens. All models get the same batches in the same order, and as many
# steps as the budget of tokens pays for:
#
# $$\text{steps} = \left\lfloor \frac{\text{tokens}}{\text{batch} \cdot \text{window}} \right\rfloor$$
#
# **One unit.** A loss in nats per token depends on what a token is. Per byte of text it does not:
#
# $$\text{bits per byte} = \frac{\text{nats per token} \cdot \text{tokens}}{\text{bytes} \cdot \ln 2}$$


# %%
def bits_per_byte(nats_per_token, tokens, size):
    return nats_per_token * tokens / size / math.log(2)


# %% [markdown]
# **Several seeds.** A seed decides the first weights and the order of the batches. Train with $n$ seeds and each
# model has $n$ losses; their mean and standard deviation are
#
# $$\bar x = \frac 1n \sum x_i \qquad s = \sqrt{\frac{1}{n - 1} \sum (x_i - \bar x)^2}$$
#
# **Differences in pairs.** Two models that were trained with the same seed have read the same batches: what was hard
# for one was hard for the other. Subtract seed by seed, and that part of the luck is gone. Of the $n$ differences
# $d_i$ ask how far their mean may be off. Student (1908) has the answer, with a factor $t$ that is large where $n$ is
# small:
#
# $$\bar d \pm t_{n-1} \frac{s_d}{\sqrt n}$$

# %%
STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 8: 2.365, 10: 2.262}  # t for 95 %, by n


def interval(differences):
    """The mean of the differences, and how far it may be off: 95 of 100 such intervals hold the truth."""
    n = len(differences)
    return statistics.fmean(differences), STUDENT[n] * statistics.stdev(differences) / math.sqrt(n)


generator = torch.Generator().manual_seed(0)
batches = torch.randn(5, generator=generator) * 0.03  # what each seed's batches do to both models
ours = 2.00 + batches + 0.004 * torch.randn(5, generator=generator)
theirs = 2.02 + batches + 0.004 * torch.randn(5, generator=generator)
mean, off = interval((theirs - ours).tolist())
figure, (left, right) = plt.subplots(1, 2, figsize=(8, 2.6), layout="constrained")
for a, b in zip(ours, theirs, strict=True):
    left.plot([0, 1], [a, b], "o-", color="#2f7fc1", linewidth=0.8)
left.set(xticks=[0, 1], xticklabels=["ours", "theirs"], ylabel="loss", title="each line is a seed", xlim=(-0.3, 1.3))
right.errorbar([0], [mean], [off], fmt="o", capsize=6)
right.plot([0.15] * 5, theirs - ours, "x", color="grey")
right.axhline(0, color="firebrick", linewidth=0.8)
right.set(xticks=[], xlim=(-0.5, 0.6), title="the differences, and their mean", ylabel="theirs - ours")
plt.show()
print(f"means apart by {mean:.3f}; each spreads by {ours.std():.3f}; in pairs it is {mean:.3f} ± {off:.3f}")

# %% [markdown]
# The clouds overlap, and yet every seed says the same. Pairs see what two means with their spreads hide.
#
# ## Check it
#
# The deviation is torch's. And does the interval keep its promise? Invent a true difference, draw three seeds again
# and again, and count how often the interval holds it.

# %%
close(torch.tensor(statistics.stdev(ours.tolist())), ours.std())

truth, trials = 0.02, 4000
for n in (3, 5, 10):
    draws = truth + 0.01 * torch.randn(trials, n, generator=generator)
    off = STUDENT[n] * draws.std(1) / math.sqrt(n)
    naive = 1.96 * draws.std(1) / math.sqrt(n)
    inside = [((draws.mean(1) - truth).abs() < width).float().mean().item() for width in (off, naive)]
    print(f"{n:2} seeds: Student's interval holds the truth in {inside[0]:.1%}, with 1.96 for t in {inside[1]:.1%}")
    assert abs(inside[0] - 0.95) < 0.015

# %% [markdown]
# With three seeds, the usual 1.96 is wrong nearly one time in five.
#
# The size: the package finds shapes within 2 % of a budget (`Config.sized`). The operations: torch counts them as
# they run; for a plain recurrent model they are two for each matrix entry, the embedding's row once more for the
# read-out.

# %%
for name in ("rnn", "lstm", "gru", "cnn", "gpt"):
    config = MODELS[name].Config.sized(BUDGET, V, 64)
    model = MODELS[name](config)
    count = sum(p.numel() for p in model.parameters())
    print(f"{name:5} {count:7,} parameters, {flops_per_token(model, 64):9,.0f} operations a token")
    assert abs(count - BUDGET) <= 0.02 * BUDGET

recurrent = RNN(RNNConfig(vocab_size=V, dim=32, hidden_dim=48, depth=2))
entries = sum(p.numel() for p in recurrent.parameters() if p.ndim == 2)  # the embedding among them, for the read-out
assert flops_per_token(recurrent, 64) == 2 * entries

# %% [markdown]
# ## Overfit one batch
#
# Before a comparison, each of the models must be sound by itself. All of a size, one batch:

# %%
NAMES = ("rnn", "cnn", "gpt")


def batch_loss(model, rows):
    return F.cross_entropy(model.readout(model(rows[:, :-1])[0]).flatten(0, 1), rows[:, 1:].flatten())


def learn(model, give, steps=60, lr=5e-3):
    optimizer, losses = torch.optim.AdamW(model.parameters(), lr=lr), []
    for step in range(steps):
        loss = batch_loss(model, give(step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def of_size(name, seed=0, count=BUDGET):
    torch.manual_seed(seed)
    return MODELS[name](MODELS[name].Config.sized(count, V, 64))


one_batch = data[: 8 * 65].view(8, 65)
plt.figure(figsize=(6, 2.4), layout="constrained")
for name in NAMES:
    losses = learn(of_size(name), lambda step: one_batch, steps=100)
    plt.semilogy(losses, label=name)
    assert losses[-1] < 1
plt.xlabel("step")
plt.ylabel("loss, nats")
plt.legend()
plt.show()

# %% [markdown]
# ## Look inside
#
# A whole comparison, as `scratchlm compare` runs it: 85,000 parameters each, the same 76,800 characters, three
# seeds. The bigram is there as a floor: a table of what follows what.

# %%
folder = Path(tempfile.mkdtemp())
(folder / "text.txt").write_text(text, encoding="utf-8")
request = Request(
    architectures=(*NAMES, "bigram"), data=str(folder / "text.txt"), budget=parse_budget("params=85k,tokens=76800"),
    seeds=3, seed=1, batch_size=8, window=64, device="cpu",
)  # fmt: skip
comparison = prepare(request, folder / "compared")
*_, last = compare(comparison)
assert isinstance(last, Compared)
results = last.results
rows = {row["architecture"]: row for row in results["rows"]}
for line in table(results).splitlines():
    print(" | ".join(cell.strip() for cell in line.split("|")[1:6]))

# %%
curves = {
    name: [[(point["tokens"] / 1e3, point["nats_per_token"]) for point in run["curve"]] for run in (row, *row["runs"])]
    for name, row in rows.items()
}
comparison_figure(curves, "tokens read (thousands)")

# %% [markdown]
# Thick lines are means, thin ones the seeds. Are the differences more than luck? Each pair of models, seed by seed:

# %%
pairs = list(itertools.combinations([name for name in rows if name != "bigram"], 2))
plt.figure(figsize=(6, 2.4), layout="constrained")
for place, (better, worse) in enumerate(pairs):
    apart = differences(rows[better], rows[worse])
    mean, off = interval(apart)
    plt.errorbar([mean], [place], xerr=[off], fmt="o", capsize=5, color="#2f7fc1")
    plt.plot(apart, [place + 0.2] * 3, "x", color="grey")
    verdict = "more than luck" if mean > off else "may be luck"
    print(f"{worse} - {better}: {mean:+.3f} ± {off:.3f} nats ({verdict})")
plt.axvline(0, color="firebrick", linewidth=0.8)
plt.yticks(range(len(pairs)), [f"{worse} - {better}" for better, worse in pairs])
plt.ylim(-0.5, len(pairs) - 0.3)
plt.xlabel("nats per character")
plt.show()

# %% [markdown]
# What this shows, and no more: at this size, after this little text, at these rates. Look where the floor is: a model
# above it has learned less than a table of pairs. The curves still fall, and curves cross.

# %% [markdown]
# ## Break it
#
# Five ways to be fooled. In each the losses fall as they should, and the conclusion is wrong.
#
# **1. The winner cheats.** A convolution padded on both sides sees a little of its future. It has as many parameters,
# reads the same text, and wins by far.


# %%
class Symmetric(CausalConvolution):
    """nn.Conv1d(padding="same")."""

    def forward(self, x, memory=None):
        ahead = self.reach // 2
        y, memory = super().forward(F.pad(x, (0, 0, 0, ahead)), memory)
        return y[:, ahead:], memory[:, : self.reach]


def symmetric(model):
    for block in model.blocks:
        block.convolution.__class__ = Symmetric
    return model


def some_rows(step):
    starts = torch.randint(len(data) - 65, (16,), generator=torch.Generator().manual_seed(step))
    return data[starts[:, None] + torch.arange(65)]


contest = {name: learn(of_size(name), some_rows) for name in NAMES}
contest["cnn, padded on both sides"] = learn(symmetric(of_size("cnn")), some_rows)
plt.figure(figsize=(6, 2.6), layout="constrained")
for name, losses in contest.items():
    plt.plot(losses, label=name)
plt.xlabel("step")
plt.ylabel("loss, nats")
plt.legend(fontsize=8)
plt.show()


def tiny_cnn():
    torch.manual_seed(0)
    return CNN(CNNConfig.tiny()).double().eval()


caught_by = contract.failed(lambda: symmetric(tiny_cnn()))
print("caught by:", ", ".join(caught_by))
assert min(contest, key=lambda name: contest[name][-1]) == "cnn, padded on both sides"
assert "causal" in caught_by
assert not contract.failed(tiny_cnn)

# %% [markdown]
# No table of results can show it. The check **causal** of the contract suite does, without any training.
#
# **2. One seed.** Take two models that are the same in truth, each with a spread of 0.01. With one seed each, how far
# apart do they seem? And if the better of five seeds of "ours" is shown beside one of "theirs"?

# %%
spread, trials = 0.01, 20_000
one_each = spread * (torch.randn(trials, generator=generator) - torch.randn(trials, generator=generator))
best_of_five = spread * (torch.randn(trials, generator=generator) - torch.randn(trials, 5, generator=generator).amin(1))
in_pairs = spread * (torch.randn(trials, 5, generator=generator) - torch.randn(trials, 5, generator=generator))
plt.figure(figsize=(6, 2.4), layout="constrained")
plt.hist(one_each, 80, histtype="step", label="one seed each")
plt.hist(best_of_five, 80, histtype="step", label="our best of five against one")
plt.hist(in_pairs.mean(1), 80, histtype="step", label="means of five")
plt.axvline(0, color="grey", linewidth=0.8)
plt.xlabel("theirs - ours, where the truth is 0")
plt.legend(fontsize=8)
plt.show()
won = (best_of_five > 0).float().mean().item()
claimed = (in_pairs.mean(1) > STUDENT[5] * in_pairs.std(1) / math.sqrt(5)).float().mean().item()
print(f"one seed each: typically {one_each.abs().mean():.3f} apart")
print(f"best of five against one: ours 'wins' {won:.0%} of the time, by {best_of_five.mean():.3f} on average")
print(f"five in pairs, and a claim only where the interval excludes 0: a false win {claimed:.1%} of the time")
assert abs(won - 5 / 6) < 0.02
assert claimed < 0.04

# %% [markdown]
# What catches it: as many seeds for each, means for each, and the interval of the differences. The same holds for
# whatever one chooses the best of: learning rates, checkpoints, stopping points. Choose on the validation text, then
# look at the test text once. `scratchlm compare` touches it once, at the end.
#
# **3. Another tokenizer.** A loss per token, with tokens of different lengths. Count how frequent each token is, the
# simplest language model there is, once for characters and once for a byte-pair encoding.

# %%
pieces = scratchlm.tokenizers.BPETokenizer.train([text], vocab_size=1000)
size = len(text.encode())
said = {}
for name, of in (("characters", tokenizer), ("byte pairs", pieces)):
    counts = torch.tensor(of.encode(text)).bincount().double()
    frequency = counts[counts > 0] / counts.sum()
    nats = -(frequency * frequency.log()).sum().item()
    said[name] = nats, bits_per_byte(nats, int(counts.sum()), size)
    long = size / counts.sum()
    print(f"{name}: {long:.2f} bytes a token, {nats:.3f} nats per token, {said[name][1]:.3f} bits per byte")
assert said["characters"][0] < said["byte pairs"][0]
assert said["characters"][1] > said["byte pairs"][1]

# %% [markdown]
# Per token the characters are ahead by far; per byte it is the other way round. What catches it: the unit. The
# package says both, and computes bits per byte from the same sum:

# %%
best_row = results["rows"][0]["runs"][0]["validation"]
by_hand = bits_per_byte(best_row["nats_per_token"], best_row["tokens"], best_row["bytes"])
assert abs(by_hand - best_row["bits_per_byte"]) < 1e-9
print(f"{best_row['nats_per_token']:.4f} nats per token = {by_hand:.4f} bits per byte")

# %% [markdown]
# **4. Another way to score.** The same weights, scored in windows of several lengths. In short windows many tokens
# are predicted with little before them.

# %%
folder_of_seed, windows, scores = comparison.with_seed(1).folder, (8, 16, 32, 64), {}
for name in NAMES:
    model, own = scratchlm.load(folder_of_seed / name)
    validation, lengths = scratchlm.RunFolder(folder_of_seed / name).splits()["validation"], own.token_lengths()
    scores[name] = [scratchlm.evaluate(model, validation, lengths, window).nats_per_token for window in windows]
    print(f"{name:4}", ", ".join(f"{loss:.3f} in {window}" for window, loss in zip(windows, scores[name], strict=True)))
plt.figure(figsize=(5, 2.4), layout="constrained")
for name, losses in scores.items():
    plt.plot(windows, losses, "o-", label=name)
plt.xlabel("window of the evaluation, tokens")
plt.ylabel("nats per character")
plt.legend()
plt.show()
spread_of_windows = max(losses[0] - losses[-1] for losses in scores.values())
assert spread_of_windows > 0.01

# %% [markdown]
# One model, four losses. What catches it: the definition. Here a validation loss is always that of back-to-back
# windows of the window of training, every target once, no state carried; whatever else is written has a name of its
# own.
#
# **5. Unequal care.** One model at a rate that was searched for, the other at the first that came to mind. Here both
# are the *same* model.

# %%
rates = (3e-4, 1e-3, 3e-3, 1e-2)
ends = [statistics.fmean(learn(of_size("cnn"), some_rows, steps=80, lr=rate)[-10:]) for rate in rates]
plt.figure(figsize=(5, 2.4), layout="constrained")
plt.semilogx(rates, ends, "o-")
plt.xlabel("learning rate")
plt.ylabel("loss at the end")
plt.show()
print(f"the same model at the best and the worst of four rates: {max(ends) - min(ends):.2f} nats apart")
assert max(ends) - min(ends) > 0.3

# %% [markdown]
# What catches it: giving each model the same search. `scratchlm compare --sweep` tries three rates of each, for a
# tenth of the steps.

# %% [markdown]
# ## Exercises
#
# The answers are in the hidden cells. Write your own into the empty cell below each: it takes the answer's place, and
# the last cell checks it.
#
# **1.** A model has 1.5 nats per token with tokens of 3.2 bytes on average. Another has 0.65 nats per byte. Which one
# predicts the text better? Set `better` to 1 or 2.

# %% cellView="form" jupyter={"source_hidden": true}
# @title Answer 1
better = 1  # 1.5 / 3.2 = 0.469 nats per byte

# %%
# your own `better`

# %%
assert better == 1 + (1.5 / 3.2 > 0.65)
print("right")

# %% [markdown]
# **2.** The differences of a pair of models spread by $s = 0.01$ nats. How many seeds does it take until the interval
# is no wider than ± 0.009? Set `seeds` to one of 2, 3, 4, 5, 6, 8, 10.

# %% cellView="form" jupyter={"source_hidden": true}
# @title Answer 2
seeds = 8  # 2.365 * 0.01 / sqrt(8) = 0.0084; with 6 seeds it is 0.0105

# %%
# your own `seeds`

# %%
assert STUDENT[seeds] * 0.01 / math.sqrt(seeds) <= 0.009
assert all(STUDENT[n] * 0.01 / math.sqrt(n) > 0.009 for n in STUDENT if n < seeds)
print(f"{seeds} seeds: right")

# %% [markdown]
# **3.** Without any formula for the spread: if two models are equal in truth, each difference is as often above 0 as
# below. How probable is it that all of $n$ differences have the same sign by luck? Write `by_luck(n)`. With how few
# seeds is that below 5 %?

# %% cellView="form" jupyter={"source_hidden": true}
# @title Answer 3


def by_luck(n):
    return 2 * 0.5**n  # all above, or all below; below 5 % from six seeds on


# %%
# your own `by_luck`

# %%
signs = torch.randn(200_000, 4, generator=generator) > 0
found = (signs.all(1) | ~signs.any(1)).float().mean().item()
assert abs(by_luck(4) - found) < 0.005
assert by_luck(6) < 0.05 < by_luck(5)
print(f"four of four: {by_luck(4):.1%}: right")
