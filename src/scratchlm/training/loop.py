"""The training loop: a generator of records, which prints nothing and calls nobody back.

Whatever it does is a function of the run's folder: it starts where the newest checkpoint was taken, or anew.
"""

import math
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from scratchlm import runtime
from scratchlm.checkpoint import Checkpoint, RunFolder, build_model, restore_weights
from scratchlm.config import RunConfig
from scratchlm.data.batches import TrainingWindows
from scratchlm.evaluation import Score, evaluate
from scratchlm.generation import Sampling, stream
from scratchlm.training.optim import learning_rate, make_optimizer, optimizer_tensors, restore_optimizer
from scratchlm.training.step import TrainingStep

SAMPLE_TOKENS = 200
SAMPLE_TEMPERATURE = 0.8


@dataclass(frozen=True, kw_only=True)
class Started:
    """A run begins, or goes on after `step`."""

    step: int
    config: RunConfig
    device: str
    parameters: int
    train_tokens: int
    epochs: float


@dataclass(frozen=True, kw_only=True)
class Progress:
    """A line of metrics.jsonl: means over the steps since the line before. Units: nats, tokens, seconds of training."""

    step: int
    loss: float
    tokens: int
    lr: float
    grad_norm: float
    seconds: float
    score: Score | None = None

    def line(self) -> dict[str, Any]:
        """The line's fields."""
        fields = {name: getattr(self, name) for name in ("step", "loss", "tokens", "lr", "grad_norm", "seconds")}
        if self.score is not None:
            fields |= {"val_loss": self.score.nats_per_token, "val_bits_per_byte": self.score.bits_per_byte}
        return fields


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """The validation split was scored: the best so far, or worse than it for `worse` evaluations."""

    step: int
    score: Score
    best_step: int
    best_loss: float
    worse: int


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """What the model says now, prompted with the tokenizer's start."""

    step: int
    tokens: list[int]


@dataclass(frozen=True, kw_only=True)
class Saved:
    """A checkpoint was written."""

    step: int


@dataclass(frozen=True, kw_only=True)
class Ended:
    """The run is over: all steps done, stopped early for want of progress, or stopped by request."""

    step: int
    reason: str  # finished, early or stopped
    already: bool = False  # it was finished before


Record = Started | Progress | Evaluated | Sampled | Saved | Ended


class DivergenceError(Exception):
    """The loss or its gradient is no longer a number."""

    def __init__(self, step: int, loss: float, lr: float, grad_norm: float, good: int | None) -> None:
        kept = "no checkpoint was taken before" if good is None else f"the checkpoint of step {good} is kept"
        super().__init__(
            f"the run diverged at step {step}: loss {loss}, learning rate {lr:.3g}, gradient norm {grad_norm:.3g}; "
            f"{kept}. Try a lower rate (--optim.lr {lr / 3:.1g}), a longer warm-up (--optim.warmup), or clipping "
            "(--optim.grad-clip 1)"
        )
        self.step, self.loss, self.lr, self.grad_norm = step, loss, lr, grad_norm


@dataclass
class _Position:
    """Where a run stands, apart from its tensors: what state.json holds."""

    step: int = 0
    seconds: float = 0.0
    best_step: int | None = None
    best_loss: float | None = None
    worse: int = 0
    scored_step: int = 0  # the newest that was evaluated
    lines: int = 0  # of metrics.jsonl
    pending: list[dict[str, float]] = field(default_factory=list)  # steps since the last line


class _Trainer:
    """A run in memory. `train` drives it."""

    def __init__(self, run: RunFolder, config: RunConfig) -> None:
        self.run, self.config = run, config
        self.tokenizer, splits = run.tokenizer(), run.splits()
        self.device, _ = runtime.choose_device(config.device)
        runtime.seed_everything(config.seed)
        self.model = build_model(config).to(self.device)
        self.window = config.training_window
        self.windows = TrainingWindows(splits["train"], self.window, config.batch_size, config.seed)
        self.train_tokens, self.validation = len(splits["train"]), splits["validation"]
        self.token_lengths = self.tokenizer.token_lengths()
        self.optimizer = make_optimizer(self.model, config.optim)
        self.parameters = list(self.model.parameters())
        self.step_module = TrainingStep(self.model)
        self.at = _Position()
        self._unread: list[tuple[int, float, Tensor, Tensor]] = []  # losses that may still be on the device
        self._clock = time.perf_counter()
        self._saved_at = self._clock

    def restore(self, checkpoint: Checkpoint) -> None:
        state = checkpoint.state()
        restore_weights(self.model, checkpoint)
        tensors = checkpoint.optimizer()
        restore_optimizer(
            self.model, self.optimizer, ((k, v) for k, v in tensors.items() if not k.startswith("random|"))
        )
        runtime.set_random_state({k.removeprefix("random|"): v for k, v in tensors.items() if k.startswith("random|")})
        self.at = _Position(**state["position"])
        self.run.cut_metrics(self.at.lines)

    def save(self) -> Saved:
        self.read_losses()  # a run that has diverged is not saved
        at = self.at
        tensors = optimizer_tensors(self.model, self.optimizer)
        tensors |= {f"random|{name}": state for name, state in runtime.random_state().items()}
        self.run.save(at.step, self.model.state_dict(), tensors, {"position": vars(at)})
        self.run.prune(self.config.keep)
        self._saved_at = time.perf_counter()
        return Saved(step=at.step)

    def update(self) -> None:
        """One optimizer step on the global batch."""
        config, at = self.config, self.at
        lr = learning_rate(at.step, config.horizon or config.steps, config.optim)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        batch = self.windows.batch(at.step)
        targets = batch.target_count
        total = torch.zeros((), device=self.device)
        for part in batch.slices(config.accumulate):
            part_sum, _ = self.step_module(part.to(self.device))
            (part_sum / targets).backward()  # one division by the whole batch's targets: parts do not matter
            total += part_sum.detach()
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, config.optim.grad_clip or math.inf)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        at.step += 1
        self._unread.append((at.step, lr, total / targets, norm))

    def read_losses(self) -> None:
        """Fetch losses from the device. Raises DivergenceError at the first that is no number."""
        unread, self._unread = self._unread, []
        for step, lr, loss, norm in unread:
            if not (math.isfinite(loss.item()) and math.isfinite(norm.item())):
                saved = self.run.checkpoints()
                raise DivergenceError(step, loss.item(), lr, norm.item(), saved[-1].step if saved else None)
            self.at.pending.append({"loss": loss.item(), "lr": lr, "grad_norm": norm.item()})

    def tick(self) -> None:
        """Count the time since the last tick as training."""
        now = time.perf_counter()
        self.at.seconds += now - self._clock
        self._clock = now

    def save_is_due(self) -> bool:
        return time.perf_counter() - self._saved_at >= 60 * self.config.save_minutes

    def evaluation_is_due(self) -> bool:
        at, config = self.at, self.config
        return at.step > at.scored_step and (at.step % config.eval_every == 0 or at.step == config.steps)

    def report(self) -> Iterator[Record]:
        """What follows an update, and again a resume: evaluation and a line of metrics, where they are due."""
        at, evaluated = self.at, None
        if self.evaluation_is_due():
            self.tick()
            evaluated = self.evaluate()
            self._clock = time.perf_counter()  # seconds count training alone
        if evaluated is None and at.step % self.config.log_every:
            return
        self.tick()
        self.read_losses()
        if at.pending:
            mean = {key: sum(one[key] for one in at.pending) / len(at.pending) for key in ("loss", "grad_norm")}
            progress = Progress(
                step=at.step,
                tokens=at.step * self.config.batch_size * self.window,
                lr=at.pending[-1]["lr"],
                seconds=at.seconds,
                score=None if evaluated is None else evaluated.score,
                **mean,
            )
            self.run.append_metrics(progress.line())  # last of all: an evaluation with a line is done with
            at.pending = []
            at.lines += 1
            yield progress
        if evaluated is not None:
            yield evaluated
            if evaluated.best_step == at.step:
                yield self.sample()
        self._clock = time.perf_counter()

    def evaluate(self) -> Evaluated:
        """Score the validation split and remember where it was best."""
        at = self.at
        score = evaluate(self.model, self.validation, self.token_lengths, self.window)
        if at.best_loss is None or score.nats_per_token < at.best_loss:
            at.best_step, at.best_loss, at.worse = at.step, score.nats_per_token, 0
            self.run.mark_best(self.run.checkpoint(str(at.step)))
        else:
            at.worse += 1
        at.scored_step = at.step
        assert at.best_step is not None
        return Evaluated(step=at.step, score=score, best_step=at.best_step, best_loss=at.best_loss, worse=at.worse)

    def sample(self) -> Sampled:
        """What the model says now; no generator of the training is drawn from."""
        drawn = stream(
            self.model,
            [[self.tokenizer.start]],
            SAMPLE_TOKENS,
            Sampling(temperature=SAMPLE_TEMPERATURE),
            seed=self.at.step,
            end=self.tokenizer.end_of_text,
            slide=True,
        )
        return Sampled(step=self.at.step, tokens=[token for _, token in drawn])


def train(run: RunFolder, *, steps: int | None = None, stop: threading.Event | None = None) -> Iterator[Record]:
    """Train a run to its last step, from its newest checkpoint or from the start, and report as it goes.

    `steps` extends the run; the schedule stays as it was laid out. `stop`: once set, the run is saved and ends.
    Raises DivergenceError where the loss is no longer a number, InputError where the folder is damaged.
    """
    config = run.config()
    if steps is not None and steps > config.steps:
        config = replace(config, steps=steps, horizon=config.horizon or config.steps)
        run.write_config(config)
    found = run.checkpoints()
    if (
        found
        and found[-1].step >= config.steps
        and any(line["step"] == found[-1].step and "val_loss" in line for line in run.metrics()[-1:])
    ):
        yield Ended(step=found[-1].step, reason="finished", already=True)
        return

    trainer = _Trainer(run, config)
    at = trainer.at
    if found:
        trainer.restore(found[-1])
        at = trainer.at
    yield Started(
        step=at.step,
        config=config,
        device=str(trainer.device),
        parameters=sum(parameter.numel() for parameter in trainer.parameters),
        train_tokens=trainer.train_tokens,
        epochs=trainer.windows.epochs(config.steps),
    )
    if found:
        yield from trainer.report()
    else:
        run.cut_metrics(0)
        yield trainer.save()
    while True:
        if config.patience is not None and at.worse >= config.patience:
            yield Ended(step=at.step, reason="early")
            return
        if at.step >= config.steps:
            yield Ended(step=at.step, reason="finished")
            return
        if stop is not None and stop.is_set():
            trainer.tick()
            yield trainer.save()
            yield Ended(step=at.step, reason="stopped")
            return
        trainer.update()
        if trainer.evaluation_is_due() or trainer.save_is_due():
            trainer.tick()
            yield trainer.save()  # first, so that an evaluation that dies takes nothing with it
        yield from trainer.report()
