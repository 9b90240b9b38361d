"""How a sampler carries the symmetry of its steps on to the correlation of the images."""

from __future__ import annotations

import numpy as np
import pandas as pd
import xarray as xr

from antinb.intervals import jackknife

RESIDUAL, ROUNDING = 1e-3, 1e-5


def predict_correlation(data: xr.Dataset, *, level: float = 0.95) -> pd.DataFrame:
    """Return the correlation of a pair that the even parts of the steps imply, a row a `step` and `quantity`.

    A deterministic first-order step is `y' = a y + b eps(y)`; a pair `m +- u` then has
    `m_K = sum_k A_k b_k E_k`, E the even part of `eps` at step k and `A_k` the product of the later a. With
    variances over pairs, summed over pixels after each image's own mean is taken off:

    - `predicted`: `(Var m - Var u) / (Var m + Var u)`, m summed up from the even parts;
    - `independent`: the same if the even parts of different steps were uncorrelated, `Var m = sum_k V_k`;
    - `bound`: the most that those `V_k` allow, `Var m <= (sum_k V_k^(1/2))^2`;
    - `observed`: covariance over variance of the two members of the run itself.

    That `predicted` meets `observed` on the same pairs is algebra, up to 1 / pairs; on other pairs it
    is a prediction. Intervals: jackknife over pairs. `step` counts the steps done. In memory are the
    even parts of all steps, in float64, a few times over.

    Args:
        data: antithetic pairs of a run with trajectories.
        level: of the intervals.

    Raises:
        ValueError: if there are no trajectories, the units are not pairs z and -z, or a step is not of this
            form, as with step noise, clipping or a sampler of higher order.
    """
    if "state" not in data or data.sizes["member"] != 2:
        found = f"{list(data.data_vars)} with {data.sizes['member']} members"
        raise ValueError(f"a prediction needs pairs with trajectories; got {found}")
    starts = data["state"].isel(step=0).values
    if np.abs(starts.sum(1)).max() > ROUNDING * np.abs(starts).max():
        raise ValueError("a prediction needs pairs that start from z and -z; the members of these units do not")
    names = ("predicted", "independent", "bound", "observed")
    contributions = np.empty((0, data.sizes["unit"], data["image"][0, 0].size))
    rows = []
    for step in range(data.sizes["step"]):
        last = step + 1 == data.sizes["step"]
        following = data["image"] if last else data["state"].isel(step=step + 1)
        before, eps, after = (
            part.values.astype(float).reshape(*part.shape[:2], -1)
            for part in (data["state"].isel(step=step), data["predicted_noise"].isel(step=step), following)
        )
        a, b = _step(before, eps, after, step)
        even = _deviations(eps.mean(1))
        contributions = np.concatenate([a * contributions, b * even[None]])
        members = _deviations(after)

        def correlations(
            units: np.ndarray, parts: np.ndarray = contributions, pairs: np.ndarray = members
        ) -> np.ndarray:
            return _correlations(parts[:, units], pairs[units])

        for name, *numbers in zip(names, *jackknife(correlations, len(even), level), strict=True):
            rows.append((step + 1, name, *numbers))
    table = pd.DataFrame(rows, columns=["step", "quantity", "estimate", "low", "high"])
    return table.assign(level=level, method="jackknife over pairs", units=data.sizes["unit"])


def _step(before: np.ndarray, eps: np.ndarray, after: np.ndarray, step: int) -> tuple[float, float]:
    """Return a and b of `after = a before + b eps`, refusing a step that is not of this form."""
    known = np.stack([before.ravel(), eps.ravel()], 1)
    solution, *_ = np.linalg.lstsq(known, after.ravel(), rcond=None)
    residual = np.linalg.norm(known @ solution - after.ravel()) / np.linalg.norm(after)
    if residual > RESIDUAL:
        rule = "every step must be affine in the predicted noise (no step noise, no clipping, first order)"
        raise ValueError(f"{rule}; step {step} leaves {residual:.2g} of its state")
    return float(solution[0]), float(solution[1])


def _deviations(images: np.ndarray) -> np.ndarray:
    return images - images.mean(-1, keepdims=True)


def _correlations(parts: np.ndarray, members: np.ndarray) -> np.ndarray:
    """Return predicted, independent, bound and observed of `(step, pair, value)` and `(pair, member, value)`."""
    pairs = members.shape[0]
    moving = (parts - parts.mean(1, keepdims=True)).reshape(len(parts), -1)
    gram = moving @ moving.T / (pairs - 1)
    own = np.diag(gram)
    half = (members[:, 0] - members[:, 1]) / 2
    spread = (half**2).sum() / pairs
    middles = np.array([gram.sum(), own.sum(), np.sqrt(own).sum() ** 2])
    first, second = (members - members.mean(0)).swapaxes(0, 1)
    observed = 2 * (first * second).sum() / ((first**2).sum() + (second**2).sum())
    return np.array([*((middles - spread) / (middles + spread)), observed])
