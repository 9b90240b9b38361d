"""Low-discrepancy designs: points that fill the unit cube evenly become pixels or slow modes of the noise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import special
from scipy.stats import qmc

from antinb import checks
from antinb.noise import modes
from antinb.noise.designs import Design

__all__ = ["latin", "sobol"]

LEADING = 64
MOST = 2**26  # points of a unit, which are drawn together
BASES = ("pixel", "spectral", "learned")

Uniforms = Callable[[np.random.Generator, int, int], np.ndarray]


@checks.typed
def sobol(
    units: int,
    n: int,
    *,
    basis: str = "spectral",
    leading: int | None = None,
    antithetic: bool = False,
    supercube: bool = False,
    direction: np.ndarray | None = None,
) -> Design:
    """Return units of n low-discrepancy points: `leading` coordinates scrambled Sobol, the others Latin hypercube.

    A unit is one scrambling. The normal quantiles of the points are coefficients of noise in a basis:
    pixels in raster order, the modes of `antinb.modes` (spectral), or these with the first one laid
    along a direction in the leading modes (learned). Step noise is independent, or a Latin supercube: each
    stream a scrambling of its own whose points are in random order.

    Args:
        units: number of scramblings.
        n: points of a unit, a power of 2.
        basis: `"pixel"`, `"spectral"` or `"learned"`.
        leading: number of Sobol coordinates, at most 21,201, the length of the tables; None takes 64, or all
            that the noise has.
        antithetic: whether half the points are drawn and the others are their negatives.
        supercube: whether step noise is of low discrepancy too.
        direction: for the learned basis: a vector in the leading modes, of any length but 0.

    Raises:
        ValueError: if n (or n / 2) is not a power of 2, the basis is unknown, another argument is out
            of its range or, when noise is drawn, it has fewer coordinates than `leading` or the direction.

    Source: Owen, Scrambled net variance for integrals of smooth functions, Ann. Stat. 25 (1997), and Latin
        supercube sampling, ACM TOMACS 8 (1998); Jia et al., arXiv 2506.06185 (pixels); the spectral order is antinb's.

    Examples:
        >>> from antinb import noise
        >>> noise.sobol(10, n=8, antithetic=True).draw((1, 4, 4), seed=0).shape
        (10, 8, 1, 4, 4)
    """
    first = checks.integer("leading", LEADING if leading is None else leading, 1, qmc.Sobol.MAXDIM)
    n, antithetic = checks.integer("n", n, 1, MOST), checks.boolean("antithetic", antithetic)
    points = n // (2 if antithetic else 1)
    if points < 2 or points & (points - 1) or points * (2 if antithetic else 1) != n:
        raise ValueError(f"n{' / 2' if antithetic else ''} must be a power of 2 and at least 2; got n = {n}")

    def uniforms(rng: np.random.Generator, count: int, dimension: int) -> np.ndarray:
        if leading is not None and leading > dimension:
            raise ValueError(f"leading must be at most the noise's {dimension} coordinates; got {leading}")
        even = qmc.Sobol(min(first, dimension), bits=30, rng=rng).random(count) + 2.0**-31
        others = max(0, dimension - first)
        return np.hstack([even, qmc.LatinHypercube(others, rng=rng).random(count)]) if others else even

    layout = _Layout(basis, antithetic, supercube, direction)
    return layout.design("sobol", units, n, uniforms=uniforms, parameters={"leading": first})


@checks.typed
def latin(
    units: int,
    n: int,
    *,
    basis: str = "spectral",
    antithetic: bool = False,
    supercube: bool = False,
    direction: np.ndarray | None = None,
) -> Design:
    """Return units of n points, each coordinate of a basis stratified by itself: Latin hypercube samples.

    The arguments and bases are those of `sobol`; n is any number from 2, even if antithetic.

    Raises:
        ValueError: if n, the basis or the direction is not as `sobol` says.

    Source: McKay, Beckman and Conover, Technometrics 21 (1979), 239-245.

    Examples:
        >>> from antinb import noise
        >>> z = noise.latin(1, n=5, basis="pixel").draw((1, 1, 1), seed=0)[0, :, 0, 0, 0]
        >>> np.sort(np.floor(special.ndtr(z.astype(float)) * 5)).astype(int)  # one point in each fifth
        array([0, 1, 2, 3, 4])
    """
    antithetic = checks.boolean("antithetic", antithetic)
    n = checks.integer("n", n, 4 if antithetic else 2, MOST)
    if antithetic and n % 2:
        raise ValueError(f"n must be even if half the points are negatives; got {n}")

    def uniforms(rng: np.random.Generator, count: int, dimension: int) -> np.ndarray:
        return qmc.LatinHypercube(dimension, rng=rng).random(count)

    layout = _Layout(basis, antithetic, supercube, direction)
    return layout.design("latin", units, n, uniforms=uniforms, parameters={})


@dataclass
class _Layout:
    """How the points of a unit become noise; the fields are arguments of `sobol`."""

    basis: str
    antithetic: bool
    supercube: bool
    direction: np.ndarray | None

    def __post_init__(self) -> None:
        """Refuse a basis or a direction that does not exist; scale the direction to length 1."""
        checks.choice("basis", self.basis, BASES)
        self.supercube = checks.boolean("supercube", self.supercube)
        if (self.basis == "learned") != (self.direction is not None):
            found = f"{self.basis!r}, {checks.quoted(self.direction)}"
            raise ValueError(f"the learned basis, and no other, takes a direction; got {found}")
        if self.direction is not None:
            vector = checks.array("a direction", self.direction)
            if vector.ndim != 1 or not np.isfinite(vector).all() or not vector.any():
                raise ValueError(f"a direction is a finite vector that is not 0; got {checks.quoted(vector)}")
            vector = vector / np.abs(vector).max()
            self.direction = checks.kept(vector / np.linalg.norm(vector))

    def design(self, name: str, units: int, n: int, *, uniforms: Uniforms, parameters: dict[str, object]) -> Design:
        """Return the design of n points a unit that `uniforms(generator, points, dimension)` draws."""
        points = n // 2 if self.antithetic else n

        def unit(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
            return self._mirrored(self._noise(uniforms(rng, points, int(np.prod(shape))), shape))

        def steps(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
            if not self.supercube:
                return self._mirrored(rng.standard_normal((points, *shape)))
            return self._mirrored(rng.permutation(self._noise(uniforms(rng, points, int(np.prod(shape))), shape)))

        about = {"basis": self.basis, "antithetic": self.antithetic}
        about |= ({"supercube": True} if self.supercube else {}) | parameters
        if self.direction is not None:
            about["direction"] = self.direction.tolist()
        return Design(name, units, n, unit, parameters=about, step_noise=steps)

    def _noise(self, uniforms: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Return the noise `(points, *shape)` of points `(points, dimension)` in the unit cube."""
        z = special.ndtri(uniforms)
        if self.direction is not None:
            if len(self.direction) > z.shape[1]:
                rule = f"a direction lies in the {z.shape[1]} modes of the noise"
                raise ValueError(f"{rule}; got {len(self.direction)} numbers")
            z = modes.reflect(z, self.direction)
        return z.reshape(-1, *shape) if self.basis == "pixel" else modes.to_noise(z, shape)

    def _mirrored(self, z: np.ndarray) -> np.ndarray:
        return np.concatenate([z, -z]) if self.antithetic else z
