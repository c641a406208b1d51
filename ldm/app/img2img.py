"""`scripts/img2img.py`: a picture noised and denoised towards a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ldm.app.sampling_run import Progress, open_model, parser, sampling_of, write_pictures
from ldm.data.images import open_picture
from ldm.pipelines.edit import image_to_image

EXAMPLES = """examples:
  python scripts/img2img.py --image sketch.png --strength 0.6 --prompt "a cat"
"""


def main(arguments: Sequence[str]) -> None:
    """Changes a picture."""
    flags = parser("A picture noised to a strength and denoised, towards a prompt if there is one.", EXAMPLES)
    flags.add_argument("--image", type=Path, required=True, help="the picture; its centre square is taken, at the model's size")
    flags.add_argument("--strength", type=float, required=True, help="noise level above 0, at most 1: 0.2 = touched up, 1 = only the prompt counts")
    flags.add_argument("--prompt", default="", help="what to lead to")
    flags.add_argument("--negative-prompt", default="", help="what to lead away from")
    options = flags.parse_args(arguments)
    picture = open_picture(options.image)
    model = open_model(options)
    how = sampling_of(model, options, Progress())
    pictures = image_to_image(model, picture, options.strength, how, options.prompt, options.negative_prompt)
    write_pictures(pictures, options.out or Path("outputs/img2img"), options, how)
