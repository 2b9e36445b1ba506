"""A folder of the hub as a run of ours, and the other way round."""

import json
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from scratchlm import runtime
from scratchlm.checkpoint import Checkpoint, RunFolder, meta_model, plain_weights, read_tensors
from scratchlm.config import RunConfig, make_config
from scratchlm.errors import InputError
from scratchlm.files import file_sha256, new_folder, sync, write_json
from scratchlm.interop.hub.backpack import BACKPACK
from scratchlm.interop.hub.layout import Layout
from scratchlm.interop.vocabularies import write_hub_tokenizer
from scratchlm.tokenizers import Tokenizer

CONFIG, SAFETENSORS, PICKLE = "config.json", "model.safetensors", "pytorch_model.bin"
LAYOUTS = {"backpack": BACKPACK}
NO_DATA = "none"  # what an imported run's settings call its text


@dataclass(frozen=True, kw_only=True)
class Imported:
    """What an import has made: the run, the file of its weights, and what they were there."""

    run: RunFolder
    config: RunConfig
    tokenizer: Tokenizer
    file: Path
    dtypes: frozenset[torch.dtype]


def import_run(
    path: Path, folder: Path, named: str, open_tokenizer: Callable[[str], Tokenizer], unpickle: bool = False
) -> Imported:
    """A new run out of a folder of the hub. `named`: what its settings call the tokenizer, which is opened by that.

    `unpickle`: a pickle may be read, as weights only, where there is no safetensors file.
    Raises InputError for a folder that is no model that is known here, or not all of one; nothing is left behind then.
    """
    content = _read_config(path)
    arch, layout = _layout(path, content)
    with _naming(path / CONFIG):
        shape = layout.read_shape(content)
        config = make_config({"arch": arch, "data": NO_DATA, "tokenizer": named, "model": shape})
    tokenizer = open_tokenizer(named)
    if config.model.vocab_size < tokenizer.vocab_size:
        raise InputError(
            f"the tokenizer {named} has {tokenizer.vocab_size} tokens, and the model knows {config.model.vocab_size}; "
            "give the one that it was trained with: --tokenizer gpt2 or FILE"
        )
    file, tensors = _read_weights(path, unpickle)
    depth = config.model.depth
    if depth > len(tensors):  # before a model of any depth is laid out
        raise InputError(f"{path / CONFIG}: n_layer is {depth}, and {file} has only {len(tensors)} tensors")
    with _naming(path / CONFIG):
        expected = meta_model(config).state_dict()
    with _naming(file):
        weights = layout.ours(tensors, expected, depth)
    dtypes = frozenset(tensors[place.name].dtype for place in layout.places(depth).values() if place.name in tensors)
    del tensors
    source = {"folder": str(path), "file": file.name, "sha256": file_sha256(file)}
    with new_folder(folder) as beside:
        run = RunFolder(beside)
        tokenizer.save(beside / "tokenizer.json")
        run.write_config(config, "")
        described = {"argv": sys.argv, "seed": config.seed, "versions": runtime.versions(), "imported": source}
        write_json(beside / "manifest.json", described)
        run.save(0, weights, {}, {"best_step": None, "best_loss": None, "val_loss": None})
    return Imported(run=RunFolder(folder), config=config, tokenizer=tokenizer, file=file, dtypes=dtypes)


def export_run(run: RunFolder, checkpoint: Checkpoint, folder: Path) -> None:
    """A checkpoint that was verified, as a folder of the hub: config.json and model.safetensors.

    Raises InputError for a run that has no such layout, and where the folder is there already; nothing is left behind
    then.
    """
    config, end = run.config(), run.tokenizer().end_of_text
    layout = LAYOUTS.get(config.arch)
    if layout is None:
        raise InputError(
            f"{run.path} is a run of {config.arch}, and --to hf can write {', '.join(LAYOUTS)}; export one of these"
        )
    content = {
        "architectures": [layout.architecture],
        **layout.write_shape(config.model),
        "bos_token_id": end,
        "eos_token_id": end,
        "torch_dtype": "float32",
    }
    tensors = layout.theirs(plain_weights(run, checkpoint), config.model.depth)
    with new_folder(folder) as beside:
        (beside / CONFIG).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        write_hub_tokenizer(run.tokenizer(), beside, config.model.context)
        try:
            save_file(tensors, beside / SAFETENSORS, {"format": "pt"})
        except SafetensorError as error:  # what it makes of a full disk
            raise OSError(f"{folder / SAFETENSORS}: {error}") from error
        (beside / SAFETENSORS).chmod((beside / CONFIG).stat().st_mode)  # safetensors would keep it from all others
        for file in (beside / CONFIG, beside / SAFETENSORS, beside):
            sync(file)


@contextmanager
def _naming(file: Path) -> Iterator[None]:
    """Have an error say which file it is about."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{file}: {error}") from error


def _read_config(path: Path) -> dict[str, Any]:
    try:
        content = json.loads((path / CONFIG).read_bytes())
    except OSError as error:
        raise InputError(
            f"cannot read {path / CONFIG}: {error.strerror}; give a folder that was downloaded from the hub, with "
            f"{CONFIG} and {SAFETENSORS} in it"
        ) from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path / CONFIG} is damaged: {error}; get the file again") from error
    if not isinstance(content, dict):
        raise InputError(f"{path / CONFIG} is no model's: it is JSON without names; name another folder")
    if "format_version" in content:
        raise InputError(f"{path} is a run of scratchlm already; use it as it is: scratchlm sample {path}")
    return content


def _layout(path: Path, content: Mapping[str, Any]) -> tuple[str, Layout]:
    named = content.get("architectures")
    for arch, layout in LAYOUTS.items():
        if named == [layout.architecture]:
            return arch, layout
    known = ", ".join(layout.architecture for layout in LAYOUTS.values())
    raise InputError(f"{path / CONFIG}: architectures is {named!r}; what can be imported: {known}")


def _read_weights(path: Path, unpickle: bool) -> tuple[Path, dict[str, Tensor]]:
    """The file of the weights, and its tensors, which stay in it until they are looked at."""
    if (path / SAFETENSORS).is_file():
        return path / SAFETENSORS, read_tensors(path / SAFETENSORS)
    file = path / PICKLE
    if not file.is_file():
        raise InputError(f"{path} has no weights: no {SAFETENSORS} and no {PICKLE}; download one of them into it")
    if not unpickle:
        raise InputError(
            f"{path} has its weights only as {PICKLE}, a pickle, which may run code of whoever made it; get "
            f"{SAFETENSORS}, or add --unpickle if you trust where the file comes from"
        )
    try:
        tensors = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except Exception as error:  # a damaged pickle raises whatever its bytes happen to mean
        raise InputError(
            f"{file} is damaged, or holds more than tensors, which is never read; get {SAFETENSORS} instead"
        ) from error
    named = isinstance(tensors, dict) and all(isinstance(name, str) for name in tensors)
    if not named or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise InputError(f"{file} holds no tensors by name, as a model's state_dict does; name another folder")
    return file, dict(tensors)
