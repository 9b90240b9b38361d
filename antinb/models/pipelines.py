"""Pipelines of diffusers as generators, run as they are."""

from __future__ import annotations

import inspect
import itertools
import json
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from torch import nn

from antinb import checks
from antinb.models import entry
from antinb.models.draws import StepNoise, supply
from antinb.models.generator import check_noise
from antinb.models.networks import module_hash, tensors_hash

DENOISERS = ("unet", "transformer")
PROCESSORS = ("image_processor", "video_processor")
SIZES = ("batch_size", "num_images_per_prompt", "num_videos_per_prompt")
OWN = {*SIZES, "num_inference_steps", "output_type", "latents", "class_labels", "prompt", "generator", "return_dict"}


@dataclass(frozen=True, eq=False)
class Pipeline:
    """A diffusers pipeline, called as it is: of pixels or latents, with classes, prompts or images, video too.

    The noise is the first tensor of the whole batch that the pipeline draws; it packs and scales it as it
    always does, and `antinb.entry` finds out where the network gets it. What it draws for the whole batch
    after that is step noise. What it draws once, such as the latents of an image to start from, is the same
    for all images and all runs. Images are as the decoder returns them, unclipped, where the pipeline has
    an image or video processor and no safety checker, else clipped; the frames of a video lie one below
    the other, `(C, frames H, W)`.

    Attributes:
        pipeline: the pipeline, its networks in evaluation mode.
        steps: its `num_inference_steps`.
        options: further arguments of its call, such as `{"eta": 1.0}`: values that JSON can hold, tensors, images.
            Row k of `prompt_embeds`, and of other embeddings and their masks, belongs to condition k.
        prompts: the prompts that the conditions 0, 1, ... stand for.

    Raises:
        ValueError: if the pipeline has no denoiser, an option is not one of its call's or is antinb's own, a
            condition is missing or none of its own, its noise does not reach the network as it is, or it
            calls the network more often for one batch than for another.
    """

    pipeline: DiffusionPipeline
    steps: int = 50
    options: Mapping[str, object] = field(default_factory=dict)
    prompts: Sequence[str] = ()

    def __post_init__(self) -> None:
        """Refuse a pipeline without a denoiser, and options that cannot be passed on."""
        if self._part is None:
            raise ValueError(f"a pipeline needs one of {', '.join(DENOISERS)}; {self._name} has none")
        if "num_inference_steps" not in self._arguments:
            raise ValueError(f"{self._name} cannot be paired: it has no num_inference_steps")
        checks.integer("steps", self.steps, 1)
        wrong = sorted(key for key in self.options if key in OWN or key not in self._arguments)
        if wrong:
            raise ValueError(f"{self._name} takes no option {wrong[0]!r} here")
        if "eta" in self.options:
            checks.number("eta", self.options["eta"], 0, 1)
        if self.prompts and ("prompt" not in self._arguments or "prompt_embeds" in self.options):
            raise ValueError(f"{self._name} takes no prompts= here; got {list(self.prompts)}")
        if isinstance(self.prompts, str) or not all(isinstance(prompt, str) for prompt in self.prompts):
            raise ValueError(f"prompts must be a list of strings; got {self.prompts!r}")
        object.__setattr__(self, "prompts", tuple(self.prompts))
        for key, value in self.options.items():
            try:
                json.dumps(_recorded(value))
            except TypeError as error:
                raise ValueError(f"options must be JSON, tensors or images; got {key}={value!r}: {error}") from None

    @property
    def _name(self) -> str:
        return type(self.pipeline).__name__

    @property
    def _part(self) -> str | None:
        return next((part for part in DENOISERS if isinstance(getattr(self.pipeline, part, None), nn.Module)), None)

    @property
    def network(self) -> nn.Module:
        """The denoiser."""
        return getattr(self.pipeline, self._part)

    @property
    def _arguments(self) -> Mapping[str, inspect.Parameter]:
        return inspect.signature(self.pipeline.__call__).parameters

    @property
    def _processors(self) -> list[object]:
        """Return what turns the decoder's output into images, where leaving out its clipping harms nothing."""
        if getattr(self.pipeline, "safety_checker", None) is not None:
            return []
        return [getattr(self.pipeline, name) for name in PROCESSORS if hasattr(self.pipeline, name)]

    @cached_property
    def entry(self) -> entry.Entry:
        """Where the noise enters, found with one call up to the network's first."""
        return entry.find(lambda rows: self._call(rows, self._first(rows)), self.network, self._name)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one noise, `(C, H, W)`, of a video `(C, F, H, W)`."""
        return self.entry.shape

    @cached_property
    def evaluations(self) -> int:
        """Network calls for one image, guidance and correctors included, counted on one image."""
        return self._run(torch.ones(1, *self.shape), lambda _, shape: torch.zeros(1, *shape), self._first(1))[1]

    def with_(self, steps: int | None = None) -> Pipeline:
        """Return the same pipeline with another number of steps; None keeps what is.

        Raises:
            ValueError: if the number is none.
        """
        return self if steps is None else replace(self, steps=steps)

    def generate(
        self, noise: torch.Tensor, *, draw: StepNoise | None = None, condition: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the images of the noise, `(B, *shape)` to `(B, C, H, W)`, -1 black, 1 white."""
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
        hook = self.network.register_forward_pre_hook(look, with_kwargs=True)
        try:
            with mode, _unclipped(self._processors):
                images = np.asarray(self._call(rows, condition)[0])
        finally:
            hook.remove()
        mode.finish()
        return images.reshape(rows, -1, *images.shape[-2:]), calls

    @torch.no_grad()
    def _call(self, rows: int, condition: torch.Tensor | None) -> object:
        given = {"num_inference_steps": self.steps, "output_type": "np"} | self._conditions(rows, condition)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "You have passed .* text prompts", FutureWarning)
            return self.pipeline(**{**self.options, **given})

    @property
    def _count(self) -> int:
        """Number of conditions: of prompts, of their embeddings, or of the classes that the pipeline takes."""
        if self.prompts or "prompt_embeds" in self.options:
            return len(self.prompts or self.options["prompt_embeds"])
        classes = self.network.config if "class_labels" in self._arguments else {}
        return classes.get("num_class_embeds") or classes.get("num_embeds_ada_norm") or 0

    def _first(self, rows: int) -> torch.Tensor | None:
        return torch.zeros(rows, dtype=torch.long) if self._count else None

    def _conditions(self, rows: int, condition: torch.Tensor | None) -> dict[str, object]:
        """Return the arguments that make a batch of `rows` images, of one condition or one each."""
        size = dict.fromkeys([name for name in SIZES if name in self._arguments][:1], rows)
        if self._count == 0:
            if condition is not None:
                raise ValueError(f"{self._name} takes no condition; got {condition.tolist()}")
            if "prompt" in self._arguments or not size:
                raise ValueError(f"{self._name} needs prompts=, or prompt_embeds among its options")
            return size
        if condition is None and self._count == 1:
            condition = self._first(rows)
        if condition is None or not 0 <= condition.min() <= condition.max() < self._count:
            found = condition if condition is None else condition.tolist()
            raise ValueError(f"{self._name} needs a condition from 0 to {self._count - 1}; got {found}")
        if self.prompts:
            return {"prompt": [self.prompts[label] for label in condition]}
        if "prompt_embeds" in self.options:
            parts = {key: value for key, value in self.options.items() if key.endswith(("_embeds", "_attention_mask"))}
            return {key: value[condition if len(value) > 1 else self._first(rows)] for key, value in parts.items()}
        return {"class_labels": condition.tolist()} | size

    def describe(self) -> dict[str, object]:
        """Return pipeline, networks, scheduler, steps, options and prompts, for the record."""
        settings = self.pipeline.scheduler.config
        return {
            "model": self._name,
            "networks_sha256": {
                name: module_hash(part)
                for name, part in self.pipeline.components.items()
                if isinstance(part, nn.Module)
            },
            "scheduler": type(self.pipeline.scheduler).__name__,
            "scheduler_config": {key: value for key, value in settings.items() if not key.startswith("_")},
            "shape": list(self.shape),
            "steps": self.steps,
            "evaluations": self.evaluations,
            "options": {key: _recorded(value) for key, value in self.options.items()},
            "prompts": list(self.prompts),
            "clip_image": not self._processors,
            "dtype": str(self.network.dtype).removeprefix("torch."),
        }


def _recorded(value: object) -> object:
    """Return a value of an option, tensors and images as their sha256."""
    if isinstance(value, Image.Image):
        value = torch.from_numpy(np.array(value))
    if isinstance(value, torch.Tensor):
        return {"shape": list(value.shape), "sha256": tensors_hash({"option": value})}
    return value


@contextmanager
def _unclipped(processors: Iterable[object]) -> Iterator[None]:
    """Let the image processors of a pipeline scale from [-1, 1] to [0, 1] without clipping."""
    for processor in processors:
        processor.denormalize = lambda images: images / 2 + 0.5
    try:
        yield
    finally:
        for processor in processors:
            del processor.denormalize
