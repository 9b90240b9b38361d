"""Find where the noise enters someone else's program by running it, without knowing its code.

The program runs up to the first call of its network, with code numbers in place of the noise. The network's
input then shows where each number of the noise went, at what scale, and what else is there. This covers packed
latents, scaled latents, and latents mixed with an image or stacked on a mask.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from antinb.models.draws import Draws
from antinb.models.inputs import check_first_input, flat

__all__ = ["Entry", "find"]

BASE, DIGITS = 64, 4  # codes that survive half precision
ROWS = 2 + DIGITS  # a batch of zeros, ones and the digits of each number's place


@dataclass(frozen=True, eq=False)
class Entry:
    """The first input of a network as a function of the noise z: `x[where] = rest[where] + scale z[place]`.

    Attributes:
        shape: shape of one noise, as the program draws it.
        shared: numbers of the draws before the network's call that do not depend on the batch.
        key: position or name of the network's argument that takes the noise.
        where: places in the flattened input that take noise, `(d,)`.
        place: for each of them, the place in the flattened noise that it takes, `(d,)`, each exactly once.
        scale: the factor of the noise at each place, `(d,)`.
        rest: the flattened input without noise.

    Examples:
        >>> network = torch.nn.Identity().eval()
        >>> entry = find(lambda rows: network(1 + 3 * torch.randn(rows, 2)), network, "the program")
        >>> entry.scale.tolist(), entry.rest.tolist()
        ([3.0, 3.0], [1.0, 1.0])
    """

    shape: tuple[int, ...]
    shared: frozenset[int]
    key: int | str
    where: torch.Tensor
    place: torch.Tensor
    scale: torch.Tensor
    rest: torch.Tensor

    def check(self, network: torch.nn.Module, inputs: Mapping[int | str, object], noise: torch.Tensor) -> None:
        """Refuse a first input, `(rows, ...)` or a multiple of the rows, that does not hold the noise `(rows, *shape)`.

        Raises:
            ValueError: if the noise is not in its place, up to the rounding of half precision.
        """
        value, rows, found = inputs.get(self.key), len(noise), None
        if isinstance(value, torch.Tensor) and value[:rows].numel() == rows * self.rest.numel():
            found = flat(value, rows)[:, self.where] - self.rest[self.where]
        check_first_input(network, found, self.scale * flat(noise, rows)[:, self.place])


def find(run: Callable[[int], object], network: torch.nn.Module, name: str) -> Entry:
    """Return where the first tensor `(rows, ...)` that `run(rows)` draws enters the network; the network is not run.

    Args:
        run: the program, as a function of the number of images.
        network: the module that takes the noise first, in evaluation mode.
        name: name of the program, for error messages.

    Raises:
        ValueError: if the program does not call the network, or its noise does not reach it number by number.

    Examples:
        >>> network = torch.nn.Identity().eval()
        >>> find(lambda rows: network(torch.randn(rows, 3, 4, 4).flip(-1)), network, "the program").shape
        (3, 4, 4)
    """
    probe = _Probe()

    def stop(_: torch.nn.Module, args: tuple, kwargs: dict) -> None:
        raise _Reached(named(args, kwargs))

    hook = network.register_forward_pre_hook(stop, with_kwargs=True)
    try:
        with probe:
            run(ROWS)
    except _Reached as reached:
        inputs = reached.args[0]
    else:
        raise ValueError(f"{name} cannot be paired: it does not call its {type(network).__name__}")
    finally:
        hook.remove()
    if probe.start is None:
        raise ValueError(f"{name} cannot be paired: it draws no noise before its network is called")
    batches = {
        key: flat(value, ROWS)
        for key, value in inputs.items()
        if isinstance(value, torch.Tensor) and value.ndim > 1 and len(value) % ROWS == 0
    }
    key = next((key for key, (zeros, ones, *_) in batches.items() if not torch.equal(zeros, ones)), None)
    if key is None:
        raise ValueError(f"{name} cannot be paired: its first draw does not reach its network as a batch")
    zeros, ones, *digits = batches[key]
    where = (ones - zeros).nonzero().flatten()
    scale = (ones - zeros)[where]
    powers = BASE ** torch.arange(DIGITS)[:, None]
    place = (((torch.stack(digits) - zeros)[:, where] / scale).round().long() * powers).sum(0)
    if not torch.equal(place.sort().values, torch.arange(probe.start[0].numel())):
        raise ValueError(f"{name} cannot be paired: its noise is mixed before it reaches the network")
    return Entry(tuple(probe.start.shape[1:]), frozenset(probe.single), key, where, place, scale, zeros)


def named(args: tuple, kwargs: dict) -> dict[int | str, Any]:
    """Return the arguments of a call by position or name."""
    return {**dict(enumerate(args)), **kwargs}


class _Reached(Exception):  # noqa: N818
    """The network was called; the argument holds its inputs."""


class _Probe(Draws):
    """Draw code numbers for the first batch and zeros for the others; draws of one row are shared."""

    def __init__(self) -> None:
        super().__init__(_codes, ROWS)
        self.single: set[int] = set()

    def _next(self, shape: tuple[int, ...], generator: torch.Generator | None) -> torch.Tensor:
        if shape[:1] == (1,):
            self.single.add(self.drawn)
            self.shared.add(self.drawn)
        return super()._next(shape, generator)


def _codes(stream: int, shape: tuple[int, ...]) -> torch.Tensor:
    size = torch.Size(shape).numel()
    if size > BASE**DIGITS:
        raise ValueError(f"the noise of an image has at most {BASE**DIGITS} numbers; the program draws {size}")
    if stream:
        return torch.zeros(ROWS, *shape)
    index = torch.arange(size)
    digits = [index // BASE**power % BASE for power in range(DIGITS)]
    return torch.stack([torch.zeros(size), torch.ones(size), *digits]).reshape(ROWS, *shape)
