"""Stage one as a plain loop would train it: diffusers' autoencoder, lpips, a PatchGAN, the adaptive weight. The peer of `whole_step.py`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

KL_WEIGHT, DISC_WEIGHT, EMA_DECAY, LEARNING_RATE = 1e-6, 0.5, 0.999, 1e-4


class PlainDiscriminator(nn.Sequential):
    """Three 4x4 convolutions of stride 2, two of stride 1, group norms between."""

    def __init__(self, channels: int = 64) -> None:
        layers: list[nn.Module] = [nn.Conv2d(3, channels, 4, 2, 1), nn.LeakyReLU(0.2)]
        for before, after, stride in ((1, 2, 2), (2, 4, 2), (4, 8, 1)):
            layers += [nn.Conv2d(before * channels, after * channels, 4, stride, 1)]
            layers += [nn.GroupNorm(32, after * channels), nn.LeakyReLU(0.2)]
        super().__init__(*layers, nn.Conv2d(8 * channels, 1, 4, 1, 1))


def plain_loop(autoencoder: Any, lpips: nn.Module, images: Tensor, precision: torch.dtype | None) -> Callable[[], None]:
    """One optimizer step of both networks and the average, each time it is called.

    Args:
        autoencoder: diffusers.AutoencoderKL.
        lpips: a frozen lpips.LPIPS.
        images: (B, 3, H, W) in [-1, 1], the batch of every step.
        precision: of autocast; None = float32 throughout.
    """
    device = images.device
    discriminator = PlainDiscriminator().to(device)
    average = torch.optim.swa_utils.AveragedModel(autoencoder, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(EMA_DECAY))
    fused = {"lr": LEARNING_RATE, "betas": (0.9, 0.99), "fused": True}
    generator_optimizer = torch.optim.AdamW(autoencoder.parameters(), **fused)
    discriminator_optimizer = torch.optim.AdamW(discriminator.parameters(), **fused)
    last = autoencoder.decoder.conv_out.weight

    def step() -> None:
        with torch.autocast(device.type, precision or torch.bfloat16, enabled=precision is not None):
            posterior = autoencoder.encode(images).latent_dist
            reconstruction = autoencoder.decode(posterior.sample()).sample
            distance = lpips(images, reconstruction)
            error = (images - reconstruction).abs() + distance
            nll = error.sum() / len(images)
            kl = posterior.kl().mean()
            adversarial = -discriminator(reconstruction).float().mean()
        (of_nll,) = torch.autograd.grad(nll, last, retain_graph=True)
        (of_adversarial,) = torch.autograd.grad(adversarial, last, retain_graph=True)
        weight = DISC_WEIGHT * (of_nll.norm() / (of_adversarial.norm() + 1e-4)).clamp(0, 1e4)
        loss = nll + KL_WEIGHT * kl + weight * adversarial
        generator_optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(autoencoder.parameters(), 1.0)
        generator_optimizer.step()

        with torch.autocast(device.type, precision or torch.bfloat16, enabled=precision is not None):
            real, fake = discriminator(images).float(), discriminator(reconstruction.detach()).float()
            discriminator_loss = (relu(1 - real).mean() + relu(1 + fake).mean()) / 2
        discriminator_optimizer.zero_grad()
        discriminator_loss.backward()
        nn.utils.clip_grad_norm_(discriminator.parameters(), 1.0)
        discriminator_optimizer.step()
        average.update_parameters(autoencoder)
        loss.item(), discriminator_loss.item()  # as a loop's progress bar has it

    return step
