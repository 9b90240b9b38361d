"""The contract that every model keeps, from noise to images, and the base class of samplers with steps.

A generator has `shape`, the shape of one noise `(C, H, W)`, and `evaluations`, its network calls
for one image. `generate(noise (B, *shape), draw=None, condition=None)` returns images `(B, C, H, W)`,
in which -1 is black and 1 is white. A stochastic sampler takes its step noise from
`draw(stream, shape)`, streams 1, 2, ... in order, `(B, *shape)` each, so that the images are a
function of the noise alone. `describe()` returns what determines the images.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import Field, replace
from functools import cached_property
from typing import Any, ClassVar, Protocol, Self

import torch

from antinb import checks
from antinb.models import SCHEDULERS
from antinb.models.draws import StepNoise

__all__ = ["Generator", "Network"]

Network = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]
Step = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
CALLED: ContextVar[Callable[[int], object] | None] = ContextVar("called", default=None)  # told of each network call


class Generator(Protocol):
    """What `antinb.sample` needs of a model.

    Examples:
        >>> import antinb
        >>> from antinb.models.generator import Generator
        >>> model: Generator = antinb.load("fashion-mixture", steps=5)
        >>> model.generate(torch.zeros(2, *model.shape)).shape
        torch.Size([2, 1, 28, 28])
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one noise."""
        ...

    @property
    def evaluations(self) -> int:
        """Network calls for one image."""
        ...

    def generate(
        self, noise: torch.Tensor, *, draw: StepNoise | None = None, condition: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the images of the noise, `(B, *shape)` to `(B, C, H, W)`."""
        ...

    def describe(self) -> dict[str, object]:
        """Return what determines the images, as values that JSON can hold."""
        ...


def check_noise(noise: torch.Tensor, shape: tuple[int, ...]) -> None:
    """Refuse noise that is not `(B, *shape)`."""
    if tuple(noise.shape[1:]) != shape:
        raise ValueError(f"the generator takes noise (B, {', '.join(map(str, shape))}); got {tuple(noise.shape)}")


def check_scheduler(kind: str, name: str) -> None:
    """Refuse a scheduler that is not one of those for the kind of model."""
    checks.choice("scheduler", name, SCHEDULERS[kind])


class Integrator(ABC):
    """A generator that calls `network` at every step, or twice a step with guidance.

    With guidance g the output is `f_null + g (f_condition - f_null)` (arXiv 2207.12598, with `g = 1 + w`).
    The subclasses are dataclasses.

    Examples:
        >>> import antinb
        >>> model = antinb.load("fashion-mixture", steps=3)
        >>> images, parts = model.trajectory(torch.zeros(2, *model.shape))
        >>> parts["state"].shape
        torch.Size([2, 3, 1, 28, 28])
    """

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]
    kind: ClassVar[str]
    settings: ClassVar[tuple[str, ...]]
    network: Network
    shape: tuple[int, ...]
    like: torch.Tensor
    steps: int
    scheduler: str
    guidance: float
    null: int | None
    conditions: int
    compile: bool
    identity: Mapping[str, object]
    learned: bool = False

    @abstractmethod
    def _run(
        self, noise: torch.Tensor, draw: StepNoise | None, condition: torch.Tensor | None, first: int = 0
    ) -> Iterator[Step]:
        """Yield the state, the predicted noise and the next state of each step from `first` on."""

    @property
    @abstractmethod
    def evaluations(self) -> int:
        """Network calls for one image."""

    @abstractmethod
    def describe(self) -> dict[str, object]:
        """Return what determines the images, as values that JSON can hold."""

    @property
    @abstractmethod
    def timesteps(self) -> Sequence[float]:
        """The times that the steps start from, the noise end first."""

    @property
    def calls(self) -> int:
        """Network calls for one output, two with guidance."""
        return 1 if self.guidance == 1 else 2

    def with_(self, **settings: object) -> Self:
        """Return the same network with other values of its `settings`; None leaves a setting unchanged.

        Raises:
            ValueError: for another setting, or one out of its range.
        """
        unknown = set(settings) - set(self.settings)
        if unknown:
            raise ValueError(f"a {type(self).__name__} has no setting {min(unknown)!r}")
        given: dict[str, Any] = {key: value for key, value in settings.items() if value is not None}
        if "null" in given and self.null is None:
            given["conditions"] = max(self.conditions - 1, 0)
        return replace(self, **given)

    def generate(
        self, noise: torch.Tensor, *, draw: StepNoise | None = None, condition: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the images of the noise, `(B, C, H, W)` to the same, unclipped.

        Raises:
            ValueError: if the noise or the network's output has another shape, the network does not know the
                condition, or a stochastic sampler is given no `draw`.
        """
        return self.resume(noise, 0, draw=draw, condition=condition)

    def resume(
        self,
        states: torch.Tensor,
        first: int,
        *,
        draw: StepNoise | None = None,
        condition: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the images of a run that starts from the states before step `first`, counted from 0.

        The streams of step noise are counted from 1 again.

        Raises:
            ValueError: as `generate`, or if there is no such step.
        """
        checks.integer("the first step", first, 0, self.steps - 1)
        images = states
        for step in self._run(states, draw, condition, first):
            images = step[-1]
        return images

    def trajectory(
        self, noise: torch.Tensor, *, draw: StepNoise | None = None, condition: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the images and, `(B, steps, C, H, W)` each, the `state` before each step and its `predicted_noise`.

        Raises:
            ValueError: as `generate`.
        """
        states, predicted, following = zip(*self._run(noise, draw, condition), strict=True)
        return following[-1], {"state": torch.stack(states, 1), "predicted_noise": torch.stack(predicted, 1)}

    def _check(self, most: int) -> None:
        """Refuse settings that are out of range; `steps` goes from 1 to `most`."""
        check_scheduler(self.kind, self.scheduler)
        object.__setattr__(self, "steps", checks.integer("steps", self.steps, 1, most))
        object.__setattr__(self, "compile", checks.boolean("compile", self.compile))
        object.__setattr__(self, "guidance", checks.number("guidance", self.guidance, 0, 1e6))
        if self.null is not None:
            object.__setattr__(self, "null", checks.integer("null", self.null, 0))
        if self.guidance != 1 and self.null is None:
            rule = "guidance needs a conditional model with a null class; got"
            raise ValueError(
                f"{rule} guidance={self.guidance!r}. If class k of the model is one, with_(null=k) says so"
            )

    def _guided(self, x: torch.Tensor, t: float | torch.Tensor, condition: torch.Tensor | None) -> torch.Tensor:
        """Return the network's output, with guidance extrapolated from that of the null class.

        Variances, where the network returns them, are those of the condition.
        """
        if self.guidance == 1 or self.null is None:  # `_check` refuses guidance without a null class
            return self._output(x, t, condition)
        if condition is None:
            raise ValueError(f"guidance needs a condition; got None with guidance={self.guidance!r}")
        classes = torch.cat([condition, torch.full_like(condition, self.null)])
        towards, free = self._output(torch.cat([x, x]), t, classes).chunk(2)
        guided = free + self.guidance * (towards - free)
        return torch.cat([guided[:, : x.shape[1]], towards[:, x.shape[1] :]], 1) if self.learned else guided

    def _output(self, x: torch.Tensor, t: float | torch.Tensor, condition: torch.Tensor | None) -> torch.Tensor:
        output = self._compiled(x.to(self.like), torch.as_tensor(t, device=x.device), condition)
        wanted = (len(x), (1 + self.learned) * x.shape[1], *x.shape[2:])
        if output.shape != wanted:
            raise ValueError(f"the network must return the shape {wanted}; got {tuple(output.shape)}")
        if not output.is_floating_point():
            raise ValueError(f"the network must return floating-point numbers; got {output.dtype}")
        if told := CALLED.get():
            told(len(x))
        return output.to(x.dtype)

    def _start(self, noise: torch.Tensor) -> torch.Tensor:
        """Return the noise on the network's device, in single precision at least, also for a half-precision network."""
        return noise.to(self.like.device, torch.promote_types(self.like.dtype, torch.float32))

    @cached_property
    def _compiled(self) -> Network:
        return torch.compile(self.network, options={"freezing": True}) if self.compile else self.network

    def _record(self) -> dict[str, object]:
        """Return the part of `describe` that all integrators share."""
        return {
            **self.identity,
            "shape": list(self.shape),
            "scheduler": self.scheduler,
            "steps": self.steps,
            "guidance": self.guidance,
            **({} if self.guidance == 1 else {"null": self.null}),
            "evaluations": self.evaluations,
            "clip_image": False,
            "dtype": str(self.like.dtype).removeprefix("torch."),
            "compile": self.compile,
        }
