#!/usr/bin/env python
"""Stage one: train a KL autoencoder. `--help` has examples."""

from ldm.app.arguments.train_vae import main
from ldm.app.cli import run

if __name__ == "__main__":
    run(main)
