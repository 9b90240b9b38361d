"""Rectified flows, whose network predicts the velocity of a straight path from noise to images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

import torch
from diffusers import DiTTransformer2DModel, UNet2DModel

from antinb import checks
from antinb.models.draws import StepNoise
from antinb.models.generator import Integrator, Network, Step, check_noise
from antinb.models.networks import parts

__all__ = ["RectifiedFlow"]

UNKNOWN = (
    "invert_sigmas",
    "shift_terminal",
    "stochastic_sampling",
    "use_beta_sigmas",
    "use_dynamic_shifting",
    "use_exponential_sigmas",
    "use_karras_sigmas",
)


@dataclass(frozen=True, eq=False)
class RectifiedFlow(Integrator):
    """A network that predicts the velocity `n - x` of the path `x_t = (1 - t) x + t n` from an image to noise.

    The sampler solves `dx/dt = v(x, t)` from noise at t = 1 to an image at t = 0, on the grid
    `t_k = s u / (1 + (s - 1) u)` with `u = 1 - k / steps` and the shift s. A step of length `h = t_k - t_(k+1)`
    is `x' = x - h v(x, t_k)` (Euler) or `x - h/2 (v(x, t_k) + v(x', t_(k+1)))` (Heun, second order; its last
    step is Euler's, so that the network is never called at t = 0). Guidance doubles the calls.

    Attributes:
        network: `(x (B, C, H, W), levels * t (), condition (B,) or None) -> velocity (B, C, H, W)`.
        shape: `(C, H, W)`.
        like: a tensor that sets the device and dtype.
        steps: number of steps, from 1 to `levels`.
        scheduler: `"euler"` or `"heun"`.
        guidance: scale g of classifier-free guidance, `v_null + g (v_condition - v_null)`; 1 turns it off.
        shift: s, from 0.01 to 100; 1 gives the uniform grid, and a larger s puts more steps near the noise.
        levels: unit of the network's time, which is called with `levels * t`.
        null: the class that stands for no condition, where there is one.
        conditions: number of classes, that one not counted.
        compile: whether the network runs through `torch.compile`, with its weights as constants.
        identity: name and sha256 of the weights, for the record.

    Raises:
        ValueError: if a setting is out of its range, or there is guidance without a null class.

    Source: Liu, Gong and Liu, arXiv 2209.03003; the shift is that of Esser et al., arXiv 2403.03206, section 5.3.2.

    Examples:
        >>> model = RectifiedFlow(lambda x, t, condition: x, (1, 2, 2), torch.zeros(()), steps=4, scheduler="heun")
        >>> model.times, model.evaluations
        ([1.0, 0.75, 0.5, 0.25, 0.0], 7)
    """

    kind = "rectified"
    settings = ("steps", "scheduler", "guidance", "null", "compile")
    network: Network
    shape: tuple[int, ...]
    like: torch.Tensor
    _: KW_ONLY
    steps: int = 50
    scheduler: str = "euler"
    guidance: float = 1.0
    shift: float = 1.0
    levels: int = 1000
    null: int | None = None
    conditions: int = 0
    compile: bool = False
    identity: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse impossible settings."""
        self._check(checks.integer("levels", self.levels, 1))
        object.__setattr__(self, "shift", checks.number("shift", self.shift, 0.01, 100))

    @property
    def evaluations(self) -> int:
        """Network calls for one image, `steps` with Euler, `2 steps - 1` with Heun, and twice that with guidance."""
        return (self.steps if self.scheduler == "euler" else 2 * self.steps - 1) * self.calls

    @property
    def times(self) -> list[float]:
        """The grid of `steps + 1` times, from 1 (noise) to 0 (data)."""
        uniform = [1 - k / self.steps for k in range(self.steps + 1)]
        return [self.shift * u / (1 + (self.shift - 1) * u) for u in uniform]

    @property
    def timesteps(self) -> list[int]:
        """The levels nearest to the times that the steps start from, where level k is the time `(k + 1) / levels`."""
        return [max(round(self.levels * t) - 1, 0) for t in self.times[:-1]]

    def velocity(self, x: torch.Tensor, t: float, condition: torch.Tensor | None = None) -> torch.Tensor:
        """Return the velocity `v(x, t)` that the sampler follows, `(B, C, H, W)` to the same.

        The time `t` goes from 0, the data, to 1, the noise.

        Raises:
            ValueError: if `t` is out of its range, `x` or the network's output has another shape, the network
                does not know the condition, or guidance lacks a condition.
        """
        check_noise(x, self.shape)
        return self._guided(x, self.levels * checks.number("t", t, 0, 1), condition)

    def predict_noise(
        self, x: torch.Tensor, t: int | torch.Tensor, condition: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the noise at the end of the path through `x`, `x + (1 - s) v(x, s)`, `(B, C, H, W)` to the same.

        The level `t` is the time `s = (t + 1) / levels`: level 0 is next to the data, and level `levels - 1` is
        the noise itself, where the prediction is x.

        Raises:
            ValueError: as `velocity`.
        """
        time = (int(t) + 1) / self.levels
        return x + (1 - time) * self.velocity(x, time, condition)

    def describe(self) -> dict[str, object]:
        """Return model, weights, scheduler and its grid, steps, network calls and guidance."""
        return self._record() | {"shift": self.shift, "levels": self.levels}

    def noised(self, images: torch.Tensor, noise: torch.Tensor, first: int) -> torch.Tensor:
        """Return the states `(1 - t) x + t n` that step `first` starts from, `(B, C, H, W)` twice to the same."""
        return (1 - self.times[first]) * images + self.times[first] * noise

    @torch.no_grad()
    def _run(
        self, noise: torch.Tensor, draw: StepNoise | None, condition: torch.Tensor | None, first: int = 0
    ) -> Iterator[Step]:
        x = self._start(noise)
        for t, after in zip(self.times[first:], self.times[first + 1 :], strict=False):
            v = self.velocity(x, t, condition)
            following = x + (after - t) * v
            if self.scheduler == "heun" and after:
                following = x + (after - t) / 2 * (v + self.velocity(following, after, condition))
            yield x, x + (1 - t) * v, following
            x = following


def from_network(
    network: UNet2DModel | DiTTransformer2DModel, config: Mapping[str, Any], **identity: object
) -> RectifiedFlow:
    """Return the flow of a diffusers network; `config` is that of its `FlowMatchEulerDiscreteScheduler`.

    The grid is the one that the scheduler returns for `sigmas=linspace(1, 1 / steps, steps)`.

    Raises:
        ValueError: if the network does not return as many channels as it takes, or the configuration asks for
            another kind of grid or for step noise.
    """
    unknown = [name for name in UNKNOWN if config.get(name)]
    if unknown:
        raise ValueError(f"a flow runs on a shifted uniform grid, without {unknown[0]}; got {config[unknown[0]]!r}")
    shift, levels = config.get("shift", 1.0), config.get("num_train_timesteps", 1000)
    return RectifiedFlow(shift=shift, levels=levels, steps=min(50, levels), **parts(network, identity))
