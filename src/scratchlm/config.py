"""The settings of a run: frozen dataclasses, made of defaults, a preset, a file and flags, each over the one before."""

import dataclasses
import json
import math
import tomllib
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import cattrs

from scratchlm.errors import InputError, did_you_mean
from scratchlm.models import MODELS

OF_A_RUN = (
    "format_version",
    "checksum",
    "run",
    "tokenizer_sha256",
    "data_checksum",
    "base_sha256",
)  # in config.json, no settings


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The optimizer and its schedule.

    Attributes:
        name: adamw, or muon for the matrices inside the network with AdamW for all else.
        lr: Highest learning rate.
        min_lr: Rate at the end of the cosine and linear schedules.
        warmup: Steps of linear warm-up.
        schedule: cosine and linear fall from lr to min_lr; noam falls with one over the root of the step; constant
            stays at lr.
        beta1: Decay of the mean of gradients.
        beta2: Decay of the mean of squared gradients.
        eps: Added to the root of the mean of squares.
        weight_decay: Decay of matrices; biases and norms have none.
        decay_embeddings: Whether embeddings decay as other matrices do, an embedding that also reads out among them.
        grad_clip: Largest norm of the gradient; 0 clips nothing.
        momentum: Muon's decay of the mean of gradients.
        muon_ratio: Muon's rate, in times of lr.
    """

    name: Literal["adamw", "muon"] = "adamw"
    lr: float = 1e-3
    min_lr: float = 1e-4
    warmup: int = 100
    schedule: Literal["cosine", "linear", "noam", "constant"] = "cosine"
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    decay_embeddings: bool = True
    grad_clip: float = 1.0
    momentum: float = 0.95
    muon_ratio: float = 1.0

    def __post_init__(self) -> None:
        for name in ("lr", "min_lr", "warmup", "eps", "weight_decay", "grad_clip", "muon_ratio"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"optim.{name} is {getattr(self, name)}; it must be 0 or more, and finite")
        for name in ("beta1", "beta2", "momentum"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"optim.{name} is {getattr(self, name)}; it must be at least 0 and below 1")


@dataclass(frozen=True, kw_only=True)
class LoRAConfig:
    """A low-rank adapter.

    Attributes:
        rank: Width between the two matrices (r).
        alpha: The change counts alpha / rank times, whatever the rank (alpha).
        targets: Matrices that are adapted, by name or by the end of it, with * for any: query value, mlp.output,
            blocks.0.*; of a fused matrix all of it or a part; none: all but embeddings.
        dropout: Share of the change's inputs set to zero in training; a matrix that is read as a tensor (an embedding,
            a convolution, a recurrence) has no inputs here.
        rslora: The change counts alpha / sqrt(rank) times, so that large ranks learn as fast as small ones.
        dora: A length is learned for each row of a matrix, apart from the row's direction.
        bias: Biases that are trained too: none, those of adapted modules (lora_only), or all, of norms too.
        ranks: Other ranks for some of the targets, by name as there.
        alphas: Other alphas for some of the targets.
    """

    rank: int = 8
    alpha: float = 16.0
    targets: tuple[str, ...] | None = None
    dropout: float = 0.0
    rslora: bool = False
    dora: bool = False
    bias: Literal["none", "lora_only", "all"] = "none"
    ranks: Mapping[str, int] = field(default_factory=dict)
    alphas: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, rank in {"rank": self.rank, **{f"ranks[{key!r}]": rank for key, rank in self.ranks.items()}}.items():
            if rank < 1:
                raise ValueError(f"lora.{name} is {rank}; it must be at least 1")
        for name, alpha in {"alpha": self.alpha, **{f"alphas[{key!r}]": a for key, a in self.alphas.items()}}.items():
            if not 0 < alpha < math.inf:
                raise ValueError(f"lora.{name} is {alpha}; it must be above 0, and finite")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"lora.dropout is {self.dropout}; it must be at least 0 and below 1")
        if self.targets is not None and not self.targets:
            raise ValueError("lora.targets is empty; name a matrix, or leave it out to adapt all but embeddings")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that decides a run.

    Attributes:
        arch: The architecture.
        preset: The preset that filled what nothing else set.
        data: A corpus by name, a file (.tsv holds pairs: source, tab, target), a folder of texts, one that data prepare
            made, or - for standard input.
        prepared: The folder that data prepare made, seen from the run's; none: the run's folder has the tokens itself.
        source: A file with a source on each line, for models of pairs; its translations are in target.
        target: A file with the targets of source, line by line.
        pairs: Whether the data are pairs of source and target, which create_run finds out.
        split: Shares of training, validation and test text; a corpus of pairs brings its own split.
        errors: Bytes that are not UTF-8: strict stops, replace puts U+FFFD there.
        tokenizer: A kind (char, symbols, byte, bpe), two for the two sides of pairs (char+symbols), a published
            vocabulary (gpt2, cl100k, o200k) or a tokenizer's file; none: char for text, what the corpus calls for or
            bpe for pairs.
        vocab_size: Tokens of a bpe tokenizer that the run trains, special ones not counted; none: 1024, of pairs 4000.
        steps: Optimizer steps.
        horizon: Steps that the schedule is laid out for; none: all of them. Steps beyond it run at its last rate.
        batch_size: Windows in a step, where the data are a text.
        batch_tokens: Tokens of either side in a step where the data are pairs, padding included; of both sides together
            for a model that reads them as one sequence.
        label_smoothing: Share of the target that training spreads evenly over the whole vocabulary.
        window: Tokens of a window of a text; none: the model's context, or 256 where it has no limit.
        carry: Read the text in streams and carry the state from window to window (truncated backpropagation).
        accumulate: Parts that a step's batch is computed in, to save memory.
        eval_every: Steps between evaluations.
        log_every: Steps between lines of metrics.jsonl.
        patience: Evaluations without a better one before the run stops; none: it goes on.
        save_minutes: Minutes between checkpoints, besides those at evaluations.
        keep: Newest checkpoints that are kept, besides the best.
        seed: Seed of weights, batches and dropout.
        device: auto, cpu, cuda or mps.
        precision: What products are computed in: fp32, bf16 or fp16; auto: bf16 on CUDA chips that have it, else fp32.
        compile: Whether torch compiles the step: on, off, or auto, which goes on without it where that fails.
        checkpoint_activations: Compute each block's activations again for the backward pass, to save memory.
        loss_rows: Tokens whose logits are held at once; none: as many as fit the memory.
        shard: Share out weights, gradients and moments among several processes (FSDP2), not only the batch (DDP).
        logger: A viewer that the metrics go to as well: none, tensorboard, trackio or wandb.
        base: The run whose weights this one starts from, seen from this one's folder; none: they are drawn.
        model: The architecture's shape.
        optim: The optimizer.
        lora: The adapter that is trained beside the base's weights; none: the weights themselves are.
    """

    arch: str
    preset: str | None = None
    data: str = "shakespeare"
    prepared: str | None = None
    source: str | None = None
    target: str | None = None
    pairs: bool = False
    split: tuple[float, float, float] = (0.9, 0.05, 0.05)
    errors: Literal["strict", "replace"] = "strict"
    tokenizer: str | None = None
    vocab_size: int | None = None
    steps: int = 1000
    horizon: int | None = None
    batch_size: int = 16
    batch_tokens: int = 2048
    label_smoothing: float = 0.0
    window: int | None = None
    carry: bool = False
    accumulate: int = 1
    eval_every: int = 250
    log_every: int = 10
    patience: int | None = None
    save_minutes: float = 5.0
    keep: int = 2
    seed: int = 1337
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    compile: Literal["auto", "on", "off"] = "off"
    checkpoint_activations: bool = False
    loss_rows: int | None = None
    shard: bool = False
    logger: Literal["none", "tensorboard", "trackio", "wandb"] = "none"
    base: str | None = None
    model: Any = None
    optim: OptimConfig = field(default_factory=OptimConfig)
    lora: LoRAConfig | None = None

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "batch_tokens", "accumulate", "eval_every", "log_every", "keep"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.patience is not None and self.patience < 1:
            raise ValueError(f"patience is {self.patience}; it must be at least 1, or left out")
        if self.loss_rows is not None and self.loss_rows < 1:
            raise ValueError(f"loss_rows is {self.loss_rows}; it must be at least 1, or left out")
        if self.shard and self.precision == "fp16":
            raise ValueError("fp16 and shard do not go together, since gradients are scaled as a whole; use bf16")
        if self.horizon is not None and self.horizon < 1:
            raise ValueError(f"horizon is {self.horizon}; it must be at least 1, or left out")
        if self.accumulate > self.batch_size and not self.pairs:
            raise ValueError(f"accumulate is {self.accumulate}, but a batch has only {self.batch_size} windows")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing is {self.label_smoothing}; it must be at least 0 and below 1")
        if (self.source is None) != (self.target is None):
            missing = "target" if self.target is None else "source"
            raise ValueError(f"--{missing} is missing: pairs come as two files, --source FILE and --target FILE")
        limit = getattr(self.model, "context", None)
        if self.window is not None and not 1 <= self.window <= (limit or self.window):
            fits = f" and fit the model's context of {limit}" if limit else ""
            raise ValueError(f"window is {self.window}; it must be at least 1{fits}")
        if self.carry and limit is not None:
            raise ValueError(
                f"carry needs a model without a context limit, since a stream has no end, and {self.arch} reads "
                f"{limit} tokens; leave carry out, or train an architecture without a limit, such as an RNN"
            )
        if not 0 <= self.seed < 1 << 63:
            raise ValueError(f"the seed is {self.seed}; it must be at least 0 and below 2**63")
        if not self.save_minutes > 0:
            raise ValueError(f"save_minutes is {self.save_minutes}; it must be above 0")

    @property
    def training_window(self) -> int:
        """Tokens of a window of training and validation."""
        return self.window or getattr(self.model, "context", None) or 256

    @property
    def data_name(self) -> str:
        """What the data are called."""
        return self.data if self.source is None else f"{self.source} and {self.target}"


def default_preset(arch: str, data: str | None = None) -> str | None:
    """The preset that a run takes when it names none: the data's own, else the first that is for any data."""
    presets = MODELS[arch].presets
    if data is None:
        return next(iter(presets), None)
    own = (name for name, settings in presets.items() if settings.get("data") == data)
    return next(own, next((name for name, settings in presets.items() if "data" not in settings), None))


def preset_settings(arch: str, preset: str | None) -> dict[str, Any]:
    """The settings of a preset. Raises InputError for an unknown one."""
    if preset is None:
        return {}
    presets = MODELS[arch].presets
    if not isinstance(preset, str) or preset not in presets:
        raise InputError(f"{arch} has no preset {preset!r}: {did_you_mean(preset, presets)}")
    return {"preset": preset, **presets[preset]}


def without_vocabulary(preset: dict[str, Any]) -> dict[str, Any]:
    """A preset's settings for a run: the vocabulary that its published size counts gives way to the tokenizer's."""
    shape = {key: value for key, value in preset.get("model", {}).items() if key != "vocab_size"}
    return {**preset, **({"model": shape} if "model" in preset else {})}


def read_settings(path: str) -> dict[str, Any]:
    """The settings in a TOML or JSON file; a run's config.json is one. Raises InputError where it is unreadable."""
    try:
        text = Path(path).read_text(encoding="utf-8")
        settings = json.loads(text) if path.endswith(".json") else tomllib.loads(text)
    except OSError as error:
        raise InputError(f"cannot read the settings {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is neither TOML nor, by its name, JSON: {error}") from error
    if not isinstance(settings, dict):
        raise InputError(f"{path} holds no settings, which are names with values")
    for group in ("model", "optim", "lora"):
        if not isinstance(settings.get(group, {}) or {}, dict):
            raise InputError(f"{path}: {group} is {settings[group]!r}, not names with values")
    return {name: value for name, value in settings.items() if name not in OF_A_RUN}


def merge(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings, each layer over those before it."""
    merged: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            below = merged.get(key)
            both = isinstance(below, dict) and isinstance(value, Mapping)
            merged[key] = merge(below, value) if both else dict(value) if isinstance(value, Mapping) else value
    return merged


def _check_names(settings: Any, config: type, where: str, groups: Mapping[str, type] | None = None) -> None:
    if not isinstance(settings, Mapping):
        raise InputError(f"{where[:-1]} is {settings!r}, not names with values")
    names = {f.name for f in dataclasses.fields(config)}
    for key in settings:
        if key not in names:
            group = next((g for g, c in (groups or {}).items() if key in {f.name for f in dataclasses.fields(c)}), None)
            remedy = f"did you mean {f'{group}.{key}'!r}?" if group else did_you_mean(key, names)
            raise InputError(f"unknown setting {where}{key}: {remedy}")


def _numbers(value: Any, kind: type) -> Any:
    """Cattrs would call int("x") and bool("no"): take nothing but the JSON type that a setting has."""
    good = isinstance(value, (int, float) if kind is float else kind)
    if not good or (kind is not bool and isinstance(value, bool)):
        raise TypeError(f"{value!r} is no {kind.__name__}")
    return kind(value)


_converter = cattrs.Converter(detailed_validation=False)
for _kind in (int, float, bool, str):
    _converter.register_structure_hook(_kind, _numbers)


def _structure(settings: Mapping[str, Any], config: type, where: str) -> Any:
    """A dataclass out of settings whose names are known; the first bad value is named."""
    hints = typing.get_type_hints(config)
    values: dict[str, Any] = {}
    for key, value in settings.items():
        try:
            ready = hints[key] is Any or dataclasses.is_dataclass(value)
            values[key] = value if ready else _converter.structure(value, hints[key])
        except Exception as error:  # cattrs raises bare ones for a Literal
            expected = getattr(hints[key], "__name__", None) if isinstance(hints[key], type) else str(hints[key])
            raise InputError(f"{where}{key} is {value!r}, not {str(expected).replace('typing.', '')}") from error
    try:
        return config(**values)
    except (ValueError, TypeError) as error:
        raise InputError(str(error)) from error


def make_config(settings: Mapping[str, Any]) -> RunConfig:
    """The configuration that merged settings mean; `model.vocab_size` must be among them.

    Raises InputError for an unknown name, naming the nearest, and for a value that does not fit.
    """
    if "arch" not in settings:
        raise InputError(f"the settings name no architecture: arch is one of {', '.join(MODELS)}")
    shape = MODELS[settings["arch"]].Config
    _check_names(settings, RunConfig, "", {"model": shape, "optim": OptimConfig, "lora": LoRAConfig})
    model, optim = ({} if settings.get(group) is None else settings[group] for group in ("model", "optim"))
    _check_names(model, shape, "model.")
    _check_names(optim, OptimConfig, "optim.")
    lora = settings.get("lora")
    if lora is not None:
        _check_names(lora, LoRAConfig, "lora.")
        lora = _structure(lora, LoRAConfig, "lora.")
    if "vocab_size" not in model:
        raise InputError("model.vocab_size is missing: it is the number of the tokenizer's tokens")
    groups = {
        "model": _structure(model, shape, "model."),
        "optim": _structure(optim, OptimConfig, "optim."),
        "lora": lora,
    }
    return _structure({**settings, **groups}, RunConfig, "")


def settings_of(config: RunConfig) -> dict[str, Any]:
    """The settings that make this configuration, as JSON values."""
    return json.loads(json.dumps(dataclasses.asdict(config)))
