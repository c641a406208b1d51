#!/usr/bin/env python
"""The whole journey in minutes, on one page. `--help` has examples."""

from ldm.app.cli import run
from ldm.app.demo import main

if __name__ == "__main__":
    run(main)
