"""What a run learns from: a text or pairs, read, split and tokenized, and the batches that they come in."""

import os
import warnings
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from scratchlm import tokenizers
from scratchlm.config import RunConfig
from scratchlm.data import corpora
from scratchlm.data.batches import CarriedStreams, TrainingWindows
from scratchlm.data.pair_batches import Pairs, TrainingPairs, fitting
from scratchlm.data.pairs import Pair, encode_pairs, is_pairs, read_whole_pairs, split_pairs
from scratchlm.data.shards import (
    SPLITS,
    Prepared,
    Tokens,
    dtype_for,
    encode_documents,
    is_prepared,
    split_documents,
)
from scratchlm.data.text import Errors, read_documents
from scratchlm.errors import InputError
from scratchlm.interop.vocabularies import PUBLISHED, named_vocabulary
from scratchlm.models import MODELS
from scratchlm.tokenizers import Learning, Tokenizer

PAIRS_VOCABULARY = 4000  # tokens of a bpe tokenizer for two languages, unless another size is asked for
LearningTokenizer = Generator[Learning, None, Tokenizer]


def are_pairs(settings: Mapping[str, Any]) -> bool:
    """Whether the data that settings name are pairs of source and target."""
    data = settings.get("data")
    return settings.get("source") is not None or (isinstance(data, str) and is_pairs(data))


def _shown(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def with_prepared(settings: Mapping[str, Any], folder: Path, of_a_base: bool) -> dict[str, Any]:
    """The settings of a run in `folder`, with what its data bring where they are a folder of prepared tokens.

    Raises InputError where they ask for something else. `of_a_base`: the tokenizer that they name is a base's.
    """
    data = settings.get("data")
    if not isinstance(data, str) or data in ("", "-") or not is_prepared(data):
        return {**settings, "prepared": None}
    manifest = Prepared(Path(data)).manifest
    brought = {"tokenizer": None, "vocab_size": None, "split": tuple(manifest["split"]), "errors": manifest["errors"]}
    for name, value in brought.items():
        asked = settings.get(name)
        asked = tuple(asked) if isinstance(asked, list) else asked
        if asked not in (None, value) and (name == "split" or not of_a_base):
            raise InputError(
                f"--{name.replace('_', '-')} is {_shown(asked)}, but {data} was prepared with its own"
                f"{'' if value is None else f', {_shown(value)}'}; leave it out, or prepare the texts anew"
            )
    return {**settings, **brought, "prepared": os.path.relpath(Path(data).resolve(), folder.resolve())}


def resolve(config: RunConfig) -> RunConfig:
    """The settings with the tokenizer that the data call for.

    Raises InputError where the architecture cannot learn from the data.
    """
    pairs = config.pairs
    if MODELS[config.arch].takes_source and not pairs:
        raise InputError(
            f"{config.arch} learns from pairs of source and target, and {config.data} is a single text: give two files "
            "with --source FILE --target FILE, one .tsv file, or a corpus of pairs; scratchlm data list shows them"
        )
    if config.prepared is not None:
        return config
    if config.carry and pairs:
        raise InputError("carry needs a text to go through, and pairs are read one by one; leave carry out")
    corpus = None if config.source is not None or Path(config.data).exists() else corpora.CORPORA.get(config.data)
    own = None if corpus is None else corpus.tokenizer
    tokenizer = config.tokenizer or own or ("bpe" if pairs else "char")
    if not pairs and "+" in tokenizer and not Path(tokenizer).exists():
        raise InputError(
            f"the tokenizer {tokenizer} is one for each side of pairs, and {config.data} is a single text; "
            "name one, such as --tokenizer char"
        )
    size = PAIRS_VOCABULARY if pairs and tokenizer == "bpe" and config.vocab_size is None else config.vocab_size
    return replace(config, tokenizer=tokenizer, vocab_size=size)


def training_batches(config: RunConfig, data: Tokens | Pairs) -> TrainingWindows | CarriedStreams | TrainingPairs:
    """The batches that a run trains on. Raises InputError where the split is too small."""
    if isinstance(data, Pairs):
        return TrainingPairs(data, config.batch_tokens, config.seed, joined=not MODELS[config.arch].takes_source)
    kind = CarriedStreams if config.carry else TrainingWindows
    return kind(data, config.training_window, config.batch_size, config.seed)


def read_data(source: str, errors: Errors = "strict") -> list[str]:
    """The documents that --data means: a corpus by name, unless there is such a path."""
    try:
        if source not in ("", "-") and is_prepared(source):
            raise InputError(
                f"{source} is a folder of prepared tokens, which train, finetune and eval read; give a text here"
            )
        named = source not in ("", "-") and not any(mark in source for mark in "./\\") and not Path(source).exists()
        return [corpora.get(source)] if named else read_documents(source, errors)
    except OSError as error:
        raise InputError(f"cannot read {source}: {error.strerror}") from error


def _is_published(name: str | None) -> bool:
    return name in PUBLISHED and not Path(name).is_file()


def _published(config: RunConfig) -> LearningTokenizer:
    if config.vocab_size is not None:
        raise InputError(
            f"the vocabulary size is {config.vocab_size}, but {config.tokenizer} has its own; leave --vocab-size out"
        )
    assert config.tokenizer is not None
    yield from ()
    return named_vocabulary(config.tokenizer)


def _covers_any_text(name: str) -> bool:
    """Whether a tokenizer of this name needs no more than the training text to encode the rest."""
    return all(part not in Tokenizer.kinds or Tokenizer.kinds[part].covers_any_text for part in name.split("+"))


@dataclass(frozen=True, kw_only=True)
class TextMaterial:
    """The documents of a run, and its splits of them."""

    documents: Sequence[str]
    parts: Mapping[str, Sequence[str]]

    def learn_tokenizer(self, config: RunConfig) -> LearningTokenizer:
        """The tokenizer of a run, out of its training text; or of all its text, where it needs to have seen it."""
        assert config.tokenizer is not None
        if _is_published(config.tokenizer):
            return (yield from _published(config))
        texts = self.parts["train"] if _covers_any_text(config.tokenizer) else self.documents
        return (yield from tokenizers.learn(config.tokenizer, texts, len(self.documents) > 1, config.vocab_size))

    def tokenize(self, tokenizer: Tokenizer, config: RunConfig) -> dict[str, np.ndarray]:
        """The splits as tokens. Raises InputError where one is too small to train on or to score."""
        tokens = {name: encode_documents(part, tokenizer) for name, part in self.parts.items()}
        _check_sizes({name: Tokens.of(ids) for name, ids in tokens.items()}, config)
        return tokens


def _check_sizes(splits: Mapping[str, Tokens], config: RunConfig) -> None:
    """Raises InputError where a split is too small to train on or to score."""
    training_batches(config, splits["train"])
    scored = len(splits["validation"])
    if scored < 2:
        raise InputError(
            f"the validation text has {scored} tokens, and a loss needs two: give a longer text, or a "
            f"larger share of it; --split says how it is shared, now {tuple(config.split)}"
        )


@dataclass(frozen=True, kw_only=True)
class PreparedMaterial:
    """Tokens that are there already, in a folder that `scratchlm data prepare` made."""

    prepared: Prepared

    def learn_tokenizer(self, config: RunConfig) -> LearningTokenizer:
        """The folder's tokenizer."""
        yield from ()
        return self.prepared.tokenizer

    def splits(self, tokenizer: Tokenizer, config: RunConfig) -> dict[str, Tokens]:
        """The tokens by split. Raises InputError where they are of another tokenizer, or too small."""
        if tokenizer.sha256 != self.prepared.tokenizer.sha256:
            raise InputError(
                f"{self.prepared.folder} was prepared with another tokenizer than that of the model to start from; "
                "prepare its texts with --tokenizer and the tokenizer.json of that model's run"
            )
        splits = self.prepared.splits()
        _check_sizes(splits, config)
        return splits


@dataclass(frozen=True, kw_only=True)
class PairMaterial:
    """The pairs of a run, by split."""

    parts: Mapping[str, Sequence[Pair]]

    def learn_tokenizer(self, config: RunConfig) -> LearningTokenizer:
        """The tokenizer of a run, out of its training pairs; or of all, where it needs to have seen them."""
        assert config.tokenizer is not None
        if _is_published(config.tokenizer):
            return (yield from _published(config))
        seen = [self.parts["train"]] if _covers_any_text(config.tokenizer) else self.parts.values()
        sources = [pair.source for part in seen for pair in part]
        targets = [pair.target for part in seen for pair in part]
        return (yield from tokenizers.learn_pair(config.tokenizer, sources, targets, config.vocab_size))

    def tokenize(self, tokenizer: Tokenizer, config: RunConfig) -> dict[str, np.ndarray]:
        """The splits as flat ids. Pairs that are too long are left out, and a warning names them.

        Raises InputError where none is left to train on or to score.
        """
        tokens = {}
        for name, part in self.parts.items():
            fits = fit_pairs(as_pairs(encode_pairs(part, tokenizer), tokenizer), config, f"{name}: ")
            tokens[name] = fits.ids().astype(dtype_for(tokenizer.vocab_size))
        if not len(tokens["validation"]):
            raise InputError(
                "there is no pair to score: give more pairs, or a larger share of them for validation; "
                f"--split says how they are shared, now {tuple(config.split)}"
            )
        training_batches(config, as_pairs(tokens["train"], tokenizer))
        return tokens


def as_pairs(ids: np.ndarray, tokenizer: Tokenizer) -> Pairs:
    """Flat ids as the pairs that they are."""
    assert tokenizer.end_of_text is not None
    return Pairs(Tokens.of(ids), tokenizer.end_of_text)


def fit_pairs(pairs: Pairs, config: RunConfig, name: str = "") -> Pairs:
    """The pairs that a run's model and batch have room for; a warning, which begins with `name`, tells of the others.

    Raises InputError where there are pairs, but room for none.
    """
    shape, joined = config.model, not MODELS[config.arch].takes_source
    limits = {} if joined else {"source_limit": shape.source_context}
    target_limit = getattr(shape, "context", None)
    fits, left_out = fitting(pairs, joined, config.batch_tokens, target_limit=target_limit, **limits)
    if left_out is not None:
        warnings.warn(f"{name}{left_out}", stacklevel=2)
    return fits


def read_scored_pairs(paths: Sequence[str], errors: Errors, config: RunConfig, tokenizer: Tokenizer) -> Pairs:
    """All pairs of a corpus, a file or two files, for a model that is there.

    Raises InputError where it can read none of them.
    """
    return fit_pairs(as_pairs(encode_pairs(read_whole_pairs(*paths, errors=errors), tokenizer), tokenizer), config)


def read_material(config: RunConfig) -> "PairMaterial | TextMaterial | PreparedMaterial":
    """What a run learns from. Raises InputError where it cannot be read."""
    if config.prepared is not None:
        return PreparedMaterial(prepared=Prepared(Path(config.data)))
    return read_parallel(config) if config.pairs else read_text(config)


def read_text(config: RunConfig) -> TextMaterial:
    """The text that a run learns from. Raises InputError where it cannot be read."""
    documents = read_data(config.data, config.errors)
    parts = dict(zip(SPLITS, split_documents(documents, config.split), strict=True))
    return TextMaterial(documents=documents, parts=parts)


def read_parallel(config: RunConfig) -> PairMaterial:
    """The pairs that a run learns from. Raises InputError where they cannot be read."""
    paths = [config.data] if config.source is None or config.target is None else [config.source, config.target]
    return PairMaterial(parts=split_pairs(read_whole_pairs(*paths, errors=config.errors), config.split))
