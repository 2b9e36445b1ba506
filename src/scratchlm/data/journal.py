"""Shards that are written one after another, so that whoever is killed goes on where the journal ends.

The journal has a line for each stretch of tokens that is in the shards, with the checksum of the open shard up to
there, and one for each shard that is whole. A shard has its name only when it is whole and on the disk.
"""

import io
import json
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from scratchlm.errors import InputError
from scratchlm.files import file_sha256, sync

JOURNAL = "journal"
READ = 1 << 22  # bytes at once


def npy_header(dtype: np.dtype, count: int) -> bytes:
    """What an .npy file of so many numbers begins with; those of all counts are of one length."""
    header, described = io.BytesIO(), np.lib.format.dtype_to_descr(dtype)
    np.lib.format.write_array_header_1_0(header, {"descr": described, "fortran_order": False, "shape": (count,)})
    return header.getvalue()


class ShardWriter:
    """Writes the tokens of one split after another as shards.

    `stretches`: how many have been written, also by whoever was killed. `splits`: what is in each, for a manifest.
    """

    def __init__(self, folder: Path, names: Sequence[str], dtype: np.dtype, shard_tokens: int) -> None:
        """Goes on where the folder's journal ends. Raises InputError where a shard of it is gone."""
        self._folder, self._names, self._dtype, self._shard_tokens = folder, names, dtype, shard_tokens
        self._header, self._journal = npy_header(dtype, 0), (folder / JOURNAL).open("a+b")
        until, at_last_shard = self._replay()
        if self._open and not self._open_is_whole():
            # a power cut can take what the journal says is there: the open shard is made anew
            until, _ = self._replay(at_last_shard)
        self._journal.truncate(until)
        for file in (shard["file"] for split in self.splits.values() for shard in split["shards"]):
            if not (folder / file).is_file():
                raise InputError(f"{folder / file} was written and is gone; remove the folder {folder}, and begin anew")
        self._file: BinaryIO | None = None
        if self._open:
            self._file = self._open_path.open("r+b")
            self._file.truncate(len(self._header) + self._open * dtype.itemsize)
            self._file.seek(0, os.SEEK_END)

    def _replay(self, until: int | None = None) -> tuple[int, int]:
        """Take the state that the journal has at this byte of it, or at its end.

        Returns where its last whole line ends, and where that of the last shard does.
        """
        self.stretches, self._split, self._whole, self._crc = 0, 0, 0, 0
        self.splits: dict[str, dict[str, Any]] = {
            name: {"tokens": 0, "bytes": 0, "documents": 0, "shards": []} for name in self._names
        }
        at = at_last_shard = 0
        self._journal.seek(0)
        while at != until and (data := self._journal.readline()).endswith(b"\n"):
            try:
                line = json.loads(data)
                split = line.pop("split")
            except (ValueError, AttributeError, KeyError):  # what a power cut has left
                break
            at += len(data)
            self._whole = self._whole if split == self._split else 0
            self._split, into = split, self.splits[self._names[split]]
            if "sha256" in line:
                into["shards"].append(line)
                self._whole, self._crc, at_last_shard = self._whole + line["tokens"], 0, at
            else:
                self._crc = line.pop("crc")
                into |= {name: into[name] + count for name, count in line.items()}
                self.stretches += 1
        self._open = max(self.splits[self._names[self._split]]["tokens"] - self._whole, 0)  # tokens of the open shard
        return at, at_last_shard

    @property
    def _open_path(self) -> Path:
        name = self._names[self._split]
        return self._folder / f"{name}_{len(self.splits[name]['shards']):05d}.npy.part"

    def _open_is_whole(self) -> bool:
        left, crc = self._open * self._dtype.itemsize, 0
        try:
            with self._open_path.open("rb") as file:
                file.seek(len(self._header))
                while left and (data := file.read(min(left, READ))):
                    left, crc = left - len(data), zlib.crc32(data, crc)
        except OSError:
            return False
        return left == 0 and crc == self._crc

    def write(self, split: int, ids: np.ndarray, text_bytes: int, documents: int) -> None:
        """Append a stretch of tokens to a split, the one of before or one after it. Shapes: ids (N,)."""
        if split != self._split:
            self._finish_shard()
            self._split, self._whole = split, 0
        into = self.splits[self._names[split]]
        left = ids[max(self._whole - into["tokens"], 0) :]  # the rest is in a whole shard since before a kill
        while len(left):
            part, left = np.split(left, [self._shard_tokens - self._open])
            file = self._file
            if file is None:
                file = self._file = self._open_path.open("wb")
                file.write(self._header)
            file.write(part.data)
            self._open, self._crc = self._open + len(part), zlib.crc32(part.data, self._crc)
            if self._open == self._shard_tokens:
                self._finish_shard()
        if self._file is not None:
            self._file.flush()
        counts = {"tokens": len(ids), "bytes": text_bytes, "documents": documents}
        into |= {name: into[name] + count for name, count in counts.items()}
        self._log({**counts, "crc": self._crc})
        self.stretches += 1

    def _finish_shard(self) -> None:
        if self._file is None:
            return
        path = self._open_path
        self._file.seek(0)
        self._file.write(npy_header(self._dtype, self._open))
        self._file.close()
        sync(path)
        sha256, whole = file_sha256(path), path.with_suffix("")
        path.replace(whole)
        sync(self._folder)
        shard = {"file": whole.name, "tokens": self._open, "sha256": sha256}
        self.splits[self._names[self._split]]["shards"].append(shard)
        self._log(shard)
        self._file, self._whole, self._open, self._crc = None, self._whole + self._open, 0, 0

    def _log(self, line: dict[str, Any]) -> None:
        self._journal.write(json.dumps({"split": self._split, **line}).encode() + b"\n")
        self._journal.flush()

    def finish(self) -> None:
        """Make the last shard whole."""
        self._finish_shard()
        self.close()

    def close(self) -> None:
        """Leave the open shard as it is, for whoever goes on."""
        if self._file is not None:
            self._file.close()
        self._journal.close()
