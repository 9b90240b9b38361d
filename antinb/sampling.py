"""A generator and a noise design to a Dataset, shard by shard, in memory or to Zarr."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from tqdm.auto import tqdm

from antinb import checks, dataset, workers
from antinb.models.draws import rows
from antinb.models.functions import Function
from antinb.models.generator import CALLED, Generator, Integrator
from antinb.noise import Design

__all__ = ["sample"]

ROUNDING = 1e-3  # root mean square of a difference that another cut into batches or another machine makes
BEYOND, FEWEST = 1.5, 256  # values that are beyond the range; least number of values that can be told to lie above 0
AUTO, TURNS = "auto", "in turn"  # words for a batch and for conditions
Write = Callable[[range, Mapping[str, np.ndarray]], None]
FEW = 4  # steps of a try that looks for the largest batch
HALF_ROUNDING = 0.02  # the same in half precision, and where the precision is not known


@checks.typed
def sample(
    generator: Generator,
    design: Design,
    *,
    seed: int,
    condition: int | list[int] | str | None = None,
    store: str | Path | None = None,
    batch: int | str = 64,
    trajectory: bool = False,
    progress: bool = True,
    client: workers.Client = None,
) -> xr.Dataset:
    """Return the images of every unit and member of a design, `(unit, member, channel, y, x)`.

    Shard k holds the units `[k b, (k + 1) b)`, b the whole units in a batch and at least one. With a
    store, one shard is in memory at a time and `done(unit)` is written last: a run that was killed
    goes on where it was, and a finished one is extended by asking for more units. On one machine,
    at one batch size and thread count, the store is the same byte for byte however often it was
    interrupted; a shard cut short by the end of a run and extended later is equal up to rounding.
    A generator with an attribute `members` makes one image of all members of a unit: the run has one member. One whose
    attribute `amplifies` is true, such as DPS, makes rounding so large that its units are not made again to compare.

    Args:
        generator: from `antinb.load`.
        design: from `antinb.noise`.
        seed: non-negative integer; with the design it fixes all noise.
        condition: one class for all units, one class a unit, or `"in turn"`: unit k has class or prompt k, and begins
            again after the last. Members share their unit's.
        store: path of a Zarr store, new or of the same configuration, or its address in a bucket, such as
            `"s3://bucket/run.zarr"` (`pip install "antinb[s3]"`); None keeps the images in memory.
        batch: images that the network sees at once. `"auto"` takes the largest power of two for which there is memory,
            found by trying, at most 256 on an accelerator and 64 elsewhere; a stored run keeps its own.
        trajectory: whether to keep, `(unit, member, step, channel, y, x)`, the `state` before each
            step and its `predicted_noise`, with `timestep(step)`.
        progress: whether to show a progress bar.
        client: a `dask.distributed.Client` whose workers make the shards (`pip install "antinb[cluster]"`); this
            process writes them, in order, to the store that it needs. At one batch size and thread count the bytes
            are those of one process, on the same kind of processor. A lost worker's shards are made by the others, and
            the first unit is made here too, to compare. A worker loads a model that came from a name or a folder
            itself if it can, without `device=` on the accelerator that it has; any other model is sent to it.
            `antinb/workers.py` shows clients for SLURM and for several GPUs.

    Raises:
        ValueError: if an argument is out of its range, the store holds something else, the generator
            has no trajectory or cannot be sent to workers, or it returns non-finite images; shards already written
            stay, the bad one is not written.
        OSError: if the store cannot be written or all workers are lost; shards already written stay.

    Examples:
        >>> import antinb
        >>> run = antinb.sample(
        ...     antinb.load("fashion-mixture", steps=5), antinb.noise.antithetic(3), seed=0, progress=False
        ... )
        >>> dict(run.sizes)
        {'unit': 3, 'member': 2, 'channel': 1, 'y': 28, 'x': 28}
    """
    seed = checks.seed(seed)
    if not all(hasattr(generator, name) for name in ("shape", "evaluations", "generate", "describe")):
        raise ValueError(f"a generator is what antinb.load returns; got a {type(generator).__name__}")
    if not isinstance(store, (str, os.PathLike, type(None))):
        raise ValueError(f"store must be a path or None; got {store!r}")
    if client is not None:
        workers.check(client)
        if store is None:
            raise ValueError("a run of several workers needs a store; got store=None")
    traced = isinstance(generator, Integrator)
    if trajectory and not traced:
        raise ValueError(f"trajectories need a network with its scheduler; got a {type(generator).__name__}")
    given = None if condition is None else _classes(condition, generator, design.units)
    conditions = None if given is None else _conditions(given, design.units)
    averaged = getattr(generator, "members", None)
    if batch == AUTO:
        kept_batch = None if store is None else dataset.stored_batch(store)
        batch = kept_batch or _largest_batch(generator, design, seed, conditions)
    batch = checks.integer("batch", batch, 1)  # pyright: ignore[reportArgumentType]
    if averaged not in (None, design.members) or (averaged or 0) > batch:
        found = f"a design of {design.members} members, batch {batch}"
        raise ValueError(f"the generator makes an image of {averaged} members of a unit, in one batch; got {found}")
    config = {
        **generator.describe(),
        "design": design.describe(),
        "seed": seed,
        "condition": None if given is None else "by unit" if given.ndim else given.item(),
        "batch": batch,
        "trajectory": trajectory,
        "threads": torch.get_num_threads(),
        "versions": dataset.versions("antinb", "torch", "diffusers", "numpy"),
    }
    labels = {
        "signs": None if averaged else design.signs,
        "condition": conditions,
        "timesteps": list(generator.timesteps) if trajectory and traced else None,
    }
    if store is None:
        kept = 2 * len(labels["timesteps"]) + 1 if labels["timesteps"] else 1
        checks.memory(f"a run of {design.units} units", design.units, design.members, kept, *generator.shape)
    size = {"units": design.units, "shard": max(1, batch // design.members)}
    made = {"seed": seed, "batch": batch, "trajectory": trajectory, "classes": conditions}
    amplifies = getattr(generator, "amplifies", False)
    run = dataset.Memory(config, **size, **labels) if store is None else dataset.Store(store, config, **size, **labels)
    name, count = config.get("model", type(generator).__name__), design.units * design.members
    with run, _Bar(name, count, int(run.done.sum()) * design.members, generator.evaluations, progress) as bar:
        stored = run.first()
        if stored and not amplifies:
            unit, images = stored
            again = generate(generator, design, range(unit, unit + 1), **made)["image"]
            check_equal(images, again[0], unit, config)
        make = partial(generate, design=design, **made)
        shards = ((units, make(generator, units=units)) for units in run.missing())
        with _behind(run.write) as write:
            for units, values in shards if client is None else workers.spread(client, make, generator, run.missing()):
                if stored is None:
                    _warn_of_range(values["image"], generator)
                if stored is None and not amplifies and not (traced and client is None):
                    smaller = max(1, min(batch, design.members) // 2)
                    cut = made if len(units) > 1 or averaged else {**made, "batch": smaller}
                    again = generate(generator, design, units[:1], **cut)["image"]
                    check_equal(values["image"][0], again[0], units[0], config)
                stored = units
                write(units, values)
                bar.reach(len(units) * design.members)
        return run.finish()


class _Bar(tqdm):
    """A bar that moves with each call of the network where the generator tells of it, otherwise with each shard."""

    def __init__(self, model: object, images: int, done: int, cost: int, shown: bool) -> None:
        self.cost, self.shard = max(1, cost), done * max(1, cost)  # calls of an image, and up to the shard's end
        told = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}, about {remaining} left"
        name, last = f"{images} images of {model}", images * self.cost
        super().__init__(desc=name, total=last, initial=self.shard, disable=not shown, bar_format=told)
        self.token = CALLED.set(lambda rows: self.update(min(rows, last - self.n)))

    def __exit__(self, *ended: Any) -> None:  # noqa: ANN401
        CALLED.reset(self.token)
        super().__exit__(*ended)

    def reach(self, images: int) -> None:
        """Move to the end of a shard of so many images, whatever calls were told."""
        self.shard += images * self.cost
        self.update(self.shard - self.n)


@contextmanager
def _behind(write: Write) -> Iterator[Write]:
    """Yield `write`; beside an accelerator one that works in a thread while the network makes the next shard."""
    if not torch.accelerator.is_available():
        yield write
        return
    pending: list[Future[None]] = []

    def later(units: range, values: Mapping[str, np.ndarray]) -> None:
        while pending:
            pending.pop().result()
        pending.append(pool.submit(write, units, values))

    with ThreadPoolExecutor(1) as pool:
        yield later
        while pending:
            pending.pop().result()


def _warn_of_range(images: np.ndarray, generator: Generator) -> None:
    """Tell of images of which most values lie far beyond -1 and 1, or all above 0 and not all on one side of 1/2."""
    low, high, beyond = float(images.min()), float(images.max()), float((np.abs(images) > BEYOND).mean())
    if beyond > 0.5:
        found = f"{beyond:.0%} of the values lie beyond, from {low:.3g} to {high:.3g}"
    elif 0 <= low < 0.5 < high and images.size >= FEWEST:
        found = f"all values lie from {low:.3g} to {high:.3g}"
    else:
        return
    remedy = "If the sampler diverges, load the model with clip=True or take more steps"
    if isinstance(generator, Function):
        remedy = f"Say which values are black and white: antinb.load(..., range=(0, {1 if high <= BEYOND else 255}))"
    warnings.warn(f"in images -1 is black and 1 is white; {found}. {remedy}", stacklevel=4)


def check_equal(first: np.ndarray, again: np.ndarray, unit: int, config: dict[str, object]) -> None:
    """Refuse a generator that makes other images of the same noise, but for rounding."""
    rounding = ROUNDING if config.get("dtype") in ("float32", "float64") else HALF_ROUNDING
    if first.shape != again.shape:
        raise ValueError(f"unit {unit} has images {first.shape}; made again, {again.shape}")
    if float(np.square(first - again, dtype=np.float64).mean()) ** 0.5 > rounding:
        largest = float(np.abs(first - again).max())
        raise ValueError(
            f"unit {unit} made again differs by up to {largest:.2g}: the model is not what it was or no function of "
            "its noise. Likely causes: weights, adapters or settings changed since, random numbers from numpy or a "
            "generator of its own, a result that depends on the rest of the batch, autocast"
        )


def _largest_batch(generator: Generator, design: Design, seed: int, classes: np.ndarray | None) -> int:
    """Return the largest power of two of images for which there is memory, at most those of the run."""
    short = generator
    if getattr(generator, "steps", 0) > FEW and hasattr(generator, "with_"):
        short = getattr(generator, "with_")(steps=FEW)  # noqa: B009

    def fits(size: int) -> bool:
        units = range(-(-size // design.members))
        try:
            generate(short, design, units, seed=seed, classes=classes, batch=size, trajectory=False)
        except (RuntimeError, MemoryError) as error:
            if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "allocate memory" in str(error):
                return False
            raise
        return True

    accelerated = torch.accelerator.is_available()
    most, size = (
        min(256 if accelerated else 64, design.units * design.members),
        getattr(generator, "members", None) or 1,
    )
    if not fits(size):
        raise ValueError(
            f"there is no memory for a batch of {size}: use a smaller model, another dtype or a pipeline with offload"
        )
    while 2 * size <= most and fits(2 * size):
        size *= 2
    return size


def _classes(condition: object, generator: Generator, units: int) -> np.ndarray:
    """Return classes as an array, refusing what makes none, such as lists of lists of several lengths."""
    if condition == TURNS:
        count = getattr(generator, "conditions", 0)
        if not count:
            raise ValueError(
                f"conditions in turn need a model with classes or prompts; got a {type(generator).__name__}"
            )
        return np.resize([k for k in range(count + 1) if k != getattr(generator, "null", None)][:count], units)
    try:
        return np.asarray(condition)
    except ValueError:
        raise ValueError(f"condition must be one class, or one a unit; got {checks.quoted(condition)}") from None


def _conditions(classes: np.ndarray, units: int) -> np.ndarray:
    if not np.issubdtype(classes.dtype, np.integer) or classes.shape not in ((), (units,)) or classes.min() < 0:
        found = checks.quoted(classes.tolist())
        rule = f"condition must be one class, one for each of {units} units, from 0, or {TURNS!r}"
        raise ValueError(f"{rule}; got {found}")
    return np.broadcast_to(classes, (units,))


def generate(
    generator: Generator,
    design: Design,
    units: range,
    *,
    seed: int,
    classes: np.ndarray | None,
    batch: int,
    trajectory: bool,
) -> dict[str, np.ndarray]:
    """Return the variables `(units, members, ...)` of one shard, refusing what is not finite."""
    noise = rows(design, generator.shape, seed=seed, units=units)
    own = None if classes is None else classes[units.start : units.stop].repeat(design.members)
    labels = None if own is None else torch.from_numpy(own)
    parts: dict[str, list[torch.Tensor]] = {}
    for first in range(0, len(noise), batch):
        cut = slice(first, first + batch)

        def draw(stream: int, shape: tuple[int, ...], cut: slice = cut) -> torch.Tensor:
            return rows(design, shape, seed=seed, units=units, stream=stream)[cut]

        given = {"draw": draw, "condition": None if labels is None else labels[cut]}
        if trajectory and isinstance(generator, Integrator):
            images, recorded = generator.trajectory(noise[cut], **given)
        else:
            images, recorded = generator.generate(noise[cut], **given), {}
        if not images.is_floating_point():
            raise ValueError(f"images must be floating-point numbers; got {images.dtype}")
        recorded["image"] = images
        for name, part in recorded.items():
            parts.setdefault(name, []).append(part.float().cpu())
    values = {name: torch.cat(part).numpy() for name, part in parts.items()}
    values = {name: part.reshape(len(units), -1, *part.shape[1:]) for name, part in values.items()}
    bad = ~np.all([np.isfinite(part).reshape(len(units), -1).all(1) for part in values.values()], 0)
    if bad.any():
        raise ValueError(
            f"images must be finite; the model returned NaN or infinity in {bad.sum()} of {len(units)} units, "
            f"first in unit {units[int(bad.argmax())]}"
        )
    return values
