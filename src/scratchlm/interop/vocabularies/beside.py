"""What lies beside a vocabulary in a folder of the hub, and says more of the tokenizer than the vocabulary does.

    tokenizer_config.json      add_prefix_space; added_tokens_decoder, added tokens by id; special tokens by their role
    added_tokens.json          added tokens by name, of which the other two files say whether they are special
    special_tokens_map.json    special tokens by their role

As transformers has it, a special token that has an id nowhere gets the next one that is free.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

from scratchlm.errors import InputError
from scratchlm.interop.vocabularies.shared import json_object
from scratchlm.tokenizers import BPETokenizer, Tokenizer
from scratchlm.tokenizers.base import END_OF_TEXT

SETTINGS, ADDED, MAP = BESIDE = ("tokenizer_config.json", "added_tokens.json", "special_tokens_map.json")
ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
MORE = ("additional_special_tokens", "extra_special_tokens")  # its name in transformers 4, and in 5
FLAGS = ("single_word", "lstrip", "rstrip")


def special_tokens(tokenizer: Tokenizer) -> dict[str, int]:
    """The special tokens of any tokenizer by name."""
    if isinstance(tokenizer, BPETokenizer):
        return tokenizer.special_tokens
    return {} if tokenizer.end_of_text is None else {END_OF_TEXT: tokenizer.end_of_text}


def with_special(tokenizer: BPETokenizer, special: Mapping[str, int], end_of_text: str) -> BPETokenizer:
    """The same tokenizer with these special tokens, of which one ends a text."""
    return BPETokenizer(
        tokenizer.merges,
        pattern=tokenizer.pattern,
        byte_order=tokenizer.byte_order,
        characters=tokenizer.characters,
        special_tokens=special,
        end_of_text=end_of_text,
    )


def completed(folder: Path, tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer with the special tokens that only the files beside its vocabulary name.

    Raises InputError, which names the file, for what is no special token, and for a space before each text.
    """
    settings, numbers, roles = (json_object(file) if (file := folder / name).is_file() else {} for name in BESIDE)
    try:
        return _completed(folder, tokenizer, settings, numbers, roles)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{folder}: {' or '.join(BESIDE)} is damaged: {error!r}; get them again") from error


def _completed(
    folder: Path,
    tokenizer: Tokenizer,
    settings: Mapping[str, Any],
    numbers: Mapping[str, int],
    roles: Mapping[str, Any],
) -> Tokenizer:
    if settings.get("add_prefix_space"):
        _refuse(folder / SETTINGS, "add_prefix_space, a space put before each text")
    known = special_tokens(tokenizer)
    special = set[str]([*known, *_by_role(settings), *_by_role(roles)])
    added = {name: (number, ADDED) for name, number in numbers.items()}
    for number, token in (settings.get("added_tokens_decoder") or {}).items():
        name = str(token["content"])
        added[name] = (int(number), SETTINGS)
        if token.get("special"):
            special.add(name)
        for flag in FLAGS:
            if token.get(flag) and name not in known:
                _refuse(folder / SETTINGS, f"the added token {name!r} with {flag}")
    ordinary = {
        tokenizer.token_bytes(token): token
        for token in range(min([tokenizer.vocab_size, *known.values()]))  # special tokens are the last, with gaps
    }
    found = dict[str, int]()
    for name, (number, file) in added.items():
        if (there := known.get(name, ordinary.get(name.encode()))) is None:
            if name not in special:
                _refuse(folder / file, f"the added token {name!r}, which is not special")
            found[name] = number
        elif there != number:
            raise InputError(f"{folder / file}: {name!r} has the id {number}, and {there} in the vocabulary beside it")
    after = max([tokenizer.vocab_size - 1, *found.values()]) + 1
    for name in dict.fromkeys([*_by_role(roles), *_by_role(settings)]):
        if name not in known and name not in found and name.encode() not in ordinary:
            found[name] = after
            after += 1
    if not found:
        return tokenizer
    if not isinstance(tokenizer, BPETokenizer):
        _refuse(folder, f"the special token {min(found)!r} beside a vocabulary of {tokenizer.kind}")
    try:
        return with_special(tokenizer, {**known, **found}, END_OF_TEXT)
    except InputError as error:
        raise InputError(f"{folder}: {error}") from error


def _by_role(content: Mapping[str, Any]) -> Iterator[str]:
    """The names of the special tokens that a file lists by what they are for."""
    listed = [content.get(role) for role in ROLES]
    for key in MORE:
        more = content.get(key) or []
        listed += more.values() if isinstance(more, dict) else more
    for token in listed:
        name = token.get("content") if isinstance(token, dict) else token
        if isinstance(name, str) and name:
            yield name


def _refuse(file: Path, feature: str) -> NoReturn:
    raise InputError(f"{file} has {feature}, which this tokenizer has not; take a byte-level vocabulary without it")
