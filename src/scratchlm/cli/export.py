"""scratchlm export DIR: a run's model in the files of another library."""

from pathlib import Path
from typing import Literal

from scratchlm.checkpoint import RunFolder
from scratchlm.cli.sample import introduce
from scratchlm.errors import InputError


def command(directory: str, /, *, to: Literal["hf", "peft"], out: str | None = None, checkpoint: str = "last") -> int:
    """Write a run's model in the files of another library.

    Parameters
    ----------
    directory
        The run's folder.
    to
        hf: config.json and model.safetensors as on Hugging Face's hub; of a Backpack as in stanfordnlp/backpack-gpt2,
        whose code opens it. peft: adapter_config.json and adapter_model.safetensors of a GPT's adapter, which PEFT
        lays on what --to hf makes of its base.
    out
        The new folder; without it DIR-hf.
    checkpoint
        last, best, or a step.
    """
    if out == "":
        raise InputError("--out is empty; name a folder, or leave it out")
    run = RunFolder.open(directory)
    folder = Path(out) if out else run.path.parent / f"{run.path.resolve().name}-{to}"
    found, damaged = run.find(checkpoint)
    match to:
        case "hf":
            from scratchlm.interop.hub import export_run as write
        case "peft":
            from scratchlm.interop.peft import export_adapter as write
    write(run, found, folder)
    introduce(run, found, damaged)
    print(f"{folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}")
    return 0
