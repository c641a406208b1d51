"""The BERT tokenizer and the MiniLM encoder (Apache-2.0; Wang et al. 2020, sentence-transformers/all-MiniLM-L6-v2)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import safetensors.torch
import torch

from ldm.pretrained.cache import fetch
from ldm.pretrained.table import TABLE

if TYPE_CHECKING:
    from transformers import BertModel, PreTrainedTokenizerBase


def bert_tokenizer(progress: bool = True) -> PreTrainedTokenizerBase:
    """WordPiece of bert-base-uncased: lower case, 30,522 words, [CLS] text [SEP].

    Raises:
        UserError: the vocabulary is not available.
    """
    from transformers import BertTokenizer

    path = fetch("bert-tokenizer", progress)
    tokenizer = BertTokenizer(vocab=str(path), do_lower_case=True, model_max_length=512)
    words = TABLE["bert-tokenizer"].architecture["words"]
    assert len(tokenizer) == words, f"{len(tokenizer)} words instead of {words}"
    return tokenizer


def minilm(progress: bool = True) -> tuple[BertModel, str]:
    """The encoder on the CPU, float32, frozen, in eval mode, without BERT's pooler; and its file's sha256.

    Raises:
        UserError: the weights are not available.
    """
    from transformers import BertConfig, BertModel

    state = safetensors.torch.load_file(fetch("minilm-l6", progress))
    state = {name: tensor for name, tensor in state.items() if not name.startswith("pooler.")}
    del state["embeddings.position_ids"]  # 0, 1, 2, ...: a buffer that transformers makes itself
    entry = TABLE["minilm-l6"]
    with torch.random.fork_rng(devices=[]):  # its random initial weights are all replaced
        model = BertModel(BertConfig.from_dict(dict(entry.architecture)), add_pooling_layer=False)
    model.load_state_dict(state, strict=True)
    return model.requires_grad_(False).eval(), entry.sha256
