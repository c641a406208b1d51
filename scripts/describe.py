#!/usr/bin/env python
"""How large a run would be: parameters, memory, operations. `--help` has examples."""

from ldm.app.arguments.describe import main
from ldm.app.cli import run

if __name__ == "__main__":
    run(main)
