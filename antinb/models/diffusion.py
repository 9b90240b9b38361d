"""Diffusion models: a network that predicts noise, or an exact mixture, and the scheduler that integrates it."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property, partial

import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DiTTransformer2DModel,
    DPMSolverMultistepScheduler,
    UNet2DModel,
)

from antinb import checks
from antinb.models.draws import StepNoise, supply
from antinb.models.exact import Mixture
from antinb.models.generator import Integrator, Network, Step, check_noise
from antinb.models.networks import parts, tensors_hash

SCHEDULERS = ("ddim", "ddpm", "dpmsolver++")

Scheduler = DDIMScheduler | DDPMScheduler | DPMSolverMultistepScheduler


def make_scheduler(config: Mapping[str, object], name: str = "ddim", *, clip: bool | None = None) -> Scheduler:
    """Return the diffusers scheduler `name` with the noise levels of `config`.

    Args:
        config: configuration of any scheduler of the same model.
        name: `"ddim"` and `"ddpm"` (time steps and variance as in `config`) or `"dpmsolver++"`
            (second-order multistep, time steps spaced evenly).
        clip: whether each predicted clean image is clipped to [-1, 1]; None keeps what `config` says.

    Raises:
        ValueError: for another scheduler, a model that does not predict noise, or clipping asked of
            `"dpmsolver++"`, which has none.
    """
    if name not in SCHEDULERS:
        raise ValueError(f"scheduler must be one of {SCHEDULERS}; got {name!r}")
    if config.get("prediction_type", "epsilon") != "epsilon":
        raise ValueError(f"the model must predict noise ('epsilon'); got {config['prediction_type']!r}")
    settings = {key: value for key, value in config.items() if not key.startswith("_")}
    if name == "dpmsolver++":
        if clip:
            raise ValueError("'dpmsolver++' does not clip the predicted image; got clip=True")
        own = {"algorithm_type": "dpmsolver++", "final_sigmas_type": "zero", "timestep_spacing": "linspace"}
        return DPMSolverMultistepScheduler.from_config(settings | own | {"clip_sample": False})
    kind = DDIMScheduler if name == "ddim" else DDPMScheduler
    return kind.from_config(settings if clip is None else settings | {"clip_sample": clip})


@dataclass(frozen=True, eq=False)
class Diffusion(Integrator):
    """A noise-prediction network and the scheduler that integrates it.

    One DDIM step is `x <- sqrt(abar') x0 + sqrt(1 - abar' - s^2) e + s w` with `e = predict_noise(x, t)`,
    `x0 = (x - sqrt(1 - abar) e) / sqrt(abar)` and `s` growing with `eta` (arXiv 2010.02502, equations
    12 and 16); DDPM is the ancestral sampler of arXiv 2006.11239, algorithm 2; the second-order
    DPM-Solver++ is algorithm 2 of arXiv 2211.01095. All call the network once a step, or twice with
    guidance, `e = e_null + g (e_condition - e_null)` (arXiv 2207.12598, with `g = 1 + w`).

    Attributes:
        network: `(x (B, C, H, W), t (), condition (B,) or None) -> noise (B, C, H, W)`.
        config: the noise levels, a configuration of any diffusers scheduler.
        shape: `(C, H, W)`.
        like: a tensor whose device and floating-point type are followed.
        steps: number of steps.
        scheduler: `"ddim"`, `"ddpm"` or `"dpmsolver++"`.
        clip: as for `make_scheduler`.
        eta: step noise of DDIM, from 0 (none) to 1 (as much as DDPM's).
        guidance: scale g of classifier-free guidance; 1 is none.
        null: the class that stands for no condition, where there is one.
        compile: whether the network runs through `torch.compile`, with its weights as constants.
        identity: name and sha256 of the weights, for the record.
    """

    settings = ("steps", "scheduler", "clip", "eta", "guidance", "compile")
    network: Network
    config: Mapping[str, object]
    shape: tuple[int, ...]
    like: torch.Tensor
    steps: int = 50
    scheduler: str = "ddim"
    clip: bool | None = None
    eta: float = 0.0
    guidance: float = 1.0
    null: int | None = None
    compile: bool = False
    identity: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse impossible settings."""
        levels = self.levels
        self._check(levels - 1 if self.scheduler == "dpmsolver++" else levels)
        if max(self.timesteps) >= levels:
            raise ValueError(
                f"{self.steps} steps start at level {max(self.timesteps)}; the model has 0 to {levels - 1}"
            )
        if not (self.clip is None or isinstance(self.clip, bool)):
            raise ValueError(f"clip must be True, False or None; got {self.clip!r}")
        checks.number("eta", self.eta, 0, 1)
        if self.eta and self.scheduler != "ddim":
            raise ValueError(f"eta belongs to the scheduler 'ddim'; got eta={self.eta!r} with {self.scheduler!r}")

    @property
    def evaluations(self) -> int:
        """Network calls for one image."""
        return self.steps * self.calls

    @property
    def levels(self) -> int:
        """Noise levels that the model knows, counted from 0, the data."""
        return len(self._fresh_scheduler.alphas_cumprod)

    def predict_noise(
        self, x: torch.Tensor, t: int | torch.Tensor, condition: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the noise `eps_t(x)` that the sampler uses, `(B, C, H, W)` to the same; `t` counts from 0, the data.

        Raises:
            ValueError: if `x` or the network's output has another shape, or guidance lacks a condition.
        """
        check_noise(x, self.shape)
        return self._guided(x, t, condition)

    @property
    def timesteps(self) -> list[int]:
        """The noise levels that the steps start from, the noise end first."""
        scheduler = self._scheduler()
        scheduler.set_timesteps(self.steps)
        return scheduler.timesteps.tolist()

    def describe(self) -> dict[str, object]:
        """Return model, weights, scheduler and its settings, steps, network calls and clipping, for the record."""
        settings = self._scheduler().config
        return {
            **self._record(),
            "eta": self.eta,
            "scheduler_config": {key: value for key, value in settings.items() if not key.startswith("_")},
            "clip_sample": settings["clip_sample"],
        }

    def noised(self, images: torch.Tensor, noise: torch.Tensor, first: int) -> torch.Tensor:
        """Return the states `sqrt(abar) x + sqrt(1 - abar) n` that step `first` starts from, `(B, C, H, W)` twice."""
        signal = self._fresh_scheduler.alphas_cumprod[self.timesteps[first]]
        return signal.sqrt() * images + (1 - signal).sqrt() * noise

    @torch.no_grad()
    def _run(
        self, noise: torch.Tensor, draw: StepNoise | None, condition: torch.Tensor | None, first: int = 0
    ) -> Iterator[Step]:
        scheduler, numbers = self._scheduler(), itertools.count(1)
        scheduler.set_timesteps(self.steps)
        stochastic = self.scheduler == "ddpm" or self.eta > 0
        step = partial(scheduler.step, eta=self.eta) if self.scheduler == "ddim" else scheduler.step
        x = self._start(noise) * scheduler.init_noise_sigma
        for t in scheduler.timesteps[first:]:
            eps = self.predict_noise(scheduler.scale_model_input(x, t), t, condition)
            with supply(len(x), draw, numbers) if stochastic else nullcontext():
                following = step(eps, t, x).prev_sample
            yield x, eps, following
            x = following

    @cached_property
    def _fresh_scheduler(self) -> Scheduler:
        return make_scheduler(self.config, self.scheduler, clip=self.clip)

    def _scheduler(self) -> Scheduler:
        return copy.deepcopy(self._fresh_scheduler)


def steps_of(config: Mapping[str, object]) -> int:
    """Return the default number of steps: 50, or all of a model's levels if there are fewer."""
    return min(50, len(make_scheduler(config).alphas_cumprod))


def from_network(
    network: UNet2DModel | DiTTransformer2DModel, config: Mapping[str, object], **identity: object
) -> Diffusion:
    """Return the generator of a diffusers network that predicts noise; `config` is its scheduler's.

    Raises:
        ValueError: if the network does not predict noise, or returns other channels than it takes.
    """
    return Diffusion(config=config, steps=steps_of(config), **parts(network, **identity))


def from_mixture(
    mixture: Mixture, shape: tuple[int, ...], config: Mapping[str, object], **identity: object
) -> Diffusion:
    """Return the generator of an exact mixture whose `(d,)` is laid out as `shape`; it does not clip.

    Raises:
        ValueError: if the shape does not hold the mixture's dimension.
    """
    if torch.Size(checks.shape(shape)).numel() != len(mixture.mean):
        raise ValueError(f"the mixture has dimension {len(mixture.mean)}; got shape {tuple(shape)}")
    levels = make_scheduler(config).alphas_cumprod.to(mixture.means)

    def network(x: torch.Tensor, t: torch.Tensor, condition: torch.Tensor | None) -> torch.Tensor:
        if condition is not None:
            raise ValueError(f"the model takes no condition; got {condition!r}")
        return mixture.predict_noise(x.flatten(1), levels[t]).unflatten(1, x.shape[1:])

    identity["network_sha256"] = tensors_hash(vars(mixture))
    return Diffusion(network, config, tuple(shape), mixture.means, steps_of(config), clip=False, identity=identity)
