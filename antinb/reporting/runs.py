"""Notebooks run one after another: what `antinb run` does, and how it ends."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
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


def run(
    paths: Sequence[Path],
    given: Mapping[str, str],
    out: Path,
    *,
    in_place: bool = False,
    limit: float | None = None,
    axes: Mapping[str, Sequence[str]] | None = None,
) -> int:
    """Execute notebooks, print their claims and how they ended, and return the exit code; see `antinb run --help`."""
    waiting: list[Plan] = []
    code = 0
    try:
        with _terminable():
            plans = _planned(paths, given, axes or {})
            waiting, out = list(plans), out / sweeps.folder(paths[0]) if axes else out
            with results.Results(out, paths, [plan.name for plan in plans]) as place:
                for plan in plans:
                    source, folder = plan.path.read_bytes(), place.out / plan.name
                    if axes and sweeps.is_done(folder, plan.path, plan.values):
                        claims = manifest.claims(folder)
                        click.echo(f"{plan.shown} -> {out / plan.name}, there already")
                    else:
                        click.echo(f"{plan.shown} -> {out / plan.name}")
                        claims = _fill(place, plan, limit, union=not axes)
                    waiting.remove(plan)
                    code = max(code, _judge(folder, claims))
                    if in_place and plan.path.read_bytes() != source:
                        kept = out / plan.name / plan.path.name
                        raise ValueError(f"{plan.path} was changed while it ran and is left as it is; see {kept}")
                    if in_place:
                        notebooks.write_back(folder / plan.path.name, plan.path)
                if axes:
                    click.echo(sweeps.summarise(place, axes))
        return code
    except execution.CellError as error:
        message, cell = error.args
        click.echo(cell, err=True)
        _tell(f"Error: {message}", out, waiting, "once it is mended")
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


def _judge(folder: Path, claims: list[dict]) -> int:
    """Print the claims of a notebook and return the exit code that they ask for."""
    smoke = claims and manifest.read(folder / manifest.NAME)["profile"] == "smoke"
    code = 0
    for claim in claims:
        estimate, low, high = texts.told(claim)
        numbers = "no estimate" if "--" in (estimate, low, high) else f"{estimate} [{low}, {high}]"
        state, expected = claim["state"], claim["expected"]
        fine = claim["rule"] is None or state == expected or (smoke and state == "undecided")
        note = "" if fine and expected == "holds" else f"  expected: {expected}"
        click.echo(f"{state:<12}{claim['id']:<36}{numbers:<31} {claim['rule'] or ''}{note}")
        code = code if fine else UNEXPECTED
    return code


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
