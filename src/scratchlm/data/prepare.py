"""Token shards out of texts of any size: in parallel, in little memory, and going on where it was killed.

    preparation.json  the settings and the files, written first
    pieces.bin        where the texts are cut, and how many characters each piece has: the splits follow from it
    tokenizer.json
    journal           what has been written of the shards (journal.py)
    manifest.json     written last: a folder that has it is whole, and pieces.bin and the journal are gone

Worker processes read, cut and encode; this one writes what they make, in the order of the texts. So the shards depend
neither on the number of workers nor on where the work was stopped.
"""

import functools
import itertools
import os
import shutil
import struct
import zlib
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from filelock import FileLock, Timeout

from scratchlm import tokenizers
from scratchlm.data import pieces as cutting
from scratchlm.data.journal import JOURNAL, ShardWriter
from scratchlm.data.pieces import Part, Piece, Source, changed, files_of, find_source, grouped, parts, read_part, survey
from scratchlm.data.shards import (
    MANIFEST,
    PLAN,
    SHARD_TOKENS,
    SPLITS,
    TOKENIZER,
    Prepared,
    dtype_for,
    end_between,
    split_ends,
)
from scratchlm.data.text import Errors, no_text
from scratchlm.data.workers import Workers
from scratchlm.errors import InputError
from scratchlm.files import is_taken, read_json, write_json
from scratchlm.tokenizers import BPETokenizer, Learning, Tokenizer

PIECES, BOUND = "pieces.bin", "tokenizer_sha256"
SAMPLES, SAMPLED = 16, 1 << 12  # texts, and characters of each, that say how many tokens there will be
_RECORD = struct.Struct("<7q")  # a piece, and the checksum of its numbers
_NO_PIECE = Piece(-1, 0, 0, 0, 0, 0)  # of a stretch in which none starts


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """How texts become shards.

    Attributes:
        tokenizer: A tokenizer, or the kind of one that is trained on the texts.
        vocab_size: Tokens of a bpe tokenizer that is trained, special ones not counted.
        split: Shares of training, validation and test text.
        errors: Bytes that are not UTF-8: strict stops, replace puts U+FFFD there.
        shard_tokens: Tokens of a shard.
    """

    tokenizer: str | Tokenizer = "char"
    vocab_size: int | None = None
    split: tuple[float, float, float] = (0.9, 0.05, 0.05)
    errors: Errors = "strict"
    shard_tokens: int = SHARD_TOKENS

    def __post_init__(self) -> None:
        split_ends(0, self.split)
        if self.shard_tokens < 1:
            raise InputError(f"a shard has {self.shard_tokens} tokens; it must have at least 1")
        if self.vocab_size is not None and self.tokenizer != "bpe":
            raise InputError(
                f"the vocabulary size is {self.vocab_size}, and only that of a bpe tokenizer which is trained is for "
                "choosing; leave it out, or name the tokenizer bpe"
            )
        if (self.tokenizer if isinstance(self.tokenizer, str) else self.tokenizer.kind) == "pair":
            raise InputError("a tokenizer of pairs is none for texts; pairs are trained on with --data, or --source")

    @property
    def cuts(self) -> str | None:
        """Where its tokenizer lets a text be cut."""
        return Tokenizer.kinds[self.tokenizer].cuts if isinstance(self.tokenizer, str) else self.tokenizer.cuts

    def settings(self) -> dict[str, Any]:
        """All of it as JSON values."""
        named = self.tokenizer if isinstance(self.tokenizer, str) else f"with the sha256 {self.tokenizer.sha256}"
        numbers = {"vocab_size": self.vocab_size, "split": list(self.split), "shard_tokens": self.shard_tokens}
        return {"tokenizer": named, **numbers, "errors": self.errors, "piece_bytes": cutting.PIECE}


def prepare(
    paths: Sequence[str], folder: Path, how: Preparation, workers: int = 1
) -> Generator[Learning, None, dict[str, Any]]:
    """Make token shards of files and folders of text, or go on with making them; tells how far it is.

    Returns the manifest. The tokens are those that a run has which is given the same texts, splits and tokenizer.
    Raises InputError for what cannot be read, and for a folder that was begun with other settings or texts.
    """
    processes = Workers(workers)
    given = [(path, [find_source(file) for file in files_of(path)]) for path in paths]
    sources = [source for _, found in given for source in found]
    if not (folder / PLAN).is_file() and is_taken(folder):
        raise InputError(
            f"{folder} is there already, and holds nothing that could go on; name another folder with --out"
        )
    made = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock", timeout=0):
            if not _is_whole(folder, {**how.settings(), "sources": [list(source) for source in sources]}):
                with closing(processes):
                    yield from _prepare(given, sources, folder, how, processes)
            for file in (PIECES, JOURNAL):
                (folder / file).unlink(missing_ok=True)
    except Timeout as error:
        raise InputError(f"another process is preparing {folder}; wait for it, or stop it") from error
    except OSError as error:
        raise InputError(f"cannot write into {folder}: {error}; mend that, and the same command goes on") from error
    except InputError:
        if made and not any(folder.glob("*.npy*")):  # nothing that could go on
            shutil.rmtree(folder)
        raise
    return read_json(folder / MANIFEST)


def _is_whole(folder: Path, plan: dict[str, Any]) -> bool:
    """Whether the folder is whole already; a folder without a token gets this plan.

    Raises InputError where it was begun with another one.
    """
    path = folder / PLAN
    before = {name: value for name, value in read_json(path).items() if name != BOUND} if path.is_file() else plan
    journal = folder / JOURNAL
    if before != plan:
        if not (folder / MANIFEST).is_file() and not (journal.is_file() and journal.stat().st_size):
            for file in (PIECES, TOKENIZER):
                (folder / file).unlink(missing_ok=True)
            before = plan
        for name, value in plan.items():
            if name != "sources" and before[name] != value:
                raise InputError(
                    f"{folder} was begun with {name} {_shown(before[name])}, and now it is {_shown(value)}; give "
                    "what it was, or another folder with --out"
                )
        known = {source[0]: source for source in before["sources"]}
        for source in plan["sources"]:
            if known.get(source[0], source) != source:
                raise changed(Source(*source))
        if before["sources"] != plan["sources"]:
            raise InputError(
                f"{folder} was begun with {len(before['sources'])} other files, or in another order (they are in "
                f"{path}); give those, or another folder with --out"
            )
    if before is plan:
        write_json(path, plan)
    if not (folder / MANIFEST).is_file():
        return False
    try:
        Prepared(folder).splits()
    except InputError as error:
        raise InputError(f"{error}; remove the folder {folder}, and give the command again") from error
    return True


def _shown(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


class _Task(NamedTuple):
    """A stretch of a split, for a worker to encode; `is_first`: the split starts with it."""

    split: int
    is_first: bool
    parts: list[Part]
    sources: dict[int, Source]
    errors: Errors
    tokenizer: Path
    tokenizer_sha256: str


class _Encoded(NamedTuple):
    """The ids of a stretch, the bytes of text in them, how many documents start there, and its characters."""

    split: int
    ids: np.ndarray
    text_bytes: int
    documents: int
    characters: int


def _prepare(
    given: list[tuple[str, list[Source]]], sources: list[Source], folder: Path, how: Preparation, workers: Workers
) -> Generator[Learning, None, None]:
    yield from _survey(sources, folder / PIECES, how, workers)
    characters, holding = 0, set()
    for piece in _pieces(folder / PIECES):
        characters += piece.characters
        if piece.texts:
            holding.add(piece.source)
    numbers = iter(range(len(sources)))
    for path, found in given:
        if not holding.intersection(itertools.islice(numbers, len(found))):
            raise no_text(path)
    ends = split_ends(characters, how.split)
    tokenizer = yield from _tokenizer(sources, ends, folder, how, workers)
    with closing(ShardWriter(folder, SPLITS, dtype_for(tokenizer.vocab_size), how.shard_tokens)) as writer:
        _check_room(sources, characters, folder, how, tokenizer, writer)
        tasks = _tasks(sources, ends, folder, how, tokenizer)
        done = sum(part.take for task in itertools.islice(tasks, writer.stretches) for part in task.parts)
        for one in workers.in_order(_encode, tasks):
            writer.write(one.split, one.ids, one.text_bytes, one.documents)
            done += one.characters
            yield Learning(stage="characters encoded", done=done, total=characters)
        writer.finish()
    manifest = {
        "dtype": str(dtype_for(tokenizer.vocab_size)),
        "vocab_size": tokenizer.vocab_size,
        "tokenizer_sha256": tokenizer.sha256,
        "splits": writer.splits,
        "split": list(how.split),
        "errors": how.errors,
        "characters": characters,
        "sources": [source.path for source in sources],
    }
    write_json(folder / MANIFEST, manifest)


# Reading


def _survey_some(task: tuple[list[tuple[int, Source, int]], str | None, Errors]) -> list[Piece | None]:
    stretches, cuts, errors = task
    return [survey(number, source, stretch, cuts, errors) for number, source, stretch in stretches]


def _survey(sources: list[Source], path: Path, how: Preparation, workers: Workers) -> Generator[Learning, None, None]:
    """Write the pieces of the sources into a file, a record for each stretch, or those that it lacks."""
    path.touch()
    whole = itertools.takewhile(lambda record: record[-1] == _checksum(list(record[:-1])), _records(path))
    known = sum(1 for _ in whole)  # behind them a power cut can leave anything
    stretches = ((number, source, at) for number, source in enumerate(sources) for at in range(source.stretches))
    done = sum(min(cutting.PIECE, source.size) for _, source, _ in itertools.islice(stretches, known))
    tasks = (
        (some, how.cuts, how.errors) for some in grouped((one, min(cutting.PIECE, one[1].size)) for one in stretches)
    )
    total = sum(source.size for source in sources)
    with path.open("r+b") as file:
        file.truncate(known * _RECORD.size)
        file.seek(0, os.SEEK_END)
        for some in workers.in_order(_survey_some, tasks):
            for piece in some:
                numbers = list(piece or _NO_PIECE)
                file.write(_RECORD.pack(*numbers, _checksum(numbers)))
                done += numbers[2] - numbers[1]
            file.flush()
            yield Learning(stage="bytes surveyed", done=min(done, total), total=total)


def _checksum(numbers: list[int]) -> int:
    return zlib.crc32(repr(numbers).encode())


def _records(path: Path) -> Iterator[tuple[int, ...]]:
    with path.open("rb") as file:
        while len(record := file.read(_RECORD.size)) == _RECORD.size:
            yield _RECORD.unpack(record)


def _pieces(path: Path) -> Iterator[Piece]:
    """The pieces of a file of `_survey`, which are never in memory all at once."""
    return (piece for *numbers, _ in _records(path) if (piece := Piece(*numbers)) != _NO_PIECE)


def _documents(chosen: Iterable[Part], sources: list[Source], errors: Errors) -> Iterator[Iterator[str]]:
    """The texts of these parts, document by document; each must be read before the next."""

    def numbered() -> Iterator[tuple[int, str]]:
        number = 0
        for part in chosen:
            for text in read_part(sources[part.piece.source], part, errors):
                number += not part.continues
                yield number, text

    return ((text for _, text in texts) for _, texts in itertools.groupby(numbered(), key=lambda one: one[0]))


def _tokenizer(
    sources: list[Source], ends: list[int], folder: Path, how: Preparation, workers: Workers
) -> Generator[Learning, None, Tokenizer]:
    """The folder's tokenizer, trained as a run trains it, if it is not there yet."""
    path, kind = folder / TOKENIZER, how.tokenizer
    plan = read_json(folder / PLAN)
    if path.is_file():
        tokenizer = tokenizers.load(path)
        if plan.get(BOUND, tokenizer.sha256) != tokenizer.sha256:
            raise InputError(f"{path} is not the tokenizer that {folder} was begun with; put that back, or begin anew")
    elif isinstance(kind, Tokenizer):
        tokenizer = kind
    else:
        everything = parts(_pieces(folder / PIECES), sources, ends[-1:])
        several = sum(part.piece.texts - part.continues for _, part in everything) > 1
        shown = ends if Tokenizer.kinds[kind].covers_any_text else ends[-1:]  # the training text, or all of it
        seen = (part for split, part in parts(_pieces(folder / PIECES), sources, shown) if split == 0)
        texts = _documents(seen, sources, how.errors)
        if kind == "bpe":
            workers.close()  # its training starts processes of its own
            tokenizer = yield from BPETokenizer.learn(
                texts, documents=several, vocab_size=how.vocab_size, workers=workers.count
            )
        else:
            tokenizer = Tokenizer.kinds[kind].train(itertools.chain.from_iterable(texts), documents=several)
    if not path.is_file():
        tokenizer.save(path)
    if BOUND not in plan:
        write_json(folder / PLAN, {**plan, BOUND: tokenizer.sha256})
    return tokenizer


# Encoding


def _tasks(
    sources: list[Source], ends: list[int], folder: Path, how: Preparation, tokenizer: Tokenizer
) -> Iterator[_Task]:
    """What is encoded at once, in order: parts of one split, about PIECE bytes together."""
    sha256 = tokenizer.sha256
    chosen = parts(_pieces(folder / PIECES), sources, ends)
    for split, some in itertools.groupby(chosen, key=lambda one: one[0]):
        groups = grouped((part, part.piece.end - part.piece.start) for _, part in some)
        for number, group in enumerate(groups):
            of_them = {part.piece.source: sources[part.piece.source] for part in group}
            yield _Task(split, number == 0, group, of_them, how.errors, folder / TOKENIZER, sha256)


@functools.lru_cache(maxsize=1)
def _loaded(path: Path, sha256: str) -> tuple[Tokenizer, np.ndarray]:
    tokenizer = tokenizers.load(path)
    if tokenizer.sha256 != sha256:
        raise InputError(f"{path} is not the tokenizer that the tokens were begun with; put it back, or begin anew")
    return tokenizer, tokenizer.token_lengths()


def _encode(task: _Task) -> _Encoded:
    """The ids of a stretch, as `encode_documents` makes those of a split."""
    tokenizer, lengths = _loaded(task.tokenizer, task.tokenizer_sha256)
    ids, documents = [np.empty(0, dtype_for(tokenizer.vocab_size))], 0
    for part in task.parts:
        source = task.sources[part.piece.source]
        for text in read_part(source, part, task.errors):
            if not part.continues:
                if documents or not task.is_first:
                    ids.append(end_between(tokenizer))
                documents += 1
            try:
                ids.append(tokenizer.encode_array(text).astype(ids[0].dtype))
            except InputError as error:
                raise InputError(f"{source.path}, in the text from byte {part.piece.start:,} on: {error}") from error
    joined = np.concatenate(ids)
    text_bytes = int(np.bincount(joined, minlength=len(lengths)) @ lengths)
    return _Encoded(task.split, joined, text_bytes, documents, sum(part.take for part in task.parts))


def _check_room(
    sources: list[Source], characters: int, folder: Path, how: Preparation, tokenizer: Tokenizer, writer: ShardWriter
) -> None:
    """Refuse to begin what the disk cannot hold, as far as a few samples of the texts tell."""
    count = (folder / PIECES).stat().st_size // _RECORD.size
    sampled = itertools.islice(_pieces(folder / PIECES), 0, None, -(-count // SAMPLES))
    read = tokens = 0
    for piece in sampled:
        texts = read_part(sources[piece.source], Part(piece, 0, piece.characters, False), how.errors)
        sample = "".join(texts)[:SAMPLED]
        with suppress(InputError):  # which the encoding will raise, with its place
            read, tokens = read + len(sample), tokens + len(tokenizer.encode_array(sample))
    written = sum(split["tokens"] for split in writer.splits.values())
    need = (tokens * characters // max(read, 1) - written) * dtype_for(tokenizer.vocab_size).itemsize
    free = shutil.disk_usage(folder).free
    if free < need:
        raise InputError(
            f"the tokens need about {need / 1e6:,.0f} MB in {folder}, and {free / 1e6:,.0f} MB are free; make room, "
            "and give the same command again"
        )
