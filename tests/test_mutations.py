"""Hundreds of changed folders and stores: no code runs, an answer comes soon, and it is right or one line."""

import contextlib
import resource
import shutil
import warnings

import numpy as np
import pytest
import torch
import xarray as xr
from diffusers import DDIMPipeline, DDIMScheduler, FlowMatchEulerDiscreteScheduler, LCMScheduler, UNet2DModel
from families import FAMILIES, PROMPTS
from helpers import SHAPE, tiny_unet
from mutations import TooSlow, copied, limited, mutate

import antinb
from antinb import classifier, dataset, noise, zoo

FEW, MANY = 15, 300
MEGABYTES = 64  # that all loading may add to the peak of memory, beside twice the weights
Z = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Return folders of each kind, with the function that makes images of each."""
    place = tmp_path_factory.mktemp("bases")
    DDIMPipeline(tiny_unet(), DDIMScheduler(1000)).save_pretrained(place / "ddim")
    for name, scheduler in (("flow", FlowMatchEulerDiscreteScheduler(1000)), ("lcm", LCMScheduler(1000))):
        tiny_unet().save_pretrained(place / name / "unet")
        scheduler.save_pretrained(place / name / "scheduler")
    beside = shutil.ignore_patterns("*.png", "*.csv", "*.md", "fit.json", "training.json")
    for name, source in (("mixture", "fashion-mixture"), ("vae", "mnist-vae"), ("classifier", "mnist-classifier")):
        shutil.copytree(zoo.DATA / "models" / source, place / name, ignore=beside)
    (place / "classifier" / "README.md").touch()
    return place


def images(folder):
    """Return what a folder makes of fixed noise."""
    if (
        (folder / "quality.json").exists()
        and not (folder / "config.json").exists()
        and not (folder / "scheduler").exists()
    ):
        return torch.from_numpy(classifier.load(folder).probabilities(np.full((1, 1, 28, 28), 0.5)))
    options = {"prompts": PROMPTS[:1]} if (folder / "tokenizer").exists() else {}
    model = antinb.load(folder, **options)
    model = model.with_(**({"steps": 2} if hasattr(model, "steps") and model.steps > 2 else {}))
    noises = torch.randn(2, *model.shape, generator=torch.Generator().manual_seed(0))
    return model.generate(noises, draw=lambda _, shape: torch.zeros(2, *shape))


def by_diffusers(folder):
    """Return what diffusers itself makes of the same noise, by its own classes and DDIM."""
    network = UNet2DModel.from_pretrained(folder / "unet", use_safetensors=True, torch_dtype=torch.float32).eval()
    scheduler = DDIMScheduler.from_pretrained(folder / "scheduler")
    scheduler.set_timesteps(2)
    x = torch.randn(2, *Z.shape[1:], generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(network(x, t).sample, t, x).prev_sample
    return x


def outcome(call):
    """Return what a call gives, or its one line; anything else fails."""
    try:
        with limited(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return call()
    except TooSlow:
        raise
    except (ValueError, OSError) as error:
        message = str(error)
        assert message.isprintable(), message
        assert 0 < len(message) < 1500, message
        frames, trace = [], error.__traceback__
        while trace:
            frames.append(trace.tb_frame.f_code.co_filename)
            trace = trace.tb_next
        assert "/antinb/" in frames[-1], f"{type(error).__name__} from {frames[-1]}: {message}"
        return message


def counted(bases, names, seeds, tmp_path):
    """Mutate, load, compare, and count the refused and the right."""
    for name in names:
        images(bases / name)
    weights = max(path.stat().st_size for path in bases.rglob("*.safetensors"))
    before, refused, right = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, 0, 0
    for seed in seeds:
        name = names[seed % len(names)]
        folder = copied(bases / name, tmp_path / "mutant")
        outside = copied(bases / name, tmp_path / "outside")
        told = f"seed {seed}, {name}: {mutate(folder, seed, outside)}"
        try:
            found = outcome(lambda folder=folder: images(folder))
        except BaseException as error:
            raise AssertionError(f"{told}: {type(error).__name__}: {error}") from error
        assert not list(tmp_path.rglob("ran")), f"{told}: code ran"
        refused += isinstance(found, str)
        if not isinstance(found, str):
            right += 1
            assert found.isfinite().all() or "safetensors" in told, told
            if name == "ddim":
                with contextlib.suppress(OSError, ValueError, TypeError, KeyError, RuntimeError, AttributeError):
                    torch.testing.assert_close(found, by_diffusers(folder), rtol=1e-4, atol=1e-4, msg=told)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown < MEGABYTES + 2 * weights / 2**20
    print(f"{len(seeds)} folders: {refused} refused, {right} right, {grown:.0f} MB")
    assert refused
    assert right


OWN = ["ddim", "flow", "lcm", "mixture", "vae", "classifier"]


def test_some_changed_folders(bases, tmp_path):
    counted(bases, OWN, range(FEW), tmp_path)


@pytest.mark.slow
def test_many_changed_folders(bases, tmp_path):
    FAMILIES["stable diffusion"].save(bases / "text")
    counted(bases, [*OWN, "text", "text", "ddim"], range(1000, 1000 + MANY), tmp_path)


DESIGN = noise.antithetic(6)


def sampled(store):
    return antinb.sample(antinb.load(torch.tanh, shape=SHAPE), DESIGN, seed=3, batch=4, store=store, progress=False)


def contents(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def counted_stores(seeds, tmp_path):
    """Mutate a store, open it, look for damage, go on with it; count the refused, the whole and the mended."""
    base = sampled(tmp_path / "base").load()
    before, counts = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, {"refused": 0, "right": 0, "mended": 0}
    for seed in seeds:
        store = copied(tmp_path / "base", tmp_path / "mutant")
        outside = copied(tmp_path / "base", tmp_path / "outside")
        told = f"seed {seed}: {mutate(store, seed, outside)}"
        elsewhere = contents(outside)
        try:
            found = outcome(lambda store=store: antinb.open(store).load())
            outcome(lambda store=store: dataset.damage(store))
            again = outcome(lambda store=store: sampled(store).load())
        except BaseException as error:
            raise AssertionError(f"{told}: {type(error).__name__}: {error}") from error
        assert not list(tmp_path.rglob("ran")), f"{told}: code ran"
        assert contents(outside) == elsewhere, f"{told}: written outside"
        for result in (found, again):
            if not isinstance(result, str):
                xr.testing.assert_equal(result, base)
        counts["refused" if isinstance(found, str) else "right"] += 1
        counts["mended"] += isinstance(found, str) and not isinstance(again, str)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(f"{len(seeds)} stores: {counts}, {grown:.0f} MB")
    assert grown < MEGABYTES
    assert min(counts.values()) or len(seeds) < MANY


def test_some_changed_stores(tmp_path):
    counted_stores(range(FEW), tmp_path)


@pytest.mark.slow
def test_many_changed_stores(tmp_path):
    counted_stores(range(1000, 1000 + MANY), tmp_path)
