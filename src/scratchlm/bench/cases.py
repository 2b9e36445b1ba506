"""The models that are measured, each with a batch: every registered architecture in its first preset, and some more.

Tokens are drawn as words occur, the n-th one n-th as often as the first, which a Backpack's speed depends on.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from scratchlm import runtime
from scratchlm.config import OptimConfig, default_preset, preset_settings
from scratchlm.data.batches import IGNORED, Batch
from scratchlm.model import LanguageModel, Source
from scratchlm.models import MODELS

SEED = 1337
CHARACTERS = 65  # of tinyshakespeare: the vocabulary of a preset that learns one
WORD, VERSE = 8, 32  # usual tokens of a target of pairs
NANOGPT_GPU = {"vocab_size": 50304, "bias": False, "activation": "gelu"}  # what nanoGPT makes of GPT-2 to train it


@dataclass(frozen=True, kw_only=True)
class Case:
    """A model and the batch that it is measured with.

    Attributes:
        name: The architecture's preset, or what else it is.
        arch: The architecture.
        model: Its shape.
        rows: Texts of a batch.
        tokens: Tokens of each; of a target of pairs the usual number, around which lengths vary.
        optim: The optimizer.
        asked: The ratio asked of a training step against a peer, by the peer's name.
        compile: Whether it is compiled, where this case does not leave that to the setting.
        precision: That of our own products, likewise; a peer's are in that of the setting.
    """

    name: str
    arch: str
    model: Mapping[str, Any]
    rows: int
    tokens: int
    optim: OptimConfig = field(default_factory=OptimConfig)
    asked: Mapping[str, float] = field(default_factory=dict)
    compile: Literal["off", "auto"] | None = None
    precision: Literal["bf16"] | None = None

    @property
    def title(self) -> str:
        """What it is, in words."""
        return f"{self.arch}, {self.name}, {self.rows} x {self.tokens}"

    def make(self, device: torch.device) -> LanguageModel:
        """The model, always with the same weights, without dropout, which no two libraries draw alike."""
        runtime.seed_everything(SEED)
        config = MODELS[self.arch].Config(**self.model)
        return MODELS[self.arch](config).to(device)

    def batch(self, device: torch.device) -> Batch:
        """The batch, always the same."""
        draws = torch.Generator().manual_seed(SEED)
        vocab_size, takes_source = self.model["vocab_size"], MODELS[self.arch].takes_source
        if not takes_source:
            text = words(vocab_size, (self.rows, self.tokens + 1), draws)
            return Batch(text[:, :-1].contiguous(), text[:, 1:].contiguous()).to(device)
        least, most = self.tokens - self.tokens // 4, self.tokens + self.tokens // 4
        lengths = torch.randint(least, most + 1, (2, self.rows), generator=draws)
        source, text = (words(vocab_size, (self.rows, int(side.max()) + 1), draws) for side in lengths)
        targets = text[:, 1:].contiguous()
        targets[torch.arange(targets.shape[1]) >= lengths[1][:, None]] = IGNORED
        tokens, ids = text[:, :-1].contiguous(), source[:, :-1].contiguous()
        return Batch(tokens, targets, Source(ids, lengths[0])).to(device)


def words(vocab_size: int, shape: tuple[int, int], draws: torch.Generator) -> Tensor:
    """Random tokens, the n-th one n-th as often as the first."""
    frequencies = 1 / torch.arange(1, vocab_size + 1)
    return torch.multinomial(frequencies, math.prod(shape), replacement=True, generator=draws).view(shape)


def of_preset(arch: str, preset: str, **more: Any) -> Case:
    """An architecture in one of its presets."""
    settings = preset_settings(arch, preset)
    takes_source = MODELS[arch].takes_source
    dropouts = {name: 0.0 for name in MODELS[arch].Config.__dataclass_fields__ if name.endswith("dropout")}
    vocabulary = {"vocab_size": settings.get("vocab_size") or CHARACTERS}
    model = {**vocabulary, **settings.get("model", {}), **dropouts, **more.pop("model", {})}
    tokens = WORD if takes_source else settings.get("window") or model.get("context") or 256
    rows = settings.get("batch_tokens", 2048) // tokens if takes_source else settings.get("batch_size", 16)
    known: dict[str, Any] = {
        "name": preset,
        "tokens": tokens,
        "rows": rows,
        "optim": OptimConfig(**settings.get("optim", {})),
    }
    return Case(arch=arch, model=model, **(known | more))


def cases(device: torch.device) -> Iterator[Case]:
    """All models that training is measured with: larger ones on an accelerator, which small ones do not fill."""
    large = device.type != "cpu"
    if large:
        asked = {"nanoGPT": 1 / 1.1}
        yield of_preset("gpt", "gpt2", name="gpt2 as nanoGPT trains it", rows=12, model=NANOGPT_GPU, asked=asked)
        yield of_preset("gpt", "gpt2", rows=12)
        yield of_preset("gpt", "nanogpt-gpu")
    else:
        asked = {"nanoGPT": 0.75}
        yield of_preset("gpt", "nanogpt-cpu")
        yield of_preset("gpt", "nanogpt-cpu", compile="auto", asked=asked)
        if runtime.cpu_has_bf16():  # nanoGPT leaves a CPU in float32
            yield of_preset("gpt", "nanogpt-cpu", precision="bf16", asked=asked)
            yield of_preset("gpt", "nanogpt-cpu", precision="bf16", compile="auto", asked=asked)
    for arch in MODELS:
        if preset := default_preset(arch):
            yield of_preset(arch, preset)
    verses = {"dim": 256, "depth": 3, "heads": 4, "hidden_dim": 1024, "norm": "post"}
    yield of_preset("transformer", "cmudict", name="verses", tokens=VERSE, rows=2048 // VERSE, model=verses)
