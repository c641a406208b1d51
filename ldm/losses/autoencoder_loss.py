"""The loss of stage one, term by term. The engine averages it, takes gradients and steps.

    total = nll + penalties + weight * adversarial
    nll = sum of (pixel error + perceptual_weight * LPIPS) / exp(log_variance) + log_variance
    penalties = kl_weight * KL + equivariance_weight * the pixel error and LPIPS of a transformed latent's image (equivariance.py)
    for a VQ first stage codebook_weight * (codebook + commitment * commitment error) stands in place of kl_weight * KL
    weight = disc_factor * disc_weight * [step >= disc_start] * |d nll / d last layer| / |d adversarial / d last layer|

NLL and KL are sums over a sample. LPIPS, one number per image, is added to every pixel's error before the sum. At this scale published
values such as kl_weight = 1e-6 hold. VQ models were published with a mean nll; so the two errors of the codebook, which are means, are
multiplied by the number of values in an image. Everything is returned per sample, in float32.

Source: Rombach et al. 2022, appendix G; Esser et al. 2021, sec. 3.1; van den Oord et al. 2017, eq. 3.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ldm.core.errors import UserError, unknown
from ldm.core.shapes import over
from ldm.first_stage.posterior import Encoded
from ldm.losses.adversarial import ADAPTIVE_CLAMP, KINDS, AdversarialKind, adaptive_weight, discriminator_error, generator_error
from ldm.losses.equivariance import SpatialTransform
from ldm.losses.perceptual import SMALLEST_SIDE, Perceptual
from ldm.losses.reconstruction import PixelError, negative_log_likelihood, pixel_error
from ldm.networks.patchgan import PatchGAN


@dataclass(frozen=True, kw_only=True)
class AutoencoderTerms:
    """Per sample, all (B,).

    Attributes:
        nll: negative log-likelihood, a sum over the sample; part of the loss.
        penalties: by name; part of the loss, each with its weight, see `AutoencoderLoss.weights`.
        pixel: mean pixel error, for the log only.
        perceptual: LPIPS, for the log only; 0 where LPIPS is off.
    """

    nll: Tensor
    penalties: dict[str, Tensor]
    pixel: Tensor
    perceptual: Tensor


@dataclass(frozen=True, kw_only=True)
class DiscriminatorTerms:
    """Per sample, all (B,).

    Attributes:
        loss: the discriminator's loss, a mean over the patches.
        real_logit: mean logit of the image.
        fake_logit: mean logit of its reconstruction.
        accuracy: share of patches, real and fake, whose logit has the right sign.
    """

    loss: Tensor
    real_logit: Tensor
    fake_logit: Tensor
    accuracy: Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class AutoencoderLossConfig:
    """Defaults are the published ones (CompVis kl-f4 ... f32), except the discriminator's norm, which was batch.

    Attributes:
        pixel: l1 or l2.
        kl_weight: weight of the KL, a sum over the latent; for first_stage.kind kl.
        codebook_weight: weight of the codebook's two errors together; for first_stage.kind vq.
        commitment: weight of the commitment error relative to the codebook error, beta of van den Oord et al. The code of the published
            VQ models had beta on the codebook error instead: codebook_weight 0.25 and commitment 4 give the same loss.
        perceptual_weight: weight of LPIPS; 0 = LPIPS is not loaded.
        equivariance_weight: weight of the errors that a scaled and turned latent makes, relative to those of the latent itself; 0 = none.
        equivariance_mirror: whether it is mirrored too, half of the time.
        disc_weight: weight of the adversarial term, times the adaptive weight; 0 = no discriminator.
        disc_start: optimizer step from which the discriminator trains and the autoencoder's loss has the adversarial term.
        disc_factor: further factor of the adversarial term; 0 = no discriminator.
        disc_loss: hinge, vanilla or non_saturating (see adversarial.py).
        disc_layers: layers of the PatchGAN, 1 to 5.
        disc_channels: channels of the PatchGAN's first layer.
        disc_norm: group, none or batch; with batch the result depends on how a batch is split over processes.
        learn_logvar: whether log_variance is trained (with the autoencoder's optimizer).
        logvar_init: log_variance at the start.
        adaptive: whether the gradients at the last layer set the adversarial weight; otherwise it is disc_weight.
    """

    pixel: PixelError = "l1"
    kl_weight: float = 1e-6
    codebook_weight: float = 1.0
    commitment: float = 0.25
    perceptual_weight: float = 1.0
    equivariance_weight: float = 0.0
    equivariance_mirror: bool = False
    disc_weight: float = 0.5
    disc_start: int = 50_001
    disc_factor: float = 1.0
    disc_loss: AdversarialKind = "hinge"
    disc_layers: int = 3
    disc_channels: int = 64
    disc_norm: Literal["group", "none", "batch"] = "group"
    learn_logvar: bool = False
    logvar_init: float = 0.0
    adaptive: bool = True

    def __post_init__(self) -> None:
        for name, allowed in (("pixel", ("l1", "l2")), ("disc_loss", KINDS), ("disc_norm", ("group", "none", "batch"))):
            if getattr(self, name) not in allowed:
                raise unknown(f"loss.{name}", getattr(self, name), allowed)
        weights = ("kl_weight", "codebook_weight", "perceptual_weight", "equivariance_weight", "disc_weight")
        for name in (*weights, "commitment", "disc_start", "disc_factor"):
            if not getattr(self, name) >= 0:
                raise UserError(f"loss.{name} must not be negative, got {getattr(self, name)}")
        if not 1 <= self.disc_layers <= 5:
            raise UserError(f"loss.disc_layers must be 1 to 5, got {self.disc_layers}")
        if self.disc_channels < 1:
            raise UserError(f"loss.disc_channels must be at least 1, got {self.disc_channels}")

    @property
    def has_discriminator(self) -> bool:
        return self.disc_weight > 0 and self.disc_factor > 0

    def build(self, image_channels: int, lpips: nn.Module | None = None) -> AutoencoderLoss:
        """The loss with a new discriminator.

        Args:
            image_channels: channels of the images.
            lpips: an `lpips.LPIPS` to use; None = the pretrained VGG16 one if perceptual_weight is above 0.
        """
        if self.perceptual_weight > 0 and lpips is None:
            from ldm.pretrained import vgg_lpips  # 60 MB of weights: only where they are needed

            lpips = vgg_lpips()
        return AutoencoderLoss(self, image_channels, lpips if self.perceptual_weight > 0 else None)


class AutoencoderLoss(nn.Module):
    """See the module's text. Parameters: `log_variance` () and the discriminator's. LPIPS is frozen and not among them."""

    def __init__(self, config: AutoencoderLossConfig, image_channels: int, lpips: nn.Module | None) -> None:
        super().__init__()
        self.config = config
        self.log_variance = nn.Parameter(torch.tensor(float(config.logvar_init)), requires_grad=config.learn_logvar)
        self.perceptual = None if lpips is None else Perceptual(lpips)
        self.discriminator: nn.Module | None = None
        if config.has_discriminator:
            self.discriminator = PatchGAN(image_channels, config.disc_channels, config.disc_layers, config.disc_norm)

    def autoencoder_parameters(self) -> list[nn.Parameter]:
        """Parameters of the loss that the autoencoder's optimizer trains: log_variance, if it is learned."""
        return [self.log_variance] if self.config.learn_logvar else []

    def discriminator_parameters(self) -> list[nn.Parameter]:
        """Parameters that the discriminator's optimizer trains; empty without a discriminator."""
        return [] if self.discriminator is None else list(self.discriminator.parameters())

    @property
    def weights(self) -> dict[str, float]:
        """Weight of each penalty, by the names in `AutoencoderTerms.penalties`."""
        codebook = self.config.codebook_weight
        return {
            "kl": self.config.kl_weight,
            "codebook": codebook,
            "commitment": codebook * self.config.commitment,
            "equivariance": self.config.equivariance_weight,
        }

    def terms(self, images: Tensor, reconstruction: Tensor, encoded: Encoded, equivariance: Tensor | None = None) -> AutoencoderTerms:
        """All terms except the adversarial one.

        Args:
            images: (B, C, H, W) in [-1, 1].
            reconstruction: likewise.
            encoded: the encoder's output.
            equivariance: (B,) of `equivariance`, if the loss has it.
        """
        error = pixel_error(images, reconstruction, self.config.pixel)
        pixel = error.flatten(1).mean(1)
        if self.perceptual is None:
            perceptual = torch.zeros_like(pixel)
        else:
            perceptual = self.perceptual(images, reconstruction)
            error = error + self.config.perceptual_weight * over(perceptual, error)
        return AutoencoderTerms(
            nll=negative_log_likelihood(error, self.log_variance),
            penalties=encoded.penalties(images[0].numel()) | ({} if equivariance is None else {"equivariance": equivariance}),
            pixel=pixel,
            perceptual=perceptual,
        )

    def equivariance(self, images: Tensor, latent: Tensor, decode: Callable[[Tensor], Tensor], transform: SpatialTransform) -> Tensor:
        """(B,): the mean error of a transformed latent's image, with LPIPS as in the nll, times the numbers of an image.

        Args:
            images: (B, C, H, W) in [-1, 1].
            latent: (B, Z, h, w), raw, of these images, with its gradient.
            decode: raw latents to images.
            transform: of latents and images.
        """
        least = 1 if self.perceptual is None else -(-SMALLEST_SIDE * latent.shape[2] // images.shape[2])
        target, image = transform.of_image(images, latent, least), decode(transform.of_latent(latent, least))
        error = pixel_error(target, image, self.config.pixel).flatten(1).mean(1)
        if self.perceptual is not None:
            error = error + self.config.perceptual_weight * self.perceptual(target, image)
        return error * images[0].numel()

    def generator_loss(self, reconstruction: Tensor) -> Tensor:
        """(B,): the adversarial term, mean over the patches. Gradient goes to the reconstruction, not to the discriminator's weights."""
        discriminator = self._discriminator()
        frozen = {name: parameter.detach() for name, parameter in discriminator.named_parameters()}
        fake = functional_call(discriminator, frozen, (reconstruction,))
        return generator_error(fake, self.config.disc_loss).flatten(1).mean(1)

    def discriminator_loss(self, images: Tensor, reconstruction: Tensor) -> DiscriminatorTerms:
        """The discriminator's own loss. Gradient goes to the discriminator only."""
        discriminator = self._discriminator()
        real, fake = (discriminator(x.detach()).float().flatten(1) for x in (images, reconstruction))
        accuracy = 0.5 * ((real > 0).float().mean(1) + (fake < 0).float().mean(1))
        return DiscriminatorTerms(
            loss=discriminator_error(real, fake, self.config.disc_loss).mean(1),
            real_logit=real.detach().mean(1),
            fake_logit=fake.detach().mean(1),
            accuracy=accuracy,
        )

    def is_adversarial(self, step: int) -> bool:
        """Whether the loss has the adversarial term at this optimizer step."""
        return self.discriminator is not None and step >= self.config.disc_start

    def adversarial_weight(self, step: int, grad_nll: Tensor, grad_adversarial: Tensor) -> Tensor:
        """(): the weight of the adversarial term; 0 before disc_start.

        Args:
            step: optimizer step.
            grad_nll: gradient of the batch's mean nll at the last layer, summed over micro-batches and processes. Unused unless adaptive.
            grad_adversarial: the same of the mean generator_loss.
        """
        if not self.is_adversarial(step):
            return torch.zeros((), device=self.log_variance.device)
        factor = self.config.disc_factor * self.config.disc_weight
        if not self.config.adaptive:
            return torch.full((), factor, device=self.log_variance.device)
        return factor * adaptive_weight(grad_nll, grad_adversarial)

    @property
    def largest_weight(self) -> float:
        """`adversarial_weight` at its clamp; infinite unless adaptive. The diagnostics compare the weight with it."""
        return self.config.disc_factor * self.config.disc_weight * ADAPTIVE_CLAMP if self.config.adaptive else math.inf

    def penalties(self, terms: AutoencoderTerms) -> Tensor:
        """(B,): their weighted sum. The loss is this, the nll, and `adversarial_weight` times `generator_loss`."""
        return torch.stack([self.weights[name] * penalty for name, penalty in terms.penalties.items()]).sum(0)

    def _discriminator(self) -> nn.Module:
        assert self.discriminator is not None, "disc_weight or disc_factor is 0: there is no discriminator"
        return self.discriminator
