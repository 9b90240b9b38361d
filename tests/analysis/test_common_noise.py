"""Two models on the same noise: SciPy's and statsmodels' tests, closed forms of linear models, and images by hand."""

import json

import numpy as np
import pytest
import xarray as xr
from helpers import LINEAR, SHAPE, random_mixture
from scipy import stats
from statsmodels.stats.weightstats import DescrStatsW

import antinb
from antinb import comparison, dataset, noise, statistics
from antinb.analysis import verdicts
from antinb.analysis.estimates import Estimate
from antinb.analysis.imagewise import quantiles
from antinb.models import diffusion

ABOUT = {"design": {"name": "antithetic"}, "seed": 0, "evaluations": 3, "shape": [1, 12, 12]}
RNG = np.random.default_rng(0)
Z = noise.antithetic(60).draw((1, 12, 12), seed=0)


def built(images, condition=None, **about):
    return dataset.build({"image": np.asarray(images, np.float32)}, {**ABOUT, **about}, condition=condition)


A, B = built(Z / 8), built(Z / 8 + 0.02 + Z**2 / 80)
BOTH = [statistics.brightness, statistics.contrast]


def table(values, seed=0, **labels):
    """Return a run whose images are flat, of these values `(unit, member)` in [0, 1]."""
    flat = np.broadcast_to(2 * np.asarray(values)[..., None, None, None] - 1, (*np.shape(values), 1, 2, 2))
    return built(flat, shape=[1, 2, 2], seed=seed, **labels)


def p_value(gaps, limit, side):
    """The larger p-value of a t test and of Hall's cubic transformation, written as a cube."""
    skewness = stats.skew(gaps) / len(gaps) ** 0.5
    plain = (gaps.mean() - limit) / stats.sem(gaps)
    hall = ((1 + skewness * plain / 3) ** 3 - 1) / skewness + skewness / 6
    return stats.t.sf(side * np.array([plain, hall]), len(gaps) - 1).max()


def test_the_row_is_that_of_a_paired_t_test_of_unit_means():
    found = comparison.summary(A, B, BOTH).set_index("statistic").loc["contrast"]
    a, b = (statistics.measure(run, statistics.contrast)[0].values for run in (A, B))
    oracle = stats.ttest_rel(b.mean(1), a.mean(1))
    np.testing.assert_allclose(found[["low", "high"]].tolist(), oracle.confidence_interval(0.95), rtol=1e-9)
    gaps = (b - a).mean(1)
    twice = 2 * 2 * p_value(gaps, 0, np.sign(gaps.mean()))  # two sides, and Holm over two, the larger one
    assert found["p_different"] == pytest.approx(min(1, twice), rel=1e-9)
    assert oracle.pvalue <= twice / 2
    assert (found["a"], found["b"], found["estimate"]) == pytest.approx((a.mean(), b.mean(), (b - a).mean()))
    assert found["correlation"] == pytest.approx(np.corrcoef(a.ravel(), b.ravel())[0, 1])
    assert found["in_sd"] == pytest.approx((b - a).mean() / ((a.var() + b.var()) / 2) ** 0.5)
    independent = (a.var(ddof=1) + b.var(ddof=1)) / a.size
    assert found["efficiency"] == pytest.approx(independent / ((b - a).mean(1).var(ddof=1) / len(a)))
    assert found["efficiency_low"] < found["efficiency"] < found["efficiency_high"]
    assert found["evaluations"] == 2 * 3 * 120


@pytest.mark.parametrize("margin", [0.003, 0.02])
def test_equal_is_the_two_one_sided_tests_of_statsmodels(margin):
    found = comparison.summary(A, B, [statistics.brightness], {"brightness": margin}).iloc[0]
    a, b = (statistics.measure(run, statistics.brightness)[0].values.mean(1) for run in (A, B))
    plain = DescrStatsW(b - a).ttost_mean(-margin, margin)[0]
    sides = [p_value(b - a, limit, side) for limit, side in ((margin, -1), (-margin, 1))]
    assert found["p_equal"] == pytest.approx(max(sides), rel=1e-9)
    assert plain <= found["p_equal"] <= max(2 * plain, 1e-6)
    assert found["p_different"] == pytest.approx(min(1, 2 * p_value(b - a, margin, 1)), rel=1e-9)
    assert found["verdict"] == ("equal" if margin == 0.02 else "different")


@pytest.mark.parametrize("sign", [-1, 1])
def test_skewed_units_have_the_larger_p_value_that_is_halls(sign):
    gaps = sign * (np.random.default_rng(5).gamma(1, size=40) - 1.3) / 50
    found = comparison.summary(table(np.full((40, 1), 0.5)), table(0.5 + gaps[:, None]), [statistics.pixel_mean]).iloc[
        0
    ]
    sides = [p_value(gaps, 0, side) for side in (-1, 1)]
    assert found["p_different"] == pytest.approx(min(1, 2 * min(sides)), rel=1e-3)
    plain = stats.t.sf(np.abs(gaps.mean() / stats.sem(gaps)), 39)
    assert min(sides) > 5 * plain


def test_holm_and_looks_make_verdicts_harder():
    """Holm takes three sorted p-values times 3, 2 and 1, none below the last; four looks quarter the error."""
    one = comparison.summary(A, B, [statistics.brightness], {"brightness": 0.0165}).iloc[0]
    four = comparison.summary(A, B, [statistics.brightness], {"brightness": 0.0165}, looks=4).iloc[0]
    assert four["p_equal"] == pytest.approx(4 * one["p_equal"])
    margins = {"brightness": 0.0163, "contrast": 0.01, "centroid_x": 0.001}
    asked = [statistics.brightness, statistics.contrast, statistics.centroid_x]
    alone = [
        comparison.summary(A, B, [part], {name: margins[name]})["p_equal"].item()
        for part, name in zip(asked, margins, strict=True)
    ]
    together = comparison.summary(A, B, asked, margins)["p_equal"].to_numpy()
    order = np.argsort(alone)
    known = np.maximum.accumulate(np.sort(alone) * [3, 2, 1])
    np.testing.assert_allclose(together[order], known.clip(max=1))
    assert 2 * np.sort(alone)[1] < 1
    quantiles = stats.t.ppf([0.975, 1 - 0.025 / 4], 59)
    assert (four["high"] - four["low"]) / (one["high"] - one["low"]) == pytest.approx(quantiles[1] / quantiles[0])


def test_the_units_that_are_needed_decide_in_four_of_five_cases():
    """With a normal mean 0.5 from a margin of 0.2, s = 1: power at that number of units by the noncentral t."""
    for mean, margin, truth in ((0.5, 0.2, "beyond"), (0.1, 0.4, "within"), (0.5, 0.0, "beyond")):
        needed = verdicts.units_needed(Estimate(mean, 0.1, 99), 100, margin, 0.05)
        tail = 0.05 if truth == "within" else 0.025
        power = stats.norm.sf(stats.norm.isf(tail) - abs(mean - margin) * needed**0.5)
        assert power == pytest.approx(0.8, abs=0.01)
    assert verdicts.units_needed(Estimate(0.3, 0.1, 99), 100, 0.3, 0.05) == np.inf


def test_common_noise_and_pairs_have_their_closed_form():
    """S_a = x + y, S_b = x + w with x, y, w normal: of the difference common noise leaves y - w."""
    x, y, w = RNG.standard_normal((3, 4000, 1)) * np.array([3, 1, 1])[:, None, None] / 40
    found = comparison.summary(table(0.5 + x + y), table(0.5 + x + w), [statistics.brightness]).iloc[0]
    assert found["efficiency_low"] < 20 / 2 < found["efficiency_high"]
    assert found["correlation"] == pytest.approx(0.9, abs=0.01)
    sign = np.array([1, -1])
    pairs = [0.5 + x + part * sign + even for part, even in ((y, 0), (w, x / 30))]  # odd in the difference
    found = comparison.summary(*map(table, pairs), [statistics.brightness]).iloc[0]
    variance = 2 / (2 * 9 / 900) * (10 + 9 * (31 / 30) ** 2 + 1) / 2
    assert found["efficiency_low"] < variance < found["efficiency_high"]


def test_a_model_equals_itself_whatever_the_batch_and_nothing_is_made_up(mixture_generator, pairs):
    again = antinb.sample(mixture_generator, noise.antithetic(200), seed=0, batch=7, progress=False)
    above = statistics.event(statistics.brightness, above=0.5)
    margins = {"brightness": 1e-4, "brightness > 0.5": 0.1}
    found = comparison.summary(pairs, again, [statistics.brightness, above], margins)
    assert found["verdict"].tolist() == ["equal", "equal"]
    assert abs(found["estimate"]).max() < 1e-6
    found = comparison.summary(pairs, pairs, [statistics.brightness], {"brightness": 1e-9}).iloc[0]
    assert (found["low"], found["high"], found["verdict"], found["units_needed"]) == (0, 0, "equal", 2)
    assert np.isnan(found["efficiency"])


def test_where_no_event_was_seen_to_differ_the_interval_has_a_width():
    """The betting interval of 64 zeros, and no verdict within a margin that 64 units cannot show."""
    event = statistics.event(statistics.brightness, above=0.5)
    run = table(RNG.uniform(0, 1, (64, 2)))
    found = comparison.summary(run, run, [event], {"brightness > 0.5": 0.01}).iloc[0]
    assert found["method"] == "bounded"
    assert found["low"] == pytest.approx(-found["high"])
    assert 0.03 < found["high"] < 0.2
    assert found["verdict"] == "undecided"


def test_models_of_other_noise_shapes_are_compared_as_independent_ones():
    first, second = table(RNG.uniform(0, 0.5, (40, 2))), table(RNG.uniform(0.2, 0.9, (30, 2)), seed=1)
    second.attrs |= {"shape": "[3, 4, 4]"}
    found = comparison.summary(first, second, [statistics.brightness]).iloc[0]
    a, b = (statistics.measure(run, statistics.brightness)[0].values.mean(1) for run in (first, second))
    oracle = stats.ttest_ind(b, a, equal_var=False)
    np.testing.assert_allclose(found[["low", "high"]].tolist(), oracle.confidence_interval(0.95), rtol=1e-9)
    assert (found["shared"], found["units"], found["method"]) == ("nothing", "40+30", "Welch over units")
    assert found["efficiency_low"] < 1 < found["efficiency_high"]  # uniform members are independent
    assert np.isnan(found["correlation"])
    second.attrs |= {"seed": "0"}
    with pytest.raises(ValueError, match="need two seeds"):
        comparison.summary(first, second, [statistics.brightness])


def test_conditions_are_strata_of_the_difference():
    kinds = np.repeat([0, 1], 30)
    values = RNG.uniform(0.2, 0.3, (2, 60, 2)) + kinds[:, None] * 0.5
    runs = [table(part, condition=kinds) for part in (values[0], values[1] + kinds[:, None] * 0.1)]
    found = comparison.summary(*runs, [statistics.brightness]).iloc[0]
    gaps = [(part[1] - part[0]).mean(1) for part in (values[:, :30], values[:, 30:] + [[[0]], [[0.1]]])]
    se = (sum(gap.var(ddof=1) / 30 for gap in gaps) / 4) ** 0.5
    assert (found["high"] - found["low"]) / 2 == pytest.approx(stats.t.ppf(0.975, 58) * se, rel=0.01)
    assert abs(found["correlation"]) < 0.3  # about the means of the conditions


def test_the_row_says_which_noise_is_shared():
    model = diffusion.from_mixture(random_mixture(rank=2), SHAPE, LINEAR)

    def told(first, second):
        runs = [antinb.sample(model.with_(**part), noise.iid(8), seed=0, progress=False) for part in (first, second)]
        return comparison.summary(*runs, [statistics.brightness])["shared"].item()

    assert told({"steps": 2}, {"steps": 4}) == "all"
    assert told({"steps": 2, "eta": 1.0}, {"steps": 2, "eta": 1.0}) == "all"
    assert told({"steps": 2, "scheduler": "ddpm"}, {"steps": 4, "scheduler": "ddpm"}) == "start"
    assert told({"steps": 2, "eta": 1.0}, {"steps": 2}) == "start"


def test_nan_in_one_model_is_left_out_and_counted():
    black = Z / 8
    dark = black.copy()
    dark[3] = -1
    found = comparison.summary(built(black), built(dark), [statistics.centroid_x]).iloc[0]
    assert (found["units"], found["dropped"]) == (59, 1)
    holed = black.copy()
    holed[5, 0, 0, 0, 0] = np.nan
    rows = comparison.images(built(black), built(holed))
    assert set(rows["dropped"]) == {1}
    assert not rows[["estimate", "low", "high"]].isna().any().any()
    assert comparison.summary(built(black), built(holed), BOTH)["dropped"].tolist() == [1, 1]


def test_images_are_those_of_the_formulas():
    found = comparison.images(A, B, [lambda a, b: np.abs(a - b).max((-3, -2, -1))]).set_index(["metric", "quantile"])
    a, b = (np.clip((run["image"].values.astype(float) + 1) / 2, 0, 1) for run in (A, B))
    errors = ((a - b) ** 2).mean((-3, -2, -1)) ** 0.5
    for share in (0.05, 0.5, 0.95):
        quantile = np.quantile(errors, share, method="inverted_cdf")
        assert found.loc[("RMSE", share), "estimate"] == pytest.approx(quantile, rel=1e-5)
        decibels = found.loc[("PSNR", round(1 - share, 2)), ["estimate", "low", "high"]].tolist()
        assert decibels == pytest.approx(
            (-20 * np.log10(found.loc[("RMSE", share), ["estimate", "high", "low"]].tolist()).astype(float)).tolist()
        )
    similar = statistics.structural_similarity(a.astype(np.float32), b.astype(np.float32))
    assert found.loc[("SSIM", 0.05), "estimate"] == pytest.approx(np.quantile(similar, 0.05), abs=1e-4)
    assert found.loc[("RMSE", 0.5), "worst"][0] == errors.max(1).argmax()
    assert ("<lambda>", 0.5) in found.index


@pytest.mark.slow
def test_the_intervals_of_quantiles_cover_with_dependent_members():
    """2,000 experiments, 60 units of 4 members that share half of their variance."""
    truth, hits = stats.norm.ppf([0.05, 0.5, 0.95]), []
    for seed in range(2000):
        rng = np.random.default_rng(seed)
        drawn = (rng.standard_normal((60, 1)) + rng.standard_normal((60, 4))) / 2**0.5
        rows = list(quantiles("d", drawn, {"level": 0.95}))
        hits.append([row["low"] <= value <= row["high"] for row, value in zip(rows, truth, strict=True)])
    assert np.mean(hits, 0)[1] == pytest.approx(0.95, abs=0.015)
    assert np.mean(hits, 0).min() > 0.9


def test_equal_images_and_one_image():
    rows = comparison.images(A, A).set_index(["metric", "quantile"])
    assert rows.loc["PSNR", ["estimate", "low", "high"]].to_numpy().min() == np.inf
    assert rows.loc["SSIM", "estimate"].tolist() == pytest.approx([1, 1, 1])
    one = comparison.images(A.isel(unit=[4]), B.isel(unit=[4]))
    assert one["low"].isna().all()
    assert set(one["warning"]) == {"an interval needs 8 units; got 1"}
    assert one["worst"].tolist() == [[4]] * len(one)
    with pytest.raises(ValueError, match="at least two units with both values; brightness has 1"):
        comparison.summary(A.isel(unit=[4]), B.isel(unit=[4]), BOTH)


def test_the_difference_is_drawn_about_grey():
    grid = comparison.side_by_side(A, B, [7, 2], gain=5)
    assert json.loads(grid.attrs["range"]) == [0, 1]
    a, b, difference = grid.sel(unit=2).transpose("row", ...).values
    np.testing.assert_allclose(difference, 0.5 + 2.5 * (b - a), atol=1e-6)
    np.testing.assert_allclose(a, np.clip(Z[2, 0] / 16 + 0.5, 0, 1), atol=1e-6)


def test_lazy_runs_give_the_same(tmp_path):
    lazy = [run.chunk({"unit": 7}) for run in (A, B)]
    xr.testing.assert_equal(comparison.summary(*lazy, BOTH).to_xarray(), comparison.summary(A, B, BOTH).to_xarray())
    for column in ("estimate", "low", "high"):
        np.testing.assert_array_equal(comparison.images(*lazy)[column], comparison.images(A, B)[column])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: comparison.summary(A, built(Z, seed=1), BOTH), "same noise; their seed is 0 and 1"),
        (lambda: comparison.summary(A, built(Z, design={"name": "iid"}), BOTH), "their design is .*antithetic.* and"),
        (lambda: comparison.summary(A, B.isel(unit=slice(9)), BOTH), "got 60 and 9, of which 9 are common"),
        (lambda: comparison.summary(A, B.drop_attrs(), BOTH), "run b has no 'design'"),
        (lambda: comparison.summary(A, B, []), "at least one statistic"),
        (lambda: comparison.summary(A, B, ["brightness"]), "did you mean antinb.statistics.brightness"),
        (lambda: comparison.summary(A, B, BOTH, {"brightnes": 0.1}), "did you mean 'brightness'"),
        (lambda: comparison.summary(A, B, BOTH, {"brightness": -0.1}), "margin of brightness must be .* got -0.1"),
        (lambda: comparison.summary(A, B, BOTH, looks=0), "looks must be an integer of at least 1; got 0"),
        (lambda: comparison.images(A, built(Z[..., :10], shape=[1, 12, 12])), r"\(1, 12, 12\) and \(1, 12, 10\)"),
        (lambda: comparison.images(A, B, [lambda a, b: 1.0]), "must return one number a pair of images"),
        (lambda: comparison.images(A, built(Z * np.nan)), "RMSE is undefined in all 60 units"),
        (lambda: comparison.side_by_side(A, B, [99]), r"labels of the runs; got \[99\]"),
        (lambda: comparison.side_by_side(A, B, [1], gain=0), "gain must be"),
        (
            lambda: comparison.summary(
                built(Z, condition=np.zeros(60, int)), built(Z, condition=np.ones(60, int)), BOTH
            ),
            "those of their units differ",
        ),
    ],
)
def test_bad_input_is_refused_with_the_value(call, words):
    with pytest.raises(ValueError, match=words):
        call()
