"""Training steps of every architecture: forward, backward, clipping, optimizer; against others on the same batch."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from scratchlm.bench.cases import Case, cases
from scratchlm.bench.measure import (
    OURS,
    SAME_LOSS,
    Row,
    Setting,
    UnequalError,
    attempt,
    in_turns,
    peers_of,
    row_of,
    spread,
)
from scratchlm.config import OptimConfig, RunConfig
from scratchlm.data.batches import Batch
from scratchlm.flops import mfu, square_product, training_flops
from scratchlm.model import LanguageModel
from scratchlm.training.step import Training

SAME_TRAINING = 1e-2  # after a few steps losses may differ so much: AdamW's first ones follow each gradient's sign
FEW = 3
PRODUCT = "a product of matrices"


def training_step(
    model: LanguageModel, case: Case, batch: Batch, setting: Setting
) -> tuple[Callable[[], Tensor], Training]:
    """One update of the model on the batch, as `scratchlm train` makes it, which gives the mean loss before it in nats.

    And what it goes through, which knows whether it is compiled.
    """
    compile_ = case.compile or setting.compile
    shared: dict[str, Any] = {
        "precision": case.precision or setting.precision,
        "compile": compile_,
        "optim": case.optim,
    }
    config = RunConfig(arch=case.arch, model=model.config, **shared)
    training = Training(model, config, setting.device, example=batch)
    targets = batch.target_count
    return lambda: training.update(batch, targets, [None]).loss, training


def rivals_step(rival: Any, optim: OptimConfig, batch: Batch, setting: Setting) -> Callable[[], Tensor]:
    """The same of a rival, as its user would write it."""
    optimizer = rival.optimizer(rival.module, optim)
    scaler = torch.amp.GradScaler(setting.device.type, enabled=setting.precision == "fp16")

    def run() -> Tensor:
        with setting.autocast():
            loss = rival.loss(batch)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(rival.module.parameters(), optim.grad_clip or math.inf)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return run


def check_same_training(ours: Callable[[], Tensor], theirs: Callable[[], Tensor]) -> None:
    """Take a few steps of both, which start from the same weights. Raises UnequalError where they are not the same."""
    for step in range(FEW):
        one, other = ours().item(), theirs().item()
        if not math.isclose(one, other, rel_tol=SAME_TRAINING if step else SAME_LOSS):
            raise UnequalError(f"after {step} steps the losses are {one:.6f} and {other:.6f}, so the work differs")


def rows(setting: Setting) -> Iterator[Row]:
    """The rows of each case."""
    for case in cases(setting.device):
        yield from rows_of(case, setting)


def rows_of(case: Case, setting: Setting) -> Iterator[Row]:
    """A training step of one case: a row for each peer, or one alone. All sides are timed in the same rounds."""
    torch.compiler.reset()  # it compiles a function for eight models at most, and takes the next ones as they are
    model, batch = case.make(setting.device), case.batch(setting.device)
    operations, peers = training_flops(model, batch), list(peers_of(setting, case.arch, model.config))
    trials = {peer.name: attempt(peer, lambda peer=peer: _rivals(peer, case, batch, setting)) for peer in peers}
    steps = {name: trial.run for name, trial in trials.items() if trial.run is not None}
    step, training = training_step(model, case, batch, setting)
    # a CPU's peak is what its products reach, and on a shared machine that changes from minute to minute
    product, of_product = square_product(setting.device, case.precision or setting.precision)
    ceiling = {PRODUCT: product} if setting.device.type == "cpu" else {}
    seconds = in_turns({OURS: step, **steps, **ceiling}, setting)
    figures = {"tokens_per_second": batch.target_count / spread(seconds[OURS])[0]}
    if operations and not model.has_senses:  # which are computed once for each different token, so shapes say too much
        peaks = [of_product / one for one in seconds[PRODUCT]] if ceiling else [setting.peak] * setting.repeats
        figures |= _utilisation(operations, seconds[OURS], peaks)
    ours = (training.precision, training.compilation.startswith("compiled"))
    others = (setting.precision, peers_are_compiled(case, setting))
    what = f"training step: {case.title}{_otherwise(*ours)}"
    for peer in peers or [None]:
        asked = case.asked.get(peer.name) if peer is not None else None
        known: dict[str, Any] = {
            "figures": figures,
            "asked": asked,
            "message": training.compilation or None,
            "precision": training.precision,
        }
        found = row_of(setting, "training", what, seconds, peer, trials, **known)
        if peer is not None and ours != others:
            found = replace(found, peer=f"{peer.name}, in {others[0]}, {'compiled' if others[1] else 'eager'}")
        yield found


def _otherwise(precision: str, compiled: bool) -> str:
    """What is not float32 and eager of a step, in words."""
    return ("" if precision == "fp32" else f", in {precision}") + (", compiled" if compiled else "")


def _utilisation(operations: int, seconds: Sequence[float], peaks: Sequence[float | None]) -> dict[str, float]:
    """MFU, the median of rounds, and what it is made of; nothing where there is no peak."""
    shares = [mfu(operations, one, peak) for one, peak in zip(seconds, peaks, strict=True)]
    known = [share for share in shares if share is not None]
    if not known:
        return {}
    return {"flops": float(operations), "peak": spread([peak for peak in peaks if peak])[0], "mfu": spread(known)[0]}


def peers_are_compiled(case: Case, setting: Setting) -> bool:
    """On an accelerator as our step is asked to be; on a CPU peers run as they come."""
    return setting.device.type == "cuda" and (case.compile or setting.compile) != "off"


def _rivals(peer: Any, case: Case, batch: Batch, setting: Setting) -> Callable[[], object]:
    """A peer's training step, once it is known in float32 and eager to be the same training as ours."""
    rival = peer.rival(case.make(setting.device))
    if peer.equal:
        exact, eager = replace(setting, precision="fp32", compile="off"), replace(case, compile=None, precision=None)
        ours, _ = training_step(case.make(setting.device), eager, batch, exact)
        check_same_training(ours, rivals_step(rival, case.optim, batch, exact))
    if peers_are_compiled(case, setting):
        rival = rival.compiled()
    step = rivals_step(rival, case.optim, batch, setting)
    step()  # which compiles it, so that a failure is this peer's and ends nothing else
    return step
