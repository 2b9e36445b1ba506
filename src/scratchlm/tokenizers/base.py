"""What every tokenizer promises, and the file that it travels in."""

import codecs
import hashlib
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

import numpy as np

from scratchlm.errors import InputError, did_you_mean

FORMAT_VERSION = 1
END_OF_TEXT = "<|endoftext|>"

T = TypeVar("T")


def utf8(text: str) -> bytes:
    """The bytes of a text. Raises InputError for half a surrogate pair, naming its place."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{text[error.start]!r} at position {error.start} is half a surrogate pair, "
            "which UTF-8 cannot write; leave it out"
        ) from error


@dataclass(frozen=True, kw_only=True)
class Learning:
    """How far a tokenizer's training is: how much of what is done, of a total where that is known."""

    stage: str
    done: int
    total: int | None = None


def exhaust(steps: Generator[Any, None, T]) -> T:
    """What a generator returns once it has yielded everything."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


class Tokenizer(ABC):
    """Text to ids 0 .. vocab_size - 1 and back.

    `decode(encode(text)) == text` for any text that it can encode; of symbols up to the white space between them.
    Special tokens in a text are ordinary text: no call here makes one out of it.
    """

    kind: ClassVar[str]
    kinds: ClassVar[dict[str, type["Tokenizer"]]] = {}  # by name, for the command line and for files
    covers_any_text: ClassVar[bool] = False  # also text that it was not trained on
    # an expression that matches, and takes nothing, where a text may be cut: the ids of its parts are those of the
    # whole; none where nothing is known. What the class has is that of a tokenizer which it trains.
    cuts: str | None = None

    vocab_size: int
    end_of_text: int | None = None  # the id between two documents, where there is one

    def __init_subclass__(cls) -> None:
        Tokenizer.kinds[cls.kind] = cls

    @classmethod
    @abstractmethod
    def train(cls, texts: Iterable[str], *, documents: bool = False) -> Self:
        """A tokenizer for these texts. `documents`: texts will be parted by an end-of-text token."""

    @classmethod
    def learn(
        cls, texts: Sequence[str], *, documents: bool = False, vocab_size: int | None = None
    ) -> Generator[Learning, None, Self]:
        """`train` that tells how far it is, and returns the tokenizer."""
        if vocab_size is not None:
            raise InputError(
                f"the vocabulary size is {vocab_size}, but that of a {cls.kind} tokenizer is not for choosing; "
                "leave --vocab-size out, or give --tokenizer bpe"
            )
        yield from ()
        return cls.train(texts, documents=documents)

    @abstractmethod
    def encode_array(self, text: str) -> np.ndarray:
        """Ids of a text. Shapes: (N,) uint32. Raises InputError for text that it cannot represent."""

    @abstractmethod
    def token_bytes(self, token: int) -> bytes:
        """The UTF-8 bytes that a token stands for; none for a special token. Raises InputError for an unknown id."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What `from_settings` needs to make the same tokenizer again, as JSON values."""

    @classmethod
    @abstractmethod
    def from_settings(cls, settings: dict[str, Any]) -> Self:
        """The tokenizer of these settings. Raises InputError where they are damaged."""

    @property
    @abstractmethod
    def start(self) -> int:
        """The id that an empty prompt means."""

    @property
    def symbolic(self) -> bool:
        """Whether its texts are symbols that white space parts, of which errors can be counted."""
        return False

    @property
    def source(self) -> "Tokenizer":
        """The tokenizer of the sources of pairs; the same as the targets', unless there are two (pair.py)."""
        return self

    @property
    def target(self) -> "Tokenizer":
        """The tokenizer of the targets of pairs."""
        return self

    @property
    def own_ids(self) -> range:
        """The ids that its texts have; of a pair with a side chosen, those of that side."""
        return range(self.vocab_size)

    def encode(self, text: str) -> list[int]:
        """Ids of a text."""
        return self.encode_array(text).tolist()

    def unfinished(self, text: str) -> str:
        """A text as one that goes on: a symbol ends with the space behind it, which a person may leave out."""
        return f"{text} " if self.symbolic and text.strip() and text == text.rstrip() else text

    def encode_word(self, word: str) -> list[int]:
        """Ids of a word as it stands within a text: with the space before it, unless that is a token of its own.

        Raises InputError for a word that it cannot represent.
        """
        try:
            ids = self.encode(f" {word}")
        except InputError:  # of the word itself, or of the space, which some vocabularies lack
            return self.encode(word)
        return ids[1:] if len(ids) > 1 and self.token_bytes(ids[0]) == b" " else ids

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes that the ids stand for."""
        return b"".join(map(self.token_bytes, ids))

    def decode(self, ids: Iterable[int]) -> str:
        """The text that the ids stand for; bytes that are no UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def token_lengths(self) -> np.ndarray:
        """Bytes that each id stands for, for bits per byte. Shapes: (V,) int64."""
        return np.array([len(self.token_bytes(token)) for token in range(self.vocab_size)], dtype=np.int64)

    def check_id(self, token: int) -> int:
        """The id itself, if there is such a token."""
        if not 0 <= token < self.vocab_size:
            raise InputError(f"no token has the id {token}; this tokenizer has 0 to {self.vocab_size - 1}")
        return token

    def to_json(self) -> str:
        """The tokenizer as the text of its file, the same for equal tokenizers."""
        content = {"format_version": FORMAT_VERSION, "kind": self.kind, **self.settings()}
        return json.dumps(content, ensure_ascii=False, indent=1, sort_keys=True) + "\n"

    @property
    def sha256(self) -> str:
        """Names the tokenizer: equal ones have equal hashes."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def save(self, path: str | Path) -> None:
        """Write the tokenizer's file, all of it or nothing."""
        path = Path(path)
        beside = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            beside.write_text(self.to_json(), encoding="utf-8", newline="\n")
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)


class IncrementalDecoder:
    """Text out of ids one by one, never half a character.

    The parts joined equal decoding at once; of symbols they have besides the space behind the last one, since there may
    be more to come.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: int) -> str:
        """The text that has become certain with this token; often one character, sometimes none."""
        return self._decoder.decode(self._tokenizer.token_bytes(token))

    def flush(self) -> str:
        """What an unfinished character at the end decodes to: U+FFFD, or nothing where there is none."""
        return self._decoder.decode(b"", final=True)


def whole_characters(tokenizer: Tokenizer, tokens: Iterable[int]) -> str:
    """The text of these tokens, without half a character at its end."""
    return "".join(map(IncrementalDecoder(tokenizer).push, tokens))


def load(path: str | Path) -> Tokenizer:
    """The tokenizer of a file. Raises InputError where the file is missing, damaged or of another format."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        version, kind = content.pop("format_version"), content.pop("kind")
    except OSError as error:
        raise InputError(f"cannot read the tokenizer {path}: {error.strerror}") from error
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise InputError(f"{path} is no tokenizer file of scratchlm, or it is damaged") from error
    if version != FORMAT_VERSION:
        raise InputError(f"{path} has format version {version!r}; this scratchlm reads version {FORMAT_VERSION}")
    if not isinstance(kind, str) or kind not in Tokenizer.kinds:
        raise InputError(f"{path} holds an unknown tokenizer {kind!r}: {did_you_mean(str(kind), Tokenizer.kinds)}")
    try:
        return Tokenizer.kinds[kind].from_settings(content)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is damaged: {error}") from error


def learn(
    name: str, texts: Sequence[str], documents: bool, vocab_size: int | None = None
) -> Generator[Learning, None, Tokenizer]:
    """The tokenizer that a name or a file means: a kind is trained on the texts, a file is loaded.

    `documents`: texts will be parted by an end-of-text token. Tells how far it is, and returns the tokenizer.
    """
    if name in Tokenizer.kinds:
        return (yield from Tokenizer.kinds[name].learn(texts, documents=documents, vocab_size=vocab_size))
    if not Path(name).is_file():
        remedy = did_you_mean(name, Tokenizer.kinds)
        raise InputError(f"no tokenizer {name!r}: it is neither a file nor a kind; {remedy}")
    if vocab_size is not None:
        raise InputError(f"the vocabulary size is {vocab_size}, but {name} has its own; leave --vocab-size out")
    return load(name)


def train(name: str, texts: Sequence[str], vocab_size: int | None = None) -> Tokenizer:
    """The tokenizer that a name or a file means: a kind is trained on the documents, a file is loaded."""
    return exhaust(learn(name, texts, len(texts) > 1, vocab_size))
