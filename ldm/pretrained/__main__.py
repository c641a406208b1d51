"""`python -m ldm.pretrained [NAME ...]`: fetches the pretrained files into the cache and prints where they are."""

from __future__ import annotations

import argparse
import sys

from ldm.core.errors import UserError
from ldm.pretrained.cache import cache_folder, fetch
from ldm.pretrained.table import TABLE


def main() -> int:
    """Exit code 0 if all files are in the cache, 2 with one line if one is not available."""
    extra = [name for name, entry in TABLE.items() if entry.is_optional]
    parser = argparse.ArgumentParser(
        prog="python -m ldm.pretrained", description=__doc__, epilog="example: python -m ldm.pretrained lpips-vgg16"
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(TABLE)} (default: all but {', '.join(extra)})")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    arguments = parser.parse_args()
    names = arguments.names or [name for name in TABLE if name not in extra]
    try:
        for number, name in enumerate(names, 1):
            path = fetch(name, progress=not arguments.quiet)
            if not arguments.quiet:
                print(f"[{number}/{len(names)}] {name}: {path.stat().st_size / 1e6:.1f} MB, verified", file=sys.stderr, flush=True)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"pretrained files are in {cache_folder()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
