"""What a viewer would say of an image: how alike two are, and what a classifier sees in them."""

from __future__ import annotations

import numpy as np
import torch
from scipy import special
from torch import nn
from torchmetrics.functional.image import structural_similarity_index_measure

from antinb.statistics import Statistic

BATCH = 500
MARGIN = 5  # pixels at each border where the window of SSIM does not fit


def ssim(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    r"""Return the structural similarity of two images, `(..., C, H, W)` in [0, 1] twice to `(...)` in [-1, 1].

    The mean, over channels and the pixels at which a window of 11 by 11 pixels fits, of
    `(2 m m' + c)(2 s_xy + d) / ((m^2 + m'^2 + c)(s^2 + s'^2 + d))`: Gaussian means m, variances s^2 and
    covariance s_xy of standard deviation 1.5, `c = 0.01^2`, `d = 0.03^2`. 1 for equal images only.

    Raises:
        ValueError: for images of different shapes or of less than 11 by 11 pixels.

    Source: Wang, Bovik, Sheikh and Simoncelli, IEEE Trans. Image Processing 13 (2004), equation 13.
    """
    first, second = np.asarray(first), np.asarray(second)
    if first.shape != second.shape or first.ndim < 3 or min(first.shape[-2:]) <= 2 * MARGIN:
        rule = f"SSIM compares images (..., C, H, W) of one shape, at least {2 * MARGIN + 1} pixels high and wide"
        raise ValueError(f"{rule}; got {first.shape} and {second.shape}")
    flat = (torch.from_numpy(np.array(part)).reshape(-1, *part.shape[-3:]).split(BATCH) for part in (first, second))
    values = [
        structural_similarity_index_measure(*parts, data_range=1.0, return_full_image=True, reduction="none")[1]
        for parts in zip(*flat, strict=True)
    ]
    inner = torch.cat(values)[..., MARGIN:-MARGIN, MARGIN:-MARGIN]
    return inner.double().mean((-3, -2, -1)).numpy().reshape(first.shape[:-3])


def network(channels: int, size: int, classes: int) -> nn.Sequential:
    """Return the untrained classifier of square images; its layers up to the last one give 64 features."""

    def block(inputs: int, outputs: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2)]

    hidden = [nn.Flatten(), nn.Dropout(0.2), nn.Linear(96 * (size // 8) ** 2, 64), nn.ReLU()]
    return nn.Sequential(*block(channels, 24), *block(24, 64), *block(64, 96), *hidden, nn.Linear(64, classes))


class Classifier:
    """A trained classifier; it takes images `(..., C, H, W)` in [0, 1], as statistics do.

    Attributes:
        classes: their names, in order.
        network: `(B, C, H, W)` in [-1, 1] to `(B, classes)`; its layers up to the last one give the features.
    """

    def __init__(self, network: nn.Sequential, classes: list[str]) -> None:
        self.network, self.classes = network.eval(), classes

    def features(self, images: np.ndarray) -> np.ndarray:
        """Return the 64 features of each image, none below 0, `(..., C, H, W)` to `(..., 64)`."""
        return self._outputs(self.network[:-1], images)

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """Return the probability of each class, `(..., C, H, W)` to `(..., classes)`."""
        return special.softmax(self._outputs(self.network, images), -1)

    def probability(self, label: str) -> Statistic:
        """Return the statistic "probability of the class `label`".

        Raises:
            ValueError: if there is no such class.
        """
        number = self.number(label)

        def statistic(images: np.ndarray) -> np.ndarray:
            return self.probabilities(images)[..., number]

        statistic.__name__ = f"P({label})"
        return statistic

    def number(self, label: str) -> int:
        """Return the number of a class; ValueError if there is no such class."""
        if label not in self.classes:
            raise ValueError(f"a class is one of {', '.join(self.classes)}; got {label!r}")
        return self.classes.index(label)

    @torch.no_grad()
    def _outputs(self, network: nn.Sequential, images: np.ndarray) -> np.ndarray:
        images = np.asarray(images, np.float32)
        parts = torch.from_numpy(2 * images - 1).reshape(-1, *images.shape[-3:]).split(BATCH)
        return torch.cat([network(part) for part in parts]).double().numpy().reshape(*images.shape[:-3], -1)
