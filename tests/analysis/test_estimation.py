"""Intervals, efficiencies and coverage against closed forms, scipy and simulated truths."""

import json

import numpy as np
import pytest
import xarray as xr
from helpers import LINEAR, SHAPE, random_mixture
from numpy.polynomial import HermiteE
from scipy import stats
from statsmodels.stats.weightstats import DescrStatsW

import antinb
from antinb import estimation, intervals, noise, statistics
from antinb.analysis.bounded import bounded_interval
from antinb.models import diffusion

ATTRS = {"design": json.dumps({"name": "antithetic"}), "evaluations": "20", "seed": "0"}
OTHER = {**ATTRS, "seed": "1"}


def values(table, condition=None):
    table = np.asarray(table, float)
    array = xr.DataArray(table[None], {"statistic": ["s"]}, ["statistic", "unit", "member"], attrs=ATTRS)
    return array if condition is None else array.assign_coords(condition=("unit", condition))


def test_t_interval_is_that_of_the_unit_means():
    table = np.random.default_rng(0).standard_normal((30, 2))
    row = estimation.interval(values(table), level=0.9).iloc[0]
    means = DescrStatsW(table.mean(1))
    assert row["estimate"] == pytest.approx(means.mean)
    np.testing.assert_allclose(row[["low", "high"]].astype(float), means.tconfint_mean(0.1))
    assert row[["units", "members", "evaluations", "design"]].tolist() == [30, 2, 1200, "antithetic"]


def test_a_bounded_statistic_has_the_betting_interval_even_if_constant():
    table = (np.random.default_rng(0).random((100, 2)) < 0.02).astype(float)
    row = estimation.interval(values(table), method="bounded", level=0.9).iloc[0]
    assert row[["low", "high"]].tolist() == list(bounded_interval(table.mean(1), 0.9))
    assert row["method"] == "bounded"
    assert row["warning"] == ""
    never = estimation.interval(values(np.zeros((100, 2))), method="bounded").iloc[0]
    assert never[["estimate", "low", "df"]].tolist() == [0, 0, 99]
    assert 3 / 100 < never["high"] < 6 / 100  # the rule of three, at 97.5% and for any law
    with pytest.raises(ValueError, match=r"a statistic in \[0, 1\]; s goes from 0 to 2"):
        estimation.interval(values(2 * table), method="bounded")
    with pytest.raises(ValueError, match="constant over units .*; method='bounded' gives one"):
        estimation.interval(values(np.zeros((100, 2))))


def test_rows_say_how_skewed_the_units_are_and_what_to_do():
    rng = np.random.default_rng(0)
    skewed, even = rng.exponential(size=(60, 1)), rng.standard_normal((60, 1))
    row = estimation.interval(values(skewed)).iloc[0]
    assert row["skewness"] == pytest.approx(stats.skew(skewed[:, 0]))
    assert row["warning"].endswith("take method='skew', or 'bounded' if the statistic lies in [0, 1], or more units")
    for table, method in ((skewed, "skew"), (even, "t")):
        assert estimation.interval(values(table), method=method)["warning"].item() == ""
    condition = np.repeat([0, 1], 30)
    shifted = estimation.interval(values(even + 9 * condition[:, None], condition)).iloc[0]
    assert shifted["warning"] == ""
    assert abs(shifted["skewness"]) < 1
    pairs, plain = values(skewed * [1, 1]), values(rng.standard_normal((90, 1))).assign_attrs(OTHER)
    assert estimation.compare(pairs, plain)["warning"].str.endswith("take several hundred units").all()
    assert estimation.odd_share(values(skewed + even * [1, -1]))["warning"].str.contains("not normal").all()


def test_members_of_a_unit_are_no_replicates():
    table = np.random.default_rng(0).standard_normal((30, 1))
    once, often = (estimation.interval(values(np.repeat(table, k, 1))).iloc[0] for k in (1, 50))
    assert once["low"] == pytest.approx(often["low"])


def test_symmetric_means_need_no_correction_and_skewed_ones_move():
    symmetric = np.r_[-3, -1, -0.5, 0.5, 1, 3]
    np.testing.assert_allclose(
        intervals.skew_interval(symmetric, 0.95), intervals.t_interval(symmetric, 0.95), rtol=1e-4
    )
    right = np.random.default_rng(0).exponential(size=40)
    t, hall, skew = (
        np.array(ends(right, 0.95)) for ends in (intervals.t_interval, intervals.hall_interval, intervals.skew_interval)
    )
    assert (hall > t).all()
    assert skew.tolist() == [t[0], hall[1]]


def test_halls_transformation_is_inverted():
    """g(T) at the ends of the interval is the t quantile."""
    means = np.random.default_rng(1).exponential(size=25)
    low, high = intervals.hall_interval(means, 0.95)
    skewness = stats.skew(means) / 25**0.5
    for end, sign in ((low, 1), (high, -1)):
        t = (means.mean() - end) / (means.std(ddof=1) / 5)
        transformed = t + skewness * t**2 / 3 + skewness**2 * t**3 / 27 + skewness / 6
        assert transformed == pytest.approx(sign * stats.t.ppf(0.975, 24), rel=1e-6)


def test_strata_keep_the_variance_between_them_out():
    rng = np.random.default_rng(0)
    condition = np.repeat([0, 1, 2], [10, 20, 30])
    table = rng.standard_normal((60, 1)) + 100 * condition[:, None]
    row = estimation.interval(values(table, condition)).iloc[0]
    parts = [table[condition == k, 0] for k in range(3)]
    shares = np.array([10, 20, 30]) / 60
    pieces = np.array([part.var(ddof=1) / len(part) for part in parts]) * shares**2
    assert row["estimate"] == pytest.approx(shares @ [part.mean() for part in parts])
    assert row["se"] == pytest.approx(pieces.sum() ** 0.5)
    assert row["df"] == pytest.approx(pieces.sum() ** 2 / (pieces**2 / [9, 19, 29]).sum())


@pytest.mark.parametrize("degree", [1, 2, 3, 4])
@pytest.mark.parametrize("k", [2, 3, 4, 8])
def test_simplex_variance_factors_of_hermite_polynomials(k, degree):
    """K Var(unit mean) / Var = 1 + (K - 1) (-1 / (K - 1))^m."""
    z = noise.simplex(20_000, k=k).draw((1,), seed=0)[..., 0].astype(float)
    statistic = HermiteE.basis(degree)(z)
    means = statistic.mean(1)
    known = 1 + (k - 1) * (-1 / (k - 1)) ** degree
    variance = float(np.prod(np.arange(1, degree + 1)))
    factors = k * means**2 / variance
    assert abs(factors.mean() - known) <= 5 * factors.std() / 20_000**0.5 + 1e-6


def test_efficiency_of_pairs_is_one_over_one_plus_the_correlation():
    rng = np.random.default_rng(0)
    z = rng.standard_normal((4000, 2))
    rho = -0.8
    pair = np.stack([z[:, 0], rho * z[:, 0] + (1 - rho**2) ** 0.5 * z[:, 1]], 1)
    table = estimation.compare(values(pair), values(rng.standard_normal((4000, 1))).assign_attrs(OTHER)).set_index(
        "quantity"
    )
    row = table.loc["efficiency"]
    assert row["low"] <= 1 / (1 + rho) <= row["high"]
    assert row["high"] - row["low"] < 1
    narrower = table.loc["narrower_percent"]
    assert narrower["estimate"] == pytest.approx(100 * (1 - (1 + rho) ** 0.5), abs=2)
    few = estimation.compare(values(pair[:9]), values(z[:, :1]).assign_attrs(OTHER)).set_index("quantity")["estimate"]
    quantiles = stats.t.ppf(0.975, [17, 8])
    assert few["width_efficiency"] / few["efficiency"] == pytest.approx((quantiles[0] / quantiles[1]) ** 2)


def test_one_design_against_another_is_the_ratio_of_their_efficiencies():
    """Pairs of correlation -0.8 against groups of 4 with independent members: 5 / 1."""
    rng = np.random.default_rng(2)
    z = rng.standard_normal((4000, 2))
    pair, group = np.stack([z[:, 0], -0.8 * z[:, 0] + 0.6 * z[:, 1]], 1), rng.standard_normal((3000, 4))
    row = estimation.compare(values(pair), values(group).assign_attrs(OTHER)).set_index("quantity").loc["efficiency"]
    assert row["low"] <= 5 <= row["high"]
    assert row["high"] - row["low"] < 1.2
    assert row["estimate"] == pytest.approx(4 * group.mean(1).var(ddof=1) / (2 * pair.mean(1).var(ddof=1)))
    few = estimation.compare(values(pair[:8]), values(group[:9]).assign_attrs(OTHER)).set_index("quantity")["estimate"]
    quantiles = stats.t.ppf(0.975, [16 / 4 - 1, 8 - 1])
    assert few["width_efficiency"] / few["efficiency"] == pytest.approx((quantiles[0] / quantiles[1]) ** 2)


def in_turn(rng: np.random.Generator, units: int) -> tuple[xr.DataArray, xr.DataArray]:
    """Pairs of correlation -0.8 and independent draws of three conditions with other means and spreads."""
    scales, means = np.array([1.0, 2.0, 5.0]), np.array([0.0, 100.0, -40.0])
    classes = [np.arange(count) % 3 for count in (units, 2 * units)]
    z = rng.standard_normal((units, 2))
    pair = np.stack([z[:, 0], -0.8 * z[:, 0] + 0.6 * z[:, 1]], 1)
    tables = [pair, rng.standard_normal((2 * units, 1))]
    tables = [means[kind, None] + scales[kind, None] * x for kind, x in zip(classes, tables, strict=True)]
    pairs, plain = (values(x, kind) for x, kind in zip(tables, classes, strict=True))
    return pairs, plain.assign_attrs(OTHER)


def test_efficiency_within_conditions_leaves_their_means_out():
    pairs, plain = in_turn(np.random.default_rng(3), 60)
    found = estimation.compare(pairs, plain)
    shift = np.array([7.0, -3.0, 90.0])
    moved = [part + xr.DataArray(shift[part["condition"].values], dims="unit") for part in (pairs, plain)]
    moved = estimation.compare(*(m.assign_attrs(part.attrs) for m, part in zip(moved, (pairs, plain), strict=True)))
    np.testing.assert_allclose(moved[["estimate", "low", "high"]], found[["estimate", "low", "high"]], rtol=1e-9)
    inside = [
        part[0].values - part[0].groupby("condition").mean(...).sel(condition=part["condition"]).values[:, None]
        for part in (pairs, plain)
    ]
    marginal = sum((x**2).sum() for x in inside) / (sum(x.size for x in inside) - 6)
    spread = (inside[0].mean(1) ** 2).sum() / 57
    assert found["estimate"][0] == pytest.approx(marginal / (2 * spread))
    quantiles = stats.t.ppf(0.975, [117, 57])
    assert found["estimate"][1] / found["estimate"][0] == pytest.approx((quantiles[0] / quantiles[1]) ** 2)


def test_odd_shares_within_conditions_are_those_of_the_centred_pairs():
    pairs, _ = in_turn(np.random.default_rng(4), 90)
    found = estimation.odd_share(pairs).set_index("quantity")["estimate"]
    x = pairs[0].values
    half = x.mean(1) - np.array([x[pairs["condition"].values == k].mean() for k in pairs["condition"].values])
    odd = ((x[:, 0] - x[:, 1]) ** 2).mean() / 4
    assert found["odd_share"] == pytest.approx(odd / (odd + (half**2).sum() / 87))


@pytest.mark.slow
def test_efficiency_intervals_cover_within_conditions():
    rng, covered = np.random.default_rng(5), 0
    for seed in range(200):
        table = estimation.compare(*in_turn(rng, 90), seed=seed)
        covered += table["low"][0] <= 5 <= table["high"][0]
    assert stats.binomtest(covered, 200, 0.95).pvalue > 1e-3


@pytest.mark.slow
def test_efficiency_intervals_cover():
    rng, covered = np.random.default_rng(1), 0
    for seed in range(100):
        z = rng.standard_normal((200, 2))
        pair = np.stack([z[:, 0], -0.8 * z[:, 0] + 0.6 * z[:, 1]], 1)
        table = estimation.compare(values(pair), values(rng.standard_normal((400, 1))).assign_attrs(OTHER), seed=seed)
        covered += table["low"][0] <= 5 <= table["high"][0]
    assert stats.binomtest(covered, 100, 0.95).pvalue > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(("linear", "square"), [(1.0, 0.05), (1.0, 0.5), (0.3, 1.0)])
def test_odd_share_of_a_quadratic(linear, square):
    """S = a z + b (z^2 - 1) has the odd share a^2 / (a^2 + 2 b^2)."""
    z = noise.antithetic(20_000).draw((1,), seed=0)[..., 0].astype(float)
    table = estimation.odd_share(values(linear * z + square * (z**2 - 1))).set_index("quantity")
    known = linear**2 / (linear**2 + 2 * square**2)
    row = table.loc["odd_share"]
    assert row["low"] - 1e-9 <= known <= row["high"] + 1e-9
    assert row["high"] - row["low"] < 0.03
    predicted = table.loc["predicted_efficiency", ["estimate", "low", "high"]].astype(float)
    np.testing.assert_allclose(predicted, 1 / (2 * (1 - row[["estimate", "low", "high"]].astype(float))))


@pytest.mark.slow
def test_the_predicted_efficiency_is_the_measured_one():
    z = noise.antithetic(4000).draw((1,), seed=0)[..., 0].astype(float)
    other = noise.iid(8000).draw((1,), seed=1)[..., 0].astype(float)
    pilot = noise.antithetic(4000).draw((1,), seed=2)[..., 0].astype(float)
    pairs, plain, pilot = (values(np.tanh(2 * x) + 0.4 * x**2) for x in (z, other, pilot))
    measured = estimation.compare(pairs, plain.assign_attrs(OTHER)).set_index("quantity").loc["efficiency"]
    predicted = estimation.odd_share(pilot).set_index("quantity").loc["predicted_efficiency"]
    assert measured["low"] <= predicted["high"]
    assert predicted["low"] <= measured["high"]
    assert predicted["estimate"] == pytest.approx(measured["estimate"], rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("statistic", "share", "least"),
    [
        (lambda z: (z > 1).astype(float), (1 + stats.norm.sf(1) / stats.norm.cdf(1)) / 2, 0.92),
        (lambda z: z + 0.5 * (z**2 - 1), 2 / 3, 0.82),
    ],
)
def test_odd_share_intervals_cover_as_said(statistic, share, least):
    """An event above one has rho = -p / (1 - p); a chi-squared even part is the hard case, 92% at 400 units."""
    rng, covered = np.random.default_rng(0), 0
    for _ in range(200):
        z = rng.standard_normal((400, 1)) * [1, -1]
        row = estimation.odd_share(values(statistic(z))).iloc[0]
        covered += row["low"] <= share <= row["high"]
    assert stats.binomtest(covered, 200, least).pvalue > 1e-3 or covered > 200 * least


def test_coverage_of_the_sampler_with_an_exact_truth():
    """The images of one Gaussian are affine in the noise: the mean pixel is that of the image of 0."""
    gaussian = diffusion.from_mixture(random_mixture(1), SHAPE, LINEAR).with_(steps=5)
    still = noise.Design("still", 1, 1, lambda rng, shape: np.zeros((1, *shape)))
    truth = float(antinb.sample(gaussian, still, seed=0, progress=False)["image"].mean())
    images = antinb.sample(gaussian, noise.iid(2000), seed=1, progress=False)["image"]
    means = images.mean(["channel", "y", "x", "member"], dtype=np.float64).values
    covered = [
        low <= truth <= high for low, high in zip(*intervals.t_interval(means.reshape(-1, 10), 0.95), strict=True)
    ]
    assert stats.binomtest(sum(covered), 200, 0.95).pvalue > 1e-3


def test_measured_values_know_their_run(pairs):
    table = estimation.interval(statistics.measure(pairs, statistics.brightness, statistics.contrast))
    assert table["statistic"].tolist() == ["brightness", "contrast"]
    assert table["evaluations"].tolist() == [200 * 2 * 10] * 2
    assert (table["design"] == "antithetic").all()


NAN = np.where(np.arange(20) < 3, np.nan, np.arange(20.0)).reshape(10, 2)


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda: estimation.interval(values([[1.0]])), "at least two units a condition; s has"),
        (lambda: estimation.interval(values(np.ones((9, 2)))), "s is constant over units"),
        (lambda: estimation.interval(values(NAN)), "s is undefined in 2 of 10 units; drop=True"),
        (lambda: estimation.interval(values(NAN), level=1), "level must be a number from"),
        (lambda: estimation.interval(values(NAN), method="z"), "method must be one of"),
        (lambda: estimation.interval(values(np.eye(4), [0, 0, 1, 2])), r"two units a condition; s has \[2, 1, 1\]"),
        (
            lambda: estimation.interval(values(np.arange(8.0).reshape(4, 2), [0, 0, 1, 1]), method="skew"),
            "'skew' is for one condition",
        ),
        (
            lambda: estimation.compare(values(np.eye(9)), values(np.eye(9)).assign_attrs(evaluations="10")),
            "of the same generator; their evaluations is 20 and 10",
        ),
        (lambda: estimation.compare(values(np.eye(9)), values(np.eye(9)[:, :1])), "runs of one seed share their noise"),
        (
            lambda: estimation.compare(
                values(NAN + 1, [0] * 5 + [1] * 5), values(NAN[:, :1]).assign_attrs(OTHER), drop=True
            ),
            r"at the same shares of the conditions; got {0: 0.375, 1: 0.625} and {0: 1.0, 1: 0.0}",
        ),
        (lambda: estimation.odd_share(values(np.ones((9, 2)))), "s is constant over units"),
        (lambda: estimation.odd_share(values(np.eye(7)[:, :2])), "at least 8; got 7"),
        (lambda: estimation.odd_share(values(NAN)), "s is undefined in 2 of 10 units"),
        (
            lambda: estimation.odd_share(values(NAN).assign_attrs(design=json.dumps({"name": "simplex"}))),
            "odd shares come from pairs z, -z of noise.antithetic; got a run of 'simplex'",
        ),
        (
            lambda: estimation.odd_share(values(NAN + 1, [0] * 5 + [1] * 5), drop=True),
            "at least 8 of each condition; got 3",
        ),
    ],
)
def test_bad_arguments_are_one_line(call, reason):
    with pytest.raises(ValueError, match=reason) as error:
        call()
    assert "\n" not in str(error.value)


def test_undefined_units_are_dropped_whole_and_counted():
    row = estimation.interval(values(NAN), drop=True).iloc[0]
    assert row[["units", "dropped"]].tolist() == [8, 2]
    assert row["estimate"] == pytest.approx(np.arange(4, 20).mean())
    assert row["evaluations"] == 10 * 2 * 20
    assert (estimation.odd_share(values(NAN), drop=True)["dropped"] == 2).all()
    other = values(NAN).assign_attrs(seed="another")
    assert (estimation.compare(values(NAN), other, drop=True)["dropped"] == 4).all()
