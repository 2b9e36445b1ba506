"""The architectures by name. A new one is one file here and one line below."""

import importlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from scratchlm.errors import InputError, did_you_mean

if TYPE_CHECKING:  # the names are to be had without torch
    from scratchlm.model import LanguageModel


class Registry:
    """Names to model classes; a class's module is imported when it is asked for."""

    def __init__(self, paths: dict[str, str]) -> None:
        self._paths = paths

    def register(self, name: str, path: str) -> None:
        """Add an architecture: `path` is "module:Class"."""
        self._paths[name] = path

    def __getitem__(self, name: str) -> "type[LanguageModel]":
        """Raises InputError for an unknown name."""
        if name not in self._paths:
            raise InputError(f"unknown architecture {name!r}: {did_you_mean(name, self)}")
        module, _, attribute = self._paths[name].partition(":")
        return getattr(importlib.import_module(module), attribute)

    def __iter__(self) -> Iterator[str]:
        return iter(self._paths)

    def __contains__(self, name: object) -> bool:
        return name in self._paths

    def __len__(self) -> int:
        return len(self._paths)


MODELS = Registry(
    {
        "gpt": "scratchlm.models.gpt:GPT",
        "rnn": "scratchlm.models.rnn:RNN",
        "lstm": "scratchlm.models.lstm:LSTM",
        "gru": "scratchlm.models.gru:GRU",
        "bigram": "scratchlm.models.bigram:Bigram",
        "cnn": "scratchlm.models.cnn:CNN",
        "transformer": "scratchlm.models.transformer:Transformer",
        "backpack": "scratchlm.models.backpack:Backpack",
        "llama": "scratchlm.models.llama:Llama",
    }
)
