#!/usr/bin/env python
"""A model in numbers: reconstructions, or generated pictures. `--help` has examples."""

from ldm.app.cli import run
from ldm.app.evaluate import main

if __name__ == "__main__":
    run(main)
