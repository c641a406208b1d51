"""The page's application: its routes, and what its errors look like."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from ldm.core.errors import UserError
from ldm.web.guard import Doorkeeper, Guard, Refused, refused
from ldm.web.page import Page
from ldm.web.renders import QueueFull
from ldm.web.routes import drawing, running, sending

STATIC = Path(__file__).parent / "static"


def application(page: Page, doorkeeper: Doorkeeper) -> ASGIApp:
    """All routes, guarded."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        page.events.start()
        yield
        page.renders.close()

    app = FastAPI(title="ldm", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    app.state.page = page
    for router in (drawing.router, sending.router, running.router):
        app.include_router(router)
    app.mount("/static", StaticFiles(directory=STATIC))

    @app.get("/")
    def index() -> Response:
        return FileResponse(STATIC / "index.html", headers={"cache-control": "no-cache"})

    @app.exception_handler(UserError)
    def _mistake(_: Request, error: UserError) -> Response:
        return _error(400, str(error))

    @app.exception_handler(QueueFull)
    def _full(_: Request, error: QueueFull) -> Response:
        return _error(429, str(error))

    @app.exception_handler(Refused)
    def _refused(_: Request, error: Refused) -> Response:
        return refused(error)

    @app.exception_handler(RequestValidationError)
    def _malformed(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        return _error(422, f"{'.'.join(map(str, first['loc']))}: {first['msg']}")

    @app.exception_handler(HTTPException)
    def _missing(_: Request, error: HTTPException) -> Response:
        return _error(error.status_code, str(error.detail))

    return Guard(app, doorkeeper)


def _error(status: int, text: str) -> Response:
    return JSONResponse({"error": " ".join(text.split())[:2000]}, status_code=status)
