"""The one module that training goes through, and what wraps it: precision, compilation, several processes.

Distribution and compilation wrap `TrainingStep` and nothing else: calling the parts around a wrapped model would give
wrong gradients in silence.
"""

import math
import time
import warnings
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from scratchlm import runtime
from scratchlm.config import RunConfig
from scratchlm.data.batches import IGNORED, Batch
from scratchlm.distribution import ALONE, World
from scratchlm.evaluation import features_and_state, nll, wide_logits
from scratchlm.flops import peak_flops, training_flops
from scratchlm.model import LanguageModel, State
from scratchlm.training.optim import make_optimizer
from scratchlm.training.sharding import recompute_activations, share_out, whole

LEAST_SCALE = 2.0**-14  # the least normal number of fp16; a run that can be saved needs 1 or more


def smoothed_loss(logits: Tensor, targets: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
    """The loss against smoothed targets, and the plain negative log-likelihood, both summed. Units: nats.

    The target distribution is 1 - e on the target and e / V on each of the V tokens, the target among them, which is
    torch's variant of three that are in use. Its least value is the entropy of that distribution and not zero.
    Shapes: logits (N, V), targets (N,), IGNORED where there is none. Paper: Szegedy et al. 2016, section 7.
    """
    log_probabilities = logits.log_softmax(-1)
    counts = targets != IGNORED
    nll = -log_probabilities.gather(-1, targets.clamp(min=0)[:, None])[:, 0]  # (N,)
    spread = -log_probabilities.mean(-1)  # (N,), cross-entropy with the uniform distribution
    plain = nll.where(counts, 0).sum()
    return (1 - smoothing) * plain + smoothing * spread.where(counts, 0).sum(), plain


class TrainingStep(nn.Module):
    """A model together with its loss.

    `carry`: it remembers what the rows' earlier windows left (truncated BPTT). `label_smoothing`: see `smoothed_loss`.
    `loss_rows`: tokens whose logits are held at once; those of the others are computed again for the backward pass.
    """

    def __init__(
        self,
        model: LanguageModel,
        carry: bool = False,
        label_smoothing: float = 0.0,
        loss_rows: int | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.carry = carry
        self.label_smoothing = label_smoothing
        self.loss_rows = loss_rows

    def forward(self, batch: Batch, state: State | None = None) -> tuple[Tensor, Tensor, State | None]:
        """The loss to be lowered, the targets' negative log-likelihood, and with `carry` the state for what follows.

        Both are sums in nats, and the same one without label smoothing. Without a state in, the rows start anew. The
        state that comes out is cut from the graph.
        """
        if self.carry and state is None:
            state = self.model.initial_state(len(batch.tokens))
        features, after = features_and_state(self.model, batch, state)
        targets, rows = batch.targets.flatten(), self.loss_rows
        if rows is None or len(features) <= rows:
            lowered, plain = self.losses(features, targets)
        else:
            parts = [
                checkpoint(self.losses, features[at : at + rows], targets[at : at + rows], use_reentrant=False)
                for at in range(0, len(features), rows)
            ]
            lowered, plain = (torch.stack(losses).sum() for losses in zip(*parts, strict=True))
        return lowered, plain, after.detach() if self.carry else None

    def losses(self, features: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The loss to be lowered and the plain one. Shapes: features (N, D), targets (N,)."""
        logits = wide_logits(self.model, features)
        if self.label_smoothing:
            return smoothed_loss(logits, targets, self.label_smoothing)
        plain = nll(logits, targets)
        return plain, plain


class Updated(NamedTuple):
    """What an update tells, which may still be on the device: means in nats per token, and a norm before clipping.

    The norm is 0 where the update was left out, since the gradients were too large for fp16.
    """

    loss: Tensor
    smoothed_loss: Tensor  # what was lowered; without label smoothing the loss
    grad_norm: Tensor


class Training:
    """A model ready to be trained: everything that an optimizer step goes through.

    `parts`: how many parts a process computes its share of a batch in. `world` shares out the batch, or with `shard`
    also the model, in which its parameters become DTensors before the optimizer sees them.
    """

    def __init__(
        self,
        model: LanguageModel,
        config: RunConfig,
        device: torch.device,
        world: World = ALONE,
        example: Batch | None = None,
    ) -> None:
        """`example`: a batch like those that come, on which compilation is tried if the settings ask for it.

        Raises InputError where the settings insist on it and it fails.
        """
        self.model, self.device, self.world, self.parts = model, device, world, config.accumulate
        if device.type == "cpu":
            runtime.keep_freed_memory()
        self.grad_clip = config.optim.grad_clip
        self.dtype, _ = runtime.choose_precision(config.precision, device)
        # MFU for each token per second, of all the devices; pairs are not all of one shape
        self.utilisation = None if example is None or config.pairs else self._utilisation(example)
        if config.checkpoint_activations:
            recompute_activations(model)
        self.sharded = config.shard and world.size > 1
        if self.sharded:
            share_out(model, device)
        self.optimizer = make_optimizer(model, config.optim)
        rows = config.loss_rows or runtime.loss_rows(model.config.vocab_size, device, world.size)
        self.step: nn.Module = TrainingStep(model, config.carry, config.label_smoothing, rows)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype == torch.float16)
        self.compilation = ""  # what became of it, in words
        if example is not None and config.compile != "off":
            self._compile(config.compile, example.part(0, self.parts), config.pairs)
        if world.size > 1 and not self.sharded:
            with warnings.catch_warnings():  # torch 2.13 has another name for the first of these, 2.7 has not
                warnings.simplefilter("ignore", FutureWarning)
                self.step = DistributedDataParallel(self.step, broadcast_buffers=False, gradient_as_bucket_view=True)

    def _utilisation(self, example: Batch) -> float | None:
        peak = peak_flops(runtime.device_name(self.device), self.precision)
        if peak is None:
            return None
        return training_flops(self.model, example) / example.tokens.numel() / (peak * self.world.size)

    def _compile(self, mode: str, example: Batch, shapes_vary: bool) -> None:
        def trial(step: nn.Module) -> None:
            with self.autocast():
                lowered, _, _ = step(example.to(self.device), None)
            self.scaler.scale(lowered).backward()

        drawn, start = runtime.random_state(), time.perf_counter()
        self.step, words = runtime.compiled(
            self.step, mode, trial, lambda failed: any(self.world.any(failed)), shapes_vary
        )
        self.model.zero_grad(set_to_none=True)
        runtime.set_random_state(drawn)
        self.compilation = f"{words} ({time.perf_counter() - start:.0f} s)"

    def autocast(self) -> AbstractContextManager[object]:
        """The run's precision, while it lasts."""
        return runtime.autocast(self.device, self.dtype)

    def update(self, batch: Batch, targets: int, states: list[State | None]) -> Updated:
        """One optimizer step on this process's share of a global batch that has so many targets in all.

        `states` has what each part carries to the next batch.
        """
        totals = torch.zeros(2, device=self.device)
        for index in range(self.parts):
            last = index == self.parts - 1
            part = batch.part(index, self.parts).to(self.device)
            state = states[index] if batch.continues else None
            with self._unsynchronised() if not last else nullcontext():
                with self.autocast():
                    lowered, plain, states[index] = self.step(part, state)
                # one division by the whole batch's targets: parts do not matter; and processes are averaged
                self.scaler.scale(lowered * (self.world.size / targets)).backward()
            totals += torch.stack([plain.detach(), lowered.detach()])
        self.scaler.unscale_(self.optimizer)
        norm = whole(nn.utils.clip_grad_norm_(self.parameters(), self.grad_clip or math.inf))
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        loss, smoothed = self.world.sum(totals) / targets
        return Updated(loss, smoothed, norm.where(norm.isfinite(), 0) if self.scaler.is_enabled() else norm)

    @property
    def precision(self) -> str:
        """What products are computed in."""
        return runtime.precision_name(self.dtype)

    def is_lost(self) -> bool:
        """Whether gradients overflow in fp16 however little they are scaled, so that each update is left out."""
        return self.scaler.is_enabled() and self.scaler.get_scale() < LEAST_SCALE

    def parameters(self) -> list[nn.Parameter]:
        """What is trained."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def _unsynchronised(self) -> AbstractContextManager[object]:
        return self.step.no_sync() if isinstance(self.step, DistributedDataParallel) else nullcontext()
