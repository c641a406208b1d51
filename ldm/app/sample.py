"""`scripts/sample.py`: pictures of a class, of a map, or of nothing in particular."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from ldm.app.sampling_run import Progress, open_model, parser, sampling_of, write_pictures
from ldm.conditioning.class_label import ClassLabel
from ldm.conditioning.inputs import ConditionInputs
from ldm.conditioning.semantic_map import SemanticMap
from ldm.data.images import open_map
from ldm.pipelines.canvas import as_pictures

EXAMPLES = """examples:
  python scripts/sample.py
  python scripts/sample.py --label "animals & nature" --num-images 8
  python scripts/sample.py --map layout.png --model runs/maps/checkpoint
"""


def main(arguments: Sequence[str]) -> None:
    """Draws samples."""
    flags = parser("Pictures of a class, of a map of classes, of both, or of nothing in particular.", EXAMPLES)
    flags.add_argument("--label", help="a class, by name or number")
    flags.add_argument("--map", type=Path, help="a grey or palette picture whose pixels are class indices")
    options = flags.parse_args(arguments)
    model = open_model(options)
    how = sampling_of(model, options, Progress())
    labels = None if options.label is None else torch.tensor([model.part(ClassLabel, "class labels").index_of(options.label)])
    maps = None
    if options.map is not None:
        model.part(SemanticMap, "semantic maps")
        maps = open_map(options.map)[None]
    told = ConditionInputs(count=1, labels=labels, maps=maps, grey_latent=model.grey_latent())
    write_pictures(as_pictures(model.generate(told, how)), options.out or Path("outputs/sample"), options, how)
