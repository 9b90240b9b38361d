"""Correlations: closed forms, a plain double loop, and unbiased centring."""

import itertools

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from antinb import correlation, dataset


def run_of(images, **coords):
    return dataset.build(images.astype(np.float32), {"evaluations": 3}, signs=None, **coords)


def correlated_pairs(units, rho, seed, size=(1, 6, 6), mean=0.0):
    rng = np.random.default_rng(seed)
    shared, own = rng.standard_normal((2, units, 2, *size))
    first = shared[:, 0]
    second = rho * first + np.sqrt(1 - rho**2) * own[:, 1]
    return run_of(np.stack([first, second], 1) + mean)


def rows(run):
    return correlation.summary(run).set_index(["pairs", "centred"])


def test_standard_values_are_pearsons():
    run = correlated_pairs(12, -0.5, seed=0, mean=3)
    flat = run["image"].values.reshape(12, 2, -1)
    by_scipy = [stats.pearsonr(*pair).statistic for pair in flat]
    np.testing.assert_allclose(correlation.pn(run), by_scipy, atol=1e-6)
    between = [
        stats.pearsonr(flat[i, k], flat[j, m]).statistic
        for i, j in itertools.combinations(range(12), 2)
        for k in (0, 1)
        for m in (0, 1)
    ]
    np.testing.assert_allclose(np.sort(correlation.rr(run)), np.sort(between), atol=1e-6)
    table = rows(run)
    assert table.loc[("PN", False), "estimate"] == pytest.approx(np.mean(by_scipy), abs=1e-6)
    assert table.loc[("RR", False), "estimate"] == pytest.approx(np.mean(between), abs=1e-6)
    assert table.loc[("RR", False), "q25"] == pytest.approx(np.quantile(between, 0.25), abs=1e-6)
    assert (table["evaluations"] == 12 * 2 * 3).all()


def test_pooled_ratio_is_the_ratio_of_sums():
    run = correlated_pairs(15, 0.4, seed=1)
    flat = run["image"].values.reshape(15, 2, -1).astype(float)
    deviations = flat - flat.mean(-1, keepdims=True)
    covariance = (deviations[:, 0] * deviations[:, 1]).sum()
    expected = covariance / np.sqrt(np.square(deviations).sum((0, 2)).prod())
    assert rows(run).loc[("PN", False), "pooled"] == pytest.approx(expected, rel=0.02)
    gram = np.einsum("ikd,jmd->ikjm", deviations, deviations)
    between = gram.sum() - np.einsum("ikim->", gram)
    count = 15 * 14 * 4
    power = np.square(deviations).sum() / 30
    assert rows(run).loc[("RR", False), "pooled"] == pytest.approx(between / count / power, abs=1e-6)


def test_centred_values_are_those_of_a_plain_loop():
    run = correlated_pairs(16, -0.7, seed=2, mean=np.linspace(0, 4, 36).reshape(1, 6, 6))
    flat = run["image"].values.reshape(16, 2, -1).astype(float)
    folds = np.arange(16) // 4
    means = [flat[folds == fold].mean((0, 1)) for fold in range(4)]
    expected, between = [], []
    for i in range(16):
        one, other = ((2, 3), (2, 3), (0, 1), (0, 1))[folds[i]]
        roles = ((one, other), (other, one))
        expected.append(np.mean([np.corrcoef(flat[i, 0] - means[a], flat[i, 1] - means[b])[0, 1] for a, b in roles]))
        for j in range(16):
            if i != j and folds[i] // 2 == folds[j] // 2:
                members = itertools.product((0, 1), repeat=2)
                between += [np.corrcoef(flat[i, k] - means[one], flat[j, m] - means[other])[0, 1] for k, m in members]
    np.testing.assert_allclose(correlation.pn(run, centred=True), expected, atol=1e-5)
    assert rows(run).loc[("RR", True), "estimate"] == pytest.approx(np.mean(between), abs=1e-5)
    assert correlation.rr(run, centred=True).mean() == pytest.approx(np.mean(between), abs=1e-5)


def test_centring_is_unbiased_where_a_common_mean_is_not():
    """At 16 units one mean of all images would put the centred RR at -1/15; cross-fitting leaves 0."""
    structure = 5 * np.random.default_rng(9).standard_normal((1, 12, 12))
    tables = [rows(correlated_pairs(16, 0, seed, (1, 12, 12), structure)) for seed in range(40)]
    for kind in ("PN", "RR"):
        estimates = np.array([table.loc[(kind, True), "pooled"] for table in tables])
        assert abs(estimates.mean()) < 3 * estimates.std(ddof=1) / np.sqrt(40) < 0.012
    assert tables[0].loc[("RR", False), "estimate"] > 0.9


def test_intervals_cover_the_truth():
    tables = [rows(correlated_pairs(40, -0.6, seed, (1, 4, 4))) for seed in range(200)]
    truth = {("PN", False): -0.6, ("RR", False): 0, ("RR", True): 0, ("PN-RR", False): -0.6}
    for key, value in truth.items():
        table = pd.DataFrame([table.loc[key] for table in tables])
        covered = int(((table["pooled_low"] <= value) & (value <= table["pooled_high"])).sum())
        assert stats.binomtest(covered, 200, 0.95, alternative="less").pvalue > 0.01, (key, covered)


def test_perfect_pairs():
    z = np.random.default_rng(0).standard_normal((20, 1, 1, 5, 5))
    table = rows(run_of(np.concatenate([z, -z], 1)))
    assert table.loc[("PN", False), "estimate"] == pytest.approx(-1, abs=1e-6)
    run = run_of(np.concatenate([z, -z], 1))
    np.testing.assert_allclose(correlation.pixel_map(run), -1, atol=1e-9)


def test_more_members_average_their_pairs():
    run = run_of(np.random.default_rng(0).standard_normal((10, 3, 1, 5, 5)))
    flat = run["image"].values.reshape(10, 3, -1)
    expected = [np.corrcoef(unit)[np.triu_indices(3, 1)].mean() for unit in flat]
    np.testing.assert_allclose(correlation.pn(run), expected, atol=1e-6)
    assert rows(run).loc[("PN", False), "estimate"] == pytest.approx(np.mean(expected), abs=1e-6)


def test_constant_images_are_counted_not_filled():
    images = np.random.default_rng(0).standard_normal((10, 2, 1, 5, 5))
    images[3, 0] = 0.1
    table = rows(run_of(images))
    assert np.isnan(correlation.pn(run_of(images))[3])
    assert table.loc[("PN", False), "undefined"] == 1
    assert table.loc[("RR", False), "undefined"] == 18
    others = rows(run_of(np.delete(images, 3, 0)))
    assert table.loc[("PN", False), "estimate"] == pytest.approx(others.loc[("PN", False), "estimate"])
    gram = correlation.rr(run_of(images))
    assert table.loc[("RR", False), "estimate"] == pytest.approx(np.nanmean(gram), abs=1e-7)


def test_conditions_have_their_own_means_and_pairs():
    rng = np.random.default_rng(0)
    classes = np.tile([0, 1], 40)
    images = rng.standard_normal((80, 2, 1, 6, 6)) + 10 * rng.standard_normal((2, 1, 1, 6, 6))[classes]
    with_classes = rows(run_of(images, condition=classes))
    without = rows(run_of(images))
    assert abs(with_classes.loc[("RR", True), "estimate"]) < 0.02
    assert with_classes.loc[("RR", False), "estimate"] > 0.9
    assert without.loc[("PN", True), "estimate"] > 0.5 > 0.1 > abs(with_classes.loc[("PN", True), "estimate"])


def test_pixel_map_is_pearson_over_pairs_and_skips_what_cannot_be_seen():
    run = correlated_pairs(50, -0.8, seed=3)
    run["image"][:, :, 0, 0, 0] *= 1e-4
    found = correlation.pixel_map(run)
    values = run["image"].values
    assert found.shape == (1, 6, 6)
    assert np.isnan(found[0, 0, 0])
    assert float(found[0, 2, 3]) == pytest.approx(np.corrcoef(values[:, 0, 0, 2, 3], values[:, 1, 0, 2, 3])[0, 1])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: correlation.pn(run_of(np.zeros((20, 1, 1, 4, 4)))), "got 1"),
        (lambda: correlation.summary(run_of(np.zeros((7, 2, 1, 4, 4)))), "got 7"),
        (lambda: correlation.pixel_map(run_of(np.zeros((20, 3, 1, 4, 4)))), "got 3"),
    ],
)
def test_bad_input_is_refused_with_the_value(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_histogram_is_the_density_of_the_single_correlations():
    run = correlated_pairs(30, -0.5, seed=4)
    table = correlation.histogram(run, bins=10).set_index("pairs")
    for kind, values in {"PN": correlation.pn(run).values, "RR": correlation.rr(run)}.items():
        part = table.loc[kind]
        assert (part["density"] * 0.2).sum() == pytest.approx(1)
        share = part["density"].iloc[3] * 0.2
        assert share == pytest.approx(np.mean((values >= -0.4) & (values < -0.2)))
