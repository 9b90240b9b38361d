"""Train `cifar10-ddpm-large`: the network of `cifar10-ddpm` wider and deeper, on a GPU.

Run `python data/recipes/cifar10_ddpm_large.py --data FOLDER --work build/cifar10-ddpm-large --device cuda`.

Half the widths of the CIFAR-10 network of Ho et al., *Denoising Diffusion Probabilistic Models* (arXiv 2006.11239),
with three levels; loss, data and schedule are those of `cifar10_ddpm.py`, batch 256.
"""

from __future__ import annotations

import click
import training
from cifar10_ddpm import NULL, loss
from diffusers import DDPMPipeline, UNet2DModel

BATCH = 256


def build() -> UNet2DModel:
    """Return the untrained network."""
    widths = (64, 112, 128)
    return training.unet(widths, size=32, channels=3, attention=2, layers_per_block=2, null=NULL)


@click.command()
@training.options(total=6_000_000)
def train(**options) -> None:
    """Train the network and write a diffusers pipeline folder to WORK/pipeline."""
    network = build()
    folder = training.fit(network, loss, "cifar10", batch=BATCH, **options)
    DDPMPipeline(network.half().cpu(), training.SCHEDULER).save_pretrained(folder)


if __name__ == "__main__":
    train()
