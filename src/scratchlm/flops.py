"""Floating-point operations of a training step, and the share of what a device can do (MFU): counted, never guessed.

MFU is Chowdhery et al. 2022, appendix B: operations that the model's equations ask for, for each second, over the
device's peak. So neither what is computed twice to save memory nor what a kernel leaves out changes the count.
"""

import re
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from scratchlm.data.batches import Batch
from scratchlm.evaluation import loss_and_state
from scratchlm.model import LanguageModel, record

# Dense peaks in TFLOP/s out of NVIDIA's datasheets and, of GeForce, its whitepapers of GA102 and AD102. Where a sheet
# gives tensor cores with sparsity only, half of it. 16-bit products sum in float32, which halves a GeForce's rate.
# A name is matched whole: a laptop's chip, a "Ti" or a part of a device (MIG) has other peaks, which nobody knows here.
PEAKS: dict[str, dict[str, float]] = {
    r"NVIDIA B200": {"fp32": 75, "tf32": 1100, "bf16": 2250, "fp16": 2250},
    r"NVIDIA H200 NVL": {"fp32": 60, "tf32": 417.5, "bf16": 835.5, "fp16": 835.5},
    r"NVIDIA H200": {"fp32": 67, "tf32": 494.5, "bf16": 989.5, "fp16": 989.5},
    r"NVIDIA H100 80GB HBM3": {"fp32": 67, "tf32": 494.5, "bf16": 989.5, "fp16": 989.5},
    r"NVIDIA H100 NVL": {"fp32": 60, "tf32": 417.5, "bf16": 835.5, "fp16": 835.5},
    r"NVIDIA H100 PCIe": {"fp32": 51, "tf32": 378, "bf16": 756.5, "fp16": 756.5},
    r"(NVIDIA )?A100(-SXM4-[48]0GB|-PCIE-40GB| 80GB PCIe)": {"fp32": 19.5, "tf32": 156, "bf16": 312, "fp16": 312},
    r"NVIDIA L40S": {"fp32": 91.6, "tf32": 183, "bf16": 362, "fp16": 362},
    r"NVIDIA L4": {"fp32": 30.3, "tf32": 60, "bf16": 121, "fp16": 121},
    r"Tesla V100-SXM2-(16|32)GB": {"fp32": 15.7, "fp16": 125},
    r"Tesla V100-PCIE-(16|32)GB": {"fp32": 14, "fp16": 112},
    r"(NVIDIA |Tesla )T4": {"fp32": 8.1, "fp16": 65},
    r"NVIDIA GeForce RTX 4090": {"fp32": 82.6, "tf32": 82.6, "bf16": 165.2, "fp16": 165.2},
    r"NVIDIA GeForce RTX 3090": {"fp32": 35.6, "tf32": 35.6, "bf16": 71, "fp16": 71},
}
DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class _Loss(nn.Module):
    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> Tensor:
        return loss_and_state(self.model, batch)[0]


def training_flops(model: LanguageModel, batch: Batch) -> int:
    """Operations of the matrix products and convolutions of one training step, forward and backward.

    A multiplication and an addition are two; attention is over the whole square. The step is made of shapes alone: no
    weight is read, no memory taken, nothing drawn. Parameters that are frozen need no gradient and none is counted.
    Give the model as it is before it is sharded. Of a Backpack all tokens count as different, since shapes do not tell.
    """
    loss, meta = _Loss(model), torch.device("meta")
    shapes = {
        name: torch.empty(tensor.shape, dtype=tensor.dtype, device=meta, requires_grad=tensor.requires_grad)
        for tensors in (loss.named_parameters(), loss.named_buffers())
        for name, tensor in tensors
    }
    # the written-out paths run: a fused kernel hides its products, and its backward pass computes some twice
    with record(loss), FlopCounterMode(display=False) as counter:
        functional_call(loss, shapes, (batch.to(meta),)).backward()
    return counter.get_total_flops()


def peak_flops(device_name: str, precision: str) -> float | None:
    """The published dense peak of a device, by the name that CUDA gives it. None where it is not known.

    Units: operations per second. `precision`: fp32 (without tensor cores), tf32, bf16 or fp16.
    """
    for name, peaks in PEAKS.items():
        if re.fullmatch(name, device_name):
            return peaks[precision] * 1e12 if precision in peaks else None
    return None


def square_product(device: torch.device, precision: str, size: int | None = None) -> tuple[Callable[[], Tensor], int]:
    """A product of two square matrices, and its operations.

    `size`: their width; without it 1024, on an accelerator 8192. Precision tf32 is the caller's to switch on.
    """
    size = size or (1024 if device.type == "cpu" else 8192)
    draws = torch.Generator(device).manual_seed(0)  # of its own: a run's stream goes on undisturbed
    one, other = (torch.randn(size, size, generator=draws, device=device).to(DTYPES[precision]) for _ in range(2))
    return lambda: torch.mm(one, other), 2 * size**3


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def mfu(flops: float, seconds: float, peak: float | None) -> float | None:
    """Operations done in so many seconds over the peak rate, a share of 1; None without a peak."""
    return None if peak is None else flops / seconds / peak
