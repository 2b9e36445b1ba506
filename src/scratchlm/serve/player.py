"""What a loaded run does when it is asked: read, write, translate, show its inside. Called by one thread alone."""

import json
import math
import time
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scratchlm import runtime
from scratchlm.checkpoint import RunFolder, load_checkpoint
from scratchlm.errors import InputError
from scratchlm.files import read_json
from scratchlm.generation import Sampling, gradient_mode, readable_end, stream
from scratchlm.inspect.attention import has_attention
from scratchlm.inspect.influence import embeds
from scratchlm.inspect.states import carried_states
from scratchlm.model import LanguageModel
from scratchlm.serve.wire import AskedGenerate, Change
from scratchlm.steering import steer
from scratchlm.tokenizers import IncrementalDecoder, Tokenizer
from scratchlm.tokenizers.shown import labels
from scratchlm.training.expected import expected_of

SCORED = 64  # tokens whose logits are held at once
MOST_DATA = 1 << 26  # bytes of a run's tokens that are read, and hashed, for an example


class Player:
    """A run's model with its tokenizer."""

    def __init__(self, run: RunFolder, model: LanguageModel, tokenizer: Tokenizer, step: int) -> None:
        self.model, self.tokenizer, self.step = model, tokenizer, step
        self.pairs = run.config().pairs
        self.val_loss: float | None = None
        self.parameters = sum(parameter.numel() for parameter in model.parameters())
        self.device = str(next(model.parameters()).device)
        self.end = tokenizer.end_of_text
        lengths = tokenizer.token_lengths()
        self.ordinary = [token for token in tokenizer.target.own_ids if lengths[token]]  # no special tokens
        self.views = self._views()
        self.example, self.band = _example(run), _band(run)

    @classmethod
    def load(cls, path: Path, checkpoint: str, device: str) -> "Player":
        """The player of a run's checkpoint. Raises InputError where it cannot be loaded."""
        run = RunFolder.open(path)
        chosen, _ = runtime.choose_device(device)
        found, _ = run.find(checkpoint)
        model, tokenizer = load_checkpoint(run, found, chosen)
        player = cls(run, model, tokenizer, found.step)
        runtime.few_threads(player.parameters)
        loss = found.state().get("val_loss")
        player.val_loss = loss if loss is not None and math.isfinite(loss) else None
        return player

    def _views(self) -> list[str]:
        there = {
            "generate": not self.pairs,
            "pieces": True,
            "influence": embeds(self.model),
            "attention": has_attention(self.model),
            "senses": self.model.has_senses,
            "states": bool(carried_states(self.model, [self.tokenizer.start])),
            "field": hasattr(self.model.config, "dilation"),  # as a CNN's has
            "translate": self.pairs,
        }
        return [view for view, has in there.items() if has]

    def described(self) -> dict[str, Any]:
        """What is known of a run once it is loaded."""
        return {
            "title": type(self.model).__name__,
            "parameters": self.parameters,
            "step": self.step,
            "device": self.device,
            "context": self.model.context,
            "views": self.views,
            "example": self.example,
        }

    def expect(self, view: str) -> None:
        """Raises InputError where the run has no such view."""
        if view not in self.views:
            raise InputError(f"this {type(self.model).__name__} has no {view}; it has: {', '.join(self.views)}")

    # --- tokens --------------------------------------------------------------------------------------------------

    def read(self, text: str) -> list[int]:
        """Ids of a text: of pairs of a source, with the end behind it. One token at least."""
        if self.pairs:
            assert self.end is not None
            return [*self.tokenizer.source.encode(text), self.end]
        return self.tokenizer.encode(text) or [self.tokenizer.start]

    def prompt(self, text: str) -> list[int]:
        """Ids of a text that is to be gone on from."""
        return self.tokenizer.encode(self.tokenizer.unfinished(text)) or [self.tokenizer.start]

    def labels(self, ids: Sequence[int]) -> list[str]:
        """The tokens as a person can see them."""
        return labels(self.tokenizer, ids)

    def piece(self, token: int) -> dict[str, Any]:
        """A token with its text and its bytes."""
        return {
            "id": token,
            "text": self.tokenizer.decode([token]),
            "bytes": list(self.tokenizer.token_bytes(token)),
            "label": self.labels([token])[0],
        }

    # --- writing -------------------------------------------------------------------------------------------------

    def changed(self, changes: Sequence[Change]) -> LanguageModel:
        """The model, with some senses multiplied. Raises InputError where it has none, or not those."""
        if not changes:
            return self.model
        try:
            return steer(self.model, scales={(change.token, change.sense): change.scale for change in changes})
        except ValueError as error:
            raise InputError(str(error)) from error

    def scores(self, model: LanguageModel, ids: Sequence[int], first: int) -> Iterator[Tensor]:
        """The logits (V,) of each of ids[first:], as `stream` with `slide` draws from them, all of a window at once."""
        context, without_gradients = model.context, gradient_mode(model)
        start, at = first - len(readable_end(ids[:first], context)), first
        while at < len(ids):
            end = len(ids) - 1 if context is None else min(len(ids) - 1, start + context)
            with without_gradients():
                tokens = torch.tensor([ids[start:end]], device=self.device)
                features = model(tokens)[0][0, at - 1 - start :]
            for part in features.split(SCORED):
                with without_gradients():
                    logits = model.readout(part)[:, : self.tokenizer.vocab_size].float().cpu()
                yield from logits
            at = end + 1
            start = at - max(1, (context or 0) // 2)

    def scored(self, token: int, logits: Tensor, alternatives: int) -> dict[str, Any]:
        """A token with its probability, and the most probable ones in its place. Shapes: logits (V,)."""
        probabilities = logits.double().softmax(-1)
        return {
            "id": token,
            "label": self.labels([token])[0],
            "probability": probabilities[token].item(),
            "entropy": torch.special.entr(probabilities).sum().item(),
            "alternatives": self.top(probabilities, alternatives),
        }

    def top(self, probabilities: Tensor, count: int) -> list[dict[str, Any]]:
        """The most probable tokens. Shapes: probabilities (V,)."""
        values, ids = probabilities.topk(min(count, len(probabilities)))
        return [
            {"id": token, "label": label, "text": self.tokenizer.decode([token]), "probability": value}
            for token, label, value in zip(ids.tolist(), self.labels(ids.tolist()), values.tolist(), strict=True)
        ]

    def write(self, asked: AskedGenerate) -> Generator[dict[str, Any], None, None]:
        """The events of a text that is gone on from. Raises InputError at once for what cannot be read."""
        self.expect("generate")
        for token in asked.continuation:
            self.tokenizer.check_id(token)
        sampling = Sampling(temperature=asked.temperature, top_k=asked.top_k, top_p=asked.top_p, min_p=asked.min_p)
        return self._events(asked, sampling, self.prompt(asked.prompt), self.changed(asked.changes))

    def _events(
        self, asked: AskedGenerate, sampling: Sampling, prompt: list[int], model: LanguageModel
    ) -> Generator[dict[str, Any], None, None]:
        began, count = time.perf_counter(), 0
        ids, context = [*prompt, *asked.continuation], model.context
        decoder = IncrementalDecoder(self.tokenizer)
        written = [
            {**self.scored(token, logits, asked.alternatives), "text": decoder.push(token)}
            for token, logits in zip(asked.continuation, self.scores(model, ids, len(prompt)), strict=True)
        ]
        yield {
            "type": "start",
            "prompt": [*map(self.piece, prompt)],
            "continuation": written,
            "read": len(readable_end(ids, context)),
            "slides": context is not None and len(ids) + asked.tokens - 1 > context,
        }
        drawn_from: list[Tensor] = []
        drawn = stream(
            model,
            [ids],
            asked.tokens,
            sampling,
            seed=asked.seed,
            end=self.end,
            slide=True,
            vocab_size=self.tokenizer.vocab_size,
            watch=lambda rows, logits: drawn_from.append(logits[0].float().cpu()),
        )
        for _, token in drawn:
            count += 1
            scored = self.scored(token, drawn_from.pop(), asked.alternatives)
            yield {"type": "token", **scored, "text": decoder.push(token)}
        reason = "length" if count == asked.tokens else "end_of_text"
        yield {"type": "end", "reason": reason, "tokens": count, "seconds": time.perf_counter() - began}


def _example(run: RunFolder) -> str | None:
    """A text of the kind that a run has learned from, out of its validation split; none where that is not at hand."""
    config, files = run.config(), (run.path / "data").glob("*")
    if not run.has_text or config.prepared is not None or sum(file.stat().st_size for file in files) > MOST_DATA:
        return None
    try:
        if config.pairs:
            return run.tokenizer().source.decode(run.pairs()["validation"].source(0).tolist()).strip()
        split = run.splits()["validation"]
        text = run.tokenizer().decode(split.windows(np.array([0]), min(200, len(split)))[0].tolist())
    except (InputError, OSError, LookupError):
        return None
    first, *lines = text.splitlines() or [""]  # the first one has begun before
    return next((line.strip()[:80] for line in (*lines, first) if len(line.split()) > 1), None)


def _band(run: RunFolder) -> dict[str, list[float]] | None:
    """The validation losses that are expected of a run, by step; none where nobody measured such a run."""
    expected = expected_of(run.config(), read_json(run.path / "config.json")["data_checksum"])
    if expected is None:
        return None
    bands = expected.bands()
    return {name: [getattr(band, name) for band in bands] for name in ("step", "low", "high")}


def as_json(value: Any) -> bytes:
    """JSON as bytes, made where the numbers are. Raises InputError where some are no numbers."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    except ValueError as error:
        raise InputError("the model's numbers are beyond what its type holds; its weights may be damaged") from error
