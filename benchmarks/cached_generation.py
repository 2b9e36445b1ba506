"""Generation from the kept keys and values against recomputing everything for each token, in one process.

    python benchmarks/cached_generation.py [--prompt 512] [--tokens 256] [--json]

The preset gpt2 (124M parameters) at random weights, greedy, batch 1. Both sides choose the same tokens.
"""

import argparse
import json
import time

import torch

from scratchlm.generation import generate
from scratchlm.models import MODELS


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.manual_seed(0)
    model = MODELS["gpt"](MODELS["gpt"].Config(**MODELS["gpt"].presets["gpt2"]["model"])).eval()
    prompt = torch.randint(0, model.config.vocab_size, (options.prompt,)).tolist()
    generate(model, [prompt], 2, temperature=0)  # warm

    start = time.perf_counter()
    cached = generate(model, [prompt], options.tokens, temperature=0)[0]
    with_memory = time.perf_counter() - start

    recomputed = list(prompt)
    start = time.perf_counter()
    with torch.inference_mode():
        for _ in range(options.tokens):
            features, _ = model(torch.tensor([recomputed]))
            recomputed.append(model.readout(features[:, -1]).argmax(-1).item())
    without = time.perf_counter() - start

    result = {
        "threads": torch.get_num_threads(),
        "tokens_per_second": {
            "cached": round(options.tokens / with_memory, 1),
            "recomputed": round(options.tokens / without, 2),
        },
        "times_faster": round(without / with_memory, 1),
        "same_tokens": cached == recomputed,
    }
    print(json.dumps(result) if options.json else "\n".join(f"{key}: {value}" for key, value in result.items()))


if __name__ == "__main__":
    main()
