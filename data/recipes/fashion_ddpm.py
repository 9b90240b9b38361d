"""Train `fashion-ddpm`: an unconditional noise-prediction UNet on Fashion-MNIST.

Run `python data/recipes/fashion_ddpm.py --data fashion_mnist.npz --work build/fashion-ddpm`.

Linear betas, T = 1000, min-SNR-5 weighted noise loss (arXiv 2303.09556), bfloat16 products; resumable, see
`training.py`. `--start FOLDER` trains a finished pipeline further, with a fresh optimizer.
"""

from __future__ import annotations

import click
import torch
import training
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from diffusers.training_utils import compute_snr

SCHEDULER = DDPMScheduler(1000)


def build() -> UNet2DModel:
    """Return the untrained network."""
    return training.unet((16, 48, 96))


def loss(
    network: UNet2DModel, generator: torch.Generator, clean: torch.Tensor, _: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the plain and the min-SNR-5 weighted mean squared error of the predicted noise."""
    steps = torch.randint(0, len(SCHEDULER), (len(clean),), generator=generator)
    noise = torch.randn(clean.shape, generator=generator)
    steps, noise = steps.to(clean.device), noise.to(clean.device)
    with torch.autocast(clean.device.type, torch.bfloat16):
        predicted = network(SCHEDULER.add_noise(clean, noise, steps), steps).sample
    error = (predicted.float() - noise).square().mean((1, 2, 3))
    snr = compute_snr(SCHEDULER, steps)
    return error.mean(), (error * snr.clamp(max=5) / snr).mean()


@click.command()
@training.options(total=272_000)
@training.start
def train(**options) -> None:
    """Train the network and write a diffusers pipeline folder to WORK/pipeline."""
    network = build()
    folder = training.fit(network, loss, "fashion_mnist", **options)
    DDPMPipeline(network.half(), SCHEDULER).save_pretrained(folder)


if __name__ == "__main__":
    train()
