"""Metrics against values worked out by hand and another implementation."""

import numpy as np
import pytest
from scipy import ndimage

from antinb import dataset, statistics

RANDOM = np.random.default_rng(0)
TRUTH = RANDOM.uniform(-1, 1, (1, 16, 16))


def test_values_by_hand():
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
def test_bad_input_is_refused(call, reason):
    with pytest.raises(ValueError, match=reason):
        call()
