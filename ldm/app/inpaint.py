"""`scripts/inpaint.py`: part of a picture painted anew."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ldm.app.sampling_run import parser, prepare, write_pictures
from ldm.data.images import open_picture
from ldm.pipelines.edit import inpaint

EXAMPLES = """examples:
  python scripts/inpaint.py --image photo.png --mask hole.png
  python scripts/inpaint.py --image photo.png --mask hole.png --prompt "a red hat" --num-images 4 --seed 3

The mask has the picture's size: white = paint, black = keep. Pixels that are kept come back bit-identical.
"""


def main(arguments: Sequence[str]) -> None:
    """Paints the masked part."""
    flags = parser("Paint part of a picture anew.", EXAMPLES, "outputs/inpaint")
    flags.add_argument("--image", type=Path, required=True, help="the picture, of any size")
    flags.add_argument("--mask", type=Path, required=True, help="a picture of the same size: white = paint")
    flags.add_argument("--prompt", help="what to paint (default: whatever fits)")
    options = flags.parse_args(arguments)
    picture, mask = open_picture(options.image), open_picture(options.mask)
    model, how = prepare(options)
    write_pictures(inpaint(model, picture, mask, how, options.prompt), options, how)
