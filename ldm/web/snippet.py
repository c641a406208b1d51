"""A drawn picture as lines of Python that draw it again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ldm.web.models import Description
from ldm.web.order import Order


def python_of(order: Order, model: Description, files: Mapping[str, Path], device: str) -> str:
    """Python that draws exactly what the order asks for, as `images`.

    Args:
        files: where the order's files lie, by name.
        device: that the page draws on.
    """
    texts = model.of_kind("text")
    cond = {name: value for name, value in order.cond.items() if value.strip()}
    prompt = cond.get(texts[0]) if texts else None
    options = {name: getattr(order, name) for name in ("sampler", "steps", "guidance") if getattr(order, name) is not None}
    how = ", ".join(f"{name}={value!r}" for name, value in {**options, "num_images": order.num_images, "seed": order.seed}.items())
    negative = order.negative_prompt if order.negative_prompt.strip() and texts else ""
    also = f", negative_prompt={negative!r}" if negative else ""
    where = "" if device == "auto" else f", {device!r}"
    lines = ["from ldm import LatentDiffusion", "", f"model = LatentDiffusion.from_pretrained({model.name!r}{where})"]
    if order.mode != "upscale" and (order.height or order.width):
        lines.append(f"model = model.at_size({order.height!r}, {order.width!r})")
    if order.mode == "draw":
        given = {name: files[name].as_posix() for name in order.files if name in model.controls}
        if len(texts) == 1 and cond.keys() == set(texts) and not given:
            lines.append(f"images = model.text_to_image({prompt!r}{also}, {how})")
        else:
            lines.append(f"images = model.sample(cond={ ({**cond, **given})!r}{also}, {how})")
        return "\n".join(lines) + "\n"

    opened = {slot: f"open_image(Path({files[slot].as_posix()!r}))" for slot in ("image", "mask") if slot in order.files}
    call = {
        "inpaint": f"inpaint(model, {opened.get('image')}, {opened.get('mask')}, model.sampling({how}), {prompt!r}, {negative!r})",
        "img2img": f"image_to_image(model, {opened.get('image')}, {order.strength!r}, model.sampling({how}), {prompt!r}, {negative!r})",
        "upscale": f"upscale(model, {opened.get('image')}, model.sampling({how}))",
    }[order.mode]
    room = "upscaling" if order.mode == "upscale" else "edit"
    lines[1:1] = ["from ldm.data.images import open_image", f"from ldm.pipelines.{room} import {call.partition('(')[0]}"]
    return "\n".join(["from pathlib import Path", "", *lines, f"images = {call}"]) + "\n"
