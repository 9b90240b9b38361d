"""Shards of a run made by the workers of a dask cluster, and handed to the one process that writes the store."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch

from antinb import checks
from antinb.models.generator import Generator

__all__: list[str] = []

AHEAD = 2  # shards for each thread of a worker that are under way
EXTRA = 'pip install "antinb[cluster]"'

Shard = tuple[range, dict[str, np.ndarray]]
Make = Callable[..., dict[str, np.ndarray]]
Client = Any  # dask.distributed.Client, which the core does not need


def check(client: object) -> None:
    """Refuse what is no synchronous client of dask.distributed."""
    if not all(hasattr(client, name) for name in ("scatter", "submit", "nthreads")):
        raise ValueError(f"client must be a dask.distributed.Client ({EXTRA}); got a {type(client).__name__}")
    if getattr(client, "asynchronous", False):
        raise ValueError("client must be a synchronous one: Client(..., asynchronous=False)")


@contextmanager
def connected(workers: int | None, address: str | None) -> Iterator[Client]:
    """Give a client of so many new processes of this machine, or of the scheduler at an address, or None for neither.

    Raises:
        ValueError: if dask.distributed is not installed.
        OSError: if no scheduler answers there.
    """
    if not (workers or address):
        yield None
        return
    try:
        from distributed import Client, LocalCluster  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ValueError(f"workers need dask.distributed: {EXTRA}") from None
    local = {"threads_per_worker": 1, "dashboard_address": None}
    with LocalCluster(workers, **local) if workers else nullcontext(address) as place, Client(place) as client:
        yield client


def spread(
    client: Client,
    make: Make,
    generator: Generator,
    shards: Iterator[range],
) -> Iterator[Shard]:
    """Yield the shards in their order with what `make(generator, units=units)` returned for them on a worker.

    The generator is sent to every worker once, and at most two shards for each of their threads are under way. A
    worker takes as many threads of torch as this process, so that its images are the same byte for byte. A shard whose
    worker is lost is made by another one.

    Raises:
        ValueError: if the generator cannot be pickled, or what `make` raises.
        OSError: if the workers that held the generator are lost.
    """
    client.wait_for_workers(1)
    threads, waiting = torch.get_num_threads(), deque()
    try:
        sent = client.scatter(generator, broadcast=True, hash=False)
    except Exception as error:
        kind = type(generator).__name__
        raise ValueError(
            f"workers need a model that can be pickled; this {kind} cannot: {checks.reason(error)}"
        ) from None
    try:
        for units in shards:
            waiting.append((units, client.submit(_made, make, sent, units, threads, pure=False)))
            if len(waiting) > AHEAD * sum(client.nthreads().values()):
                yield _received(*waiting.popleft())
        while waiting:
            yield _received(*waiting.popleft())
    finally:
        client.cancel([future for _, future in waiting])


def _received(units: range, future: Any) -> Shard:  # noqa: ANN401
    from distributed import CancelledError  # pyright: ignore[reportMissingImports]

    try:
        return units, future.result()
    except CancelledError:
        rule = "the workers that held the model are lost; what is stored stays, run again to resume"
        raise OSError(rule) from None


def _made(make: Make, generator: Generator, units: range, threads: int) -> dict[str, np.ndarray]:
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
    return make(generator, units=units)
