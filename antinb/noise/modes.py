"""The spectral basis: noise is a sum of modes, ordered by their expected influence on an image.

The basis is orthonormal, so N(0, I) in the modes is N(0, I) in the pixels.
"""

from __future__ import annotations

import functools
import math

import numpy as np
from scipy import fft

from antinb import checks

__all__ = ["to_noise"]

CHANNELS = np.array([[1, 1, 1], [1, 0, -1], [1, -2, 1]]) / np.sqrt([[3], [2], [6]])


@functools.lru_cache(maxsize=8)
def order(shape: tuple[int, ...]) -> np.ndarray:
    """Return the places of the modes in the flattened array of DCT coefficients, most influential first.

    Modes are sorted by `i/H + j/W`, the two difference channels of three by `2 (i/H + j/W) + 0.001`, ties
    by channel, then row, then column; axes beyond two add their share alike. The first axis is the channel.
    """
    whole = 1000 * math.lcm(*shape[1:])
    frequency = np.zeros(shape[1:], int)
    for index, size in zip(np.indices(shape[1:]), shape[1:], strict=True):
        frequency += index * (whole // size)
    keys = np.broadcast_to(frequency, shape).copy()
    if shape[0] == 3:
        keys[1:] = 2 * keys[1:] + whole // 1000
    found = np.argsort(keys, axis=None, kind="stable")
    found.flags.writeable = False
    return found


@checks.typed
def to_noise(coefficients: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return the noise `(..., *shape)` that has these coefficients `(..., d)` in the ordered modes.

    Each channel is an orthonormal inverse DCT-II; three channels are rotated back from their sum and
    two differences, `(1, 1, 1)/sqrt 3`, `(1, 0, -1)/sqrt 2`, `(1, -2, 1)/sqrt 6`.

    Examples:
        >>> flat = to_noise(np.array([2.0, 0.0, 0.0, 0.0]), (1, 2, 2))  # the first mode is the mean
        >>> flat.round(6)
        array([[[1., 1.],
                [1., 1.]]])
    """
    grid = np.empty_like(coefficients)
    grid[..., order(shape)] = coefficients
    grid = grid.reshape(*coefficients.shape[:-1], *shape)
    if len(shape) > 1:
        grid = np.asarray(fft.idctn(grid, axes=_spatial(shape), norm="ortho"))
    return _rotate(grid, shape, CHANNELS.T)


def to_modes(noise: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return the coefficients `(..., d)` of noise `(..., *shape)` in the ordered modes, `to_noise` undone."""
    grid = _rotate(noise, shape, CHANNELS)
    if len(shape) > 1:
        grid = np.asarray(fft.dctn(grid, axes=_spatial(shape), norm="ortho"))
    return grid.reshape(*noise.shape[: noise.ndim - len(shape)], -1)[..., order(shape)]


def reflect(coefficients: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """Return coefficients `(..., d)` whose first one is laid along a unit vector in the leading modes.

    `H = I - 2 v v'`, `v` the unit vector along `e_1 - direction`: a Householder reflection, its own inverse.
    """
    across = -np.asarray(direction, float)
    across[0] += 1
    length = across @ across
    if length < 1e-24:
        return coefficients
    count = len(across)
    leading = coefficients[..., :count]
    leading = leading - 2 / length * (leading @ across)[..., None] * across
    return np.concatenate([leading, coefficients[..., count:]], -1)


def _spatial(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(range(1 - len(shape), 0))


def _rotate(grid: np.ndarray, shape: tuple[int, ...], rotation: np.ndarray) -> np.ndarray:
    if shape[0] != 3:
        return grid
    axis = -len(shape)
    return np.moveaxis(np.tensordot(np.moveaxis(grid, axis, -1), rotation.T, 1), -1, axis)
