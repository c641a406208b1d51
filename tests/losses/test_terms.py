"""Each term of stage one's loss against numpy, torch's own losses or the lpips library; the log-variance; the adaptive weight."""

from __future__ import annotations

import copy
import dataclasses
import math
import warnings

import lpips
import numpy as np
import pytest
import torch
from torch.nn import functional
from torch.testing import assert_close

from ldm.core.errors import UserError
from ldm.first_stage.autoencoder import KLAutoencoderConfig
from ldm.first_stage.posterior import DiagonalGaussian
from ldm.first_stage.vq import QuantisedLatent
from ldm.losses.adversarial import adaptive_weight, discriminator_error, generator_error
from ldm.losses.autoencoder_loss import AutoencoderLoss, AutoencoderLossConfig
from ldm.losses.perceptual import Perceptual
from ldm.losses.reconstruction import negative_log_likelihood, pixel_error

PLAIN = AutoencoderLossConfig(perceptual_weight=0.0, disc_weight=0.0)


@pytest.fixture(scope="module")
def network() -> lpips.LPIPS:
    """The small trunk with random weights and lpips' own linear layers: the wrapper's arithmetic does not depend on the trunk."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # lpips passes torchvision's old `pretrained=`
        return lpips.LPIPS(net="squeeze", pnet_rand=True, verbose=False)


def image_pair(count: int = 3, channels: int = 3, side: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    images = torch.rand(count, channels, side, side, generator=generator) * 2 - 1
    return images, (images + 0.3 * torch.randn(images.shape, generator=generator)).requires_grad_()


def posterior(count: int = 3) -> DiagonalGaussian:
    return DiagonalGaussian.of(torch.randn(count, 8, 4, 4, generator=torch.Generator().manual_seed(8)))


@pytest.mark.parametrize("how, error", [("l1", np.abs), ("l2", np.square)])
def test_terms_are_numpys_at_the_published_scale(network, how, error):
    """NLL is a sum over the sample, with LPIPS added to every pixel's error; KL is a sum over the latent."""
    images, reconstruction = image_pair()
    config = AutoencoderLossConfig(pixel=how, perceptual_weight=0.7, disc_weight=0.0, logvar_init=0.3, kl_weight=1e-2)
    loss, latent = config.build(3, network), posterior()
    terms = loss.terms(images, reconstruction, latent)

    pixel = error((images - reconstruction).detach().double().numpy())
    distance = network(images, reconstruction).detach().double().numpy()  # (B, 1, 1, 1)
    nll = ((pixel + 0.7 * distance) / math.exp(0.3) + 0.3).sum((1, 2, 3))
    np.testing.assert_allclose(terms.nll.detach(), nll, rtol=1e-5)
    np.testing.assert_allclose(terms.pixel.detach(), pixel.mean((1, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(terms.perceptual.detach(), distance.reshape(3), rtol=1e-5)
    mean, variance = latent.mean.double().numpy(), latent.log_variance.double().exp().numpy()
    kl = 0.5 * (mean**2 + variance - 1 - np.log(variance)).sum((1, 2, 3))
    np.testing.assert_allclose(terms.penalties["kl"], kl, rtol=1e-5)
    np.testing.assert_allclose((terms.nll + loss.penalties(terms)).detach(), nll + 1e-2 * kl, rtol=1e-5)


def test_a_quantised_latents_errors_weigh_as_in_the_published_mean():
    """VQ models: mean error + codebook_weight * (codebook + commitment * commitment error), all means; ours is that times C H W."""
    images, reconstruction = image_pair()
    raw = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    code = raw.round()
    latent = QuantisedLatent(raw, code, torch.zeros(3, 8, 8, dtype=torch.long), num_codes=1)
    loss = dataclasses.replace(PLAIN, codebook_weight=0.7, commitment=0.3).build(3)
    terms = loss.terms(images, reconstruction, latent)
    mean = (images - reconstruction).abs().mean((1, 2, 3)) + 0.7 * 1.3 * (raw - code).square().mean((1, 2, 3))
    assert_close((terms.nll + loss.penalties(terms)) / images[0].numel(), mean, rtol=1e-5, atol=1e-7)
    assert loss.weights == {"kl": 1e-6, "codebook": 0.7, "commitment": pytest.approx(0.21), "equivariance": 0.0}


def test_without_lpips_the_term_is_zero_and_nothing_is_loaded():
    loss = PLAIN.build(3)
    images, reconstruction = image_pair()
    assert loss.perceptual is None and loss.discriminator is None
    assert loss.terms(images, reconstruction, posterior()).perceptual.tolist() == [0, 0, 0]
    assert loss.discriminator_parameters() == loss.autoencoder_parameters() == []


def test_the_pretrained_lpips_is_taken_where_none_is_given(network, monkeypatch):
    monkeypatch.setattr("ldm.pretrained.vgg_lpips", lambda: network)
    config = AutoencoderLossConfig(disc_weight=0.0)
    assert config.build(3).perceptual.network is network
    monkeypatch.setattr("ldm.pretrained.vgg_lpips", lambda: pytest.fail("LPIPS was loaded"))
    assert dataclasses.replace(config, perceptual_weight=0.0).build(3).perceptual is None


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_lpips_and_its_gradient_are_the_librarys(network, channels):
    """A single channel is repeated; of 4 channels each becomes a grey image, and the distances are averaged."""
    images, reconstruction = image_pair(channels=channels)
    got = Perceptual(network)(images, reconstruction)
    if channels == 3:
        expected = network(images, reconstruction).reshape(-1)
    else:
        each = [network(*(x[:, c : c + 1].expand(-1, 3, -1, -1) for x in (images, reconstruction))) for c in range(channels)]
        expected = torch.stack(each).mean(0).reshape(-1)
    assert_close(got, expected)
    gradients = [torch.autograd.grad(value.sum(), reconstruction)[0] for value in (got, expected)]
    assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-8)
    assert gradients[0].abs().max() > 1e-6


def test_lpips_gradient_is_finite_where_all_features_are_zero(network):
    """The root of a sum of squares has no slope at 0, but the gradient of the ReLU before it is 0 there."""
    images, _ = image_pair()
    first = network.net.slice1[0]
    kept = first.bias.clone()
    try:
        first.bias.fill_(-1e3)  # the first layer's ReLU leaves nothing
        flat = images.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(Perceptual(network)(images, flat).sum(), flat)
    finally:
        first.bias.copy_(kept)
    assert gradient.isfinite().all()


def test_lpips_reaches_the_encoder(network):
    """Without a pixel error: the gradient is that of LPIPS alone."""
    torch.manual_seed(0)
    stage = KLAutoencoderConfig(channels=8, multipliers=(1, 2), blocks=1, latent_channels=2).build()
    images, _ = image_pair()
    reconstruction, _ = stage.reconstruct(images, torch.zeros(3, 2, 16, 16))
    Perceptual(network)(images, reconstruction).sum().backward()
    idle = [name for name, p in stage.encoder.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert idle == []
    assert all(p.grad is None for p in network.parameters())


def test_lpips_is_frozen_in_eval_mode_and_not_saved(network):
    network.requires_grad_(True)
    loss = AutoencoderLossConfig(disc_weight=0.0).build(3, network)
    loss.train()
    assert not any(module.training for module in network.modules())
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert list(loss.state_dict()) == ["log_variance"]
    assert [name for name, _ in loss.named_parameters()] == ["log_variance"]


def test_lpips_follows_the_images_to_their_device(network):
    moved = copy.deepcopy(network)
    assert Perceptual(moved)(*(x.to("meta") for x in image_pair())).device.type == "meta"
    assert {x.device.type for x in (*moved.parameters(), *moved.buffers())} == {"meta"}


def test_small_pictures_are_refused_by_lpips(network):
    with pytest.raises(UserError, match="at least 16 pixels.*8 x 8"):
        Perceptual(network)(torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8))


def test_bf16_autocast_gives_float32_terms_near_the_exact_ones(network):
    images, reconstruction = image_pair()
    loss = AutoencoderLossConfig(disc_channels=8, disc_layers=2).build(3, network)
    exact = loss.terms(images, reconstruction, posterior())
    with torch.autocast("cpu", torch.bfloat16):
        rough = loss.terms(images, reconstruction.bfloat16(), posterior())
        adversarial = loss.generator_loss(reconstruction)
    assert {rough.nll.dtype, rough.penalties["kl"].dtype, rough.perceptual.dtype, adversarial.dtype} == {torch.float32}
    assert_close(rough.nll, exact.nll, rtol=0.02, atol=0)
    assert_close(rough.perceptual, exact.perceptual, rtol=0.05, atol=1e-4)


@pytest.mark.parametrize("how", ["l1", "l2"])
def test_log_variance_trains_to_its_optimum(how):
    """d/ds of sum(e / exp(s) + s) is 0 at exp(s) = mean error; an optimizer given our list must get there."""
    images, reconstruction = (x.detach() for x in image_pair())
    loss = AutoencoderLossConfig(pixel=how, perceptual_weight=0.0, disc_weight=0.0, learn_logvar=True).build(3)
    optimizer = torch.optim.Adam(loss.autoencoder_parameters(), lr=0.05)
    for _ in range(300):
        optimizer.zero_grad()
        loss.terms(images, reconstruction, posterior()).nll.mean().backward()
        optimizer.step()
    error = images - reconstruction
    mean = error.abs().mean() if how == "l1" else error.square().mean()
    assert_close(loss.log_variance.detach(), mean.log(), atol=1e-3, rtol=0)


def test_log_variance_stands_still_unless_learned():
    loss = PLAIN.build(3)
    images, reconstruction = image_pair()
    loss.terms(images, reconstruction, posterior()).nll.sum().backward()
    assert loss.log_variance.grad is None and reconstruction.grad.abs().sum() > 0


def test_l1_with_log_variance_is_a_laplace_density():
    images, reconstruction = (x.detach().double() for x in image_pair())
    log_variance = torch.tensor(-0.4, dtype=torch.float64)
    nll = negative_log_likelihood((images - reconstruction).abs(), log_variance)
    density = torch.distributions.Laplace(reconstruction, log_variance.exp())
    assert_close(nll, -(density.log_prob(images) + math.log(2)).sum((1, 2, 3)))


REAL, FAKE = torch.tensor([3.0, 0.2, -1.0]), torch.tensor([-3.0, 0.5, 2.0])


def test_hinge():
    """Lim & Ye 2017: satisfied beyond +-1."""
    assert_close(discriminator_error(REAL, FAKE, "hinge"), 0.5 * torch.tensor([0 + 0, 0.8 + 1.5, 2 + 3.0]))
    assert_close(generator_error(FAKE, "hinge"), -FAKE)


@pytest.mark.parametrize("how", ["vanilla", "non_saturating"])
def test_logistic_losses_are_binary_cross_entropy(how):
    cross = functional.binary_cross_entropy_with_logits
    real, fake = (cross(x, torch.full((3,), y), reduction="none") for x, y in ((REAL, 1.0), (FAKE, 0.0)))
    assert_close(discriminator_error(REAL, FAKE, how), 0.5 * (real + fake))
    expected = -FAKE if how == "vanilla" else cross(FAKE, torch.ones(3), reduction="none")
    assert_close(generator_error(FAKE, how), expected)


def test_adaptive_weight_on_a_toy_where_it_is_known():
    """Decoder y = w x with one weight, x = 2, target 7, w = 3: |d (y - 7)^2 / dw| = 4; adversary -5 y: 10 a unit of w."""
    w = torch.tensor([3.0], requires_grad=True)
    y = 2 * w
    nll, adversarial = (torch.autograd.grad(f, w, retain_graph=True)[0] for f in ((y - 7).square(), -5 * y))
    assert_close(adaptive_weight(nll, adversarial), torch.tensor(4 / (10 + 1e-4)))
    matrix = torch.tensor([[3.0, 0.0], [0.0, 4.0]])  # a tensor's norm is that of all its numbers
    assert_close(adaptive_weight(matrix, torch.tensor([[0.0, 2.0]])), torch.tensor(5 / (2 + 1e-4)))
    assert adaptive_weight(matrix, torch.zeros(2)).item() == 1e4
    assert adaptive_weight(torch.tensor(5.0), torch.zeros(1), clamp=7.0).item() == 7


def test_adversarial_weight_obeys_start_factor_and_switch():
    def weight(step: int, **changes: object) -> float:
        config = AutoencoderLossConfig(
            perceptual_weight=0.0, disc_start=10, disc_weight=0.5, disc_factor=0.8, disc_channels=4, disc_layers=1, **changes
        )
        return config.build(3).adversarial_weight(step, torch.tensor([6.0]), torch.tensor([2.0])).item()

    assert weight(9) == 0
    assert weight(10) == pytest.approx(0.8 * 0.5 * 3, rel=1e-4)
    assert weight(10, adaptive=False) == pytest.approx(0.4)


def adversarial_loss(how: str = "hinge", norm: str = "group") -> AutoencoderLoss:
    torch.manual_seed(0)
    return AutoencoderLossConfig(perceptual_weight=0.0, disc_channels=8, disc_layers=2, disc_loss=how, disc_norm=norm).build(3)


@pytest.mark.parametrize("how", ["hinge", "vanilla", "non_saturating"])
def test_discriminator_terms_are_means_over_the_patches(how):
    loss = adversarial_loss(how)
    images, reconstruction = image_pair()
    real, fake = (loss.discriminator(x).detach() for x in (images, reconstruction))
    terms = loss.discriminator_loss(images, reconstruction)
    assert_close(terms.loss.detach(), discriminator_error(real, fake, how).mean((1, 2, 3)))
    assert_close(terms.real_logit, real.mean((1, 2, 3)))
    assert_close(terms.fake_logit, fake.mean((1, 2, 3)))
    right = ((real > 0).double().mean((1, 2, 3)) + (fake < 0).double().mean((1, 2, 3))) / 2
    assert_close(terms.accuracy.double(), right)
    assert_close(loss.generator_loss(reconstruction).detach(), generator_error(fake, how).mean((1, 2, 3)))


@pytest.mark.parametrize("norm", ["group", "none", "batch"])
def test_each_players_gradient_stays_its_own(norm):
    loss = adversarial_loss(norm=norm)
    images, reconstruction = image_pair()
    loss.generator_loss(reconstruction).sum().backward()
    assert reconstruction.grad.abs().max() > 0
    assert all(p.grad is None for p in loss.discriminator_parameters())

    reconstruction.grad = None
    loss.discriminator_loss(images, reconstruction).loss.sum().backward()
    assert reconstruction.grad is None
    assert all(p.grad is not None and p.requires_grad for p in loss.discriminator_parameters())


def test_the_discriminator_learns_to_classify_and_the_generator_to_deceive():
    loss = adversarial_loss()
    images, reconstruction = image_pair(count=4)
    blurred = functional.avg_pool2d(reconstruction.detach(), 5, 1, 2).requires_grad_()
    optimizer = torch.optim.Adam(loss.discriminator_parameters(), lr=2e-3)
    for _ in range(40):
        optimizer.zero_grad()
        loss.discriminator_loss(images, blurred).loss.mean().backward()
        optimizer.step()
    after = loss.discriminator_loss(images, blurred)
    assert after.accuracy.mean() > 0.9 and after.real_logit.mean() > 0 > after.fake_logit.mean()
    (gradient,) = torch.autograd.grad(loss.generator_loss(blurred).sum(), blurred)
    deceiving = (blurred - 0.05 * gradient.sign()).detach()
    assert loss.discriminator_loss(images, deceiving).fake_logit.mean() > after.fake_logit.mean()


def test_defaults_are_the_published_ones():
    """CompVis' autoencoder_kl_*.yaml and the defaults of its LPIPSWithDiscriminator; beta of van den Oord et al. 2017."""
    config = AutoencoderLossConfig()
    assert (config.pixel, config.kl_weight, config.perceptual_weight) == ("l1", 1e-6, 1.0)
    assert (config.learn_logvar, config.logvar_init) == (False, 0.0)
    assert (config.disc_start, config.disc_weight, config.disc_factor, config.adaptive) == (50_001, 0.5, 1.0, True)
    assert (config.disc_loss, config.disc_layers, config.disc_channels) == ("hinge", 3, 64)
    assert (config.codebook_weight, config.commitment) == (1.0, 0.25)


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"pixel": "L1"}, "loss.pixel.*l1"),
        ({"disc_loss": "hinged"}, "Did you mean 'hinge'"),
        ({"disc_norm": "layer"}, "loss.disc_norm"),
        ({"kl_weight": -1.0}, "loss.kl_weight"),
        ({"disc_layers": 6}, "loss.disc_layers"),
        ({"disc_channels": 0}, "loss.disc_channels"),
    ],
)
def test_impossible_configs_are_refused(wrong, message):
    with pytest.raises(UserError, match=message):
        AutoencoderLossConfig(**wrong)


def test_unknown_names_are_refused_by_the_functions_too():
    x = torch.zeros(1, 1, 1, 1)
    for call in (lambda: pixel_error(x, x, "l3"), lambda: generator_error(x, "w"), lambda: discriminator_error(x, x, "w")):
        with pytest.raises(UserError, match="allowed"):
            call()
