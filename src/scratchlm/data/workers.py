"""Work in several processes whose results come in order, and few of them at once."""

import collections
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import TypeVar

from scratchlm.errors import InputError

T = TypeVar("T")
R = TypeVar("R")
HELD = 4  # tasks for each process, and their results: enough to have work while the disk is waited for


def _start_worker() -> None:
    """A worker leaves Ctrl-C to the process that started it, and ends with it, also when that is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


@contextmanager
def _without_ctrl_c() -> Iterator[None]:
    """Ctrl-C waits; what is started meanwhile is never told of it, also while it imports what it needs."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Workers:
    """Processes that are started when there is work for them; one alone is the process that asks."""

    def __init__(self, count: int) -> None:
        """Raises InputError where there would be none."""
        if count < 1:
            raise InputError(f"the number of workers is {count}; it must be at least 1")
        self.count = count
        self._pool: ProcessPoolExecutor | None = None

    def in_order(self, function: Callable[[T], R], tasks: Iterable[T]) -> Iterator[R]:
        """What the function makes of the tasks, in their order; few of them are held at once."""
        if self.count == 1:
            yield from map(function, tasks)
            return
        if self._pool is None:
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(self.count, mp_context=context, initializer=_start_worker)
        waiting: collections.deque[Future[R]] = collections.deque()
        try:
            for task in tasks:
                with _without_ctrl_c():
                    waiting.append(self._pool.submit(function, task))
                if len(waiting) > HELD * self.count:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool as error:
            raise InputError(
                "a worker process was killed, perhaps for lack of memory, of which fewer --workers need less; the same "
                "command goes on"
            ) from error

    def close(self) -> None:
        """End the processes; what they have not begun is left."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        self._pool = None
