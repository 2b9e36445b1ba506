"""Text to token ids and back. A tokenizer knows nothing of torch and is saved as one JSON file."""

from scratchlm.tokenizers.base import IncrementalDecoder, Tokenizer, load, train
from scratchlm.tokenizers.bytes import ByteTokenizer
from scratchlm.tokenizers.characters import CharacterTokenizer

__all__ = ["ByteTokenizer", "CharacterTokenizer", "IncrementalDecoder", "Tokenizer", "load", "train"]
