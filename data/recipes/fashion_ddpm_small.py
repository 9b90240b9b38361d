"""Train `fashion-ddpm-small`: the network of `fashion-ddpm` narrower, from any seed, as long or as short as asked.

Run `python data/recipes/fashion_ddpm_small.py --data fashion_mnist.npz --work build/small-1 --seed 1`. The seed draws
the first weights and the batches: two seeds share nothing but the data. Batch 128; see `fashion_ddpm.py`.
"""

from __future__ import annotations

import click
import training
from diffusers import DDPMPipeline, UNet2DModel

BATCH = 128


def build(seed: int) -> UNet2DModel:
    """Return the untrained network."""
    return training.unet((16, 40, 80), seed=seed)


@click.command()
@training.options(total=600_000)
@click.option("--seed", default=training.SEED)
def train(seed: int, **options) -> None:
    """Train the network and write a diffusers pipeline folder to WORK/pipeline."""
    network = build(seed)
    folder = training.fit(network, training.noise_loss(), "fashion_mnist", batch=BATCH, seed=seed, **options)
    DDPMPipeline(network.half().cpu(), training.SCHEDULER).save_pretrained(folder)


if __name__ == "__main__":
    train()
