"""With the same weights, ours or the peer's, every network computes what its peer computes."""

from __future__ import annotations

from collections.abc import Callable

import diffusers
import pytest
import torch
from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertConfig, LDMBertModel
from torch import Tensor, nn
from torch.testing import assert_close

from ldm.conditioning.bert_scratch import WORDS, BertScratchConfig
from ldm.conditioning.transformer import TokenTransformer
from ldm.core.condition import Condition
from ldm.core.errors import UserError
from ldm.first_stage.autoencoder import KLAutoencoderConfig
from ldm.first_stage.convolutional import ConvolutionalConfig
from ldm.first_stage.vq import VQAutoencoderConfig
from ldm.interop.autoencoder_keys import autoencoder_keys
from ldm.interop.diffusers.parts import SizedAutoencoder, autoencoder_json, bert_config, sized_autoencoder, transformer_json
from ldm.interop.diffusers.unet import SizedUNet, sized_unet, unet_json
from ldm.interop.keymap import KeyMap
from ldm.interop.transformer_keys import transformer_keys
from ldm.interop.unet_keys import unet_keys
from ldm.networks.unet import UNetConfig

pytestmark = pytest.mark.parity

TOLERANCE = 1e-4  # of the largest number
UNETS = {
    "cross-attention": (UNetConfig(channels=32, multipliers=(1, 2), blocks=1, attention=(2,), heads=2, context_width=12), False),
    "cross-attention, linear": (
        UNetConfig(
            channels=32, multipliers=(1, 2), blocks=(1, 2), attention=(1, 2), head_width=8, transformer_depth=2, context_width=12,
            vector_width=6, scale_shift=True,
        ),
        True,
    ),
    "plain": (UNetConfig(channels=32, multipliers=(1, 2), blocks=1, attention=(2,), head_width=16, transformer_depth=0), False),
    "plain, residual": (
        UNetConfig(
            channels=32, multipliers=(1, 1, 2), blocks=1, attention=(2, 4), head_width=16, transformer_depth=0, resample="residual",
            scale_shift=True,
        ),
        False,
    ),
}  # fmt: skip
AUTOENCODERS = {
    "f2": KLAutoencoderConfig(channels=16, multipliers=(1, 1), blocks=1, latent_channels=3),
    "f4, attending": KLAutoencoderConfig(channels=64, multipliers=(1, 1, 2), blocks=1, latent_channels=4, attention=(4,)),
    "no attention": KLAutoencoderConfig(channels=16, multipliers=(1, 1), blocks=2, latent_channels=4, middle_attention=False),
    "vq": VQAutoencoderConfig(channels=16, multipliers=(1, 1), blocks=1, num_codes=20, code_channels=3),
}
BERT = BertScratchConfig(width=24, depth=2, heads=3, head_width=4, max_tokens=7, is_masked=False)
BERT_SIZE = (BERT, WORDS, BERT.max_tokens)
every_unet = pytest.mark.parametrize("config, is_linear", UNETS.values(), ids=UNETS)
every_autoencoder = pytest.mark.parametrize("config", AUTOENCODERS.values(), ids=AUTOENCODERS)


def perturbed(module: nn.Module) -> nn.Module:
    """The module in eval mode, with noise added to all weights, so that none is at its initial value."""
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in module.parameters():
            p += torch.randn(p.shape, generator=draw) * (0.1 if p.ndim < 2 else 0.5 / p[0].numel() ** 0.5)
    return module.eval()


def near(ours: Tensor, theirs: Tensor) -> None:
    assert theirs.std() > 1e-2, "the networks' output is constant"
    assert_close(ours, theirs, rtol=0, atol=TOLERANCE * theirs.abs().max().item())


def compare_both_ways(ours: nn.Module, peer: nn.Module, keys: KeyMap, output: Callable, peer_output: Callable) -> None:
    """Our weights in the peer's network, and its own in ours, each converted there and back bit for bit."""
    mine = dict(perturbed(ours).state_dict())
    theirs = keys.give(mine)
    peer.load_state_dict({**{name: value for name, value in peer.state_dict().items() if keys.passed_over([name])}, **theirs})
    assert_close(keys.take(theirs, "peer: "), mine, rtol=0, atol=0)
    with torch.no_grad():
        near(output(ours), peer_output(peer.eval()))
        peer_weights = {name: value.clone() for name, value in perturbed(peer).state_dict().items()}
        ours.load_state_dict(keys.take(peer_weights, "peer: "))
        near(output(ours), peer_output(peer))
    again = keys.give(dict(ours.state_dict()))
    assert_close(again, {name: peer_weights[name] for name in again}, rtol=0, atol=0)


@every_unet
def test_the_unet_is_diffusers(config: UNetConfig, is_linear: bool):
    sized = SizedUNet(config=config, in_channels=4, out_channels=3, sample_size=8, is_linear=is_linear)
    written = unet_json(sized)
    assert sized_unet(written, "unet") == sized

    draw = torch.Generator().manual_seed(1)
    x, network_time = torch.randn(2, 4, 8, 8, generator=draw), torch.tensor([7.0, 613.0])
    tokens = torch.randn(2, 5, 12, generator=draw) if config.context_width else None
    vector = torch.randn(2, 6, generator=draw) if config.vector_width else None

    def peer_output(peer: nn.Module) -> Tensor:
        if config.context_width is None:
            return peer(x, network_time).sample
        return peer(x, network_time, encoder_hidden_states=tokens, class_labels=vector).sample

    peer = getattr(diffusers, written["_class_name"]).from_config(written)
    keys = unet_keys(config, 4, 3, "diffusers", is_linear=is_linear)
    condition = Condition(tokens=tokens, vector=vector)
    compare_both_ways(config.build(4, 3), peer, keys, lambda network: network(x, network_time, condition), peer_output)


@every_autoencoder
def test_the_autoencoder_is_diffusers(config: ConvolutionalConfig):
    sized = SizedAutoencoder(config=config, scale=0.2, shift=0.0, size=32)
    written = autoencoder_json(sized)
    assert sized_autoencoder(written, "vae") == sized

    draw = torch.Generator().manual_seed(1)
    images, latent = torch.randn(1, 3, 16, 16, generator=draw), torch.randn(1, config.latent_channels, 4, 4, generator=draw)

    def output(network: nn.Module) -> Tensor:
        mean, std = network.moments(images)
        return torch.cat([mean.flatten(), std.flatten(), network.decode(latent).flatten()])

    def peer_output(peer: nn.Module) -> Tensor:
        if isinstance(config, VQAutoencoderConfig):
            mean = peer.encode(images).latents
            std = torch.zeros_like(mean)
        else:
            posterior = peer.encode(images).latent_dist
            mean, std = posterior.mean, posterior.std
        return torch.cat([mean.flatten(), std.flatten(), peer.decode(latent).sample.flatten()])

    peer = getattr(diffusers, written["_class_name"]).from_config(written)
    compare_both_ways(config.build(), peer, autoencoder_keys(config, "diffusers"), output, peer_output)


def test_the_text_encoder_is_diffusers():
    written = transformer_json(*BERT_SIZE)
    assert bert_config(written, "bert") == BERT
    pieces = torch.tensor([[101, 2417, 2540, 102, 0, 0, 0], [101, 102, 0, 0, 0, 0, 0]])
    peer = LDMBertModel(LDMBertConfig(**{key: value for key, value in written.items() if key != "architectures"}))
    keys = transformer_keys(*BERT_SIZE, "diffusers")
    compare_both_ways(TokenTransformer(*BERT_SIZE), peer, keys, lambda n: n(pieces, None), lambda n: n(pieces, return_dict=False)[0])
    assert list(keys.passed_over(peer.state_dict())) == ["to_logits."]


def every_map() -> dict[str, tuple[nn.Module, KeyMap]]:
    made = {name: (config.build(4, 3), unet_keys(config, 4, 3, "compvis", is_linear=linear)) for name, (config, linear) in UNETS.items()}
    made |= {name: (config.build(), autoencoder_keys(config, "compvis")) for name, config in AUTOENCODERS.items()}
    return made | {"bert": (TokenTransformer(*BERT_SIZE), transformer_keys(*BERT_SIZE, "compvis"))}


@pytest.mark.parametrize("name", every_map())
def test_conversion_to_compvis_and_back_is_exact(name: str):
    network, keys = every_map()[name]
    mine = dict(perturbed(network).state_dict())
    theirs = keys.give(mine)
    assert_close(keys.take(theirs, ""), mine, rtol=0, atol=0)


def test_compvis_names():
    """Names and shapes in published files."""
    config = UNetConfig(channels=32, multipliers=(1, 2), blocks=1, attention=(2,), heads=2, context_width=12)
    unet = {name: tuple(value.shape) for name, value in unet_keys(config, 4, 4, "compvis").give(config.build(4, 4).state_dict()).items()}
    assert unet["time_embed.2.weight"] == (128, 128) and unet["input_blocks.1.0.in_layers.2.weight"] == (32, 32, 3, 3)
    assert unet["input_blocks.2.0.op.weight"] == (32, 32, 3, 3) and unet["input_blocks.3.0.emb_layers.1.bias"] == (64,)
    assert unet["input_blocks.3.0.skip_connection.weight"] == (64, 32, 1, 1)
    assert unet["input_blocks.3.1.transformer_blocks.0.attn2.to_k.weight"] == (64, 12)
    assert unet["middle_block.1.transformer_blocks.0.ff.net.0.proj.weight"] == (512, 64)
    assert unet["middle_block.1.proj_in.weight"] == (64, 64, 1, 1) and unet["output_blocks.1.2.conv.bias"] == (64,)
    assert unet["output_blocks.0.1.transformer_blocks.0.attn1.to_out.0.bias"] == (64,) and unet["out.2.weight"] == (4, 32, 3, 3)

    plain = UNETS["plain"][0]
    shapes = {name: tuple(value.shape) for name, value in unet_keys(plain, 3, 3, "compvis").give(plain.build(3, 3).state_dict()).items()}
    assert shapes["middle_block.1.qkv.weight"] == (192, 64, 1) and shapes["middle_block.1.proj_out.weight"] == (64, 64, 1)

    bert = transformer_keys(*BERT_SIZE, "compvis").give(TokenTransformer(*BERT_SIZE).state_dict()).keys()
    assert {"token_emb.weight", "pos_emb.emb.weight", "norm.bias", "attn_layers.layers.0.0.weight"} < bert
    assert {"attn_layers.layers.2.1.to_out.bias", "attn_layers.layers.3.1.net.0.0.weight", "attn_layers.layers.3.1.net.2.bias"} < bert

    kl = autoencoder_keys(AUTOENCODERS["f4, attending"], "compvis").give(AUTOENCODERS["f4, attending"].build().state_dict()).keys()
    assert {"encoder.down.2.attn.0.q.weight", "encoder.mid.attn_1.proj_out.bias", "decoder.up.1.block.0.nin_shortcut.weight"} < kl
    assert {"encoder.down.0.downsample.conv.weight", "decoder.up.2.upsample.conv.bias", "quant_conv.weight"} < kl


REFUSED = [
    ({"channels": 32, "multipliers": (1, 2), "heads": 2, "transformer_depth": 0}, "heads of one width"),
    ({"channels": 32, "multipliers": (1, 2), "head_width": 8, "transformer_depth": 0, "vector_width": 3}, "no vector"),
    ({"channels": 32, "multipliers": (1, 2), "head_width": 8, "transformer_depth": 0, "blocks": (1, 2)}, "same number of blocks"),
    ({"channels": 32, "multipliers": (2, 4), "head_width": 8, "transformer_depth": 0}, "multiplier 1"),
    ({"channels": 32, "multipliers": (1, 2), "heads": 2}, "without tokens"),
    ({"channels": 32, "multipliers": (1, 2), "heads": 2, "context_width": 8, "resample": "residual"}, "residual"),
]


@pytest.mark.parametrize("settings, reason", REFUSED, ids=[reason for _, reason in REFUSED])
def test_unets_without_counterpart_in_diffusers_are_refused_with_the_reason(settings: dict, reason: str):
    with pytest.raises(UserError, match=reason):
        unet_json(SizedUNet(config=UNetConfig(**settings), in_channels=4, out_channels=4))


def test_an_autoencoder_with_several_numbers_of_groups_is_refused():
    config = KLAutoencoderConfig(channels=16, multipliers=(1, 2), blocks=1)
    with pytest.raises(UserError, match="levels of 16, 32 channels have 8, 16 here"):
        autoencoder_json(SizedAutoencoder(config=config, scale=1.0, shift=0.0, size=32))


def damaged(change: Callable[[dict[str, Tensor]], object]) -> str:
    """The one-line error for a changed file."""
    config = UNETS["cross-attention"][0]
    keys = unet_keys(config, 4, 3, "compvis")
    theirs = {name: value.clone() for name, value in keys.give(dict(config.build(4, 3).state_dict())).items()}
    change(theirs)
    with pytest.raises(UserError) as caught:
        keys.take(theirs, "sd.ckpt: model.")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_wrong_tensor_is_named_with_both_shapes_and_the_likely_key():
    name = "input_blocks.3.1.transformer_blocks.0.attn2.to_k.weight"
    text = damaged(lambda theirs: theirs.update({name: torch.zeros(64, 768)}))
    assert text == f"sd.ckpt: model.{name} has shape (64, 768), the config requires (64, 12) (config key context_dim)"
    text = damaged(lambda theirs: theirs.update({"input_blocks.0.0.weight": torch.zeros(32, 9, 3, 3)}))
    assert "(32, 9, 3, 3)" in text and "(32, 4, 3, 3)" in text and "in_channels" in text


def test_missing_left_over_and_broken_tensors_are_named():
    assert "model.out.2.weight is missing" in damaged(lambda theirs: theirs.pop("out.2.weight"))
    text = damaged(lambda theirs: theirs.update({"lora.up": torch.zeros(1).expand(10**9)}))
    assert "model.lora.up, of shape (1000000000,), has no place" in text
    assert "model.out.2.bias holds NaN" in damaged(lambda theirs: theirs["out.2.bias"].fill_(torch.nan))
    assert "model.out.2.bias holds int64" in damaged(lambda theirs: theirs.update({"out.2.bias": torch.zeros(3, dtype=torch.int64)}))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"act_fn": "gelu"}, "act_fn.*'gelu' is not allowed; allowed: silu"),
        ({"addition_embed_type": "text"}, "sets addition_embed_type to 'text'"),
        ({"norm_eps": 1e-6}, "norm_eps is 1e-06; only 1e-05"),
        ({"norm_num_groups": 8}, "norm_num_groups is 8; only 16"),
        ({"_class_name": "UNet3DConditionModel"}, "UNet3DConditionModel"),
        ({"attention_head_dim": [2, 3]}, "neither one number of heads"),
        ({"block_out_channels": [32, 48]}, "not multiples of the first"),
        ({"up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"]}, "not down_block_types from the other end"),
    ],
)
def test_a_foreign_config_without_counterpart_is_refused(change: dict, message: str):
    written = unet_json(SizedUNet(config=UNETS["cross-attention"][0], in_channels=4, out_channels=3)) | {
        "time_embedding_dim": None,
        **change,
    }
    with pytest.raises(UserError, match=message):
        sized_unet(written, "unet/config.json")
