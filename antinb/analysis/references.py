"""What distances are made of: the features of a run and of a folder of pictures, or stored moments of features."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import xarray as xr
from PIL import Image

from antinb import dataset
from antinb.analysis.diversity import seen
from antinb.checks import plain, quoted, reason

__all__: list[str] = []

KINDS = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
BLOCK = 256  # pictures in memory at once
Features = Callable[[np.ndarray], np.ndarray]


def pictures(folder: Path, shape: tuple[int, ...]) -> Iterator[np.ndarray]:
    """Yield the pictures of a folder in the order of their names, `(n, C, H, W)` in [0, 1], at most 256 at once.

    Raises:
        ValueError: if there is no such folder, it holds fewer than two pictures, or one cannot be read or has another
            size than the shape `(C, H, W)`, C being 1 or 3.
    """
    channels, height, width = shape
    if not folder.is_dir():
        raise ValueError(f"a reference is a run, a folder of pictures or a file .npz of moments; got {plain(folder)}")
    if channels not in (1, 3):
        raise ValueError(f"pictures have 1 or 3 channels; the images of the run have {channels}")
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in KINDS)
    if len(files) < 2:
        raise ValueError(
            f"a folder of pictures holds at least two of {', '.join(KINDS)}; {plain(folder)} has {len(files)}"
        )
    for start in range(0, len(files), BLOCK):
        part = np.empty((len(files[start : start + BLOCK]), channels, height, width), np.float32)
        for place, path in enumerate(files[start : start + BLOCK]):
            part[place] = _picture(path, (width, height), "L" if channels == 1 else "RGB")
        yield part


def _picture(path: Path, size: tuple[int, int], mode: str) -> np.ndarray:
    try:
        with Image.open(path) as picture:
            found = picture.size
            pixels = np.asarray(picture.convert(mode), np.float32) / 255 if found == size else None
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{plain(path.name)} is no picture that can be read: {reason(error)}") from None
    if pixels is None:
        rule = f"pictures of a reference are as large as the images of the run, {size[0]} x {size[1]}"
        raise ValueError(f"{rule}; {plain(path.name)} is {found[0]} x {found[1]}")
    return pixels[None] if mode == "L" else pixels.transpose(2, 0, 1)


def moments(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return mean `(d,)` and covariance `(d, d)` of a file .npz with `mu` and `sigma`, as pytorch-fid stores them.

    Raises:
        ValueError: if it holds something else.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            mean, covariance = (np.asarray(stored[name], float) for name in ("mu", "sigma"))
    except (OSError, KeyError, ValueError, EOFError) as error:
        raise ValueError(f"stored moments are a file .npz with mu and sigma; {plain(path)}: {reason(error)}") from None
    fits = mean.ndim == 1 and covariance.shape == 2 * mean.shape and np.isfinite(mean).all()
    if not fits or not np.isfinite(covariance).all() or not np.allclose(covariance, covariance.T, rtol=1e-5):
        found = quoted((mean.shape, covariance.shape))
        raise ValueError(f"mu is (d,) and sigma a symmetric (d, d), both finite; {plain(path)} has {found}")
    return mean, covariance


def read(run: xr.Dataset, features: Features, width: int | None = None) -> Iterator[np.ndarray]:
    """Yield the features of a run, `(unit, member, d)`, by blocks of units."""
    for _, _, part in seen(run, features):
        _check_features(part, width)
        yield part


def pictured(folder: Path, run: xr.Dataset, features: Features) -> Iterator[np.ndarray]:
    """Yield the features of the pictures of a folder, `(picture, 1, d)`."""
    if folder.suffix == ".npz":
        raise ValueError(f"a kernel distance needs a run or a folder of pictures; got the moments {plain(folder)}")
    for part in pictures(folder, dataset.images(run).shape[2:]):
        found = np.asarray(features(part[:, None]), float)
        if found.shape[:2] != (len(part), 1) or found.ndim != 3:
            raise ValueError(f"features are (unit, member, d) of images {part[:, None].shape}; got {found.shape}")
        _check_features(found, None)
        yield found


def _check_features(part: np.ndarray, width: int | None) -> None:
    if width not in (None, part.shape[-1]):
        raise ValueError(f"the reference has {width} features; the run has {part.shape[-1]}")
    bad = int((~np.isfinite(part).all(-1)).sum())
    if bad:
        raise ValueError(f"features must be finite; those of {bad} images are not")
