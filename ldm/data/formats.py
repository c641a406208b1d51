"""Which formats of pictures are read, and how a file's format is known: by its first bytes, whatever its suffix says.

This is an allow-list. Pillow has more decoders, and hands PostScript to a program: `Image.open` is called with one of these formats, and
never without. TGA alone has no signature and is known by its suffix.
"""

from __future__ import annotations

import re

HEAD = 128  # bytes of a file that `format_of` looks at
FORMATS = {
    "WEBP": ("webp",),
    "PNG": ("png", "apng"),
    "JPEG": ("jpg", "jpeg", "jpe", "jfif", "mpo"),
    "BMP": ("bmp",),
    "GIF": ("gif",),
    "TIFF": ("tif", "tiff"),
    "PPM": ("ppm", "pgm", "pbm", "pnm", "pfm"),
    "AVIF": ("avif",),
    "JPEG2000": ("jp2", "j2k", "jpx", "jpf", "j2c", "jpc"),
    "TGA": ("tga",),
    "HEIF": ("heic", "heif", "hif"),
    "NPY": ("npy",),
}
"""By Pillow's names, with the suffixes of their files; NPY is numpy's."""

IMAGE_SUFFIXES = tuple(suffix for suffixes in FORMATS.values() for suffix in suffixes)
CAMERA_RAW = set("3fr arw cr2 dcr dng erf fff iiq kdc mef mos nef nrw orf pef rw2 rwl sr2 srw".split())
"""Suffixes of files that look like TIFF, but have only a preview where TIFF has its picture."""

SIGNATURES = (
    ("JPEG", re.compile(rb"\xff\xd8\xff")),
    ("PNG", re.compile(rb"\x89PNG\r\n\x1a\n")),
    ("WEBP", re.compile(rb"RIFF....WEBP", re.DOTALL)),
    ("GIF", re.compile(rb"GIF8[79]a")),
    ("TIFF", re.compile(rb"II[*+]\0|MM\0[*+]")),
    ("BMP", re.compile(rb"BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0", re.DOTALL)),  # then the size of its second header: no text
    ("PPM", re.compile(rb"P[1-6f]\s+(#|-?\d+\s+(#|-?\d+\s))")),
    ("AVIF", re.compile(rb"....ftyp(avi[fs]|mi[fs]1)", re.DOTALL)),
    ("HEIF", re.compile(rb"....ftyphe(i[cxms]|v[cxms])", re.DOTALL)),
    ("JPEG2000", re.compile(rb"\xff\x4f\xff\x51|\0\0\0\x0cjP  \r\n\x87\n")),
    ("NPY", re.compile(rb"\x93NUMPY")),
)


def format_of(head: bytes, suffix: str) -> str | None:
    """Which of FORMATS a file has; None = none of them, and no picture that is read.

    Args:
        head: its first HEAD bytes, or all if it has fewer.
        suffix: of its name, with or without the dot, in any case; it decides only where the bytes cannot.
    """
    suffix = suffix.lower().removeprefix(".")
    found = next((name for name, signature in SIGNATURES if signature.match(head)), None)
    if found == "AVIF" and re.match(rb"....ftypm.f1", head, re.DOTALL):  # a container's name; the formats in it follow
        found = "AVIF" if b"avif" in head or b"avis" in head else "HEIF"
    if found == "TIFF" and suffix in CAMERA_RAW:
        return None
    return "TGA" if found is None and suffix in FORMATS["TGA"] else found
