"""Every conditioner alone and all together: what they give, the null condition, and what trains."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from ldm.conditioning.attributes import AttributesConfig, ChoiceAttribute, NumberAttribute, TagsAttribute
from ldm.conditioning.bert_pretrained import BertPretrainedConfig
from ldm.conditioning.bert_scratch import BertScratchConfig
from ldm.conditioning.boxes import BoxesConfig
from ldm.conditioning.captions import padded, word_pieces
from ldm.conditioning.class_label import ClassLabelConfig
from ldm.conditioning.clip_pretrained import CLIP_L, OPEN_CLIP_H, ClipPretrainedConfig
from ldm.conditioning.conditioner import ConditionerConfig, Conditioners, build_conditioners, check_names
from ldm.conditioning.inpaint_mask import InpaintMask, InpaintMaskConfig, MaskedImages, latent_mask
from ldm.conditioning.inputs import ConditionInputs
from ldm.conditioning.low_resolution import LowResolutionConfig
from ldm.conditioning.semantic_map import SemanticMapConfig
from ldm.core.condition import Condition
from ldm.core.errors import UserError
from ldm.core.random import Streams
from ldm.data.facts import ATTRIBUTES, BOXES, CAPTIONS, LABELS, MAPS, PIXELS, DataFacts
from ldm.pretrained import BertTokenizer, fetch
from ldm.pretrained.table import TABLE

CONFIGS = {
    "bert_pretrained": BertPretrainedConfig(max_tokens=12),
    "bert_scratch": BertScratchConfig(width=24, depth=2, heads=2, head_width=8, max_tokens=10),
    "class_label": ClassLabelConfig(num_classes=3, names=("face", "animal", "food"), width=16),
    "inpaint_mask": InpaintMaskConfig(),
    "semantic_map": SemanticMapConfig(num_classes=5),
    "boxes": BoxesConfig(num_classes=3, width=24, depth=2, heads=2, head_width=8, max_boxes=4, vocabulary=101),
    "low_resolution": LowResolutionConfig(),
    "attributes": AttributesConfig(
        fields={
            "colour": ChoiceAttribute(names=("blue", "red")),
            "size": NumberAttribute(low=0.0, high=4.0),
            "tags": TagsAttribute(names=("big", "old")),
        },
        width=16,
    ),
}
OLD = ("bert_pretrained", "bert_scratch", "class_label", "inpaint_mask", "semantic_map")
every_kind = pytest.mark.parametrize("name", sorted(ConditionerConfig.kinds()))


@pytest.fixture(scope="module", autouse=True)
def tiny_clip(tmp_path_factory):
    """A CLIP text tower of two layers with random weights, and letters for a vocabulary, in a folder."""
    folder = tmp_path_factory.mktemp("clip")
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[]).save_pretrained(folder)
    shape = CLIPTextConfig(
        vocab_size=len(words), hidden_size=20, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=40, bos_token_id=len(words) - 2, eos_token_id=len(words) - 1,
    )  # fmt: skip
    torch.manual_seed(0)
    CLIPTextModel(shape).save_pretrained(folder)
    CONFIGS["clip_pretrained"] = ClipPretrainedConfig(model=str(folder), max_tokens=40)
    yield folder
    del CONFIGS["clip_pretrained"]


def build(*names, **others) -> Conditioners:
    torch.manual_seed(0)
    configs = {name: CONFIGS[name] for name in names} | others
    made = build_conditioners(configs, context_width=20, latent_channels=4)
    return made.attach(lambda images: torch.full((len(images), 4, 4, 4), 0.25), 3, 4)


def values(count: int = 4) -> dict[str, Any]:
    """Inputs for `count` images, by what a conditioner reads; for masks by "mask"."""
    g = torch.Generator().manual_seed(1)
    masks = (torch.rand(count, 1, 16, 16, generator=g) > 0.97).float()
    colours, sizes = ("red", "blue", "", "red"), (1.0, 3.0, 2.0, None)
    attributes = build("attributes").parts["attributes"]
    rows = [attributes.of_user({"colour": colours[i], "size": sizes[i], "tags": ["big", "old"][: i % 3]}) for i in range(count)]
    return {
        CAPTIONS: ("a red heart", "a puppy", "a smiling yellow face with sunglasses", "tea")[:count],
        LABELS: torch.tensor([0, 1, 2, 0])[:count],
        "mask": MaskedImages(masks, torch.randn(count, 4, 4, 4, generator=g)),
        MAPS: torch.randint(0, 6, (count, 16, 16), generator=g),
        BOXES: torch.cat([torch.randint(0, 3, (count, 2, 1), generator=g), torch.rand(count, 2, 4, generator=g)], dim=2),
        PIXELS: torch.rand(count, 3, 6, 6, generator=g) * 2 - 1,
        ATTRIBUTES: {name: torch.cat([row[name] for row in rows]) for name in rows[0]},
    }


def given(conditioners: Conditioners, count: int = 4) -> ConditionInputs:
    """All that the conditioners read, for images that differ."""
    known = values(count)
    return ConditionInputs(
        count=count,
        values={name: known["mask" if isinstance(part, InpaintMask) else part.reads] for name, part in conditioners.items()},
    )


def assert_same(a, b, **tolerance) -> None:
    for channel in ("vector", "tokens", "token_mask", "concat"):
        x, y = getattr(a, channel), getattr(b, channel)
        assert (x is None) == (y is None), channel
        if x is not None:
            torch.testing.assert_close(x, y, **tolerance)


def row(condition, i):
    channels = {name: getattr(condition, name) for name in ("vector", "tokens", "token_mask", "concat")}
    return replace(condition, **{name: None if x is None else x[i : i + 1] for name, x in channels.items()})


@every_kind
def test_a_row_has_the_same_condition_alone_and_in_a_batch(name):
    conditioners = build(name).eval()
    inputs = given(conditioners)
    together = conditioners(inputs, (4, 4))
    for i in range(4):
        assert_same(row(together, i), conditioners(inputs.part(i, i + 1), (4, 4)), rtol=1e-5, atol=1e-6)


@every_kind
def test_the_null_condition_is_the_same_however_it_is_given(name):
    """Blanked rows, an input that is not given, and the value written out are one condition; other rows keep theirs."""
    conditioners = build(name).eval()
    inputs = given(conditioners)
    rows = torch.tensor([True, False, True, False])
    some = conditioners(inputs, (4, 4), {name: rows})
    written = {
        CAPTIONS: ("", " ", "", ""),
        LABELS: torch.full((4,), -1),
        "mask": MaskedImages(torch.ones(4, 1, 16, 16), torch.full((4, 4, 4, 4), 0.25)),
        MAPS: torch.full((4, 16, 16), 5),
        BOXES: torch.full((4, 2, 5), -1.0),
        PIXELS: torch.zeros(4, 3, 9, 9),
        ATTRIBUTES: {"colour": torch.zeros(4, 3), "size": torch.zeros(4, 9), "tags": torch.zeros(4, 3)},
    }["mask" if name == "inpaint_mask" else conditioners.parts[name].reads]
    nothing = conditioners(inputs, (4, 4), {name: torch.ones(4, dtype=torch.bool)})
    assert_same(nothing, conditioners(ConditionInputs(count=4), (4, 4)))
    assert_same(nothing, conditioners(ConditionInputs(count=4, values={name: written}), (4, 4)))
    everything = conditioners(inputs, (4, 4))
    for i, is_blank in enumerate(rows):
        assert_same(row(some, i), row(nothing if is_blank else everything, i))
        with pytest.raises(AssertionError):
            assert_same(row(nothing, i), row(everything, i))


@every_kind
def test_different_inputs_give_different_conditions(name):
    """All rows differ from each other: no conditioner ignores its input."""
    conditioners = build(name).eval()
    condition = conditioners(given(conditioners, 3), (4, 4))
    for i, j in ((0, 1), (1, 2), (0, 2)):
        with pytest.raises(AssertionError):
            assert_same(row(condition, i), row(condition, j))


@every_kind
def test_what_is_reported_is_what_is_given(name):
    """The sizes that a network is built with are those that arrive."""
    conditioners = build(name).eval()
    condition = conditioners(given(conditioners), (4, 4))
    assert conditioners.uses_tokens == (condition.tokens is not None)
    assert conditioners.concat_channels == (0 if condition.concat is None else condition.concat.shape[1])
    assert conditioners.vector_width == (None if condition.vector is None else condition.vector.shape[1])


def test_all_together_stand_side_by_side():
    attended = ClassLabelConfig(num_classes=3, how="attend")
    both = build(*OLD, attended=attended).eval()
    inputs = given(both)
    merged = both(inputs, (4, 4))
    assert merged.tokens.shape == (4, 12 + 10 + 1, 20)
    # "a red heart" is [CLS] a red heart [SEP]: 5 of 12 and of 10; the label is one token more.
    assert merged.token_mask.sum(1).tolist() == [5 + 5 + 1, 4 + 4 + 1, 8 + 8 + 1, 3 + 3 + 1]
    assert both.concat_channels == 1 + 4 + 5 == merged.concat.shape[1]
    assert both.vector_width == 16

    mask_part, map_part = (
        both.parts["inpaint_mask"](inputs.values["inpaint_mask"], (4, 4)),
        both.parts["semantic_map"](inputs.values["semantic_map"], (4, 4)),
    )
    torch.testing.assert_close(merged.concat, torch.cat([mask_part.concat, map_part.concat], dim=1))
    label = both.parts["class_label"](inputs.values["class_label"], (4, 4)).vector
    torch.testing.assert_close(merged.vector, label)


def test_no_conditioner_gives_no_condition():
    assert_same(build()(ConditionInputs(count=4), (4, 4)), Condition())


def test_drops_are_each_conditioners_own_and_keyed_by_sample():
    often, never = BertScratchConfig(width=8, depth=1, drop=0.7), ClassLabelConfig(num_classes=3, drop=0.0)
    other = SemanticMapConfig(num_classes=5, drop=0.7)
    conditioners = build(text=often, label=never, map=other)
    streams = Streams.of(0, "train", 7, samples=range(1000))
    drops = conditioners.draw_drops(streams)
    texts, maps = drops["text"], drops["map"]
    assert abs(texts.float().mean() - 0.7) < 0.05 and abs(maps.float().mean() - 0.7) < 0.05
    assert abs((texts & maps).float().mean() - 0.49) < 0.05  # independent of each other
    assert not drops["label"].any()

    part = conditioners.draw_drops(streams.part(300, 400))
    assert torch.equal(part["text"], texts[300:400])
    assert torch.equal(part["map"], maps[300:400])


def test_two_that_read_the_same_input_are_dropped_apart():
    conditioners = build(
        one=ClassLabelConfig(num_classes=3, how="attend", drop=0.5), other=ClassLabelConfig(num_classes=3, how="attend", drop=0.5)
    )
    labels = torch.tensor([1, 1])
    inputs = ConditionInputs(count=2, values={"one": labels, "other": labels})
    drops = {"one": torch.tensor([True, False]), "other": torch.tensor([False, False])}
    tokens = conditioners(inputs, (2, 2), drops).tokens
    nulls = conditioners(ConditionInputs(count=2), (2, 2)).tokens
    assert torch.equal(tokens[0, 0], nulls[0, 0]) and not torch.equal(tokens[1, 0], nulls[1, 0])
    assert torch.equal(tokens[0, 1], tokens[1, 1])


def test_the_frozen_encoder_is_named_not_stored_and_not_trained():
    conditioners = build("bert_pretrained", "class_label")
    width = 384
    assert {name: tuple(tensor.shape) for name, tensor in conditioners.state_dict().items()} == {
        "parts.bert_pretrained.norm.weight": (width,),
        "parts.bert_pretrained.norm.bias": (width,),
        "parts.bert_pretrained.projection.weight": (20, width),
        "parts.bert_pretrained.projection.bias": (20,),
        "parts.class_label.table.weight": (4, 16),
    }
    assert sum(p.numel() for p in conditioners.parameters()) == 2 * width + 20 * width + 20 + 4 * 16
    assert conditioners.num_frozen == 22_565_376
    assert conditioners.frozen_digests() == {"minilm-l6": TABLE["minilm-l6"].sha256}

    conditioners(given(conditioners), (4, 4)).tokens.square().sum().backward()
    part = conditioners.parts["bert_pretrained"]
    assert part.projection.weight.grad.abs().max() > 0
    assert all(p.grad is None and not p.requires_grad for p in part.frozen.encoder.parameters())


def test_a_copy_shares_the_frozen_encoder():
    part = build("bert_pretrained").parts["bert_pretrained"]
    copied = copy.deepcopy(part)
    assert copied.frozen is part.frozen
    assert copied.projection.weight.data_ptr() != part.projection.weight.data_ptr()


def test_lower_precision_leaves_the_frozen_encoder_alone():
    part = build("bert_pretrained").parts["bert_pretrained"].bfloat16()
    assert part.projection.weight.dtype == torch.bfloat16
    assert {p.dtype for p in part.frozen.encoder.parameters()} == {torch.float32}


def test_features_are_the_same_bits_computed_kept_and_under_autocast():
    frozen = build("bert_pretrained").parts["bert_pretrained"].frozen
    texts = ("a red heart", "a smiling yellow face with sunglasses", "")
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        first = frozen.features(texts)
    assert not any(x.is_inference() or x.requires_grad for x in first)  # training may use what sampling computed
    assert frozen.features(texts)[1] is first[1]
    frozen._known.clear()
    again = [frozen.features((text,))[0] for text in reversed(texts)][::-1]
    for a, b in zip(first, again, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_the_memory_of_features_is_bounded_and_forgets_the_longest_unused():
    part = build(text=BertPretrainedConfig(cached_captions=2)).parts["text"]
    kept = part.frozen.features(("one",))[0]
    part.frozen.features(("two", "one", "three"))
    assert part.frozen.features(("one",))[0] is kept
    assert list(part.frozen._known) == ["three", "one"]


def test_the_summary_is_of_the_captions_mean_feature():
    part = build(text=replace(CONFIGS["bert_pretrained"], vector_width=16)).parts["text"].eval()
    captions = values()[CAPTIONS]
    means = torch.stack([feature.mean(dim=0) for feature in part.frozen.features(captions)])
    norm, linear = part.summary
    whitened = (means - means.mean(dim=1, keepdim=True)) / (means.var(dim=1, keepdim=True, unbiased=False) + 1e-5).sqrt()
    expected = (whitened * norm.weight + norm.bias) @ linear.weight.T + linear.bias
    condition = part(captions, (4, 4))
    torch.testing.assert_close(condition.vector, expected)
    assert part.vector_width == 16

    beside = build(text=replace(CONFIGS["bert_pretrained"], vector_width=16), label=CONFIGS["class_label"])
    inputs = given(beside)
    alone = [beside.parts[name](inputs.values[name], (4, 4)).vector for name in ("text", "label")]
    torch.testing.assert_close(beside(inputs, (4, 4)).vector, sum(alone))
    with pytest.raises(UserError, match="vector_width must be at least 1"):
        BertPretrainedConfig(vector_width=0)


def test_a_long_caption_is_cut_at_the_end():
    conditioners = build("bert_pretrained", "bert_scratch").eval()
    words = "one two three four five six seven eight nine ten eleven twelve"
    captions = (words, words + " thirteen")
    long = ConditionInputs(count=2, values={"bert_pretrained": captions, "bert_scratch": captions})
    condition = conditioners(long, (4, 4))
    assert condition.token_mask.all()
    assert_same(row(condition, 0), row(condition, 1), rtol=1e-5, atol=1e-6)


def test_a_caption_that_is_cut_ends_as_any_other():
    assert word_pieces(BertTokenizer(), "a red heart", 5).tolist() == [101, 1037, 2417, 2540, 102]
    assert word_pieces(BertTokenizer(), "a red heart", 4).tolist() == [101, 1037, 2417, 102]


def test_any_bert_of_a_folder_is_named_by_what_it_holds(tmp_path):
    import transformers

    small = transformers.BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    for seed in (0, 1):
        torch.manual_seed(seed)
        transformers.BertModel(small).save_pretrained(tmp_path / str(seed))
        transformers.BertTokenizer(vocab=str(fetch("bert-tokenizer"))).save_pretrained(tmp_path / str(seed))
    digests = []
    for folder in ("0", "0", "1"):
        conditioners = build(text=BertPretrainedConfig(model=str(tmp_path / folder)))
        (digest,) = conditioners.frozen_digests().values()
        digests.append(digest)
        assert conditioners(given(conditioners), (4, 4)).tokens.shape == (4, 32, 20)
        frozen = next(iter(conditioners)).frozen
        assert not any(parameter.requires_grad for parameter in frozen.encoder.parameters()) and not frozen.encoder.training
    assert digests[0] == digests[1] != digests[2]
    with pytest.raises(UserError, match="cannot load the text encoder .*absent"):
        build(text=BertPretrainedConfig(model=str(tmp_path / "absent")))


@pytest.mark.parametrize("width, published", [(1280, 581_994_042), (640, 186_154_682)])
def test_bert_scratch_has_the_published_size(width, published):
    """CompVis' text encoders of 32 layers, without the output layer to 30,522 words that they carry and never use."""
    with torch.device("meta"):
        encoder = BertScratchConfig(width=width, depth=32).build(context_width=width, latent_channels=4)
    assert encoder.num_unused == width * 30522 + 30522
    assert sum(p.numel() for p in encoder.parameters()) == published - encoder.num_unused


def test_bert_scratch_trains_down_to_its_words_and_ignores_padding():
    encoder = build("bert_scratch").parts["bert_scratch"]
    one = ("a puppy",)
    before = encoder(one, (4, 4))
    before.tokens.square().mul(before.token_mask[..., None]).sum().backward()
    trained = encoder.encoder.token_embedding.weight.grad.abs().sum(1).nonzero().flatten().tolist()
    assert trained == [101, 102, 1037, 17022]  # [CLS], [SEP], a, puppy; not [PAD]
    with torch.no_grad():
        encoder.encoder.token_embedding.weight[0] += 1
    torch.testing.assert_close(encoder(one, (4, 4)).tokens[:, :4], before.tokens[:, :4])

    unmasked = build(text=replace(CONFIGS["bert_scratch"], is_masked=False)).parts["text"]
    assert unmasked(one, (4, 4)).token_mask is None


def test_bert_scratch_is_its_equations():
    """x + attention(norm x), x + narrow(gelu(widen(norm x))), last norm: written out for one head."""
    part = build(text=BertScratchConfig(width=12, depth=1, heads=1, head_width=5, max_tokens=6)).parts["text"].double()
    encoder, layer = part.encoder, part.encoder.layers[0]
    pieces = torch.tensor([[101, 1037, 2417, 102]])
    x = encoder.token_embedding.weight[pieces[0]] + encoder.position_embedding.weight[:4]
    h = torch.nn.functional.layer_norm(x, (12,))
    q, k, v = h @ layer.to_q.weight.T, h @ layer.to_k.weight.T, h @ layer.to_v.weight.T
    x = x + (q @ k.T / 5**0.5).softmax(-1) @ v @ layer.to_out.weight.T + layer.to_out.bias
    h = torch.nn.functional.layer_norm(x, (12,)) @ layer.widen.weight.T + layer.widen.bias
    h = h * 0.5 * (1 + torch.erf(h / 2**0.5))
    x = torch.nn.functional.layer_norm(x + h @ layer.narrow.weight.T + layer.narrow.bias, (12,))
    torch.testing.assert_close(encoder(pieces, None)[0], x)


def test_the_box_encoder_has_the_published_size():
    """LDM's for OpenImages, 512 x 16, 92 tokens, without the output layer that it carries and never uses."""
    with torch.device("meta"):
        encoder = BoxesConfig(num_classes=601).build(context_width=512, latent_channels=3)
    assert sum(p.numel() for p in encoder.parameters()) == 58_858_496 - encoder.num_unused == 54_656_000


def test_a_box_is_its_class_and_two_corners():
    """On a grid of 4 x 4 places, row by row: (0, 0) is 0, (1/3, 2/3) is 9, (1, 1) is 15; 16 says that there is no box."""
    part = build(boxes=BoxesConfig(num_classes=3, width=8, depth=1, max_boxes=2, vocabulary=17)).parts["boxes"]
    one = [2, 1 / 3, 2 / 3, 1, 1]
    none = [-1, 0.0, 0.0, 0.0, 0.0]
    found = part.tokens(torch.tensor([[one, [0, 0, 0, 0.4, 0.1]], [none, one], [none, none]]))
    assert found.tolist() == [[2, 9, 15, 0, 0, 1, 0, 15], [16, 16, 16, 2, 9, 15, 0, 15], [16] * 6 + [0, 15]]
    more = part.tokens(torch.tensor([[one, one, one]]))
    assert more.tolist() == [[2, 9, 15, 2, 9, 15, 0, 15]]
    fewer = part.tokens(torch.tensor([[one]]))
    assert fewer.tolist() == [[2, 9, 15, 16, 16, 16, 0, 15]]


def test_clip_gives_the_features_of_its_layer_padding_and_all(tiny_clip):
    """`last` is the tower's own output; `penultimate` the layer before under the tower's last norm. A caption is padded to the length."""
    tower, tokenizer = CLIPTextModel.from_pretrained(tiny_clip), CLIPTokenizer.from_pretrained(tiny_clip)
    tokens = torch.tensor(tokenizer(["a puppy", ""], padding="max_length", max_length=40)["input_ids"])
    assert tokens.shape == (2, 40)
    with torch.no_grad():
        whole = tower(input_ids=tokens, output_hidden_states=True)
        expected = {"last": whole.last_hidden_state, "penultimate": tower.final_layer_norm(whole.hidden_states[1])}
    for layer, features in expected.items():
        part = build(text=replace(CONFIGS["clip_pretrained"], layer=layer)).parts["text"]
        condition = part(("a puppy", ""), (4, 4))
        torch.testing.assert_close(condition.tokens, features)
        assert condition.token_mask is None
        assert sum(p.numel() for p in part.parameters()) == 0
    assert not torch.allclose(*expected.values())


@pytest.mark.parametrize("model, width, published", [(CLIP_L, 768, 123_060_480), (OPEN_CLIP_H, 1024, 352_984_064)])
def test_published_clips_are_counted_without_being_fetched(model, width, published):
    """OpenAI's ViT-L/14 text tower; LAION's ViT-H/14, whose last layer Stable Diffusion 2 does not use but transformers keeps."""
    with torch.device("meta"):
        part = ClipPretrainedConfig(model=model).build(context_width=width, latent_channels=4)
    assert part.num_frozen == published
    assert part.frozen_digests() == {}
    with pytest.raises(UserError, match=f"context_width must be {width}"), torch.device("meta"):
        ClipPretrainedConfig(model=model).build(context_width=width + 1, latent_channels=4)


def test_a_small_picture_of_the_latents_size_is_given_as_it_is():
    part = build("low_resolution").parts["low_resolution"]
    small = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert torch.equal(part(small, (4, 4)).concat, small)
    # Noise of N(0, 0.3^2) in a sixteenth of the pixels: means over some 16 of them (a cubic's lobes included), not a few picked out.
    noise = 0.3 * torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    assert part(noise, (16, 16)).concat.std() < 0.12
    ramp = torch.linspace(-0.9, 0.9, 16).expand(1, 3, 16, 16)
    found = part(ramp, (4, 4)).concat
    torch.testing.assert_close(found[0, 0, 1, 1:3], torch.tensor([-0.24, 0.24]), atol=0.01, rtol=0)
    with pytest.raises(UserError, match="has 1 channels; this model takes 3"):
        part(noise[:, :1], (4, 4))


def test_shares_of_a_map_are_its_one_hot_halved_twice():
    """LDM's rescaling: bilinear to half, twice, then a learned mix of the 5 classes into 3 channels. "Unknown" has no share."""
    maps = torch.randint(0, 6, (2, 16, 24), generator=torch.Generator().manual_seed(0))
    one_hot = torch.nn.functional.one_hot(maps, 6)[..., :5].movedim(-1, 1).float()
    for _ in range(2):
        one_hot = torch.nn.functional.interpolate(one_hot, scale_factor=0.5, mode="bilinear")
    for channels in (None, 3):
        part = build(map=SemanticMapConfig(num_classes=5, channels=channels, shares=True)).parts["map"]
        found = part(maps, (4, 6)).concat
        torch.testing.assert_close(found, part.mix(one_hot))


def test_a_touched_latent_cell_is_painted():
    mask = torch.zeros(1, 1, 16, 16)
    mask[0, 0, 4, 11] = 1  # one pixel, in cell (1, 2) of 4 x 4
    expected = torch.zeros(1, 1, 4, 4)
    expected[0, 0, 1, 2] = 1
    torch.testing.assert_close(latent_mask(mask, (4, 4)), expected)


def test_unknown_on_the_map_is_zero_in_every_channel():
    maps = torch.full((1, 8, 8), 5)
    maps[0, :4, :4] = 2
    for config in (SemanticMapConfig(num_classes=5), SemanticMapConfig(num_classes=5, channels=3)):
        part = build(map=config).parts["map"]
        concat = part(maps, (2, 2)).concat
        assert concat[0, :, 0, 0].abs().max() > 0
        assert concat.abs().sum() == concat[0, :, 0, 0].abs().sum()
    assert SemanticMapConfig(num_classes=5).build(context_width=None, latent_channels=4)(maps, (2, 2)).concat[0, :, 0, 0].tolist() == [
        0,
        0,
        1,
        0,
        0,
    ]


def test_labels_are_found_by_name_or_number():
    part = build("class_label").parts["class_label"]
    assert [part.index_of(label) for label in ("animal", "2", 0)] == [1, 2, 0]
    with pytest.raises(UserError, match="animal, face, food.*Did you mean 'animal'"):
        part.index_of("animals")
    with pytest.raises(UserError, match="3 is outside 0 to 2"):
        part.index_of(3)
    with pytest.raises(UserError, match="no names, give a number"):
        build(label=ClassLabelConfig(num_classes=3)).parts["label"].index_of("animal")


def test_mistakes_get_one_line():
    boxes = build("boxes").parts["boxes"]
    with pytest.raises(UserError, match="label 3 is outside 0 to 2"):
        build("class_label").parts["class_label"](torch.tensor([0, 1, 3, 2]), (4, 4))
    with pytest.raises(UserError, match="class 6; this model knows 0 to 4"):
        build("semantic_map").parts["semantic_map"](values()[MAPS] + 1, (4, 4))
    with pytest.raises(UserError, match="no cross-attention"):
        build_conditioners({"text": CONFIGS["bert_scratch"]}, context_width=None, latent_channels=4)
    with pytest.raises(UserError, match="agree on one width"):
        build("class_label", other=ClassLabelConfig(num_classes=2, width=8))
    with pytest.raises(UserError, match="from 0 to 1, got 1.5"):
        InpaintMaskConfig(drop=1.5)
    with pytest.raises(UserError, match="a box has class 3; this model knows 0 to 2"):
        boxes(values()[BOXES] * torch.tensor([0.0, 1, 1, 1, 1]) + torch.tensor([3.0, 0, 0, 0, 0]), (4, 4))
    with pytest.raises(UserError, match="shares of the picture's width and height"):
        boxes(values()[BOXES] * torch.tensor([1.0, 1, 1, 1, 3]), (4, 4))
    with pytest.raises(UserError, match="no room for 20 classes"):
        BoxesConfig(num_classes=20, vocabulary=20)
    with pytest.raises(UserError, match="needs boxes, and the training data has none"):
        CONFIGS["boxes"].fitted(DataFacts(has=frozenset({CAPTIONS, PIXELS})))
    with pytest.raises(UserError, match="reads at most 40 tokens; max_tokens is 41"):
        build(text=replace(CONFIGS["clip_pretrained"], max_tokens=41))
    with pytest.raises(UserError, match="2 label names for 3 classes"):
        ClassLabelConfig(num_classes=3, names=("a", "b"))


@every_kind
def test_it_follows_to_the_device(device, name):
    check_follows(device, name, 1e-4)


@every_kind
def test_it_follows_to_a_device_that_is_not_the_cpu(elsewhere, name):
    check_follows(elsewhere, name, 0)


def check_follows(device, name, tolerance):
    conditioners = build(name).eval()
    inputs = given(conditioners)
    on_cpu = conditioners(inputs, (4, 4))
    followed = conditioners.to(device)(inputs, (4, 4))
    for channel in ("vector", "tokens", "token_mask", "concat"):
        x, y = getattr(on_cpu, channel), getattr(followed, channel)
        if x is not None:
            assert y.device.type == device.type
            torch.testing.assert_close(y.cpu(), x, rtol=tolerance, atol=tolerance)


def test_hidden_words_are_words_only_and_only_in_training():
    """[CLS] and [SEP] stay, about the given share of the words goes, and the mean that makes the vector is of what is left."""
    config = BertPretrainedConfig(max_tokens=12, word_drop=0.5, vector_width=6)
    part, inputs = build("bert_pretrained", bert_pretrained=config).parts["bert_pretrained"], values()[CAPTIONS]
    whole = part.eval()(inputs, (4, 4))
    torch.manual_seed(0)
    steps = [part.train()(inputs, (4, 4)) for _ in range(200)]
    ends = whole.token_mask.sum(dim=1) - 1
    for step in steps:
        assert step.token_mask[:, 0].all() and step.token_mask[torch.arange(4), ends].all()
        assert not (step.token_mask & ~whole.token_mask).any()
    kept = torch.stack([step.token_mask.sum(dim=1) - 2 for step in steps]).double().mean(dim=0)
    torch.testing.assert_close(kept, (whole.token_mask.sum(dim=1) - 2).double() / 2, rtol=0.15, atol=0.1)
    features, _ = padded(part.frozen.features(inputs), 12)
    row = steps[0].token_mask[2]
    torch.testing.assert_close(steps[0].vector[2], part.summary(features[2, row].mean(dim=0)), rtol=1e-5, atol=1e-5)


def test_feature_dropout_is_in_training_only():
    config = BertPretrainedConfig(max_tokens=12, feature_dropout=0.5, vector_width=6)
    part, inputs = build("bert_pretrained", bert_pretrained=config).parts["bert_pretrained"], values()[CAPTIONS]
    plain = build("bert_pretrained", bert_pretrained=replace(config, feature_dropout=0.0)).parts["bert_pretrained"].train()(inputs, (4, 4))
    assert_same(part.eval()(inputs, (4, 4)), plain)
    one, other = (part.train()(inputs, (4, 4)) for _ in range(2))
    assert not torch.allclose(one.tokens, other.tokens) and not torch.allclose(one.vector, other.vector)


@pytest.mark.parametrize("name", ["word_drop", "feature_dropout"])
def test_all_of_a_caption_cannot_be_hidden(name):
    with pytest.raises(UserError, match=f"{name} must be a share from 0 to less than 1, got 1"):
        BertPretrainedConfig(**{name: 1})


def test_classes_that_are_only_numbered_may_be_fewer_in_held_out_data():
    ours = ("class 0", "class 1", "class 2")
    check_names("semantic_map", ours, ours[:2])
    for found in ((*ours, "class 3"), ("sky", "class 1")):
        with pytest.raises(UserError, match=r"semantic_map: class \d of the data is"):
            check_names("semantic_map", ours, found)
    with pytest.raises(UserError, match="class 1 of the data is none, of the model sea"):
        check_names("semantic_map", ("sky", "sea"), ("sky",))
