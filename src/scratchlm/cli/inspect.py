"""scratchlm inspect: look into a trained model."""

import json
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from cyclopts import App, Parameter

from scratchlm import runtime
from scratchlm.checkpoint import RunFolder, load_checkpoint, meta_model
from scratchlm.cli.flags import OptionalInt
from scratchlm.cli.sample import introduce, say
from scratchlm.cli.tokenizer import visible
from scratchlm.errors import InputError
from scratchlm.files import FORMAT_VERSION, replace_file
from scratchlm.generation import generate
from scratchlm.inspect.attention import (
    attention_figure,
    attention_layers,
    described,
    has_attention,
    pick,
    save_attention,
)
from scratchlm.model import LanguageModel, Source
from scratchlm.models import MODELS
from scratchlm.tokenizers import Tokenizer

DEFAULT_TOKENS = 32
END = "<end>"

app = App(name="inspect", help="Look into a trained model.", version_flags=[])
OptionalText = Annotated[str | None, Parameter(allow_leading_hyphen=True, show_default=False)]


@app.command
def attention(
    directory: str,
    /,
    *,
    text: OptionalText = None,
    target: OptionalText = None,
    layer: OptionalInt = None,
    head: OptionalInt = None,
    out: str | None = None,
    checkpoint: str = "last",
    device: str = "auto",
    json_: Annotated[bool, Parameter(name="--json", negative=())] = False,
) -> int:
    """Draw what each token looks at, in every layer and head: attention.svg, attention.png and attention.json.

    Parameters
    ----------
    directory
        The run's folder.
    text
        What the model reads; without it the first tokens of the validation text.
    target
        For a model that translates: the translation that it looks at; without it the model's own.
    layer
        Only this layer, counted from 1.
    head
        Only this head, counted from 1.
    out
        Where the files go; without it the run's folder.
    checkpoint
        last, best, or a step.
    device
        auto, cpu, cuda or mps.
    json_
        Print one JSON object instead.
    """
    run = RunFolder.open(directory)
    arch = run.config().arch
    if not has_attention(meta_model(run.config())):
        having = [name for name in MODELS if has_attention(MODELS[name](MODELS[name].Config.tiny()))]
        raise InputError(f"{directory} is a run of {arch}, which has no attention; train one of: {', '.join(having)}")
    for flag, given in (("--text", text), ("--target", target)):
        if given == "":
            raise InputError(f"{flag} is empty; give a text of at least one token, or leave it out")
    if target is not None and not MODELS[arch].takes_source:
        raise InputError(f"{arch} reads one text, so --target has no meaning; leave it out")
    chosen, _ = runtime.choose_device(device)
    found, damaged = run.find(checkpoint)
    model, tokenizer = load_checkpoint(run, found, chosen)
    if model.takes_source:
        read = _source(run, model, tokenizer, text)
        source = Source(torch.tensor([read], device=chosen), torch.tensor([len(read)], device=chosen))
        tokens = _target(model, tokenizer, target, source)
    else:
        read, source, tokens = None, None, _tokens(run, model, tokenizer, text)
    layers = attention_layers(model, tokens, source)
    if not all(one.weights.isfinite().all() for one in layers):
        raise InputError(f"the attention weights of {found.path} are no numbers; choose another with --checkpoint")
    try:
        layers = pick(layers, layer, head)
    except ValueError as error:
        raise InputError(str(error)) from error
    sides = {"source": None if read is None else _texts(tokenizer, read), "tokens": _texts(tokenizer, tokens)}
    content = json.dumps(
        {"format_version": FORMAT_VERSION, "arch": arch, "step": found.step, **sides, "layers": described(layers)},
        ensure_ascii=False,
        allow_nan=False,
    )
    introduce(run, found, damaged)
    if json_:
        print(content)
        return 0
    figure = attention_figure(layers, _labels(tokenizer, tokens), None if read is None else _labels(tokenizer, read))
    folder = Path(out or directory)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        replace_file(folder / "attention.json", content.encode() + b"\n")
        pictures = save_attention(figure, folder)
    except OSError as error:
        raise InputError(f"cannot write into {folder}: {error.strerror}; name another folder with --out") from error
    print(f"attention of {arch}: {', '.join(map(str, [*pictures, folder / 'attention.json']))}")
    return 0


def _fitting(ids: list[int], context: int | None, what: str) -> list[int]:
    if context is not None and len(ids) > context:
        raise InputError(f"{what} has {len(ids)} tokens, and the model reads at most {context}; give a shorter one")
    return ids


def _first(run: RunFolder, count: int) -> list[int]:
    """The first tokens of the validation text."""
    split = run.splits()["validation"]
    return split.windows(np.array([0]), min(count, len(split)))[0].tolist()


def _tokens(run: RunFolder, model: LanguageModel, tokenizer: Tokenizer, text: str | None) -> list[int]:
    """What a model of one text reads."""
    if text is None:
        return _first(run, min(DEFAULT_TOKENS, model.context or DEFAULT_TOKENS))
    return _fitting(tokenizer.encode(text), model.context, "--text")


def _end(tokenizer: Tokenizer) -> int:
    if tokenizer.end_of_text is None:
        raise InputError("the run's tokenizer has no end-of-text token, which ends a source and starts a target")
    return tokenizer.end_of_text


def _source(run: RunFolder, model: LanguageModel, tokenizer: Tokenizer, text: str | None) -> list[int]:
    """What an encoder reads, its end with it: the text, or the first source of the validation pairs that fits."""
    end = _end(tokenizer)
    if text is not None:
        return _fitting([*tokenizer.source.encode(text), end], model.source_context, "--text, with its end,")
    ids = _first(run, model.source_context or DEFAULT_TOKENS)
    return ids[: ids.index(end) + 1]


def _target(model: LanguageModel, tokenizer: Tokenizer, text: str | None, source: Source) -> list[int]:
    """What a decoder reads, its start before it: the text, or the model's own greedy translation."""
    end = _end(tokenizer)
    if text is not None:
        return _fitting([end, *tokenizer.target.encode(text)], model.context, "--target, with its start,")
    most = min(2 * source.ids.shape[1] + 16, (model.context or DEFAULT_TOKENS) - 1)
    (tokens,) = generate(model, [[end]], most, temperature=0, end=end, source=source)
    say(f"translation: {tokenizer.target.decode(tokens[1:])}")
    return tokens


def _texts(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    return [END if token == tokenizer.end_of_text else tokenizer.decode([token]) for token in ids]


def _labels(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    """The tokens as a person can see them, spaces and line ends too."""
    return [END if token == tokenizer.end_of_text else visible(tokenizer.token_bytes(token)) for token in ids]
