"""The model of emoji-styles of diffusers' parts and a plain loop: what ours is compared with, at equal data, captions and minutes.

    python benchmarks/twin.py --stage vae --minutes 10 --budget 60 --out outputs/twin      # again and again, up to the budget
    python benchmarks/twin.py --stage unet --minutes 10 --budget 120 --out outputs/twin
    python benchmarks/twin.py --stage draw --out outputs/twin && \\
        python benchmarks/compositions.py --pictures outputs/twin/pictures --name "diffusers twin"

Each call trains for some minutes, saves, and leaves; the next goes on. So both sides take turns on a machine whose speed varies. Parts:
`AutoencoderKL`, `UNet2DConditionModel` and `DPMSolverMultistepScheduler` of diffusers, `lpips`, the same MiniLM text features; bf16, fused
AdamW, averaged weights, min-SNR on v, dropped captions. It reads the same prepared pictures, flips stage one's, and has all captions of a
picture.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from typing import Any

import torch
from compositions import chosen
from diffusers import AutoencoderKL, DDPMScheduler, DPMSolverMultistepScheduler, UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm
from transformers import BertConfig, BertModel, BertTokenizer

from ldm.app.cli import run
from ldm.core.errors import UserError
from ldm.evaluation.dataset import DrawnFrom, Preprocessing, held_out_images, training_images
from ldm.pipelines.canvas import to_pil
from ldm.pretrained import fetch, minilm, vgg_lpips
from ldm.pretrained.table import TABLE

SIZE, LATENTS, TOKENS, WIDTH = 64, 4, 32, 384
VAE_BATCH, UNET_BATCH = 8, 32
VAE_RATE, UNET_RATE = 1e-3, 6e-4
PERCEPTUAL, KL = 0.5, 1e-6
EMA, DROP, GAMMA = 0.999, 0.1, 5.0
SCHEDULE = {
    "num_train_timesteps": 1000,
    "beta_schedule": "squaredcos_cap_v2",
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
}


def main() -> None:
    """One slice of a stage's training, or the pictures."""
    parser = argparse.ArgumentParser(description="A latent diffusion model of diffusers' parts.")
    parser.add_argument("--stage", choices=("vae", "unet", "draw"), required=True)
    parser.add_argument("--minutes", type=float, default=10.0, help="of training in this call (default: %(default)s)")
    parser.add_argument("--budget", type=float, default=60.0, help="minutes of training in all, for the rate's fall (default: %(default)s)")
    parser.add_argument("--data", default="data/emoji-styles", help="the prepared set (default: %(default)s)")
    parser.add_argument("--num-images", type=int, default=400, help="compositions to draw (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--out", type=Path, default=Path("outputs/twin"), help="folder of states (default: %(default)s)")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(time.time_ns() % 2**31)  # each slice has noise of its own
    if options.stage == "vae":
        train_vae(options)
    elif options.stage == "unet":
        train_unet(options)
    else:
        draw(options)


class Slice:
    """A training that goes on from call to call: modules, optimizer, average, and minutes so far."""

    def __init__(self, path: Path, module: nn.Module, rate: float, options: argparse.Namespace) -> None:
        self.path, self.module, self.rate, self.options = path, module, rate, options
        self.average = {name: tensor.clone() for name, tensor in module.state_dict().items()}
        self.optimizer = torch.optim.AdamW(module.parameters(), lr=rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
        self.minutes, self.step = 0.0, 0
        if path.is_file():
            state = torch.load(path, weights_only=True)
            module.load_state_dict(state["module"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.average, self.minutes, self.step = state["average"], state["minutes"], state["step"]

    def train(self, loss_of: Any) -> None:
        """Steps until this call's minutes or the budget are over."""
        end = min(self.minutes + self.options.minutes, self.options.budget)
        losses: list[float] = []
        with tqdm(total=round(end, 2), initial=round(self.minutes, 2), unit="min") as bar:
            while self.minutes < end:
                started = time.perf_counter()
                done = self.minutes / self.options.budget
                for group in self.optimizer.param_groups:
                    group["lr"] = self.rate * min(1, (self.step + 1) / 200) * (0.02 + 0.98 * (0.5 + 0.5 * math.cos(math.pi * done)))
                loss = loss_of()
                loss.backward()
                nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
                self.optimizer.step()
                self.optimizer.zero_grad(set_to_none=True)
                self.step += 1
                decay = min(EMA, self.step / (self.step + 10))
                for name, tensor in self.module.state_dict().items():
                    self.average[name].lerp_(tensor, 1 - decay)
                losses.append(loss.item())
                self.minutes += (time.perf_counter() - started) / 60
                bar.update(round(self.minutes, 2) - bar.n)
        content = {"module": self.module.state_dict(), "optimizer": self.optimizer.state_dict(), "average": self.average}
        torch.save(content | {"minutes": self.minutes, "step": self.step}, self.path)
        print(
            f"{self.path}: {self.minutes:.1f} minutes, {self.step} steps, mean loss of this slice {sum(losses) / max(1, len(losses)):.4f}"
        )


def pictures(options: argparse.Namespace) -> tuple[DrawnFrom, DrawnFrom]:
    how = Preprocessing(size=SIZE, channels=3, background=(255, 255, 255))
    return training_images(options.data, how), held_out_images(options.data, how, shared=True)


def vae() -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(32, 64, 128),
        layers_per_block=1,
        latent_channels=LATENTS,
        norm_num_groups=16,
        sample_size=SIZE,
    )


def unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=SIZE // 4,
        in_channels=LATENTS,
        out_channels=LATENTS,
        layers_per_block=1,
        block_out_channels=(80, 160, 160),
        norm_num_groups=16,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=WIDTH,
        attention_head_dim=(1, 5, 5),
        class_embed_type="projection",
        projection_class_embeddings_input_dim=WIDTH,
    )


def train_vae(options: argparse.Namespace) -> None:
    train, _ = pictures(options)
    images = torch.cat(list(train.batches()))
    module, lpips = vae(), vgg_lpips().to(torch.bfloat16)

    def loss_of() -> Tensor:
        batch = images[torch.randint(len(images), (VAE_BATCH,))]
        flipped = torch.rand(len(batch)) < 0.5
        batch = torch.where(flipped[:, None, None, None], batch.flip(-1), batch)
        with torch.autocast("cpu", torch.bfloat16):
            posterior = module.encode(batch).latent_dist
            found = module.decode(posterior.sample()).sample
        perceptual = lpips(found.to(torch.bfloat16), batch.to(torch.bfloat16)).float().mean()
        return (found.float() - batch).abs().mean() + PERCEPTUAL * perceptual + KL * posterior.kl().float().mean()

    Slice(options.out / "vae.pt", module, VAE_RATE, options).train(loss_of)


def averaged(path: Path, module: nn.Module) -> nn.Module:
    if not path.is_file():
        raise UserError(f"{path} is not there: train that stage first")
    module.load_state_dict(torch.load(path, weights_only=True)["average"])
    return module.eval().requires_grad_(False)


@torch.no_grad()
def text_features(captions: list[str]) -> tuple[Tensor, Tensor]:
    """(N, TOKENS, WIDTH) and where they are, (N, TOKENS)."""
    network = BertModel(BertConfig.from_dict(dict(TABLE["minilm-l6"].architecture)), add_pooling_layer=False).eval()
    network.load_state_dict(minilm()[0].state_dict())
    tokenizer = BertTokenizer(vocab=str(fetch("bert-tokenizer")), do_lower_case=True)
    features, masks = [], []
    for first in tqdm(range(0, len(captions), 128), desc="captions", unit="batch"):
        tokens = tokenizer(captions[first : first + 128], padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt")
        features.append(network(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]).last_hidden_state.half())
        masks.append(tokens["attention_mask"].bool())
    return torch.cat(features), torch.cat(masks)


@torch.no_grad()
def prepared(options: argparse.Namespace) -> dict[str, Any]:
    """Latents of all training pictures, features of all their captions; made once for a first stage."""
    path, stage = options.out / "cache.pt", averaged(options.out / "vae.pt", vae())
    steps = torch.load(options.out / "vae.pt", weights_only=True)["step"]
    if path.is_file():
        found: dict[str, Any] = torch.load(path, weights_only=True)
        if found["vae_steps"] != steps:
            raise UserError(f"{path} is of the first stage after {found['vae_steps']} steps, which has {steps} now: remove it and unet.pt")
        return found
    train, _ = pictures(options)
    means, stds = [], []
    for images in tqdm(train.batches(), desc="latents", unit="batch"):
        posterior = stage.encode(images).latent_dist
        means.append(posterior.mean)
        stds.append(posterior.std)
    mean, std = torch.cat(means), torch.cat(stds)
    captions = [found for _, found in train.data.source.captions()]
    texts = sorted({text for known in captions for text in known} | {""})
    features, masks = text_features(texts)
    place = {text: number for number, text in enumerate(texts)}
    found = {
        "mean": mean,
        "std": std,
        "shift": mean.mean((0, 2, 3)),
        "scale": (mean.var((0, 2, 3)) + std.square().mean((0, 2, 3))).sqrt(),
        "captions": [[place[text] for text in known] for known in captions],
        "empty": place[""],
        "vae_steps": steps,
        "features": features,
        "masks": masks,
        "text_std": features[masks].float().std(),
    }
    torch.save(found, path)
    return found


def called(module: nn.Module, x: Tensor, t: Tensor, features: Tensor, masks: Tensor) -> Tensor:
    pooled = (features * masks[..., None]).sum(1) / masks.sum(1, keepdim=True)
    pooled = pooled / pooled.std(-1, keepdim=True)
    with torch.autocast("cpu", torch.bfloat16):
        found: Tensor = module(x, t, encoder_hidden_states=features, encoder_attention_mask=masks, class_labels=pooled, return_dict=False)[
            0
        ]
    return found.float()


def train_unet(options: argparse.Namespace) -> None:
    known = prepared(options)
    alphas = DDPMScheduler(**SCHEDULE).alphas_cumprod
    snr = alphas / (1 - alphas)
    weights = (snr.clamp(max=GAMMA) + 1) / (snr + 1)  # min-SNR, floored where it would vanish: at the noisy end of v
    shift, scale = (known[name].reshape(1, -1, 1, 1) for name in ("shift", "scale"))
    module = unet()

    def loss_of() -> Tensor:
        rows = torch.randint(len(known["mean"]), (UNET_BATCH,))
        texts = [known["captions"][row][int(torch.randint(len(known["captions"][row]), ()))] for row in rows.tolist()]
        places = torch.where(torch.rand(UNET_BATCH) < DROP, known["empty"], torch.tensor(texts))
        latent = (known["mean"][rows] + known["std"][rows] * torch.randn_like(known["std"][rows]) - shift) / scale
        t = ((torch.randperm(UNET_BATCH) + torch.rand(UNET_BATCH)) / UNET_BATCH * 1000).long()
        noise = torch.randn_like(latent)
        alpha, sigma = (share.sqrt().reshape(-1, 1, 1, 1) for share in (alphas[t], 1 - alphas[t]))
        features = known["features"][places].float() / known["text_std"]
        found = called(module, alpha * latent + sigma * noise, t, features, known["masks"][places])
        return (F.mse_loss(found, alpha * noise - sigma * latent, reduction="none").mean((1, 2, 3)) * weights[t]).mean()

    Slice(options.out / "unet.pt", module, UNET_RATE, options).train(loss_of)


@torch.no_grad()
def draw(options: argparse.Namespace) -> None:
    known = prepared(options)
    stage, module = averaged(options.out / "vae.pt", vae()), averaged(options.out / "unet.pt", unet())
    asked = chosen(pictures(options)[1], options.num_images)
    features, masks = text_features([*(one.caption for one in asked), ""])
    features = features.float() / known["text_std"]
    folder = options.out / "pictures"
    folder.mkdir(exist_ok=True)
    shift, scale = (known[name].reshape(1, -1, 1, 1) for name in ("shift", "scale"))
    random = torch.Generator().manual_seed(0)
    for first in tqdm(range(0, len(asked), UNET_BATCH), desc="drawing", unit="batch"):
        some = range(first, min(first + UNET_BATCH, len(asked)))
        rows = torch.tensor([*some, *[len(asked)] * len(some)])
        scheduler = DPMSolverMultistepScheduler(**SCHEDULE, algorithm_type="dpmsolver++", solver_order=2)
        scheduler.set_timesteps(options.steps)
        x = torch.randn(len(some), LATENTS, SIZE // 4, SIZE // 4, generator=random)
        for t in scheduler.timesteps:
            wanted, unwanted = called(module, torch.cat([x, x]), t, features[rows], masks[rows]).chunk(2)
            x = scheduler.step(unwanted + options.guidance * (wanted - unwanted), t, x).prev_sample
        for number, image in zip(some, to_pil(stage.decode(x * scale + shift).sample.float().clamp(-1, 1)), strict=True):
            image.save(folder / f"{asked[number].key}.png")
    print(f"{len(asked)} pictures in {folder}")


if __name__ == "__main__":
    run(lambda _: main())
