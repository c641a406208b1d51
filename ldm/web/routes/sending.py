"""What browsers send: raw bodies, counted and with a deadline; see `ldm.web.uploads`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

import numpy as np
from fastapi import APIRouter, Query, Request
from fastapi.responses import FileResponse, Response

from ldm.conditioning.control import ClassMap
from ldm.core.errors import UserError
from ldm.data.images import open_map
from ldm.web.examples import example_maps
from ldm.web.guard import UPLOADS, Refused, read_body
from ldm.web.recall import parameters_in, recall
from ldm.web.routes.of_page import ModelName, PageOf
from ldm.web.uploads import AT_ONCE, MAX_UPLOAD, UPLOAD_SECONDS, map_of

router = APIRouter(prefix=UPLOADS)
ControlName = Annotated[str, Query(max_length=200)]
Side = Annotated[int, Query(ge=1)]
T = TypeVar("T")
_places = asyncio.Semaphore(AT_ONCE)


async def _received(request: Request, use: Callable[[bytes], T]) -> T:
    """What is made of the body, by another thread.

    Raises:
        Refused: too many uploads at once; see `read_body`.
    """
    if _places.locked():
        raise Refused(503, "other uploads are under way: try again in a moment")
    async with _places:
        content = await read_body(request.receive, MAX_UPLOAD, UPLOAD_SECONDS)
        return await asyncio.to_thread(use, content)


@router.post("/picture")
async def picture(page: PageOf, request: Request) -> dict[str, Any]:
    """A picture file."""
    name, (width, height) = await _received(request, page.uploads.add_picture)
    return {"name": name, "width": width, "height": height}


@router.post("/map")
async def map_file(page: PageOf, request: Request, model: ModelName, control: ControlName) -> dict[str, Any]:
    """A map as a picture file."""
    count = _classes(page, model, control)
    name, classes = await _received(request, lambda content: page.uploads.add_map(content, count))
    return {"name": name, "width": classes.shape[1], "height": classes.shape[0]}


@router.post("/indices")
async def indices(page: PageOf, request: Request, model: ModelName, control: ControlName, width: Side, height: Side) -> dict[str, Any]:
    """A painted map: 16 bits a pixel, little-endian, row by row."""
    count = _classes(page, model, control)
    name, _ = await _received(request, lambda content: page.uploads.add_indices(map_of(content, width, height), count))
    return {"name": name}


@router.get("/examples")
def examples(page: PageOf, model: ModelName, control: ControlName) -> list[dict[str, Any]]:
    """Maps to begin with, see `example_maps`."""
    found = page.models.describe(model)
    chosen = found.controls.get(control)
    return example_maps(found, chosen, page.uploads) if isinstance(chosen, ClassMap) else []


@router.post("/mask")
async def mask(page: PageOf, request: Request, width: Side, height: Side) -> dict[str, Any]:
    """A painted mask, as `indices`: 0 = keep, 1 = paint."""
    return {"name": await _received(request, lambda content: page.uploads.add_mask(map_of(content, width, height)))}


@router.post("/boxes")
async def boxes(page: PageOf, request: Request) -> dict[str, Any]:
    """Boxes as JSON."""
    return {"name": await _received(request, lambda content: page.uploads.add_boxes(_json(content)))}


@router.post("/recall")
async def recalled(page: PageOf, request: Request) -> dict[str, Any]:
    """The order of a drawn PNG, see `recall`."""
    return await _received(request, lambda content: recall(parameters_in(content), page.models, page.uploads, page.out))


@router.get("/{name}")
def sent(page: PageOf, name: str) -> Response:
    """A file that was sent."""
    return FileResponse(page.uploads.path(name))


@router.get("/{name}/indices")
def sent_indices(page: PageOf, name: str) -> Response:
    """A map that was sent, as `indices` takes it; its sides stand in the headers."""
    classes = open_map(page.uploads.path(name)).numpy().astype(np.dtype("<u2"))
    sides = {"x-width": str(classes.shape[1]), "x-height": str(classes.shape[0])}
    return Response(classes.tobytes(), media_type="application/octet-stream", headers=sides)


def _classes(page: PageOf, model: str, control: str) -> int:
    found = page.models.describe(model).controls.get(control)
    if not isinstance(found, ClassMap):
        raise UserError(f"model {model} has no map {control!r:.100}")
    return found.count


def _json(content: bytes) -> object:
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(f"not JSON: {error}") from error
