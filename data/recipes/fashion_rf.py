"""Train `fashion-rf`: a class-conditional rectified flow on Fashion-MNIST.

Run `python data/recipes/fashion_rf.py --data fashion_mnist.npz --work build/fashion-rf`.

On the way `x_t = (1 - t) x + t n` from an image to noise, `t` in [0, 1], the network is called with `1000 t` and
gives the velocity `n - x`, as `FlowMatchEulerDiscreteScheduler` wants it. Plain squared error, logit-normal `t`
(arXiv 2403.03206), one label in ten replaced by the null class, bfloat16 products; resumable, see `training.py`.
"""

from __future__ import annotations

import click
import torch
import training
from diffusers import FlowMatchEulerDiscreteScheduler, UNet2DModel

NULL = 10


def build() -> UNet2DModel:
    """Return the untrained network."""
    return training.unet((32, 64, 96), null=NULL)


def loss(
    network: UNet2DModel, generator: torch.Generator, clean: torch.Tensor, labels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the mean squared error of the predicted velocity, to report and to minimise."""
    times = torch.randn(len(clean), generator=generator, device=clean.device).sigmoid()
    noise = torch.randn(clean.shape, generator=generator, device=clean.device)
    classes = training.dropped(labels, NULL, generator)
    path = torch.lerp(clean, noise, times[:, None, None, None])
    with torch.autocast(clean.device.type, torch.bfloat16):
        velocity = network(path, 1000 * times, class_labels=classes).sample
    error = (velocity.float() - (noise - clean)).square().mean()
    return error, error


@click.command()
@training.options(total=400_000)
@training.start
def train(**options) -> None:
    """Train the network and write WORK/pipeline, a folder with `unet` and `scheduler`."""
    network = build()
    folder = training.fit(network, loss, "fashion_mnist", **options)
    network.half().save_pretrained(folder / "unet")
    FlowMatchEulerDiscreteScheduler(1000, shift=1.0).save_pretrained(folder / "scheduler")


if __name__ == "__main__":
    train()
