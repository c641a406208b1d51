"""The command line of `scripts/train_ldm.py`: stage two."""

from __future__ import annotations

from collections.abc import Sequence

from ldm.app.arguments.training import parse

EXAMPLES = """examples:
  python scripts/train_ldm.py
      the built-in pictures, text conditioning, on the shipped first stage, into runs/emoji-text; the same command again resumes
  python scripts/train_ldm.py data.train=DIR data.val=null first_stage.checkpoint=runs/mine/checkpoint --run-dir runs/mine-ldm
      your own pictures on your own first stage
  python scripts/train_ldm.py init_from=checkpoints/sd1 data.train=DIR --run-dir runs/mine-sd1
      goes on with a trained or imported model on your own captioned pictures; what the model is, its checkpoint says
  python scripts/train_ldm.py init_from=checkpoints/sd1 data.train=DIR lora.rank=8 --run-dir runs/mine-lora
      the same by low-rank adapters only: less memory, a file of a few megabytes
  torchrun --nproc_per_node 4 scripts/train_ldm.py --config configs/ldm/emoji.yaml
"""
FULL, LORA, SCRATCH = "configs/ldm/finetune.yaml", "configs/ldm/lora.yaml", "configs/ldm/emoji-text.yaml"


def _default_config(arguments: Sequence[str]) -> str:
    """The config of a command line that names none: one for fine-tuning where it says what to start from."""
    keys = {word.split("=")[0].split(".")[0] for word in arguments if "=" in word}
    return LORA if "lora" in keys else FULL if "init_from" in keys else SCRATCH


def main(arguments: Sequence[str]) -> None:
    """Trains a latent diffusion model."""
    options = parse(arguments, "Train stage two: a conditional latent diffusion model.", _default_config(arguments), EXAMPLES)

    from ldm.app import train_ldm

    train_ldm.main(options)
