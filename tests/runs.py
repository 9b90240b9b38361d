"""Runs of cheap models, and what several tests of stores do with them."""

import time
from pathlib import Path

import torch
import xarray as xr
from helpers import SHAPE

import antinb
from antinb import noise
from antinb.dataset import store as stores

xr.backends.list_engines()  # the plugins are looked up once, not in every child
CALLS = []


def cheap(z):
    CALLS.append(len(z))
    return torch.tanh(z.reshape(len(z), 1, 8, 8))


def slow(z):
    time.sleep(0.004)
    return cheap(z)


slow.__qualname__ = cheap.__qualname__


def run(store, units=256, function=cheap, **options):
    settings = {"seed": 3, "batch": 8, "progress": False, **options}
    return antinb.sample(antinb.load(function, shape=SHAPE), noise.antithetic(units), store=store, **settings)


def contents(store):
    """Return every file of a store with its bytes."""
    return {str(path.relative_to(store)): path.read_bytes() for path in Path(store).rglob("*") if path.is_file()}


def chunk_files(store):
    return sorted(path for path in Path(store).rglob("c.*") if path.is_file())


def child(store, units, seed=3, function=slow):
    """Run in a process of its own, with a chunk a shard; exits with 3 if the run is refused in one line."""
    torch.set_num_threads(1)
    stores.CHUNK = 1
    try:
        run(store, units, function, seed=seed)
    except ValueError as error:
        raise SystemExit(3 if "\n" not in str(error) and str(store) in str(error) else 4) from None
