"""Milliseconds a training step of the Transformer against torch's nn.Transformer, in one process, interleaved.

    python benchmarks/transformer_step.py [--repeats 15] [--json]

Both sides do the same work on the same padded batches of about 2,000 target tokens: embeddings with their scale and
positions, a post-norm encoder and decoder, cross-entropy over one tied matrix, backward, the gradient's norm, AdamW.
Without dropout, since nn.Transformer has one rate for more places than the paper. Imports and warm-up are out of the
times; nothing is compiled.
"""

import argparse
import json
import math
import statistics
import time

import torch
import torch.nn.functional as F
from torch import nn

from scratchlm.config import OptimConfig
from scratchlm.data.batches import IGNORED, Batch
from scratchlm.model import Source
from scratchlm.models import MODELS
from scratchlm.models.transformer import sinusoids
from scratchlm.training.optim import make_optimizer
from scratchlm.training.step import TrainingStep, update

VOCABULARY, TOKENS, STEPS = 69, 2048, 2
SIZES = {  # dim, depth, heads, hidden_dim, usual length
    "words": (128, 3, 4, 512, 8),
    "verses": (256, 3, 4, 1024, 32),
}


def padded_batch(length):
    """Rows of a length bucket: lengths within a quarter of the usual one."""
    rows = TOKENS // length
    lengths = torch.randint(length - length // 4, length + length // 4 + 1, (2, rows))
    source = Source(torch.randint(VOCABULARY, (rows, int(lengths[0].max()))), lengths[0])
    tokens, targets = torch.randint(VOCABULARY, (2, rows, int(lengths[1].max())))
    targets[torch.arange(targets.shape[1]) >= lengths[1][:, None]] = IGNORED
    return Batch(tokens, targets, source)


def our_step(batch, dim, depth, heads, hidden_dim):
    shape = {"dim": dim, "depth": depth, "heads": heads, "hidden_dim": hidden_dim}
    rates = {"dropout": 0.0, "embedding_dropout": 0.0}
    model = MODELS["transformer"](MODELS["transformer"].Config(vocab_size=VOCABULARY, **shape, **rates))
    optimizer, step = make_optimizer(model, OptimConfig()), TrainingStep(model)

    def run():
        loss = update(step, optimizer, batch, [None], grad_clip=1.0).loss
        return loss.item()

    return run


class TorchTransformer(nn.Module):
    """nn.Transformer, which has final norms that the paper does not have, and what it leaves to its user."""

    def __init__(self, dim, depth, heads, hidden_dim):
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, dim)
        nn.init.normal_(self.embedding.weight, std=dim**-0.5)
        self.core = nn.Transformer(dim, heads, depth, depth, hidden_dim, dropout=0.0, batch_first=True)
        self.core.encoder.norm = self.core.decoder.norm = None
        self.register_buffer("positions", sinusoids(256, dim).float())

    def embed(self, ids):
        return self.embedding(ids) * math.sqrt(self.embedding.embedding_dim) + self.positions[: ids.shape[1]]

    def forward(self, source, tokens):
        blocked = torch.arange(source.ids.shape[1]) >= source.lengths[:, None]
        future = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1])
        features = self.core(
            self.embed(source.ids),
            self.embed(tokens),
            tgt_mask=future,
            src_key_padding_mask=blocked,
            memory_key_padding_mask=blocked,
            tgt_is_causal=True,
        )
        return F.linear(features, self.embedding.weight)


def their_step(batch, dim, depth, heads, hidden_dim):
    model = TorchTransformer(dim, depth, heads, hidden_dim)
    optimizer = make_optimizer(model, OptimConfig())

    def run():
        logits = model(batch.source, batch.tokens)
        loss = F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), ignore_index=IGNORED)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return run


def compare(name, repeats):
    *shape, length = SIZES[name]
    batch = padded_batch(length)
    steps = {"scratchlm": our_step(batch, *shape), "nn.Transformer": their_step(batch, *shape)}
    times = {side: [] for side in steps}
    for run in steps.values():
        for _ in range(STEPS):
            run()
    for _ in range(repeats):
        for side, run in steps.items():
            start = time.perf_counter()
            for _ in range(STEPS):
                run()
            times[side].append((time.perf_counter() - start) / STEPS * 1e3)
    ratios = [ours / theirs for ours, theirs in zip(*times.values(), strict=True)]
    return {
        "batch": list(batch.tokens.shape),
        "ms_per_step": {side: round(statistics.median(values), 2) for side, values in times.items()},
        "ratio": round(statistics.median(ratios), 3),
        "ratio_quartiles": [round(value, 3) for value in statistics.quantiles(ratios, n=4)[::2]],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.manual_seed(0)
    result = {"threads": torch.get_num_threads(), **{name: compare(name, options.repeats) for name in SIZES}}
    print(json.dumps(result) if options.json else "\n".join(f"{key}: {value}" for key, value in result.items()))


if __name__ == "__main__":
    main()
