"""What a cluster costs: two workers against two runs side by side, and a shard the one process that writes.

Run `python tests/benchmarks/cluster.py` on an idle machine of two cores; it prints a table and exits with 1 if a bound
is broken.

On paper: n workers that make a shard of b megabytes in t seconds keep the process that holds the client busy for a
share `n (c + w b) / t` of the time, with c the cost of a shard and w that of a megabyte, which is received, checked
and written. With the 20 ms and 9 ms of `README.md`, of a slow machine, a shard of 64 images 3x256x256, 50 MB, costs
0.46 s. So what saturates first is the one process that writes, by the bytes of large images: at 130 workers that need
60 s for such a shard, at 1,000 that need eight minutes. Small images leave c, most of it the scheduler's and the
client's messages: 1,000 workers then need 20 s a shard. Beyond that, several runs with other seeds and a client each
can share the workers.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"

import logging
import multiprocessing
import platform
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import click
import torch
from distributed import Client, LocalCluster
from timing import ratio, report

import antinb
from antinb import noise

PAIRS, REPEATS = 128, 5
SHARDS, LARGE = 400, (3, 64, 64)
STORES = iter(range(10**6))


def network(folder: str, pairs: int, seed: int, client: Any = None) -> None:  # noqa: ANN401
    """Make a new run of a network."""
    model, store = antinb.load("fashion-ddpm", steps=10), Path(folder) / f"{os.getpid()}.{next(STORES)}.zarr"
    antinb.sample(model, noise.antithetic(pairs), seed=seed, batch=16, store=store, client=client, progress=False)


def busy(folder: str, shape: tuple[int, ...], client: Any) -> float:  # noqa: ANN401
    """Return how many ms of processor time this process, in which the scheduler is too, takes for an empty shard.

    Without a client it makes the shard itself.
    """
    model, store = antinb.load(torch.tanh, shape=shape), Path(folder) / f"{next(STORES)}.zarr"
    design, start = noise.antithetic(32 * SHARDS), time.process_time()
    antinb.sample(model, design, seed=0, batch=64, store=store, client=client, progress=False)
    return 1e3 * (time.process_time() - start) / SHARDS


def table(folder: str) -> list[tuple[str, float, float]]:
    """Return the rows: what was measured, its value and its bound."""
    local = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": ":0", "silence_logs": logging.CRITICAL}
    context, rows = multiprocessing.get_context("spawn"), []
    with ProcessPoolExecutor(2, context) as pool, LocalCluster(**local) as cluster, Client(cluster) as client:
        client.wait_for_workers(2)

        def apart() -> None:
            for future in [pool.submit(network, folder, PAIRS // 2, seed) for seed in (0, 1)]:
                future.result()

        found = ratio(lambda: network(folder, PAIRS, 0, client), apart, REPEATS)
        rows.append(("two workers / two runs of half the size side by side", found, 1 / 0.9))
        small, large = (busy(folder, shape, client) for shape in ((1, 2, 2), LARGE))
        size = 64 * 4 * LARGE[0] * LARGE[1] * LARGE[2] / 1e6
        rows.append(("a shard of a few bytes, processor time of scheduler and client (ms)", small, 20.0))
        rows.append(("each megabyte of a shard, the same (ms)", (large - small) / size, 20.0))
        alone = busy(folder, LARGE, None)
        rows.append(("the same for a whole shard of 3.1 MB / one process that makes it too", large / alone, 2.0))
    return rows


@click.command()
def main() -> None:
    """Measure, print the table, and exit with 1 if a bound is broken."""
    with tempfile.TemporaryDirectory() as folder:
        rows = table(folder)
    click.echo(f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, torch {torch.__version__}\n")
    return report(rows)


if __name__ == "__main__":
    main()
