"""Saving a checkpoint against a plain write of the same bytes, in one process, interleaved.

    python benchmarks/saving.py [FOLDER] [--repeats 5] [--json]

A checkpoint is the weights and the two moments of AdamW, hashed, synced and renamed; the plain write puts the
same bytes into one file and syncs it. FOLDER is on the disk to be measured. Both sides write files that were not there.
"""

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import torch

from scratchlm.checkpoint import RunFolder, build_model
from scratchlm.config import make_config
from scratchlm.data.shards import write_shards
from scratchlm.tokenizers import ByteTokenizer

SHAPES = {"0.8M": {"context": 64, "dim": 128, "depth": 4, "heads": 4}, "124M": {}}


def plain_write(path, data):
    start = time.perf_counter()
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return time.perf_counter() - start


def measure(shape, folder, repeats):
    run = RunFolder(folder)
    vocabulary = 65 if shape else 50257
    config = make_config({"arch": "gpt", "model": {**shape, "vocab_size": vocabulary}})
    ByteTokenizer().save(folder / "tokenizer.json")
    run.write_config(config, write_shards(folder / "data", {}, ByteTokenizer()))
    model = build_model(config)
    weights = model.state_dict()
    moments = {f"{n}|{m}": torch.randn_like(w) for n, w in weights.items() for m in ("exp_avg", "exp_avg_sq")}
    size = sum(tensor.nbytes for tensor in (*weights.values(), *moments.values()))
    data = os.urandom(1 << 20) * (size // (1 << 20) + 1)
    data = memoryview(data)[:size]
    state = {"best_step": None, "best_loss": None, "val_loss": None}
    ours, plain = [], []
    for repeat in range(repeats + 1):
        start = time.perf_counter()
        saved = run.save(repeat, weights, moments, state)
        ours.append(time.perf_counter() - start)
        plain.append(plain_write(folder / "plain", data))
        (folder / "plain").unlink()
        shutil.rmtree(saved.path)
    ratios = [one / other for one, other in zip(ours[1:], plain[1:], strict=True)]  # the first warms up
    return {
        "megabytes": round(size / 1e6, 1),
        "seconds": {
            "checkpoint": round(statistics.median(ours[1:]), 4),
            "plain": round(statistics.median(plain[1:]), 4),
        },
        "ratio": round(statistics.median(ratios), 2),
        "ratios": [round(ratio, 2) for ratio in sorted(ratios)],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", nargs="?", default=".")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    results = {}
    for name, shape in SHAPES.items():
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            results[name] = measure(shape, Path(folder), options.repeats)
    print(json.dumps(results) if options.json else "\n".join(f"{key}: {value}" for key, value in results.items()))


if __name__ == "__main__":
    main()
