"""scratchlm translate DIR: targets for sources, with a model of pairs."""

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from scratchlm import runtime
from scratchlm.beams import LARGEST_PENALTY, Hypothesis
from scratchlm.checkpoint import RunFolder, load_checkpoint
from scratchlm.cli.flags import Int
from scratchlm.cli.sample import introduce, say
from scratchlm.data.text import Errors, stream_text
from scratchlm.errors import InputError
from scratchlm.translation import LENGTH_PENALTY, decode, encode_source

LINES = 1000  # of a file that are decoded, and printed, together


def command(
    directory: str,
    text: Annotated[str | None, Parameter(allow_leading_hyphen=True)] = None,
    /,
    *,
    beam: Int = 4,
    alternatives: Int = 1,
    length_penalty: float = LENGTH_PENALTY,
    checkpoint: str = "last",
    average: Int = 1,
    base: str | None = None,
    errors: Literal["strict", "replace"] = "strict",
    device: str = "auto",
    json_: Annotated[bool, Parameter(name="--json", negative=())] = False,
) -> int:
    """Translate: one line of standard output for each line that comes in.

    Parameters
    ----------
    directory
        The run's folder.
    text
        A source, a file with one on each line, or - for standard input, which is also meant where it is left out.
    beam
        Hypotheses that are followed at once; 1 is greedy.
    alternatives
        Translations of each source, the best first, each behind its score and a tab; at most --beam of them.
    length_penalty
        0 compares log-probabilities as they are, which favours short targets; more favours longer ones.
    checkpoint
        last, best, or a step.
    average
        Take the mean of the weights of so many checkpoints, the newest up to that one.
    base
        Of an adapter: the folder of its base, if that is no longer where it was.
    errors
        Bytes that are not UTF-8: strict stops, replace puts U+FFFD there.
    device
        auto, cpu, cuda or mps.
    json_
        Print one JSON object instead.
    """
    if not 1 <= alternatives <= beam:
        raise InputError(f"--alternatives is {alternatives} and --beam {beam}; give 1 <= alternatives <= beam")
    if not 0 <= length_penalty <= LARGEST_PENALTY:
        raise InputError(f"--length-penalty is {length_penalty}; it must be from 0 to {LARGEST_PENALTY}")
    run = RunFolder.open(directory, base)
    config = run.config()
    if not config.pairs:
        raise InputError(
            f"{directory} is a {config.arch} that learned to write from a text, and translates nothing: write with it "
            f"(scratchlm sample {directory}), or train on pairs (scratchlm train transformer, or "
            f"scratchlm train {config.arch} --data cmudict)"
        )
    chosen, _ = runtime.choose_device(device)
    found, damaged = run.find(checkpoint)
    model, tokenizer = load_checkpoint(run, found, chosen, average)
    assert tokenizer.end_of_text is not None
    introduce(run, found, damaged, average)
    translations: list[dict[str, Any]] = []
    options = {"beam": beam, "length_penalty": length_penalty, "alternatives": alternatives}
    typed = text in (None, "-") and sys.stdin is not None and sys.stdin.isatty()
    done = 0
    for lines in _typed() if typed else _lines(text, errors):
        # an empty line stays one, so that targets stand beside their sources
        sources = []
        for number, line in enumerate(lines, done + 1):
            try:
                sources += [encode_source(line, model, tokenizer)] if line else []
            except InputError as error:
                if not typed:
                    raise InputError(f"line {number}: {error}" if len(lines) > 1 or done else str(error)) from error
                say(str(error))  # and the next line may be better
        done += len(lines)
        decoded = iter(decode(model, sources, tokenizer.end_of_text, **options))
        for line in lines if sources or not typed else []:
            hypotheses = next(decoded) if line else []
            targets = [(tokenizer.target.decode(one.tokens), one) for one in hypotheses]
            if json_:
                translations.append({"source": line, "targets": [_described(*target) for target in targets]})
            else:
                _show(targets, alternatives > 1)
    if json_:
        print(json.dumps({"step": found.step, "beam": beam, "translations": translations}, ensure_ascii=False))
    return 0


def _typed() -> Iterator[list[str]]:
    """What a person types, line by line."""
    say("one source a line; Ctrl-D ends")
    yield from ([line.strip()] for line in sys.stdin)


def _lines(text: str | None, errors: Errors) -> Iterator[list[str]]:
    """The sources of a text, a file or standard input, without white space around them, a thousand lines at once."""
    path = "-" if text is None else text
    if path == "-" or _is_file(path):
        whole = "".join(stream_text(path, errors))
        if not whole:
            raise InputError(f"{'standard input' if path == '-' else path} is empty; give a source on each line")
    else:
        whole = path
        if Path(path).suffix and len(path.split()) == 1:
            say(f"there is no file {path}, so this is taken for a text")
    lines = [line.strip() for line in whole.removesuffix("\n").split("\n")]
    yield from (lines[at : at + LINES] for at in range(0, len(lines), LINES))


def _is_file(text: str) -> bool:
    """Whether there is something to be read under this name, which may be a pipe."""
    try:
        return Path(text).exists() and not Path(text).is_dir()
    except (OSError, ValueError):  # too long for a name, or with a character that no name has
        return False


def _described(target: str, hypothesis: Hypothesis) -> dict[str, Any]:
    return {"target": target, "score": hypothesis.score, "log_probability": hypothesis.log_probability}


def _show(targets: Sequence[tuple[str, Hypothesis]], scored: bool) -> None:
    """One line, or with scores as many as there are targets."""
    for target, hypothesis in targets or [("", None)]:
        line = " ".join(target.split("\n"))
        print(f"{hypothesis.score:.4f}\t{line}" if scored and hypothesis is not None else line, flush=True)
