"""A training that is stopped and started again goes on to the bit."""

import contextlib
import importlib
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import antinb

pytestmark = pytest.mark.slow
RECIPES = Path(__file__).parents[1] / "data" / "recipes"


class Stopped(Exception):
    """Stands for whatever ends a training early."""


@pytest.fixture
def recipes(monkeypatch):
    """Import recipes by name, with a checkpoint every two steps of two images, in float32: bfloat16 is slow on CPUs."""
    monkeypatch.syspath_prepend(RECIPES)
    monkeypatch.setattr("training.BATCH", 2)
    monkeypatch.setattr("training.EVERY", 2)
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    yield importlib.import_module
    for path in RECIPES.glob("*.py"):
        sys.modules.pop(path.stem, None)


def write(path, *size):
    random = np.random.default_rng(0)
    arrays = {}
    for split in ("train", "test"):
        arrays[f"{split}_images"] = random.integers(0, 256, (16, *size), np.uint8)
        arrays[f"{split}_labels"] = random.integers(0, 10, 16)
    np.savez(path, **arrays)
    return path


@pytest.fixture
def data(tmp_path):
    """Write a small data set of noise in the form of MNIST."""
    return write(tmp_path / "data.npz", 28, 28)


@pytest.fixture
def colours(tmp_path):
    """Write a small data set of noise in the form of CIFAR-10."""
    return write(tmp_path / "colours.npz", 32, 32, 3)


@pytest.fixture
def pictures(tmp_path):
    """Write pictures of noise without labels, in the form of the emoji."""
    pixels = np.random.default_rng(0).integers(0, 256, (260, 64, 64, 3), np.uint8)
    np.savez(tmp_path / "pictures.npz", images=pixels)
    return tmp_path / "pictures.npz"


def stop_at(step, monkeypatch, training):
    rate = training.Training.rate

    def stopping(self, steps):
        if self.done == step:
            raise Stopped
        return rate(self, steps)

    monkeypatch.setattr(training.Training, "rate", stopping)


def train_both(recipe, monkeypatch, folder, stop, steps, **options):
    """Train once without a stop and once with one; return the two folders."""
    options |= {"total": 2 * steps, "device": "cpu"}
    recipe.train.callback(work=folder / "whole", **options)
    with monkeypatch.context() as patch:
        stop_at(stop, patch, recipe.training)
        with pytest.raises(Stopped):
            recipe.train.callback(work=folder / "halves", **options)
    recipe.train.callback(work=folder / "halves", **options)
    return folder / "whole", folder / "halves"


def assert_equal(whole, halves):
    one, other = (load_file(work / "checkpoint.safetensors") for work in (whole, halves))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert (whole / "curve.csv").read_text() == (halves / "curve.csv").read_text()


@pytest.mark.parametrize("name", ["fashion_ddpm", "fashion_rf", "fashion_dit", "fashion_flow", "mnist_vae"])
def test_a_resumed_training_equals_one_never_stopped(name, recipes, data, tmp_path, monkeypatch):
    assert_equal(*train_both(recipes(name), monkeypatch, tmp_path, stop=3, steps=5, data=data))


def test_both_trainings_of_latent_diffusion_resume(recipes, data, tmp_path, monkeypatch):
    whole, halves = train_both(recipes("fashion_ldm"), monkeypatch, tmp_path, stop=3, steps=4, data=data)
    assert_equal(whole / "autoencoder", halves / "autoencoder")
    assert_equal(whole, halves)
    model = antinb.load(whole / "pipeline", steps=2)
    latents = recipes("fashion_ldm").latents(model.autoencoder, torch.rand(4, 1, 28, 28) * 2 - 1)
    assert (model.shape, latents.shape[1:]) == ((4, 7, 7), (4, 7, 7))
    assert not model.sampler.describe()["clip_sample"]


def test_a_training_in_colour_resumes(recipes, colours, tmp_path, monkeypatch):
    recipe = recipes("cifar10_ddpm")
    monkeypatch.setattr(recipe, "BATCH", 2)
    whole, halves = train_both(recipe, monkeypatch, tmp_path, stop=3, steps=4, data=colours)
    assert_equal(whole, halves)
    model = antinb.load(whole / "pipeline", steps=2)
    assert (model.shape, model.null) == ((3, 32, 32), 10)


def test_a_training_without_labels_resumes(recipes, pictures, tmp_path, monkeypatch):
    assert_equal(*train_both(recipes("emoji_ddpm"), monkeypatch, tmp_path, stop=3, steps=4, data=pictures))
    assert antinb.load(tmp_path / "whole" / "pipeline", steps=2).shape == (3, 32, 32)


def test_pictures_are_halved_and_each_is_in_one_split(recipes, pictures):
    """A pixel is the mean of four, as in Pillow but for rounding, and each picture is there once."""
    both = [recipes("images").load("emoji", pictures, split)[0] for split in ("train", "test")]
    assert [part.shape for part in both] == [(4, 3, 32, 32), (256, 3, 32, 32)]
    reduced = [np.asarray(Image.fromarray(one).reduce(2)).transpose(2, 0, 1) for one in np.load(pictures)["images"]]
    found, expected = (np.reshape(part, (260, -1))[:, :64].astype(int) for part in (np.concatenate(both), reduced))
    same = np.abs(found[:, None] - expected).max(-1) <= 1
    assert (same.sum(0) == 1).all()
    assert (same.sum(1) == 1).all()


def test_a_distillation_resumes_on_the_paths_of_its_teacher(recipes, tmp_path, monkeypatch):
    """Each state of a path leads on to the same image: one more step of the teacher makes the next state."""
    recipe = recipes("fashion_cm")
    states, drawn = recipe.draw_paths(4, tmp_path, "cpu", batch=2)
    again = recipe.draw_paths(4, tmp_path, "cpu", batch=2)
    assert torch.equal(states, again[0])
    assert torch.equal(drawn, again[1])
    z = torch.from_numpy(antinb.noise.iid(4).draw((1, 28, 28), seed=0)[:, 0])
    torch.testing.assert_close(states[:, 0], z.half())
    signal = recipe.SCHEDULER.alphas_cumprod[recipe.LEVELS[-1]]
    residual = states[:, -1].float() - signal.sqrt() * drawn
    assert float(residual.std()) < 2 * float((1 - signal).sqrt())

    monkeypatch.setattr(recipe, "draw_paths", lambda *_: (states.repeat(5, 1, 1, 1, 1), drawn.repeat(5, 1, 1, 1)))
    monkeypatch.setattr(recipe, "HELD_OUT", 4)
    whole, halves = train_both(recipe, monkeypatch, tmp_path, stop=3, steps=4, data=None, paths=20)
    assert_equal(whole, halves)
    assert antinb.load(whole / "pipeline").evaluations == 1


def test_a_training_from_a_finished_pipeline_resumes_too(recipes, data, tmp_path, monkeypatch):
    recipe = recipes("fashion_rf")
    recipe.train.callback(data=data, work=tmp_path / "first", total=10, device="cpu")
    start = tmp_path / "first" / "pipeline"
    assert_equal(*train_both(recipe, monkeypatch, tmp_path, stop=9, steps=10, data=data, start=start))


@pytest.mark.parametrize(
    ("name", "weights", "prefix"),
    [
        ("fashion_ddpm", "unet/diffusion_pytorch_model.safetensors", "ema."),
        ("fashion_rf", "unet/diffusion_pytorch_model.safetensors", "ema."),
        ("fashion_dit", "transformer/diffusion_pytorch_model.safetensors", "ema."),
        ("fashion_ldm", "unet/diffusion_pytorch_model.safetensors", "ema."),
        ("mnist_vae", "model.safetensors", "ema.decoder."),
    ],
)
def test_what_is_written_is_the_average_in_half_precision(name, weights, prefix, recipes, data, tmp_path):
    recipes(name).train.callback(data=data, work=tmp_path, total=6, device="cpu")
    written, checkpoint = load_file(tmp_path / "pipeline" / weights), load_file(tmp_path / "checkpoint.safetensors")
    assert written
    assert all(torch.equal(value, checkpoint[prefix + key].half()) for key, value in written.items())


def test_a_seeded_training_resumes_and_two_seeds_share_neither_weights_nor_batches(
    recipes, data, tmp_path, monkeypatch
):
    recipe = recipes("fashion_ddpm_small")
    monkeypatch.setattr(recipe, "BATCH", 2)
    whole, halves = train_both(recipe, monkeypatch, tmp_path / "one", stop=3, steps=4, data=data, seed=1)
    assert_equal(whole, halves)
    recipe.train.callback(data=data, work=tmp_path / "zero", total=8, device="cpu", seed=0)
    one, zero = (
        load_file(work / "pipeline/unet/diffusion_pytorch_model.safetensors") for work in (whole, tmp_path / "zero")
    )
    assert not torch.equal(one["conv_in.weight"], zero["conv_in.weight"])
    one, zero = (recipe.training.Training(recipe.build(seed), "cpu", 2, seed).generator(3) for seed in (1, 0))
    assert not torch.equal(torch.randn(4, generator=one), torch.randn(4, generator=zero))


def test_a_rectified_flow_that_knows_the_image_has_no_loss(recipes):
    recipe = recipes("fashion_rf")
    clean, seen = torch.rand(8, 1, 28, 28) * 2 - 1, []

    def network(x, times, class_labels):
        t = (times / 1000)[:, None, None, None]
        seen.extend(class_labels.tolist())
        return type("Output", (), {"sample": (x - clean) / t})

    losses = recipe.loss(network, torch.Generator().manual_seed(0), clean, torch.arange(8))
    assert max(losses) < 1e-8
    assert all(label in (row, 10) for row, label in enumerate(seen))


def test_held_out_images_are_tiles_of_the_test_set(recipes, tmp_path, monkeypatch):
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (500, 28, 28), np.uint8)
    labels = np.arange(500) % 10
    np.savez(tmp_path / "data.npz", test_images=pixels, test_labels=labels)
    recipes("held_out").cut.callback(data=tmp_path / "data.npz", out=tmp_path / "images" / "fashion")
    monkeypatch.setattr("antinb.zoo.shipped.DATA", tmp_path)
    scaled = pixels[:, None].astype(np.float32) / 127.5 - 1
    images, known = antinb.zoo.held_out("fashion")
    np.testing.assert_array_equal(images, np.concatenate([scaled[labels == k][:40] for k in (0, 1, 2, 4, 7, 9)]))
    np.testing.assert_array_equal(known, np.repeat([0, 1, 2, 4, 7, 9], 40))
    images, known = antinb.zoo.held_out("fashion", sample="random")
    places = [int(np.flatnonzero((scaled == image).all((1, 2, 3)))[0]) for image in images]
    assert len(set(places)) == 16
    np.testing.assert_array_equal(known, labels[places])


def test_shipped_held_out_images_are_in_range():
    images, labels = antinb.zoo.held_out("fashion", sample="random")
    assert images.shape == (16, 1, 28, 28)
    assert images.dtype == np.float32
    assert (images.min(), images.max()) == (-1, 1)
    assert labels.shape == (16,)
    with pytest.raises(ValueError, match="sample must be one of .* got 'all'"):
        antinb.zoo.held_out("fashion", sample="all")


def test_a_sweep_compares_ways_on_the_same_noise(recipes, pictures, tmp_path, monkeypatch):
    sweep = recipes("sweep")
    monkeypatch.setattr(sweep, "NOISES", 1)
    monkeypatch.setattr("images.HELD_OUT", 16)
    arguments = ["--data", str(pictures), "--work", str(tmp_path), "--images", "6"]
    sweep.sweep.main(["recipe", "velocity", "channels-last", *arguments], standalone_mode=False)
    rows = pd.read_csv(tmp_path / "table.csv", index_col="way")
    averages = ["", *(f", half-life {steps}" for steps in sweep.HALF_LIVES)]
    trained = [way + average for way in ("recipe", "velocity") for average in averages]
    assert list(rows.index) == [*trained, "channels-last"]
    assert rows["loss"].isna().tolist() == [way in sweep.TIMED for way in rows.index]
    for measure in ("loss", "weighted loss"):
        for way, other in (("velocity", "recipe"), ("velocity, half-life 50", "velocity")):
            change = 100 * (rows.loc[way, measure] / rows.loc[other, measure] - 1)
            assert rows.loc[way, f"{measure}, percent"] == pytest.approx(change, abs=0.01)
        assert rows.loc["recipe", [f"{measure}, {name}" for name in ("percent", "low", "high")]].tolist() == [0, 0, 0]
    assert (rows["weighted loss"] < rows["loss"]).sum() == len(trained)


def test_a_velocity_is_read_as_the_noise_that_made_it(recipes):
    """`x = a clean + s noise` and `v = a noise - s clean` give the noise back."""
    sweep, steps = recipes("sweep"), torch.tensor([0, 500, 999])
    clean, noise = torch.randn(2, 3, 3, 4, 4)
    velocity = sweep.training.SCHEDULER.get_velocity(clean, noise, steps)
    network = sweep.Velocity(lambda *_: sweep.UNet2DOutput(sample=velocity))
    torch.testing.assert_close(network(sweep.training.SCHEDULER.add_noise(clean, noise, steps), steps).sample, noise)


def test_further_averages_forget_as_they_say(recipes, monkeypatch):
    """With a half-life of one step four steps weigh 1/8, 1/8, 1/4 and 1/2; a long one begins with their mean."""
    sweep = recipes("sweep")
    monkeypatch.setattr(sweep, "HALF_LIVES", (1, 50))
    network = torch.nn.Linear(1, 1, bias=False)
    averaged = sweep.Averaged(network)
    for value in (1.0, -2.0, 3.0, 5.0):
        torch.nn.init.constant_(network.weight, value)
        averaged(torch.ones(1))
    with torch.no_grad():
        averaged(torch.ones(1))
    assert averaged.means.flatten().tolist() == pytest.approx([5 / 2 + 3 / 4 - 2 / 8 + 1 / 8, 7 / 4], rel=1e-6)
