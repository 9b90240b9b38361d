"""The noise that a generator predicts along lines through its states: the raw material of `symmetry`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from antinb.checks import SEEDS, at_least
from antinb.generators import Diffusion
from antinb.noise import Design
from antinb.parity import NEGLIGIBLE, odd_points
from antinb.sampling import generate

TIMESTEPS = 8


class Probe:
    """A generator's noise prediction at some timesteps, evaluated in batches; the settings are those of `symmetry`.

    Attributes:
        timesteps: levels of the model.
        coordinates: numbers of the pixels that are kept, in the flattened image.
        grid: the points s.
        negligible: variance, relative to the mean square, that is rounding in the model's precision.
    """

    def __init__(
        self,
        generator: Diffusion,
        *,
        seed: int,
        timesteps: Sequence[int] | None,
        points: int,
        coordinates: int | None,
        condition: int | None,
        batch: int,
        trajectory: bool,
    ) -> None:
        if not hasattr(generator, "predict_noise"):
            raise ValueError(f"the score needs a generator that predicts noise; got a {type(generator).__name__}")
        self.generator = generator
        self.condition = None if condition is None else at_least(0, "condition", condition)
        self.negligible = max(NEGLIGIBLE, torch.finfo(generator.like.dtype).eps ** 2)
        self.seed, self.batch = at_least(0, "seed", seed, SEEDS), at_least(1, "batch", batch)
        self.grid = np.linspace(-1, 1, odd_points(points))
        steps = generator.timesteps
        if timesteps is None:
            chosen = np.linspace(0, len(steps) - 1, min(TIMESTEPS, len(steps))).round().astype(int)
            timesteps = [steps[place] for place in chosen]
        known = steps if trajectory else range(generator.levels)
        if isinstance(timesteps, str) or not np.iterable(timesteps) or len({*timesteps}) != len(timesteps):
            raise ValueError(f"timesteps must be different levels of the model, as a list; got {timesteps!r}")
        self.timesteps, self._trajectory = [at_least(0, "a timestep", t) for t in timesteps], trajectory
        wrong = [t for t in self.timesteps if t not in known]
        if wrong or not self.timesteps:
            rule = f"one of the sampler's steps {steps}" if trajectory else f"from 0 to {generator.levels - 1}"
            raise ValueError(f"a timestep must be {rule}; got {wrong[0] if wrong else 'none'}")
        size = math.prod(generator.shape)
        kept = size if coordinates is None else at_least(1, "coordinates", coordinates, size)
        self.coordinates = np.sort(np.random.default_rng([self.seed, 1]).choice(size, kept, replace=False))

    def states(self, design: Design) -> np.ndarray:
        """Return the states `(unit, member, timestep, C, H, W)`: of the sampler's run, or the noise itself."""
        if not self._trajectory:
            noise = design.draw(self.generator.shape, seed=self.seed)
            return np.repeat(noise[:, :, None], len(self.timesteps), 2)
        places = [self.generator.timesteps.index(t) for t in self.timesteps]
        shard, parts = max(1, self.batch // design.members), []
        for start in range(0, design.units, shard):
            units = range(start, min(start + shard, design.units))
            classes = None if self.condition is None else np.full(len(units), self.condition)
            run = generate(self.generator, design, self.seed, classes, units, self.batch, trajectory=True)
            parts.append(run["state"][:, :, places])
        return np.concatenate(parts)

    def evaluations(self, predictions: int, trajectories: int) -> int:
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

    def slices(self, centres: np.ndarray, directions: np.ndarray, t: int) -> Iterator[np.ndarray]:
        """Yield for each direction `eps_t(c + s x)_i` over the grid, `(coordinates, points)`."""
        for centre, direction in zip(centres, directions, strict=True):
            along = self.grid.reshape(-1, *[1] * direction.ndim)
            yield self.predict(centre + along * direction, t).T
