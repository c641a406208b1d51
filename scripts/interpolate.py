#!/usr/bin/env python
"""From one picture, prompt or seed to another. `--help` has examples."""

from ldm.app.arguments.interpolate import main
from ldm.app.cli import run

if __name__ == "__main__":
    run(main)
