#!/usr/bin/env python
"""Train a classifier, to guide a diffusion model by or to judge by. `--help` has examples."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "ACTIVE")  # 20-40 % on a CPU; must be set before torch is loaded

from ldm.app.arguments.train_classifier import main
from ldm.app.cli import run

if __name__ == "__main__":
    run(main)
