"""Consistency models, whose network predicts the image at the end of the path from any state on it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

import torch
from diffusers import LCMScheduler, UNet2DModel

from antinb.models.draws import StepNoise, supply
from antinb.models.generator import Integrator, Network, Step
from antinb.models.networks import parts, scheduler, settings

__all__ = ["Consistency"]


@dataclass(frozen=True, eq=False)
class Consistency(Integrator):
    """A consistency model makes an image in one network call, or in a few calls with fresh noise in between.

    At level t the image is `f(x, t) = c_skip(t) x + c_out(t) x0(x, t)`, where x0 is the clean image that the
    network's output implies. A step is `x' = sqrt(abar') f(x, t) + sqrt(1 - abar') w` with w from N(0, I), and the
    last step is `f(x, t)` itself. So one step is deterministic, and k steps take k - 1 step noises.

    Attributes:
        network: `(x (B, C, H, W), t (), condition (B,) or None) -> output (B, C, H, W)`.
        config: configuration of an `LCMScheduler`.
        shape: `(C, H, W)`.
        like: a tensor that sets the device and dtype.
        steps: number of steps, from 1 to the `original_inference_steps` of the configuration.
        scheduler: `"lcm"`, the only one.
        guidance: scale of classifier-free guidance; 1 turns it off.
        null: the class that stands for no condition, where there is one.
        conditions: number of classes, that one not counted.
        compile: whether the network runs through `torch.compile`, with its weights as constants.
        identity: name and sha256 of the weights, for the record.

    Raises:
        ValueError: if a setting is out of its range, or there is guidance without a null class.

    Source: Song et al., arXiv 2303.01469, algorithm 1; Luo et al., arXiv 2310.04378, for c_skip and c_out.

    Examples:
        >>> model = Consistency(lambda x, t, condition: x, {}, (1, 2, 2), torch.zeros(()))
        >>> model.timesteps, model.evaluations
        ([999], 1)
    """

    kind = "consistency"
    settings = ("steps", "scheduler", "guidance", "null", "compile")
    network: Network
    config: Mapping[str, Any]
    shape: tuple[int, ...]
    like: torch.Tensor
    _: KW_ONLY
    steps: int = 1
    scheduler: str = "lcm"
    guidance: float = 1.0
    null: int | None = None
    conditions: int = 0
    compile: bool = False
    identity: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse impossible settings."""
        self._check(self._scheduler().config["original_inference_steps"])

    @property
    def evaluations(self) -> int:
        """Network calls for one image."""
        return self.steps * self.calls

    @property
    def timesteps(self) -> list[int]:
        """The noise levels that the steps start from, the noise end first."""
        return self._set_scheduler().timesteps.tolist()

    def describe(self) -> dict[str, object]:
        """Return model, weights, scheduler and its settings, steps and network calls."""
        config = settings(self._scheduler().config)
        return self._record() | {"scheduler_config": config, "clip_sample": config["clip_sample"]}

    @torch.no_grad()
    def _run(
        self, noise: torch.Tensor, draw: StepNoise | None, condition: torch.Tensor | None, first: int = 0
    ) -> Iterator[Step]:
        solver, numbers, x = self._set_scheduler(), itertools.count(1), self._start(noise)
        take_step: Callable[..., Any] = solver.step  # diffusers declares an int, and takes the tensor of the time step
        for index, t in list(enumerate(solver.timesteps))[first:]:
            output, last = self._guided(x, t, condition), index == self.steps - 1
            with nullcontext() if last else supply(len(x), draw, numbers):
                following, image = take_step(output, t, x, return_dict=False)
            signal = solver.alphas_cumprod[t]
            yield x, (x - signal.sqrt() * image) / (1 - signal).sqrt(), following
            x = following

    def _scheduler(self) -> LCMScheduler:
        return scheduler(LCMScheduler, self.config)

    def _set_scheduler(self) -> LCMScheduler:
        solver = self._scheduler()
        solver.set_timesteps(self.steps)
        return solver


def from_network(network: UNet2DModel, config: Mapping[str, Any], **identity: object) -> Consistency:
    """Return the generator of a diffusers network distilled for one step; `config` is that of its `LCMScheduler`.

    Raises:
        ValueError: if the network does not return as many channels as it takes.
    """
    return Consistency(config=config, **parts(network, identity))
