"""Cut out `data/images/fashion`: held-out images of Fashion-MNIST as sources for editing.

Run `python data/recipes/held_out.py --data fashion_mnist.npz --out data/images/fashion`.

The first 40 test images of each of six classes, as a sheet with a row a class; nothing else is selected.
"""

from __future__ import annotations

import json
from pathlib import Path

import click
import images
import numpy as np
from PIL import Image

CLASSES, EACH = (0, 1, 2, 4, 7, 9), 40


@click.command()
@click.option("--data", type=click.Path(path_type=Path), default=None, help="npz of images; else fetched")
@click.option("--out", type=click.Path(path_type=Path), required=True)
def cut(data: Path | None, out: Path) -> None:
    """Write the sheet and what its rows are."""
    pixels, labels = images.load("fashion_mnist", data, "test")
    rows = np.stack([pixels[labels == label][:EACH, 0] for label in CLASSES])
    sheet = rows.swapaxes(1, 2).reshape(rows.shape[0] * rows.shape[2], -1)
    out.mkdir(parents=True, exist_ok=True)
    Image.fromarray(sheet).save(out / "images.png", optimize=True)
    (out / "images.json").write_text(json.dumps({"classes": CLASSES, "size": rows.shape[2]}) + "\n")


if __name__ == "__main__":
    cut()
