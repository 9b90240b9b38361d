"""A judge of images: a small trained classifier, its features and probabilities."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import torch
from scipy import special
from torch import nn

from antinb import checks
from antinb.analysis.statistics import Statistic
from antinb.checks import plain, quoted
from antinb.zoo import folders, shipped, weights

__all__ = ["Classifier", "load"]

BATCH = 500


def untrained(channels: int, size: int, classes: int) -> nn.Sequential:
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
        return self._outputs(nn.Sequential(*list(self.network)[:-1]), images)

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
        return self.classes.index(checks.choice("a class", label, self.classes))

    @torch.no_grad()
    def _outputs(self, network: nn.Sequential, images: np.ndarray) -> np.ndarray:
        images = np.asarray(images, np.float32)
        parts = torch.from_numpy(2 * images - 1).reshape(-1, *images.shape[-3:]).split(BATCH)
        return torch.cat([network(part) for part in parts]).double().numpy().reshape(*images.shape[:-3], -1)


@checks.typed
def load(name: str | Path) -> Classifier:
    """Return the shipped classifier of that name, such as `"fashion-classifier"`, or the one in a folder.

    Raises:
        ValueError: if there is no such classifier, or its weights are not whole.

    Examples:
        >>> judge = load("fashion-classifier")
        >>> len(judge.classes), judge.features(np.zeros((2, 1, 28, 28))).shape
        (10, (2, 64))
    """
    known = {path.name: path for path in sorted((shipped.DATA / "models").glob("*-classifier"))}
    if not isinstance(name, (str, Path)):
        raise ValueError(f"a classifier is a name or a folder; got {quoted(name)}")
    folder = known.get(str(name), Path(name).expanduser())
    if not folder.is_dir() or not (folder / "model.safetensors").exists():
        raise ValueError(checks.unknown("no classifier or folder of one", str(name), known, "shipped are"))
    classes = folders.config(folders.enter(folder), "quality.json").get("classes")
    if not isinstance(classes, list) or len(classes) < 2 or not all(isinstance(label, str) for label in classes):
        raise ValueError(f"{plain(folder.name)}/quality.json must name the classes in a list; got {quoted(classes)}")
    first = weights.header(folder, "model").shapes.get("0.weight", ())
    if len(first) != 4:
        rule = "the first layer of a classifier is a convolution of weights (channels out, in, 3, 3)"
        raise ValueError(f"{plain(folder.name)}: {rule}; got {first}")
    build = partial(untrained, first[1], 32 if first[1] == 3 else 28, len(classes))
    with torch.random.fork_rng(devices=[]):
        network, _ = weights.filled(build, folder, "model", weights.Place())
    return Classifier(network, classes)
