"""A stored run as it is read: what is there, what is damaged, and its images, each unit checked as it is read."""

from __future__ import annotations

import itertools
import json
import math
import os
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, cast

import dask.array
import numpy as np
import xarray as xr
import zarr
import zarr.errors

from antinb.dataset import files
from antinb.dataset.buckets import is_outage, reason
from antinb.dataset.places import ARRAYS, NO_RUN
from antinb.dataset.run import VARIABLES, Labels, build, check, check_hash, parsed

__all__ = ["open"]

MEND = "run the same call again to mend it"
Damage = tuple[str, range, str]


def open(store: str | os.PathLike) -> xr.Dataset:
    """Open a stored run lazily: a unit is read, and its checksum compared, when it is needed.

    A run that was copied with `to_zarr`, whole or in part, opens too. A run in a bucket has an address, such as
    `"s3://bucket/run.zarr"` (`pip install "antinb[s3]"`), and is reached with the credentials of the environment,
    `AWS_ACCESS_KEY_ID` and so on.

    Raises:
        FileNotFoundError: if there is no such store.
        OSError: if the bucket cannot be reached.
        ValueError: if it is no run, does not keep the schema, is being made, or lacks some of its images; what is
            wrong is named. Later, if a unit that is read is not what was written.
    """
    place = files.place(store)
    if not place.exists():
        raise FileNotFoundError(f"no run is stored at {str(store)!r}")
    if not is_original(place):
        return copied(place)
    run = Stored(place)
    done = np.asarray(run.marked.all(1))
    for name, units, _ in run.faults:
        if name in VARIABLES:
            done[units.start : units.stop] = False
    if run.faults or not done.all():
        known = "; ".join(told(fault) for fault in run.faults[:3]) or "run the same call again to go on"
        state = place.writer() or (f"{known}; {MEND}" if run.faults else known)
        raise ValueError(f"the run is not complete: {int(done.sum())} of {done.size} units are done; {state}")
    return check(build(run.lazy(), run.config, **run.labels))


def stored_units(store: str | os.PathLike) -> int:
    """Return how many units the run has that is stored or being made at a path, 0 if there is none."""
    place = files.place(store)
    return Stored(place).units if is_original(place) else 0


def stored_batch(store: str | os.PathLike) -> int | None:
    """Return the batch of the run that is stored or being made at a path, None if there is none."""
    place = files.place(store)
    batch = Stored(place).config.get("batch") if is_original(place) else None
    return batch if isinstance(batch, int) else None


def damage(store: str | os.PathLike) -> list[str]:
    """Return a line for each part of a stored run that is missing or not what was written; everything is read.

    Raises:
        FileNotFoundError: if there is no such store.
        ValueError: as `open`, but for what is damaged.
    """
    place = files.place(store)
    if place.exists() and is_original(place):
        run = Stored(place)
        lines = [told(fault) for fault in run.damage(run.labels.get("condition"))]
        missing = int((~run.marked.all(1)).sum())
        return lines + [f"{missing} of {run.units} units are not done"] * (missing > 0)
    data, lines = open(place.name), []
    for unit in range(data.sizes["unit"]):
        try:
            data.isel(unit=[unit]).load()
        except ValueError as error:
            lines.append(str(error).removesuffix(f"; {MEND}"))
    return lines


def is_original(place: files.Place) -> bool:
    """Return whether a run was made by `Store`, and is not a copy or of antinb 0.1."""
    try:
        return "layout_hash" in files.document(place, place.sizes(), "zarr.json")["attributes"]
    except (OSError, KeyError, TypeError, ValueError, RecursionError):
        return False


def copied(place: files.Place) -> xr.Dataset:
    """Open a run that something else than `Store` wrote, as it is; ValueError unless all of it is there."""
    there = place.sizes()
    try:
        group = zarr.open_group(place.zarr, mode="r")
        arrays = {name: array for name, array in group.arrays() if name in ARRAYS}
        units = arrays["image"].shape[0]
        for name, array in arrays.items():
            shards = array.shards or array.chunks
            grid = [-(-size // part) for size, part in zip(array.shape, shards, strict=True)]
            if math.prod(grid) > len(there) + 1 or name not in ("sign", "timestep") and array.shape[0] != units:
                raise ValueError("some of its images are missing")
            keys = map(array.metadata.encode_chunk_key, itertools.product(*map(range, grid)))
            lost = next((key for key in keys if name in VARIABLES and f"{name}/{key}" not in there), None)
            if lost:
                raise ValueError(f"the chunk {name}/{lost} is missing")
        if "done" in arrays and not (done := np.asarray(arrays["done"][:], bool)).all():
            raise ValueError(f"the run is not complete: {done.sum()} of {done.size} units are done")
        as_it_is = {"mask_and_scale": False, "decode_times": False, "decode_timedelta": False, "chunks": None}
        data = xr.open_zarr(place.zarr, consolidated=False, **as_it_is).drop_vars("done", errors="ignore")
        for name in data.variables:
            kept = {key: value for key, value in data[name].attrs.items() if key == "range"}
            data[name].attrs, data[name].encoding = kept, {}
            if name in VARIABLES:
                lazy = Reader(arrays[name], units)
                chunks = ((arrays[name].shards or arrays[name].chunks)[0], *lazy.shape[1:])
                data[name] = data[name].dims, _lazy(lazy, chunks), kept
        data.encoding = {}
        return check(data)
    except (
        OSError,
        KeyError,
        TypeError,
        AttributeError,
        IndexError,
        RecursionError,
        zarr.errors.BaseZarrError,
    ) as error:
        raise ValueError(f"{place.name!r} {NO_RUN} ({type(error).__name__} in its metadata)") from None
    except ValueError as error:
        raise ValueError(f"{place.name!r} {NO_RUN}: {str(error).splitlines()[0][:300]}") from None


def told(damage: Damage) -> str:
    """Return one line that says what is damaged."""
    name, units, what = damage
    return f"{name} of units {units.start} to {units.stop - 1} {what}" if units else f"{name} {what}"


def marks(values: np.ndarray, conditions: np.ndarray | None) -> np.ndarray:
    """Return what `done` says of units `(n, ...)`: a checksum of the values and the condition of each."""
    labels = itertools.repeat(None) if conditions is None else conditions.tolist()
    pairs = zip(np.ascontiguousarray(values), labels, strict=False)
    return np.array([max(1, zlib.crc32(unit, zlib.crc32(str(label).encode()))) for unit, label in pairs], np.uint32)


class Reader:
    """An array of a stored run; each unit that is read is compared with its mark, if there are marks.

    Raises:
        ValueError: on reading, naming the units that are not what was written.
    """

    def __init__(
        self, array: zarr.Array, units: int, marks: np.ndarray | None = None, conditions: np.ndarray | None = None
    ) -> None:
        self.array, self.marks, self.conditions = array, marks, conditions
        self.shape, self.dtype, self.ndim = (units, *array.shape[1:]), array.dtype, array.ndim

    def __getitem__(self, key: tuple) -> np.ndarray:
        rows = np.arange(self.shape[0])[key[0]]
        if not rows.size:
            return np.empty(self.shape, self.dtype)[key]
        low = int(rows.min())
        values, damage = self.look(range(low, int(rows.max()) + 1))
        if damage:
            raise ValueError(f"{told(damage)}; {MEND}")
        return values[(rows - low, *key[1:])]

    def look(self, units: range) -> tuple[np.ndarray, Damage | None]:
        """Return some units, and what is wrong with those that are marked."""
        cut, name = slice(units.start, units.stop), self.array.basename
        try:
            values = np.asarray(self.array[cut])
        except Exception as error:
            if is_outage(error):
                raise OSError(
                    f"{name} of units {units.start} to {units.stop - 1} cannot be read: {reason(error)}"
                ) from None
            return np.empty(0), (name, units, f"are rotten: {str(error).splitlines()[0][:200]}")
        if self.marks is not None:
            found = marks(values, None if self.conditions is None else self.conditions[cut])
            bad = np.flatnonzero((found != self.marks[cut]) & (self.marks[cut] > 0))
            if bad.size:
                return values, (name, units, f"are rotten: the checksum of unit {units[bad[0]]} does not fit")
        return values, None


def _lazy(reader: Reader, chunks: tuple[int, ...]) -> dask.array.Array:
    sizes = cast(Any, chunks)  # dask's own annotation knows texts only
    return dask.array.from_array(reader, chunks=sizes, name=False, lock=False, fancy=False, asarray=False)


class Stored:
    """What is in the place of a run that antinb wrote.

    Attributes:
        config: what the run was.
        units: how many it has, made or not.
        marked: what `done` says, `(unit, variable)`, 0 where a unit is not done or `done` cannot be read.
        labels: the coordinates as `build` takes them.
        faults: what is seen to be wrong without reading the images.

    Raises:
        ValueError: if it is no run, or its configuration or its metadata are not those that were written.
    """

    def __init__(self, place: files.Place) -> None:
        self.there = place.sizes()
        self.documents = files.documents(place, self.there)
        attrs = self.documents[""]["attributes"]
        check_hash(attrs)
        self.config, self.units = parsed(attrs), self.documents["done"]["shape"][0]
        self.variables = [name for name in VARIABLES if name in self.documents]
        self.group = zarr.open_group(place.zarr, mode="r")
        unread = [*files.faults(self.documents, self.there, self.units)]
        self.faults: list[Damage] = [fault for fault in unread if fault[0] not in VARIABLES]
        known = json.loads(attrs["coordinates"]) | {"unit": range(self.units)}
        read = {name: self._read(name, known.get(name)) for name in self.documents if name and name not in VARIABLES}
        self.marked = read["done"]
        self.labels: Labels = {"signs": read.get("sign"), "condition": read.get("condition")}
        self.labels["timesteps"] = read.get("timestep")
        for name, units, what in unread:
            if name in VARIABLES and self.marked[units.start : units.stop].any():
                self.faults.append((name, units, what))

    def array(self, name: str) -> zarr.Array:
        """Return an array of the store."""
        return cast(zarr.Array, self.group[name])

    def readers(self, conditions: np.ndarray | None) -> dict[str, Reader]:
        """Return the variables, to be compared with marks that were made with these conditions."""
        columns = zip(self.variables, self.marked.T, strict=True)
        return {name: Reader(self.array(name), self.units, column, conditions) for name, column in columns}

    def lazy(self) -> dict[str, dask.array.Array]:
        """Return the variables, a chunk read when it is needed."""
        return {
            name: _lazy(reader, (reader.array.chunks[0], *reader.shape[1:]))
            for name, reader in self.readers(self.labels.get("condition")).items()
        }

    def has_images(self, units: range) -> bool:
        """Return whether a chunk of images of some units is there."""
        held = files.chunks(self.documents["image"], self.units)
        return any(set(units) & set(part) and f"image/{file}" in self.there for file, part in held)

    def damage(self, conditions: np.ndarray | None) -> Iterator[Damage]:
        """Yield all that is wrong; everything is read."""
        yield from self.faults
        seen = {(name, units.start) for name, units, _ in self.faults}
        for (name, reader), marked in zip(self.readers(conditions).items(), self.marked.T, strict=True):
            for _, units in files.chunks(self.documents[name], self.units):
                if (name, units.start) not in seen and marked[units.start : units.stop].any():
                    damage = reader.look(units)[1]
                    if damage:
                        yield damage

    def _read(self, name: str, known: Sequence | None) -> np.ndarray:
        """Return an array that is not of images, 0 where it cannot be read; what differs from `known` is a fault."""
        by_unit = files.by_unit(self.documents[name])
        rows = self.units if by_unit else self.documents[name]["shape"][0]
        reader = Reader(self.array(name), rows)
        values, seen = np.zeros(reader.shape, reader.dtype), {(part, units.start) for part, units, _ in self.faults}
        for _, units in files.chunks(self.documents[name], len(values)):
            if (name, units.start) not in seen:
                cut = slice(units.start, units.stop)
                found, damage = reader.look(units)
                if damage is None and known is not None and not np.array_equal(found, np.array(known[cut])):
                    damage = name, units, "are not what was written"
                if damage:
                    self.faults.append(damage)
                else:
                    values[cut] = found
        return values
