"""Every attention backend against the reference; every attending block runs fused, with memory linear in the positions."""

from __future__ import annotations

import gc
import math
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.testing import assert_close

from ldm.conditioning.bert_scratch import BertScratchConfig
from ldm.conditioning.transformer import TokenTransformer
from ldm.core.condition import Condition
from ldm.core.errors import UserError
from ldm.first_stage.autoencoder import KLAutoencoderConfig
from ldm.first_stage.vq import VQAutoencoderConfig
from ldm.networks.attention import attend as attending
from ldm.networks.attention import fused
from ldm.networks.attention.attend import BACKENDS, attend, available, choose
from ldm.networks.attention.reference import math as exact_attention
from ldm.networks.blocks import spatial_attention
from ldm.networks.blocks.attention_pool import AttentionPool
from ldm.networks.blocks.pointwise import pointwise
from ldm.networks.blocks.spatial_attention import MultiHeadSpatialAttention, SpatialSelfAttention
from ldm.networks.blocks.transformer import SpatialTransformer
from ldm.networks.classifier import ClassifierConfig
from ldm.networks.unet import UNetConfig

CPU = torch.device("cpu")
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
every_dtype = pytest.mark.parametrize("dtype", list(TOLERANCE))
every_backend = pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "math"])


@pytest.fixture
def fused_only(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Forbids torch's unfused fallback and our reference, which store scores; starts with an empty cache of probed kernels."""

    def forbidden(*_: object) -> Tensor:
        raise AssertionError("the reference was called")

    monkeypatch.setitem(attending._COMPUTE, "math", forbidden)
    monkeypatch.setattr(attending, "_found", {})
    with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]):
        yield


def inputs(device: torch.device, dtype: torch.dtype, tokens: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(3, 4, length, 16, generator=rng).to(device, dtype) for length in (12, tokens, tokens))
    mask = torch.rand(3, tokens, generator=rng) > 0.5
    mask[:, 0] = True
    return q.requires_grad_(), k.requires_grad_(), v.requires_grad_(), mask.to(device)


@every_dtype
@every_backend
@pytest.mark.parametrize("is_masked", [False, True])
def test_backend_agrees_with_the_reference(device: torch.device, dtype: torch.dtype, backend: str, is_masked: bool) -> None:
    q, k, v, mask = inputs(device, dtype, tokens=13)
    mask = mask if is_masked else None
    if backend != "auto" and backend not in available(q, k, v, mask):
        pytest.skip(f"{backend} does not run on {device} with {dtype} (xformers needs a GPU)")
    results = {}
    for name in ("math", backend):
        out = attend(q, k, v, mask=mask, backend=name)
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
    monkeypatch.setattr("ldm.networks.attention.attend._found", {})
    q, k, v, _ = inputs(CPU, torch.float32, tokens=4)
    with pytest.raises(
        UserError, match="'xformers' does not run on cpu with torch.float32 and heads of width 16; available: auto, math, sdpa$"
    ):
        attend(q, k, v, backend="xformers")


def test_a_backend_is_refused_for_head_widths_that_it_does_not_support(monkeypatch: pytest.MonkeyPatch) -> None:
    """As xformers' kernels do not support widths that are not multiples of 8."""
    monkeypatch.setitem(attending._COMPUTE, "xformers", only_multiples_of_8)
    q, k, v, _ = inputs(CPU, torch.float32, tokens=4)
    attend(q, k, v, backend="xformers")
    with pytest.raises(UserError, match="'xformers' does not run on cpu with torch.float32 and heads of width 12; available: auto, math"):
        attend(q[..., :12], k[..., :12], v[..., :12], backend="xformers")


def only_multiples_of_8(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    if q.shape[-1] % 8 or mask is not None:
        raise RuntimeError("No available kernel. Aborting execution.")
    return fused.sdpa(q, k, v, mask)


def test_auto_probes_the_tensors_that_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a device whose fused kernels support some head widths and no mask, auto chooses math where they do not run."""
    monkeypatch.setattr(fused, "sdpa_without_fallback", only_multiples_of_8)
    q, k, v, mask = inputs(CPU, torch.float32, tokens=4)
    assert choose(q, k, v) == "sdpa"
    assert choose(q, k, v, mask) == choose(q[..., :12], k[..., :12], v[..., :12]) == "math"
    assert choose(q, k, v) == "sdpa"


def test_auto_respects_strides_that_no_kernel_supports(recwarn: pytest.WarningsRecorder) -> None:
    """`attend` copies such tensors before it chooses. torch's warnings about rejected kernels are not shown to users."""
    q, k, v, _ = inputs(CPU, torch.float32, tokens=4)
    strided = q.repeat_interleave(4, dim=-1)[..., ::4]
    assert [choose(q, k, v), choose(strided, k, v), choose(q, k, v)] == ["sdpa", "math", "sdpa"]
    assert not recwarn.list


@pytest.mark.parametrize("width", [16, 1])
@pytest.mark.parametrize("strided", range(3))
def test_tensors_of_any_memory_layout_are_fused(device: torch.device, strided: int, width: int, fused_only: None) -> None:
    """The layout of a contiguous model's convolution outputs: no fused kernel supports it without a copy."""
    q, k, v, mask = inputs(device, torch.float32, tokens=13)
    parts = [part[..., :width] for part in (q, k, v)]
    expected = attend(*parts, mask=mask)
    parts[strided] = parts[strided].transpose(-2, -1).contiguous().transpose(-2, -1)
    assert parts[strided].stride(-1) > 1
    assert_close(attend(*parts, mask=mask), expected)


@every_dtype
@pytest.mark.parametrize("is_masked", [False, True])
@pytest.mark.parametrize("width", [40, 80, 160, 512])
def test_head_widths_of_published_models_are_fused(
    device: torch.device, dtype: torch.dtype, width: int, is_masked: bool, fused_only: None
) -> None:
    """Stable Diffusion's, and the autoencoders' single head, which is wider than CUDA's flash kernel supports."""
    rng = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 1, 300, width, generator=rng).to(device, dtype).requires_grad_() for _ in range(3))
    mask = torch.arange(300, device=device) < torch.tensor([[200], [300]], device=device) if is_masked else None
    expected, mine = exact_attention(q, k, v, mask), attend(q, k, v, mask=mask)
    assert_close(mine, expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    torch.autograd.grad(mine.sum(), (q, k, v))


def test_backends_on_the_meta_device() -> None:
    assert available(*inputs(torch.device("meta"), torch.bfloat16, tokens=4)) == ("math", "sdpa")


def test_auto_on_a_cpu_leaves_sdpa_where_its_backward_is_slow() -> None:
    """The measurement is cited in `choose`. Never with more than 128 x 256 scores per head and image, and independent of the batch."""
    q, k, v, _ = inputs(CPU, torch.bfloat16, tokens=128)
    assert choose(q, k, v) == choose(q[:1], k[:1], v[:1]) == "math"
    with torch.no_grad():
        assert choose(q, k, v) == "sdpa"  # nothing to differentiate
        assert choose(q, k[:, :, :64], v[:, :, :64]) == "math"
    assert choose(q, *(part.repeat(1, 1, 3, 1) for part in (k, v))) == "sdpa"  # 384 keys: math is not faster
    assert choose(q.repeat(1, 1, 22, 1), k, v) == "sdpa"  # 264 queries
    many = q.repeat(1, 1, 21, 1), *(part.repeat(1, 1, 2, 1) for part in (k, v))
    assert choose(*many) == "sdpa"  # 252 queries and 256 keys: no faster
    assert choose(q.float(), k.float(), v.float()) == "sdpa"


BLOCKS: dict[str, Callable[[int], nn.Module]] = {  # the argument is the map's side in pixels
    "one head": lambda side: SpatialSelfAttention(64),
    "heads": lambda side: MultiHeadSpatialAttention(64, 4),
    "transformer": lambda side: SpatialTransformer(64, 4, context_width=24),
    "transformer, masked": lambda side: SpatialTransformer(64, 4, context_width=24),
    "pool": lambda side: AttentionPool(64, side * side, 4, 6),
}
every_block = pytest.mark.parametrize("name", BLOCKS)
every_order = pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels-last"])


def random_block(name: str, side: int = 17, backend: str = "auto") -> nn.Module:
    torch.manual_seed(0)
    block = without_zeros(BLOCKS[name](side))
    for part in block.modules():
        if hasattr(part, "backend"):
            part.backend = backend
    return block


def without_zeros(module: nn.Module) -> nn.Module:
    """Convolutions that start at zero would hide everything before them."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            part.reset_parameters()
    return module


def condition_of(name: str, like: Tensor) -> tuple[Tensor, ...]:
    """Tokens and their mask, for the blocks that take them."""
    tokens = torch.linspace(-1, 1, len(like) * 9 * 24).sin().reshape(-1, 9, 24).to(like)
    mask = torch.arange(9, device=like.device) < torch.tensor([[5], [9]], device=like.device)
    return {"transformer": (tokens,), "transformer, masked": (tokens, mask[: len(like)])}.get(name, ())


@every_dtype
@every_order
@every_block
def test_every_block_is_fused_and_agrees_with_the_reference(
    device: torch.device, dtype: torch.dtype, order: torch.memory_format, name: str, request: pytest.FixtureRequest
) -> None:
    """Values and all gradients, in both memory formats. With 289 positions, a CPU in bfloat16 does not choose the reference."""
    results = []
    for backend, of in (("math", torch.contiguous_format), ("auto", order)):
        block = random_block(name, backend=backend).to(device, dtype, memory_format=of)
        x = torch.randn(2, 64, 17, 17, generator=torch.Generator().manual_seed(1)).to(device, dtype).to(memory_format=of)
        x.requires_grad_()
        if backend == "auto":
            request.getfixturevalue("fused_only")
        out = block(x, *condition_of(name, x))
        results.append((out, *torch.autograd.grad(out.square().sum(), (x, *block.parameters()))))
        if out.ndim == 4:
            assert out.is_contiguous(memory_format=of)  # the model keeps its memory format
    # A bias of the keys adds the same to all scores of a query, so its gradient is rounding only.
    names = ["out", "x", *(name for name, _ in block.named_parameters())]
    for part, reference, mine in zip(names, *results, strict=True):
        if part not in ("k.bias", "to_k.bias"):
            assert_close(
                mine, reference, rtol=TOLERANCE[dtype], atol=2 * TOLERANCE[dtype] * float(reference.detach().abs().max()), msg=part
            )


@every_order
@pytest.mark.parametrize("name", ["one head", "heads"])
def test_queries_keys_and_values_reach_the_kernel_uncopied(order: torch.memory_format, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The projections' outputs already have the right layout, so only their input was copied."""
    received, made = [], []
    monkeypatch.setattr(spatial_attention, "pointwise", lambda *given: made.append(pointwise(*given)) or made[-1])
    monkeypatch.setitem(attending._COMPUTE, "sdpa", lambda *parts: received.extend(parts[:3]) or fused.sdpa(*parts))
    block = random_block(name).to(memory_format=order)
    block(torch.randn(2, 64, 4, 4).to(memory_format=order))
    assert len(received) == 3
    assert {part.untyped_storage().data_ptr() for part in received} <= {part.untyped_storage().data_ptr() for part in made}


MODELS: dict[str, Callable[[], nn.Module]] = {
    "kl": lambda: KLAutoencoderConfig(channels=16, multipliers=(1, 2), blocks=1, latent_channels=2, attention=(1, 2)).build(),
    "vq": lambda: VQAutoencoderConfig(channels=16, multipliers=(1, 2), blocks=1, num_codes=24, code_channels=2).build(),
    "unconditional": lambda: UNetConfig(
        channels=16, multipliers=(1, 2), blocks=1, attention=(1, 2), heads=2, transformer_depth=0, checkpointing=True
    ).build(3, 3),
    "transformers": lambda: UNetConfig(channels=16, multipliers=(1, 2), blocks=1, attention=(1, 2), heads=2, context_width=8).build(3, 3),
    "classifier": lambda: ClassifierConfig(channels=16, multipliers=(1, 2), blocks=1, attention=(1, 2), heads=2).build(3, (34, 34), 10),
}


@every_dtype
@every_order
@pytest.mark.parametrize("name", MODELS)
def test_whole_models_train_fused(
    device: torch.device, dtype: torch.dtype, order: torch.memory_format, name: str, fused_only: None
) -> None:
    """With at least 289 positions, under autocast as in training; `unconditional` recomputes its activations.

    The cache of probed kernels is empty, so the probes run within the first forward pass.
    """
    model = without_zeros(MODELS[name]()).to(device, memory_format=order)
    x = torch.rand(2, 3, 34, 34, device=device).to(memory_format=order).requires_grad_()
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        if name in ("kl", "vq"):
            out = model.reconstruct(x, torch.zeros(2, 2, 17, 17, device=device))[0]
        else:
            condition = (Condition(tokens=torch.rand(2, 5, 8, device=device)),) if name == "transformers" else ()
            condition = condition or (() if name == "classifier" else (Condition(),))
            out = model(x, torch.rand(2, device=device), *condition)
    out.float().square().mean().backward()
    assert x.grad.isfinite().all() and x.grad.any()


@every_dtype
@pytest.mark.parametrize("is_masked", [False, True])
def test_the_transformer_of_texts_and_boxes_trains_fused(
    device: torch.device, dtype: torch.dtype, is_masked: bool, fused_only: None
) -> None:
    config = BertScratchConfig(width=32, depth=2, heads=2, head_width=16)
    transformer = TokenTransformer(config, vocabulary=50, length=300).to(device, dtype)
    mask = torch.arange(300, device=device) < torch.tensor([[200], [300]], device=device) if is_masked else None
    transformer(torch.arange(600, device=device).reshape(2, 300) % 50, mask).float().square().mean().backward()
    assert transformer.token_embedding.weight.grad.isfinite().all()


CASES = [(name, "auto", dtype) for name in ("one head", "heads", "transformer, masked") for dtype in TOLERANCE] + [
    ("heads", "math", torch.float32)
]
SIDES = (32, 64)
LAG = 1 << 21  # bytes by which the kernel's count of a process's memory may lag; all scores of 64 x 64 would take 32 MiB and more
Peaks = dict[tuple[str, str, torch.dtype, int], int]


@pytest.fixture(scope="module")
def peaks() -> Peaks:
    """Peak memory in bytes of forward and backward, by (block, backend, dtype, side)."""
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("peak memory is only measured on Linux")
    with pytest.MonkeyPatch.context() as patch, ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        patch.setenv("MALLOC_MMAP_THRESHOLD_", "65536")  # returns freed tensors to the system at once
        return pool.submit(measured_peaks).result()


def measured_peaks() -> Peaks:
    """See `peaks`; runs in its own process."""
    torch.set_num_threads(1)
    found = {}
    for name, backend, dtype in CASES:
        for side in (SIDES[0], *SIDES):  # the first call also loads code
            block = random_block(name, side, backend).to(dtype)
            x = torch.randn(1, 64, side, side, dtype=dtype, requires_grad=True)
            gc.collect()
            Path("/proc/self/clear_refs").write_text("5")  # resets the peak
            before = memory_bytes("VmRSS")
            block(x, *condition_of(name, x)).square().sum().backward()
            found[name, backend, dtype, side] = memory_bytes("VmHWM") - before
    return found


def memory_bytes(key: str) -> int:
    """This process's memory in bytes: now (VmRSS), or its peak (VmHWM)."""
    return next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key)) * 1024


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("name", "backend", "dtype"), CASES)
def test_memory_is_linear_in_the_positions(name: str, backend: str, dtype: torch.dtype, peaks: Peaks) -> None:
    """Four times as many pixels take about four times the memory; storing all scores would take sixteen times."""
    few, many = (peaks[name, backend, dtype, side] for side in SIDES)
    assert many < 8 * max(few, LAG)
