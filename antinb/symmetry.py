"""Is the learned score odd up to a constant? Slices, shares and tests.

A function is affine antisymmetric about `m` if `f(m + x) + f(m - x)` does not depend on `x`. For
`m = 0` the paper conjectures it of the predicted noise `eps_t` at every level `t`, and explains by
it why `z` and `-z` give negatively correlated images. A step of a sampler moves the pair's midpoint
away from 0, so that what carries the symmetry on is antisymmetry about the midpoint.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence

import numpy as np
import pandas as pd
import xarray as xr
from statsmodels.stats.multitest import multipletests
from tqdm.auto import tqdm

from antinb import noise
from antinb.checks import at_least, number
from antinb.generators import Diffusion
from antinb.intervals import LEVELS, bounded_interval, bounded_p_value, cluster_bootstrap, jackknife
from antinb.parity import affine_antisymmetry, nonlinear_odd_share, vector_quantities
from antinb.probing import Probe

ALONG = ("gaussian", "trajectory")
MEASURES = ("affine_antisymmetry", "nonlinear_odd_share")
KERNELS = (affine_antisymmetry, nonlinear_odd_share)
QUANTITIES = ("odd share", "displacement cosine", "odd rms", "even rms", "centre rms")


def score(
    generator: Diffusion,
    *,
    seed: int,
    timesteps: Sequence[int] | None = None,
    directions: int = 40,
    points: int = 65,
    along: str = "gaussian",
    coordinates: int | None = None,
    condition: int | None = None,
    batch: int = 64,
    progress: bool = True,
) -> xr.Dataset:
    """Return AS and the non-linear odd share of slices `s -> eps_t(s x)_i`, s in [-1, 1].

    Variables `affine_antisymmetry` and `nonlinear_odd_share` by `(timestep, direction, coordinate)`,
    NaN where undefined. It takes `timesteps x directions x points` evaluations of the noise (the bar's
    total, and `evaluations` in the attrs), and the trajectories' where they are asked for. In memory
    are one direction's slices, or while they run the whole trajectories of one batch.

    Args:
        generator: one with `predict_noise`.
        seed: non-negative integer; fixes the directions, the same ones at every timestep.
        timesteps: levels of the model, or of its sampler's steps along trajectories; None takes 8 of
            the steps, evenly.
        directions: number of x, the independent units.
        points: odd number of points of the grid in s.
        along: `"gaussian"`, x from N(0, I), the scale that variance-preserving noise keeps at every
            level; or `"trajectory"`, x the state at t of the sampler's run from such noise.
        coordinates: number of pixels drawn at random, the same for all; None takes all.
        condition: class, of a conditional model.
        batch: images that the network sees at once.
        progress: whether to show a progress bar.

    Raises:
        ValueError: if the generator has no score, the grid is even, a timestep is not in the
            schedule, or another argument is out of its range.

    Source: Jia et al., arXiv 2506.06185, section 3.
    """
    directions = at_least(1, "directions", directions)
    options = {"timesteps": timesteps, "points": points, "coordinates": coordinates, "condition": condition}
    probe = Probe(generator, seed=seed, batch=batch, trajectory=_trajectory(along), **options)
    states = probe.states(noise.iid(directions))[:, 0]
    values, calls = _measure(probe, [("origin", 0 * states)], states, progress)
    return _dataset(probe, values, probe.evaluations(calls, directions), along).isel(centre=0, drop=True)


def slices(
    generator: Diffusion,
    *,
    seed: int,
    timesteps: Sequence[int] | None = None,
    directions: int = 4,
    points: int = 65,
    along: str = "gaussian",
    coordinates: int | None = 8,
    condition: int | None = None,
    batch: int = 64,
) -> xr.DataArray:
    """Return the slices themselves, `eps_t(s x)_i` by `(timestep, direction, coordinate, s)`: something to look at.

    Directions and coordinates are those of `score` at the same seed; so are arguments and errors.
    """
    directions = at_least(1, "directions", directions)
    options = {"timesteps": timesteps, "points": points, "coordinates": coordinates, "condition": condition}
    probe = Probe(generator, seed=seed, batch=batch, trajectory=_trajectory(along), **options)
    states = probe.states(noise.iid(directions))[:, 0]
    values = [list(probe.slices(0 * states[:, place], states[:, place], t)) for place, t in enumerate(probe.timesteps)]
    coords = {"timestep": probe.timesteps, "coordinate": probe.coordinates, "s": probe.grid}
    return xr.DataArray(np.array(values), coords, ["timestep", "direction", "coordinate", "s"], "predicted_noise")


def score_at_midpoint(
    generator: Diffusion,
    *,
    seed: int,
    timesteps: Sequence[int] | None = None,
    directions: int = 40,
    points: int = 65,
    coordinates: int | None = None,
    condition: int | None = None,
    batch: int = 64,
    progress: bool = True,
) -> xr.Dataset:
    """Return both measures of slices `s -> eps_t(c + s u)_i` of real pairs, about the origin and about their midpoint.

    The pairs run from `z` and `-z`; at t their states are `m + u` and `m - u`. The centre c is 0 or m, a
    dimension `centre` before those of `score`; each direction is a pair. `midpoint_rms` and
    `half_difference_rms`, by `(timestep, direction)`, say how far m has drifted. Arguments, cost
    (twice that of `score`, and the trajectories) and errors are those of `score`.
    """
    directions = at_least(1, "directions", directions)
    options = {"timesteps": timesteps, "points": points, "coordinates": coordinates, "condition": condition}
    probe = Probe(generator, seed=seed, batch=batch, trajectory=True, **options)
    pair = probe.states(noise.antithetic(directions))
    middle, half = pair.mean(1), (pair[:, 0] - pair[:, 1]) / 2
    values, calls = _measure(probe, [("origin", 0 * middle), ("midpoint", middle)], half, progress)
    data = _dataset(probe, values, probe.evaluations(calls, 2 * directions), "half-difference of pairs")
    for name, part in (("midpoint_rms", middle), ("half_difference_rms", half)):
        root = np.sqrt((part**2).reshape(*part.shape[:2], -1).mean(-1))
        data[name] = (("timestep", "direction"), root.T)
    return data


def vector(
    generator: Diffusion,
    *,
    seed: int,
    timesteps: Sequence[int] | None = None,
    directions: int = 100,
    along: str = "gaussian",
    condition: int | None = None,
    level: float = 0.95,
    batch: int = 64,
) -> pd.DataFrame:
    """Return how odd the whole of `eps_t` is, from `eps_t(x)` and `eps_t(-x)`: a row a `timestep` and `quantity`.

    With `o = (eps(x) - eps(-x)) / 2`, `e = (eps(x) + eps(-x)) / 2` and `c_t` the mean of `e` over the other
    directions: `odd share`, `sum |o|^2 / sum (|o|^2 + (n - 1)/n |e - c_t|^2)`, whose factor makes up for
    the error of `c_t`; `displacement cosine`, the mean cosine of `eps(x) - c_t` and `eps(-x) - c_t`, -1 under
    affine antisymmetry; `odd rms`, `even rms` and `centre rms` a pixel. Intervals: jackknife over
    directions, for an rms of its square. Arguments as for `score`, two evaluations a timestep and direction.

    Raises:
        ValueError: as `score`, or for fewer than 8 directions.
    """
    directions = at_least(8, "directions", directions)
    probe = Probe(
        generator,
        seed=seed,
        timesteps=timesteps,
        points=3,
        coordinates=None,
        condition=condition,
        batch=batch,
        trajectory=_trajectory(along),
    )
    states = probe.states(noise.iid(directions))[:, 0]
    rows = []
    for place, t in enumerate(probe.timesteps):
        plus, minus = (probe.predict(sign * states[:, place], t) for sign in (1, -1))
        odd, even = (plus - minus) / 2, (plus + minus) / 2

        def quantities(units: np.ndarray, odd: np.ndarray = odd, even: np.ndarray = even) -> np.ndarray:
            return vector_quantities(odd[units], even[units])

        for name, *numbers in zip(QUANTITIES, *jackknife(quantities, directions, level), strict=True):
            rows.append((t, name, *(np.sqrt(np.clip(numbers, 0, None)) if name.endswith("rms") else numbers)))
    about = {"level": level, "method": "jackknife over directions", "units": directions}
    about["evaluations"] = probe.evaluations(2 * directions * len(probe.timesteps), directions)
    return pd.DataFrame(rows, columns=["timestep", "quantity", "estimate", "low", "high"]).assign(**about)


def summary(data: xr.Dataset, *, level: float = 0.95) -> pd.DataFrame:
    """Return mean and 10% quantile of each measure, a row a `timestep` (and "all"), `measure` and `quantity`.

    The mean is over directions of the mean over coordinates; the quantile is over all slices. The
    intervals come from a bootstrap over directions, all slices of one together; fewer than 8
    directions have none. At 40 directions a nominal 95% covered the mean in 93% to 94% of simulated
    runs, and in 85% where directions were extremely skewed. `undefined` counts the NaN slices that are left out.

    Raises:
        ValueError: for other dimensions than those of `score` (choose a `centre` first), or a level
            not from 0.01 to 0.9999.
    """
    number("level", level, *LEVELS)
    rows = []
    for measure in MEASURES:
        values = _plain(data[measure], 3).values
        for place, t in [*enumerate(data["timestep"].values.tolist()), (slice(None), "all")]:
            part = values[:, place].reshape(len(values), -1)
            undefined, part = int(np.isnan(part).sum()), part[np.isfinite(part).any(1)]
            for quantity, values_of, estimator in (("mean", _direction_means, np.mean), ("q10", np.asarray, _tenth)):
                numbers = [np.nan] * 3
                if len(part) >= 8:
                    table = values_of(part)
                    numbers = cluster_bootstrap(lambda units, v=table, f=estimator: f(v[units]), len(part), level)
                rows.append((measure, t, quantity, *numbers, len(part), undefined))
    columns = ["measure", "timestep", "quantity", "estimate", "low", "high", "units", "undefined"]
    about = {"level": level, "method": "bootstrap over directions"}
    return pd.DataFrame(rows, columns=columns).assign(**about, evaluations=json.loads(data.attrs["evaluations"]))


def test(
    shares: xr.DataArray, *, threshold: float = 0.9, alternative: str = "greater", level: float = 0.95
) -> pd.DataFrame:
    """Return tests of the mean odd share by timestep: is it above (below) `threshold`?

    Null: the mean over directions of the share is at most (with `"less"`: at least) `threshold`.
    The units are directions; coordinates of one are averaged first, never counted as replicates.
    Shares are bounded and skewed, so the test is `intervals.bounded_p_value`, valid for any such
    distribution. `p_holm` is adjusted over timesteps, `rejected` at `1 - level`; `effect` is
    the mean less the threshold; `low, high` is the interval of `intervals.bounded_interval`.

    Args:
        shares: by `(timestep, direction)` and perhaps `coordinate`, in [0, 1].
        threshold: strictly between 0 and 1.
        alternative: `"greater"` or `"less"`.
        level: of the intervals; one minus it is the level of the tests, all timesteps together.

    Raises:
        ValueError: if an argument is out of its range, there are other dimensions (choose a
            `centre` first) or a timestep has no defined share.
    """
    means = _plain(shares, 2)
    means = means.mean("coordinate") if "coordinate" in means.dims else means
    rows = []
    for place, t in enumerate(means["timestep"].values.tolist()):
        values = means.isel(timestep=place).values
        defined = values[np.isfinite(values)]
        p_value = bounded_p_value(defined, threshold, alternative)
        low, high = bounded_interval(defined, level)
        row = {"timestep": t, "alternative": alternative, "threshold": threshold, "estimate": defined.mean()}
        row |= {"low": low, "high": high, "effect": defined.mean() - threshold, "p_value": p_value}
        rows.append(row | {"units": defined.size, "undefined": values.size - defined.size})
    table = pd.DataFrame(rows)
    rejected, adjusted, *_ = multipletests(table["p_value"], 1 - level, method="holm")
    return table.assign(p_holm=adjusted, rejected=rejected, level=level, method="bounded mean, betting")


def _plain(values: xr.DataArray, least: int) -> xr.DataArray:
    """Return the values `(direction, timestep[, coordinate])`, refusing any other dimension."""
    wanted = ("direction", "timestep", "coordinate")
    dims = tuple(dim for dim in wanted if dim in values.dims)
    if set(dims) != set(values.dims) or dims[:least] != wanted[:least]:
        raise ValueError(f"shares have the dimensions {wanted}; got {values.dims}")
    return values.transpose(*dims)


def _trajectory(along: str) -> bool:
    if along not in ALONG:
        raise ValueError(f"along must be one of {ALONG}; got {along!r}")
    return along == "trajectory"


def _measure(
    probe: Probe, centres: list[tuple[str, np.ndarray]], directions: np.ndarray, progress: bool
) -> tuple[xr.DataArray, int]:
    """Return the measures `(centre, timestep, direction, measure, coordinate)` of lines, and the predictions made."""
    names, times, count = [name for name, _ in centres], probe.timesteps, len(directions)
    values = np.empty((len(names), len(times), count, len(MEASURES), len(probe.coordinates)))
    calls = len(names) * len(times) * count * len(probe.grid)
    with tqdm(total=calls, unit="evaluation", disable=not progress) as bar:
        for (row, (_, centre)), (column, t) in itertools.product(enumerate(centres), enumerate(times)):
            for place, slices in enumerate(probe.slices(centre[:, column], directions[:, column], t)):
                values[row, column, place] = [kernel(slices, negligible=probe.negligible) for kernel in KERNELS]
                bar.update(len(probe.grid))
    coordinates = {"centre": names, "timestep": times, "coordinate": probe.coordinates}
    return xr.DataArray(values, coordinates, ["centre", "timestep", "direction", "measure", "coordinate"]), calls


def _dataset(probe: Probe, values: xr.DataArray, evaluations: int, along: str) -> xr.Dataset:
    data = xr.Dataset({name: values.isel(measure=place) for place, name in enumerate(MEASURES)})
    about = {"model": probe.generator.describe(), "seed": probe.seed, "along": along, "points": len(probe.grid)}
    about |= {"condition": probe.condition, "evaluations": evaluations}
    return data.assign_attrs({name: json.dumps(value) for name, value in about.items()})


def _direction_means(values: np.ndarray) -> np.ndarray:
    return np.nanmean(values, 1)


def _tenth(values: np.ndarray) -> float:
    return float(np.nanquantile(values, 0.1) if np.isnan(values.sum()) else np.quantile(values, 0.1))
