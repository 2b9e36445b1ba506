"""scratchlm eval DIR: the exact loss of a split."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from scratchlm import runtime
from scratchlm.beams import LARGEST_PENALTY
from scratchlm.checkpoint import RunFolder, load_checkpoint
from scratchlm.cli.flags import Int, OptionalInt
from scratchlm.cli.sample import introduce
from scratchlm.data.pair_batches import Pairs
from scratchlm.data.pairs import is_pairs
from scratchlm.data.shards import Prepared, Tokens, encode_documents, is_prepared
from scratchlm.errors import InputError
from scratchlm.evaluation import carried_loss, evaluate
from scratchlm.training.material import read_data, read_scored_pairs
from scratchlm.translation import LENGTH_PENALTY, measure, translate_pairs


def command(
    directory: str,
    /,
    *,
    data: Annotated[str | None, Parameter(allow_leading_hyphen=True)] = None,
    source: str | None = None,
    target: str | None = None,
    errors: Literal["strict", "replace"] = "strict",
    split: Literal["val", "test"] = "val",
    window: OptionalInt = None,
    beam: Int = 1,
    length_penalty: float = LENGTH_PENALTY,
    checkpoint: str = "last",
    average: Int = 1,
    base: str | None = None,
    device: str = "auto",
    json_: Annotated[bool, Parameter(name="--json", negative=())] = False,
) -> int:
    """Score a model on a whole split, every target counted once: a text in back-to-back windows.

    With pairs also its translations of the sources: error rates of symbols, or BLEU with a bootstrap interval.

    Parameters
    ----------
    directory
        The run's folder.
    data
        Another text, all of it: a corpus by name, a file, a folder, or - for standard input; a split of a folder that
        data prepare made; for a model of pairs a corpus of them or a .tsv file.
    source
        A file of other pairs' sources, one on each line, in place of --data.
    target
        The file of their targets.
    errors
        Bytes of it that are not UTF-8: strict stops, replace puts U+FFFD there.
    split
        The part of the run's own text, or of a prepared folder.
    window
        Tokens of a window; without it those of training.
    beam
        Hypotheses that are followed at once in translating; 1 is greedy.
    length_penalty
        In translating: 0 compares log-probabilities as they are, more favours longer targets.
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
    if beam < 1 or not 0 <= length_penalty <= LARGEST_PENALTY:
        raise InputError(
            f"--beam is {beam} and --length-penalty {length_penalty}; the one must be 1 or more, the other from 0 to "
            f"{LARGEST_PENALTY}"
        )
    run = RunFolder.open(directory, base)
    config = run.config()
    chosen, _ = runtime.choose_device(device)
    found, damaged = run.find(checkpoint)
    model, tokenizer = load_checkpoint(run, found, chosen, average)
    given: Tokens | Pairs
    if (source is None) != (target is None) or (source is not None and data is not None):
        raise InputError("give other pairs as --source FILE with --target FILE, or as --data, and not as both")
    paths = [path for path in (source, target, data) if path is not None]
    name = "validation" if split == "val" else "test"
    if not paths:
        what = f"the {name} split of {config.data_name}"
        given = run.pairs()[name] if config.pairs else run.splits()[name]
        if len(given) < (1 if config.pairs else 2):
            raise InputError(f"{directory} has no {name} split to score: --split of its training was {config.split}")
    elif config.pairs:
        given, what = read_scored_pairs(paths, errors, config, tokenizer), " and ".join(paths)
    elif data is None or is_pairs(data):
        raise InputError(
            f"{' and '.join(paths)} hold pairs of source and target, and {directory} learned from a text; "
            "give a text with --data"
        )
    elif is_prepared(data):
        given, what = Prepared(Path(data)).splits(tokenizer)[name], f"the {name} split of {data}"
        if len(given) < 2:
            raise InputError(f"{data} has no {name} split to score; prepare it with a larger share of it, --split")
    else:
        given, what = Tokens.of(encode_documents(read_data(data, errors), tokenizer)), data
    score = evaluate(model, given, tokenizer.token_lengths(), config.training_window if window is None else window)
    quality = None
    if isinstance(given, Pairs):
        translated = translate_pairs(model, tokenizer, given, beam=beam, length_penalty=length_penalty)
        quality = measure(translated, tokenizer, bootstrap=1000)
    elif model.context is None:
        score = replace(score, carried_nats_per_token=carried_loss(model, given))
    figures = {
        "nats_per_token": score.nats_per_token,
        "perplexity": score.perplexity if math.isfinite(score.perplexity) else None,
        "bits_per_byte": score.bits_per_byte,
        **({} if score.carried_nats_per_token is None else {"carried_nats_per_token": score.carried_nats_per_token}),
        **({} if quality is None else {**quality.fields(), "sources": quality.sources, "beam": beam}),
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
    if quality is not None:
        print(f"translated {'greedily' if beam == 1 else f'with a beam of {beam}'}: {quality}")
    return 0
