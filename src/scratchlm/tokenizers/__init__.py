"""Text to token ids and back. A tokenizer knows nothing of torch and is saved as one JSON file."""

from scratchlm.tokenizers.base import (
    IncrementalDecoder,
    Learning,
    Tokenizer,
    exhaust,
    learn,
    load,
    train,
    whole_characters,
)
from scratchlm.tokenizers.bpe import BPETokenizer
from scratchlm.tokenizers.bytes import ByteTokenizer
from scratchlm.tokenizers.characters import CharacterTokenizer

__all__ = [
    "BPETokenizer",
    "ByteTokenizer",
    "CharacterTokenizer",
    "IncrementalDecoder",
    "Learning",
    "Tokenizer",
    "exhaust",
    "learn",
    "load",
    "train",
    "whole_characters",
]
