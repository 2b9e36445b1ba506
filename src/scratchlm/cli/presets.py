"""scratchlm presets: settings by name."""

import sys
from typing import Any

import tomli_w
from cyclopts import App

from scratchlm.config import preset_settings, without_vocabulary
from scratchlm.errors import InputError, did_you_mean
from scratchlm.models import MODELS

app = App(name="presets", help="List and show presets.", version_flags=[])


@app.command(name="list")
def list_() -> int:
    """List the presets of each architecture; the first is the default."""
    for arch in MODELS:
        for number, (name, settings) in enumerate(MODELS[arch].presets.items()):
            shape = ", ".join(f"{key} {value}" for key, value in settings.get("model", {}).items())
            print(
                f"{arch:<12} {name:<14} {'(default) ' if not number else ''}{settings.get('steps', 0):,} steps; {shape}"
            )
    return 0


@app.command
def show(preset: str, /) -> int:
    """Show a preset as a file of settings, which --config takes.

    Parameters
    ----------
    preset
        Its name.
    """
    found: dict[str, dict[str, Any]] = {
        arch: without_vocabulary(preset_settings(arch, preset)) for arch in MODELS if preset in MODELS[arch].presets
    }
    if not found:
        names = {name for arch in MODELS for name in MODELS[arch].presets}
        raise InputError(f"no preset {preset!r}: {did_you_mean(preset, names)}")
    for arch, settings in found.items():
        sys.stdout.write(tomli_w.dumps({"arch": arch, **settings}))
    return 0
