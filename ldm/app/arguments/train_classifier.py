"""The command line of `scripts/train_classifier.py`: a classifier of noisy samples, to guide by; or of clean ones, to judge by."""

from __future__ import annotations

from collections.abc import Sequence

from ldm.app.arguments.training import parse

EXAMPLES = """examples:
  python scripts/train_classifier.py
      the built-in pictures' eight groups, on noisy latents of the shipped first stage, into runs/emoji-classifier; guides checkpoints/emoji
  python scripts/train_classifier.py --config configs/classifier/mnist.yaml
      noise-aware, in pixel space, on data/mnist (made by: python scripts/prepare_data.py mnist --out data/mnist)
  python scripts/train_classifier.py --config configs/classifier/mnist-judge.yaml
      an ordinary classifier of clean pictures: the independent judge of what was drawn
"""


def main(arguments: Sequence[str]) -> None:
    """Trains a classifier."""
    description = "Train a classifier: noise-aware, to guide a diffusion model by; or with process=null on clean pictures, to judge by."
    options = parse(arguments, description, "configs/classifier/emoji.yaml", EXAMPLES)

    from ldm.app import train_classifier

    train_classifier.main(options)
