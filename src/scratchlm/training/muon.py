"""Muon: steps of the matrices in a network whose singular values are all made about one.

Source: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks",
kellerjordan.github.io/posts/muon.

    source                                                  here
    B_t = mu B_{t-1} + (1 - mu) G_t                         Muon.step, which keeps a mean and not a sum, as torch does
    U_t = mu B_t + (1 - mu) G_t              (Nesterov)     Muon.step
    O_t = NewtonSchulz5(U_t), about U V^T of U_t = U S V^T  orthogonalised
    W_t = (1 - lr wd) W_{t-1} - lr s O_t                    Muon.step, s = 0.2 sqrt(max(rows, columns))

The scale s is that of Liu et al. 2025, "Muon is Scalable for LLM Training", equation 4, and not the source's
sqrt(max(1, rows / columns)): an orthogonal matrix has a root mean square of 1 / sqrt(max(rows, columns)), so that s
makes it 0.2, about what AdamW's steps have. One learning rate, with what is known of it, then fits both optimizers.

A matrix that several were fused into is several maps that happen to be computed at once: each is made orthogonal by
itself, else the keys' step would be turned away from the queries'.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from scratchlm.training.sharding import placed, whole

QUINTIC = (3.4445, -4.7750, 2.0315)  # of the source: steep at zero, so that five iterations lift small singular values
AT_ONCE = 1 << 26  # numbers in a batch of matrices: all of a small model's, and of a large one's few


def orthogonalised(matrices: Tensor) -> Tensor:
    """Matrices with the same singular vectors and with singular values of about one, roughly 0.7 to 1.2.

    Five iterations of X <- a X + b (X X^T) X + c (X X^T)^2 X, begun where no singular value is above one.
    Shapes: (N, R, C) -> (N, R, C). In bfloat16 on a GPU, as the source does, else in the dtype of the matrices.
    """
    a, b, c = QUINTIC
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices  # X X^T is the smaller product
    x = x.to(torch.bfloat16) if x.is_cuda else x
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrices.dtype)


class Muon(torch.optim.AdamW):
    """Muon for groups whose `parts` say how many matrices each parameter is made of, AdamW for those without it.

    So one optimizer has the whole model, with one state and one list of groups.
    """

    def __init__(self, groups: list[dict[str, Any]], momentum: float, **adamw: Any) -> None:
        """`groups`: of parameters, those for Muon with `parts`, one number a parameter. `adamw`: AdamW's settings."""
        super().__init__(groups, **adamw)
        self.momentum = momentum
        self._step_supports_amp_scaling = False  # a fused AdamW takes scaled gradients, and this would be skipped by it

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step of both."""
        every = self.param_groups
        self.param_groups = [group for group in every if "parts" not in group]
        try:
            loss = super().step(closure)
        finally:
            self.param_groups = every
        for group in every:
            if "parts" in group:
                self._step(group)
        return loss

    def _step(self, group: dict[str, Any]) -> None:
        found = [(p, count) for p, count in zip(group["params"], group["parts"], strict=True) if p.grad is not None]
        if not found:
            return
        parameters, parts = [p for p, _ in found], [count for _, count in found]
        gradients = [p.grad for p in parameters]
        for p in parameters:
            if not self.state[p]:
                self.state[p]["momentum"] = torch.zeros_like(p)
        means = [self.state[p]["momentum"] for p in parameters]
        torch._foreach_lerp_(means, gradients, 1 - self.momentum)
        steps = _steps(torch._foreach_lerp(gradients, means, self.momentum), parts)
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(parameters, steps, alpha=-group["lr"])


def _steps(updates: Sequence[Tensor], parts: Sequence[int]) -> list[Tensor]:
    """What each parameter is moved by, matrices of one shape orthogonalised in one batch, up to AT_ONCE numbers.

    A sharded update is gathered, since no part of it says what is orthogonal to it, and each process computes all.
    """
    steps = list(updates)
    for shape, indexes in _batches(updates, parts):
        counts = [parts[index] for index in indexes]
        matrices = [
            whole(updates[index]).unflatten(0, (count, -1)) for index, count in zip(indexes, counts, strict=True)
        ]
        scaled = orthogonalised(torch.cat(matrices)) * (0.2 * math.sqrt(max(shape)))
        for index, own in zip(indexes, scaled.split(counts), strict=True):
            steps[index] = placed(own.flatten(0, 1), updates[index])
    return steps


def _batches(updates: Sequence[Tensor], parts: Sequence[int]) -> Iterator[tuple[tuple[int, int], list[int]]]:
    """A shape of matrices, and which updates are made of such, again and again."""
    alike: dict[tuple[int, int], list[int]] = {}
    for index, (update, count) in enumerate(zip(updates, parts, strict=True)):
        rows, columns = update.shape
        alike.setdefault((rows // count, columns), []).append(index)
    for shape, indexes in alike.items():
        batch: list[int] = []
        for index in indexes:
            if batch and sum(updates[one].numel() for one in (*batch, index)) > AT_ONCE:
                yield shape, batch
                batch = []
            batch.append(index)
        yield shape, batch
