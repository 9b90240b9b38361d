"""Notebooks run one after another, or several at once: what `antinb run` does, and how it ends."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import NamedTuple

import click

from antinb.reporting import execution, manifest, notebooks, results, sweeps, texts

__all__: list[str] = []

UNEXPECTED, FAILED, INTERRUPTED, TERMINATED = 1, 2, 130, 143


class _Terminated(KeyboardInterrupt):
    """The signal SIGTERM, which ends a run as Ctrl-C does."""


class Plan(NamedTuple):
    """A run of a notebook: the folder of its results, what it is called in messages, and its parameters."""

    name: str
    path: Path
    shown: str
    values: dict[str, object]


Made = tuple[Plan, bytes, list[dict] | execution.CellError]


def run(
    paths: Sequence[Path],
    given: Mapping[str, str],
    out: Path,
    *,
    in_place: bool = False,
    limit: float | None = None,
    axes: Mapping[str, Sequence[str]] | None = None,
    workers: int = 1,
) -> int:
    """Execute notebooks, print their claims and how they ended, and return the exit code; see `antinb run --help`."""
    waiting: list[Plan] = []
    code = 0
    try:
        with _terminable():
            plans = _planned(paths, given, axes or {})
            waiting, out = list(plans), out / sweeps.folder(paths[0]) if axes else out
            with results.Results(out, paths, [plan.name for plan in plans]) as place:
                made = _one_by_one if workers == 1 else partial(_at_once, workers)
                for plan, source, claims in made(place, plans, limit, out, sweep=bool(axes)):
                    waiting.remove(plan)
                    if isinstance(claims, execution.CellError):
                        code = FAILED
                        _tell_of_cell(claims, out, [plan])
                        continue
                    code, folder = max(code, _judge(place.out / plan.name, claims, workers == 1)), place.out / plan.name
                    if in_place and plan.path.read_bytes() != source:
                        kept = out / plan.name / plan.path.name
                        raise ValueError(f"{plan.path} was changed while it ran and is left as it is; see {kept}")
                    if in_place:
                        notebooks.write_back(folder / plan.path.name, plan.path)
                if axes and code != FAILED:
                    click.echo(sweeps.summarise(place, axes))
        return code
    except execution.CellError as error:
        _tell_of_cell(error, out, waiting)
    except KeyboardInterrupt as error:
        _tell(f"Interrupted: {error}" if error.args else "Interrupted", out, waiting if error.args else [], "to go on")
        return TERMINATED if isinstance(error, _Terminated) else INTERRUPTED
    except (ValueError, OSError) as error:
        click.echo(f"Error: {error}", err=True)
    return FAILED


def _planned(paths: Sequence[Path], given: Mapping[str, str], axes: Mapping[str, Sequence[str]]) -> list[Plan]:
    """Return the runs of some notebooks, or of one at every point of a sweep, their parameters checked."""
    if not axes:
        return [Plan(path.stem, path, str(path), notebooks.parameters(path, given)) for path in paths]
    return [
        Plan(name, paths[0], f"{paths[0]}, {name}", notebooks.parameters(paths[0], {**given, **point}))
        for name, point in sweeps.points(axes).items()
    ]


def _one_by_one(
    place: results.Results, plans: Sequence[Plan], limit: float | None, out: Path, *, sweep: bool
) -> Iterator[Made]:
    """Run notebooks up to the first that fails; yield each with its source and its claims."""
    for plan in plans:
        source, folder = plan.path.read_bytes(), place.out / plan.name
        if sweep and sweeps.is_done(folder, plan.path, plan.values):
            click.echo(f"{plan.shown} -> {out / plan.name}, there already")
            yield plan, source, manifest.claims(folder)
        else:
            click.echo(f"{plan.shown} -> {out / plan.name}")
            yield plan, source, _fill(place, plan, limit, union=not sweep)


def _at_once(
    workers: int, place: results.Results, plans: Sequence[Plan], limit: float | None, out: Path, *, sweep: bool
) -> Iterator[Made]:
    """Run so many notebooks at a time, a process each; yield each that ends with its source and its claims or error."""
    start, sources = time.monotonic(), {plan.path: plan.path.read_bytes() for plan in plans}
    done = [plan for plan in plans if sweep and sweeps.is_done(place.out / plan.name, plan.path, plan.values)]
    for plan in done:
        click.echo(f"{plan.shown} -> {out / plan.name}, there already")
        yield plan, sources[plan.path], manifest.claims(place.out / plan.name)
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _begin) as pool:
        futures = {pool.submit(_fill_alone, place.out, plan, limit): plan for plan in plans if plan not in done}
        try:
            for future in as_completed(futures):
                plan, error = futures[future], future.exception()
                if not sweep:
                    place.merge()
                if error and not isinstance(error, execution.CellError):
                    raise error
                if error:
                    yield plan, sources[plan.path], error
                    continue
                claims, seconds = manifest.claims(place.out / plan.name), time.monotonic() - start
                click.echo(f"{plan.shown} -> {out / plan.name}, {len(claims)} claims, after {seconds:.0f} s")
                yield plan, sources[plan.path], claims
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for child in multiprocessing.active_children():
                os.kill(child.pid or 0, signal.SIGINT)
            raise


def _begin() -> None:
    """Let a process print nothing, as the notebook holds it, and end as the command that started it says or dies."""
    sys.stdout = sys.stderr = open(os.devnull, "w")
    if hasattr(os, "setpgrp"):  # Ctrl-C is then passed on by the command alone
        os.setpgrp()
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent:
        parent.join()
        os._exit(FAILED)


def _fill_alone(out: Path, plan: Plan, limit: float | None) -> None:
    """Execute a notebook in this process, while another one holds the folder of results."""
    _fill(results.Results(out, []), plan, limit, union=False)


def _fill(place: results.Results, plan: Plan, limit: float | None, *, union: bool) -> list[dict]:
    """Execute a notebook into its folder of results, write the union, and return the notebook's claims."""
    start = time.monotonic()
    seconds = execution.cell_seconds(plan.path, place.out / plan.name / plan.path.name, plan.values)
    values = {**plan.values, "out_dir": str(place.out)}
    try:
        with place.build(plan.name) as folder:
            execution.execute(plan.path, folder, values, limit=limit, seconds=seconds)
            manifest.add(folder, seconds=round(time.monotonic() - start, 1))
    except BaseException:
        try:
            if union:
                place.merge()
        except (ValueError, OSError) as error:
            click.echo(f"Error: {error}", err=True)
        raise
    if union:
        return [claim for claim in place.merge() if claim["notebook"] == plan.name]
    return manifest.claims(place.out / plan.name)


def _judge(folder: Path, claims: list[dict], every: bool) -> int:
    """Print every claim of a notebook or those that are not as expected, and return the exit code that they ask for."""
    smoke = claims and manifest.read(folder / manifest.NAME)["profile"] == "smoke"
    code = 0
    for claim in claims:
        estimate, low, high = texts.told(claim)
        numbers = "no estimate" if "--" in (estimate, low, high) else f"{estimate} [{low}, {high}]"
        state, expected = claim["state"], claim["expected"]
        fine = claim["rule"] is None or state == expected or (smoke and state == "undecided")
        note = "" if fine and expected == "holds" else f"  expected: {expected}"
        if every or not fine:
            click.echo(f"{state:<12}{claim['id']:<36}{numbers:<31} {claim['rule'] or ''}{note}")
        code = code if fine else UNEXPECTED
    return code


def _tell_of_cell(error: execution.CellError, out: Path, waiting: list[Plan]) -> None:
    """Print the cell that failed, and how a run ended."""
    message, cell = error.args
    click.echo(cell, err=True)
    _tell(f"Error: {message}", out, waiting, "once it is mended")


def _tell(what: str, out: Path, waiting: list[Plan], when: str) -> None:
    """Print in one line how a run ended, what is kept, what was not run, and how to go on."""
    line = f"{what}."
    if waiting:
        line += f" What it made is in {out / waiting[0].name}{results.FAILED}, earlier results stay."
    if waiting[1:]:
        line += f" Not run: {', '.join(plan.shown for plan in waiting[1:])}."
    click.echo(f"{line} Run the same line again {when}.", err=True)


@contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM raise `_Terminated`, where signals can be caught."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise _Terminated

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
