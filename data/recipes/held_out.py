"""Cut out `data/images/fashion`: test images of Fashion-MNIST, which no shipped model was trained on.

Run `python data/recipes/held_out.py --data fashion_mnist.npz --out data/images/fashion`.

Each sample is a sheet of tiles in rows. `classes.png` has the first 40 images of each of six classes, a row a class,
as sources for editing. `random.png` has 16 images of all classes, drawn by a seed, as truths for inverse problems.
Nothing else is selected. `images.json` has the size of a tile and the labels of the tiles. `moments.npz` has the mean
`mu` and the covariance `sigma` of the features of all test images, by `fashion-classifier`, for Fréchet distances.
"""

from __future__ import annotations

import json
from pathlib import Path

import click
import images
import numpy as np
from PIL import Image

from antinb import classifier

CLASSES, EACH = (0, 1, 2, 4, 7, 9), 40
COUNT, COLUMNS, SEED = 16, 8, 0


@click.command()
@click.option("--data", type=click.Path(path_type=Path), default=None, help="npz of images; else fetched")
@click.option("--out", type=click.Path(path_type=Path), required=True)
def cut(data: Path | None, out: Path) -> None:
    """Write both sheets and the labels of their tiles."""
    pixels, labels = images.load("fashion_mnist", data, "test")
    chosen = {
        "classes": np.stack([np.flatnonzero(labels == label)[:EACH] for label in CLASSES]),
        "random": np.random.default_rng(SEED).permutation(len(pixels))[:COUNT].reshape(-1, COLUMNS),
    }
    out.mkdir(parents=True, exist_ok=True)
    for name, places in chosen.items():
        rows, columns, size = *places.shape, pixels.shape[-1]
        sheet = pixels[places, 0].swapaxes(1, 2).reshape(rows * size, columns * size)
        Image.fromarray(sheet).save(out / f"{name}.png", optimize=True)
    known = {name: labels[places].ravel().tolist() for name, places in chosen.items()}
    seen = classifier.load("fashion-classifier").features(pixels / np.float32(255))
    np.savez_compressed(out / "moments.npz", mu=seen.mean(0), sigma=np.cov(seen.T))
    (out / "images.json").write_text(json.dumps({"size": pixels.shape[-1], "labels": known}) + "\n")


if __name__ == "__main__":
    cut()
