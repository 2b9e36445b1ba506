"""What OpenAI's clients ask: /v1/models and /v1/completions, in the shapes of that interface.

Where it departs: a text beyond the model's context slides on from the newest half of it, fields that mean nothing here
are refused, and a prompt is text, not ids. Called by one thread alone.
"""

import time
from collections.abc import Generator, Iterator, Sequence
from typing import Any

from torch import Tensor

from scratchlm.generation import Sampling, StopAt, stream
from scratchlm.serve.player import Player
from scratchlm.serve.wire import AskedCompletion
from scratchlm.tokenizers import IncrementalDecoder

Chunk = dict[str, Any]


class _Choice:
    """One text that is written, with the log-probabilities of its tokens, if they are asked for."""

    def __init__(self, player: Player, prompt: str, ids: list[int], stops: Sequence[str], logprobs: int | None) -> None:
        self.player, self.prompt, self.ids, self.logprobs = player, prompt, ids, logprobs
        self.decoder, self.stop = IncrementalDecoder(player.tokenizer), StopAt(stops)
        self.tokens = 0
        self.offset, self.shown = 0, 0  # characters up to the next token, and of the text so far, with an echo
        self.listed: list[tuple[str, float | None, dict[str, float] | None, int]] = []
        self.finish: str | None = None

    def note(self, token: int, text: str, logits: Tensor | None) -> None:
        """Note a token's log-probability; that of the first one of all is unknown."""
        if self.logprobs is not None:
            found, most = None, None
            if logits is not None:
                logarithms = logits.double().log_softmax(-1)
                found = logarithms[token].item()
                values, ids = logarithms.topk(min(self.logprobs, len(logarithms)))
                decode = self.player.tokenizer.decode
                most = {decode([one]): value for one, value in zip(ids.tolist(), values.tolist(), strict=True)}
            self.listed.append((text, found, most, self.offset))
        self.offset += len(text)

    def echo(self) -> Chunk:
        """The prompt as the beginning of the text."""
        if self.logprobs is not None:
            decoder = IncrementalDecoder(self.player.tokenizer)
            scores: Iterator[Tensor | None] = self.player.scores(self.player.model, self.ids, 1)
            ids = self.ids if self.prompt else []
            for at, token in enumerate(ids):
                self.note(token, decoder.push(token), None if at == 0 else next(scores))
        self.offset = len(self.prompt)
        return self.part(self.prompt)

    def push(self, token: int, logits: Tensor) -> Chunk | None:
        """What may be shown of the text now that this token has come."""
        text = self.decoder.push(token)
        self.tokens += 1
        self.note(token, text, logits)
        shown = self.stop.push(text)
        if self.stop.stopped:  # tokens of the stop string are no part of the text
            self.listed = [one for one in self.listed if one[3] < self.shown + len(shown)]
        return self.part(shown) if shown else None

    def part(self, text: str) -> Chunk:
        """Some of the text, with what was noted of its tokens."""
        self.shown += len(text)
        tokens, found, most, offsets = zip(*self.listed, strict=True) if self.listed else ((), (), (), ())
        self.listed.clear()
        listed = {"tokens": tokens, "token_logprobs": found, "top_logprobs": most, "text_offset": offsets}
        return {"text": text, "logprobs": None if self.logprobs is None else listed, "finish_reason": self.finish}

    def end(self, most: int) -> Chunk:
        """The last part: what a stop string could still have begun with, and why the text ends."""
        self.finish = "stop" if self.stop.stopped or self.tokens < most else "length"
        return self.part(self.stop.flush())


class Completion:
    """The texts of one request, part by part."""

    def __init__(self, player: Player, asked: AskedCompletion, id_: str, seed: int) -> None:
        """Raises InputError for a prompt that cannot be read."""
        player.expect("generate")
        prompts = [asked.prompt] if isinstance(asked.prompt, str) else asked.prompt
        stops = [asked.stop] if isinstance(asked.stop, str) else asked.stop or []
        many = asked.n or 1
        self.player, self.asked, self.seed = player, asked, seed
        self.most = 16 if asked.max_tokens is None else asked.max_tokens
        self.sampling = Sampling(temperature=1.0 if asked.temperature is None else asked.temperature, top_p=asked.top_p)
        self.head = {"id": id_, "object": "text_completion", "created": int(time.time()), "model": asked.model}
        self.choices: list[_Choice] = []
        self.prompt_tokens = 0
        for prompt in prompts:
            text = player.tokenizer.unfinished(prompt)
            ids = player.prompt(prompt)
            self.prompt_tokens += len(ids)
            self.choices += [_Choice(player, text, ids, stops, asked.logprobs) for _ in range(many)]

    @property
    def usage(self) -> dict[str, int]:
        """How many tokens were read and written."""
        written = sum(choice.tokens for choice in self.choices)
        total = self.prompt_tokens + written
        return {"prompt_tokens": self.prompt_tokens, "completion_tokens": written, "total_tokens": total}

    def parts(self) -> Generator[tuple[int, Chunk | None], None, None]:
        """(choice, part of its text), as they come; none for a token that shows no text yet, or none any more."""
        if self.asked.echo:
            for index, choice in enumerate(self.choices):
                yield index, choice.echo()
        drawn_from: dict[int, Tensor] = {}
        drawn = stream(
            self.player.model,
            [choice.ids for choice in self.choices],
            self.most,
            self.sampling,
            seed=self.seed,
            end=self.player.end,
            slide=True,
            vocab_size=self.player.tokenizer.vocab_size,
            watch=lambda rows, logits: drawn_from.update(zip(rows, logits.float().cpu(), strict=True)),
        )
        for index, token in drawn:
            choice = self.choices[index]
            yield index, None if choice.stop.stopped else choice.push(token, drawn_from[index])
            if all(choice.stop.stopped for choice in self.choices):
                break
        for index, choice in enumerate(self.choices):
            yield index, choice.end(self.most)

    def streamed(self) -> Generator[Chunk | None, None, None]:
        """Each part as OpenAI's stream has it."""
        for index, part in self.parts():
            yield None if part is None else {**self.head, "choices": [{"index": index, **part}]}
        if self.asked.stream_options is not None and self.asked.stream_options.include_usage:
            yield {**self.head, "choices": [], "usage": self.usage}

    def whole(self) -> Generator[Chunk | None, None, None]:
        """All parts in one, at the end; nothing before it, so that others have their turns between tokens."""
        parts: list[list[Chunk]] = [[] for _ in self.choices]
        for index, part in self.parts():
            if part is not None:
                parts[index].append(part)
            yield None
        choices = []
        for index, of_one in enumerate(parts):
            logprobs = None
            if self.asked.logprobs is not None:
                listed = [part["logprobs"] for part in of_one]
                logprobs = {name: [value for one in listed for value in one[name]] for name in listed[0]}
            text = "".join(part["text"] for part in of_one)
            choices.append({"index": index, **of_one[-1], "text": text, "logprobs": logprobs})
        yield {**self.head, "choices": choices, "usage": self.usage}
