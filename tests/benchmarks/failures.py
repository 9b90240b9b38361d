"""Runs on a cluster that loses its parts: workers, hosts, the scheduler; the store must be that of one process.

Run `python tests/benchmarks/failures.py` as root, which takes some minutes; it prints a line for each case and exits
with 1 if a byte differs. Four hosts are network namespaces of this machine, each with an address and a working folder
of its own, whose cable is a pair of virtual interfaces; without the right to make them that case is left out.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"

import logging
import re
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import click
import dask
from distributed import Client, LocalCluster

import antinb
from antinb import dataset, noise

UNITS, KILLS, HOSTS = 64, 20, 4
LOCAL = {"threads_per_worker": 1, "dashboard_address": ":0", "silence_logs": logging.CRITICAL}
NETWORK = "10.77.0"
SOON = {"distributed.comm.timeouts.tcp": "15s", "distributed.comm.timeouts.connect": "10s"}
CLUSTER = (
    [sys.executable, "-m", "distributed.cli.dask_scheduler"],
    [sys.executable, "-m", "distributed.cli.dask_worker"],
)


def run(store: Path, client: Any = None) -> None:  # noqa: ANN401
    """Make the run of all cases."""
    model = antinb.load("fashion-ddpm", steps=3)
    design = noise.antithetic(UNITS)
    antinb.sample(model, design, seed=0, batch=4, store=store, client=client, progress=False)


def files(store: Path) -> dict[str, bytes]:
    """Return the files of a store with their bytes."""
    return {str(path.relative_to(store)): path.read_bytes() for path in store.rglob("*") if path.is_file()}


@contextmanager
def after(shards: int, act: Callable[[], object]) -> Iterator[None]:
    """Do something once, when so many shards are there."""
    write, count = dataset.Store.write, 0

    def counting(self: dataset.Store, *values: Any) -> None:  # noqa: ANN401
        nonlocal count
        count += 1
        if count == shards:
            act()
        write(self, *values)

    dataset.Store.write = counting  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        dataset.Store.write = write


def kill(client: Any) -> None:  # noqa: ANN401
    """Kill one of the workers."""
    os.kill(next(iter(client.run(os.getpid).values())), signal.SIGKILL)


def some_workers(folder: Path, count: int) -> Path:
    """Run with so many workers."""
    with LocalCluster(n_workers=count, **LOCAL) as cluster, Client(cluster) as client:
        client.wait_for_workers(count)
        run(folder / "run.zarr", client)
    return folder / "run.zarr"


def come_and_go(folder: Path) -> Path:
    """Run with one worker, to which two join, and two of which leave."""
    with LocalCluster(n_workers=1, **LOCAL) as cluster, Client(cluster) as client:
        with after(4, lambda: cluster.scale(3)), after(12, lambda: cluster.scale(1)):
            run(folder / "run.zarr", client)
    return folder / "run.zarr"


@contextmanager
def machines(folder: Path, host: str, prefixes: list[list[str]]) -> Iterator[tuple[subprocess.Popen, str]]:
    """Give a scheduler and its address, and start a worker behind each prefix of a command, in a folder of its own."""
    environment = {
        **os.environ,
        **{f"DASK_{key.upper().replace('.', '__').replace('-', '_')}": value for key, value in SOON.items()},
    }
    file, started = folder / f"{uuid.uuid4().hex}.json", []
    start = partial(subprocess.Popen, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        started.append(
            start([*CLUSTER[0], "--host", host, "--port", "0", "--no-dashboard", "--scheduler-file", str(file)])
        )
        while not file.exists() or not (found := re.search(r"tcp://[\d.:]+", file.read_text())):
            time.sleep(0.1)
        for number, prefix in enumerate(prefixes):
            place = folder / f"{file.stem}.{number}"
            place.mkdir()
            command = [*prefix, *CLUSTER[1], found[0], "--nthreads", "1", "--no-nanny", "--no-dashboard"]
            started.append(start([*command, "--local-directory", str(place)], cwd=place))
        yield started[0], found[0]
    finally:
        for process in started:
            process.kill()
            process.wait()


def killed(number: int, folder: Path) -> Path:
    """Run with two workers, one of which is killed at another moment each time."""
    with machines(folder, "127.0.0.1", [[], []]) as (_, address), Client(address) as client:
        client.wait_for_workers(2)
        with after(1 + number, partial(kill, client)):
            run(folder / "run.zarr", client)
    return folder / "run.zarr"


def scheduler_killed(folder: Path) -> Path:
    """Run until the scheduler is killed, and run the same line again with another one."""
    with machines(folder, "127.0.0.1", [[], []]) as (scheduler, address), Client(address) as client:
        client.wait_for_workers(2)
        try:
            with after(6, scheduler.kill):
                run(folder / "run.zarr", client)
        except OSError as error:
            click.echo(f"  told: {error}")
        else:
            raise SystemExit("the run went on without its scheduler")
    left = dataset.damage(folder / "run.zarr")
    click.echo(f"  left: {left[0]}")
    with machines(folder, "127.0.0.1", [[], []]) as (_, address), Client(address) as client:
        run(folder / "run.zarr", client)
    return folder / "run.zarr"


@contextmanager
def network() -> Iterator[list[list[str]]]:
    """Give what to put before a command to run it on each of four hosts that are joined by a switch."""
    label = f"anb{os.getpid() % 10000}"
    names = [f"{label}h{number}" for number in range(HOSTS)]

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True)

    try:
        ip("link", "add", label, "type", "bridge")
        ip("link", "set", label, "up")
        ip("addr", "add", f"{NETWORK}.1/24", "dev", label)
        for number, name in enumerate(names):
            ip("netns", "add", name)
            ip("link", "add", f"{name}v", "type", "veth", "peer", "name", "eth0", "netns", name)
            ip("link", "set", f"{name}v", "master", label, "up")
            for words in (f"addr add {NETWORK}.{11 + number}/24 dev eth0", "link set eth0 up", "link set lo up"):
                ip("-n", name, *words.split())
        yield [["ip", "netns", "exec", name] for name in names]
    finally:
        for words in (*(f"netns del {name}" for name in names), f"link del {label}"):
            with suppress(subprocess.CalledProcessError):
                ip(*words.split())


def host_cut_off(folder: Path) -> Path:
    """Run on four hosts, the cable of one of which is cut in the middle."""
    with network() as hosts, machines(folder, f"{NETWORK}.1", hosts) as (_, address), Client(address) as client:
        client.wait_for_workers(HOSTS)
        seen = {re.search(r"[\d.]+(?=:)", worker)[0] for worker in client.nthreads()}  # pyright: ignore[reportOptionalSubscript]
        cable = f"{hosts[1][-1]}v"
        with after(6, lambda: subprocess.run(["ip", "link", "set", cable, "down"], check=True)):
            run(folder / "run.zarr", client)
        click.echo(f"  hosts {', '.join(sorted(seen))}, {len(client.nthreads())} left at the end")
    return folder / "run.zarr"


def cases() -> Iterator[tuple[str, Callable[[Path], Path]]]:
    """Yield each case with its name."""
    yield "2 workers", partial(some_workers, count=2)
    yield "4 workers", partial(some_workers, count=4)
    yield "workers that join and leave", come_and_go
    yield "the scheduler killed, the line run again", scheduler_killed
    if os.geteuid() == 0:
        yield f"{HOSTS} hosts, one cut off", host_cut_off
    for number in range(KILLS):
        yield f"a worker killed before shard {number + 1}", partial(killed, number)


@click.command()
@click.argument("words", default="")
def main(words: str) -> None:
    """Make the run in every case whose name holds WORDS, compare it, and exit with 1 if a byte differs."""
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    wrong = 0
    with tempfile.TemporaryDirectory() as folder, dask.config.set(SOON):
        run(Path(folder) / "alone.zarr")
        alone = files(Path(folder) / "alone.zarr")
        for number, (name, case) in enumerate(cases()):
            if words in name:
                place = Path(folder) / str(number)
                place.mkdir()
                found = files(case(place))
                different = sum(found.get(file) != alone.get(file) for file in {*found, *alone})
                wrong += different > 0
                click.echo(f"{name}: {different} of {len(alone)} files differ")
    raise SystemExit(wrong > 0)


if __name__ == "__main__":
    main()
