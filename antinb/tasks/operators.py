"""Linear measurements of images: what an inverse solver asks of an operator, and seven common ones.

An operator has `A(x)`, images `(B, C, H, W)` to measurements `(B, ...)`, and `A_adjoint(y)`, its
transpose. An object of another library that has both, such as a physics of deepinv, fits as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from scipy import ndimage
from torch.nn import functional

from antinb import checks

__all__ = [
    "Linear",
    "Operator",
    "box_mask",
    "deblurring",
    "dot_test",
    "fourier",
    "inpainting",
    "line_mask",
    "matrix",
    "observe",
    "random_mask",
    "superresolution",
    "tomography",
]

TOLERANCE = 1e-5  # of the dot test
LARGEST = 64  # side of an image whose projections are held as a matrix
BICUBIC = {"mode": "bicubic", "antialias": True}


class Operator(Protocol):
    """What a solver asks of an operator: a linear map and its transpose, row by row of a batch."""

    def A(self, x: torch.Tensor) -> torch.Tensor:
        """Return the measurements of images, `(B, C, H, W)` to `(B, ...)`."""
        ...

    def A_adjoint(self, y: torch.Tensor) -> torch.Tensor:
        """Return the transpose applied to measurements, `(B, ...)` to `(B, C, H, W)`."""
        ...


@dataclass(frozen=True, eq=False)
class Linear:
    """A linear function of images; its adjoint is the vector-Jacobian product, exact by construction.

    Attributes:
        name: what it is called.
        shape: `(C, H, W)` of an image.
        forward: the function, `(B, C, H, W)` to `(B, ...)`, differentiable by torch.
        parameters: what else defines it, as values that JSON can hold.
    """

    name: str
    shape: tuple[int, ...]
    forward: Callable[[torch.Tensor], torch.Tensor]
    parameters: Mapping[str, object] = field(default_factory=dict)
    _traced: dict[str, Any] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        """Refuse a shape that is not `(C, H, W)`."""
        object.__setattr__(self, "shape", checks.shape(self.shape))
        if len(self.shape) != 3:
            raise ValueError(f"an operator takes images of shape (C, H, W); got {self.shape}")

    def __reduce__(self) -> tuple:  # what was traced stays in its process
        return Linear, (self.name, self.shape, self.forward, self.parameters)

    def A(self, x: torch.Tensor) -> torch.Tensor:
        """Return the measurements `(B, ...)` of images `(B, C, H, W)`; ValueError for images of another shape."""
        if tuple(x.shape[1:]) != self.shape:
            raise ValueError(f"{self.name} takes images (B, {', '.join(map(str, self.shape))}); got {tuple(x.shape)}")
        return self.forward(x)

    def A_adjoint(self, y: torch.Tensor) -> torch.Tensor:
        """Return the images `A'y`, `(B, ...)` to `(B, C, H, W)`; ValueError for measurements of another shape."""
        key = len(y), y.dtype, y.device
        if self._traced.get("key") != key:  # of a linear function the product is the same at every point
            measured, pull_back = torch.func.vjp(self.forward, y.new_zeros(len(y), *self.shape))[:2]
            self._traced.update(key=key, shape=measured.shape, pull_back=pull_back)
        if self._traced["shape"] != y.shape:
            raise ValueError(f"{self.name} makes measurements {tuple(self._traced['shape'])}; got {tuple(y.shape)}")
        return self._traced["pull_back"](y)[0]

    def describe(self) -> dict[str, object]:
        """Return name and parameters, for the record."""
        return {"name": self.name, **self.parameters}


@checks.typed
def inpainting(shape: tuple[int, int, int], mask: np.ndarray) -> Linear:
    """Return the operator that keeps the pixels where a mask is true, `(B, C, H, W)` to `(B, C, kept)`.

    Raises:
        ValueError: if the mask is not boolean of shape `(H, W)`, or keeps nothing.

    Examples:
        >>> operator = inpainting((1, 28, 28), box_mask((28, 28), 12))
        >>> operator.A(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 1, 640])
    """
    places = _places(shape, mask)
    return Linear("inpainting", shape, lambda x: x.flatten(-2)[..., places.to(x.device)], {"kept": places.tolist()})


@checks.typed
def superresolution(shape: tuple[int, int, int], factor: int) -> Linear:
    """Return the antialiased bicubic reduction by a factor, `(B, C, H, W)` to `(B, C, H / factor, W / factor)`.

    Raises:
        ValueError: if the factor is below 2 or does not divide height and width.

    Examples:
        >>> superresolution((1, 28, 28), 4).A(torch.ones(1, 1, 28, 28)).shape
        torch.Size([1, 1, 7, 7])
    """
    factor, (height, width) = checks.integer("factor", factor, 2), shape[-2:]
    if height % factor or width % factor:
        raise ValueError(f"factor must divide height and width, {height} and {width}; got {factor}")
    rows, columns = (
        functional.interpolate(torch.eye(side).double()[None, None], (side // factor, side), **BICUBIC)[0, 0]
        for side in (height, width)
    )
    return Linear("superresolution", shape, lambda x: rows.to(x) @ x @ columns.T.to(x), {"factor": factor})


@checks.typed
def deblurring(shape: tuple[int, int, int], width: float) -> Linear:
    """Return the Gaussian blur `k * x` of a standard deviation in pixels, `(B, C, H, W)` to the same.

    The kernel is that of `scipy.ndimage.gaussian_filter`, cut at `4 width`; images are mirrored at their border,
    whose pixels are not doubled.

    Raises:
        ValueError: if the width is not from 0.1 to a quarter of the shorter side.

    Examples:
        >>> bool(torch.allclose(deblurring((1, 8, 8), 1.0).A(torch.ones(1, 1, 8, 8)), torch.ones(1, 1, 8, 8)))
        True
    """
    checks.number("width", width, 0.1, min(shape[-2:]) / 4)
    filtered = (ndimage.gaussian_filter1d(np.eye(side), width, axis=0, mode="mirror") for side in shape[-2:])
    rows, columns = map(torch.from_numpy, filtered)
    return Linear("deblurring", shape, lambda x: rows.to(x) @ x @ columns.T.to(x), {"width": width})


@checks.typed
def fourier(shape: tuple[int, int, int], mask: np.ndarray) -> Linear:
    """Return the unitary Fourier coefficients where a mask is true, real and imaginary, `(B, C, kept, 2)`: MRI.

    The mask lies on the frequencies in the order of `numpy.fft.fft2`, 0 first.

    Raises:
        ValueError: if the mask is not boolean of shape `(H, W)`, or keeps nothing.
    """
    places = _places(shape, mask)

    def coefficients(x: torch.Tensor) -> torch.Tensor:
        return torch.view_as_real(torch.fft.fft2(x, norm="ortho").flatten(-2)[..., places.to(x.device)])

    return Linear("fourier", shape, coefficients, {"kept": places.tolist()})


@checks.typed
def tomography(shape: tuple[int, int, int], views: int) -> Linear:
    r"""Return parallel-beam projections, `(B, C, H, W)` to `(B, C, views, W)`: sparse-view CT of small images.

    View k is the image turned by `pi k / views` about its centre, interpolated bilinearly with 0 outside, summed
    along each column and divided by `sqrt(H)`, so that a detector weighs its pixels by a vector of length about 1.
    The weights are held as one dense matrix.

    Raises:
        ValueError: if `views` is not a positive integer, or the image is not square, of at most 64 by 64 pixels.

    Examples:
        >>> tomography((1, 16, 16), 6).A(torch.zeros(1, 1, 16, 16)).shape
        torch.Size([1, 1, 6, 16])
    """
    views = checks.integer("views", views, 1)
    if shape[-2] != shape[-1] or shape[-1] > LARGEST:
        raise ValueError(f"tomography takes square images of at most {LARGEST} pixels a side; got {tuple(shape)}")
    size, seen = shape[-2:], []
    pixels = torch.eye(math.prod(size), dtype=torch.float64).view(-1, 1, *size)
    for angle in (math.pi * view / views for view in range(views)):
        turn = torch.tensor([[[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0]]])
        grid = functional.affine_grid(turn.double(), [1, 1, *size], align_corners=False).expand(len(pixels), -1, -1, -1)
        seen.append(functional.grid_sample(pixels, grid, align_corners=False).sum((1, 2)).T / size[0] ** 0.5)
    weights = torch.cat(seen).T
    return Linear(
        "tomography", shape, lambda x: (x.flatten(-2) @ weights.to(x)).unflatten(-1, (views, -1)), {"views": views}
    )


@checks.typed
def random_mask(size: tuple[int, int], share: float, *, seed: int) -> np.ndarray:
    """Return a mask `(H, W)` that is true at a share of its places, rounded, drawn without replacement.

    Raises:
        ValueError: if the share is not from 0 to 1 or leaves no place, or the seed is negative.

    Examples:
        >>> int(random_mask((8, 8), 0.25, seed=0).sum())
        16
    """
    mask = np.zeros(math.prod(size), bool)
    count = checks.integer("the places of a mask", round(checks.number("share", share, 0, 1) * mask.size), 1)
    mask[np.random.default_rng(checks.seed(seed)).permutation(mask.size)[:count]] = True
    return mask.reshape(size)


@checks.typed
def box_mask(size: tuple[int, int], side: int) -> np.ndarray:
    """Return a mask `(H, W)` that is false in a square of this side in the middle, true around it.

    Raises:
        ValueError: if the side is not from 1 to one less than the shorter side of the mask.

    Examples:
        >>> int(box_mask((8, 8), 4).sum())
        48
    """
    height, width = size
    side, mask = checks.integer("side", side, 1, min(height, width) - 1), np.ones((height, width), bool)
    top, left = (height - side) // 2, (width - side) // 2
    mask[top : top + side, left : left + side] = False
    return mask


@checks.typed
def line_mask(size: tuple[int, int], share: float, *, centre: int = 4, seed: int) -> np.ndarray:
    """Return a mask `(H, W)` of whole rows of frequencies: the `centre` lowest, and a random share of the others.

    Raises:
        ValueError: if the share is not from 0 to 1, `centre` not from 1 to the height, or the seed is negative.
    """
    height, width = checks.shape(size)
    centre = checks.integer("centre", centre, 1, height)
    order = np.argsort(np.abs(np.fft.fftfreq(height)), kind="stable")
    order[centre:] = np.random.default_rng(checks.seed(seed)).permutation(order[centre:])
    chosen = centre + round(checks.number("share", share, 0, 1) * (height - centre))
    return np.broadcast_to(np.isin(np.arange(height), order[:chosen])[:, None], (height, width)).copy()


@checks.typed
def observe(operator: Operator, image: torch.Tensor | np.ndarray, *, sigma: float, seed: int) -> torch.Tensor:
    """Return one measurement `A(x) + sigma e`, `(C, H, W)` to `(1, ...)`, e normal and fixed by the seed.

    Raises:
        ValueError: if sigma or the seed is negative, or the image does not fit the operator.

    Examples:
        >>> operator = superresolution((1, 8, 8), 2)
        >>> observe(operator, torch.zeros(1, 8, 8), sigma=0.1, seed=0).shape
        torch.Size([1, 1, 4, 4])
    """
    clean, rng = operator.A(torch.as_tensor(image)[None]), np.random.default_rng(checks.seed(seed))
    noise = torch.from_numpy(rng.standard_normal(tuple(clean.shape))).to(clean)
    return clean + checks.number("sigma", sigma, 0, 1e6) * noise


@checks.typed
def dot_test(operator: Operator, shape: tuple[int, ...], *, like: torch.Tensor | None = None) -> float:
    """Return the relative error of the adjoint, `|<A x, y> - <x, A'y>| / (|A x| |y|)` at random x and y.

    Args:
        operator: a linear map with its adjoint.
        shape: `(C, H, W)` of an image.
        like: a tensor whose device and type the test is run in; float32 on the CPU if None.

    Raises:
        ValueError: if it is above 1e-5, NaN, or the shapes do not fit.

    Examples:
        >>> dot_test(superresolution((1, 8, 8), 2), (1, 8, 8)) < 1e-5
        True
    """
    rng, like = np.random.default_rng(0), torch.zeros(()) if like is None else like
    x = torch.from_numpy(rng.standard_normal((2, *shape))).to(like)
    measured = operator.A(x)
    y = torch.from_numpy(rng.standard_normal(tuple(measured.shape))).to(like)
    back = operator.A_adjoint(y)
    if len(measured) != len(x) or back.shape != x.shape:
        found = f"{tuple(measured.shape)} and {tuple(back.shape)}"
        raise ValueError(f"A and A_adjoint must keep the batch and return {tuple(x.shape)}; got {found}")
    there, here = ((one.double() * other.double()).sum() for one, other in ((measured, y), (x, back)))
    error = float((there - here).abs() / (measured.double().norm() * y.double().norm()))
    if not error <= TOLERANCE:
        raise ValueError(f"<A x, y> and <x, A_adjoint(y)> must agree to {TOLERANCE:g}, relatively; got {error:.3g}")
    return error


@checks.typed
def matrix(operator: Operator, shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Return the operator as a dense matrix `(m, d)` from flattened images to flattened measurements.

    Examples:
        >>> matrix(superresolution((1, 8, 8), 2), (1, 8, 8)).shape
        torch.Size([16, 64])
    """
    return operator.A(torch.eye(math.prod(shape), dtype=dtype).unflatten(1, shape)).flatten(1).T


def _places(shape: tuple[int, int, int], mask: np.ndarray) -> torch.Tensor:
    mask = checks.kept(mask)
    if mask.dtype != bool or mask.shape != tuple(shape[-2:]) or not mask.any():
        found = f"{mask.dtype}, {mask.shape}"
        raise ValueError(f"a mask must be boolean, of shape {tuple(shape[-2:])}, and keep something; got {found}")
    return torch.from_numpy(np.flatnonzero(mask))
