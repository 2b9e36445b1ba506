"""The training loop: a generator of records, which prints nothing and calls nobody back.

Whatever it does is a function of the run's folder: it starts where the newest checkpoint was taken, or anew.
"""

import hashlib
import math
import shutil
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any

import numpy as np
import torch

from scratchlm import runtime
from scratchlm.checkpoint import (
    MODEL,
    OPTIMIZER,
    Checkpoint,
    RunFolder,
    build_model,
    is_finite,
    restore_weights,
    starting_model,
)
from scratchlm.config import RunConfig
from scratchlm.data.pair_batches import Pairs
from scratchlm.data.shards import Tokens
from scratchlm.distribution import World, joined
from scratchlm.errors import InputError
from scratchlm.evaluation import Score, carried_loss, evaluate
from scratchlm.generation import Sampling, stream
from scratchlm.lora import size, trained_tensors
from scratchlm.model import State
from scratchlm.tokenizers import whole_characters
from scratchlm.training.material import training_batches
from scratchlm.training.optim import learning_rate
from scratchlm.training.records import (
    DivergenceError,
    Ended,
    Evaluated,
    PassedOver,
    Progress,
    Record,
    Sampled,
    Saved,
    Started,
)
from scratchlm.training.saved import give_back, tensors_of
from scratchlm.training.sharding import check_shares, collected, local, placed
from scratchlm.training.step import Training, Updated
from scratchlm.translation import Translated, a_few, as_lines, measure, translate_pairs

SAMPLE_TOKENS = 200
SAMPLE_TEMPERATURE = 0.8
TRANSLATED = 3000  # pairs of the validation split at most, from all over it, that an evaluation translates


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

    def __init__(self, run: RunFolder, config: RunConfig, device: torch.device, world: World) -> None:
        self.run, self.config, self.device, self.world = run, config, device, world
        self.tokenizer = run.tokenizer()
        self.data: Mapping[str, Tokens | Pairs] = run.pairs() if config.pairs else run.splits()
        runtime.seed_everything(config.seed)
        fresh = config.lora is not None or not run.checkpoints()  # else its base is needed no more
        self.model = starting_model(run) if fresh else build_model(config)
        if not (config.shard and world.size > 1):  # else it never is on a device as a whole
            self.model.to(self.device)
        self.window = config.training_window
        self.batches = training_batches(config, self.data["train"])
        self.token_lengths = self.tokenizer.token_lengths()
        check_shares(config, world.size)
        self.size = size(self.model)  # counted before the model is shared out
        example, _ = self.batches.part(0, world.rank, world.size)
        self.training = Training(self.model, config, self.device, world, example)
        self.states: list[State | None] = [None] * config.accumulate  # what each part of a batch carries to the next
        if world.rank:  # each process drops other activations; the first one draws what it would alone
            runtime.seed_process(config.seed, 0, world.rank)
        self.at = _Position()
        self._unread: list[tuple[int, float, Updated]] = []  # losses that may still be on the device
        self._newest = (math.nan, 0.0, math.nan)  # loss, rate and gradient norm of the newest step
        self._score: Score | None = None
        self._translated: list[Translated] = []
        self._saved: Checkpoint | None = None  # of the process that writes
        self._saved_step: int | None = None
        self._clock = self._saved_at = time.perf_counter()
        world.lead(self.check_disk)

    def check_disk(self) -> None:
        """Refuse to begin what the disk cannot hold: weights and two moments, for all that is kept and one more."""
        needed = self.size
        there = sum(file.stat().st_size for saved in self.run.checkpoints() for file in saved.path.iterdir())
        each = needed.saved_bytes + needed.optimizer_bytes
        need, free = each * (self.config.keep + 2) - there, shutil.disk_usage(self.run.path).free
        if free < need:
            raise InputError(
                f"the checkpoints need {need / 1e6:,.0f} MB in {self.run.path}, and {free / 1e6:,.0f} MB are free; "
                f"make room, or keep fewer than {self.config.keep} with --keep"
            )

    def restore(self) -> Iterator[PassedOver]:
        """Go back to the newest checkpoint that is whole, in whatever number of processes it was taken."""
        step, damaged = self.world.lead(self._find_newest)
        checkpoint = next(one for one in self.run.checkpoints() if one.step == step)
        state = checkpoint.state()
        restore_weights(self.model, checkpoint, placed)
        self.states = give_back(self.training, checkpoint.optimizer(), self.config.seed, step)
        self.at, self._saved, self._saved_step = _Position(**state["position"]), checkpoint, step
        for message in damaged:
            yield PassedOver(step=checkpoint.step, message=message)
        self._saved_at = time.perf_counter()

    def _find_newest(self) -> tuple[int, list[str]]:
        """The step of the newest whole checkpoint, and what is wrong with newer ones, which are set aside."""
        checkpoint, damaged = self.run.find("last", MODEL, OPTIMIZER)
        self.run.cut_metrics(checkpoint.state()["metrics"])
        for newer in self.run.checkpoints():
            if newer.step > checkpoint.step:
                self.run.set_aside(newer)
        return checkpoint.step, damaged

    def state(self) -> dict[str, Any]:
        """What state.json holds of the trainer."""
        at = self.at
        val_loss = None if self._score is None else self._score.nats_per_token
        return {"best_step": at.best_step, "best_loss": at.best_loss, "val_loss": val_loss, "position": vars(at)}

    def save(self) -> Saved:
        """Write a checkpoint. Raises DivergenceError where the run has diverged: that is not saved."""
        self.read_losses()
        finite = all(is_finite(local(parameter)) for parameter in self.training.parameters())
        if any(self.world.any(not finite)):
            raise self.diverged(self.at.step, *self._newest)
        self._score = None
        weights = collected(trained_tensors(self.model), self.world)
        tensors = tensors_of(self.training, self.states)
        if self.world.leads:
            self._saved = self.run.save(self.at.step, weights, tensors, self.state())
            self.run.prune(self.config.keep, self.at.best_step)
        self._saved_step, self._saved_at = self.at.step, time.perf_counter()
        return Saved(step=self.at.step)

    def is_saved(self) -> bool:
        """Whether there is a checkpoint of this very step, which then has its evaluation too."""
        return self._saved_step == self.at.step

    def diverged(self, step: int, loss: float, lr: float, grad_norm: float) -> DivergenceError:
        """The error that ends the run, with what can still be used."""
        return DivergenceError(step, loss, lr, grad_norm, self._saved_step, self.training.precision)

    def update(self) -> None:
        """One optimizer step on the global batch."""
        config, at = self.config, self.at
        lr = learning_rate(at.step, config.horizon or config.steps, config.optim)
        for group in self.training.optimizer.param_groups:
            group["lr"] = lr * group["ratio"]
        batch, targets = self.batches.part(at.step, self.world.rank, self.world.size)
        updated = self.training.update(batch, targets, self.states)
        at.step += 1
        self._unread.append((at.step, lr, updated))

    def read_losses(self) -> None:
        """Fetch losses from the device. Raises DivergenceError at the first that is no number, or where fp16 fails."""
        unread, self._unread = self._unread, []
        for step, lr, updated in unread:
            told = {name: value.item() for name, value in updated._asdict().items()}
            self._newest = (told["loss"], lr, told["grad_norm"])
            if not all(map(math.isfinite, self._newest)):
                raise self.diverged(step, *self._newest)
            self.at.pending.append({"lr": lr, **told})
        if unread and self.training.is_lost():
            raise self.diverged(self.at.step, *self._newest[:2], math.inf)

    def start_clock(self) -> None:
        """From here on time counts as training: what was done before, or by whoever reads the records, does not."""
        self._clock = time.perf_counter()

    def tick(self) -> None:
        """Count the time since the clock was started as training, with that in which a device is not yet done."""
        self.read_losses()
        self.at.seconds += time.perf_counter() - self._clock
        self.start_clock()

    def agreed(self, stop: threading.Event) -> list[bool]:
        """Whether to stop, and whether it is time to save by the clock of the process that writes.

        Several processes ask each other at lines of metrics alone: of 1,024 a round takes longer than a step.
        """
        if self.world.size > 1 and self.at.step % self.config.log_every:
            return [False, False]
        due = time.perf_counter() - self._saved_at >= 60 * self.config.save_minutes
        return self.world.any(stop.is_set(), self.world.leads and due)

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
        train = self.data["train"]
        return Started(
            step=self.at.step,
            config=self.config,
            device=str(self.device),
            processes=self.world.size,
            precision=self.training.precision,
            compilation=self.training.compilation,
            utilisation=self.training.utilisation,
            parameters=self.size.parameters,
            train_tokens=train.total_tokens if isinstance(train, Pairs) else len(train),
            epochs=self.batches.epochs(self.config.steps),
        )

    def report(self) -> Iterator[Record]:
        """What follows an update, and again a resume: evaluation and a line of metrics, where they are due."""
        at, evaluated = self.at, None
        if self.evaluation_is_due():
            self.tick()
            evaluated = self.evaluate()
            self.start_clock()
        if evaluated is None and at.step % self.config.log_every:
            return
        self.tick()
        if at.pending:
            taken = [one for one in at.pending if one["grad_norm"]] or at.pending  # and not left out, for fp16's sake
            mean = {key: fmean(one[key] for one in at.pending) for key in ("loss", "smoothed_loss")}
            mean["grad_norm"] = fmean(one["grad_norm"] for one in taken)
            if not self.config.label_smoothing:
                del mean["smoothed_loss"]
            progress = Progress(
                step=at.step,
                tokens=self.batches.tokens(at.step),
                lr=at.pending[-1]["lr"],
                seconds=at.seconds,
                score=None if evaluated is None else evaluated.score,
                quality=None if evaluated is None else evaluated.quality,
                **mean,
            )
            if self.world.leads:
                self.run.append_metrics(progress.line())
            at.pending = []
            if self.world.leads and evaluated is not None and self._saved is not None:
                self.run.update_state(self._saved, self.state())  # from here on the evaluation is done with
            yield progress
        if evaluated is not None:
            yield evaluated
            if evaluated.best_step == at.step or (self.config.pairs and at.step == self.config.steps):
                yield self.sample()
        self.start_clock()

    def evaluate(self) -> Evaluated:
        """Score the validation split and remember where it was best."""
        at, validation, quality = self.at, self.data["validation"], None
        with self.training.autocast():
            score = evaluate(self.model, validation, self.token_lengths, self.window, self.world)
        if not math.isfinite(score.nats_per_token):
            raise self.diverged(at.step, score.nats_per_token, *self._newest[1:])
        if isinstance(validation, Pairs):
            some = np.arange(0, len(validation), -(-len(validation) // TRANSLATED))
            self._translated = translate_pairs(self.model, self.tokenizer, validation.select(some))
            quality = measure(self._translated, self.tokenizer)
        elif self.config.carry:
            with self.training.autocast():
                score = replace(score, carried_nats_per_token=carried_loss(self.model, validation))
        self._score = score
        if at.best_loss is None or score.nats_per_token < at.best_loss:
            at.best_step, at.best_loss, at.worse = at.step, score.nats_per_token, 0
        else:
            at.worse += 1
        at.scored_step = at.step
        assert at.best_step is not None
        assert at.best_loss is not None
        return Evaluated(
            step=at.step,
            score=score,
            best_step=at.best_step,
            best_loss=at.best_loss,
            worse=at.worse,
            quality=quality,
        )

    def sample(self) -> Sampled:
        """What the model says now; no generator of the training is drawn from."""
        if self.config.pairs:
            return Sampled(step=self.at.step, text=as_lines(a_few(self._translated)))
        drawn = stream(
            self.model,
            [[self.tokenizer.start]],
            SAMPLE_TOKENS,
            Sampling(temperature=SAMPLE_TEMPERATURE),
            seed=self.at.step,
            end=self.tokenizer.end_of_text,
            slide=True,
            vocab_size=self.tokenizer.vocab_size,
        )
        return Sampled(step=self.at.step, text=whole_characters(self.tokenizer, (token for _, token in drawn)))


def train(
    run: RunFolder,
    *,
    steps: int | None = None,
    stop: threading.Event | None = None,
    computed: Mapping[str, Any] | None = None,
) -> Iterator[Record]:
    """Train a run to its last step, from its newest checkpoint or from the start, and report as it goes.

    `steps` extends the run; the schedule stays as it was laid out. `stop`: once set, the run is saved and ends.
    `computed`: settings of how a step is computed, in place of the run's, which are kept once the run can begin. Of
    several processes that torchrun started, all call this: they share the work, see the same records, and the first
    of them writes.
    Raises DivergenceError where the loss is no longer a number, InputError where the folder is damaged or the settings
    cannot be.
    """
    settings = computed or {}
    device, _ = runtime.choose_device(settings.get("device", run.config().device))
    with joined(device) as world, ExitStack() as held:
        world.lead(lambda: _take_over(run, held))
        try:
            config = replace(before := run.config(), **settings)
        except ValueError as error:
            raise InputError(str(error)) from error
        if steps is not None and steps > config.steps:
            config = replace(config, steps=steps, horizon=config.horizon or config.steps)
        trainer = _Trainer(run, config, device, world)
        resumed = bool(run.checkpoints())
        if resumed:
            yield from trainer.restore()
        if config != before:
            world.lead(lambda: run.write_config(config))
        yield from _train(trainer, resumed, stop or threading.Event())


def _take_over(run: RunFolder, held: ExitStack) -> None:
    """Hold the run's lock, and remove what a run that was killed left."""
    held.enter_context(run.lock())
    run.clean()


def _train(trainer: _Trainer, resumed: bool, stop: threading.Event) -> Iterator[Record]:
    world = trainer.world
    if (reason := trainer.over()) is not None:
        yield Ended(step=trainer.at.step, reason=reason, already=True)
        return
    yield trainer.started()
    trainer.start_clock()
    if resumed:
        yield from trainer.report()
    else:
        world.lead(lambda: trainer.run.cut_metrics({"lines": 0, "sha256": hashlib.sha256().hexdigest()}))
        yield trainer.save()
        trainer.start_clock()
    while (reason := trainer.over()) is None:
        stopped, save_is_due = trainer.agreed(stop)
        if (stopped or save_is_due) and not trainer.is_saved():
            trainer.tick()
            yield trainer.save()
            trainer.start_clock()
        if stopped:
            reason = "stopped"
            break
        trainer.update()
        if trainer.evaluation_is_due():
            trainer.tick()
            yield trainer.save()  # first, so that an evaluation that dies takes nothing with it
            trainer.start_clock()
        yield from trainer.report()
    yield Ended(step=trainer.at.step, reason=reason)
