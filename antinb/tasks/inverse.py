"""Inverse solvers as generators: with a fixed measurement, a map from noise to reconstructions.

A solver has the contract of `antinb.generators`, so that `antinb.sample` runs it on any noise design. Its
estimand is a metric's mean over the solver's noise at one fixed measurement. Norms and inner products are taken
image by image: a reconstruction is a function of its own noise alone, whatever shares its batch.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import ClassVar, cast

import torch
from diffusers import DDIMScheduler

from antinb import checks
from antinb.models.diffusion import Diffusion, make_scheduler
from antinb.models.draws import StepNoise
from antinb.models.exact import DenseMixture
from antinb.models.generator import check_noise
from antinb.models.networks import tensors_hash
from antinb.tasks.operators import Operator, dot_test

__all__ = ["DDS", "DPS", "law"]

Follow = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True, eq=False)
class Solver(ABC):
    """A diffusion sampler whose steps are led by one measurement; its subclasses are DPS and DDS.

    Attributes:
        model: from `antinb.load`, with the scheduler `"ddim"`; its steps, `eta`, clipping and guidance are followed,
            and `eta=1` is the ancestral step.
        operator: what was measured, with `A` and `A_adjoint`.
        measurement: `(1, ...)`, of the shape that `operator.A` returns for one image.

    Raises:
        ValueError: if the model is another one, the adjoint is wrong, or the measurement does not fit or is not finite.
    """

    amplifies: ClassVar[bool] = True  # gradients of norms do: only equal batches make equal images
    model: Diffusion
    operator: Operator
    measurement: torch.Tensor

    def __post_init__(self) -> None:
        """Refuse what does not fit together."""
        model, y = self.model, self.measurement
        if not isinstance(model, Diffusion) or model.scheduler != "ddim" or model.compile:
            kind = getattr(model, "scheduler", type(model).__name__)
            raise ValueError(f"a solver needs a diffusion model with scheduler 'ddim', not compiled; got {kind!r}")
        if make_scheduler(model.config).alphas_cumprod[-1] == 0:
            raise ValueError("a solver needs some of the image at every level; got a model whose last level has none")
        state = self._state(torch.zeros(1, *model.shape))
        dot_test(self.operator, model.shape, like=state)
        wanted = tuple(self.operator.A(state).shape)
        if not isinstance(y, torch.Tensor) or tuple(y.shape) != wanted:
            raise ValueError(f"the operator makes measurements {wanted}; got {tuple(getattr(y, 'shape', ()))}")
        if not torch.isfinite(y).all():
            raise ValueError(f"a measurement must be finite; got {int((~torch.isfinite(y)).sum())} values that are not")

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one noise and one image, `(C, H, W)`."""
        return self.model.shape

    @property
    def evaluations(self) -> int:
        """Network calls for one reconstruction; those of DPS are each followed by a gradient."""
        return self.model.evaluations

    def generate(
        self, noise: torch.Tensor, *, draw: StepNoise | None = None, condition: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the reconstructions from the noise, `(B, C, H, W)` to the same, unclipped.

        Raises:
            ValueError: if the noise has another shape, or the model's `eta` asks for step noise and there is no `draw`.
        """
        check_noise(noise, self.shape)
        if self.model.eta and draw is None:
            raise ValueError(f"the sampler draws step noise: it needs draw=; got eta={self.model.eta!r}")
        x = self._state(noise)
        y = self.measurement.to(x)
        for stream, (t, abar, after) in enumerate(self._levels, 1):
            spread = self.model.eta * math.sqrt((1 - after) / (1 - abar) * (1 - abar / after))
            fresh = spread * draw(stream, self.shape).to(x) if spread and draw else 0
            x = self._step(x, y, (t, abar), condition, partial(_follow, after, spread, fresh))
        return x

    def describe(self) -> dict[str, object]:
        """Return the solver with its settings, the operator, the measurement's hash and the model, for the record.

        An operator without `describe` is recorded by its class alone.
        """
        about = getattr(self.operator, "describe", lambda: {"name": type(self.operator).__qualname__})()
        solver = {"solver": type(self).__name__, "operator": about, **self._settings()}
        return self.model.describe() | solver | {"measurement_sha256": tensors_hash({"y": self.measurement})}

    @abstractmethod
    def _step(
        self,
        x: torch.Tensor,
        y: torch.Tensor,
        level: tuple[int, float],
        condition: torch.Tensor | None,
        follow: Follow,
    ) -> torch.Tensor:
        """Return the next state from the timestep and its `abar`; `follow(x0, eps)` is the unconditional sampler's."""

    @abstractmethod
    def _settings(self) -> dict[str, object]:
        """Return what the solver itself can be told."""

    def _predict(
        self, x: torch.Tensor, level: tuple[int, float], condition: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the predicted clean image (Tweedie's formula), unclipped, and the predicted noise."""
        t, abar = level
        eps = self.model.predict_noise(x, t, condition)
        return (x - math.sqrt(1 - abar) * eps) / math.sqrt(abar), eps

    def _clip(self, x0: torch.Tensor) -> torch.Tensor:
        config = self._scheduler.config
        bound = config["clip_sample_range"]
        return x0.clamp(-bound, bound) if config["clip_sample"] else x0

    def _state(self, noise: torch.Tensor) -> torch.Tensor:
        like = self.model.like
        return noise.to(like.device, torch.promote_types(like.dtype, torch.float32))

    @cached_property
    def _scheduler(self) -> DDIMScheduler:
        scheduler = cast(DDIMScheduler, make_scheduler(self.model.config, "ddim", clip=self.model.clip))
        scheduler.set_timesteps(self.model.steps)
        return scheduler

    @cached_property
    def _levels(self) -> list[tuple[int, float, float]]:
        """Timestep, `abar` before and `abar` after of each step, the noise end first."""
        abar, stride = self._scheduler.alphas_cumprod.tolist(), self.model.levels // self.model.steps
        final = float(self._scheduler.final_alpha_cumprod)
        return [(t, abar[t], abar[t - stride] if t >= stride else final) for t in self._scheduler.timesteps.tolist()]


@dataclass(frozen=True, eq=False)
class DPS(Solver):
    r"""Diffusion posterior sampling: each step is corrected by the gradient of the misfit of its predicted image.

    `x <- step(x) - scale * grad_x |y - A(x0(x))|`, `x0 = (x - sqrt(1 - abar) eps(x)) / sqrt(abar)`, the norm (or,
    `squared`, its square) image by image and the gradient through the network. A step costs one network call with its
    gradient. The original takes `eta=1`; on one Gaussian the squared form is affine in all noise.

    Attributes:
        scale: length of a correction, from 0; fewer steps need longer ones.
        squared: whether the norm is squared.

    Raises:
        ValueError: as `Solver`, or if the scale is negative.

    Source: Chung et al., arXiv 2209.14687, algorithm 1; the norm instead of its square is their implementation's.
    """

    scale: float = 1.0
    squared: bool = False

    def __post_init__(self) -> None:
        """Refuse impossible settings."""
        super().__post_init__()
        checks.number("scale", self.scale, 0, 1e6)
        if not isinstance(self.squared, bool):
            raise ValueError(f"squared must be True or False; got {self.squared!r}")

    def _settings(self) -> dict[str, object]:
        return {"scale": self.scale, "squared": self.squared}

    def _step(
        self,
        x: torch.Tensor,
        y: torch.Tensor,
        level: tuple[int, float],
        condition: torch.Tensor | None,
        follow: Follow,
    ) -> torch.Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            x0, eps = self._predict(x, level, condition)
            residual = (y - self.operator.A(x0)).flatten(1)
            misfit = residual.square().sum(1) if self.squared else torch.linalg.vector_norm(residual, dim=1)
            (gradient,) = torch.autograd.grad(misfit.sum(), x)
        return follow(self._clip(x0.detach()), eps.detach()) - self.scale * gradient


@dataclass(frozen=True, eq=False)
class DDS(Solver):
    r"""Decomposed diffusion sampling: conjugate gradients draw each predicted clean image towards the measurement.

    `v` solves `(I + gamma A'A) v = x0 + gamma A'y` by `iterations` steps of CG from x0, image by image, and takes the
    place of x0 in the DDIM step. No gradient of the network is needed.

    Attributes:
        gamma: weight of the measurement, positive; `spread^2 / sigma^2` of the predicted image and the noise.
        iterations: CG steps.

    Raises:
        ValueError: as `Solver`, or if gamma is not positive or there is no iteration.

    Source: Chung, Lee and Ye, arXiv 2303.05754, algorithm 2.
    """

    gamma: float = 5.0
    iterations: int = 5

    def __post_init__(self) -> None:
        """Refuse impossible settings."""
        super().__post_init__()
        checks.number("gamma", self.gamma, 1e-12, 1e12)
        checks.integer("iterations", self.iterations, 1)

    def _settings(self) -> dict[str, object]:
        return {"gamma": self.gamma, "iterations": self.iterations}

    @torch.no_grad()
    def _step(
        self,
        x: torch.Tensor,
        y: torch.Tensor,
        level: tuple[int, float],
        condition: torch.Tensor | None,
        follow: Follow,
    ) -> torch.Tensor:
        x0, eps = self._predict(x, level, condition)
        return follow(self._consistent(self._clip(x0), y), eps)

    def _consistent(self, x0: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return the image after `iterations` CG steps; an image that is solved already stays."""
        normal = self.gamma * self.operator.A_adjoint(y - self.operator.A(x0))
        v, direction, power = x0, normal, _dot(normal, normal)
        for _ in range(self.iterations):
            ahead = direction + self.gamma * self.operator.A_adjoint(self.operator.A(direction))
            length = _ratio(power, _dot(direction, ahead))
            v, normal = v + length * direction, normal - length * ahead
            power, before = _dot(normal, normal), power
            direction = normal + _ratio(power, before) * direction
        return v


@checks.typed
def law(solver: Solver) -> DenseMixture:
    """Return the normal law of the reconstructions of a solver that is affine in all its noise.

    The reconstruction is `m + sum_k J_k w_k`, w_0 the start and w_k the step noise; m and the columns of J_k are read
    off the solver at zero and unit noise, so that the mean is m and the covariance `sum_k J_k J_k'`. On one Gaussian
    DPS in its squared form is affine, and so is DDS where its conjugate gradients have converged; the bias of any
    metric against the posterior is then known.

    Raises:
        ValueError: if the solver is not affine: its mean at noise of 1 and -1 differs from m by more than 1e-4.
    """
    size, streams = math.prod(solver.shape), solver.model.steps + 1
    unit = torch.eye(size, dtype=solver.model.like.dtype).unflatten(1, solver.shape)

    def respond(noises: list[torch.Tensor]) -> torch.Tensor:
        return solver.generate(noises[0], draw=lambda stream, _: noises[stream]).flatten(1).cpu()

    zero = torch.zeros_like(unit)
    mean = respond([zero[:1]] * streams)[0]
    twins = respond([torch.stack([torch.ones(solver.shape), -torch.ones(solver.shape)]).to(unit)] * streams)
    if not (twins.mean(0) - mean).abs().max() <= 1e-4 * (1 + mean.abs().max()):
        raise ValueError(
            "the law is that of a solver affine in its noise: on one Gaussian, unclipped, DPS squared or DDS converged"
        )
    used = range(streams if solver.model.eta else 1)
    maps = [respond([unit if stream == k else zero for stream in range(streams)]) - mean for k in used]
    return DenseMixture(torch.ones(1).to(mean), mean[None], torch.stack([part.T @ part for part in maps]).sum(0)[None])


def _follow(
    after: float, spread: float, fresh: torch.Tensor | float, x0: torch.Tensor, eps: torch.Tensor
) -> torch.Tensor:
    """Return the next state from the predicted image, the predicted and the fresh noise (arXiv 2010.02502, eq. 12)."""
    return math.sqrt(after) * x0 + math.sqrt(1 - after - spread**2) * eps + fresh


def _dot(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return (one * other).flatten(1).sum(1).reshape(-1, *[1] * (one.ndim - 1))


def _ratio(above: torch.Tensor, below: torch.Tensor) -> torch.Tensor:
    return torch.where(below > 0, above / below.clamp(min=torch.finfo(below.dtype).tiny), torch.zeros_like(above))
