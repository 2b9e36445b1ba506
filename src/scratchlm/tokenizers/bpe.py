"""Byte-pair encoding: the most frequent pair of neighbours becomes a token, again and again.

Papers: Sennrich et al. 2016, "Neural Machine Translation of Rare Words with Subword Units", algorithm 1; on bytes:
Radford et al. 2019, section 2.2. A text is cut into chunks (splitting.py); a chunk becomes base ids; neighbours are
merged, in training those that occur most often (merging.py), in encoding those that training has merged first.

    level bytes         base ids are the 256 bytes, so any text has ids, and so do bytes that are no text
    level characters    base ids are the bytes and then the frequent characters; a rare one falls back to its bytes

Ids: base ids, then one for each merge, then special tokens, which no text makes unless it is asked to.
"""

import functools
import hashlib
import itertools
import json
import warnings
from collections.abc import Collection, Generator, Iterable, Mapping, Sequence
from typing import Any, Literal, Self, get_args

import numpy as np
import regex

from scratchlm.errors import InputError, did_you_mean
from scratchlm.tokenizers.base import END_OF_TEXT, Tokenizer, exhaust, utf8
from scratchlm.tokenizers.learning import (
    Learning,
    Level,
    Sequences,
    Text,
    Ties,
    compiled_loops,
    count_texts,
    frequent_characters,
    learn_merges,
)
from scratchlm.tokenizers.merging import SHORT, merge_long, merge_short
from scratchlm.tokenizers.splitting import (
    BLOCK,
    CUTS,
    SCANNED,
    SMALL,
    blocks,
    byte_starts,
    chunk_starts,
    chunks_of,
    code_points,
    compile_pattern,
    slices,
    split,
)

ByteOrder = Literal["gpt2", "value"]
VOCABULARY = 1024  # tokens where no number is given
MOST_BYTES, MOST_SPECIAL = (
    1 << 30,
    1 << 20,
)  # of all tokens together, ids of special tokens: what a bad file may ask for
WORTH_COMPILING = 1 << 16  # characters from which on numba's start is made up for
CACHED_CHUNKS, CACHED_BYTES = 1 << 16, 64  # how many chunks are remembered, and up to which size


def byte_values(order: ByteOrder) -> bytes:
    """The bytes in the order of their ids: by value, or as in GPT-2, those that can be printed first."""
    if order == "value":
        return bytes(range(256))
    if order != "gpt2":
        raise InputError(f"the byte order is {order!r}; it must be gpt2 or value")
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return bytes(printable + sorted(set(range(256)) - set(printable)))


def content_sha256(settings: Mapping[str, Any]) -> str:
    """Names what a tokenizer's file holds, so that a damaged one is noticed."""
    content = {name: value for name, value in settings.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


class BPETokenizer(Tokenizer):
    """Byte-pair encoding with the merges that texts have taught, or that a file of another library holds."""

    kind = "bpe"
    covers_any_text = True
    cuts = CUTS["gpt4"]

    def __init__(
        self,
        merges: Iterable[tuple[int, int]],
        *,
        pattern: str = "gpt4",
        byte_order: ByteOrder = "gpt2",
        characters: str | None = None,
        special_tokens: Mapping[str, int] | None = None,
        end_of_text: str = END_OF_TEXT,
    ) -> None:
        """The n-th of `merges`, pairs of ids, makes the n-th id after the bytes and the `characters`, if any.

        `end_of_text`: the special token that ends a text, if it is there.

        Raises InputError for a pair of tokens that are not there yet, for a pattern that is no regular expression,
        and for special tokens whose ids are taken.
        """
        self.pattern, self.byte_order, self.characters = pattern, byte_order, characters
        self._expression, self.cuts = compile_pattern(pattern), CUTS.get(pattern)
        values = byte_values(byte_order)
        self._byte_ids = bytes(np.argsort(np.frombuffer(values, np.uint8)).astype(np.uint8))  # by value
        self._tokens = [bytes([value]) for value in values] + [utf8(character) for character in characters or ""]
        self._character_ids = {character: 256 + at for at, character in enumerate(characters or "")}
        if len(self._character_ids) != len(characters or ""):
            raise InputError("the characters of a vocabulary must be there once each")
        self.base_size = len(self._tokens)
        self.merges = list(merges)
        self._ranks: dict[int, int] = {}
        size = len(self._tokens)
        for left, right in self.merges:
            token = len(self._tokens)
            if not (0 <= left < token and 0 <= right < token):
                raise InputError(f"{left} and {right} cannot be merged into {token}: one of them is not there yet")
            if self._ranks.setdefault(left << 32 | right, token) != token:
                raise InputError(f"{left} and {right} are merged twice")
            size += len(self._tokens[left]) + len(self._tokens[right])
            if size > MOST_BYTES:
                raise InputError(
                    f"the tokens up to {token} have more than {MOST_BYTES:,} bytes; no text has taught that"
                )
            self._tokens.append(self._tokens[left] + self._tokens[right])
        self.special_tokens = dict(special_tokens or {})
        self._names = {token: name for name, token in self.special_tokens.items()}
        for name, token in self.special_tokens.items():
            first = len(self._tokens)
            fits = type(token) is int and first <= token < first + MOST_SPECIAL
            if not utf8(name) or not fits or self._names[token] != name:
                raise InputError(
                    f"the special token {name!r} cannot have the id {token}: a name must not be empty, "
                    f"and the ids must differ and be {first} or more, but not far beyond"
                )
        self.vocab_size = max(len(self._tokens), 1 + max(self._names, default=0))
        self._end, self.end_of_text = end_of_text, self.special_tokens.get(end_of_text)
        self._cache: dict[bytes, list[int]] = {}

    def __getstate__(self) -> dict[str, Any]:
        """What travels to another process: all but the table that numba has made."""
        return {name: value for name, value in vars(self).items() if name != "_compiled_ranks"}

    # training

    @classmethod
    def learn(
        cls,
        texts: Iterable[Text],
        *,
        documents: bool = False,
        vocab_size: int | None = None,
        pattern: str = "gpt4",
        ties: Ties = "gpt2",
        level: Level = "bytes",
        coverage: float = 0.9995,
        special: Sequence[str] = (),
        workers: int = 1,
    ) -> Generator[Learning, None, Self]:
        """`train` that tells how far it is, and returns the tokenizer."""
        if isinstance(texts, str):
            raise InputError("the texts are one string, whose characters would be learned from; give a list of texts")
        vocab_size = VOCABULARY if vocab_size is None else vocab_size
        byte_order: ByteOrder = "gpt2" if ties == "gpt2" else "value"
        special = [*special, *([END_OF_TEXT] if documents and END_OF_TEXT not in special else [])]
        compile_pattern(pattern)
        for name, value, kinds in (("ties", ties, get_args(Ties)), ("level", level, get_args(Level))):
            if value not in kinds:
                raise InputError(f"{name} is {value!r}; it must be one of {', '.join(kinds)}")
        if vocab_size < 256:
            raise InputError(f"the vocabulary size is {vocab_size}; it must be at least 256, one for each byte")
        if not 0 < coverage <= 1:
            raise InputError(f"the coverage is {coverage}; it must be above 0 and at most 1")
        if workers < 1:
            raise InputError(f"the number of workers is {workers}; it must be at least 1")
        for name in special:
            if not utf8(name) or special.count(name) > 1:
                raise InputError(f"the special token {name!r} is empty, or there twice")

        counts = yield from count_texts(texts, pattern, workers)
        if not counts:
            raise InputError("the text is empty: there is nothing to learn from")
        characters = frequent_characters(counts, coverage) if level == "characters" else None
        base = cls((), pattern=pattern, byte_order=byte_order, characters=characters)
        if vocab_size < base.base_size:
            raise InputError(
                f"the vocabulary size is {vocab_size}, but 256 bytes and {len(characters or '')} characters are "
                f"{base.base_size}; make it larger, or the coverage of {coverage} smaller"
            )
        sequences = Sequences((piece, count) for chunk, count in counts.items() for piece in base._pieces(chunk))
        del counts  # what the merges need is in the sequences
        merges = yield from learn_merges(sequences, base.base_size, vocab_size - base.base_size, ties == "first")
        first_special = base.base_size + len(merges)
        if first_special < vocab_size:
            warnings.warn(
                f"{vocab_size:,} tokens were asked for, the text supports {first_special:,}: no pair is left to merge",
                stacklevel=2,
            )
        return cls(
            merges,
            pattern=pattern,
            byte_order=byte_order,
            characters=characters,
            special_tokens={name: first_special + at for at, name in enumerate(special)},
        )

    @classmethod
    def train(cls, texts: Iterable[Text], *, documents: bool = False, **settings: Any) -> Self:
        """A tokenizer of `vocab_size` tokens (bytes, characters and merges; special tokens come on top).

        `ties` decides between pairs that occur equally often, and how the bytes are numbered: as transformers'
        libraries do (gpt2), as rustbpe does (ids), as minbpe does (first). `coverage` is the share of the text that
        single characters must cover at the level characters. A text may also be an iterable of its parts, which are
        never all in memory. The number of `workers`, processes that count, does not change the result.
        Warns where the texts support fewer tokens. Raises InputError for settings out of range and for empty texts.
        """
        return exhaust(cls.learn(texts, documents=documents, **settings))

    def _pieces(self, chunk: bytes) -> list[list[int]]:
        """What training sees of a chunk: a character that has no id is no part of any pair."""
        if not self._character_ids:
            return [self._base_ids(chunk)]
        parted = itertools.groupby(chunk.decode(), self._character_ids.__contains__)
        return [[self._character_ids[character] for character in run] for known, run in parted if known]

    # encoding

    def encode(
        self, text: str, *, allowed_special: Collection[str] | Literal["all"] = (), strict: bool = False
    ) -> list[int]:
        return self.encode_array(text, allowed_special=allowed_special, strict=strict).tolist()

    def encode_array(
        self, text: str, *, allowed_special: Collection[str] | Literal["all"] = (), strict: bool = False
    ) -> np.ndarray:
        """Ids of a text, in which the special tokens that are not allowed are ordinary text.

        `strict` refuses a text that has one of them. Shapes: (N,) uint32.
        Raises InputError for an unknown name, for half a surrogate pair, and where `strict` says so.
        """
        utf8(text)
        allowed = set(self.special_tokens if allowed_special == "all" else allowed_special)
        for name in sorted(allowed - self.special_tokens.keys()):
            raise InputError(f"no special token {name!r}: {did_you_mean(name, self.special_tokens)}")
        if strict and (names := self.special_tokens.keys() - allowed):
            refused = _any_of(names).search(text)
            if refused:
                raise InputError(
                    f"the text has the special token {refused.group()!r} at position {refused.start()}; allow it, "
                    "or leave strict out to read it as ordinary text"
                )
        if not allowed:
            return self._ordinary(text)
        parts, at = [], 0
        for found in _any_of(allowed).finditer(text):
            token = np.array([self.special_tokens[found.group()]], np.uint32)
            parts += [self._ordinary(text[at : found.start()]), token]
            at = found.end()
        return np.concatenate([*parts, self._ordinary(text[at:])])

    def encode_bytes(self, data: bytes) -> list[int]:
        """Ids of any bytes: `decode_bytes(encode_bytes(data)) == data`. What is UTF-8 is encoded as text is."""
        return self._ordinary(data.decode("utf-8", "surrogateescape")).tolist()

    def _ordinary(self, text: str) -> np.ndarray:
        """Ids of a text without special tokens; bytes that are no UTF-8 are escaped (PEP 383)."""
        if len(text) <= SMALL:
            chunks = (chunk.encode("utf-8", "surrogateescape") for chunk in split(text, self._expression))
            return np.fromiter(itertools.chain.from_iterable(map(self._chunk, chunks)), np.uint32)
        parts = [self._block(block) for block in blocks(slices(text, BLOCK), self.pattern, BLOCK)]
        return np.concatenate(parts)

    def _block(self, text: str) -> np.ndarray:
        """Ids of a text in few calls: each different chunk is merged once."""
        compiled = compiled_loops() if len(text) >= WORTH_COMPILING else None
        if compiled is not None and self.pattern in SCANNED and self.characters is None:
            codes = code_points(text)
            starts = byte_starts(codes, chunk_starts(codes, self.pattern))
            data = text.encode("utf-8", "surrogateescape").translate(self._byte_ids)
            return compiled.encode(np.frombuffer(data, np.uint8), starts, self._compiled_ranks)
        chunks, which = chunks_of(text, self.pattern, self._expression)
        tokens = [self._chunk(chunk) for chunk in chunks]
        lengths = np.array([len(ids) for ids in tokens])
        flat = np.fromiter(itertools.chain.from_iterable(tokens), np.uint32, lengths.sum())
        counts = lengths[which]  # tokens of each chunk of the text, and then where each token is in `flat`
        begins = (np.cumsum(lengths) - lengths)[which] - (np.cumsum(counts) - counts)
        return flat[np.repeat(begins, counts) + np.arange(counts.sum())]

    def _chunk(self, chunk: bytes) -> list[int]:
        """The tokens of one chunk; short ones are remembered."""
        tokens = self._cache.get(chunk)
        if tokens is None:
            tokens = self._merged(self._base_ids(chunk))
            if len(chunk) <= CACHED_BYTES:
                if len(self._cache) >= CACHED_CHUNKS:
                    self._cache.clear()
                self._cache[chunk] = tokens
        return tokens

    def _merged(self, ids: list[int]) -> list[int]:
        if len(ids) <= SHORT:
            return merge_short(ids, self._ranks)
        compiled = compiled_loops() if len(ids) >= WORTH_COMPILING else None
        if compiled is None:
            return merge_long(ids, self._ranks)
        return compiled.merge_long(np.array(ids), self._compiled_ranks)

    def _base_ids(self, chunk: bytes) -> list[int]:
        if not self._character_ids:
            return list(chunk.translate(self._byte_ids))
        ids: list[int] = []
        for character in chunk.decode("utf-8", "surrogateescape"):
            known = self._character_ids.get(character)
            data = b"" if known is not None else character.encode("utf-8", "surrogateescape")
            ids += [known] if known is not None else data.translate(self._byte_ids)
        return ids

    @functools.cached_property
    def _compiled_ranks(self) -> Any:
        compiled = compiled_loops()
        assert compiled is not None
        pairs, tokens = (np.array(list(part), np.int64) for part in (self._ranks, self._ranks.values()))
        return compiled.pair_table(pairs, tokens)

    # decoding and looking inside

    def token_bytes(self, token: int) -> bytes:
        if 0 <= token < len(self._tokens):
            return self._tokens[token]
        if token in self._names:
            return b""
        self.check_id(token)
        raise InputError(f"no token has the id {token}: it lies between the ids of special tokens")

    def token_lengths(self) -> np.ndarray:
        lengths = np.zeros(self.vocab_size, dtype=np.int64)
        lengths[: len(self._tokens)] = [len(token) for token in self._tokens]
        return lengths

    def decode(self, ids: Iterable[int], *, special: bool = False) -> str:
        """The text that the ids stand for. Special tokens are left out, or with `special` written by name."""
        if not special:
            return super().decode(ids)
        known = ((token, self._names.get(token)) for token in ids)
        data = b"".join(self.token_bytes(token) if name is None else name.encode() for token, name in known)
        return data.decode("utf-8", errors="replace")

    def halves(self, token: int) -> tuple[int, int] | None:
        """The two tokens whose merge has made this one, or None where it was not made so."""
        self.token_bytes(token)
        made = token - self.base_size
        return self.merges[made] if 0 <= made < len(self.merges) else None

    def mergeable_ranks(self) -> dict[bytes, int]:
        """The id of each token but the special ones by its bytes, as tiktoken takes them.

        Raises InputError at the level characters, and where two tokens are the same bytes.
        """
        if self.characters is not None:
            raise InputError("a vocabulary of characters has no ranks by bytes; train one of bytes")
        ranks: dict[bytes, int] = {}
        for number, token in enumerate(self._tokens):
            if ranks.setdefault(token, number) != number:
                raise InputError(
                    f"two tokens, {ranks[token]} and {number}, are the bytes {token!r}: there is no one rank"
                )
        return ranks

    @property
    def start(self) -> int:
        return self._chunk(b"\n")[0] if self.end_of_text is None else self.end_of_text  # a text starts after a line

    # the file

    def settings(self) -> dict[str, Any]:
        settings = {
            "pattern": self.pattern,
            "byte_order": self.byte_order,
            "characters": self.characters,
            "special_tokens": self.special_tokens,
            **({} if self._end == END_OF_TEXT else {"end_of_text": self._end}),
            "merges": [f"{left} {right}" for left, right in self.merges],
        }
        return {**settings, "sha256": content_sha256(settings)}

    @classmethod
    def from_settings(cls, settings: dict[str, Any]) -> Self:
        if content_sha256(settings) != settings["sha256"]:
            raise InputError("its content is not what was saved")
        return cls(
            ((int(left), int(right)) for left, right in (merge.split(" ") for merge in settings["merges"])),
            **{name: settings[name] for name in ("pattern", "byte_order", "characters", "special_tokens")},
            end_of_text=settings.get("end_of_text", END_OF_TEXT),
        )


def _any_of(names: Collection[str]) -> regex.Pattern[str]:
    """Finds each of the names; of those that start at the same place the longest."""
    return regex.compile("|".join(regex.escape(name) for name in sorted(names, key=len, reverse=True)))
