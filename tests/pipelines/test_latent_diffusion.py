"""A model as a user holds it: seeds, guidance, conditions, how often the text is read."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from ldm import LatentDiffusion
from ldm.core.condition import Condition
from ldm.core.errors import UserError
from ldm.core.precision import DTYPES
from ldm.diffusion.estimate import Denoise
from ldm.diffusion.grid import Karras, Leading
from ldm.diffusion.prediction import EpsPrediction
from ldm.diffusion.processes.edm import EDM
from ldm.pipelines import renderer as module
from ldm.pipelines.canvas import to_pil
from ldm.pipelines.latent_diffusion import LatentDiffusion as Model
from ldm.samplers.ddim import DDIM
from ldm.samplers.ode import ODE
from ldm.samplers.sampler import Sampler

ALL = ("text", "class", "mask", "map")


@pytest.fixture(scope="module")
def model(tiny: Callable[..., Path]) -> Model:
    return LatentDiffusion.from_pretrained(tiny(*ALL), device="cpu")


@pytest.fixture(scope="module")
def plain(tiny: Callable[..., Path]) -> Model:
    """An unconditional model, in pixel space."""
    return LatentDiffusion.from_pretrained(tiny(first_stage="identity"), device="cpu")


def levels(pictures: list[Image.Image]) -> np.ndarray:
    return np.stack([np.array(picture).astype(int) for picture in pictures])


def apart(one: list[Image.Image], other: list[Image.Image]) -> int:
    """The largest difference in levels of 255."""
    return int(np.abs(levels(one) - levels(other)).max())


class Seen:
    """A network that remembers its inputs."""

    def __init__(self, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
        self.conditions: list[Condition] = []
        forward = model.network.forward

        def remembering(x: torch.Tensor, network_time: torch.Tensor, condition: Condition) -> torch.Tensor:
            self.conditions.append(condition)
            self.rows = len(x)
            return forward(x, network_time, condition)

        monkeypatch.setattr(model.network, "forward", remembering)


@pytest.mark.parametrize("sampler", Sampler.kinds())
def test_a_picture_depends_on_seed_and_number_only(model, monkeypatch, sampler):
    """Of 255 levels one may differ by rounding; the adaptive sampler's strides fit the batch, within a tolerance."""
    rounding = 3 if sampler == "ode" else 1
    together = model.text_to_image("a red heart", num_images=5, seed=3, sampler=sampler)
    monkeypatch.setattr(module, "MOST_AT_ONCE", 2)
    assert apart(model.text_to_image("a red heart", num_images=5, seed=3, sampler=sampler), together) <= rounding
    monkeypatch.setattr(module, "MOST_AT_ONCE", 1)
    assert apart(model.text_to_image("a red heart", num_images=1, seed=3, sampler=sampler), together[:1]) <= rounding
    assert all(apart([together[0]], [other]) > 20 for other in together[1:])
    assert apart(model.text_to_image("a red heart", seed=4, sampler=sampler), together[:1]) > 20


def test_a_part_of_a_call_draws_the_same_pictures(plain):
    """Picture i of the whole, by its number: what several processes, and evaluations in batches, rely on."""
    nothing, how = plain.encode_condition(plain.uncond()), plain.sampling(steps=2, seed=4)
    whole = plain.render([nothing] * 3, [nothing] * 3, how)
    assert_close(plain.render([nothing] * 2, [nothing] * 2, how, numbers=range(1, 3)), whole[1:])


def test_text_is_read_once_a_call(model, monkeypatch):
    read = []
    (text,) = model.conditioners.controlled_by("text").values()
    forward = text.encoder.forward
    monkeypatch.setattr(text.encoder, "forward", lambda *inputs: read.append(len(inputs[0])) or forward(*inputs))
    monkeypatch.setattr(module, "MOST_AT_ONCE", 2)
    model.text_to_image("a red heart", num_images=5)
    assert read == [1, 1]  # the prompt, and nothing
    model.text_to_image("a red heart", num_images=5, guidance=1)
    assert read[2:] == [1]


def test_a_condition_changes_the_picture(model):
    heart = model.text_to_image("a red heart")
    assert apart(model.text_to_image("a blue house"), heart) > 5
    assert apart(model.text_to_image("a red heart", negative_prompt="a blue house"), heart) > 5
    nothing = model.sample()
    assert apart(heart, nothing) > 5
    assert apart(model.sample(label="owl"), nothing) > 5
    stripes = torch.arange(4).repeat(8, 2)
    assert apart(model.sample(layout=stripes), nothing) > 5
    assert apart(model.sample(layout=stripes, label="owl"), model.sample(layout=stripes)) > 5


def test_a_label_by_name_or_number(model):
    assert apart(model.sample(label="dog"), model.sample(label=1)) == 0
    assert apart(model.sample(label="1"), model.sample(label=1)) == 0
    with pytest.raises(UserError, match="unknown label 'doq'; allowed: cat, dog, owl. Did you mean 'dog'"):
        model.sample(label="doq")
    with pytest.raises(UserError, match="label 3 is outside 0 to 2"):
        model.sample(label=3)
    with pytest.raises(UserError, match="the map has class 9; this model knows 0 to 3"):
        model.sample(layout=torch.full((5, 5), 9))


def test_guidance_is_linear_in_the_first_step(model):
    """One DDIM step to data: x0 = uncond + scale (cond - uncond), so pictures before clipping are linear in the latent."""

    def latent(scale: float) -> torch.Tensor:
        seen = []

        def spy(denoise: Denoise, streams: object) -> Denoise:
            return lambda x, t: seen.append(denoise(x, t)) or seen[-1]

        how = model.sampling(steps=1, guidance=scale)
        model.generate(model.text_inputs("a red heart"), how, wrap=spy)
        return seen[0].x0

    cond, uncond = latent(1), latent(0)
    assert_close(latent(3), uncond + 3 * (cond - uncond), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(cond, uncond, atol=1e-2)


def test_guidance_1_is_conditional_and_half_the_work(model, monkeypatch):
    seen = Seen(model, monkeypatch)
    plain_default = model.text_to_image("a red heart", guidance=1, num_images=2)
    assert seen.rows == 2
    assert apart(model.text_to_image("a red heart", guidance=1, num_images=2, negative_prompt="a house"), plain_default) == 0
    model.text_to_image("a red heart", guidance=1.5, num_images=2)
    assert seen.rows == 4


def test_nothing_told_needs_no_guidance(model, plain, monkeypatch):
    seen = Seen(model, monkeypatch)
    assert apart(model.sample(guidance=7), model.sample(guidance=1)) == 0
    assert seen.rows == 1
    seen = Seen(plain, monkeypatch)
    plain.sample(guidance=7, num_images=3)
    assert seen.rows == 3


def test_nothing_is_everything_painted_over_grey_and_an_unknown_map(model, monkeypatch):
    seen = Seen(model, monkeypatch)
    model.text_to_image("a red heart", steps=1, guidance=2)
    (condition,) = seen.conditions
    mask, masked, classes = condition.concat.split([1, 2, 4], dim=1)
    grey = model.first_stage.encode(torch.zeros(1, 3, 16, 16))
    assert_close(mask, torch.ones_like(mask))
    assert_close(masked, grey.expand_as(masked))
    assert_close(classes, torch.zeros_like(classes))


def test_pixel_space_is_the_network_alone(plain):
    """Identity first stage: what the sampler lands on is the picture."""
    landed = []

    def spy(denoise: Denoise, streams: object) -> Denoise:
        return lambda x, t: landed.append(denoise(x, t)) or landed[-1]

    pictures = plain.generate(plain.uncond(), plain.sampling(num_images=2), wrap=spy)
    assert_close(pictures, landed[-1].x0, rtol=0, atol=1e-5)
    assert to_pil(pictures)[0].size == (16, 16)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lower_precision_draws_the_same_picture(tiny, precision):
    exact = LatentDiffusion.from_pretrained(tiny(*ALL), device="cpu").text_to_image("a red heart")
    low = LatentDiffusion.from_pretrained(tiny(*ALL), device="cpu", precision=precision).text_to_image("a red heart")
    assert 0 < np.abs(levels(low) - levels(exact)).mean() < 3


@pytest.mark.parametrize("stored", [torch.float32, torch.float16])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_weights_held_in_half_precision_give_what_whole_ones_give_under_autocast(tmp_path, write_model, precision, stored):
    folder = write_model(tmp_path / "model", ("text", "boxes", "class", "mask", "map"), dtype=stored)
    whole, low = (LatentDiffusion.from_pretrained(folder, device="cpu", precision=wanted) for wanted in ("fp32", precision))
    layers = [m for part in (low.network, low.conditioners) for m in part.modules() if isinstance(m, torch.nn.Linear | torch.nn.Conv2d)]
    assert len(layers) > 20 and {p.dtype for layer in layers for p in layer.parameters()} == {DTYPES[precision]}
    how = low.sampling(num_images=2)
    drawn = [one.generate(one.uncond(), how) for one in (low, replace(whole, precision=precision))]
    assert torch.equal(*drawn)


def test_a_picture_that_is_not_finite_is_refused(plain, monkeypatch):
    monkeypatch.setattr(plain.network, "forward", lambda x, network_time, condition: x * torch.inf)
    with pytest.raises(UserError, match="NaN or infinity in fp32"):
        plain.sample()


class Grids:
    """The grids that a sampler is given."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.times: list[torch.Tensor] = []
        sample = Sampler.sample

        def remembering(self_: Sampler, denoise: Denoise, x: torch.Tensor, grid: torch.Tensor, *rest: object) -> torch.Tensor:
            self.times.append(grid)
            return sample(self_, denoise, x, grid, *rest)

        monkeypatch.setattr(Sampler, "sample", remembering)


@pytest.mark.parametrize(
    "start, steps, taken, first",
    [(1.0, 10, 10, 1.0), (0.5, 10, 5, 0.5), (0.07, 10, 1, 0.07), (1e-9, 10, 1, 0.01), (0.015, 100, 2, 0.02), (0.25, 100, 25, 0.25)],
)
def test_a_start_below_takes_its_share_of_the_steps(plain, monkeypatch, start, steps, taken, first):
    """The tiny process has a table of 100."""
    grids = Grids(monkeypatch)
    plain.generate(plain.uncond(), plain.sampling(steps=steps), start=start, start_latent=torch.zeros(1, 3, 16, 16))
    assert len(grids.times[0]) == taken + 1
    assert_close(grids.times[0][0].item(), first, rtol=0, atol=1e-9)


def test_any_share_of_any_number_of_steps_fits_the_table(plain, monkeypatch):
    monkeypatch.setattr(Sampler, "sample", lambda self, denoise, x, grid, *rest: x)
    latent = torch.zeros(1, 3, 16, 16)
    for steps in (1, 2, 3, 33, 50, 99, 100):
        for start in torch.linspace(0.001, 1, 61).tolist():
            plain.generate(plain.uncond(), plain.sampling(steps=steps), start=start, start_latent=latent)


def test_the_grid_is_the_askers_or_the_models(plain, monkeypatch):
    grids = Grids(monkeypatch)
    plain.sample(steps=3)
    plain.sample(steps=3, grid="uniform")
    plain.sample(steps=3, grid=Leading(offset=1))
    kept = replace(plain.spec, sampling=replace(plain.spec.sampling, grid=Leading()))
    replace(plain, spec=kept).sample(steps=3)
    wanted = [[1, 0.67, 0.33, 0], [1, 2 / 3, 1 / 3, 0], [0.68, 0.35, 0.02, 0], [0.67, 0.34, 0.01, 0]]
    assert_close(torch.stack(grids.times), torch.tensor(wanted, dtype=torch.float64))


@pytest.mark.parametrize("grid, ratio", [("trailing", 1.0), ("leading", math.sqrt(1 + (40 * 0.951) ** 2) / math.sqrt(1 + 40**2))])
def test_starts_from_the_processs_prior(plain, monkeypatch, grid, ratio):
    """Below the noisiest time, from as much less as data of deviation 1 has there."""
    starts = []
    monkeypatch.setattr(Sampler, "sample", lambda self, denoise, x, *rest: starts.append(x) or x)
    plain.sample(seed=5, grid=grid, steps=20)
    exploding = replace(plain.spec, process=EDM(sigma_max=40.0), prediction=EpsPrediction())
    replace(plain, spec=exploding).sample(seed=5, grid=grid, steps=20)
    assert_close(starts[1], 40 * ratio * starts[0], rtol=1e-5, atol=1e-6)
    assert 0.8 < starts[0].std() < 1.2


def test_guidance_acts_in_its_interval_and_is_rescaled(model):
    """One step from noise, where sigma / alpha is infinite: an interval that ends below says nothing there."""
    how, seen = model.sampling(steps=1, guidance=4), []

    def x0(how) -> torch.Tensor:
        def spy(denoise: Denoise, streams: object) -> Denoise:
            return lambda x, t: seen.append(denoise(x, t)) or seen[-1]

        model.generate(model.text_inputs("a red heart"), how, wrap=spy)
        return seen[-1].x0

    cond, guided = x0(replace(how, guidance=1)), x0(how)
    assert_close(x0(replace(how, guidance_interval=(0.0, 100.0))), cond, rtol=1e-5, atol=1e-5)
    assert abs(guided.std() / cond.std() - 1) > 0.01
    assert_close(x0(replace(how, guidance_rescale=1.0)).std(), cond.std(), rtol=1e-4, atol=0)


def test_limits_of_guidance_are_the_askers_or_the_models(model):
    kept = replace(model.spec.sampling, guidance_interval=(0.5, 2.0), guidance_rescale=0.7)
    mine = replace(model, spec=replace(model.spec, sampling=kept))
    default, given, plain_default = mine.sampling(), mine.sampling(guidance_interval=(0.0, 1.0), guidance_rescale=0.0), model.sampling()
    assert (default.guidance_interval, default.guidance_rescale) == ((0.5, 2.0), 0.7)
    assert (given.guidance_interval, given.guidance_rescale) == ((0.0, 1.0), 0.0)
    assert (plain_default.guidance_interval, plain_default.guidance_rescale) == (None, 0.0)
    with pytest.raises(UserError, match="0 <= low <= high, got 2.0 and 1.0"):
        replace(kept, guidance_interval=(2.0, 1.0))


@pytest.mark.parametrize("size, batch", [(16, 64), (128, 64), (256, 16), (512, 4), (4096, 1)])
def test_small_pictures_are_made_in_larger_batches(plain, size, batch):
    assert replace(plain, spec=replace(plain.spec, size=size)).at_once == batch


def test_progress_counts_all_batches(plain, monkeypatch):
    monkeypatch.setattr(module, "MOST_AT_ONCE", 2)
    steps_seen = []
    plain.sample(num_images=3, steps=2, on_step=lambda step: steps_seen.append((step.done, step.steps)))
    assert steps_seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_a_callback_is_given_each_steps_sample_and_estimate(plain):
    """DDIM takes the estimate at t to the sample at s; the last estimate is what is drawn."""
    taken = []
    images = plain.sample(num_images=2, steps=3, sampler="ddim", on_step=taken.append)
    for now, then in pairwise(taken):
        assert now.t > then.t
        assert_close(plain.spec.process.blend(now.estimate, then.t), then.x_t)
    assert to_pil(plain.decode(taken[-1].estimate.x0)) == images


def test_a_sampler_and_a_grid_may_be_said_with_settings(model):
    how = model.sampling(sampler="ddim eta=0.5", grid="karras rho=5")
    assert (how.sampler, how.grid) == (DDIM(eta=0.5), Karras(rho=5.0))


@pytest.mark.parametrize("threshold, levels", [(None, {-3.0, 3.0}), ("none", {-3.0, 3.0}), ("clip", {-1.0, 1.0}), (0.9, {-1.0, 1.0})])
def test_a_threshold_keeps_pixels_in_range(plain, monkeypatch, threshold, levels):
    """A network whose x0 is 3 or -3: what the sampler lands on."""
    sign = torch.where(torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)) < 0.5, -3.0, 3.0)

    def towards(x: torch.Tensor, network_time: torch.Tensor, condition: Condition) -> torch.Tensor:
        alpha, sigma = plain.spec.process.scales((network_time + 1) / 100, x)
        return (alpha * (x - alpha * sign) - sigma**2 * sign) / sigma  # v of x0 = sign

    monkeypatch.setattr(plain.network, "forward", towards)
    how = plain.sampling(steps=3, threshold=threshold)
    assert set(plain.generate(plain.uncond(), how).round(decimals=3).unique().tolist()) == levels


def test_latents_have_no_range_to_keep_to(model):
    with pytest.raises(UserError, match="a threshold is for models on pixels"):
        model.sampling(threshold="clip")


def test_the_models_own_threshold_holds_unless_another_is_asked(plain):
    mine = replace(plain, spec=replace(plain.spec, sampling=replace(plain.spec.sampling, threshold="clip")))
    assert [mine.sampling(threshold=given).threshold for given in (None, 0.9, "none")] == ["clip", 0.9, None]


def test_autoguidance_leads_away_from_the_weaker_model(plain, tiny):
    """One step to data is x0, so pictures are weaker + scale (good - weaker); and a model of other latents is refused."""
    weaker = replace(plain, network=deepcopy(plain.network))
    with torch.no_grad():
        for p in weaker.network.parameters():
            p.mul_(0.9)
    how, cond = plain.sampling(steps=1, num_images=2), plain.uncond()
    good, bad = plain.generate(cond, how), weaker.generate(cond, how)
    assert (good - bad).abs().max() > 0.05
    for scale in (1.0, 2.0):
        guided = replace(how, guide=plain.away_from(weaker, cond, scale))
        got = plain.generate(cond, guided)
        assert_close(got, bad + scale * (good - bad), rtol=1e-4, atol=1e-4)
    assert got.abs().max() > 1.01  # a threshold comes last, since guidance is what drives x0 out of range
    assert_close(plain.generate(cond, replace(guided, threshold="clip")), got.clamp(-1, 1), rtol=1e-4, atol=1e-4)
    with pytest.raises(UserError, match="one first stage and one process"):
        plain.away_from(LatentDiffusion.from_pretrained(tiny("class"), device="cpu"), cond, 2.0)


MISTAKES = {
    "threshold out of range": ({"threshold": 1.5}, "a threshold is clip, or a percentile in (0, 1]"),
    "a threshold of nothing": ({"threshold": 0.0}, "a threshold is clip, or a percentile in (0, 1]"),
    "settings of a sampler": ({"sampler": "ddim eta"}, "'eta' is not key=value"),
    "unknown sampler": ({"sampler": "dpmpp_2n"}, "langevin, ode, pc, pndm, unipc. Did you mean 'dpmpp_2m'"),
    "unknown grid": ({"grid": "carras"}, "log_snr, shifted, trailing, uniform. Did you mean 'karras'"),
    "steps as text": ({"steps": "3"}, "steps must be a whole number, got str '3'"),
    "steps as a float": ({"steps": 3.0}, "steps must be a whole number, got float 3.0"),
    "a number of pictures as text": ({"num_images": "4"}, "num_images must be a whole number"),
    "no number of pictures": ({"num_images": None}, "num_images must be a whole number, got NoneType None"),
    "a seed as text": ({"seed": "x"}, "seed must be a whole number"),
    "no seed": ({"seed": None}, "seed must be a whole number"),
    "a seed that is none": ({"seed": True}, "seed must be a whole number"),
    "guidance as text": ({"guidance": "3"}, "guidance must be a number, got str '3'"),
    "rescale as text": ({"guidance_rescale": "1"}, "guidance_rescale must be a number"),
    "one level of an interval": ({"guidance_interval": 3.0}, "guidance_interval must be two noise levels"),
    "levels as text": ({"guidance_interval": ("0", "1")}, "guidance_interval must be two noise levels"),
    "a sampler that is none": ({"sampler": 3}, "a sampler is a Sampler, or named by its kind"),
    "a grid that is none": ({"grid": ["uniform"]}, "a grid is a Grid, or named by its kind"),
    "no steps": ({"steps": 0}, "steps must be at least 1, got 0"),
    "negative steps": ({"steps": -1}, "steps must be at least 1, got -1"),
    "more steps than the table": ({"steps": 101}, "101 sampling steps requested, but the process has 100"),
    "no pictures": ({"num_images": 0}, "number of images must be at least 1, got 0"),
    "negative guidance": ({"guidance": -1.0}, "guidance must be a number from 0 up"),
    "guidance not a number": ({"guidance": float("nan")}, "guidance must be a number from 0 up"),
    "endless guidance": ({"guidance": float("inf")}, "guidance must be a number from 0 up"),
    "an interval turned round": ({"guidance_interval": (2.0, 1.0)}, "0 <= low <= high, got 2.0 and 1.0"),
    "too much rescale": ({"guidance_rescale": 1.5}, "from 0 (none) to 1 (all), got 1.5"),
}


@pytest.mark.parametrize("wrong, message", MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_refused(plain, wrong, message):
    with pytest.raises(UserError) as caught:
        plain.sampling(**wrong)
    assert message in str(caught.value)


def test_a_model_whose_sampler_needs_no_steps_names_none_for_others(plain):
    """Its checkpoint says `ode` and 1, which would be one step of any other."""
    plain = replace(plain, spec=replace(plain.spec, sampling=replace(plain.spec.sampling, sampler=ODE(), steps=1)))
    assert plain.sampling().steps == plain.sampling(sampler="ode rtol=1e-2").steps == 1
    assert plain.sampling(sampler="ddim", steps=20).steps == 20
    with pytest.raises(UserError, match="sampler 'ddim' needs a number of steps, e.g. 50: the model names none, since its own, 'ode'"):
        plain.sampling(sampler="ddim")


def test_what_a_model_was_not_trained_for_is_refused(plain, model, tiny):
    with pytest.raises(UserError, match="not trained with text; it takes no condition"):
        plain.text_to_image("a red heart")
    with pytest.raises(UserError, match="not trained with class labels"):
        plain.sample(label=0)
    with pytest.raises(UserError, match="not trained with semantic maps"):
        plain.sample(layout=torch.zeros(4, 4, dtype=torch.int64))
    with pytest.raises(UserError, match="not trained with text; it takes class"):
        LatentDiffusion.from_pretrained(tiny("class"), device="cpu").text_to_image("a red heart")
    for empty in ("", " \n"):
        with pytest.raises(UserError, match="the prompt is empty"):
            model.text_to_image(empty)
    with pytest.raises(UserError, match="unknown precision 'fp61'.*Did you mean 'fp16'"):
        LatentDiffusion.from_pretrained(tiny("class"), precision="fp61")


def test_the_model_is_a_value(plain):
    """Nothing a call does stays behind."""
    before = plain.sample(seed=1)
    plain.sample(seed=2, sampler="ddpm", num_images=3)
    assert apart(plain.sample(seed=1), before) == 0
    assert replace(plain, precision="bf16").precision == "bf16" and plain.precision == "fp32"


WRONG_VALUES = {
    "a list of prompts": ("text", ["a", "b"], "a prompt is one text, got .*ask for one prompt a call"),
    "a number as prompt": ("text", 3, "a prompt is one text, got 3"),
    "a mask alone": ("mask", "hole.png", "a mask needs the picture that it lies on"),
    "a number as map": ("map", 3, "a map is a file's path, or a tensor .H, W. of whole class indices, got int 3"),
    "shares as map": ("map", torch.zeros(4, 4), "got Tensor of torch.float32 .4, 4."),
    "a number as small picture": ("small", 3, "a small picture is a file's path, or a tensor"),
    "a small picture without its batch": ("small", torch.zeros(3, 4, 4), "got Tensor of torch.float32 .3, 4, 4."),
    "a number as boxes": ("boxes", 3, "boxes must be a list"),
    "one box": ("boxes", [0, 0.0, 0.0, 1.0, 1.0], "boxes must be a list"),
    "a box of a named class": ("boxes", [["cat", 0.0, 0.0, 1.0, 1.0]], "the class of a box must be a number"),
    "a whole and its field": ({"class": 1, "class.name": 2}, None, "given twice, as a whole and by class.name"),
    "no mapping": ("class", ..., "conditions are a mapping of names to values"),
}


@pytest.mark.parametrize("name, value, message", WRONG_VALUES.values(), ids=WRONG_VALUES)
def test_a_condition_of_another_type_is_refused(name, value, message, tiny):
    model = LatentDiffusion.from_pretrained(tiny(*ALL, "boxes", "small"), device="cpu")
    with pytest.raises(UserError, match=message):
        model.inputs(name if isinstance(name, dict) or value is ... else {name: value})


@pytest.mark.parametrize("name, said", [("gpu", "allowed: auto, cpu"), ("cuda:99", "available: .*cpu. Name"), (3.5, "allowed: auto, cpu")])
def test_a_device_that_is_not_there_is_refused(name, said, tiny):
    with pytest.raises(UserError, match=f"device '{name}'.*{said}"):
        LatentDiffusion.from_pretrained(tiny(), device=name)


def test_a_model_is_shown_in_one_line(model):
    shown = r"<LatentDiffusion 'tiny': 16x16, unet of 0\.\dM parameters, first stage kl, conditioned on text: bert_.*; fp32 on cpu>"
    assert re.fullmatch(shown, repr(model))
