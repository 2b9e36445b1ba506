"""Files that are whole or not there: written beside their place, synced, renamed, and checked when they are read."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from scratchlm.errors import InputError

FORMAT_VERSION = 1


def neighbour(path: Path, suffix: str) -> Path:
    """The place beside a folder, also one called . or .., that has its name and a suffix."""
    if path.name in ("", ".."):
        return path / ".." / f"{path.resolve().name}-{suffix}"
    return path.with_name(f"{path.name}-{suffix}")


def sync(path: Path) -> None:
    """Have the system write a file, or a folder's entries, to the disk."""
    if path.is_dir() and os.name == "nt":  # Windows opens no folders
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def replace_file(path: Path, data: bytes) -> None:
    """Give a file this content, all of it or what it had before."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with beside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def is_taken(folder: Path) -> bool:
    """Whether no new folder can be made there: something is, and it is no empty folder."""
    try:
        return folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
    except OSError as error:
        raise InputError(f"cannot write the folder {folder}: {error.strerror}") from error


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder to be filled, which gets its name at the end: it is there with all that is in it, or not at all.

    Raises InputError where it is taken, or cannot be written.
    """
    if is_taken(folder):
        raise InputError(f"{folder} is there already; name another folder with --out")
    place = folder.resolve()
    if place == Path.cwd():
        raise InputError(f"{folder} is the folder that this runs in, and cannot be replaced; name another with --out")
    beside = place.with_name(f".{place.name}.{os.getpid()}")
    made = [parent for parent in beside.parents if not parent.exists()]
    try:
        beside.mkdir(parents=True)
        yield beside
        if folder.exists():
            folder.rmdir()  # empty, as checked
        beside.rename(place)
    except OSError as error:
        raise InputError(f"cannot write the folder {folder}: {error}") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
        with suppress(OSError):  # as soon as one is not empty
            for parent in made:
                parent.rmdir()


def file_sha256(path: Path) -> str:
    """The sha256 of a file's content."""
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _json_sha256(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def write_json(path: Path, content: Mapping[str, Any]) -> str:
    """Write a JSON file with this format's version and a checksum of its content, which is returned."""
    content = {"format_version": FORMAT_VERSION, **content}
    checksum = _json_sha256(content)
    replace_file(path, (json.dumps({**content, "checksum": checksum}, indent=1) + "\n").encode())
    return checksum


def read_json(path: Path, checksum: str | None = None) -> dict[str, Any]:
    """The content of a file of `write_json`, which had this checksum if one is given.

    Raises InputError where it is missing, damaged, of another version, or another file than the one that was meant.
    """
    try:
        content = json.loads(path.read_bytes())
        version, found = content["format_version"], content.pop("checksum", None)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise InputError(f"{path} is damaged: {error!r}") from error
    if version != FORMAT_VERSION:
        raise InputError(f"{path} has format version {version!r}; this scratchlm reads version {FORMAT_VERSION}")
    if found != _json_sha256(content):
        raise InputError(f"{path} is damaged, or was changed by hand: its content does not fit its checksum")
    if checksum is not None and found != checksum:
        raise InputError(f"{path} belongs to another run: its checksum is not the one that this run wrote down")
    del content["format_version"]
    return content
