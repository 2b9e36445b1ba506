"""Who may ask, and what every answer says: hosts, origins, the token, the size of a request.

A page of another site that a browser has open can send requests here, and can give this machine's address a name of
its own (DNS rebinding); so the names that a browser says are compared with ours, and there is no cookie to ride on.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from ipaddress import ip_address
from secrets import compare_digest
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Message, Receive, Send], Awaitable[None]]

LARGEST_BODY = 256 * 1024  # bytes
PATIENCE = 30.0  # seconds that a request's body may take
HEADERS = (
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
)
TYPES = {400: "invalid_request", 401: "unauthorized", 403: "forbidden", 404: "not_found", 405: "invalid_request",
         408: "invalid_request", 409: "not_ready", 413: "invalid_request", 422: "invalid_request", 500: "fault",
         503: "busy"}  # fmt: skip


def is_loopback(host: str) -> bool:
    """Whether nobody but this machine reaches an address."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def in_url(host: str) -> str:
    """A host as an address has it: IPv6 in brackets."""
    return f"[{host}]" if ":" in host else host


@dataclass(frozen=True, kw_only=True)
class Door:
    """Where the server is bound, and what it asks of those who come. `token`: none where only this machine can."""

    host: str
    port: int
    token: str | None = None

    def knows(self, host: str) -> bool:
        """Whether a Host header names this server. Bound to all addresses it has any name, and the token decides."""
        name, _, port = host.lower().rpartition(":")
        if not name or not (port.isascii() and port.isdigit()):  # without a port, which browsers leave out for 80
            name, port = host.lower(), "80"
        if port != str(self.port):
            return False
        names = {in_url(self.host.lower()), "localhost", "127.0.0.1", "[::1]"}
        return name in names or self.host in ("0.0.0.0", "::")  # noqa: S104 - compared, not bound

    def lets_in(self, authorization: bytes) -> bool:
        """Whether an Authorization header has the token, if one is needed."""
        return self.token is None or compare_digest(authorization, f"Bearer {self.token}".encode())


def openai_error(status: int, message: str) -> dict[str, Any]:
    """An error in OpenAI's shape."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "param": None, "code": TYPES.get(status)}}


def error_body(path: str, status: int, message: str) -> bytes:
    """An error as JSON, under /v1 in OpenAI's shape."""
    ours = {"error": {"message": message, "type": TYPES.get(status, "invalid_request")}}
    return json.dumps(openai_error(status, message) if path.startswith("/v1/") else ours).encode()


class Guard:
    """An ASGI application in front of another: what may not pass is answered here, and every answer gets `HEADERS`."""

    def __init__(self, app: ASGIApp, door: Door) -> None:
        self.app, self.door = app, door

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            return  # no websockets here: the server refuses the handshake

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), *HEADERS]}
            await send(message)

        headers = dict(scope["headers"])
        refused = self._refusal(scope, headers)
        body = b""
        if refused is None:
            try:
                async with asyncio.timeout(PATIENCE):
                    read = await _body(headers, receive)
            except TimeoutError:
                refused = 408, "the request's body did not come"
            else:
                if read is None:
                    refused = 413, f"the request is too large; send at most {LARGEST_BODY // 1024} KiB"
                else:
                    body = read
        if refused is not None:
            status, message = refused
            content = error_body(scope["path"], status, message)
            type_ = [(b"content-type", b"application/json"), (b"connection", b"close")]
            await send_with_headers({"type": "http.response.start", "status": status, "headers": type_})
            await send_with_headers({"type": "http.response.body", "body": content})
            return
        told = False

        async def receive_again() -> Message:
            nonlocal told
            if told:
                return await receive()
            told = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self.app(scope, receive_again, send_with_headers)

    def _refusal(self, scope: Message, headers: dict[bytes, bytes]) -> tuple[int, str] | None:
        host, origin = headers.get(b"host", b"").decode("latin-1"), headers.get(b"origin")
        if not self.door.knows(host):
            at = f"{in_url(self.door.host)}:{self.door.port}"
            return 400, f"this server is {at}, and was asked for as {host!r}; use its own address and port"
        if origin is not None and origin.decode("latin-1").lower() != f"http://{host}".lower():
            return 403, "a page of another origin may not ask here"
        guarded = scope["path"].startswith(("/api", "/v1"))
        if guarded and not self.door.lets_in(headers.get(b"authorization", b"")):
            return 401, "the token is missing or wrong; send it as Authorization: Bearer TOKEN"
        return None


async def _body(headers: dict[bytes, bytes], receive: Receive) -> bytes | None:
    """A request's body; none where it is too large."""
    length = headers.get(b"content-length", b"0")
    if len(length) > len(str(LARGEST_BODY)) or int(length) > LARGEST_BODY:
        return None
    parts = bytearray()
    while True:
        message = await receive()
        parts += message.get("body", b"")
        if len(parts) > LARGEST_BODY:
            return None
        if not message.get("more_body", False):
            return bytes(parts)
