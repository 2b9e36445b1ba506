"""Ids: no text, the token ids themselves, for a model whose tokenizer is elsewhere."""

import re
from collections.abc import Iterable
from typing import Any, Self

import numpy as np

from scratchlm.errors import InputError
from scratchlm.tokenizers.base import Tokenizer


class IdTokenizer(Tokenizer):
    """A text is decimal ids that white space parts: `encode("12 7 9") == [12, 7, 9]`.

    `decode(encode(text)) == " ".join(text.split())`. As bytes each id has the space behind it, which `decode` leaves
    out of the last one. What an id means is not known, so none ends a text, and an empty prompt means 0.
    """

    kind = "ids"
    cuts = r"(?=\s)"

    def __init__(self, vocab_size: int) -> None:
        """Raises InputError where `vocab_size` is not a whole number, 1 or more."""
        if type(vocab_size) is not int or not 1 <= vocab_size < 1 << 32:
            raise InputError(f"the number of ids is {vocab_size!r}; it must be a whole number, 1 or more, below 2**32")
        self.vocab_size = vocab_size

    @classmethod
    def train(cls, texts: Iterable[str], *, documents: bool = False) -> Self:
        """All ids up to the largest of the texts. Raises InputError for documents: no id is free to part them."""
        if documents:
            raise InputError("ids have no end-of-text token to part documents with; join them into one text")
        largest = max((int(ids.max()) for text in texts if (ids := _read(text, 1 << 31)).size), default=None)
        if largest is None:
            raise InputError("the text is empty: there is no id to learn from")
        return cls(largest + 1)

    def encode_array(self, text: str) -> np.ndarray:
        return _read(text, self.vocab_size)

    def token_bytes(self, token: int) -> bytes:
        return b"%d " % self.check_id(token)

    def decode(self, ids: Iterable[int]) -> str:
        return super().decode(ids).removesuffix(" ")

    @property
    def symbolic(self) -> bool:
        return True

    @property
    def start(self) -> int:
        return 0

    def settings(self) -> dict[str, Any]:
        return {"vocab_size": self.vocab_size}

    @classmethod
    def from_settings(cls, settings: dict[str, Any]) -> Self:
        return cls(settings["vocab_size"])


def _read(text: str, size: int) -> np.ndarray:
    """The ids of a text, all below `size`. Shapes: (N,) uint32."""
    ids: list[int] = []
    for word in re.finditer(r"\S+", text):
        found, where = word.group(), f"at position {word.start()}"
        shown = found if len(found) <= 40 else f"{found[:40]}..."
        if not re.fullmatch(r"0|[1-9][0-9]*", found):
            raise InputError(
                f"{shown!r} {where} is no id, and the tokenizer knows nothing else; give decimal ids parted by white "
                'space, such as "2 15 7"'
            )
        if len(found) > 10 or int(found) >= size:
            raise InputError(f"the id {shown} {where} is too large; the ids are 0 to {size - 1}")
        ids.append(int(found))
    return np.array(ids, dtype=np.uint32)
