"""The files of a stored run, looked at before anything is read from them: ordinary ones, of a known size.

A run is a Zarr group of format 3. Its arrays are uncompressed and each chunk ends in its crc32c checksum, so that the
size of every file is known. Attributes of the group: `coordinates`, what `sign` and `timestep` hold, and `layout_hash`,
which covers that and the metadata of all arrays but for the number of units.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from antinb.dataset.buckets import Bucket
from antinb.dataset.places import ARRAYS, NO_RUN, Folder

__all__: list[str] = []

ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+:/")
BUCKET = re.compile(r"s3://([^/]+)/([^/]+(?:/[^/]+)*)/?")
CHECKSUM = 4  # bytes
LARGEST_DOCUMENT = 2**22  # bytes
MOST_ADDED = 2**22  # units for which an interrupted extension has made room
SPARE = 256  # chunks of `done` that may be missing
GROUP = {"zarr_format": 3, "node_type": "group"}

Place = Folder | Bucket
Documents = Mapping[str, Mapping]


def place(store: str | os.PathLike) -> Place:
    """Return the place that a store is in or will be in, of a folder with `~` and links resolved.

    Raises:
        ValueError: if it is none, or of a kind for which a package is missing.
    """
    if not isinstance(store, (str, os.PathLike)) or not isinstance(os.fspath(store), str) or not os.fspath(store):
        raise ValueError(f"store must be a path or None; got {store!r}")
    text = os.fspath(store)
    if not ADDRESS.match(text):
        return Folder(Path(os.path.realpath(os.path.expanduser(text))))
    found = BUCKET.fullmatch(text)
    if not found:
        rule = "a store is a folder of this machine, or a text such as 's3://bucket/run.zarr'"
        raise ValueError(f"{rule}; got {store!r}")
    return Bucket(*found.groups())


def documents(place: Place, there: Mapping[str, int]) -> Documents:
    """Return the metadata of the group, under "", and of each array of a run.

    Raises:
        ValueError: if they are not those of a run, or not those that were written.
    """
    try:
        found = read(place, there)
        sizes = {name: found[name]["shape"][0] for name in found if name and by_unit(found[name])}
        whole = {type(size) for part in found.values() for size in part.get("shape", (1,))} == {int}
        group = {key: value for key, value in found[""].items() if key != "attributes" and value is not None}
        if not whole or group != GROUP or found[""]["attributes"]["layout_hash"] != layout_hash(found):
            raise ValueError("its metadata are not those that were written")
        if not 0 < sizes["done"] == min(sizes.values()) or max(sizes.values()) > sizes["done"] + MOST_ADDED:
            raise ValueError(f"its arrays have {sizes} units")
        written = sum(name.startswith("done/c") for name in there)
        if sizes["done"] > (written + SPARE) * found["done"]["chunk_grid"]["configuration"]["chunk_shape"][0]:
            raise ValueError(f"it has {sizes['done']} units, and the files of far fewer")
    except (OSError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise ValueError(f"{place.name!r} {NO_RUN} ({type(error).__name__} in its metadata)") from None
    except ValueError as error:
        raise ValueError(f"{place.name!r} {NO_RUN}: {error}") from None
    return found


def read(place: Place, there: Mapping[str, int]) -> Documents:
    """Return the metadata as they are; errors as `document`."""
    known = {name: f"{name}/zarr.json" for name in ARRAYS if f"{name}/zarr.json" in there}
    return {name: document(place, there, file) for name, file in {"": "zarr.json", **known}.items()}


def document(place: Place, there: Mapping[str, int], name: str) -> dict:
    """Return one file of metadata; ValueError, RecursionError or KeyError if it is none."""
    if there[name] > LARGEST_DOCUMENT:
        raise ValueError(f"{name} holds {there[name]} bytes")
    return json.loads(place.read(name))


def layout_hash(documents: Documents) -> str:
    """Return the sha256 of the metadata of all arrays but for the number of units, and of the fixed coordinates."""
    fixed = {"": documents[""]["attributes"]["coordinates"]}
    for name, part in documents.items():
        if name:
            fixed[name] = {**part, "shape": part["shape"][1:] if by_unit(part) else part["shape"]}
    return hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()


def by_unit(document: Mapping) -> bool:
    """Return whether an array has a row for each unit."""
    return document["dimension_names"][0] == "unit"


def chunks(document: Mapping, units: int) -> Iterator[tuple[str, range]]:
    """Yield the file name and the rows of each chunk along the first dimension."""
    shard, *rest = document["chunk_grid"]["configuration"]["chunk_shape"]
    for place in range(-(-units // shard)):
        name = ".".join(["c", str(place), *"0" * len(rest)])
        yield name, range(place * shard, min((place + 1) * shard, units))


def chunk_size(document: Mapping) -> int:
    """Return the size of the file of a chunk in bytes."""
    values = math.prod(document["chunk_grid"]["configuration"]["chunk_shape"])
    return values * np.dtype(document["data_type"]).itemsize + CHECKSUM


def faults(documents: Documents, there: Mapping[str, int], units: int) -> Iterator[tuple[str, range, str]]:
    """Yield the array, the units and what is wrong for each chunk that is missing or of another size than it should."""
    for name, part in documents.items():
        if name:
            wanted = chunk_size(part)
            for file, held in chunks(part, units if by_unit(part) else 1):
                size = there.get(f"{name}/{file}")
                if size != wanted:
                    yield name, held, "is missing" if size is None else f"holds {size} of {wanted} bytes"
