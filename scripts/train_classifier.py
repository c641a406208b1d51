#!/usr/bin/env python
"""Train a classifier, to guide a diffusion model by or to judge by. `--help` has examples."""

from ldm.app.arguments.train_classifier import main
from ldm.app.cli import run

if __name__ == "__main__":
    run(main)
