"""Noise designs: arrays `(unit, member, ...)` whose units are independent and whose members are coupled.

Each member alone is exactly N(0, I). Every unit owns its random streams, so that the numbers do
not depend on how the work is cut into batches, shards or processes.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy import special
from scipy.stats import qmc

from antinb import modes
from antinb.checks import SEEDS, at_least, check_shape

LEADING = 64
BASES = ("pixel", "spectral", "learned")
Uniforms = Callable[[np.random.Generator, int, int], np.ndarray]


@dataclass(frozen=True, eq=False)
class Design:
    """A lazy noise design; `draw` computes the units asked for and no others.

    Attributes:
        name: `"iid"`, `"antithetic"`, `"simplex"`, `"partial"`, `"sobol"`, `"latin"`.
        units: number of independent units.
        members: number of coupled members in each unit.
        unit_noise: noise of one unit, `(generator, shape) -> (members, *shape)` in float64.
        signs: the sign of each member, where that means something.
        parameters: what else defines the design, as values that JSON can hold.
        step_noise: like `unit_noise`, for the streams after the first; None if it is the same.
    """

    name: str
    units: int
    members: int
    unit_noise: Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]
    signs: tuple[int, ...] | None = None
    parameters: Mapping[str, object] = field(default_factory=dict)
    step_noise: Callable[[np.random.Generator, tuple[int, ...]], np.ndarray] | None = None

    def __post_init__(self) -> None:
        """Refuse a design without units."""
        object.__setattr__(self, "units", at_least(1, f"the units of {self.name!r}", self.units))

    def draw(
        self, shape: Sequence[int], *, seed: int, units: Sequence[int] | None = None, stream: int = 0
    ) -> np.ndarray:
        """Return the noise of some units, `(len(units), members, *shape)` in float32.

        Unit `i` draws from `SeedSequence(seed, spawn_key=(stream, i))`, whatever else is drawn.

        Args:
            shape: shape of one member, such as `(channels, height, width)`.
            seed: non-negative integer.
            units: unit numbers, all of them if None.
            stream: 0 for the initial noise, 1, 2, ... for the step noise in order.

        Raises:
            ValueError: if the shape is not of positive integers, a unit is not one of the
                design's, or seed or stream is negative.

        Examples:
            >>> from antinb import noise
            >>> pair = noise.antithetic(100).draw((1, 2, 2), seed=0, units=[41])
            >>> pair.shape, bool((pair[:, 0] == -pair[:, 1]).all())
            ((1, 2, 1, 2, 2), True)
        """
        sizes = check_shape(shape)
        at_least(0, "seed", seed, SEEDS)
        at_least(0, "stream", stream)
        numbers = range(self.units) if units is None else units
        wrong = [number for number in numbers if not 0 <= number < self.units]
        if wrong:
            raise ValueError(f"the design has units 0 to {self.units - 1}; got unit {wrong[0]}")
        couple = self.step_noise if stream and self.step_noise else self.unit_noise
        values = np.empty((len(numbers), self.members, *sizes), np.float32)
        for row, number in zip(values, numbers, strict=True):
            sequence = np.random.SeedSequence(seed, spawn_key=(stream, int(number)))
            row[:] = couple(np.random.default_rng(sequence), sizes)
        return values

    def describe(self) -> dict[str, object]:
        """Return what defines the coupling, without the number of units: a run can be extended."""
        return {"name": self.name, "members": self.members, **self.parameters}


def iid(units: int, members: int = 1) -> Design:
    """Return independent draws, one member a unit: plain Monte Carlo.

    With more members, which are independent too, a unit is a batch: the control of designs that couple as many.
    The first member of a batch is the `z` of the antithetic pair of the same unit and seed.

    Raises:
        ValueError: if `units` or `members` is not a positive integer.
    """
    count = at_least(1, "the members of an iid unit", members)
    return Design("iid", units, count, lambda rng, shape: rng.standard_normal((count, *shape)))


def antithetic(units: int, *, start_only: bool = False) -> Design:
    """Return pairs `z, -z`; the correlation of the members is -1.

    A stochastic sampler's step noise is negated with the start. With `start_only` the two members
    share it instead: the control that shows what negating the start alone does.

    Raises:
        ValueError: if `units` is not a positive integer.

    Source: Jia et al., arXiv 2506.06185, section 2 ("PN pairs").
    """

    def pair(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        z = rng.standard_normal(shape)
        return np.stack([z, -z])

    def shared(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        return np.broadcast_to(rng.standard_normal(shape), (2, *shape))

    if start_only:
        return Design("antithetic", units, 2, pair, (1, -1), {"start_only": True}, shared)
    return Design("antithetic", units, 2, pair, signs=(1, -1))


def partial(units: int, mask: np.ndarray, *, redraw: bool = False) -> Design:
    """Return pairs that differ where the mask is true and are equal elsewhere.

    Member 0 is `z`; member 1 is `-z` where the mask is true and `z` where it is false. With
    `redraw` it is an independent draw `z'` instead of `-z`: the control that shows what sharing the
    rest does by itself. Step noise of the mask's shape is treated alike.

    Args:
        units: number of pairs.
        mask: boolean, of the noise's shape or broadcast to it, such as `(height, width)`.
        redraw: whether the masked part is drawn anew instead of negated.

    Raises:
        ValueError: if `units` is not a positive integer, the mask is not boolean (a soft mask would
            not leave N(0, I)) or, when noise is drawn, does not fit its shape.

    Examples:
        >>> import numpy as np
        >>> from antinb import noise
        >>> upper = np.arange(4)[:, None] < np.full(4, 2)
        >>> z, other = noise.partial(1, upper).draw((1, 4, 4), seed=0)[0]
        >>> bool((other[:, :2] == -z[:, :2]).all() and (other[:, 2:] == z[:, 2:]).all())
        True

    Source: Jia et al., arXiv 2506.06185 (partial negation); the control arm is antinb's.
    """
    mask = np.asarray(mask)
    if mask.dtype != bool:
        raise ValueError(f"a mask must be boolean: a soft one would not leave N(0, I); got {mask.dtype}")

    def pair(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        try:
            where = np.broadcast_to(mask, shape)
        except ValueError:
            raise ValueError(f"the mask must fit noise of shape {shape}; got {mask.shape}") from None
        z = rng.standard_normal(shape)
        return np.stack([z, np.where(where, rng.standard_normal(shape) if redraw else -z, z)])

    bits = base64.b85encode(zlib.compress(np.packbits(mask).tobytes())).decode()
    return Design("partial", units, 2, pair, parameters={"mask": [*mask.shape, bits], "redraw": redraw})


def simplex(units: int, k: int) -> Design:
    """Return groups of k members `z_j = sqrt(k / (k - 1)) (w_j - mean(w))` that sum to zero.

    The correlation of two members is `-1 / (k - 1)`; `simplex(units, 2)` has the law of `antithetic(units)`.

    Raises:
        ValueError: if `units` is not a positive integer or `k` is below 2.

    Source: Jia et al., arXiv 2506.06185, K-antithetic noise.
    """
    k = at_least(2, "k, the members of a simplex unit,", k)

    def group(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        w = rng.standard_normal((k, *shape))
        return np.sqrt(k / (k - 1)) * (w - w.mean(0))

    return Design("simplex", units, k, group)


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
    """
    first = at_least(1, "leading", LEADING if leading is None else leading, qmc.Sobol.MAXDIM)
    points = at_least(1, "n", n) // (2 if antithetic else 1)
    if points < 2 or points & (points - 1) or points * (2 if antithetic else 1) != n:
        raise ValueError(f"n{' / 2' if antithetic else ''} must be a power of 2 and at least 2; got n = {n}")

    def uniforms(rng: np.random.Generator, count: int, dimension: int) -> np.ndarray:
        if leading is not None and leading > dimension:
            raise ValueError(f"leading must be at most the noise's {dimension} coordinates; got {leading}")
        even = qmc.Sobol(min(first, dimension), bits=30, rng=rng).random(count) + 2.0**-31
        others = max(0, dimension - first)
        return np.hstack([even, qmc.LatinHypercube(others, rng=rng).random(count)]) if others else even

    about = {"leading": first}
    return _quadrature("sobol", units, n, uniforms, basis, antithetic, supercube, direction, about)


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
    """
    points = at_least(4 if antithetic else 2, "n", n) // (2 if antithetic else 1)
    if antithetic and 2 * points != n:
        raise ValueError(f"n must be even if half the points are negatives; got {n}")

    def uniforms(rng: np.random.Generator, count: int, dimension: int) -> np.ndarray:
        return qmc.LatinHypercube(dimension, rng=rng).random(count)

    return _quadrature("latin", units, n, uniforms, basis, antithetic, supercube, direction, {})


def _quadrature(
    name: str,
    units: int,
    n: int,
    uniforms: Uniforms,
    basis: str,
    antithetic: bool,
    supercube: bool,
    direction: np.ndarray | None,
    parameters: dict[str, object],
) -> Design:
    if basis not in BASES:
        raise ValueError(f"basis must be one of {BASES}; got {basis!r}")
    if (basis == "learned") != (direction is not None):
        raise ValueError(f"the learned basis, and no other, takes a direction; got {basis!r}, {direction!r}")
    if direction is not None:
        direction = np.asarray(direction, float)
        if direction.ndim != 1 or not np.isfinite(direction).all() or not direction.any():
            raise ValueError(f"a direction is a finite vector that is not 0; got {direction}")
        direction = direction / np.linalg.norm(direction)
        parameters = {**parameters, "direction": direction.tolist()}
    points = n // 2 if antithetic else n

    def mirrored(z: np.ndarray) -> np.ndarray:
        return np.concatenate([z, -z]) if antithetic else z

    def once(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        dimension = int(np.prod(shape))
        z = special.ndtri(uniforms(rng, points, dimension))
        if direction is not None:
            if len(direction) > dimension:
                raise ValueError(
                    f"a direction lies in the {dimension} modes of the noise; got {len(direction)} numbers"
                )
            z = modes.reflect(z, direction)
        return z.reshape(points, *shape) if basis == "pixel" else modes.to_noise(z, shape)

    def unit(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        return mirrored(once(rng, shape))

    def steps(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        return mirrored(rng.permutation(once(rng, shape)) if supercube else rng.standard_normal((points, *shape)))

    about = {"basis": basis, "antithetic": antithetic, **({"supercube": True} if supercube else {}), **parameters}
    return Design(name, units, n, unit, parameters=about, step_noise=steps)
