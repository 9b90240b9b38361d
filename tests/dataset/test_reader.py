"""Stored runs that lost a file, a byte or a bit, that were copied, or that somebody edited: named, and mended."""

import hashlib
import json
import os
import shutil

import numpy as np
import pytest
import xarray as xr
import zarr
from helpers import LINEAR, tiny_unet
from runs import chunk_files, contents, run

import antinb
from antinb import dataset, noise
from antinb.dataset import store as stores
from antinb.models import diffusion

ONE_LINE = r"\A[^\n]{1,400}\Z"


@pytest.fixture
def store(tmp_path):
    run(tmp_path / "run.zarr", 16)
    return tmp_path / "run.zarr"


def conditional(store, units=8):
    generator = diffusion.from_network(tiny_unet(num_class_embeds=3), LINEAR).with_(steps=1)
    classes = (np.arange(units) % 3).tolist()
    return antinb.sample(
        generator, noise.antithetic(units), seed=0, batch=4, condition=classes, store=store, progress=False
    )


def lose(path):
    path.unlink()


def cut(path):
    path.write_bytes(path.read_bytes()[:-7])


def empty(path):
    path.write_bytes(b"")


def flip(path, bit=77):
    held = bytearray(path.read_bytes())
    held[bit // 8] ^= 1 << bit % 8
    path.write_bytes(bytes(held))


@pytest.mark.slow
@pytest.mark.parametrize("harm", [lose, cut, empty])
def test_a_chunk_that_is_lost_cut_or_empty_is_named_and_made_again(tmp_path, harm):
    """Of every array, `condition`, `sign`, `unit` and `done` included."""
    store = tmp_path / "run.zarr"
    first = conditional(store).load()
    before = contents(store)
    for file in chunk_files(store):
        harm(file)
        with pytest.raises(ValueError, match=rf"units are done; {file.parent.name}.*run the same call again") as error:
            dataset.open(store)
        assert "\n" not in str(error.value)
        assert any(line.startswith(file.parent.name) for line in dataset.damage(store))
        with pytest.warns(UserWarning, match="is mended, [0-9]+ units are made again"):
            again = conditional(store)
        xr.testing.assert_identical(again.load(), first)
        assert contents(store) == before
    assert dataset.damage(store) == []


@pytest.mark.slow
def test_two_hundred_flipped_bits_are_noticed(store):
    """Wherever the bit is in the chunks, room for later units included; reading the images never gives a wrong one."""
    rng, files = np.random.default_rng(0), chunk_files(store)
    images, before = dataset.open(store)["image"].values, contents(store)
    for _ in range(200):
        file = files[rng.integers(len(files))]
        whole = file.read_bytes()
        flip(file, int(rng.integers(8 * len(whole))))
        assert any(line.startswith(file.parent.name) for line in dataset.damage(store))
        try:
            read = dataset.open(store)["image"].values
        except ValueError as error:
            assert "\n" not in str(error)
        else:
            assert np.array_equal(read, images)
        file.write_bytes(whole)
    assert contents(store) == before


@pytest.mark.parametrize("name", ["image", "done", "unit", "sign"])
def test_a_flipped_bit_is_mended(store, name):
    before = contents(store)
    flip(chunk_files(store / name)[-1])
    with pytest.warns(UserWarning, match=f"{name} of units .* are rotten"):
        run(store, 16)
    assert contents(store) == before


def test_a_rotten_chunk_of_several_shards_is_made_again_shard_by_shard(tmp_path, monkeypatch):
    monkeypatch.setattr(stores, "CHUNK", 2**12)
    monkeypatch.setattr(stores, "PATIENCE", 0)
    run(tmp_path / "run.zarr", 40)
    before = contents(tmp_path / "run.zarr")
    for file in chunk_files(tmp_path / "run.zarr" / "image"):
        flip(file)
    with pytest.warns(UserWarning, match="40 units are made again"):
        run(tmp_path / "run.zarr", 40)
    assert contents(tmp_path / "run.zarr") == before


def test_a_rotten_chunk_is_named_when_it_is_read(store):
    flip(store / "image" / "c.1.0.0.0.0")
    opened = dataset.open(store)
    assert np.isfinite(opened["image"][:4]).all()
    with pytest.raises(ValueError, match="image of units 4 to 7 are rotten: .*; run the same call again to mend it"):
        opened["image"].load()


def test_another_whole_chunk_in_its_place_is_noticed(store):
    shutil.copy(store / "image" / "c.2.0.0.0.0", store / "image" / "c.1.0.0.0.0")
    assert dataset.damage(store) == ["image of units 4 to 7 are rotten: the checksum of unit 4 does not fit"]
    with pytest.raises(ValueError, match="the checksum of unit 4 does not fit; run"):
        dataset.open(store)["image"][6, 1].load()


def edit(store, name, change):
    path = store / name / "zarr.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


HOSTILE = {
    "range": lambda store: edit(store, "image", lambda d: d["attributes"].update(range="[0, junk]")),
    "seed": lambda store: edit(store, "", lambda d: d["attributes"].update(seed="7")),
    "endian": lambda store: edit(store, "image", lambda d: d["codecs"][0]["configuration"].update(endian="big")),
    "scale": lambda store: edit(store, "image", lambda d: d["attributes"].update(scale_factor=0.002, add_offset=1.0)),
    "time": lambda store: edit(store, "unit", lambda d: d["attributes"].update(units="days since 2000-01-01")),
    "many images": lambda store: edit(store, "image", lambda d: d["shape"].__setitem__(0, 10**12)),
    "many numbers": lambda store: edit(store, "unit", lambda d: d.update(shape=[10**12])),
    "many units": lambda store: [
        edit(store, name, lambda d: d["shape"].__setitem__(0, 10**12)) for name in ("unit", "done", "image")
    ],
    "disagreeing": lambda store: edit(store, "image", lambda d: d["shape"].__setitem__(0, 3)),
    "no dimension": lambda store: edit(store, "image", lambda d: d.update(shape=[], dimension_names=[])),
    "no names": lambda store: edit(store, "image", lambda d: d.pop("dimension_names")),
    "no sign": lambda store: shutil.rmtree(store / "sign"),
    "no image": lambda store: shutil.rmtree(store / "image"),
    "group": lambda store: (store / "image" / "zarr.json").write_text('{"zarr_format": 3, "node_type": "group"}'),
    "nested": lambda store: (store / "zarr.json").write_text("[" * 5000 + "]" * 5000),
    "not JSON": lambda store: (store / "image" / "zarr.json").write_bytes(b"\xff\x00"),
    "long": lambda store: (store / "zarr.json").write_bytes(b" " * 5_000_000),
    "list": lambda store: (store / "zarr.json").write_text("[1]"),
    "linked chunk": lambda store: link(store, "image/c.1.0.0.0.0"),
    "linked array": lambda store: link(store, "image"),
    "linked metadata": lambda store: link(store, "zarr.json"),
    "pipe": lambda store: pipe(store / "image" / "c.1.0.0.0.0"),
    "pipe of metadata": lambda store: pipe(store / "zarr.json"),
}


def link(store, name):
    (store / name).rename(store.parent / "elsewhere")
    (store / name).symlink_to(store.parent / "elsewhere")


def pipe(path):
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize("name", HOSTILE)
def test_what_was_edited_is_refused_in_one_line_and_left_alone(store, name):
    HOSTILE[name](store)
    before = sorted(path for path in store.parent.rglob("*"))
    for call in (lambda: dataset.open(store), lambda: run(store, 24), lambda: dataset.damage(store)):
        with pytest.raises(ValueError, match=ONE_LINE) as error:
            call()
        assert "no run of antinb" in str(error.value) or "config_hash" in str(error.value)
    assert sorted(path for path in store.parent.rglob("*")) == before


@pytest.mark.parametrize("name", ["unit", "image"])
def test_more_room_than_units_is_what_an_interrupted_extension_leaves(store, name):
    edit(store, name, lambda document: document["shape"].__setitem__(0, 999))
    assert dataset.open(store).sizes["unit"] == 16
    assert run(store, 24)["image"].shape[0] == 24
    assert contents(store) == contents((run(store.parent / "fresh.zarr", 24), store.parent / "fresh.zarr")[1])


def test_an_array_of_the_users_own_is_ignored(store):
    zarr.open_group(store)["mine"] = np.arange(3)
    (store / "notes.txt").write_text("mine")
    assert run(store, 20).sizes["unit"] == 20
    assert dataset.damage(store) == []
    assert (store / "notes.txt").read_text() == "mine"


def test_a_run_in_memory_saved_and_a_part_of_a_stored_one_open(tmp_path):
    memory = conditional(None)
    memory.to_zarr(tmp_path / "memory.zarr", consolidated=False)
    xr.testing.assert_identical(antinb.open(tmp_path / "memory.zarr").load(), memory)
    stored = conditional(tmp_path / "run.zarr")
    stored.isel(unit=slice(5)).to_zarr(tmp_path / "part.zarr", consolidated=False)
    part = antinb.open(tmp_path / "part.zarr")
    xr.testing.assert_identical(part.load(), memory.isel(unit=slice(5)))
    part.to_zarr(tmp_path / "again.zarr", zarr_format=2, consolidated=False)
    xr.testing.assert_identical(antinb.open(tmp_path / "again.zarr").load(), part)
    assert dataset.damage(tmp_path / "again.zarr") == []
    with pytest.raises(ValueError, match="is a copy or of antinb 0.1: it can be opened, not gone on with"):
        conditional(tmp_path / "part.zarr")


@pytest.mark.parametrize("version", [2, 3])
def test_a_copy_that_lost_a_chunk_or_a_byte_is_named(tmp_path, version):
    run(None, 16).chunk(unit=4).to_zarr(tmp_path / "copy.zarr", zarr_format=version, consolidated=False)
    chunks = sorted(path for path in (tmp_path / "copy.zarr" / "image").rglob("*") if path.stat().st_size > 400)
    chunks = [path for path in chunks if path.is_file() and not path.name.startswith((".z", "zarr"))]
    whole = chunks[1].read_bytes()
    chunks[1].write_bytes(whole[:50])
    with pytest.raises(ValueError, match=ONE_LINE):
        antinb.open(tmp_path / "copy.zarr").load()
    assert dataset.damage(tmp_path / "copy.zarr")
    chunks[1].unlink()
    with pytest.raises(ValueError, match="no run of antinb: the chunk image/.* is missing"):
        antinb.open(tmp_path / "copy.zarr")


def test_a_store_of_antinb_0_1_opens(tmp_path):
    """It was compressed, its `done` was boolean and its hash covered versions and threads."""
    memory = run(None, 12)
    config = dataset.config(memory)
    text = json.dumps(config, sort_keys=True)
    old = memory.assign_attrs(config_hash=hashlib.sha256(text.encode()).hexdigest()).chunk(unit=4)
    old = old.assign(done=("unit", np.ones(12, bool)))
    old.to_zarr(tmp_path / "old.zarr", consolidated=False)
    xr.testing.assert_identical(antinb.open(tmp_path / "old.zarr").load(), old.drop_vars("done").load())
    zarr.open_group(tmp_path / "old.zarr")["done"][8:] = False
    with pytest.raises(ValueError, match="8 of 12 units are done"):
        antinb.open(tmp_path / "old.zarr")


def test_versions_and_threads_are_told_once_and_recorded(store, monkeypatch):
    before = contents(store)
    monkeypatch.setattr(dataset, "versions", lambda *packages: {"numpy": "99"})
    assert "history" not in run(store, 16).attrs
    assert contents(store) == before
    with pytest.warns(UserWarning, match="agree up to rounding only: .*'numpy': '99'") as told:
        longer = run(store, 20)
    assert len(told) == 1
    assert [entry["from"] for entry in dataset.config(longer)["history"]] == [16]
    assert run(store, 24).attrs["config_hash"] == run(None, 8).attrs["config_hash"]


def test_a_missing_store_is_named(tmp_path):
    for call in (dataset.open, dataset.damage):
        with pytest.raises(FileNotFoundError, match=r"no run is stored at '.*none\.zarr'"):
            call(tmp_path / "none.zarr")
