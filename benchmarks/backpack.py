"""What a Backpack costs above its trunk, on the CPU: time of a forward pass, memory of a training step.

    python benchmarks/backpack.py [--repeats 7] [--json]

Forward passes of the trunk alone and of the Backpack, without gradients, in one process, interleaved; random weights,
tokens as frequent as words are (Zipf). `tabulated`: the senses of the text's tokens were computed beforehand, as in a
finished model they can be. A ratio is Backpack over trunk, the median of rounds; `readout` is the product with the
embedding, which both end with.

Memory of the training step (forward, loss, backward, AdamW) above the trunk's, each alone in a process of its own: its
peak resident size, and the bytes that its graph keeps for the backward pass, each storage once and without the
parameters. `naive` gathers the senses of every position, B * T * k * d numbers, and lets autograd keep them.
Imports and warm-up are out of the times; nothing is compiled.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

import torch

from scratchlm.config import RunConfig
from scratchlm.data.batches import Batch
from scratchlm.models.backpack import Backpack, BackpackConfig, SenseSum
from scratchlm.models.gpt import GPT
from scratchlm.training.step import Training

VOCABULARY = {"laptop": 4096, "micro": 50264, "small": 50264}
FORWARD = {"small": (1, 512, 1), "laptop": (1, 128, 20)}  # rows, tokens, rounds for each repeat: short ones are noisy
TRAINING = {"laptop": (16, 128), "micro": (4, 512)}
SIDES = ("trunk", "backpack", "naive")


def configuration(preset):
    return BackpackConfig(**{**Backpack.presets[preset]["model"], "vocab_size": VOCABULARY[preset]})


def words(preset, shape):
    """Tokens of which the n-th is one n-th as frequent as the first."""
    frequencies = 1 / torch.arange(1, VOCABULARY[preset] + 1)
    return torch.multinomial(frequencies, shape[0] * shape[1], replacement=True).view(shape)


def forward(preset, repeats):
    model, tokens = Backpack(configuration(preset)).eval(), words(preset, FORWARD[preset][:2])
    with torch.inference_mode():
        known = tokens.unique()
        computed, table = model.senses, model.senses(known)

        def run(side):
            """Seconds of the features, and of features and readout."""
            model.senses = (lambda ids: table[torch.searchsorted(known, ids)]) if side == "tabulated" else computed
            start = time.perf_counter()
            features, _ = (model.trunk if side == "trunk" else model)(tokens)
            between = time.perf_counter()
            model.readout(features)
            return between - start, time.perf_counter() - start

        sides = ("trunk", "tabulated", "computed")
        for side in sides:
            run(side)
        rounds = [[run(side) for side in sides] for _ in range(repeats * FORWARD[preset][2])]
    result = {"tokens": list(tokens.shape), "different_tokens": len(known)}
    for which, name in enumerate(("without_readout", "with_readout")):
        seconds = {side: [one[at][which] for one in rounds] for at, side in enumerate(sides)}
        result[name] = {
            "ms": {side: round(1e3 * statistics.median(times), 1) for side, times in seconds.items()},
            **{f"ratio_{side}": ratio(seconds[side], seconds["trunk"]) for side in sides[1:]},
        }
    return result


def ratio(ours, theirs):
    ratios = [one / other for one, other in zip(ours, theirs, strict=True)]
    quartiles = statistics.quantiles(ratios, n=4)[::2]
    return f"{statistics.median(ratios):.3f} ({quartiles[0]:.3f} to {quartiles[1]:.3f})"


def naive_sum(weights, senses, index):
    return torch.einsum("blts,bsld->btd", weights, senses[index])


def megabytes_of_a_step(side, preset):
    """Peak resident size of this process, which has done nothing else, and what the graph of the loss keeps."""
    torch.manual_seed(0)
    config = configuration(preset)
    model = GPT(config.trunk) if side == "trunk" else Backpack(config)
    if side == "naive":
        SenseSum.apply = naive_sum
    batch = Batch(words(preset, TRAINING[preset]), words(preset, TRAINING[preset]))
    training = Training(model, RunConfig(arch="backpack", model=config), torch.device("cpu"))
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()  # the graph holds it, so its address stays its own
        return tensor

    for _ in range(2):  # the first step makes AdamW's moments
        training.update(batch, batch.target_count, [None])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = training.step(batch)[0]
    assert loss.requires_grad, "the graph still holds what was counted"
    return {
        "saved": sum(kept.values()) / 1e6,
        "peak": peak / 1e6,
        "resting": 4 * sum(p.nbytes for p in model.parameters()) / 1e6,  # weights, gradients, two moments
    }


def training(preset):
    def measured(side):
        command = [sys.executable, __file__, "--step", side, preset]
        return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    sides = {side: measured(side) for side in SIDES}
    batch, tokens = TRAINING[preset]
    config = configuration(preset)
    above = {
        side: {name: round(value - sides["trunk"][name], 1) for name, value in sides[side].items()}
        for side in SIDES[1:]
    }
    return {
        "tokens": [batch, tokens],
        "senses_of_every_position_mb": round(batch * tokens * config.senses * config.dim * 4 / 1e6, 1),
        "trunk_mb": {name: round(value, 1) for name, value in sides["trunk"].items()},
        "above_the_trunk_mb": above,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--step", nargs=2, metavar=("SIDE", "PRESET"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        print(json.dumps(megabytes_of_a_step(*options.step)))
        return
    torch.manual_seed(0)
    result = {"threads": torch.get_num_threads()}
    # memory first: on Linux a new process starts with the peak of the one that made it
    result |= {f"training_{preset}": training(preset) for preset in TRAINING}
    result |= {f"forward_{preset}": forward(preset, options.repeats) for preset in FORWARD}
    print(json.dumps(result) if options.json else "\n".join(f"{key}: {value}" for key, value in result.items()))


if __name__ == "__main__":
    main()
