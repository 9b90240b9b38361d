"""A run as a folder of this machine: its files, how a new one appears at once, and the lock of its one writer."""

from __future__ import annotations

import glob
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import filelock

from antinb.dataset.run import VARIABLES

__all__: list[str] = []

ARRAYS = (*VARIABLES, "unit", "condition", "done", "sign", "timestep")
GROUP = "zarr.json"
NO_RUN = "exists and is no run of antinb"


class Folder:
    """A folder of this machine."""

    errors = (OSError,)

    def __init__(self, path: Path) -> None:
        self.path, self.name, self.zarr = path, str(path), str(path)
        self._text = path.with_name(f".{path.name}.lock")
        self._lock = filelock.FileLock(self._text, timeout=0)

    def exists(self) -> bool:
        """Return whether anything is there."""
        return self.path.exists()

    def sizes(self) -> dict[str, int]:
        """Return the size of each file of a run, by its path in the folder.

        Raises:
            ValueError: if a file is a link, a pipe or another thing that is no ordinary file.
        """
        found = {}
        for name in ("", *ARRAYS):
            top = self.path / name
            if os.path.lexists(top):
                if os.path.islink(top) or not top.is_dir():
                    raise ValueError(f"{self.name!r} {NO_RUN}: {name or 'it'} is no folder")
                for entry in _walk(top, deep=bool(name)):
                    if not entry.is_file(follow_symlinks=False):
                        raise ValueError(f"{self.name!r} {NO_RUN}: {entry.name} is a link or no ordinary file")
                    found[os.path.relpath(entry.path, self.path)] = entry.stat().st_size
        return found

    def read(self, name: str) -> bytes:
        """Return a file's bytes."""
        return (self.path / name).read_bytes()

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        (self.path / name).unlink(missing_ok=True)

    def tidy(self, array: str) -> None:
        """Remove what an interrupted write left in an array."""
        for stray in (self.path / array).glob("*.partial"):
            stray.unlink()

    @contextmanager
    def build(self) -> Iterator[Folder]:
        """Yield a new folder that is here at the end, or nowhere."""
        made = Path(tempfile.mkdtemp(prefix=f".{self.path.name}.antinb-", dir=self.path.parent))
        try:
            yield Folder(made)
            os.rename(made, self.path)
        except BaseException:
            shutil.rmtree(made, ignore_errors=True)
            raise

    def writer(self) -> str:
        """Return who is writing, by the text in the lock; empty if nobody is."""
        with suppress(OSError, ValueError):
            return writing(self._text.read_text())
        return ""

    def take(self) -> None:
        """Take the lock, and clear away what a killed process left beside the run; ValueError if it is taken."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire()
        except filelock.Timeout:
            raise ValueError(taken(self.name, self.writer())) from None
        try:
            self._text.write_text(me())
            for stray in self.path.parent.glob(f".{glob.escape(self.path.name)}.antinb-*"):
                shutil.rmtree(stray)
        except BaseException:
            self.release()
            raise

    def hold(self) -> None:
        """Nothing is to be done to keep the lock."""

    def release(self) -> None:
        """Release the lock."""
        self._text.write_text("")
        self._lock.release()


def taken(name: str, writer: str) -> str:
    """Return the line that refuses a second writer."""
    return f"{name!r} is taken, {writer or 'another process is writing it'}: wait, or take another store"


def me() -> str:
    """Return the text of a lock that this process holds."""
    return f"process {os.getpid()} on {socket.gethostname()}"


def writing(text: str) -> str:
    """Return who is writing by the text of a lock, empty for a dead process of this machine; ValueError for no text."""
    held = text.partition("\n")[0]
    process, host = held.removeprefix("process ").split(" on ")
    return f"{held} is writing it" if host != socket.gethostname() or _alive(int(process)) else ""


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except OSError as error:
        return isinstance(error, PermissionError)
    return True


def _walk(folder: str | Path, deep: bool) -> Iterator[os.DirEntry[str]]:
    """Yield what is in a folder and, if `deep`, in those in it; of the group itself its metadata only."""
    with os.scandir(folder) as entries:
        listed = [entry for entry in entries if not entry.name.endswith(".partial")]
    for entry in listed:
        if deep and entry.is_dir(follow_symlinks=False):
            yield from _walk(entry.path, deep)
        elif deep or entry.name == GROUP:
            yield entry
