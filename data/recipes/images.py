"""Training images for the recipes: a local npz or parquet file, or the public set from its hub."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

HUB = {
    "fashion_mnist": "zalando-datasets/fashion_mnist",
    "mnist": "ylecun/mnist",
    "cifar10": "uoft-cs/cifar10",
}
HELD_OUT = 256


def load(name: str, path: Path | None = None, split: str = "train") -> tuple[np.ndarray, np.ndarray]:
    """Return `(images, labels)` of a data set: uint8 `(N, C, H, W)` in [0, 255], int64 `(N,)`.

    `path` is an `.npz` with `train_images`, `train_labels`, `test_images`, `test_labels`, or one with
    `images` of 64 pixels (see `halved`), or a folder with `<name>-train.parquet` and
    `<name>-test.parquet` (columns `img.bytes`, `label`).
    Without it the public set is fetched with the `datasets` library.
    """
    if path is None:
        from datasets import load_dataset

        rows = load_dataset(HUB[name], split=split)
        pixels = np.stack([np.asarray(row["image" if "image" in row else "img"]) for row in rows])
        labels = np.asarray(rows["label"])
    elif path.suffix == ".npz":
        with np.load(path) as arrays:
            if "images" in arrays:
                return halved(arrays["images"], split)
            pixels, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
    else:
        import pandas as pd

        rows = pd.read_parquet(path / f"{name}-{split}.parquet")
        pixels = np.stack([np.asarray(Image.open(io.BytesIO(cell["bytes"]))) for cell in rows["img"]])
        labels = rows["label"].to_numpy()
    pixels = pixels[:, None] if pixels.ndim == 3 else pixels.transpose(0, 3, 1, 2)
    return np.ascontiguousarray(pixels), labels.astype(np.int64)


def halved(pixels: np.ndarray, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Return images without labels at half their size, each pixel the mean of four, and zeros for labels.

    In an order drawn by seed 0 the first 256 are the test images, the rest the training images.
    """
    order = np.random.default_rng(0).permutation(len(pixels))
    chosen = pixels[order[:HELD_OUT] if split == "test" else order[HELD_OUT:]]
    count, height, width, channels = chosen.shape
    blocks = chosen.reshape(count, height // 2, 2, width // 2, 2, channels)
    means = np.rint(blocks.mean((2, 4))).astype(np.uint8).transpose(0, 3, 1, 2)
    return np.ascontiguousarray(means), np.zeros(count, np.int64)


def scaled(pixels: np.ndarray) -> np.ndarray:
    """Map uint8 pixels to float32 in [-1, 1]."""
    return pixels.astype(np.float32) / 127.5 - 1
