"""What two processes that train together have to come to: each check compares them with one process.

    python two_processes.py FOLDER CHECK ...

runs checks in the process that RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT name, over gloo. The first one writes
FOLDER/results.json: a check's name -> the traceback of whoever failed, or an empty string.
"""

import contextlib
import json
import math
import os
import sys
import traceback
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from contract import source_for
from runs import SETTINGS, run_maker, same_end
from scratchlm import generation
from scratchlm.checkpoint import RunFolder
from scratchlm.config import LoRAConfig, OptimConfig, RunConfig
from scratchlm.data.pair_batches import Pairs
from scratchlm.data.shards import Tokens
from scratchlm.distribution import ALONE, joined
from scratchlm.evaluation import evaluate
from scratchlm.lora import adapt
from scratchlm.models import MODELS
from scratchlm.training import loop
from scratchlm.training.material import training_batches
from scratchlm.training.sharding import carried_tensors, whole
from scratchlm.training.step import Training

CPU = torch.device("cpu")
STEPS = 6
END = 0  # of a source or a target in pairs
WAYS = {  # what is compared, besides DDP and FSDP2 as they are
    "plain": {},
    "accumulated": {"accumulate": 2},
    "rows": {"loss_rows": 7},
    "smoothed": {"label_smoothing": 0.1},
    "recomputed": {"checkpoint_activations": True},
    "everything": {"accumulate": 2, "loss_rows": 7, "label_smoothing": 0.1, "checkpoint_activations": True},
    "lora": {"lora": LoRAConfig(rank=2)},
    "carried": {"carry": True, "accumulate": 2},
    "compiled": {"compile": "on"},
    "muon": {"optim": OptimConfig(name="muon", lr=1e-2, min_lr=1e-3, warmup=0)},
}


def settings(arch, **changed):
    """A tiny run whose batches are uneven: 5 windows, or pairs of several lengths, of which a batch may hold one."""
    pairs = MODELS[arch].takes_source
    optim = OptimConfig(lr=1e-2, min_lr=1e-3, warmup=0)
    own = {"model": MODELS[arch].Config.tiny(), "optim": optim, **changed}
    return RunConfig(
        arch=arch, pairs=pairs, batch_size=5, batch_tokens=30, window=8, steps=STEPS, seed=3, **own
    )  # fmt: skip


def data(arch):
    draw = np.random.default_rng(0)
    if not MODELS[arch].takes_source:
        return Tokens.of(draw.integers(0, 23, 400).astype(np.uint16))
    pairs = [draw.integers(1, 23, length) for _ in range(40) for length in draw.integers(1, 8, 2)]
    return Pairs(Tokens.of(np.concatenate([[*side, END] for side in pairs]).astype(np.uint16)), END)


def prepared(config, world):
    """Training in this world, of a model in float64 that is the same in all of them."""
    torch.manual_seed(0)
    model = MODELS[config.arch](config.model).double()
    if config.lora is not None:
        adapt(model, config.lora)
        with torch.no_grad():  # an adapter begins with no effect, and half of its gradients with it
            for name, parameter in model.named_parameters():
                if parameter.requires_grad and not name.endswith("bias"):
                    parameter.add_(0.05 * torch.randn_like(parameter))
    example = None
    if config.compile != "off":  # one process is left as it is
        config = config if world.size > 1 else replace(config, compile="off")
        example, _ = training_batches(config, data(config.arch)).part(0, world.rank, world.size)
    training = Training(model, config, CPU, world, example)
    assert (training.compilation[:8] == "compiled") == (config.compile == "on"), training.compilation
    gradients = []

    def keep(*_):
        gradients.append({n: whole(p.grad).clone() for n, p in model.named_parameters() if p.grad is not None})

    training.optimizer.register_step_pre_hook(keep)
    return training, gradients


def close(actual, expected, name, tolerance=1e-9):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance, msg=lambda text: f"{name}: {text}")


def scores_the_same(own, one, arch, world):
    """The score of a split, of which each process reads a part, is that of one process."""
    tokens, lengths = data(arch), np.ones(23, dtype=np.int64)
    score, same = (evaluate(model, tokens, lengths, 8, w) for model, w in ((own, world), (one, ALONE)))
    assert abs(score.nats_per_token - same.nats_per_token) < 1e-9
    assert (score.tokens, score.bytes) == (same.tokens, same.bytes)


def equals_one_process(world, arch, shard, way):
    """Losses, gradients, weights, the score of a split and greedy text are those of one process."""
    config = settings(arch, shard=shard, **WAYS[way])
    (one, expected), (own, found) = prepared(config, ALONE), prepared(config, world)
    batches = training_batches(config, data(arch))
    scores_the_same(own.model, one.model, arch, world)  # before a first step too, as a run that is resumed may
    states, expected_states = [None] * config.accumulate, [None] * config.accumulate
    for step in range(STEPS):
        alone = one.update(*batches.part(step, 0, 1), expected_states)
        together = own.update(*batches.part(step, world.rank, world.size), states)
        for name, value in together._asdict().items():  # losses are summed in float32
            close(value.double(), getattr(alone, name).double(), f"step {step}: {name}", 1e-6)
        assert found[-1].keys() == expected[-1].keys()
        for name, gradient in found[-1].items():
            close(gradient, expected[-1][name], f"step {step}: gradient of {name}")
    assert len(expected) in (STEPS, 2 * STEPS)  # a step of Muon is one of AdamW too, and may call hooks twice
    weights = {name: whole(tensor).clone() for name, tensor in own.model.state_dict().items()}
    for name, tensor in one.model.state_dict().items():
        close(weights[name], tensor, name)
    gathered = carried_tensors(states, world)
    for name, tensor in (carried_tensors(expected_states, ALONE) if world.leads else {}).items():
        close(gathered[name], tensor, f"carried {name}")
    scores_the_same(own.model, one.model, arch, world)
    prompts = [[1, 2, 3, 4], [5], [6, 7]]
    texts = [
        generation.generate(
            t.model, prompts, 5, temperature=0, source=source_for(t.model, torch.tensor([p[:1] for p in prompts]))
        )
        for t in (own, one)
    ]
    assert texts[0] == texts[1]


def names(archs, ways=tuple(WAYS)):
    """The checks that compare with one process, for these architectures."""
    return [
        f"{arch}-{'fsdp' if shard else 'ddp'}-{way}"
        for arch in archs
        for shard in (False, True)
        for way in ways
        if way != "compiled" or arch == "gpt"  # a Transformer takes minutes
        if way != "carried" or not hasattr(MODELS[arch].Config.tiny(), "context")
        if way != "lora" or arch != "bigram"  # which has no matrix to be adapted
    ]


@contextlib.contextmanager
def alone():
    """This process sees itself as the only one while the block runs."""
    here = {name: os.environ.pop(name) for name in ("RANK", "WORLD_SIZE")}
    try:
        yield
    finally:
        os.environ.update(here)


def train_on(world, run, steps, processes, **changed):
    """Train a run up to a step, in one process or in both, with some settings changed."""
    if world.leads:
        run.write_config(replace(run.config(), **changed))
    dist.barrier()
    if processes == 2:
        list(loop.train(run, steps=steps))
    elif world.leads:
        with alone():
            list(loop.train(run, steps=steps))
    dist.barrier()


def new_run(world, folder, name, **changed):
    """A run of three steps whose rate stays the same, so that going on is nothing else than being longer."""
    run = RunFolder(folder / name)
    if world.leads:
        own = {"steps": 3, "eval_every": 3, "log_every": 1, "optim": {"lr": 1e-2, "schedule": "constant"}}
        with alone():
            run_maker(folder)(**{**SETTINGS, **own, **changed}).path.rename(run.path)
    dist.barrier()
    return run


DRY = {"model": {**SETTINGS["model"], "dropout": 0.0}}
CARRYING = {"arch": "rnn", "carry": True, "window": 8, "accumulate": 2, "model": {"dim": 16, "hidden_dim": 16}}


def resumes_elsewhere(world, folder, **changed):
    """1 -> 2 -> 1 processes, and DDP -> FSDP2 -> DDP: the losses and weights are those of one process, to 1e-5."""
    straight, moved = (new_run(world, folder, name, **changed) for name in ("straight", "moved"))
    train_on(world, straight, 18, 1)
    for steps, processes, shard in [(3, 1, False), (6, 2, False), (9, 1, False), (12, 2, True), (15, 2, False)]:
        train_on(world, moved, steps, processes, shard=shard)
    train_on(world, moved, 18, 2, shard=True)
    lines, expected = moved.metrics(), straight.metrics()
    assert [line["step"] for line in lines] == [*range(1, 19)] == [line["step"] for line in expected]
    for line, other in zip(lines, expected, strict=True):
        for name in ("loss", "grad_norm", *(["val_loss"] if "val_loss" in line else [])):
            assert math.isclose(line[name], other[name], rel_tol=1e-5), (line, other)
    one, two = (run.checkpoint("last") for run in (straight, moved))
    for tensors, same in ((one.weights(), two.weights()), (one.optimizer(), two.optimizer())):
        kept = {name: tensor for name, tensor in tensors.items() if not name.startswith("random|")}
        assert kept.keys() == {name for name in same if not name.startswith("random|")}
        for name, tensor in kept.items():
            torch.testing.assert_close(same[name], tensor, rtol=1e-4, atol=1e-5, msg=lambda t, n=name: f"{n}: {t}")


def resumes_the_same(world, folder, **changed):
    """Two processes with dropout, stopped and gone on with, are two processes that were not, bit for bit."""
    straight, stopped = (new_run(world, folder, name, **changed) for name in ("straight", "stopped"))
    train_on(world, straight, 6, 2)
    train_on(world, stopped, 3, 2)
    train_on(world, stopped, 6, 2)
    if world.leads:
        same_end(stopped, straight)


def reference(world, folder):
    """The run of two processes that nobody stopped, for those that are killed."""
    run = new_run(world, folder, "run", steps=300, eval_every=20, log_every=5, keep=3, optim=SETTINGS["optim"])
    list(loop.train(run))


RUNS = {
    "reference": reference,
    "elsewhere": partial(resumes_elsewhere, **DRY),
    "elsewhere-carried": partial(resumes_elsewhere, **CARRYING),
    "same-ddp": resumes_the_same,
    "same-fsdp": partial(resumes_the_same, shard=True),
    "same-carried": partial(resumes_the_same, **{**CARRYING, "model": {**CARRYING["model"], "dropout": 0.2}}),
    "same-fp16": partial(resumes_the_same, precision="fp16"),
    "same-bf16-fsdp": partial(resumes_the_same, precision="bf16", shard=True, checkpoint_activations=True),
}


def run(name, world, folder):
    if name in RUNS:
        (folder / name).mkdir(exist_ok=True)
        dist.barrier()
        RUNS[name](world, folder / name)
    else:
        arch, mode, way = name.split("-")
        equals_one_process(world, arch, mode == "fsdp", way)


def main(folder, *names):
    torch.set_num_threads(1)
    torch.compile = partial(torch.compile, backend="aot_eager")  # graphs and their gradients, and no C++ compiler
    results = {}
    with joined(CPU) as world:
        for name in names:
            told = ""
            print(name, flush=True)
            try:
                run(name, world, Path(folder))
            except Exception:
                told = traceback.format_exc()
            everyones = [None] * world.size
            dist.all_gather_object(everyones, told)
            results[name] = "\n".join(f"process {rank}: {one}" for rank, one in enumerate(everyones) if one)
            if results[name]:
                break  # the processes may no longer be at the same place
        if world.leads:
            Path(folder, "results.json").write_text(json.dumps(results), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
    sys.stdout.flush()
    os._exit(0)  # see src/scratchlm/__main__.py
