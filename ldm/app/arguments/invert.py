"""The command line of `scripts/invert.py`: the noise of a picture, and what the model draws from it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ldm.app.arguments.sampling import parser
from ldm.core.errors import UserError

EXAMPLES = """examples:
  python scripts/invert.py --image heart.png --prompt "a red heart"
      the picture again, from its noise: how well the model knows it
  python scripts/invert.py --image heart.png --prompt "a red heart" --to-prompt "a blue heart"
      and what another prompt makes of the same noise
"""
INVERSION = {"sampler": "ddim", "steps": 50, "guidance": 1.0}  # where no flag says otherwise: fewer steps or more guidance lose the picture
ELSEWHERE = {
    "--num-images": "is no flag here: a picture has one noise",
    "--seed": "is no flag here: the noise is the picture's own, and nothing else is drawn",
}


def main(arguments: Sequence[str]) -> None:
    """Inverts a picture."""
    flags = parser(
        "The noise from which the model draws a picture (DDIM inversion), and what it draws. Without flags: ddim, 50 steps, guidance 1.",
        EXAMPLES,
        "outputs/invert",
        elsewhere=ELSEWHERE,
    )
    flags.add_argument("--image", type=Path, required=True, help="the picture; its centre is taken, at the model's size")
    flags.add_argument("--prompt", help="what it shows (default: nothing in particular)")
    flags.add_argument("--to-prompt", help="what to draw from its noise besides the picture itself")
    flags.set_defaults(**INVERSION)
    options = flags.parse_args(arguments)
    for name in ("prompt", "to_prompt"):
        if getattr(options, name) is not None and not getattr(options, name).strip():
            raise UserError(f"--{name.replace('_', '-')} is empty: say what to draw")
    options.seed, options.num_images = 0, 1 if options.to_prompt is None else 2

    from ldm.app import invert

    invert.main(options)
