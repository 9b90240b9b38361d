"""Normalizing flows, invertible maps between images and noise made of convolutional affine couplings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.distributions.transforms import AffineTransform, SigmoidTransform
from zuko.distributions import DiagNormal
from zuko.lazy import Flow, LazyTransform, UnconditionalDistribution, UnconditionalTransform
from zuko.transforms import CouplingTransform, DependentTransform, MonotonicAffineTransform

from antinb import checks
from antinb.models.decoders import OneCall

__all__ = ["NormalizingFlow"]

MARGIN, LEAST_SCALE, CELL = 0.05, 0.1, 4


class Coupling(LazyTransform):
    """One affine coupling, in which the pixels under the mask shift and scale the others.

    The map is `y_b = exp(a(x_a)) x_b + m(x_a)`, where a small convolutional network at a quarter of the resolution
    returns a and m.

    Source: Dinh, Sohl-Dickstein and Bengio, arXiv 1605.08803, equations 4 and 5.
    """

    mask: torch.BoolTensor

    def __init__(self, mask: torch.Tensor, width: int) -> None:
        super().__init__()
        self.size, inside = mask.shape[-1], CELL**2
        self.register_buffer("mask", mask.flatten(), persistent=False)
        cells = self.size // CELL
        self.first = nn.Conv2d(inside, width, 3, padding=1)
        self.place = nn.Parameter(torch.zeros(width, cells, cells))
        self.middle = nn.Sequential(
            nn.SiLU(), nn.Conv2d(width, width, 3, padding=1), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1)
        )
        self.last = nn.Conv2d(width, 2 * inside, 3, padding=1)
        self.level = nn.Parameter(torch.zeros(2 * inside, cells, cells))
        for parameter in self.last.parameters():
            nn.init.zeros_(parameter)

    def forward(self, c: torch.Tensor | None = None) -> CouplingTransform:
        """Return the transform of flat images; the context c is not used."""
        return CouplingTransform(self.transform, self.mask)

    def transform(self, given: torch.Tensor) -> DependentTransform:
        """Return the affine transform of the free pixels, `(N, free)`, from those under the mask `(N, given)`."""
        canvas = given.new_zeros(len(given), self.mask.numel())
        canvas[:, self.mask] = given
        hidden = self.first(nn.functional.pixel_unshuffle(canvas.view(-1, 1, self.size, self.size), CELL)) + self.place
        hidden = hidden + self.middle(hidden)
        output = self.last(nn.functional.silu(hidden)) + self.level
        shift, scale = nn.functional.pixel_shuffle(output.to(given), CELL).flatten(2)[..., ~self.mask].unbind(1)
        return DependentTransform(MonotonicAffineTransform(shift, scale, LEAST_SCALE), 1)


def masks(layers: int, size: int) -> torch.Tensor:
    """Return the masks of the layers, `(layers, size, size)`.

    They are chessboards, rows and columns of 1, 2 and 4 pixels. Each pattern serves two layers, and the second of
    them keeps the pixels that the first one moves.
    """
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    pairs = []
    for pair in range(-(-layers // 2)):
        scale, kind = (1, 2, 4)[pair % 3], pair // 3 % 3
        mask = ((y // scale + x // scale) % 2, y // scale % 2, x // scale % 2)[kind] == 0
        pairs += [mask, ~mask]
    return torch.stack(pairs[:layers])


def flow(layers: int, width: int, size: int, mean: torch.Tensor | None = None, sd: torch.Tensor | None = None) -> Flow:
    """Return an untrained zuko `Flow` from flat grey images `(N, size^2)` in [-1, 1] to noise.

    Grey values are squeezed to `0.5 + 0.45 x`, spread by the logit, standardized by `mean` and `sd` of shape
    `(size^2,)` (0 and 1 if None), and then pass the couplings.

    Raises:
        ValueError: if a number is not a positive integer, or the size is not a multiple of 4.
    """
    layers, width, size = (
        checks.integer("layers", layers, 1),
        checks.integer("width", width, 1),
        checks.integer("size", size, 1),
    )
    if size % CELL:
        raise ValueError(f"size must be a multiple of {CELL}; got {size}")
    mean, sd = (torch.zeros(size**2) if mean is None else mean), (torch.ones(size**2) if sd is None else sd)
    half = torch.tensor(0.5)
    return Flow(
        [
            UnconditionalTransform(AffineTransform, half, half - MARGIN, buffer=True),
            UnconditionalTransform(lambda: SigmoidTransform().inv),
            UnconditionalTransform(AffineTransform, -mean / sd, 1 / sd, buffer=True),
            *(Coupling(mask, width) for mask in masks(layers, size)),
        ],
        UnconditionalDistribution(DiagNormal, torch.zeros(size**2), torch.ones(size**2), buffer=True),
    )


@dataclass(frozen=True, eq=False)
class NormalizingFlow(OneCall):
    """A normalizing flow as a generator, the inverse of its map from images to noise in one call.

    The images lie in [-1.12, 1.12] and are not clipped.

    Attributes:
        network: a zuko `Flow` of flat grey images, which is put in evaluation mode.
        shape: `(1, H, W)`.
        identity: name and sha256 of the weights, for the record.

    Source: Dinh, Sohl-Dickstein and Bengio, arXiv 1605.08803.

    Examples:
        >>> model = NormalizingFlow(flow(2, 4, 8), (1, 8, 8))
        >>> model.generate(torch.zeros(3, 1, 8, 8)).shape
        torch.Size([3, 1, 8, 8])
    """

    network: nn.Module
    shape: tuple[int, ...]
    identity: Mapping[str, object] = field(default_factory=dict)

    def _images(self, noise: torch.Tensor) -> torch.Tensor:
        images = self.network().transform.inv(noise.flatten(1))
        return images.to(torch.promote_types(images.dtype, torch.float32)).view(-1, *self.shape)
