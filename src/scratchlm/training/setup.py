"""A new run's folder: settings checked, text read, tokenizer and tokens made, all of it or nothing."""

import statistics
import sys
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from scratchlm import runtime, tokenizers
from scratchlm.checkpoint import Checkpoint, RunFolder, build_model, lay_adapter, meta_model
from scratchlm.config import RunConfig, make_config, merge, settings_of
from scratchlm.data.pair_batches import Pairs
from scratchlm.data.shards import Tokens, write_shards
from scratchlm.distribution import launched
from scratchlm.errors import InputError
from scratchlm.files import is_taken, new_folder, write_json
from scratchlm.lora import size
from scratchlm.model import State
from scratchlm.tokenizers import Learning, Tokenizer
from scratchlm.training.loggers import require_logger
from scratchlm.training.material import (
    PreparedMaterial,
    are_pairs,
    as_pairs,
    read_material,
    resolve,
    training_batches,
    with_prepared,
)
from scratchlm.training.sharding import check_shares
from scratchlm.training.step import Training

ADAPTER_LR = 2e-4  # the highest rate of an adapter on weights from elsewhere: Hu et al. 2021, table 9, for GPT-2
TUNING_LR = 3e-5  # that of all such weights: nanoGPT's setting for fine-tuning GPT-2
ADAPTER_SHARE = 3.0  # that of an adapter in times of its base's, which all of the weights keep: docs/lora.md
TRANSLATING = 2.0  # what scoring and translating pairs takes, as a share of training on as many


def free_folder(name: str) -> Path:
    """runs/NAME, or the first of runs/NAME-2, runs/NAME-3, ... that is not there yet."""
    number = 1
    while (folder := Path("runs") / (name if number == 1 else f"{name}-{number}")).exists():
        number += 1
    return folder


def finetune_settings(base: RunFolder, given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a run that starts from another's weights: `given`, and below it what is the base's own.

    Batches are the base's; of an imported one, which brings none, small enough for a laptop.
    Raises InputError where the base is no model by itself.
    """
    config, imported = base.config(), "imported" in base.manifest()
    if config.lora is not None:
        raise InputError(f"{base.path} is an adapter, and no model by itself: scratchlm merge {base.path} makes one")
    kept = ("arch", "model", "tokenizer", "errors", "batch_size", "batch_tokens", "label_smoothing", "window", "carry")
    settings = {name: value for name, value in settings_of(config).items() if name in (*kept, "accumulate", "optim")}
    if imported:
        window = min(getattr(config.model, "context", None) or 256, 256)
        settings |= {"batch_size": 4, "accumulate": 1, "window": window}
    adapted, asked = given.get("lora") is not None, given.get("optim") or {}
    own = config.optim.lr * (ADAPTER_SHARE if adapted else 1)
    lr = asked.get("lr") or ((ADAPTER_LR if adapted else TUNING_LR) if imported else own)
    steps = given.get("steps") or 500
    rates = {"lr": lr, "min_lr": float(f"{lr / 10:.4g}"), "warmup": min(20, steps // 10)}
    optim = {**settings["optim"], "schedule": "cosine", **rates}
    return merge({**settings, "optim": optim, "steps": steps, "eval_every": min(100, steps)}, given)


def create_run(
    settings: Mapping[str, Any],
    folder: Path,
    fit_seconds: float | None = None,
    follow: Callable[[Generator[Learning, None, Tokenizer]], Tokenizer] = tokenizers.exhaust,
    base: tuple[RunFolder, Checkpoint] | None = None,
    processes: int = 1,
) -> tuple[RunFolder, RunConfig]:
    """The folder of a new run, ready to be trained, and its settings as asked for.

    `fit_seconds`: where this machine would need much longer, the run gets fewer steps, which its config.json says.
    `follow` takes the tokenizer's training to its end, and may show how far it is.
    `base`: whose weights it starts from and whose tokenizer it has; the settings have the base's shape.
    `processes`: how many will share a batch.
    Raises InputError for bad settings or text, and for a folder that is there already; nothing is left behind then.
    """
    if is_taken(folder):
        raise InputError(
            f"{folder} is there already: continue it with scratchlm resume {folder}, or name another folder with --out"
        )
    if base is None and (settings.get("base") or settings.get("lora")):
        raise InputError("these settings start from another run's weights (base, lora); use scratchlm finetune DIR")
    if base is not None and not are_pairs(settings) and (own := base[0].tokenizer()).source is not own:
        raise InputError(f"{base[0].path} has a tokenizer for each side of pairs, and the data are a text; give pairs")
    asked_size = (settings.get("model") or {}).get("vocab_size")
    known = {"model": {**(settings.get("model") or {}), "vocab_size": asked_size or 1}, "pairs": are_pairs(settings)}
    config = resolve(make_config(with_prepared({**settings, **known}, folder, base is not None)))
    device, _ = runtime.choose_device(config.device)
    runtime.choose_precision(config.precision, device)
    runtime.check_devices(config.device, processes)
    require_logger(config.logger)
    check_shares(config, max(processes, launched().size))

    material = read_material(config)
    tokenizer = follow(material.learn_tokenizer(config)) if base is None else base[0].tokenizer()
    if base is None and asked_size not in (None, tokenizer.vocab_size):
        raise InputError(
            f"model.vocab_size is {asked_size}, but the tokenizer has {tokenizer.vocab_size} tokens; "
            "leave it out, or give the tokenizer's file with --tokenizer"
        )
    if base is not None and config.pairs and tokenizer.end_of_text is None:
        raise InputError(
            f"{base[0].path} has a tokenizer without an end-of-text token, which parts a source from its target; start "
            "from a run that learned from pairs"
        )
    if base is None:  # an imported base may have rows that stand for no token
        config = replace(config, model=replace(config.model, vocab_size=tokenizer.vocab_size))
    asked = config
    check_memory(config, processes if device.type == "cpu" else 1)
    data: Mapping[str, Tokens | Pairs]
    if isinstance(material, PreparedMaterial):
        tokens, data = {}, material.splits(tokenizer, config)
    else:
        tokens = material.tokenize(tokenizer, config)
        data = {name: as_pairs(ids, tokenizer) if config.pairs else Tokens.of(ids) for name, ids in tokens.items()}

    if fit_seconds is not None:
        sharing = 1 if device.type == "cpu" else processes  # on a CPU they share its cores too
        config = fit_steps(config, data["train"], data["validation"], fit_seconds, device, sharing)
    with new_folder(folder) as beside:
        if isinstance(material, PreparedMaterial):
            checksum = material.prepared.checksum
        else:
            checksum = write_shards(beside / "data", tokens, tokenizer)
        tokenizer.save(beside / "tokenizer.json")
        RunFolder(beside).write_config(config, checksum, "" if base is None else base[1].sha256)
        write_json(beside / "manifest.json", {"argv": sys.argv, "seed": config.seed, "versions": runtime.versions()})
    return RunFolder(folder), asked


def check_memory(config: RunConfig, processes: int = 1) -> None:
    """Refuse a model whose weights, gradients and two moments, or whose batch, this machine cannot hold.

    So many processes have its memory together, each with a model of its own.
    """
    model = meta_model(config)
    weights = sum(parameter.nbytes for parameter in model.parameters())
    lay_adapter(model, config)
    batch = config.batch_tokens if config.pairs else config.batch_size * config.training_window
    learning = size(model).optimizer_bytes * 3 // 2 * (1 if config.shard else processes)
    need = processes * weights + learning + 8 * batch
    there = runtime.memory_bytes()
    if there is not None and need > there:
        together = f" in {processes} processes" if processes > 1 else ""
        raise InputError(
            f"training this model{together} needs more than {need / 1e9:,.1f} GB, and this machine has "
            f"{there / 1e9:,.1f} GB; make the model (--model.*) or the batch "
            f"({'--batch-tokens' if config.pairs else '--batch-size'}) smaller"
        )


def seconds_per_step(
    config: RunConfig, train: Tokens | Pairs, device: torch.device, processes: int = 1, steps: int = 5
) -> float:
    """How long an update takes on this machine, its batch and optimizer included, in seconds: the median of a few.

    They are those of a model that is thrown away, on the share of a batch that one of so many processes has.
    """
    model = build_model(config)
    lay_adapter(model, config)
    model.to(device)
    batches, times = training_batches(config, train), []
    training = Training(model, config, device, example=batches.part(0, 0, processes)[0])
    states: list[State | None] = [None] * config.accumulate
    for step in range(steps + 2):  # the first two warm up
        start = time.perf_counter()
        training.update(*batches.part(step, 0, processes), states).grad_norm.item()  # waits
        times.append(time.perf_counter() - start)
    return statistics.median(times[2:])


def fit_steps(
    config: RunConfig,
    train: Tokens | Pairs,
    scored: Tokens | Pairs,
    seconds: float,
    device: torch.device,
    processes: int = 1,
) -> RunConfig:
    """The settings with as many steps as this machine does in so many seconds, if all would take a quarter longer."""
    each = seconds_per_step(config, train, device, processes)
    # an evaluation reads without going back: about a third of the work for each token
    if isinstance(train, Pairs) and isinstance(scored, Pairs):
        steps = training_batches(config, train).count * len(scored) / len(train)  # in which as much is read
        evaluation = each * steps * TRANSLATING
    else:
        evaluation = each / 3 * len(scored) / (config.batch_size * config.training_window)
        if config.carry:  # and one pass in a single row, in which each position takes up to what it takes in a batch
            evaluation += each / 3 * len(scored) / config.training_window
    total = config.steps * (each + evaluation / config.eval_every)
    if total <= 1.25 * seconds:
        return config
    steps = max(config.log_every, int(config.steps * seconds / total) // 50 * 50)
    warmup = min(config.optim.warmup, steps // 10)
    return replace(
        config,
        steps=steps,
        eval_every=min(config.eval_every, -(-steps // 4)),  # rounded up, so that the last one is at the end
        optim=replace(config.optim, warmup=warmup),
    )
