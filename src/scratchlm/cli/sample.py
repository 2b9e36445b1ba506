"""scratchlm sample DIR: let a model write."""

import json
import sys
from typing import Annotated, Any

from cyclopts import Parameter

from scratchlm import runtime
from scratchlm.checkpoint import Checkpoint, RunFolder, load_checkpoint
from scratchlm.cli.flags import Int, OptionalInt
from scratchlm.cli.steering import Plan, logit_changes, show_changes
from scratchlm.errors import InputError
from scratchlm.generation import Sampling, StopAt, stream
from scratchlm.model import LanguageModel
from scratchlm.tokenizers import IncrementalDecoder, Tokenizer

Texts = Annotated[list[str] | None, Parameter(allow_leading_hyphen=True, negative_iterable=(), show_default=False)]


def command(
    directory: str,
    /,
    *,
    prompt: Texts = None,
    tokens: Int = 256,
    samples: Int = 1,
    temperature: float = 0.8,
    top_k: OptionalInt = None,
    top_p: float | None = None,
    min_p: float | None = None,
    stop: Texts = None,
    seed: Int = 0,
    sense: Texts = None,
    swap: Texts = None,
    topic: Annotated[str | None, Parameter(allow_leading_hyphen=True, show_default=False)] = None,
    strength: OptionalInt = None,
    checkpoint: str = "last",
    average: Int = 1,
    base: str | None = None,
    device: str = "auto",
    json_: Annotated[bool, Parameter(name="--json", negative=())] = False,
) -> int:
    """Let a trained model write, token by token.

    Parameters
    ----------
    directory
        The run's folder.
    prompt
        What the text starts with; - reads it from standard input. Given several times: several texts.
    tokens
        New tokens of each text.
    samples
        Texts for each prompt.
    temperature
        0 takes the most probable token, 1 draws as the model says.
    top_k
        Draw from the k most probable tokens.
    top_p
        Draw from the most probable tokens that together reach this probability.
    min_p
        Draw from tokens at least this share as probable as the most probable one.
    stop
        End a text before this string. Given several times: before any of them.
    seed
        The same seed, the same text.
    sense
        Of a Backpack: WORD:INDEX:SCALE multiplies a sense of a word, counted from 0. The text is written before and
        after, with the change in the logits of the next token. Given several times: several senses.
    swap
        Of a Backpack: WORD:FROM:TO lets a word's senses say of TO what they say of FROM. Given several times: several
        words.
    topic
        Of a Backpack: words to turn the text towards, such as sea,ship,sail; of a word of several tokens, its first.
    strength
        How strongly: 0 changes nothing, then 1, 2 and 3; without it 1.
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
    if tokens < 1 or samples < 1:
        raise InputError(f"--tokens is {tokens} and --samples {samples}; both must be at least 1")
    if not 0 <= seed < 1 << 63:
        raise InputError(f"--seed is {seed}; it must be at least 0 and below 2**63")
    try:
        sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
        StopAt(stop or [])
    except ValueError as error:
        raise InputError(str(error)) from error
    if run.config().pairs:
        raise InputError(
            f"{directory} learned to make targets of sources; give it a source: scratchlm translate {directory} TEXT"
        )
    plan = Plan.of(run, sense or [], swap or [], topic, strength)
    chosen, _ = runtime.choose_device(device)
    texts = [_prompt(text) for text in prompt or [""]]
    found, damaged = run.find(checkpoint)
    model, tokenizer = load_checkpoint(run, found, chosen, average)
    steered = None if plan is None else plan.apply(model, tokenizer)
    prompts = [text for text in texts for _ in range(samples)]
    writers = {
        heading: Writer(one, tokenizer, prompts, stop or [], show=not json_)
        for heading, one in (("before", model), ("after", steered))
        if one is not None
    }
    introduce(run, found, damaged, average)
    described: dict[str, Any] = {"step": found.step, "seed": seed}
    before = writers["before"]
    before.say_whether_it_slides(tokens)
    for note in [] if plan is None else plan.notes:
        say(note)
    if steered is None:
        described["samples"] = before.run(tokens, sampling, seed)
    else:
        for heading, writer in writers.items():
            if not json_:
                print(f"=== {heading} ===", flush=True)
            described[heading] = {"samples": writer.run(tokens, sampling, seed)}
        described["logits"] = logit_changes(model, steered, tokenizer, dict(zip(prompts, before.ids, strict=True)))
        if not json_:
            show_changes(described["logits"], tokenizer)
    if json_:
        print(json.dumps(described, ensure_ascii=False))
    return 0


def say(text: str) -> None:
    """A line for the person, apart from the text that the model writes."""
    if sys.stderr is not None:
        print(text, file=sys.stderr, flush=True)


def introduce(run: RunFolder, checkpoint: Checkpoint, damaged: list[str], average: int = 1) -> None:
    """Say which weights these are, with their loss, and what had to be passed over."""
    for message in damaged:
        say(f"{message}; the checkpoint of step {checkpoint.step:,} is used")
    if average > 1:
        steps = ", ".join(f"{averaged.step:,}" for averaged in run.newest(checkpoint, average))
        say(f"{run.path}: mean of the weights of steps {steps}")
        return
    if not run.has_text:
        say(f"{run.path}: {'merged' if 'merged' in run.manifest() else 'imported'} weights")
        return
    loss, best = checkpoint.state()["val_loss"], run.best()
    which = f"weights of step {checkpoint.step:,}"
    which += f", validation loss {loss:.4f} nats per token" if loss is not None else ", not evaluated"
    if best is not None and best[0] != checkpoint.step:
        which += f" (the best is step {best[0]:,} with {best[1]:.4f}: --checkpoint best)"
    say(f"{run.path}: {which}")


def _prompt(text: str) -> str:
    if text != "-":
        return text
    if sys.stdin is None:
        raise InputError("standard input is closed; give the prompt with --prompt TEXT")
    try:
        return sys.stdin.buffer.read().decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise InputError(f"standard input is not UTF-8: byte {error.start}; give the prompt in UTF-8") from error


class Writer:
    """Several texts at once: the first is shown as it grows, the others when all are done."""

    def __init__(
        self, model: LanguageModel, tokenizer: Tokenizer, prompts: list[str], stops: list[str], show: bool
    ) -> None:
        self.model, self.tokenizer, self.show = model, tokenizer, show
        self.prompts = [tokenizer.unfinished(text) for text in prompts]
        self.ids = [tokenizer.encode(prompt) or [tokenizer.start] for prompt in prompts]
        self.new: list[list[int]] = [[] for _ in prompts]
        self.texts = [""] * len(prompts)
        self.decoders = [IncrementalDecoder(tokenizer) for _ in prompts]
        self.stops = [StopAt(stops) for _ in prompts]

    def say_whether_it_slides(self, tokens: int) -> None:
        context, longest = self.model.context, max(map(len, self.ids))
        if context is not None and longest + tokens - 1 > context:
            say(
                f"prompt and new tokens exceed the context of {context}: whenever it is full, "
                f"the model goes on from the newest {max(1, context // 2)} tokens"
            )

    def run(self, tokens: int, sampling: Sampling, seed: int) -> list[dict[str, Any]]:
        """Write all texts, and describe them."""
        self._print(0, self.prompts[0])
        end, size = self.tokenizer.end_of_text, self.tokenizer.vocab_size
        drawn = stream(self.model, self.ids, tokens, sampling, seed=seed, end=end, slide=True, vocab_size=size)
        for row, token in drawn:
            if self.stops[row].stopped:
                continue
            self.new[row].append(token)
            self._add(row, self.stops[row].push(self.decoders[row].push(token)))
            if all(stop.stopped for stop in self.stops):
                break
        for row, stop in enumerate(self.stops):  # half a character at the end is left out
            self._add(row, stop.flush())
        self._print(0, "\n")
        for row in range(1, len(self.texts)):
            self._print(0, f"--- {row + 1} ---\n{self.prompts[row]}{self.texts[row]}\n")
        return [
            {"prompt": prompt, "text": text, "tokens": new}
            for prompt, text, new in zip(self.prompts, self.texts, self.new, strict=True)
        ]

    def _add(self, row: int, text: str) -> None:
        self.texts[row] += text
        self._print(row, text)

    def _print(self, row: int, text: str) -> None:
        if self.show and row == 0 and text:
            print(text, end="", flush=True)
