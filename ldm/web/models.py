"""The models of the named folders: what each takes, and the one that is held in memory."""

from __future__ import annotations

import gc
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ldm.checkpoints.folder import MANIFEST
from ldm.checkpoints.model import LatentDiffusionSpec, read_spec
from ldm.conditioning.control import Control
from ldm.conditioning.shown import class_colours
from ldm.config.loader import to_short_form
from ldm.core.errors import UserError
from ldm.core.settings import height_width
from ldm.pipelines.latent_diffusion import LatentDiffusion
from ldm.samplers.sampler import Sampler

MOST_MODELS = 500  # that are offered

Mark = tuple[str, int]
"""A checkpoint as it is now: its path, and when it was written."""


@dataclass(frozen=True, kw_only=True)
class Description:
    """What a model takes, see `LatentDiffusionSpec` and `Conditioners.controls`."""

    name: str
    spec: LatentDiffusionSpec
    controls: dict[str, Control]

    def of_kind(self, kind: str) -> list[str]:
        """Names of the controls of a kind."""
        return [name for name, control in self.controls.items() if control.kind == kind]

    @property
    def modes(self) -> list[str]:
        """What the page can do with it. A model that draws a picture large is for that alone."""
        if self.of_kind("image"):
            return ["upscale"] if self.spec.first_stage.downsampling_factor > 1 else []
        takes_pictures = self.spec.first_stage.image_channels in (1, 3)
        return ["draw", *(["inpaint", "img2img"] if takes_pictures else [])]

    def plain(self) -> dict[str, Any]:
        """As JSON."""
        spec = self.spec
        height, width = height_width(spec.size)
        return {
            "name": self.name,
            "title": spec.name,
            "height": height,
            "width": width,
            "size_multiple": spec.size_multiple,
            "factor": spec.first_stage.downsampling_factor,
            "modes": self.modes,
            "controls": [_control(name, control) for name, control in self.controls.items()],
            "samplers": sorted(Sampler.kinds()),
            "sampler": to_short_form(spec.sampling.sampler),
            "steps": spec.sampling.steps,
            "guidance": spec.sampling.guidance,
        }


def _control(name: str, control: Control) -> dict[str, Any]:
    """A control as its declaration says, and the colours of classes that are drawn."""
    plain = {"name": name, "kind": control.kind, **asdict(control)}
    if control.kind in ("class_map", "boxes"):
        plain["colours"] = class_colours(plain["count"], tuple(plain.get("names", ())))
    return plain


class Models:
    """Finds, describes and opens them. One is held in memory; several threads may ask for descriptions, one draws."""

    def __init__(self, places: Sequence[Path], runs: Path, device: str) -> None:
        self.places, self.runs, self.device = tuple(places), runs, device
        self._described: dict[Mark, Description] = {}
        self._lock = threading.Lock()
        self._held: tuple[Mark, LatentDiffusion] | None = None

    def names(self) -> list[str]:
        """Those that there are now, by their paths."""
        return list(self._found())

    def describe(self, name: str) -> Description:
        """
        Raises:
            UserError: no such model, or one that cannot be read.
        """
        path = self._path(name)
        mark = _mark(path)
        with self._lock:
            if mark not in self._described:
                spec = read_spec(path)
                controls = spec.build_conditioners(empty=True).controls
                self._described = {known: one for known, one in self._described.items() if known[0] != mark[0]}  # as it was before
                self._described[mark] = Description(name=name, spec=spec, controls=controls)
            return self._described[mark]

    def open(self, name: str) -> LatentDiffusion:
        """The model, loaded anew if it was written since. For the thread that draws.

        Raises:
            UserError: see `LatentDiffusion.from_pretrained`.
        """
        path = self._path(name)
        mark = _mark(path)
        if self._held is None or self._held[0] != mark:
            self._held = None
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            self._held = mark, LatentDiffusion.from_pretrained(path, self.device)
        return self._held[1]

    def _path(self, name: str) -> Path:
        found = self._found()
        if name not in found:
            raise UserError(f"there is no model {name!r:.200} in the folders of --models and --runs")
        return found[name]

    def _found(self) -> dict[str, Path]:
        folders: list[Path] = []
        for place in self.places:
            folders += [place] if (place / MANIFEST).is_file() else _children(place)
        folders += [child / "checkpoint" for child in _children(self.runs)]
        fitting = [folder for folder in folders if (folder / MANIFEST).is_file() and any(folder.glob("denoiser*.safetensors"))]
        return {folder.as_posix(): folder for folder in fitting[:MOST_MODELS]}


def _children(folder: Path) -> list[Path]:
    return sorted(child for child in folder.iterdir() if child.is_dir() and child.name[0] != ".") if folder.is_dir() else []


def _mark(path: Path) -> Mark:
    try:
        return str(path), (path / MANIFEST).stat().st_mtime_ns
    except OSError as error:
        raise UserError(f"model {path} is not there any more") from error
