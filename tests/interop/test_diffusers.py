"""diffusers' folders: from the same noise its pipelines give our images, and so does the exported program for models without pipeline."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import diffusers
import pytest
import torch
from interop_rows import CROSS, KL, KL_4, MANY, ROWS, SIZE, Row, stable, write_clip, write_row
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.testing import assert_close

from ldm.checkpoints.folder import Checkpoint
from ldm.checkpoints.model import LatentDiffusionSpec, load_first_stage, load_latent_diffusion
from ldm.conditioning.bert_scratch import BertScratchConfig
from ldm.conditioning.inpaint_mask import MaskedImages
from ldm.conditioning.inputs import ConditionInputs
from ldm.core.condition import Condition
from ldm.core.errors import UserError
from ldm.diffusion.denoiser import Denoiser
from ldm.diffusion.grid import Leading
from ldm.diffusion.processes.discrete_vp import DiscreteVP
from ldm.first_stage.vq import VQAutoencoderConfig
from ldm.guidance.classifier_free import classifier_free
from ldm.interop.compvis.export import export_compvis
from ldm.interop.diffusers.export import export_diffusers
from ldm.interop.diffusers.scheduler import read_scheduler, scheduler_json
from ldm.interop.importing import import_checkpoint
from ldm.interop.ours import Ours
from ldm.samplers.ddim import DDIM

pytestmark = pytest.mark.parity
CPU = torch.device("cpu")
STEPS, GUIDANCE, TOLERANCE = 10, 3.0, 1e-3
PROMPT = "a cat"
LDM_TEXT = Row(
    unet=CROSS,
    conditioning={"text": BertScratchConfig(width=24, depth=1, heads=2, head_width=8, max_tokens=77, is_masked=False)},
    first_stage=replace(KL_4, multipliers=(1, 1, 1, 1)),
)
MASKED_TEXT = replace(ROWS["text"], conditioning={"text": BertScratchConfig(width=24, depth=1, heads=2, head_width=8, max_tokens=9)})
NOT_MEASURED = {"shift": (0.3, -0.2, 0.1), "scale": (1.2, 0.7, 1.0)}


@pytest.fixture(scope="module")
def exported(module_folder: Path) -> Callable[..., tuple[Path, Path, tuple[str, ...]]]:
    """By name: a tiny model of ours, its export, and the export's notes; read-only."""
    made: dict[str, tuple[Path, Path, tuple[str, ...]]] = {}

    def make(name: str) -> tuple[Path, Path, tuple[str, ...]]:
        if name not in made:
            if name.startswith("sd"):
                encoder = module_folder / f"clip-{name[2]}"
                if not encoder.exists():
                    write_clip(encoder, is_open=name[2] == "2")
                row = stable(encoder, version=int(name[2]), has_mask="mask" in name)
            else:
                row = {**ROWS, "ldm text": LDM_TEXT, "many": MANY, "masked text": MASKED_TEXT}[name]
                if row.conditioning and isinstance(
                    row.first_stage, VQAutoencoderConfig
                ):  # with few codes decoding would hide differences of the denoiser
                    row = replace(row, first_stage=KL)
            size = 64 if name == "ldm text" else SIZE
            ours = write_row(module_folder / name.replace(" ", "-"), row, size)
            out = module_folder / f"{ours.name}-diffusers"
            made[name] = ours, out, export_diffusers(Ours.open(ours), out)
        return made[name]

    return make


def noise(ours: Path) -> Tensor:
    spec = Checkpoint.open(ours).spec(LatentDiffusionSpec)
    side = spec.size // spec.first_stage.downsampling_factor
    return torch.randn(1, spec.first_stage.latent_channels, side, side, generator=torch.Generator().manual_seed(3))


@torch.no_grad()
def our_image(ours: Path, cond: ConditionInputs, uncond: ConditionInputs | None = None, guidance: float = GUIDANCE) -> Tensor:
    """(1, C, size, size) in [-1, 1]."""
    parts = load_latent_diffusion(ours, CPU)
    spec, x = parts.spec, noise(ours)
    denoiser = Denoiser(network=parts.network, process=spec.process, prediction=spec.prediction)
    conditions: list[Condition] = [parts.conditioners(inputs, x.shape[2:]) for inputs in (cond, uncond or ConditionInputs(count=1))]
    denoise = classifier_free(denoiser, *conditions, guidance)
    times = Leading(offset=1).times(spec.process, STEPS)
    return parts.first_stage.decode(DDIM().sample(denoise, x, times, spec.process, lambda *_: torch.zeros_like(x)))


def near(ours: Tensor, theirs: Tensor) -> None:
    """Compares images: ours in [-1, 1], theirs in [0, 1], as pipelines return them."""
    assert theirs.std() > 0.02, "the image is flat"
    assert_close((ours / 2 + 0.5).clamp(0, 1), theirs, rtol=0, atol=TOLERANCE)


def opened(folder: Path) -> diffusers.DiffusionPipeline:
    pipeline = diffusers.DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_unconditional(exported):
    ours, folder, notes = exported("faces")
    pipeline = opened(folder)
    assert type(pipeline).__name__ == "LDMPipeline" and "opens as diffusers' LDMPipeline" in notes[0]
    draw = torch.Generator().manual_seed(3)
    theirs = pipeline(generator=draw, num_inference_steps=STEPS, output_type="np").images
    near(our_image(ours, ConditionInputs(count=1), guidance=1.0), torch.from_numpy(theirs).permute(0, 3, 1, 2))


def test_super_resolution(exported):
    ours, folder, _ = exported("small")
    small = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(4)) * 2 - 1
    pipeline = opened(folder)
    assert type(pipeline).__name__ == "LDMSuperResolutionPipeline"
    theirs = pipeline(small, num_inference_steps=STEPS, generator=torch.Generator().manual_seed(3), output_type="pt").images
    near(our_image(ours, ConditionInputs(count=1, values={"small": small}), guidance=1.0), theirs)


def test_text_by_ldms_bert(exported):
    """Text encoder, its projection, guidance and first stage."""
    ours, folder, _ = exported("ldm text")
    pipeline = opened(folder)
    assert type(pipeline).__name__ == "LDMTextToImagePipeline"
    theirs = pipeline(PROMPT, num_inference_steps=STEPS, guidance_scale=GUIDANCE, latents=noise(ours), output_type="pt").images
    near(our_image(ours, ConditionInputs(count=1, values={"text": (PROMPT,)})), theirs)


@pytest.mark.parametrize("name", ["sd1", "sd2"])
def test_stable_diffusion(name: str, exported):
    ours, folder, _ = exported(name)
    pipeline = opened(folder)
    assert type(pipeline).__name__ == "StableDiffusionPipeline"
    assert pipeline.unet.config.use_linear_projection == (name == "sd2")  # as the published ones
    options = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "latents": noise(ours), "output_type": "pt"}
    theirs = pipeline(PROMPT, **options, height=SIZE, width=SIZE).images
    near(our_image(ours, ConditionInputs(count=1, values={"text": (PROMPT,)})), theirs)


def image_with_a_hole() -> tuple[Tensor, Tensor]:
    hole = torch.zeros(1, 1, SIZE, SIZE)
    hole[:, :, 4:10, 6:12] = 1
    return torch.rand(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(4)) * 2 - 1, hole


def test_stable_diffusion_inpainting(exported):
    ours, folder, _ = exported("sd1 mask")
    image, hole = image_with_a_hole()
    masked = load_latent_diffusion(ours, CPU).first_stage.encode(image * (1 - hole)).detach()
    pipeline = opened(folder)
    assert type(pipeline).__name__ == "StableDiffusionInpaintPipeline"
    theirs = pipeline(
        PROMPT, image=image, mask_image=hole, masked_image_latents=masked, num_inference_steps=STEPS, guidance_scale=GUIDANCE,
        latents=noise(ours), output_type="pt", height=SIZE, width=SIZE,
    ).images  # fmt: skip
    uncond = ConditionInputs(count=1, values={"mask": MaskedImages(hole, masked)})
    near(our_image(ours, uncond.beside({"text": (PROMPT,)}), uncond), theirs)


def test_four_channels_inpaint_in_diffusers_too(exported):
    """A text model without a mask opens in the inpainting pipeline, which then restores the known pixels itself."""
    pipeline = diffusers.StableDiffusionInpaintPipeline.from_pretrained(exported("sd1")[1])
    pipeline.set_progress_bar_config(disable=True)
    image, hole = image_with_a_hole()
    options = {"num_inference_steps": 2, "output_type": "pt", "generator": torch.Generator().manual_seed(3)}
    theirs = pipeline(PROMPT, image=image, mask_image=hole, height=SIZE, width=SIZE, **options).images
    assert theirs.shape == (1, 3, SIZE, SIZE) and theirs.std() > 0.02


def program(folder: Path):
    """load.py, imported."""
    place = importlib.util.spec_from_file_location("load", folder / "load.py")
    assert place is not None and place.loader is not None
    module = importlib.util.module_from_spec(place)
    place.loader.exec_module(module)
    return module


PARTS: dict[str, tuple[dict, dict]] = {
    "churches": ({}, {}),
    "text": ({"prompt": PROMPT}, {"text": (PROMPT,)}),
    "class": ({"label": 2}, {"class": torch.tensor([2])}),
    "map": ({"classes": torch.arange(256).reshape(16, 16) % 5}, {"map": torch.arange(256).reshape(1, 16, 16) % 5}),
    "boxes": ({"boxes": [(7, 0.1, 0.2, 0.8, 1.0)]}, {"boxes": torch.tensor([[[7, 0.1, 0.2, 0.8, 1.0]]])}),
    "masked text": ({"prompt": PROMPT}, {"text": (PROMPT,)}),
}


@pytest.mark.parametrize("name", PARTS)
def test_parts_are_sampled_by_the_exported_program(name: str, exported):
    ours, folder, notes = exported(name)
    assert "no pipeline of diffusers runs it" in notes[0] and not (folder / "model_index.json").exists()
    theirs, mine = PARTS[name]
    loaded = program(folder)
    image = loaded.sample(loaded.condition(**theirs), noise(ours), steps=STEPS, guidance=GUIDANCE)
    near(our_image(ours, ConditionInputs(count=1, values=mine)), (image / 2 + 0.5).clamp(0, 1))


def test_a_model_conditioned_on_everything_is_sampled_by_the_exported_program(exported):
    ours, folder, _ = exported("many")
    image, hole = image_with_a_hole()
    classes = torch.arange(256).reshape(16, 16) % 6 - 1
    first_stage = load_latent_diffusion(ours, CPU).first_stage
    uncond = ConditionInputs(count=1, values={"mask": MaskedImages(hole, first_stage.encode(image * (1 - hole)).detach())})
    cond = uncond.beside({"text": (PROMPT,), "class": torch.tensor([1]), "map": classes[None]})
    loaded = program(folder)
    condition = loaded.condition(prompt=PROMPT, label=1, image=image, hole=hole, classes=classes)
    theirs = loaded.sample(condition, noise(ours), steps=STEPS, guidance=GUIDANCE)
    near(our_image(ours, cond, uncond), (theirs / 2 + 0.5).clamp(0, 1))


def test_a_model_conditioned_on_black_holes_is_sampled_by_the_exported_program(exported):
    """As inpainting-big: a mask of -1 and 1 after the latent, heads of two widths."""
    ours, folder, notes = exported("inpainting")
    assert "heads are of several widths" in notes[0]
    image, hole = image_with_a_hole()
    masked = load_latent_diffusion(ours, CPU).first_stage.encode(image.masked_fill(hole > 0, -1)).detach()
    loaded = program(folder)
    theirs = loaded.sample(loaded.condition(image=image, hole=hole), noise(ours), steps=STEPS, guidance=1.0)
    cond = ConditionInputs(count=1, values={"mask": MaskedImages(hole, masked)})
    near(our_image(ours, cond, cond, guidance=1.0), (theirs / 2 + 0.5).clamp(0, 1))


@pytest.mark.parametrize("name", ["faces", "small", "ldm text", "sd1", "sd1 mask"])
def test_export_and_import_are_exact(name: str, exported, tmp_path: Path):
    ours, folder, _ = exported(name)
    encoder = str(ours.parent / "clip-1") if name.startswith("sd") else None
    import_checkpoint(folder, tmp_path / "again", text_encoder=encoder)
    one, other = (Checkpoint.open(path) for path in (ours, tmp_path / "again"))
    for part in ("first_stage", "denoiser", "conditioner"):
        if one.has(part):
            assert_close(other.tensors(part), one.tensors(part), rtol=0, atol=0)
    mine, theirs = (opened_.spec(LatentDiffusionSpec) for opened_ in (one, other))
    assert mine.conditioning == theirs.conditioning and mine.frozen == theirs.frozen
    for key in ("size", "first_stage", "normalization", "denoiser", "process", "prediction"):
        assert getattr(mine, key) == getattr(theirs, key), key
    assert theirs.sampling.sampler == DDIM() and theirs.sampling.grid == Leading(offset=1)


def test_a_text_encoder_of_diffusers_is_written_beside(exported, tmp_path: Path):
    """With its own tokenizer. Version 2's is exported without its last layer, and gets a layer of zeros in a single file; features stay."""
    ours, folder, _ = exported("sd2")
    notes = import_checkpoint(folder, tmp_path / "again")
    assert any("again-text-encoder" in note for note in notes)
    export_compvis(Ours.open(tmp_path / "again"), tmp_path / "file.safetensors")
    import_checkpoint(
        tmp_path / "file.safetensors", tmp_path / "third", config=tmp_path / "file.yaml", text_encoder=str(ours.parent / "clip-2")
    )
    features = [
        next(iter(load_latent_diffusion(path, CPU).conditioners)).frozen.features((PROMPT,))[0]
        for path in (ours, tmp_path / "again", tmp_path / "third")
    ]
    assert_close(features[1], features[0], rtol=0, atol=1e-5)
    assert_close(features[2], features[0], rtol=0, atol=1e-5)


def test_a_measured_shift_and_scale_become_the_autoencoders(tmp_path: Path):
    """Peers have one scale: the rest goes into the convolutions beside the latent, and the images stay the same."""
    rows = (
        replace(ROWS["small"], first_stage=KL, normalization=NOT_MEASURED),
        replace(ROWS["faces"], normalization={"shift": (0.3,), "scale": (0.7,)}),
    )
    for number, row in enumerate(rows):
        ours = write_row(tmp_path / f"model-{number}", replace(row, conditioning={}))
        notes = export_diffusers(Ours.open(ours), tmp_path / f"diffusers-{number}")
        assert any("one scale only" in note for note in notes)
        draw = torch.Generator().manual_seed(3)
        theirs = opened(tmp_path / f"diffusers-{number}")(generator=draw, num_inference_steps=STEPS, output_type="np").images
        near(our_image(ours, ConditionInputs(count=1), guidance=1.0), torch.from_numpy(theirs).permute(0, 3, 1, 2))

        import_checkpoint(tmp_path / f"diffusers-{number}", tmp_path / "again")
        image = torch.rand(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(4))
        one, other = (load_first_stage(path, CPU)[0] for path in (ours, tmp_path / "again"))
        assert_close(other.encode(image), one.encode(image), rtol=1e-4, atol=1e-4)
        drawn = [first_stage.encode(image, noise(ours)) for first_stage in (one, other)]
        assert_close(drawn[1], drawn[0], rtol=1e-4, atol=1e-4)


def test_a_scale_per_channel_of_a_codebook_is_refused(tmp_path: Path):
    ours = write_row(tmp_path / "model", replace(ROWS["faces"], normalization=NOT_MEASURED))
    with pytest.raises(UserError, match="other codes would be nearest"):
        export_diffusers(Ours.open(ours), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_autoencoder_by_itself_with_its_old_names(exported, tmp_path: Path):
    ours, folder, _ = exported("sd1")
    shutil.copytree(folder / "vae", tmp_path / "vae")
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = load_file(folder / "vae" / "diffusion_pytorch_model.safetensors")
    renamed = {}
    for key, tensor in tensors.items():
        module, _, _ = key.partition(".attentions.0.")[2].rpartition(".")
        renamed[key.replace(module, old[module]) if module in old else key] = tensor
    assert renamed.keys() != tensors.keys()
    save_file(renamed, tmp_path / "vae" / "diffusion_pytorch_model.safetensors")
    import_checkpoint(tmp_path / "vae", tmp_path / "again")
    assert_close(load_first_stage(tmp_path / "again", CPU)[2], load_first_stage(ours, CPU)[2], rtol=0, atol=0)


def test_pieces_of_one_part(exported, tmp_path: Path):
    """Weights in several files, as large models have them; an index that names a file elsewhere is refused."""
    ours, folder, _ = exported("faces")
    shutil.copytree(folder, tmp_path / "folder")
    whole = tmp_path / "folder" / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(whole)
    whole.unlink()
    half = len(tensors) // 2
    names = {key: f"piece-{number // half}.safetensors" for number, key in enumerate(tensors)}
    for piece in set(names.values()):
        save_file({key: tensors[key].clone() for key in tensors if names[key] == piece}, whole.with_name(piece))
    index = whole.with_name(f"{whole.name}.index.json")
    index.write_text(json.dumps({"weight_map": names}))
    import_checkpoint(tmp_path / "folder", tmp_path / "again")
    assert_close(Checkpoint.open(tmp_path / "again").tensors("denoiser"), Checkpoint.open(ours).tensors("denoiser"), rtol=0, atol=0)
    index.write_text(json.dumps({"weight_map": {"a": "../../elsewhere.safetensors"}}))
    with pytest.raises(UserError, match="must name files beside it"):
        import_checkpoint(tmp_path / "folder", tmp_path / "again")


@pytest.mark.parametrize(
    "part, change, message",
    [
        ("model_index.json", {"_class_name": "StableDiffusionXLPipeline"}, "unknown pipeline of .* Did you mean 'StableDiffusion"),
        ("scheduler/scheduler_config.json", {"_class_name": "EDMEulerScheduler"}, "unknown scheduler"),
        ("scheduler/scheduler_config.json", {"trained_betas": [0.1]}, "sets trained_betas"),
        ("scheduler/scheduler_config.json", {"variance_type": "learned_range"}, "'learned_range' is not allowed"),
        ("unet/config.json", {"in_channels": 7}, "has shape .* the config requires"),
        ("vqvae/config.json", {"norm_type": "spatial"}, "'spatial' is not allowed"),
    ],
)
def test_a_folder_without_counterpart_is_refused(part: str, change: dict, message: str, exported, tmp_path: Path):
    shutil.copytree(exported("faces")[1], tmp_path / "folder")
    config = tmp_path / "folder" / part
    config.write_text(json.dumps(json.loads(config.read_text()) | change))
    with pytest.raises(UserError, match=message) as caught:
        import_checkpoint(tmp_path / "folder", tmp_path / "again")
    assert "\n" not in str(caught.value) and not (tmp_path / "again").exists()


def test_schedulers_are_exported_and_imported(exported):
    spec = Checkpoint.open(exported("sd2")[0]).spec(LatentDiffusionSpec)
    for name in ("ddim", "ddpm", "pndm", "euler", "euler_ancestral", "heun", "dpmpp_2m", "dpmpp_2m_sde", "unipc"):
        sampling = replace(spec.sampling, sampler=type(spec.sampling.sampler).of_kind(name)())
        written, left_out = scheduler_json(spec.process, spec.prediction, sampling)
        assert not left_out and hasattr(diffusers, written["_class_name"])
        getattr(diffusers, written["_class_name"]).from_config(written).set_timesteps(5)
        read = read_scheduler(written, "scheduler")
        assert (read.process, read.prediction, read.sampler.kind, read.grid) == (spec.process, spec.prediction, name, Leading(offset=1))
        assert not read.notes
    written, left_out = scheduler_json(replace(spec.process, zero_terminal_snr=True), spec.prediction, sampling)
    assert written["rescale_betas_zero_snr"] is True and "unipc is left out" in left_out[0]
    assert read_scheduler(written, "scheduler").process.zero_terminal_snr


@pytest.mark.parametrize(
    "theirs, kind, message",
    [
        ({"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "sde-dpmsolver++"}, "dpmpp_2m_sde", None),
        ({"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "dpmsolver"}, "dpmpp_2m", "takes the place of dpmsolver:"),
        ({"_class_name": "LMSDiscreteScheduler"}, "pndm", "takes the place of LMSDiscreteScheduler:"),
    ],
)
def test_a_scheduler_that_is_replaced_is_named(theirs: dict, kind: str, message: str | None, exported, tmp_path: Path):
    """Each setting of a solver has its own sampler; where ours is a different one, a note says so."""
    read = read_scheduler(theirs, "scheduler")
    assert read.sampler.kind == kind and len(read.notes) == (message is not None)
    shutil.copytree(exported("faces")[1], tmp_path / "folder")
    (tmp_path / "folder" / "scheduler" / "scheduler_config.json").write_text(json.dumps(theirs))
    notes = import_checkpoint(tmp_path / "folder", tmp_path / "again")
    assert Checkpoint.open(tmp_path / "again").spec(LatentDiffusionSpec).sampling.sampler.kind == kind
    assert message is None or [message in note for note in notes].count(True) == 1
    with pytest.raises(UserError, match="unknown algorithm_type of scheduler"):
        read_scheduler({"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "other"}, "scheduler")


def test_a_scheduler_of_2022():
    """Its number of steps had a shorter name, and it named the kind of arrays."""
    old = {"_class_name": "DDIMScheduler", "_diffusers_version": "0.1.3", "beta_end": 0.0195, "beta_schedule": "scaled_linear"}
    old |= {"beta_start": 0.0015, "clip_sample": False, "timesteps": 500, "tensor_format": "pt", "timestep_values": None}
    read = read_scheduler(old | {"trained_betas": None}, "scheduler")
    assert read.process == DiscreteVP(num_steps=500, beta_first=0.0015, beta_last=0.0195) and not read.notes
    for more in ({"num_train_timesteps": 1000}, {"timestep_values": [1, 2]}):
        with pytest.raises(UserError, match="which has no counterpart here"):
            read_scheduler(old | more, "scheduler")
