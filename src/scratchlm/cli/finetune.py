"""scratchlm finetune DIR: a new run that starts from another's weights."""

from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

from scratchlm.checkpoint import Checkpoint, RunFolder, base_seen_from, lay_adapter, meta_model
from scratchlm.cli import learning
from scratchlm.cli.flags import finetune_flags, nested, with_signature
from scratchlm.cli.progress import check_processes, follow, say, together
from scratchlm.cli.train import FIT_SECONDS
from scratchlm.config import RunConfig
from scratchlm.errors import InputError
from scratchlm.lora import size
from scratchlm.training.setup import create_run, finetune_settings, free_folder


def command(*tokens: Annotated[str, Parameter(allow_leading_hyphen=True)]) -> int:
    """Train a model further on another text: all of it, or with --lora an adapter beside it."""
    base = None
    if tokens and not tokens[0].startswith("-"):
        base, tokens = RunFolder.open(tokens[0]), tokens[1:]
    elif not any(token in ("--help", "-h") for token in tokens):
        raise InputError("name the run to start from, first of all: scratchlm finetune runs/gpt --data FILE --lora")
    # what help shows: the defaults without an adapter, or with one where a flag of it is there
    shown: dict[str, Any] = {"optim": {}}
    if base is not None:
        guessed = {"lora": {}} if any(token.startswith("--lora") for token in tokens) else {}
        shown = finetune_settings(base, guessed)

    def start(**given: Any) -> int:
        assert base is not None
        out, lora, nproc = given.pop("out", None), given.pop("lora", None), given.pop("nproc", None)
        flags = nested(given)
        if lora is False and "lora" in flags:
            raise InputError(
                "--no-lora trains all weights, and --lora.* are settings of an adapter; leave one of them out"
            )
        if lora:
            flags.setdefault("lora", {})
        fit = None if "steps" in flags else FIT_SECONDS
        return _finetune(base, flags, out, nproc, fit)

    app = App(
        name="scratchlm finetune DIR",
        help="Train a model further on another text: all of it, or with --lora an adapter beside it.",
        version_flags=[],
    )
    app.default(with_signature(start, finetune_flags({**shown, "data": None})))
    code: int = app(tokens, exit_on_error=False, print_error=False, result_action="return_value") or 0
    return code


def _finetune(
    base: RunFolder, flags: dict[str, Any], out: str | None, nproc: int | None, fit_seconds: float | None
) -> int:
    check_processes(nproc)
    if out == "":
        raise InputError("--out is empty; name a folder, or leave it out")
    if "data" not in flags and "source" not in flags:
        raise InputError("name the text to learn from: --data FILE")
    checkpoint, damaged = base.find(flags.pop("checkpoint", "last"))
    settings = finetune_settings(base, flags)
    for message in damaged:
        say(f"{message}; the checkpoint of step {checkpoint.step:,} is used")
    kind = "lora" if settings.get("lora") is not None else "tuned"
    folder = Path(out) if out else free_folder(f"{base.path.resolve().name}-{kind}")
    settings["base"] = base_seen_from(folder, base)

    def create() -> None:
        run, asked = create_run(settings, folder, fit_seconds, learning.follow, (base, checkpoint), nproc or 1)
        if run.config().steps != asked.steps:
            say(
                f"this machine would need longer than {FIT_SECONDS / 60:.0f} minutes for {asked.steps:,} steps, so "
                f"this run has {run.config().steps:,}; --steps sets another number"
            )
        _describe(base, checkpoint, run.config())

    with together(settings, out) as lead:
        lead(create)
        return follow(RunFolder(folder), nproc=nproc)


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
    if base.has_text:
        say(
            f"the adapter needs these weights of {base.path}, and training that further (scratchlm resume) deletes old "
            "checkpoints: merge the adapter first, or keep a copy"
        )


def _bytes(count: int) -> str:
    return f"{count / 1e6:,.2f} MB" if count >= 1e6 else f"{count / 1e3:,.1f} kB"
