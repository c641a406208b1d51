"""Models, renders and their progress."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, HTTPException
from fastapi.responses import FileResponse, Response, StreamingResponse

from ldm.core.version import __version__
from ldm.web.order import Order
from ldm.web.render import Render
from ldm.web.routes.of_page import ModelName, PageOf, Session

router = APIRouter(prefix="/api")
FOREVER = "private, max-age=31536000, immutable"


@router.get("/page")
def about(page: PageOf) -> dict[str, Any]:
    """What the page shows before a model is chosen."""
    return {
        "version": __version__,
        "models": page.models.names(),
        "device": page.models.device,
        "allow_training": page.allow_training,
        "out": str(page.out),
        "runs": page.runs.folder.as_posix(),
    }


@router.get("/model")
def model(page: PageOf, name: ModelName) -> dict[str, Any]:
    """What a model takes."""
    return page.models.describe(name).plain()


@router.post("/renders")
def submit(page: PageOf, session: Session, order: Order) -> dict[str, str]:
    """Queues an order."""
    return {"id": page.renders.submit(session, order).id}


@router.delete("/renders/{id_}")
def cancel(page: PageOf, id_: str) -> dict[str, str]:
    """Ends a render, if it has not ended."""
    page.renders.cancel(_render(page, id_).id)
    return {}


@router.get("/renders/{id_}/files/{name}")
def picture(page: PageOf, id_: str, name: str) -> Response:
    """A file of a render that is done."""
    render = _render(page, id_)
    kind = render.file_names.get(name)
    path = page.renders.folder(render.id) / name
    if kind is None or render.state != "done" or not path.is_file():
        raise HTTPException(404, "there is no such file")
    return FileResponse(path, media_type=kind, headers={"cache-control": FOREVER})


@router.get("/renders/{id_}/previews/{number}")
def preview(page: PageOf, id_: str, number: int) -> Response:
    """The estimate of picture `number`, from 0, as it is now."""
    previews = _render(page, id_).previews
    if not 0 <= number < len(previews):
        raise HTTPException(404, "there is no preview now")
    return Response(previews[number], media_type="image/webp")


@router.get("/events")
async def events(page: PageOf, session: Session) -> Response:
    """A tab's renders as they change."""
    if page.events.is_full:
        raise HTTPException(503, "too many tabs are open: close some")
    stream = page.events.listen(session, lambda: page.renders.of_session(session))
    return StreamingResponse(stream, media_type="text/event-stream", headers={"x-accel-buffering": "no"})


def _render(page: PageOf, id_: str) -> Render:
    render = page.renders.get(id_)
    if render is None:
        raise HTTPException(404, "there is no such render")
    return render
