"""How far an image is from the truth: statistics for `antinb.statistics.measure`, given the truth.

Each takes the truth `(C, H, W)` in [-1, 1], as generators make images, and returns a statistic of images
`(..., C, H, W)` in [0, 1]; the truth is scaled and clipped as the images are.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from antinb.dataset import RANGE
from antinb.statistics import Statistic


def l1(truth: np.ndarray) -> Statistic:
    """Return the statistic `mean |x - truth|`, in [0, 1].

    Raises:
        ValueError: if the truth is not finite or not `(C, H, W)`; inside, if an image has another shape.
    """
    return _named("l1", truth, lambda x, known: np.abs(x - known).mean((-3, -2, -1)))


def mse(truth: np.ndarray) -> Statistic:
    """Return the statistic `mean (x - truth)^2`, in [0, 1].

    Raises:
        ValueError: as `l1`.
    """
    return _named("mse", truth, lambda x, known: np.square(x - known).mean((-3, -2, -1)))


def psnr(truth: np.ndarray) -> Statistic:
    """Return the peak signal-to-noise ratio `-10 log10 mean (x - truth)^2` in decibels; infinite at the truth itself.

    Raises:
        ValueError: as `l1`.
    """

    def decibels(x: np.ndarray, known: np.ndarray) -> np.ndarray:
        import torch
        from torchmetrics.functional.image import peak_signal_noise_ratio

        pair = torch.from_numpy(x), torch.from_numpy(known).expand(x.shape)
        return peak_signal_noise_ratio(*pair, data_range=1.0, reduction="none", dim=(1, 2, 3)).numpy()

    return _named("psnr", truth, decibels)


def ssim(truth: np.ndarray) -> Statistic:
    """Return the structural similarity with the truth, `perception.ssim`, in [-1, 1].

    Raises:
        ValueError: as `l1`, or if the truth has less than 11 by 11 pixels.

    Source: Wang et al., IEEE Trans. Image Process. 13 (2004), 600-612.
    """

    def similarity(x: np.ndarray, known: np.ndarray) -> np.ndarray:
        from antinb import perception  # a stored run opens without torch

        single = x.astype(np.float32)  # double is ten times as slow
        return perception.ssim(single, np.broadcast_to(known.astype(np.float32), x.shape))

    return _named("ssim", truth, similarity)


def _named(name: str, truth: np.ndarray, metric: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Statistic:
    low, high = RANGE
    known = np.clip((np.asarray(truth, np.float64) - low) / (high - low), 0, 1)
    if known.ndim != 3 or not np.isfinite(known).all():
        raise ValueError(f"a truth is a finite image (C, H, W) in [{low:g}, {high:g}]; got shape {known.shape}")

    def statistic(images: np.ndarray) -> np.ndarray:
        if images.shape[-3:] != known.shape:
            raise ValueError(f"the truth has shape {known.shape}; got images {images.shape[-3:]}")
        lead = images.shape[:-3]
        return metric(np.ascontiguousarray(images, np.float64).reshape(-1, *known.shape), known).reshape(lead)

    statistic.__name__ = name
    return statistic
