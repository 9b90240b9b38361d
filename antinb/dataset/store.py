"""A run in the making in a Zarr store, which a killed process resumes."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self, Unpack, cast

import numpy as np
import xarray as xr
import zarr
from zarr.codecs import Crc32cCodec

from antinb.dataset import files
from antinb.dataset.buckets import reason
from antinb.dataset.memory import Memory
from antinb.dataset.reader import Damage, Stored, copied, is_original, marks, open, told  # noqa: A004
from antinb.dataset.run import (
    COORDINATES,
    DIMS,
    ENVIRONMENT,
    RANGE,
    STEPPED,
    VARIABLES,
    Labels,
    config_hash,
)

__all__: list[str] = []

CHUNK = 2**17  # values of a chunk; more where one shard holds more
MOST = 4096  # units of a chunk, unless one shard holds more
PATIENCE = 5.0  # seconds that a shard waits at most for its chunk to fill


class Store(Memory):
    """A run in the making on disk, new or resumed, with one writer at a time; `done(unit)` is written last.

    Units that are missing, short or rotten are not done; a warning says how many.

    Raises:
        ValueError: if there is something else than a run at the path, a run of another configuration (the
            difference is named) or of other conditions, or one of more units, or another process writes it.
        OSError: if the store cannot be written.
    """

    def __init__(
        self, path: str | Path, config: Mapping[str, object], units: int, shard: int, **labels: Unpack[Labels]
    ) -> None:
        super().__init__(config, units, shard, **labels)
        self.place = files.place(path)
        self._group: zarr.Group | None = None
        self._there: Stored | None = None
        self._damage: list[Damage] = []
        self._next, self._waiting, self._flushed = range(0), {}, time.monotonic()

    def __enter__(self) -> Self:
        """Take the lock and find out which units are done; nothing is changed."""
        if self.place.exists() and not is_original(self.place):
            copied(self.place)
            raise ValueError(f"{self.place.name!r} is a copy or of antinb 0.1: it can be opened, not gone on with")
        with self._written():
            self.place.take()
            try:
                if self.place.exists():
                    self._resume(Stored(self.place))
            except BaseException:
                self.place.release()
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Write what waits and release the lock."""
        try:
            self._flush()
        finally:
            self.place.release()

    def first(self) -> tuple[int, np.ndarray] | None:
        """Return the number and the images `(member, C, H, W)` of the first unit that is there, None if none is."""
        if not self.done.any():
            return None
        unit = int(self.done.argmax())
        return unit, np.asarray(self._array("image")[unit])

    def missing(self) -> Iterator[range]:
        """Mend what is damaged, make room, and yield the units to make, as `Memory.missing`."""
        if self._there and (self._damage or not self.done.all()):
            with self._written():
                self._note_environment(self._there.config)
                self._mend(self._there, self._damage)
        self._there, self._damage = None, []
        yield from super().missing()

    def write(self, units: range, values: Mapping[str, np.ndarray]) -> None:
        """Keep the variables `(len(units), ...)` of some units; they are written, then done, when their chunk is full.

        Raises:
            ValueError: if they have not the shape of those that are there.
            OSError: if the store cannot be written; the units are then not done.
        """
        if self._group is None:
            self._create(values)
        for name, array in values.items():
            shape = self._array(name).shape[1:]
            if array.shape[1:] != shape:
                raise ValueError(f"{self.place.name!r} holds {name} {shape} a unit; got {array.shape[1:]}")
        if self._next.stop != units.start:
            self._flush()
        self._next = range(self._next.start if self._next else units.start, units.stop)
        for name, array in values.items():
            self._waiting.setdefault(name, []).append(array)
        if not units.stop % self._array("image").chunks[0] or time.monotonic() - self._flushed > PATIENCE:
            self._flush()

    def finish(self) -> xr.Dataset:
        """Return the stored run, lazily."""
        self._flush()
        return open(self.place.name)

    def _flush(self) -> None:
        units, waiting = self._next, {name: np.concatenate(parts) for name, parts in self._waiting.items()}
        self._next, self._waiting, self._flushed = range(0), {}, time.monotonic()
        if units:
            cut, conditions = slice(units.start, units.stop), self.labels.get("condition")
            there = None if conditions is None else conditions[cut]
            columns = [marks(waiting[name], there) for name in VARIABLES if name in waiting]
            with self._written():
                self.place.hold()
                for name, values in waiting.items():
                    self._array(name)[cut] = values
                self._array("done")[cut] = np.stack(columns, 1)
            self.done[cut] = True

    def _array(self, name: str) -> zarr.Array:
        return cast(zarr.Array, cast(zarr.Group, self._group)[name])

    def _create(self, values: Mapping[str, np.ndarray]) -> None:
        """Make a store with room for all units, none of it done; it appears at once or not at all."""
        size = sum(part[0].size for part in values.values()) * self.shard
        chunk = self.shard * max(1, min(CHUNK // size, MOST // self.shard))
        with self._written():
            with self.place.build() as made:
                self._group = zarr.open_group(made.zarr, mode="w", zarr_format=3)
                for name, part in values.items():
                    dims = STEPPED if part.ndim > len(DIMS) else DIMS
                    self._make(name, (self.units, *part.shape[1:]), (chunk, *part.shape[1:]), part.dtype, dims)
                self._array("image").attrs["range"] = json.dumps(RANGE)
                rows = chunk * max(1, MOST // chunk), len(values)
                self._make("done", (self.units, len(values)), rows, np.dtype("uint32"), ("unit", "variable"))
                self._array("done")[:] = 0
                for name, dim, known in self._coordinates():
                    rows = MOST if dim == "unit" else len(known)
                    self._make(name, known.shape, (rows,), known.dtype, (dim,))
                    self._array(name)[:] = known
                fixed = {name: known.tolist() for name, dim, known in self._coordinates() if dim != "unit"}
                record = {key: json.dumps(value) for key, value in self.config.items()}
                record |= {"config_hash": config_hash(self.config), "coordinates": json.dumps(fixed)}
                self._group.attrs.update(record)
                self._group.attrs["layout_hash"] = files.layout_hash(files.read(made, made.sizes()))
            self._group = zarr.open_group(self.place.zarr, mode="r+")

    def _make(
        self, name: str, shape: tuple[int, ...], chunks: tuple[int, ...], dtype: np.dtype, dims: tuple[str, ...]
    ) -> None:
        cast(zarr.Group, self._group).create_array(
            name,
            shape=shape,
            chunks=chunks,
            dtype=dtype,
            compressors=[Crc32cCodec()],
            filters=None,
            chunk_key_encoding={"name": "default", "separator": "."},
            dimension_names=dims,
        )

    def _coordinates(self) -> Iterator[tuple[str, str, np.ndarray]]:
        """Yield name, dimension and values of each coordinate."""
        yield "unit", "unit", np.arange(self.units)
        for label, name, dim in COORDINATES:
            known = self.labels.get(label)
            if known is not None:
                yield name, dim, np.asarray(known)

    def _resume(self, there: Stored) -> None:
        """Refuse another run, and find out which units are done."""
        name, wanted = repr(self.place.name), json.loads(json.dumps(self.config))
        keys = sorted({*there.config, *wanted} - {*ENVIRONMENT})
        differing = [key for key in keys if there.config.get(key) != wanted.get(key)]
        if differing:
            changes = (f"{key} is {there.config.get(key)!r} there, {wanted.get(key)!r} here" for key in differing)
            raise ValueError(f"{name} holds a run of another configuration: {'; '.join(changes)}")
        if there.units > self.units:
            raise ValueError(f"{name} holds {there.units} units; a run can be extended, not cut to {self.units}")
        condition, stored = self.labels.get("condition"), there.labels.get("condition")
        if condition is not None and stored is not None and all(fault[0] != "condition" for fault in there.faults):
            if not np.array_equal(stored, condition[: there.units]):
                raise ValueError(f"{name} holds units of other conditions")
        damage = [*there.damage(condition)]
        self.done[: there.units] = there.marked.all(1)
        lost = np.zeros(there.units, bool)
        for part, units, _ in damage:
            lost[units.start : units.stop] |= part in VARIABLES or part == "done" and there.has_images(units)
        self.done[: there.units] &= ~lost
        if lost.any() or any(part not in (*VARIABLES, "done") for part, _, _ in damage):
            found = "; ".join(map(told, damage[:3]))
            warnings.warn(f"{name} is mended, {int(lost.sum())} units are made again: {found}", stacklevel=5)
        self._there, self._damage = there, damage
        self._group = zarr.open_group(self.place.zarr, mode="r+")

    def _note_environment(self, config: dict[str, object]) -> None:
        """Record, and tell once, under which other versions or threads a run goes on."""
        history = cast(list, config.get("history", []))
        here = {key: json.loads(json.dumps(self.config.get(key))) for key in ("threads", "versions")}
        before = history[-1] if history else config
        if any(before.get(key) != value for key, value in here.items()):
            told_of = ", ".join(f"{key} {before.get(key)} then, {value} now" for key, value in here.items())
            warnings.warn(f"images of {self.place.name!r} agree up to rounding only: {told_of}", stacklevel=6)
            first = int(self.done.argmin())
            cast(zarr.Group, self._group).attrs["history"] = json.dumps([*history, {"from": first, **here}])

    def _mend(self, there: Stored, damage: list[Damage]) -> None:
        """Take away what is damaged and what an interrupted write left behind, and make room for all units."""
        for name in filter(None, there.documents):
            self.place.tidy(name)
            bad = {units.start for part, units, _ in damage if part == name}
            for file, held in files.chunks(there.documents[name], there.units):
                if held.start in bad:
                    self.place.remove(f"{name}/{file}")
        for name in filter(None, there.documents):
            array = self._array(name)
            if name != "done" and files.by_unit(there.documents[name]) and array.shape[0] != self.units:
                array.resize((self.units, *array.shape[1:]))
        for name, _, known in self._coordinates():
            self._array(name)[:] = known
        done, marked = self._array("done"), there.marked * self.done[: there.units, None]
        done[: there.units] = marked
        step = files.SPARE * done.chunks[0]
        for start in range(there.units, self.units, step):
            done.resize((min(start + step, self.units), marked.shape[1]))
            done[start:] = 0

    @contextmanager
    def _written(self) -> Iterator[None]:
        try:
            with zarr.config.set({"array.write_empty_chunks": True}):
                yield
        except self.place.errors as error:
            rule = f"{self.place.name!r} cannot be written: {reason(error)}; what is stored stays, run again to resume"
            code = getattr(error, "errno", None)
            raise OSError(*([] if code is None else [code]), rule) from None
