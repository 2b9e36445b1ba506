"""scratchlm export DIR: a run's model in the files of another library."""

from pathlib import Path
from typing import Literal

from scratchlm.checkpoint import RunFolder
from scratchlm.cli.sample import introduce
from scratchlm.errors import InputError
from scratchlm.files import neighbour


def command(
    directory: str,
    /,
    *,
    to: Literal["hf", "peft", "gguf", "onnx"],
    out: str | None = None,
    base: str | None = None,
    checkpoint: str = "last",
) -> int:
    """Write a run's model in the files of another library.

    Parameters
    ----------
    directory
        The run's folder.
    to
        hf: a folder as on Hugging Face's hub, with the tokenizer: a GPT as GPT2LMHeadModel, which transformers opens, a
        Backpack as stanfordnlp/backpack-gpt2, whose code opens it. peft: a GPT's adapter, which PEFT lays on what --to
        hf makes of its base. gguf: model.gguf as llama.cpp opens it, of a GPT. onnx: model.onnx, a graph that
        onnxruntime runs, with what the model remembers as inputs and outputs.
    out
        The new folder; without it DIR-hf, DIR-gguf or DIR-onnx.
    base
        Of an adapter: the folder of its base, if that is no longer where it was.
    checkpoint
        last, best, or a step.
    """
    if out == "":
        raise InputError("--out is empty; name a folder, or leave it out")
    run = RunFolder.open(directory, base)
    folder = Path(out) if out else neighbour(run.path, to)
    found, damaged = run.find(checkpoint)
    match to:
        case "hf":
            from scratchlm.interop.hub import export_run as write
        case "peft":
            from scratchlm.interop.peft import export_adapter as write
        case "gguf":
            from scratchlm.interop.gguf import export_gguf as write
        case "onnx":
            from scratchlm.interop.onnx import export_onnx as write
    write(run, found, folder)
    introduce(run, found, damaged)
    if to == "hf" and run.config().arch == "backpack":
        print(
            "BackpackGPT2LMHeadModel of the hub's code opens it; AutoModelForCausalLM would make a GPT-2 of random "
            "weights"
        )
    print(f"{folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}")
    return 0
