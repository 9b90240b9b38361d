"""A network along lines to a Dataset: the noise it predicts at `c + s x`, and how odd that is in s."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
import torch
import xarray as xr
from tqdm.auto import tqdm

from antinb import checks, noise
from antinb.analysis import symmetry
from antinb.analysis.intervals import jackknife
from antinb.models.diffusion import Diffusion
from antinb.noise import Design
from antinb.sampling import generate

__all__ = ["ALONG", "Probe"]

TIMESTEPS = 8
ALONG = ("gaussian", "trajectory")
KERNELS = (symmetry.affine_antisymmetry, symmetry.nonlinear_odd_share)
QUANTITIES = ("odd share", "displacement cosine", "odd rms", "even rms", "centre rms")


class Probe:
    """A generator's noise prediction `eps_t` at some timesteps, evaluated along lines in batches.

    Args:
        generator: one with `predict_noise`.
        seed: non-negative integer; fixes the directions, the same ones at every timestep.
        timesteps: levels of the model, or of its sampler's steps along trajectories; None takes 8 of
            the steps, evenly.
        points: odd number of points of the grid in s, from -1 to 1.
        along: `"gaussian"`, directions x from N(0, I), the scale that variance-preserving noise keeps at every
            level; or `"trajectory"`, x the state at t of the sampler's run from such noise.
        coordinates: number of pixels drawn at random, the same for all; None takes all.
        condition: class, of a conditional model.
        batch: images that the network sees at once.

    Attributes:
        timesteps: levels of the model.
        coordinates: numbers of the pixels that are kept, in the flattened image.
        grid: the points s.
        negligible: variance, relative to the mean square, that is rounding in the model's precision.

    Raises:
        ValueError: if the generator has no score, the grid is even, a timestep is not in the
            schedule, or another argument is out of its range.

    Examples:
        >>> import antinb
        >>> probe = antinb.probing.Probe(antinb.load("fashion-mixture"), seed=0, timesteps=[500], coordinates=16)
        >>> probe.score(directions=2, progress=False)["affine_antisymmetry"].shape
        (1, 2, 16)
    """

    def __init__(
        self,
        generator: Diffusion,
        *,
        seed: int,
        timesteps: Sequence[int] | None = None,
        points: int = 65,
        along: str = "gaussian",
        coordinates: int | None = None,
        condition: int | None = None,
        batch: int = 64,
    ) -> None:
        if not hasattr(generator, "predict_noise"):
            raise ValueError(f"the score needs a generator that predicts noise; got a {type(generator).__name__}")
        self.generator = generator
        self.condition = None if condition is None else checks.integer("condition", condition, 0)
        self.negligible = max(symmetry.NEGLIGIBLE, torch.finfo(generator.like.dtype).eps ** 2)
        self.seed, self.batch = checks.seed(seed), checks.integer("batch", batch, 1)
        self.grid = np.linspace(-1, 1, symmetry.odd_points(points))
        steps = generator.timesteps
        if timesteps is None:
            chosen = np.linspace(0, len(steps) - 1, min(TIMESTEPS, len(steps))).round().astype(int)
            timesteps = [steps[place] for place in chosen]
        if along not in ALONG:
            raise ValueError(f"along must be one of {ALONG}; got {along!r}")
        self.along = along
        known = steps if self._trajectory else range(generator.levels)
        if isinstance(timesteps, str) or not np.iterable(timesteps) or len({*timesteps}) != len(timesteps):
            raise ValueError(f"timesteps must be different levels of the model, as a list; got {timesteps!r}")
        self.timesteps = [checks.integer("a timestep", t, 0) for t in timesteps]
        wrong = [t for t in self.timesteps if t not in known]
        if wrong or not self.timesteps:
            rule = f"one of the sampler's steps {steps}" if self._trajectory else f"from 0 to {generator.levels - 1}"
            raise ValueError(f"a timestep must be {rule}; got {wrong[0] if wrong else 'none'}")
        size = math.prod(generator.shape)
        kept = size if coordinates is None else checks.integer("coordinates", coordinates, 1, size)
        self.coordinates = np.sort(np.random.default_rng([self.seed, 1]).choice(size, kept, replace=False))

    def score(self, *, directions: int = 40, progress: bool = True) -> xr.Dataset:
        """Return AS and the non-linear odd share of slices `s -> eps_t(s x)_i`, s in [-1, 1].

        Variables `affine_antisymmetry` and `nonlinear_odd_share` by `(timestep, direction, coordinate)`,
        NaN where undefined. It takes `timesteps x directions x points` evaluations of the noise (the bar's
        total, and `evaluations` in the attrs), and the trajectories' where they are asked for. In memory
        are one direction's slices, or while they run the whole trajectories of one batch.

        Args:
            directions: number of x, the independent units.
            progress: whether to show a progress bar.

        Raises:
            ValueError: if the model returns NaN or infinity.

        Source: Jia et al., arXiv 2506.06185, section 3.
        """
        states = self._directions(directions)
        values, calls = self._measure([("origin", 0 * states)], states, progress)
        return self._dataset(values, self._evaluations(calls, len(states)), self.along).isel(centre=0, drop=True)

    def slices(self, *, directions: int = 4) -> xr.DataArray:
        """Return the slices that `score` measures, `eps_t(s x)_i` by `(timestep, direction, coordinate, s)`."""
        states = self._directions(directions)
        values = [
            list(self._lines(0 * states[:, place], states[:, place], t)) for place, t in enumerate(self.timesteps)
        ]
        coords = {"timestep": self.timesteps, "coordinate": self.coordinates, "s": self.grid}
        return xr.DataArray(np.array(values), coords, ["timestep", "direction", "coordinate", "s"], "predicted_noise")

    def at_midpoint(self, *, directions: int = 40, progress: bool = True) -> xr.Dataset:
        """Return both measures of slices `s -> eps_t(c + s u)_i` of real pairs, about the origin and their midpoint.

        The pairs run from `z` and `-z`; at t their states are `m + u` and `m - u`. The centre c is 0 or m, a
        dimension `centre` before those of `score`; each direction is a pair. `midpoint_rms` and
        `half_difference_rms`, by `(timestep, direction)`, say how far m has drifted. It costs twice what `score`
        does, and the trajectories.

        Raises:
            ValueError: as `score`, or unless the probe is along trajectories.
        """
        if not self._trajectory:
            raise ValueError(f"midpoints are those of trajectories: take along='trajectory'; got {self.along!r}")
        pair = self.states(noise.antithetic(checks.integer("directions", directions, 1)))
        middle, half = pair.mean(1), (pair[:, 0] - pair[:, 1]) / 2
        values, calls = self._measure([("origin", 0 * middle), ("midpoint", middle)], half, progress)
        data = self._dataset(values, self._evaluations(calls, 2 * len(pair)), "half-difference of pairs")
        for name, part in (("midpoint_rms", middle), ("half_difference_rms", half)):
            root = np.sqrt((part**2).reshape(*part.shape[:2], -1).mean(-1))
            data[name] = (("timestep", "direction"), root.T)
        return data

    def vector(self, *, directions: int = 100, level: float = 0.95) -> pd.DataFrame:
        """Return how odd `eps_t` is as a vector, from `eps_t(x)` and `eps_t(-x)`: a row a `timestep` and `quantity`.

        With `o = (eps(x) - eps(-x)) / 2`, `e = (eps(x) + eps(-x)) / 2` and `c_t` the mean of `e` over the other
        directions: `odd share`, `sum |o|^2 / sum (|o|^2 + (n - 1)/n |e - c_t|^2)`, whose factor makes up for
        the error of `c_t`; `displacement cosine`, the mean cosine of `eps(x) - c_t` and `eps(-x) - c_t`, -1 under
        affine antisymmetry; `odd rms`, `even rms` and `centre rms` a pixel. Intervals: jackknife over
        directions, for an rms of its square. It takes two evaluations a timestep and direction.

        Raises:
            ValueError: as `score`, or for fewer than 8 directions.
        """
        directions = checks.integer("directions", directions, 8)
        states, rows = self._directions(directions), []
        for place, t in enumerate(self.timesteps):
            plus, minus = (self.predict(sign * states[:, place], t) for sign in (1, -1))
            odd, even = (plus - minus) / 2, (plus + minus) / 2

            def quantities(units: np.ndarray, odd: np.ndarray = odd, even: np.ndarray = even) -> np.ndarray:
                return symmetry.vector_quantities(odd[units], even[units])

            for name, *numbers in zip(QUANTITIES, *jackknife(quantities, directions, level), strict=True):
                rows.append((t, name, *(np.sqrt(np.clip(numbers, 0, None)) if name.endswith("rms") else numbers)))
        about = {"level": level, "method": "jackknife over directions", "units": directions}
        about["evaluations"] = self._evaluations(2 * directions * len(self.timesteps), directions)
        return pd.DataFrame(rows, columns=["timestep", "quantity", "estimate", "low", "high"]).assign(
            **about, warning=""
        )

    def states(self, design: Design) -> np.ndarray:
        """Return the states `(unit, member, timestep, C, H, W)`: of the sampler's run, or the noise itself."""
        if not self._trajectory:
            noise = design.draw(self.generator.shape, seed=self.seed)
            return np.repeat(noise[:, :, None], len(self.timesteps), 2)
        places = [self.generator.timesteps.index(t) for t in self.timesteps]
        shard, parts = max(1, self.batch // design.members), []
        classes = None if self.condition is None else np.full(design.units, self.condition)
        settings = {"seed": self.seed, "classes": classes, "batch": self.batch, "trajectory": True}
        for start in range(0, design.units, shard):
            units = range(start, min(start + shard, design.units))
            run = generate(self.generator, design, units, **settings)
            parts.append(run["state"][:, :, places])
        return np.concatenate(parts)

    def _evaluations(self, predictions: int, trajectories: int) -> int:
        """Return the network calls of so many predicted noises and, where they are run, trajectories."""
        calls = self.generator.calls
        return predictions * calls + trajectories * self.generator.evaluations * self._trajectory

    def predict(self, states: np.ndarray, t: int) -> np.ndarray:
        """Return the predicted noise of states, `(B, C, H, W)` to `(B, coordinates)` in float64."""
        inputs = torch.from_numpy(np.ascontiguousarray(states)).to(self.generator.like)
        parts = []
        with torch.no_grad():
            for part in inputs.tensor_split(math.ceil(len(inputs) / self.batch)):
                classes = None if self.condition is None else torch.full((len(part),), self.condition)
                parts.append(self.generator.predict_noise(part, t, classes).flatten(1).double().cpu())
        values = torch.cat(parts).numpy()
        if not np.isfinite(values).all():
            raise ValueError(f"predicted noise must be finite; the model returned NaN or infinity at timestep {t}")
        return values[:, self.coordinates]

    def _lines(self, centres: np.ndarray, directions: np.ndarray, t: int) -> Iterator[np.ndarray]:
        """Yield for each direction `eps_t(c + s x)_i` over the grid, `(coordinates, points)`."""
        for centre, direction in zip(centres, directions, strict=True):
            along = self.grid.reshape(-1, *[1] * direction.ndim)
            yield self.predict(centre + along * direction, t).T

    @property
    def _trajectory(self) -> bool:
        return self.along == "trajectory"

    def _directions(self, count: int) -> np.ndarray:
        """Return the directions `(direction, timestep, C, H, W)`."""
        return self.states(noise.iid(checks.integer("directions", count, 1)))[:, 0]

    def _measure(
        self, centres: list[tuple[str, np.ndarray]], directions: np.ndarray, progress: bool
    ) -> tuple[xr.DataArray, int]:
        """Return the measures `(centre, timestep, direction, measure, coordinate)`, and the predictions made."""
        names, times, count = [name for name, _ in centres], self.timesteps, len(directions)
        values = np.empty((len(names), len(times), count, len(symmetry.MEASURES), len(self.coordinates)))
        calls = len(names) * len(times) * count * len(self.grid)
        with tqdm(total=calls, unit="evaluation", disable=not progress) as bar:
            for (row, (_, centre)), (column, t) in itertools.product(enumerate(centres), enumerate(times)):
                for place, lines in enumerate(self._lines(centre[:, column], directions[:, column], t)):
                    values[row, column, place] = [kernel(lines, negligible=self.negligible) for kernel in KERNELS]
                    bar.update(len(self.grid))
        coordinates = {"centre": names, "timestep": times, "coordinate": self.coordinates}
        return xr.DataArray(values, coordinates, ["centre", "timestep", "direction", "measure", "coordinate"]), calls

    def _dataset(self, values: xr.DataArray, evaluations: int, along: str) -> xr.Dataset:
        data = xr.Dataset({name: values.isel(measure=place) for place, name in enumerate(symmetry.MEASURES)})
        about = {"model": self.generator.describe(), "seed": self.seed, "along": along, "points": len(self.grid)}
        about |= {"condition": self.condition, "evaluations": evaluations}
        return data.assign_attrs({name: json.dumps(value) for name, value in about.items()})
