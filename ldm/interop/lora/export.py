"""Writes our LoRA for other tools: without it a fine-tuning of Stable Diffusion could be shared only as a whole model of gigabytes.

It is a folder for diffusers, or one file with the names that ComfyUI and other Stable Diffusion tools read.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from ldm.checkpoints.folder import save_tensors
from ldm.checkpoints.lora import LoadedLora
from ldm.core.errors import UserError
from ldm.core.files import Outputs, new_folder, recover_folder, write_file
from ldm.interop.clip_text import PT
from ldm.interop.compvis.export import KNOWN_CHANNELS, KNOWN_TEXT
from ldm.interop.diffusers.unet import SizedUNet, unet_json
from ldm.interop.ours import is_second
from ldm.interop.unet_keys import unet_keys
from ldm.networks.lora import DOWN, UP
from ldm.networks.unet import UNetConfig

FILE = "pytorch_lora_weights.safetensors"
README = """# {name}

A LoRA of rank {rank} ({targets}) for diffusers. It goes with {base}, exported, whose denoiser has digest {digest} in the checkpoint.

```python
pipeline.load_lora_weights("FOLDER")  # a Stable Diffusion pipeline; FOLDER is this one
unet.load_lora_adapter("FOLDER", prefix="unet", weight_name="{file}")  # the UNet of any other, or by itself
```

`lora_B` includes the factor alpha / rank, so no alpha is needed.
"""


def export_lora_diffusers(lora: LoadedLora, out: Path) -> tuple[str, ...]:
    """Writes the folder, whole or not at all.

    Returns:
        Notes for the user.

    Raises:
        UserError: diffusers has no such network.
    """
    spec, tensors = lora.spec, {}
    for name, down, up in _layers(lora):
        tensors[f"unet.{name}{DOWN}"] = down
        tensors[f"unet.{name}{UP}"] = (spec.lora.scale * up.float()).to(up.dtype)
    shape = {"rank": spec.lora.rank, "targets": spec.lora.targets, "base": spec.base.name, "digest": spec.base_digest}
    recover_folder(out)
    with new_folder(out) as new:
        save_tensors(new / FILE, tensors, PT)
        write_file(new / "README.md", README.format(name=spec.name, file=FILE, **shape))
    return (f"a LoRA: it goes with {spec.base.name}, exported; lora_B includes the factor alpha / rank",)


def export_lora_file(lora: LoadedLora, out: Path) -> tuple[str, ...]:
    """Writes the file, `.safetensors`; otherwise as `export_lora_diffusers`."""
    if out.suffix != ".safetensors":
        raise UserError(f"--out {out}: a LoRA's file ends in .safetensors")
    tensors = {}
    for name, down, up in _layers(lora):
        start = f"lora_unet_{name.replace('.', '_')}"
        tensors[f"{start}.lora_down.weight"], tensors[f"{start}.lora_up.weight"] = down, up
        tensors[f"{start}.alpha"] = torch.tensor(lora.spec.lora.scale * lora.spec.lora.rank)
    with Outputs(out.parent).new_file(out.name) as temporary:
        save_tensors(temporary, tensors, PT)
    base = lora.spec.base
    assert isinstance(base.denoiser, UNetConfig)
    if base.denoiser.channels != KNOWN_CHANNELS or base.denoiser.context_width not in {width for width, _ in KNOWN_TEXT}:
        return (f"ComfyUI and similar tools do not open it: by its sizes {base.name} is not Stable Diffusion 1 or 2",)
    return (f"opens in ComfyUI and similar tools (models/loras); it goes with {base.name}",)


def _layers(lora: LoadedLora) -> Iterator[tuple[str, Tensor, Tensor]]:
    """For each adapted layer its name in diffusers, A and B."""
    config = lora.spec.base.denoiser
    if not isinstance(config, UNetConfig) or config.transformer_depth == 0:
        raise UserError(
            "only UNets with transformers take a LoRA in other tools; this one has none: export the run's checkpoint, which has it merged"
        )
    unet_json(SizedUNet(config=config, in_channels=1, out_channels=1))  # refuses UNets without counterpart in diffusers
    names = {entry.ours: entry.theirs[0] for entry in unet_keys(config, 1, 1, "diffusers").entries}
    for name, down in lora.tensors.items():
        if name.endswith(DOWN):
            layer = name.removesuffix(DOWN)
            theirs, up = names[f"{layer}.weight"].removesuffix(".weight"), lora.tensors[layer + UP]
            if is_second(lora.spec.base) and theirs.endswith((".proj_in", ".proj_out")):
                down, up = down.flatten(1), up.flatten(1)
            yield theirs, down, up
