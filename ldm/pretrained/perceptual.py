"""LPIPS with its pretrained trunk, weights loaded strictly and frozen."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import safetensors.torch
import torch

from ldm.core.errors import unknown
from ldm.pretrained.cache import fetch
from ldm.pretrained.table import TABLE

if TYPE_CHECKING:
    import lpips

_NETS = {"vgg": "lpips-vgg16", "alex": "lpips-alexnet"}


def vgg_lpips(net: Literal["vgg", "alex"] = "vgg", progress: bool = True) -> lpips.LPIPS:
    """LPIPS v0.1 on the CPU: frozen, without dropout, the same in train and eval mode.

    It takes two batches of images (B, 3, H, W) in [-1, 1] and returns (B, 1, 1, 1); gradients reach both. The trunk is fetched, the
    linear layers are those in lpips' own wheel. The global random state is not touched.

    Raises:
        UserError: unknown net; the trunk is not available.
    """
    if net not in _NETS:
        raise unknown("LPIPS net", net, _NETS)
    trunk = safetensors.torch.load_file(fetch(_NETS[net], progress))
    lpips, model = _empty(net)

    linear = torch.load(Path(lpips.__file__).parent / "weights" / "v0.1" / f"{net}.pth", map_location="cpu", weights_only=True)
    state = {name.replace("model.1", "model.0"): tensor for name, tensor in linear.items()}  # no dropout before the convolution
    state |= {f"lins.{name[3:]}": tensor for name, tensor in state.items()}  # lpips lists its layers under a second name
    slices = {layer: name for name, part in model.net.named_children() for layer, _ in part.named_children()}
    for layer in TABLE[_NETS[net]].architecture["layers"]:  # type: ignore[attr-defined]
        for part in ("weight", "bias"):
            state[f"net.{slices[str(layer)]}.{layer}.{part}"] = trunk[f"features.{layer}.{part}"]
    model.scaling_layer = lpips.ScalingLayer()
    state |= {f"scaling_layer.{name}": tensor for name, tensor in model.scaling_layer.state_dict().items()}
    model.load_state_dict(state, strict=True, assign=True)
    return model.requires_grad_(False).eval()


def lpips_to_count() -> lpips.LPIPS:
    """LPIPS of VGG16 on the meta device, for counting parameters and FLOPs: no weights are fetched."""
    return _empty("vgg")[1].to("meta").requires_grad_(False).eval()


def _empty(net: str) -> tuple[Any, lpips.LPIPS]:
    """lpips and its module on the meta device: no random weights are drawn."""
    with warnings.catch_warnings():
        # lpips 0.1.4 still passes torchvision's old `pretrained=`.
        warnings.filterwarnings("ignore", message="The parameter 'pretrained' is deprecated")
        warnings.filterwarnings("ignore", message="Arguments other than a weight enum or `None` for 'weights' are deprecated")
        import lpips

        with torch.device("meta"):
            return lpips, lpips.LPIPS(net=net, pretrained=False, pnet_rand=True, use_dropout=False, verbose=False)
