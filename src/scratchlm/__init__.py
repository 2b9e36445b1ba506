"""scratchlm: language-model architectures written from scratch, to be read, trusted and trained."""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from scratchlm import tokenizers
    from scratchlm.beams import beam_search
    from scratchlm.checkpoint import RunFolder, load
    from scratchlm.config import RunConfig
    from scratchlm.errors import InputError
    from scratchlm.evaluation import evaluate
    from scratchlm.generation import generate
    from scratchlm.model import LanguageModel, Source, State, record
    from scratchlm.models import MODELS
    from scratchlm.training.loop import train
    from scratchlm.training.setup import create_run

_PLACES = {
    "InputError": "scratchlm.errors",
    "LanguageModel": "scratchlm.model",
    "MODELS": "scratchlm.models",
    "RunConfig": "scratchlm.config",
    "RunFolder": "scratchlm.checkpoint",
    "Source": "scratchlm.model",
    "State": "scratchlm.model",
    "beam_search": "scratchlm.beams",
    "create_run": "scratchlm.training.setup",
    "evaluate": "scratchlm.evaluation",
    "generate": "scratchlm.generation",
    "load": "scratchlm.checkpoint",
    "record": "scratchlm.model",
    "tokenizers": "scratchlm.tokenizers",
    "train": "scratchlm.training.loop",
}

__all__ = [
    "MODELS",
    "InputError",
    "LanguageModel",
    "RunConfig",
    "RunFolder",
    "Source",
    "State",
    "__version__",
    "beam_search",
    "create_run",
    "evaluate",
    "generate",
    "load",
    "record",
    "tokenizers",
    "train",
]


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is asked for: `scratchlm --help` needs no torch."""
    if name not in _PLACES:
        raise AttributeError(f"module 'scratchlm' has no attribute {name!r}")
    module = importlib.import_module(_PLACES[name])
    return module if name == "tokenizers" else getattr(module, name)
