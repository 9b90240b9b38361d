"""The models that come with the package, and images that none of them was trained on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from antinb import checks
from antinb.zoo import folders

__all__ = ["DATA", "held_out", "models"]

_PACKAGE = Path(__file__).parents[1]
_PLACES = (_PACKAGE.parent / "data", _PACKAGE / "data")
DATA = next((path for path in _PLACES if (path / "registry.json").exists()), _PLACES[-1])


def registry() -> dict[str, dict[str, Any]]:
    """Return the shipped models by name, each with kind, licence, recipe, quality, and files with their sha256.

    Examples:
        >>> registry()["fashion-mixture"]["licence"]
        'MIT'
    """
    return json.loads((DATA / "registry.json").read_text(encoding="utf-8"))


def models() -> pd.DataFrame:
    """Return a table of the shipped models: `kind`, `licence`, `megabytes`, `quality`, indexed by name.

    Examples:
        >>> models().loc["fashion-ddpm", "licence"]
        'MIT'
    """
    rows = {}
    for name, entry in registry().items():
        size = sum((DATA / "models" / name / file).stat().st_size for file in entry["files"])
        kind, licence, quality = (entry[key] for key in ("kind", "licence", "quality"))
        rows[name] = {"kind": kind, "licence": licence, "megabytes": size / 1e6, "quality": quality}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("name")


def folder(name: str) -> Path:
    """Return the folder of a shipped model.

    Raises:
        ValueError: if one of its files is not the registered one.
    """
    place = DATA / "models" / name
    for file, wanted in registry()[name]["files"].items():
        found = folders.sha256(place / file) if (place / file).exists() else "no file"
        if found != wanted:
            rule = f"{name}/{file} is not the registered file: sha256 {wanted[:12]} expected"
            raise ValueError(f"{rule}; got {found[:12]}")
    return place


@checks.typed
def held_out(name: str, *, sample: str = "classes") -> tuple[np.ndarray, np.ndarray]:
    """Return images that no shipped model was trained on, `(N, C, H, W)` in [-1, 1], and their classes `(N,)`.

    Args:
        name: data set; `"fashion"` is the test split of Fashion-MNIST.
        sample: `"classes"`, the first 40 images of each of six classes, or `"random"`, 16 images of all classes
            drawn at random. Neither was selected by eye.

    Raises:
        ValueError: if no such images are shipped.

    Examples:
        >>> images, labels = held_out("fashion")
        >>> images.shape, labels[::40].tolist()
        ((240, 1, 28, 28), [0, 1, 2, 4, 7, 9])
        >>> held_out("fashion", sample="random")[0].shape
        (16, 1, 28, 28)
    """
    place = DATA / "images" / str(name)
    if not (place / "images.json").exists():
        raise ValueError(f"held-out images are shipped for 'fashion'; got {name!r}")
    about = folders.config(place, "images.json")
    known, size = about["labels"], about["size"]
    if sample not in known:
        raise ValueError(f"sample must be one of {tuple(known)}; got {sample!r}")
    with Image.open(place / f"{sample}.png") as sheet:
        pixels = np.asarray(sheet)
    tiles = pixels.reshape(len(pixels) // size, size, -1, size).swapaxes(1, 2).reshape(-1, 1, size, size)
    return tiles.astype(np.float32) / 127.5 - 1, np.array(known[sample])
