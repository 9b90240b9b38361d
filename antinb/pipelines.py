"""Programs of others as generators: any callable, any diffusers pipeline with a UNet, run as they are.

What such a program draws while it runs is its step noise, and comes from `draw` (see `antinb.draws`).
"""

from __future__ import annotations

import copy
import functools
import inspect
import itertools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from diffusers import DiffusionPipeline

from antinb.checks import at_least, check_shape, number
from antinb.draws import FirstInput, StepNoise, supply
from antinb.fingerprint import module_hash
from antinb.generators import check_noise
from antinb.networks import noise_shape

OWN = {"batch_size", "num_inference_steps", "output_type", "latents", "class_labels", "generator", "return_dict"}


@dataclass(frozen=True, eq=False)
class Function:
    """Any callable from noise `(B, *shape)` on `device` to images `(B, C, H, W)`; one network call an image.

    What it draws itself is step noise: see `antinb.draws` for the draws that are understood.

    Raises:
        ValueError: if the shape is not of positive integers, or the function returns no such images.
    """

    function: Callable[[torch.Tensor], torch.Tensor]
    shape: tuple[int, ...]
    device: torch.device = torch.device("cpu")
    evaluations: int = 1

    def __post_init__(self) -> None:
        """Refuse a shape that is none."""
        object.__setattr__(self, "shape", check_shape(self.shape))

    @torch.no_grad()
    def generate(
        self, noise: torch.Tensor, *, draw: StepNoise | None = None, condition: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return `function(noise)`, or `function(noise, condition)` where a condition is given."""
        check_noise(noise, self.shape)
        arguments = [noise] if condition is None else [noise, condition]
        if condition is not None and not self._takes(*arguments):
            raise ValueError(f"{self.describe()['model']} takes no condition; got {condition.tolist()}")
        with supply(len(noise), draw, itertools.count(1)) as mode:
            images = self.function(*(argument.to(self.device) for argument in arguments))
        mode.finish()
        if not isinstance(images, torch.Tensor) or images.ndim != 4 or len(images) != len(noise):
            found = tuple(images.shape) if hasattr(images, "shape") else type(images).__name__
            raise ValueError(f"the function must return a tensor ({len(noise)}, C, H, W); got {found}")
        return images

    def _takes(self, *arguments: torch.Tensor) -> bool:
        try:
            inspect.signature(self.function).bind(*arguments)
        except (TypeError, ValueError):  # another signature, or a builtin that has none
            return False
        return True

    def describe(self) -> dict[str, object]:
        """Return what the function is called, the weights of a module, shape and network calls, for the record.

        What a function remembers besides, in a closure or in globals, is not recorded.
        """
        record = {"model": _name(self.function), "shape": list(self.shape), "evaluations": self.evaluations}
        if isinstance(self.function, torch.nn.Module):
            record["network_sha256"] = module_hash(self.function)
        return record | {"clip_image": False}


def _name(function: Callable) -> str:
    if isinstance(function, functools.partial):
        return f"{_name(function.func)} with {function.args!r}, {function.keywords!r}"
    return f"{function.__module__}.{getattr(function, '__qualname__', type(function).__qualname__)}"


@dataclass(frozen=True, eq=False)
class Pipeline:
    """An unconditional or class-conditional diffusers pipeline, called as it is.

    The noise goes in as `latents` where the pipeline takes them, otherwise as the first tensor that
    it draws; what it draws after that is step noise. The network's first input must be the noise up
    to scale. The images are what the pipeline returns: clipped.

    Attributes:
        pipeline: the pipeline, its networks in evaluation mode.
        steps: its `num_inference_steps`.
        options: further arguments of its call, such as `{"eta": 1.0}`, which JSON can hold.
        calls: network calls for one image, if they are not one for each time step of the scheduler.

    Raises:
        ValueError: if the pipeline has no `unet`, an option is not one of its call's or is antinb's
            own, its first input is not the noise, or it calls the network more or less often than told.
    """

    pipeline: DiffusionPipeline
    steps: int = 50
    options: Mapping[str, object] = field(default_factory=dict)
    calls: int | None = None

    def __post_init__(self) -> None:
        """Refuse a pipeline without a UNet, and options that cannot be passed on."""
        name = type(self.pipeline).__name__
        if not hasattr(self.pipeline, "unet"):
            raise ValueError(f"a pipeline needs a unet; {name} has none")
        at_least(1, "steps", self.steps)
        wrong = sorted(key for key in self.options if key in OWN or key not in self._arguments)
        if wrong:
            raise ValueError(f"{name} takes no option {wrong[0]!r} here")
        if "eta" in self.options:
            number("eta", self.options["eta"], 0, 1)
        try:
            json.dumps(dict(self.options))
        except TypeError as error:
            raise ValueError(f"options must be values that JSON can hold; got {self.options!r}: {error}") from None

    @property
    def _arguments(self) -> Mapping[str, inspect.Parameter]:
        return inspect.signature(self.pipeline.__call__).parameters

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one noise, `(C, H, W)`."""
        return noise_shape(self.pipeline.unet)

    @property
    def evaluations(self) -> int:
        """Network calls for one image."""
        if self.calls is not None:
            return self.calls
        scheduler = copy.deepcopy(self.pipeline.scheduler)
        scheduler.set_timesteps(self.steps)
        return len(scheduler.timesteps)

    @torch.no_grad()
    def generate(
        self, noise: torch.Tensor, *, draw: StepNoise | None = None, condition: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the images of the noise, `(B, C, H, W)` in [-1, 1]."""
        check_noise(noise, self.shape)
        unet, rows = self.pipeline.unet, len(noise)
        call = {"batch_size": rows, "num_inference_steps": self.steps, "output_type": "np", **self.options}
        if condition is not None:
            if "class_labels" not in self._arguments:
                raise ValueError(f"{type(self.pipeline).__name__} takes no condition; got {condition.tolist()}")
            call["class_labels"] = condition.to(unet.device)
        latents = "latents" in self._arguments
        if latents:
            call["latents"] = noise.to(unet.device, unet.dtype)
        mode = supply(rows, draw, itertools.count(int(latents)), noise)
        check = FirstInput(rows, lambda: noise, 1)
        hook = unet.register_forward_pre_hook(check, with_kwargs=True)
        try:
            with mode:
                images = self.pipeline(**call).images
        finally:
            hook.remove()
        mode.finish()
        if check.calls != self.evaluations:
            raise ValueError(
                f"{type(self.pipeline).__name__} calls its network {check.calls} times an image, not "
                f"{self.evaluations}: name them, antinb.pipelines.Pipeline(..., calls={check.calls})"
            )
        return torch.from_numpy(images).movedim(-1, 1) * 2 - 1

    def describe(self) -> dict[str, object]:
        """Return pipeline, networks, scheduler, steps and options, for the record."""
        settings = self.pipeline.scheduler.config
        return {
            "model": type(self.pipeline).__name__,
            "networks_sha256": {
                name: module_hash(part)
                for name, part in self.pipeline.components.items()
                if isinstance(part, torch.nn.Module)
            },
            "scheduler": type(self.pipeline.scheduler).__name__,
            "scheduler_config": {key: value for key, value in settings.items() if not key.startswith("_")},
            "steps": self.steps,
            "evaluations": self.evaluations,
            "options": dict(self.options),
            "clip_image": True,
            "dtype": str(self.pipeline.unet.dtype).removeprefix("torch."),
        }
