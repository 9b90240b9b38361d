"""Runs: the same images in memory and on disk, whole shards, and nothing half-written."""

import hashlib
import json

import numpy as np
import pytest
import torch
import xarray as xr
from helpers import LINEAR, SHAPE, tiny_unet

import antinb
from antinb import dataset, noise
from antinb.models import diffusion


def identity(z):
    return z.reshape(len(z), 1, 8, 8)


@pytest.fixture
def plain():
    return antinb.load(identity, shape=SHAPE)


@pytest.mark.parametrize("design", [noise.iid(10), noise.antithetic(10), noise.simplex(10, 3)])
@pytest.mark.parametrize("batch", [1, 7, 100])
def test_every_image_has_its_own_noise(plain, design, batch, tmp_path):
    expected = design.draw(SHAPE, seed=3)
    run = antinb.sample(plain, design, seed=3, batch=batch, store=tmp_path / "run.zarr", progress=False)
    np.testing.assert_array_equal(run["image"], expected)
    np.testing.assert_array_equal(antinb.sample(plain, design, seed=3, batch=batch, progress=False)["image"], expected)


def test_store_and_memory_agree(mixture_generator, tmp_path):
    design = noise.antithetic(9)
    memory = antinb.sample(mixture_generator, design, seed=1, batch=8, progress=False)
    stored = antinb.sample(mixture_generator, design, seed=1, batch=8, store=tmp_path / "run.zarr", progress=False)
    xr.testing.assert_identical(memory, dataset.open(tmp_path / "run.zarr").drop_vars("done").compute())
    assert stored["image"].chunks[0] == (4, 4, 1)
    assert stored["done"].all()
    metadata = json.loads((tmp_path / "run.zarr" / "zarr.json").read_text())
    assert metadata["zarr_format"] == 3


def test_the_schema(pairs, mixture_generator):
    assert pairs["image"].dims == ("unit", "member", "channel", "y", "x")
    assert pairs["image"].dtype == np.float32
    assert pairs["sign"].values.tolist() == [1, -1]
    config = dataset.config(pairs)
    assert config["design"] == {"name": "antithetic", "members": 2}
    assert config["seed"] == 0
    assert config["evaluations"] == mixture_generator.evaluations == config["steps"]
    assert config["threads"] == torch.get_num_threads()
    assert {"scheduler", "clip_sample", "clip_image", "batch", "versions"} <= set(config)
    text = json.dumps(config, sort_keys=True)
    assert pairs.attrs["config_hash"] == hashlib.sha256(text.encode()).hexdigest()


def test_memory_is_bounded_by_a_shard(plain, tmp_path, monkeypatch):
    """No call draws or generates more than a shard, and each shard is on disk before the next is drawn."""
    asked = []
    original = noise.Design.draw

    def draw(self, shape, *, seed, units, stream=0):
        written = list((tmp_path / "run.zarr" / "image").glob("c/*")) if units.start else []
        asked.append((len(units), len(written)))
        return original(self, shape, seed=seed, units=units, stream=stream)

    monkeypatch.setattr(noise.Design, "draw", draw)
    antinb.sample(plain, noise.antithetic(12), seed=0, batch=8, store=tmp_path / "run.zarr", progress=False)
    assert asked == [(4, 0), (4, 1), (4, 2)]


def test_members_share_the_condition_of_their_unit():
    generator = diffusion.from_network(tiny_unet(num_class_embeds=3), LINEAR).with_(steps=2)
    classes = [0, 1, 2, 0]
    run = antinb.sample(generator, noise.antithetic(4), seed=0, condition=classes, batch=4, progress=False)
    assert run["condition"].values.tolist() == classes
    z = torch.from_numpy(noise.antithetic(4).draw(SHAPE, seed=0, units=[2])[0])
    alone = generator.generate(z, condition=torch.tensor([2, 2]))
    np.testing.assert_allclose(run["image"][2], alone, atol=1e-5)
    fixed = antinb.sample(generator, noise.antithetic(4), seed=0, condition=2, batch=4, progress=False)
    np.testing.assert_array_equal(fixed["image"][2], run["image"][2])


def test_nan_from_the_first_shard_leaves_nothing(tmp_path):
    generator = antinb.load(lambda z: identity(z) / 0 * 0, shape=SHAPE)
    with pytest.raises(ValueError, match="NaN or infinity in 2 of 2 units, first in unit 0"):
        antinb.sample(generator, noise.antithetic(5), seed=0, batch=4, store=tmp_path / "run.zarr", progress=False)
    assert not list(tmp_path.iterdir())


def test_nan_later_keeps_the_whole_shards_and_says_so(tmp_path):
    design, marked = noise.antithetic(6), noise.antithetic(6).draw(SHAPE, seed=0, units=[3])[0, 0, 0, 0, 0]
    generator = antinb.load(lambda z: identity(z).masked_fill(identity(z) == float(marked), torch.nan), shape=SHAPE)
    with pytest.raises(ValueError, match="first in unit 3"):
        antinb.sample(generator, design, seed=0, batch=4, store=tmp_path / "run.zarr", progress=False)
    with pytest.raises(ValueError, match="2 of 6 units are done"):
        dataset.open(tmp_path / "run.zarr")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"batch": 0}, ValueError, "got 0"),
        ({"batch": 2.0}, ValueError, "got 2.0"),
        ({"seed": -1}, ValueError, "got -1"),
        ({"condition": [0, 1]}, ValueError, r"got \[0, 1\]"),
        ({"condition": -1}, ValueError, "got -1"),
        ({"store": "."}, ValueError, "exists and is no run"),
    ],
)
def test_bad_input_is_refused_with_the_value(plain, options, error, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = {"seed": 0, "progress": False, "store": "run.zarr", **options}
    with pytest.raises(error, match=message):
        antinb.sample(plain, noise.antithetic(5), **arguments)
    assert not list(tmp_path.iterdir())


def test_what_is_no_run_is_refused(pairs, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.zarr"):
        dataset.open(tmp_path / "none.zarr")
    with pytest.raises(ValueError, match="float64"):
        dataset.check(pairs.astype(np.float64))
    with pytest.raises(ValueError, match="by"):
        dataset.check(pairs.transpose("member", "unit", ...))
    with pytest.raises(ValueError, match="config_hash"):
        dataset.check(pairs.assign_attrs(seed="7"))


def test_trajectories_are_stored_like_images(mixture_generator, tmp_path):
    design = noise.antithetic(5)
    arguments = {"seed": 1, "batch": 4, "progress": False, "trajectory": True}
    memory = antinb.sample(mixture_generator.with_(steps=3, eta=1.0), design, **arguments)
    stored = antinb.sample(mixture_generator.with_(steps=3, eta=1.0), design, store=tmp_path / "run.zarr", **arguments)
    xr.testing.assert_identical(memory, stored.drop_vars("done").compute())
    assert memory["state"].dims == ("unit", "member", "step", "channel", "y", "x")
    np.testing.assert_array_equal(memory["state"].isel(step=0), design.draw(SHAPE, seed=1))
    assert memory["timestep"].values.tolist() == [666, 333, 0]
    plain = antinb.sample(mixture_generator.with_(steps=3, eta=1.0), design, **{**arguments, "trajectory": False})
    np.testing.assert_array_equal(plain["image"], memory["image"])


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_step_noise_belongs_to_the_unit_whatever_the_batch(mixture_generator, batch):
    generator = mixture_generator.with_(steps=4, scheduler="ddpm")
    whole = antinb.sample(generator, noise.simplex(4, 3), seed=1, batch=64, progress=False)
    cut = antinb.sample(generator, noise.simplex(4, 3), seed=1, batch=batch, progress=False)
    np.testing.assert_allclose(cut["image"], whole["image"], atol=1e-4)
