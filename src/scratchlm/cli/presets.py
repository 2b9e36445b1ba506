"""scratchlm presets: settings by name."""

import sys

import tomli_w
from cyclopts import App

from scratchlm.config import preset_settings, without_vocabulary
from scratchlm.errors import InputError, did_you_mean
from scratchlm.models import MODELS
from scratchlm.training.expected import all_expected

app = App(name="presets", help="List and show presets.", version_flags=[])


@app.command(name="list")
def list_() -> int:
    """List the presets of each architecture; the first is the default."""
    for arch in MODELS:
        for number, (name, settings) in enumerate(MODELS[arch].presets.items()):
            shape = ", ".join(f"{key} {value}" for key, value in settings.get("model", {}).items())
            print(
                f"{arch:<12} {name:<16} {'(default) ' if not number else ''}{settings.get('steps', 0):,} steps; {shape}"
            )
    return 0


@app.command
def show(preset: str, arch: str | None = None, /) -> int:
    """Show a preset as a file of settings, which --config takes.

    Parameters
    ----------
    preset
        Its name.
    arch
        Its architecture; without it the first that has a preset of this name.
    """
    having = [name for name in ([arch] if arch else MODELS) if preset in MODELS[name].presets]
    if not having and arch is None and preset in MODELS:
        own = ", ".join(MODELS[preset].presets)
        raise InputError(f"{preset} is an architecture; its presets are: {own} (scratchlm presets show NAME {preset})")
    if not having:
        names = {name for one in ([arch] if arch else MODELS) for name in MODELS[one].presets}
        raise InputError(f"no preset {preset!r}{f' of {arch}' if arch else ''}: {did_you_mean(preset, names)}")
    if (expected := all_expected().get(f"{having[0]}/{preset}")) is not None:
        how = expected.measured
        print(f"# validation loss, nats per token, measured on {how['date']} with torch {how['torch']}:")
        for band in expected.bands():
            print(f"#   step {band.step:,}: {band.low:.4f} to {band.high:.4f} ({band.seeds} seeds)")
    sys.stdout.write(tomli_w.dumps({"arch": having[0], **without_vocabulary(preset_settings(having[0], preset))}))
    return 0
