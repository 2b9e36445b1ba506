"""Flags out of configuration dataclasses, which give the names, the types and the help; and what several share."""

import dataclasses
import inspect
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import docstring_parser
from cyclopts import Parameter

from scratchlm.config import LoRAConfig, OptimConfig, RunConfig
from scratchlm.errors import InputError
from scratchlm.models import MODELS

# no flags: given otherwise, found out, or never chosen
HIDDEN = {
    "arch",
    "base",
    "horizon",
    "lora",
    "lora.alphas",
    "lora.ranks",
    "model",
    "model.vocab_size",
    "optim",
    "pairs",
    "prepared",
    "preset",
}


def whole_number(hint: Any, tokens: Sequence[Any]) -> int:
    """An int, and no rounding: what cyclopts would make of 2.5 is 2."""
    return int(tokens[0].value)


Int = Annotated[int, Parameter(converter=whole_number)]
OptionalInt = Annotated[int | None, Parameter(converter=whole_number, show_default=False)]


def _flag(name: str, hint: Any, about: str | None, group: str, default: Any = None) -> inspect.Parameter:
    """One flag, which nobody has to give; `default` is what help shows."""
    shown = (
        " ".join(map(str, default)) if isinstance(default, Sequence) and not isinstance(default, str) else str(default)
    )
    parameter = Parameter(
        name=f"--{name.replace('_', '-')}",
        converter=whole_number if hint in (int, int | None) else None,
        allow_leading_hyphen=hint is str,  # --data - is standard input
        help=about,
        group=group,
        show_default=(lambda _: shown) if default is not None else False,
        negative_iterable=(),
        consume_multiple=hint == tuple[str, ...] | None,
    )
    annotation = Annotated[hint | None, parameter]
    return inspect.Parameter(
        name.replace(".", "__"), inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation
    )


NPROC = _flag("nproc", int, "Processes of this machine that share the work; of several machines: torchrun.", "Run")


def config_flags(config: type, prefix: str, group: str, values: Mapping[str, Any]) -> list[inspect.Parameter]:
    """A flag for each field of a configuration; `values` are what help shows as defaults."""
    documented = {param.arg_name: param.description for param in docstring_parser.parse(config.__doc__ or "").params}
    hints = typing.get_type_hints(config)
    return [
        _flag(prefix + name, hints[name], documented.get(name), group, values.get(name, getattr(config, name, None)))
        for name in (field.name for field in dataclasses.fields(config))
        if prefix + name not in HIDDEN
    ]


def train_flags(arch: str, settings: Mapping[str, Any]) -> list[inspect.Parameter]:
    """All flags of `scratchlm train ARCH`."""
    return [
        _flag("preset", str, "A preset; scratchlm presets list shows them.", "Run", settings.get("preset")),
        _flag("config", str, "Settings in a TOML or JSON file, over the preset.", "Run"),
        _flag("out", str, f"The run's folder; without it runs/{arch}, or the next that is free.", "Run"),
        NPROC,
        *config_flags(RunConfig, "", "Run", settings),
        *config_flags(MODELS[arch].Config, "model.", "Model", settings.get("model", {})),
        *config_flags(OptimConfig, "optim.", "Optimizer", settings.get("optim", {})),
    ]


def finetune_flags(settings: Mapping[str, Any]) -> list[inspect.Parameter]:
    """All flags of `scratchlm finetune DIR`."""
    of_the_base = {"preset", "tokenizer", "vocab_size"}
    return [
        _flag(
            "out",
            str,
            "The new run's folder; without it runs/NAME-tuned or runs/NAME-lora, or the next that is free.",
            "Run",
        ),
        NPROC,
        _flag("checkpoint", str, "The checkpoint to start from: last, best, or a step.", "Run", "last"),
        *(flag for flag in config_flags(RunConfig, "", "Run", settings) if flag.name not in of_the_base),
        _flag("lora", bool, "Train an adapter and leave the model's weights as they are.", "LoRA"),
        *config_flags(LoRAConfig, "lora.", "LoRA", {}),
        *config_flags(OptimConfig, "optim.", "Optimizer", settings["optim"]),
    ]


def with_signature(function: Callable[..., Any], flags: list[inspect.Parameter]) -> Callable[..., Any]:
    """The function, taking these flags; only those that are given reach it."""
    function.__signature__ = inspect.Signature(flags)  # type: ignore[attr-defined]
    function.__annotations__ = {flag.name: flag.annotation for flag in flags}
    return function


def check_senses(directory: str | Path, arch: str) -> None:
    """Raises InputError for a run whose models have no senses, naming those that have them."""
    if not MODELS[arch].has_senses:
        having = ", ".join(name for name in MODELS if MODELS[name].has_senses)
        raise InputError(f"{directory} is a run of {arch}, which has no senses; train one of: {having}")


def nested(given: Mapping[str, Any]) -> dict[str, Any]:
    """{"model__dim": 64} -> {"model": {"dim": 64}}."""
    settings: dict[str, Any] = {}
    for name, value in given.items():
        group, _, field = name.rpartition("__")
        (settings.setdefault(group, {}) if group else settings)[field] = value
    return settings
