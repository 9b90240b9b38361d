"""Pipelines of diffusers as generators, called without changes to their code."""

from __future__ import annotations

import inspect
import itertools
import json
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline, UNet2DModel
from torch import nn

from antinb import checks
from antinb.checks import quoted, reason
from antinb.models import entry, records
from antinb.models.draws import StepNoise, supply
from antinb.models.generator import check_noise
from antinb.models.networks import module_hash, settings, weights

__all__ = ["Pipeline"]

DENOISERS = ("unet", "transformer", "transformer_2")
OWN_NOISE = ("DPMSolverSDEScheduler", "CosineDPMSolverMultistepScheduler")  # they draw it with torchsde
SOUND = "AudioPipelineOutput"  # what the call of a pipeline that makes no images returns
PROCESSORS = ("image_processor", "video_processor")
SIZES = ("batch_size", "num_images_per_prompt", "num_videos_per_prompt")
ROWS = ("_embeds", "_attention_mask")  # ends of the names of options with a row for each condition
OWN = {*SIZES, "num_inference_steps", "output_type", "latents", "class_labels", "prompt", "generator", "return_dict"}


@dataclass(frozen=True, eq=False)
class Pipeline:
    """A diffusers pipeline as it is, for pixels or latents, with classes, prompts or images, and for video.

    The noise is the first tensor that the pipeline draws for the whole batch. The pipeline packs and scales it as
    usual, and `antinb.models.entry` finds where the network takes it. Later draws for the whole batch are step
    noise. Draws of a single row, such as the latents of an image to start from, are the same for all images and
    all runs. If the pipeline has an image or video processor, images are unclipped, as the decoder returns them;
    otherwise they are clipped. A safety checker and a watermark are left out while it runs. The frames of a video
    lie one below the other, `(C, frames H, W)`.

    Attributes:
        pipeline: the pipeline, with its networks in evaluation mode.
        steps: its `num_inference_steps`.
        options: further arguments of its call, such as `{"eta": 1.0}`, with values that JSON can hold, tensors or
            images. Row k of `prompt_embeds`, and of other embeddings and their masks, belongs to condition k.
        prompts: the prompts that the conditions 0, 1, ... stand for.

    Raises:
        ValueError: if the pipeline has no denoiser, its weights are elsewhere or packed, its scheduler draws noise that
            no design can supply, it does not run with its scheduler, its call does not take an option or antinb sets
            that option itself, a condition is missing or unknown, the noise does not reach the network number by
            number, or the network is called more often for one batch than for another.

    Examples:
        >>> from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel
        >>> blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",), "norm_num_groups": 4}
        >>> network = UNet2DModel(8, 1, 1, block_out_channels=(8,), layers_per_block=1, **blocks).eval()
        >>> pipeline = DDIMPipeline(network, DDIMScheduler(1000))
        >>> pipeline.set_progress_bar_config(disable=True)
        >>> model = Pipeline(pipeline, steps=3)
        >>> model.shape, model.evaluations
        ((1, 8, 8), 3)
    """

    pipeline: DiffusionPipeline
    steps: int = 50
    options: Mapping[str, Any] = field(default_factory=dict)
    prompts: Sequence[str] = ()

    def __post_init__(self) -> None:
        """Refuse a pipeline without a denoiser, and options that cannot be passed on."""
        if not self._denoisers:
            raise ValueError(f"a pipeline needs one of {', '.join(DENOISERS)}; {self._name} has none")
        for part in self._denoisers:
            weights(part)
        calls = [vars(cls)["__call__"] for cls in type(self.pipeline).__mro__ if "__call__" in vars(cls)]
        if any(SOUND in inspect.unwrap(call).__code__.co_names for call in calls):
            raise ValueError(f"{self._name} makes sound, which is no image")
        classed = isinstance(self.network, UNet2DModel) and self.network.class_embedding is not None
        if classed and "class_labels" not in self._arguments:
            rule = f"{self._name} calls its network without the classes that it needs"
            raise ValueError(f"{rule}: save it and load the folder, whose model takes conditions")
        if "num_inference_steps" not in self._arguments:
            raise ValueError(f"{self._name} cannot be paired: it has no num_inference_steps")
        if self._scheduler in OWN_NOISE:
            rule = f"{self._scheduler} draws noise of its own, which no design can supply"
            raise ValueError(f"{rule}: take DPMSolverMultistepScheduler with algorithm_type='sde-dpmsolver++'")
        object.__setattr__(self, "steps", checks.integer("steps", self.steps, 1))
        plain = {key: value.item() if isinstance(value, np.generic) else value for key, value in self.options.items()}
        object.__setattr__(self, "options", plain)
        wrong = sorted(key for key in self.options if key in OWN or key not in self._arguments)
        if wrong:
            raise ValueError(f"{self._name} takes no option {wrong[0]!r} here")
        if "eta" in self.options:
            checks.number("eta", self.options["eta"], 0, 1)
            step: Any = getattr(getattr(self.pipeline, "scheduler", None), "step", None)
            if self.options["eta"] and "eta" not in inspect.signature(step).parameters:
                found = f"eta={self.options['eta']!r} with {self._scheduler}"
                raise ValueError(f"eta has an effect on schedulers with step noise of DDIM only; got {found}")
        if self.prompts and ("prompt" not in self._arguments or "prompt_embeds" in self.options):
            raise ValueError(f"{self._name} takes no prompts= here; got {list(self.prompts)}")
        if isinstance(self.prompts, str) or not all(isinstance(prompt, str) for prompt in self.prompts):
            raise ValueError(f"prompts must be a list of strings; got {quoted(self.prompts)}")
        object.__setattr__(self, "prompts", tuple(self.prompts))
        for key, value in self.options.items():
            try:
                json.dumps(records.option(value))
            except (TypeError, ValueError, RuntimeError) as error:
                found = f"{key}={quoted(value)}: {reason(error)}"
                raise ValueError(f"options must be JSON, tensors or images; got {found}") from None

    @property
    def _name(self) -> str:
        return type(self.pipeline).__name__

    @property
    def _scheduler(self) -> str:
        return type(getattr(self.pipeline, "scheduler", None)).__name__

    @property
    def _denoisers(self) -> list[nn.Module]:
        parts = (getattr(self.pipeline, part, None) for part in DENOISERS)
        return [part for part in parts if isinstance(part, nn.Module)]

    @property
    def network(self) -> nn.Module:
        """The denoiser."""
        return self._denoisers[0]

    @property
    def _run_pipeline(self) -> Callable[..., Any]:
        return self.pipeline.__call__

    @property
    def _arguments(self) -> Mapping[str, inspect.Parameter]:
        return inspect.signature(self._run_pipeline).parameters

    @property
    def _processors(self) -> list[Any]:
        """Return the processors that turn the decoder's output into images and whose clipping can be left out."""
        return [getattr(self.pipeline, name) for name in PROCESSORS if hasattr(self.pipeline, name)]

    @cached_property
    def entry(self) -> entry.Entry:
        """Where the noise enters, found with one run up to the first call of the network."""
        with self._named():
            return entry.find(lambda rows: self._call(rows, self._first(rows)), self.network, self._name)

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Name the pipeline and its scheduler in errors of the code of others, but for those of memory."""
        try:
            yield
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            *_, (frame, _) = traceback.walk_tb(error.__traceback__)
            if isinstance(error, ValueError) and frame.f_globals.get("__name__", "").startswith("antinb."):
                raise
            raise ValueError(f"{self._name} with {self._scheduler} does not run: {reason(error)}") from error

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one noise, `(C, H, W)`, or `(C, F, H, W)` for a video."""
        return self.entry.shape

    @property
    def evaluations(self) -> int:
        """Network calls for one image, including guidance and correctors, counted on one image."""
        return self._evaluations

    @cached_property
    def _evaluations(self) -> int:
        return self._run(torch.ones(1, *self.shape), lambda _, shape: torch.zeros(1, *shape), self._first(1))[1]

    def with_(self, steps: int | None = None) -> Pipeline:
        """Return the same pipeline with another number of steps; None leaves it unchanged.

        Raises:
            ValueError: if it is not a positive integer.
        """
        return self if steps is None else replace(self, steps=steps)

    def generate(
        self, noise: torch.Tensor, *, draw: StepNoise | None = None, condition: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the images of the noise, `(B, *shape)` to `(B, C, H, W)`, in which -1 is black and 1 is white."""
        check_noise(noise, self.shape)
        images, calls = self._run(noise, draw, condition)
        if calls != self.evaluations:
            raise ValueError(f"{self._name} calls its network {calls} times an image, and {self.evaluations} before")
        return torch.from_numpy(images).movedim(-1, 1).float() * 2 - 1

    @torch.no_grad()
    def _run(
        self, noise: torch.Tensor, draw: StepNoise | None, condition: torch.Tensor | None
    ) -> tuple[np.ndarray, int]:
        """Return the pipeline's images `(B, H, W, C)` from 0 to 1 and the network's calls for each."""
        rows, calls = len(noise), 0

        def look(network: nn.Module, args: tuple, kwargs: dict) -> None:
            nonlocal calls
            inputs = entry.named(args, kwargs)
            if not calls:
                self.entry.check(network, inputs, noise)
            calls += len(inputs[self.entry.key]) // rows

        mode = supply(rows, draw, itertools.count(), noise, self.entry.shared)
        hooks = [part.register_forward_pre_hook(look, with_kwargs=True) for part in self._denoisers]
        try:
            with self._named(), mode, records.untouched(self.pipeline, self._processors):
                images = np.asarray(self._call(rows, condition)[0])
        finally:
            for hook in hooks:
                hook.remove()
        mode.finish()
        return images.reshape(rows, -1, *images.shape[-2:]), calls

    @torch.no_grad()
    def _call(self, rows: int, condition: torch.Tensor | None) -> Any:  # noqa: ANN401
        given = {"num_inference_steps": self.steps, "output_type": "np"} | self._conditions(rows, condition)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "You have passed .* text prompts", FutureWarning)
            return self._run_pipeline(**{**self.options, **given})

    @property
    def conditions(self) -> int:
        """Number of prompts, of their embeddings, or of the classes that the pipeline takes."""
        if self.prompts or "prompt_embeds" in self.options:
            return len(self.prompts or self.options["prompt_embeds"])
        classes: Mapping[str, Any] = getattr(self.network, "config", {}) if "class_labels" in self._arguments else {}
        return classes.get("num_class_embeds") or classes.get("num_embeds_ada_norm") or 0

    def _first(self, rows: int) -> torch.Tensor | None:
        """Return condition 0 for all rows, where there are conditions."""
        return torch.zeros(rows, dtype=torch.long) if self.conditions else None

    def _conditions(self, rows: int, condition: torch.Tensor | None) -> dict[str, object]:
        """Return the arguments for a batch of `rows` images, with one condition for all or one for each."""
        size: dict[str, object] = dict.fromkeys([name for name in SIZES if name in self._arguments][:1], rows)
        if self.conditions == 0:
            if condition is not None:
                raise ValueError(f"{self._name} takes no condition; got {condition.tolist()}")
            if "prompt" in self._arguments or not size:
                raise ValueError(f"{self._name} needs prompts=, or prompt_embeds among its options")
            return size
        if condition is None and self.conditions == 1:
            condition = self._first(rows)
        if condition is None or not 0 <= condition.min() <= condition.max() < self.conditions:
            found = condition if condition is None else condition.tolist()
            raise ValueError(f"{self._name} needs a condition from 0 to {self.conditions - 1}; got {found}")
        if not (self.prompts or "prompt_embeds" in self.options):
            return {"class_labels": condition.tolist(), **size}
        own: dict[str, object] = {"prompt": [self.prompts[k] for k in condition.tolist()]} if self.prompts else {}
        return own | self._rows(condition)

    def _rows(self, condition: torch.Tensor) -> dict[str, object]:
        """Return further texts and embeddings of a batch: one is for all conditions, of several each has its own."""
        found: dict[str, object] = {}
        for key, value in self.options.items():
            rows, kind = [value] if isinstance(value, str) else value, "row" if key.endswith(ROWS) else "text"
            listed = isinstance(rows, (list, tuple)) and key.startswith(("prompt_", "negative_prompt"))
            if not listed and not (isinstance(rows, torch.Tensor) and kind == "row"):
                continue
            wrong = kind == "text" and not all(isinstance(text, str) for text in rows)
            if wrong or len(rows) not in (1, self.conditions):
                raise ValueError(
                    f"{key} is one {kind}, or one for each of {self.conditions} prompts; got {quoted(value)}"
                )
            chosen = condition % len(rows)
            found[key] = rows[chosen] if isinstance(rows, torch.Tensor) else [rows[k] for k in chosen.tolist()]
        return found

    def describe(self) -> dict[str, object]:
        """Return pipeline, networks, adapters and other switches, scheduler, steps, options and prompts."""
        scheduler, components = self.pipeline.components["scheduler"], self.pipeline.components.items()
        networks = {name: part for name, part in components if isinstance(part, nn.Module)}
        networks = {name: part for name, part in networks.items() if name not in records.LEFT_OUT}
        return {
            "model": self._name,
            "networks_sha256": {name: module_hash(part) for name, part in networks.items()},
            "switches": records.switches(networks),
            "scheduler": self._scheduler,
            "scheduler_config": settings(scheduler.config),
            "shape": list(self.shape),
            "steps": self.steps,
            "evaluations": self.evaluations,
            "options": {key: records.option(value) for key, value in self.options.items()},
            "prompts": list(self.prompts),
            "clip_image": not self._processors,
            "dtype": str(self.network.dtype).removeprefix("torch."),
        }
