"""A run as objects of one prefix in a bucket of S3: its files, how a new one appears, and the lease of its one writer.

A new run appears when the metadata of its group are written, which are the last; what an interrupted creation left is
known by a mark. The lock is an object beside the run, a lease, which its holder renews. Another process takes it over
by a conditional write: at once from a dead process of the same machine, else a minute after the last renewal, by clocks
that agree within seconds. A holder that was cut off for so long finds its lease lost before its next write, which then
fails. A write that was under way can at most replace a chunk by the same units as another machine made them: where the
bytes differ, their checksums do not fit `done`, and the units are made again.
"""

from __future__ import annotations

import re
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import zarr.storage

from antinb.dataset.places import ARRAYS, GROUP, Folder, me, taken, writing

__all__: list[str] = []

EXTRA = 'pip install "antinb[s3]"'
MARK = ".antinb"  # the object that is there while a run is made
RENEWED, LEASE = 15.0, 60.0  # seconds


class Bucket:
    """Objects of one prefix in a bucket; credentials and address are those of the environment (`AWS_...`)."""

    def __init__(self, bucket: str, key: str) -> None:
        try:
            from obstore import exceptions, store  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise ValueError(f"a store in a bucket needs obstore: {EXTRA}; got 's3://{bucket}/{key}'") from None
        over, _, last = key.rpartition("/")
        options: dict[str, Any] = {"client_options": {"allow_http": True}}
        self.name, self.errors = f"s3://{bucket}/{key}", (OSError, exceptions.BaseError)
        self._clash = exceptions.AlreadyExistsError, exceptions.PreconditionError
        self._files = store.S3Store(bucket, prefix=key, **options)
        self._beside, self._lease = store.S3Store(bucket, prefix=over or None, **options), f".{last}.lock"
        self.zarr = zarr.storage.ObjectStore(self._files)
        self._held, self._tag, self._renewed = False, "", 0.0
        self._ended, self._turn = threading.Event(), threading.Lock()

    def exists(self) -> bool:
        """Return whether anything is there but what an interrupted creation left."""
        there = self._there()
        return bool(there) and (GROUP in there or MARK not in there)

    def sizes(self) -> dict[str, int]:
        """Return the size of each object of a run, by its name in it."""
        there = self._there()
        return {name: size for name, size in there.items() if name == GROUP or name.split("/")[0] in ARRAYS}

    def read(self, name: str) -> bytes:
        """Return an object's bytes."""
        with self._reached():
            return bytes(self._files.get(name).bytes())

    def remove(self, name: str) -> None:
        """Remove an object, if it is there."""
        self._files.delete(name)

    def tidy(self, array: str) -> None:
        """Nothing is to be done: an interrupted write leaves nothing."""

    @contextmanager
    def build(self) -> Iterator[Folder]:
        """Yield a new folder whose files are here at the end, those that make a run of them last."""
        with tempfile.TemporaryDirectory() as folder:
            yield Folder(Path(folder))
            for left in self._there():  # of an interrupted creation, as nothing exists here
                if left != MARK:
                    self.remove(left)
            self._files.put(MARK, b"")
            names = [str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file()]
            for name in sorted(names, key=lambda name: (name == GROUP, name)):
                self._files.put(name, (Path(folder) / name).read_bytes())
            self.remove(MARK)

    def writer(self) -> str:
        """Return who is writing, by the lease; empty if nobody is or the lease has ended."""
        with suppress(FileNotFoundError, ValueError), self._reached():
            found = self._beside.get(self._lease)
            return "" if _is_over(found.meta) else writing(bytes(found.bytes()).decode())
        return ""

    def take(self) -> None:
        """Take the lease, and clear away the mark of an interrupted creation; ValueError if it is taken."""
        try:
            tag = self._beside.head(self._lease)["e_tag"]
            if self.writer():
                raise ValueError(taken(self.name, self.writer()))
            self._write({"e_tag": tag})
        except FileNotFoundError:
            self._write("create")
        except self._clash:
            raise ValueError(taken(self.name, self.writer())) from None
        self._held = True
        self._ended.clear()
        threading.Thread(target=self._keep, daemon=True).start()
        try:
            there = self._there()
            if GROUP in there and MARK in there:
                self.remove(MARK)
        except BaseException:
            self.release()
            raise

    def hold(self) -> None:
        """Make sure that the lease is this process's; OSError if another one has taken it."""
        if self._held and time.monotonic() - self._renewed > LEASE / 2:
            self._renew()
        if not self._held:
            raise OSError(f"its lease is lost, {self.writer() or 'another process had it'}")

    def release(self) -> None:
        """Release the lease, which ends by itself where it cannot be reached."""
        self._ended.set()
        with self._turn, suppress(*self.errors):
            if self._held:
                self._beside.put(self._lease, b"", mode={"e_tag": self._tag})
        self._held = False

    def _write(self, mode: Any) -> None:  # noqa: ANN401
        text = f"{me()}\n{uuid.uuid4().hex}".encode()
        self._tag, self._renewed = self._beside.put(self._lease, text, mode=mode)["e_tag"], time.monotonic()

    def _renew(self) -> None:
        with self._turn:
            try:
                self._write({"e_tag": self._tag})
            except self._clash:
                self._held = False

    def _keep(self) -> None:
        while self._held and not self._ended.wait(RENEWED):
            with suppress(*self.errors):  # the bucket cannot be reached: perhaps it can the next time
                self._renew()

    def _there(self) -> dict[str, int]:
        with self._reached():
            return {part["path"]: part["size"] for batch in self._files.list() for part in batch}

    @contextmanager
    def _reached(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise
        except self.errors as error:
            raise OSError(f"{self.name!r} cannot be read: {reason(error)}") from None


def reason(error: Exception) -> str:
    """Return what went wrong in writing or reading, in one line."""
    text = getattr(error, "strerror", None) or str(error)
    return " ".join(re.sub(r"<[^>]*>", " ", text.split("\n\nDebug")[0]).split())[:300]


def is_outage(error: Exception) -> bool:
    """Return whether an error says that a bucket could not be reached, and nothing of what is in it."""
    return type(error).__module__.startswith("obstore")


def _is_over(lease: Any) -> bool:  # noqa: ANN401
    return (datetime.now(UTC) - lease["last_modified"]).total_seconds() > LEASE
