"""Every kind of picture file that people have."""

from __future__ import annotations

import io
import random
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from ldm.core.errors import UserError
from ldm.data.images import decode_array, decode_image, decode_map, decode_mask, image_tensor, open_image

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
    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

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


@pytest.mark.filterwarnings("ignore")  # of Pillow, on what it finds odd
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP"])
def test_damaged_files_are_the_users_mistake_and_nothing_else(kind: str) -> None:
    exif = {"exif": Image.Exif()} if kind in ("PNG", "JPEG", "WEBP") else {}
    if exif:
        exif["exif"][0x0112] = 6
    whole = file_of(Image.fromarray(np.stack([RAMP] * 3, -1)).resize((40, 40)), kind, **exif)
    draw = random.Random(kind)
    for _ in range(150):
        broken = bytearray(whole[: draw.randrange(len(whole)) if draw.random() < 0.3 else len(whole)])
        for _ in range(draw.randrange(1, 6)):
            if broken:
                broken[min(draw.randrange(len(broken)), draw.randrange(len(broken)))] = draw.randrange(256)
        try:
            found = levels(bytes(broken))
        except UserError as error:
            assert str(error).startswith("it") and "\n" not in str(error)
        else:
            assert found.min() >= 0 and found.max() <= 255
