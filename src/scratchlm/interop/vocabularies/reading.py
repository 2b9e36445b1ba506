"""A tokenizer out of the file of another library."""

import base64
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import regex

from scratchlm import tokenizers
from scratchlm.errors import InputError
from scratchlm.interop.vocabularies.beside import completed
from scratchlm.interop.vocabularies.published import find_published, keep, published
from scratchlm.interop.vocabularies.shared import FORMATS, SPELLINGS, VALUES, Pair, check_oniguruma, recover_merges
from scratchlm.interop.vocabularies.tokenizer_json import tokenizer_json
from scratchlm.tokenizers import (
    BPETokenizer,
    ByteTokenizer,
    CharacterTokenizer,
    IdTokenizer,
    SymbolTokenizer,
    Tokenizer,
)
from scratchlm.tokenizers.bpe import ByteOrder, byte_values
from scratchlm.tokenizers.splitting import PATTERNS

PAIRS = {"vocab.bpe": "encoder.json", "merges.txt": "vocab.json"}


def named_vocabulary(name: str) -> BPETokenizer:
    """`gpt2`, `cl100k` or `o200k`: out of a file that was imported once, tiktoken's cache, or a package.

    Raises InputError for an unknown name, and, saying how to get one, where there is none.
    """
    where, data = find_published(name)
    return _read_ranks(where, data) if _is_ranks(data) else _read_pair(where, data, None)


def import_vocabulary(
    path: str | Path, pattern: str | None = None, special: Mapping[str, int] | None = None
) -> Tokenizer:
    """The tokenizer of a file: of tiktoken, tokenizers, minbpe or GPT-2, or of scratchlm itself.

    GPT-2's two files are given as their folder or as one of them; of a folder its other files count too (beside.py).
    `pattern` and `special` are for files that do not say them: tiktoken's, where it is no published one, and the
    pattern for GPT-2's, where it is not `gpt2`.
    Of tokenizer.json files without merges those are read that were written here.
    A published vocabulary is kept, so that it is found by its name from then on.
    Raises InputError for damaged files, and for what this tokenizer does not do.
    """
    if pattern == "":
        raise InputError(f"the pattern is empty; give one of {', '.join(PATTERNS)}, or a regular expression")
    path = Path(path)
    if path.is_dir():
        names = [name for name in ("tokenizer.json", *PAIRS) if (path / name).is_file()]
        if not names:
            raise InputError(f"{path} has no vocabulary: no tokenizer.json, {' and no '.join(PAIRS)}; name the file")
        return completed(path, import_vocabulary(path / names[0], pattern, special))
    for merges, ids in PAIRS.items():
        if path.name in (merges, ids):
            path, beside = path.with_name(merges), path.with_name(ids)
            data = _read(path)
            known = published(data)
            alone = known is not None and not beside.is_file()
            read: Tokenizer = _read_pair(path, data, None if alone else beside, pattern, special)
            if known is not None:
                keep(known, data)
            return read
    data = _read(path)
    if _is_ranks(data):
        read, known = _read_ranks(path, data, pattern, special), published(data)
        if known is not None:
            keep(known, data)
        return read
    if pattern is not None or special is not None:
        raise InputError(f"{path} has a pattern and special tokens of its own; leave those that you gave out")
    if data.startswith(b"minbpe v"):
        return _read_minbpe(path, data)
    content = _json(path, data)
    if "format_version" in content:
        return tokenizers.load(path)
    if "model" not in content:
        raise InputError(f"{path} is no vocabulary that is known here; give one of {', '.join(FORMATS)} or of GPT-2")
    try:
        return _without_merges(content) or _read_tokenizer_json(path, content)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is damaged: {error!r}; get the file again") from error


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; bring the file, or name another") from error


def _damaged(path: Path, line: int, what: str) -> NoReturn:
    raise InputError(f"{path} is damaged: line {line} {what}; get the file again")


def _lines(path: Path, data: bytes) -> Iterator[tuple[int, str]]:
    """The lines with their numbers, from 1 on."""
    for number, line in enumerate(data.removesuffix(b"\n").split(b"\n"), 1):
        try:
            yield number, line.removesuffix(b"\r").decode()
        except UnicodeDecodeError:
            _damaged(path, number, "is no UTF-8")


def _json(path: Path, data: bytes) -> dict[str, Any]:
    try:
        content = json.loads(data)
    except json.JSONDecodeError as error:
        if not data.lstrip().startswith(b"{"):
            raise InputError(
                f"{path} is no vocabulary that is known here; give one of {', '.join(FORMATS)} or of GPT-2"
            ) from error
        _damaged(path, error.lineno, f"is no JSON ({error.msg})")
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged: {error}; get the file again") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} is no vocabulary: it is JSON without names; name another file")
    return content


def _made(path: Path, merges: Sequence[Pair], **settings: Any) -> BPETokenizer:
    try:
        return BPETokenizer(merges, **settings)
    except InputError as error:
        raise InputError(f"{path} does not fit: {error}") from error


def _byte_order(path: Path, tokens: Sequence[bytes]) -> ByteOrder:
    """Which order the first 256 tokens are in."""
    orders: tuple[ByteOrder, ...] = ("gpt2", "value")
    for order in orders:
        if all(len(token) == 1 for token in tokens[:256]) and b"".join(tokens[:256]) == byte_values(order):
            return order
    raise InputError(
        f"{path} does not begin with all 256 bytes, by value or as in GPT-2: this tokenizer has them first, and "
        "special tokens last; train it so, in tokenizers with initial_alphabet=ByteLevel.alphabet() and without "
        "special tokens, and add them afterwards"
    )


def _is_ranks(data: bytes) -> bool:
    return regex.match(rb"[A-Za-z0-9+/]+={0,2} \d+\r?(\n|$)", data) is not None


def _read_ranks(
    path: Path, data: bytes, pattern: str | None = None, special: Mapping[str, int] | None = None
) -> BPETokenizer:
    known, tokens, seen = published(data), [], set[bytes]()
    for number, line in _lines(path, data):
        found = regex.fullmatch(r"((?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?) (\d{1,9})", line)
        if found is None or not found[1]:
            _damaged(path, number, "is not the bytes of a token in base64, a space and a rank")
        if int(found[2]) != len(tokens):
            raise InputError(
                f"{path}, line {number}: the rank is {found[2]} where {len(tokens)} is due; this tokenizer has no gaps "
                "between its tokens, and special tokens after them; choose a vocabulary without, such as cl100k"
            )
        token = base64.b64decode(found[1])
        if token in seen:
            _damaged(path, number, f"has the token {token!r} again")
        seen.add(token)
        tokens.append(token)
    if pattern is None and known is None:
        raise InputError(
            f"{path} does not say how text is cut; give its pattern: {', '.join(PATTERNS)} or an expression"
        )
    order = _byte_order(path, tokens)
    try:
        merges = recover_merges(tokens, order)
    except InputError as error:
        raise InputError(f"{path} is damaged: {error}; get the file again") from error
    if known is not None:
        pattern = known.pattern if pattern is None else pattern
        special = known.special_tokens if special is None else special
    return _made(path, merges, pattern=_named(pattern or ""), byte_order=order, special_tokens=special)


def _named(expression: str) -> str:
    return SPELLINGS.get(expression, expression)


def _read_minbpe(path: Path, data: bytes) -> BPETokenizer:
    lines = [(number, line.strip()) for number, line in _lines(path, data)]
    header = [line for _, line in lines[:3]]
    if len(header) < 3 or header[0] != "minbpe v1" or not regex.fullmatch(r"\d{1,9}", header[2]):
        raise InputError(
            f"{path} does not begin as minbpe v1 does, with a pattern and the number of special tokens; "
            "save it again with minbpe"
        )
    first_merge = 3 + int(header[2])
    special: dict[str, int] = {}
    for number, line in lines[3:first_merge]:
        found = regex.fullmatch(r"(\S+) (\d{1,9})", line)
        if found is None or found[1] in special:
            _damaged(path, number, "is not a new special token, a space and its id")
        special[found[1]] = int(found[2])
    if len(special) < int(header[2]):
        _damaged(path, len(lines), f"is the last one, before the {header[2]} special tokens are there")
    merges: dict[Pair, int] = {}
    for number, line in lines[first_merge:]:
        found = regex.fullmatch(r"(\d{1,9}) (\d{1,9})", line)
        pair = (int(found[1]), int(found[2])) if found else (0, 0)
        if found is None or max(pair) >= 256 + len(merges) or pair in merges:
            _damaged(path, number, "is not a new pair of ids that are there already")
        merges[pair] = 256 + len(merges)
    return _made(path, list(merges), pattern=_named(header[1]), byte_order="value", special_tokens=special)


def _read_pair(
    path: Path,
    data: bytes,
    ids: Path | None,
    pattern: str | None = None,
    special: Mapping[str, int] | None = None,
) -> BPETokenizer:
    """GPT-2's merges by name; `ids`, the file that numbers the names, may be missing where `data` is known."""
    pairs: list[tuple[str, str]] = []
    for number, line in _lines(path, data):
        if number == 1 and line.startswith("#version"):
            continue
        left, space, right = line.partition(" ")
        if not left or not space or not right or not set(left + right) <= VALUES.keys():
            _damaged(path, number, "is not two tokens, written as GPT-2 does, with a space between")
        pairs.append((left, right))
    names = [*VALUES, *(left + right for left, right in pairs)]
    known = published(data)
    if ids is None:
        vocabulary = {name: number for number, name in enumerate(names)}
        found = known.special_tokens if known is not None else {}
    else:
        vocabulary = _json(ids, _read(ids))
        if any(type(number) is not int for number in vocabulary.values()):
            raise InputError(f"{ids} is damaged: an id in it is no integer; get the file again")
        found = {name: vocabulary.pop(name) for name in vocabulary.keys() - set(names)}
    merges, order = _by_name(path, vocabulary, pairs)
    return _made(
        path,
        merges,
        pattern=_named("gpt2" if pattern is None else pattern),
        byte_order=order,
        special_tokens=found if special is None else special,
    )


def _by_name(
    path: Path, vocabulary: Mapping[str, int], pairs: Sequence[tuple[str, str]], whole_chunks: bool = False
) -> tuple[list[Pair], ByteOrder]:
    """Merges by id, out of merges by name and the ids of the names, special tokens not among them.

    Some files have all pairs that make a token, of which training has merged one; then that one is taken. With
    `whole_chunks` a chunk that is a token is that token, whatever its merges, which is no difference where each token
    follows from the ones before it.
    """
    names = sorted(vocabulary, key=vocabulary.__getitem__)
    if [vocabulary[name] for name in names] != list(range(len(names))):
        raise InputError(
            f"{path}: the ids of its {len(names)} tokens have gaps; this tokenizer has none, and special tokens last; "
            "train the vocabulary without special tokens"
        )
    strange = next((name for name in names if not name or not set(name) <= VALUES.keys()), None)
    if strange is not None:
        raise InputError(
            f"{path}: the token {strange!r} is not bytes written as GPT-2 does; take a byte-level vocabulary"
        )
    tokens = [bytes(map(VALUES.__getitem__, name)) for name in names]
    order = _byte_order(path, tokens)
    try:
        merges = [(vocabulary[left], vocabulary[right]) for left, right in pairs]
        made = [vocabulary[left + right] for left, right in pairs]
    except KeyError as error:
        raise InputError(f"{path} is damaged: a merge has {error}, which has no id; get the file again") from error
    if made == list(range(256, len(tokens))) and not whole_chunks:
        return merges, order
    try:
        recovered = recover_merges(tokens, order)
    except InputError as error:
        raise InputError(f"{path}: {error}; this tokenizer has the others only") from error
    if made != sorted(made) or not set(recovered) <= set(merges):
        raise InputError(f"{path}: its merges are not in the order of the ids that they make; take another vocabulary")
    return recovered, order


def _without_merges(content: Mapping[str, Any]) -> Tokenizer | None:
    """The tokenizer of characters, symbols, ids or bytes that has written this (tokenizer_json.py), if one has."""
    kinds: list[Callable[[], Tokenizer]] = [ByteTokenizer]
    if content["model"].get("type") == "WordLevel":
        names, end = list(content["model"]["vocab"]), bool(content.get("added_tokens"))
        kinds = [lambda: CharacterTokenizer("".join(names), end), lambda: SymbolTokenizer(names, end)]
        if names == [str(number) for number in range(len(names))]:
            kinds.insert(0, lambda: IdTokenizer(len(names)))
    for make in kinds:
        with suppress(InputError):
            made = make()
            if json.loads(tokenizer_json(made)) == content:
                return made
    return None


def _read_tokenizer_json(path: Path, content: Mapping[str, Any]) -> BPETokenizer:
    model = content["model"]
    processor, decoder = _alone(content.get("post_processor")), _alone(content.get("decoder"))
    special: dict[str, int] = {}

    def kind(part: Mapping[str, Any] | None) -> str | None:
        return None if part is None else part["type"]

    features = {
        f"a model of the type {model.get('type')}": model.get("type", "BPE") != "BPE",
        "dropout": bool(model.get("dropout")),
        "a prefix inside words": bool(model.get("continuing_subword_prefix")),
        "a suffix at the end of words": bool(model.get("end_of_word_suffix")),
        f"the normalizer {kind(content.get('normalizer'))}": content.get("normalizer") is not None,
        f"the post-processor {kind(processor)}": not _adds_nothing(processor),
        f"the decoder {kind(decoder)}": kind(decoder) not in (None, "ByteLevel"),
    }  # truncation and padding say how it was last called, and nothing of what a text is
    for added in content.get("added_tokens") or ():
        name = added["content"]
        if type(added["id"]) is not int:
            raise ValueError(f"the id of {name!r} is no integer")
        special[name] = added["id"]
        features[f"the added token {name!r}, which is not special"] = not added.get("special")
        for flag in ("single_word", "lstrip", "rstrip"):
            features[f"the added token {name!r} with {flag}"] = bool(added.get(flag))
    for feature, there in features.items():
        if there:
            _refuse(path, feature)
    pattern = _pattern(path, content.get("pre_tokenizer"))
    pairs: list[tuple[str, str]] = []
    for merge in model["merges"]:
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        pairs.append((left, right))
    vocabulary = {name: number for name, number in model["vocab"].items() if name not in special}
    merges, order = _by_name(path, vocabulary, pairs, whole_chunks=bool(model.get("ignore_merges")))
    return _made(path, merges, pattern=pattern, byte_order=order, special_tokens=special)


def _alone(part: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """The one part of a Sequence that has one."""
    if part is not None and part["type"] == "Sequence":
        inner = part.get("processors", part.get("decoders", ()))
        return _alone(inner[0]) if len(inner) == 1 else part
    return part


def _adds_nothing(processor: Mapping[str, Any] | None) -> bool:
    """Whether a post-processor leaves the ids of a text as they are.

    transformers 5 writes a TemplateProcessing for each GPT-2, in which there is the text and nothing else.
    """
    if processor is not None and processor["type"] == "TemplateProcessing":
        return [list(piece) for piece in processor.get("single", ())] == [["Sequence"]]
    return processor is None or processor["type"] == "ByteLevel"


def _refuse(path: Path, feature: str) -> NoReturn:
    raise InputError(f"{path} has {feature}, which this tokenizer has not; take a byte-level vocabulary without it")


def _pattern(path: Path, cut: Mapping[str, Any] | None) -> str:
    """The pattern of a pre-tokenizer: at most one Split by an expression, and then ByteLevel."""
    parts = [] if cut is None else cut["pretokenizers"] if cut["type"] == "Sequence" else [cut]
    *before, last = parts or [{"type": "none"}]
    if last["type"] != "ByteLevel" or len(before) > 1:
        _refuse(path, "the pre-tokenizer " + " + ".join(part["type"] for part in parts or [last]))
    if last.get("add_prefix_space", True):
        _refuse(path, "a space put before each text (add_prefix_space)")
    own = last.get("use_regex", True)
    if not before:
        return "gpt2" if own else "none"
    split = before[0]
    if split["type"] != "Split" or own or "Regex" not in split["pattern"]:
        _refuse(path, f"the pre-tokenizer {split['type']} that is not one Split by an expression")
    expression = split["pattern"]["Regex"]
    check_oniguruma(expression)
    pattern = _named(expression)
    # what our patterns pass over is nothing, so it may be removed
    if (split["behavior"], split["invert"]) not in [("Isolated", False), *[("Removed", True)] * (pattern in PATTERNS)]:
        _refuse(path, f"a Split that is {split['behavior']}" + " and inverted" * split["invert"])
    return pattern
