"""Characters: one token for each code point that the training text has."""

import sys
from collections.abc import Iterable
from typing import Any, Self

import numpy as np

from scratchlm.errors import InputError
from scratchlm.tokenizers.base import END_OF_TEXT, Tokenizer, utf8


class CharacterTokenizer(Tokenizer):
    """Ids in the order of the code points; an end-of-text token, where there is one, comes last."""

    kind = "char"
    cuts = ""

    def __init__(self, characters: str, end_of_text: bool = False) -> None:
        """Raises InputError where `characters` is empty, repeats one, or holds half a surrogate pair."""
        if not characters or len(set(characters)) != len(characters):
            raise InputError("the characters of a vocabulary must be there, each one once")
        utf8(characters)
        self._bytes = [character.encode() for character in characters]
        self.characters = characters
        self.vocab_size = len(characters) + end_of_text
        if end_of_text:
            self.end_of_text = len(characters)
            self._bytes.append(b"")
        codes = _code_points(characters)
        self._ids = np.full(int(codes.max()) + 2, -1, dtype=np.int64)  # by code point; the last stands for all above
        self._ids[codes] = np.arange(len(codes))

    @classmethod
    def train(cls, texts: Iterable[str], *, documents: bool = False) -> Self:
        seen = np.zeros(sys.maxunicode + 1, bool)  # ten times as fast as a set
        for text in texts:
            seen[_code_points(text)] = True
        if not seen.any():
            raise InputError("the text is empty: there is no character to learn from")
        return cls("".join(map(chr, np.flatnonzero(seen).tolist())), end_of_text=documents)

    def encode_array(self, text: str) -> np.ndarray:
        codes = _code_points(text)
        ids = self._ids[np.minimum(codes, len(self._ids) - 1)]
        unknown = np.flatnonzero(ids < 0)
        if unknown.size:
            at = int(unknown[0])
            raise InputError(
                f"the character {text[at]!r} at position {at} was not in the training text, so there is "
                "no token for it; leave it out, or train with --tokenizer byte"
            )
        return ids.astype(np.uint32)

    def token_bytes(self, token: int) -> bytes:
        return self._bytes[self.check_id(token)]

    @property
    def start(self) -> int:
        if self.end_of_text is not None:
            return self.end_of_text
        return max(self.characters.find("\n"), 0)  # a text starts after a line's end

    def settings(self) -> dict[str, Any]:
        special = {} if self.end_of_text is None else {END_OF_TEXT: self.end_of_text}
        return {"characters": self.characters, "special_tokens": special}

    @classmethod
    def from_settings(cls, settings: dict[str, Any]) -> Self:
        made = cls(settings["characters"], end_of_text=END_OF_TEXT in settings["special_tokens"])
        if made.settings()["special_tokens"] != settings["special_tokens"]:
            raise InputError(f"its special tokens are {settings['special_tokens']!r}")
        return made


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4").astype(np.int64)
