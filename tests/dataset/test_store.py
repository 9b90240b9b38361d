"""Runs that are killed, extended, moved or starved of disk: nothing is lost, nothing half-written."""

import errno
import functools
import multiprocessing
import resource
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
import zarr
from helpers import LINEAR, SHAPE, tiny_unet

import antinb
from antinb import dataset, noise
from antinb.models import diffusion

xr.backends.list_engines()  # the plugins are looked up once, not in every child


def cheap(z):
    time.sleep(0.004)
    return torch.tanh(z.reshape(len(z), 1, 8, 8))


def failing(z):
    raise AssertionError("a finished unit was computed again")


failing.__qualname__ = cheap.__qualname__


def run(store, units=256, function=cheap, **options):
    settings = {"seed": 3, "batch": 8, "progress": False, **options}
    return antinb.sample(antinb.load(function, shape=SHAPE), noise.antithetic(units), store=store, **settings)


def contents(store):
    """Return every file of a store with its bytes."""
    return {str(path.relative_to(store)): path.read_bytes() for path in Path(store).rglob("*") if path.is_file()}


def child(store):
    torch.set_num_threads(1)
    run(store)


def chunks(store):
    return len(list((store / "image" / "c").glob("*")))


@pytest.mark.slow
def test_twenty_kills_change_no_byte(tmp_path):
    """A run killed by SIGKILL at 20 random moments, each time started again, equals one never killed.

    Each kill comes a random few milliseconds, about a shard's time, after 0 to 3 more shards.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["antinb.sampling", "antinb.zoo", "test_store"])
    rng, store, whole = np.random.default_rng(0), tmp_path / "killed.zarr", tmp_path / "whole.zarr"
    states = set()
    for _ in range(20):
        process = context.Process(target=child, args=(store,))
        process.start()
        wanted = chunks(store) + rng.integers(4)
        while process.is_alive() and chunks(store) < wanted:
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.015))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        states.add(len(contents(store)) if store.exists() else 0)
    assert len(states) > 8
    for path in (store, whole):
        process = context.Process(target=child, args=(path,))
        process.start()
        process.join()
        assert process.exitcode == 0
    assert contents(store) == contents(whole)
    assert not (tmp_path / "killed.zarr.partial").exists()


def test_what_is_done_is_not_done_again(tmp_path):
    first = run(tmp_path / "run.zarr", 12).load()
    xr.testing.assert_identical(run(tmp_path / "run.zarr", 12, failing).load(), first)


@pytest.mark.parametrize(("before", "after"), [(16, 24), (10, 23)])
def test_an_extended_run_keeps_what_it_had(tmp_path, before, after):
    first = run(tmp_path / "run.zarr", before).load()
    longer = run(tmp_path / "run.zarr", after).load()
    xr.testing.assert_identical(longer.isel(unit=slice(before)), first)
    fresh = run(tmp_path / "fresh.zarr", after).load()
    xr.testing.assert_allclose(longer, fresh, rtol=0, atol=1e-6)
    if before % 4 == 0:
        assert contents(tmp_path / "run.zarr") == contents(tmp_path / "fresh.zarr")


def test_256_pairs_extended_to_400(tmp_path):
    first = run(tmp_path / "run.zarr", 256)["image"].values
    longer = run(tmp_path / "run.zarr", 400)
    assert np.array_equal(longer["image"][:256], first)
    assert longer.sizes["unit"] == 400
    assert np.array_equal(longer["unit"], np.arange(400))


def test_a_kill_between_the_steps_of_an_extension_is_mended(tmp_path):
    run(tmp_path / "run.zarr", 8)
    fresh = contents((run(tmp_path / "fresh.zarr", 16), tmp_path / "fresh.zarr")[1])
    group = zarr.open_group(tmp_path / "run.zarr")
    group["image"].resize((16, *group["image"].shape[1:]))
    (tmp_path / "run.zarr" / "image" / "c" / "stray.partial").write_bytes(b"half a chunk")
    run(tmp_path / "run.zarr", 16)
    assert contents(tmp_path / "run.zarr") == fresh


def test_conditions_are_extended_and_compared(tmp_path):
    generator = diffusion.from_network(tiny_unet(num_class_embeds=3), LINEAR).with_(steps=1)
    settings = {"seed": 0, "batch": 4, "progress": False, "store": tmp_path / "run.zarr"}
    antinb.sample(generator, noise.antithetic(4), condition=[0, 1, 2, 0], **settings)
    longer = antinb.sample(generator, noise.antithetic(6), condition=[0, 1, 2, 0, 1, 1], **settings)
    assert longer["condition"].values.tolist() == [0, 1, 2, 0, 1, 1]
    with pytest.raises(ValueError, match="other conditions"):
        antinb.sample(generator, noise.antithetic(7), condition=[0, 1, 1, 0, 1, 1, 2], **settings)


@pytest.mark.parametrize("name", ["condition", "done", "image"])
def test_a_kill_within_the_extension_of_a_conditional_run_is_mended(tmp_path, name):
    generator = diffusion.from_network(tiny_unet(num_class_embeds=3), LINEAR).with_(steps=1)
    settings = {"seed": 0, "batch": 4, "progress": False, "store": tmp_path / "run.zarr", "condition": 2}
    antinb.sample(generator, noise.antithetic(4), **settings)
    array = zarr.open_group(tmp_path / "run.zarr")[name]
    array.resize((6, *array.shape[1:]))
    for units in (4, 6):
        run = antinb.sample(generator, noise.antithetic(units), **settings)
        assert run["condition"].values.tolist() == [2] * units


def test_a_chunk_that_got_lost_is_missed_and_made_again(tmp_path):
    first = run(tmp_path / "run.zarr", 16).load()
    shutil.rmtree(tmp_path / "run.zarr" / "image" / "c" / "1")
    with pytest.raises(ValueError, match="12 of 16 units are done"):
        dataset.open(tmp_path / "run.zarr")
    xr.testing.assert_identical(run(tmp_path / "run.zarr", 16).load(), first)


class Scale(torch.nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = torch.nn.Parameter(torch.tensor(factor))

    def forward(self, z):
        return z * self.factor


@pytest.mark.parametrize(
    ("one", "other", "message"),
    [
        (Scale(1.0), Scale(5.0), "network_sha256"),
        (functools.partial(torch.mul, other=1), functools.partial(torch.mul, other=7), "'other': 7"),
        (torch.nn.Softplus(1), torch.nn.Softplus(2), "network_sha256"),
    ],
)
def test_runs_of_two_models_are_never_mixed(tmp_path, one, other, message):
    run(tmp_path / "run.zarr", 8, one)
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "run.zarr", 16, other)


def test_images_of_another_shape_are_refused(tmp_path):
    run(tmp_path / "run.zarr", 8, tall)
    tall.factor = 2
    with pytest.raises(ValueError, match=r"holds image \(2, 1, 8, 8\) a unit; got \(2, 1, 16, 8\)"):
        run(tmp_path / "run.zarr", 16, tall)


def tall(z):
    return z.repeat(1, 1, tall.factor, 1)


tall.factor = 1


def test_a_trailing_slash_changes_nothing(tmp_path):
    run(f"{tmp_path}/run.zarr/", 8)
    before = contents(tmp_path / "run.zarr")
    run(tmp_path / "run.zarr", 8, failing)
    assert contents(tmp_path / "run.zarr") == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 4}, "seed is 3 there, 4 here"),
        ({"batch": 6}, "batch is 8 there, 6 here"),
        ({"function": lambda z: z}, "model is '.*cheap' there, '.*lambda.*' here"),
        ({"units": 4}, "8 units; .* not cut to 4"),
    ],
)
def test_another_configuration_is_refused_with_the_difference(tmp_path, change, message):
    run(tmp_path / "run.zarr", 8)
    before = contents(tmp_path / "run.zarr")
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "run.zarr", **{"units": 16, **change})
    assert contents(tmp_path / "run.zarr") == before


def test_another_design_is_refused(tmp_path):
    run(tmp_path / "run.zarr", 8)
    with pytest.raises(ValueError, match="design is {'name': 'antithetic'.* there, {'name': 'iid'"):
        antinb.sample(
            antinb.load(cheap, shape=SHAPE), noise.iid(8), seed=3, batch=8, store=tmp_path / "run.zarr", progress=False
        )


@pytest.mark.parametrize("occupied", ["file", "folder", "other zarr"])
def test_what_is_no_run_is_left_alone(tmp_path, occupied):
    store = tmp_path / "there"
    if occupied == "file":
        store.write_text("mine")
    elif occupied == "folder":
        store.mkdir()
        (store / "notes").write_text("mine")
    else:
        xr.Dataset({"a": ("x", [1.0])}).to_zarr(store, consolidated=False)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match="no run of antinb"):
        run(store, 8)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("whole", [0, 3])
def test_a_full_disk_ends_in_one_line_and_the_run_goes_on(tmp_path, monkeypatch, whole):
    """The k-th write of images fails as on a full disk; with room again the store is as if nothing had happened."""
    write, written = zarr.Array.__setitem__, []

    def full(array, selection, value):
        if array.basename == "image":
            if len(written) == whole:
                raise OSError(errno.ENOSPC, "No space left on device")
            written.append(selection)
        write(array, selection, value)

    with monkeypatch.context() as patch:
        patch.setattr(zarr.Array, "__setitem__", full)
        with pytest.raises(OSError, match="cannot be written: No space left on device; what is stored stays"):
            run(tmp_path / "run.zarr", 24)
    with pytest.raises(ValueError, match=f"{4 * whole} of 24 units are done"):
        dataset.open(tmp_path / "run.zarr")
    run(tmp_path / "run.zarr", 24)
    run(tmp_path / "fresh.zarr", 24)
    assert contents(tmp_path / "run.zarr") == contents(tmp_path / "fresh.zarr")


def limited(store, size, threads):
    """Run with a limit on the size of any file: writing past it fails like a full disk."""
    torch.set_num_threads(threads)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    try:
        run(store, 16)
    except OSError as error:
        raise SystemExit(0 if "cannot be written: File too large" in str(error) else 2) from None


@pytest.mark.parametrize("size", [100, 1800])
def test_a_real_failing_write_leaves_whole_chunks_only(tmp_path, size):
    """At 100 bytes not even the metadata fit, so there is no store; at 1800 the metadata do, a chunk does not."""
    process = multiprocessing.get_context("forkserver").Process(
        target=limited, args=(tmp_path / "run.zarr", size, torch.get_num_threads())
    )
    process.start()
    process.join()
    assert process.exitcode == 0
    assert (tmp_path / "run.zarr").exists() == (size == 1800)
    assert list(tmp_path.rglob("*.partial")) == []
    run(tmp_path / "run.zarr", 16)
    run(tmp_path / "fresh.zarr", 16)
    assert contents(tmp_path / "run.zarr") == contents(tmp_path / "fresh.zarr")


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"file/run\.zarr' cannot be written: Not a directory"):
        run(tmp_path / "file" / "run.zarr", 4)
