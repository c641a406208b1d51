#!/usr/bin/env python
"""Stage two: train a latent diffusion model. `--help` has examples."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "ACTIVE")  # 20-40 % on a CPU; must be set before torch is loaded

from ldm.app.arguments.train_ldm import main
from ldm.app.cli import run

if __name__ == "__main__":
    run(main)
