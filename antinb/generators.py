"""Noise to images behind one contract, whatever the model.

A generator has `shape`, the shape of one noise `(C, H, W)`, and `evaluations`, its network calls
for one image. `generate(noise (B, *shape), condition=None)` returns images `(B, C, H, W)`: -1 is
black, 1 is white, and nothing is clipped at the end. `describe()` says what it is, for the record.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, UNet2DModel

from antinb.exact import Mixture
from antinb.noise import check_shape

SCHEDULERS = ("ddim", "dpmsolver++")

NoisePrediction = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]


class Generator(Protocol):
    """What `antinb.sample` asks of a generator."""

    shape: tuple[int, ...]
    evaluations: int

    def generate(self, noise: torch.Tensor, *, condition: torch.Tensor | None = None) -> torch.Tensor:
        """Return the images of the noise, `(B, *shape)` to `(B, C, H, W)`."""

    def describe(self) -> dict[str, object]:
        """Return what determines the images, as values that JSON can hold."""


def _check_noise(noise: torch.Tensor, shape: tuple[int, ...]) -> None:
    if tuple(noise.shape[1:]) != shape:
        raise ValueError(f"the generator takes noise (B, {', '.join(map(str, shape))}); got {tuple(noise.shape)}")


def make_scheduler(
    config: Mapping[str, object], name: str = "ddim", *, clip: bool | None = None
) -> DDIMScheduler | DPMSolverMultistepScheduler:
    """Return the diffusers scheduler `name` with the noise levels of `config`.

    Args:
        config: configuration of any scheduler of the same model.
        name: `"ddim"` (deterministic, eta = 0, time steps as in `config`) or `"dpmsolver++"`
            (second-order multistep, time steps spaced evenly).
        clip: whether DDIM clips each predicted clean image to [-1, 1]; None keeps what `config` says.

    Raises:
        ValueError: for another scheduler, a model that does not predict noise, or clipping asked of
            `"dpmsolver++"`, which has none.
    """
    if name not in SCHEDULERS:
        raise ValueError(f"scheduler must be one of {SCHEDULERS}; got {name!r}")
    if config.get("prediction_type", "epsilon") != "epsilon":
        raise ValueError(f"the model must predict noise ('epsilon'); got {config['prediction_type']!r}")
    settings = {key: value for key, value in config.items() if not key.startswith("_")}
    if name == "ddim":
        return DDIMScheduler.from_config(settings if clip is None else settings | {"clip_sample": clip})
    if clip:
        raise ValueError("'dpmsolver++' does not clip the predicted image; got clip=True")
    own = {"algorithm_type": "dpmsolver++", "final_sigmas_type": "zero", "timestep_spacing": "linspace"}
    return DPMSolverMultistepScheduler.from_config(settings | own | {"clip_sample": False})


@dataclass(frozen=True, eq=False)
class Diffusion:
    """A noise-prediction network and the scheduler that integrates it, deterministically.

    One DDIM step is `x <- sqrt(abar') x0 + sqrt(1 - abar') e` with `e = predict_noise(x, t)` and
    `x0 = (x - sqrt(1 - abar) e) / sqrt(abar)` (arXiv 2010.02502, equation 12); the second-order
    DPM-Solver++ is algorithm 2 of arXiv 2211.01095. Both call the network once a step.

    Attributes:
        network: `(x (B, C, H, W), t (), condition) -> noise (B, C, H, W)`.
        config: the noise levels, a configuration of any diffusers scheduler.
        shape: `(C, H, W)`.
        like: a tensor whose device and floating-point type are followed.
        steps: number of steps.
        scheduler: `"ddim"` or `"dpmsolver++"`.
        clip: as for `make_scheduler`.
        identity: name and sha256 of the weights, for the record.
    """

    network: NoisePrediction
    config: Mapping[str, object]
    shape: tuple[int, ...]
    like: torch.Tensor
    steps: int = 50
    scheduler: str = "ddim"
    clip: bool | None = None
    identity: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse an impossible scheduler or number of steps."""
        levels = len(self._scheduler().alphas_cumprod)
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or not 1 <= self.steps <= levels:
            raise ValueError(f"steps must be an integer from 1 to {levels}; got {self.steps!r}")

    @property
    def evaluations(self) -> int:
        """Network calls for one image."""
        return self.steps

    def with_(self, *, steps: int | None = None, scheduler: str | None = None, clip: bool | None = None) -> Diffusion:
        """Return the same network with other steps, another scheduler, or other clipping; None keeps what is."""
        given = {"steps": steps, "scheduler": scheduler, "clip": clip}
        return replace(self, **{key: value for key, value in given.items() if value is not None})

    def predict_noise(
        self, x: torch.Tensor, t: int | torch.Tensor, condition: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the network's noise `eps_t(x)`, `(B, C, H, W)` to the same; `t` counts from 0, the data end."""
        _check_noise(x, self.shape)
        noise = self.network(x, torch.as_tensor(t, device=x.device), condition)
        if noise.shape != x.shape:
            raise ValueError(f"the network must return noise of shape {tuple(x.shape)}; got {tuple(noise.shape)}")
        return noise

    @torch.no_grad()
    def generate(self, noise: torch.Tensor, *, condition: torch.Tensor | None = None) -> torch.Tensor:
        """Return the images of the noise, `(B, C, H, W)` to the same, unclipped.

        Raises:
            ValueError: if the noise or the network's output has another shape.
        """
        scheduler = self._scheduler()
        scheduler.set_timesteps(self.steps)
        x = noise.to(self.like) * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            eps = self.predict_noise(scheduler.scale_model_input(x, t), t, condition)
            x = scheduler.step(eps, t, x).prev_sample
        return x

    def describe(self) -> dict[str, object]:
        """Return model, weights, scheduler and its settings, steps, network calls and clipping, for the record."""
        settings = self._scheduler().config
        return {
            **self.identity,
            "scheduler": self.scheduler,
            "steps": self.steps,
            "evaluations": self.evaluations,
            "scheduler_config": {key: value for key, value in settings.items() if not key.startswith("_")},
            "clip_sample": settings["clip_sample"],
            "clip_image": False,
            "dtype": str(self.like.dtype).removeprefix("torch."),
        }

    def _scheduler(self) -> DDIMScheduler | DPMSolverMultistepScheduler:
        return make_scheduler(self.config, self.scheduler, clip=self.clip)


def from_unet(unet: UNet2DModel, config: Mapping[str, object], **identity: object) -> Diffusion:
    """Return the generator of a diffusers UNet, put in evaluation mode; `config` is its scheduler's.

    Raises:
        ValueError: if the network does not return as many channels as it takes, or does not predict noise.
    """
    settings = unet.config
    if settings.in_channels != settings.out_channels:
        raise ValueError(f"the UNet must return its {settings.in_channels} channels; got {settings.out_channels}")
    size = settings.sample_size if isinstance(settings.sample_size, int) else tuple(settings.sample_size)
    conditional = settings.num_class_embeds is not None
    unet.eval()

    def network(x: torch.Tensor, t: torch.Tensor, condition: torch.Tensor | None) -> torch.Tensor:
        if conditional != (condition is not None):
            raise ValueError(f"the model {'needs' if conditional else 'takes no'} condition; got {condition!r}")
        return unet(x, t, class_labels=condition if condition is None else condition.to(x.device)).sample

    shape = (settings.in_channels, size, size) if isinstance(size, int) else (settings.in_channels, *size)
    return Diffusion(network, config, shape, next(unet.parameters()), identity=identity)


def from_mixture(
    mixture: Mixture, shape: tuple[int, ...], config: Mapping[str, object], **identity: object
) -> Diffusion:
    """Return the generator of an exact mixture whose `(d,)` is laid out as `shape`; it does not clip.

    Raises:
        ValueError: if the shape does not hold the mixture's dimension.
    """
    if torch.Size(check_shape(shape)).numel() != len(mixture.mean):
        raise ValueError(f"the mixture has dimension {len(mixture.mean)}; got shape {tuple(shape)}")
    levels = make_scheduler(config).alphas_cumprod.to(mixture.means)

    def network(x: torch.Tensor, t: torch.Tensor, condition: torch.Tensor | None) -> torch.Tensor:
        if condition is not None:
            raise ValueError(f"the model takes no condition; got {condition!r}")
        return mixture.predict_noise(x.flatten(1), levels[t]).unflatten(1, x.shape[1:])

    return Diffusion(network, config, tuple(shape), mixture.means, clip=False, identity=identity)


@dataclass(frozen=True, eq=False)
class Function:
    """Any callable from noise `(B, *shape)` on `device` to images `(B, C, H, W)`; one network call an image.

    Raises:
        ValueError: if the shape is not of positive integers, or the function returns no such images.
    """

    function: Callable[[torch.Tensor], torch.Tensor]
    shape: tuple[int, ...]
    device: torch.device = torch.device("cpu")
    evaluations: int = 1

    def __post_init__(self) -> None:
        """Refuse a shape that is none."""
        check_shape(self.shape)

    @torch.no_grad()
    def generate(self, noise: torch.Tensor, *, condition: torch.Tensor | None = None) -> torch.Tensor:
        """Return `function(noise)`, or `function(noise, condition)` where a condition is given."""
        _check_noise(noise, tuple(self.shape))
        arguments = [noise] if condition is None else [noise, condition]
        images = self.function(*(argument.to(self.device) for argument in arguments))
        if not isinstance(images, torch.Tensor) or images.ndim != 4 or len(images) != len(noise):
            found = tuple(images.shape) if hasattr(images, "shape") else type(images).__name__
            raise ValueError(f"the function must return a tensor ({len(noise)}, C, H, W); got {found}")
        return images

    def describe(self) -> dict[str, object]:
        """Return the name of the function and its network calls, for the record."""
        name = getattr(self.function, "__qualname__", type(self.function).__qualname__)
        return {"model": f"{self.function.__module__}.{name}", "evaluations": self.evaluations, "clip_image": False}
