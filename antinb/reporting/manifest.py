"""What a notebook's results say of themselves, `manifest.json`, and the union of all that lie in one folder."""

from __future__ import annotations

import datetime
import json
import os
import shutil
import uuid
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, FiniteFloat, ValidationError

from antinb.reporting import texts

__all__: list[str] = []

NAME = "manifest.json"
MACROS = "claims.tex"
MAKER = "antinb run"
HEAD = f"% Numbers of {MAKER}; read again at will, and replaced by the next run."
ENDS = texts.ENDS
CLAIM_ID = r"[A-Za-z0-9._-]+"


class Claim(BaseModel, extra="allow"):
    """An entry of `claims`."""

    id: str = Field(pattern=f"^{CLAIM_ID}$")
    state: str
    rule: str | None
    expected: Literal["holds", "refuted"] = "holds"
    reason: str = ""
    estimate: FiniteFloat | None
    low: FiniteFloat | None
    high: FiniteFloat | None


class Figure(BaseModel, extra="allow"):
    """An entry of `figures`."""

    id: str
    files: list[str]


class Manifest(BaseModel, extra="allow"):
    """The results of one notebook; of a union notebook, profile and date stand with each part."""

    made_by: Literal["antinb run"]
    claims: list[Claim]
    figures: list[Figure]
    profile: str | None = None
    date: str | None = None


def read(path: Path) -> dict[str, Any]:
    """Return a manifest; ValueError if it cannot be read, or antinb did not write it."""
    try:
        return Manifest.model_validate_json(path.read_bytes()).model_dump()
    except (OSError, ValidationError):
        rule = f"was not made by {MAKER}, or is damaged: move it, or run its notebook again"
        raise ValueError(f"{str(path)!r} {rule}") from None


def claims(folder: Path) -> list[dict[str, Any]]:
    """Return the claims of a notebook's results, none if it made no report. Raises as `read`."""
    path = folder / NAME
    return read(path)["claims"] if path.exists() else []


def add(folder: Path, **entries: object) -> None:
    """Add entries to the manifest of a notebook's results, if it made a report."""
    path = folder / NAME
    if path.exists():
        write(path, json.dumps(read(path) | entries, indent=1, allow_nan=False) + "\n")


def write(path: Path, content: str | bytes) -> None:
    """Write a file beside its place and rename it: it is there as a whole or not at all."""
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        beside.write_bytes(content.encode() if isinstance(content, str) else content)
        if path.exists():
            shutil.copymode(path, beside)
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def merge(out: Path, parts: list[Path], place: Path) -> list[dict]:
    r"""Write to `place` the `manifest.json` and `claims.tex` of some folders of results in `out`; return the claims.

    `\antinb{ID}` in LaTeX gives a claim's estimate, `\antinb[low]{ID}` and `\antinb[high]{ID}` its interval, as digits
    that `\num` and headings take; `\antinbmath{ID}` sets the number as a formula, with a minus sign;
    `\antinb[caption]{fig-01-2}` is a figure's caption. An unknown id or key is an error of LaTeX.

    Raises:
        ValueError: if a manifest cannot be read, or two notebooks have a claim or a figure of one id.
        OSError: if the union cannot be written.
    """
    union: dict[str, list] = {"figures": [], "claims": []}
    owners: dict[tuple[str, str], str] = {}
    macros = [HEAD, texts.MACROS]
    for folder in parts:
        part = read(folder / NAME)
        for kind, entries in union.items():
            for entry in part[kind]:
                owner = owners.setdefault((kind, entry["id"]), folder.name)
                if owner != folder.name:
                    raise ValueError(f"{entry['id']!r} is in {owner} and in {folder.name}: an id stands once")
                files = {"files": [f"{folder.name}/{file}" for file in entry["files"]]} if kind == "figures" else {}
                entries.append({**entry, "notebook": folder.name, **files})
        failed = out / f"{folder.name}.failed"
        stale = failed.is_dir() and failed.stat().st_mtime > folder.stat().st_mtime
        about = f"% {folder.name}, profile {part['profile']}, {part['date']}{', older than its failed run' * stale}"
        macros += [" ".join(about.split()), *texts.macros(part)]
    write(place / NAME, json.dumps({"made_by": MAKER, **union}, indent=1, allow_nan=False) + "\n")
    write(place / MACROS, "\n".join(macros) + "\n")
    return union["claims"]


def folders(out: Path) -> list[Path]:
    """Return the folders in `out` that hold a manifest, in the order of their names."""
    return sorted(path.parent for path in out.glob(f"[!.]*/{NAME}"))


def cited(out: Path, id: str | None) -> str:  # noqa: A002
    """Return the BibTeX entries of a figure or a notebook's results in `out`, of antinb and of the paper.

    Raises:
        ValueError: if nothing there has the id, or a manifest cannot be read.
    """
    if id is None:
        return texts.software()
    parts = {folder.name: read(folder / NAME) for folder in folders(out)}
    if id in parts:
        return f"{texts.entry(id, f'Results of {id}', f'Notebook {id}', parts[id])}\n\n{texts.software()}"
    figures = {figure["id"]: (name, figure) for name, part in parts.items() for figure in part["figures"]}
    if id not in figures:
        rule = f"{str(out)!r} holds no figure and no notebook {id!r}"
        raise ValueError(f"{rule}; it has {', '.join([*parts, *figures]) or 'no results'}")
    name, figure = figures[id]
    made = json.loads((out / name / f"{id}.json").read_bytes()) if (out / name / f"{id}.json").exists() else {}
    entry = texts.entry(id, figure.get("caption", id), f"Figure {id} of {name}", parts[name] | made)
    return f"{entry}\n\n{texts.software()}"


def today() -> str:
    """Return the date, as a manifest has it."""
    return datetime.date.today().isoformat()
