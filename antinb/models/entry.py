"""Where the noise enters a program of others, found by asking it, not by knowing it.

The program is run up to the first call of its network, with code numbers in the place of the noise: the
network's input then tells which number of the noise went where, at what scale, and beside what else. Packed
latents, scaled latents, latents mixed with an image or stacked on a mask are all of that kind.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from antinb.models.draws import BEYOND, TOLERANCE, Draws

BASE, DIGITS = 64, 4  # codes that survive half precision
ROWS = 2 + DIGITS  # a batch of zeros, ones and the digits of each number's place


@dataclass(frozen=True, eq=False)
class Entry:
    """The first input of a network as a function of the noise z: `x[where] = rest[where] + scale z[place]`.

    Attributes:
        shape: shape of one noise, as the program draws it.
        shared: the draws before the network that do not depend on the batch, by their numbers.
        key: which argument of the network takes the noise: a position or a name.
        where: places in the flattened input, `(d,)`.
        place: the place of the noise that goes to each of them, `(d,)`, every one once.
        scale: what it is multiplied with, `(d,)`.
        rest: what is there without noise, flattened.
    """

    shape: tuple[int, ...]
    shared: frozenset[int]
    key: int | str
    where: torch.Tensor
    place: torch.Tensor
    scale: torch.Tensor
    rest: torch.Tensor

    def check(self, network: torch.nn.Module, inputs: Mapping[int | str, object], noise: torch.Tensor) -> None:
        """Refuse a first input, `(rows, ...)` or a multiple, in which the noise `(rows, *shape)` is not where it was.

        Raises:
            ValueError: if it is not, up to the rounding of half precision.
        """
        value = inputs.get(self.key)
        fits = isinstance(value, torch.Tensor) and value[: len(noise)].numel() == len(noise) * self.rest.numel()
        if fits:
            found = _rows(value, len(noise))[:, self.where] - self.rest[self.where]
            wanted = self.scale * _rows(noise, len(noise))[:, self.place]
        if not fits or not (found - wanted).norm() <= TOLERANCE * wanted.norm():
            raise ValueError(f"the first input of {type(network).__name__} is not the design's noise: {BEYOND}")


def find(run: Callable[[int], object], network: torch.nn.Module, name: str) -> Entry:
    """Return where the first tensor `(rows, ...)` that `run(rows)` draws enters the network, which is not run.

    Args:
        run: the program, given a number of images.
        network: the module that takes the noise first, in evaluation mode.
        name: what the program is called, for messages.

    Raises:
        ValueError: if the program does not call the network, or its noise does not reach it number by number.
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
        key: _rows(value, ROWS)
        for key, value in inputs.items()
        if isinstance(value, torch.Tensor) and value.ndim > 1 and len(value) % ROWS == 0
    }
    key = next((key for key, (zeros, ones, *_) in batches.items() if not torch.equal(zeros, ones)), None)
    if key is None:
        raise ValueError(f"{name} cannot be paired: its first draw does not reach its network as a batch")
    zeros, ones, *digits = batches[key]
    where = (ones - zeros).nonzero().flatten()
    scale = (ones - zeros)[where]
    digits = [((digit - zeros)[where] / scale).round().long() for digit in digits]
    place = sum(digit * BASE**power for power, digit in enumerate(digits))
    if not torch.equal(place.sort().values, torch.arange(probe.start[0].numel())):
        raise ValueError(f"{name} cannot be paired: its noise is mixed before it reaches the network")
    return Entry(tuple(probe.start.shape[1:]), frozenset(probe.shared), key, where, place, scale, zeros)


def named(args: tuple, kwargs: dict) -> dict[int | str, object]:
    """Return the arguments of a call by position or name."""
    return {**dict(enumerate(args)), **kwargs}


def _rows(values: torch.Tensor, rows: int) -> torch.Tensor:
    return values[:rows].detach().cpu().double().flatten(1)


class _Reached(Exception):  # noqa: N818
    """The network was called: its inputs."""


class _Probe(Draws):
    """Code numbers for the first batch that is drawn, nothing for the others; draws of one row are shared."""

    def __init__(self) -> None:
        super().__init__(_codes, ROWS)

    def _next(self, shape: tuple[int, ...], generator: torch.Generator | None) -> torch.Tensor:
        if shape[:1] == (1,):
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
