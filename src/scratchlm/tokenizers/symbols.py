"""Symbols: one token for each word between white space that the training text has, such as phonemes."""

import re
from collections.abc import Iterable
from typing import Any, Self

import numpy as np

from scratchlm.errors import InputError
from scratchlm.tokenizers.base import END_OF_TEXT, Tokenizer, utf8


class SymbolTokenizer(Tokenizer):
    """Ids in the order of the symbols; an end-of-text token, where there is one, comes last.

    White space only parts the symbols: `decode(encode(text)) == " ".join(text.split())`. As bytes each symbol has the
    space behind it, which is a byte of the text like any other; `decode` leaves the last one out.
    """

    kind = "symbols"
    cuts = r"(?=\s)"

    def __init__(self, symbols: Iterable[str], end_of_text: bool = False) -> None:
        """Raises InputError where `symbols` is empty, repeats one, or has one that white space could not part."""
        self.symbols = list(symbols)
        if not self.symbols or len(set(self.symbols)) != len(self.symbols):
            raise InputError("the symbols of a vocabulary must be there, each one once")
        for symbol in self.symbols:
            if symbol.split() != [symbol]:
                raise InputError(f"the symbol {symbol!r} is empty or has white space, which parts symbols")
        self._bytes = [utf8(symbol) + b" " for symbol in self.symbols]
        self._ids = {symbol: token for token, symbol in enumerate(self.symbols)}
        self.vocab_size = len(self.symbols) + end_of_text
        if end_of_text:
            self.end_of_text = len(self.symbols)
            self._bytes.append(b"")

    @classmethod
    def train(cls, texts: Iterable[str], *, documents: bool = False) -> Self:
        symbols = {symbol for text in texts for symbol in text.split()}
        if not symbols:
            raise InputError("the text is empty: there is no symbol to learn from")
        return cls(sorted(symbols), end_of_text=documents)

    def encode_array(self, text: str) -> np.ndarray:
        ids = [self._ids.get(symbol, -1) for symbol in text.split()]
        if -1 in ids:
            unknown = next(found for found in re.finditer(r"\S+", text) if found.group() not in self._ids)
            raise InputError(
                f"the symbol {unknown.group()!r} at position {unknown.start()} was not in the training text, so there "
                "is no token for it; leave it out, or train with --tokenizer byte"
            )
        return np.array(ids, dtype=np.uint32)

    def token_bytes(self, token: int) -> bytes:
        return self._bytes[self.check_id(token)]

    def decode(self, ids: Iterable[int]) -> str:
        return super().decode(ids).removesuffix(" ")

    @property
    def symbolic(self) -> bool:
        return True

    @property
    def start(self) -> int:
        return 0 if self.end_of_text is None else self.end_of_text

    def settings(self) -> dict[str, Any]:
        special = {} if self.end_of_text is None else {END_OF_TEXT: self.end_of_text}
        return {"symbols": self.symbols, "special_tokens": special}

    @classmethod
    def from_settings(cls, settings: dict[str, Any]) -> Self:
        if not isinstance(settings["symbols"], list):
            raise InputError(f"its symbols are {type(settings['symbols']).__name__}, not a list")
        made = cls(settings["symbols"], end_of_text=END_OF_TEXT in settings["special_tokens"])
        if made.settings()["special_tokens"] != settings["special_tokens"]:
            raise InputError(f"its special tokens are {settings['special_tokens']!r}")
        return made
