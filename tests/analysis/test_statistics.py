"""Statistics against values worked out by hand and another implementation."""

import json

import dask.array
import numpy as np
import pytest
import xarray as xr
from scipy import ndimage

from antinb import dataset, statistics

RANDOM = np.random.default_rng(0)


def run_of(images):
    return dataset.build({"image": images}, {})


def test_values_by_hand():
    image = np.zeros((1, 2, 4))
    image[0, :, 3] = 1
    assert statistics.pixel_mean(image) == statistics.brightness(image) == 0.25
    assert statistics.contrast(image) == pytest.approx(np.sqrt(0.25 * 0.75))
    assert (statistics.centroid_x(image), statistics.centroid_y(image)) == (3, 0.5)


def test_luma_weighs_the_channels():
    red, green, blue = np.eye(3)[..., None, None] * np.ones((3, 2, 2))
    assert [statistics.brightness(colour) for colour in (red, green, blue)] == pytest.approx([0.299, 0.587, 0.114])
    assert statistics.pixel_mean(green) == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match="got 4"):
        statistics.brightness(np.zeros((4, 2, 2)))


def test_centroid_of_a_black_image_is_undefined():
    values = statistics.centroid_x(np.stack([np.zeros((1, 3, 3)), np.ones((1, 3, 3))]))
    assert np.isnan(values[0])
    assert values[1] == 1


def test_events_count_shares_and_keep_nan():
    images = np.array([0.1, 0.5, 0.9])[:, None, None, None] * np.ones((1, 2, 2))
    assert statistics.event(statistics.brightness, above=0.4)(images).tolist() == [0, 1, 1]
    dark = statistics.event(statistics.centroid_x, above=0.4)
    assert np.isnan(dark(np.zeros((1, 2, 2))))
    assert dark.__name__ == "centroid_x > 0.4"


@pytest.mark.parametrize("lazy", [False, True])
def test_measure_clips_to_the_range_and_labels_its_axes(lazy):
    images = np.full((5, 2, 1, 3, 3), -1, np.float32)
    images[:, 1] = 3
    images[2, 0] = 0
    run = run_of(dask.array.from_array(images, chunks=(2, 2, 1, 3, 3)) if lazy else images)
    values = statistics.measure(run, statistics.brightness, statistics.contrast)
    assert values.dims == ("statistic", "unit", "member")
    assert values.sel(statistic="brightness").values.tolist() == [[0, 1], [0, 1], [0.5, 1], [0, 1], [0, 1]]
    assert not values.sel(statistic="contrast").any()


def test_a_callable_must_return_one_value_an_image():
    run = run_of(np.zeros((4, 1, 1, 3, 3), np.float32))
    with pytest.raises(ValueError, match=r"mean_row.*\(4, 1\)"):
        statistics.measure(run, mean_row)
    with pytest.raises(ValueError, match="at least one"):
        statistics.measure(run)


def test_a_statistic_that_changes_its_images_does_not_change_the_next():
    def darken(images):
        images *= 0
        return images.sum((-3, -2, -1))

    images = RANDOM.uniform(-1, 1, (6, 2, 3, 4, 4))
    run = run_of(images.copy())
    values = statistics.measure(run, darken, statistics.brightness)
    assert not values.sel(statistic="darken").any()
    expected = np.tensordot(images / 2 + 0.5, [0.299, 0.587, 0.114], (2, 0)).mean((-2, -1))
    np.testing.assert_allclose(values.sel(statistic="brightness"), expected, rtol=1e-12)
    np.testing.assert_array_equal(run["image"], images)


def mean_row(images):
    return images.mean(-2)


def test_range_is_read_from_the_run():
    run = run_of(np.full((4, 1, 1, 3, 3), 0.5, np.float32))
    assert json.loads(run["image"].attrs["range"]) == [-1, 1]
    assert statistics.measure(run, statistics.pixel_mean).values == pytest.approx(0.75)


def table_of(values, seed=0, **attrs):
    """Return measured values `(unit, member)` of one statistic, as `measure` does."""
    about = {"design": {"name": "antithetic"}, "evaluations": 3, "seed": seed} | attrs
    array = xr.DataArray(values[None], dims=("statistic", "unit", "member"), coords={"statistic": ["s"]})
    return array.assign_attrs({key: json.dumps(value) for key, value in about.items()})


def test_pooled_runs_have_the_mean_variance_of_their_units():
    random = np.random.default_rng(0)
    tables = [random.normal(place, spread, (12, 2)) for place, spread in ((0, 1), (100, 5), (-7, 2))]
    together = statistics.pooled([table_of(table) for table in tables])
    expected = np.mean([table.mean(1).var(ddof=1) for table in tables])
    assert together.shape == (1, 36, 2)
    assert together.mean(("unit", "member")).item() == pytest.approx(0, abs=1e-12)
    assert together.mean("member").values.var(ddof=1) == pytest.approx(expected, rel=1e-12)
    assert dataset.evaluations(together) == 3 * 36 * 2


def test_runs_of_another_form_are_not_pooled():
    table = table_of(np.arange(8.0).reshape(4, 2))
    others = (table[:, :3], table[..., :1], table_of(table[0].values, design={"name": "partial"}))
    for other in others:
        with pytest.raises(ValueError, match="one form"):
            statistics.pooled([table, other])
    with pytest.raises(ValueError, match="at least two units"):
        statistics.pooled([table[:, :1]])
    with pytest.raises(ValueError, match="one form"):
        statistics.pooled([])


TRUTH = RANDOM.uniform(-1, 1, (1, 16, 16))


def test_distances_by_hand():
    truth = np.full((1, 4, 4), -0.2)  # 0.4 of [0, 1]
    images = np.full((2, 3, 1, 4, 4), 0.5)
    images[1, 2] = 0.4
    assert statistics.l1(truth)(images)[0, 0] == pytest.approx(0.1)
    assert statistics.mse(truth)(images)[0, 0] == pytest.approx(0.01)
    assert statistics.psnr(truth)(images).shape == (2, 3)
    assert statistics.psnr(truth)(images)[0, 1] == pytest.approx(20)
    assert statistics.psnr(truth)(np.full((1, 4, 4), 0.4)) > 250  # all that rounding leaves


def test_psnr_is_minus_ten_decades_of_the_squared_error():
    images = RANDOM.uniform(0, 1, (5, 1, 16, 16))
    np.testing.assert_allclose(statistics.psnr(TRUTH)(images), -10 * np.log10(statistics.mse(TRUTH)(images)), rtol=1e-6)


def test_similarity_is_the_formula_with_gaussian_windows():
    truth = (TRUTH[0] + 1) / 2
    image = np.clip(truth + RANDOM.normal(0, 0.2, truth.shape), 0, 1)

    def smooth(values):
        return ndimage.gaussian_filter(values, 1.5, radius=5, mode="mirror")

    one, other = smooth(image), smooth(truth)
    here, there = smooth(image**2) - one**2, smooth(truth**2) - other**2
    both = smooth(image * truth) - one * other
    index = (2 * one * other + 0.01**2) * (2 * both + 0.03**2)
    index /= (one**2 + other**2 + 0.01**2) * (here + there + 0.03**2)
    assert statistics.ssim(TRUTH)(image[None]) == pytest.approx(index[5:-5, 5:-5].mean(), abs=1e-5)
    assert statistics.ssim(TRUTH)(truth[None]) == pytest.approx(1)


def test_runs_are_measured_against_the_truth():
    pixels = RANDOM.uniform(-1.5, 1.5, (4, 2, 1, 16, 16)).astype(np.float32)
    values = statistics.measure(
        dataset.build({"image": pixels}, {}), *(f(TRUTH) for f in (statistics.l1, statistics.ssim))
    )
    assert values["statistic"].values.tolist() == ["l1", "ssim"]
    expected = np.abs(np.clip(pixels, -1, 1) - TRUTH).mean((-3, -2, -1)) / 2
    np.testing.assert_allclose(values.sel(statistic="l1"), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda: statistics.l1(TRUTH[0]), r"got shape \(16, 16\)"),
        (lambda: statistics.psnr(np.full((1, 2, 2), np.nan)), "finite image"),
        (lambda: statistics.mse(TRUTH)(np.zeros((3, 1, 8, 8))), r"shape \(1, 16, 16\); got images \(1, 8, 8\)"),
    ],
)
def test_a_truth_of_another_form_is_refused(call, reason):
    with pytest.raises(ValueError, match=reason):
        call()
