"""Ratios within one run, for the benchmarks of this folder.

The two sides of a ratio are timed in turn, the order changing from pair to pair; the ratio is the median over pairs.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import click
import numpy as np

Task = Callable[[], object]


def seconds(task: Task) -> float:
    """Return the wall time of one call."""
    start = time.perf_counter()
    task()
    return time.perf_counter() - start


def ratio(task: Task, reference: Task, repeats: int) -> float:
    """Return the median over pairs of the time of `task` over that of `reference`, after one call of each."""
    task(), reference()
    ratios = []
    for repeat in range(repeats):
        if repeat % 2:
            below, above = seconds(reference), seconds(task)
        else:
            above, below = seconds(task), seconds(reference)
        ratios.append(above / below)
    return float(np.median(ratios))


def report(rows: list[tuple[str, float, float]]) -> None:
    """Print a table of `(what was measured, value, bound)` and exit with 1 if a bound is broken."""
    click.echo("| measured | value | bound |\n|---|---|---|")
    for name, value, bound in rows:
        click.echo(f"| {name} | {value:.3f} | {bound:g} |")
    if any(value > bound for _, value, bound in rows):
        raise SystemExit(1)
