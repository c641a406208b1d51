#!/usr/bin/env python
"""Stage two: train a latent diffusion model. `--help` has examples."""

from ldm.app.arguments.train_ldm import main
from ldm.app.cli import run

if __name__ == "__main__":
    run(main)
