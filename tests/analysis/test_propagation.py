"""The correlation that even and odd parts imply, against the scheduler's coefficients and exact models."""

import numpy as np
import pytest
import torch
from helpers import LINEAR, SHAPE, random_mixture

import antinb
from antinb import exact, noise, symmetry
from antinb.models import diffusion

UNITS = 60


def run(generator, **options):
    return antinb.sample(generator, noise.antithetic(UNITS), seed=0, trajectory=True, progress=False, **options)


@pytest.fixture(scope="module")
def mixture_run(mixture_generator):
    return run(mixture_generator)


def table(data):
    return symmetry.predict_correlation(data).pivot(index="step", columns="quantity", values="estimate")


def test_prediction_is_made_of_the_schedulers_steps(mixture_run):
    """Summed with a_t and b_t of DDIM, the even parts give the midpoint; its variance gives the prediction."""
    scheduler = diffusion.make_scheduler(LINEAR)
    levels = [*mixture_run["timestep"].values, None]
    midpoint = np.zeros((UNITS, 64))
    parts = []
    for step, (t, following) in enumerate(zip(levels[:-1], levels[1:], strict=True)):
        now = float(scheduler.alphas_cumprod[t])
        then = float(scheduler.final_alpha_cumprod if following is None else scheduler.alphas_cumprod[following])
        a, b = (then / now) ** 0.5, (1 - then) ** 0.5 - (then * (1 - now) / now) ** 0.5
        even = mixture_run["predicted_noise"][:, :, step].values.mean(1).reshape(UNITS, -1).astype(float)
        parts = [a * part for part in parts] + [b * even]
        midpoint = a * midpoint + b * even
    images = mixture_run["image"].values.reshape(UNITS, 2, -1).astype(float)
    np.testing.assert_allclose(midpoint, images.mean(1), atol=1e-4)

    def power(values):
        own = values - values.mean(1, keepdims=True)
        return (own - own.mean(0)).var(0, ddof=1).sum()

    half = (images[:, 0] - images[:, 1]) / 2
    half = ((half - half.mean(1, keepdims=True)) ** 2).sum() / UNITS
    found = table(mixture_run).iloc[-1]
    for name, middle in (
        ("predicted", power(midpoint)),
        ("independent", sum(map(power, parts))),
        ("bound", sum(power(part) ** 0.5 for part in parts) ** 2),
    ):
        assert found[name] == pytest.approx((middle - half) / (middle + half), abs=1e-4), name


def test_prediction_meets_the_observed_correlation_and_stays_below_the_bound(mixture_run):
    found = table(mixture_run)
    np.testing.assert_allclose(found["predicted"], found["observed"], atol=2 / UNITS)
    assert (found["predicted"] <= found["bound"] + 1e-12).all()
    last = [mixture_run["image"].values[:, member].reshape(UNITS, -1).astype(float) for member in (0, 1)]
    first, second = (values - values.mean(1, keepdims=True) for values in last)
    first, second = first - first.mean(0), second - second.mean(0)
    observed = 2 * (first * second).sum() / ((first**2).sum() + (second**2).sum())
    assert found["observed"].iloc[-1] == pytest.approx(observed, abs=1e-9)


def test_one_gaussian_keeps_the_correlation_at_minus_one():
    gaussian = diffusion.from_mixture(random_mixture(1), SHAPE, LINEAR).with_(steps=10)
    np.testing.assert_allclose(table(run(gaussian)), -1, atol=1e-4)


def test_a_skewed_mixture_raises_the_correlation_late_and_an_even_one_never():
    offset = torch.linspace(0, 0.3, 64, dtype=torch.float64)
    paths = {}
    for weight in (0.85, 0.5):
        mixture = exact.two_component(0 * offset, offset, weight=weight)
        paths[weight] = table(run(diffusion.from_mixture(mixture, SHAPE, LINEAR).with_(steps=20)))
    for quantity in ("predicted", "observed"):
        assert paths[0.85][quantity].iloc[10] < -0.999
        assert paths[0.85][quantity].iloc[-1] > -0.99
    np.testing.assert_allclose(paths[0.5], -1, atol=1e-6)


@pytest.mark.parametrize("settings", [{"scheduler": "ddpm"}, {"scheduler": "dpmsolver++"}, {"eta": 1.0}])
def test_steps_of_another_form_are_refused(settings, mixture_generator):
    with pytest.raises(ValueError, match=r"every step must be affine in the predicted noise .*; step \d leaves"):
        symmetry.predict_correlation(run(mixture_generator.with_(**settings)))


def test_clipping_is_refused():
    clipped = diffusion.from_mixture(random_mixture(), SHAPE, LINEAR).with_(steps=10, clip=True)
    data = run(clipped)
    assert np.abs(data["image"]).max() <= 1 + 1e-6
    with pytest.raises(ValueError, match="every step must be affine"):
        symmetry.predict_correlation(data)


def test_runs_without_pairs_or_trajectories_are_refused(mixture_generator, pairs):
    with pytest.raises(ValueError, match="needs pairs with trajectories"):
        symmetry.predict_correlation(pairs)
    single = antinb.sample(mixture_generator, noise.iid(8), seed=0, trajectory=True, progress=False)
    with pytest.raises(ValueError, match="with 1 members"):
        symmetry.predict_correlation(single)


def test_members_that_are_no_mirror_images_are_refused(mixture_generator):
    for mask in (np.ones((8, 8), bool), np.arange(8)[:, None] < np.full(8, 4)):
        design = noise.partial(8, mask, redraw=bool(mask.all()))
        data = antinb.sample(mixture_generator, design, seed=0, trajectory=True, progress=False)
        with pytest.raises(ValueError, match="pairs that start from z and -z"):
            symmetry.predict_correlation(data)
