"""What a cluster costs: two workers against two runs side by side, and a shard the one process that writes.

Run `python tests/benchmarks/cluster.py` on an idle machine of two cores; it prints a table and exits with 1 if a bound
is broken.

On paper: with n workers that make a shard in t seconds, the process that holds the client is busy for a share
`n (c + w b) / t` of the time, with c the cost of a shard, b its size and w the time to receive, check and write a
megabyte, all three in the table; the scheduler is busy for less than `n c / t`. What saturates first is therefore that
process, and by its bytes where images are large. C and W stand for what was measured on one core, see `README.md`.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"

import logging
import multiprocessing
import platform
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import click
import torch
from distributed import Client, LocalCluster
from timing import ratio, report, seconds

import antinb
from antinb import noise

PAIRS, REPEATS = 128, 5
SHARDS, LARGE = 400, (3, 64, 64)
STORES = iter(range(10**6))


def network(folder: str, pairs: int, seed: int, client: Any = None) -> None:  # noqa: ANN401
    """Make a new run of a network."""
    model, store = antinb.load("fashion-ddpm", steps=10), Path(folder) / f"{os.getpid()}.{next(STORES)}.zarr"
    antinb.sample(model, noise.antithetic(pairs), seed=seed, batch=16, store=store, client=client, progress=False)


def nothing(folder: str, shape: tuple[int, ...], client: Any) -> None:  # noqa: ANN401
    """Make a new run of a function that costs nothing."""
    model, store = antinb.load(torch.tanh, shape=shape), Path(folder) / f"{os.getpid()}.{next(STORES)}.zarr"
    design = noise.antithetic(32 * SHARDS)
    antinb.sample(model, design, seed=0, batch=64, store=store, client=client, progress=False)


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
        costs = []
        for shape in ((1, 2, 2), LARGE):
            with_workers = seconds(lambda shape=shape: nothing(folder, shape, client))
            costs.append((with_workers - seconds(lambda shape=shape: nothing(folder, shape, None))) / SHARDS)
        size = 64 * 4 * LARGE[0] * LARGE[1] * LARGE[2] / 1e6
        rows.append(("a shard of a few bytes by workers, less one made here (ms)", 1e3 * costs[0], 20.0))
        rows.append(("each megabyte of it (ms)", 1e3 * (costs[1] - costs[0]) / size, 20.0))
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
