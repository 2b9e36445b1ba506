"""scratchlm train ARCH: a new run."""

from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

from scratchlm.cli.flags import nested, train_flags, with_signature
from scratchlm.config import default_preset, merge, preset_settings, read_settings, without_vocabulary
from scratchlm.data.pairs import is_pairs
from scratchlm.data.shards import is_prepared
from scratchlm.errors import InputError
from scratchlm.models import MODELS

FIT_SECONDS = 240.0


def command(*tokens: Annotated[str, Parameter(allow_leading_hyphen=True)]) -> int:
    """Train an architecture; its flags depend on which one it is."""
    if not tokens or tokens[0].startswith("-"):
        asked_for_help = any(token in ("--help", "-h") for token in tokens)
        text = (
            f"Usage: scratchlm train ARCH [OPTIONS]\n\nArchitectures: {', '.join(MODELS)}\n\n"
            "scratchlm train ARCH --help shows all settings of one, scratchlm presets list its presets."
        )
        if not asked_for_help:
            raise InputError(f"name the architecture to train, first of all: {', '.join(MODELS)}")
        print(text)
        return 0
    arch, rest = tokens[0], tokens[1:]
    model = MODELS[arch]
    preset, file = _value("--preset", rest), _value("--config", rest)
    from_file = read_settings(file) if file else {}
    if from_file.get("arch", arch) != arch:
        raise InputError(f"{file} is for the architecture {from_file['arch']!r}, not {arch!r}")
    source, data = (_value(flag, rest) for flag in ("--source", "--data"))
    if source is not None and data is not None:
        raise InputError("--data and --source name two data; give one of them")
    if data is not None:  # it stands over the file's pairs, which are data too
        from_file = {name: value for name, value in from_file.items() if name not in ("source", "target")}
    data = source or data or from_file.get("source") or from_file.get("data")
    preset = preset or from_file.get("preset") or default_preset(arch, data)
    usual = {"data": "cmudict"} if model.takes_source and data is None else {}
    own = without_vocabulary(preset_settings(arch, preset))
    named = _value("--tokenizer", rest) or from_file.get("tokenizer")
    prepared = bool(data) and is_prepared(data)
    if named is not None or source is not None or "source" in from_file or is_pairs(data or "") or prepared:
        # a preset's tokenizer is for a text that comes without one: its size would not fit another kind
        decided = ("tokenizer", "vocab_size", *(["split"] if prepared else []))
        own = {name: value for name, value in own.items() if name not in decided}
    below = merge({"arch": arch}, usual, own, from_file, {"preset": preset})
    fit = not (file or {"--preset", "--steps"} & {token.partition("=")[0] for token in rest})

    def start(**given: Any) -> int:
        out, nproc = given.pop("out", None), given.pop("nproc", None)
        flags = nested({name: value for name, value in given.items() if name not in ("preset", "config")})
        return _train(merge(below, flags), out, nproc, FIT_SECONDS if fit else None)

    summary = (model.__doc__ or "").strip().splitlines()[0]
    app = App(name=f"scratchlm train {arch}", help=f"Train: {summary}", version_flags=[])
    app.default(with_signature(start, train_flags(arch, below)))
    code: int = app(rest, exit_on_error=False, print_error=False, result_action="return_value") or 0
    return code


def _train(settings: dict[str, Any], out: str | None, nproc: int | None, fit_seconds: float | None) -> int:
    # torch is imported here, once the flags are known to be right
    from scratchlm.checkpoint import RunFolder
    from scratchlm.cli.progress import check_processes, follow, together
    from scratchlm.training.setup import free_folder

    check_processes(nproc)
    if out == "":
        raise InputError("--out is empty; name a folder, or leave it out")
    folder = Path(out) if out else free_folder(settings["arch"])
    with together(settings, out) as lead:
        lead(lambda: _create(settings, folder, nproc or 1, fit_seconds))
        return follow(RunFolder(folder), nproc=nproc)


def _create(settings: dict[str, Any], folder: Path, nproc: int, fit_seconds: float | None) -> None:
    """Make the run's folder, and say what size the run has where nobody gave one."""
    from scratchlm.cli import learning
    from scratchlm.cli.progress import say
    from scratchlm.training.setup import create_run

    run, asked = create_run(settings, folder, fit_seconds, learning.follow, processes=nproc)
    config = run.config()
    if config.steps != asked.steps:
        say(
            f"this machine would need longer than {FIT_SECONDS / 60:.0f} minutes for the {asked.steps:,} steps of the "
            f"preset {config.preset}, so this run has {config.steps:,}; --steps sets another number"
        )
    elif fit_seconds is not None and config.preset:
        say(
            f"no size given: this is the preset {config.preset}, {config.steps:,} steps, "
            f"which this machine should do in about {FIT_SECONDS / 60:.0f} minutes or less"
        )


def _value(flag: str, tokens: tuple[str, ...]) -> str | None:
    """What a flag is given, ahead of parsing: the values that help shows depend on it."""
    for at, token in enumerate(tokens):
        name, equals, value = token.partition("=")
        if name == flag:
            return value if equals else tokens[at + 1] if at + 1 < len(tokens) else None
    return None
