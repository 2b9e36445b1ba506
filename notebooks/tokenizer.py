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
# # Tokenizer
#
# [Open in Colab](https://colab.research.google.com/github/OWNER/scratchlm/blob/main/notebooks/tokenizer.ipynb)
#
# A language model reads numbers. The tokenizer makes them of text, and text of them. Byte-pair encoding (Sennrich et
# al. 2016, "Neural Machine Translation of Rare Words with Subword Units"; on bytes: Radford et al. 2019) begins with
# single bytes and merges, again and again, the two neighbours that stand side by side most often. Frequent words
# become one token, rare ones a few, and no text is impossible. Here you train one, check it against three libraries,
# look inside and break it.

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
import importlib.util
import itertools
import math
from collections import Counter

import matplotlib.pyplot as plt
import regex
import torch
import torch.nn.functional as F

import scratchlm
from scratchlm.data import corpora
from scratchlm.tokenizers import BPETokenizer, CharacterTokenizer, IncrementalDecoder
from scratchlm.tokenizers.splitting import PATTERNS

text = corpora.get("shakespeare-tiny")
training, unseen = text[:300_000], text[-100_000:]
print(training[:120])

# %% [markdown]
# ## Build it
#
# **From text to bytes.** Characters will not do: there are more than 150,000 of them, and the next text has one that
# the last one had not. UTF-8 writes each as one to four bytes, and there are only 256 bytes. So any text is a row of
# numbers below 256, and nothing is ever unknown.

# %%
for example in ("thou", "naïve", "東京", "🙂"):
    print(f"{example:<8}{len(example)} characters, {len(example.encode())} bytes: {list(example.encode())}")

# %% [markdown]
# **Chunks.** Merging should not glue words together: "of the" is frequent, but it is no unit. So the text is first cut
# by a pattern, here GPT-2's: a word with the space *before* it, a number, a run of marks, white space. No merge
# crosses a cut. Each different chunk is kept once, with how often it occurs, which makes training fast.

# %%
pattern = PATTERNS["gpt2"]
print(pattern)
print(regex.findall(pattern, "Thou art, in 1599,\n\n  too long'st"))
chunks = Counter(chunk.encode() for chunk in regex.findall(pattern, training))
print(f"{sum(chunks.values()):,} chunks, {len(chunks):,} different ones; {chunks.most_common(5)}")

# %% [markdown]
# **Count pairs.** How often does each pair of neighbours occur, in all chunks together?
#
# $$C(a, b) = \sum_{\text{chunk}} n_{\text{chunk}} \cdot \#\{i : \text{chunk}_i = a,\ \text{chunk}_{i+1} = b\}$$

# %%


def pair_counts(sequences):
    """`sequences`: (ids, how often) -> the count of each pair."""
    counts = Counter()
    for ids, times in sequences:
        for pair in itertools.pairwise(ids):
            counts[pair] += times
    return counts


sequences = [(list(chunk), times) for chunk, times in chunks.items()]
for (a, b), count in pair_counts(sequences).most_common(5):
    print(f"{bytes([a, b])!r:<8} {count:,}")

# %% [markdown]
# **Merge.** The most frequent pair becomes a token of its own, with the next free number. It replaces the pair
# wherever it stands, from left to right. Where two pairs are equally frequent, some rule must decide: here, the one
# with the lower numbers.


# %%
def replace(ids, pair, token):
    out, at = [], 0
    while at < len(ids):
        if tuple(ids[at : at + 2]) == pair:
            out.append(token)
            at += 2
        else:
            out.append(ids[at])
            at += 1
    return out


def train(chunks, merges):
    """The pairs that were merged, in their order; pair number n makes the token 256 + n."""
    sequences = [(list(chunk), times) for chunk, times in chunks.items()]
    made = []
    for number in range(merges):
        counts = pair_counts(sequences)
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        made.append(best)
        sequences = [(replace(ids, best, 256 + number) if best[0] in ids else ids, times) for ids, times in sequences]
    return made


merges = train(chunks, 60)
tokens = [bytes([value]) for value in range(256)]
for a, b in merges:
    tokens.append(tokens[a] + tokens[b])
print(*(token.decode() for token in tokens[256:]), sep="|")

# %% [markdown]
# **Encode.** A new text goes the same way: cut it, take the bytes, and apply the merges *in the order in which they
# were made*. At each step, of all pairs that stand side by side, the one that was merged first in training is next.
# Decoding is easy: put the bytes of the tokens side by side.

# %%


def encode(text, merges):
    ranks = {pair: number for number, pair in enumerate(merges)}
    out = []
    for chunk in regex.findall(pattern, text):
        ids = list(chunk.encode())
        while True:
            first = min(itertools.pairwise(ids), key=lambda pair: ranks.get(pair, math.inf), default=None)
            if first not in ranks:
                break
            ids = replace(ids, first, 256 + ranks[first])
        out += ids
    return out


def decode(ids, tokens):
    return b"".join(tokens[token] for token in ids).decode(errors="replace")


line = "But soft, what light through yonder window breaks?"
ids = encode(line, merges)
print(len(line), "characters,", len(ids), "tokens")
print([tokens[token].decode() for token in ids])
assert decode(ids, tokens) == line

# %% [markdown]
# ## Check it
#
# Our sixty merges against the package's, which counts only what a merge has changed and so needs a second where ours
# would need minutes. `ties="ids"` is our rule for equally frequent pairs.

# %%
reference = BPETokenizer.train([training], vocab_size=256 + 60, pattern="gpt2", ties="ids")
assert [tuple(pair) for pair in reference.merges] == merges
assert reference.encode(line) == ids
assert reference.encode(unseen[:20_000]) == encode(unseen[:20_000], merges)
print("the same merges, and the same ids")

# %% [markdown]
# And against libraries that others use, where they are installed: tiktoken takes our merges and must make our ids;
# tokenizers takes the text and must find the same merges (its rule for ties is another one, `ties="gpt2"`).

# %%
if importlib.util.find_spec("tiktoken"):
    import tiktoken

    ranks = {token: number for number, token in enumerate(tokens)}
    theirs = tiktoken.Encoding("ours", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    assert theirs.encode(unseen) == reference.encode(unseen)
    print("tiktoken: the same ids")
if importlib.util.find_spec("tokenizers"):
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

    theirs = Tokenizer(models.BPE())
    cut, to_bytes = pre_tokenizers.Split(Regex(pattern), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)
    theirs.pre_tokenizer = pre_tokenizers.Sequence([cut, to_bytes])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    theirs.train_from_iterator(
        [training], trainers.BpeTrainer(vocab_size=316, initial_alphabet=alphabet, show_progress=False)
    )
    ours = BPETokenizer.train([training], vocab_size=316, pattern="gpt2", ties="gpt2")
    assert ours.encode(unseen) == theirs.encode(unseen).ids
    print("tokenizers: the same merges and ids")

# %% [markdown]
# ## Look inside
#
# **What merging does.** One line, with more and more merges. Each box is a token. First pairs of letters, then
# endings, then words; the space sits at the word's front, since the pattern cuts there.

# %%
sizes = [0, 30, 100, 300, 1000, 3000]
tokenizers = [BPETokenizer.train([training], vocab_size=256 + size, pattern="gpt2", ties="ids") for size in sizes]


def draw_pieces(panel, row, pieces, label):
    at = 0
    for number, piece in enumerate(pieces):
        panel.add_patch(plt.Rectangle((at + 0.06, row + 0.1), len(piece) - 0.12, 0.8, color=plt.cm.Pastel1(number % 9)))
        for character in piece:
            panel.text(at + 0.5, row + 0.5, character.replace(" ", "·"), ha="center", va="center", family="monospace")
            at += 1
    panel.text(-0.5, row + 0.5, label, ha="right", va="center", size=9)


figure, panel = plt.subplots(figsize=(10, 2.8), layout="constrained")
for row, (size, one) in enumerate(zip(sizes, tokenizers, strict=True)):
    pieces = [one.token_bytes(token).decode() for token in one.encode(line)]
    draw_pieces(panel, row, pieces, f"{size} merges: {len(pieces)} tokens")
panel.set(xlim=(-12, len(line)), ylim=(len(sizes), 0))
panel.axis("off")
plt.show()

# %% [markdown]
# **How a token came about.** `halves` says which two tokens were merged into one. Read the brackets from the inside.

# %%
largest = tokenizers[-1]


def tree(token):
    halves = largest.halves(token)
    if halves is None:
        return largest.token_bytes(token).decode().replace(" ", "·")
    return "(" + "".join(map(tree, halves)) + ")"


for word in (" shall", " noble", " Gloucester", "ROMEO"):
    print(f"{word:<12}", " ".join(map(tree, largest.encode(word))))

# %% [markdown]
# **What it buys.** The more merges, the fewer tokens for the same text, so the further a model with a given context
# sees. From a few hundred merges on, the two curves part: what is merged then are the names and words of the training
# text, and another text has others.

# %%
figure, panel = plt.subplots(figsize=(5, 2.8), layout="constrained")
for name, part in (("training text", training), ("unseen text", unseen)):
    panel.plot(
        sizes,
        [len(part.encode()) / len(t.encode(part)) for t in tokenizers],
        "o-",
        label=name,
    )
panel.set_xscale("symlog", linthresh=30)
panel.set(xlabel="merges", ylabel="bytes in a token")
panel.legend()
plt.show()

# %% [markdown]
# **A fairer alphabet.** Of 256 bytes a few make up most of the text, and most never come. Merging takes from the
# frequent ones, so three hundred merges share out the text more evenly. But three thousand have a long tail: tokens
# that come only a few times in all, of which a model can learn little.

# %%
figure, panel = plt.subplots(figsize=(5, 2.8), layout="constrained")
for size, one in zip(sizes, tokenizers, strict=True):
    if size in (0, 300, 3000):
        frequencies = sorted(Counter(one.encode(training)).values(), reverse=True)
        panel.loglog([count / sum(frequencies) for count in frequencies], label=f"{size} merges")
panel.set(xlabel="rank of the token", ylabel="share of the text")
panel.legend()
plt.show()

# %% [markdown]
# **What is a loss worth?** The smallest language model, a bigram table, on four vocabularies, trained alike. In nats
# *per token* the small vocabulary seems best, since its tokens say little. In bits *per byte of text*, which compares,
# the larger ones win: a token that is a word lets a bigram see further.


# %%
def bigram_losses(ids, size, steps=400):
    """Training losses of a table of what follows what, in nats per token."""
    torch.manual_seed(0)
    table = torch.zeros(size, size, requires_grad=True)
    optimizer = torch.optim.Adam([table], lr=0.1)
    ids, losses = torch.tensor(ids), []
    for _ in range(steps):
        at = torch.randint(0, len(ids) - 1, (2048,))
        loss = F.cross_entropy(table[ids[at]], ids[at + 1])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return table.detach(), losses


figure, panels = plt.subplots(1, 2, figsize=(8, 2.6), layout="constrained")
names, nats, bits = [], [], []
for size, one in list(zip(sizes, tokenizers, strict=True))[:4]:
    table, _ = bigram_losses(one.encode(training), one.vocab_size)
    ids = torch.tensor(one.encode(unseen))
    loss = F.cross_entropy(table[ids[:-1]], ids[1:]).item()
    names.append(str(size))
    nats.append(loss)
    bits.append(loss * len(ids) / len(unseen.encode()) / math.log(2))
panels[0].bar(names, nats, color="lightsteelblue")
panels[0].set(title="nats per token", xlabel="merges")
panels[1].bar(names, bits, color="steelblue")
panels[1].set(title="bits per byte", xlabel="merges")
plt.show()
assert nats[0] == min(nats)
assert bits[-1] == min(bits)

# %% [markdown]
# ## Break it
#
# A model trains on whatever numbers it is given. So a broken tokenizer does not show in the loss; only checks of the
# tokenizer itself find it. These four bugs are old acquaintances.

# %% [markdown]
# **Bug 1: unknown characters are dropped.** A table of the training text's characters, and `get(c)` with nothing for
# the others. The loss falls, and on unseen text it is even better: what is hard to predict is gone.

# %%
known = CharacterTokenizer.train([training[:3000]])


def lossy_encode(text):
    return [known.encode(c)[0] for c in text if c in known.characters]  # right: refuse, or bytes


_, losses = bigram_losses(lossy_encode(training), known.vocab_size)
print(f"loss from {losses[0]:.2f} to {losses[-1]:.2f}")


def round_trip(encode, decode):
    """The first text, if any, that does not come back: the check that every tokenizer of the package must pass."""
    for text in (line, "naïve 🙂\r\n", " \n\n  x", unseen[:5000]):
        if decode(encode(text)) != text:
            return text[:20]
    return None


print("does not come back:", repr(round_trip(lossy_encode, known.decode)))
assert round_trip(lossy_encode, known.decode) is not None
assert round_trip(reference.encode, reference.decode) is None

# %% [markdown]
# **Bug 2: merges in another order.** Take the longest token that fits, from left to right: simple, fast and wrong.
# The text comes back, the loss falls, but the ids are not those that training has seen.

# %%
vocabulary = {token: number for number, token in enumerate(tokens)}


def longest_first(text):
    out = []
    for chunk in regex.findall(pattern, text):
        data = chunk.encode()
        while data:
            size = next(n for n in range(len(data), 0, -1) if data[:n] in vocabulary)
            out.append(vocabulary[data[:size]])
            data = data[size:]
    return out


_, losses = bigram_losses(longest_first(training), len(tokens))
print(f"loss from {losses[0]:.2f} to {losses[-1]:.2f}")
print("comes back:", round_trip(longest_first, lambda ids: decode(ids, tokens)) is None)
words = [word for word in sorted({*regex.findall(pattern, unseen)}) if longest_first(word) != encode(word, merges)]
print(f"{len(words):,} words have other ids, as {words[-1]!r}:")
for name, ids in (("right", encode(words[-1], merges)), ("wrong", longest_first(words[-1]))):
    print(f"  {name} {[tokens[token].decode() for token in ids]}")
assert words, "caught by comparing ids with the reference"

# %% [markdown]
# A round trip cannot catch it. Only **the ids of a reference** can: what training itself has left of its text, or
# tiktoken's. The package compares both.
#
# **Bug 3: decoding token by token.** A character of several bytes may be cut between two tokens. Decoded one by one,
# each half is a replacement mark. It shows as soon as a model streams anything but English.

# %%
message = "naïve — 🙂"
ids = reference.encode(message)
one_by_one = "".join(reference.decode([token]) for token in ids)
decoder = IncrementalDecoder(reference)  # right: holds bytes back until the character is whole
held_back = "".join(map(decoder.push, ids)) + decoder.flush()
print("one by one:", one_by_one)
print("held back: ", held_back)
assert one_by_one != message == held_back, "caught by comparing the stream with decoding at once"

# %% [markdown]
# **Bug 4: a text that speaks in special tokens.** Documents are parted by `<|endoftext|>`. If `encode` turns these
# characters into the special token wherever they stand, whoever writes them into a prompt ends the document.

# %%
documents = BPETokenizer.train(["one", "two"] * 20, documents=True, vocab_size=258)
end, prompt = documents.end_of_text, "They wrote <|endoftext|> and more."


def trusting_encode(text):
    return documents.encode(text, allowed_special="all")  # right: documents.encode(text)


print("trusting:", trusting_encode(prompt).count(end), "special token;", "right:", documents.encode(prompt).count(end))
print("what comes back:", repr(documents.decode(trusting_encode(prompt))))
assert end in trusting_encode(prompt), "caught by: no text makes a special token"
assert end not in documents.encode(prompt)
assert documents.decode(documents.encode(prompt)) == prompt

# %% [markdown]
# ## Exercises
#
# The answers are in the hidden cells. Write your own into the empty cell below each: it takes the answer's place, and
# the last cell checks it.
#
# **1.** The first byte of a character in UTF-8 says how many bytes it has: below 128 one, from 192 two, from 224 three,
# from 240 four; 128 to 191 continue a character. Write `characters(data)`: how many characters some bytes are, without
# decoding them.

# %% cellView="form" jupyter={"source_hidden": true}
# @title Answer 1


def characters(data):
    return sum(not 128 <= byte < 192 for byte in data)


# %%
# your own `characters`

# %%
for example in (line, "naïve 東京 🙂", ""):
    assert characters(example.encode()) == len(example)
print("right")

# %% [markdown]
# **2.** Write `depth(token)`: how many merges stand one inside the other in a token of `largest`; 0 for a single byte.
# (`largest.halves(token)` says what was merged.)

# %% cellView="form" jupyter={"source_hidden": true}
# @title Answer 2


def depth(token):
    halves = largest.halves(token)
    return 0 if halves is None else 1 + max(map(depth, halves))


# %%
# your own `depth`

# %%
assert [depth(token) for token in largest.encode(" shall ROMEO")] == [3] + [depth(t) for t in largest.encode(" ROMEO")]
deepest = max(range(largest.vocab_size), key=depth)
assert depth(deepest) == max(itertools.accumulate({"(": 1, ")": -1}.get(mark, 0) for mark in tree(deepest)))
print(f"right; the deepest is {tree(deepest)}")

# %% [markdown]
# **3.** A larger vocabulary costs parameters: the table has one row of D numbers a token. Which share of GPT-2's
# parameters is its table (50,257 tokens, D = 768)? Set `share`, to two digits.

# %% cellView="form" jupyter={"source_hidden": true}
# @title Answer 3
config = scratchlm.MODELS["gpt"].Config(vocab_size=50257)
share = 50257 * 768 / config.parameters

# %%
# your own `share`

# %%
assert round(share, 2) == 0.31
print(f"{share:.0%}: right")
