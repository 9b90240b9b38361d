"""Train `mnist-vae`: a small convolutional variational autoencoder on MNIST (arXiv 1312.6114).

Run `python data/recipes/mnist_vae.py --data mnist.npz --work build/mnist-vae`.

A standard normal latent of 16 numbers, a normal posterior with independent components, and grey values as the
shares of a Bernoulli decoder: the variational bound as it is, without any weight. Resumable, see `training.py`.
"""

from __future__ import annotations

import json

import click
import torch
import training
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from antinb.models.decoders import decoder

CONFIG = {"kind": "vae", "latent": 16, "width": 32, "shape": [1, 28, 28]}


def encoder(latent: int, width: int) -> nn.Sequential:
    """Return the untrained encoder, images to the means and log standard deviations of latents, `(N, 2 latent)`."""
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1),
        nn.SiLU(),
        nn.Conv2d(width, 2 * width, 4, stride=2, padding=1),
        nn.SiLU(),
        nn.Conv2d(2 * width, 4 * width, 4, stride=2, padding=1),
        nn.SiLU(),
        nn.Flatten(),
        nn.Linear(4 * width * 7 * 7, 2 * latent),
    )


def build() -> nn.ModuleDict:
    """Return the untrained encoder and decoder."""
    torch.manual_seed(training.SEED)
    latent, width = CONFIG["latent"], CONFIG["width"]
    return nn.ModuleDict({"encoder": encoder(latent, width), "decoder": decoder(latent, width)})


def loss(network: nn.ModuleDict, generator: torch.Generator, clean: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
    """Return the negative bound on the log likelihood, in nats an image and in nats a pixel."""
    mean, log_scale = network["encoder"](clean).chunk(2, 1)
    noise = torch.randn(mean.shape, generator=generator, device=mean.device)
    logits = network["decoder"](mean + log_scale.exp() * noise)
    divergence = kl_divergence(Normal(mean, log_scale.exp()), Normal(0, 1)).sum()
    mismatch = nn.functional.binary_cross_entropy_with_logits(logits, (clean + 1) / 2, reduction="sum")
    bound = (mismatch + divergence) / len(clean)
    return bound, bound / clean[0].numel()


@click.command()
@training.options(total=400_000)
def train(**options) -> None:
    """Train the network and write the decoder and its configuration to WORK/pipeline."""
    network = build()
    spread = slice(0, None, 10)  # some copies of MNIST are sorted by class
    folder = training.fit(network, loss, "mnist", validation=spread, **options)
    save_file(network["decoder"].half().state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG, indent=1) + "\n")


if __name__ == "__main__":
    train()
