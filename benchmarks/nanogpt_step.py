"""Milliseconds a training step against nanoGPT's own model and optimizer, in one process, interleaved.

    python benchmarks/nanogpt_step.py NANOGPT_FOLDER [--repeats 15] [--json]

NANOGPT_FOLDER is a clone of github.com/karpathy/nanoGPT. The recipe is the preset nanogpt-cpu: batches of 12 x 64
characters, 4 blocks of width 128. Both sides do the same work: forward, backward, clipping at 1.0, AdamW. Imports and
ten warm-up steps are out of the times; nothing is compiled.
"""

import argparse
import contextlib
import importlib.util
import io
import json
import statistics
import time
from pathlib import Path

import torch

from scratchlm.config import OptimConfig
from scratchlm.data.batches import Batch
from scratchlm.models import MODELS
from scratchlm.training.optim import make_optimizer
from scratchlm.training.step import TrainingStep, update

VOCABULARY, STEPS = 65, 10
RECIPE = MODELS["gpt"].presets["nanogpt-cpu"]


def our_step(tokens, targets):
    model = MODELS["gpt"](MODELS["gpt"].Config(vocab_size=VOCABULARY, **RECIPE["model"]))
    optimizer = make_optimizer(model, OptimConfig(**RECIPE["optim"]))
    step, batch = TrainingStep(model), Batch(tokens, targets)

    def run():
        loss = update(step, optimizer, batch, [None], grad_clip=1.0).loss
        return loss.item()

    return run


def their_step(folder, tokens, targets):
    spec = importlib.util.spec_from_file_location("nanogpt_model", Path(folder) / "model.py")
    theirs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(theirs)
    shape = RECIPE["model"]
    with contextlib.redirect_stdout(io.StringIO()):
        config = theirs.GPTConfig(
            block_size=shape["context"],
            vocab_size=VOCABULARY,
            n_layer=shape["depth"],
            n_head=shape["heads"],
            n_embd=shape["dim"],
            dropout=0.0,
            bias=False,
        )
        model = theirs.GPT(config)
        optimizer = model.configure_optimizers(0.1, 1e-3, (0.9, 0.99), "cpu")

    def run():
        _, loss = model(tokens, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return run


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("nanogpt", help="folder of a clone of nanoGPT")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.manual_seed(0)
    shape = (RECIPE["batch_size"], RECIPE["model"]["context"])
    tokens, targets = torch.randint(0, VOCABULARY, shape), torch.randint(0, VOCABULARY, shape)
    steps = {"scratchlm": our_step(tokens, targets), "nanoGPT": their_step(options.nanogpt, tokens, targets)}
    times = {name: [] for name in steps}
    for run in steps.values():
        for _ in range(STEPS):
            run()
    for _ in range(options.repeats):
        for name, run in steps.items():
            start = time.perf_counter()
            for _ in range(STEPS):
                run()
            times[name].append((time.perf_counter() - start) / STEPS * 1e3)
    ratios = [ours / theirs for ours, theirs in zip(*times.values(), strict=True)]
    result = {
        "threads": torch.get_num_threads(),
        "ms_per_step": {name: round(statistics.median(values), 2) for name, values in times.items()},
        "ratio": round(statistics.median(ratios), 3),
        "ratio_quartiles": [round(value, 3) for value in statistics.quantiles(ratios, n=4)[::2]],
    }
    print(json.dumps(result) if options.json else "\n".join(f"{key}: {value}" for key, value in result.items()))


if __name__ == "__main__":
    main()
