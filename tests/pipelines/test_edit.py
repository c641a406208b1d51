"""Inpainting and img2img: what is kept is kept to the bit, what is painted knows its surroundings and nothing of what was there."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, ImageDraw
from torch.testing import assert_close

from ldm import LatentDiffusion
from ldm.core.condition import Condition
from ldm.core.errors import UserError
from ldm.data.profiles import in_srgb, matrix_profile
from ldm.pipelines.canvas import BLEND_SIDE, Window, as_tensor, blended, hole_of, known_at, ordinary, pasted
from ldm.pipelines.edit import image_to_image, inpaint
from ldm.pipelines.latent_diffusion import LatentDiffusion as Model
from ldm.pipelines.upscaling import upscale
from ldm.samplers.sampler import Sampler


@pytest.fixture(scope="module")
def model_of(tiny: Callable[..., Path]) -> Callable[..., Model]:
    """`inpainting`: trained to inpaint; `free`: not; `pixels`: not, in pixel space; `grey`: trained to inpaint grey pictures."""
    made = {
        "inpainting": lambda: tiny("text", "mask"),
        "free": lambda: tiny("class"),
        "pixels": lambda: tiny(first_stage="identity"),
        "grey": lambda: tiny("mask", image_channels=1),
    }
    return lambda name: LatentDiffusion.from_pretrained(made[name](), device="cpu")


def noisy(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    """A picture in which every pixel is different; with alpha, some are transparent."""
    channels = len(mode)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)
    return Image.fromarray(pixels[..., 0] if channels == 1 else pixels)


def mask_of(size: tuple[int, int], box: tuple[float, float, float, float]) -> Image.Image:
    """White in a box, given in shares of the picture."""
    mask = Image.new("L", size)
    left, top = (min(round(share * side), side - 1) for share, side in zip(box[:2], size, strict=True))
    right, bottom = (round(share * side) - 1 for share, side in zip(box[2:], size, strict=True))
    ImageDraw.Draw(mask).rectangle((left, top, max(right, left), max(bottom, top)), fill=255)
    return mask


MIDDLE = (0.3, 0.3, 0.7, 0.6)


def check_kept(picture: Image.Image, result: Image.Image, hole: np.ndarray) -> None:
    assert result.mode == picture.mode and result.size == picture.size
    before, after = np.array(picture), np.array(result)
    assert np.array_equal(after[~hole], before[~hole])
    assert not np.array_equal(after[hole], before[hole])


@pytest.mark.parametrize("name", ["inpainting", "free"])
@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_known_pixels_come_back_to_the_bit_in_every_mode(model_of, name, mode):
    model, picture = model_of(name), noisy(41, 23, mode)
    mask = mask_of(picture.size, MIDDLE)
    (result,) = inpaint(model, picture, mask, model.sampling(steps=1))
    hole = hole_of(mask)
    check_kept(picture, result, hole)
    if mode.endswith("A"):
        assert (np.array(result)[hole][:, -1] == 255).all()


SIZES = [(16, 16), (1, 1), (3, 2), (9, 70), (130, 31), (600, 500)]


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
@pytest.mark.parametrize("box", [MIDDLE, (0, 0, 0.2, 0.3), (0.9, 0.5, 1, 1), (0, 0, 1, 1)], ids=["middle", "corner", "far edge", "all"])
def test_any_size_and_any_place_of_the_hole(model_of, size, box):
    model, picture, mask = model_of("grey"), noisy(*size), mask_of(size, box)
    (result,) = inpaint(model, picture, mask, model.sampling(steps=1))
    check_kept(picture, result, hole_of(mask))


def test_a_grey_model_paints_a_coloured_picture(model_of):
    model, picture = model_of("grey"), noisy(20, 20)
    (result,) = inpaint(model, picture, mask_of(picture.size, (0, 0, 1, 1)), model.sampling(steps=1))
    pixels = np.array(result)
    assert (pixels[..., 0] == pixels[..., 1]).all() and (pixels[..., 0] == pixels[..., 2]).all()


@pytest.mark.parametrize("name", ["inpainting", "free", "pixels"])
@pytest.mark.parametrize("size", [(40, 30), (11, 16)], ids=["scaled down", "scaled up"])
def test_what_was_in_the_hole_has_no_influence(model_of, name, size):
    model, mask = model_of(name), mask_of(size, MIDDLE)
    picture, other = noisy(*size), Image.composite(Image.new("RGB", size, "magenta"), noisy(*size), mask)
    how = model.sampling(num_images=2, steps=2)
    for one, another in zip(inpaint(model, picture, mask, how), inpaint(model, other, mask, how), strict=True):
        assert np.array_equal(np.array(one), np.array(another))


@pytest.mark.parametrize("sampler", Sampler.kinds())
def test_training_free_holds_the_known_latents_exactly(model_of, monkeypatch, sampler):
    model, picture = model_of("pixels"), noisy(16, 16)
    mask = mask_of(picture.size, MIDDLE)
    painted = []
    generate = LatentDiffusion.generate
    monkeypatch.setattr(LatentDiffusion, "generate", lambda *inputs, **how: painted.append(generate(*inputs, **how)) or painted[-1])
    one, other = inpaint(model, picture, mask, model.sampling(num_images=2, sampler=sampler))
    kept = torch.from_numpy(~hole_of(mask)).expand(3, -1, -1)
    known = as_tensor(picture, 3)[0]
    for painting in painted[0]:
        assert torch.equal(painting[kept], known[kept])
        assert (painting - known)[~kept].abs().mean() > 0.1
    assert not np.array_equal(np.array(one), np.array(other))


def test_training_free_sees_the_surroundings(model_of):
    """Other surroundings, another painting; with everything to paint, that of no surroundings."""
    model = model_of("pixels")
    mask, how = mask_of((16, 16), MIDDLE), model.sampling(seed=2)
    hole = hole_of(mask)
    dark, light = (inpaint(model, Image.new("RGB", (16, 16), colour), mask, how)[0] for colour in ("black", "white"))
    assert np.abs(np.array(light)[hole].astype(int) - np.array(dark)[hole]).mean() > 5

    everything = mask_of((16, 16), (0, 0, 1, 1))
    (free,) = inpaint(model, noisy(16, 16), everything, how)
    assert np.array_equal(np.array(free), np.array(model.sample(seed=2)[0]))


def test_the_mask_stays_on_both_sides_of_guidance(model_of, monkeypatch):
    model, picture = model_of("inpainting"), noisy(16, 16)
    mask = mask_of(picture.size, (0.25, 0.5, 0.75, 1))
    given: list[Condition] = []
    forward = model.network.forward
    monkeypatch.setattr(
        model.network, "forward", lambda x, network_time, condition: given.append(condition) or forward(x, network_time, condition)
    )
    inpaint(model, picture, mask, model.sampling(steps=1, guidance=3, num_images=2), "a red heart")
    (condition,) = given
    cells = torch.zeros(8, 8)
    cells[4:, 2:6] = 1
    hole = torch.from_numpy(hole_of(mask))
    masked = model.first_stage.encode(torch.where(hole, 0.0, as_tensor(picture, 3)))
    assert condition.concat.shape == (4, 3, 8, 8)
    assert_close(condition.concat[:, 0], cells.expand(4, -1, -1))
    assert_close(condition.concat[:, 1:], masked.expand(4, -1, -1, -1), rtol=1e-4, atol=1e-5)
    assert torch.equal(condition.tokens[0], condition.tokens[1]) and not torch.equal(condition.tokens[0], condition.tokens[2])


def test_a_prompt_is_optional_and_counts(model_of):
    model, picture = model_of("inpainting"), noisy(16, 16)
    mask, how = mask_of(picture.size, MIDDLE), model.sampling()
    results = [np.array(inpaint(model, picture, mask, how, prompt)[0]) for prompt in (None, "a red heart", "a blue house")]
    assert not np.array_equal(results[0], results[1]) and not np.array_equal(results[1], results[2])
    free = model_of("free")
    with pytest.raises(UserError, match="not trained with text"):
        inpaint(free, picture, mask, free.sampling(), "a red heart")
    with pytest.raises(UserError, match="prompt is empty"):
        inpaint(model, picture, mask, how, "")


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda model, picture: inpaint(model, "a.png", picture, model.sampling()), "the picture must be a PIL image, .* got str 'a.png'"),
        (lambda model, picture: inpaint(model, picture, None, model.sampling()), "the mask must be a PIL image"),
        (lambda model, picture: image_to_image(model, Path("a.png"), 0.5, model.sampling()), "the picture must be a PIL image"),
        (lambda model, picture: image_to_image(model, picture, "0.5", model.sampling()), "strength must be above 0 and at most 1, got 0.5"),
        (lambda model, picture: upscale(model, torch.zeros(3, 8, 8), model.sampling()), "the picture must be a PIL image, .*Tensor of"),
    ],
)
def test_what_is_no_picture_or_number_is_refused(model_of, call, message):
    with pytest.raises(UserError, match=message):
        call(model_of("free"), noisy(16, 16))


def test_a_painting_depends_on_seed_and_number_only(model_of):
    for name in ("inpainting", "free"):
        model, picture = model_of(name), noisy(30, 20)
        mask = mask_of(picture.size, MIDDLE)
        three = inpaint(model, picture, mask, model.sampling(num_images=3, sampler="ddpm"))
        (alone,) = inpaint(model, picture, mask, model.sampling(sampler="ddpm"))
        assert np.abs(np.array(alone).astype(int) - np.array(three[0])).max() <= 1
        assert np.abs(np.array(three[1]).astype(int) - np.array(three[0])).max() > 5


def test_masks_of_another_size_or_without_a_hole(model_of):
    model, picture = model_of("pixels"), noisy(20, 10)
    with pytest.raises(UserError, match="the mask is 10x20, the picture 20x10"):
        inpaint(model, picture, Image.new("L", (10, 20), 255), model.sampling())
    with pytest.raises(UserError, match="nothing to paint"):
        inpaint(model, picture, Image.new("L", (20, 10), 127), model.sampling())


def test_masks_of_every_kind():
    white, half = Image.new("L", (4, 2), 255), np.array([[True, True, False, False]] * 2)
    layer = Image.new("RGBA", (4, 2), (255, 255, 255, 0))  # white strokes on a transparent, also white layer
    layer.paste((255, 255, 255, 255), (0, 0, 2, 2))
    binary = Image.fromarray(half)
    assert np.array_equal(hole_of(layer), half) and np.array_equal(hole_of(binary), half) and hole_of(white).all()


def test_palette_pictures_keep_their_colours_and_profiles_stay(model_of):
    model = model_of("pixels")
    palette = noisy(20, 14).quantize(16)
    mask = mask_of(palette.size, MIDDLE)
    (result,) = inpaint(model, palette, mask, model.sampling(steps=1))
    check_kept(palette.convert("RGB"), result, hole_of(mask))

    picture = noisy(20, 14)
    picture.info["icc_profile"] = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    (result,) = inpaint(model, picture, mask, model.sampling(steps=1))
    buffer = io.BytesIO()
    result.save(buffer, "PNG")
    assert Image.open(buffer).info["icc_profile"] == picture.info["icc_profile"]


def test_a_painting_has_the_colours_of_the_pictures_profile(model_of):
    """The network sees sRGB; what it paints must look as it meant it, beside pixels whose numbers mean other colours."""
    wide = matrix_profile("Display P3", (0.3127, 0.3290, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060), 2.2)
    picture, mask = noisy(16, 16, "RGBA"), mask_of((16, 16), MIDDLE)
    picture.info["icc_profile"] = wide
    hole = hole_of(mask)
    red = torch.tensor([1.0, -1.0, -1.0])[:, None, None].expand(3, 16, 16)
    result = pasted(ordinary(picture), red, Window(0, 0, 16, 16), hole)
    check_kept(picture, result, hole)
    assert result.info["icc_profile"] == wide
    assert np.abs(np.array(result)[hole][:, :3] - np.array([234, 51, 35])).max() <= 5  # sRGB's red, in numbers of Display P3
    assert np.abs(np.array(in_srgb(result))[hole][:, :3].astype(int) - np.array([255, 0, 0])).max() <= 2

    model = model_of("pixels")
    same = in_srgb(picture)
    seen = []
    for image in (picture, same):
        (painted,) = inpaint(model, image, mask, model.sampling(seed=1, steps=2))
        seen.append(np.array(in_srgb(painted)).astype(int))
        check_kept(image, painted, hole)
    assert np.abs(seen[0] - seen[1])[hole].max() <= 3


@pytest.mark.parametrize("profile", [b"nothing", matrix_profile("grey's", (0.3127, 0.3290, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06), 1.8)])
def test_a_profile_that_says_nothing_of_a_picture_is_not_kept(model_of, profile):
    """A damaged one, and one of another kind of picture."""
    model, picture = model_of("pixels"), noisy(16, 16, "L")
    picture.info["icc_profile"] = profile
    (result,) = inpaint(model, picture, mask_of((16, 16), MIDDLE), model.sampling(steps=1))
    assert "icc_profile" not in result.info


def test_pictures_of_16_bits_are_not_painted_white(model_of):
    model = model_of("grey")
    deep = Image.fromarray(np.array(noisy(16, 16, "L")).astype(np.uint16) * 257)
    (result,) = inpaint(model, deep, mask_of((16, 16), MIDDLE), model.sampling(steps=1))
    check_kept(noisy(16, 16, "L"), result, hole_of(mask_of((16, 16), MIDDLE)))


def test_the_square():
    hole = np.zeros((100, 300), dtype=bool)
    hole[40:60, 200:220] = True
    assert Window.around(hole, (16, 16)) == Window(30, 190, 40, 40)  # twice the hole
    assert Window.around(hole, (64, 64)) == Window(18, 178, 64, 64)  # the model's own size, where that is more
    hole[:, :] = False
    hole[95:, :10] = True
    assert Window.around(hole, (64, 64)) == Window(36, 0, 64, 64)  # pushed back into the picture
    hole[:, 100:200] = True
    assert Window.around(hole, (64, 64)) == Window(-100, 0, 300, 300)  # a hole as high as the picture: over its edges
    numbers = np.arange(12).reshape(3, 4)
    assert Window(-1, 2, 3, 3).cut(numbers).tolist() == [[2, 3, 3], [2, 3, 3], [6, 7, 7]]


@pytest.mark.parametrize("side, step", [(40, 0.26), (BLEND_SIDE, 0.06), (BLEND_SIDE + 100, 0.06)])
def test_the_seam_is_blended_inside_the_hole_only(side, step):
    known, painted = torch.full((1, 3, side, side), 0.5), torch.full((1, 3, side, side), -0.25)
    hole = torch.zeros(1, 1, side, side)
    hole[:, :, side // 4 : -side // 4, side // 4 :] = 1  # up to the right edge
    result = blended(known, painted, hole)
    assert torch.equal(result[hole.expand_as(result) == 0], known[hole.expand_as(known) == 0])
    row = result[0, 0, side // 2]
    assert_close(row[side // 4], torch.tensor(0.5), rtol=0, atol=step)  # of 0.75, at the seam
    assert (row[side // 4 :].diff() <= 1e-4).all()  # fades
    assert_close(row[side // 2 :], torch.full((side - side // 2,), -0.25))  # to the painting itself
    assert torch.equal(blended(known, painted, torch.ones_like(hole)), painted)


def test_a_painting_that_fits_is_not_touched():
    """Where painting and picture agree outside the hole there is nothing to mend inside."""
    draw = torch.Generator().manual_seed(0)
    painted = torch.rand(1, 3, 60, 60, generator=draw)
    hole = torch.zeros(1, 1, 60, 60)
    hole[:, :, 20:40, 20:40] = 1
    known = torch.where(hole > 0, 1.0, painted)
    assert_close(blended(known, painted, hole), painted)


@pytest.mark.parametrize("side", [10, 24, 61])
def test_a_square_at_the_models_size_holds_known_pixels_only(side):
    known = torch.full((1, 3, side, side), 0.3)
    hole = torch.zeros(1, 1, side, side)
    hole[:, :, : side // 2, side // 3 :] = 1
    small, small_hole = known_at(torch.where(hole > 0, 50.0, known), hole, (24, 24))
    assert_close(small, torch.full((1, 3, 24, 24), 0.3), rtol=0, atol=1e-4)
    assert_close(small_hole.mean().item(), hole.mean().item(), rtol=0, atol=0.08)
    small, _ = known_at(torch.full_like(known, 50.0), torch.ones_like(hole), (24, 24))
    assert_close(small, torch.zeros(1, 3, 24, 24))  # grey


def test_img2img_strength(model_of):
    model, picture = model_of("inpainting"), noisy(16, 16).resize((50, 30))
    how = model.sampling(steps=10, num_images=2)
    square = as_tensor(picture.crop((10, 0, 40, 30)).resize((16, 16)), 3)
    reconstruction = model.first_stage.decode(model.first_stage.encode(square))[0]

    def moved(strength: float) -> float:
        painting = image_to_image(model, picture, strength, how, "a red heart")[0]
        assert painting.size == (16, 16)
        return (as_tensor(painting, 3)[0] - reconstruction.clamp(-1, 1)).abs().mean().item()

    distances = [moved(strength) for strength in (1e-6, 0.3, 0.6, 1.0)]
    assert distances == sorted(distances) and distances[0] < 0.1 < distances[-1]


def test_img2img_at_full_strength_is_text_to_image(model_of):
    """The tiny process ends without any signal."""
    model = model_of("inpainting")
    how = model.sampling(num_images=2, seed=5)
    whole = image_to_image(model, noisy(16, 16), 1.0, how, "a red heart", "a house")
    text = model.text_to_image("a red heart", negative_prompt="a house", num_images=2, seed=5)
    assert np.abs(np.stack(whole).astype(int) - np.stack(text)).max() <= 1
    other = image_to_image(model, noisy(16, 16), 1.0, how, "a red heart")
    assert np.abs(np.stack(whole).astype(int) - np.stack(other)).max() > 1


@pytest.mark.parametrize("strength", [0.0, -0.5, 1.5, float("nan")])
def test_img2img_strength_out_of_range(model_of, strength):
    model = model_of("pixels")
    with pytest.raises(UserError, match="strength must be above 0 and at most 1"):
        image_to_image(model, noisy(16, 16), strength, model.sampling())
