"""The files of a folder of the hub: its config.json, its tensors one by one, and the folder itself by its name."""

import re
import textwrap
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from scratchlm.errors import InputError
from scratchlm.interop.vocabularies import BESIDE
from scratchlm.interop.vocabularies.shared import json_object

CONFIG, SAFETENSORS, PICKLE = "config.json", "model.safetensors", "pytorch_model.bin"
INDEX = f"{SAFETENSORS}.index.json"
GENERATION = "generation_config.json"
TOKENIZER = ("tokenizer.json", "vocab.json", "merges.txt")
_HUB_NAME = re.compile(r"(\w[\w.-]{0,95}/)?\w[\w.-]{0,95}", re.ASCII)


def hub_folder(name: str, unpickle: bool = False) -> Path:
    """The folder that a path means, or, where there is none, that a model's name on the hub means: it is fetched then.

    `unpickle`: a pickle of weights too.
    Raises InputError where it is neither, and where the hub has it not or cannot be reached.
    """
    path = Path(name)
    wanted = f"a folder that was downloaded from the hub, with {CONFIG}, {SAFETENSORS} and {TOKENIZER[0]} in it"
    try:
        if name and path.is_dir():
            return path
        there = name and path.exists()
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {name!r}: {error}; give {wanted}") from error
    if there:
        raise InputError(f"{name} is a file; give {wanted}")
    if not _HUB_NAME.fullmatch(name):
        raise InputError(f"{name!r} is no folder, and no model's name on the hub, such as gpt2; give {wanted}")
    if path.parent != Path() and path.parent.is_dir():
        raise InputError(f"{name} is no folder: {path.parent} is one, without {path.name} in it; give {wanted}")
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise InputError(
            f"{name} is no folder, and to fetch it from the hub takes a package: pip install 'scratchlm[hf]'; "
            f"or give {wanted}"
        ) from error
    patterns = [CONFIG, "model*.safetensors", INDEX, *TOKENIZER, *BESIDE, GENERATION, *[PICKLE] * unpickle]
    try:
        fetched = Path(snapshot_download(name, allow_patterns=patterns))
    except Exception as error:  # what a network, a disk, or the hub's answer may be
        reason = textwrap.shorten(f"{type(error).__name__}: {error}", 300, placeholder=" ...")  # of several lines one
        raise InputError(
            f"{name} is no folder, and could not be fetched from the hub ({reason}); give {wanted}"
        ) from error
    there = {file.name for file in fetched.iterdir()}
    if CONFIG in there and not unpickle and not there & {SAFETENSORS, INDEX}:
        raise InputError(
            f"{name} has its weights only as a pickle, which is not fetched without --unpickle, since it may run code "
            "of whoever made it; add that if you trust where the file comes from"
        )
    return fetched


def read_config(path: Path) -> dict[str, Any]:
    """The config.json of a folder. Raises InputError where it is missing, damaged, or that of a run of ours."""
    content = json_object(path / CONFIG, f"give a folder that was downloaded from the hub, with {CONFIG} and "
                                          f"{SAFETENSORS} in it")  # fmt: skip
    if "format_version" in content:
        raise InputError(f"{path} is a run of scratchlm already; use it as it is: scratchlm sample {path}")
    return content


class TensorFiles(Mapping[str, Tensor]):
    """The tensors of a folder by name.

    Each is read when it is asked for, and its safetensors file is mapped for it alone: what the caller does not keep
    takes no memory. A pickle is mapped once, as a whole.
    """

    def __init__(self, path: Path, unpickle: bool = False) -> None:
        """`unpickle`: a pickle may be read, as tensors only, where there is no safetensors file.

        Raises InputError where there are no files, where one is damaged or missing, and for a pickle without leave.
        """
        self._pickled: dict[str, Tensor] = {}
        if (path / SAFETENSORS).is_file():
            self.file = path / SAFETENSORS
            self._places = dict.fromkeys(_names(self.file), self.file)
        elif (path / INDEX).is_file():
            self.file = path / INDEX
            self._places = _indexed(self.file)
        elif (path / PICKLE).is_file():
            self.file = path / PICKLE
            if not unpickle:
                raise InputError(
                    f"{path} has its weights only as {PICKLE}, a pickle, which may run code of whoever made it; get "
                    f"{SAFETENSORS}, or add --unpickle if you trust where the file comes from"
                )
            self._pickled = _unpickled(self.file)
            self._places = dict.fromkeys(self._pickled, self.file)
        else:
            raise InputError(
                f"{path} has no weights: no {SAFETENSORS}, no {INDEX} and no {PICKLE}; download one of them into it"
            )

    @property
    def parts(self) -> list[Path]:
        """The files that hold the tensors."""
        return sorted(set(self._places.values())) or [self.file]

    def __getitem__(self, name: str) -> Tensor:
        if name in self._pickled:
            return self._pickled[name]
        file = self._places[name]
        try:
            with safe_open(file, "pt") as opened:
                return opened.get_tensor(name)
        except (OSError, SafetensorError, ValueError, TypeError) as error:
            raise InputError(f"{file} is damaged: {error}; get the file again") from error

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def text_ends(path: Path, content: Mapping[str, Any]) -> list[int]:
    """The ids of the tokens that end a text there, which generation_config.json says, or else config.json."""
    said = None
    if (path / GENERATION).is_file():
        said = json_object(path / GENERATION, "get the file again").get("eos_token_id")
    if said is None:
        said = content.get("eos_token_id")
    return [token for token in (said if isinstance(said, list) else [said]) if type(token) is int]


def _names(file: Path) -> list[str]:
    try:
        with safe_open(file, "pt") as opened:
            return list(opened.keys())
    except OSError as error:
        raise InputError(f"cannot read {file}: {error}") from error
    except (SafetensorError, ValueError) as error:
        raise InputError(f"{file} is damaged: {error}") from error


def _indexed(index: Path) -> dict[str, Path]:
    """Which file each tensor is in, by the index and by the files."""
    said = json_object(index, "get the file again").get("weight_map")
    if not isinstance(said, dict) or not all(
        isinstance(part, str) and Path(part).name == part for part in said.values()
    ):
        raise InputError(f"{index} is damaged: its weight_map does not name the file of each tensor; get it again")
    for part in sorted(set(said.values())):
        if not (index.with_name(part)).is_file():
            raise InputError(f"{index.with_name(part)} is missing, and {index.name} needs it; download it too")
        wanted, there = {name for name, file in said.items() if file == part}, set(_names(index.with_name(part)))
        if wanted != there:
            name = min(wanted ^ there)
            raise InputError(
                f"{index.with_name(part)} has {'no' if name in wanted else 'the'} tensor {name}, unlike "
                f"{index.name}; get both again"
            )
    return {name: index.with_name(part) for name, part in said.items()}


def _unpickled(file: Path) -> dict[str, Tensor]:
    try:
        tensors = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except Exception as error:  # a damaged pickle raises whatever its bytes happen to mean
        raise InputError(
            f"{file} is damaged, or holds more than tensors, which is never read; get {SAFETENSORS} instead"
        ) from error
    named = isinstance(tensors, dict) and all(isinstance(name, str) for name in tensors)
    if not named or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise InputError(f"{file} holds no tensors by name, as a model's state_dict does; name another folder")
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
            raise InputError(
                f"{file}: {name} is no dense tensor ({tensor.layout}, {tensor.dtype}, on {tensor.device}); save the "
                "model's weights dense, on the CPU"
            )
    return dict(tensors)
