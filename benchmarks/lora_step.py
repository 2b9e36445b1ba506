"""LoRA against PEFT and against full fine-tuning, on the CPU: time and memory of a training step.

    python benchmarks/lora_step.py [--repeats 15] [--json]

The base has GPT-2's shape (124M) and random weights; a batch is one row of 128 tokens. A step is forward,
cross-entropy, backward, the gradient's norm and the same fused AdamW on all sides, without dropout.

Time: rank 8 beside each query_key_value, here and with PEFT on transformers' GPT2LMHeadModel (c_attn; its memory for
generation off), with the same weights and adapters, in one process, interleaved. A ratio is ours over PEFT's, the
median of rounds. `losses` after as many steps show that both compute the same. `query and value` is rank 8 for these
parts alone, which PEFT does not have; it is held against the same PEFT.

Memory: a step here with an adapter of rank 8 beside query and value, and one of all parameters, each alone in a
process of its own: peak resident size of all of it, imports and base included, and above what was there with the model
loaded; bytes of the optimizer's moments; bytes of the file that holds the adapter.
Imports and warm-up are out of the times; nothing is compiled.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from scratchlm.config import LoRAConfig, OptimConfig, RunConfig
from scratchlm.data.batches import Batch
from scratchlm.lora import adapt, adaptations, trained_tensors
from scratchlm.models.gpt import GPT, GPTConfig
from scratchlm.training.optim import make_optimizer, optimizer_tensors
from scratchlm.training.step import Training

SHAPE = {**GPT.presets["gpt2"]["model"], "dropout": 0.0}
RANK, ALPHA, TOKENS, STEPS = 8, 16.0, 128, 3
OPTIM = OptimConfig(lr=1e-4)
WHOLE, PARTS = ("query_key_value",), ("query", "value")


def gpt():
    torch.manual_seed(0)
    return GPT(GPTConfig(**SHAPE))


def batch():
    tokens = torch.randint(SHAPE["vocab_size"], (1, TOKENS + 1), generator=torch.Generator().manual_seed(1))
    return Batch(tokens[:, :-1], tokens[:, 1:])


def training_of(model):
    return Training(model.train(), RunConfig(arch="gpt", model=model.config, optim=OPTIM), torch.device("cpu"))


def our_step(model):
    training, text = training_of(model), batch()

    def run():
        return training.update(text, text.target_count, [None]).loss.item()

    return run


def their_step(ours):
    """PEFT's step, with the weights and the adapters of our model."""
    from peft import LoraConfig, get_peft_model
    from transformers import GPT2Config, GPT2LMHeadModel

    from scratchlm.interop.hub.gpt2 import places

    off = dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), 0.0)
    base = GPT2LMHeadModel(GPT2Config(use_cache=False, **off))
    weights = ours.state_dict()
    base.load_state_dict(
        {
            place.name: weights[name].mT if place.transposed else weights[name]
            for name, place in places(SHAPE["depth"], "", "transformer.").items()
        },
        strict=False,
    )
    settings = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=["c_attn"], fan_in_fan_out=True)
    model = get_peft_model(base, settings).train()
    with torch.no_grad():
        for name, (_, adaptation) in adaptations(ours).items():
            block = base.transformer.h[int(name.split(".")[1])]
            block.attn.c_attn.lora_A["default"].weight.copy_(adaptation.pairs[0].A)
    optimizer, text = make_optimizer(model, OPTIM), batch()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def run():
        loss = F.cross_entropy(model(text.tokens).logits.flatten(0, 1), text.targets.flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return run


def adapted(targets):
    model = gpt()
    adapt(model, LoRAConfig(rank=RANK, alpha=ALPHA, targets=targets))
    return model


def times(repeats):
    ours = adapted(WHOLE)
    sides = {"scratchlm": our_step(ours), "PEFT": their_step(ours), "query and value": our_step(adapted(PARTS))}
    seconds = {side: [] for side in sides}
    for run in sides.values():
        for _ in range(2):
            run()
    for _ in range(repeats):
        for side, run in sides.items():
            start = time.perf_counter()
            loss = run()
            seconds[side].append(time.perf_counter() - start)
            if len(seconds[side]) == repeats:
                seconds[side].append(loss)
    losses = {side: values.pop() for side, values in seconds.items()}
    return {
        "ms_per_step": {side: round(1e3 * statistics.median(values), 1) for side, values in seconds.items()},
        "ratio": ratio(seconds["scratchlm"], seconds["PEFT"]),
        "ratio_query_and_value": ratio(seconds["query and value"], seconds["PEFT"]),
        "losses": {side: round(loss, 6) for side, loss in losses.items()},
    }


def ratio(ours, theirs):
    ratios = [one / other for one, other in zip(ours, theirs, strict=True)]
    quartiles = statistics.quantiles(ratios, n=4)[::2]
    return f"{statistics.median(ratios):.3f} ({quartiles[0]:.3f} to {quartiles[1]:.3f})"


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def megabytes_of_a_step(side):
    """What this process, which has done nothing else, takes."""
    model = adapted(PARTS) if side == "lora" else gpt()
    loaded = peak()
    training, text = training_of(model), batch()
    for _ in range(STEPS):  # the first one makes AdamW's moments
        training.update(text, text.target_count, [None])
    whole = peak()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.safetensors"
        save_file(trained_tensors(model), file)
        saved = file.stat().st_size
    state = sum(
        t.nbytes for name, t in optimizer_tensors(model, training.optimizer).items() if not name.endswith("|step")
    )
    sizes = {"peak": whole, "above_the_loaded_model": whole - loaded, "optimizer": state, "file": saved}
    return {name: round(size / 1e6, 2) for name, size in sizes.items()}


def memory():
    def measured(side):
        command = [sys.executable, __file__, "--step", side]
        return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    sides = {side: measured(side) for side in ("lora", "full")}
    return {
        **{f"{side}_mb": sizes for side, sizes in sides.items()},
        "ratio": {name: round(size / sides["full"][name], 4) for name, size in sides["lora"].items()},
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--step", metavar="SIDE", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        print(json.dumps(megabytes_of_a_step(options.step)))
        return
    # memory first: on Linux a new process starts with the peak of the one that made it
    result = {"threads": torch.get_num_threads(), "memory": memory(), "time": times(options.repeats)}
    print(json.dumps(result) if options.json else "\n".join(f"{key}: {value}" for key, value in result.items()))


if __name__ == "__main__":
    main()
