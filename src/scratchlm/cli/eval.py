"""scratchlm eval DIR: the exact loss of a split."""

import json
from typing import Annotated, Literal

from cyclopts import Parameter

from scratchlm import runtime
from scratchlm.checkpoint import RunFolder, load
from scratchlm.cli.sample import say, weights
from scratchlm.data.shards import Tokens, encode_documents
from scratchlm.evaluation import evaluate
from scratchlm.training.setup import read_data


def command(
    directory: str,
    /,
    *,
    data: str | None = None,
    split: Literal["val", "test"] = "val",
    window: Annotated[int | None, Parameter(show_default=lambda _: "the training window")] = None,
    checkpoint: str = "last",
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
    split
        The part of the run's own text.
    window
        Tokens of a window.
    checkpoint
        last, best, or a step.
    device
        auto, cpu, cuda or mps.
    json_
        Print one JSON object instead.
    """
    run = RunFolder.open(directory)
    config = run.config()
    chosen, _ = runtime.choose_device(device)
    found = run.checkpoint(checkpoint)
    model, tokenizer = load(directory, str(found.step), chosen)
    if data is None:
        tokens = run.splits()["validation" if split == "val" else "test"]
        what = f"the {'validation' if split == 'val' else 'test'} split of {config.data}"
    else:
        tokens, what = Tokens.of(encode_documents(read_data(data), tokenizer)), data
    score = evaluate(model, tokens, tokenizer.token_lengths(), window or config.training_window)
    figures = {
        "nats_per_token": score.nats_per_token,
        "perplexity": score.perplexity,
        "bits_per_byte": score.bits_per_byte,
        "tokens": score.tokens,
        "bytes": score.bytes,
        "step": found.step,
    }
    if json_:
        print(json.dumps(figures))
        return 0
    say(f"{directory}: {weights(run, found)}")
    print(
        f"{what}: {score.nats_per_token:.4f} nats per token, perplexity {score.perplexity:.3f}, "
        f"{score.bits_per_byte:.4f} bits per byte ({score.tokens:,} tokens, {score.bytes:,} bytes)"
    )
    return 0
