"""Turns: so many at once, the others in the order in which they came, and no more than there is room for."""

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any


class BusyError(Exception):
    """All turns and all places to wait are taken."""


class ClosingError(Exception):
    """The server ends."""


class Turn:
    """A place in the row: the first ones are served, the others wait."""

    def __init__(self, row: "Turns") -> None:
        self._row, self.moved = row, asyncio.Event()

    @property
    def before(self) -> int:
        """How many have to be done before this one is served; 0: it is."""
        return max(0, self._row.places.index(self) - self._row.at_once + 1)

    async def waits(self) -> AsyncIterator[int]:
        """How many are before it, again whenever that has changed, until it is served."""
        told = 0
        while (before := self.before) > 0:
            if before != told:
                told = before
                yield before
            self.moved.clear()
            await self.moved.wait()

    def leave(self) -> None:
        """Give the place away; those behind move up."""
        if self in self._row.places:
            self._row.places.remove(self)
            for other in self._row.places:
                other.moved.set()


class Turns:
    """The row. Units: `at_once` are served, `waiting` wait."""

    def __init__(self, at_once: int, waiting: int) -> None:
        self.at_once, self.room = at_once, at_once + waiting
        self.places: list[Turn] = []

    def enter(self) -> Turn:
        """The place at the end. Raises BusyError where there is none."""
        if len(self.places) >= self.room:
            raise BusyError(f"{self.room} are served or waiting already; try again in a moment")
        turn = Turn(self)
        self.places.append(turn)
        return turn


class Worker:
    """The one thread that computes with models.

    A model may then be looked into while nobody else uses it, what is shared between two forward passes (its mode, its
    listeners) belongs to one of them, and generations take turns token by token, since each asks for its next token
    when its last one has been sent. More threads would not be faster: a product takes all cores by itself.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="models")
        self._stopped, self._last = False, Future[Any]()
        self._last.set_result(None)

    def submit(self, function: Any, *arguments: Any) -> Future[Any]:
        """Have the thread call this when it has done what it was given before."""
        self._last = self._pool.submit(function, *arguments)
        return self._last

    @property
    def is_busy(self) -> bool:
        """Whether something is being done, or waits for that."""
        return not self._last.done()

    async def __call__(self, function: Any, *arguments: Any) -> Any:
        """What the function returns, called in the thread. Raises ClosingError once it has stopped."""
        if self._stopped:
            raise ClosingError("the server is being closed")
        return await asyncio.wrap_future(self.submit(function, *arguments))

    def stop(self) -> None:
        """Take no more from requests, which end with that."""
        self._stopped = True

    def close(self) -> None:
        """Call nothing any more, but for what has begun."""
        self._pool.shutdown(wait=False, cancel_futures=True)
