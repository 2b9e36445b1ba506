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
# # Backpack: words with senses
#
# [Open in Colab](https://colab.research.google.com/github/OWNER/scratchlm/blob/main/notebooks/backpack.ipynb)
#
# A Backpack gives each word several vectors, its senses. They depend on the word alone. A prediction is a weighted
# sum of the senses of the words so far, and the context only decides the weights. So a prediction can be taken apart,
# exactly, and turned like a radio: the network never mixes senses with anything but weights. The paper is "Backpack
# Language Models" (Hewitt et al. 2023). Here you build the sum, check it, look into the senses of a model that you
# train, and turn them.

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
from scratchlm.inspect import senses as looking
from scratchlm.models import backpack as package
from scratchlm.models.backpack import Backpack, BackpackConfig
from scratchlm.steering import steer

torch.manual_seed(0)
close = torch.testing.assert_close

# %% [markdown]
# ## Build it
#
# Letters in shapes: **B** rows, **T** tokens, **D** width, **L** senses, **K** width of a sense's key, **V** tokens
# in the vocabulary.
#
# **Senses.** A network of two matrices turns the vector of a word into L vectors. It sees nothing but that word:
#
# $$C(x) = W_2\, \mathrm{gelu}(W_1 E_x) \quad\text{cut into}\quad C(x)_1, \ldots, C(x)_L$$

# %%
V, T, D, L = 10, 6, 12, 3
K = D // L
E = torch.randn(V, D)
W_1, W_2 = torch.randn(4 * D, D) / D**0.5, torch.randn(L * D, 4 * D) / D**0.5

tokens = torch.tensor([3, 1, 4, 1, 5, 9])
C = (F.gelu(E[tokens] @ W_1.T) @ W_2.T).view(T, L, D)
print("C", tuple(C.shape), "= (T, L, D)")
close(C[1], C[3])
print("token 1 stands at positions 1 and 3, and has the same senses at both")

# %% [markdown]
# **Weights.** Some network reads the words from left to right (a GPT, but any would do) and gives a vector $h_i$ at
# each position. From these come, for each sense, a query and a key, and a softmax over the words so far:
#
# $$\alpha_{l,i,j} = \frac{e^{q_{l,i} \cdot k_{l,j} / \sqrt K}}
# {\sum_{m \le i} e^{q_{l,i} \cdot k_{l,m} / \sqrt K}} \quad (j \le i),
# \qquad 0 \quad (j > i)$$
#
# It is attention without values: the senses are the values.

# %%
h = torch.randn(T, D)
queries, keys = ((h @ (torch.randn(D, D) / D**0.5)).view(T, L, K).transpose(0, 1) for _ in range(2))


def weights_of(queries, keys):
    scores = queries @ keys.mT / math.sqrt(queries.shape[-1])
    future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    return scores.masked_fill(future, -math.inf).softmax(-1)


alpha = weights_of(queries, keys)
close(alpha.sum(-1), torch.ones(L, T))
print("alpha", tuple(alpha.shape), "= (L, T, T); each row sums to 1")
figure, panels = plt.subplots(1, L, figsize=(7, 2.4), layout="constrained")
for sense, panel in enumerate(panels):
    panel.imshow(alpha[sense], cmap="Blues", vmin=0, vmax=1)
    panel.set(title=f"alpha of sense {sense}", xlabel="word j", xticks=range(T), yticks=range(T))
panels[0].set_ylabel("position i")
plt.show()

# %% [markdown]
# **The sum.** That is all of the model; there is no layer after it:
#
# $$o_i = \sum_{j \le i} \sum_{l} \alpha_{l,i,j}\, C(x_j)_l \qquad \text{logits}_i = E\, o_i$$

# %%
o = torch.einsum("lij,jld->id", alpha, C)
logits = o @ E.T
print("o", tuple(o.shape), "= (T, D), logits", tuple(logits.shape), "= (T, V)")

# %% [markdown]
# **Taking it apart.** $E$ is a matrix and the rest is a sum, so it may be applied to each part. What sense $l$ of
# word $j$ pushes up and down is $E\, C(x_j)_l$, in any text; the context says how much of it:
#
# $$\text{logit}_i[v] = \sum_j \sum_l \alpha_{l,i,j}\, \big(E_v \cdot C(x_j)_l\big)$$

# %%
pushes = C @ E.T  # (T, L, V): what each sense does to each logit
parts = alpha[:, -1].T[..., None] * pushes  # (T, L, V): how much of that goes into the last prediction
close(parts.sum((0, 1)), logits[-1])

winner = int(logits[-1].argmax())
plt.figure(figsize=(4.5, 2.6), layout="constrained")
most = parts[..., winner].abs().max()
plt.imshow(parts[..., winner].T, cmap="RdBu", vmin=-most, vmax=most)
plt.xticks(range(T), tokens.tolist())
plt.yticks(range(L))
plt.xlabel("word")
plt.ylabel("sense")
plt.colorbar(label="added to the logit")
plt.title(f"why token {winner}: {T * L} numbers that sum to {logits[-1, winner]:.2f}", size=10)
plt.show()

# %% [markdown]
# A GPT's logits cannot be taken apart like this: there each word's vector has been through many layers with all the
# others.
#
# ## Check it
#
# First against torch. Its fused attention gives $\alpha$ if the values are the identity, and the whole sum if they
# are the senses.

# %%
close(alpha, F.scaled_dot_product_attention(queries, keys, torch.eye(T).expand(L, T, T), is_causal=True))
close(o, F.scaled_dot_product_attention(queries, keys, C.transpose(0, 1), is_causal=True).sum(0))
print("alpha and the sum equal torch's")

# %% [markdown]
# Then against the package, with the same weights. Its network of senses has norms and a residual, as the paper's has:
#
# $$r = e + \mathrm{LN}(e) \qquad r' = r + \mathrm{FF}(\mathrm{LN}(r)) \qquad C = \mathrm{FF}'(\mathrm{LN}(r'))$$
#
# The trunk, which gives $h$, is the package's GPT; the [notebook on GPT](gpt.ipynb) builds that one.


# %%
def norm(x, layer):
    return F.layer_norm(x, x.shape[-1:], layer.weight, layer.bias)


def feed_forward(x, layer):
    return F.gelu(x @ layer.hidden.weight.T + layer.hidden.bias) @ layer.output.weight.T + layer.output.bias


def senses_of(e, network, count):
    r = e + norm(e, network.embedding_norm)
    r = r + feed_forward(norm(r, network.mlp_norm), network.mlp)
    return feed_forward(norm(r, network.senses_norm), network.senses_mlp).unflatten(-1, (count, -1))


def backpack(tokens, model):
    """(B, T) -> alpha (B, L, T, T), senses (B, T, L, D), logits (B, T, V)."""
    embedding, count = model.trunk.token_embedding.weight, model.config.senses
    hidden, _ = model.trunk(tokens)
    both = hidden @ model.contextualisation.query_key.weight.T + model.contextualisation.query_key.bias
    queries, keys = (part.unflatten(-1, (count, -1)).transpose(1, 2) for part in both.chunk(2, -1))
    alpha = weights_of(queries, keys)
    senses = senses_of(embedding[tokens], model.sense_network, count)
    return alpha, senses, torch.einsum("blij,bjld->bid", alpha, senses) @ embedding.T


shape = {"vocab_size": 23, "context": 24, "dim": 16, "depth": 2, "heads": 2, "senses": 4, "activation": "gelu"}
model = Backpack(BackpackConfig(**shape, dropout=0.0)).double().eval()
for parameter in model.parameters():
    nn.init.normal_(parameter, std=0.3)  # far from zeros and ones, so that every bias and every scale counts
rows = torch.randint(23, (3, 20))
close(backpack(rows, model)[2], model.readout(model(rows)[0]))
print("the same logits as scratchlm's Backpack")

# %% [markdown]
# ## Overfit one batch
#
# A text as tokens that are words and parts of words, or a sense would be a sense of a letter. We learn a byte-pair
# encoding of 1,000 tokens ([its own notebook](tokenizer.ipynb) tells how).

# %%
text = corpora.get("shakespeare-tiny")
tokenizer = scratchlm.tokenizers.BPETokenizer.train([text[:400_000]], vocab_size=1000)
V = tokenizer.vocab_size
data = torch.tensor(tokenizer.encode(text[:400_000]))
batch = data[: 8 * 25].view(8, 25)
print(V, "tokens;", [tokenizer.decode([token]) for token in batch[0, :14].tolist()])


def small_backpack(kind=Backpack):
    torch.manual_seed(1)
    shape = {"vocab_size": V, "context": 32, "dim": 32, "depth": 2, "heads": 4, "senses": 4, "activation": "gelu"}
    return kind(BackpackConfig(**shape, dropout=0.0))


def learn(model, windows, steps, lr=5e-3, logits_of=None):
    optimizer, losses = torch.optim.AdamW(model.parameters(), lr=lr), []
    for at in range(steps):
        window = windows[at % len(windows)]
        read = window[:, :-1]
        logits = model.readout(model(read)[0]) if logits_of is None else logits_of(read, model)
        loss = F.cross_entropy(logits.flatten(0, 1), window[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


losses = learn(small_backpack(), [batch], steps=250)
plt.figure(figsize=(5, 2.4), layout="constrained")
plt.plot(losses)
plt.axhline(math.log(V), color="grey", linestyle=":", label=f"guessing: ln {V} = {math.log(V):.2f}")
plt.xlabel("step")
plt.ylabel("loss, nats")
plt.legend()
plt.show()
print(f"from {losses[0]:.2f} to {losses[-1]:.3f}")
assert losses[-1] < 1

# %% [markdown]
# ## Look inside
#
# Now a Backpack of eight senses that has read a little.

# %%
folder = Path(tempfile.mkdtemp())
tokenizer.save(folder / "tokenizer.json")
run, _ = scratchlm.create_run(
    {
        "arch": "backpack", "data": "shakespeare-tiny", "device": "cpu", "tokenizer": str(folder / "tokenizer.json"),
        "steps": 500, "batch_size": 16, "eval_every": 500,
        "model": {"context": 64, "dim": 64, "depth": 2, "heads": 4, "senses": 8, "dropout": 0.0, "activation": "gelu"},
        "optim": {"lr": 5e-3, "min_lr": 5e-4, "warmup": 50, "beta2": 0.99},
    },
    folder / "backpack",
)  # fmt: skip
for _ in scratchlm.train(run):
    pass
lines = run.metrics()
plt.figure(figsize=(5, 2.4), layout="constrained")
plt.plot([line["step"] for line in lines], [line["loss"] for line in lines])
plt.xlabel("step")
plt.ylabel("loss, nats")
plt.show()
model, tokenizer = scratchlm.load(run.path)
print(f"validation: {lines[-1]['val_loss']:.2f} nats per token; guessing has {math.log(V):.2f}")

# %% [markdown]
# **What do the senses say?** For each sense of some words: the tokens that it pushes up most, and down most, wherever
# the word stands. Some speak clearly, some not at all; the model has read for half a minute.

# %%
words = ["king", "thou", "love"]
known = [tokenizer.encode(f" {word}") for word in words]
said = data.unique().tolist()  # bytes that no text has would only fill the lists
found = looking.look_up(model, known, said, top=6)
looking.senses_figure(words, found, lambda token: repr(tokenizer.decode([token]))[1:-1].replace(" ", "\u00b7"))

# %% [markdown]
# **Where does each sense look?** The share of its weight that lies on the newest word. A sense near 1 knows what
# follows a word, a table of pairs; one near 0 gathers what the text is about.

# %%
windows = torch.from_numpy(run.splits()["validation"].windows(torch.arange(32).numpy() * 64, 64))
with torch.no_grad(), scratchlm.record(model) as shown:
    model(windows)
alphas = shown["contextualisation.weights"][0]  # (B, L, T, T)
newest = alphas.diagonal(dim1=-2, dim2=-1)[..., 20:].mean((0, 2))  # from the 20th position on
plt.figure(figsize=(5, 2.2), layout="constrained")
plt.bar(range(8), newest)
plt.ylim(0, 1)
plt.xlabel("sense")
plt.ylabel("weight on the newest word")
plt.show()

# %% [markdown]
# **Why this word?** A prediction taken apart, as we did by hand above: what each sense of each word adds to one
# logit.

# %%
prompt = tokenizer.encode("Good my lord, I would that thou")
shown = looking.contributions(model, prompt, range(V))
labels = [tokenizer.decode([token]).replace(" ", "\u00b7") for token in prompt]
looking.contributions_figure(shown, labels, tokenizer.decode([shown.target]).replace(" ", "\u00b7"))

# %% [markdown]
# **Turn a sense.** Multiply sense $l$ of one word by a factor $f$. The weights stay, so the logits change by exactly
# what that sense pushes, and the change is known before it is made:
#
# $$\Delta\,\text{logits} = (f - 1) \sum_{j:\, x_j = w} \alpha_{l,i,j}\; E\, C(w)_l$$
#
# `steer` gives a model that does it. Take the sense of the last word that says most.

# %%
word = prompt[-1]
at = [place for place, token in enumerate(prompt) if token == word]
read = torch.tensor([prompt])
with torch.no_grad():
    alpha, senses, before = backpack(read, model)
    push = senses[0, -1] @ model.trunk.token_embedding.weight.T  # (L, V)
    amount = alpha[0, :, -1][:, at].sum(-1)  # (L,)
    sense = int((amount * push.std(-1)).argmax())
    for factor in (0.0, 0.5, 3.0):
        turned = steer(model, scales={(word, sense): factor})
        measured = turned.readout(turned(read)[0])[0, -1] - before[0, -1]
        close(measured, (factor - 1) * amount[sense] * push[sense], rtol=1e-4, atol=1e-4)
        largest = measured.abs().max()
        print(f"sense {sense} of {tokenizer.decode([word])!r} times {factor}: as computed, up to {largest:.2f}")

# %%
factors = torch.linspace(0, 3, 61)
change = (factors[:, None] - 1) * amount[sense] * push[sense]  # (61, V)
probabilities = (before[0, -1] + change).softmax(-1)
shown_tokens = probabilities.amax(0).topk(7).indices
plt.figure(figsize=(6, 3), layout="constrained")
for token in shown_tokens.tolist():
    plt.plot(factors, probabilities[:, token], label=repr(tokenizer.decode([token])))
plt.axvline(1, color="grey", linewidth=0.8)
plt.xlabel(f"factor of sense {sense} of {tokenizer.decode([word])!r}")
plt.ylabel("probability of the next token")
plt.legend(fontsize=8)
plt.show()

# %% [markdown]
# No model was run for this picture: the 61 sliders are one outer product. `scratchlm play` has such sliders on a
# page, and `scratchlm sample --sense` writes a text with senses turned.

# %% [markdown]
# ## Break it
#
# Five bugs, and each of them learns. Three are found by the contract suite (`tests/contract.py`), nine checks that
# every architecture must pass. Two are not, and each of those shows another kind of check that a model needs.

# %%
starts = torch.randint(0, len(data) - 26, (200, 8), generator=torch.Generator().manual_seed(2))
many = [data[start[:, None] + torch.arange(25)] for start in starts]


def loud_backpack():
    """Two matrices of its senses begin ten times as large, so that few steps show something."""
    model = small_backpack()
    with torch.no_grad():
        model.sense_network.senses_mlp.hidden.weight.mul_(10)
        model.sense_network.senses_mlp.output.weight.mul_(10)
    return model


def tiny_backpack():
    torch.manual_seed(3)
    return Backpack(BackpackConfig.tiny()).double().eval()


STEPS = {"steps": 200, "lr": 1e-2}
curves = {"right": learn(loud_backpack(), many, **STEPS)}
assert not contract.failed(tiny_backpack)
right_weights = package.attention_weights

# %% [markdown]
# **Bug 1: no mask.** The trunk has its own, so it is easily forgotten in the layer of the weights. **Bug 2: the
# softmax over the wrong axis**, `softmax(-2)`: for each word the shares of all positions sum to 1, and not for each
# position those of all words.


# %%
def unmasked(queries, keys):
    return (queries @ keys.mT / math.sqrt(queries.shape[-1])).softmax(-1)


def wrong_axis(queries, keys):
    scores = queries @ keys.mT / math.sqrt(queries.shape[-1])
    length, visible = scores.shape[-2:]
    future = torch.ones(length, visible, dtype=torch.bool).triu(visible - length + 1)
    return scores.masked_fill(future, -math.inf).softmax(-2)  # right: softmax(-1)


for name, function in (("no mask", unmasked), ("softmax over the wrong axis", wrong_axis)):
    package.attention_weights = function
    curves[name] = learn(loud_backpack(), many, **STEPS)
    caught_by = contract.failed(tiny_backpack)
    package.attention_weights = right_weights
    print(f"{name}: loss {curves[name][-1]:.2f}, right {curves['right'][-1]:.2f}; caught by: {', '.join(caught_by)}")
    assert "causal" in caught_by

# %% [markdown]
# **causal** changes later words and wants earlier features unmoved. The second bug fails it too: a share of all
# positions depends on those that come later.
#
# **Bug 3: the table of senses.** The senses of all words can be computed once and looked up, which is fast, and right
# until the weights move. In training they get no gradient.


# %%
def with_table(model):
    table = model.senses(torch.arange(model.config.vocab_size)).detach()
    model.senses = lambda tokens: table[tokens]
    return model


name = "table of senses"
curves[name] = learn(with_table(loud_backpack()), many, **STEPS)
caught_by = contract.failed(lambda: with_table(tiny_backpack()))
print(f"{name}: loss {curves[name][-1]:.2f}, right {curves['right'][-1]:.2f}; caught by: {', '.join(caught_by)}")
assert "gradients" in caught_by

# %% [markdown]
# **gradients** wants that every parameter gets one. The curve is worse, but who knows the right curve?
#
# **Bug 4: weights that do not sum to 1.** A sigmoid in place of the softmax.


# %%
def sigmoid_weights(queries, keys):
    scores = queries @ keys.mT / math.sqrt(queries.shape[-1])
    length, visible = scores.shape[-2:]
    return scores.sigmoid().tril(visible - length)


name = "sigmoid for softmax"
package.attention_weights = sigmoid_weights
curves[name] = learn(loud_backpack(), many, **STEPS)
print("caught by the contract:", contract.failed(tiny_backpack) or "no check")
unsummed = loud_backpack()
with torch.no_grad(), scratchlm.record(unsummed) as shown:
    unsummed(batch[:, :-1])
sums = shown["contextualisation.weights"][0].sum(-1)
package.attention_weights = right_weights
print(f"its weights sum to {sums.min():.2f} up to {sums.max():.2f}")
try:
    close(sigmoid_weights(queries, keys), weights_of(queries, keys))
except AssertionError as error:
    print("caught by the comparison with the equation:", str(error).splitlines()[0])
else:
    raise AssertionError("the comparison must notice the sigmoid")
assert (sums - 1).abs().max() > 0.5

# %% [markdown]
# Nothing is inconsistent: it is a causal model, only not this one. A **comparison with a reference** finds it, or the
# plain property that the equation promises: each row sums to 1.
#
# **Bug 5: senses of the context.** The network of senses is given $h$, which has read the text, in place of the
# word's own vector $e$. Both have the same shape.


# %%
def contextual(tokens, model):
    hidden, _ = model.trunk(tokens)
    alpha = backpack(tokens, model)[0]
    senses = senses_of(hidden, model.sense_network, model.config.senses)  # right: of the embedding
    return torch.einsum("blij,bjld->bid", alpha, senses) @ model.trunk.token_embedding.weight.T


name = "senses of the context"
of_context = loud_backpack()
curves[name] = learn(of_context, many, logits_of=contextual, **STEPS)
print(f"{name}: loss {curves[name][-1]:.2f}, right {curves['right'][-1]:.2f}")


def senses_in_two_texts(give):
    """The senses of token 7, after other words."""
    first, second = torch.tensor([[1, 2, 3, 7]]), torch.tensor([[4, 5, 6, 7]])
    with torch.no_grad():
        return [senses_of(give(text), of_context.sense_network, 4)[0, -1] for text in (first, second)]


close(*senses_in_two_texts(of_context.trunk.token_embedding))
same, other = senses_in_two_texts(lambda tokens: of_context.trunk(tokens)[0])
apart = ((same - other).norm() / same.norm()).item()
print(f"the senses of one word in two texts are apart by {apart:.1%} of their length")
assert apart > 1e-3

# %% [markdown]
# It learns, it is causal, and it is worth nothing as a Backpack: a word has no senses any more that one could look up
# or turn. What the model is *for* needs a check of its own, here that a word's senses are the same in any text.

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
# **1.** Which factor of that sense makes the first two candidates equally probable? Set `factor`; `first` and
# `second` are their tokens, `before`, `amount`, `push` and `sense` are as above. It may be negative.

# %%
first, second = before[0, -1].topk(2).indices.tolist()

# %% cellView="form" jupyter={"source_hidden": true}
# @title Answer 1
lead = before[0, -1, first] - before[0, -1, second]
per_unit = amount[sense] * (push[sense, first] - push[sense, second])  # what the lead gains as the factor grows by 1
factor = 1 - (lead / per_unit).item()

# %%
# your own `factor`

# %%
with torch.no_grad():
    turned = steer(model, scales={(word, sense): factor})
    after = turned.readout(turned(read)[0])[0, -1].softmax(-1)
assert abs(after[first] - after[second]) < 1e-3
print(f"{factor:.2f}: {tokenizer.decode([first])!r} and {tokenizer.decode([second])!r} at {after[first]:.3f}: right")

# %% [markdown]
# **2.** If every sense looked at the newest word alone, the Backpack would be a bigram: a table (V, V) of logits.
# Write `bigram_table(model)`.

# %% cellView="form" jupyter={"source_hidden": true}
# @title Answer 2


def bigram_table(model):
    everything = torch.arange(model.config.vocab_size)
    return model.readout(model.senses(everything).sum(-2))  # every weight is 1, so a word's senses are added


# %%
# your own `bigram_table`

# %%
package.attention_weights = lambda queries, keys: torch.eye(queries.shape[2]).expand(*queries.shape[:3], -1)
with torch.no_grad():
    close(bigram_table(model)[read], model.readout(model(read)[0]), rtol=1e-4, atol=1e-4)
package.attention_weights = right_weights
print("right")

# %% [markdown]
# **3.** While it writes, a Backpack keeps something of each word. Its senses are L D numbers. But the last matrix is
# linear: $C_l = W_l g$ with $g$ of 4 D numbers, so the sum over words may come first. Write `mix(alpha, g, w)`: alpha
# (L, T, T), g (T, G), w (L, D, G) to o (T, D), without ever having the senses of a word.

# %% cellView="form" jupyter={"source_hidden": true}
# @title Answer 3


def mix(alpha, g, w):
    return torch.einsum("ltg,ldg->td", alpha @ g, w)  # (L, T, G), then the matrix of each sense


# %%
# your own `mix`

# %%
g = F.gelu(E[tokens] @ W_1.T)
close(mix(weights_of(queries, keys), g, W_2.view(L, D, 4 * D)), o)
print("right")
