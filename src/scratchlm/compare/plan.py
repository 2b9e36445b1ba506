"""The plan of a comparison: who takes part, of which shape, with which settings. It is fixed before the first step.

OUT/  comparison.json, tokenizer.json (the plan)  ARCH/ (a run's folder each)  sweep/ (short runs, on request)
      results.json  table.md  samples.txt  loss_tokens.svg/png  loss_seconds.svg/png  report.html
Where there are several seeds, seed_N/ has all this for each, and OUT/ the plan and what is made of them together.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from scratchlm import runtime, tokenizers
from scratchlm.checkpoint import RunFolder, meta_model
from scratchlm.compare.budget import Budget
from scratchlm.config import RunConfig, default_preset, make_config, preset_settings, settings_of, without_vocabulary
from scratchlm.data.pairs import is_pairs
from scratchlm.data.shards import Tokens
from scratchlm.errors import InputError
from scratchlm.files import read_json, write_json
from scratchlm.model import LanguageModel
from scratchlm.models import MODELS
from scratchlm.tokenizers import Tokenizer
from scratchlm.training.material import read_text
from scratchlm.training.setup import check_memory, seconds_per_step

PLAN, TOKENIZER = "comparison.json", "tokenizer.json"
EVALUATIONS = 12  # points of a curve
TOLERANCE = 0.02  # how far a model may be from the budget's parameters


@dataclass(frozen=True, kw_only=True)
class Request:
    """What was asked for; the same request again goes on with the same comparison. `seeds`: as many, from `seed` on."""

    architectures: tuple[str, ...]
    data: str
    budget: Budget
    tokenizer: str = "char"
    vocab_size: int | None = None
    seed: int = 1337
    seeds: int = 1
    batch_size: int = 16
    window: int = 256
    sweep: bool = False
    device: str = "auto"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One model: its settings as `create_run` takes them. `sized`: it was fitted to the budget; a floor is not."""

    arch: str
    sized: bool
    parameters: int
    settings: Mapping[str, Any]

    @property
    def config(self) -> RunConfig:
        """The settings, checked."""
        return make_config(self.settings)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A folder with its plan. `tokens`: the sha256 of each split's ids, which are the same for all models."""

    folder: Path
    request: Request
    entries: list[Entry]
    tokens: Mapping[str, str]
    resumed: bool

    @property
    def tokenizer(self) -> Path:
        """The file of the tokenizer that all models share."""
        return self.folder / TOKENIZER

    def run(self, entry: Entry) -> RunFolder:
        """The run's folder of a model, which may not be there yet."""
        return RunFolder(self.folder / entry.arch)

    def with_seed(self, seed: int) -> "Comparison":
        """The comparison of a single seed, which is one of its own: the same models, text, tokens and steps."""
        return replace(
            self,
            folder=self.folder / f"seed_{seed}",
            request=replace(self.request, seed=seed, seeds=1),
            entries=[replace(entry, settings={**entry.settings, "seed": seed}) for entry in self.entries],
        )

    def keep(self, tokenizer: Tokenizer) -> None:
        """Write the plan down, which makes its folder a comparison. Raises InputError where it cannot be written."""
        written = {
            "request": plain(self.request),
            "entries": [plain(entry) for entry in self.entries],
            "tokens_sha256": self.tokens,
        }
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            tokenizer.save(self.tokenizer)
            write_json(self.folder / PLAN, written)
        except OSError as error:
            raise InputError(f"cannot write the comparison's folder {self.folder}: {error}") from error


def prepare(request: Request, folder: Path, measuring: Callable[[str], object] = lambda arch: None) -> Comparison:
    """The comparison in a folder: a new one planned and written down, or the one that was begun there.

    `measuring` is told of each model whose speed is about to be measured.
    Raises InputError for a request that cannot be met, then nothing is left behind; and where the folder holds
    something else, or a comparison that was asked for otherwise, naming what differs.
    """
    try:
        if (folder / PLAN).exists():
            return _reopen(request, folder)
        if folder.exists() and (not folder.is_dir() or any(not path.name.startswith(".") for path in folder.iterdir())):
            raise InputError(f"{folder} is there already and is no comparison; name another folder with --out")
    except OSError as error:
        raise InputError(f"cannot read {folder}: {error.strerror}") from error
    entries, tokenizer, tokens = make_plan(request, measuring)
    comparison = Comparison(folder=folder, request=request, entries=entries, tokens=tokens, resumed=False)
    comparison.keep(tokenizer)
    return comparison


def plain(record: Request | Entry) -> dict[str, Any]:
    """A record as it comes back out of JSON."""
    return json.loads(json.dumps(asdict(record)))


def _request(written: Mapping[str, Any]) -> Request:
    """A request as it was written, with the defaults of what came later."""
    values: dict[str, Any] = {**written, "budget": Budget(**written["budget"])}
    return Request(**values)


def _reopen(request: Request, folder: Path) -> Comparison:
    plan = read_json(folder / PLAN)
    before, now = plain(_request(plan["request"])), plain(request)
    different = [
        f"--{name.replace('_', '-')} was {_shown(before.get(name))} and is {_shown(now[name])} now"
        if name != "architectures"
        else f"the architectures were {' '.join(before[name])} and are {' '.join(now[name])} now"
        for name in now
        if before.get(name) != now[name]
    ]
    if different:
        raise InputError(
            f"{folder} holds a comparison that was asked for otherwise: {'; '.join(different)}. "
            "Give the same command to go on with it, or another folder with --out"
        )
    if "tokens_sha256" not in plan:
        raise InputError(f"{folder} holds a comparison of an older scratchlm; begin another with --out")
    entries = [Entry(**entry) for entry in plan["entries"]]
    return Comparison(folder=folder, request=request, entries=entries, tokens=plan["tokens_sha256"], resumed=True)


def _shown(value: Any) -> str:
    if isinstance(value, dict):  # a budget, as --budget takes it
        budget = Budget(**value)
        spent = f"time={budget.seconds:g}s" if budget.tokens is None else f"tokens={budget.tokens}"
        return f"{'trunk' if budget.trunk else 'params'}={budget.params},{spent}"
    return str(value)


def make_plan(request: Request, measuring: Callable[[str], object]) -> tuple[list[Entry], Tokenizer, dict[str, str]]:
    """The models of a comparison, each of the budget's size, with the steps that the budget pays for.

    Also the tokenizer that they share, and the sha256 of each split's tokens.
    Raises InputError for architectures, a budget or a text with which there is nothing to compare.
    """
    names = request.architectures
    for name in names:
        MODELS[name]
        if names.count(name) > 1:
            raise InputError(f"{name} is named twice; name each architecture once")
        if MODELS[name].takes_source:
            raise InputError(f"{name} translates a source, so it cannot be compared with models that have none")
    if len(names) < 2:
        raise InputError(f"a comparison needs two architectures or more; choose from: {', '.join(MODELS)}")
    if request.data == "-":
        raise InputError("each model reads the text for itself, so it cannot come from standard input; give a file")
    if is_pairs(request.data):
        raise InputError(
            f"{request.data} holds pairs of source and target, and a comparison reads a text: train each architecture "
            f"on them by itself (scratchlm train {names[0]} --data {request.data}) and compare what eval says"
        )
    if request.seeds < 1:
        raise InputError(f"--seeds is {request.seeds}; it must be at least 1")
    if request.window < 1:
        raise InputError(f"--window is {request.window}; it must be at least 1")
    per_step = request.batch_size * request.window
    if request.budget.tokens is not None and request.budget.tokens < per_step:
        raise InputError(
            f"--budget tokens={request.budget.tokens:,} is less than one step of {request.batch_size} x "
            f"{request.window} = {per_step:,} tokens; give more, or a smaller --batch-size or --window"
        )
    shared = ("data", "tokenizer", "vocab_size", "seed", "batch_size", "window", "device")
    common = {name: getattr(request, name) for name in shared}
    # what is wrong with the settings is said before a long text is read
    checked = [
        make_config({"arch": name, **common, "seed": seed, "window": None, "model": {"vocab_size": 1}})
        for name in names
        for seed in (request.seed, request.seed + request.seeds - 1)
    ]
    device, _ = runtime.choose_device(request.device)
    material = read_text(checked[0])
    tokenizer = tokenizers.exhaust(material.learn_tokenizer(checked[0]))
    planned = [(*_shape(name, request, tokenizer.vocab_size, common), name) for name in names]
    tokens = {name: Tokens.of(ids) for name, ids in material.tokenize(tokenizer, planned[0][0]).items()}
    if len(tokens["test"]) < 2:
        raise InputError(
            f"the test text has {len(tokens['test'])} tokens, and a loss needs two: give a longer text; "
            f"it is {planned[0][0].split[2]:.3g} of it"
        )
    entries = []
    for config, sized, name in planned:
        if request.budget.tokens is not None:
            steps = request.budget.tokens // per_step
        else:
            assert request.budget.seconds is not None
            measuring(name)
            steps = max(1, int(request.budget.seconds / seconds_per_step(config, tokens["train"], device)))
        parameters = count(meta_model(config))
        entries.append(Entry(arch=name, sized=sized, parameters=parameters, settings=with_steps(config, steps)))
    return entries, tokenizer, {name: ids.sha256() for name, ids in tokens.items()}


def count(module: nn.Module) -> int:
    """Parameters, each counted once."""
    return sum(parameter.numel() for parameter in module.parameters())


def trunk_parameters(model: LanguageModel) -> int:
    """Parameters of the contextual network: the module called `trunk`, or all of a model that has none."""
    return count(getattr(model, "trunk", model))


def with_steps(config: RunConfig, steps: int, lr: float | None = None) -> dict[str, Any]:
    """Settings for so many steps: evaluations, lines and warm-up in proportion. `lr`: another highest rate."""
    optim = replace(config.optim, warmup=min(config.optim.warmup, steps // 10))
    if lr is not None:
        optim = replace(optim, lr=lr, min_lr=config.optim.min_lr * lr / config.optim.lr)
    return settings_of(
        replace(
            config,
            steps=steps,
            eval_every=math.ceil(steps / EVALUATIONS),
            log_every=max(1, min(10, steps // 20)),
            keep=1,
            optim=optim,
        )
    )


def _shape(name: str, request: Request, vocab_size: int, common: Mapping[str, Any]) -> tuple[RunConfig, bool]:
    """The settings of a model with the budget's parameters, or as it is where its config has no `sized`: a floor.

    Where the budget is the trunk's, a config that has `sized_trunk` gives the shape, and else the model is all trunk.
    The optimizer is that of the architecture's default preset.
    """
    preset = without_vocabulary(preset_settings(name, default_preset(name)))
    of, wanted, what = MODELS[name].Config, request.budget.params, "trunk" if request.budget.trunk else "params"
    by = "sized_trunk" if request.budget.trunk and hasattr(of, "sized_trunk") else "sized"
    sized = getattr(of, by, None)
    if sized is None:
        shape: Any = {**preset.get("model", {}), "vocab_size": vocab_size}
    else:
        try:
            shape = asdict(sized(wanted, vocab_size, request.window))
        except ValueError as error:
            raise InputError(f"--budget {what}={wanted:,} cannot be met: {error}") from error
    config = make_config({"arch": name, **common, "model": shape, "optim": preset.get("optim", {})})
    check_memory(config)
    model = meta_model(config)
    found = trunk_parameters(model) if request.budget.trunk else count(model)
    if sized is not None and abs(found - wanted) > TOLERANCE * wanted:
        part = " in its trunk" if request.budget.trunk else ""
        raise InputError(f"{name} was to have {wanted:,} parameters{part} and has {found:,}: its Config.{by} is wrong")
    return config, sized is not None
