"""CLIP's text tower in other tools' files: without it a fine-tuned Stable Diffusion would lose its own text encoder on the way.

Our tensor names are transformers', without `text_model.`. Version 1 files have transformers' names; version 2 files have open_clip's, in
which queries, keys and values are one matrix, in this order.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from ldm.checkpoints.folder import save_tensors
from ldm.conditioning.clip_pretrained import ClipPretrainedConfig
from ldm.core.errors import UserError
from ldm.core.files import new_folder, write_file
from ldm.interop.foreign_config import must_be_few
from ldm.interop.keymap import SAME, Entry, Hint, KeyMap, Unused, shapes_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

OPEN_CLIP = {
    "token_embedding.weight": "embeddings.token_embedding.weight",
    "positional_embedding": "embeddings.position_embedding.weight",
    "ln_final.weight": "final_layer_norm.weight",
    "ln_final.bias": "final_layer_norm.bias",
}
OPEN_CLIP_LAYER = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}
QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
PT = {"format": "pt"}  # metadata that transformers and diffusers require
TOWER_FILE = "model.safetensors"
HEAD_WIDTH = 64  # of every published CLIP text tower
HINTS = (Hint("", "cond_stage_config"),)
OWN = ""  # in place of a model's name: only the file's own encoder is known
KNOWN = "positions are counted 0, 1, 2, ..., and attention is causal"
COMPARED = "for comparing texts with images, which diffusion does not use"


@dataclass(frozen=True, kw_only=True)
class TextShape:
    """The fields that are read of a tower's config. Names and defaults are CLIPTextConfig's."""

    vocab_size: int = 49408
    hidden_size: int = 512
    intermediate_size: int = 2048
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    max_position_embeddings: int = 77
    hidden_act: Literal["quick_gelu", "gelu"] = "quick_gelu"


SHAPE = tuple(field.name for field in fields(TextShape))


@dataclass(frozen=True)
class TextTower:
    """A text tower from a file.

    Attributes:
        shape: arguments of CLIPTextConfig.
        tensors: by our names.
        tokenizer: folder of its tokenizer; None = the file has none.
    """

    shape: dict[str, Any]
    tensors: dict[str, Tensor]
    tokenizer: Path | None = None

    def write(self, folder: Path, tokenizer: Any) -> None:
        """Writes a folder with tower and tokenizer that transformers opens."""
        with new_folder(folder) as new:
            tokenizer.save_pretrained(new)
            self.write_into(new, {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id})

    def write_into(self, folder: Path, more: Mapping[str, Any]) -> None:
        """Writes weights and config; `more` are further config fields."""
        from transformers import CLIPTextConfig

        tensors = {f"text_model.{name}": tensor.contiguous() for name, tensor in self.tensors.items()}
        save_tensors(folder / TOWER_FILE, tensors, PT)
        config = CLIPTextConfig(**self.shape, architectures=["CLIPTextModel"], **more)
        write_file(folder / "config.json", config.to_json_string(use_diff=False))

    @property
    def is_open(self) -> bool:
        """Whether it is open_clip's, as in version 2; OpenAI's CLIP has another activation."""
        return bool(self.shape["hidden_act"] == "gelu")

    def cut(self) -> TextTower:
        """The tower without its last layer: its output is that of the layer before."""
        layers = self.shape["num_hidden_layers"] - 1
        kept = {name: tensor for name, tensor in self.tensors.items() if not name.startswith(f"encoder.layers.{layers}.")}
        return TextTower({**self.shape, "num_hidden_layers": layers}, kept)

    def with_idle_layer(self) -> TextTower:
        """The tower with one more layer, of zeros, for readers that use the output before the last layer."""
        layers = self.shape["num_hidden_layers"]
        start, end = "encoder.layers.0.", f"encoder.layers.{layers}."
        idle = {name.replace(start, end): torch.zeros_like(tensor) for name, tensor in self.tensors.items() if name.startswith(start)}
        return TextTower({**self.shape, "num_hidden_layers": layers + 1}, self.tensors | idle)

    @staticmethod
    def of(encoder: PreTrainedModel) -> TextTower:
        """The tower of a CLIPTextModel."""
        tensors = {name.removeprefix("text_model."): tensor for name, tensor in encoder.state_dict().items()}
        shape = {key: getattr(encoder.config, key) for key in SHAPE}
        return TextTower(shape, {name: tensor for name, tensor in tensors.items() if "position_ids" not in name})


def read_tower(theirs: Mapping[str, Tensor], where: str, named: str) -> tuple[TextTower, list[str]]:
    """The tower under `cond_stage_model.` in a single file, of either version.

    Args:
        theirs: all tensors there.
        where: the file and the prefix of the names in it, for errors.
        named: the prefix alone.

    Returns:
        The tower, and notes on tensors that are passed over.

    Raises:
        UserError: a tensor missing, left over or broken.
    """
    is_open = any(name.startswith("model.") for name in theirs)
    start = "model." if is_open else "transformer.text_model."
    inside = {name.removeprefix(start): tensor for name, tensor in theirs.items()}
    if is_open:
        inside = _of_open_clip(inside)
    token, position = (inside.get(f"embeddings.{which}_embedding.weight") for which in ("token", "position"))
    layers = {int(match[1]) for name in inside if (match := re.match(r"encoder\.layers\.(\d+)\.", name))}
    inner = inside.get("encoder.layers.0.mlp.fc1.weight")
    if token is None or position is None or inner is None or token.ndim != 2 or token.shape[1] < HEAD_WIDTH:
        raise UserError(f"{where}: holds no CLIP text tower")
    shape = {
        "vocab_size": token.shape[0],
        "hidden_size": token.shape[1],
        "max_position_embeddings": position.shape[0],
        "intermediate_size": inner.shape[0],
        "num_hidden_layers": len(layers),
        "num_attention_heads": token.shape[1] // HEAD_WIDTH,
        "hidden_act": "gelu" if is_open else "quick_gelu",
    }
    keys = tower_keys(shape)
    return TextTower(shape, keys.take(inside, where + start)), keys.notes(inside, named + start)


def tower_keys(shape: Mapping[str, Any]) -> KeyMap:
    """The key map of a tower by transformers' names."""
    shapes = {name.removeprefix("text_model."): size for name, size in _shapes(shape).items()}
    width, length = shape["hidden_size"], shape["max_position_embeddings"]
    unused = (
        Unused("embeddings.position_ids", KNOWN, {"": (1, length)}),
        Unused("attn_mask", KNOWN, {"": (length, length)}),
        Unused("text_projection", COMPARED, {"": (width, width)}),
        Unused("logit_scale", COMPARED, {"": ()}),
    )
    return KeyMap(tuple(Entry(name, size, (name,), SAME) for name, size in shapes.items()), HINTS, unused)


def give_tower(tower: TextTower) -> dict[str, Tensor]:
    """A tower's tensors as they are under `cond_stage_model.` in a single file."""
    mine = dict(tower.tensors)
    if not tower.is_open:
        return {f"transformer.text_model.{name}": tensor for name, tensor in mine.items()}
    theirs = {f"model.{name}": mine[our] for name, our in OPEN_CLIP.items()}
    for index in range(tower.shape["num_hidden_layers"]):
        ours, at = f"encoder.layers.{index}", f"model.transformer.resblocks.{index}"
        for leaf in ("weight", "bias"):
            theirs |= {f"{at}.{name}.{leaf}": mine[f"{ours}.{our}.{leaf}"] for name, our in OPEN_CLIP_LAYER.items()}
            theirs[f"{at}.attn.in_proj_{leaf}"] = torch.cat([mine[f"{ours}.{part}.{leaf}"] for part in QKV])
    return theirs


def with_encoder(config: ClipPretrainedConfig, tower: TextTower, source: str | None, out: Path) -> tuple[ClipPretrainedConfig, str]:
    """The conditioner with the file's encoder: a local or hub encoder if its weights are the same, otherwise one written to `out`.

    Args:
        config: from the file's config; its model may be OWN.
        tower: the file's.
        source: folder or hub name with the tokenizer, and perhaps the same weights; None = config.model.
        out: folder for the encoder, if it must be written.

    Returns:
        The config, and a note for the user.

    Raises:
        UserError: no tokenizer is available.
    """
    from transformers import AutoTokenizer, CLIPTextModel

    name = source or config.model
    name = str(Path(name).absolute()) if name and Path(name).is_dir() else name  # a folder here, or a hub's
    config = replace(config, max_tokens=min(config.max_tokens, tower.shape["max_position_embeddings"]))
    if name != OWN:
        try:
            with torch.random.fork_rng(devices=[]):
                known = TextTower.of(CLIPTextModel.from_pretrained(name, use_safetensors=True, dtype=torch.float32))
            layer = _layer(config, tower, known)
            if layer is not None:
                return replace(config, model=name, layer=layer), f"the text encoder is {name}: its weights are not copied"
        except (OSError, ValueError) as error:
            if source is not None and tower.tokenizer is not None:
                raise UserError(f"--text-encoder {name}: cannot be loaded ({str(error).splitlines()[0]})") from error
    try:
        tokenizer = AutoTokenizer.from_pretrained(tower.tokenizer or name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UserError(
            f"the file has CLIP's weights but not its tokenizer, and {name!r} cannot be loaded ({str(error).splitlines()[0]}): name a "
            f"folder with the tokenizer by --text-encoder"
        ) from error
    if out.exists() and not (out / TOWER_FILE).is_file():
        raise UserError(f"{out}: exists and is not a text encoder; the imported one must be written there, so name another --out")
    tower.write(out, tokenizer)
    return replace(config, model=str(out.absolute())), f"the text encoder's own weights, with the tokenizer, are in {out}"


def _layer(config: ClipPretrainedConfig, tower: TextTower, at_hand: TextTower) -> Literal["last", "penultimate"] | None:
    """The layer of the encoder at hand that equals the layer of the file's that config reads; None = the encoders differ."""
    if _same(tower, at_hand):
        return config.layer
    return "penultimate" if config.layer == "last" and _same(tower, at_hand.cut()) else None


def _same(tower: TextTower, at_hand: TextTower) -> bool:
    """Whether the weights at hand equal the file's, in the file's precision."""
    if at_hand.tensors.keys() != tower.tensors.keys():
        return False
    return all(torch.equal(at_hand.tensors[name].to(tensor.dtype), tensor) for name, tensor in tower.tensors.items())


def _shapes(shape: Mapping[str, Any]) -> dict[str, torch.Size]:
    from transformers import CLIPTextConfig, CLIPTextModel

    must_be_few("text encoder", "num_hidden_layers", shape["num_hidden_layers"])
    shapes = shapes_of(lambda: CLIPTextModel(CLIPTextConfig(**shape, bos_token_id=0, eos_token_id=0)))
    return {name: size for name, size in shapes.items() if "position_ids" not in name}


def _of_open_clip(theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """open_clip's tensors by transformers' names; tensors without a counterpart keep their names."""
    mine: dict[str, Tensor] = {}
    for name, tensor in theirs.items():
        match = re.fullmatch(r"transformer\.resblocks\.(\d+)\.(.+?)[._](weight|bias)", name)
        if match is None:
            mine[OPEN_CLIP.get(name, name)] = tensor
            continue
        at, module, leaf = f"encoder.layers.{match[1]}", match[2], match[3]
        if module == "attn.in_proj":
            mine |= {f"{at}.{part}.{leaf}": third for part, third in zip(QKV, tensor.chunk(3), strict=False)}
        else:
            mine[f"{at}.{OPEN_CLIP_LAYER.get(module, module)}.{leaf}"] = tensor
    return mine
