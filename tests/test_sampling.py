"""Runs: the same images in memory and on disk, whole shards, and nothing half-written."""

import hashlib
import json
import threading

import numpy as np
import pytest
import torch
import xarray as xr
from helpers import LINEAR, SHAPE, tiny_unet

import antinb
from antinb import dataset, noise, sampling
from antinb.dataset import store as stores
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
    xr.testing.assert_identical(memory, dataset.open(tmp_path / "run.zarr").compute())
    assert stored["image"].chunks is not None
    raw = xr.open_zarr(tmp_path / "run.zarr", consolidated=False, chunks=None)
    np.testing.assert_array_equal(raw["image"], memory["image"])
    assert (raw["done"] > 0).all()
    codecs = json.loads((tmp_path / "run.zarr" / "image" / "zarr.json").read_text())["codecs"]
    assert [codec["name"] for codec in codecs] == ["bytes", "crc32c"]


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
    fixed = {key: value for key, value in config.items() if key not in ("threads", "versions")}
    text = json.dumps(fixed, sort_keys=True)
    assert pairs.attrs["config_hash"] == hashlib.sha256(text.encode()).hexdigest()


def test_memory_is_bounded_by_a_chunk(mixture_generator, tmp_path, monkeypatch):
    """No call draws more than a shard, and a full chunk is on disk before the next shard is drawn."""
    asked = []
    original = noise.Design.draw

    def draw(self, shape, *, seed, units, stream=0):
        asked.append((len(units), len(list((tmp_path / "run.zarr" / "image").glob("c.*")))))
        return original(self, shape, seed=seed, units=units, stream=stream)

    monkeypatch.setattr(noise.Design, "draw", draw)
    monkeypatch.setattr(stores, "CHUNK", 8 * 2 * 64)
    settings = {"seed": 0, "batch": 8, "store": tmp_path / "run.zarr", "progress": False}
    antinb.sample(mixture_generator.with_(steps=1), noise.antithetic(20), **settings)
    assert asked == [(4, 0), (4, 0), (4, 1), (4, 1), (4, 2)]


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
    assert [path.name for path in tmp_path.iterdir()] == [".run.zarr.lock"]


def test_nan_later_keeps_the_whole_shards_and_says_so(tmp_path):
    design, marked = noise.antithetic(6), noise.antithetic(6).draw(SHAPE, seed=0, units=[3])[0, 0, 0, 0, 0]
    generator = antinb.load(lambda z: identity(z).masked_fill(identity(z) == float(marked), torch.nan), shape=SHAPE)
    with pytest.raises(ValueError, match="first in unit 3"):
        antinb.sample(generator, design, seed=0, batch=4, store=tmp_path / "run.zarr", progress=False)
    with pytest.raises(ValueError, match="2 of 6 units are done; run the same call again to go on"):
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
    xr.testing.assert_identical(memory, stored.compute())
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


class Scaled(torch.nn.Module):
    """A model with a setting that its record cannot know, as the scale of an adapter."""

    scale = 1.0

    def forward(self, z):
        return torch.tanh(z.reshape(len(z), 1, 8, 8) * self.scale)


@pytest.mark.parametrize("units", [8, 12])
def test_a_model_that_changed_since_is_refused_with_the_largest_difference(tmp_path, monkeypatch, units):
    """One stored unit is made again, whether there is something left to do or not."""
    generator = antinb.load(Scaled(), shape=SHAPE)
    settings = {"seed": 0, "batch": 8, "store": tmp_path / "run.zarr", "progress": False}
    images = antinb.sample(generator, noise.antithetic(8), **settings)["image"].values
    monkeypatch.setattr(Scaled, "scale", 0.5)
    z = noise.antithetic(8).draw(SHAPE, seed=0)
    largest = np.abs(np.tanh(z[0]) - np.tanh(z[0] / 2)).max()
    with pytest.raises(ValueError, match=rf"unit 0 made again differs by up to {largest:.2g}: .* adapters or settings"):
        antinb.sample(generator, noise.antithetic(units), **settings)
    np.testing.assert_array_equal(dataset.open(tmp_path / "run.zarr")["image"], images)


def test_a_network_whose_weights_changed_in_place_is_refused(tmp_path):
    network = tiny_unet()
    generator = diffusion.from_network(network, LINEAR).with_(steps=2)
    settings = {"seed": 0, "batch": 4, "store": tmp_path / "run.zarr", "progress": False}
    antinb.sample(generator, noise.antithetic(2), **settings)
    with torch.no_grad():
        network.conv_out.weight *= 1.5
    with pytest.raises(ValueError, match="unit 0 made again differs by up to"):
        antinb.sample(generator, noise.antithetic(4), **settings)


def test_going_on_under_autocast_is_refused(tmp_path):
    generator = diffusion.from_network(tiny_unet(), LINEAR).with_(steps=4)
    settings = {"seed": 0, "batch": 4, "store": tmp_path / "run.zarr", "progress": False}
    antinb.sample(generator, noise.antithetic(2), **settings)
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(ValueError, match="differs by up to .* autocast"):
        antinb.sample(generator, noise.antithetic(4), **settings)


CHANGING = {
    "numpy": lambda z: identity(z) + torch.from_numpy(np.random.default_rng().standard_normal(z.shape)).float(),
    "batch": lambda z: identity(z) - identity(z)[-1:],
    "position": lambda z: identity(z) * torch.arange(1, len(z) + 1).reshape(-1, 1, 1, 1) / len(z),
}


@pytest.mark.parametrize("batch", [2, 4, 8])
@pytest.mark.parametrize("name", CHANGING)
def test_a_function_of_more_than_its_noise_is_refused_at_its_first_unit(tmp_path, name, batch):
    settings = {"seed": 0, "batch": batch, "store": tmp_path / "run.zarr", "progress": False}
    with pytest.raises(ValueError, match="unit 0 made again differs by up to .* the rest of the batch"):
        antinb.sample(antinb.load(CHANGING[name], shape=SHAPE), noise.antithetic(6), **settings)
    assert not (tmp_path / "run.zarr").exists()


def test_the_price_of_the_proof_is_one_unit():
    calls = []

    def counted(z):
        calls.append(len(z))
        return identity(z)

    antinb.sample(antinb.load(counted, shape=SHAPE), noise.antithetic(6), seed=0, batch=4, progress=False)
    assert calls == [4, 2, 4, 4]


class Chaotic:
    """A generator whose rounding grows until the images of another batch are others."""

    shape, evaluations, amplifies = SHAPE, 1, True

    def generate(self, noise, *, draw=None, condition=None):
        return torch.tanh(noise) + 0.1 * len(noise)

    def describe(self):
        return {"model": "chaotic"}


def test_a_generator_that_amplifies_rounding_is_not_compared_with_another_batch(tmp_path):
    options = {"seed": 0, "batch": 64, "store": tmp_path / "run.zarr", "progress": False}
    for units in (10, 20, 24):
        run = antinb.sample(Chaotic(), noise.antithetic(units), **options)
    expected = np.tanh(noise.antithetic(24).draw(SHAPE, seed=0))
    lengths = np.repeat([20, 20, 8], [10, 10, 4])[:, None, None, None, None]
    np.testing.assert_allclose(run["image"], expected + 0.1 * lengths, atol=1e-5)
    calm = Chaotic()
    calm.amplifies = False
    with pytest.raises(ValueError, match="unit 0 made again differs by"):
        antinb.sample(calm, noise.antithetic(4), seed=0, batch=8, progress=False)
    with pytest.raises(ValueError, match="unit 0 made again differs by"):
        antinb.sample(calm, noise.antithetic(30), **options)


class Hungry:
    """A model that has memory for a number of images, and counts what it is given."""

    def __init__(self, most, kind=torch.OutOfMemoryError):
        self.most, self.kind, self.seen, self.shape, self.evaluations = most, kind, [], SHAPE, 1

    def generate(self, z, *, draw=None, condition=None):
        self.seen.append(len(z))
        if len(z) > self.most:
            raise self.kind("can't allocate memory")
        return z

    def describe(self):
        return {"model": "hungry", "evaluations": 1, "clip_image": False}


@pytest.mark.parametrize(
    ("most", "units", "found"), [(5, 40, 4), (8, 40, 8), (1, 40, 1), (1000, 40, 64), (1000, 3, 4), (7, 3, 4)]
)
@pytest.mark.parametrize("kind", [torch.OutOfMemoryError, MemoryError, RuntimeError])
def test_the_batch_is_found_by_trying(most, units, found, kind, monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    model = Hungry(most, kind)
    run = antinb.sample(model, noise.antithetic(units), seed=0, batch="auto", progress=False)
    assert dataset.config(run)["batch"] == found
    np.testing.assert_array_equal(run["image"], noise.antithetic(units).draw(SHAPE, seed=0))


def test_a_stored_run_keeps_the_batch_that_was_found(tmp_path):
    given = {"seed": 0, "batch": "auto", "store": tmp_path / "run.zarr", "progress": False}
    first = antinb.sample(Hungry(4), noise.antithetic(5), **given)
    more = Hungry(1000)
    again = antinb.sample(more, noise.antithetic(9), **given)
    assert dataset.config(first)["batch"] == dataset.config(again)["batch"] == 4
    assert max(more.seen) == 4
    with pytest.raises(ValueError, match="no memory for a batch of 1"):
        antinb.sample(Hungry(0), noise.iid(5), seed=0, batch="auto", progress=False)
    with pytest.raises(ValueError, match="batch must be an integer of at least 1; got 'all'"):
        antinb.sample(more, noise.iid(5), seed=0, batch="all", progress=False)

    def broken(z):
        raise RuntimeError("another reason")

    with pytest.raises(RuntimeError, match="another reason"):
        antinb.sample(antinb.load(broken, shape=SHAPE), noise.iid(5), seed=0, batch="auto", progress=False)


def test_conditions_in_turn_are_stratified(tmp_path, plain):
    """Unit k has class k modulo their number, the null class is none of them, and an extension continues."""
    generator = diffusion.from_network(tiny_unet(num_class_embeds=4), LINEAR).with_(steps=1)
    assert generator.conditions == 3
    given = {"seed": 0, "condition": "in turn", "store": tmp_path / "run.zarr", "progress": False, "batch": 4}
    assert antinb.sample(generator, noise.antithetic(4), **given)["condition"].values.tolist() == [0, 1, 2, 0]
    run = antinb.sample(generator, noise.antithetic(8), **given)
    assert run["condition"].values.tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
    by_hand = antinb.sample(generator, noise.antithetic(8), seed=0, condition=[0, 1, 2, 0, 1, 2, 0, 1], progress=False)
    np.testing.assert_allclose(run["image"], by_hand["image"], atol=1e-5)
    for model in (plain, diffusion.from_network(tiny_unet(), LINEAR)):
        with pytest.raises(ValueError, match="conditions in turn need a model with classes or prompts"):
            antinb.sample(model, noise.iid(3), seed=0, condition="in turn", progress=False)
    with pytest.raises(ValueError, match="or 'in turn'; got 'in tune'"):
        antinb.sample(generator, noise.iid(3), seed=0, condition="in tune", progress=False)


def test_beside_an_accelerator_shards_are_written_behind_the_network(mixture_generator, tmp_path, monkeypatch):
    """In order, with the same bytes, and an error of the disk is raised in the run."""
    design, writers = noise.antithetic(9), set()
    plainly = antinb.sample(
        mixture_generator, design, seed=1, batch=4, store=tmp_path / "one.zarr", progress=False
    ).compute()
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    write = stores.Store.write

    def noted(self, units, values):
        writers.add(threading.current_thread())
        write(self, units, values)

    monkeypatch.setattr(stores.Store, "write", noted)
    run = antinb.sample(mixture_generator, design, seed=1, batch=4, store=tmp_path / "two.zarr", progress=False)
    xr.testing.assert_identical(run.compute(), plainly)
    assert writers
    assert threading.main_thread() not in writers

    def full(self, units, values):
        raise OSError("no space left")

    monkeypatch.setattr(stores.Store, "write", full)
    with pytest.raises(OSError, match="no space left"):
        antinb.sample(mixture_generator, design, seed=1, batch=4, store=tmp_path / "three.zarr", progress=False)


def test_the_bar_names_the_model_and_moves_with_each_step(mixture_generator, tmp_path, monkeypatch, capsys):
    places, real = [], sampling._Bar.update
    monkeypatch.setattr(sampling._Bar, "update", lambda bar, n=1: (real(bar, n), places.append(bar.n)))
    steps, store = mixture_generator.steps, tmp_path / "run.zarr"
    antinb.sample(mixture_generator, noise.antithetic(2), seed=0, batch=4, store=store)
    assert places[:steps] == [4 * step for step in range(1, steps + 1)]
    places.clear()
    antinb.sample(mixture_generator, noise.antithetic(6), seed=0, batch=4, store=store)
    assert places[0] > 4 * steps
    assert places[-1] == 12 * steps
    assert max(places) == 12 * steps
    assert "\n" not in (told := capsys.readouterr().err.split("\r")[-1]).strip()
    assert told.startswith(f"12 images of {mixture_generator.describe().get('model', 'Diffusion')}: 100%")
