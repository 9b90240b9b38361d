"""Odd and even parts of functions on symmetric grids: array kernels on the last axes."""

from __future__ import annotations

import numpy as np

from antinb.checks import at_least

NEGLIGIBLE = 1e-10  # of float32 rounding, in a variance


def affine_antisymmetry(values: np.ndarray, *, negligible: float = NEGLIGIBLE) -> np.ndarray:
    r"""Return the affine-antisymmetry score of slices, `(..., points)` to `(...)` in [0, 1].

    `AS = 1 - sum w (e - fbar)^2 / sum w (f - fbar)^2` with `e(s) = (f(s) + f(-s)) / 2`, on a symmetric
    grid of [-1, 1] with trapezoid weights `w`: the odd share of the slice's variance. It is 1 for
    an affine antisymmetric function, 0 for an even one, and `(1 - Corr(f(s), f(-s))) / 2`. A slice
    whose variance is below `negligible` of its mean square is constant: NaN.

    Raises:
        ValueError: if the number of points is even or below 3.

    Source: Jia et al., arXiv 2506.06185, section 3.

    Examples:
        >>> import numpy as np
        >>> s = np.linspace(-1, 1, 65)
        >>> affine_antisymmetry(np.stack([s**3 + 2, s**2])).round(6)
        array([1., 0.])
    """
    odd, even, power, _ = _parts(values)
    return _share(odd, even, negligible * power)


def nonlinear_odd_share(values: np.ndarray, *, negligible: float = NEGLIGIBLE) -> np.ndarray:
    """Return the odd share of what the best affine fit in s leaves, `(..., points)` to `(...)` in [0, 1].

    The fit takes `b s` from the odd part, `b = sum w s f / sum w s^2`, and the mean from the even
    one. Anything nearly affine has AS near 1; this share says how the rest splits. NaN where that
    rest is below `negligible` of the slice's mean square: an affine slice has none.

    Raises:
        ValueError: as `affine_antisymmetry`.
    """
    odd, even, power, slope = _parts(values)
    return _share(odd - slope, even, negligible * power)


def odd_points(points: int) -> int:
    """Return the number of points of a symmetric grid if it is odd and at least 3, otherwise a ValueError."""
    if at_least(3, "points", points) % 2 == 0:
        raise ValueError(f"points must be odd, so that the grid has its centre; got {points}")
    return int(points)


def vector_quantities(odd: np.ndarray, even: np.ndarray) -> np.ndarray:
    """Return odd share, displacement cosine and mean squares of odd, even and centre, of `(direction, value)`."""
    count = len(even)
    deviation = even - even.mean(0)
    odd_power, even_power = (odd**2).sum() / count, (deviation**2).sum() / (count - 1)
    plus, minus = (deviation * count / (count - 1) + sign * odd for sign in (1, -1))
    cosine = (plus * minus).sum(1) / np.linalg.norm(plus, axis=1) / np.linalg.norm(minus, axis=1)
    size = odd.shape[1]
    centre = (even.mean(0) ** 2).sum() - even_power / count
    powers = np.array([odd_power, even_power, centre]) / size
    return np.array([odd_power / (odd_power + even_power), cosine.mean(), *powers])


def _parts(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return odd part, even part less its mean, mean square and fit b s of slices.

    All but the mean square are times the root of the trapezoid weights.
    """
    values = np.asarray(values, float)
    count = values.shape[-1] if values.ndim else 0
    grid = np.linspace(-1, 1, odd_points(count))
    weights = np.ones(count)
    weights[[0, -1]] = 0.5
    weights /= weights.sum()
    odd, even = (values - values[..., ::-1]) / 2, (values + values[..., ::-1]) / 2
    even = even - (even @ weights)[..., None]
    slope = (odd @ (weights * grid))[..., None] / (weights @ grid**2) * grid
    root = np.sqrt(weights)
    return odd * root, even * root, values**2 @ weights, slope * root


def _share(odd: np.ndarray, even: np.ndarray, negligible: np.ndarray) -> np.ndarray:
    above, below = (odd**2).sum(-1), (even**2).sum(-1)
    total = above + below
    return np.divide(above, total, out=np.full(total.shape, np.nan), where=total > negligible)
