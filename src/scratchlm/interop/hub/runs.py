"""A folder of the hub as a run of ours, and the other way round."""

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from scratchlm import runtime
from scratchlm.checkpoint import Checkpoint, RunFolder, meta_model, plain_weights
from scratchlm.config import RunConfig, make_config
from scratchlm.errors import InputError
from scratchlm.files import file_sha256, new_folder, sync
from scratchlm.interop.hub.backpack import BACKPACK
from scratchlm.interop.hub.files import CONFIG, SAFETENSORS, TOKENIZER, TensorFiles, read_config, text_ends
from scratchlm.interop.hub.gpt2 import GPT2
from scratchlm.interop.hub.layout import Layout, our_tensor
from scratchlm.interop.vocabularies import import_vocabulary, special_tokens, with_special, write_hub_tokenizer
from scratchlm.tokenizers import BPETokenizer, IdTokenizer, Tokenizer

LAYOUTS = {"gpt": GPT2, "backpack": BACKPACK}
NO_DATA = "none"  # what an imported run's settings call its text
NO_TOKENIZER = "none"


@dataclass(frozen=True, kw_only=True)
class Imported:
    """What an import has made: the run, the file of its weights, and what they were there.

    `other_ends`: ids of the model that end a text there, and not here.
    """

    run: RunFolder
    config: RunConfig
    tokenizer: Tokenizer
    file: Path
    dtypes: frozenset[torch.dtype]
    other_ends: list[int]


def import_run(
    path: Path, folder: Path, named: str | None, open_tokenizer: Callable[[str], Tokenizer], unpickle: bool = False
) -> Imported:
    """A new run out of a folder of the hub. `named`: its tokenizer, which is opened by that; None: the folder's own.

    `named` as `NO_TOKENIZER`: ids are its text. `unpickle`: a pickle may be read, as weights only, where there is no
    safetensors file.
    Raises InputError for a folder that is no model that is known here, or not all of one; nothing is left behind then.
    """
    content = read_config(path)
    arch, layout = _layout(path, content)
    with _naming(path / CONFIG):
        shape = layout.read_shape(content)
        kept_as = str(path) if named is None else IdTokenizer.kind if named == NO_TOKENIZER else named
        config = make_config({"arch": arch, "data": NO_DATA, "tokenizer": kept_as, "model": shape})
    ends = text_ends(path, content)
    if named is None:
        tokenizer = _own_tokenizer(path, ends)
    else:
        tokenizer = IdTokenizer(config.model.vocab_size) if named == NO_TOKENIZER else open_tokenizer(named)
    if config.model.vocab_size < tokenizer.vocab_size:
        raise InputError(
            f"the tokenizer {kept_as} has {tokenizer.vocab_size} tokens, and the model knows "
            f"{config.model.vocab_size}; give the one that it was trained with: --tokenizer gpt2 or FILE"
        )
    tensors, depth = TensorFiles(path, unpickle), config.model.depth
    if depth > len(tensors):  # before a model of any depth is laid out
        raise InputError(f"{path / CONFIG}: n_layer is {depth}, and {tensors.file} has only {len(tensors)} tensors")
    with _naming(path / CONFIG):
        expected = meta_model(config).state_dict()
    with _naming(tensors.file):
        places = layout.find(tensors, depth)
        # one tensor after the other, so that not more than one is in memory twice
        weights = {ours: our_tensor(tensors[at.name], at, tuple(expected[ours].shape)) for ours, at in places.items()}
    dtypes = frozenset(tensors[place.name].dtype for place in places.values())
    source = {"folder": str(path), "sha256": {part.name: file_sha256(part) for part in tensors.parts}}
    manifest = {"argv": sys.argv, "seed": config.seed, "versions": runtime.versions(), "imported": source}
    run = RunFolder.create(folder, config, tokenizer, weights, manifest)
    other = [end for end in ends if 0 <= end < config.model.vocab_size and end != tokenizer.end_of_text]
    return Imported(run=run, config=config, tokenizer=tokenizer, file=tensors.file, dtypes=dtypes, other_ends=other)


def export_run(run: RunFolder, checkpoint: Checkpoint, folder: Path) -> None:
    """A checkpoint that was verified, as a folder of the hub: config.json and model.safetensors.

    Raises InputError for a run that has no such layout, and where the folder is there already; nothing is left behind
    then.
    """
    config, tokenizer = run.config(), run.tokenizer()
    layout = LAYOUTS.get(config.arch)
    if layout is None:
        raise InputError(
            f"{run.path} is a run of {config.arch}, and --to hf can write {', '.join(LAYOUTS)}; export one of these"
        )
    content = {
        "architectures": [layout.architectures[0]],
        **layout.write_shape(config.model),
        "bos_token_id": tokenizer.end_of_text,
        "eos_token_id": tokenizer.end_of_text,
        "torch_dtype": "float32",
    }
    tensors = layout.theirs(plain_weights(run, checkpoint), config.model.depth)
    with new_folder(folder) as beside:
        (beside / CONFIG).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        write_hub_tokenizer(tokenizer, beside, config.model.context)
        try:
            save_file(tensors, beside / SAFETENSORS, {"format": "pt"})
        except SafetensorError as error:  # what it makes of a full disk
            raise OSError(f"{folder / SAFETENSORS}: {error}") from error
        (beside / SAFETENSORS).chmod((beside / CONFIG).stat().st_mode)  # safetensors would keep it from all others
        for file in (*beside.iterdir(), beside):
            sync(file)


@contextmanager
def _naming(file: Path) -> Iterator[None]:
    """Have an error say which file it is about."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{file}: {error}") from error


def _layout(path: Path, content: Mapping[str, Any]) -> tuple[str, Layout]:
    named = content.get("architectures")
    for arch, layout in LAYOUTS.items():
        if isinstance(named, list) and len(named) == 1 and named[0] in layout.architectures:
            return arch, layout
    known = ", ".join(name for layout in LAYOUTS.values() for name in layout.architectures)
    raise InputError(f"{path / CONFIG}: architectures is {named!r}; what can be imported: {known}")


def _own_tokenizer(path: Path, ends: Sequence[int]) -> Tokenizer:
    """The tokenizer that the folder has; the first of `ends` that is a special token of it ends a text.

    Raises InputError where there is none, or none that can be read.
    """
    remedy = f"give another: --tokenizer gpt2, --tokenizer FILE, or --tokenizer {NO_TOKENIZER} for ids only"
    if not any((path / name).is_file() for name in TOKENIZER):
        raise InputError(f"{path} has no tokenizer: no {', no '.join(TOKENIZER)}; {remedy}")
    try:
        tokenizer = import_vocabulary(path)
    except InputError as error:
        raise InputError(f"{error}; or {remedy}") from error
    names = {number: name for name, number in special_tokens(tokenizer).items()}
    for end in ends:
        if end in names and tokenizer.end_of_text not in ends and isinstance(tokenizer, BPETokenizer):
            return with_special(tokenizer, tokenizer.special_tokens, names[end])
    return tokenizer
