"""Pixel maps against the plain computation in memory, and the coverage of their band."""

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.weightstats import DescrStatsW

import antinb
from antinb import dataset, estimation, noise


def run(images):
    """A run of given images `(unit, member, channel, y, x)` in [0, 1]."""
    return dataset.build({"image": (2 * images - 1).astype(np.float32)}, {"design": {"name": "iid"}, "evaluations": 1})


def test_maps_are_t_intervals_at_each_pixel(pairs):
    maps = estimation.pixelwise(pairs, level=0.9)
    means = np.clip((pairs["image"].values.astype(float) + 1) / 2, 0, 1).mean(1).reshape(200, -1)
    low, high = DescrStatsW(means).tconfint_mean(0.1)
    np.testing.assert_allclose(maps["mean"].values.ravel(), means.mean(0), rtol=1e-12)
    np.testing.assert_allclose(maps["low"].values.ravel(), low, rtol=1e-9)
    np.testing.assert_allclose(maps["high"].values.ravel(), high, rtol=1e-9)


def test_a_stored_run_gives_the_same_maps(tmp_path, mixture_generator):
    options = {"seed": 0, "batch": 8, "progress": False}
    kept = antinb.sample(mixture_generator, noise.antithetic(20), **options)
    stored = antinb.sample(mixture_generator, noise.antithetic(20), store=tmp_path / "run.zarr", **options)
    assert estimation.pixelwise(stored).equals(estimation.pixelwise(kept))


def test_pixels_that_do_not_vary_are_masked_and_counted():
    images = np.random.default_rng(0).random((30, 1, 1, 4, 4))
    images[..., 0, :] = 0.5 + 0.001 * images[..., 0, :]
    maps = estimation.pixelwise(run(images))
    assert maps.attrs["masked"] == 4
    assert np.isnan(maps["low"][0, 0]).all()
    assert np.isfinite(maps["mean"]).all()
    assert np.isfinite(maps["band_low"][0, 1:]).all()


def test_the_band_covers_all_pixels_at_once_and_the_pointwise_interval_each():
    rng, together, single = np.random.default_rng(1), 0, []
    for seed in range(200):
        images = rng.beta(2, 2, (80, 1, 1, 5, 5))
        maps = estimation.pixelwise(run(images), seed=seed)
        together += bool(((maps["band_low"] <= 0.5) & (0.5 <= maps["band_high"])).all())
        single.append(float(((maps["low"] <= 0.5) & (0.5 <= maps["high"])).mean()))
    assert stats.binomtest(together, 200, 0.95).pvalue > 1e-3
    assert np.mean(single) == pytest.approx(0.95, abs=0.015)


def test_one_pixel_needs_no_wider_band():
    images = np.random.default_rng(2).random((400, 1, 1, 1, 1))
    maps = estimation.pixelwise(run(images))
    assert maps.attrs["band_quantile"] == pytest.approx(stats.norm.ppf(0.975), abs=0.25)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"level": 1}, "level must be a number from"),
        ({"min_sd": -1}, "min_sd must be a number from 0 to 1; got -1"),
    ],
)
def test_bad_arguments_are_one_line(options, reason, pairs):
    with pytest.raises(ValueError, match=reason):
        estimation.pixelwise(pairs, **options)
    with pytest.raises(ValueError, match="at least two units; got 1"):
        estimation.pixelwise(pairs.isel(unit=[0]))
