"""The flags of scratchlm sample that steer a Backpack's senses, and what they change in the next token's logits."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from scratchlm.checkpoint import RunFolder
from scratchlm.cli.flags import check_senses
from scratchlm.errors import InputError
from scratchlm.generation import inference, readable_end
from scratchlm.model import LanguageModel
from scratchlm.steering import Steered, Topic, steer, swapped_senses, topic_scores
from scratchlm.tokenizers import Tokenizer
from scratchlm.tokenizers.shown import visible

SHOWN = 5  # tokens that rise most, and as many that fall
DEFAULT_STRENGTH = 1  # at 2 and 3 a small model begins to repeat itself


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What the flags ask for, in ids, and what has to be said about it."""

    scales: dict[tuple[int, int], float]
    swaps: dict[int, tuple[int, int]]
    topic: list[int]
    strength: int
    notes: list[str]

    @classmethod
    def of(
        cls, run: RunFolder, sense: Sequence[str], swap: Sequence[str], topic: str | None, strength: int | None
    ) -> "Plan | None":
        """The plan of these flags; none without any. No weights are needed.

        Raises InputError for a model without senses, a word of several tokens, and what is no number.
        """
        if strength is not None and topic is None:
            raise InputError(f"--strength {strength} is that of a topic; give one with --topic WORDS, or leave it out")
        if not sense and not swap and topic is None:
            return None
        check_senses(run.path, run.config().arch)
        tokenizer = run.tokenizer()
        chosen = DEFAULT_STRENGTH if strength is None else strength
        if chosen not in range(4):
            raise InputError(f"--strength is {chosen}; choose 0, 1, 2 or 3")
        words = {} if topic is None else _topic(tokenizer, topic)
        named = (
            word if len(ids) == 1 else f"{word} (by its first token, {_seen(tokenizer, ids[0])})"
            for word, ids in words.items()
        )
        return cls(
            scales=_scales(tokenizer, sense),
            swaps=_swaps(tokenizer, swap),
            topic=[ids[0] for ids in words.values()],
            strength=chosen,
            notes=[f"topic at strength {chosen}: {', '.join(named)}"] if words else [],
        )

    def apply(self, model: LanguageModel, tokenizer: Tokenizer) -> Steered:
        """The model as planned. Raises InputError for a sense that the model does not have, and for wild scales."""
        left_out = [*range(tokenizer.vocab_size, model.config.vocab_size)]  # rows that stand for no token
        left_out += [] if tokenizer.end_of_text is None else [tokenizer.end_of_text]
        try:
            return steer(
                model,
                scales=self.scales,
                senses={token: swapped_senses(model, token, old, new) for token, (old, new) in self.swaps.items()},
                topic=Topic.at(topic_scores(model, self.topic, left_out), self.strength) if self.topic else None,
            )
        except ValueError as error:
            raise InputError(str(error)) from error


def _parts(flag: str, given: str, form: str) -> list[str]:
    """Three parts, from the right, since a word may hold a colon."""
    parts = given.rsplit(":", 2)
    if len(parts) != 3 or not all(part.strip() for part in parts):
        raise InputError(f"{flag} is {given!r}; it must be {form}")
    return parts


def _seen(tokenizer: Tokenizer, token: int) -> str:
    return visible(tokenizer.token_bytes(token))


def _token(tokenizer: Tokenizer, flag: str, word: str) -> int:
    ids = tokenizer.encode_word(word)
    if len(ids) != 1:
        pieces = ", ".join(_seen(tokenizer, token) for token in ids)
        raise InputError(f"{flag}: {word!r} is {len(ids)} tokens ({pieces}); senses belong to one: choose another word")
    return ids[0]


def _scales(tokenizer: Tokenizer, sense: Sequence[str]) -> dict[tuple[int, int], float]:
    form = "WORD:INDEX:SCALE, a word, a whole number and a number, such as sea:3:2.5"
    scales: dict[tuple[int, int], float] = {}
    for given in sense:
        word, index, factor = _parts("--sense", given, form)
        try:
            number, scale = int(index), float(factor)
        except ValueError as error:
            raise InputError(f"--sense is {given!r}; it must be {form}") from error
        key = _token(tokenizer, "--sense", word), number
        if key in scales:
            raise InputError(f"--sense scales sense {number} of {word!r} twice; give one scale")
        scales[key] = scale
    return scales


def _swaps(tokenizer: Tokenizer, swap: Sequence[str]) -> dict[int, tuple[int, int]]:
    swaps: dict[int, tuple[int, int]] = {}
    for given in swap:
        parts = _parts("--swap", given, "WORD:FROM:TO, such as crown:king:beggar")
        word, old, new = (_token(tokenizer, "--swap", part) for part in parts)
        if word in swaps:
            raise InputError(f"--swap changes {parts[0]!r} twice; give one swap for each word")
        swaps[word] = old, new
    return swaps


def _topic(tokenizer: Tokenizer, topic: str) -> dict[str, list[int]]:
    words = [word for word in re.split(r"[,\s]+", topic) if word]
    if not words:
        raise InputError(f"--topic is {topic!r}; give words, such as sea,ship,sail")
    return {word: tokenizer.encode_word(word) for word in words}


def logit_changes(
    model: LanguageModel, steered: LanguageModel, tokenizer: Tokenizer, prompts: Mapping[str, Sequence[int]]
) -> list[dict[str, Any]]:
    """For each prompt, the tokens whose logits after it rise and fall most; none where nothing changes.

    A prompt beyond the context is read as generation reads it: the newest half of the context.
    """
    return [
        {"prompt": prompt, **_changes(model, steered, tokenizer, readable_end(ids, model.context))}
        for prompt, ids in prompts.items()
    ]


def _changes(
    model: LanguageModel, steered: LanguageModel, tokenizer: Tokenizer, ids: Sequence[int]
) -> dict[str, list[dict[str, Any]]]:
    tokens = torch.tensor([ids], device=next(model.parameters()).device)
    with inference(steered):
        # both through a memory, so that what changes nothing changes not a bit
        features = (one(tokens, one.initial_state(1))[0][0, -1] for one in (model, steered))
        before, after = (model.readout(last) for last in features)  # (V,)
    numbers = torch.stack([before, before.softmax(-1), after, after.softmax(-1)], 1)
    before, after = before[: tokenizer.vocab_size], after[: tokenizer.vocab_size]  # those that may be drawn are shown
    order = (after - before).argsort(stable=True).tolist()
    change = (after - before).tolist()

    def rows(tokens: Sequence[int]) -> list[dict[str, Any]]:
        described = []
        for token in tokens:
            logit, probability, new_logit, new_probability = numbers[token].tolist()
            described.append(
                {
                    "id": token,
                    "token": tokenizer.decode([token]),
                    "before": {"logit": logit, "probability": probability},
                    "after": {"logit": new_logit, "probability": new_probability},
                }
            )
        return described

    return {
        "rises": rows([token for token in order[: -SHOWN - 1 : -1] if change[token] > 0]),
        "falls": rows([token for token in order[:SHOWN] if change[token] < 0]),
    }


def show_changes(changes: Sequence[Mapping[str, Any]], tokenizer: Tokenizer) -> None:
    """One table for each prompt."""
    console = Console(emoji=False, markup=False, highlight=False)
    for change in changes:
        after = f"after {change['prompt']!r}" if change["prompt"] else "at the start"
        print(f"\n=== logits of the next token {after} ===")
        rows = [*change["rises"], *reversed(change["falls"])]
        if not rows:
            print("nothing changes yet: no sense that has been read is another")
            continue
        table = Table(box=None, pad_edge=False)
        for column in ("token", "logit before", "after", "change", "probability before", "after"):
            table.add_column(column, justify="left" if column == "token" else "right", overflow="fold")
        for row in rows:
            was, becomes = row["before"], row["after"]
            table.add_row(
                _seen(tokenizer, row["id"]) or "<end>",
                f"{was['logit']:.4g}",
                f"{becomes['logit']:.4g}",
                f"{becomes['logit'] - was['logit']:+.4g}",
                f"{100 * was['probability']:.3g}%",
                f"{100 * becomes['probability']:.3g}%",
            )
        console.print(table)
