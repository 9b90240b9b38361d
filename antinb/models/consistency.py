"""Consistency models: a network that sees the end of the path, the image, from any of its states."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from diffusers import LCMScheduler, UNet2DModel

from antinb.models.draws import StepNoise, supply
from antinb.models.generator import Integrator, Network, Step
from antinb.models.networks import parts


@dataclass(frozen=True, eq=False)
class Consistency(Integrator):
    """A consistency model: one network call from noise to an image, or a few with fresh noise in between.

    At level t the image is `f(x, t) = c_skip(t) x + c_out(t) x0(x, t)`, x0 being the clean image that the
    network's output implies. A step is `x' = sqrt(abar') f(x, t) + sqrt(1 - abar') w` with w from N(0, I), the
    last one `f(x, t)` itself: one step is deterministic, k steps take k - 1 step noises.

    Attributes:
        network: `(x (B, C, H, W), t (), condition (B,) or None) -> output (B, C, H, W)`.
        config: configuration of an `LCMScheduler`.
        shape: `(C, H, W)`.
        like: a tensor whose device and floating-point type are followed.
        steps: number of steps, from 1 to the `original_inference_steps` of the configuration.
        guidance: scale of classifier-free guidance; 1 is none.
        null: the class that stands for no condition, where there is one.
        compile: whether the network runs through `torch.compile`, with its weights as constants.
        identity: name and sha256 of the weights, for the record.

    Raises:
        ValueError: if a setting is out of its range, or there is guidance without a null class.

    Source: Song et al., arXiv 2303.01469, algorithm 1; Luo et al., arXiv 2310.04378, for c_skip and c_out.
    """

    settings = ("steps", "scheduler", "guidance", "compile")
    network: Network
    config: Mapping[str, object]
    shape: tuple[int, ...]
    like: torch.Tensor
    steps: int = 1
    scheduler: str = "lcm"
    guidance: float = 1.0
    null: int | None = None
    compile: bool = False
    identity: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse impossible settings."""
        if self.scheduler != "lcm":
            raise ValueError(f"scheduler of a consistency model must be 'lcm'; got {self.scheduler!r}")
        self._check(self._scheduler().config.original_inference_steps)

    @property
    def evaluations(self) -> int:
        """Network calls for one image."""
        return self.steps * self.calls

    @property
    def timesteps(self) -> list[int]:
        """The noise levels that the steps start from, the noise end first."""
        return self._set_scheduler().timesteps.tolist()

    def describe(self) -> dict[str, object]:
        """Return model, weights, scheduler and its settings, steps and network calls, for the record."""
        settings = self._scheduler().config
        return self._record() | {
            "scheduler_config": {key: value for key, value in settings.items() if not key.startswith("_")},
            "clip_sample": settings["clip_sample"],
        }

    @torch.no_grad()
    def _run(
        self, noise: torch.Tensor, draw: StepNoise | None, condition: torch.Tensor | None, first: int = 0
    ) -> Iterator[Step]:
        scheduler, numbers, x = self._set_scheduler(), itertools.count(1), self._start(noise)
        for index, t in list(enumerate(scheduler.timesteps))[first:]:
            output, last = self._guided(x, t, condition), index == self.steps - 1
            with nullcontext() if last else supply(len(x), draw, numbers):
                following, image = scheduler.step(output, t, x, return_dict=False)
            signal = scheduler.alphas_cumprod[t]
            yield x, (x - signal.sqrt() * image) / (1 - signal).sqrt(), following
            x = following

    def _scheduler(self) -> LCMScheduler:
        return LCMScheduler.from_config({key: value for key, value in self.config.items() if not key.startswith("_")})

    def _set_scheduler(self) -> LCMScheduler:
        scheduler = self._scheduler()
        scheduler.set_timesteps(self.steps)
        return scheduler


def from_network(network: UNet2DModel, config: Mapping[str, object], **identity: object) -> Consistency:
    """Return the generator of a diffusers network distilled for one step; `config` is that of its `LCMScheduler`.

    Raises:
        ValueError: if the network does not return as many channels as it takes.
    """
    return Consistency(config=config, **parts(network, **identity))
