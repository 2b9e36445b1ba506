"""A tokenizer into the file of another library."""

import base64
import itertools
from pathlib import Path

import regex

from scratchlm.errors import InputError, did_you_mean
from scratchlm.files import replace_file
from scratchlm.interop.vocabularies.shared import FORMATS, recover_merges
from scratchlm.interop.vocabularies.tokenizer_json import tokenizer_json, told_apart
from scratchlm.tokenizers import BPETokenizer, Tokenizer
from scratchlm.tokenizers.splitting import PATTERNS


def export_vocabulary(tokenizer: Tokenizer, to: str, path: str | Path) -> None:
    """Write a tokenizer's file for another library: byte-pair vocabularies for `tiktoken` and `minbpe`, any for `hf`.

    The other library encodes text as `tokenizer.encode` does, and with its special tokens on as with
    `allowed_special="all"`. tiktoken must be given the pattern and the special tokens beside the file, and minbpe's
    RegexTokenizer the pattern. Raises InputError where the format cannot say what the tokenizer does, and where the
    file cannot be written; then what was there stays.
    """
    if to not in FORMATS:
        raise InputError(f"no format {to!r}: {did_you_mean(to, FORMATS)}")
    path = Path(path)
    if to == "hf":
        text = tokenizer_json(tokenizer)
    elif not isinstance(tokenizer, BPETokenizer):
        raise InputError(
            f"{to} holds byte-pair vocabularies, and this is a {tokenizer.kind} tokenizer; export to hf, or train one "
            "of bpe"
        )
    elif tokenizer.characters is not None:
        raise InputError(
            f"{to} cannot hold a vocabulary of characters with bytes to fall back to; export to hf, or train one of "
            "bytes"
        )
    elif to == "minbpe" and path.suffix != ".model":
        raise InputError(f"minbpe reads only files that end in .model; write to {path.with_suffix('.model')}")
    else:
        text = _tiktoken(tokenizer) if to == "tiktoken" else _minbpe(tokenizer)
    try:
        replace_file(path, text.encode())
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}; choose another place") from error


def _check_covering(tokenizer: BPETokenizer, library: str) -> None:
    """Raise InputError where the library would drop characters, as it drops all that the pattern passes over."""
    if tokenizer.pattern in PATTERNS:
        return
    expression = regex.compile(tokenizer.pattern)
    for code in itertools.chain(range(0xD800), range(0xE000, 0x110000)):
        if not expression.fullmatch(chr(code)):
            raise InputError(
                f"{library} drops what a pattern passes over, and {tokenizer.pattern!r} passes over {chr(code)!r}; "
                "train with a pattern that takes every character, such as this one with |(?s:.) behind it"
            )


def _tiktoken(tokenizer: BPETokenizer) -> str:
    _check_covering(tokenizer, "tiktoken")
    tokens = told_apart(tokenizer)
    try:
        same = recover_merges(tokens, tokenizer.byte_order) == tokenizer.merges
    except InputError:
        same = False
    if not same:
        raise InputError("tiktoken merges by ranks, and these merges do not follow from them; export to hf or minbpe")
    return "".join(f"{base64.b64encode(token).decode()} {rank}\n" for rank, token in enumerate(tokens))


def _minbpe(tokenizer: BPETokenizer) -> str:
    expression = PATTERNS.get(tokenizer.pattern, tokenizer.pattern)
    if tokenizer.byte_order != "value":
        raise InputError(
            "minbpe numbers the bytes by their value, and this vocabulary as GPT-2 does; train one with --ties first"
        )
    if expression != expression.strip() or regex.search(r"[\r\n]", expression):
        raise InputError(f"minbpe's reader would strip the pattern {expression!r}; write \\s, \\n or [ ] at its ends")
    if regex.compile(expression).groups:
        raise InputError(f"minbpe keeps only the groups of the pattern {expression!r}; write (?: in place of (")
    for name in tokenizer.special_tokens:
        if name.split() != [name]:
            raise InputError(f"minbpe's reader would break the special token {name!r} at its space; rename it")
    _check_covering(tokenizer, "minbpe")
    # its search takes the first name that fits, ours the longest one
    special = sorted(tokenizer.special_tokens.items(), key=lambda item: -len(item[0]))
    lines = ["minbpe v1", expression, str(len(special)), *(f"{name} {number}" for name, number in special)]
    return "".join(f"{line}\n" for line in [*lines, *(f"{left} {right}" for left, right in tokenizer.merges)])
