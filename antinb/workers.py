"""Shards of a run made by the workers of a dask cluster, and handed to the one process that writes the store.

On one machine, `antinb sample --workers 4` or a client of a local cluster:

    from distributed import Client, LocalCluster
    client = Client(LocalCluster(n_workers=4, threads_per_worker=1))
    antinb.sample(generator, design, seed=0, store="run.zarr", client=client)

On SLURM with `dask-jobqueue`, and with a GPU for each worker of this machine with `dask-cuda`; neither was tried here:

    from dask_jobqueue import SLURMCluster
    cluster = SLURMCluster(queue="gpu", cores=1, processes=1, memory="32GB", job_extra_directives=["--gres=gpu:1"])
    cluster.scale(jobs=8)  # jobs that end are replaced, and their shards made by the others
    client = Client(cluster)

    from dask_cuda import LocalCUDACluster
    client = Client(LocalCUDACluster(threads_per_worker=1))
"""

from __future__ import annotations

import os
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch

from antinb.models.generator import Generator
from antinb.zoo import sources

__all__: list[str] = []

AHEAD, KEPT = 2, 8  # shards for each thread of a worker: to be made, and with those that are made and not yet fetched
LOOK = 1.0  # seconds after which workers are counted again
SMALL = 2**16  # bytes of a generator that goes with every shard
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

    Where there are GPUs, each process sees one of them.

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
    local = {"n_workers": workers, "threads_per_worker": 1, "dashboard_address": ":0"}
    with LocalCluster(**local) if workers else nullcontext(address) as place, Client(place) as client:
        if workers and torch.cuda.device_count():
            client.register_worker_callbacks(partial(_see_one, torch.cuda.device_count()))
        yield client


def _see_one(gpus: int, dask_worker: Any) -> None:  # noqa: ANN401
    """Let a worker of this machine see one GPU of so many, before it uses any."""
    os.environ["CUDA_VISIBLE_DEVICES"] = str(int(dask_worker.name) % gpus)


def spread(
    client: Client,
    make: Make,
    generator: Generator,
    shards: Iterator[range],
) -> Iterator[Shard]:
    """Yield the shards in their order with what `make(generator, units=units)` returned for them on a worker.

    A worker loads networks that came from files once, by the name or folder that `antinb.load` was given, on the device
    that it was given or else on the one that the worker has. If one of the workers cannot, or has other weights there,
    they are sent to all, once, as is every other object. A worker takes as many threads of torch as this process, so
    that its images are the same byte for byte. A shard whose worker is lost is made by another one; while it is waited
    for, eight shards for each thread of the workers can be made beyond it.

    Raises:
        ValueError: if the generator cannot be pickled, or what `make` raises.
        OSError: if the workers that held a generator that was sent are lost, or several died of one shard.
    """
    from distributed import as_completed  # pyright: ignore[reportMissingImports]

    client.wait_for_workers(1)
    threads, waiting = torch.get_num_threads(), deque()
    sent: Any = sources.message(generator)
    devices = client.run(_device, sent, on_error="ignore").values()
    if None in devices or len(sent) > SMALL:
        sent = client.scatter(sources.message(generator, whole=None in devices), broadcast=True, hash=False)
    elif len({*devices}) > 1:
        warnings.warn(f"images agree up to rounding only: workers run on {', '.join(sorted({*devices}))}", stacklevel=3)
    made, running, count, looked, left = as_completed(), 0, 1, -LOOK, True
    try:
        while left or waiting:
            if time.monotonic() - looked > LOOK:
                count, looked = max(1, sum(client.nthreads().values())), time.monotonic()
            while made.has_ready():
                next(made)
                running -= 1
            if left and running < AHEAD * count and len(waiting) < KEPT * count:
                units = next(shards, None)
                left = units is not None
                if units is not None:
                    waiting.append((units, client.submit(_made, make, sent, units, threads, pure=False)))
                    made.add(waiting[-1][1])
                    running += 1
            elif running and not waiting[0][1].done():
                next(made)
                running -= 1
            else:
                yield _received(*waiting.popleft())
    finally:
        client.cancel([future for _, future in waiting])


def _received(units: range, future: Any) -> Shard:  # noqa: ANN401
    from distributed import CancelledError, KilledWorker  # pyright: ignore[reportMissingImports]

    rest = "what is stored stays, run again to resume"
    try:
        return units, future.result()
    except CancelledError:
        raise OSError(f"the workers that held the model, or their scheduler, are lost; {rest}") from None
    except KilledWorker:
        rule = f"several workers died while they made units {units.start} to {units.stop - 1}, as for want of memory"
        raise OSError(f"{rule}; {rest}") from None


def _device(message: bytes) -> str | None:
    """Return the kind of device on which a worker has the generator of a message, None if it cannot open it."""
    try:
        generator = sources.opened(message)
    except Exception:  # whatever a worker lacks, the generator is then sent whole
        return None
    return str(getattr(getattr(generator, "like", None), "device", "cpu"))


def _made(make: Make, message: bytes, units: range, threads: int) -> dict[str, np.ndarray]:
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
    return make(sources.opened(message), units=units)
