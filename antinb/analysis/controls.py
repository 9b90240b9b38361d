"""Control variates: they remove from an estimate what is known about the noise or about a cheaper sampler."""

from __future__ import annotations

import json

import numpy as np
import xarray as xr

from antinb import checks, dataset
from antinb.analysis.allocation import allocation
from antinb.analysis.learning import leading_modes, learned
from antinb.analysis.levels import levels, two_level
from antinb.analysis.regression import coefficients, fit, regression, surrogate
from antinb.dataset import defined
from antinb.noise import Design

__all__ = [
    "allocation",
    "coefficients",
    "direction",
    "features",
    "learned",
    "levels",
    "regression",
    "surrogate",
    "two_level",
]


@checks.typed
def features(noise: Design, shape: tuple[int, ...], *, seed: int, leading: int = 6) -> xr.DataArray:
    """Return functions of a run's noise whose mean is known to be 0, `(feature, unit, member)`.

    They are `(c_i^2 - 1)/sqrt 2` and `c_i c_j`, i < j, of the coefficients c in the leading modes of
    `antinb.modes`: `leading (leading + 1) / 2` uncorrelated features of variance 1. Linear ones are
    left out, since they vanish in the mean over a pair or a simplex unit.

    Args:
        noise: the design of the run.
        shape: shape of one noise, the generator's `shape`.
        seed: the run's seed.
        leading: number of modes.

    Raises:
        ValueError: if `leading` is below 1 or more than the noise has modes.

    Examples:
        >>> from antinb import noise
        >>> features(noise.antithetic(10), (1, 4, 4), seed=0, leading=2)["feature"].values.tolist()
        ['mode 0^2', 'mode 0 x 1', 'mode 1^2']
    """
    leading = checks.integer("leading", leading, 1, int(np.prod(shape)))
    kept = leading_modes(noise, shape, seed, leading)
    first, second = np.triu_indices(leading)
    products = kept[..., first] * kept[..., second]
    products[..., first == second] = (products[..., first == second] - 1) / 2**0.5
    names = [f"mode {i}^2" if i == j else f"mode {i} x {j}" for i, j in zip(first, second, strict=True)]
    about = {"design": json.dumps(noise.describe()), "seed": json.dumps(seed)}
    table = xr.DataArray(products, dims=("unit", "member", "feature"), attrs=about)
    return table.assign_coords(feature=names).transpose("feature", "unit", "member")


@checks.typed
def direction(values: xr.DataArray, noise: Design, shape: tuple[int, ...], *, leading: int = 64) -> np.ndarray:
    """Return the direction `(leading,)` in the leading modes along which a statistic changes most, of length 1.

    It is that of the least-squares coefficients of the pilot's images on their modes: the statistic's mean
    gradient, if the noise is normal. `noise.sobol(..., basis="learned", direction=)` lays its best coordinate
    along it, in a run of another seed.

    Args:
        values: `(statistic, unit, member)` of a pilot, of one statistic.
        noise: the pilot's design.
        shape: shape of one noise, the generator's `shape`.
        leading: number of modes, at most a tenth of the pilot's images.

    Raises:
        ValueError: for several statistics, an undefined value, a design that is not the pilot's, or too many modes.

    Source: Stein's identity, `E[z S(z)] = E[grad S(z)]`, Ann. Stat. 9 (1981), 1135-1151.

    Examples:
        >>> from antinb import noise
        >>> design = noise.iid(100)
        >>> about = {"design": json.dumps(design.describe()), "seed": "0"}
        >>> means = design.draw((1, 4, 4), seed=0).mean((-3, -2, -1), dtype=float)
        >>> values = xr.DataArray(means[None], {"statistic": ["mean"]}, ["statistic", "unit", "member"], attrs=about)
        >>> direction(values, design, (1, 4, 4), leading=3).round(3) + 0.0
        array([1., 0., 0.])
    """
    values = dataset.measured(values, "statistic", "seed", "design")
    if values.sizes["statistic"] != 1 or json.loads(values.attrs["design"]) != json.loads(json.dumps(noise.describe())):
        raise ValueError(f"a direction is that of one statistic and its own design; got {values.sizes['statistic']}")
    table = defined(values, values["statistic"].item())
    leading = checks.integer("leading", leading, 1, min(int(np.prod(shape)), table.size // 10))
    kept = leading_modes(noise, shape, json.loads(values.attrs["seed"]), leading)
    slope = fit(table.reshape(-1, 1), kept.reshape(1, -1, leading, 1).swapaxes(1, 2))[0]
    return slope / np.linalg.norm(slope)
