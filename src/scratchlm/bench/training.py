"""Training steps of every architecture: forward, backward, clipping, optimizer; against others on the same batch."""

import math
from collections.abc import Callable, Iterator
from typing import Any

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
from scratchlm.config import OptimConfig
from scratchlm.data.batches import Batch
from scratchlm.flops import mfu, training_flops
from scratchlm.model import LanguageModel
from scratchlm.training.optim import make_optimizer
from scratchlm.training.step import TrainingStep, update

CLIP = 1.0
SAME_TRAINING = 1e-2  # and after a few steps, since AdamW's first ones follow a gradient's sign however small it is
FEW = 3


def training_step(model: LanguageModel, optim: OptimConfig, batch: Batch) -> Callable[[], Tensor]:
    """One update of the model on the batch, as `scratchlm train` makes it; gives the mean loss before it, in nats."""
    step, optimizer = TrainingStep(model), make_optimizer(model, optim)
    return lambda: update(step, optimizer, batch, [None], grad_clip=CLIP).loss


def rivals_step(rival: Any, optim: OptimConfig, batch: Batch) -> Callable[[], Tensor]:
    """The same of a rival, as its user would write it."""
    optimizer = rival.optimizer(rival.module, optim)

    def run() -> Tensor:
        loss = rival.loss(batch)
        loss.backward()
        nn.utils.clip_grad_norm_(rival.module.parameters(), CLIP)
        optimizer.step()
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
    model, batch = case.make(setting.device), case.batch(setting.device)
    operations, peers = training_flops(model, batch), list(peers_of(setting, case.arch, model.config))
    trials = {peer.name: attempt(peer, lambda peer=peer: _rivals(peer, case, batch)) for peer in peers}
    steps = {name: trial.run for name, trial in trials.items() if trial.run is not None}
    seconds = in_turns({OURS: training_step(model, case.optim, batch), **steps}, setting)
    median, _ = spread(seconds[OURS])
    figures = {"tokens_per_second": batch.target_count / median}
    share = mfu(operations, median, setting.peak)
    if operations and share is not None:
        figures |= {"flops": float(operations), "peak": setting.peak, "mfu": share}
    what = f"training step: {case.title}"
    for peer in peers or [None]:
        asked = case.asked.get(peer.name) if peer is not None else None
        yield row_of(setting, "training", what, seconds, peer, trials, figures=figures, asked=asked)


def _rivals(peer: Any, case: Case, batch: Batch) -> Callable[[], object]:
    """A peer's training step, once it is known to be the same training as ours."""
    device = batch.tokens.device
    rivals = rivals_step(peer.rival(case.make(device)), case.optim, batch)
    if peer.equal:
        check_same_training(training_step(case.make(device), case.optim, batch), rivals)
    return rivals
