"""scratchlm merge DIR: an adapter put into its base's weights."""

import sys
from dataclasses import replace
from pathlib import Path

from scratchlm import runtime
from scratchlm.checkpoint import RunFolder, plain_weights
from scratchlm.cli.sample import introduce
from scratchlm.errors import InputError
from scratchlm.files import neighbour


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
    weights = plain_weights(run, found)
    source = {"adapter": str(run.path), "step": found.step, "sha256": found.sha256, "base_sha256": run.base_sha256}
    manifest = {"argv": sys.argv, "seed": config.seed, "versions": runtime.versions(), "merged": source}
    RunFolder.create(folder, replace(config, base=None, lora=None), run.tokenizer(), weights, manifest)
    introduce(run, found, damaged)
    print(f"{folder}: {config.arch}, {config.model.parameters:,} parameters; write with it: scratchlm sample {folder}")
    return 0
