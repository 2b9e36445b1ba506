"""A run with an adapter as a folder that PEFT opens."""

import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from scratchlm.checkpoint import Checkpoint, RunFolder, find_base, restore_weights, starting_model
from scratchlm.errors import InputError
from scratchlm.files import new_folder, sync
from scratchlm.interop.peft.shared import CONFIG, DORA_EMBEDDING, SAFETENSORS, TIED, names_of, place_of
from scratchlm.lora import WHOLE, LowRank, adaptations


def export_adapter(run: RunFolder, checkpoint: Checkpoint, folder: Path) -> None:
    """An adapter's checkpoint that was verified, as a folder that PEFT lays on what `--to hf` makes of the base.

    Raises InputError for a run without an adapter, for one that PEFT cannot have, and where the folder is there
    already; nothing is left behind then.
    """
    config = run.config()
    if config.lora is None or config.base is None:
        raise InputError(f"{run.path} has no adapter, which is what --to peft writes; --to hf writes the whole model")
    if config.arch != "gpt":
        raise InputError(
            f"{run.path} is an adapter of a {config.arch}, and PEFT needs a class of transformers that opens its base, "
            f"which only a gpt has; make a plain run of it: scratchlm merge {run.path}"
        )
    merged = f"export the merged model: scratchlm merge {run.path}, then --to hf"
    model = starting_model(run)
    restore_weights(model, checkpoint)
    there, names = adaptations(model), names_of(config.model.depth)
    adapted = {name for name, (_, adaptation) in there.items() if adaptation.pairs}
    if TIED in adapted:
        raise InputError(
            f"{run.path} changes {TIED}, which reads and writes the text; PEFT puts such a change into the matrix "
            f"twice when it merges, and loses half of it when it loads; {merged}"
        )
    if config.lora.dora and any(name.endswith("embedding") for name in adapted):
        raise InputError(f"{run.path} has a DoRA of an embedding, and {DORA_EMBEDDING}; {merged}")
    tensors: dict[str, Tensor] = {}
    ranks, alphas = dict[str, int](), dict[str, float]()
    for name, (module, adaptation) in there.items():
        if name in adapted:
            scale = adaptation.pairs[0].scale
            whole = _whole(adaptation.pairs, cast(Tensor, module.weight), scale)
            if not bool(whole.get("lengths", torch.ones(1)).all()):
                raise InputError(f"{name} has a row of zeros, by whose length a DoRA of PEFT's divides; {merged}")
            tensors |= {f"{name}.lora.{WHOLE}.{part}": tensor for part, tensor in whole.items() if part != "lengths"}
            ranks[names[name]] = rank = len(whole["A"])
            alphas[names[name]] = _short(scale * (math.sqrt(rank) if config.lora.rslora else rank))
        if hasattr(adaptation, "bias"):
            tensors[f"{name}.lora.bias.shift"] = cast(Tensor, module.bias)  # as a whole: the base's bias is in it
    rank, alpha = (Counter(each.values()).most_common(1)[0][0] for each in (ranks, alphas))
    content = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": f"{find_base(run).path.parents[1].resolve().name}-hf",  # as export --to hf calls it
        "inference_mode": True,
        "fan_in_fan_out": True,
        "init_lora_weights": True,
        "target_modules": list(ranks),
        "r": rank,
        "rank_pattern": {name: other for name, other in ranks.items() if other != rank},
        "lora_alpha": alpha,
        "alpha_pattern": {name: other for name, other in alphas.items() if other != alpha},
        "lora_dropout": config.lora.dropout,
        "use_rslora": config.lora.rslora,
        "use_dora": config.lora.dora,
        "bias": config.lora.bias if config.model.bias else "none",
    }
    theirs: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        place = place_of(name, names, adapted)
        theirs[place.name] = (tensor.mT if place.transposed else tensor).detach().contiguous()
    with new_folder(folder) as beside:
        (beside / CONFIG).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        try:
            save_file(theirs, beside / SAFETENSORS, {"format": "pt"})
        except SafetensorError as error:  # what it makes of a full disk
            raise OSError(f"{folder / SAFETENSORS}: {error}") from error
        (beside / SAFETENSORS).chmod((beside / CONFIG).stat().st_mode)  # safetensors would keep it from all others
        for file in (beside / CONFIG, beside / SAFETENSORS, beside):
            sync(file)


def _short(alpha: float) -> float:
    """Without the last digits of a float64, which s r has from its rounding, and which no float32 knows."""
    short = float(f"{alpha:.12g}")
    return int(short) if short.is_integer() else short


@torch.no_grad()
def _whole(pairs: Sequence[LowRank], weight: Tensor, scale: float) -> dict[str, Tensor]:
    """One pair of this scale for all of a matrix that computes what the pairs of its parts do.

    Of a DoRA with the rows' `magnitude`, and the `lengths` that it stands for now. Shapes: weight (O, I); A (R, I),
    B (O, R), R the sum of the ranks; (O,).
    """
    A = torch.cat([pair.A for pair in pairs])
    B = A.new_zeros(len(weight), len(A))
    at = 0
    for pair in pairs:
        B[pair.rows, at : at + len(pair.A)] = pair.scale / scale * pair.B
        at += len(pair.A)
    if pairs[0].magnitude is None:
        return {"A": A, "B": B}
    lengths = torch.linalg.vector_norm(weight.to(A.dtype), dim=1)  # of a row that no pair changes, its own
    magnitude = lengths.clone()
    for pair in pairs:
        lengths[pair.rows] = pair.lengths(weight[pair.rows])
        magnitude[pair.rows] = cast(Tensor, pair.magnitude)
    return {"A": A, "B": B, "magnitude": magnitude, "lengths": lengths}
