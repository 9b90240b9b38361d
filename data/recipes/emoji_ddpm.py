"""Train `emoji-ddpm`: an unconditional noise-prediction UNet on the pictures of Noto Color Emoji at 32 pixels.

Run `python data/recipes/emoji_ddpm.py --data noto_emoji64.npz --work build/emoji-ddpm`; the file holds `images`, uint8
`(N, 64, 64, 3)` on white, which have no labels.

Linear betas, T = 1000, min-SNR-5 weighted noise loss (arXiv 2303.09556), in float32, since most CPUs are slow in
bfloat16; resumable, see `training.py`.
"""

from __future__ import annotations

import click
import torch
import training
from diffusers import DDPMPipeline, UNet2DModel


def build(attention: int = 2, seed: int = training.SEED) -> UNet2DModel:
    """Return the untrained network, with attention at the coarsest `attention` of its levels."""
    return training.unet((16, 48, 96, 64), size=32, channels=3, attention=attention, seed=seed)


@click.command()
@training.options(total=352_000)
def train(**options) -> None:
    """Train the network and write a diffusers pipeline folder to WORK/pipeline."""
    network = build()
    loss = training.noise_loss(precision=torch.float32)
    folder = training.fit(network, loss, "emoji", validation=slice(256), **options)
    DDPMPipeline(network.half(), training.SCHEDULER).save_pretrained(folder)


if __name__ == "__main__":
    train()
