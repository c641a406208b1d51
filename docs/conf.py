"""The site of README, docs and benchmarks: `make docs`. Its source is the tree itself, so links between pages hold on the web too."""

from __future__ import annotations

import re
import sys
from itertools import groupby
from pathlib import Path
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from ldm.core.version import __version__  # noqa: E402

project, author, release = "ldm", "the ldm authors", __version__
copyright = "the ldm authors, MIT licence"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.apidoc"]
root_doc = "docs/index"
include_patterns = ["docs/**", "benchmarks/*.md", "checkpoints/*/README.md", "README.md", "CONTRIBUTING.md", "CHANGELOG.md"]
exclude_patterns = ["docs/_static"]

myst_enable_extensions = ["dollarmath", "attrs_block"]
myst_heading_anchors = 4
myst_links_external_new_tab = True
# A page may begin with a picture; names such as `step` stand in several classes.
suppress_warnings = ["myst.header", "ref.python"]

html_math_renderer = "mathml"
html_theme = "furo"
html_title = "ldm"
html_static_path = ["_static"]
html_css_files = ["site.css"]

# The reference is made of the docstrings, a page a room.
apidoc_modules = [
    {
        "path": "../ldm",
        "destination": "docs/reference",
        "exclude_patterns": ["../ldm/data/builtin"],
        "max_depth": 2,
        "separate_modules": False,
        "include_private": False,
        "no_headings": False,
        "module_first": True,
    }
]
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "undoc-members": False, "show-inheritance": False}
default_role = "code"
MARKUP = re.compile(r"(?<!\\)([*|])|(?<=\w)(_)(?!\w)")
napoleon_google_docstring, napoleon_numpy_docstring, napoleon_use_ivar = True, False, True


def _as_text(app: object, what: str, name: str, thing: object, options: object, lines: list[str]) -> None:
    """Docstrings are plain text: a module's tables and formulas stay as they are, and what reStructuredText would take for markup is
    escaped, but for names in backticks."""
    found: list[str] = []
    for is_kept, group in groupby(lines, lambda line: what == "module" and line.startswith(("    ", "|"))):
        block = list(group)
        if is_kept:
            found += ["::", "", *(f"    {line.removeprefix('    ')}" for line in block), ""]
            continue
        for line in block:
            parts = re.split(r"(`[^`]*`)", line)
            found.append("".join(part if part.startswith("`") else MARKUP.sub(r"\\\1\2", part) for part in parts))
    lines[:] = found


def _inline_math(writer: Any, node: nodes.math) -> None:
    """MathML, which browsers draw by themselves: no script from a network."""
    writer.body.append(convert(node.astext()))
    raise nodes.SkipNode


def _block_math(writer: Any, node: nodes.math_block) -> None:
    writer.body.append(f'<div class="math">{convert(node.astext(), display="block")}</div>')
    raise nodes.SkipNode


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", _as_text, priority=400)  # before napoleon reads its sections
    app.add_html_math_renderer("mathml", inline_renderers=(_inline_math, None), block_renderers=(_block_math, None))
