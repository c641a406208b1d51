"""Tensor names of the token transformer (LDM's BERT): without them LDM's text and layout models would lose their trained encoders.

CompVis counts attention and feed-forward as separate layers; diffusers calls the network LDMBertModel.
"""

from __future__ import annotations

from collections.abc import Iterator

from ldm.conditioning.transformer import TokenTransformer, TransformerConfig
from ldm.interop.keymap import Dialect, Hint, KeyMap, Place, Row, Unused, key_map, shapes_of

ENDS = (
    Row("token_embedding", "token_emb", "model.embed_tokens"),
    Row("position_embedding", "pos_emb.emb", "model.embed_positions"),
    Row("norm", "norm", "model.layer_norm"),
)
ATTENTION = (
    Row("attention_norm", "0", "self_attn_layer_norm"),
    Row("to_q", "1.to_q", "self_attn.q_proj"),
    Row("to_k", "1.to_k", "self_attn.k_proj"),
    Row("to_v", "1.to_v", "self_attn.v_proj"),
    Row("to_out", "1.to_out", "self_attn.out_proj"),
)
FEED_FORWARD = (
    Row("feed_forward_norm", "0", "final_layer_norm"),
    Row("widen", "1.net.0.0", "fc1"),
    Row("narrow", "1.net.2", "fc2"),
)
HINTS: dict[Dialect, tuple[Hint, ...]] = {
    "compvis": (
        Hint("token_emb", "vocab_size or n_embed"),
        Hint("pos_emb", "max_seq_len or n_embed"),
        Hint("", "n_embed or n_layer"),
    ),
    "diffusers": (
        Hint("embed_tokens", "vocab_size or d_model"),
        Hint("embed_positions", "max_position_embeddings or d_model"),
        Hint("fc", "d_model or encoder_ffn_dim"),
        Hint("", "d_model, encoder_layers, encoder_attention_heads or head_dim"),
    ),
}
WORD_OUTPUT = "to_logits."


def transformer_keys(config: TransformerConfig, vocabulary: int, length: int, dialect: Dialect) -> KeyMap:
    """The key map of a conditioner's transformer, without the projection after it, which peers lack; arguments as TokenTransformer's."""
    shapes = shapes_of(lambda: TokenTransformer(config, vocabulary, length))
    words = {"weight": (vocabulary, config.width), "bias": (vocabulary,)}
    unused = Unused(WORD_OUTPUT, "the layer that would predict words, which no picture depends on", words)
    return key_map(shapes, places(config), dialect, HINTS[dialect], (unused,))


def places(config: TransformerConfig) -> Iterator[Place]:
    """The names of each block."""
    yield Place(ENDS, "", "", "")
    for index in range(config.depth):
        ours, theirs = f"layers.{index}", f"model.layers.{index}"
        yield Place(ATTENTION, ours, f"attn_layers.layers.{2 * index}", theirs)
        yield Place(FEED_FORWARD, ours, f"attn_layers.layers.{2 * index + 1}", theirs)
