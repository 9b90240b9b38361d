"""Correlations: closed forms, a plain double loop, and unbiased centring."""

import itertools

import numpy as np
import pandas as pd
import pytest
from helpers import LINEAR, SHAPE, random_mixture
from scipy import stats

import antinb
from antinb import correlation, dataset, intervals, noise
from antinb.models import diffusion


def run_of(images, **coords):
    return dataset.build({"image": images.astype(np.float32)}, {"evaluations": 3}, **coords)


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
    assert table.loc[("PN", False), "mean"] == pytest.approx(np.mean(by_scipy), abs=1e-6)
    assert table.loc[("RR", False), "mean"] == pytest.approx(np.mean(between), abs=1e-6)
    assert table.loc[("RR", False), "q25"] == pytest.approx(np.quantile(between, 0.25), abs=1e-6)
    assert (table["evaluations"] == 12 * 2 * 3).all()


def test_pooled_ratio_is_the_ratio_of_sums():
    run = correlated_pairs(15, 0.4, seed=1)
    flat = run["image"].values.reshape(15, 2, -1).astype(float)
    deviations = flat - flat.mean(-1, keepdims=True)
    covariance = (deviations[:, 0] * deviations[:, 1]).sum()
    expected = covariance / np.sqrt(np.square(deviations).sum((0, 2)).prod())
    assert rows(run).loc[("PN", False), "estimate"] == pytest.approx(expected, rel=0.02)
    gram = np.einsum("ikd,jmd->ikjm", deviations, deviations)
    between = gram.sum() - np.einsum("ikim->", gram)
    count = 15 * 14 * 4
    power = np.square(deviations).sum() / 30
    assert rows(run).loc[("RR", False), "estimate"] == pytest.approx(between / count / power, abs=1e-6)


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
    assert correlation.rr(run, centred=True).mean() == pytest.approx(np.mean(between), abs=1e-5)


def test_centring_is_unbiased_where_a_common_mean_is_not():
    """At 16 units one mean of all images would put the centred RR at -1/15; cross-fitting leaves 0."""
    structure = 5 * np.random.default_rng(9).standard_normal((1, 12, 12))
    tables = [rows(correlated_pairs(16, 0, seed, (1, 12, 12), structure)) for seed in range(40)]
    for kind in ("PN", "RR"):
        estimates = np.array([table.loc[(kind, True), "estimate"] for table in tables])
        assert abs(estimates.mean()) < 3 * estimates.std(ddof=1) / np.sqrt(40) < 0.012
    assert tables[0].loc[("RR", False), "estimate"] > 0.9


@pytest.mark.slow
def test_intervals_cover_the_truth():
    """95% of the PN intervals cover, no less and no more; RR is degenerate, its jackknife covers more."""
    runs = [correlated_pairs(40, -0.6, seed, (1, 4, 4)) for seed in range(200)]
    tables = [rows(run) for run in runs]
    truth = {"PN": -0.6, "RR": 0, "PN-RR": -0.6}
    for kind, centred in itertools.product(truth, (False, True)):
        table = pd.DataFrame([table.loc[(kind, centred)] for table in tables])
        mean = table["mean"].mean()
        for low, high, value in (("low", "high", truth[kind]), ("mean_low", "mean_high", mean)):
            covered = int(((table[low] <= value) & (value <= table[high])).sum())
            alternative = "less" if kind == "RR" else "two-sided"
            assert stats.binomtest(covered, 200, 0.95, alternative=alternative).pvalue > 0.01, (kind, low, covered)


def test_classes_that_differ_do_not_widen_the_intervals():
    """Between-class variance is no error: the intervals are those of the classes taken alone."""
    strengths, size = (-0.9, 0.0, 0.9), 40
    parts = [correlated_pairs(size, rho, seed)["image"].values for seed, rho in enumerate(strengths)]
    table = rows(run_of(np.concatenate(parts), condition=np.repeat([0, 1, 2], size)))
    single = [rows(run_of(part)).loc[("PN", False)] for part in parts]
    assert table.loc[("PN", False), "mean"] == pytest.approx(np.mean([row["mean"] for row in single]))
    errors = [(row["mean_high"] - row["mean_low"]) / 2 for row in single]
    half = (table.loc[("PN", False), "mean_high"] - table.loc[("PN", False), "mean_low"]) / 2
    assert half == pytest.approx(np.sqrt(np.square(errors).sum()) / 3, rel=0.4)
    shuffled = np.random.default_rng(0).permutation(3 * size)
    mixed = rows(run_of(np.concatenate(parts)[shuffled], condition=np.repeat([0, 1, 2], size)[shuffled]))
    assert mixed.loc[("PN", False), "mean"] == pytest.approx(table.loc[("PN", False), "mean"])


def test_few_units_of_many_classes():
    """Eight units a class: no fold is ever emptied, and the pooled ratio is not drawn towards 0."""
    rng = np.random.default_rng(5)
    classes = rng.permutation(np.repeat(np.arange(13), 8))
    table = rows(run_of(correlated_pairs(104, 0.6, seed=6, size=(1, 8, 8))["image"].values, condition=classes))
    assert np.isfinite(table[["estimate", "low", "high", "mean_low", "mean_high"]].to_numpy()).all()
    row = table.loc[("PN", True)]
    assert row["low"] < 0.6 < row["high"]
    assert row["high"] - row["low"] < 0.1


def test_held_out_that_are_all_constant_have_no_correlation():
    table = rows(run_of(np.ones((10, 2, 1, 4, 4))))
    assert table["estimate"].isna().all()
    assert table.loc[("PN", False), "undefined"] == 10


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
    assert rows(run).loc[("PN", False), "mean"] == pytest.approx(np.mean(expected), abs=1e-6)


def test_constant_images_are_counted_not_filled():
    images = np.random.default_rng(0).standard_normal((10, 2, 1, 5, 5))
    images[3, 0] = 0.1
    table = rows(run_of(images))
    assert np.isnan(correlation.pn(run_of(images))[3])
    assert table.loc[("PN", False), "undefined"] == 1
    assert table.loc[("RR", False), "undefined"] == 18
    others = rows(run_of(np.delete(images, 3, 0)))
    assert table.loc[("PN", False), "mean"] == pytest.approx(others.loc[("PN", False), "mean"])
    gram = correlation.rr(run_of(images))
    assert table.loc[("RR", False), "mean"] == pytest.approx(np.nanmean(gram), abs=1e-7)


def test_what_is_left_of_a_constant_after_rounding_has_no_direction():
    """Around 1, float32 has steps of 1.2e-7: a pattern of one step is rounding, one of 25 steps is an image."""
    pattern = np.random.default_rng(0).choice([-1, 1], (10, 2, 1, 8, 8))
    rounding, faint = (run_of(1 + size * pattern) for size in (1.2e-7, 3e-6))
    assert np.isnan(correlation.pn(rounding)).all()
    expected = [np.corrcoef(*pair.reshape(2, -1))[0, 1] for pair in pattern]
    np.testing.assert_allclose(correlation.pn(faint), expected, atol=0.1)


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


def test_pixel_map_of_values_far_from_zero_keeps_its_digits():
    run = correlated_pairs(50, -0.8, seed=3).astype(float, keep_attrs=True)
    far = run.assign(image=run["image"] + 1e7)
    np.testing.assert_allclose(correlation.pixel_map(far), correlation.pixel_map(run), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: correlation.pn(run_of(np.zeros((20, 1, 1, 4, 4)))), "got 1"),
        (lambda: correlation.summary(run_of(np.zeros((7, 2, 1, 4, 4)))), "got 7"),
        (lambda: correlation.summary(run_of(np.ones((9, 2, 1, 4, 4))), level=95), "got 95"),
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


@pytest.fixture(scope="module")
def paths():
    generator = diffusion.from_mixture(random_mixture(), SHAPE, LINEAR).with_(steps=5)
    return antinb.sample(generator, noise.antithetic(40), seed=0, trajectory=True, progress=False)


@pytest.mark.parametrize("centred", [False, True])
def test_rows_along_the_way_are_correlations_of_single_steps(paths, centred):
    table = correlation.along(paths, centred=centred).set_index(["variable", "step"])
    assert len(table) == 2 * 5 + 1
    ends = ["estimate", "low", "high", "mean", "mean_low", "mean_high", "undefined", "units"]
    for (name, step), row in table.iterrows():
        images = paths["image"] if step == 5 else paths[name].isel(step=step)
        known = rows(paths[["image"]].assign(image=images)).loc[("PN", centred)]
        np.testing.assert_allclose(row[ends].astype(float), known[ends].astype(float), atol=1e-9)
    np.testing.assert_allclose(table.loc[("state", 0), "estimate"], -1, atol=0.03 if centred else 1e-6)


def test_a_paired_difference_leaves_the_same_units_out_of_both_runs(pairs):
    other = pairs.assign(image=pairs["image"] + 0.5 * pairs["image"].isel(member=0))
    found = correlation.paired_difference(pairs, other).iloc[0]
    flat = [run["image"].values.reshape(200, 2, -1).astype(float) for run in (pairs, other)]
    deviations = [part - part.mean(-1, keepdims=True) for part in flat]

    def gap(units):
        parts = [part[units] for part in deviations]
        first, second = (2 * (part[:, 0] * part[:, 1]).sum() / (part**2).sum() for part in parts)
        return first - second

    np.testing.assert_allclose(found[["estimate", "low", "high"]].astype(float), intervals.jackknife(gap, 200, 0.95))
    singles = correlation.pn(pairs) - correlation.pn(other)
    assert found["mean"] == pytest.approx(singles.mean().item())
    single = correlation.summary(pairs).iloc[0]
    assert found["high"] - found["low"] < single["high"] - single["low"]
    with pytest.raises(ValueError, match="units \\[200, 100\\]"):
        correlation.paired_difference(pairs, pairs.isel(unit=slice(100)))


def test_a_run_with_classes_is_compared_with_one_without(pairs):
    classes = pairs.assign_coords(condition=("unit", np.arange(200) % 10))
    found = correlation.paired_difference(classes, pairs).iloc[0]
    np.testing.assert_allclose(found[["estimate", "low", "high", "mean"]].astype(float), 0, atol=1e-12)


def test_the_error_of_the_mean_images_is_taken_off_the_mean_of_singles():
    """Singles shrink by 1 / (1 + 4 (1 + rho) / (2 units))."""
    runs = [correlated_pairs(16, -0.6, seed, (1, 12, 12)) for seed in range(40)]
    singles = np.array([correlation.pn(run, centred=True).mean().item() for run in runs])
    means = np.array([rows(run).loc[("PN", True), "mean"] for run in runs])
    truth = np.mean([rows(run).loc[("PN", False), "mean"] for run in runs])  # about the known mean, 0
    assert singles.mean() == pytest.approx(truth / (1 + 4 * 0.4 / 32), abs=0.008)
    assert means.mean() == pytest.approx(truth, abs=0.008)
    assert abs(singles.mean() - truth) > 0.02


def test_trajectories_are_asked_for(pairs):
    with pytest.raises(ValueError, match="holds a 'state'"):
        correlation.along(pairs)
