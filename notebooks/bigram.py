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
# # Bigram
#
# [Open in Colab](https://colab.research.google.com/github/OWNER/scratchlm/blob/main/notebooks/bigram.ipynb)
#
# A bigram model looks at one token and says what comes next: it is a table, and the smallest language model there is.
# Shannon built one of English letters in 1948, by hand ("A Mathematical Theory of Communication", section 3). Nothing
# here is deep, and everything comes back in the larger models: a probability for each next token, the loss in nats,
# its gradient, sampling, and the ways in which training goes wrong in silence.

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
from matplotlib.colors import PowerNorm
from torch import nn

import contract  # the checks that every architecture must pass: tests/contract.py
import scratchlm
from scratchlm.data import corpora
from scratchlm.models.bigram import Bigram, BigramConfig

torch.manual_seed(0)
text = corpora.get("shakespeare-tiny")
tokenizer = scratchlm.tokenizers.CharacterTokenizer.train([text])
data = torch.tensor(tokenizer.encode(text))
V = tokenizer.vocab_size
print(f"{len(data):,} characters, V = {V} different ones")
print(text[:120])

# %% [markdown]
# ## Build it
#
# **Count.** How often does each character follow each other one? Two neighbours are one pair:
#
# $$C_{ab} = \#\{t : \text{token}_t = a,\ \text{token}_{t+1} = b\}$$
#
# A pair is a number between 0 and $V^2$, so counting is one call.

# %%
pairs = data[:-1] * V + data[1:]
counts = torch.bincount(pairs, minlength=V * V).view(V, V)
print("counts", tuple(counts.shape), "= (V, V), in all", f"{counts.sum():,}")

# %% [markdown]
# **Divide.** Of all the times that $a$ was read, in which share did $b$ come next?
#
# $$P(b \mid a) = \frac{C_{ab}}{\sum_c C_{ac}}$$
#
# Row = the character that was read, column = the one that comes next. After `q` comes `u`, after `v` and `z` mostly
# `e`, after a comma a space, after a full stop a line end.

# %%
probabilities = counts.double() / counts.sum(1, keepdim=True)
letters = "abcdefghijklmnopqrstuvwxyz .,\n"
shown = torch.tensor([tokenizer.encode(c)[0] for c in letters])
names = [c.replace(" ", "·").replace("\n", "↵") for c in letters]
plt.figure(figsize=(6.4, 5.4), layout="constrained")
plt.imshow(probabilities[shown][:, shown], cmap="Blues", norm=PowerNorm(0.5, 0, 1))  # else the small ones look white
plt.xticks(range(len(names)), names)
plt.yticks(range(len(names)), names)
plt.xlabel("next")
plt.ylabel("read")
plt.colorbar(label="probability")
plt.show()

# %% [markdown]
# **Write.** Look up the row of the last character, draw the next one, go on from there. It can nearly be pronounced.


# %%
def write(probabilities, length=160, seed=0):
    generator = torch.Generator().manual_seed(seed)
    ids = tokenizer.encode("\n")
    for _ in range(length):
        ids.append(torch.multinomial(probabilities[ids[-1]], 1, generator=generator).item())
    return tokenizer.decode(ids)


print(write(probabilities))

# %% [markdown]
# **Score.** How good is a model that gives probabilities? It should give a high one to what really comes. The loss is
# the mean of the negative logarithm, in nats. Exponentiated it is the perplexity: among how many equally probable
# characters the model seems to choose.
#
# $$\text{loss} = -\frac1N\sum_t \log P(\text{token}_{t+1} \mid \text{token}_t) \qquad
# \text{perplexity} = e^{\text{loss}}$$

# %%
surprise = -probabilities[data[:-1], data[1:]].log()
counted_loss = surprise.mean().item()
print(f"guessing       {math.log(V):.3f} nats, perplexity {V}")
print(f"counted bigram {counted_loss:.3f} nats, perplexity {math.exp(counted_loss):.1f}")

# %% [markdown]
# **Train.** Counting works for a table and for nothing larger. So forget the counts and *learn* the table: a row of
# numbers, the logits, becomes probabilities by the softmax.
#
# $$P(b \mid a) = \frac{e^{\ell_{ab}}}{\sum_c e^{\ell_{ac}}}$$
#
# Its gradient is the most useful formula of the field. What the model said, less what came:
#
# $$\frac{\partial\,\text{loss}}{\partial\,\ell_t} = \frac1N\,(P_t - \text{onehot}(\text{target}_t))$$

# %%
inputs, targets = data[:-1][:1000], data[1:][:1000]
table = torch.randn(V, V, requires_grad=True)
logits = table[inputs]  # (N, V): a look-up, one row for each token
said = logits.softmax(-1)
loss = -said[torch.arange(1000), targets].log().mean()
gradient = (said - F.one_hot(targets, V)) / 1000
print("logits", tuple(logits.shape), f"loss {loss:.3f}")

# %% [markdown]
# ## Check it
#
# The loss and the gradient by hand against torch's.

# %%
torch.testing.assert_close(loss, nn.CrossEntropyLoss()(logits, targets))
(theirs,) = torch.autograd.grad(nn.CrossEntropyLoss()(logits, targets), logits)
torch.testing.assert_close(gradient.detach(), theirs)
print("loss and gradient equal torch's")

# %% [markdown]
# Then the package's `Bigram` with the counted table as its weights. The logarithms of probabilities are logits: their
# softmax is the probabilities again. It must have the loss that we have computed, over all of the text.

# %%
model = Bigram(BigramConfig(vocab_size=V)).double()
with torch.no_grad():
    model.blocks[0].weight.copy_(probabilities.clamp(min=1e-300).log())
    features, _ = model(data[None, :-1])
    theirs = F.cross_entropy(model.readout(features)[0], data[1:])
assert abs(theirs.item() - counted_loss) < 1e-9
print(f"the package's model with our table: {theirs:.6f} nats, ours: {counted_loss:.6f}")

# %% [markdown]
# ## Overfit one batch
#
# A good first test of any model is to let it learn one batch by heart. Can a bigram? Not to 0: in "to be or not to
# be", `o` is followed by a space and by `r`, and one look at `o` cannot tell which. The best that it can do is known,
# and it is what counting the batch gives. A test that knows where the loss must end is sharper than "it goes down".

# %%


def pair_counts(inputs, targets):
    return torch.bincount((inputs * V + targets).flatten(), minlength=V * V).view(V, V).double()


def floor(inputs, targets):
    """The least loss that a bigram can have on these pairs, in nats."""
    counted = pair_counts(inputs, targets)
    shares = counted / counted.sum(1, keepdim=True).clamp(min=1)
    return -(counted * shares.clamp(min=1e-300).log()).sum().item() / inputs.numel()


windows = data[1000 : 1000 + 8 * 33].view(8, 33)
inputs, targets = windows[:, :-1], windows[:, 1:]


def overfit(loss_of, steps=300):
    torch.manual_seed(0)
    model = Bigram(BigramConfig(vocab_size=V))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    losses = []
    for _ in range(steps):
        loss = loss_of(model)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return model, losses


def right_loss(model):
    features, _ = model(inputs)
    return F.cross_entropy(model.readout(features).flatten(0, 1), targets.flatten())


def curve(losses, label=None, **options):
    plt.plot(losses, label=label, **options)
    plt.xlabel("step")
    plt.ylabel("loss, nats")


_, losses = overfit(right_loss)
least = floor(inputs, targets)
plt.figure(figsize=(5, 2.6), layout="constrained")
curve(losses)
plt.axhline(least, color="grey", linestyle=":", label=f"the least possible, {least:.3f}")
plt.legend()
plt.show()
print(f"from {losses[0]:.3f} to {losses[-1]:.3f}; the least is {least:.3f}")
assert least < losses[-1] < least + 0.02

# %% [markdown]
# ## Look inside
#
# Now on the whole text, with the package's own trainer. It takes seconds.

# %%
run, _ = scratchlm.create_run(
    {
        "arch": "bigram", "data": "shakespeare-tiny", "device": "cpu",
        "steps": 1000, "batch_size": 32, "window": 128, "eval_every": 250,
        "optim": {"lr": 0.1, "min_lr": 0.01, "warmup": 0, "weight_decay": 0.0},
    },
    Path(tempfile.mkdtemp()) / "bigram",
)  # fmt: skip
for _ in scratchlm.train(run):
    pass
lines = run.metrics()
model, tokenizer = scratchlm.load(run.path)
print(f"counted {counted_loss:.3f}, trained {lines[-1]['val_loss']:.3f} (validation), nats per character")

plt.figure(figsize=(5, 2.6), layout="constrained")
plt.plot([line["step"] for line in lines], [line["loss"] for line in lines])
plt.axhline(counted_loss, color="grey", linestyle=":", label="counted")
plt.xlabel("step")
plt.ylabel("loss, nats")
plt.legend()
plt.show()

# %% [markdown]
# **Has it found the counts?** Each dot is a pair, the larger the more frequent. On the diagonal, training and counting
# agree. They differ where there is little to count: a pair that hardly ever comes hardly ever gives a gradient.

# %%
learned = model.blocks[0].weight.detach().double().softmax(-1)
often = counts.sum(1) > 0
plt.figure(figsize=(4.6, 4.2), layout="constrained")
x, y, size = (each[often].flatten() for each in (probabilities, learned, counts / counts.max()))
plt.scatter(x.clamp(min=1e-6), y, s=2 + 300 * size, alpha=0.3)
plt.plot([1e-6, 1], [1e-6, 1], color="grey", linestyle=":")
plt.loglog()
plt.xlabel("counted probability (never: at the left edge)")
plt.ylabel("learned probability")
plt.show()

# %% [markdown]
# **Where is it surprised?** It knows that `h` follows `t` and `u` follows `q`; it knows nothing of words.

# %%
line = "ROMEO:\nWhat light through yonder window breaks?"
ids = torch.tensor([tokenizer.encode(line)])
with torch.no_grad():
    log_probabilities = model.readout(model(ids)[0]).log_softmax(-1)[0]
nats = -log_probabilities[:-1].gather(-1, ids[0, 1:, None])[:, 0]
plt.figure(figsize=(10, 2.4), layout="constrained")
plt.bar(range(len(nats)), nats, color=plt.cm.Blues(0.3 + 0.7 * nats / nats.max()))
plt.xticks(range(len(nats)), [c.replace(" ", "·").replace("\n", "↵") for c in line[1:]])
plt.ylabel("surprise, nats")
plt.show()

# %% [markdown]
# **Temperature.** Logits divided by a temperature below 1 make the probable more probable. Near 0 the model always
# says the most probable, and a bigram soon goes in circles.

# %%
for temperature in (0.1, 0.5, 1.0, 2.0):
    rows = scratchlm.generate(model, [tokenizer.encode("T")], 70, temperature=temperature, seed=3)
    print(f"{temperature:<4}{tokenizer.decode(rows[0])!r}")

# %% [markdown]
# ## Break it
#
# Four bugs of training loops. The loss falls in each, and a table of characters that writes gibberish hides them well.
# We train as above, on the one batch whose least loss we know.

# %%
broken = {}


def tiny_bigram():
    torch.manual_seed(0)
    return Bigram(BigramConfig.tiny()).double().eval()


print("the right model fails:", contract.failed(tiny_bigram) or "no check")

# %% [markdown]
# **Bug 1: the model reads its target.** Somewhere the tokens were moved the wrong way, so the table's row is that of
# the *next* token.

# %%


def reads_ahead(model):
    right = type(model).forward
    model.forward = lambda tokens, state=None: right(model, tokens.roll(-1, 1), state)
    return model


broken["reads its target"] = overfit(lambda model: right_loss(reads_ahead(model)))[1]
print(f"loss {broken['reads its target'][-1]:.3f}, and the least possible is {least:.3f}")
caught_by = contract.failed(lambda: reads_ahead(tiny_bigram()))
print("caught by:", caught_by)
assert "causal" in caught_by

# %% [markdown]
# A loss below the least possible: there is no better alarm, but only a bigram tells you the least. The contract's
# check **causal** works for any model: change the later tokens, and no earlier feature may move.
#
# **Bug 2: targets that are not moved.** `targets = inputs`. The model learns to repeat what it has read. No check of
# the *model* can see this, since the model is right; the batch is wrong.

# %%


def unmoved_loss(model):
    features, _ = model(inputs)
    return F.cross_entropy(model.readout(features).flatten(0, 1), inputs.flatten())  # right: targets


parrot, broken["targets not moved"] = overfit(unmoved_loss)
print(f"loss {broken['targets not moved'][-1]:.3f}")
print(repr(tokenizer.decode(scratchlm.generate(parrot, [tokenizer.encode("The")], 20, seed=1)[0])))


def targets_are_the_next_tokens(inputs, targets):
    return torch.equal(targets[:, :-1], inputs[:, 1:]) and not torch.equal(targets, inputs)


assert targets_are_the_next_tokens(inputs, targets)
assert not targets_are_the_next_tokens(inputs, inputs), "caught by looking at the batch"
print("caught by looking at the batch")

# %% [markdown]
# **Bug 3: softmax before the loss.** `cross_entropy` takes logits. Given probabilities it takes the softmax of
# numbers between 0 and 1, in which nothing can be much more probable than anything else.

# %%


def softmaxed(model):
    model.readout = lambda features: features.softmax(-1)  # right: features
    return model


broken["softmax twice"] = overfit(lambda model: right_loss(softmaxed(model)))[1]
print(f"loss {broken['softmax twice'][-1]:.3f}, and it could be {least:.3f}")
caught_by = contract.failed(lambda: softmaxed(tiny_bigram()))
print("caught by:", caught_by)
assert "learns" in caught_by

# %% [markdown]
# The check **learns** wants half of the first loss on one batch, which is out of reach here.
#
# **Bug 4: `view` where `transpose` is meant.** `cross_entropy` also takes (B, V, T). The logits are (B, T, V), and
# both of these have the right shape:

# %%


def viewed_loss(model):
    features, _ = model(inputs)
    batch, length, size = features.shape
    return F.cross_entropy(features.view(batch, size, length), targets)  # right: features.transpose(1, 2)


broken["view for transpose"] = overfit(viewed_loss)[1]
print(f"loss {broken['view for transpose'][-1]:.3f}, and it could be {least:.3f}")

ways = [right_loss, lambda model: F.cross_entropy(model(inputs)[0].transpose(1, 2), targets), viewed_loss]
model = Bigram(BigramConfig(vocab_size=V))
nn.init.normal_(model.blocks[0].weight)
values = [one(model).item() for one in ways]
print("flattened {:.4f}, transposed {:.4f}, viewed {:.4f}".format(*values))
assert abs(values[0] - values[1]) < 1e-6 < abs(values[0] - values[2]), "caught by computing it in two ways"

# %% [markdown]
# Each target is compared with logits of other positions, so all that can be learned is how frequent each character is.
# Computing the loss in a second way catches it; so does knowing where an overfitted batch must end. All curves:

# %%
figure, panels = plt.subplots(1, 4, figsize=(12, 2.8), sharey=True, layout="constrained")
for panel, (name, one) in zip(panels, broken.items(), strict=True):
    panel.plot(losses, color="grey", label="right")
    panel.plot(one, color="crimson", label="broken")
    panel.axhline(least, color="grey", linestyle=":")
    panel.set(title=name, xlabel="step")
panels[0].set_ylabel("loss, nats")
panels[0].legend()
plt.show()
assert all(one[-1] < one[0] - 0.3 for one in broken.values()), "every one of them falls"

# %% [markdown]
# ## Exercises
#
# The answers are in the hidden cells. Write your own into the empty cell below each: it takes the answer's place, and
# the last cell checks it.
#
# **1.** A pair that was never counted has probability 0, and one such pair in a new text makes the loss infinite; the
# row of a character that was never read is 0/0. Write
# `smoothed(counts, alpha)`: probabilities as if each pair had been seen `alpha` times more.

# %% cellView="form" jupyter={"source_hidden": true}
# @title Answer 1


def smoothed(counts, alpha):
    return (counts + alpha) / (counts + alpha).sum(1, keepdim=True)


# %%
# your own `smoothed`

# %%
seen, unseen = data[: len(data) // 2], data[len(data) // 2 :]
half = pair_counts(seen[:-1], seen[1:])
for alpha in (0, 0.1, 1, 10, 1000):
    print(f"alpha {alpha:<6} loss on unseen text {-smoothed(half, alpha)[unseen[:-1], unseen[1:]].log().mean():.3f}")
assert not math.isfinite(-smoothed(half, 0)[unseen[:-1], unseen[1:]].log().mean())
assert torch.allclose(smoothed(half, 1).sum(1), torch.ones(V).double())
assert -smoothed(half, 1)[unseen[:-1], unseen[1:]].log().mean() < 2.6
print("right")

# %% [markdown]
# **2.** A trigram looks at two characters. Write `trigram_floor(data)`: the least loss that any trigram can have on a
# text, in nats, as `floor` has it for bigrams. (Two characters are one number below $V^2$.)

# %% cellView="form" jupyter={"source_hidden": true}
# @title Answer 2


def trigram_floor(data):
    before, after = data[:-2] * V + data[1:-1], data[2:]
    counted = torch.bincount(before * V + after, minlength=V**3).view(V * V, V).double()
    shares = counted / counted.sum(1, keepdim=True).clamp(min=1)
    return -(counted * shares.clamp(min=1e-300).log()).sum().item() / len(after)


# %%
# your own `trigram_floor`

# %%
assert trigram_floor(data) < floor(data[:-1], data[1:]) - 0.4
assert trigram_floor(torch.tensor(tokenizer.encode("aab" * 9))) < 1e-9, "two characters decide the third one here"
print(f"bigram {floor(data[:-1], data[1:]):.3f}, trigram {trigram_floor(data):.3f} nats: right")

# %% [markdown]
# **3.** Nats per token depend on what a token is. Write `bits_per_byte(nats, tokens, size)`, which does not: the same
# loss in bits, for each of the `size` bytes of the text.

# %% cellView="form" jupyter={"source_hidden": true}
# @title Answer 3


def bits_per_byte(nats, tokens, size):
    return nats * tokens / size / math.log(2)


# %%
# your own `bits_per_byte`

# %%
validation = run.splits()["validation"]
score = scratchlm.evaluate(scratchlm.load(run.path)[0], validation, tokenizer.token_lengths(), window=128)
assert abs(bits_per_byte(score.nats_per_token, score.tokens, score.bytes) - score.bits_per_byte) < 1e-12
print(f"{score.nats_per_token:.3f} nats per token, {score.bits_per_byte:.3f} bits per byte: right")
