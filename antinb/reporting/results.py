r"""The folder in which results of notebooks lie: a folder for each, swapped in when it is whole, and their union.

What `antinb run` makes carries its mark: a file `.antinb` in each folder, a key in `manifest.json`, the first line of
`claims.tex`. Nothing without the mark is replaced. A run that fails is kept as `<notebook>.failed` until the next one.
"""

from __future__ import annotations

import contextlib
import ctypes
import datetime
import json
import math
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import filelock

__all__: list[str] = []

PLACE = "ANTINB_RESULTS"  # in a kernel's environment: the folder that its report writes to
MARK = ".antinb"
MAKER = "antinb run"
HEAD = f"% Numbers of {MAKER}; read again at will, and replaced by the next run."
ENDS = ("estimate", "low", "high")
EXCHANGE = 2  # the flag of renameat2 by which two paths change places at once
HERE = -100  # the working folder, as renameat2 has it


class Results:
    """A folder of results, held by one command at a time.

    Raises:
        ValueError: if something that a run would replace does not carry the mark or holds a source, or another
            command holds the folder.
        OSError: if it cannot be written.
    """

    def __init__(self, out: Path, sources: Sequence[Path]) -> None:
        self.out = Path(os.path.abspath(out.expanduser()))
        self.names = [source.stem for source in sources]
        for name in self.names:
            if self.names.count(name) > 1:
                raise ValueError(f"results are filed by name, and two notebooks are called {name!r}")
            for place in (self.out / name, self.out / f"{name}.failed"):
                _check_marked(place)
                for source in sources:
                    if place.resolve() in source.resolve().parents:
                        raise ValueError(f"{str(source)!r} lies in {str(place)!r}, which a run replaces: choose --out")
        for name, known in (("manifest.json", _is_manifest), ("claims.tex", _is_macros)):
            if os.path.lexists(self.out / name) and not known(self.out / name):
                raise ValueError(f"{str(self.out / name)!r} was not made by {MAKER}: move it, or choose --out")
        self._lock = filelock.FileLock(self.out / ".antinb.lock", timeout=0)

    def __enter__(self) -> Self:
        """Take the folder, and clear away what a killed command left in it."""
        self.out.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire()
        except filelock.Timeout:
            raise ValueError(f"another {MAKER} is writing to {str(self.out)!r}: wait, or choose --out") from None
        for left in self.out.glob(f"{MARK}-*"):
            if is_marked(left):
                shutil.rmtree(left)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Release the folder."""
        self._lock.release()

    @contextlib.contextmanager
    def build(self, name: str) -> Iterator[Path]:
        """Yield a new folder, which takes the place of a notebook's results at the end, or of its failed run."""
        folder = self.out / f"{MARK}-{name}-{uuid.uuid4().hex[:8]}"
        folder.mkdir()
        (folder / MARK).touch()
        try:
            yield folder
        except BaseException:
            _put(folder, self.out / f"{name}.failed")
            raise
        _put(folder, self.out / name)
        shutil.rmtree(self.out / f"{name}.failed", ignore_errors=True)


def is_marked(folder: Path) -> bool:
    """Return whether a folder is one that a run made."""
    return folder.is_dir() and not folder.is_symlink() and (folder / MARK).is_file()


def claim_folder(folder: Path) -> dict:
    """Mark a folder, made if need be, and return its manifest; ValueError if it is there and nobody marked it."""
    if os.path.lexists(folder) and not is_marked(folder) and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{str(folder)!r} was made by no report: move it, or choose another out_dir")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARK).touch()
    path = folder / "manifest.json"
    if not _is_manifest(path):
        return {"figures": [], "claims": []}
    manifest = json.loads(path.read_text(encoding="utf-8"))
    for claim in manifest["claims"]:
        claim |= {key: math.nan for key in ENDS if claim[key] is None}
    return manifest


def _check_marked(place: Path) -> None:
    if os.path.lexists(place) and not is_marked(place):
        raise ValueError(f"{str(place)!r} was not made by {MAKER} and would be replaced: move it, or choose --out")


def _is_manifest(path: Path) -> bool:
    try:
        return json.loads(path.read_text(encoding="utf-8")).get("made_by") == MAKER
    except (OSError, AttributeError, ValueError, RecursionError):
        return False


def _is_macros(path: Path) -> bool:
    return path.is_file() and path.read_bytes().startswith(HEAD.encode())


def _put(folder: Path, place: Path) -> None:
    """Move a folder to a place; what a run left there goes."""
    if not os.path.lexists(place):
        os.rename(folder, place)
        return
    _check_marked(place)
    libc = ctypes.CDLL(None, use_errno=True)
    exchange = getattr(libc, "renameat2", None)
    if exchange is None or exchange(HERE, os.fsencode(folder), HERE, os.fsencode(place), EXCHANGE):
        aside = place.with_name(f"{place.name}.old")
        os.rename(place, aside)
        os.rename(folder, place)
        os.rename(aside, folder)
    shutil.rmtree(folder)


def write(path: Path, text: str) -> None:
    """Write a file beside its place and rename it: it is there as a whole or not at all."""
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        beside.write_text(text, encoding="utf-8")
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def merge(out: Path) -> list[dict]:
    r"""Write `manifest.json` and `claims.tex` of all results that lie in a folder; return the claims.

    `\antinb{ID}` in LaTeX gives a claim's estimate, `\antinb[low]{ID}` and `\antinb[high]{ID}` its interval; an
    unknown id is an error of LaTeX.

    Raises:
        ValueError: if a manifest cannot be read, or two notebooks have a claim or a figure of one id.
        OSError: if the union cannot be written.
    """
    union: dict[str, list] = {"figures": [], "claims": []}
    owners: dict[tuple[str, str], str] = {}
    parts = []
    for folder in sorted(path for path in out.iterdir() if is_marked(path) and not path.name.startswith(MARK)):
        if folder.suffix == ".failed" or not (folder / "manifest.json").exists():
            continue
        if not _is_manifest(folder / "manifest.json"):
            raise ValueError(f"{str(folder / 'manifest.json')!r} cannot be read: run its notebook again")
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        for kind, entries in union.items():
            for entry in manifest[kind]:
                owner = owners.setdefault((kind, entry["id"]), folder.name)
                if owner != folder.name:
                    raise ValueError(f"{entry['id']!r} is in {owner} and in {folder.name}: an id stands once")
                files = {"files": [f"{folder.name}/{file}" for file in entry["files"]]} if kind == "figures" else {}
                entries.append({**entry, "notebook": folder.name, **files})
        failed = out / f"{folder.name}.failed"
        stale = failed.is_dir() and failed.stat().st_mtime > folder.stat().st_mtime
        parts.append((folder.name, manifest, ", older than its failed run" if stale else ""))
    write(out / "manifest.json", json.dumps({"made_by": MAKER, **union}, indent=1) + "\n")
    write(out / "claims.tex", "\n".join(_macros(parts)) + "\n")
    return union["claims"]


def _macros(parts: list[tuple[str, dict, str]]) -> Iterator[str]:
    yield HEAD
    yield r"\providecommand{\antinb}[2][estimate]{\ifcsname antinb@#2@#1\endcsname\csname antinb@#2@#1\endcsname"
    yield r"  \else\PackageError{antinb}{no claim has the id #2 and the number #1}{See manifest.json.}\fi}"
    for name, manifest, stale in parts:
        yield f"% {name}, profile {manifest['profile']}, {manifest['date']}{stale}"
        for claim in manifest["claims"]:
            texts = told(*(claim[key] for key in ENDS))
            for key, text in zip(ENDS, texts, strict=True):
                yield rf"\expandafter\def\csname antinb@{claim['id']}@{key}\endcsname{{{text}}}"


def unexpected(claims: list[dict], strict: bool) -> list[dict]:
    """Return the judged claims whose state differs from the expected one; undecided ones only if `strict`."""
    open_states = {"descriptive"} if strict else {"descriptive", "undecided"}
    return [claim for claim in claims if claim["state"] not in open_states | {claim["expected"]}]


def told(estimate: float | None, low: float | None, high: float | None) -> list[str]:
    """Return an estimate and its interval as texts: four digits, or as many as tell the ends apart; "--" for None."""
    known = [number for number in (estimate, low, high) if number is not None]
    spread = max(known) - min(known) if known else 0
    digits = 4
    if spread > 0:
        digits = max(4, 2 + math.ceil(math.log10(max(map(abs, known)) / spread) + 0.5))
    return ["--" if number is None else f"{number:.{digits}g}" for number in (estimate, low, high)]


def today() -> str:
    """Return the date, as a manifest has it."""
    return datetime.date.today().isoformat()
