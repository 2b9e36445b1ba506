"""scratchlm import PATH: what Hugging Face's libraries have written, as a run."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from scratchlm.checkpoint import RunFolder
from scratchlm.cli.sample import introduce
from scratchlm.cli.tokenizer import open_tokenizer
from scratchlm.errors import InputError
from scratchlm.interop.hub import hub_folder, import_run
from scratchlm.interop.peft import import_adapter
from scratchlm.interop.peft.shared import CONFIG as ADAPTER_CONFIG
from scratchlm.tokenizers import Tokenizer
from scratchlm.training.setup import free_folder


def command(
    path: str,
    /,
    *,
    out: str | None = None,
    tokenizer: str | None = None,
    base: str | None = None,
    unpickle: Annotated[bool, Parameter(negative=())] = False,
) -> int:
    """Make a run of a folder of Hugging Face's: a GPT-2, a Backpack as stanfordnlp/backpack-gpt2, an adapter of PEFT.

    Parameters
    ----------
    path
        The folder, with config.json and model.safetensors in it, in one file or in several with their index. A name on
        the hub, such as gpt2, is fetched from there where no such folder is.
    out
        The run's folder; without it runs/NAME, NAME being that folder's, or the next that is free.
    tokenizer
        What the model was trained with: a published vocabulary (gpt2), a file that scratchlm tokenizer has made, or
        none: ids are its text. Without it the folder's own, tokenizer.json or vocab.json with merges.txt.
    base
        Of an adapter's folder, with adapter_config.json and adapter_model.safetensors in it: the run that it is for.
    unpickle
        Read pytorch_model.bin where there is no model.safetensors. That is a pickle, and a pickle can make whoever
        opens it run code: torch then lets through nothing but tensors, a guard that has had a hole before (mended in
        torch 2.6). Only for files whose maker you trust.
    """
    if out == "":
        raise InputError("--out is empty; name a folder, or leave it out")
    if base is not None:
        return _import_adapter(path, out, base, tokenizer, unpickle)
    if tokenizer in Tokenizer.kinds and not Path(tokenizer).exists():
        raise InputError(
            f"--tokenizer {tokenizer} names a kind, and a model takes the vocabulary that it was trained with: gpt2 "
            "(as published), FILE, or none for ids only"
        )
    source = hub_folder(path, unpickle)
    if (source / ADAPTER_CONFIG).is_file():
        raise InputError(f"{path} is an adapter, and no model by itself; name the run that it is for: --base DIR")
    folder = Path(out) if out else free_folder(Path(path).resolve().name)
    made = import_run(source, folder, tokenizer, open_tokenizer, unpickle)
    shape, known = made.config.model, made.tokenizer.vocab_size
    print(f"{folder}: {made.config.arch}, {shape.parameters:,} parameters out of {made.file}")
    for dtype in sorted(str(dtype).removeprefix("torch.") for dtype in made.dtypes):
        if dtype != "float32":
            print(f"weights in {dtype} became float32, each the same number")
    if shape.vocab_size > known:
        print(
            f"the model has {shape.vocab_size:,} rows for {known:,} tokens: ids from {known:,} on count in its "
            "probabilities and are never drawn"
        )
    for end in made.other_ends:
        print(
            f"in {source} the token {end} ends a text (eos_token_id), here it does not: it is no special token of this "
            f"{made.tokenizer.kind} tokenizer, or not the one that ends its texts"
        )
    print(f"write with it: scratchlm sample {folder}")
    return 0


def _import_adapter(path: str, out: str | None, base: str, tokenizer: str | None, unpickle: bool) -> int:
    if tokenizer is not None or unpickle:
        raise InputError(
            "--tokenizer and --unpickle are for models: an adapter has its base's tokenizer, and no pickle"
        )
    under = RunFolder.open(base)
    checkpoint, damaged = under.find()
    folder = Path(out) if out else free_folder(Path(path).resolve().name)
    run = import_adapter(Path(path), under, checkpoint, folder)
    introduce(under, checkpoint, damaged)
    print(f"{run.path}: an adapter of {base}; write with it: scratchlm sample {run.path}")
    return 0
