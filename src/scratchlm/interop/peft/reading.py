"""A folder of PEFT's as a run with an adapter."""

import json
import re
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scratchlm import runtime
from scratchlm.checkpoint import (
    Checkpoint,
    RunFolder,
    base_seen_from,
    fitting_weights,
    is_finite,
    lay_adapter,
    meta_model,
    read_tensors,
)
from scratchlm.config import LoRAConfig, RunConfig
from scratchlm.errors import InputError
from scratchlm.files import file_sha256
from scratchlm.interop.hub.layout import WIDENED, Place
from scratchlm.interop.peft.shared import (
    CONFIG,
    DORA_EMBEDDING,
    LINEAR,
    PREFIX,
    SAFETENSORS,
    TIED,
    names_of,
    place_of,
)
from scratchlm.lora import WHOLE, matrices, trained_tensors

PICKLE, HEAD = "adapter_model.bin", "lm_head"

CHOICES = {"peft_type": ("LORA",), "task_type": ("CAUSAL_LM", None), "bias": ("none", "lora_only", "all", None)}
READ = {
    *CHOICES, "alpha_pattern", "ensure_weight_tying", "init_lora_weights", "layers_pattern", "layers_to_transform",
    "lora_alpha", "lora_dropout", "modules_to_save", "r", "rank_pattern", "target_modules", "use_dora", "use_rslora",
}  # fmt: skip

# of how an adapter came to be, and of how its base keeps its matrices; nothing of what the tensors mean
OF_NO_EFFECT = {
    "auto_mapping", "base_model_name_or_path", "eva_config", "fan_in_fan_out", "inference_mode", "megatron_core",
    "peft_version", "qalora_group_size", "revision",
}  # fmt: skip
PRISTINE = (True, False, "gaussian", "orthogonal", "eva", "mica")  # ways to draw A and B that leave the base alone

SAME = "reading and writing the text are one matrix here, with one change"


def import_adapter(path: Path, base: RunFolder, checkpoint: Checkpoint, folder: Path) -> RunFolder:
    """A new run with the adapter of a PEFT folder, on a base's checkpoint that was verified.

    Raises InputError for a base that is no plain GPT, for a folder that is not all of an adapter for it, and for what
    PEFT can have and a model here cannot; nothing is left behind then.
    """
    config = base.config()
    if config.arch != "gpt" or config.lora is not None:
        what = "an adapter itself" if config.lora is not None else f"a run of {config.arch}"
        raise InputError(f"{base.path} is {what}; an adapter of PEFT's can be laid on a plain run of a gpt")
    content, file = _read_config(path), path / SAFETENSORS
    if not file.is_file():
        there = (
            f"its tensors only as {PICKLE}, a pickle, which is not read" if (path / PICKLE).is_file() else "no tensors"
        )
        raise InputError(f"{path} has {there}; open the adapter with PEFT and save it again, as {SAFETENSORS}")
    tensors, names = read_tensors(file), names_of(config.model.depth)
    try:
        lora = _lora_config(content, config, names, any(name.startswith(f"{PREFIX}{HEAD}.") for name in tensors))
    except (ValueError, TypeError, OverflowError, re.error) as error:
        raise InputError(f"{path / CONFIG}: {error}") from error
    adapter = replace(config, base=base_seen_from(folder, base), lora=lora)
    model = meta_model(adapter)
    adapted = {matrix.module for matrix in lay_adapter(model, adapter)}
    expected = {name: tuple(tensor.shape) for name, tensor in trained_tensors(model).items()}
    places = {name: place_of(name, names, adapted) for name in expected}
    head = {
        f"{TIED}.lora.{WHOLE}.{part}": Place(f"{PREFIX}{HEAD}.{LINEAR[part].name}") for part in "AB" if TIED in adapted
    }
    _check_names(file, tensors, {place.name for place in (*places.values(), *head.values())})
    weights = {name: _our_tensor(file, tensors, place, expected[name]) for name, place in places.items()}
    for name, place in head.items():
        if not torch.equal(_our_tensor(file, tensors, place, expected[name]), weights[name]):
            raise InputError(f"{file}: {place.name} is not {places[name].name} transposed, and {SAME}")
    if lora.bias != "none":
        own = fitting_weights(meta_model(config), checkpoint)
        for name in [name for name in weights if name.endswith(".lora.bias.shift")]:
            weights[name] = weights[name] - own[name.replace(".lora.bias.shift", ".bias")]
    source = {"folder": str(path), "file": SAFETENSORS, "sha256": file_sha256(file)}
    manifest = {"argv": sys.argv, "seed": config.seed, "versions": runtime.versions(), "imported": source}
    return RunFolder.create(folder, adapter, base.tokenizer(), weights, manifest, checkpoint.sha256)


def _read_config(path: Path) -> dict[str, Any]:
    try:
        content = json.loads((path / CONFIG).read_bytes())
    except OSError as error:
        raise InputError(
            f"cannot read {path / CONFIG}: {error.strerror}; give a folder that PEFT's save_pretrained has made"
        ) from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path / CONFIG} is damaged: {error}; get the file again") from error
    if not isinstance(content, dict):
        raise InputError(f"{path / CONFIG} is no adapter's: it is JSON without names; name another folder")
    return content


def _lora_config(content: Mapping[str, Any], base: RunConfig, names: Mapping[str, str], head: bool) -> LoRAConfig:
    """What an adapter_config.json means for this base; `head`: there are tensors of the output head's.

    Raises ValueError, TypeError, OverflowError or re.error for what cannot be, or is not known.
    """
    _check_features(content)
    rank, alpha = _value(content, "r", int, 8), _value(content, "lora_alpha", float, 8)
    ranks, alphas = (_value(content, f"{key}_pattern", dict, {}) for key in ("rank", "alpha"))
    dora = _value(content, "use_dora", bool, False)
    theirs = {names[m.module]: m for m in matrices(meta_model(base)) if m.part == WHOLE}
    linear = {name for name, matrix in theirs.items() if not matrix.embedding}
    targets = [name for name in (*theirs, HEAD) if _is_target(content, name, linear)]
    if not targets:
        raise ValueError(f"target_modules is {content.get('target_modules')!r}, which names no matrix of a GPT-2")
    # what ensure_weight_tying has saved no longer names lm_head, whose tensors are there
    head = HEAD in targets or head
    _check_tie(names[TIED], names[TIED] in targets, head, _value(content, "ensure_weight_tying", bool, False))
    adapted = {name: theirs[name].module for name in targets if name != HEAD}
    if dora and not adapted.keys() <= linear:
        raise ValueError(f"use_dora is true, and an embedding is adapted: {DORA_EMBEDDING}")
    all_ranks = {name: _by_pattern(ranks, name, int, rank) for name in adapted}
    all_alphas = {name: _by_pattern(alphas, name, float, alpha) for name in (*adapted, HEAD)}
    if head and all_alphas[HEAD] != all_alphas[names[TIED]]:
        raise ValueError(f"alpha_pattern gives {HEAD} another alpha than {names[TIED]}, and {SAME}")
    return LoRAConfig(
        rank=rank,
        alpha=float(alpha),
        targets=tuple(adapted.values()),
        dropout=float(_value(content, "lora_dropout", float, 0.0)),
        rslora=_value(content, "use_rslora", bool, False),
        dora=dora,
        bias=content.get("bias") or "none",
        ranks={ours: all_ranks[name] for name, ours in adapted.items() if all_ranks[name] != rank},
        alphas={ours: float(all_alphas[name]) for name, ours in adapted.items() if all_alphas[name] != alpha},
    )


def _check_features(content: Mapping[str, Any]) -> None:
    for key, readable in CHOICES.items():
        if (value := content.get(key)) not in readable:
            raise ValueError(f"{key} is {value!r}; what can be read: {', '.join(filter(None, readable))}")
    if (drawn := content.get("init_lora_weights", True)) not in PRISTINE:
        raise ValueError(
            f"init_lora_weights is {drawn!r}, which may have changed the base's weights, so that the adapter is for "
            "others; have PEFT convert it: save_pretrained(..., path_initial_model_for_weight_conversion=...)"
        )
    if saved := content.get("modules_to_save"):
        why = SAME if HEAD in saved else "an adapter here leaves its base's weights alone"
        raise ValueError(f"modules_to_save is {saved!r}: it holds modules that replace the base's, and {why}")
    for key in sorted(content.keys() - READ - OF_NO_EFFECT):
        if content[key]:
            raise ValueError(f"{key} is {content[key]!r}, which is not known here and may change what is computed")


def _value(content: Mapping[str, Any], key: str, kind: type, usual: Any) -> Any:
    value = content.get(key)
    if value is None:
        return usual
    if not isinstance(value, (int, float) if kind is float else kind) or isinstance(value, bool) != (kind is bool):
        raise ValueError(f"{key} is {value!r}, and no {kind.__name__}")
    return value


def _is_target(content: Mapping[str, Any], name: str, linear: set[str]) -> bool:
    """Whether PEFT adapts the module of that name."""
    targets, layers = content.get("target_modules"), content.get("layers_to_transform")
    if isinstance(targets, str):
        return name in linear if targets.lower() == "all-linear" else re.fullmatch(targets, name) is not None
    if not isinstance(targets, list) or not all(isinstance(target, str) for target in targets):
        raise ValueError(f"target_modules is {targets!r}; it must be names, or an expression")
    if name in targets or not any(name.endswith(f".{target}") for target in targets):
        return name in targets
    if layers is None or layers == []:
        return True
    if (blocks := content.get("layers_pattern")) not in (None, "", [], "h", ["h"]):
        raise ValueError(f"layers_pattern is {blocks!r}; a GPT-2's blocks are called h")
    block = re.match(r"transformer\.h\.(\d+)\.", name)
    return block is not None and int(block[1]) in (layers if isinstance(layers, list) else [layers])


def _by_pattern(patterns: Mapping[str, Any], name: str, kind: type, usual: Any) -> Any:
    """The value of the first pattern that a name, or the end of it, matches."""
    first = next((pattern for pattern in patterns if re.match(rf"(.*\.)?({pattern})$", name)), None)
    return usual if first is None else _value(patterns, first, kind, usual)


def _check_tie(wte: str, reads: bool, writes: bool, tied: bool) -> None:
    """Raise ValueError for a change of the embedding that is not one for both of its uses."""
    if reads and writes and not tied:
        raise ValueError(f"{wte} and {HEAD} have a change each (ensure_weight_tying is not true), and {SAME}")
    if reads != writes:
        alone, other, use = (wte, HEAD, "reads") if reads else (HEAD, wte, "writes")
        raise ValueError(
            f"{alone} is adapted without {other}, so that the change counts where the model {use} alone, and {SAME}; "
            f"train it without {alone}, or with both and ensure_weight_tying"
        )


def _check_names(file: Path, tensors: Mapping[str, Tensor], expected: set[str]) -> None:
    wrong = (("missing", sorted(expected - tensors.keys())), ("unknown", sorted(tensors.keys() - expected)))
    said = [f"{what}: {', '.join(names[:5])}{' ...' if len(names) > 5 else ''}" for what, names in wrong if names]
    if said:
        raise InputError(f"{file} is not the adapter that {CONFIG} describes, for this base; {'; '.join(said)}")


def _our_tensor(file: Path, tensors: Mapping[str, Tensor], place: Place, shape: tuple[int, ...]) -> Tensor:
    tensor, lies = tensors[place.name], tuple(reversed(shape)) if place.transposed else shape
    if tuple(tensor.shape) != lies:
        raise InputError(f"{file}: {place.name} has the shape {tuple(tensor.shape)}; for this base it is {lies}")
    if tensor.dtype not in WIDENED:
        raise InputError(f"{file}: {place.name} is {tensor.dtype}; float32, float16 and bfloat16 can be read")
    ours = (tensor.mT if place.transposed else tensor).float().contiguous()
    if not is_finite(ours):
        raise InputError(f"{file}: {place.name} has values that are no numbers; get the file again")
    return ours
