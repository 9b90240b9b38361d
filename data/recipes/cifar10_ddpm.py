"""Train `cifar10-ddpm`: a class-conditional noise-prediction UNet on CIFAR-10.

Run `python data/recipes/cifar10_ddpm.py --data FOLDER --work build/cifar10-ddpm --device cuda`; the folder holds the
parquet files.

Half the widths of the CIFAR-10 network of Ho et al., *Denoising Diffusion Probabilistic Models* (arXiv 2006.11239),
with three levels. Linear betas, T = 1000, min-SNR-5 weighted noise loss (arXiv 2303.09556), one image in two mirrored
left to right, one label in ten replaced by the null class, bfloat16 products; resumable, see `training.py`.
"""

from __future__ import annotations

import click
import torch
import training
from diffusers import DDPMPipeline, UNet2DModel

NULL, BATCH = 10, 256


def build() -> UNet2DModel:
    """Return the untrained network."""
    widths = (64, 112, 128)
    return training.unet(widths, size=32, channels=3, attention=2, layers_per_block=2, null=NULL)


def loss(
    network: UNet2DModel, generator: torch.Generator, clean: torch.Tensor, labels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the loss of noise prediction on images of which half are mirrored."""
    mirrored = torch.rand(len(clean), generator=generator, device=clean.device)[:, None, None, None] < 0.5
    return training.noise_loss(NULL)(network, generator, torch.where(mirrored, clean.flip(3), clean), labels)


@click.command()
@training.options(total=2_432_000)
def train(**options) -> None:
    """Train the network and write a diffusers pipeline folder to WORK/pipeline."""
    network = build()
    folder = training.fit(network, loss, "cifar10", batch=BATCH, **options)
    DDPMPipeline(network.half().cpu(), training.SCHEDULER).save_pretrained(folder)


if __name__ == "__main__":
    train()
