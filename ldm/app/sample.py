"""`scripts/sample.py`: pictures of a class, of a map, of boxes, or of nothing in particular."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from ldm.app.sampling_run import parser, prepare, write_pictures
from ldm.core.errors import UserError
from ldm.data.images import open_map
from ldm.data.sources.folder import read_boxes
from ldm.pipelines.canvas import as_pictures

EXAMPLES = """examples:
  python scripts/sample.py
  python scripts/sample.py --label animals-nature --num-images 8
  python scripts/sample.py --map layout.png --model runs/maps/checkpoint
  python scripts/sample.py --boxes layout.json --model runs/layout2img256/checkpoint
      layout.json: [[class, left, top, right, bottom], ...], class a number, the rest shares of the picture from 0 to 1
  python scripts/sample.py --cond attributes.age=40 --cond attributes.smiles=yes --model runs/faces/checkpoint
      by the names that the model's conditioners have; a wrong one is answered with those that there are
  python scripts/sample.py --label food-drink --classifier runs/emoji-classifier/checkpoint --classifier-scale 2
      a classifier that scripts/train_classifier.py trained leads to the class; the model need not know labels
"""


def main(arguments: Sequence[str]) -> None:
    """Draws samples."""
    flags = parser("Pictures of a class, of a map of classes, of boxes, or of nothing in particular.", EXAMPLES, "outputs/sample")
    flags.add_argument("--label", help="a class, by name or number")
    flags.add_argument("--map", type=Path, help="a grey or palette picture whose pixels are class indices")
    flags.add_argument("--boxes", type=Path, metavar="JSON", help="where objects are, and of which class")
    flags.add_argument(
        "--cond",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a value for the model's conditioner of that name, or for its field: attributes.age=40; may be given several times",
    )
    flags.add_argument("--classifier", metavar="CHECKPOINT", help="a noise-aware classifier's folder; it leads to --label")
    flags.add_argument("--classifier-scale", type=float, metavar="S", help="how hard it leads; 1 = Bayes' rule (default: 1)")
    options = flags.parse_args(arguments)
    is_led = options.classifier is not None
    if is_led and options.label is None:
        raise UserError("--classifier needs --label, the class to lead to")
    if options.classifier_scale is not None and not is_led:
        raise UserError("--classifier-scale is of a classifier: name one with --classifier")
    layout = None if options.map is None else open_map(options.map)
    boxes = None if options.boxes is None else read_boxes(options.boxes)
    cond = dict(_conditions(options.cond))
    model, how = prepare(options)
    if is_led:
        options.classifier_scale = 1.0 if options.classifier_scale is None else options.classifier_scale
        how = replace(how, guide=model.guide(options.classifier, (options.label,), options.classifier_scale))
    inputs = model.inputs(cond, label=options.label, layout=layout, boxes=boxes, is_guided=is_led)
    write_pictures(as_pictures(model.generate(inputs, how)), options, how)


def _conditions(said: Sequence[str]) -> Iterator[tuple[str, str]]:
    for text in said:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise UserError(f"--cond {text!r}: must read NAME=VALUE, e.g. class=cat or attributes.age=40")
        yield name, value
