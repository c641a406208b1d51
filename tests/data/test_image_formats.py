"""One list of picture formats; a file's bytes say which it has."""

from __future__ import annotations

import ast
import io
import sys
from pathlib import Path

import numpy as np
import pillow_heif
import pytest
from PIL import EpsImagePlugin, Image

from ldm.core.errors import UserError
from ldm.data.formats import FORMATS, HEAD, format_of
from ldm.data.images import decode_image, open_image

ROOT = Path(__file__).parents[2]
PICTURE = Image.fromarray(np.kron(np.random.default_rng(0).integers(0, 256, (3, 4, 3), dtype=np.uint8), np.ones((8, 8, 1), np.uint8)))
WRITABLE = [kind for kind in FORMATS if kind not in ("HEIF", "NPY") and (kind != "AVIF" or ".avif" in Image.registered_extensions())]


def saved(kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    PICTURE.copy().save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", WRITABLE)
@pytest.mark.parametrize("suffix", ["png", ".JPG", "", "txt"])
def test_a_format_is_found_by_content_under_any_suffix(kind: str, suffix: str) -> None:
    suffix = "tga" if kind == "TGA" else suffix
    content = saved(kind)
    assert format_of(content[:HEAD], suffix) == kind
    image = decode_image(content, "it", suffix=suffix)
    assert np.abs(np.asarray(image, int) - np.asarray(PICTURE)).mean() < 12


HEADERS = [
    (b"\xff\xd8\xff\xe1Exif", "jpg", "JPEG"),
    (b"P5\n# made by hand\n4 3\n255\n", "txt", "PPM"),
    (b"Pf\n4 3\n-1.0\n", "", "PPM"),
    (b"II+\0\x08\0\0\0", "tif", "TIFF"),
    (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "jpg", "HEIF"),
    (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "heic", "HEIF"),
    (b"\0\0\0\x1cftypmif1\0\0\0\0mif1avifmiaf", "heic", "AVIF"),
    (b"\xff\x4f\xff\x51\0\x2f", "j2k", "JPEG2000"),
    (b"\x93NUMPY\x01\0", "png", "NPY"),
    (b"\0\0\x02\0\0\0\0\0\0\0\0\0\x04\0\x03\0\x18\0", "tga", "TGA"),
    (b"\0\0\x02\0\0\0\0\0\0\0\0\0\x04\0\x03\0\x18\0", "png", None),
    (b"II*\0\x08\0\0\0", "nef", None),  # a preview only
    (b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom", "jpg", None),
    (b"\0\0\0\x18ftypcrx \0\0\0\0crx isom", "cr3", None),
    (b"BMW drives past", "txt", None),
    (b"P1 is the first, P2 the second", "txt", None),
    (b"GIF of a cat", "txt", None),
    (b"RIFF\0\0\0\0WAVEfmt ", "png", None),
    (b"%!PS-Adobe-3.0 EPSF-3.0\n", "png", None),
    (b"<svg xmlns=", "png", None),
    (b"", "png", None),
]


@pytest.mark.parametrize("head, suffix, kind", HEADERS, ids=[f"{head[:12]!r}.{suffix}" for head, suffix, _ in HEADERS])
def test_first_bytes(head: bytes, suffix: str, kind: str | None) -> None:
    assert format_of(head, suffix) == kind


def test_no_picture_starts_a_program(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Pillow hands PostScript to Ghostscript, whatever the file's name."""
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *given, **more: pytest.fail("Ghostscript was started"))
    (tmp_path / "a.png").write_bytes(saved("EPS"))
    with pytest.raises(UserError, match="a.png: not a picture that can be read"):
        open_image(tmp_path / "a.png")


@pytest.mark.parametrize("kind", ["EPS", "DDS", "PCX", "SGI", "ICO", "PDF", "SPIDER"])
def test_formats_that_are_not_on_the_list_are_refused(kind: str) -> None:
    buffer = io.BytesIO()
    PICTURE.convert("F" if kind == "SPIDER" else "RGB").save(buffer, kind)
    with pytest.raises(UserError, match="not a picture"):
        decode_image(buffer.getvalue(), "it", suffix="png")


def test_pillow_is_never_asked_to_guess_a_format() -> None:
    calls = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for room in ("ldm", "scripts", "benchmarks")
        for path in sorted((ROOT / room).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "Image.open" and "formats" not in {word.arg for word in node.keywords}
    ]
    assert not calls, f"Image.open without formats=: {', '.join(calls)}"


def test_heic_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)  # as where it is not installed
    with pytest.raises(UserError, match="pip install pillow-heif"):
        decode_image(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "it")


def test_heic_is_read_where_its_plug_in_is_installed() -> None:
    pillow_heif.register_heif_opener()
    image = decode_image(saved("HEIF", quality=95), "it")
    assert np.abs(np.asarray(image, int) - np.asarray(PICTURE)).mean() < 12
