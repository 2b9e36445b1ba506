"""What the documentation's site asks the package itself: figures, flags, names. So it cannot say anything else.

A page has a part where it says `<!-- site: NAME ARGUMENTS -->`, which is nothing where the page is read by itself.
"""

import inspect
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from cyclopts import App

import scratchlm
from scratchlm.bench.report import table
from scratchlm.checkpoint import meta_model
from scratchlm.cli import COMMANDS, root
from scratchlm.cli.flags import finetune_flags, train_flags, with_signature
from scratchlm.cli.info import USUAL_VOCABULARY
from scratchlm.config import RunConfig, default_preset, make_config, merge, preset_settings
from scratchlm.files import read_json
from scratchlm.inspect.diagram import diagram
from scratchlm.inspect.modules import flops_per_token
from scratchlm.model import LanguageModel, Source
from scratchlm.models import MODELS

ROOT = Path(__file__).resolve().parent.parent
PAGES = ROOT / "build" / "docs"


def of_preset(arch: str, preset: str | None = None) -> RunConfig:
    """A run's settings as `scratchlm info ARCH --preset NAME` takes them."""
    settings = preset_settings(arch, preset or default_preset(arch))
    vocabulary = settings.get("model", {}).get("vocab_size", USUAL_VOCABULARY)
    return make_config(merge({"arch": arch}, settings, {"model": {"vocab_size": vocabulary}}))


def memory(model: LanguageModel) -> str:
    """What is kept of a text that was read, in float32. The model is on the meta device."""

    def begun(source_tokens: int) -> Any:
        source = torch.zeros(1, source_tokens, dtype=torch.int64, device="meta")
        return model.initial_state(1, source=Source(source, source[0, :1]) if model.takes_source else None)

    with torch.no_grad():
        fixed = begun(1).nbytes
        _, state = model(torch.zeros(1, 1, dtype=torch.int64, device="meta"), begun(1))
        kept = [(state.nbytes - fixed, "for each token")]
        if model.takes_source:
            sourced = begun(2).nbytes - fixed
            kept.append((sourced, "for each of the source"))
            fixed -= sourced
    kept.append((fixed if fixed > 64 else 0, "for a text"))  # below are numbers of a state, such as its source's index
    return " and ".join(f"{size:,} bytes {what}" for size, what in kept if size) or "nothing"


def cost(*archs: str) -> str:
    """A table of what each preset of these architectures weighs and computes."""
    rows, chosen = [], [(name, preset) for name in archs for preset in MODELS[name].presets]
    for arch, preset in chosen:
        config = of_preset(arch, preset)
        model = meta_model(config).eval()
        window = config.training_window
        rows.append(
            [
                f"`{preset}`" if len(archs) == 1 else f"`{arch}`, `{preset}`",
                f"{config.model.vocab_size:,}",
                f"{sum(parameter.numel() for parameter in model.parameters()):,}",
                f"{flops_per_token(model, window) / 1e6:,.4g} M",
                f"{window:,}",
                memory(model),
            ]
        )
    return markdown_table(["preset", "vocabulary", "parameters", "FLOPs a token", "window", "memory"], rows)


def picture(arch: str) -> str:
    """The module tree of the default preset, drawn by `scratchlm info ARCH --svg FILE`."""
    config = of_preset(arch)
    name = f"images/modules-{arch}.svg"
    title = f"{arch}, preset {config.preset}, vocabulary {config.model.vocab_size:,}"
    (PAGES / name).write_text(diagram(meta_model(config), title, config.training_window), encoding="utf-8")
    return f'<figure><img src="{name}" alt="module tree of {title}, with shapes and parameters"></figure>'


def measured(*archs: str) -> str:
    """The benchmark's rows of these architectures."""
    rows = read_json(ROOT / "benchmarks" / "results" / "results.json")["rows"]
    return table([row for row in rows if any(f": {arch}, " in row["what"] for arch in archs)])


def compared(*archs: str) -> str:
    """Where these architectures are among all, at one budget: the gallery's comparison."""
    rows = []
    for row in json.loads((ROOT / "docs" / "gallery" / "results.json").read_text(encoding="utf-8"))["rows"]:
        name, longest = row["architecture"], row["state_bytes"][-1]
        rows.append(
            [
                f"**{name}**" if name in archs else name,
                f"{row['parameters']:,}",
                f"{row['validation']['nats_per_token']:.3f}",
                f"{row['test']['nats_per_token']:.3f}",
                f"{longest['bytes']:,} bytes after {longest['tokens']:,} tokens",
            ]
        )
    head = ["at one budget", "parameters", "validation, nats per token", "test", "memory"]
    return f"[The gallery](gallery.md) says how this was made.\n\n{markdown_table(head, rows)}"


def departures() -> str:
    """Where each architecture follows its paper and where not, out of the modules' docstrings."""
    rows = []
    for arch in MODELS:
        text = module_docstring(arch)
        rows.append([f"[{arch}](#{arch})", paragraph(text, r"Papers?:"), paragraph(text, r"Departures:")])
    told = (f"## {arch}\n\n```text\n{module_docstring(arch).strip()}\n```\n" for arch in MODELS)
    return markdown_table(["architecture", "paper", "departures"], rows) + "\n" + "\n".join(told)


def module_docstring(arch: str) -> str:
    """What the file of an architecture says of itself."""
    return inspect.getdoc(inspect.getmodule(MODELS[arch])) or ""


def paragraph(text: str, start: str) -> str:
    """The paragraph that starts so, as one line without its first word. Raises ValueError where there is none."""
    for block in text.split("\n\n"):
        if found := re.match(start, block):
            return " ".join(block[found.end() :].split()).replace("|", "\\|")
    raise ValueError(f"no paragraph starts with {start}; each architecture's docstring needs one:\n{text}")


def markdown_table(head: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    return "".join(f"| {' | '.join(row)} |\n" for row in [head, ["---"] * len(head), *rows])


def commands() -> str:
    """Every command with all it takes, but for the flags of `train`, which have a page of their own."""
    parts = [
        "# Commands\n\nWhat `scratchlm COMMAND --help` says. `scratchlm train` has [a page of its own](train.md).\n"
    ]
    for name in COMMANDS:
        if name == "train":
            continue
        if name == "finetune":
            app = App(name="finetune", help=COMMANDS[name], version_flags=[], help_flags=[])
            app.default(with_signature(_nothing, finetune_flags({"optim": {}, "data": None})))
        else:
            app = root()[name]
        parts.append(_documented(app, ["scratchlm", name], 2))
    return "\n".join(parts)


def train() -> str:
    """All flags of `scratchlm train ARCH`, with the values of the default preset."""
    parts = [
        "# Flags of train\n\n`scratchlm train ARCH` takes these. A value in brackets is that of the preset which is "
        "taken where none is named.\n"
    ]
    for arch in MODELS:
        settings = merge({"arch": arch}, preset_settings(arch, default_preset(arch)))
        app = App(name=arch, help=(MODELS[arch].__doc__ or "").strip().splitlines()[0], version_flags=[], help_flags=[])
        app.default(with_signature(_nothing, train_flags(arch, settings)))
        parts.append(_documented(app, ["scratchlm", "train", arch], 2))
    return "\n".join(parts)


def _nothing(**_: Any) -> None:
    pass


def _documented(app: App, chain: list[str], level: int) -> str:
    from cyclopts.docs.markdown import generate_markdown_docs

    return generate_markdown_docs(app, heading_level=level, command_chain=chain, generate_toc=False)


def api() -> str:
    """The public names, and the contract behind them."""
    names = [f"scratchlm.{name}" for name in scratchlm.__all__ if name not in ("__version__", "tokenizers")]
    parts = ["# Python\n\n`import scratchlm` has these names; `scratchlm.tokenizers` is [told apart](api-parts.md).\n"]
    parts += [f"::: {name}\n" for name in names]
    return "\n".join(parts)


def api_models() -> str:
    """The architectures' classes."""
    parts = ["# Python: architectures\n"]
    for arch in MODELS:
        model = MODELS[arch]
        parts += [f"::: {kind.__module__}.{kind.__qualname__}\n" for kind in (model.Config, model)]
    return "\n".join([*parts, "::: scratchlm.recurrence\n", "::: scratchlm.layers\n"])


PARTS = (
    "tokenizers.base", "tokenizers.bpe", "tokenizers.characters", "tokenizers.bytes", "tokenizers.symbols",
    "generation",
    "beams", "translation", "evaluation", "steering", "lora.adapter", "config", "flops", "inspect.attention",
    "inspect.senses", "inspect.modules", "training.step", "training.optim", "training.muon",
)  # fmt: skip


def api_parts() -> str:
    """What the public names are made of."""
    return "\n".join(["# Python: parts\n", *(f"::: scratchlm.{part}\n" for part in PARTS)])


ANYWHERE: dict[str, Callable[..., str]] = {
    "compared": compared, "cost": cost, "departures": departures, "measured": measured, "picture": picture,
}  # fmt: skip
MADE: dict[str, Callable[[], str]] = {
    "api.md": api, "api-models.md": api_models, "api-parts.md": api_parts, "commands.md": commands, "train.md": train,
}  # fmt: skip
