"""The application: which path asks what. It imports no torch, so that the page is answered at once."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from secrets import randbelow, token_hex
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from scratchlm import __version__
from scratchlm.errors import InputError
from scratchlm.serve import wire
from scratchlm.serve.answers import EventStream, WholeAnswer
from scratchlm.serve.guard import ASGIApp, Door, Guard, error_body, openai_error
from scratchlm.serve.runs import NotReadyError, Run
from scratchlm.serve.turns import BusyError, ClosingError, Turns, Worker

PAGE = Path(__file__).parent / "page"
# seconds for a page to be fetched before torch is loaded: while its libraries are linked, all threads stand still
HEAD_START = 0.3
VIEWS = {  # functions of `views`, and what each is asked
    "pieces": wire.AskedText,
    "attention": wire.AskedAttention,
    "states": wire.AskedText,
    "field": wire.AskedText,
    "senses": wire.AskedSenses,
    "steer": wire.AskedSteer,
    "translate": wire.AskedTranslate,
}
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}


class Desk:
    """What all requests share: the runs, the worker, and the turns of those who have a text written or look."""

    def __init__(self, runs: Sequence[Run], concurrent: int, waiting: int) -> None:
        self.runs, self.worker = runs, Worker()
        self.writing, self.looking = Turns(concurrent, waiting), Turns(1, waiting)

    def find(self, name: str) -> Run:
        """A run by its id or its name. Raises HTTPException where there is none."""
        for run in self.runs:
            if name in (run.id, run.name):
                run.refresh(self.worker)
                return run
        raise HTTPException(404, f"there is no run {name!r}; choose from: {', '.join(run.id for run in self.runs)}")

    async def look(self, view: str, asked: wire.Asked) -> Response:
        """What a function of `views` says of a loaded run."""
        player, turn = self.find(asked.run).ready(), self.looking.enter()
        try:
            async for _ in turn.waits():
                pass

            def shown() -> bytes:
                # no import at the top: it imports torch, which has been imported by now
                return getattr(import_module("scratchlm.serve.views"), view)(player, asked)

            return Response(await self.worker(shown), media_type="application/json")
        finally:
            turn.leave()


def create_app(runs: Sequence[Run], door: Door, *, concurrent: int = 4, waiting: int = 64) -> tuple[ASGIApp, Desk]:
    """The guarded application, which loads the runs once it has started, and what its requests share."""
    desk = Desk(runs, concurrent, waiting)

    def begin() -> None:
        for run in runs:
            run.begin(desk.worker)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        asyncio.get_running_loop().call_later(HEAD_START, begin)
        yield

    app = FastAPI(title="scratchlm", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    _handle_errors(app)
    _add_page(app)
    _add_api(app, desk)
    _add_openai(app, desk)
    return Guard(app, door), desk


def _handle_errors(app: FastAPI) -> None:
    def answer(request: Request, status: int, message: str) -> Response:
        return Response(error_body(request.url.path, status, message), status, media_type="application/json")

    def handle(error: type[Exception], status: int, words: Callable[[Any], str] = str) -> None:
        @app.exception_handler(error)
        def handler(request: Request, error: Exception) -> Response:
            return answer(request, status, words(error))

    handle(RequestValidationError, 422, lambda error: wire.in_words(error.errors()))
    handle(ValueError, 422)  # InputError among them
    handle(NotReadyError, 409)
    handle(BusyError, 503)
    handle(ClosingError, 503)
    handle(Exception, 500, lambda _: "something went wrong here; the terminal says more")  # which prints it

    @app.exception_handler(HTTPException)
    def http_error(request: Request, error: HTTPException) -> Response:
        return answer(request, error.status_code, error.detail)


def _add_page(app: FastAPI) -> None:
    @app.get("/")
    @app.get("/{name}")
    def page(name: str = "index.html") -> Response:
        """A file of the page, of those that are there."""
        for file in PAGE.iterdir():
            if file.name == name and file.suffix in TYPES:
                return Response(file.read_bytes(), media_type=TYPES[file.suffix], headers={"cache-control": "no-cache"})
        raise HTTPException(404, "there is no such page")


def _add_api(app: FastAPI, desk: Desk) -> None:
    @app.get("/api/runs")
    def list_runs() -> Response:
        for run in desk.runs:
            run.refresh(desk.worker)
        return JSONResponse({"version": __version__, "runs": [run.described() for run in desk.runs]})

    @app.get("/api/curve")
    def curve(run: Annotated[str, Query(max_length=1000)], after: Annotated[int, Query(ge=-1)] = -1) -> Response:
        return JSONResponse(desk.find(run).curve(after))

    @app.post("/api/reload")
    async def reload(asked: wire.Asked) -> Response:
        run = desk.find(asked.run)
        await asyncio.wrap_future(run.load(desk.worker))
        if run.message:
            raise InputError(run.message)
        return JSONResponse(run.described())

    @app.post("/api/generate")
    async def generate(asked: wire.AskedGenerate) -> Response:
        player, turn = desk.find(asked.run).ready(), desk.writing.enter()
        try:
            events = await desk.worker(player.write, asked)
        except BaseException:
            turn.leave()
            raise
        return EventStream(
            desk.worker,
            turn,
            events,
            waiting=lambda before: {"type": "waiting", "before": before},
            failed=lambda message: {"type": "error", "message": message},
        )

    def add_view(view: str, body: type[wire.AskedText]) -> None:
        async def look(asked: wire.AskedText) -> Response:
            return await desk.look(view, asked)

        look.__annotations__["asked"] = body
        app.post(f"/api/{view}")(look)

    for view, body in VIEWS.items():
        add_view(view, body)


def _add_openai(app: FastAPI, desk: Desk) -> None:
    @app.get("/v1/models")
    def list_models() -> Response:
        models = [{"id": run.name, "object": "model", "created": 0, "owned_by": "scratchlm"} for run in desk.runs]
        return JSONResponse({"object": "list", "data": models})

    @app.get("/v1/models/{name:path}")
    def model(name: str) -> Response:
        return JSONResponse({"id": desk.find(name).name, "object": "model", "created": 0, "owned_by": "scratchlm"})

    @app.post("/v1/completions")
    async def complete(asked: wire.AskedCompletion) -> Response:
        player, turn = desk.find(asked.model).ready(), desk.writing.enter()

        def begin() -> Any:
            from scratchlm.serve.completions import Completion  # imports torch

            rows = (asked.n or 1) * (1 if isinstance(asked.prompt, str) else len(asked.prompt))
            if rows > wire.MOST_ROWS:
                raise InputError(f"prompts times n are {rows} texts; ask for {wire.MOST_ROWS} or fewer")
            seed = randbelow(1 << 53) if asked.seed is None else asked.seed
            completion = Completion(player, asked, f"cmpl-{token_hex(12)}", seed)
            return completion.streamed() if asked.stream else completion.whole()

        try:
            events = await desk.worker(begin)
        except BaseException:
            turn.leave()
            raise
        if not asked.stream:
            return WholeAnswer(desk.worker, turn, events)
        failed = partial(openai_error, 500)
        return EventStream(desk.worker, turn, events, failed=failed, last="[DONE]")
