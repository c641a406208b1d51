"""The command line of `scripts/train_vae.py`: stage one."""

from __future__ import annotations

from collections.abc import Sequence

from ldm.app.arguments.training import parse

EXAMPLES = """examples:
  python scripts/train_vae.py
      the built-in pictures, configs/vae/emoji-f4.yaml, into runs/emoji-f4; the same command again resumes
  python scripts/train_vae.py --run-dir runs/mine data.train=DIR data.val=null init_from=checkpoints/emoji
      fine-tune the shipped first stage on the pictures in DIR
  torchrun --nproc_per_node 4 scripts/train_vae.py --config configs/vae/emoji-f4.yaml
"""


def main(arguments: Sequence[str]) -> None:
    """Trains a first stage."""
    options = parse(arguments, "Train stage one: a KL or VQ autoencoder on your pictures.", "configs/vae/emoji-f4.yaml", EXAMPLES)

    from ldm.app import train_vae

    train_vae.main(options)
