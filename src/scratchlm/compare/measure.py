"""What is measured of each model at the end: exact losses, speed, memory, operations, a sample."""

import math
import statistics
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from scratchlm import runtime
from scratchlm.checkpoint import RunFolder, load, meta_model
from scratchlm.compare.plan import Comparison, Entry, trunk_parameters
from scratchlm.config import RunConfig
from scratchlm.evaluation import Score, carried_loss, evaluate
from scratchlm.generation import Sampling, stream
from scratchlm.inspect.modules import flops_per_token
from scratchlm.model import LanguageModel
from scratchlm.tokenizers import IncrementalDecoder, Tokenizer

SAMPLE_TOKENS, TEMPERATURE = 256, 0.8
SPEED_ROUNDS = 3
STATE_TOKENS = (256, 4096)  # positions at which a state is weighed, where the context reaches so far
GUESSING = 1.5  # a loss so many times that of guessing, ln V, is no loss that a model has learned


def measure(comparison: Comparison, diverged: Mapping[str, str], stop: threading.Event) -> list[dict[str, Any]] | None:
    """A row of results for each model, the lowest validation loss first; None where `stop` was set meanwhile.

    `diverged`: what is said of the models whose training broke off.
    """
    rows: list[dict[str, Any]] = []
    drawn: dict[str, list[tuple[float, str]]] = {}  # rates and texts
    models: dict[str, tuple[LanguageModel, Tokenizer]] = {}
    device, _ = runtime.choose_device(comparison.request.device)
    for entry in comparison.entries:
        if stop.is_set():
            return None
        run = comparison.run(entry)
        config, metrics = run.config(), run.metrics()
        row = _begun(entry, config, metrics, diverged.get(entry.arch))
        if entry.arch not in diverged:
            model, tokenizer = load(run.path, device=device)
            models[entry.arch] = (model, tokenizer)
            row |= _scores(model, tokenizer, run, config)
        rows.append(row)
    for _ in range(SPEED_ROUNDS):  # in turns, so that what else this machine does falls on all of them
        for name, (model, tokenizer) in models.items():
            if stop.is_set():
                return None
            drawn.setdefault(name, []).append(_write(model, tokenizer, comparison.request.seed))
    for row in rows:
        written = drawn.get(row["architecture"])
        if written is not None:
            row["generation_tokens_per_second"] = statistics.median(rate for rate, _ in written)
            row["sample"] = written[0][1]
    return sorted(rows, key=lambda row: (row["status"] == "diverged", _loss(row)))


def _loss(row: Mapping[str, Any]) -> float:
    return math.inf if row["validation"] is None else row["validation"]["nats_per_token"]


def _begun(
    entry: Entry, config: RunConfig, metrics: Sequence[Mapping[str, Any]], message: str | None
) -> dict[str, Any]:
    """What is known of a model without running it, and what its training wrote down."""
    last = metrics[-1] if metrics else {"step": 0, "tokens": 0, "seconds": 0.0}
    model = meta_model(config)
    return {
        "architecture": entry.arch,
        "status": "finished" if message is None else "diverged",
        "message": message,
        "sized": entry.sized,
        "parameters": entry.parameters,
        "trunk_parameters": trunk_parameters(model),
        "learning_rate": config.optim.lr,
        "steps": last["step"],
        "tokens": last["tokens"],
        "seconds": last["seconds"],
        "training_tokens_per_second": last["tokens"] / last["seconds"] if last["seconds"] else None,
        "generation_tokens_per_second": None,
        "flops_per_token": flops_per_token(model, config.training_window),
        "validation": None,
        "test": None,
        "state_bytes": None,
        "sample": None,
        "curve": [
            {"tokens": line["tokens"], "seconds": line["seconds"], "nats_per_token": line["val_loss"]}
            for line in metrics
            if "val_loss" in line
        ],
    }


def _scores(model: LanguageModel, tokenizer: Tokenizer, run: RunFolder, config: RunConfig) -> dict[str, Any]:
    """Exact losses of the last weights; this is the one place that looks at the test split."""
    splits, lengths, window = run.splits(), tokenizer.token_lengths(), config.training_window
    validation, test = (_figures(evaluate(model, splits[name], lengths, window)) for name in ("validation", "test"))
    open_ended = model.context is None
    validation["carried_nats_per_token"] = carried_loss(model, splits["validation"]) if open_ended else None
    found: dict[str, Any] = {"validation": validation, "test": test, "state_bytes": _state_bytes(model)}
    guessing = math.log(tokenizer.vocab_size)
    if validation["nats_per_token"] > GUESSING * guessing:
        found |= {"status": "diverged", "message": f"it ended at {validation['nats_per_token']:.4g} nats per token, "
                                                   f"where guessing gives {guessing:.4g}"}  # fmt: skip
    return found


def _figures(score: Score) -> dict[str, Any]:
    return {
        "nats_per_token": score.nats_per_token,
        "bits_per_byte": score.bits_per_byte,
        "tokens": score.tokens,
        "bytes": score.bytes,
    }


@torch.inference_mode()
def _state_bytes(model: LanguageModel) -> list[dict[str, int]]:
    """What one row's memory weighs once it has read so many tokens."""
    device, found = next(model.parameters()).device, []
    for wanted in STATE_TOKENS:
        length = min(wanted, model.context or wanted)
        state = model.initial_state(1, capacity=length)
        for start in range(0, length, STATE_TOKENS[0]):
            chunk = torch.zeros(1, min(STATE_TOKENS[0], length - start), dtype=torch.int64, device=device)
            _, state = model(chunk, state)
        found.append({"tokens": length, "bytes": state.nbytes})
    return found


def _write(model: LanguageModel, tokenizer: Tokenizer, seed: int) -> tuple[float, str]:
    """Tokens per second of one row, the first left out, and what it wrote."""
    decoder, text, times = IncrementalDecoder(tokenizer), "", []
    for _, token in stream(
        model,
        [[tokenizer.start]],
        SAMPLE_TOKENS,
        Sampling(temperature=TEMPERATURE),
        seed=seed,
        slide=True,
        vocab_size=tokenizer.vocab_size,
    ):
        times.append(time.perf_counter())
        text += decoder.push(token)
    return (len(times) - 1) / max(times[-1] - times[0], 1e-9), text
