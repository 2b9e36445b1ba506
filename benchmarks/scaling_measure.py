"""Coefficients of this machine for benchmarks/scaling.py, into benchmarks/scaling.json, one part at a time.

    OMP_NUM_THREADS=1 python benchmarks/scaling_measure.py rates steps memory links disk start

One thread a process; medians. Seconds of what one or two processes compute are those that a process had a core for,
since others may use the machine: on a quiet one they are the clock's. `load` says how many wanted a core meanwhile.

rates   products of 1024 x 1024 matrices by precision, in operations per second
steps   training steps of three GPTs: operations for each second of forward and backward, all over the rate of products
        (MFU), AdamW; time that a block takes at hardly any width, which is the host's; an evaluation's share of a step
memory  bytes that autograd keeps for the backward pass, for each token and block, by precision and with recomputation
links   all-reduce, all-gather and reduce-scatter of two processes over gloo on loopback, by size
disk    a checkpoint of 124M parameters saved, verified and read; windows read out of mapped shards
alone   core seconds of a step, bytes that collectives are given and bytes held: what the model is to predict
together, together_bf16   the same of two processes
start   a run of one step in two processes against one, from the command line; drawing weights
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from unittest import mock

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from saving import SHAPES
from saving import measure as saved
from scaling import FILE
from scaling_model import per_token_flops
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from scratchlm import layers
from scratchlm.config import RunConfig
from scratchlm.data.batches import Batch, TrainingWindows
from scratchlm.data.shards import Tokens
from scratchlm.distribution import ALONE, World
from scratchlm.evaluation import evaluate, nll
from scratchlm.files import file_sha256
from scratchlm.flops import square_product
from scratchlm.models.gpt import GPT, GPTConfig
from scratchlm.runtime import PRECISIONS, autocast
from scratchlm.training.sharding import local, recompute_activations
from scratchlm.training.step import Training

CPU = torch.device("cpu")
CALIBRATED = {  # shape, windows in a batch
    "0.8M": ({"vocab_size": 65, "context": 64, "dim": 128, "depth": 4, "heads": 4}, 12),
    "10M": ({"vocab_size": 65, "context": 256, "dim": 384, "depth": 6, "heads": 6}, 4),
    "124M": ({"vocab_size": 50257, "context": 64, "dim": 768, "depth": 12, "heads": 12}, 4),
}
MIB = 1 << 20
MIDDLE = {"vocab_size": 65, "context": 128, "dim": 384, "depth": 8, "heads": 6}
CHECKED = {  # processes and what they do -> shape, windows in a batch, settings
    "1 process, 3M": ({"vocab_size": 65, "context": 128, "dim": 256, "depth": 4, "heads": 4}, 8, {}),
    "1 process, 14M": (MIDDLE, 4, {}),
    "1 process, 14M, accumulate 4": (MIDDLE, 4, {"accumulate": 4}),
    "1 process, 14M, checkpoint_activations": (MIDDLE, 4, {"checkpoint_activations": True}),
    "1 process, 30M, vocabulary 50257": ({**MIDDLE, "vocab_size": 50257, "depth": 6}, 2, {}),
    "2 processes, 14M, DDP": (MIDDLE, 4, {}),
    "2 processes, 14M, DDP, accumulate 2": (MIDDLE, 4, {"accumulate": 2}),
    "2 processes, 14M, FSDP2": (MIDDLE, 4, {"shard": True}),
    "2 processes, 14M, FSDP2, accumulate 2": (MIDDLE, 4, {"shard": True, "accumulate": 2}),
    "2 processes, 14M, FSDP2, checkpoint_activations": (MIDDLE, 4, {"shard": True, "checkpoint_activations": True}),
    "2 processes, 14M, FSDP2, bf16": (MIDDLE, 4, {"shard": True, "precision": "bf16"}),
    "2 processes, 14M, FSDP2, bf16, checkpoint_activations": (
        MIDDLE,
        4,
        {"shard": True, "precision": "bf16", "checkpoint_activations": True},
    ),
}


def gpt(**shape):
    return GPT(GPTConfig(dropout=0.0, activation="gelu", **shape))


def batch(model, windows):
    tokens = torch.randint(model.config.vocab_size, (windows, model.context + 1))
    return Batch(tokens[:, :-1], tokens[:, 1:])


def median_seconds(call, repeats, warm=2, clock=time.process_time):
    times = []
    for _ in range(repeats + warm):
        start = clock()
        call()
        times.append(clock() - start)
    return statistics.median(times[warm:])


def product_rate(precision, repeats=20):
    product, operations = square_product(CPU, precision)
    return operations / median_seconds(product, repeats)


def training(model, world=ALONE, **settings):
    return Training(model, RunConfig(arch="gpt", model=model.config, device="cpu", **settings), CPU, world)


def rates():
    return {precision: product_rate(precision, 40) for precision in ("fp32", "bf16")}


def steps():
    rate = product_rate("fp32")
    logits = torch.randn(256, 50257, requires_grad=True)
    targets = torch.randint(50257, (256,))
    per_logit = median_seconds(lambda: nll(logits, targets).backward(), 5) / logits.numel()
    found = {}
    for name, (shape, windows) in CALIBRATED.items():
        model = gpt(**shape)
        ready, given, repeats = training(model), batch(model, windows), 3 if name == "124M" else 9
        tokens = given.tokens.numel()
        flops = tokens * per_token_flops(model.config)
        whole = median_seconds(lambda: ready.update(given, tokens, [None]), repeats)  # noqa: B023
        update = optimizer_seconds(model, ready.optimizer, repeats)
        products = whole - update - per_logit * tokens * model.config.vocab_size
        scored = Tokens.of(given.tokens.flatten().numpy())
        lengths = torch.ones(model.config.vocab_size).numpy()
        score = median_seconds(lambda: evaluate(model, scored, lengths, model.context), repeats)  # noqa: B023
        found[name] = {
            "parameters": model.config.parameters,
            "tokens": tokens,
            "seconds": whole,
            "optimizer_seconds": update,
            "flops_per_second": flops / products,
            "mfu": flops / whole / rate,
            "evaluation_of_step": score / (whole - update),
        }
    thin = [training(gpt(vocab_size=8, context=4, dim=8, depth=depth, heads=1)) for depth in (2, 12)]
    given = batch(thin[0].model, 1)
    few, many = (median_seconds(lambda: t.update(given, 4, [None]), 60, warm=5) for t in thin)  # noqa: B023
    per_parameter = [one["optimizer_seconds"] / one["parameters"] for one in found.values()]
    return {
        "models": found,
        "optimizer_seconds_per_parameter": per_parameter[-1],
        "logit_seconds": per_logit,
        "evaluation_of_step": statistics.median(one["evaluation_of_step"] for one in found.values()),
        "block_host_seconds": (many - few) / 10,
        "step_host_seconds": few - 2 * (many - few) / 10,
    }


def optimizer_seconds(model, optimizer, repeats):
    """Norm, clipping and AdamW, as `Training.update` does them."""
    parameters = [*model.parameters()]

    def call():
        torch.nn.utils.clip_grad_norm_(parameters, 1e9)
        optimizer.step()

    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, 1e-9)
    seconds = median_seconds(call, repeats, warm=1)
    optimizer.zero_grad(set_to_none=True)
    return seconds


def kept_bytes(forward, model):
    """Bytes kept for the backward pass, after a call that leads to it: activations, and copies of weights in bf16."""
    own = {local(parameter).untyped_storage().data_ptr() for parameter in model.parameters()}
    shapes = {tuple(sorted(parameter.shape)) for parameter in model.parameters() if parameter.ndim == 2}
    storages = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            copy = tensor.dtype == torch.bfloat16 and tuple(sorted(tensor.shape)) in shapes
            storages[storage.data_ptr()] = (storage, copy)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = forward()
    assert result.requires_grad
    # what a collective had gathered and has been given back has no bytes any more
    return [sum(storage.nbytes() for storage, copy in storages.values() if copy == copies) for copies in (False, True)]


def blocks_kept(shape, precision, recomputed=False, kernel=True):
    """`kept_bytes` of a GPT without its loss. `kernel`: attention is fused, as on a GPU in bf16."""
    model = gpt(**shape)
    if recomputed:
        recompute_activations(model)
    fused = mock.patch.object(layers, "fused_attention", _kernel) if kernel else nullcontext()
    with fused, autocast(CPU, PRECISIONS[precision]):
        return kept_bytes(lambda: model(batch(model, 3).tokens)[0], model)


def _kernel(query, keys, values, dropout=0.0):
    return F.scaled_dot_product_attention(query, keys, values, dropout_p=dropout, is_causal=True)


def per_token(precision, recomputed=False, kernel=True, heads=4, context=40):
    """Bytes of a block for each token, copies of weights not counted."""
    shape = {"vocab_size": 31, "context": context, "dim": 128, "heads": heads}
    two, three = (blocks_kept({**shape, "depth": depth}, precision, recomputed, kernel)[0] for depth in (2, 3))
    return (three - two) / (3 * context)


def memory():
    result = {}
    for precision in ("fp32", "bf16"):
        few, many = (per_token(precision, heads=heads) for heads in (4, 8))
        per_head = (many - few) / 4
        result[precision] = {
            "per_dim": (few - 4 * per_head) / 128,
            "per_head": per_head,
            "recomputed_per_dim": per_token(precision, recomputed=True) / 128,
        }
    short, long = (per_token("bf16", kernel=False, context=context) for context in (40, 80))
    result["bf16"]["written_out_per_head_and_visible_token"] = (long - short) / 4 / 40
    shape = {"vocab_size": 31, "context": 40, "dim": 128, "depth": 3, "heads": 4}
    matrices = sum(p.numel() for n, p in gpt(**shape).named_parameters() if p.ndim == 2 and "embedding" not in n)
    result["bf16"]["copies_per_matrix_parameter"] = blocks_kept(shape, "bf16")[1] / matrices
    return result


def spawned(function, processes, *given):
    """What the first of so many processes returns."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_joined, (function, processes, folder, given), nprocs=processes)
        return json.loads(Path(folder, "out").read_text(encoding="utf-8"))


def _joined(rank, function, processes, folder, given):
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # FutureWarning, of names that are newer than torch 2.6
    dist.init_process_group("gloo", init_method=f"file://{folder}/place", rank=rank, world_size=processes)
    found = function(World(rank, processes), *given)
    if rank == 0:
        Path(folder, "out").write_text(json.dumps(found), encoding="utf-8")
    dist.destroy_process_group()


def _agreement(world):
    """Of many the fastest tenth's: whoever has no core makes all of a ring wait, and on its own node each has one."""
    times = []
    for _ in range(500):
        start = time.perf_counter()
        world.any(False)
        times.append(time.perf_counter() - start)
    return statistics.quantiles(times, n=10)[0]


def _collectives(_):
    found = {"all_reduce": {}, "all_gather": {}, "reduce_scatter": {}}
    for size in (1 << 14, 1 << 18, MIB, 4 * MIB, 25 * MIB, 64 * MIB):
        whole = torch.zeros(max(1, size // 4))
        half = torch.ones(max(1, size // 8))
        both = torch.ones(2 * len(half))
        calls = {
            "all_reduce": lambda: dist.all_reduce(whole),  # noqa: B023
            "all_gather": lambda: dist.all_gather_into_tensor(both, half),  # noqa: B023
            "reduce_scatter": lambda: dist.reduce_scatter_tensor(half, both),  # noqa: B023
        }
        for name, call in calls.items():
            found[name][size] = median_seconds(call, 40 if size < MIB else 15)
    return found


def links():
    times, agreed = spawned(_collectives, 2), {n: spawned(_agreement, n) for n in (2, 4, 8)}
    large, n = str(25 * MIB), 2
    # of a ring: all-reduce sends 2 (n - 1) / n of the bytes in 2 (n - 1) hops, the others half of both
    return {
        "seconds": times,
        "reduce_bytes_per_second": 2 * (n - 1) / n * 25 * MIB / times["all_reduce"][large],
        "gather_bytes_per_second": (n - 1) / n * 25 * MIB / times["all_gather"][large],
        "scatter_bytes_per_second": (n - 1) / n * 25 * MIB / times["reduce_scatter"][large],
        "agreement_seconds": agreed,
        "hop_seconds": agreed[2] / (2 * (n - 1)),  # where each process has a core; more of them show the ring
    }


class Collectives(TorchDispatchMode):
    """Bytes of the whole tensors that collectives work on, by their names; numbers that processes agree on left out."""

    def __init__(self):
        super().__init__()
        self.bytes = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "c10d":
            size = max(leaf.nbytes for leaf in tree_leaves(args) if isinstance(leaf, torch.Tensor))
            self.bytes[func._schema.name.removeprefix("c10d::")] += size if size > 64 else 0
        return func(*args, **(kwargs or {}))


def _checked(world, names):
    found = {}
    for name in names:
        shape, windows, settings = CHECKED[name]
        torch.manual_seed(0)
        model = gpt(**shape)
        ready = training(model, world, batch_size=windows, **settings)
        given, tokens = batch(model, windows // world.size), windows * model.context
        states = [None] * ready.parts
        seconds = median_seconds(lambda: ready.update(given, tokens, states), 3, warm=1)  # noqa: B023
        with Collectives() as counted:
            ready.update(given, tokens, states)
        moments = [value for state in ready.optimizer.state.values() for value in state.values() if value.ndim]

        def forward():
            with ready.autocast():  # noqa: B023
                return ready.step(given.part(0, ready.parts), None)[0]  # noqa: B023

        found[name] = {
            "shape": shape,
            "windows": windows,
            "processes": world.size,
            "accumulate": ready.parts,
            "shard": ready.sharded,
            "recompute": settings.get("checkpoint_activations", False),
            "precision": settings.get("precision", "fp32"),
            "core_seconds": seconds,
            "collectives": dict(counted.bytes),
            "held": sum(local(tensor).nbytes for tensor in [*ready.parameters(), *moments]),
            "kept": kept_bytes(forward, model),
        }
    return found


def checked(processes, precision="fp32"):
    names = [
        name
        for name in CHECKED
        if name.startswith(f"{processes} ") and CHECKED[name][2].get("precision", "fp32") == precision
    ]
    return {"runs": spawned(_checked, processes, names)}


def alone():
    return checked(1)


def together():
    return checked(2)


def together_bf16():
    return checked(2, "bf16")


def disk():
    with tempfile.TemporaryDirectory(dir=".") as folder:
        checkpoint = saved(SHAPES["124M"], Path(folder), 3)
        tokens, file = np.random.default_rng(0).integers(50257, size=1 << 27, dtype=np.uint16), Path(folder, "t.npy")
        np.save(file, tokens)
        start = time.perf_counter()
        file_sha256(file)
        hashing = file.stat().st_size / (time.perf_counter() - start)
        windows = TrainingWindows(Tokens([file], [len(tokens)], in_memory_bytes=0), 1024, 64, seed=0)
        steps = iter(range(1000))
        seconds = median_seconds(lambda: windows.batch(next(steps)), 100)
    return {
        "save_bytes_per_second": 1e6 * checkpoint["megabytes"] / checkpoint["seconds"]["checkpoint"],
        "hash_bytes_per_second": hashing,
        "window_tokens_per_second": 64 * 1024 / seconds,
    }


def start():
    draw = median_seconds(lambda: torch.nn.init.normal_(torch.empty(20_000_000), std=0.02), 3)
    tiny = ["--steps", "1", "--model.context", "16", "--model.dim", "16", "--data", "shakespeare-tiny"]
    seconds = {}
    for processes in (1, 2):
        with tempfile.TemporaryDirectory() as folder:
            given = ["train", "gpt", *tiny, "--out", f"{folder}/run", "--nproc", str(processes)]
            command = [sys.executable, "-m", "scratchlm", *given]
            seconds[processes] = median_seconds(
                lambda: subprocess.run(command, check=True, capture_output=True),  # noqa: B023
                repeats=1,
                warm=0,
                clock=time.perf_counter,
            )
    return {"draw_parameters_per_second": 20e6 / draw, "run_of_a_step_seconds": seconds}


PARTS = {part.__name__: part for part in (rates, steps, memory, links, alone, together, together_bf16, disk, start)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("parts", nargs="+", choices=PARTS)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    content = json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}
    for name in parser.parse_args().parts:
        began = time.perf_counter()
        result = PARTS[name]()
        load = round(os.getloadavg()[0], 1)
        content.setdefault("measured", {})[name] = {**result, "load": load}
        print(name, f"{time.perf_counter() - began:.0f} s", json.dumps(result, indent=1))
    FILE.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
