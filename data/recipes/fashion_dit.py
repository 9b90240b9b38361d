"""Train `fashion-dit`: a class-conditional diffusion transformer on Fashion-MNIST (arXiv 2212.09748).

Run `python data/recipes/fashion_dit.py --data fashion_mnist.npz --work build/fashion-dit`.

Patches of 4 by 4 pixels; the rest as for `fashion_ddpm.py`, one label in ten replaced by the null class.
"""

from __future__ import annotations

import click
import torch
import training
from diffusers import DiTTransformer2DModel

NULL = 10


def build() -> DiTTransformer2DModel:
    """Return the untrained network, in evaluation mode: the classes are dropped by the loss, not by each layer."""
    torch.manual_seed(training.SEED)
    network = DiTTransformer2DModel(
        sample_size=28,
        patch_size=4,
        in_channels=1,
        out_channels=1,
        num_layers=6,
        num_attention_heads=4,
        attention_head_dim=36,
        num_embeds_ada_norm=NULL,
        norm_num_groups=8,
    )
    return network.eval()


@click.command()
@training.options(total=500_000)
def train(**options) -> None:
    """Train the network and write WORK/pipeline, a folder with `transformer` and `scheduler`."""
    network = build()
    folder = training.fit(network, training.noise_loss(NULL), "fashion_mnist", **options)
    network.half().save_pretrained(folder / "transformer")
    training.SCHEDULER.save_pretrained(folder / "scheduler")


if __name__ == "__main__":
    train()
