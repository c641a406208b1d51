#!/usr/bin/env python
"""How large a run would be: parameters, memory, operations. `--help` has examples."""

from ldm.app.cli import run
from ldm.app.describe import main

if __name__ == "__main__":
    run(main)
