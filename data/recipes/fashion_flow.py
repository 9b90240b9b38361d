"""Train `fashion-flow`: a normalizing flow on Fashion-MNIST, of zuko's couplings (arXiv 1605.08803).

Run `python data/recipes/fashion_flow.py --data fashion_mnist.npz --work build/fashion-flow`.

Maximum likelihood of grey values kept to 5 bits and spread uniformly over their steps, as in Glow (arXiv
1807.03039); losses are bits a pixel. Convolutions in bfloat16. Resumable, see `training.py`.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import click
import torch
import training
from safetensors.torch import save_file
from torch import Tensor
from zuko.lazy import Flow

from antinb.models import normalizing

CONFIG = {"kind": "normalizing flow", "layers": 24, "width": 64, "size": 28}
GREYS = 32


def spread(clean: Tensor, generator: torch.Generator) -> Tensor:
    """Return flat images in [-1, 1] of 32 grey values, each spread uniformly over its step."""
    steps = ((clean.flatten(1) + 1) / 2 * 255).round() // (256 // GREYS)
    return (steps + torch.rand(steps.shape, generator=generator, device=steps.device)) / GREYS * 2 - 1


def build(images: Tensor) -> Flow:
    """Return the untrained flow, its values standardized by those of some images."""
    torch.manual_seed(training.SEED)
    logits = torch.logit(0.5 + (0.5 - normalizing.MARGIN) * spread(images, torch.Generator().manual_seed(0)))
    return normalizing.flow(CONFIG["layers"], CONFIG["width"], CONFIG["size"], logits.mean(0), logits.std(0))


def loss(network: Flow, generator: torch.Generator, clean: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
    """Return the negative log likelihood in bits a pixel, twice."""
    with torch.autocast(clean.device.type, torch.bfloat16):
        density = network().log_prob(spread(clean, generator)).mean() / clean[0].numel()
    bits = math.log2(GREYS / 2) - density / math.log(2)
    return bits, bits


@click.command()
@training.options(total=400_000)
def train(data: Path | None, device: str, **options) -> None:
    """Train the flow and write its weights and configuration to WORK/pipeline."""
    network = build(training.tensors("fashion_mnist", data, "train", slice(10_000), "cpu")[0])
    folder = training.fit(network, loss, "fashion_mnist", data=data, device=device, **options)
    save_file(network.half().state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG, indent=1) + "\n")


if __name__ == "__main__":
    train()
