"""Odd values, row by row: right, or refused in one line before any work, and nothing of the caller's is changed."""

import functools
import re

import numpy as np
import pytest
import xarray as xr
from helpers import LINEAR, SHAPE, random_mixture

import antinb
from antinb import comparison, controls, correlation, dataset, diversity, estimation, noise, planning, statistics
from antinb.models import diffusion

ABOUT = {"design": {"name": "antithetic"}, "seed": 0, "evaluations": 1}
RUN = dataset.build({"image": noise.antithetic(40).draw((3, 12, 12), seed=0) / 3}, ABOUT, signs=(1, -1))
ORDERS = [("unit", "channel", "member", "y", "x"), ("x", "y", "channel", "member", "unit")]


def refusal(call):
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        call()
    assert str(caught.value).isprintable()
    return str(caught.value)


def flat(images):
    return images.reshape(*images.shape[:2], -1)


OF_A_RUN = {
    "pn": correlation.pn,
    "rr": correlation.rr,
    "summary": correlation.summary,
    "histogram": correlation.histogram,
    "pixel_map": correlation.pixel_map,
    "difference": lambda run: correlation.paired_difference(run, RUN.assign(image=RUN["image"] ** 2)),
    "pixelwise": estimation.pixelwise,
    "measure": lambda run: statistics.measure(run, statistics.brightness),
    "scores": lambda run: diversity.scores(run, flat),
    "shift": lambda run: comparison.summary(run, RUN, [statistics.contrast]),
    "images": lambda run: comparison.images(run, RUN.assign(image=RUN["image"] ** 2)),
    "kid": lambda run: diversity.kid(run, run, flat),
}


@pytest.mark.parametrize("name", OF_A_RUN)
def test_the_dimensions_of_a_run_are_names(name):
    expected = OF_A_RUN[name](RUN)
    for run in (*(RUN.transpose(*order) for order in ORDERS), RUN.chunk({"unit": 7})):
        np.testing.assert_allclose(_numbers(OF_A_RUN[name](run)), _numbers(expected), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("function", [correlation.along, antinb.symmetry.predict_correlation])
def test_the_dimensions_of_a_trajectory_are_names(function):
    model = diffusion.from_mixture(random_mixture(rank=2), SHAPE, LINEAR).with_(steps=3)
    run = antinb.sample(model, noise.antithetic(12), seed=0, trajectory=True, progress=False)
    expected = _numbers(function(run))
    for order in (("step", "x", "unit", "channel", "member", "y"), ("member", "unit", "y", "x", "channel", "step")):
        np.testing.assert_allclose(_numbers(function(run.transpose(*order))), expected, rtol=1e-4, atol=1e-6)


def _numbers(found):
    if isinstance(found, xr.Dataset):
        return np.concatenate([found[name].values.ravel() for name in found])
    return np.asarray(found.select_dtypes("number") if hasattr(found, "select_dtypes") else found, float)


@pytest.mark.parametrize("name", [name for name in OF_A_RUN if name != "rr"])
def test_what_is_no_run_is_one_line(name):
    broken = [RUN["image"], None, RUN.drop_vars("image"), RUN.rename(unit="draw"), xr.concat([RUN, RUN], "unit")]
    broken += [RUN.assign(image=RUN["image"].astype(kind)) for kind in ("uint8", int, bool, complex)]
    broken += [RUN.assign(image=RUN["image"].assign_attrs(range=junk)) for junk in ("junk", "[1, 1]", "[1]", 7)]
    broken += [RUN.isel(unit=slice(0)), RUN.isel(x=slice(0))]
    for run in broken:
        assert re.search("run|image|unit", refusal(lambda run=run: OF_A_RUN[name](run)))


def test_sums_of_half_precision_are_made_in_double():
    images = np.random.default_rng(0).uniform(0, 1, (10, 2, 3, 256, 256)).astype(np.float16)
    half, double = (dataset.build({"image": images.astype(kind)}, ABOUT) for kind in (np.float16, np.float64))
    np.testing.assert_allclose(correlation.pn(half), correlation.pn(double), atol=1e-6)
    for run in (half, double):
        found = statistics.measure(run, statistics.brightness, statistics.pixel_mean)
        np.testing.assert_allclose(found.sel(statistic="pixel_mean"), 0.75, atol=0.01)


def test_flags_are_booleans():
    values = statistics.measure(RUN, statistics.brightness)
    calls = [
        lambda flag: correlation.pn(RUN, centred=flag),
        lambda flag: estimation.interval(values, drop=flag),
        lambda flag: noise.sobol(2, 8, antithetic=flag),
        lambda flag: noise.sobol(2, 8, supercube=flag),
        lambda flag: noise.latin(2, 8, antithetic=flag),
        lambda flag: noise.antithetic(2, start_only=flag),
        lambda flag: noise.partial(2, np.ones((8, 8), bool), redraw=flag),
        lambda flag: antinb.sample(antinb.load(abs, shape=SHAPE), noise.iid(1), seed=0, trajectory=flag),
        lambda flag: antinb.sample(antinb.load(abs, shape=SHAPE), noise.iid(1), seed=0, progress=flag),
        lambda flag: antinb.load("fashion-mixture", clip=flag),
        lambda flag: antinb.load("fashion-mixture", compile=flag),
    ]
    for call in calls:
        for flag in ("no", "False", 0, 1, [], np.array([True])):
            assert "must be True or False" in refusal(lambda call=call, flag=flag: call(flag))


def test_a_mask_is_copied():
    mask = np.arange(8)[:, None] < np.full(8, 4)
    design = noise.partial(3, mask)
    before, told = design.draw(SHAPE, seed=0), design.describe()
    mask[:] = True
    np.testing.assert_array_equal(design.draw(SHAPE, seed=0), before)
    assert design.describe() == told


def test_a_direction_is_copied():
    direction = np.array([1.0, 2.0])
    design = noise.sobol(1, 4, basis="learned", direction=direction)
    before = design.draw(SHAPE, seed=0)
    direction[:] = 5, 0
    np.testing.assert_array_equal(design.draw(SHAPE, seed=0), before)


def test_a_statistic_that_writes_spoils_nothing():
    def writing(images):
        images[:] = 0
        return images.mean((-3, -2, -1))

    before = RUN["image"].values.copy()
    found = statistics.measure(RUN, writing, statistics.brightness)
    alone = statistics.measure(RUN, statistics.brightness)
    np.testing.assert_array_equal(found.sel(statistic="brightness"), alone.sel(statistic="brightness"))
    np.testing.assert_array_equal(RUN["image"], before)


class Corner:
    def __call__(self, images):
        return images[..., 0, 0, 0]


def test_an_object_that_is_called_is_a_statistic():
    found = statistics.measure(RUN, Corner())
    assert found["statistic"].values.tolist() == ["Corner"]
    np.testing.assert_allclose(found[0], RUN["image"][:, :, 0, 0, 0].clip(-1, 1) / 2 + 0.5)


def test_statistics_have_names():
    thresholded = functools.partial(np.quantile, q=0.5, axis=(-3, -2, -1))
    names = statistics.measure(RUN, thresholded, lambda images: images[..., 0, 0, 0])["statistic"].values.tolist()
    assert names == ["quantile(q=0.5, axis=(-3, -2, -1))", "<lambda>"]
    assert "did you mean antinb.statistics.brightness?" in refusal(lambda: statistics.measure(RUN, "brigthness"))
    assert "did you mean antinb.statistics.contrast?" in refusal(lambda: statistics.event("contrast", above=0.5))
    assert "names of their own" in refusal(lambda: statistics.measure(RUN, thresholded, thresholded))


def test_values_of_one_seed_are_not_joined():
    values = statistics.measure(RUN, statistics.brightness)
    joined = xr.concat([values, values], "unit")
    for call in (estimation.interval, estimation.odd_share, lambda part: estimation.compare(part, values)):
        assert "unit 0 stands twice" in refusal(lambda call=call: call(joined))
    assert "the same values" in refusal(lambda: statistics.pooled([values, values]))


def test_joined_values_are_aligned_by_their_units():
    values = statistics.measure(RUN, statistics.brightness)
    known = controls.features(noise.antithetic(40), (3, 12, 12), seed=0, leading=1)
    values = values.assign_attrs(known.attrs)
    known = known.assign_coords(unit=values["unit"])
    for other in (known[:, ::-1], known[:, 5:], known.assign_coords(unit=np.arange(40) + 20)):
        message = refusal(lambda other=other: controls.coefficients(values, other))
        assert "are common" in message
    cut, kept = xr.align(values[:, 5:], known)
    assert np.isfinite(controls.coefficients(cut, kept)).all()


@pytest.mark.parametrize("metric", [statistics.l1, statistics.mse, statistics.psnr, statistics.ssim])
def test_a_truth_of_bytes_is_refused(metric):
    truth = np.random.default_rng(0).integers(0, 256, (1, 16, 16))
    for kind in (np.uint8, np.int64, bool, complex, object):
        assert "truth" in refusal(lambda kind=kind: metric(truth.astype(kind)))


def test_bounds_and_widths_are_finite_numbers():
    for bound in (float("nan"), float("inf"), "0.5", None, True):
        assert "above must be a number" in refusal(
            lambda bound=bound: statistics.event(statistics.contrast, above=bound)
        )
    model = antinb.load("fashion-mixture", steps=1)
    narrow = refusal(lambda: planning.plan(model, statistics.brightness, seed=0, half_width=1e-12, units=8, points=4))
    assert "half_width must need at most" in narrow


@pytest.mark.parametrize("units", [[1.5], [True, False], [0, True], "01", 1, None.__class__, [[0]], [-1], [3], [2**70]])
def test_units_are_integers(units):
    assert "units" in refusal(lambda: noise.iid(3).draw(SHAPE, seed=0, units=units))


def test_sizes_are_told_before_any_work():
    message = refusal(lambda: noise.iid(10**9).draw((3, 256, 256), seed=0))
    assert "noise of 1000000000 units must fit in memory" in message
    model = antinb.load(abs, shape=(3, 256, 256))
    assert "must fit in memory" in refusal(lambda: antinb.sample(model, noise.antithetic(10**9), seed=0))
    for design in (noise.sobol, noise.latin):
        assert "n must be an integer of at most" in refusal(lambda design=design: design(1, n=2**30))


def test_names_get_a_close_match():
    values = statistics.measure(RUN, statistics.brightness)
    assert "did you mean 'skew'?" in refusal(lambda: estimation.interval(values, method="skwe"))
    assert "did you mean 'spectral'?" in refusal(lambda: noise.sobol(1, 4, basis="spectrall"))
    assert "did you mean 'ddim'?" in refusal(lambda: antinb.load("fashion-mixture", scheduler="dim"))
