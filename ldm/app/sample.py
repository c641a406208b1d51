"""`scripts/sample.py`: pictures of a class, of a map, or of nothing in particular."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ldm.app.sampling_run import parser, prepare, write_pictures
from ldm.data.images import open_map
from ldm.pipelines.canvas import as_pictures

EXAMPLES = """examples:
  python scripts/sample.py
  python scripts/sample.py --label animals-nature --num-images 8
  python scripts/sample.py --map layout.png --model runs/maps/checkpoint
"""


def main(arguments: Sequence[str]) -> None:
    """Draws samples."""
    flags = parser("Pictures of a class, of a map of classes, of both, or of nothing in particular.", EXAMPLES, "outputs/sample")
    flags.add_argument("--label", help="a class, by name or number")
    flags.add_argument("--map", type=Path, help="a grey or palette picture whose pixels are class indices")
    options = flags.parse_args(arguments)
    layout = None if options.map is None else open_map(options.map)
    model, how = prepare(options)
    write_pictures(as_pictures(model.generate(model.class_inputs(options.label, layout), how)), options, how)
