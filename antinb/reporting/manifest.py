"""What a notebook's results say of themselves, `manifest.json`, and the union of all that lie in one folder."""

from __future__ import annotations

import datetime
import json
import math
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, FiniteFloat, ValidationError

__all__: list[str] = []

NAME = "manifest.json"
MACROS = "claims.tex"
MAKER = "antinb run"
HEAD = f"% Numbers of {MAKER}; read again at will, and replaced by the next run."
ENDS = ("estimate", "low", "high")
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


def merge(out: Path, folders: list[Path], place: Path) -> list[dict]:
    r"""Write to `place` the `manifest.json` and `claims.tex` of some folders of results in `out`; return the claims.

    `\antinb{ID}` in LaTeX gives a claim's estimate, `\antinb[low]{ID}` and `\antinb[high]{ID}` its interval; an
    unknown id is an error of LaTeX.

    Raises:
        ValueError: if a manifest cannot be read, or two notebooks have a claim or a figure of one id.
        OSError: if the union cannot be written.
    """
    union: dict[str, list] = {"figures": [], "claims": []}
    owners: dict[tuple[str, str], str] = {}
    macros = [
        HEAD,
        r"\providecommand{\antinb}[2][estimate]{\ifcsname antinb@#2@#1\endcsname\csname antinb@#2@#1\endcsname",
        r"  \else\PackageError{antinb}{no claim has the id #2 and the number #1}{See manifest.json.}\fi}",
    ]
    for folder in folders:
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
        macros += [" ".join(about.split()), *_macros(part["claims"])]
    write(place / NAME, json.dumps({"made_by": MAKER, **union}, indent=1, allow_nan=False) + "\n")
    write(place / MACROS, "\n".join(macros) + "\n")
    return union["claims"]


def _macros(claims: list[dict]) -> Iterator[str]:
    for claim in claims:
        for key, text in zip(ENDS, told(claim), strict=True):
            yield rf"\expandafter\def\csname antinb@{claim['id']}@{key}\endcsname{{{text}}}"


def told(claim: dict) -> list[str]:
    """Return estimate, low and high as texts: four digits, or as many as tell the ends apart; "--" for None."""
    numbers = [claim[key] for key in ENDS]
    known = [number for number in numbers if number is not None]
    spread = max(known) - min(known) if known else 0
    digits = 4
    if spread > 0:
        digits = max(4, 2 + math.ceil(math.log10(max(map(abs, known)) / spread) + 0.5))
    return ["--" if number is None else f"{number:.{digits}g}" for number in numbers]


def today() -> str:
    """Return the date, as a manifest has it."""
    return datetime.date.today().isoformat()
