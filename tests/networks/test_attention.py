"""Every attention backend against the reference."""

from __future__ import annotations

import math
import sys

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from ldm.core.errors import UserError
from ldm.networks.attention.attend import BACKENDS, attend, available, choose

CPU = torch.device("cpu")
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
GPU = pytest.param(torch.device("cuda"), marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")])
every_device = pytest.mark.parametrize("device", [CPU, GPU])
every_dtype = pytest.mark.parametrize("dtype", list(TOLERANCE))
every_backend = pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "math"])


def inputs(device: torch.device, dtype: torch.dtype, tokens: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(3, 4, length, 16, generator=rng).to(device, dtype) for length in (12, tokens, tokens))
    mask = torch.rand(3, tokens, generator=rng) > 0.5
    mask[:, 0] = True
    return q.requires_grad_(), k.requires_grad_(), v.requires_grad_(), mask.to(device)


@every_device
@every_dtype
@every_backend
@pytest.mark.parametrize("is_masked", [False, True])
def test_backend_agrees_with_the_reference(device: torch.device, dtype: torch.dtype, backend: str, is_masked: bool) -> None:
    if backend != "auto" and backend not in available(device, dtype):
        pytest.skip(f"{backend} does not run on {device} with {dtype} (xformers needs a GPU)")
    q, k, v, mask = inputs(device, dtype, tokens=13)
    told = mask if is_masked else None
    results = {}
    for name in ("math", backend):
        out = attend(q, k, v, mask=told, backend=name)
        results[name] = (out, *torch.autograd.grad(out.square().sum(), (q, k, v)))

    for mine, reference in zip(results[backend], results["math"], strict=True):
        assert_close(mine, reference, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype] * float(reference.detach().abs().max()))


def test_reference_is_the_published_formula() -> None:
    q, k, v, _ = (part.detach().double() for part in inputs(CPU, torch.float32, tokens=5))
    for n in range(4):
        weights = torch.stack([torch.tensor([math.exp(a @ b / 4) for b in k[1, n]], dtype=torch.float64) for a in q[1, n]])
        expected = (weights / weights.sum(1, keepdim=True)) @ v[1, n]
        assert_close(attend(q, k, v, backend="math")[1, n], expected)


@pytest.mark.parametrize("backend", ["auto", "math", "sdpa"])
def test_masked_tokens_have_no_influence(backend: str) -> None:
    q, k, v, _ = inputs(CPU, torch.float32, tokens=8)
    mask = (torch.arange(8) < 5).expand(3, 8)
    out = attend(q, k, v, mask=mask, backend=backend)
    garbage = [torch.where(mask[:, None, :, None], part, 1e4) for part in (k, v)]

    assert_close(attend(q, *garbage, mask=mask, backend=backend), out, rtol=0, atol=0)
    assert_close(attend(q, k[:, :, :5], v[:, :, :5], backend=backend), out)
    for grad in torch.autograd.grad(out.square().sum(), (k, v)):
        assert not grad[:, :, 5:].any() and grad[:, :, :5].any()


def test_unknown_backend_names_the_known_ones() -> None:
    q, k, v, _ = inputs(CPU, torch.float32, tokens=4)
    with pytest.raises(UserError, match=r"'sdp'; allowed: auto, math, sdpa, xformers. Did you mean 'sdpa'"):
        attend(q, k, v, backend="sdp")


def test_backend_that_is_not_installed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "xformers", None)
    monkeypatch.setitem(sys.modules, "xformers.ops", None)
    monkeypatch.setattr("ldm.networks.attention.attend._works", {})
    q, k, v, _ = inputs(CPU, torch.float32, tokens=4)
    with pytest.raises(UserError, match="'xformers' does not run on cpu with torch.float32; this device offers: auto, math, sdpa$"):
        attend(q, k, v, backend="xformers")


def test_meta_device_offers_what_it_can_count() -> None:
    assert available(torch.device("meta"), torch.bfloat16) == ("math", "sdpa")


def test_auto_on_a_cpu_leaves_sdpa_where_its_backward_is_slow() -> None:
    """The measurement is told in `choose`."""
    q, k, _, _ = inputs(CPU, torch.bfloat16, tokens=128)
    assert choose(q, k) == "math"
    with torch.no_grad():
        assert choose(q, k) == "sdpa"  # nothing to differentiate
        assert choose(q, k[:, :, :64]) == "math"
    assert choose(q, k.repeat(1, 1, 4, 1)) == "sdpa"  # 512 keys: the scores are not worth holding
    assert choose(q.float(), k.float()) == "sdpa"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_auto_on_a_gpu_is_fused() -> None:
    q, k, _, _ = inputs(torch.device("cuda"), torch.bfloat16, tokens=64)
    assert choose(q, k) in ("sdpa", "xformers")
