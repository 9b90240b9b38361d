"""Measure a shipped model and draw its card: samples, pairs, training curve, quality on Fashion-MNIST.

Run `python data/recipes/card.py fashion-ddpm --data fashion_mnist.npz --curve build/fashion-ddpm/curve.csv`.

Samples are drawn blind: the first units of seed 0, none left out. Fashion models are measured in
the 64 features of `fashion-classifier`, 10,000 samples of DDIM beside 10,000 training images, both
against the 10,000 test images.
"""

from __future__ import annotations

import json
from pathlib import Path

import click
import fashion_classifier
import images
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import torch
import xarray as xr
from torchmetrics.image.fid import FrechetInceptionDistance

import antinb
from antinb import figures, generators, noise

MODELS = antinb.zoo.DATA / "models"


class Features(torch.nn.Module):
    """The classifier's 64 features of uint8 images."""

    def __init__(self) -> None:
        super().__init__()
        self.network = fashion_classifier.load(MODELS / "fashion-classifier")[:-1]

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the features, `(N, 1, 28, 28)` to `(N, 64)`."""
        return self.network(pixels.float() / 127.5 - 1)


def frechet(pixels: np.ndarray, reference: np.ndarray) -> float:
    """Return the Fréchet distance of two sets of uint8 images in the classifier's features."""
    metric = FrechetInceptionDistance(Features(), input_img_size=(1, 28, 28))
    for kind, real in ((reference, True), (pixels, False)):
        for part in np.array_split(kind, len(kind) // 500):
            metric.update(torch.from_numpy(part), real=real)
    return float(metric.compute())


def class_shares(pixels: np.ndarray) -> np.ndarray:
    """Return the share of images that the classifier puts into each class, `(10,)`."""
    network = fashion_classifier.load(MODELS / "fashion-classifier")
    return np.bincount(fashion_classifier.outputs(network, images.scaled(pixels)).argmax(1), minlength=10) / len(pixels)


def draw_grid(run: xr.Dataset, path: Path) -> None:
    """Write a sheet of the first 64 units of a run, one image each."""
    first = run["image"].isel(member=0, unit=slice(64)).to_numpy()
    sheet = first.reshape(16, 4, *first.shape[1:])
    grid = xr.DataArray(sheet, dims=("column", "row", "channel", "y", "x"), attrs=run["image"].attrs)
    figures.image_grid(grid, rows=[""] * 4).figure.savefig(path, dpi=110, bbox_inches="tight")


def draw(generator: generators.Diffusion, folder: Path) -> None:
    """Write `grid.png`, 64 samples of DDPM, `grid-ddim.png`, 64 of DDIM, and `pairs.png`, 12 pairs of DDIM."""
    sns.set_theme(style="white")
    design = noise.antithetic(64)
    draw_grid(antinb.sample(generator.with_(steps=50, scheduler="ddpm"), design, seed=0), folder / "grid.png")
    run = antinb.sample(generator, design, seed=0)
    draw_grid(run, folder / "grid-ddim.png")
    pairs = figures.image_grid(run["image"].isel(unit=slice(12)), rows=["from z", "from −z"])
    pairs.figure.savefig(folder / "pairs.png", dpi=110, bbox_inches="tight")


def draw_curve(path: Path, folder: Path) -> None:
    """Write `curve.csv` and `curve.png`, the noise loss by training images."""
    curve = pd.read_csv(path, names=["step", "images", "train", "held out (EMA)"])
    curve.to_csv(folder / "curve.csv", index=False, float_format="%.5g")
    fig, ax = plt.subplots(figsize=(5, 2.8), layout="constrained")
    curve.plot(x="images", y=["train", "held out (EMA)"], ax=ax, logy=True, ylabel="noise loss")
    sns.despine(fig)
    fig.savefig(folder / "curve.png", dpi=110, bbox_inches="tight")


@click.command()
@click.argument("name")
@click.option("--data", type=click.Path(path_type=Path), default=None, help="fashion_mnist.npz; else fetched")
@click.option("--curve", type=click.Path(path_type=Path, exists=True), default=None, help="curve.csv of the training")
@click.option("--steps", default=20)
@click.option("--count", default=10_000, help="samples to measure; 0 measures none")
@click.option("--store", type=click.Path(path_type=Path), default=None, help="where to keep the samples")
def card(name: str, data: Path | None, curve: Path | None, steps: int, count: int, store: Path | None) -> None:
    """Draw the pictures of model NAME and, for a Fashion model, write its quality.json."""
    folder = MODELS / name
    generator = antinb.load(name, steps=steps)
    draw(generator, folder)
    if curve:
        draw_curve(curve, folder)
    if not count:
        return
    run = antinb.sample(generator, noise.iid(count), seed=1, store=store, batch=200)
    samples = np.clip(np.rint((run["image"].to_numpy()[:, 0] + 1) * 127.5), 0, 255).astype(np.uint8)
    train, test = images.load("fashion_mnist", data)[0], images.load("fashion_mnist", data, "test")[0]
    train = train[np.random.default_rng(0).permutation(len(train))[:count]]
    rows = {"samples": samples, "training images": train, "test images": test}
    table = {
        "sampler": generator.describe(),
        "images": count,
        "frechet_distance": {key: frechet(rows[key], test) for key in ("samples", "training images")},
        "class_shares": {
            key: dict(zip(fashion_classifier.CLASSES, class_shares(value).round(4).tolist(), strict=True))
            for key, value in rows.items()
        },
    }
    (folder / "quality.json").write_text(json.dumps(table, indent=1) + "\n")
    click.echo(json.dumps(table, indent=1))


if __name__ == "__main__":
    card()
