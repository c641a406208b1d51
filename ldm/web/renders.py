"""One render at a time: a bounded queue, the thread that draws, and what each render is at now."""

from __future__ import annotations

import argparse
import secrets
import shutil
import sys
import threading
import time
import traceback
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ldm.app import img2img, inpaint, sample, txt2img, upscale
from ldm.app.arguments import img2img as img2img_flags
from ldm.app.arguments import inpaint as inpaint_flags
from ldm.app.arguments import sample as sample_flags
from ldm.app.arguments import txt2img as txt2img_flags
from ldm.app.arguments import upscale as upscale_flags
from ldm.app.cli import line_for
from ldm.app.sampling_run import Drawn, files_of, sampling_of
from ldm.core.errors import UserError
from ldm.core.files import new_folder, recover_all
from ldm.samplers.sampler import Step
from ldm.web.models import Models
from ldm.web.order import MAX_ENLARGED, Command, Order, command_of
from ldm.web.preview import Preview
from ldm.web.render import ENDED, Render
from ldm.web.snippet import python_of
from ldm.web.uploads import Uploads

MOST_WAITING = 32  # renders, of all browsers
MOST_WAITING_OF_ONE = 8  # of one browser's tab
MOST_KEPT = 400  # finished renders that are remembered; their files stay
SCRIPTS = {
    "txt2img": (txt2img_flags.parse, txt2img.draw),
    "sample": (sample_flags.parse, sample.draw),
    "inpaint": (inpaint_flags.parse, inpaint.draw),
    "img2img": (img2img_flags.parse, img2img.draw),
    "upscale": (upscale_flags.parse, upscale.draw),
}
_parsing = threading.Lock()  # the flags' help reads sources with Python's `ast`, which until 3.12 is not safe in several threads


class QueueFull(Exception):
    """No more renders are taken now."""


class _Cancelled(Exception):
    """Ends a render in mid-run."""


class Renders:
    """All renders since the page was opened, and the thread that draws them one after the other.

    Args:
        models, uploads: what is drawn with, and on.
        out: each render's files come to lie in a folder of its own here, all at once.
        on_change: called, from any thread, with the session whose renders changed; None = all, as places in the queue moved.
    """

    def __init__(self, models: Models, uploads: Uploads, out: Path, on_change: Callable[[str | None], None]) -> None:
        self.models, self.uploads, self.out, self.on_change = models, uploads, out, on_change
        recover_all(out)  # what a kill left half-written
        self._renders: OrderedDict[str, Render] = OrderedDict()
        self._waiting: list[Render] = []
        self._changed = threading.Condition()
        self._is_closing = False
        self._changes = 0
        self._thread = threading.Thread(target=self._work, name="renders", daemon=True)
        self._thread.start()

    def submit(self, session: str, order: Order) -> Render:
        """Puts an order at the end of the queue.

        Raises:
            UserError: an order that cannot be drawn.
            QueueFull: too many wait.
        """
        model = self.models.describe(order.model)
        order.check(model)
        self.uploads.keep(order.files.values())
        id_ = f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(6)}"
        inputs = {slot: f"{slot}{self.uploads.path(name).suffix}" for slot, name in order.files.items()}
        folder = self.out / id_
        places = {slot: folder / name for slot, name in inputs.items()}
        command = command_of(order, model, places, folder)
        _options(command)  # refuses what the script refuses
        python = python_of(order, model, places, self.models.device)
        render = Render(id=id_, session=session, order=order, model=model, command=command, python=python, inputs=inputs)
        with self._changed:
            of_one = sum(one.session == session for one in self._waiting)
            if len(self._waiting) >= MOST_WAITING or of_one >= MOST_WAITING_OF_ONE:
                raise QueueFull(f"{max(of_one, len(self._waiting))} renders are waiting already: let some finish, or cancel them")
            self._renders[id_] = render
            self._waiting.append(render)
            self._touch(render)
            self._forget()
            self._changed.notify_all()
        self.on_change(None)
        return render

    def get(self, id_: str) -> Render | None:
        """None if there is none of that name."""
        with self._changed:
            return self._renders.get(id_)

    def cancel(self, id_: str) -> None:
        """Takes it out of the queue, or ends it after the step it is at; one that has ended stays as it is."""
        with self._changed:
            render = self._renders.get(id_)
            if render is None or render.state in ENDED:
                return
            render.is_cancelled = True
            if render in self._waiting:
                self._waiting.remove(render)
                render.state = "cancelled"
            self._touch(render)
        self.on_change(None)

    def of_session(self, session: str) -> list[dict[str, Any]]:
        """A tab's renders as JSON, the oldest first."""
        with self._changed:
            places = {render.id: place for place, render in enumerate(self._waiting, 1)}
            return [render.plain(places.get(render.id, 0)) for render in self._renders.values() if render.session == session]

    def folder(self, id_: str) -> Path:
        """Where a render's files lie."""
        return self.out / id_

    def close(self) -> None:
        """Ends the thread, after the step it is at."""
        with self._changed:
            self._is_closing = True
            for render in self._renders.values():
                render.is_cancelled = True
            self._changed.notify_all()
        self._thread.join(timeout=30)

    def _touch(self, render: Render) -> None:
        self._changes += 1
        render.version = self._changes

    def _forget(self) -> None:
        for id_ in [render.id for render in self._renders.values() if render.state in ENDED][: max(0, len(self._renders) - MOST_KEPT)]:
            del self._renders[id_]

    def _set(self, render: Render, **changes: Any) -> None:
        with self._changed:
            for name, value in changes.items():
                setattr(render, name, value)
            self._touch(render)
        self.on_change(render.session)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._is_closing)
                if self._is_closing:
                    return
                render = self._waiting.pop(0)
                render.state, render.started = "loading", time.monotonic()
                self._touch(render)
            self.on_change(None)
            self._run(render)

    def _run(self, render: Render) -> None:
        try:
            pictures = self._draw(render)
            self._set(render, state="done", pictures=pictures, previews=[], seconds=time.monotonic() - render.started)
        except _Cancelled:
            self._set(render, state="cancelled", previews=[])
        except Exception as error:
            line = line_for(error)
            if line is None:  # our own bug: the page goes on
                traceback.print_exc(file=sys.stderr)
                line = f"the render failed ({type(error).__name__}); the terminal of scripts/app.py says more"
            self._set(render, state="failed", error=line, previews=[])

    def _draw(self, render: Render) -> list[str]:
        """Draws, writes, and names the pictures."""
        order = render.order
        given = {slot: self.uploads.path(name) for slot, name in order.files.items()}
        model = self.models.open(order.model)
        options = _options(command_of(order, render.model, given, self.folder(render.id)))
        model = model.at_size(options.height, options.width) if "height" in options else model
        if order.mode == "upscale":
            _check_enlarged(given["image"])
        preview = Preview(model)

        def watch(step: Step) -> None:
            if render.is_cancelled:
                raise _Cancelled
            changes: dict[str, Any] = {"state": "drawing", "done": step.done, "steps": step.steps}
            if not render.first_step:
                changes["first_step"] = time.monotonic()
            if (files := preview.of(step)) is not None:
                changes |= {"previews": files, "num_previews": render.num_previews + 1}
            self._set(render, **changes)

        how = sampling_of(model, options, options.num_images, watch)
        drawn = SCRIPTS[render.command.script][1](model, options, how)
        files = files_of(drawn, _options(render.command), how)  # which name the inputs where they come to lie
        if drawn.numbers is not None:
            files |= {
                f"shown-{name}": content
                for name, content in files_of(Drawn(images=drawn.images), options, how).items()
                if name[0].isdigit()
            }
        if render.is_cancelled:
            raise _Cancelled
        with new_folder(self.folder(render.id)) as new:
            for name, content in files.items():
                (new / name).write_bytes(content)
            for slot, name in render.inputs.items():
                shutil.copyfile(given[slot], new / name)
        to_look_at = [name for name in files if name.startswith("shown-")]
        return sorted(to_look_at or [name for name in files if name[0].isdigit()])


def _options(command: Command) -> argparse.Namespace:
    """The script's flags.

    Raises:
        UserError: what the script's own parser refuses.
    """
    with _parsing:
        return SCRIPTS[command.script][0](command.arguments)


def _check_enlarged(path: Path) -> None:
    from ldm.data.picture_file import stored_size

    height, width = stored_size(path.read_bytes(), path.name)
    if width * height > MAX_ENLARGED:
        raise UserError(f"the picture has {width} x {height} pixels; the page enlarges up to {MAX_ENLARGED:,}")
