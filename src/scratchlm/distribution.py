"""Several processes that train one model: who they are, what they agree on, and how they are started.

Processes of one run come from torchrun, which sets RANK, LOCAL_RANK and WORLD_SIZE; `launch` starts it. A process alone
is a world of size 1, in which everything here does nothing. Rank 0 is the one that writes.
"""

import ctypes
import logging
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from scratchlm.errors import InputError

RESTARTS = 3  # of all processes, after one has died
WAITED = timedelta(minutes=10)  # for another process, before it counts as dead; a large checkpoint is saved in less
OUTCOME = "SCRATCHLM_OUTCOME"  # the file that a launched run leaves its exit code in, where torchrun would start anew

Result = TypeVar("Result")


@dataclass(frozen=True)
class World:
    """The processes of a run, as one of them sees it."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all processes. Shapes: any, the same in each."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def any(self, *flags: bool) -> list[bool]:
        """Of each flag whether it is so in one of the processes."""
        if self.size == 1:
            return list(flags)
        return [bool(count) for count in self.sum(torch.tensor([int(flag) for flag in flags])).tolist()]

    def gather(self, own: Any) -> list[Any]:
        """What each process has, by rank, for the leading one; an empty list for the others."""
        if self.size == 1:
            return [own]
        there = [None] * self.size if self.leads else None
        dist.gather_object(own, there)
        return there or []

    def lead(self, function: Callable[[], Result]) -> Result:
        """What the leading process finds out, for all. Raises its InputError in all of them."""
        if self.size == 1:
            return function()
        told: list[Any] = [None, None]
        if self.leads:
            try:
                told[0] = function()
            except InputError as error:
                told[1] = str(error)
        dist.broadcast_object_list(told)
        if told[1] is not None:
            raise InputError(told[1])
        return told[0]


ALONE = World()


def launched() -> World:
    """The place of this process among those that torchrun started; alone where it did not."""
    return World(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))


@contextmanager
def joined(device: torch.device) -> Iterator[World]:
    """The world, connected while the block runs: over NCCL on CUDA, over gloo elsewhere and for what is on the CPU."""
    world = launched()
    if world.size == 1 or dist.is_initialized():
        yield world
        return
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=WAITED)
    try:
        yield world
    finally:
        dist.destroy_process_group()


def launch(processes: int, arguments: Sequence[str]) -> int:
    """Run `scratchlm ARGUMENTS` in so many processes on this machine, and again where one of them dies.

    The command has to go on where it was, as `resume` does. Returns its exit code.
    """
    with tempfile.TemporaryDirectory() as folder:
        outcome = Path(folder) / "outcome"
        environment = {
            **os.environ,
            OUTCOME: str(outcome),
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes))),
            # without it a restart can meet the addresses of the attempt before, and hang (torch 2.13, gloo)
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
            # how long a process that was told to stop may take to save; torchrun would kill it after 30 seconds
            "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "120",
        }
        if sys.platform == "win32":  # where torch is built without it
            environment["USE_LIBUV"] = "0"
        torchrun = [sys.executable, "-c", "from scratchlm.distribution import torchrun; torchrun()", "--standalone"]
        shape = [f"--nproc-per-node={processes}", f"--max-restarts={RESTARTS}"]
        command = [*torchrun, *shape, "-m", "scratchlm", *arguments]
        process = subprocess.Popen(command, env=environment, start_new_session=True)  # noqa: S603 - our own words
        with _passed_on(process) as received:
            code = process.wait()
        ended = int(outcome.read_text(encoding="utf-8")) if outcome.is_file() else code
        return 128 + received[0] if received and ended in (143, code) else ended


def torchrun() -> None:
    """What `launch` starts: torchrun, in silence, since the run says itself how it ends."""
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main

    end_with_parent()
    logging.disable()
    try:
        main(sys.argv[1:])
    except SignalException as ended:
        raise SystemExit(128 + ended.sigval) from None
    except ChildFailedError:
        raise SystemExit(1) from None


def end_with_parent() -> None:
    """Have this process told to stop (SIGTERM) where the one that started it has been killed; Linux alone does it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


@contextmanager
def _passed_on(process: "subprocess.Popen[bytes]") -> Iterator[list[int]]:
    """SIGINT and SIGTERM go on to torchrun as SIGTERM, which the run saves itself at; a second one kills it."""
    received: list[int] = []

    def handle(number: int, frame: Any) -> None:
        received.append(number)
        if len(received) == 1:
            process.terminate()
        elif os.name == "posix":
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def is_over() -> bool:
    """Whether the run that `launch` started has ended, and torchrun starts this process anew for nothing."""
    outcome = os.environ.get(OUTCOME)
    return outcome is not None and Path(outcome).is_file()


def leave(code: int) -> int:
    """The exit code of one of several processes: of a run that `launch` started 0, since it must not start anew.

    What the run ended with is left for `launch`. A run that torchrun was started for by hand ends with its own code.
    """
    outcome = os.environ.get(OUTCOME)
    if outcome is None:
        return code
    if launched().leads:
        Path(outcome).write_text(str(code), encoding="utf-8")
    return 0
