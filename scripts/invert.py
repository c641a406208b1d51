#!/usr/bin/env python
"""The noise of a picture, and what the model draws from it. `--help` has examples."""

from ldm.app.arguments.invert import main
from ldm.app.cli import run

if __name__ == "__main__":
    run(main)
