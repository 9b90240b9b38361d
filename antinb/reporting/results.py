"""The folder in which results of notebooks lie: a folder for each, swapped in when it is whole, and their union.

A folder that `antinb run` or a report made carries a mark, the file `.antinb`, which names the files in it. Nothing
else is replaced. A run that fails is kept as `<notebook>.failed` until the next one.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import filelock

from antinb.reporting import manifest

__all__: list[str] = []

PLACE = "ANTINB_RESULTS"  # in a kernel's environment: the folder that its report writes to
MARK = ".antinb"
LOCK = f"{MARK}.lock"
ASIDE = f"{MARK}-aside-"
IGNORED = (".ipynb_checkpoints", ".DS_Store")
FAILED = ".failed"
EXCHANGE = 2  # the flag of renameat2 by which two paths change places at once
HERE = -100  # the working folder, as renameat2 has it
ADVICE = "move it, or choose another folder (--out)"


class Results:
    """A folder of results, held by one command at a time.

    Raises:
        ValueError: if something that a run would replace was not made by one or holds a source, or another command
            holds the folder.
        OSError: if it cannot be written.
    """

    def __init__(self, out: Path, sources: Sequence[Path], names: Sequence[str] | None = None) -> None:
        self.out = Path(os.path.abspath(out.expanduser()))
        names = [source.stem for source in sources] if names is None else names
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"results are filed by name, and two notebooks are called {name!r}")
            if name in (manifest.NAME, manifest.MACROS) or name.endswith(FAILED) or name.startswith(MARK):
                raise ValueError(f"results are filed by name, and {name!r} is one of antinb's own: rename the notebook")
            for place in (self.out / name, self.out / f"{name}{FAILED}"):
                check_own(place)
                for source in sources:
                    if place.resolve() in source.resolve().parents:
                        raise ValueError(f"{str(source)!r} lies in {str(place)!r}, which a run replaces: choose --out")
        for folder in (self.out, *self.out.parents):
            if is_marked(folder):
                raise ValueError(f"{str(folder)!r} holds the results of a notebook, which a run replaces: choose --out")
        union, macros, lock = (self.out / name for name in (manifest.NAME, manifest.MACROS, LOCK))
        if os.path.lexists(union):
            manifest.read(union)
        if os.path.lexists(macros) and not (macros.is_file() and macros.read_bytes().startswith(_HEAD)):
            raise ValueError(f"{str(macros)!r} was not made by {manifest.MAKER}: {ADVICE}")
        if os.path.lexists(lock) and (lock.is_symlink() or not lock.is_file() or lock.stat().st_size):
            raise ValueError(f"{str(lock)!r} was not made by {manifest.MAKER}: {ADVICE}")
        self._lock = filelock.FileLock(lock, timeout=0)

    def __enter__(self) -> Self:
        """Take the folder, and clear away what a killed command left in it."""
        self.out.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire()
        except filelock.Timeout:
            raise ValueError(
                f"another {manifest.MAKER} is writing to {str(self.out)!r}: wait, or choose --out"
            ) from None
        for left in self.out.glob(f"{MARK}-*"):
            place = self.out / left.name.removeprefix(ASIDE)
            if is_marked(left) and left.name.startswith(ASIDE) and not os.path.lexists(place):
                os.rename(left, place)
            elif is_marked(left):
                _remove(left)
            elif left.is_dir() and not left.is_symlink() and not any(left.iterdir()):
                left.rmdir()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Release the folder."""
        self._lock.release()

    @contextlib.contextmanager
    def build(self, name: str) -> Iterator[Path]:
        """Yield a new folder, which takes the place of a notebook's results at the end, or of its failed run."""
        folder, place, failed = self._hidden(), self.out / name, self.out / f"{name}{FAILED}"
        try:
            yield folder
            _mark(folder)
            _put(folder, place)
        except BaseException:
            with contextlib.suppress(OSError, ValueError):  # else it stays hidden, until the next run clears it away
                _mark(folder)
                _put(folder, failed)
            raise
        if is_marked(failed):
            _remove(failed)

    def merge(self) -> list[dict]:
        """Write the union of all whole results; return its claims. Raises as `manifest.merge`."""
        places = (path for path in self.out.iterdir() if is_marked(path) and not path.name.startswith(MARK))
        whole = sorted(path for path in places if path.suffix != FAILED and (path / manifest.NAME).exists())
        folder = self._hidden()
        try:
            claims = manifest.merge(self.out, whole, folder)
            for name in (manifest.NAME, manifest.MACROS):
                os.replace(folder / name, self.out / name)
        finally:
            _remove(folder)
        return claims

    def _hidden(self) -> Path:
        folder = self.out / f"{MARK}-{uuid.uuid4().hex[:8]}"
        folder.mkdir()
        (folder / MARK).touch()
        return folder


def is_marked(folder: Path) -> bool:
    """Return whether a folder is one that a run or a report made."""
    return folder.is_dir() and not folder.is_symlink() and (folder / MARK).is_file()


def check_own(place: Path) -> None:
    """Raise a ValueError if a place is taken by what no run made, or a folder of results holds a file of the user's."""
    if not os.path.lexists(place):
        return
    foreign = str(place)
    if is_marked(place):
        own = {MARK, manifest.NAME, *(place / MARK).read_text(encoding="utf-8").split("\n")}
        if (place / manifest.NAME).exists():
            figures = manifest.read(place / manifest.NAME)["figures"]
            own |= {name for figure in figures for name in figure["files"]}
        strange = [name for name in _names(place) if name not in own]
        if not strange:
            return
        foreign = str(place / strange[0])
    raise ValueError(f"{foreign!r} was not made by {manifest.MAKER} and would be replaced: {ADVICE}")


def claim_folder(folder: Path) -> dict:
    """Mark a folder, made if need be, and return its manifest; ValueError if it is there and nobody marked it."""
    if os.path.lexists(folder) and not is_marked(folder) and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{str(folder)!r} was made by no report: move it, or choose another out_dir")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARK).touch()
    path = folder / manifest.NAME
    return manifest.read(path) if path.exists() else {"figures": [], "claims": []}


def _names(folder: Path) -> list[str]:
    """Return the files and folders in a folder, those that file browsers leave there aside."""
    paths = (path.relative_to(folder) for path in folder.rglob("*"))
    return sorted(str(path) for path in paths if not {*IGNORED}.intersection(path.parts))


def _mark(folder: Path) -> None:
    (folder / MARK).write_text("\n".join(_names(folder)), encoding="utf-8")


def _remove(folder: Path) -> None:
    """Remove a marked folder, the mark last: what a killed command leaves of it is cleared away by the next."""
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != MARK:
            path.unlink()
    shutil.rmtree(folder)


def _put(folder: Path, place: Path) -> None:
    """Move a folder to a place; what a run left there goes."""
    check_own(place)
    if not os.path.lexists(place):
        os.rename(folder, place)
        return
    if not _exchange(folder, place):
        aside = place.with_name(f"{ASIDE}{place.name}")
        os.rename(place, aside)
        os.rename(folder, place)
        os.rename(aside, folder)
    _remove(folder)


def _exchange(first: Path, second: Path) -> bool:
    """Let two paths change places at once; return False where the system cannot."""
    try:
        exchange = ctypes.CDLL(None).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    return exchange(HERE, os.fsencode(first), HERE, os.fsencode(second), EXCHANGE) == 0


_HEAD = manifest.HEAD.encode()
