"""What each part of the gated block is worth: models of 1M parameters trained alike on shakespeare-tiny, characters.

    python benchmarks/cnn_ablation.py [--tokens 1500000] [--seed 1337] [--json]

The gate against GTU (tanh for the linear half) and a plain ReLU, dilation against none and against cycles of it, and a
GPT's MLP after each convolution against none. Each model has 12 blocks and the width that brings it next to 1M
parameters. About 15 minutes on one core.
"""

import argparse
import json
import math
import tempfile
from dataclasses import replace
from pathlib import Path
from unittest import mock

import torch
import torch.nn.functional as F
from torch import nn

import scratchlm
from scratchlm.layers import LayerNorm
from scratchlm.models import cnn
from scratchlm.models.cnn import CNN, CNNConfig, GatedBlock

PARAMETERS, WINDOW, ROWS = 1_000_000, 256, 8


def residual_(layer, depth):
    """The deviation with which GatedBlock starts what it adds to the stream."""
    nn.init.normal_(layer.weight, std=1 / math.sqrt(layer.in_features * depth))
    nn.init.zeros_(layer.bias)
    return layer


class GTUBlock(GatedBlock):
    """x + W_o (tanh(a) * sigmoid(g))."""

    def forward(self, x, memories):
        y, memory = self.convolution(self.norm(x), memories[0] if memories else None)
        signal, gate = y.chunk(2, -1)
        return x + self.output(torch.tanh(signal) * torch.sigmoid(gate)), [memory]


class ReLUBlock(GatedBlock):
    """x + W_o relu(y), where the gate's half of y is signal too."""

    def __init__(self, config, index):
        super().__init__(config, index)
        self.output = residual_(nn.Linear(2 * config.width, config.dim), config.depth)

    def forward(self, x, memories):
        y, memory = self.convolution(self.norm(x), memories[0] if memories else None)
        return x + self.output(F.relu(y)), [memory]


class MLPBlock(GatedBlock):
    """The gated block, then x + W_2 gelu(W_1 LayerNorm(x))."""

    def __init__(self, config, index):
        super().__init__(config, index)
        self.mlp_norm = LayerNorm(config.dim)
        self.hidden = nn.Linear(config.dim, 4 * config.dim)
        self.mlp_output = residual_(nn.Linear(4 * config.dim, config.dim), config.depth)

    def forward(self, x, memories):
        x, kept = super().forward(x, memories)
        return x + self.mlp_output(F.gelu(self.hidden(self.mlp_norm(x)))), kept


def in_cycles(self, index):
    """Dilations 1 to 64 that start over, as WaveNet and ByteNet have them, where ours come once, in the last blocks."""
    return 2 ** (index % self.dilations)


ONCE = CNNConfig.dilation
VARIANTS = {  # a block, how many dilations, and which block has which
    "GLU, dilated": (GatedBlock, 7, ONCE),
    "GLU, dilated in cycles": (GatedBlock, 7, in_cycles),
    "GLU, not dilated": (GatedBlock, 1, ONCE),
    "ReLU, dilated": (ReLUBlock, 7, ONCE),
    "GTU, dilated": (GTUBlock, 7, ONCE),
    "GLU, dilated, MLP": (MLPBlock, 7, ONCE),
}


def count(config):
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in CNN(config).parameters())


def train(block, dilations, dilation, tokens, seed, folder):
    with mock.patch.dict(cnn.BLOCKS, gated=block), mock.patch.object(CNNConfig, "dilation", dilation):
        shapes = [CNNConfig(vocab_size=65, dim=dim, dilations=dilations) for dim in range(64, 161, 2)]
        shape = min(shapes, key=lambda one: abs(count(one) - PARAMETERS))
        settings = {
            "arch": "cnn", "data": "shakespeare-tiny", "steps": tokens // (WINDOW * ROWS), "batch_size": ROWS,
            "window": WINDOW, "eval_every": 10**9, "device": "cpu", "seed": seed,
            "model": {"dim": shape.dim, "dilations": dilations},
            "optim": {"lr": 3e-3, "min_lr": 3e-4, "warmup": 50, "beta2": 0.99},
        }  # fmt: skip
        run, _ = scratchlm.create_run(settings, folder)
        list(scratchlm.train(run))
        shape = replace(shape, vocab_size=run.config().model.vocab_size)
        last = run.metrics()[-1]
        return {
            "dim": shape.dim,
            "parameters": count(shape),
            "receptive_field": shape.receptive_field,
            "val_loss": round(last["val_loss"], 4),
            "val_bits_per_byte": round(last["val_bits_per_byte"], 4),
            "seconds": round(last["seconds"]),
        }


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tokens", type=int, default=1_500_000)
    parser.add_argument("--seed", type=int, default=1337)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    results = {}
    for name, variant in VARIANTS.items():
        with tempfile.TemporaryDirectory() as folder:
            results[name] = train(*variant, options.tokens, options.seed, Path(folder) / "run")
        if not options.json:
            print(name, results[name], sep=": ", flush=True)
    if options.json:
        print(json.dumps({"threads": torch.get_num_threads(), **results}))


if __name__ == "__main__":
    main()
