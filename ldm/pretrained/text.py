"""The BERT tokenizer and the MiniLM encoder (Apache-2.0; Wang et al. 2020, sentence-transformers/all-MiniLM-L6-v2).

Neither needs transformers, which takes longer to load than four pictures to draw.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import safetensors.torch
import torch
import torch.nn.functional as F
from einops import rearrange
from tokenizers import BertWordPieceTokenizer
from torch import Tensor, nn

from ldm.core.embedding import embedding
from ldm.core.tokenizer import Tokens
from ldm.pretrained.cache import fetch
from ldm.pretrained.table import TABLE

MINILM = "minilm-l6"


class BertTokenizer:
    """WordPiece of bert-base-uncased: lower case, 30,522 words, [CLS] text [SEP]. See `core.tokenizer.Tokenizer`.

    Raises:
        UserError: the vocabulary is not available.
    """

    def __init__(self, progress: bool = True) -> None:
        self._pieces = BertWordPieceTokenizer(str(fetch("bert-tokenizer", progress)), lowercase=True)
        self.unknown: int | None = self._pieces.token_to_id("[UNK]")
        found, words = self._pieces.get_vocab_size(), TABLE["bert-tokenizer"].architecture["words"]
        assert found == words, f"{found} words instead of {words}"

    def __call__(self, text: str) -> Tokens:
        encoded = self._pieces.encode(text)
        return Tokens(encoded.ids, encoded.offsets)


class BertEncoder(nn.Module):
    """BERT without its pooler, by the names of its published weights, for texts of one segment (Devlin et al. 2018, sec. 3).

    Letters: B batch, L tokens, W width.

    Args:
        shape: as in BERT's config.json.
    """

    def __init__(self, shape: Mapping[str, Any]) -> None:
        super().__init__()
        self.width: int = shape["hidden_size"]
        self.heads: int = shape["num_attention_heads"]
        rows = {"word": shape["vocab_size"], "position": shape["max_position_embeddings"], "token_type": 2}
        self.embeddings = nn.ModuleDict({f"{name}_embeddings": embedding(count, self.width) for name, count in rows.items()})
        self.embeddings["LayerNorm"] = self._norm()
        layers = (self._layer(shape["intermediate_size"]) for _ in range(shape["num_hidden_layers"]))
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(layers)})

    def _norm(self) -> nn.LayerNorm:
        return nn.LayerNorm(self.width, eps=1e-12)

    def _layer(self, inner: int) -> nn.ModuleDict:
        def output(width: int) -> nn.ModuleDict:
            return nn.ModuleDict({"dense": nn.Linear(width, self.width), "LayerNorm": self._norm()})

        queried = nn.ModuleDict({name: nn.Linear(self.width, self.width) for name in ("query", "key", "value")})
        attention = nn.ModuleDict({"self": queried, "output": output(self.width)})
        intermediate = nn.ModuleDict({"dense": nn.Linear(self.width, inner)})
        return nn.ModuleDict({"attention": attention, "intermediate": intermediate, "output": output(inner)})

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, L) int64 -> (B, L, W)."""
        embeddings, positions = self.embeddings, torch.arange(tokens.shape[1], device=tokens.device)
        words = embeddings["word_embeddings"](tokens) + embeddings["token_type_embeddings"](torch.zeros_like(tokens))
        x: Tensor = embeddings["LayerNorm"](words + embeddings["position_embeddings"](positions))
        layers: Any = self.encoder["layer"]
        for layer in layers:
            attention, output = layer["attention"], layer["output"]
            q, k, v = (rearrange(of(x), "b l (n d) -> b n l d", n=self.heads) for of in attention["self"].values())
            attended = rearrange(F.scaled_dot_product_attention(q, k, v), "b n l d -> b l (n d)")
            x = attention["output"]["LayerNorm"](attention["output"]["dense"](attended) + x)
            x = output["LayerNorm"](output["dense"](F.gelu(layer["intermediate"]["dense"](x))) + x)
        return x


def minilm(progress: bool = True) -> tuple[BertEncoder, str]:
    """The encoder on the CPU, float32, frozen, in eval mode; and its file's sha256.

    Raises:
        UserError: the weights are not available.
    """
    state = safetensors.torch.load_file(fetch(MINILM, progress))
    state = {name: tensor for name, tensor in state.items() if not name.startswith("pooler.")}
    del state["embeddings.position_ids"]  # 0, 1, 2, ...
    entry = TABLE[MINILM]
    with torch.device("meta"):
        model = BertEncoder(entry.architecture)
    model.load_state_dict(state, strict=True, assign=True)
    return model.requires_grad_(False).eval(), entry.sha256
