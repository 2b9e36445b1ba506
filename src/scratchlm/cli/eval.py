"""scratchlm eval DIR: the exact loss of a split."""

import json
import math
from dataclasses import replace
from typing import Annotated, Literal

from cyclopts import Parameter

from scratchlm import runtime
from scratchlm.checkpoint import RunFolder, load_checkpoint
from scratchlm.cli.flags import Int, OptionalInt
from scratchlm.cli.sample import introduce
from scratchlm.data.shards import Tokens, encode_documents
from scratchlm.errors import InputError
from scratchlm.evaluation import carried_loss, evaluate
from scratchlm.training.setup import read_data


def command(
    directory: str,
    /,
    *,
    data: Annotated[str | None, Parameter(allow_leading_hyphen=True)] = None,
    errors: Literal["strict", "replace"] = "strict",
    split: Literal["val", "test"] = "val",
    window: OptionalInt = None,
    checkpoint: str = "last",
    average: Int = 1,
    device: str = "auto",
    json_: Annotated[bool, Parameter(name="--json", negative=())] = False,
) -> int:
    """Score a model on a whole split: back-to-back windows, every target counted once.

    Parameters
    ----------
    directory
        The run's folder.
    data
        Another text, all of it: a corpus by name, a file, a folder, or - for standard input.
    errors
        Bytes of it that are not UTF-8: strict stops, replace puts U+FFFD there.
    split
        The part of the run's own text.
    window
        Tokens of a window; without it those of training.
    checkpoint
        last, best, or a step.
    average
        Take the mean of the weights of so many checkpoints, the newest up to that one.
    device
        auto, cpu, cuda or mps.
    json_
        Print one JSON object instead.
    """
    run = RunFolder.open(directory)
    config = run.config()
    chosen, _ = runtime.choose_device(device)
    found, damaged = run.find(checkpoint)
    model, tokenizer = load_checkpoint(run, found, chosen, average)
    if data is None:
        name = "validation" if split == "val" else "test"
        tokens, what = run.splits()[name], f"the {name} split of {config.data}"
        if len(tokens) < 2:
            raise InputError(f"{directory} has no {name} split to score: --split of its training was {config.split}")
    else:
        tokens, what = Tokens.of(encode_documents(read_data(data, errors), tokenizer)), data
    score = evaluate(model, tokens, tokenizer.token_lengths(), config.training_window if window is None else window)
    if model.context is None:
        score = replace(score, carried_nats_per_token=carried_loss(model, tokens))
    figures = {
        "nats_per_token": score.nats_per_token,
        "perplexity": score.perplexity if math.isfinite(score.perplexity) else None,
        "bits_per_byte": score.bits_per_byte,
        **({} if model.context is not None else {"carried_nats_per_token": score.carried_nats_per_token}),
        "tokens": score.tokens,
        "bytes": score.bytes,
        "step": found.step,
    }
    introduce(run, found, damaged, average)
    if json_:
        print(json.dumps(figures, allow_nan=False))
        return 0
    print(
        f"{what}: {score.nats_per_token:.4f} nats per token, perplexity {score.perplexity:.3f}, "
        f"{score.bits_per_byte:.4f} bits per byte ({score.tokens:,} tokens, {score.bytes:,} bytes)"
    )
    if score.carried_nats_per_token is not None:
        print(f"in one pass with the state carried: {score.carried_nats_per_token:.4f} nats per token")
    return 0
