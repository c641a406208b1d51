"""What of a picture file decides how it looks, taken out of all that else stands in it.

A decoder refuses a sound picture for a damaged comment, a long text or a wrong checksum in what it does not need. So that is cut out
before the decoder sees it, and what decides how the picture looks (colour profile, orientation) is read here.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from PIL import TiffTags

from ldm.data.profiles import ADOBE_GAMMA, ADOBE_RGB, BT_2020, DISPLAY_P3, SRGB, matrix_profile

MAX_PROFILE = 16 * 2**20  # bytes; the largest that printers have are of about 4 MiB
PIXEL_TAGS = {  # of TIFF: sizes, colours, places and packing of what it shows, orientation, further pictures, colour profile
    *(254, 255, 256, 257, 258, 259, 262, 263, 266, 273, 274, 277, 278, 279, 280, 281, 284, 291, 292, 293, 301, 317, 318, 319),
    *(320, 322, 323, 324, 325, 330, 332, 336, 338, 339, 340, 341, 347, *range(512, 522), 529, 530, 531, 532, 34675),
}
PIXEL_CHUNKS = {b"tRNS", b"acTL", b"fcTL", b"fdAT"}  # of PNG, beside those whose name begins with a capital
ORIENTATION, INTEROPERABILITY_INDEX = 0x0112, (0x8769, 0xA005, 1)  # EXIF's tags, the latter through two directories
GAMMA = 1 / 2.2  # that of sRGB, as PNG's gAMA has it
WIDE = {9: ("BT.2020, as its code says", BT_2020), 12: ("Display P3, as its code says", DISPLAY_P3)}  # colour primaries of ITU-T H.273
HDR = (16, 18)  # its transfer characteristics PQ and HLG
NCLX = re.compile(rb"colrnclx(..)(..)", re.DOTALL)
XMP_ORIENTATION = re.compile(rb"tiff:Orientation(?:=\"|>)([1-8])")


class Bare(NamedTuple):
    """A file without its metadata.

    Attributes:
        content: the file's bytes, cut.
        profile: its ICC profile; None = there was none, or the decoder gives it.
        exif: likewise; it begins with a TIFF header.
        xmp: likewise.
        is_hdr: its levels are those of HDR, not of a screen.
    """

    content: bytes
    profile: bytes | None = None
    exif: bytes | None = None
    xmp: bytes | None = None
    is_hdr: bool = False


def bare(content: bytes, kind: str) -> Bare:
    """The file without what its decoder may stumble over; other formats than PNG, JPEG, TIFF and AVIF as they are."""
    if kind == "PNG":
        return _bare_png(content)
    if kind == "JPEG":
        return _bare_jpeg(content)
    if kind == "TIFF":
        return Bare(_bare_tiff(content))
    if kind in ("AVIF", "HEIF"):
        head = content[: content.find(b"mdat")]
        code = None if b"colrprof" in head or b"colrrICC" in head else NCLX.search(head)  # a profile, which the decoder gives, comes first
        primaries, transfer = (int.from_bytes(part, "big") for part in code.groups()) if code else (0, 0)
        if kind == "AVIF":  # EXIF and XMP get an unknown type; AVIF has its orientation elsewhere
            content = re.sub(rb"(infe[\2\3].{7}|infe[\2\3].{9})(?:Exif|mime)", rb"\1none", content, flags=re.DOTALL)
        return Bare(content, _coded_profile(primaries), is_hdr=transfer in HDR)
    return Bare(content)


def _coded_profile(primaries: int) -> bytes | None:
    """The profile of wide colours that H.273 has a number for; their curve is taken for sRGB's. None of others."""
    return matrix_profile(*WIDE[primaries], gamma=None) if primaries in WIDE else None


def orientation_of(exif: object, xmp: object) -> int:
    """EXIF's number from 1 (upright) to 8 of how a picture lies, from EXIF or else from XMP; 1 where neither can be read."""
    found = _exif_number(exif, ORIENTATION) if isinstance(exif, bytes) else None
    if found is None and isinstance(xmp, bytes) and (match := XMP_ORIENTATION.search(xmp)):
        found = int(match[1])
    return found if found is not None and 1 <= found <= 8 else 1


def _exif_number(exif: bytes, *path: int) -> int | None:
    """An entry of EXIF, by the tags that lead to it; None if it is not there.

    Nothing else is read: Pillow gives up at damage in any other entry, and unpacks what they all say they have.
    """
    exif = exif.removeprefix(b"Exif\0\0")
    order = "<" if exif[:2] == b"II" else ">"
    try:
        (found,) = struct.unpack_from(f"{order}I", exif, 4)
        for wanted in path:
            start = found
            (entries,) = struct.unpack_from(f"{order}H", exif, start)
            for place in range(start + 2, start + 2 + 12 * entries, 12):
                tag, kind = struct.unpack_from(f"{order}HH", exif, place)
                if tag == wanted:
                    (found,) = struct.unpack_from(f"{order}{'H' if kind == TiffTags.SHORT else 'I'}", exif, place + 8)
                    break
            else:
                return None
        return int(found)
    except struct.error:  # it breaks off
        return None


def _bare_png(content: bytes) -> Bare:
    kept, start, profile, exif, xmp = [content[:8]], 8, None, None, None
    declared: dict[bytes, bytes] = {}
    for name, end in _png_chunks(content):
        if name[:1].isupper() or name in PIXEL_CHUNKS:
            kept.append(content[start:end])
        else:
            data = content[start + 8 : end - 4]
            if name == b"iCCP":
                profile = _inflated(data.partition(b"\0")[2][1:])
            elif name in (b"sRGB", b"gAMA", b"cHRM", b"cICP"):
                declared[name] = data
            elif name == b"eXIf":
                exif = data
            elif name == b"iTXt" and data.startswith(b"XML:com.adobe.xmp\0\0"):
                xmp = data
            elif name == b"tEXt" and data.startswith(b"Raw profile type exif\0"):
                exif = exif or _raw_profile(data.partition(b"\0")[2])
            elif name == b"zTXt" and data.startswith(b"Raw profile type exif\0"):
                exif = exif or _raw_profile(_inflated(data.partition(b"\0")[2][1:]))
        start = end
    kept.append(content[start:])  # a chunk that breaks off, which is the decoder's to judge
    code = declared.get(b"cICP", b"\0\0")[:2].ljust(2, b"\0")
    if content[25:26] in (b"\2", b"\3", b"\6"):  # its colour type: not grey
        if code[0]:  # it comes first
            profile = _coded_profile(code[0])
        elif profile is None:
            profile = _declared_profile(declared)
    return Bare(b"".join(kept), profile, exif, xmp, is_hdr=code[1] in HDR)


def _declared_profile(declared: dict[bytes, bytes]) -> bytes | None:
    """The profile of what a PNG says in gAMA and cHRM; None if that is sRGB, or nonsense."""
    if b"sRGB" in declared:
        return None
    try:
        gamma = struct.unpack_from(">I", declared[b"gAMA"])[0] / 1e5 if b"gAMA" in declared else GAMMA
        xy = tuple(part / 1e5 for part in struct.unpack_from(">8I", declared[b"cHRM"])) if b"cHRM" in declared else SRGB
        is_srgb = abs(gamma - GAMMA) < 0.01 and all(abs(one - other) < 0.01 for one, other in zip(xy, SRGB, strict=True))
        return None if is_srgb else matrix_profile("as gAMA and cHRM say", xy, 1 / gamma)
    except (struct.error, ZeroDivisionError, ValueError):
        return None


def _png_chunks(content: bytes) -> Iterator[tuple[bytes, int]]:
    """Name and end of each whole chunk, up to the last."""
    start = 8
    while start + 12 <= len(content):
        length, name = struct.unpack_from(">I4s", content, start)
        start += 12 + length
        if start > len(content):
            return
        yield name, start
        if name == b"IEND":
            return


def _raw_profile(text: bytes) -> bytes | None:
    """EXIF as ImageMagick writes it into a text: three lines, then hexadecimal digits."""
    try:
        return bytes.fromhex(b"".join(text.split(b"\n")[3:]).decode("ascii"))
    except ValueError:
        return None


def _inflated(data: bytes) -> bytes:
    """What zlib unpacks; empty, which is no profile, where it is damaged or too large."""
    unpacking = zlib.decompressobj()
    try:
        whole = unpacking.decompress(data, MAX_PROFILE)
    except zlib.error:
        return b""
    return b"" if unpacking.unconsumed_tail else whole


def _bare_jpeg(content: bytes) -> Bare:
    kept, start, exif, xmp, components = [content[:2]], 2, None, None, 0
    profile: dict[int, bytes] = {}
    for marker, end in _jpeg_segments(content):
        data = content[start + 4 : end]
        if marker == 0xE1 and data.startswith(b"Exif\0\0"):
            exif = (exif or b"") + data[6:]
        elif marker == 0xE1 and data.startswith(b"http://ns.adobe.com/xap/1.0/\0"):
            xmp = data
        elif marker == 0xE2 and data.startswith(b"ICC_PROFILE\0") and len(data) > 14:
            profile[data[12]] = data[14:]
        elif marker in (0xC0, 0xC1, 0xC2) and len(data) > 5:
            components = data[5]
        is_needed = (marker == 0xE0 and data.startswith(b"JFIF\0") and len(data) >= 14) or (
            marker == 0xEE and data.startswith(b"Adobe") and len(data) >= 12  # these two say which colours the numbers mean
        )
        if is_needed or not (0xE0 <= marker <= 0xEF or marker == 0xFE):
            kept.append(content[start:end])
        start = end
    kept.append(content[start:])
    whole = b"".join(profile[number] for number in sorted(profile)) or None
    if whole is None and components == 3 and _says_adobe_rgb(exif):
        whole = matrix_profile("Adobe RGB, as EXIF says", ADOBE_RGB, ADOBE_GAMMA)
    return Bare(b"".join(kept), whole, exif, xmp)


def _bare_tiff(content: bytes) -> bytes:
    """The same with all tags but PIXEL_TAGS of a type that is none, at which decoders pass them over."""
    order = "<" if content.startswith(b"II") else ">"
    is_big = b"+" in content[2:4]
    count_form, count_size, entry_size, place_form = ("Q", 8, 20, "Q") if is_big else ("H", 2, 12, "I")
    patched, seen = bytearray(content), set()
    try:
        (start,) = struct.unpack_from(order + place_form, content, 8 if is_big else 4)
        while start and start not in seen:
            seen.add(start)
            (entries,) = struct.unpack_from(order + count_form, content, start)
            end = start + count_size + entries * entry_size
            (following,) = struct.unpack_from(order + place_form, content, end)
            for place in range(start + count_size, end, entry_size):
                if struct.unpack_from(f"{order}H", content, place)[0] not in PIXEL_TAGS:
                    patched[place + 2 : place + 4] = b"\0\0"
            start = following
    except struct.error:  # it breaks off, which is the decoder's to judge
        pass
    return bytes(patched)


def _says_adobe_rgb(exif: bytes | None) -> bool:
    """Whether a camera says so by the rules of DCF 2.0, without a profile: interoperability index R03."""
    index = None if exif is None else _exif_number(exif, *INTEROPERABILITY_INDEX)
    return index in (int.from_bytes(b"R03\0", "little"), int.from_bytes(b"R03\0", "big"))


def _jpeg_segments(content: bytes) -> Iterator[tuple[int, int]]:
    """Marker and end of each whole segment up to the first scan; none beyond what is no segment, which is the decoder's to judge."""
    start = 2
    while start + 4 <= len(content) and content[start] == 0xFF and 0xC0 <= (marker := content[start + 1]) <= 0xFE and marker != 0xDA:
        length = int.from_bytes(content[start + 2 : start + 4], "big")
        start += 2 + length
        if length < 2 or start > len(content):
            return
        yield marker, start
