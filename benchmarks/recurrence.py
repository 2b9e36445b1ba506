"""Milliseconds forward and backward against torch's own recurrent layers and a plain loop, in one process, interleaved.

    python benchmarks/recurrence.py [--threads 1] [--repeats 30] [--json]

One layer as wide as its input, float32, gradients of the input, the first hidden vector and all weights. The plain loop
calls the cell once a step, both products in it, and leaves the rest to autograd. Warm-up is out of the times. Whole
models, in training and in generation, are in `scratchlm bench`.
"""

import argparse
import json
import statistics
import time

import torch
from torch import nn

from scratchlm.models.gru import GatedRecurrentUnit
from scratchlm.models.lstm import LongShortTermMemory
from scratchlm.models.rnn import Elman

LAYERS = {"rnn": (Elman, nn.RNN), "lstm": (LongShortTermMemory, nn.LSTM), "gru": (GatedRecurrentUnit, nn.GRU)}
SHAPES = [(64, 12, 128), (256, 12, 256), (64, 32, 256), (128, 64, 512)]  # T, B, H
SIZE = 64 * 12 * 128  # larger layers are repeated fewer times


def interleaved(runs, repeats):
    """The seconds of each run, taken in turns."""
    times = {name: [] for name in runs}
    for repeat in range(repeats + 2):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if repeat >= 2:
                times[name].append(time.perf_counter() - start)
    return times


def layer_times(layer, reference, shape, repeats):
    steps, rows, width = shape
    ours, theirs = layer(width, width), reference(width, width)
    x, probe = torch.randn(steps, rows, width, requires_grad=True), torch.randn(steps, rows, width)
    memory = tuple(torch.zeros(rows, width, requires_grad=True) for _ in layer.vectors)
    first = tuple(vector[None] for vector in memory)

    def fast():
        torch.autograd.grad(ours(x, memory)[0], [x, *memory, *ours.parameters()], probe)

    def plain():
        hidden, now = [], memory
        for x_t in x.unbind(0):
            now = ours.step(ours.input(x_t), now)
            hidden.append(now[0])
        torch.autograd.grad(torch.stack(hidden), [x, *memory, *ours.parameters()], probe)

    def torchs():
        hidden, _ = theirs(x, first if len(first) > 1 else first[0])
        torch.autograd.grad(hidden, [x, *memory, *theirs.parameters()], probe)

    times = interleaved({"ours": fast, "torch": torchs, "plain loop": plain}, repeats)
    against = {
        name: round(statistics.median(other / own for own, other in zip(times["ours"], times[name], strict=True)), 2)
        for name in ("torch", "plain loop")
    }
    return {
        "shape": shape,
        "ms": {name: round(statistics.median(values) * 1e3, 2) for name, values in times.items()},
        "times_faster_than": against,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--only", choices=LAYERS, help="one kind of layer")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    result = {"threads": options.threads, "layers": {}}
    for name in [options.only] if options.only else LAYERS:
        repeats = [max(3, options.repeats * SIZE // (t * b * h)) for t, b, h in SHAPES]
        result["layers"][name] = [layer_times(*LAYERS[name], *case) for case in zip(SHAPES, repeats, strict=True)]
    if options.json:
        print(json.dumps(result))
        return
    for name, rows in result["layers"].items():
        for row in rows:
            print(name, row)


if __name__ == "__main__":
    main()
