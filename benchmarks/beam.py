"""Beam search from memory against the same search that reads each hypothesis again from its start at every step.

    python benchmarks/beam.py [--repeats 3] [--json]

Random weights, 4 prompts, beam 4, 64 target tokens: the encoder-decoder of the preset cmudict after sources of up to 64
tokens, the GPT of the preset laptop after prompts of 64. "decoder" keeps what an encoder made of the source and reads
the target so far again; "everything" encodes the source again too. The end token is made impossible before the last
step, so each search is as long as can be. Times in float32, interleaved, medians, a first round left out; before that
the hypotheses are found in float64 and asserted to be the same.
"""

import argparse
import json
import statistics
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from scratchlm.beams import beam_search
from scratchlm.model import LanguageModel, Source, State
from scratchlm.models import MODELS

ROWS, TOKENS, END = 4, 64, 0
SHAPES = {
    "transformer": {**MODELS["transformer"].presets["cmudict"]["model"], "vocab_size": 70, "context": TOKENS + 1},
    "gpt": {**MODELS["gpt"].presets["laptop"]["model"], "vocab_size": 65},
}


@dataclass(eq=False)
class Read(State):
    """The tokens that were read, and what they followed."""

    tokens: torch.Tensor  # (B, T)
    source: list[torch.Tensor]  # ids (B, S) and lengths (B,), or nothing
    start: Any  # the model's own state before the first token, or None to make it anew


class WithoutMemory(nn.Module):
    """A model that reads all tokens again for each new one."""

    def __init__(self, model: LanguageModel, encodes_again: bool) -> None:
        super().__init__()
        self.model, self.encodes_again = model, encodes_again
        self.config, self.context, self.takes_source = model.config, model.context, model.takes_source

    def initial_state(self, rows, capacity=None, source=None):
        start = None if self.encodes_again else self.model.initial_state(rows, source=source)
        tokens = torch.zeros(rows, 0, dtype=torch.int64)
        return Read(length=0, tokens=tokens, source=[source.ids, source.lengths] if source else [], start=start)

    def forward(self, tokens, state):
        tokens = torch.cat([state.tokens, tokens], 1)
        source = Source(*state.source) if state.source else None
        start = state.start if state.start is not None else self.model.initial_state(len(tokens), source=source)
        features, _ = self.model(tokens, start)
        return features, Read(length=tokens.shape[1], tokens=tokens, source=state.source, start=state.start)

    def readout(self, features):
        return self.model.readout(features)


class Endless(nn.Module):
    """The model with an end token that comes only where it is forced."""

    def __init__(self, model):
        super().__init__()
        self.model, self.config, self.context = model, model.config, model.context
        self.takes_source = model.takes_source
        self.initial_state = model.initial_state

    def forward(self, tokens, state):
        return self.model(tokens, state)

    def readout(self, features):
        logits = self.model.readout(features)
        logits[..., END] -= 1e4
        return logits


def searches(name, shape, repeats):
    torch.manual_seed(0)
    model = MODELS[name](MODELS[name].Config(**shape)).eval()
    vocab_size, source, prompts = model.config.vocab_size, None, [[END]] * ROWS
    sides = {"memory": Endless(model), "decoder": Endless(WithoutMemory(model, encodes_again=False))}
    if model.takes_source:
        source = Source(torch.randint(1, vocab_size, (ROWS, 64)), torch.randint(32, 65, (ROWS,)))
        sides["everything"] = Endless(WithoutMemory(model, encodes_again=True))
    else:
        prompts = torch.randint(1, vocab_size, (ROWS, model.context - TOKENS)).tolist()

    def search(side):
        return beam_search(sides[side], prompts, TOKENS, end=END, beam=4, alternatives=4, source=source)

    model.double()
    found = {side: [[one.tokens for one in row] for row in search(side)] for side in sides}
    assert all(len(tokens) == TOKENS for row in found["memory"] for tokens in row)
    assert all(tokens == found["memory"] for tokens in found.values()), "the hypotheses differ"
    model.float()
    seconds = {side: [] for side in sides}
    for _ in range(repeats + 1):
        for side, measured in seconds.items():
            start = time.perf_counter()
            search(side)
            measured.append(time.perf_counter() - start)
    medians = {side: statistics.median(measured[1:]) for side, measured in seconds.items()}
    return {
        "milliseconds": {side: round(1e3 * median) for side, median in medians.items()},
        "times_faster": {side: round(median / medians["memory"], 1) for side, median in medians.items()},
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    result = {"threads": torch.get_num_threads()}
    for name, shape in SHAPES.items():
        result[name] = searches(name, shape, options.repeats)
    print(json.dumps(result) if options.json else "\n".join(f"{key}: {value}" for key, value in result.items()))


if __name__ == "__main__":
    main()
