"""Bytes: the 256 values of UTF-8's bytes, so that any text has ids, and one end-of-text token."""

from collections.abc import Iterable
from typing import Any, Self

import numpy as np

from scratchlm.errors import InputError
from scratchlm.tokenizers.base import Tokenizer, utf8


class ByteTokenizer(Tokenizer):
    """Ids 0 to 255 are byte values, 256 is the end of a text."""

    kind = "byte"
    covers_any_text = True
    cuts = ""
    vocab_size = 257
    end_of_text = 256

    @classmethod
    def train(cls, texts: Iterable[str], *, documents: bool = False) -> Self:
        return cls()

    def encode_array(self, text: str) -> np.ndarray:
        return np.frombuffer(utf8(text), dtype=np.uint8).astype(np.uint32)

    def token_bytes(self, token: int) -> bytes:
        return b"" if self.check_id(token) == 256 else bytes([token])

    @property
    def start(self) -> int:
        return 256

    def settings(self) -> dict[str, Any]:
        return {}

    @classmethod
    def from_settings(cls, settings: dict[str, Any]) -> Self:
        if settings:
            raise InputError(f"a byte tokenizer has no settings, this has {', '.join(settings)}")
        return cls()
