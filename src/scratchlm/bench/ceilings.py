"""What this machine can do at best: products of large matrices in each precision that it has, and copies of memory."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch

from scratchlm import runtime
from scratchlm.bench.measure import Row, Setting, in_turns, row
from scratchlm.flops import peak_flops, square_product

COPIED = {"cpu": 1 << 28, "cuda": 1 << 31, "mps": 1 << 29}  # bytes, far beyond any cache


def precisions(device: torch.device) -> tuple[str, ...]:
    """What products are measured in: fp32, and what the device has beside it."""
    if device.type == "cpu":
        return ("fp32", "bf16") if runtime.cpu_has_bf16() else ("fp32",)
    if device.type == "cuda":
        recent = torch.cuda.get_device_capability(device) >= runtime.BF16_CAPABILITY  # tf32 came with it
        return ("fp32", "tf32", "bf16", "fp16") if recent else ("fp32", "fp16")
    return ("fp32", "fp16")


@contextmanager
def _tensor_cores(used: bool) -> Iterator[None]:
    """Products of float32 on tensor cores while it lasts, or not."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if used else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def rows(setting: Setting) -> Iterator[Row]:
    """A row for each precision, with its share of the published peak where that is known, and one for copies."""
    for precision in precisions(setting.device):
        with _tensor_cores(precision == "tf32"):
            product, operations = square_product(setting.device, precision)
            seconds = in_turns({"product": product}, setting)["product"]
        peak = peak_flops(setting.device_name, precision)
        here = row(
            replace(setting, precision=precision), "ceilings", f"matrix product, {precision}",
            [operations / 1e9 / one for one in seconds], "GFLOP/s",
        )  # fmt: skip
        yield here if peak is None else replace(here, figures={"share_of_peak": here.ours * 1e9 / peak})
    source = torch.empty(COPIED[setting.device.type], dtype=torch.uint8, device=setting.device).fill_(1)
    target = torch.empty_like(source)
    seconds = in_turns({"copy": lambda: target.copy_(source)}, setting)["copy"]
    rates = [2 * source.nbytes / 1e9 / one for one in seconds]  # each byte is read and written
    yield row(setting, "ceilings", "memory copy, bytes read and written", rates, "GB/s")
