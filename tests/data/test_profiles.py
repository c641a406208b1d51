"""Colour profiles: the network sees sRGB, whatever space a picture's numbers are in."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from ldm.core.errors import UserError
from ldm.data.images import decode_image, examine, image_levels, open_image
from ldm.data.profiles import ADOBE_GAMMA, ADOBE_RGB, SRGB, in_profile_of, in_srgb, matrix_profile

P3 = (0.3127, 0.3290, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060)
DISPLAY_P3 = matrix_profile("Display P3", P3, 2.2)
SRGB_PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
COLOURS = np.array([[(180, 90, 60), (60, 120, 80), (90, 90, 160)], [(128, 128, 128), (250, 250, 250), (200, 180, 170)]], np.uint8)
PICTURE = Image.fromarray(COLOURS.repeat(16, 0).repeat(16, 1))


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.copy().save(buffer, kind, **options)
    return buffer.getvalue()


def linear_to_xyz(chromaticities: tuple[float, ...]) -> np.ndarray:
    """(3, 3) of a space's light to XYZ, for its white (Lindbloom)."""
    xy = np.array(chromaticities).reshape(4, 2)
    white, *primaries = np.stack([xy[:, 0], xy[:, 1], 1 - xy.sum(1)], 1) / xy[:, 1:]
    columns = np.stack(primaries, 1)
    return columns * np.linalg.solve(columns, white)


def expected(colours: np.ndarray, chromaticities: tuple[float, ...], gamma: float | None) -> np.ndarray:
    """sRGB levels (..., 3) of another space's with the same white, by the formulas of IEC 61966-2-1; None = sRGB's own curve."""
    levels = colours / 255
    srgb = np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)
    light = (srgb if gamma is None else levels**gamma) @ (np.linalg.inv(linear_to_xyz(SRGB)) @ linear_to_xyz(chromaticities)).T
    light = light.clip(0, 1)
    return 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


@pytest.mark.parametrize("kind, tolerance", [("PNG", 2), ("TIFF", 2), ("WEBP", 2), ("JPEG", 6)])
@pytest.mark.parametrize(
    "chromaticities, gamma", [(P3, 2.2), (ADOBE_RGB, ADOBE_GAMMA), (SRGB, 1.8)], ids=["Display P3", "Adobe RGB", "1.8"]
)
def test_colours_are_converted_to_srgb(kind: str, tolerance: float, chromaticities: tuple[float, ...], gamma: float) -> None:
    options = {"lossless": True} if kind == "WEBP" else {"quality": 100, "subsampling": 0} if kind == "JPEG" else {}
    content = saved(PICTURE, kind, icc_profile=matrix_profile("wide", chromaticities, gamma), **options)
    image, facts = examine(content, "it")
    assert facts.profile == "wide" and not image.info
    np.testing.assert_allclose(np.asarray(image)[8::16, 8::16], expected(COLOURS, chromaticities, gamma), atol=tolerance)
    assert np.abs(np.asarray(image, int) - np.asarray(PICTURE)).max() > 10


def test_palettes_and_transparent_pictures_are_converted_too() -> None:
    alpha = Image.fromarray(np.linspace(0, 255, 48 * 32).reshape(32, 48).astype(np.uint8))
    clear = PICTURE.copy()
    clear.putalpha(alpha)
    for picture in (PICTURE.quantize(16), clear):
        image = decode_image(saved(picture, "PNG", icc_profile=DISPLAY_P3), "it")
        np.testing.assert_allclose(np.asarray(image)[8::16, 8::16, :3], expected(COLOURS, P3, 2.2), atol=3)
    assert np.array_equal(np.asarray(image.getchannel("A")), np.asarray(alpha))


def grey_profile(gamma: float) -> bytes:
    curve = b"curv\0\0\0\0" + struct.pack(">IH2x", 1, round(gamma * 256))
    white = b"XYZ \0\0\0\0" + struct.pack(">3i", 63190, 65536, 54061)
    tags, start = b"", 132 + 2 * 12
    for tag, content in ((b"kTRC", curve), (b"wtpt", white)):
        tags += tag + struct.pack(">II", start, len(content))
        start += len(content)
    head = struct.pack(">I4xI4s4s4s12x4s28x12s48x", start, 0x02100000, b"mntr", b"GRAY", b"XYZ ", b"acsp", white[8:])
    return head + struct.pack(">I", 2) + tags + curve + white


@pytest.mark.parametrize("mode", ["L", "LA"])
def test_grey_follows_its_profile_and_stays_grey(mode: str) -> None:
    ramp = Image.fromarray(np.arange(256, dtype=np.uint8)[None].repeat(4, 0)).convert(mode)
    image, facts = examine(saved(ramp, "TIFF", icc_profile=grey_profile(1.0)), "it")
    light = np.arange(256) / 255
    curve = 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    assert image.mode == mode and facts.profile == "without a name"
    np.testing.assert_allclose(np.asarray(image.getchannel(0))[0], curve, atol=2)


def test_srgb_stays_as_it_is_to_the_bit() -> None:
    image, facts = examine(saved(PICTURE, "PNG", icc_profile=SRGB_PROFILE), "it")
    assert facts.profile == "sRGB" and np.array_equal(np.asarray(image), np.asarray(PICTURE))
    assert examine(saved(PICTURE, "PNG"), "it")[1].profile == ""


@pytest.mark.parametrize("profile", [b"no profile at all", DISPLAY_P3[:200], DISPLAY_P3[:16] + b"GRAY" + DISPLAY_P3[20:], bytes(600)])
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_a_damaged_profile_is_ignored_and_told(profile: bytes, kind: str) -> None:
    content = saved(PICTURE, kind, icc_profile=profile, **({"lossless": True} if kind == "WEBP" else {}))
    image, facts = examine(content, "it")
    assert facts.profile == "damaged" and np.array_equal(np.asarray(image), np.asarray(PICTURE))


def with_chunks(png: bytes, **chunks: bytes) -> bytes:
    """A PNG with more chunks behind its header."""
    more = b"".join(
        struct.pack(">I", len(data)) + name.encode() + data + struct.pack(">I", zlib.crc32(name.encode() + data))
        for name, data in chunks.items()
    )
    return png[:33] + more + png[33:]


def test_what_a_png_says_without_a_profile_counts() -> None:
    plain = saved(PICTURE, "PNG")
    wide = with_chunks(plain, gAMA=struct.pack(">I", 45455), cHRM=struct.pack(">8I", *(round(part * 1e5) for part in P3)))
    image, facts = examine(wide, "it")
    assert facts.profile == "as gAMA and cHRM say"
    np.testing.assert_allclose(np.asarray(image)[8::16, 8::16], expected(COLOURS, P3, 2.2), atol=2)
    for same in (
        {"gAMA": struct.pack(">I", 45455)},
        {"sRGB": b"\0", "gAMA": struct.pack(">I", 10**5)},
        {"gAMA": b"\0\0\0\0"},
        {"cHRM": b"?"},
    ):
        assert np.array_equal(np.asarray(decode_image(with_chunks(plain, **same), "it")), np.asarray(PICTURE))


BT_2020 = (0.3127, 0.3290, 0.708, 0.292, 0.170, 0.797, 0.131, 0.046)


def coded(kind: str, primaries: int, transfer: int) -> bytes:
    """A picture whose colours are named by numbers of ITU-T H.273, without a profile."""
    if kind == "PNG":
        return with_chunks(saved(PICTURE, "PNG"), gAMA=struct.pack(">I", 10**5), cICP=bytes((primaries, transfer, 0, 1)))
    pytest.importorskip("pillow_heif").register_heif_opener() if kind == "HEIF" else Image.init()
    if kind not in Image.SAVE:
        pytest.skip(f"this Pillow writes no {kind}")
    options = {"subsampling": "4:4:4"} if kind == "AVIF" else {"chroma": 444}
    content = saved(PICTURE, kind, quality=100, **options)
    if b"colr" not in content:
        pytest.skip(f"this encoder of {kind} names no colours")
    assert content.count(b"colrnclx\0\1\0\r") == 1
    return content.replace(b"colrnclx\0\1\0\r", b"colrnclx" + struct.pack(">HH", primaries, transfer))


@pytest.mark.parametrize("kind", ["PNG", "AVIF", "HEIF"])
@pytest.mark.parametrize("primaries, space", [(12, P3), (9, BT_2020), (1, None), (2, None)])
def test_colours_that_are_named_by_a_code_are_converted(kind: str, primaries: int, space: tuple[float, ...] | None) -> None:
    image, facts = examine(coded(kind, primaries, 13), "it")
    wanted = COLOURS if space is None else expected(COLOURS, space, None)
    np.testing.assert_allclose(np.asarray(image)[8::16, 8::16], wanted, atol=2 if kind == "PNG" else 5)
    assert ("as its code says" in facts.profile) == (space is not None)


@pytest.mark.parametrize("kind", ["PNG", "AVIF", "HEIF"])
@pytest.mark.parametrize("transfer", [16, 18])
def test_hdr_is_refused(kind: str, transfer: int) -> None:
    with pytest.raises(UserError, match=r"it: is HDR \(PQ or HLG\).*convert it to sRGB first"):
        decode_image(coded(kind, 9, transfer), "it")


def test_a_profile_comes_before_a_code() -> None:
    Image.init()
    if "AVIF" not in Image.SAVE:
        pytest.skip("this Pillow writes no AVIF")
    content = saved(PICTURE, "AVIF", quality=100, subsampling="4:4:4", icc_profile=DISPLAY_P3)
    image, facts = examine(content.replace(b"colrnclx\0\1", b"colrnclx\0\x09"), "it")
    assert facts.profile == "Display P3"
    np.testing.assert_allclose(np.asarray(image)[8::16, 8::16], expected(COLOURS, P3, 2.2), atol=5)


@pytest.mark.parametrize("index, is_wide", [("R03", True), ("R98", False)])
def test_a_camera_says_adobe_rgb_in_exif_only(index: str, is_wide: bool) -> None:
    exif = b"II*\0\x08\0\0\0" + struct.pack("<HHHIII", 1, 0x8769, 4, 1, 26, 0) + struct.pack("<HHHIII", 1, 0xA005, 4, 1, 44, 0)
    exif += struct.pack("<HHHI4sI", 1, 1, 2, 4, index.encode() + b"\0", 0)
    image, facts = examine(saved(PICTURE, "JPEG", exif=b"Exif\0\0" + exif, quality=100, subsampling=0), "it")
    assert bool(facts.profile) == is_wide
    wanted = expected(COLOURS, ADOBE_RGB, ADOBE_GAMMA) if is_wide else COLOURS
    np.testing.assert_allclose(np.asarray(image)[8::16, 8::16], wanted, atol=6)


def test_a_picture_that_is_kept_keeps_its_profile_and_looks_the_same_to_the_network(tmp_path) -> None:
    (tmp_path / "a.png").write_bytes(saved(PICTURE, "PNG", icc_profile=DISPLAY_P3))
    kept = open_image(tmp_path / "a.png")
    assert np.array_equal(np.asarray(kept), np.asarray(PICTURE)) and kept.info["icc_profile"] == DISPLAY_P3
    seen = image_levels(kept, 3, (255, 255, 255), "it").permute(1, 2, 0).numpy()
    assert np.array_equal(seen, np.asarray(in_srgb(kept)))
    np.testing.assert_allclose(seen[8::16, 8::16], expected(COLOURS, P3, 2.2), atol=2)
    back = in_profile_of(in_srgb(kept), kept)
    np.testing.assert_allclose(np.asarray(back)[8::16, 8::16], COLOURS, atol=2)
