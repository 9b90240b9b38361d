"""Train `cifar10-ddpm`: a class-conditional noise-prediction UNet on CIFAR-10.

Run `python data/recipes/cifar10_ddpm.py --data FOLDER --work build/cifar10-ddpm`; the folder holds the parquet files.

Linear betas, T = 1000, min-SNR-5 weighted noise loss (arXiv 2303.09556), one image in two mirrored left to right,
one label in ten replaced by the null class, bfloat16 products; resumable, see `training.py`.
"""

from __future__ import annotations

import click
import torch
import training
from diffusers import DDPMPipeline, UNet2DModel

NULL = 10


def build() -> UNet2DModel:
    """Return the untrained network."""
    return training.unet((32, 64, 128), size=32, channels=3, null=NULL)


def loss(
    network: UNet2DModel, generator: torch.Generator, clean: torch.Tensor, labels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the loss of noise prediction on images of which half are mirrored."""
    mirrored = torch.rand(len(clean), generator=generator, device=clean.device)[:, None, None, None] < 0.5
    return training.noise_loss(NULL)(network, generator, torch.where(mirrored, clean.flip(3), clean), labels)


@click.command()
@training.options(total=800_000)
@training.start
def train(**options) -> None:
    """Train the network and write a diffusers pipeline folder to WORK/pipeline."""
    network = build()
    folder = training.fit(network, loss, "cifar10", **options)
    DDPMPipeline(network.half(), training.SCHEDULER).save_pretrained(folder)


if __name__ == "__main__":
    train()
