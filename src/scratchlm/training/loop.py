"""The training loop: a generator of records, which prints nothing and calls nobody back.

Whatever it does is a function of the run's folder: it starts where the newest checkpoint was taken, or anew.
"""

import hashlib
import math
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from scratchlm import runtime
from scratchlm.checkpoint import (
    MODEL,
    OPTIMIZER,
    Checkpoint,
    RunFolder,
    build_model,
    is_finite,
    restore_weights,
)
from scratchlm.config import RunConfig
from scratchlm.data.batches import TrainingWindows
from scratchlm.errors import InputError
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


@dataclass(frozen=True, kw_only=True)
class PassedOver:
    """A newer checkpoint than the one of `step` is damaged, as the message says, and was set aside."""

    step: int
    message: str


Record = Started | Progress | Evaluated | Sampled | Saved | PassedOver | Ended


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
        self._newest = (math.nan, 0.0, math.nan)  # loss, rate and gradient norm of the newest step
        self._score: Score | None = None
        self._saved: Checkpoint | None = None
        self._clock = self._saved_at = time.perf_counter()
        self.check_disk()

    def check_disk(self) -> None:
        """Refuse to begin what the disk cannot hold: weights and two moments, for all that is kept and one more."""
        size = sum(parameter.nbytes for parameter in self.parameters)
        there = sum(file.stat().st_size for saved in self.run.checkpoints() for file in saved.path.iterdir())
        need, free = 3 * size * (self.config.keep + 2) - there, shutil.disk_usage(self.run.path).free
        if free < need:
            raise InputError(
                f"the checkpoints need {need / 1e6:,.0f} MB in {self.run.path}, and {free / 1e6:,.0f} MB are free; "
                f"make room, or keep fewer than {self.config.keep} with --keep"
            )

    def restore(self) -> Iterator[PassedOver]:
        """Go back to the newest checkpoint that is whole."""
        checkpoint, damaged = self.run.find("last", MODEL, OPTIMIZER)
        state, tensors = checkpoint.state(), checkpoint.optimizer()
        restore_weights(self.model, checkpoint)
        restore_optimizer(
            self.model, self.optimizer, ((k, v) for k, v in tensors.items() if not k.startswith("random|"))
        )
        runtime.set_random_state({k.removeprefix("random|"): v for k, v in tensors.items() if k.startswith("random|")})
        self.run.cut_metrics(state["metrics"])
        self.at, self._saved = _Position(**state["position"]), checkpoint
        for newer in self.run.checkpoints():
            if newer.step > checkpoint.step:
                self.run.set_aside(newer)
        for message in damaged:
            yield PassedOver(step=checkpoint.step, message=message)
        self._clock = self._saved_at = time.perf_counter()

    def state(self) -> dict[str, Any]:
        """What state.json holds of the trainer."""
        at = self.at
        val_loss = None if self._score is None else self._score.nats_per_token
        return {"best_step": at.best_step, "best_loss": at.best_loss, "val_loss": val_loss, "position": vars(at)}

    def save(self) -> Saved:
        """Write a checkpoint. Raises DivergenceError where the run has diverged: that is not saved."""
        self.read_losses()
        if not all(map(is_finite, self.parameters)):
            raise self.diverged(self.at.step, *self._newest)
        self._score = None
        tensors = optimizer_tensors(self.model, self.optimizer)
        tensors |= {f"random|{name}": state for name, state in runtime.random_state().items()}
        self._saved = self.run.save(self.at.step, self.model.state_dict(), tensors, self.state())
        self.run.prune(self.config.keep, self.at.best_step)
        self._saved_at = time.perf_counter()
        return Saved(step=self.at.step)

    def is_saved(self) -> bool:
        """Whether there is a checkpoint of this very step, which then has its evaluation too."""
        return self._saved is not None and self._saved.step == self.at.step

    def diverged(self, step: int, loss: float, lr: float, grad_norm: float) -> DivergenceError:
        """The error that ends the run, with what can still be used."""
        return DivergenceError(step, loss, lr, grad_norm, None if self._saved is None else self._saved.step)

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
            self._newest = (loss.item(), lr, norm.item())
            if not all(map(math.isfinite, self._newest)):
                raise self.diverged(step, *self._newest)
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

    def over(self) -> str | None:
        """Why there is nothing left to do: finished, early, or None where there is."""
        at, config = self.at, self.config
        if config.patience is not None and at.worse >= config.patience:
            return "early"
        return "finished" if at.step >= config.steps and not self.evaluation_is_due() else None

    def started(self) -> Started:
        """How the run begins."""
        return Started(
            step=self.at.step,
            config=self.config,
            device=str(self.device),
            parameters=sum(parameter.numel() for parameter in self.parameters),
            train_tokens=self.train_tokens,
            epochs=self.windows.epochs(self.config.steps),
        )

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
            self.run.append_metrics(progress.line())
            at.pending = []
            if evaluated is not None and self._saved is not None:
                self.run.update_state(self._saved, self.state())  # from here on the evaluation is done with
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
        if not math.isfinite(score.nats_per_token):
            raise self.diverged(at.step, score.nats_per_token, *self._newest[1:])
        self._score = score
        if at.best_loss is None or score.nats_per_token < at.best_loss:
            at.best_step, at.best_loss, at.worse = at.step, score.nats_per_token, 0
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
    with run.lock():
        run.clean()
        config = run.config()
        extended = steps is not None and steps > config.steps
        if steps is not None and extended:
            config = replace(config, steps=steps, horizon=config.horizon or config.steps)
        trainer = _Trainer(run, config)
        resumed = bool(run.checkpoints())
        if resumed:
            yield from trainer.restore()
            if extended:
                run.write_config(config)
            reason = trainer.over()
            if reason is not None:
                yield Ended(step=trainer.at.step, reason=reason, already=True)
                return
        yield trainer.started()
        if resumed:
            yield from trainer.report()
        else:
            run.cut_metrics({"lines": 0, "sha256": hashlib.sha256().hexdigest()})
            yield trainer.save()
        while (reason := trainer.over()) is None:
            if stop is not None and stop.is_set():
                trainer.tick()
                if not trainer.is_saved():
                    yield trainer.save()
                reason = "stopped"
                break
            trainer.update()
            if trainer.evaluation_is_due() or trainer.save_is_due():
                trainer.tick()
                yield trainer.save()  # first, so that an evaluation that dies takes nothing with it
            yield from trainer.report()
        yield Ended(step=trainer.at.step, reason=reason)
