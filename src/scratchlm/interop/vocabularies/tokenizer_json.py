r"""The tokenizer.json of Hugging Face's tokenizers, and what transformers wants beside it.

    ours                  there
    bpe of bytes          BPE on the characters that ByteLevel makes of bytes, cut by the same pattern before
    bpe of characters     BPE with byte_fallback; a byte is <0x41>, as in SentencePiece
    byte                  as bpe of bytes without merges and without a cut
    char                  WordLevel of single characters, each cut off from the next
    symbols, ids          WordLevel of what white space parts

A text makes the same ids there, and they decode to the same text. Where ours refuses a character or a symbol that it
has no token for, a WordLevel raises an error too, since its unk_token is none of its words.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from scratchlm.errors import InputError
from scratchlm.files import replace_file
from scratchlm.interop.vocabularies.beside import special_tokens
from scratchlm.interop.vocabularies.shared import VALUES, check_oniguruma, shown
from scratchlm.tokenizers import (
    BPETokenizer,
    ByteTokenizer,
    CharacterTokenizer,
    IdTokenizer,
    PairTokenizer,
    SymbolTokenizer,
    Tokenizer,
)
from scratchlm.tokenizers.base import END_OF_TEXT
from scratchlm.tokenizers.splitting import PATTERNS

BYTE_LEVEL: dict[str, Any] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
ANY_CHARACTER = r"[\s\S]"
# what Python's str.split parts at, and Oniguruma's \s and tokenizers' WhitespaceSplit only nearly: U+001C to U+001F
WHITE_SPACE = "[\t-\r\x1c-\x20\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+"
NO_WORD = "no token for what is not in the vocabulary"  # no character and, with its spaces, no symbol


def write_hub_tokenizer(tokenizer: Tokenizer, folder: Path, context: int | None) -> None:
    """Write tokenizer.json and tokenizer_config.json, which transformers' AutoTokenizer opens, into a folder.

    `context`: the tokens that the model can read; None: any number.
    A special token in a text is ordinary text there too (split_special_tokens), unless a call turns that off.
    transformers' decode writes a special token by its name, and leaves it out as ours does with skip_special_tokens.
    Raises InputError for what a tokenizer.json cannot say.
    """
    ends = [name for name, number in special_tokens(tokenizer).items() if number == tokenizer.end_of_text]
    end = {role: name for name in ends for role in ("bos_token", "eos_token")}
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",  # transformers 4 and 5 open any tokenizer.json with it
        **({} if context is None else {"model_max_length": context}),
        **end,
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": True,
    }
    for name, text in {"tokenizer.json": tokenizer_json(tokenizer), "tokenizer_config.json": _dumped(config)}.items():
        replace_file(folder / name, text.encode())


def tokenizer_json(tokenizer: Tokenizer) -> str:
    """The text of a tokenizer.json. Raises InputError for what it cannot say."""
    special = special_tokens(tokenizer)
    match tokenizer:
        case BPETokenizer(characters=None):
            return _byte_level(tokenizer)
        case BPETokenizer():
            return _characters_and_bytes(tokenizer)
        case ByteTokenizer():
            return _byte_level(BPETokenizer((), pattern="none", byte_order="value", special_tokens=special))
        case CharacterTokenizer():
            cut = _split(ANY_CHARACTER, "Isolated")
            return _content(_words(tokenizer.characters), cut, {"type": "Fuse"}, special)
        case SymbolTokenizer():
            if special and END_OF_TEXT in tokenizer.symbols:
                raise InputError(
                    f"tokenizer.json cannot hold the symbol {END_OF_TEXT!r} beside the end of a text, which it calls "
                    "the same; write the symbol otherwise in the text, and train again"
                )
            return _content(_words(tokenizer.symbols), _split(WHITE_SPACE, "Removed"), None, special)
        case IdTokenizer():
            return _content(
                _words(map(str, range(tokenizer.vocab_size))), _split(WHITE_SPACE, "Removed"), None, special
            )
        case PairTokenizer():
            raise InputError(
                "tokenizer.json holds one tokenizer, and this is one for each side of pairs, which share no ids; "
                "train with one for both, such as --tokenizer bpe"
            )
        case _:
            raise InputError(f"tokenizer.json cannot hold a {tokenizer.kind} tokenizer; train with --tokenizer bpe")


def byte_level_names(tokenizer: BPETokenizer) -> list[str]:
    """The tokens but the special ones, as GPT-2's files write them.

    Raises InputError where two are the same bytes, or a special token could not be told from them.
    """
    names = [shown(token) for token in told_apart(tokenizer)]
    for name in tokenizer.special_tokens:
        if not name.isascii() and VALUES.keys() >= set(name):
            raise InputError(f"tokenizers would show the special token {name!r} as other characters; name it in ASCII")
    _check_special(tokenizer, names)
    return names


def _byte_level(tokenizer: BPETokenizer) -> str:
    names = byte_level_names(tokenizer)
    cut: dict[str, Any] = {**BYTE_LEVEL, "use_regex": False}
    split = _pattern(tokenizer)
    if split is not None:
        cut = {"type": "Sequence", "pretokenizers": [split, cut]}
    model = _merges(tokenizer, names, byte_fallback=False)
    return _content(model, cut, {**BYTE_LEVEL, "use_regex": True}, tokenizer.special_tokens)


def _characters_and_bytes(tokenizer: BPETokenizer) -> str:
    """Bytes that are no UTF-8, which no text makes, become one U+FFFD each there, and here one for several."""
    names = [f"<0x{tokenizer.token_bytes(token)[0]:02X}>" for token in range(256)]
    names += tokenizer.characters or ""
    for left, right in tokenizer.merges:
        if min(left, right) < 256:
            raise InputError(
                "tokenizer.json cannot hold merges of bytes beside characters, as that of "
                f"{left} and {right}; train one of bytes"
            )
        names.append(names[left] + names[right])
    numbers = _numbered(names)
    if len(numbers) < len(names):
        twice = next(name for number, name in enumerate(names) if numbers[name] != number)
        raise InputError(f"tokenizer.json tells tokens by their text, and two are {twice!r}; train one of bytes")
    for name in tokenizer.special_tokens:
        if len(name) == 1:
            raise InputError(
                f"tokenizer.json would take the character {name!r} in any text for the special token; give it another "
                "name, such as <|name|>"
            )
    _check_special(tokenizer, names)
    model = _merges(tokenizer, names, byte_fallback=True)
    decoder = {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]}
    return _content(model, _pattern(tokenizer), decoder, tokenizer.special_tokens)


def told_apart(tokenizer: BPETokenizer) -> list[bytes]:
    """The tokens but the special ones. Raises InputError where two are the same bytes."""
    try:
        return list(tokenizer.mergeable_ranks())
    except InputError as error:
        raise InputError(f"{error}, and the format tells tokens by their bytes; use minbpe") from error


def _pattern(tokenizer: BPETokenizer) -> dict[str, Any] | None:
    if tokenizer.pattern == "none":
        return None
    expression = PATTERNS.get(tokenizer.pattern, tokenizer.pattern)
    check_oniguruma(expression)
    return _split(expression, "Isolated")


def _split(expression: str, behavior: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": expression}, "behavior": behavior, "invert": False}


def _numbered(names: Iterable[str]) -> dict[str, int]:
    return {name: number for number, name in enumerate(names)}


def _words(words: Iterable[str]) -> dict[str, Any]:
    return {
        "type": "WordLevel",
        "vocab": _numbered(words),
        "unk_token": NO_WORD,
    }


def _check_special(tokenizer: BPETokenizer, names: Sequence[str]) -> None:
    numbers = _numbered(names)
    for name in tokenizer.special_tokens:
        if name in numbers:
            raise InputError(
                f"the format cannot hold the special token {name!r}: it writes the token {numbers[name]} so; "
                "give it another name, such as <|name|>"
            )


def _merges(tokenizer: BPETokenizer, names: Sequence[str], byte_fallback: bool) -> dict[str, Any]:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": byte_fallback,
        "ignore_merges": False,
        # a special token that is here keeps its id, also past a gap
        "vocab": {**_numbered(names), **dict(_by_id(tokenizer.special_tokens))},
        "merges": [[names[left], names[right]] for left, right in tokenizer.merges],
    }


def _by_id(special: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(special.items(), key=lambda item: item[1])


def _content(
    model: dict[str, Any], cut: dict[str, Any] | None, decoder: dict[str, Any] | None, special: Mapping[str, int]
) -> str:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": number, "content": name, **flags} for name, number in _by_id(special)],
        "normalizer": None,
        "pre_tokenizer": cut,
        "post_processor": None,
        "decoder": decoder,
        "model": model,
    }
    return _dumped(content)


def _dumped(content: Mapping[str, Any]) -> str:
    return json.dumps(content, ensure_ascii=False, indent=1) + "\n"
