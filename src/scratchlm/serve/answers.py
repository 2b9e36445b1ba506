"""Answers that are computed bit by bit, for as long as somebody waits for them: as events, or all at the end."""

import asyncio
import json
import logging
from abc import abstractmethod
from collections.abc import AsyncIterator, Callable, Generator, Mapping
from typing import Any

from starlette.responses import Response

from scratchlm.serve.guard import Message, Receive, Send
from scratchlm.serve.turns import ClosingError, Turn, Worker

Event = Mapping[str, Any]
STALLED = 60.0  # seconds that a client may take to read an event before its turn is given to another
_END = object()


class _Worked(Response):
    """An answer out of a generator that the worker is asked to advance, token by token; whoever leaves ends it.

    Where that gives nothing, there is nothing to be said yet. The answer is in a turn, which it gives away at its end.
    Each event is computed once the one before has been sent, so that nothing is computed that nobody takes.
    """

    def __init__(
        self, worker: Worker, turn: Turn, events: Generator[Event | None, None, None], media_type: str
    ) -> None:
        super().__init__(media_type=media_type, headers={"cache-control": "no-store"})
        self._worker, self._turn, self._events = worker, turn, events

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        tasks = [asyncio.ensure_future(self._send(send)), asyncio.ensure_future(_left(receive))]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            found, _ = await asyncio.gather(*tasks, return_exceptions=True)
            self._turn.leave()
            self._worker.submit(self._events.close)
        if isinstance(found, Exception) and not isinstance(found, OSError):  # OSError: nobody is there any more
            raise found

    @abstractmethod
    async def _send(self, send: Send) -> None:
        """Compute and send all of it."""

    async def _next(self) -> Any:
        return await self._worker(next, self._events, _END)


class EventStream(_Worked):
    """Server-sent events, each `data: {json}`.

    `waiting` says that others are before this one, `failed` what went wrong, and `last` is said at the end.
    """

    def __init__(
        self,
        worker: Worker,
        turn: Turn,
        events: Generator[Event | None, None, None],
        *,
        failed: Callable[[str], Event],
        waiting: Callable[[int], Event] | None = None,
        last: str = "",
    ) -> None:
        super().__init__(worker, turn, events, "text/event-stream")
        self._waiting, self._failed, self._last = waiting, failed, last

    async def _send(self, send: Send) -> None:
        headers = [header for header in self.raw_headers if header[0] != b"content-length"]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        async for part in self._parts():
            message = {"type": "http.response.body", "body": b"data: " + part + b"\n\n", "more_body": True}
            await asyncio.wait_for(send(message), STALLED)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _parts(self) -> AsyncIterator[bytes]:
        try:
            async for before in self._turn.waits():
                if self._waiting is not None:
                    yield _event(self._waiting(before))
            while (event := await self._next()) is not _END:
                if event is not None:
                    yield _event(event)
        except (ValueError, ClosingError) as error:
            yield _event(self._failed(str(error)))
        except Exception:
            logging.getLogger(__name__).exception("while a text was written")
            yield _event(self._failed("something went wrong here; the terminal says more"))
        if self._last:
            yield self._last.encode()


class WholeAnswer(_Worked):
    """JSON: the last of the events."""

    def __init__(self, worker: Worker, turn: Turn, events: Generator[Event | None, None, None]) -> None:
        super().__init__(worker, turn, events, "application/json")

    async def _send(self, send: Send) -> None:
        async for _ in self._turn.waits():
            pass
        last: Event | None = None
        while (event := await self._next()) is not _END:
            last = event
        body = _event(last)
        headers = [header for header in self.raw_headers if header[0] != b"content-length"]
        headers.append((b"content-length", str(len(body)).encode()))
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def _event(event: Event | None) -> bytes:
    return json.dumps(event, ensure_ascii=False, allow_nan=False).encode()


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
