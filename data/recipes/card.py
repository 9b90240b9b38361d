"""Measure a model and draw its card: samples, pairs, training curve, quality on its data.

Run `python data/recipes/card.py fashion-ddpm --steps 20 --data fashion_mnist.npz --curve build/fashion-ddpm/curve.csv`;
the model is a shipped name or a folder called like one.

Samples are drawn blind: the first units of seed 0, none left out; the classes of a conditional model take
turns. A model is measured in the 64 features of the classifier of their data, 10,000
samples beside 10,000 training images, both against the 10,000 test images. Pictures without classes and test images
are measured in the features of another classifier, without bias: samples against all pictures, and one half of the
pictures against the other; quantiles of the distance from the nearest training image tell whether samples are copies.
"""

from __future__ import annotations

import json
from pathlib import Path

import classifier
import click
import images
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import torch
import xarray as xr
from torchmetrics.image.fid import FrechetInceptionDistance

import antinb
from antinb import comparison, dataset, figures, noise
from antinb.models.diffusion import Diffusion
from antinb.models.generator import Generator

MODELS = antinb.zoo.DATA / "models"
DATA_SETS = {"fashion": "fashion_mnist", "mnist": "mnist", "cifar10": "cifar10", "emoji": "emoji"}
OTHERS = {"emoji": "cifar10"}  # kinds without classes, and whose classifier gives features of them


class Features(torch.nn.Module):
    """The 64 features of a classifier, of uint8 images."""

    def __init__(self, network: torch.nn.Sequential) -> None:
        super().__init__()
        self.network = network[:-1]

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the features, `(N, C, H, W)` to `(N, 64)`."""
        return self.network(pixels.float() / 127.5 - 1)


def frechet(network: torch.nn.Sequential, pixels: np.ndarray, reference: np.ndarray) -> float:
    """Return the Fréchet distance of two sets of uint8 images in the classifier's features."""
    metric = FrechetInceptionDistance(Features(network), input_img_size=reference.shape[1:])
    for kind, real in ((reference, True), (pixels, False)):
        for part in np.array_split(kind, -(-len(kind) // 500)):
            metric.update(torch.from_numpy(part), real=real)
    return float(metric.compute())


def class_shares(network: torch.nn.Sequential, pixels: np.ndarray) -> np.ndarray:
    """Return the share of images that the classifier puts into each class, `(10,)`."""
    return np.bincount(classifier.outputs(network, images.scaled(pixels)).argmax(1), minlength=10) / len(pixels)


def nearest(pixels: np.ndarray, others: np.ndarray) -> dict[str, float]:
    """Return quantiles of the root mean square distance of images in [-1, 1] from the nearest of others."""
    rows, columns = (torch.from_numpy(each).flatten(1) for each in (pixels, others))
    distances = torch.cdist(rows, columns).amin(1) / rows.shape[1] ** 0.5
    return {f"{level:g}": round(float(distances.quantile(level)), 3) for level in (0.05, 0.25, 0.5, 0.75, 0.95)}


def without_classes(run: xr.Dataset, pixels: np.ndarray, judge: antinb.classifier.Classifier) -> dict:
    """Return the Fréchet distances of samples from pictures and of one half of the pictures from the other."""
    scaled = images.scaled(np.random.default_rng(0).permutation(pixels))[:, None]
    parts = scaled, *np.array_split(scaled, 2)
    whole, first, second = (dataset.build({"image": part}, {"design": {}, "seed": k}) for k, part in enumerate(parts))
    rows = {"samples, pictures": (run, whole), "half of the pictures, other half": (first, second)}
    tables = {key: comparison.frechet(*both, judge.features) for key, both in rows.items()}
    return {key: table[["estimate", "low", "high"]].iloc[0].round(3).to_dict() for key, table in tables.items()}


def sample(generator: Generator, design: noise.Design, **options: object) -> xr.Dataset:
    """Return a run of the model; the classes of a conditional one take turns over the units."""
    null = getattr(generator, "null", None)
    classes = None if null is None else (np.arange(design.units) % null).tolist()
    return antinb.sample(generator, design, condition=classes, **options)


def draw_grid(run: xr.Dataset, path: Path) -> None:
    """Write a sheet of the first 64 units of a run, one image each."""
    first = run["image"].isel(member=0, unit=slice(64)).to_numpy()
    sheet = first.reshape(16, 4, *first.shape[1:])
    grid = xr.DataArray(sheet, dims=("column", "row", "channel", "y", "x"), attrs=run["image"].attrs)
    figures.image_grid(grid, rows=[""] * 4).figure.savefig(path, dpi=110, bbox_inches="tight")


def draw(generator: Generator, folder: Path) -> None:
    """Write `grid.png`, 64 samples, and `pairs.png`, 12 pairs; of a noise-prediction model the grid is DDPM's.

    The samples of DDIM, of which the pairs are, then go to `grid-ddim.png`.
    """
    sns.set_theme(style="white")
    design, predicts_noise = noise.antithetic(64), isinstance(generator, Diffusion)
    run = sample(generator, design, seed=0)
    draw_grid(run, folder / ("grid-ddim.png" if predicts_noise else "grid.png"))
    if predicts_noise:
        draw_grid(sample(generator.with_(steps=50, scheduler="ddpm"), design, seed=0), folder / "grid.png")
    pairs = figures.image_grid(run["image"].isel(unit=slice(12)), rows=["from z", "from −z"])
    pairs.figure.savefig(folder / "pairs.png", dpi=110, bbox_inches="tight")


def draw_curve(path: Path, folder: Path) -> None:
    """Write `curve.csv` and `curve.png`, the loss by training images."""
    curve = pd.read_csv(path, names=["step", "images", "train", "held out (EMA)"])
    curve.to_csv(folder / "curve.csv", index=False, float_format="%.5g")
    fig, ax = plt.subplots(figsize=(5, 2.8), layout="constrained")
    curve.plot(x="images", y=["train", "held out (EMA)"], ax=ax, logy=True, ylabel="loss")
    sns.despine(fig)
    fig.savefig(folder / "curve.png", dpi=110, bbox_inches="tight")


def write(table: dict, folder: Path) -> None:
    """Write and print quality.json."""
    text = json.dumps(table, indent=1)
    (folder / "quality.json").write_text(text + "\n")
    click.echo(text)


@click.command()
@click.argument("model")
@click.option("--data", type=click.Path(path_type=Path), default=None, help="npz or folder of images; else fetched")
@click.option("--curve", type=click.Path(path_type=Path, exists=True), default=None, help="curve.csv of the training")
@click.option("--steps", type=int, help="steps of the sampler; else the model's own")
@click.option("--count", default=10_000, help="samples to measure; 0 measures none")
@click.option("--store", type=click.Path(path_type=Path), default=None, help="where to keep the samples")
def card(model: str, data: Path | None, curve: Path | None, steps: int | None, count: int, store: Path | None) -> None:
    """Draw the pictures of MODEL and write its quality.json, into its folder."""
    folder = MODELS / model
    generator = antinb.load(model, steps=steps)
    draw(generator, folder)
    if curve:
        draw_curve(curve, folder)
    if not count:
        return
    kind = folder.name.split("-")[0]
    name, judge = DATA_SETS[kind], antinb.classifier.load(MODELS / f"{OTHERS.get(kind, kind)}-classifier")
    network, run = judge.network, sample(generator, noise.iid(count), seed=1, store=store, batch=200)
    if kind in OTHERS:
        train, test = (images.load(name, data, split)[0] for split in ("train", "test"))
        samples, known = run["image"].to_numpy()[:, 0].clip(-1, 1), images.scaled(train)
        table = {
            "sampler": generator.describe(),
            "images": count,
            "frechet_distance": without_classes(run, np.concatenate([train, test]), judge),
            "distance_from_nearest_training_image": {
                "samples": nearest(samples, known),
                "held-out images": nearest(images.scaled(test), known),
            },
        }
        write(table, folder)
        return
    samples = np.clip(np.rint((run["image"].to_numpy()[:, 0] + 1) * 127.5), 0, 255).astype(np.uint8)
    train, test = images.load(name, data)[0], images.load(name, data, "test")[0]
    train = train[np.random.default_rng(0).permutation(len(train))[:count]]
    rows = {"samples": samples, "training images": train, "test images": test}
    table = {
        "sampler": generator.describe(),
        "images": count,
        "frechet_distance": {key: frechet(network, rows[key], test) for key in ("samples", "training images")},
        "class_shares": {
            key: dict(zip(classifier.CLASSES[name], class_shares(network, value).round(4).tolist(), strict=True))
            for key, value in rows.items()
        },
    }
    write(table, folder)


if __name__ == "__main__":
    card()
