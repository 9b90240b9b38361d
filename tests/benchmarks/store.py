"""What a store costs: opening, going on with and extending a run of very many units, its files, and the proof.

Run `python tests/benchmarks/store.py` on an idle machine; it prints a table and exits with 1 if a bound is broken.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"

import platform
import tempfile
from pathlib import Path

import click
import torch
from timing import report, seconds

import antinb
from antinb import dataset, noise

SHAPE = (1, 2, 2)
UNITS = (25_000, 100_000)
CALLS: list[int] = []


def cheap(z: torch.Tensor) -> torch.Tensor:
    """Return the images of noise that costs nothing."""
    CALLS.append(len(z))
    return torch.tanh(z)


def table(folder: Path) -> list[tuple[str, float, float]]:
    """Return the rows: what was measured, its value and its bound."""
    generator, rows, times = antinb.load(cheap, shape=SHAPE), [], {}
    for units in UNITS:
        store = folder / f"{units}.zarr"

        def run(wanted: int, store: Path = store) -> object:
            return antinb.sample(generator, noise.antithetic(wanted), seed=0, store=store, progress=False)

        run(units)
        made = sum(CALLS)
        CALLS.clear()
        times[units] = {
            "open": seconds(lambda store=store: dataset.open(store)),
            "run again when finished": seconds(lambda units=units: run(units)),
            "extend by 1,000 units": seconds(lambda units=units: run(units + 1000)),
        }
        files = sum(path.is_file() for path in store.rglob("*"))
        rows.append((f"files for each 1,000 of {units:,} units", 1000 * files / units, 22.0))
        rows.append((f"images made for each of {units:,} units and two", made / (2 * units), 1 + 2 / units))
        CALLS.clear()
    for name in times[UNITS[0]]:
        few, many = (times[units][name] for units in UNITS)
        rows.append((f"{name}, {UNITS[1]:,} units (s)", many, 3.0))
        rows.append((f"{name}, {UNITS[1] // UNITS[0]} times as many units / as many", many / few, 6.0))
    return rows


@click.command()
def main() -> None:
    """Measure, print the table, and exit with 1 if a bound is broken."""
    with tempfile.TemporaryDirectory() as folder:
        rows = table(Path(folder))
    click.echo(f"{platform.machine()}, one thread, torch {torch.__version__}, units of two images 2x2\n")
    return report(rows)


if __name__ == "__main__":
    main()
