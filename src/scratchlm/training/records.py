"""What training reports as it goes."""

from dataclasses import dataclass
from typing import Any

from scratchlm.config import RunConfig
from scratchlm.evaluation import Score
from scratchlm.translation import Quality


@dataclass(frozen=True, kw_only=True)
class Started:
    """A run begins, or goes on after `step`.

    `compilation`: what became of it, in words, where it was asked for. `utilisation`: MFU for each token per second,
    where the device's peak is known.
    """

    step: int
    config: RunConfig
    device: str
    processes: int
    precision: str
    compilation: str
    utilisation: float | None
    parameters: int
    train_tokens: int
    epochs: float


@dataclass(frozen=True, kw_only=True)
class Progress:
    """A line of metrics.jsonl: means over the steps since the line before. Units: nats, tokens, seconds of training.

    `smoothed_loss` is what label smoothing lowers, where it is used; `loss` never has it.
    """

    step: int
    loss: float
    tokens: int
    lr: float
    grad_norm: float
    seconds: float
    smoothed_loss: float | None = None
    score: Score | None = None
    quality: Quality | None = None

    def line(self) -> dict[str, Any]:
        """The line's fields."""
        fields = {name: getattr(self, name) for name in ("step", "loss", "tokens", "lr", "grad_norm", "seconds")}
        if self.smoothed_loss is not None:
            fields["smoothed_loss"] = self.smoothed_loss
        if self.quality is not None:
            fields |= self.quality.fields()
        if self.score is not None:
            fields |= {"val_loss": self.score.nats_per_token, "val_bits_per_byte": self.score.bits_per_byte}
            if self.score.carried_nats_per_token is not None:
                fields["carried_nats_per_token"] = self.score.carried_nats_per_token
        return fields


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """The validation split was scored: the best so far, or worse than it for `worse` evaluations.

    `quality`: how good its greedy translations are, where the data are pairs.
    """

    step: int
    score: Score
    best_step: int
    best_loss: float
    worse: int
    quality: Quality | None = None


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """What the model says now: a text, or translations of sources that it has not learned from."""

    step: int
    text: str


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

    def __init__(self, step: int, loss: float, lr: float, grad_norm: float, good: int | None, precision: str) -> None:
        kept = "no checkpoint was taken before" if good is None else f"the checkpoint of step {good} is kept"
        exact = "" if precision == "fp32" else ", or exact products (--precision fp32)"
        super().__init__(
            f"the run diverged at step {step} in {precision}: loss {loss}, learning rate {lr:.3g}, gradient norm "
            f"{grad_norm:.3g}; {kept}. Try a lower rate (--optim.lr {lr / 3:.1g}), a longer warm-up (--optim.warmup), "
            f"or clipping (--optim.grad-clip 1){exact}"
        )
        self.step, self.loss, self.lr, self.grad_norm = step, loss, lr, grad_norm
