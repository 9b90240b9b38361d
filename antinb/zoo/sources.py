"""Generators as messages to other processes: a network that came from files goes by their name, not by its weights."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from functools import lru_cache, partial
from pathlib import Path
from pickle import PicklingError, Unpickler
from typing import Any
from weakref import WeakKeyDictionary

import cloudpickle
import torch
from diffusers import DiffusionPipeline
from torch import nn

from antinb import checks
from antinb.models.networks import module_hash

__all__: list[str] = []

Load = Callable[..., object]
Known = tuple[Load, str | None, int]  # what loads a generator, the device that was asked for, the network's place in it

_KNOWN: WeakKeyDictionary[nn.Module, Known] = WeakKeyDictionary()


def networks(thing: object) -> Iterator[nn.Module]:
    """Yield the networks in a generator, in the order of its fields."""
    if isinstance(thing, nn.Module):
        yield thing
    elif isinstance(thing, DiffusionPipeline):
        yield from (part for part in thing.components.values() if isinstance(part, nn.Module))
    elif is_dataclass(thing):
        for part in fields(thing):
            yield from networks(getattr(thing, part.name))


def note(generator: object, load: Load, source: str | Path, device: object, dtype: object) -> None:
    """Note that the networks of a generator are those of `load(source, device=device, dtype=dtype)`."""
    path = os.path.expanduser(source)
    again = partial(load, os.path.abspath(path) if os.path.isdir(path) else os.fspath(source), dtype=dtype)
    wanted = None if device is None else torch.device(str(device)).type
    for place, network in enumerate(networks(generator)):
        _KNOWN[network] = again, wanted, place


def message(generator: object, *, whole: bool = False) -> bytes:
    """Return a generator pickled, the networks that came from files by their source unless it is to be whole.

    Raises:
        ValueError: if it cannot be pickled.
    """
    written = io.BytesIO()
    try:
        (cloudpickle.Pickler if whole else _Pickler)(written).dump(generator)
    except Exception as error:
        kind = type(generator).__name__
        raise ValueError(
            f"workers need a model that can be pickled; this {kind} cannot: {checks.reason(error)}"
        ) from None
    return written.getvalue()


@lru_cache(2)
def opened(message: bytes) -> Any:  # noqa: ANN401
    """Return the generator of a message, its networks loaded on the device that was asked for, or the one that is here.

    Raises:
        ValueError: if a source is not here, or its weights are others.
    """
    return _Unpickler(io.BytesIO(message)).load()


class _Pickler(cloudpickle.Pickler):
    """Networks that came from files, as they still are, by their source; their parameters, such as `like`, too."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self._found: dict[nn.Module, tuple[Known, str]] = {}

    def persistent_id(self, obj: object) -> object:
        if isinstance(obj, nn.Module):
            return (*self._source(obj), None) if obj in _KNOWN else None
        if isinstance(obj, nn.Parameter):
            for network in _KNOWN:
                for name, one in network.named_parameters():
                    if one is obj:
                        return (*self._source(network), name)
        return None

    def _source(self, network: nn.Module) -> tuple[Known, str]:
        if network not in self._found:
            self._found[network] = _KNOWN[network], module_hash(network)
        return self._found[network]


class _Unpickler(Unpickler):
    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self._loaded: dict[object, list[nn.Module]] = {}

    def persistent_load(self, pid: tuple[Known, str, str | None]) -> object:
        (load, device, place), digest, name = pid
        key = repr(load), device
        if key not in self._loaded:
            here = device or (torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None)
            self._loaded[key] = [*networks(load(device=here))]
        network = self._loaded[key][place]
        if module_hash(network) != digest:
            raise PicklingError("its source holds other weights here")
        return network if name is None else network.get_parameter(name)
