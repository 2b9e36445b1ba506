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
from scratchlm.tokenizers.ids import IdTokenizer
from scratchlm.tokenizers.pair import PairTokenizer, learn_pair
from scratchlm.tokenizers.symbols import SymbolTokenizer

__all__ = [
    "BPETokenizer",
    "ByteTokenizer",
    "CharacterTokenizer",
    "IdTokenizer",
    "IncrementalDecoder",
    "Learning",
    "PairTokenizer",
    "SymbolTokenizer",
    "Tokenizer",
    "exhaust",
    "learn",
    "learn_pair",
    "load",
    "train",
    "whole_characters",
]
