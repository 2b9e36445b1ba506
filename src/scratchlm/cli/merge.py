"""scratchlm merge DIR: an adapter put into its base's weights."""

import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from scratchlm import runtime
from scratchlm.checkpoint import Checkpoint, RunFolder, find_base, restore_weights, starting_model
from scratchlm.cli.sample import introduce
from scratchlm.errors import InputError
from scratchlm.files import neighbour
from scratchlm.generation import inference
from scratchlm.lora import fold, size
from scratchlm.model import LanguageModel, Source

TOLERANCE = 1e-3  # of the largest logit


def command(directory: str, /, *, out: str | None = None, base: str | None = None, checkpoint: str = "last") -> int:
    """Put an adapter into its base's weights: a run of plain weights, which needs neither. Both stay as they are.

    Parameters
    ----------
    directory
        The adapter's folder.
    out
        The new folder; without it DIR-merged.
    base
        The folder of the base, if it is no longer where it was.
    checkpoint
        last, best, or a step.
    """
    if out == "":
        raise InputError("--out is empty; name a folder, or leave it out")
    run = RunFolder.open(directory, base)
    config = run.config()
    if config.lora is None:
        raise InputError(f"{directory} has no adapter that could be merged: its weights are plain already")
    folder = Path(out) if out else neighbour(run.path, "merged")
    found, damaged = run.find(checkpoint)
    model, difference = _folded(run, found)
    under = RunFolder(find_base(run).path.parents[1])
    source = {"adapter": str(run.path), "step": found.step, "sha256": found.sha256, "base_sha256": run.base_sha256}
    manifest = {
        "argv": sys.argv,
        "seed": config.seed,
        "versions": runtime.versions(),
        "merged": source,
        **{name: value for name, value in under.manifest().items() if name == "imported"},
    }
    plain = replace(config, base=None, lora=None, optim=under.config().optim)  # the adapter's rate went with it
    RunFolder.create(folder, plain, run.tokenizer(), model.state_dict(), manifest)
    introduce(run, found, damaged)
    print(f"{folder}: {config.arch}, {size(model).parameters:,} parameters; logits as before to {difference:.1e}")
    use = "translate with it: scratchlm translate" if config.pairs else "write with it: scratchlm sample"
    print(f"{use} {folder}")
    return 0


def _folded(run: RunFolder, checkpoint: Checkpoint) -> tuple[LanguageModel, float]:
    """The model with the adapter in its weights, and how far that moves a logit. Raises InputError where it is far."""
    model = starting_model(run)
    restore_weights(model, checkpoint)
    before = _some_logits(model)
    try:
        fold(model)
    except ValueError as error:
        raise InputError(f"{checkpoint.path}: {error}") from error
    difference = (_some_logits(model) - before).abs().max().item()
    if not difference <= TOLERANCE * before.abs().max().item():
        raise InputError(
            f"merged, {run.path} would predict something else: logits differ by {difference:.2g} of "
            f"{before.abs().max().item():.2g}; the adapter's numbers are too large for float32 beside the base's"
        )
    return model, difference


def _some_logits(model: LanguageModel) -> Tensor:
    tokens = torch.arange(min(16, model.context or 16))[None] % model.config.vocab_size
    source = Source(tokens[:, : model.source_context], torch.tensor([1])) if model.takes_source else None
    with inference(model):
        return model.readout(model(tokens, model.initial_state(1, source=source))[0])
