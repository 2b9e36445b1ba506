"""scratchlm inspect senses: what the senses of words say, and what they add to a prediction."""

import itertools
import json
import math
from collections.abc import Iterable, Sequence
from typing import Annotated, Any

from cyclopts import Parameter
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from torch import Tensor

from scratchlm import runtime
from scratchlm.checkpoint import RunFolder, load_checkpoint
from scratchlm.cli.flags import Int, check_senses
from scratchlm.cli.inspect.attention import (
    OptionalText,
    encoded,
    first_tokens,
    fitting,
    out_folder,
    write_files,
)
from scratchlm.cli.sample import introduce
from scratchlm.errors import InputError
from scratchlm.files import FORMAT_VERSION
from scratchlm.inspect.senses import (
    Contributions,
    Ranking,
    Sense,
    contributions,
    contributions_figure,
    look_up,
    senses_figure,
    similarities,
    word_senses,
)
from scratchlm.model import LanguageModel
from scratchlm.tokenizers import Tokenizer
from scratchlm.tokenizers.shown import labels, texts, visible

DRAWN = 12  # words in the picture


def command(
    directory: str,
    /,
    *words: str,
    text: OptionalText = None,
    target: OptionalText = None,
    top: Int = 10,
    out: str | None = None,
    checkpoint: str = "last",
    average: Int = 1,
    base: str | None = None,
    device: str = "auto",
    json_: Annotated[bool, Parameter(name="--json", negative=())] = False,
) -> int:
    """Show what each sense of a word pushes up and down, its neighbours by sense, and what it adds to a prediction.

    Parameters
    ----------
    directory
        The run's folder.
    words
        The words, each looked up as it stands within a text: with a space before it.
    text
        Show what each sense of each token of this text adds to the prediction after it. Without it and without words:
        the start of the validation text.
    target
        The next token whose logit that is: a word of one token with the space before it, or, where no token begins
        with a space, as among characters, one as it stands. Without it the most probable next token.
    top
        Tokens in each list.
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
    check_senses(directory, arch)
    if top < 1:
        raise InputError(f"--top is {top}; it must be at least 1")
    if target is not None and words and text is None:
        raise InputError("--target says what comes after a text; give one with --text, or leave --target out")
    if run.config().pairs and text is None and not words:
        raise InputError(f"{directory} learned from pairs; give words of the target, or a source with --text")
    chosen, _ = runtime.choose_device(device)
    found, damaged = run.find(checkpoint)
    folder = None if json_ else out_folder(out or directory)
    model, tokenizer = load_checkpoint(run, found, chosen, average)
    ids = {word: _word(tokenizer, word) for word in words}
    lengths, own = tokenizer.token_lengths(), tokenizer.target.own_ids
    ordinary = [token for token in own if lengths[token]]  # no special tokens; of pairs, those of the target
    read, shown = [], None
    if text is not None or not words:
        read = _read(run, model, tokenizer, text)
        if target is None:
            targets = ordinary if tokenizer.end_of_text is None else [*ordinary, tokenizer.end_of_text]
        else:
            targets = [_target(tokenizer, target)]
        shown = contributions(model, read, targets)
    senses = look_up(model, list(ids.values()), ordinary, top) if ids else []
    figures = [one.spread for word in senses for one in word] + ([] if shown is None else [shown.logit])
    if not all(map(math.isfinite, figures)):
        raise InputError(f"the senses of {found.path} are no numbers; choose another with --checkpoint")
    alike = _alike(ids, similarities(word_senses(model, list(ids.values())))) if len(ids) > 1 else []
    content = json.dumps(
        {
            "format_version": FORMAT_VERSION,
            "arch": arch,
            "step": found.step,
            "words": [
                {
                    "word": word,
                    "tokens": texts(tokenizer, tokens),
                    "ids": tokens,
                    "senses": [_sense(tokenizer, one) for one in table],
                }
                for (word, tokens), table in zip(ids.items(), senses, strict=True)
            ],
            "similarities": alike,
            "contributions": None if shown is None else _described(tokenizer, read, shown),
        },
        ensure_ascii=False,
        allow_nan=False,
    )
    introduce(run, found, damaged, average)
    if folder is None:
        print(content)
        return 0
    pictures = {"senses": _words_figure(tokenizer, ids, senses)} if ids else {}
    if shown is not None:
        sides = labels(tokenizer, read), _label(tokenizer, shown.target)
        pictures["contributions"] = contributions_figure(shown, *sides)
    files = write_files(folder, pictures, "senses.json", content)
    console = Console(emoji=False, markup=False, highlight=False)
    if not console.is_terminal:
        console.width = 200  # a pipe has no edge to cut lists off at
    for (word, tokens), table in zip(ids.items(), senses, strict=True):
        _print_word(console, tokenizer, word, tokens, table)
    if alike:
        _print_similarities(console, alike)
    if shown is not None:
        _print_contributions(console, labels(tokenizer, read), _label(tokenizer, shown.target), shown, top)
    print(f"senses of {arch}: {', '.join(map(str, files))}")
    return 0


def _word(tokenizer: Tokenizer, word: str) -> list[int]:
    """A word's tokens; of pairs, a word of the target."""
    ids = tokenizer.target.encode_word(word) if word else []
    if not ids:
        raise InputError(f"the word {word!r} is empty: it has no token; give a word")
    return ids


def _target(tokenizer: Tokenizer, word: str) -> int:
    """The token that has to come next for the word to be said: with its space, where tokens have one before them."""
    side = tokenizer.target
    spaced = any(len(data) > 1 and data.startswith(b" ") for data in map(side.token_bytes, side.own_ids))
    ids = encoded(side, f" {word}" if spaced and word else word, "--target")
    if len(ids) > 1:
        pieces = " ".join(labels(tokenizer, ids))
        raise InputError(
            f"--target {word!r} is {len(ids)} tokens ({pieces}), and a prediction is of one; give a word of one token"
        )
    return ids[0]


def _read(run: RunFolder, model: LanguageModel, tokenizer: Tokenizer, text: str | None) -> list[int]:
    """What the model reads before the prediction; of pairs a source with its end, after which the target begins."""
    if text is None:
        return first_tokens(run, model)
    ids = encoded(tokenizer.source, text, "--text")
    if run.config().pairs:
        assert tokenizer.end_of_text is not None
        return fitting([*ids, tokenizer.end_of_text], model.context, "--text with its end has")
    return fitting(ids, model.context, "--text has")


def _shown(word: str) -> str:
    return visible(word.encode())


def _label(tokenizer: Tokenizer, token: int) -> str:
    return labels(tokenizer, [token])[0]


# --- as JSON -----------------------------------------------------------------------------------------------------


def _sense(tokenizer: Tokenizer, sense: Sense) -> dict[str, Any]:
    def ranked(ranking: Ranking) -> list[dict[str, Any]]:
        names = texts(tokenizer, [token for token, _ in ranking])
        return [
            {"token": name, "id": token, "value": round(value, 5)}
            for name, (token, value) in zip(names, ranking, strict=True)
        ]

    lists = {"up": sense.up, "down": sense.down, "neighbours": sense.neighbours}
    return {"spread": round(sense.spread, 5), **{name: ranked(ranking) for name, ranking in lists.items()}}


def _alike(ids: Iterable[str], likeness: Tensor) -> list[dict[str, Any]]:
    """Each two words with the cosines of their senses."""
    described = []
    for (one, word), (other, another) in itertools.combinations(enumerate(ids), 2):
        cosines = [round(cosine, 5) for cosine in likeness[one, other].tolist()]
        described.append({"words": [word, another], "senses": cosines, "min": min(cosines)})
    return described


def _described(tokenizer: Tokenizer, read: Sequence[int], shown: Contributions) -> dict[str, Any]:
    return {
        "tokens": texts(tokenizer, read),
        "ids": list(read),
        "target": texts(tokenizer, [shown.target])[0],
        "target_id": shown.target,
        "logit": shown.logit,
        "mean_logit": shown.mean,
        "probability": shown.probability,
        "weights": [[round(weight, 5) for weight in row] for row in shown.weights.tolist()],
        "added": shown.added.tolist(),
    }


# --- for people --------------------------------------------------------------------------------------------------


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, collapse_padding=len(columns) > 8)  # of many senses 16 fit 80 columns
    for name in columns:
        right = name in ("sense", "spread", "weight", "adds", "least") or name.isdigit()
        table.add_column(name, justify="right" if right else "left", no_wrap=right)
    return table


def _several(tokenizer: Tokenizer, tokens: Sequence[int]) -> str:
    return f"mean of {len(tokens)} tokens: {' '.join(labels(tokenizer, tokens))}"


def _print_word(console: Console, tokenizer: Tokenizer, word: str, tokens: Sequence[int], senses: list[Sense]) -> None:
    of = f"token {_label(tokenizer, tokens[0])}" if len(tokens) == 1 else _several(tokenizer, tokens)
    console.print(f"{_shown(word)}  ({of})")
    table = _table("sense", "spread", "pushes up", "pushes down", "neighbours")
    for number, sense in enumerate(senses):
        lists = (labels(tokenizer, [token for token, _ in one]) for one in (sense.up, sense.down, sense.neighbours))
        table.add_row(str(number), f"{sense.spread:.2f}", *map(" ".join, lists))
    console.print(table)
    console.print()


def _print_similarities(console: Console, pairs: Sequence[dict[str, Any]]) -> None:
    console.print("similarity by sense (cosine, in hundredths); least: Sim_min")
    table = _table("words", "least", *map(str, range(len(pairs[0]["senses"]))))
    for pair in pairs:
        cosines = (str(round(100 * cosine)) for cosine in (pair["min"], *pair["senses"]))
        table.add_row("  ".join(map(_shown, pair["words"])), *cosines)
    console.print(table)
    console.print()


def _print_contributions(console: Console, tokens: Sequence[str], target: str, shown: Contributions, top: int) -> None:
    console.print(f"after {''.join(tokens)}")
    console.print(
        f"right after it {target}: probability {shown.probability:.1%}, logit {shown.logit:.2f}, mean of all logits "
        f"{shown.mean:.2f}; what adds most to the difference of {shown.logit - shown.mean:.2f} or takes most from it:"
    )
    table = _table("token", "sense", "weight", "adds")
    senses = shown.added.shape[1]
    for at in shown.added.flatten().abs().topk(min(top, shown.added.numel())).indices.tolist():
        token, sense = divmod(at, senses)
        row = (str(sense), f"{shown.weights[token, sense]:.3f}", f"{shown.added[token, sense]:+.3f}")
        table.add_row(f"{tokens[token]} ({token + 1})", *row)
    console.print(table)
    console.print()


def _words_figure(tokenizer: Tokenizer, ids: dict[str, list[int]], senses: list[list[Sense]]) -> Figure:
    drawn = {_shown(word): tokens for word, tokens in itertools.islice(ids.items(), DRAWN)}
    said = [f"{word} is the {_several(tokenizer, tokens)}." for word, tokens in drawn.items() if len(tokens) > 1]
    if len(ids) > DRAWN:
        said.append(f"The first {DRAWN} of {len(ids)} words.")
    return senses_figure(list(drawn), senses[:DRAWN], lambda token: _label(tokenizer, token), " ".join(said))
