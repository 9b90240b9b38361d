"""Any callable as a generator, be it a function, a network or one call of somebody else's sampler.

The random numbers that it draws while it runs are its step noise and come from `draw` (see `antinb.draws`).
"""

from __future__ import annotations

import functools
import inspect
import itertools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from antinb import checks
from antinb.dataset import RANGE
from antinb.models.draws import StepNoise, supply
from antinb.models.generator import check_noise
from antinb.models.networks import module_hash

__all__ = ["Function"]

INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


@dataclass(frozen=True, eq=False)
class Function:
    """Any callable from noise `(B, *shape)` on `device` to images `(B, C, H, W)`, counted as one network call an image.

    Values go from black to white as `range` says; `generate` returns `2 (x - low) / (high - low) - 1`, from -1 to 1.
    The noise has the type `dtype`, by default single precision. Data that are no images take the same four axes, such
    as signals `(B, 1, 1, length)`. The random numbers that the callable draws itself are step noise; `antinb.draws`
    says which draws are understood.

    Raises:
        ValueError: if the shape is not of positive integers, the range not of two increasing numbers, or the function
            returns no such images.

    Examples:
        >>> model = Function(torch.tanh, (1, 4, 4))
        >>> model.generate(torch.zeros(2, 1, 4, 4)).shape
        torch.Size([2, 1, 4, 4])
    """

    function: Callable[[torch.Tensor], torch.Tensor]
    shape: tuple[int, ...]
    device: torch.device = torch.device("cpu")
    range: tuple[float, float] = RANGE
    evaluations: int = 1
    dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        """Refuse a shape that is not of positive integers, and a range that is not of two increasing numbers."""
        object.__setattr__(self, "shape", checks.shape(self.shape))
        object.__setattr__(self, "range", checks.increasing("range", self.range))

    @torch.no_grad()
    def generate(
        self, noise: torch.Tensor, *, draw: StepNoise | None = None, condition: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return `function(noise)`, or `function(noise, condition)` where a condition is given."""
        check_noise(noise, self.shape)
        arguments = [noise] if condition is None else [noise, condition]
        if condition is not None and not self._takes(*arguments):
            raise ValueError(f"{_name(self.function)} takes no condition; got {condition.tolist()}")
        with supply(len(noise), draw, itertools.count(1)) as mode:
            images = self.function(noise.to(self.device, self.dtype), *(each.to(self.device) for each in arguments[1:]))
        mode.finish()
        if not isinstance(images, torch.Tensor) or images.ndim != 4 or len(images) != len(noise):
            found = tuple(images.shape) if hasattr(images, "shape") else type(images).__name__
            rule = (
                f"the function must return a tensor ({len(noise)}, C, H, W), or signals as ({len(noise)}, 1, 1, length)"
            )
            raise ValueError(f"{rule}; got {found}")
        _check_images(images, self.range, self.shape)
        low, high = self.range
        return images if self.range == RANGE else 2 * (images.float() - low) / (high - low) - 1

    def _takes(self, *arguments: torch.Tensor) -> bool:
        try:
            inspect.signature(self.function).bind(*arguments)
        except (TypeError, ValueError):  # another signature, or a builtin that has none
            return False
        return True

    def describe(self) -> dict[str, object]:
        """Return the function's name, the weights of a module, shape, network calls and a range other than -1 to 1.

        Values that a function holds in a closure or in globals are not recorded.
        """
        record: dict[str, object] = {
            "model": _name(self.function),
            "shape": list(self.shape),
            "evaluations": self.evaluations,
        }
        if isinstance(self.function, nn.Module):
            record["network_sha256"] = module_hash(self.function)
        if self.dtype is not None:
            record["dtype"] = str(self.dtype).removeprefix("torch.")
        if self.range != RANGE:
            record["range"] = list(self.range)
        return record | {"clip_image": False}


def _check_images(images: torch.Tensor, known: tuple[float, float], noise: tuple[int, ...]) -> None:
    """Refuse what cannot be images `(B, C, H, W)`: integers without a range of their own, channels that come last."""
    if not (images.is_floating_point() or (known != RANGE and images.dtype in INTEGERS)):
        rule = "the function must return floating-point numbers from -1, black, to 1, white, or be loaded with range="
        raise ValueError(f"{rule}; got {images.dtype}")
    found = images.shape[1:]
    last = found == (*noise[1:], noise[0]) or (found[-1] in (1, 3, 4) and min(found[:2]) >= 8)
    if last and found != noise:
        raise ValueError(f"the function must return (B, C, H, W), channels first; got {tuple(images.shape)}")


def _name(function: Callable) -> str:
    if isinstance(function, functools.partial):
        return f"{_name(function.func)} with {function.args!r}, {function.keywords!r}"
    name = getattr(function, "__qualname__", type(function).__qualname__)
    return f"{_module(function)}.{name.replace('<locals>.', '').replace('<lambda>', 'lambda')}"


def _module(function: Callable) -> str:
    """Return the module of a function: a script is its file, be it run, imported or started by multiprocessing."""
    module = function.__module__
    file = getattr(sys.modules.get(module), "__file__", None) if module in ("__main__", "__mp_main__") else None
    return Path(file).stem if file else str(module).replace("__mp_main__", "__main__")
