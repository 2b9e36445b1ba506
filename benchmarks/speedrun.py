"""Seconds until tinyshakespeare's validation loss is where nanoGPT's CPU recipe ends, against nanoGPT's own steps.

    python benchmarks/speedrun.py NANOGPT_FOLDER [--preset speedrun] [--target 1.898] [--seed 1337] [--json]
    python benchmarks/speedrun.py --ablation [--steps N] [--json]

NANOGPT_FOLDER is a clone of github.com/karpathy/nanoGPT. Its model and optimizer are timed before and after our run,
and 2,000 of its steps are what its recipe takes. Ours is a whole training run of the product, evaluated 30 times on all
of the validation split; its clock leaves evaluations out. Nothing is compiled.

The ablation trains the preset, and the preset without one of its tricks, for as many steps on the same batches.
"""

import argparse
import contextlib
import importlib.util
import io
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

from scratchlm.config import merge, preset_settings
from scratchlm.training import loop
from scratchlm.training.setup import create_run

DATA = "tinyshakespeare"
STEPS, ROWS, CONTEXT, VOCABULARY = 2000, 12, 64, 65  # nanoGPT, README: the recipe for a laptop
ADAMW = {"name": "adamw", "beta1": 0.9, "beta2": 0.99}
GPT = {"context": 64, "dim": 128, "depth": 4, "heads": 4, "dropout": 0.0, "bias": False, "activation": "gelu"}
ABLATION = {  # what is changed: settings over the preset's, of which a GPT's shape replaces all of the model's
    "the preset": {},
    "AdamW, rate 0.004": {"optim": {**ADAMW, "lr": 4e-3}},
    "no QK-norm": {"model": {"qk_norm": False}},
    "outputs not zero at the start": {"model": {"zero_output": False}},
    "SwiGLU, as many parameters": {"model": {"mlp": "swiglu", "hidden_dim": 171}},
    "readout tied to the embedding": {"model": {"tied": True}},
    "two heads of keys for four of queries": {"model": {"kv_heads": 2}},
    "rotations by base 10,000": {"model": {"rope_base": 10_000.0}},
    "nanoGPT's width and depth, rate 0.009": {
        "model": {"dim": 128, "depth": 4, "hidden_dim": 512},
        "optim": {"lr": 9e-3},
    },
    "nanoGPT's GPT, Muon, rate 0.009": {"arch": "gpt", "model": GPT, "optim": {"lr": 9e-3}},
    "nanoGPT's GPT, AdamW, rate 0.004": {"arch": "gpt", "model": GPT, "optim": {**ADAMW, "lr": 4e-3, "warmup": 10}},
    "nanoGPT's GPT, AdamW, its rate 0.001": {"arch": "gpt", "model": GPT, "optim": {**ADAMW, "lr": 1e-3, "warmup": 10}},
}


def train(settings, folder):
    """The lines of metrics of a whole run that have a validation loss."""
    run, _ = create_run(settings, folder)
    for _ in loop.train(run):
        pass
    return [line for line in run.metrics() if "val_loss" in line]


def their_milliseconds(folder, steps=100):
    """Milliseconds of each of nanoGPT's steps, with its own model and optimizer, after ten to warm up."""
    spec = importlib.util.spec_from_file_location("nanogpt_model", Path(folder) / "model.py")
    theirs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(theirs)
    torch.manual_seed(0)
    shape = {"n_layer": 4, "n_head": 4, "n_embd": 128, "dropout": 0.0, "bias": False}
    with contextlib.redirect_stdout(io.StringIO()):  # it prints what it counts
        model = theirs.GPT(theirs.GPTConfig(block_size=CONTEXT, vocab_size=VOCABULARY, **shape))
        optimizer = model.configure_optimizers(0.1, 1e-3, (0.9, 0.99), "cpu")
    tokens, targets = (torch.randint(0, VOCABULARY, (ROWS, CONTEXT)) for _ in range(2))
    times = []
    for _ in range(steps + 10):
        start = time.perf_counter()
        _, loss = model(tokens, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()
        times.append((time.perf_counter() - start) * 1e3)
    return times[10:]


def race(options, folder):
    """How long ours takes to the target, and theirs for its recipe."""
    settings = {"arch": "llama", **preset_settings("llama", options.preset), "data": DATA, "seed": options.seed}
    times = their_milliseconds(options.nanogpt)
    lines = train({**settings, "eval_every": max(1, settings["steps"] // 30)}, folder / "run")
    times += their_milliseconds(options.nanogpt)
    theirs = statistics.mean(times) * STEPS / 1e3
    reached = next((line for line in lines if line["val_loss"] <= options.target), None)
    return {
        "threads": torch.get_num_threads(),
        "nanogpt_ms_per_step": round(statistics.mean(times), 1),
        "nanogpt_seconds": round(theirs, 1),
        "reached": reached and {name: round(reached[name], 4) for name in ("step", "seconds", "val_loss")},
        "share_of_nanogpt": reached and round(reached["seconds"] / theirs, 4),
        "end": {name: round(lines[-1][name], 4) for name in ("step", "seconds", "val_loss")},
    }


def ablation(options, folder):
    """Validation loss and milliseconds a step of the preset without each of its tricks, told as they come."""
    preset = {"arch": "llama", **preset_settings("llama", options.preset), "data": DATA, "seed": options.seed}
    steps = options.steps or preset["steps"]
    table = {}
    for number, (name, change) in enumerate(ABLATION.items()):
        base = {**preset, "model": {}} if "arch" in change else preset
        line = train(merge(base, change, {"steps": steps, "eval_every": steps}), folder / str(number))[-1]
        milliseconds = line["seconds"] / line["step"] * 1e3
        print(f"{name}: {line['val_loss']:.4f} nats, {milliseconds:.1f} ms a step", file=sys.stderr, flush=True)
        table[name] = {"val_loss": round(line["val_loss"], 4), "ms_per_step": round(milliseconds, 1)}
    return {"steps": steps, **table}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("nanogpt", nargs="?", help="folder of a clone of nanoGPT")
    parser.add_argument("--preset", default="speedrun")
    parser.add_argument("--target", type=float, default=1.898)
    parser.add_argument("--seed", type=int, default=1337)
    parser.add_argument("--ablation", action="store_true")
    parser.add_argument("--steps", type=int, help="of each run of the ablation; as many as the preset's without it")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if not options.ablation and options.nanogpt is None:
        parser.error("name the folder of a clone of nanoGPT, or ask for the --ablation")
    with tempfile.TemporaryDirectory() as folder:
        result = (ablation if options.ablation else race)(options, Path(folder))
    print(json.dumps(result) if options.json else "\n".join(f"{key}: {value}" for key, value in result.items()))


if __name__ == "__main__":
    main()
