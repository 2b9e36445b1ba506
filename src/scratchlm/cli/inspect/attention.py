"""scratchlm inspect attention: who looks where."""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import numpy as np
from cyclopts import Parameter
from matplotlib.figure import Figure

from scratchlm import runtime
from scratchlm.checkpoint import RunFolder, load_checkpoint, meta_model
from scratchlm.cli.flags import Int, OptionalInt
from scratchlm.cli.sample import introduce, say
from scratchlm.errors import InputError
from scratchlm.files import FORMAT_VERSION, replace_file
from scratchlm.inspect.attention import (
    attention_figure,
    attention_layers,
    described,
    has_attention,
    pick,
    save_labelled,
)
from scratchlm.model import LanguageModel
from scratchlm.models import MODELS
from scratchlm.tokenizers import Tokenizer
from scratchlm.tokenizers.shown import labels, texts
from scratchlm.translation import as_source, decode

DEFAULT_TOKENS = 32

OptionalText = Annotated[str | None, Parameter(allow_leading_hyphen=True, show_default=False)]


def command(
    directory: str,
    /,
    *,
    text: OptionalText = None,
    target: OptionalText = None,
    layer: OptionalInt = None,
    head: OptionalInt = None,
    sense: OptionalInt = None,
    out: str | None = None,
    checkpoint: str = "last",
    average: Int = 1,
    base: str | None = None,
    device: str = "auto",
    json_: Annotated[bool, Parameter(name="--json", negative=())] = False,
) -> int:
    """Draw what each token looks at, in every layer and head: attention.svg, attention.png and attention.json.

    Parameters
    ----------
    directory
        The run's folder.
    text
        What the model reads; without it the start of the validation text, or the source of the first validation pair.
    target
        Of a run on pairs: what the model writes for the text; without it what it writes by itself.
    layer
        Only this layer, counted from 1.
    head
        Only this head, counted from 1.
    sense
        Of a model with senses: how much of this one goes into each prediction, counted from 0.
    out
        Where the files go; without it the run's folder.
    checkpoint
        last, best, or a step.
    average
        Take the mean of the weights of so many checkpoints, the newest up to that one.
    base
        Of an adapter: the folder of its base, if that is no longer where it was.
    device
        auto, cpu, cuda or mps.
    json_
        Print one JSON object instead.
    """
    run = RunFolder.open(directory, base)
    arch = run.config().arch
    if not has_attention(meta_model(run.config())):
        having = [name for name in MODELS if has_attention(MODELS[name](MODELS[name].Config.tiny()))]
        raise InputError(f"{directory} is a run of {arch}, which has no attention; train one of: {', '.join(having)}")
    chosen, _ = runtime.choose_device(device)
    found, damaged = run.find(checkpoint)
    folder = None if json_ else out_folder(out or directory)
    model, tokenizer = load_checkpoint(run, found, chosen, average)
    read, tokens = _read(run, model, tokenizer, text, target)
    layers = attention_layers(model, tokens, None if read is None else as_source([read], read[-1]))
    if not all(one.weights.isfinite().all() for one in layers):
        raise InputError(f"the attention weights of {found.path} are no numbers; choose another with --checkpoint")
    try:
        layers = pick(layers, layer, head, sense)
    except ValueError as error:
        raise InputError(str(error)) from error
    sides = {"source": None if read is None else texts(tokenizer, read), "tokens": texts(tokenizer, tokens)}
    content = json.dumps(
        {"format_version": FORMAT_VERSION, "arch": arch, "step": found.step, **sides, "layers": described(layers)},
        ensure_ascii=False,
        allow_nan=False,
    )
    introduce(run, found, damaged, average)
    if folder is None:
        print(content)
        return 0
    figure = attention_figure(layers, labels(tokenizer, tokens), None if read is None else labels(tokenizer, read))
    files = write_files(folder, {"attention": figure}, "attention.json", content)
    print(f"attention of {arch}: {', '.join(map(str, files))}")
    return 0


def out_folder(folder: str) -> Path:
    """The folder that files will go into, made before any work is done. Raises InputError where it cannot be."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(f"cannot write into {folder}: {error.strerror}; name another folder with --out") from error
    return Path(folder)


def write_files(folder: Path, figures: Mapping[str, Figure], name: str, content: str) -> list[Path]:
    """Each figure as NAME.svg and NAME.png, and the file of their numbers, into a folder."""
    try:
        replace_file(folder / name, content.encode() + b"\n")
        pictures = [file for figure, drawn in figures.items() for file in save_labelled(drawn, folder / figure)]
    except OSError as error:
        raise InputError(f"cannot write into {folder}: {error.strerror}; name another folder with --out") from error
    return [*pictures, folder / name]


def _read(
    run: RunFolder, model: LanguageModel, tokenizer: Tokenizer, text: str | None, target: str | None
) -> tuple[list[int] | None, list[int]]:
    """What the encoder reads, where there is one, and what the decoder reads."""
    if not run.config().pairs:
        if target is not None:
            raise InputError(f"{run.path} learned from a text and not from pairs; leave --target out")
        ids = first_tokens(run, model) if text is None else encoded(tokenizer, text, "--text")
        return None, fitting(ids, model.context, "--text has")
    end = tokenizer.end_of_text
    assert end is not None
    if text is None:
        source = [*run.pairs()["validation"].source(0).tolist(), end]
    else:
        context = model.source_context if model.takes_source else model.context
        source = fitting([*encoded(tokenizer.source, text, "--text"), end], context, "--text with its end has")
    start = [end] if model.takes_source else source  # a decoder alone reads the source as its beginning
    if target is None:
        own = decode(model, [source], end)[0][0].tokens
        say(f"the model's own target: {tokenizer.target.decode(own)}")
        tokens = [*start, *own]
    else:
        what = "--target with its start has" if model.takes_source else "--text and --target have"
        tokens = fitting([*start, *encoded(tokenizer.target, target, "--target")], model.context, what)
    return source if model.takes_source else None, tokens


def encoded(tokenizer: Tokenizer, text: str, flag: str) -> list[int]:
    """Ids of a text that was given with this flag. Raises InputError where it has none."""
    ids = tokenizer.encode(text)
    if not ids:
        raise InputError(f"{flag} is empty: {text!r} has no token; give a text of at least one, or leave it out")
    return ids


def fitting(ids: list[int], context: int | None, what: str) -> list[int]:
    """The ids themselves. Raises InputError where they are more than the context."""
    if context is not None and len(ids) > context:
        raise InputError(f"{what} {len(ids)} tokens, and the model reads at most {context}; give a shorter text")
    return ids


def first_tokens(run: RunFolder, model: LanguageModel) -> list[int]:
    """The first tokens of the validation text, as many as make a picture and as the model reads."""
    split = run.splits()["validation"]
    return split.windows(np.array([0]), min(DEFAULT_TOKENS, model.context or DEFAULT_TOKENS, len(split)))[0].tolist()
