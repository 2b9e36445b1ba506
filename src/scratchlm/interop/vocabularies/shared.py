"""What reading and writing vocabularies share: how bytes and patterns are written, and merges out of ranks."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import regex

from scratchlm.errors import InputError
from scratchlm.tokenizers.bpe import ByteOrder, byte_values
from scratchlm.tokenizers.merging import SHORT, merge_long, merge_short
from scratchlm.tokenizers.splitting import PATTERNS

FORMATS = ("tiktoken", "hf", "minbpe")
Pair = tuple[int, int]

# GPT-2's file shows each byte as a character that can be seen: those that can be printed as themselves, the rest from
# U+0100 on. Paper: Radford et al. 2019, released encoder.py, bytes_to_unicode
SHOWN = {value: chr(value if at < 188 else 256 + at - 188) for at, value in enumerate(byte_values("gpt2"))}
VALUES = {character: value for value, character in SHOWN.items()}

# the ways in which other libraries write a pattern that cuts any text as ours of that name (tests/test_vocabularies.py)
SPELLINGS = {
    **{expression: name for name, expression in PATTERNS.items()},
    "": "none",  # minbpe's BasicTokenizer
    r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+": "gpt2",
    r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s": "gpt2",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+": "gpt4",
}


def json_object(file: Path, otherwise: str = "get the file again") -> dict[str, Any]:
    """What a JSON file says by name. Raises InputError, with `otherwise` for a remedy, where it cannot be read."""
    try:
        content = json.loads(file.read_bytes())
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror}; {otherwise}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file} is damaged: {error}; get the file again") from error
    if not isinstance(content, dict):
        raise InputError(f"{file} is JSON without names, and says nothing here; name another folder")
    return content


def shown(token: bytes) -> str:
    """The bytes as GPT-2's files write them."""
    return "".join(map(SHOWN.__getitem__, token))


def recover_merges(tokens: Sequence[bytes], byte_order: ByteOrder) -> list[Pair]:
    """The merges that training has made, out of the tokens in the order of their ids.

    Each token, merged by those before it alone, ends as the two that its own merge joins.
    Raises InputError where a token ends as anything else.
    """
    byte_ids = bytes(np.argsort(np.frombuffer(byte_values(byte_order), np.uint8)).astype(np.uint8))
    ranks: dict[int, int] = {}
    merges: list[Pair] = []
    for number in range(256, len(tokens)):
        ids = list(tokens[number].translate(byte_ids))
        parts = merge_short(ids, ranks) if len(ids) <= SHORT else merge_long(ids, ranks)
        if len(parts) != 2:
            raise InputError(f"the token {number}, {tokens[number]!r}, is no merge of two tokens before it")
        ranks[parts[0] << 32 | parts[1]] = number
        merges.append((parts[0], parts[1]))
    return merges


def check_oniguruma(expression: str) -> None:
    r"""Raise InputError where an expression of ours is another one to Oniguruma, which tokenizers has.

    Source: Oniguruma's doc/RE. There ^ and $ are the ends of lines, \h is a hexadecimal digit, \Z lets a last newline
    stand, {1,3}+ repeats, classes nest, (?s is unknown, and \w holds other characters.
    """
    if expression in SPELLINGS:
        return
    bare = _PARTS.sub(lambda part: part.group() if _DIFFERENT_PART.search(part.group()) else "", expression)
    if found := _DIFFERENT.search(bare):
        raise InputError(
            f"the library tokenizers reads {found.group()!r} otherwise in the pattern {expression!r}; "
            "write it without, or take one of " + ", ".join(PATTERNS)
        )


_PARTS = regex.compile(r"(?s)\\[pP]\{[^}]*\}|\\.|\[\^?\]?(?:\\.|[^\]\\])*\]")  # escapes, classes
_DIFFERENT_PART = regex.compile(
    r"(?s)^\\[ZhHKmMGRXNwWbB]|^\[(?:\\.|[^\\\[&]|&(?!&))*(?:\[|&&)|^\[(?:\\.|[^\\])*?\\[wW]"
)
_DIFFERENT = regex.compile(r"(?s)\\.|\[.*?\]|[\^$]|\{[\d,]+\}\+|\(\?(?!:|=|!|<=|<!|>|i:)")
