"""Training tokens per second of the CNN against our GPT, and the CNN's cost of a token far from the start.

    python benchmarks/cnn.py [--parameters 1000000] [--repeats 9] [--json]

Both models by Config.sized at the same number of parameters, characters, windows of 256 tokens, in one process,
interleaved; the GPT with the exact GELU, which a CPU computes faster than the tanh one. A step is forward, backward,
clipping and AdamW. Generation is one token after 10 and after 4,000 others.
Imports and warm-up are out of the times; nothing is compiled.
"""

import argparse
import json
import statistics
import time
from dataclasses import replace

import torch

from scratchlm.config import OptimConfig
from scratchlm.data.batches import Batch
from scratchlm.models import MODELS
from scratchlm.training.optim import make_optimizer
from scratchlm.training.step import TrainingStep, update

VOCABULARY, CONTEXT, ROWS, STEPS, TOKENS = 65, 256, 8, 3, 200


def training_step(model, batch):
    optimizer = make_optimizer(model, OptimConfig())
    step = TrainingStep(model)
    return lambda: update(step, optimizer, batch, [None], grad_clip=1.0)


def timed(run, times):
    start = time.perf_counter()
    for _ in range(times):
        run()
    return (time.perf_counter() - start) / times


def interleaved(runs, repeats, times):
    """Seconds of each call, in rounds: every run once a round."""
    seconds = {name: [] for name in runs}
    for run in runs.values():
        timed(run, times)  # warm
    for _ in range(repeats):
        for name, run in runs.items():
            seconds[name].append(timed(run, times))
    return seconds


def one_token_after(model, position):
    tokens = torch.randint(0, VOCABULARY, (1, position + 1))
    with torch.inference_mode():
        _, state = model(tokens[:, :position], model.initial_state(1))

    @torch.inference_mode()
    def run():
        features, _ = model(tokens[:, -1:], state)
        model.readout(features)

    return run


def summary(seconds, name, other):
    ratios = [two / one for one, two in zip(seconds[name], seconds[other], strict=True)]
    return {
        "ratio": round(statistics.median(ratios), 3),
        "quartiles": [round(value, 3) for value in statistics.quantiles(ratios, n=4)[::2]],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--parameters", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.manual_seed(0)
    configs = {
        name: MODELS[name].Config.sized(options.parameters, vocab_size=VOCABULARY, context=CONTEXT)
        for name in ("cnn", "gpt")
    }
    configs["gpt"] = replace(configs["gpt"], activation="gelu")
    models = {name: MODELS[name](config) for name, config in configs.items()}
    batch = Batch(*(torch.randint(0, VOCABULARY, (ROWS, CONTEXT)) for _ in range(2)))
    training = interleaved(
        {name: training_step(model, batch) for name, model in models.items()}, options.repeats, STEPS
    )
    generation = interleaved(
        {position: one_token_after(models["cnn"].eval(), position) for position in (10, 4000)}, options.repeats, TOKENS
    )
    result = {
        "threads": torch.get_num_threads(),
        "models": {name: str(config) for name, config in configs.items()},
        "parameters": {name: sum(p.numel() for p in model.parameters()) for name, model in models.items()},
        "training_tokens_per_second": {
            name: round(ROWS * CONTEXT / statistics.median(values)) for name, values in training.items()
        },
        "training_cnn_over_gpt": summary(training, "cnn", "gpt"),
        "generation_ms_per_token": {
            position: round(1e3 * statistics.median(values), 3) for position, values in generation.items()
        },
        "generation_4000_over_10": summary(generation, 10, 4000),
    }
    print(json.dumps(result) if options.json else "\n".join(f"{key}: {value}" for key, value in result.items()))


if __name__ == "__main__":
    main()
