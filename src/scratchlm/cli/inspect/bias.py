"""scratchlm inspect bias: whether a word calls for "he" or "she", and what one of its senses has to do with it."""

import json
import math
from pathlib import Path
from typing import Annotated

import numpy as np
from cyclopts import Parameter
from rich.console import Console
from rich.table import Table

from scratchlm import runtime
from scratchlm.checkpoint import RunFolder, load_checkpoint, meta_model
from scratchlm.cli.flags import Int, OptionalInt, check_senses
from scratchlm.cli.inspect.attention import out_folder, write_files
from scratchlm.cli.sample import introduce, say
from scratchlm.errors import InputError
from scratchlm.files import FORMAT_VERSION
from scratchlm.inspect.bias import (
    ESTIMATION,
    EVALUATION,
    PROFESSIONS,
    WordBias,
    bias_figure,
    mean_bias,
    measure,
    pronoun_logits,
    ratios_by_sense,
    reductions,
)
from scratchlm.tokenizers import Tokenizer
from scratchlm.tokenizers.shown import visible

PROMPTS = (*EVALUATION, *ESTIMATION)


def command(
    directory: str,
    /,
    *,
    words: str | None = None,
    sense: OptionalInt = None,
    out: str | None = None,
    checkpoint: str = "last",
    average: Int = 1,
    base: str | None = None,
    device: str = "auto",
    json_: Annotated[bool, Parameter(name="--json", negative=())] = False,
) -> int:
    """Measure whether a profession calls for "he" or "she", and reduce it: bias.svg, bias.png and bias.json.

    Parameters
    ----------
    directory
        The run's folder; its model must have senses.
    words
        A file of words, one a line; without it the 40 professions of the Backpack's paper.
    sense
        The sense that is removed and scaled, counted from 0; without it the one whose removal helps most.
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
    config = run.config()
    check_senses(directory, config.arch)
    if config.pairs:
        raise InputError(f"{directory} learned from pairs, and the prompts are a text's; give a run on a text")
    senses = meta_model(config).config.senses
    if sense is not None and not 0 <= sense < senses:
        raise InputError(f"there is no sense {sense}; the model has senses 0 to {senses - 1}")
    given = list(PROFESSIONS) if words is None else _read_words(words)
    tokenizer = run.tokenizer()
    pronouns = {name: _pronoun(tokenizer, name) for name in ("he", "she")}
    if len(they := tokenizer.encode(" they")) == 1:
        pronouns["they"] = they[0]
    cut: dict[str, tuple[int, list[list[int]]]] = {}  # each word's token, and its prompts as ids
    left_out: dict[str, str] = {}  # and why
    for word in given:
        try:
            cut[word] = _cut(tokenizer, word)
        except InputError as error:
            left_out[word] = str(error)
    if not cut:
        raise InputError(
            f"none of the {len(given)} words can be measured, as {given[0]!r}: {left_out[given[0]]}; "
            f'give words that are one token with --words FILE (scratchlm tokenizer show {directory} " king" tells)'
        )
    chosen, _ = runtime.choose_device(device)
    found, damaged = run.find(checkpoint)
    folder = None if json_ else out_folder(out or directory)
    model, _ = load_checkpoint(run, found, chosen, average)
    longest = max(len(prompt) for _, prompts in cut.values() for prompt in prompts)
    if model.context is not None and longest > model.context:
        raise InputError(f"a prompt has {longest} tokens, and the model reads at most {model.context}")
    split = {
        word: pronoun_logits(model, prompts, token, list(pronouns.values())).split(len(EVALUATION))
        for word, (token, prompts) in cut.items()
    }
    estimation = [theirs for _, theirs in split.values()]
    unmodified, without = ratios_by_sense(estimation, 1)[0].item(), ratios_by_sense(estimation, 0)
    chosen_sense = int(without.argmin()) if sense is None else sense
    measured = [measure(word, *both, chosen_sense) for word, both in split.items()]
    ratios = (value for one in measured for value in (one.before, one.removed, one.fitted, one.scale))
    if not all(map(math.isfinite, (*ratios, *without.tolist()))):
        raise InputError(f"the ratios of {found.path} are no finite numbers; choose another with --checkpoint")
    measured.sort(key=lambda one: one.before, reverse=True)
    content = {
        "format_version": FORMAT_VERSION,
        "arch": config.arch,
        "step": found.step,
        "prompts": {"evaluation": EVALUATION, "estimation": ESTIMATION},
        "sense": chosen_sense,
        "estimation": {"before": unmodified, "without_sense": without.tolist()},
        "words": [{**vars(one), "change": dict(zip(pronouns, one.change, strict=True))} for one in measured],
        "left_out": left_out,
        "mean": mean_bias(measured),
        "reduction": reductions(measured),
    }
    text = json.dumps(content, ensure_ascii=False, allow_nan=False)
    introduce(run, found, damaged, average)
    if left_out:
        say(f"left out: {', '.join(left_out)}; left_out in the JSON tells how each is cut")
    if folder is None:
        print(text)
        return 0
    files = write_files(folder, {"bias": bias_figure(measured, chosen_sense)}, "bias.json", text)
    what = "words" if words else "professions"
    print(f"measured: {len(cut)} of {len(given)} {what}, those that the vocabulary holds as one token")
    print(_about_sense(chosen_sense, sense is None, unmodified, without[chosen_sense].item()))
    _print_table(measured, chosen_sense)
    print(f"bias of {config.arch}: {', '.join(map(str, files))}")
    return 0


def _read_words(name: str) -> list[str]:
    try:
        text = Path(name).read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"cannot read {name}: {error.strerror}; name a file of words with --words FILE") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{name} is not UTF-8: byte {error.start}; save it as UTF-8") from error
    words = list(dict.fromkeys(line.strip() for line in text.splitlines() if line.strip()))
    if not words:
        raise InputError(f"{name} has no words; write one a line")
    return words


def _pieces(tokenizer: Tokenizer, ids: list[int]) -> str:
    return f"{len(ids)} tokens: {' '.join(visible(tokenizer.token_bytes(token)) for token in ids)}"


def _pronoun(tokenizer: Tokenizer, pronoun: str) -> int:
    """The one token that has to come next for the pronoun to be said."""
    ids = tokenizer.encode(f" {pronoun}")
    if len(ids) != 1:
        raise InputError(
            f'" {pronoun}" is {_pieces(tokenizer, ids)}; the measure compares the next token alone, so it needs a '
            "vocabulary that has it as one: train with --tokenizer bpe"
        )
    return ids[0]


def _cut(tokenizer: Tokenizer, word: str) -> tuple[int, list[list[int]]]:
    """A word's token, and the prompts with it. Raises InputError where it is not one token, alone or in a prompt."""
    ids = tokenizer.encode_word(word)
    if len(ids) != 1:
        raise InputError(_pieces(tokenizer, ids))
    prompts = []
    for prompt in PROMPTS:
        before = prompt[: prompt.index("X")] + word
        cut = tokenizer.encode(before + prompt[prompt.index("X") + 1 :])
        ends = np.cumsum([len(tokenizer.token_bytes(token)) for token in cut]).tolist()
        if (len(before.encode()), ids[0]) not in zip(ends, cut, strict=True):
            raise InputError(f"one token alone, but not in {before!r}: {_pieces(tokenizer, cut)}")
        prompts.append(cut)
    return ids[0], prompts


def _about_sense(sense: int, searched: bool, before: float, after: float) -> str:
    """What sense it is, and why; judged by the prompts that it was chosen on and not by those that count."""
    change = f"from {before:.3f} to {after:.3f} on the {len(ESTIMATION)} prompts of the fit"
    if not searched:
        return f"sense {sense}, as asked for; its removal takes the mean ratio {change}"
    if after >= before:
        return f"sense {sense}; no sense's removal lowers the mean ratio, this one's raises it least: {change}"
    return f"sense {sense}, whose removal lowers the mean ratio most: {change}"


def _print_table(words: list[WordBias], sense: int) -> None:
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for column in ("before", f"without sense {sense}", "scaled", "s", "prefers"):
        table.add_column(column, justify="right")
    for one in words:
        ratios = (f"{value:.3f}" for value in (one.before, one.removed, one.fitted, one.scale))
        table.add_row(one.word, *ratios, one.preferred or "neither")
    means, gone = mean_bias(words), reductions(words)
    table.add_row("mean", *(f"{value:.3f}" for value in means.values()))
    if gone is not None:
        table.add_row("reduction", "", *(f"{100 * share:.0f} %" for share in gone.values()))
    console = Console(emoji=False, markup=False, highlight=False)
    if not console.is_terminal:
        console.width = 200  # a pipe has no edge to cut words off at
    console.print(table)
    if gone is None:
        print("the mean ratio is 1 as it is: there is nothing to reduce")
