"""Runs that are killed, extended, moved or starved of disk: nothing is lost, nothing half-written."""

import errno
import functools
import re
import resource
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
import zarr
from helpers import LINEAR, tiny_unet
from runs import CALLS, cheap, child, chunk_files, contents, run

import antinb
from antinb import dataset, noise
from antinb.dataset import store as stores
from antinb.models import diffusion


@pytest.mark.slow
def test_a_hundred_kills_change_no_byte(tmp_path, processes):
    """A run killed by SIGKILL at 100 random moments, in creating, writing, extending and resuming, is as never killed.

    Each kill comes at a random moment after the process has taken the lock, within most of the time that running a
    finished run again takes on this machine; half-way the run is extended.
    """
    rng, store, whole = np.random.default_rng(0), tmp_path / "killed.zarr", tmp_path / "whole.zarr"
    states, killed = set(), 0

    def locked(path, units):
        """Start a run and wait until it has taken the lock."""
        lock = path.with_name(f".{path.name}.lock")
        lock.write_text("")
        process = processes.Process(target=child, args=(path, units))
        process.start()
        while process.is_alive() and not lock.read_text():
            time.sleep(0.0005)
        return process

    for _ in range(2):
        process, start = locked(whole, 1000), time.monotonic()
        process.join()
        seconds = time.monotonic() - start
        assert process.exitcode == 0
    for number in range(100):
        process = locked(store, 600 if number < 50 else 1000)
        time.sleep(rng.uniform(0, 0.8 * seconds))
        process.kill()
        process.join()
        killed += process.exitcode == -signal.SIGKILL
        states.add(len(contents(store)) if store.exists() else 0)
    assert killed > 90
    assert len(states) > 15
    process = locked(store, 1000)
    process.join()
    assert process.exitcode == 0
    assert contents(store) == contents(whole)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".killed.zarr.lock",
        ".whole.zarr.lock",
        "killed.zarr",
        "whole.zarr",
    ]


def test_what_is_done_is_not_done_again(tmp_path):
    """One unit is made again, to see that the model is the same."""
    first = run(tmp_path / "run.zarr", 12).load()
    CALLS.clear()
    xr.testing.assert_identical(run(tmp_path / "run.zarr", 12).load(), first)
    assert CALLS == [2]


def test_chunks_hold_many_small_units(tmp_path, monkeypatch):
    """A chunk is filled before it is written, with whole shards; however often that is, the bytes are the same."""
    monkeypatch.setattr(stores, "CHUNK", 2**12)
    first = run(tmp_path / "run.zarr", 100).load()
    assert first["image"].encoding == {}
    assert [path.name for path in chunk_files(tmp_path / "run.zarr" / "image")] == [
        f"c.{place}.0.0.0.0" for place in range(4)
    ]
    monkeypatch.setattr(stores, "PATIENCE", 0)
    xr.testing.assert_identical(run(tmp_path / "patient.zarr", 100).load(), first)
    assert contents(tmp_path / "patient.zarr") == contents(tmp_path / "run.zarr")


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
    (tmp_path / "run.zarr" / "image" / "stray.partial").write_bytes(b"half a chunk")
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


@pytest.mark.parametrize("name", ["condition", "unit", "image"])
def test_a_kill_within_the_extension_of_a_conditional_run_is_mended(tmp_path, name):
    generator = diffusion.from_network(tiny_unet(num_class_embeds=3), LINEAR).with_(steps=1)
    settings = {"seed": 0, "batch": 4, "progress": False, "store": tmp_path / "run.zarr", "condition": 2}
    antinb.sample(generator, noise.antithetic(4), **settings)
    array = zarr.open_group(tmp_path / "run.zarr")[name]
    array.resize((6, *array.shape[1:]))
    for units in (4, 6):
        run = antinb.sample(generator, noise.antithetic(units), **settings)
        assert run["condition"].values.tolist() == [2] * units


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


@pytest.mark.parametrize(("units", "message"), [(8, "has images"), (16, "has images")])
def test_images_of_another_shape_are_refused(tmp_path, monkeypatch, units, message):
    monkeypatch.setattr(tall, "factor", 1)
    run(tmp_path / "run.zarr", 8, tall)
    monkeypatch.setattr(tall, "factor", 2)
    with pytest.raises(ValueError, match=rf"unit 0 {message} \(2, 1, 8, 8\); made again, \(2, 1, 16, 8\)"):
        run(tmp_path / "run.zarr", units, tall)


def tall(z):
    return z.repeat(1, 1, tall.factor, 1)


tall.factor = 1


def test_a_path_has_many_names(tmp_path, monkeypatch):
    run(f"{tmp_path}/run.zarr/", 8)
    before = contents(tmp_path / "run.zarr")
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "link").symlink_to(tmp_path / "run.zarr")
    monkeypatch.chdir(tmp_path)
    for name in (tmp_path / "run.zarr", "~/run.zarr", tmp_path / "link"):
        run(name, 8)
        assert antinb.open(name).sizes["unit"] == 8
    assert not (tmp_path / "~").exists()
    assert contents(tmp_path / "run.zarr") == before


@pytest.mark.parametrize("store", ["memory://run", "hf://datasets/run", Path("s3://bucket/run"), "", 7])
def test_a_store_is_a_folder_or_a_known_address(tmp_path, monkeypatch, store):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="store"):
        run(store, 4)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 4}, "seed is 3 there, 4 here"),
        ({"batch": 6}, "batch is 8 there, 6 here"),
        ({"function": lambda z: z}, "model is 'runs.cheap' there, '.*test_store.lambda' here"),
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
            antinb.load(cheap, shape=(1, 8, 8)),
            noise.iid(8),
            seed=3,
            batch=8,
            store=tmp_path / "run.zarr",
            progress=False,
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


@pytest.mark.slow
def test_a_disk_full_at_each_write_ends_in_one_line_and_the_run_goes_on(tmp_path, monkeypatch):
    """The k-th write of a file fails as on a full disk, for every k; with room again all is as if nothing had been."""
    put, left = zarr.storage._local._put, 0

    def full(*args, **options):
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return put(*args, **options)

    run(tmp_path / "fresh.zarr", 8)
    run(tmp_path / "fresh.zarr", 24)
    failed = 0
    for write in range(200):
        store = tmp_path / f"{write}.zarr"
        with monkeypatch.context() as patch:
            patch.setattr(zarr.storage._local, "_put", full)
            left = write
            try:
                run(store, 8)
                run(store, 24)
            except OSError as error:
                assert "cannot be written: No space left on device; what is stored stays" in str(error)
                failed += 1
            else:
                break
        if store.exists():
            try:
                assert dataset.open(store).sizes["unit"] == 8
            except ValueError as error:
                assert re.search("units are done; .*run the same call again", str(error))
        run(store, 24)
        assert contents(store) == contents(tmp_path / "fresh.zarr")
    assert failed > 30


def limited(store, size, threads):
    """Run with a limit on the size of any file: writing past it fails like a full disk."""
    torch.set_num_threads(threads)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    try:
        run(store, 16)
    except OSError as error:
        raise SystemExit(0 if "cannot be written: File too large" in str(error) else 2) from None


@pytest.mark.slow
@pytest.mark.parametrize("size", [100, 40_000])
def test_a_real_failing_write_leaves_whole_chunks_only(tmp_path, processes, monkeypatch, size):
    """At 100 bytes not even the metadata fit, so there is no store; at 40,000 they do, a chunk of images does not."""
    monkeypatch.setattr(stores, "CHUNK", 2**17)
    process = processes.Process(target=limited, args=(tmp_path / "run.zarr", size, torch.get_num_threads()))
    process.start()
    process.join()
    assert process.exitcode == 0
    assert (tmp_path / "run.zarr").exists() == (size == 40_000)
    assert [path.name for path in tmp_path.iterdir() if path.name != "run.zarr"] == [".run.zarr.lock"]
    run(tmp_path / "run.zarr", 16)
    run(tmp_path / "fresh.zarr", 16)
    assert contents(tmp_path / "run.zarr") == contents(tmp_path / "fresh.zarr")


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"file/run\.zarr' cannot be written: File exists"):
        run(tmp_path / "file" / "run.zarr", 4)
