"""The command line of `scripts/interpolate.py`: from one picture, prompt or seed to another."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from ldm.app.arguments.invert import INVERSION
from ldm.app.arguments.sampling import parser
from ldm.core.errors import UserError

EXAMPLES = """examples:
  python scripts/interpolate.py --prompt "a red heart" --to-prompt "a green apple"
      from one prompt to another, with one noise
  python scripts/interpolate.py --prompt "a red heart" --to-seed 7 --num-images 12
      from the noise of seed 0 to that of seed 7
  python scripts/interpolate.py --image heart.png --prompt "a red heart" --to-image apple.png --to-prompt "a green apple"
      between two pictures, whose noise DDIM inversion finds
"""


def main(arguments: Sequence[str]) -> None:
    """Interpolates."""
    flags = parser(
        "From one picture, prompt or seed to another: encoded prompts along a line, noise along a great circle. Between pictures, without "
        "flags: ddim, 50 steps, guidance 1.",
        EXAMPLES,
        "outputs/interpolate",
    )
    flags.add_argument("--prompt", help="of the first picture (default: nothing in particular)")
    flags.add_argument("--to-prompt", help="of the last (default: the same)")
    flags.add_argument("--image", type=Path, help="the first picture; its centre is taken, at the model's size")
    flags.add_argument("--to-image", type=Path, help="the last")
    flags.add_argument("--to-seed", type=int, help="of the last picture's noise (default: the same)")
    flags.set_defaults(num_images=8)
    options = flags.parse_args(arguments)
    _check(options)
    if options.image is not None:
        for name, value in INVERSION.items():
            setattr(options, name, value if getattr(options, name) is None else getattr(options, name))

    from ldm.app import interpolate

    interpolate.main(options)


def _check(options: argparse.Namespace) -> None:
    for name in ("prompt", "to_prompt"):
        if getattr(options, name) is not None and not getattr(options, name).strip():
            raise UserError(f"--{name.replace('_', '-')} is empty: say what to draw")
    if (options.image is None) != (options.to_image is None):
        raise UserError("--image and --to-image go together: an interpolation is between two pictures, or between none")
    if options.image is not None and options.to_seed is not None:
        raise UserError("--to-seed does not go with pictures, whose noise is their own")
    if options.image is None and options.to_prompt is None and options.to_seed is None:
        raise UserError("nothing to interpolate to: give --to-prompt, --to-seed or --to-image")
    if options.to_prompt is not None and options.prompt is None:
        raise UserError("--to-prompt needs --prompt, what to begin with")
    if options.num_images < 2:
        raise UserError(f"--num-images must be at least 2, got {options.num_images}")
