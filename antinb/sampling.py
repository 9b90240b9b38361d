"""A generator and a noise design to a Dataset, shard by shard, in memory or to Zarr."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator
from pathlib import Path

import dask.array
import numpy as np
import torch
import xarray as xr
from tqdm.auto import tqdm

from antinb import dataset
from antinb.generators import Generator
from antinb.noise import Design, at_least


def sample(
    generator: Generator,
    design: Design,
    *,
    seed: int,
    condition: int | list[int] | None = None,
    store: str | Path | None = None,
    batch: int = 64,
    progress: bool = True,
) -> xr.Dataset:
    """Return the images of every unit and member of a design, `(unit, member, channel, y, x)`.

    Shard k holds the units `[k b, (k + 1) b)`, b the whole units in a batch and at least one. With a
    store, one shard is in memory at a time and `done(unit)` is written last.

    Args:
        generator: from `antinb.load`.
        design: from `antinb.noise`.
        seed: non-negative integer; with the design it fixes all noise.
        condition: one class for all units, or one class a unit; members share their unit's.
        store: path of a new Zarr store; None keeps the images in memory.
        batch: images that the network sees at once.
        progress: whether to show a progress bar.

    Raises:
        ValueError: if an argument is out of its range or the generator returns non-finite images;
            shards already written stay, the bad one is not written.
        FileExistsError: if the store exists.

    Examples:
        >>> import antinb
        >>> run = antinb.sample(
        ...     antinb.load("fashion-mixture", steps=5), antinb.noise.antithetic(3), seed=0, progress=False
        ... )
        >>> dict(run.sizes)
        {'unit': 3, 'member': 2, 'channel': 1, 'y': 28, 'x': 28}
    """
    batch, seed = at_least(1, "batch", batch), at_least(0, "seed", seed)
    if store is not None and Path(store).exists():
        raise FileExistsError(f"{str(store)!r} exists: open it with antinb.dataset.open or name another store")
    conditions = _conditions(condition, design.units)
    shard = max(1, batch // design.members)
    config = {
        **generator.describe(),
        "design": design.describe(),
        "seed": seed,
        "condition": "by unit" if np.ndim(condition) else condition if condition is None else int(condition),
        "batch": batch,
        "threads": torch.get_num_threads(),
        "versions": {name: importlib.metadata.version(name) for name in ("antinb", "torch", "diffusers", "numpy")},
    }
    images = None
    with tqdm(total=design.units * design.members, unit="image", disable=not progress) as bar:
        for units, values in _shards(generator, design, seed, conditions, shard, batch):
            if images is None:
                shape = (design.units, design.members, *values.shape[2:])
                images = (
                    np.empty(shape, np.float32)
                    if store is None
                    else dask.array.empty(shape, dtype=np.float32, chunks=(shard, *shape[1:]))
                )
                run = dataset.build(images, config, signs=design.signs, condition=conditions)
                if store is not None:
                    _create(run, store, shard)
            if store is None:
                images[units.start : units.stop] = values
            else:
                _write(store, "image", units, dataset.DIMS, values)
                _write(store, "done", units, ("unit",), np.ones(len(units), bool))
            bar.update(values.shape[0] * values.shape[1])
    return dataset.check(run) if store is None else dataset.open(store)


def _conditions(condition: int | list[int] | None, units: int) -> np.ndarray | None:
    if condition is None:
        return None
    classes = np.asarray(condition)
    if not np.issubdtype(classes.dtype, np.integer) or classes.shape not in ((), (units,)) or classes.min() < 0:
        raise ValueError(f"condition must be one class, or one for each of {units} units, from 0; got {condition!r}")
    return np.broadcast_to(classes, (units,))


def _shards(
    generator: Generator, design: Design, seed: int, conditions: np.ndarray | None, shard: int, batch: int
) -> Iterator[tuple[range, np.ndarray]]:
    """Yield the unit numbers and images `(units, members, C, H, W)` of one shard after the other."""
    for start in range(0, design.units, shard):
        units = range(start, min(start + shard, design.units))
        noise = torch.from_numpy(design.draw(generator.shape, seed=seed, units=units)).flatten(0, 1)
        classes = None
        if conditions is not None:
            classes = torch.from_numpy(conditions[units.start : units.stop].repeat(design.members))
        cuts = [slice(first, first + batch) for first in range(0, len(noise), batch)]
        parts = [generator.generate(noise[cut], condition=None if classes is None else classes[cut]) for cut in cuts]
        values = torch.cat(parts).float().cpu().numpy().reshape(len(units), design.members, *parts[0].shape[1:])
        bad = ~np.isfinite(values).all((1, 2, 3, 4))
        if bad.any():
            raise ValueError(
                f"images must be finite; the model returned NaN or infinity in {bad.sum()} of {len(units)} units, "
                f"first in unit {units[int(bad.argmax())]}"
            )
        yield units, values


def _create(run: xr.Dataset, store: str | Path, shard: int) -> None:
    """Write coordinates and attrs, and leave room for the images and for `done`, a chunk a shard."""
    run = run.assign(done=("unit", dask.array.zeros(run.sizes["unit"], dtype=bool, chunks=shard)))
    run.to_zarr(store, compute=False, consolidated=False, zarr_format=3)


def _write(store: str | Path, name: str, units: range, dims: tuple[str, ...], values: np.ndarray) -> None:
    part = xr.Dataset({name: (dims, values)})
    part.to_zarr(store, region={"unit": slice(units.start, units.stop)}, consolidated=False)
