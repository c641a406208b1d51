#!/usr/bin/env python
"""The page, in a browser. `--help` has examples."""

from ldm.app.cli import run
from ldm.web.arguments import main

if __name__ == "__main__":
    run(main)
