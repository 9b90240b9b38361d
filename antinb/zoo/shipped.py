"""What comes with the package: the registry of its models, and images that none of them was trained on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image

from antinb.zoo import folders

_PACKAGE = Path(__file__).parents[1]
DATA = next((path for path in (_PACKAGE.parent / "data", _PACKAGE / "data") if (path / "registry.json").exists()), None)


def registry() -> dict[str, dict]:
    """Return the shipped models by name: kind, licence, recipe, quality, files with sha256."""
    return json.loads((DATA / "registry.json").read_text(encoding="utf-8"))


def models() -> pd.DataFrame:
    """Return a table of the shipped models: `kind`, `licence`, `megabytes`, `quality`, indexed by name."""
    rows = {}
    for name, entry in registry().items():
        size = sum((DATA / "models" / name / file).stat().st_size for file in entry["files"])
        kind, licence, quality = (entry[key] for key in ("kind", "licence", "quality"))
        rows[name] = {"kind": kind, "licence": licence, "megabytes": size / 1e6, "quality": quality}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("name")


def folder(name: str) -> Path:
    """Return the folder of a shipped model; ValueError if one of its files is not the registered one."""
    place = DATA / "models" / name
    for file, wanted in registry()[name]["files"].items():
        found = folders.sha256(place / file) if (place / file).exists() else "no file"
        if found != wanted:
            rule = f"{name}/{file} is not the registered file: sha256 {wanted[:12]} expected"
            raise ValueError(f"{rule}; got {found[:12]}")
    return place


def truths() -> torch.Tensor:
    """Return 16 test images of Fashion-MNIST, drawn at random, `(16, 1, 28, 28)` in [-1, 1]."""
    return folders.tensors(DATA / "truths", "fashion.safetensors", torch.device("cpu"))[0]["images"] / 127.5 - 1


def held_out(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return images that no shipped model was trained on, `(N, C, H, W)` in [-1, 1], and their classes `(N,)`.

    `"fashion"`: the first 40 test images of Fashion-MNIST of each of six classes, not selected further.

    Raises:
        ValueError: if none of that name are shipped.
    """
    place = DATA / "images" / str(name)
    if not (place / "images.png").exists():
        raise ValueError(f"held-out images are shipped for 'fashion'; got {name!r}")
    about = folders.config(place, "images.json")
    with Image.open(place / "images.png") as sheet:
        tiles = np.asarray(sheet).reshape(len(about["classes"]), about["size"], -1, about["size"]).swapaxes(1, 2)
    labels = np.repeat(about["classes"], tiles.shape[1])
    return tiles.reshape(-1, 1, about["size"], about["size"]).astype(np.float32) / 127.5 - 1, labels
