"""Diffusion models: a network that predicts noise, image or velocity, or an exact mixture, and its scheduler."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import KW_ONLY, dataclass, field
from functools import cached_property, partial
from typing import Any

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
from antinb.models.generator import Integrator, Network, Step, check_noise, check_scheduler
from antinb.models.networks import learned, parts, scheduler, settings, tensors_hash

__all__ = ["Diffusion", "from_mixture", "make_scheduler"]

Scheduler = DDIMScheduler | DDPMScheduler | DPMSolverMultistepScheduler
PREDICTIONS = ("epsilon", "sample", "v_prediction")
LEARNED = ("learned", "learned_range")  # variance types of DDPM for networks that return variances


@checks.typed
def make_scheduler(config: Mapping[str, Any], name: str = "ddim", *, clip: bool | None = None) -> Scheduler:
    """Return the diffusers scheduler `name` with the noise levels of `config`.

    Args:
        config: configuration of any scheduler of the same model.
        name: `"ddim"` and `"ddpm"` (time steps and variance as in `config`) or `"dpmsolver++"`
            (second-order multistep, time steps spaced evenly).
        clip: whether each predicted clean image is clipped to [-1, 1]; None takes the setting of `config`.

    Raises:
        ValueError: for another scheduler, for a model that predicts neither the noise, nor the image, nor the
            velocity, or for clipping with `"dpmsolver++"`, which cannot clip.

    Examples:
        >>> levels = make_scheduler({"num_train_timesteps": 100}, "ddim").alphas_cumprod
        >>> len(levels), bool(levels[0] > levels[-1])
        (100, True)
    """
    check_scheduler("diffusion", name)
    checks.choice("prediction_type", config.get("prediction_type", "epsilon"), PREDICTIONS)
    if name == "dpmsolver++":
        if clip:
            raise ValueError("'dpmsolver++' does not clip the predicted image; got clip=True")
        own = {"algorithm_type": "dpmsolver++", "final_sigmas_type": "zero", "timestep_spacing": "linspace"}
        return scheduler(DPMSolverMultistepScheduler, {**config, **own, "variance_type": None, "clip_sample": False})
    chosen = config if clip is None else {**config, "clip_sample": clip}
    return scheduler(DDIMScheduler, chosen) if name == "ddim" else scheduler(DDPMScheduler, chosen)


@dataclass(frozen=True, eq=False)
class Diffusion(Integrator):
    """A network that predicts the noise, the image or the velocity, and the scheduler that runs it.

    One DDIM step is `x <- sqrt(abar') x0 + sqrt(1 - abar' - s^2) e + s w` with `e = predict_noise(x, t)`,
    `x0 = (x - sqrt(1 - abar) e) / sqrt(abar)` and `s` growing with `eta` (arXiv 2010.02502, equations
    12 and 16). DDPM is the ancestral sampler of arXiv 2006.11239, algorithm 2. DPM-Solver++ of second order
    is algorithm 2 of arXiv 2211.01095. All of them call the network once a step, or twice with guidance,
    `e = e_null + g (e_condition - e_null)` (arXiv 2207.12598, with `g = 1 + w`).

    The configuration's `prediction_type` says what the network returns: the noise e (`"epsilon"`), the image x0
    (`"sample"`) or the velocity `v = sqrt(abar) e - sqrt(1 - abar) x0` (`"v_prediction"`, arXiv 2202.00512). Its noise
    is then `e = (x - sqrt(abar) x0) / sqrt(1 - abar)` or `e = sqrt(abar) v + sqrt(1 - abar) x`.

    Attributes:
        network: `(x (B, C, H, W), t (), condition (B,) or None) -> output (B, C, H, W)`.
        config: configuration of any diffusers scheduler, for the noise levels and the kind of output.
        shape: `(C, H, W)`.
        like: a tensor that sets the device and dtype.
        steps: number of steps.
        scheduler: `"ddim"`, `"ddpm"` or `"dpmsolver++"`.
        clip: as for `make_scheduler`.
        eta: step noise of DDIM, from 0 (none) to 1 (as much as DDPM's).
        guidance: scale g of classifier-free guidance; 1 turns it off.
        null: the class that stands for no condition, where there is one.
        conditions: number of classes, that one not counted.
        compile: whether the network runs through `torch.compile`, with its weights as constants.
        identity: name and sha256 of the weights, for the record.
        learned: whether the network returns variances in as many channels again, which only `"ddpm"` uses.

    Examples:
        >>> model = Diffusion(lambda x, t, condition: x, {}, (1, 2, 2), torch.zeros(()), steps=2, clip=False)
        >>> model.timesteps, model.evaluations
        ([500, 0], 2)
    """

    kind = "diffusion"
    settings = ("steps", "scheduler", "clip", "eta", "guidance", "null", "compile")
    network: Network
    config: Mapping[str, Any]
    shape: tuple[int, ...]
    like: torch.Tensor
    _: KW_ONLY
    steps: int = 50
    scheduler: str = "ddim"
    clip: bool | None = None
    eta: float = 0.0
    guidance: float = 1.0
    null: int | None = None
    conditions: int = 0
    compile: bool = False
    identity: Mapping[str, object] = field(default_factory=dict)
    learned: bool = False

    def __post_init__(self) -> None:
        """Refuse impossible settings."""
        if self.clip is not None:
            object.__setattr__(self, "clip", checks.boolean("clip", self.clip))
        levels = self.levels
        self._check(levels - 1 if self.scheduler == "dpmsolver++" else levels)
        if max(self.timesteps) >= levels:
            raise ValueError(
                f"{self.steps} steps start at level {max(self.timesteps)}; the model has 0 to {levels - 1}"
            )
        object.__setattr__(self, "eta", checks.number("eta", self.eta, 0, 1))
        if self.eta and self.scheduler != "ddim":
            raise ValueError(f"eta belongs to the scheduler 'ddim'; got eta={self.eta!r} with {self.scheduler!r}")
        if self._uses_variance and not self.learned:
            found = self.config["variance_type"]
            raise ValueError(f"'ddpm' with variance_type {found!r} needs a network that returns variances; it does not")

    @property
    def evaluations(self) -> int:
        """Network calls for one image."""
        return self.steps * self.calls

    @property
    def levels(self) -> int:
        """Number of noise levels that the model knows; level 0 is next to the data."""
        return len(self._fresh_scheduler.alphas_cumprod)

    def predict_noise(
        self, x: torch.Tensor, t: int | torch.Tensor, condition: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the noise `eps_t(x)` of the network's output, `(B, C, H, W)` to the same; t = 0 is next to the data.

        Raises:
            ValueError: if `x` or the network's output has another shape, or guidance lacks a condition.
        """
        check_noise(x, self.shape)
        return self._noise(x, t, self._guided(x, t, condition)[:, : x.shape[1]])

    def _noise(self, x: torch.Tensor, t: int | torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        """Return the noise in x that the network's output implies."""
        kind = self.config.get("prediction_type", "epsilon")
        if kind == "epsilon":
            return output
        abar = self._fresh_scheduler.alphas_cumprod[int(t)].to(x)
        if kind == "sample":
            return (x - abar.sqrt() * output) / (1 - abar).sqrt()
        return abar.sqrt() * output + (1 - abar).sqrt() * x

    @property
    def _uses_variance(self) -> bool:
        return self.scheduler == "ddpm" and self.config.get("variance_type") in LEARNED

    @property
    def timesteps(self) -> list[int]:
        """The noise levels that the steps start from, the noise end first."""
        solver = self._scheduler()
        solver.set_timesteps(self.steps)
        return solver.timesteps.tolist()

    def describe(self) -> dict[str, object]:
        """Return model, weights, scheduler and its settings, steps, network calls and clipping."""
        config = settings(self._scheduler().config)
        own = {"eta": self.eta, "scheduler_config": config, "clip_sample": config["clip_sample"]}
        return self._record() | own

    def noised(self, images: torch.Tensor, noise: torch.Tensor, first: int) -> torch.Tensor:
        """Return the states `sqrt(abar) x + sqrt(1 - abar) n` that step `first` starts from, `(B, C, H, W)` twice."""
        signal = self._fresh_scheduler.alphas_cumprod[self.timesteps[first]]
        return signal.sqrt() * images + (1 - signal).sqrt() * noise

    @torch.no_grad()
    def _run(
        self, noise: torch.Tensor, draw: StepNoise | None, condition: torch.Tensor | None, first: int = 0
    ) -> Iterator[Step]:
        solver, numbers = self._scheduler(), itertools.count(1)
        solver.set_timesteps(self.steps)
        stochastic = self.scheduler == "ddpm" or self.eta > 0
        own = {"eta": self.eta} if self.scheduler == "ddim" else {}
        take_step: Callable[..., Any] = partial(
            solver.step, **own, return_dict=False
        )  # diffusers declares an int for t
        x = self._start(noise) * solver.init_noise_sigma
        for t in solver.timesteps[first:]:
            check_noise(x, self.shape)
            output = self._guided(x, t, condition)
            first_half = output[:, : x.shape[1]]
            with supply(len(x), draw, numbers) if stochastic else nullcontext():
                following = take_step(output if self._uses_variance else first_half, t, x)[0]
            yield x, self._noise(x, t, first_half), following
            x = following

    @cached_property
    def _fresh_scheduler(self) -> Scheduler:
        return make_scheduler(self.config, self.scheduler, clip=self.clip)

    def _scheduler(self) -> Scheduler:
        return copy.deepcopy(self._fresh_scheduler)


def steps_of(config: Mapping[str, Any]) -> int:
    """Return the default number of steps: 50, or all of a model's levels if there are fewer."""
    return min(50, len(make_scheduler(config).alphas_cumprod))


def from_network(
    network: UNet2DModel | DiTTransformer2DModel, config: Mapping[str, Any], **identity: object
) -> Diffusion:
    """Return the generator of a diffusers network; `config` is its scheduler's, and says what the network predicts.

    Raises:
        ValueError: if it predicts something else, or returns other channels than it takes and their variances.
    """
    attributes = parts(network, identity, variance=True)
    return Diffusion(config=config, steps=steps_of(config), learned=learned(network), **attributes)


@checks.typed
def from_mixture(mixture: Mixture, shape: tuple[int, ...], config: Mapping[str, Any], **identity: object) -> Diffusion:
    """Return the generator of an exact mixture whose `(d,)` values are laid out as `shape`; it does not clip.

    Raises:
        ValueError: if the shape does not have as many values as the mixture has dimensions, or the configuration is
            that of a model that predicts something else than the noise.

    Examples:
        >>> from antinb import exact
        >>> bell = exact.two_component(torch.zeros(4), torch.zeros(4))
        >>> from_mixture(bell, (1, 2, 2), {}).with_(steps=5).evaluations
        5
    """
    if config.get("prediction_type", "epsilon") != "epsilon":
        raise ValueError(f"a mixture predicts the noise, 'epsilon'; got {checks.quoted(config['prediction_type'])}")
    if torch.Size(checks.shape(shape)).numel() != len(mixture.mean):
        raise ValueError(f"the mixture has dimension {len(mixture.mean)}; got shape {tuple(shape)}")
    levels = make_scheduler(config).alphas_cumprod.to(mixture.means)

    def network(x: torch.Tensor, t: torch.Tensor, condition: torch.Tensor | None) -> torch.Tensor:
        if condition is not None:
            raise ValueError(f"the model takes no condition; got {condition!r}")
        return mixture.predict_noise(x.flatten(1), levels[t]).unflatten(1, x.shape[1:])

    identity["network_sha256"] = tensors_hash(vars(mixture))
    steps = steps_of(config)
    return Diffusion(network, config, tuple(shape), mixture.means, steps=steps, clip=False, identity=identity)
