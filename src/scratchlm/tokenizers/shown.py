"""Tokens as a person can see them."""

from collections.abc import Sequence

from scratchlm.tokenizers.base import Tokenizer

END = "<end>"


def visible(data: bytes) -> str:
    """Bytes as a person can see them: spaces as dots, line ends as arrows, what is no text in hexadecimal."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return "".join(chr(byte) if 0x21 <= byte < 0x7F else f"\\x{byte:02x}" for byte in data)
    marks = {" ": "\u00b7", "\n": "\u21b5", "\t": "\u21e5"}
    return "".join(marks.get(c) or (c if c.isprintable() else c.encode("unicode_escape").decode()) for c in text)


def texts(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    """The text of each token."""
    return [END if token == tokenizer.end_of_text else tokenizer.decode([token]) for token in ids]


def labels(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    """The tokens as a person can see them, spaces and line ends too, but not the space behind each symbol."""
    shown = []
    for token in ids:
        data, alone = tokenizer.token_bytes(token), tokenizer.decode([token]).encode()
        shown.append(END if token == tokenizer.end_of_text else visible(alone if data == alone + b" " else data))
    return shown
