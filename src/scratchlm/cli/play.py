"""scratchlm play DIR: a page and an endpoint to try one run, or two beside each other."""

import asyncio
import os
import secrets
import socket
import sys
import webbrowser
from typing import Annotated, Literal

from cyclopts import Parameter

from scratchlm.cli.flags import Int
from scratchlm.errors import InputError


def command(
    directory: str,
    other: str | None = None,
    /,
    *,
    port: Int = 8765,
    host: str = "127.0.0.1",
    allow_remote: Annotated[bool, Parameter(negative=())] = False,
    token: str | None = None,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    checkpoint: str = "last",
    open_: Annotated[bool, Parameter(name="--open")] = True,
    concurrent: Int = 4,
    waiting: Int = 64,
) -> int:
    """Open a page that shows what a model writes and how, and an endpoint that OpenAI's clients can ask.

    Parameters
    ----------
    directory
        The run's folder; it may still be training.
    other
        A second run, to compare with.
    port
        Where the page is; 0: any that is free.
    host
        The address that is listened at.
    allow_remote
        Let other machines ask, with a token that is printed; for --host other than this machine's own.
    token
        The token; without it one is drawn.
    device
        auto, cpu, cuda or mps.
    checkpoint
        last, best, or a step.
    open_
        Open the page in the browser, where there is one.
    concurrent
        Texts that are written at once.
    waiting
        Requests that may wait for their turn; beyond them they are refused.
    """
    try:
        import uvicorn

        from scratchlm.serve.app import create_app
    except ModuleNotFoundError as error:
        raise InputError(f"play needs {error.name}, which is not installed: install scratchlm[serve]") from error
    from scratchlm.serve.guard import Door, in_url, is_loopback
    from scratchlm.serve.runs import Run

    if concurrent < 1 or waiting < 0:
        raise InputError(f"--concurrent is {concurrent} and --waiting {waiting}; at least 1 and 0 are needed")
    if not 0 <= port < 1 << 16:
        raise InputError(f"--port is {port}; it must be from 0 to 65535")
    if not is_loopback(host) and not allow_remote:
        raise InputError(
            f"--host {host} lets other machines ask; add --allow-remote, which wants a token of them, or leave it out"
        )
    if token is not None and not (token.isascii() and token.isprintable() and token.split() == [token]):
        raise InputError("--token must be letters, digits and signs without spaces; leave it out to have one drawn")
    if allow_remote and token is None:
        token = secrets.token_urlsafe(16)
    folders = [directory] if other is None else [directory, other]
    runs = [Run(id_, folder, checkpoint, device) for id_, folder in zip("ab", folders, strict=False)]
    listening = _listen(host, port)
    door = Door(host=host, port=listening.getsockname()[1], token=token)
    app, desk = create_app(runs, door, concurrent=concurrent, waiting=waiting)
    name = socket.gethostname() if host in ("0.0.0.0", "::") else host  # noqa: S104 - asked for, behind a token
    url = f"http://{in_url(name)}:{door.port}/" + (f"?token={token}" if token is not None else "")

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            print(f"{url}\n{', '.join(folders)}: loading; the page says when it is ready. Ctrl-C ends.", flush=True)
            if open_ and _has_browser():
                asyncio.get_running_loop().run_in_executor(None, webbrowser.open, url)  # which may wait for it

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            desk.worker.stop()  # texts that are being written end
            await super().shutdown(sockets)

    config = uvicorn.Config(
        app, log_level="warning", access_log=False, server_header=False, timeout_graceful_shutdown=1, ws="none"
    )
    try:
        Server(config).run(sockets=[listening])
    except KeyboardInterrupt:  # raised again once all is closed
        if desk.worker.is_busy:  # as while torch is imported, for which a usual end would wait
            sys.stdout.flush()
            os._exit(130)
        raise
    finally:
        desk.worker.close()
    return 0


def _listen(host: str, port: int) -> socket.socket:
    """A socket bound to an address. Raises InputError where it is taken, or none of ours."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise InputError(f"--host is {host!r}, which is no address: {error.strerror}") from error
    try:
        if os.name != "nt":  # there it would let two servers have one port
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(1024)
    except OSError as error:
        listening.close()
        why = error.strerror or str(error)
        raise InputError(f"cannot listen at {host}, port {port} ({why}); choose another with --port, or 0") from error
    return listening


def _has_browser() -> bool:
    """Whether a person sits before this machine: without a display, text browsers would take the terminal."""
    display = (
        os.name == "nt" or sys.platform == "darwin" or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    )
    return bool(display) and sys.stdout is not None and sys.stdout.isatty()
