#!/usr/bin/env python
"""A model in numbers: reconstructions, or generated pictures. `--help` has examples."""

from ldm.app.arguments.evaluate import main
from ldm.app.cli import run

if __name__ == "__main__":
    run(main)
