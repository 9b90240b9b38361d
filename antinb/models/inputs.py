"""The first input of a network is compared with the noise that a design gave."""

from __future__ import annotations

from collections.abc import Callable

import torch

__all__: list[str] = []

TOLERANCE = 0.01  # of the check at the network's first input; bfloat16 rounds by 0.004
BEYOND = "it was drawn by numpy, in another thread, or changed on the way"


class FirstInput:
    """Forward pre-hook that checks once that a network's first input is the start, up to a scale.

    A part that all rows of a group have in common is left out of the comparison, unless a group is one row.
    """

    def __init__(self, rows: int, start: Callable[[], torch.Tensor | None], group: int) -> None:
        self.rows, self.start, self.group, self.seen = rows, start, group, False

    def __call__(self, module: torch.nn.Module, args: tuple, kwargs: dict) -> None:
        """Compare the first tensor of `rows` rows, or of a multiple of them, with the start."""
        if self.seen:
            return
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)]
        inputs = [value for value in tensors if value.ndim > 1 and len(value) % self.rows == 0]
        self.seen, start, name = True, self.start(), type(module).__name__
        if start is None or not inputs or inputs[0][: self.rows].numel() != start.numel():
            raise ValueError(f"{name} got an input that no draw of {self.rows} rows went into: {BEYOND}")
        x, z = (self._deviations(value) for value in (inputs[0], start))
        scale = (x * z).sum() / z.square().sum()
        check_first_input(module, x if scale else None, scale * z)

    def _deviations(self, values: torch.Tensor) -> torch.Tensor:
        groups = flat(values, self.rows).unflatten(0, (-1, self.group))
        return groups - groups.mean(1, keepdim=True) if self.group > 1 else groups


def check_first_input(network: torch.nn.Module, found: torch.Tensor | None, noise: torch.Tensor) -> None:
    """Refuse a network's first input if the noise found in it is None, or not the noise up to the rounding of halves.

    Raises:
        ValueError: if so.
    """
    if found is None or not (found - noise).norm() <= TOLERANCE * noise.norm():
        raise ValueError(f"the first input of {type(network).__name__} is not the design's noise: {BEYOND}")


def flat(values: torch.Tensor, rows: int) -> torch.Tensor:
    """Return the first rows of a tensor, flat, in double precision on the CPU."""
    return values[:rows].detach().cpu().double().flatten(1)
