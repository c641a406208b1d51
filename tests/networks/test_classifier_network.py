"""The classifier's network: what it shares with the UNet, what its output depends on, and its pooling against a peer's attention."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from ldm.core.errors import UserError
from ldm.networks.blocks.attention_pool import AttentionPool
from ldm.networks.classifier import ClassifierConfig, ClassifierNetwork
from ldm.networks.unet import UNetConfig

SHAPE = {"channels": 8, "multipliers": (1, 2, 2), "blocks": 1, "attention": (2,), "heads": 2, "scale_shift": True, "resample": "residual"}
X, NETWORK_TIME = torch.randn(3, 2, 8, 8, generator=torch.Generator().manual_seed(1)), torch.tensor([0.0, 40.5, 700.0])


@pytest.fixture
def network() -> ClassifierNetwork:
    """One whose zero-initialised weights are not zero."""
    torch.manual_seed(0)
    made = ClassifierConfig(**SHAPE).build(2, (8, 8), 5)
    for parameter in made.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.2)
    return made


def test_it_is_the_encoder_of_a_unet(network: ClassifierNetwork) -> None:
    """A denoiser's weights load under the same names, and give the same features."""
    unet = UNetConfig(**SHAPE, transformer_depth=0).build(2, 2)
    found = unet.load_state_dict(network.state_dict(), strict=False)
    assert {name.split(".")[0] for name in found.missing_keys} == {"output_blocks", "out"}
    assert {name.split(".")[0] for name in found.unexpected_keys} == {"norm", "pool"}
    assert_close(unet.descend(X, unet.embed(NETWORK_TIME))[0], network.descend(X, network.embed(NETWORK_TIME))[0], rtol=0, atol=0)


def test_output_depends_on_time_and_positions_but_not_on_other_rows(network: ClassifierNetwork) -> None:
    together = network(X, NETWORK_TIME)
    for row in range(3):
        assert_close(network(X[row : row + 1], NETWORK_TIME[row : row + 1]), together[row : row + 1], rtol=1e-5, atol=1e-5)
    assert (network(X, NETWORK_TIME + 40.5) - together).abs().max() > 1e-3
    assert (network(X.roll(2, dims=3), NETWORK_TIME) - together).abs().max() > 1e-3


def test_pooling_is_a_peers_attention_with_the_mean_as_query() -> None:
    torch.manual_seed(0)
    pool = AttentionPool(12, 6, 3, 12)
    peer = nn.MultiheadAttention(12, 3, batch_first=True)
    with torch.no_grad():
        peer.in_proj_weight.copy_(torch.cat([pool.to_q.weight, pool.to_k.weight, pool.to_v.weight]))
        peer.in_proj_bias.copy_(torch.cat([pool.to_q.bias, pool.to_k.bias, pool.to_v.bias]))
        peer.out_proj.load_state_dict(pool.to_out.state_dict())
    x = torch.randn(4, 12, 2, 3)
    pixels = x.flatten(2).transpose(1, 2)
    tokens = torch.cat([pixels.mean(1, keepdim=True), pixels], dim=1) + pool.place
    assert_close(pool(x), peer(tokens[:, :1], tokens, tokens)[0][:, 0], rtol=1e-5, atol=1e-6)


def test_other_sizes_and_channels_are_refused(network: ClassifierNetwork) -> None:
    with pytest.raises(UserError, match="samples of 6x6 cannot be halved down to the classifier's last level.*multiple of 4"):
        ClassifierConfig(**SHAPE).build(2, (6, 6), 5)
    with pytest.raises(UserError, match="trained on samples of 8 x 8, not 12 x 8"):
        network(torch.zeros(1, 2, 12, 8), NETWORK_TIME[:1])
    with pytest.raises(UserError, match="takes 2 input channels, not 3"):
        network(torch.zeros(1, 3, 8, 8), NETWORK_TIME[:1])
