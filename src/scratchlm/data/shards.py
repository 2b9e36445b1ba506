"""Token shards: the splits of a corpus as memory-mapped arrays of ids, with a manifest that describes them.

A folder holds train_00000.npy, validation_00000.npy, ... (uint8, uint16 or uint32, by the vocabulary) and
manifest.json. It needs nothing but the tokenizer that its manifest names by hash. A run writes such a folder of its
own; one that was prepared (prepare.py) is for many runs, has the tokenizer with it, and may be larger than memory.
"""

import hashlib
import json
import mmap
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from scratchlm.errors import InputError
from scratchlm.files import file_sha256, read_json, write_json
from scratchlm.tokenizers import Tokenizer, load

SPLITS = ("train", "validation", "test")
PLAN, MANIFEST, TOKENIZER = "preparation.json", "manifest.json", "tokenizer.json"  # of a folder that is prepared
SHARD_TOKENS = 1 << 27
IN_MEMORY_BYTES = 1 << 28  # a split up to this size is held in memory
HASHED_TOKENS = 1 << 20  # at once


def dtype_for(vocab_size: int) -> np.dtype:
    """The smallest unsigned type that holds every id."""
    return np.min_scalar_type(vocab_size - 1)


def split_ends(total: int, shares: Sequence[float]) -> list[int]:
    """Where the splits of these shares end among `total`. Raises InputError where the shares do not sum to one."""
    if len(shares) != len(SPLITS) or min(shares) < 0 or not abs(sum(shares) - 1) <= 1e-6:
        raise InputError(f"the split {tuple(shares)} must be the shares of {', '.join(SPLITS)}, which sum to 1")
    return [int(total * (sum(shares[: i + 1]) + 1e-9)) for i in range(len(shares) - 1)] + [total]


def split_documents(documents: Sequence[str], shares: Sequence[float]) -> list[list[str]]:
    """Cut the documents, one after another, into splits of these shares of their characters.

    A document that a cut falls into is parted there. Raises InputError where the shares do not sum to one.
    """
    ends = split_ends(sum(map(len, documents)), shares)
    splits: list[list[str]] = []
    at, start = 0, 0  # position among all characters where the split starts, and where the document does
    for end in ends:
        pieces, start = [], 0
        for document in documents:
            piece = document[max(at - start, 0) : max(end - start, 0)]
            if piece:
                pieces.append(piece)
            start += len(document)
        splits.append(pieces)
        at = end
    return splits


def end_between(tokenizer: Tokenizer) -> np.ndarray:
    """The end-of-text token, which parts documents. Shapes: (1,). Raises InputError where there is none."""
    if tokenizer.end_of_text is None:
        raise InputError(
            "the tokenizer has no end-of-text token, which parts the documents; "
            "give one file of text, or let train make the tokenizer"
        )
    return np.array([tokenizer.end_of_text], dtype_for(tokenizer.vocab_size))


def encode_documents(documents: Iterable[str], tokenizer: Tokenizer) -> np.ndarray:
    """Ids of the documents, an end-of-text token between two. Shapes: (N,) of `dtype_for` the vocabulary."""
    dtype = dtype_for(tokenizer.vocab_size)
    parts: list[np.ndarray] = []
    for document in documents:
        if parts:
            parts.append(end_between(tokenizer))
        parts.append(tokenizer.encode_array(document).astype(dtype))
    return np.concatenate(parts) if parts else np.empty(0, dtype)


def write_shards(folder: Path, splits: dict[str, np.ndarray], tokenizer: Tokenizer) -> str:
    """Write the splits and their manifest into a new folder. Returns the manifest's checksum."""
    folder.mkdir(parents=True)
    lengths = tokenizer.token_lengths()
    described, dtype = {}, dtype_for(tokenizer.vocab_size)
    for name, tokens in splits.items():
        shards = []
        for number, start in enumerate(range(0, len(tokens), SHARD_TOKENS)):
            part, file = tokens[start : start + SHARD_TOKENS], folder / f"{name}_{number:05d}.npy"
            np.save(file, part.astype(dtype, copy=False), allow_pickle=False)
            shards.append({"file": file.name, "tokens": len(part), "sha256": file_sha256(file)})
        described[name] = {"tokens": len(tokens), "bytes": int(lengths[tokens].sum()), "shards": shards}
    manifest = {
        "dtype": str(dtype),
        "vocab_size": tokenizer.vocab_size,
        "tokenizer_sha256": tokenizer.sha256,
        "splits": described,
    }
    return write_json(folder / "manifest.json", manifest)


class Tokens:
    """The ids of one split: held in memory where they are few, else mapped anew for each look, as far as it looks.

    A map that lives long lets the memory in use grow to the size of the file.
    """

    def __init__(
        self,
        files: Sequence[Path],
        counts: Sequence[int],
        in_memory_bytes: int = IN_MEMORY_BYTES,
        vocab_size: int | None = None,
    ) -> None:
        """`vocab_size`: the ids must be below it, which is seen to at each look at files that are mapped."""
        self._files, self._vocab_size = list(files), vocab_size
        self._ends = np.cumsum([0, *counts])
        small = sum(file.stat().st_size for file in files) <= in_memory_bytes
        self._arrays = [np.load(file, allow_pickle=False) for file in files] if small else None
        self._layouts: dict[int, tuple[np.dtype, int]] = {}  # of mapped files: their type, and where the ids start

    @classmethod
    def of(cls, tokens: np.ndarray) -> "Tokens":
        """Ids that are in memory already. Shapes: (N,)."""
        self = cls([], [])
        self._arrays, self._ends = [tokens], np.array([0, len(tokens)])
        return self

    def __len__(self) -> int:
        return int(self._ends[-1])

    def sha256(self) -> str:
        """What names these ids, however they are stored."""
        found = hashlib.sha256()
        for start in range(0, len(self), HASHED_TOKENS):
            length = min(HASHED_TOKENS, len(self) - start)
            found.update(self.windows(np.array([start]), length).astype("<i8").tobytes())
        return found.hexdigest()

    def _shard(self, number: int) -> np.ndarray:
        if self._arrays is not None:
            return self._arrays[number]
        file = self._files[number]
        if number not in self._layouts:
            found = np.load(file, mmap_mode="r", allow_pickle=False)
            self._layouts[number] = found.dtype, found.offset
        dtype, offset = self._layouts[number]
        with file.open("rb", buffering=0) as opened:  # a fifth of numpy's time, which reads the header each time
            mapped = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
        return np.frombuffer(mapped, dtype, int(self._ends[number + 1] - self._ends[number]), offset)

    def take(self, places: np.ndarray) -> np.ndarray:
        """The ids at these places. Shapes: any -> the same, int64."""
        out, shards = np.empty(places.shape, np.int64), np.searchsorted(self._ends, places, side="right") - 1
        for shard in np.unique(shards).tolist():
            inside = shards == shard
            out[inside] = self._shard(shard)[places[inside] - self._ends[shard]]
        return self._checked(out)

    def windows(self, starts: np.ndarray, length: int) -> np.ndarray:
        """Stretches of `length` ids. Shapes: starts (B,) -> (B, length) int64."""
        opened: dict[int, np.ndarray] = {}
        out = np.empty((len(starts), length), dtype=np.int64)
        for row, start in zip(out, starts.tolist(), strict=True):
            if start < 0 or start + length > len(self):
                raise IndexError(f"tokens {start} to {start + length} of {len(self)}")
            shard, done = int(np.searchsorted(self._ends, start, side="right")) - 1, 0
            while done < length:
                inside = start + done - self._ends[shard]
                if shard not in opened:
                    opened[shard] = self._shard(shard)
                part = opened[shard][inside : inside + length - done]
                row[done : done + len(part)] = part
                done += len(part)
                shard += 1
        return self._checked(out)

    def _checked(self, tokens: np.ndarray) -> np.ndarray:
        """The tokens, unless one cannot be. Raises InputError then."""
        if self._arrays is None and self._vocab_size is not None and tokens.max(initial=0) >= self._vocab_size:
            folder = self._files[0].parent
            raise InputError(
                f"the files in {folder} hold the token {tokens.max()}, and its vocabulary has {self._vocab_size}: one "
                f"is damaged; scratchlm data verify {folder} finds out which"
            )
        return tokens


def _check_shard(file: Path, described: Mapping[str, Any], dtype: np.dtype, hashed: bool) -> None:
    """Raise InputError where a file is not what its manifest says: all of it, or its size and type."""
    try:
        other = hashed and file_sha256(file) != described["sha256"]
        found = np.load(file, mmap_mode="r", allow_pickle=False) if described["tokens"] else np.empty(0, dtype)
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror}") from error
    except (ValueError, EOFError) as error:  # numpy's, of a header that is none, or of a file that is too short for it
        raise InputError(f"{file} is damaged: {error}") from error
    if found.dtype != dtype or found.shape != (described["tokens"],):
        raise InputError(
            f"{file} is damaged: it has {found.shape} numbers of {found.dtype}, its manifest says "
            f"{described['tokens']} of {dtype}"
        )
    if other:
        raise InputError(f"{file} is damaged: its sha256 is not the one in its manifest")


def read_shards(
    folder: Path, tokenizer: Tokenizer, checksum: str | None = None, *, hashed: bool = True
) -> dict[str, Tokens]:
    """The splits of a folder of shards, each file checked against its hash.

    Without `hashed` a split that is mapped, and not held in memory, is checked by size and type alone. `checksum` is
    the manifest's, where it is known. Raises InputError where a file is missing or damaged, or belongs to another
    tokenizer or to other tokens.
    """
    manifest = read_json(folder / "manifest.json", checksum)
    if manifest["tokenizer_sha256"] != tokenizer.sha256:
        raise InputError(
            f"the tokens in {folder} were made by another tokenizer than the one given "
            f"({manifest['tokenizer_sha256'][:12]}, not {tokenizer.sha256[:12]})"
        )
    splits = {}
    for name, described in manifest["splits"].items():
        files = [folder / shard["file"] for shard in described["shards"]]
        in_memory = described["tokens"] * np.dtype(manifest["dtype"]).itemsize <= IN_MEMORY_BYTES  # read whole anyway
        for file, shard in zip(files, described["shards"], strict=True):
            _check_shard(file, shard, np.dtype(manifest["dtype"]), hashed or in_memory)
        counts = [shard["tokens"] for shard in described["shards"]]
        splits[name] = Tokens(files, counts, vocab_size=tokenizer.vocab_size)
    return splits


def is_prepared(path: str | Path) -> bool:
    """Whether `scratchlm data prepare` has begun this folder."""
    return (Path(path) / PLAN).is_file()


class Prepared:
    """A folder of token shards that many runs may train on. Its `manifest` and `checksum` name what is in it."""

    def __init__(self, folder: Path) -> None:
        """Raises InputError where it is not whole, or damaged."""
        self.folder = folder
        if is_prepared(folder) and not (folder / MANIFEST).exists():
            raise InputError(f"{folder} is not whole yet: give the command again that began it, and it goes on")
        self.manifest = read_json(folder / MANIFEST)
        self.checksum: str = json.loads((folder / MANIFEST).read_bytes())["checksum"]
        self.tokenizer = load(folder / TOKENIZER)

    def splits(self, tokenizer: Tokenizer | None = None, *, hashed: bool = False) -> dict[str, Tokens]:
        """The tokens by split, each file checked by its size and type, or `hashed`.

        Raises InputError where one is damaged, and where they are not of this `tokenizer`, if one is given.
        """
        return read_shards(self.folder, tokenizer or self.tokenizer, self.checksum, hashed=hashed)


def read_prepared(folder: Path, tokenizer: Tokenizer, checksum: str) -> dict[str, Tokens]:
    """The splits of a folder that a run names, each file checked by its size and type.

    Raises InputError where it is not there any more, or is another one.
    """
    place = Path(os.path.normpath(folder.absolute()))
    try:
        return read_shards(place, tokenizer, checksum, hashed=False)
    except InputError as error:
        raise InputError(
            f"this run's tokens are in the folder {place}, which it cannot use ({error}); put it back there, or a link "
            "to where it is now"
        ) from error
