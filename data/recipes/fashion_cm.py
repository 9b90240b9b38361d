"""Distil `fashion-cm` from `fashion-ddpm`: a consistency model of one or two steps (arXiv 2303.01469, algorithm 2).

Run `python data/recipes/fashion_cm.py --data fashion_mnist.npz --work build/fashion-cm`.

On a grid of 25 noise levels the teacher takes one DDIM step, and the image that the student sees in the noisier
state is pulled to the one it sees in the cleaner state (no gradient there), by the pseudo-Huber distance of
arXiv 2310.14189. Boundary condition and scheduler are those of latent consistency models (arXiv 2310.04378);
the student has the teacher's network and first weights, but predicts v (arXiv 2202.00512), which stays of the
size of an image at the noisiest level. Resumable, see `training.py`.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import click
import torch
import training
from diffusers import DDIMScheduler, LCMScheduler, UNet2DModel
from torch import Tensor

TEACHER = Path(__file__).resolve().parents[1] / "models" / "fashion-ddpm"
LEVELS, STRIDE = 1000, 40
SCHEDULER = LCMScheduler(
    LEVELS,
    beta_start=0.0001,
    beta_end=0.02,
    beta_schedule="linear",
    original_inference_steps=LEVELS // STRIDE,
    prediction_type="v_prediction",
    set_alpha_to_one=False,
    rescale_betas_zero_snr=False,
)


@cache
def teacher(device: str) -> tuple[UNet2DModel, DDIMScheduler]:
    """Return the teacher's network in single precision and its sampler, on the student's grid."""
    scheduler = DDIMScheduler.from_pretrained(TEACHER / "scheduler", set_alpha_to_one=False)
    scheduler.set_timesteps(LEVELS // STRIDE)
    return build().to(device).requires_grad_(False), scheduler


def build() -> UNet2DModel:
    """Return the student before its training: the teacher's network and weights."""
    return UNet2DModel.from_pretrained(TEACHER / "unet", torch_dtype=torch.float32)


def endpoint(network: UNet2DModel, x: Tensor, t: Tensor) -> Tensor:
    """Return the image `c_skip x + c_out (sqrt(abar) x - sqrt(1 - abar) v)` at the end of the path through x."""
    skip, out = (part[:, None, None, None].to(x) for part in SCHEDULER.get_scalings_for_boundary_condition_discrete(t))
    signal = SCHEDULER.alphas_cumprod.to(x.device)[t][:, None, None, None]
    with torch.autocast(x.device.type, torch.bfloat16):
        v = network(x, t).sample
    return skip * x + out * (signal.sqrt() * x - (1 - signal).sqrt() * v.float())


@torch.no_grad()
def ddim_step(x: Tensor, t: Tensor, before: Tensor) -> Tensor:
    """Return the state of the teacher one step of DDIM closer to the data, its image clipped as in its sampler."""
    network, scheduler = teacher(str(x.device))
    signals = scheduler.alphas_cumprod.to(x.device)
    here, there = (signals[level][:, None, None, None] for level in (t, before))
    with torch.autocast(x.device.type, torch.bfloat16):
        noise = network(x, t).sample.float()
    image = ((x - (1 - here).sqrt() * noise) / here.sqrt()).clamp(-1, 1)
    noise = (x - here.sqrt() * image) / (1 - here).sqrt()
    return there.sqrt() * image + (1 - there).sqrt() * noise


def loss(network: UNet2DModel, generator: torch.Generator, clean: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean squared and the pseudo-Huber distance of the two images."""
    steps = torch.randint(1, LEVELS // STRIDE + 1, (len(clean),), generator=generator)
    noise = torch.randn(clean.shape, generator=generator).to(clean.device)
    t = (steps * STRIDE - 1).to(clean.device)
    before = (t - STRIDE).clamp(min=0)
    x = SCHEDULER.add_noise(clean, noise, t)
    with torch.no_grad():
        target = endpoint(network, ddim_step(x, t, before), before)
    error = (endpoint(network, x, t) - target).square().sum((1, 2, 3))
    width = 0.00054 * clean[0].numel() ** 0.5
    return error.mean() / clean[0].numel(), ((error + width**2).sqrt() - width).mean() / clean[0].numel() ** 0.5


@click.command()
@training.options(total=200_000)
def train(**options) -> None:
    """Train the student and write WORK/pipeline, a folder with `unet` and `scheduler`."""
    network = build()
    folder = training.fit(network, loss, "fashion_mnist", **options)
    network.half().save_pretrained(folder / "unet")
    SCHEDULER.save_pretrained(folder / "scheduler")


if __name__ == "__main__":
    train()
