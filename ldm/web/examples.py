"""Maps of pictures, to begin with: of the set that a run trains on, or of the built-in one where its classes are the model's."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import yaml

from ldm.conditioning.control import ClassMap
from ldm.core.errors import UserError
from ldm.core.settings import height_width
from ldm.data.config import DataConfig
from ldm.data.image_dataset import IndexedDataset
from ldm.data.open import open_dataset
from ldm.pipelines.canvas import to_pil
from ldm.web.models import Description
from ldm.web.uploads import Uploads

BUILT_IN = "emoji-128"
MOST, TRIED = 12, 60  # pictures that are offered, and looked at
FEWEST_CLASSES = 3  # in a map that is worth beginning with
MAX_CONFIG = 1 << 20  # bytes


def example_maps(model: Description, control: ClassMap, uploads: Uploads) -> list[dict[str, Any]]:
    """Maps and their pictures, as names of uploads, with captions; empty where there is no set of these classes at hand."""
    try:
        pictures = open_dataset(DataConfig(train=_place(Path(model.name)), size=height_width(model.spec.size)), "train", 0)
    except (UserError, OSError):  # the set has gone, or is of another machine
        return []
    assert isinstance(pictures, IndexedDataset), pictures  # what is not remote
    if pictures.facts.map_names != control.names or not control.names:
        return []
    found: list[dict[str, Any]] = []
    for index in range(0, len(pictures), max(1, len(pictures) // TRIED)):  # neighbours may be alike
        sample = pictures.sample(index, 0)
        if sample.map is None or len(sample.map.unique()) < FEWEST_CLASSES or len(found) == MOST:
            continue
        buffer = io.BytesIO()
        to_pil(sample.image[None])[0].save(buffer, "PNG")
        classes = sample.map.where(sample.map >= 0, control.count).numpy()
        map_name, _ = uploads.add_indices(classes, control.count)
        found.append({"map": map_name, "picture": uploads.add_picture(buffer.getvalue())[0], "caption": sample.caption})
    return found


def _place(checkpoint: Path) -> str:
    """The training pictures of the run that a checkpoint is of, if it is of one; else the built-in ones."""
    try:
        with open(checkpoint.parent / "config.yaml", "rb") as file:
            place = yaml.safe_load(file.read(MAX_CONFIG))["data"]["train"]
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError):
        return BUILT_IN
    return place if isinstance(place, str) and ":" not in place else BUILT_IN  # nothing is fetched for an example
