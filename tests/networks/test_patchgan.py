"""The discriminator: its receptive field and its published size."""

from __future__ import annotations

import pytest
import torch

from ldm.core.errors import UserError
from ldm.networks.patchgan import PatchGAN


@pytest.mark.parametrize(("layers", "field"), [(1, 16), (2, 34), (3, 70), (4, 142), (5, 286)])
def test_receptive_field(layers: int, field: int) -> None:
    """Isola et al. 2017: 70 x 70 for three layers, 16 and 286 for one and five. Without norm, which depends on the whole image."""
    net = PatchGAN(1, channels=2, layers=layers, norm="none").double()
    size = 2 * field
    images = torch.randn(1, 1, size, size, dtype=torch.float64, requires_grad=True)
    logits = net(images)
    middle = logits.shape[-1] // 2
    (grad,) = torch.autograd.grad(logits[0, 0, middle, middle], images)
    rows, columns = (grad[0, 0].abs().sum(axis).nonzero().flatten() for axis in (1, 0))
    assert (rows.max() - rows.min() + 1, columns.max() - columns.min() + 1) == (field, field)


def test_published_size_and_start() -> None:
    net = PatchGAN(3, norm="batch")
    assert sum(p.numel() for p in net.parameters()) == 2_765_633  # layers 3, channels 64: the published 2.77M
    kernels = torch.cat([p.detach().flatten() for name, p in net.named_parameters() if p.ndim == 4])
    assert abs(float(kernels.std()) - 0.02) < 1e-4 and abs(float(kernels.mean())) < 1e-4


@pytest.mark.parametrize("norm", ["group", "none"])
def test_an_images_logits_do_not_depend_on_its_batch(norm: str) -> None:
    net = PatchGAN(3, channels=16, layers=2, norm=norm)
    images = torch.randn(3, 3, 32, 32)
    torch.testing.assert_close(net(images)[1:2], net(images[1:2]), rtol=1e-5, atol=1e-6)


def test_mistakes_are_named() -> None:
    with pytest.raises(UserError, match="1 to 5 layers, not 6"):
        PatchGAN(3, layers=6)
    with pytest.raises(UserError, match="'instance'; allowed: batch, group, none"):
        PatchGAN(3, norm="instance")
    net = PatchGAN(3, channels=32, layers=3)
    assert net(torch.zeros(1, 3, 24, 24)).shape == (1, 1, 1, 1)
    with pytest.raises(UserError, match="23x24 are too small for this discriminator .at least 24."):
        net(torch.zeros(1, 3, 24, 23))
