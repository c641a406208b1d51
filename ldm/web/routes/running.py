"""Runs: what their folders say, and with --allow-training their start and end."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, HTTPException
from fastapi.responses import FileResponse, PlainTextResponse, Response
from pydantic import BaseModel, ConfigDict, Field

from ldm.web.routes.of_page import PageOf
from ldm.web.starting import Starter

router = APIRouter(prefix="/api")


class NewRun(BaseModel):
    """A run to start."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    name: Annotated[str, Field(max_length=100)]
    config: Annotated[str, Field(max_length=300)]
    overrides: Annotated[list[Annotated[str, Field(max_length=2000)]], Field(max_length=64)] = []


@router.get("/runs")
def runs(page: PageOf) -> list[dict[str, Any]]:
    """All runs, the latest first."""
    return page.runs.summaries()


@router.get("/runs/{name}")
def run(page: PageOf, name: str) -> dict[str, Any]:
    """A run in full."""
    return {**page.runs.details(name, page.out.parent), "log": page.starter.log(name)}


@router.get("/runs/{name}/samples/{step}.png")
def sample(page: PageOf, name: str, step: int) -> Response:
    """A sample grid."""
    found = page.runs.get(name)
    if step not in found.samples():
        raise HTTPException(404, "there is no such sample grid")
    return FileResponse(found.sample(step), headers={"cache-control": "private, max-age=3600"})


@router.get("/runs/{name}/samples/{step}.txt")
def words(page: PageOf, name: str, step: int) -> Response:
    """What a sample grid shows."""
    found = page.runs.get(name)
    path = found.sample(step).with_suffix(".txt")
    if step not in found.samples() or not path.is_file():
        raise HTTPException(404, "there are no words to it")
    return PlainTextResponse(path.read_text(encoding="utf-8", errors="replace"))


@router.get("/configs")
def configs(page: PageOf) -> list[str]:
    """Configs that a run may be started from."""
    return _starter(page).names()


@router.post("/runs")
def start(page: PageOf, new: NewRun) -> dict[str, str]:
    """Starts a run."""
    _starter(page).start(new.name, new.config, new.overrides)
    return {}


@router.post("/runs/{name}/resume")
def resume(page: PageOf, name: str) -> dict[str, str]:
    """Goes on with a run."""
    _starter(page).resume(name)
    return {}


@router.post("/runs/{name}/stop")
def stop(page: PageOf, name: str) -> dict[str, str]:
    """Stops a run."""
    _starter(page).stop(name)
    return {}


def _starter(page: PageOf) -> Starter:
    if not page.allow_training:
        raise HTTPException(403, "the page was started without --allow-training")
    return page.starter
