"""Fit `fashion-mixture` or `cifar10-mixture`: 16 Gaussians of rank 48 on real images.

Run `python data/recipes/mixtures.py cifar10 --data FOLDER --out data/models/cifar10-mixture`.

Mixtures of probabilistic principal component analysers (Tipping & Bishop, 1999) by expectation
maximisation on shuffled images, started from k-means. Every component is `N(mu, W W' + v I)`.
"""

from __future__ import annotations

import json
from pathlib import Path

import click
import images
import numpy as np
import torch
from diffusers import DDIMScheduler
from safetensors.torch import save_file
from scipy.cluster.vq import kmeans2

from antinb.models.fitting import maximised

COMPONENTS, RANK, IMAGES, ROUNDS, SEED = 16, 48, 20_000, 15, 0


@click.command()
@click.argument("name", type=click.Choice(["fashion_mnist", "cifar10"]))
@click.option("--data", type=click.Path(path_type=Path), default=None, help="npz, or folder of parquet; else fetched")
@click.option("--out", type=click.Path(path_type=Path), required=True)
def fit(name: str, data: Path | None, out: Path) -> None:
    """Fit the mixture and write its folder."""
    torch.manual_seed(SEED)
    pixels, _ = images.load(name, data)
    order = np.random.default_rng(SEED).permutation(len(pixels))
    flat = torch.from_numpy(images.scaled(pixels[order])).flatten(1)
    train, held_out = flat[:IMAGES], flat[IMAGES : IMAGES + 5000]
    labels = kmeans2(train.numpy(), COMPONENTS, minit="++", seed=SEED)[1]
    mixture = maximised(train, torch.nn.functional.one_hot(torch.from_numpy(labels).long(), COMPONENTS).float(), RANK)
    curve = []
    for _ in range(ROUNDS):
        mixture = maximised(train, mixture.responsibilities(train).float(), RANK)
        curve.append([mixture.log_density(part).mean().item() / flat.shape[1] for part in (train, held_out)])
        click.echo(f"round {len(curve)}/{ROUNDS}: log density a pixel {curve[-1][0]:.4f}, held out {curve[-1][1]:.4f}")
    out.mkdir(parents=True, exist_ok=True)
    tensors = {"weights": mixture.weights.float(), "variances": mixture.variances.float()}
    tensors |= {"means": mixture.means.half(), "factors": mixture.factors.half()}
    shape = [int(size) for size in pixels.shape[1:]]
    save_file(
        {key: value.contiguous() for key, value in tensors.items()},
        out / "mixture.safetensors",
        {"shape": json.dumps(shape)},
    )
    DDIMScheduler(1000, clip_sample=False).save_pretrained(out / "scheduler")
    likelihood = {"log_density_a_pixel": curve[-1][0], "held_out": curve[-1][1], "curve": curve}
    (out / "fit.json").write_text(json.dumps(likelihood, indent=1) + "\n")


if __name__ == "__main__":
    fit()
