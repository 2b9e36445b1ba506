"""Greedy generation by every architecture against others; and what a memory saves, near the start and far from it."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from scratchlm.bench.cases import Case, cases, of_preset
from scratchlm.bench.measure import (
    OURS,
    SAME_LOSS,
    Row,
    Setting,
    Trial,
    UnequalError,
    attempt,
    in_turns,
    peers_of,
    row_of,
    spread,
)
from scratchlm.data.batches import Batch
from scratchlm.evaluation import loss_sum
from scratchlm.generation import generate, inference
from scratchlm.model import LanguageModel
from scratchlm.runtime import versions

PROMPT, NEW, FEW = 16, 64, 16  # tokens; few new ones where a large model is not on an accelerator
NEAR, FAR = 10, 4000  # tokens read before the one that is timed
REREAD = 512  # tokens that are read again where nothing is kept
SAME_LOGIT = 1e-3  # how far below the highest logit a peer's choice may be, in standard deviations of all
ROWS = {"cpu": (1, 8), "cuda": (1, 64), "mps": (1, 8)}  # texts at once, of GPT-2


@dataclass(frozen=True)
class Otherwise:
    """Another way of ours to do it, which is no contest."""

    name: str
    package: str = OURS
    equal: bool = False

    def version(self) -> str:
        """Ours."""
        return versions()[OURS]


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is to be continued: the first tokens of a batch, its prompts (B, T), with its sources where it has some."""

    batch: Batch
    prompts: Tensor
    new: int


def task_of(case: Case, model: LanguageModel, rows: int, new: int = NEW) -> Task:
    """Prompts out of a case's batch, and as many new tokens, up to `new`, as the model's context takes."""
    length = case.tokens if model.takes_source else PROMPT
    batch = replace(case, rows=rows, tokens=length).batch(next(model.parameters()).device)
    prompts = batch.tokens[:, :1] if model.takes_source else batch.tokens
    room = new if model.context is None else model.context - prompts.shape[1]
    return Task(batch=batch, prompts=prompts, new=min(new, room))


def check_same_loss(model: LanguageModel, rival: Any, batch: Batch) -> None:
    """Raises UnequalError where a rival, which should have the same weights, finds the batch more or less likely."""
    with inference(model):
        total, count = loss_sum(model, batch)
        one, other = total.item() / count, rival.loss(batch).item()
    if not math.isclose(one, other, rel_tol=SAME_LOSS):
        raise UnequalError(f"of the same text the losses are {one:.6f} and {other:.6f}, so the work differs")


def check_same_choices(model: LanguageModel, task: Task, written: Tensor) -> None:
    """Raises UnequalError where a peer's text is not as long as ours, or has tokens that our model would not choose.

    A token may be another one than ours where both are as probable but for rounding.
    """
    if written.shape != (len(task.prompts), task.prompts.shape[1] + task.new):
        raise UnequalError(f"the text has the shape {tuple(written.shape)}, so the work differs")
    with inference(model):
        state = model.initial_state(len(written), source=task.batch.source)
        features, _ = model(written[:, :-1], state)
        logits = model.readout(features[:, task.prompts.shape[1] - 1 :])  # (B, new, V)
        chosen = logits.gather(-1, written[:, task.prompts.shape[1] :, None])
        below = ((logits.amax(-1, keepdim=True) - chosen) / logits.std()).max().item()
    if below > SAME_LOGIT:
        raise UnequalError(f"it chose a token whose logit is {below:.4f} deviations below the highest")


def rows(setting: Setting) -> Iterator[Row]:
    """Each architecture's rows, then GPT-2's."""
    for case in {case.arch: case for case in cases(setting.device)}.values():
        yield from rows_of(case, setting)
        model = case.make(setting.device)
        if model.context is None and model.initial_state(1).nbytes:
            yield far_from_the_start(case, setting)
    gpt2, accelerated = of_preset("gpt", "gpt2", rows=1), setting.device.type != "cpu"
    for texts in ROWS[setting.device.type]:
        yield from rows_of(gpt2, setting, texts, NEW if accelerated else FEW, asked=0.5 if accelerated else None)
    yield without_memory(gpt2, setting)


def rows_of(case: Case, setting: Setting, texts: int = 1, new: int = NEW, asked: float | None = None) -> Iterator[Row]:
    """Texts of one case continued: a row for each peer, or one alone."""
    model = case.make(setting.device).eval()
    task = task_of(case, model, texts, new)
    peers = [peer for peer in peers_of(setting, case.arch, model.config) if peer.writes]
    trials = {peer.name: attempt(peer, lambda peer=peer: _rivals(peer, case, model, task, setting)) for peer in peers}
    prompts = task.prompts.tolist()

    def ours() -> object:
        with setting.autocast():
            return generate(model, prompts, task.new, temperature=0, source=task.batch.source)

    sides: dict[str, Callable[[], object]] = {OURS: ours}
    sides |= {name: trial.run for name, trial in trials.items() if trial.run is not None}
    seconds = in_turns(sides, setting)
    what = f"generation, a token: {case.arch}, {case.name}, {texts} {'text' if texts == 1 else 'texts'}"
    what += "" if setting.precision == "fp32" else f", in {setting.precision}"
    figures = {"tokens_per_second": texts * task.new / spread(seconds[OURS])[0]}
    for peer in peers or [None]:
        found = row_of(setting, "generation", what, seconds, peer, trials, task.new, figures=figures, asked=asked)
        if peer is not None and not peer.remembers:  # another way to do it, and no contest
            found = replace(found, peer=f"{peer.name}, which reads all again", contest=False)
        yield found


def _rivals(peer: Any, case: Case, model: LanguageModel, task: Task, setting: Setting) -> Callable[[], object]:
    rival = peer.rival(case.make(task.prompts.device))
    rival.module.eval()
    source = task.batch.source
    if peer.equal:
        check_same_loss(model, rival, task.batch)
        check_same_choices(model, task, rival.generate(task.prompts, task.new, source))

    def run() -> object:
        with setting.autocast():
            return rival.generate(task.prompts, task.new, source)

    return run


def one_token(model: LanguageModel, tokens: Tensor) -> Callable[[], Tensor]:
    """The logits that follow the last of the tokens (1, T), once all before it are read."""
    with inference(model):
        state = model.initial_state(1, capacity=tokens.shape[1])
        _, state = model(tokens[:, :-1], state)

    @torch.inference_mode()
    def run() -> Tensor:
        features, _ = model(tokens[:, -1:], state)  # from the same state each time, which ends the newer one
        return model.readout(features)

    return run


def far_from_the_start(case: Case, setting: Setting) -> Row:
    """What a token costs far from the start over what it costs near to it, of a model without a limit."""
    model = case.make(setting.device).eval()
    text = replace(case, rows=1, tokens=FAR + 1).batch(setting.device).tokens
    near = Otherwise(f"one after {NEAR}")
    trials = {near.name: Trial(one_token(model, text[:, : NEAR + 1]))}
    seconds = in_turns({OURS: one_token(model, text), near.name: trials[near.name].run}, setting)  # type: ignore[dict-item]
    what = f"one token after {FAR:,} others: {case.arch}, {case.name}"
    return row_of(setting, "generation", what, seconds, near, trials, precision="fp32")


def without_memory(case: Case, setting: Setting) -> Row:
    """A token from memory against reading all before it again."""
    model = case.make(setting.device).eval()
    text = replace(case, rows=1, tokens=REREAD + 1).batch(setting.device).tokens
    kept, again = one_token(model, text), Otherwise("reading all of them again")

    @torch.inference_mode()
    def reread() -> Tensor:
        features, _ = model(text)
        return model.readout(features[:, -1:])

    torch.testing.assert_close(kept(), reread(), rtol=1e-3, atol=1e-3)
    seconds = in_turns({OURS: kept, again.name: reread}, setting)
    what = f"one token after {REREAD} others: {case.arch}, {case.name}"
    return row_of(setting, "generation", what, seconds, again, {again.name: Trial(reread)}, precision="fp32")
