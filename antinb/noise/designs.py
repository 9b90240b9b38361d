"""Noise designs: arrays `(unit, member, ...)` whose units are independent and whose members are coupled.

Each member alone is exactly N(0, I). Every unit owns its random streams, so that the numbers do
not depend on how the work is cut into batches, shards or processes.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field

import numpy as np

from antinb import checks

__all__ = ["Design", "antithetic", "iid", "partial", "simplex"]


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
    _: KW_ONLY
    signs: tuple[int, ...] | None = None
    parameters: Mapping[str, object] = field(default_factory=dict)
    step_noise: Callable[[np.random.Generator, tuple[int, ...]], np.ndarray] | None = None

    def __post_init__(self) -> None:
        """Refuse a design without units or members."""
        for what in ("units", "members"):
            number = checks.integer(f"the {what} of {self.name!r}", getattr(self, what), 1)
            object.__setattr__(self, what, number)

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
        sizes, seed, stream = checks.shape(shape), checks.seed(seed), checks.integer("stream", stream, 0)
        numbers = range(self.units) if units is None else checks.units(units, self.units)
        checks.memory(f"noise of {len(numbers)} units", len(numbers), self.members, *sizes)
        couple = self.step_noise if stream and self.step_noise else self.unit_noise
        values = np.empty((len(numbers), self.members, *sizes), np.float32)
        for row, number in zip(values, numbers, strict=True):
            sequence = np.random.SeedSequence(seed, spawn_key=(stream, number))
            row[:] = couple(np.random.default_rng(sequence), sizes)
        return values

    def describe(self) -> dict[str, object]:
        """Return what defines the coupling, without the number of units: a run can be extended."""
        return {"name": self.name, "members": self.members, **self.parameters}


@checks.typed
def iid(units: int, members: int = 1) -> Design:
    """Return independent draws, one member a unit: plain Monte Carlo.

    With more members, which are independent too, a unit is a batch: the control of designs that couple as many.
    The first member of a batch is the `z` of the antithetic pair of the same unit and seed.

    Raises:
        ValueError: if `units` or `members` is not a positive integer.

    Examples:
        >>> from antinb import noise
        >>> noise.iid(100).draw((1, 2, 2), seed=0).shape
        (100, 1, 1, 2, 2)
    """
    count = checks.integer("the members of an iid unit", members, 1)
    return Design("iid", units, count, lambda rng, shape: rng.standard_normal((count, *shape)))


@checks.typed
def antithetic(units: int, *, start_only: bool = False) -> Design:
    """Return pairs `z, -z`; the correlation of the members is -1.

    A stochastic sampler's step noise is negated with the start. With `start_only` the two members
    share it instead: the control that shows what negating the start alone does.

    Raises:
        ValueError: if `units` is not a positive integer.

    Source: Jia et al., arXiv 2506.06185, section 2 ("PN pairs").

    Examples:
        >>> from antinb import noise
        >>> z, mirrored = noise.antithetic(1).draw((1, 2, 2), seed=0)[0]
        >>> bool((mirrored == -z).all())
        True
    """

    def pair(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        z = rng.standard_normal(shape)
        return np.stack([z, -z])

    def shared(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        return np.broadcast_to(rng.standard_normal(shape), (2, *shape))

    if checks.boolean("start_only", start_only):
        return Design("antithetic", units, 2, pair, signs=(1, -1), parameters={"start_only": True}, step_noise=shared)
    return Design("antithetic", units, 2, pair, signs=(1, -1))


@checks.typed
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
    mask, redraw = checks.kept(mask), checks.boolean("redraw", redraw)
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


@checks.typed
def simplex(units: int, k: int) -> Design:
    """Return groups of k members `z_j = sqrt(k / (k - 1)) (w_j - mean(w))` that sum to zero.

    The correlation of two members is `-1 / (k - 1)`, the lowest that k variables of equal correlation can have, so that
    no equicorrelated Gaussian coupling is more repulsive; `simplex(units, 2)` has the law of `antithetic(units)`.

    Raises:
        ValueError: if `units` is not a positive integer or `k` is below 2.

    Source: Jia et al., arXiv 2506.06185, K-antithetic noise; Jia, Shen and Wang, arXiv 2605.11311, on couplings.

    Examples:
        >>> from antinb import noise
        >>> group = noise.simplex(1, k=3).draw((1, 2, 2), seed=0)[0]
        >>> bool(abs(group.sum(0)).max() < 1e-6)
        True
    """
    k = checks.integer("k, the members of a simplex unit,", k, 2)

    def group(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        w = rng.standard_normal((k, *shape))
        return np.sqrt(k / (k - 1)) * (w - w.mean(0))

    return Design("simplex", units, k, group)
