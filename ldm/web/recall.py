"""The parameters in a PNG that a picture script or the page drew, as an order to draw it again."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

from PIL import Image

from ldm.core.errors import UserError
from ldm.data.images import open_image
from ldm.web.models import Description, Models
from ldm.web.uploads import Uploads

NUMBERS = ("steps", "guidance", "height", "width", "seed", "num_images", "strength")
MAX_TEXT = 1 << 20


def parameters_in(content: bytes) -> dict[str, Any]:
    """What a PNG says of how it was drawn.

    Raises:
        UserError: no PNG, or one that says nothing.
    """
    try:
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            text = image.info.get("parameters", "")
        found = json.loads(text) if len(text) <= MAX_TEXT else None
    except Exception:  # whatever a decoder raises on hostile bytes
        found = None
    if not isinstance(found, dict) or not isinstance(found.get("model"), str):
        raise UserError("this picture does not say how it was drawn: only PNGs of this page and of the scripts do")
    return found


def recall(parameters: dict[str, Any], models: Models, uploads: Uploads, out: Path) -> dict[str, Any]:
    """An order (see `Order`) of parameters, and what of them could not be had again, as `notes`.

    Input files are read again only where they lie in `out`: a picture's text may name any file of this machine.

    Raises:
        UserError: of a model that is not here.
    """
    model = models.describe(parameters["model"])
    order: dict[str, Any] = {"model": model.name, "cond": {}, "files": {}, "negative_prompt": ""}
    notes: list[str] = []
    if isinstance(parameters.get("negative_prompt"), str):
        order["negative_prompt"] = parameters["negative_prompt"]
    order |= {name: parameters[name] for name in NUMBERS if isinstance(parameters.get(name), int | float)}
    if isinstance(parameters.get("sampler"), str):
        order["sampler"] = parameters["sampler"]
    order["mode"] = _mode(parameters)
    for name, value in _conditions(parameters, model):
        control = model.controls.get(name)
        if control is None:
            notes.append(f"{name} is not a condition of this model")
        elif control.kind in ("class_map", "boxes"):
            _file(order, notes, name, value, out, lambda path, name=name: _add(uploads, model, name, path))
        else:
            order["cond"][name] = value
    for slot in ("image", "mask"):
        if isinstance(parameters.get(slot), str):
            _file(order, notes, slot, parameters[slot], out, lambda path: _picture(uploads, path))
    return {"order": order, "notes": notes}


def _mode(parameters: dict[str, Any]) -> str:
    if parameters.get("mask") is not None:
        return "inpaint"
    if parameters.get("strength") is not None:
        return "img2img"
    return "upscale" if parameters.get("image") is not None else "draw"


def _conditions(parameters: dict[str, Any], model: Description) -> list[tuple[str, str]]:
    """(control, value) of the flags that set conditions."""
    found = []
    listed = parameters.get("cond")
    for text in listed if isinstance(listed, list) else []:
        name, equals, value = str(text).partition("=")
        if equals:
            found.append((name, value))
    for flag, kind in (("prompt", "text"), ("label", "choice"), ("map", "class_map"), ("boxes", "boxes")):
        if isinstance(parameters.get(flag), str):
            found += [(name, parameters[flag]) for name in model.of_kind(kind)]
    return found


def _file(order: dict[str, Any], notes: list[str], slot: str, given: str, out: Path, add: Any) -> None:
    path = Path(given)
    if out.resolve() not in path.resolve().parents or not path.is_file():
        notes.append(f"its {slot} is not in {out} any more")
        return
    order["files"][slot] = add(path)


def _add(uploads: Uploads, model: Description, name: str, path: Path) -> str:
    if model.controls[name].kind == "boxes":
        return uploads.add_boxes(json.loads(path.read_text(encoding="utf-8")))
    count: int = model.controls[name].count  # type: ignore[attr-defined]
    return uploads.add_map(path.read_bytes(), count)[0]


def _picture(uploads: Uploads, path: Path) -> str:
    open_image(path)
    return uploads.add_picture(path.read_bytes())[0]
