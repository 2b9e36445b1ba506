"""scratchlm finetune DIR: a new run that starts from another's weights."""

import os
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

from scratchlm.checkpoint import Checkpoint, RunFolder, lay_adapter, meta_model
from scratchlm.cli import learning
from scratchlm.cli.flags import finetune_flags, nested, with_signature
from scratchlm.cli.progress import follow, say
from scratchlm.cli.train import FIT_SECONDS
from scratchlm.config import RunConfig, merge
from scratchlm.errors import InputError
from scratchlm.lora import size
from scratchlm.training.setup import create_run, finetune_settings, free_folder


def command(*tokens: Annotated[str, Parameter(allow_leading_hyphen=True)]) -> int:
    """Train a model further on another text: all of it, or with --lora an adapter beside it."""
    if tokens and not tokens[0].startswith("-"):
        directory, rest = tokens[0], tokens[1:]
        base = RunFolder.open(directory)
        if base.config().lora is not None:
            raise InputError(
                f"{directory} is an adapter, and not a model by itself: scratchlm merge {directory} makes one"
            )
        adapted = any(token.partition("=")[0].startswith("--lora") for token in rest)
        below = finetune_settings(base.config(), base.is_imported, adapted)
    elif any(token in ("--help", "-h") for token in tokens):
        directory, rest, below = "", tokens, {"optim": {}}
    else:
        raise InputError("name the run to start from, first of all: scratchlm finetune runs/gpt --data FILE --lora")
    fit = not any(token.partition("=")[0] == "--steps" for token in rest)

    def start(**given: Any) -> int:
        out, lora = given.pop("out", None), given.pop("lora", False)
        flags = nested(given)
        if lora:
            flags.setdefault("lora", {})
        return _finetune(RunFolder.open(directory), merge(below, flags), out, FIT_SECONDS if fit else None)

    app = App(
        name="scratchlm finetune DIR",
        help="Train a model further on another text: all of it, or with --lora an adapter beside it.",
        version_flags=[],
    )
    app.default(with_signature(start, finetune_flags(below)))
    code: int = app(rest, exit_on_error=False, print_error=False, result_action="return_value") or 0
    return code


def _finetune(base: RunFolder, settings: dict[str, Any], out: str | None, fit_seconds: float | None) -> int:
    if out == "":
        raise InputError("--out is empty; name a folder, or leave it out")
    if "data" not in settings and "source" not in settings:
        raise InputError("name the text to learn from: --data FILE")
    checkpoint, damaged = base.find(settings.pop("checkpoint", "last"))
    for message in damaged:
        say(f"{message}; the checkpoint of step {checkpoint.step:,} is used")
    kind = "lora" if settings.get("lora") is not None else "tuned"
    folder = Path(out) if out else free_folder(f"{base.path.resolve().name}-{kind}")
    settings["base"] = os.path.relpath(base.path.resolve(), folder.resolve())
    run, asked = create_run(settings, folder, fit_seconds, learning.follow, (base, checkpoint))
    config = run.config()
    if config.steps != asked.steps:
        say(
            f"this machine would need longer than {FIT_SECONDS / 60:.0f} minutes for {asked.steps:,} steps, so this "
            f"run has {config.steps:,}; --steps sets another number"
        )
    _describe(base, checkpoint, config)
    return follow(run)


def _describe(base: RunFolder, checkpoint: Checkpoint, config: RunConfig) -> None:
    """Say what is trained, and what that takes."""
    model = meta_model(config)
    whole = size(model)
    say(f"starting from {base.path}, step {checkpoint.step:,}")
    if config.lora is None:
        say(f"all {whole.parameters:,} parameters are trained; optimizer {_bytes(whole.optimizer_bytes)}")
        return
    chosen = lay_adapter(model, config)
    own = size(model)
    say(
        f"an adapter of rank {config.lora.rank} beside {len(chosen)} matrices: {own.trained:,} parameters are trained, "
        f"{own.trained / own.parameters:.3%} of {own.parameters:,}; optimizer {_bytes(own.optimizer_bytes)}, where "
        f"all parameters would take {_bytes(whole.optimizer_bytes)}; adapter {_bytes(own.saved_bytes)}"
    )
    read = [matrix.name for matrix in chosen if not matrix.called]
    if config.lora.dropout and read:
        say(f"{len(read)} of them are read as tensors, where --lora.dropout has nothing to drop: {', '.join(read[:3])}")


def _bytes(count: int) -> str:
    return f"{count / 1e6:,.2f} MB" if count >= 1e6 else f"{count / 1e3:,.1f} kB"
