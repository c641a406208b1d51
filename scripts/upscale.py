#!/usr/bin/env python
"""A small picture drawn large. `--help` has examples."""

from ldm.app.arguments.upscale import main
from ldm.app.cli import run

if __name__ == "__main__":
    run(main)
