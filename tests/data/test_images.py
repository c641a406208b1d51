"""Every kind of picture file that people have."""

from __future__ import annotations

import base64
import io
import random
import re
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, TiffImagePlugin
from torch.testing import assert_close

from ldm.core.errors import UserError
from ldm.data.images import (
    decode_array,
    decode_image,
    decode_map,
    decode_mask,
    doubt_about,
    examine,
    image_tensor,
    object_in,
    open_image,
    open_map,
)
from ldm.data.metadata import orientation_of
from ldm.data.picture_file import count_pages

WHITE = (255, 255, 255)
RAMP = np.linspace(0, 255, 48).astype(np.uint8).reshape(6, 8)


def file_of(picture: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format=kind, **options)
    return buffer.getvalue()


def levels(content: bytes, channels: int = 3, background: tuple[int, int, int] = WHITE) -> np.ndarray:
    """(H, W, C) in 0..255 as training sees it."""
    image = image_tensor(decode_image(content, "it"), channels, background, "it")
    return ((image + 1) * 127.5).round().permute(1, 2, 0).numpy()


def test_grey_16_bit_keeps_its_whole_range() -> None:
    deep = Image.fromarray(RAMP.astype(np.uint16) * 257)
    for kind in ("PNG", "TIFF"):
        np.testing.assert_array_equal(levels(file_of(deep, kind), channels=1)[..., 0], RAMP)


def test_cmyk_comes_out_as_the_colour_it_shows() -> None:
    found = levels(file_of(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "TIFF"))
    np.testing.assert_allclose(found[4, 4], (255, 0, 0), atol=3)


def test_palette_with_and_without_transparency() -> None:
    picture = Image.new("P", (2, 1))
    picture.putpalette([255, 0, 0, 0, 0, 255])
    picture.putdata([0, 1])
    np.testing.assert_array_equal(levels(file_of(picture, "PNG"))[0], [(255, 0, 0), (0, 0, 255)])
    np.testing.assert_array_equal(levels(file_of(picture, "PNG", transparency=1), background=(9, 8, 7))[0], [(255, 0, 0), (9, 8, 7)])


def test_alpha_is_laid_on_the_stated_colour() -> None:
    half = file_of(Image.new("RGBA", (2, 2), (200, 0, 100, 51)), "PNG")  # a fifth
    np.testing.assert_allclose(levels(half, background=(0, 100, 50))[0, 0], (40, 80, 60), atol=1)


def test_exif_rotation_is_undone() -> None:
    drawn = Image.fromarray(np.stack([RAMP] * 3, -1))
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its left side
    np.testing.assert_array_equal(levels(file_of(drawn.rotate(90, expand=True), "PNG", exif=exif)), np.asarray(drawn))


def test_black_and_white_is_grey() -> None:
    np.testing.assert_array_equal(levels(file_of(Image.fromarray(RAMP > 99), "PNG"), channels=1)[..., 0], (RAMP > 99) * 255)


def test_a_mask_is_where_it_is_bright_and_a_map_keeps_its_numbers() -> None:
    content = file_of(Image.fromarray(RAMP), "PNG")
    edge = Image.fromarray(np.array([[0, 127, 128, 255]], dtype=np.uint8))
    assert decode_mask(file_of(edge, "PNG"), "it").tolist() == [[[0, 0, 1, 1]]]
    np.testing.assert_array_equal(decode_map(content, "it").numpy(), RAMP)
    with pytest.raises(UserError, match="class indices"):
        decode_map(file_of(Image.new("RGB", (2, 2)), "PNG"), "it")


def test_arrays_of_five_channels() -> None:
    drawn = np.arange(2 * 3 * 5, dtype=np.uint16).reshape(2, 3, 5) * 2000
    buffer = io.BytesIO()
    np.save(buffer, drawn)
    expected = torch.from_numpy(drawn.astype(np.float64) / 65535 * 2 - 1).permute(2, 0, 1).float()
    assert_close(decode_array(buffer.getvalue(), "it"), expected)


def test_pickled_arrays_are_refused() -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match="plain .npy"):
        decode_array(buffer.getvalue(), "it")


@pytest.mark.parametrize("side", [10_500, 20_000])
def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path: Path, side: int) -> None:
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(99))))
    with pytest.raises(UserError, match="million") as caught:
        open_image(tmp_path / "bomb.png")
    assert "bomb.png" in str(caught.value) and "\n" not in str(caught.value)


def test_missing_and_foreign_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "words.png").write_text("words")
    with pytest.raises(UserError, match="words.png: not a picture"):
        open_image(tmp_path / "words.png")
    with pytest.raises(UserError, match="none.png: no such file"):
        open_image(tmp_path / "none.png")
    with pytest.raises(UserError, match="cannot be read"):
        open_image(tmp_path)


SIGNED = np.linspace(-1000, 3000, 48).reshape(6, 8).round()
DEEP = {
    "signed 32 bits": (SIGNED.astype(np.int32), -1000, 3000),
    "float": (SIGNED.astype(np.float32), -1000, 3000),
    "float 0 to 255": (RAMP.astype(np.float32), 0, 255),
    "12 bits in 16": ((SIGNED + 1000).astype(np.uint16), 0, 4000),
}


@pytest.mark.parametrize("name", DEEP)
def test_levels_say_what_is_black_and_white(name: str) -> None:
    array, low, high = DEEP[name]
    content = file_of(Image.fromarray(array), "TIFF")
    found = np.asarray(decode_image(content, "it", levels=(low, high)))
    np.testing.assert_allclose(found, (array.astype(float) - low) / (high - low) * 255, atol=0.5)
    quarter = (high - low) / 4
    clipped = np.asarray(decode_image(content, "it", levels=(low + quarter, high - quarter)))
    assert clipped.min() == 0 and clipped.max() == 255
    assert examine(content, "it", levels=(low, high))[1].span == (low, high)


@pytest.mark.parametrize("name", [name for name in DEEP if name != "12 bits in 16"])
def test_floats_and_signed_numbers_beyond_0_and_1_are_refused_with_their_range(name: str) -> None:
    array, low, high = DEEP[name]
    for given in (array, -array):
        least, most = float(given.min()), float(given.max())
        with pytest.raises(UserError, match=rf"go from {least:g} to {most:g}; .*data.levels=\[{least:g}, {most:g}\]"):
            decode_image(file_of(Image.fromarray(given), "TIFF"), "it")


def test_floats_from_0_to_1_are_shown_as_they_are() -> None:
    found = decode_image(file_of(Image.fromarray(RAMP.astype(np.float32) / 255), "TIFF"), "it")
    np.testing.assert_array_equal(np.asarray(found), RAMP)
    whole = Image.fromarray(np.array([[-0.001, 1.001]], np.float32))  # less than half a level beyond, as resampling leaves
    assert np.asarray(decode_image(file_of(whole, "TIFF"), "it")).tolist() == [[0, 255]]


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("levels_of_it", [None, (0, 1)])
def test_nan_is_refused_by_name(number: float, levels_of_it: tuple[float, float] | None) -> None:
    array = np.full((4, 4), 0.5, np.float32)
    array[2, 1] = number
    with pytest.raises(UserError, match="scan.tif: has NaN"):
        decode_image(file_of(Image.fromarray(array), "TIFF"), "scan.tif", levels=levels_of_it)
    with pytest.raises(UserError, match="scan.npy: has NaN"):
        decode_array(npy_of(array), "scan.npy", levels=levels_of_it)


def test_a_file_may_say_which_of_its_numbers_is_white() -> None:
    """A TIFF of 12 bits, one whose zero is white, and a PGM of 12 bits."""
    deep = Image.fromarray(RAMP.astype(np.uint16) * 257)
    negative = file_of(deep, "TIFF", tiffinfo={262: 0})
    np.testing.assert_array_equal(np.asarray(decode_image(negative, "it")), 255 - RAMP)
    pgm = b"P5 8 6 4095\n" + (RAMP.astype(np.uint16) * 16).astype(">u2").tobytes()
    np.testing.assert_allclose(np.asarray(decode_image(pgm, "it")), RAMP / 255 * 254, atol=1)


def test_a_transparent_level_of_16_bits_stays_transparent() -> None:
    deep = Image.fromarray(RAMP.astype(np.uint16) * 257)
    found = decode_image(file_of(deep, "PNG", transparency=int(RAMP[2, 3]) * 257), "it")
    assert found.mode == "LA" and np.array_equal(np.asarray(found)[..., 1] == 0, RAMP == RAMP[2, 3])


def chunk(name: bytes, content: bytes, checksum: int | None = None) -> bytes:
    return (
        struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content) if checksum is None else checksum)
    )


LYING = np.stack([RAMP, RAMP.T.reshape(6, 8), 255 - RAMP], -1)  # (6, 8, 3); upright it is (8, 6, 3)
EXIF_6 = b"II*\0\x08\0\0\0" + struct.pack("<HHHIHH", 2, 0x0112, 3, 1, 6, 0)
DAMAGED_EXIF = b"II*\0\x08\0\0\0" + struct.pack("<HHHIIHHIHH", 2, 0x010E, 7, 99, 2**31, 0x0112, 3, 1, 6, 0)  # first a text beyond the end
METADATA = {
    "a long compressed text": chunk(b"zTXt", b"workflow\0\0" + zlib.compress(b"x" * 2**21)),
    "a long compressed international text": chunk(b"iTXt", b"prompt\0\1\0\0\0" + zlib.compress(b"x" * 2**21)),
    "many long texts": chunk(b"tEXt", b"workflow\0" + b"x" * 2**20) * 70,
    "a text with a wrong checksum": chunk(b"tEXt", b"a\0b", checksum=1),
    "a text that is not packed": chunk(b"zTXt", b"a\0\7???"),
    "a truncated density": chunk(b"pHYs", b"?"),
    "truncated primaries": chunk(b"cHRM", b"?"),
    "a profile that is not packed": chunk(b"iCCP", b"name\0\0???"),
    "a profile packed in another way": chunk(b"iCCP", b"name\0\7???"),
    "a profile without an end": chunk(b"iCCP", b"name"),
    "damaged EXIF": chunk(b"eXIf", b"XX*\0"),
    "a chunk of somebody's": chunk(b"prVt", bytes(99)),
}


@pytest.mark.parametrize("name", METADATA)
@pytest.mark.parametrize("is_behind", [False, True])
def test_a_sound_png_is_read_whatever_stands_beside_its_pixels(name: str, is_behind: bool) -> None:
    plain = file_of(Image.fromarray(LYING), "PNG")
    place = len(plain) - 12 if is_behind else 33
    np.testing.assert_array_equal(np.asarray(decode_image(plain[:place] + METADATA[name] + plain[place:], "it")), LYING)


def segment(marker: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


SEGMENTS = {
    "a truncated image resource": segment(0xED, b"Photoshop 3.0\0" + b"8BIM\4\4"),
    "a short JFIF header": segment(0xE0, b"JFIF\0\1"),
    "a short Adobe header": segment(0xEE, b"Adobe\0"),
    "damaged EXIF": segment(0xE1, b"Exif\0\0XX*\0"),
    "a damaged list of more pictures": segment(0xE2, b"MPF\0II*\0\x08\0\0\0\xff\xff"),
    "a piece of a profile": segment(0xE2, b"ICC_PROFILE\0\3\7???"),
    "a comment": segment(0xFE, bytes(range(256))),
    "damage behind an empty segment": segment(0xFE, b"") + segment(0xEE, b"Adobe\0") + segment(0xE2, b"MPF\0II*\0\x08\0\0\0\xff\xff"),
}


@pytest.mark.parametrize("name", SEGMENTS)
def test_a_sound_jpeg_is_read_whatever_stands_beside_its_pixels(name: str) -> None:
    plain = file_of(Image.fromarray(LYING), "JPEG", quality=90)
    found = decode_image(plain[:2] + SEGMENTS[name] + plain[2:], "it")
    np.testing.assert_array_equal(np.asarray(found), np.asarray(decode_image(plain, "it")))


TAGS = {"XMP": 700, "EXIF": 34665, "GPS": 34853, "interoperability": 40965, "IPTC": 33723, "Photoshop": 34377, "a density": 282}


@pytest.mark.parametrize("tag", TAGS)
@pytest.mark.parametrize("form", [(4, 1, 2**31 - 1), (4, 1, 8), (2, 4, 0x41414141), (7, 100, 2**31 - 1), (5, 1, 8), (12, 2, 8)], ids=str)
@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_a_sound_tiff_is_read_whatever_stands_beside_its_pixels(tag: str, form: tuple[int, int, int], compression: str | None) -> None:
    """It is turned upright, too, as Pillow does while it decodes."""
    directory = TiffImagePlugin.ImageFileDirectory_v2()
    directory[65000], directory.tagtype[65000], directory[274] = 7, 4, 6
    whole = file_of(Image.fromarray(LYING), "TIFF", tiffinfo=directory, compression=compression)
    entry = struct.pack("<HHII", 65000, 4, 1, 7)
    assert whole.count(entry) == 1
    found = decode_image(whole.replace(entry, struct.pack("<HHII", TAGS[tag], *form)), "it")
    np.testing.assert_array_equal(np.asarray(found), np.rot90(LYING, -1))


TURNED = np.rot90(LYING, -1)
XMP = b'<rdf:Description tiff:Orientation="6"/>'


def of_exif(kind: str) -> Callable[[bytes], bytes]:
    options = {"PNG": {}, "WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}, "AVIF": {"quality": 100, "speed": 10}}[
        kind
    ]
    return lambda exif: file_of(Image.fromarray(LYING.repeat(8, 0).repeat(8, 1)), kind, exif=b"Exif\0\0" + exif, **options)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
@pytest.mark.parametrize("exif", [EXIF_6 + bytes(16), DAMAGED_EXIF], ids=["whole", "damaged elsewhere"])
def test_a_picture_is_turned_upright_though_its_exif_is_damaged_elsewhere(kind: str, exif: bytes) -> None:
    found = np.asarray(decode_image(of_exif(kind)(exif), "it"))
    np.testing.assert_allclose(found[4::8, 4::8], TURNED, atol=16 if kind == "JPEG" else 0)


def test_what_lies_behind_the_entries_of_exif_is_none() -> None:
    behind = b"II*\0\x08\0\0\0" + struct.pack("<HHHIIHHIHH", 1, 0x0131, 4, 1, 0, 0x0112, 3, 1, 6, 0)
    assert orientation_of(behind, None) == 1 and orientation_of(EXIF_6 + bytes(16), None) == 6


def test_a_jpeg_says_in_twelve_bytes_that_it_is_not_in_luminance_and_chrominance() -> None:
    picture = Image.new("RGB", (8, 8), (200, 60, 20))
    content = file_of(picture, "JPEG", quality=100, keep_rgb=True)
    adobe = segment(0xEE, b"Adobe" + struct.pack(">HHHB", 100, 0, 0, 0))
    numbered = content.replace(b"R\x11\0G\x11\0B\x11\0", b"\1\x11\0\2\x11\0\3\x11\0").replace(b"R\0G\0B\0", b"\1\0\2\0\3\0")
    without = re.sub(rb"\xff\xee\0\x0eAdobe.{7}|\xff\xe0\0\x10JFIF.{12}", b"", numbered, flags=re.DOTALL)
    assert without.count(b"\1\x11\0\2\x11\0\3\x11\0") == 1
    np.testing.assert_allclose(levels(without[:2] + adobe + without[2:])[4, 4], (200, 60, 20), atol=4)
    assert np.abs(levels(without)[4, 4] - (200, 60, 20)).max() > 50


def test_maps_whose_numbers_would_be_scaled_are_refused() -> None:
    classes = bytes(range(16))
    for largest, is_sound in ((255, True), (20, False)):
        content = b"P5\n# classes\n4 4\n%d\n" % largest + classes
        if is_sound:
            assert decode_map(content, "it").flatten().tolist() == list(classes)
        else:
            with pytest.raises(UserError, match="it: Pillow scales or inverts the numbers of such a PPM; store the map as PNG"):
                decode_map(content, "it")
    with pytest.raises(UserError, match="of such a PPM"):
        decode_map(b"P4\n8 1\n\xaa", "it")
    grey = Image.frombytes("L", (4, 4), classes)
    assert decode_map(file_of(grey, "TIFF"), "it").flatten().tolist() == list(classes)
    inverted = TiffImagePlugin.ImageFileDirectory_v2()
    inverted[262] = 0
    with pytest.raises(UserError, match="of such a TIFF"):
        decode_map(file_of(grey, "TIFF", tiffinfo=inverted), "it")


def test_orientation_is_found_in_xmp_and_in_texts_of_png() -> None:
    plain = file_of(Image.fromarray(LYING), "PNG")
    raw = b"Raw profile type exif\0" + b"\nexif\n 26\n" + (EXIF_6[:22] + bytes(4)).hex().encode()
    for more in (chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP), chunk(b"tEXt", raw)):
        np.testing.assert_array_equal(np.asarray(decode_image(plain[:33] + more + plain[33:], "it")), TURNED)
    drawn = file_of(Image.fromarray(LYING), "WEBP", lossless=True, xmp=XMP)
    np.testing.assert_array_equal(np.asarray(decode_image(drawn, "it")), TURNED)


def test_maps_and_masks_are_turned_upright_as_pictures_are() -> None:
    content = file_of(Image.fromarray(RAMP), "PNG", exif=b"Exif\0\0" + EXIF_6 + bytes(16))
    np.testing.assert_array_equal(decode_map(content, "it").numpy(), np.rot90(RAMP, -1))
    np.testing.assert_array_equal(decode_mask(content, "it")[0].numpy(), np.rot90(RAMP, -1) >= 128)


FRAMES = [Image.new("RGB", (64, 48), colour) for colour in ("red", "lime", "blue")]
has_avif = pytest.mark.skipif(".avif" not in Image.registered_extensions(), reason="this Pillow has no AVIF")


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF", pytest.param("AVIF", marks=has_avif)])
def test_pages_are_counted_and_opened_by_number(kind: str) -> None:
    content = file_of(FRAMES[0], kind, save_all=True, append_images=FRAMES[1:])
    assert count_pages(content, "it") == 3
    for page, frame in enumerate(FRAMES):
        found = decode_image(content, "it", page=page).convert("RGB").getpixel((9, 9))
        np.testing.assert_allclose(found, frame.getpixel((9, 9)), atol=9)
    with pytest.raises(UserError, match="it: has no page 3"):
        decode_image(content, "it", page=3)
    assert count_pages(file_of(FRAMES[0], kind), "it") == 1


def test_what_phones_hide_behind_a_jpeg_is_no_page() -> None:
    assert count_pages(file_of(FRAMES[0], "MPO", save_all=True, append_images=FRAMES[1:]), "it") == 1


def test_smaller_copies_in_a_tiff_are_no_pages() -> None:
    """As in pyramids of scanners; a camera raw file has its preview first."""

    def pages(kinds: list[int]) -> bytes:
        frames = [Image.new("L", (16 + 8 * number, 16), 20 * number) for number in range(len(kinds))]
        content = bytearray(file_of(frames[0], "TIFF", save_all=True, append_images=frames[1:], tiffinfo={254: 0}))
        start = 4  # where the place of the next page's tags stands
        for kind in kinds:
            start = int.from_bytes(content[start : start + 4], "little")
            content[start + 10 : start + 14] = struct.pack("<I", kind)  # the value of the first tag, which is 254
            start += 2 + 12 * int.from_bytes(content[start : start + 2], "little")
        return bytes(content)

    content = pages([0, 1, 4, 0, 1])
    assert count_pages(content, "it") == 2
    assert [decode_image(content, "it", page=page).width for page in (0, 1)] == [16, 40]
    assert decode_image(pages([1, 0]), "it").width == 24
    with pytest.raises(UserError, match="only previews"):
        decode_image(pages([1, 1]), "it")
    assert decode_image(pages([1]), "it").width == 16  # there is nothing else, so it is the picture


def test_a_mask_is_where_it_is_bright_and_opaque() -> None:
    """The same in training, which has the file, as in inpainting."""
    white, half = np.full((6, 8, 4), 255, np.uint8), RAMP >= 128
    white[..., 3] = half * 255  # white strokes on a transparent, also white layer
    veiled = np.dstack([np.full((6, 8), 255, np.uint8), RAMP])
    for picture in (white, veiled, half, RAMP, RAMP.astype(np.uint16) * 257, half.astype(np.float32)):
        image = Image.fromarray(picture)
        np.testing.assert_array_equal(object_in(image), half)
        np.testing.assert_array_equal(decode_mask(file_of(image, "TIFF" if image.mode == "F" else "PNG"), "it")[0].numpy(), half)


def test_a_mask_that_may_mean_something_else_is_doubted() -> None:
    sure = Image.fromarray(np.where(RAMP > 128, 255, 0).astype(np.uint8).repeat(8, 0).repeat(8, 1))
    blurred = Image.open(io.BytesIO(file_of(sure, "JPEG", quality=30)))
    assert [doubt_about(mask) for mask in (sure, blurred, Image.new("L", (9, 9)), sure.convert("1"))] == [""] * 4
    assert "48 grey levels" in doubt_about(Image.fromarray(RAMP))
    assert "nowhere bright (its largest level is 1)" in doubt_about(Image.fromarray((RAMP > 128).astype(np.uint8)))


def npy_of(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def test_arrays_follow_levels_and_are_refused_with_their_range() -> None:
    with pytest.raises(UserError, match=r"go from -1000 to 3000; .*data.levels=\[-1000, 3000\]"):
        decode_array(npy_of(SIGNED), "it")
    expected = torch.from_numpy((SIGNED + 1000) / 2000 - 1).float()[None]
    for kind in (np.int16, np.int64, np.float32, ">f8"):
        assert_close(decode_array(npy_of(SIGNED.astype(kind)), "it", levels=(-1000, 3000)), expected, atol=1e-5, rtol=0)
    assert decode_array(npy_of(SIGNED), "it", levels=(0, 100)).aminmax() == (-1, 1)
    within = np.array([[-1.0, -0.25, 1.0]], np.float32)
    assert_close(decode_array(npy_of(within), "it"), torch.from_numpy(within)[None])
    with pytest.raises(UserError, match="infinity"):  # as a float it is
        decode_array(npy_of(np.array([[1e300]])), "it", levels=(0, 1))
    assert_close(decode_array(npy_of(np.asfortranarray(RAMP)), "it", levels=(0, 10)), decode_array(npy_of(RAMP), "it"))


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '|u1', 'fortran_order': False, 'shape': (1000000, 1000000), }",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (-6, -8), }",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (-1, 4), }",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (6, 4), }",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (6, 8, 2), }",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (6, 8.0), }",
        "{'descr': '|O', 'fortran_order': False, 'shape': (6, ), }",
        "{'descr': '?u1', 'fortran_order': False, 'shape': (6, 8), }",
        "{'descr': [('a', '|u1')], 'fortran_order': False, 'shape': (6, 8), }",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (6, 8)",
        "(" * 9000,
        "",
        "\0" * 90,
    ],
)
def test_a_damaged_header_of_an_array_is_the_users_mistake(header: str) -> None:
    content = b"\x93NUMPY\1\0" + struct.pack("<H", len(header) + 1) + header.encode() + b"\n" + RAMP.tobytes()
    with pytest.raises(UserError, match="^it: ") as caught:
        decode_array(content, "it")
    assert "\n" not in str(caught.value)


def test_a_link_to_no_end_is_refused(tmp_path: Path) -> None:
    (tmp_path / "endless.png").symlink_to("/dev/zero")
    for opened in (open_image, open_map):
        with pytest.raises(UserError, match="endless.png: cannot be read"):
            opened(tmp_path / "endless.png")


MEMORY_OF = """
import base64, sys
from ldm.core.errors import UserError
from ldm.data.config import DataConfig
from ldm.data.record import Record
from ldm.data.sample_transform import SampleTransform

def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) / 1024

transform = SampleTransform(
    config=DataConfig(train="it", size=64), split="train", seed=0, label_names=(), map_names=("a",), has_masks=False, has_maps=False
)
before = peak()
for line in sys.stdin:
    try:
        transform(Record(key="it", suffix="png", image=base64.b64decode(line)), 0, 0)
        print(peak() - before, "read")
    except UserError as error:
        print(peak() - before, error)
"""


def lossless(width: int, height: int) -> bytes:
    return file_of(Image.new("RGB", (width, height)), "WEBP", lossless=True, method=0)


def grey_png(width: int, height: int) -> bytes:
    """16 bits, all black."""
    pack = zlib.compressobj(9)
    pixels = b"".join(pack.compress(bytes(1 + 2 * width)) for _ in range(height)) + pack.flush()
    header = struct.pack(">IIBBBBB", width, height, 16, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def test_memory_is_bounded_by_what_is_kept() -> None:
    """A WebP of 34 bytes that would take 2 GB is refused, a picture of one line is not scaled as a whole, and of a PNG of 25 million pixels
    1 or 3 bytes are kept for each, with a float for one channel at a time.
    """
    pictures = lossless(10_200, 10_200), grey_png(1, 2_000_000), grey_png(5000, 5000)
    lines = b"\n".join(base64.b64encode(content) for content in pictures)
    done = subprocess.run([sys.executable, "-c", MEMORY_OF], input=lines, capture_output=True, check=True)
    taken, outcomes = zip(*(line.split(" ", 1) for line in done.stdout.decode().splitlines()), strict=True)
    assert "takes 2.1 GB to decode" in outcomes[0] and outcomes[1:] == ("read", "read")
    assert [float(most) < limit for most, limit in zip(taken, (50, 100, 400), strict=True)] == [True] * 3, f"MiB: {taken}"


@pytest.mark.parametrize("channels, side, tile", [(3, 255, 1), (300, 64, 64), (3, 20_000, 20_000)], ids=["tiles", "channels", "pixels"])
@pytest.mark.parametrize("is_between", [False, True])
def test_a_jpeg_2000_cannot_hide_how_large_it_is(channels: int, side: int, tile: int, is_between: bool) -> None:
    """Behind another box Pillow does not look at what the decoder goes by: 65,025 tiles took 750 MB, of 300 channels 20 GB."""
    whole = file_of(Image.new("RGB", (64, 64)), "JPEG2000")
    start = whole.index(b"\xff\x4f\xff\x51")
    (length,) = struct.unpack_from(">H", whole, start + 4)
    header = struct.pack(">HH8IH", 38 + 3 * channels, 0, side, side, 0, 0, tile, tile, 0, 0, channels) + b"\7\1\1" * channels
    box = struct.pack(">I4s4xI4s", 12, b"free", 0, b"jp2c") if is_between else struct.pack(">I4s", 0, b"jp2c")
    with pytest.raises(UserError, match="it: .*(save it anew|million pixels)"):
        decode_image(whole[: start - 8] + box + whole[start : start + 4] + header + whole[start + 4 + length :], "it")


def test_a_jpeg_of_a_thousand_scans_is_refused() -> None:
    whole = file_of(Image.new("L", (2000, 2000), 128), "JPEG", progressive=True)
    scan = whole[whole.rindex(b"\xff\xc4") : -2]
    with pytest.raises(UserError, match="1006 scans takes too long"):
        decode_image(whole[:-2] + scan * 1000 + whole[-2:], "it")


ANY = [("PNG", {}), ("JPEG", {}), ("JPEG", {"progressive": True}), ("MPO", {}), ("WEBP", {}), ("WEBP", {"lossless": True}), ("TIFF", {})]
ANY += [("TIFF", {"compression": how}) for how in ("tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits")]
ANY += [("GIF", {}), ("BMP", {}), ("PPM", {}), ("TGA", {}), ("TGA", {"compression": "tga_rle"}), ("JPEG2000", {}), ("NPY", {})]
ANY += [("AVIF", {"speed": 10})] if ".avif" in Image.registered_extensions() else []


def damaged(whole: bytes, draw: random.Random) -> bytes:
    """Cut, or with a few bytes changed, more of them near its beginning."""
    broken = bytearray(whole[: draw.randrange(len(whole)) if draw.random() < 0.3 else len(whole)])
    for _ in range(draw.randrange(1, 6)):
        if broken:
            broken[min(draw.randrange(len(broken)), draw.randrange(len(broken)))] = draw.choice((0, 1, 127, 128, 255, draw.randrange(256)))
    if whole.startswith(b"\x89PNG") and draw.random() < 0.7:  # else nearly all damage ends at a checksum
        start = 8
        while start + 12 <= len(broken) and start + 12 + (length := int.from_bytes(broken[start : start + 4], "big")) <= len(broken):
            broken[start + 8 + length : start + 12 + length] = struct.pack(">I", zlib.crc32(broken[start + 4 : start + 8 + length]))
            start += 12 + length
    return bytes(broken)


@pytest.mark.parametrize("kind, options", ANY, ids=lambda part: part if isinstance(part, str) else "".join(map(str, part.values())))
def test_damaged_files_are_the_users_mistake_and_nothing_else(kind: str, options: dict[str, object]) -> None:
    picture = Image.fromarray(LYING).resize((40, 40))
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    beside = {"exif": b"Exif\0\0" + EXIF_6 + bytes(16), "icc_profile": profile} if kind in ("PNG", "JPEG", "WEBP", "AVIF", "TIFF") else {}
    whole = npy_of(np.asarray(picture)) if kind == "NPY" else file_of(picture, kind, **options, **beside)
    draw = random.Random(f"{kind} {options}")
    ways = [decode_array] if kind == "NPY" else [decode_image, decode_mask, decode_map, count_pages]
    for _ in range(100):
        content = damaged(whole, draw)
        for way in ways:
            try:
                way(content, "it") if kind == "NPY" else way(content, "it", suffix="tga")
            except UserError as error:
                assert str(error).startswith("it: ") and "\n" not in str(error)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_a_map_has_the_numbers_that_are_stored(bits: int) -> None:
    """Pillow spreads greys of 2 and 4 bits over 0 ... 255."""
    classes = np.arange(16).reshape(4, 4) % 2**bits
    rows = b"".join(
        b"\0" + np.packbits(np.unpackbits(row.astype(np.uint8)[:, None], axis=1)[:, 8 - bits :].ravel()).tobytes() for row in classes
    )
    chunks = ((b"IHDR", struct.pack(">IIBBBBB", 4, 4, bits, 0, 0, 0, 0)), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    png = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )
    assert decode_map(png, "it").tolist() == classes.tolist()


def test_a_map_in_a_format_that_changes_numbers_is_refused() -> None:
    buffer = io.BytesIO()
    Image.new("L", (8, 8), 3).save(buffer, "JPEG")
    with pytest.raises(UserError, match="JPEG changes class indices; store the map as PNG"):
        decode_map(buffer.getvalue(), "it")
