#!/usr/bin/env python
"""A small picture drawn large. `--help` has examples."""

from ldm.app.cli import run
from ldm.app.upscale import main

if __name__ == "__main__":
    run(main)
