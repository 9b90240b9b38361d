"""Bootstraps over units: percentile intervals of any estimator, and studentized ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import SupportsFloat

import numpy as np
from scipy import stats

from antinb import checks

__all__: list[str] = []

DRAWN_AT_ONCE = 2_000_000
RESAMPLES = 999

Scalar = Callable[[np.ndarray], SupportsFloat]


def cluster_bootstrap(
    estimator: Scalar, units: int, level: float, *, values: int | None = None
) -> tuple[float, float, float]:
    """Return `estimate, low, high` of `estimator(numbers of units)`, units drawn again with replacement 999 times.

    Whole units are resampled, so values within one need not be independent; percentile interval of
    `scipy.stats.bootstrap`, its seed fixed. An estimator for which `values` is given, the number of values that a
    resample takes in memory, is called with many resamples at once, `(..., units)` to `(...)`.

    Raises:
        ValueError: if there are fewer than 8 units or the level is not from 0.01 to 0.9999.
    """
    checks.level(level)
    if units < 8:
        raise ValueError(f"a bootstrap over units needs at least 8; got {units}")
    numbers = np.arange(units)
    found = stats.bootstrap(
        (numbers,),
        lambda drawn, axis=-1: np.asarray(estimator(drawn.astype(int)), float),
        n_resamples=RESAMPLES,
        vectorized=values is not None,
        batch=max(1, DRAWN_AT_ONCE // values) if values else None,
        confidence_level=level,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return float(estimator(numbers)), float(found.low), float(found.high)


def bootstrap_t(
    estimator: Callable[..., tuple[np.ndarray, np.ndarray]],
    *samples: np.ndarray,
    level: float,
    seed: int = 0,
    strata: Sequence[np.ndarray] = (),
) -> tuple[float, float, float]:
    r"""Return `estimate, low, high` of `estimator(*samples) -> (estimate, se)` by the studentized bootstrap.

    `estimate - (q_hi, q_lo) se`, with the quantiles of `(T* - T) / se*` over 999 resamples, each sample `(unit, ...)`
    drawn again along its first axis, within the `strata` of its units if they are given, `(unit,)` a sample. The
    estimator takes many resamples at once, `(..., unit, ...)` to `(...)` twice. Resamples without a finite value are
    left out.

    Raises:
        ValueError: if a sample has fewer than 8 units in a stratum, the level is not from 0.01 to 0.9999 or the
            seed is negative.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), section 12.5.
    """
    checks.level(level)
    rng, strata = np.random.default_rng(checks.seed(seed)), strata or [np.zeros(len(part)) for part in samples]
    counts = [np.unique(labels, return_counts=True)[1] for labels in strata]
    units = min(part.min(initial=len(labels)) for part, labels in zip(counts, strata, strict=True))
    if units < 8:
        each = " of each condition" if max(map(len, counts)) > 1 else ""
        raise ValueError(f"a bootstrap over units needs at least 8{each}; got {units}")
    estimate, se = estimator(*samples)
    block, parts = max(1, DRAWN_AT_ONCE // sum(part.size for part in samples)), []
    with np.errstate(divide="ignore", invalid="ignore"):
        for start in range(0, RESAMPLES, block):
            count = min(block, RESAMPLES - start)
            drawn = [part[_places(rng, count, labels)] for part, labels in zip(samples, strata, strict=True)]
            found = estimator(*drawn)
            parts.append((found[0] - estimate) / found[1])
    studentized = np.concatenate(parts)
    tails = [(1 + level) / 2, (1 - level) / 2]
    low, high = estimate - se * np.quantile(studentized[np.isfinite(studentized)], tails)
    return float(estimate), float(low), float(high)


def _places(rng: np.random.Generator, count: int, labels: np.ndarray) -> np.ndarray:
    """Return units drawn again within strata, `(count, unit)`; a place keeps its stratum."""
    places = np.empty((count, len(labels)), int)
    for kind in np.unique(labels):
        own = np.flatnonzero(labels == kind)
        places[:, own] = own[rng.integers(len(own), size=(count, len(own)))]
    return places
