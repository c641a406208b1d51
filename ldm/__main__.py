# PYTHON_ARGCOMPLETE_OK
"""`ldm COMMAND`, also `python -m ldm COMMAND`: the scripts of a checkout as one installed command."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from ldm.app.cli import Parser, run
from ldm.app.commands import CALLER, COMMANDS
from ldm.core.errors import unknown
from ldm.core.version import __version__

WIDTH = max(map(len, COMMANDS)) + 2
EPILOG = f"""commands:
{chr(10).join(f"  {name:<{WIDTH}}{command.does}" for name, command in COMMANDS.items())}

examples:
  ldm txt2img --prompt "a red heart"
  ldm train-ldm --help
  eval "$(register-python-argcomplete ldm)"
      the shell then completes commands and flags
"""


def main(arguments: Sequence[str]) -> None:
    """Runs a command.

    Raises:
        UserError: no such command; see the commands.
    """
    name, rest = (arguments[0] if arguments else ""), arguments[1:]
    if typed := _typed():
        name, rest = typed, []
    if name in COMMANDS:
        CALLER.command = name
        command = COMMANDS[name]
        importlib.import_module(command.module or f"ldm.app.arguments.{command.script}").main(rest)
        return
    if name and not name.startswith("-"):
        raise unknown("command", name, COMMANDS)
    parser = Parser("Latent diffusion: from a folder of pictures to a trained, measured model. COMMAND --help has its flags.", EPILOG)
    parser.add_argument("--version", action="version", version=f"ldm {__version__}")
    parser.add_argument("command", metavar="COMMAND", choices=COMMANDS, help="one of those below")
    parser.parse_args(arguments)


def _typed() -> str | None:
    """The command that is typed whole where a shell asks for completions; its line is then completed as that command's own."""
    if "_ARGCOMPLETE" not in os.environ:
        return None
    line, point = os.environ["COMP_LINE"], int(os.environ["COMP_POINT"])
    words = line[:point].split(" ")
    if len(words) < 3 or words[1] not in COMMANDS:
        return None
    os.environ["COMP_LINE"] = line.replace(f" {words[1]} ", " ", 1)
    os.environ["COMP_POINT"] = str(point - len(words[1]) - 1)
    return words[1]


def entry() -> NoReturn:
    """The installed command `ldm`."""
    CALLER.command = ""
    sys.argv[0] = "ldm"
    run(main)


if __name__ == "__main__":
    entry()
