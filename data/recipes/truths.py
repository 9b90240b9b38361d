"""Pick held-out truths for inverse problems: images of the Fashion-MNIST test set, which no shipped model has seen.

Run `python data/recipes/truths.py --out data/truths/fashion.safetensors`.
"""

from __future__ import annotations

from pathlib import Path

import click
import images
import numpy as np
import torch
from safetensors.torch import save_file

COUNT, SEED = 16, 0


@click.command()
@click.option("--data", type=click.Path(path_type=Path), default=None, help="npz of Fashion-MNIST; else fetched")
@click.option("--out", type=click.Path(path_type=Path), required=True)
def pick(data: Path | None, out: Path) -> None:
    """Write 16 test images, drawn without a look at them, with their labels and places in the set."""
    pixels, labels = images.load("fashion_mnist", data, "test")
    places = np.random.default_rng(SEED).permutation(len(pixels))[:COUNT]
    arrays = {"images": pixels[places], "labels": labels[places], "places": places}
    out.parent.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: torch.from_numpy(array) for name, array in arrays.items()},
        out,
        {"source": "Fashion-MNIST, test split", "licence": "MIT"},
    )


if __name__ == "__main__":
    pick()
