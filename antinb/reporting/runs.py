"""Notebooks run one after another: what `antinb run` does, and how it ends."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import click

from antinb.reporting import execution, manifest, notebooks, results

__all__: list[str] = []

UNEXPECTED, FAILED, INTERRUPTED, TERMINATED = 1, 2, 130, 143


class _Terminated(KeyboardInterrupt):
    """The signal SIGTERM, which ends a run as Ctrl-C does."""


def run(paths: Sequence[Path], given: Mapping[str, str], out: Path, *, in_place: bool, limit: float | None) -> int:
    """Execute notebooks, print their claims and how they ended, and return the exit code; see `antinb run --help`."""
    waiting, code = list(paths), 0
    try:
        with _terminable():
            plans = [(path, notebooks.parameters(path, given)) for path in paths]
            with results.Results(out, paths) as place:
                for path, values in plans:
                    click.echo(f"{path} -> {out / path.stem}")
                    source = path.read_bytes()
                    claims = _fill(place, path, {**values, "out_dir": str(place.out)}, limit)
                    waiting.remove(path)
                    code = max(code, _judge(place.out / path.stem, [c for c in claims if c["notebook"] == path.stem]))
                    if in_place and path.read_bytes() != source:
                        kept = out / path.stem / path.name
                        raise ValueError(f"{path} was changed while it ran and is left as it is; see {kept}")
                    if in_place:
                        notebooks.write_back(place.out / path.stem / path.name, path)
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


def _fill(place: results.Results, path: Path, values: Mapping[str, object], limit: float | None) -> list[dict]:
    """Execute a notebook into its folder of results, and return the claims of the union."""
    try:
        with place.build(path.stem) as folder:
            execution.execute(path, folder, values, limit=limit)
    except BaseException:
        try:
            place.merge()
        except (ValueError, OSError) as error:
            click.echo(f"Error: {error}", err=True)
        raise
    return place.merge()


def _judge(folder: Path, claims: list[dict]) -> int:
    """Print the claims of a notebook and return the exit code that they ask for."""
    smoke = claims and manifest.read(folder / manifest.NAME)["profile"] == "smoke"
    code = 0
    for claim in claims:
        estimate, low, high = manifest.told(claim)
        numbers = "no estimate" if "--" in (estimate, low, high) else f"{estimate} [{low}, {high}]"
        state, expected = claim["state"], claim["expected"]
        fine = claim["rule"] is None or state == expected or (smoke and state == "undecided")
        note = "" if fine and expected == "holds" else f"  expected: {expected}"
        click.echo(f"{state:<12}{claim['id']:<36}{numbers:<31} {claim['rule'] or ''}{note}")
        code = code if fine else UNEXPECTED
    return code


def _tell(what: str, out: Path, waiting: list[Path], when: str) -> None:
    """Print in one line how a run ended, what is kept, what was not run, and how to go on."""
    line = f"{what}."
    if waiting:
        line += f" What it made is in {out / waiting[0].stem}{results.FAILED}, earlier results stay."
    if waiting[1:]:
        line += f" Not run: {', '.join(map(str, waiting[1:]))}."
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
