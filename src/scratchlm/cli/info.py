"""scratchlm info DIR|ARCH: what a model is made of."""

import os
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from scratchlm.checkpoint import RunFolder, lay_adapter, meta_model
from scratchlm.cli.flags import OptionalInt
from scratchlm.config import RunConfig, default_preset, make_config, merge, preset_settings
from scratchlm.errors import InputError
from scratchlm.files import replace_file
from scratchlm.inspect.diagram import diagram
from scratchlm.inspect.modules import flops_per_token, module_rows
from scratchlm.lora import size
from scratchlm.models import MODELS

USUAL_VOCABULARY = 65  # characters of tinyshakespeare


def command(
    model: str,
    /,
    *,
    preset: str | None = None,
    vocab_size: OptionalInt = None,
    svg: str | None = None,
) -> int:
    """Show a model's modules: shapes, parameters, and the operations for each token.

    Parameters
    ----------
    model
        A run's folder, or an architecture.
    preset
        The architecture's preset; without it the default one.
    vocab_size
        Tokens in the vocabulary; without it the preset's, or 65.
    svg
        A file for the tree as a diagram, with what each module gives, keeps for the backward pass, and passes on.
    """
    if svg is not None:
        _check_file(svg)
    config, note = _config(model, preset, vocab_size)
    built = meta_model(config)
    window = config.training_window
    table = Table(box=None, pad_edge=False)
    for column, justify in (
        ("module", "left"),
        ("kind", "left"),
        ("parameters of its own", "left"),
        ("parameters", "right"),
    ):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    for row in module_rows(built):
        shapes = ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in row.shapes.items())
        name = row.name.rpartition(".")[2] if row.depth else row.name
        table.add_row("  " * row.depth + name, row.kind, shapes, f"{row.parameters:,}")
    print(f"{config.arch}{note}")
    console = Console(emoji=False, markup=False)
    if not console.is_terminal:
        console.width = 200  # a pipe has no edge to cut names off at
    console.print(table)
    parameters = sum(parameter.numel() for parameter in built.parameters())
    forward = flops_per_token(built, window)
    print(f"\nparameters           {parameters:,} ({parameters * 4 / 1e6:,.1f} MB in float32)")
    print(f"context              {built.context or 'no limit'}")
    print(f"FLOPs for each token {forward:,.0f} forward, {3 * forward:,.0f} in training (windows of {window})")
    if svg is not None:
        try:
            replace_file(Path(svg), diagram(built, f"{config.arch}{note}", window).encode())
        except OSError as error:
            raise InputError(f"cannot write the diagram {svg}: {error.strerror}") from error
        print(f"diagram              {svg}")
    if config.lora is not None:
        chosen = lay_adapter(built, config)
        adapter = size(built)
        base = os.path.normpath(Path(model) / str(config.base))
        print(f"adapter              {adapter.trained:,} parameters beside {len(chosen)} matrices of {base}")
    return 0


def _check_file(svg: str) -> None:
    """Raises InputError where no diagram can be written there."""
    if Path(svg).suffix.lower() != ".svg":
        raise InputError(f"--svg is {svg!r}; the diagram is an SVG file, so give it a name that ends in .svg")
    if not Path(svg).parent.is_dir():
        raise InputError(f"--svg is {svg!r}, but there is no folder {Path(svg).parent}; make it first")


def _config(model: str, preset: str | None, vocab_size: int | None) -> tuple[RunConfig, str]:
    if model not in MODELS and Path(model).exists():
        run = RunFolder.open(model)
        return run.config(), f" in {model}"
    settings: dict[str, Any] = preset_settings(model, preset or default_preset(model)) if model in MODELS else {}
    size = {
        "vocab_size": settings.get("model", {}).get("vocab_size", USUAL_VOCABULARY)
        if vocab_size is None
        else vocab_size
    }
    config = make_config(merge({"arch": MODELS[model] and model}, settings, {"model": size}))
    named = f", preset {config.preset}" if config.preset else ""
    return config, f"{named}, vocabulary {config.model.vocab_size:,}"
