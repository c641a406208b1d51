"""The command line of `scripts/sample.py`: pictures of a class, of a map, of boxes, or of nothing in particular."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from ldm.app.arguments.sampling import parser
from ldm.core.errors import UserError

EXAMPLES = """examples:
  python scripts/sample.py
  python scripts/sample.py --label animals-nature --num-images 8
  python scripts/sample.py --map layout.png --model runs/maps/checkpoint
  python scripts/sample.py --map panorama.png --height 512 --width 1024 --model runs/semantic512/checkpoint
  python scripts/sample.py --boxes layout.json --model runs/layout2img256/checkpoint
      a file layout.json: [[class, left, top, right, bottom], ...], class a number, the rest shares of the picture from 0 to 1
  python scripts/sample.py --cond attributes.age=40 --cond "attributes.tags=indoors;young" --model runs/faces/checkpoint
      by the names that the model's conditioners have; a wrong one is answered with those that there are
  python scripts/sample.py --label food-drink --classifier runs/emoji-classifier/checkpoint --classifier-scale 2
      a classifier that scripts/train_classifier.py trained guides to the class; the model need not be trained with labels
  python scripts/sample.py --out-set data/drawn --count 10000 --like data/mine --model runs/mine/checkpoint
      a prepared set of 10,000 pictures, of the captions, labels, maps and so on of data/mine in turn; after a kill the same command goes on
"""


def main(arguments: Sequence[str]) -> None:
    """Draws samples."""
    options = parse(arguments)
    if options.out_set is not None:
        from ldm.app.drawn_set import draw_set

        draw_set(options)
        return
    from ldm.app import sample

    sample.main(options)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The flags of a command line, with the defaults of those that it does not have.

    Raises:
        UserError: a flag that is none, is missing, or has another value than it takes.
    """
    flags = parser(
        "Pictures of a class, of a map of classes, of boxes, or of nothing in particular.",
        EXAMPLES,
        "outputs/sample",
        elsewhere={"--prompt": "is a flag of scripts/txt2img.py, which draws a text; beside other conditions it is --cond text=TEXT"},
    )
    flags.add_argument("--label", help="a class, by name or number")
    flags.add_argument("--map", type=Path, help="a grey or palette picture whose pixels are class indices")
    flags.add_argument("--boxes", type=Path, metavar="FILE", help="a JSON file of objects: [[class, left, top, right, bottom], ...]")
    flags.add_argument(
        "--cond",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a value for the model's conditioner of that name, or for its field: attributes.age=40; may be given several times",
    )
    flags.add_argument("--negative-prompt", default="", help="a text to lead away from, for models that read one")
    flags.add_argument("--classifier", metavar="CHECKPOINT", help="a noise-aware classifier's folder; it guides to --label")
    flags.add_argument("--classifier-scale", type=float, metavar="S", help="strength of that guidance; 1 = Bayes' rule (default: 1)")
    flags.add_argument("--out-set", type=Path, metavar="DIR", help="draw a prepared set, as of scripts/prepare_data.py, in place of --out")
    flags.add_argument("--count", type=int, metavar="N", help="how many pictures that has")
    flags.add_argument("--like", metavar="DATA", help="what each of them is conditioned on: what the pictures of this set have, in turn")
    flags.add_argument("--prompts", type=Path, metavar="FILE", help="or the texts of a file, a line each, in turn; or --label for all")
    options = flags.parse_args(arguments)
    _check_set(options)
    if options.classifier is not None and options.label is None:
        raise UserError("--classifier needs --label, the class to lead to")
    if options.classifier_scale is not None and options.classifier is None:
        raise UserError("--classifier-scale is of a classifier: name one with --classifier")
    return options


def _check_set(options: argparse.Namespace) -> None:
    if options.out_set is None:
        given = [flag for flag in ("count", "like", "prompts") if getattr(options, flag) is not None]
        if given:
            raise UserError(f"--{given[0]} is of a set of pictures: name its folder with --out-set")
        return
    if options.count is None or options.count < 1:
        raise UserError(f"--out-set needs --count, the number of pictures, at least 1; got {options.count}")
    if len([flag for flag in ("like", "prompts", "label") if getattr(options, flag) is not None]) > 1:
        raise UserError("--like, --prompts and --label each say what the pictures are conditioned on: give one of them")
    for flag in ("map", "boxes", "cond", "negative_prompt", "classifier"):
        if getattr(options, flag):
            raise UserError(
                f"--{flag.replace('_', '-')} does not go with --out-set: --like takes conditions from a set of pictures that have them"
            )
