"""Train `fashion-ddpm`: an unconditional noise-prediction UNet on Fashion-MNIST.

Run `python data/recipes/fashion_ddpm.py --data fashion_mnist.npz --work build/fashion-ddpm`.

Linear betas, T = 1000, min-SNR-5 weighted noise loss (arXiv 2303.09556), bfloat16 products; resumable, see
`training.py`. `--start FOLDER` trains a finished pipeline further, with a fresh optimizer.
"""

from __future__ import annotations

import click
import training
from diffusers import DDPMPipeline, UNet2DModel


def build() -> UNet2DModel:
    """Return the untrained network."""
    return training.unet((16, 48, 96))


@click.command()
@training.options(total=272_000)
@training.start
def train(**options) -> None:
    """Train the network and write a diffusers pipeline folder to WORK/pipeline."""
    network = build()
    folder = training.fit(network, training.noise_loss(), "fashion_mnist", **options)
    DDPMPipeline(network.half(), training.SCHEDULER).save_pretrained(folder)


if __name__ == "__main__":
    train()
