"""Work in several processes whose results come in order, and few of them at once."""

import collections
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from scratchlm.errors import InputError

T = TypeVar("T")
R = TypeVar("R")


def _start_worker() -> None:
    """A worker leaves Ctrl-C to the process that started it, and ends with it, also when that is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def in_order(function: Callable[[T], R], tasks: Iterable[T], workers: int) -> Generator[R, None, None]:
    """What the function makes of the tasks, in their order, out of worker processes; few are held at once."""
    if workers == 1:
        yield from map(function, tasks)
        return
    waiting: collections.deque[Future[R]] = collections.deque()
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker)
    try:
        for task in tasks:
            waiting.append(pool.submit(function, task))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise InputError(
            "a worker process was killed, perhaps for lack of memory, of which fewer --workers need less; the same "
            "command goes on"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)
