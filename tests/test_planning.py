"""Plans against closed forms and against the runs that they plan; two stages against Stein's theorem."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from scipy import stats

import antinb
from antinb import controls, dataset, estimation, intervals, noise, planning, statistics, surrogates
from antinb.analysis import allocation
from antinb.noise import modes

SHAPE = (1, 4, 4)
BRIGHT, CONTRAST = statistics.brightness, statistics.contrast


def run(design, statistic, seed, evaluations=20):
    c = modes.to_modes(design.draw(SHAPE, seed=seed).astype(np.float64), SHAPE)
    attrs = {"design": json.dumps(design.describe()), "seed": json.dumps(seed), "evaluations": str(evaluations)}
    return xr.DataArray(statistic(c)[None], {"statistic": ["s"]}, ["statistic", "unit", "member"], attrs=attrs)


def rough(c):
    """An odd part of variance 1.09 and an even part of variance 0.5; products of far modes stay rough."""
    return c[..., 0] + 0.3 * c[..., 9] + 0.5 * (c[..., 3] ** 2 - 1)


def twin(c):
    return rough(c) + 0.2 * (c[..., 12] ** 2 - 1) / 2**0.5


PILOT = noise.sobol(500, 32, antithetic=True)


@pytest.mark.slow
def test_every_part_of_the_pilot_is_the_design_that_it_stands_for():
    """Efficiencies read off one pilot agree with closed forms, or with runs of the designs themselves."""
    table = planning.candidates(run(PILOT, rough, 0)).set_index("design")
    assert table.index.tolist() == list(planning.designs(32))
    assert table.loc["iid", "efficiency"] == pytest.approx(1)
    np.testing.assert_allclose(table["odd_share"], 1.09 / 1.59, atol=0.02)
    np.testing.assert_allclose(table["smooth_share"], 1 - 1 / table.loc["sobol(16)", "efficiency"], atol=1e-12)
    assert table.loc["antithetic", "efficiency"] == pytest.approx(1.59 / (2 * 0.5), rel=0.05)
    for name, kind in planning.designs(32).items():
        design = kind(2000)
        variance = run(design, rough, 1).mean("member").var(ddof=1).item()
        assert table.loc[name, "variance"] == pytest.approx(variance, rel=0.2), name
        assert table.loc[name, "cost"] == 20 * design.members


def test_two_levels_of_a_plan_are_those_of_an_allocation():
    fine, coarse = run(PILOT, rough, 0), run(PILOT, twin, 0, 5)
    found = planning.candidates(fine, coarse).query("levels == 2").set_index("design")
    known = allocation.best_allocation(np.cov(*(arm.values[0].mean(-1) for arm in (fine, coarse))), 20 * 32, 5 * 32)
    row = found.loc["sobol(32, antithetic)"]
    assert row["coefficient"] == pytest.approx(known["coefficient"])
    assert row["coarse_units"] == pytest.approx(max(1, known["coarse_units_per_fine"]))
    b, plain = np.linspace(0, 1, 10_001), found.loc["iid"]
    rest, moved = 1.59 - 2 * b * 1.59 + b**2 * 1.63, b**2 * 1.63
    known = 1.59 * 20 / (((rest * 25) ** 0.5 + (moved * 5) ** 0.5) ** 2).min()
    assert plain["efficiency"] == pytest.approx(known, rel=0.03)
    assert plain["correlation"] == pytest.approx((1.59 / 1.63) ** 0.5, abs=0.005)
    units = plain["variance"], plain["cost"]
    assert 1.59 * 20 / np.prod(units) == pytest.approx(known, rel=0.03)


def test_a_twin_that_never_changes_is_no_help():
    table = planning.candidates(run(PILOT, rough, 0), 0 * run(PILOT, rough, 0, 5)).set_index(["design", "levels"])
    for name in planning.designs(32):
        assert table.loc[(name, 2), "coefficient"] == 0
        assert table.loc[(name, 2), "efficiency"] == pytest.approx(table.loc[(name, 1), "efficiency"] * 20 / 30)


def cheap(c):
    """Twice the leading odd mode of `rough`, its even part, and something of its own."""
    return 2 * c[..., 0] + 0.5 * (c[..., 3] ** 2 - 1) + 0.3 * c[..., 14]


def test_what_surrogates_explain_is_taken_out_of_both_levels():
    """Efficiencies with surrogates agree with closed forms and with regressions of the pilot's own unit means."""
    tables = run(PILOT, rough, 0), run(PILOT, twin, 0, 5)
    near = run(PILOT, cheap, 0, 0), run(PILOT, lambda c: c[..., 9], 0, 0)
    found = planning.candidates(*tables, surrogates=near).set_index(["design", "surrogates", "levels"])
    alone = planning.candidates(*tables).drop(columns="surrogates")
    pd.testing.assert_frame_equal(found.xs(0, level="surrogates").reset_index(), alone, check_like=True)
    rest = 1.59 - 0.09 - (2 + 0.5) ** 2 / (4 + 0.5 + 0.09)
    assert found.loc[("iid", 2, 1), "variance"] == pytest.approx(rest, rel=0.03)
    assert found.loc[("iid", 2, 1), "efficiency"] == pytest.approx(1.59 / rest, rel=0.03)
    y, second, *x = (table.values[0].mean(-1) for table in (*tables, *near))
    design = np.column_stack([np.ones(500), *x])
    left = [part - design @ np.linalg.lstsq(design, part, rcond=None)[0] for part in (y, second)]
    variance = (left[0] ** 2).sum() / (500 - 1 - 2)
    assert found.loc[("sobol(32, antithetic)", 2, 1), "variance"] == pytest.approx(variance)
    known = allocation.best_allocation(np.cov(left), 20 * 32, 5 * 32)
    assert found.loc[("sobol(32, antithetic)", 2, 2), "coefficient"] == pytest.approx(known["coefficient"])


def test_a_pilot_says_where_it_leaves_an_efficiency_uncertain():
    found = planning.candidates(run(noise.sobol(60, 16, antithetic=True), rough, 0), level=0.95)
    factor = found["high"] / found["efficiency"]
    assert (found["warning"].ne("") == (factor > 1.25)).all()
    assert 0 < (factor > 1.25).sum() < len(found)
    said = found.set_index("design").loc["sobol(16, antithetic)"]
    assert f"within a factor of {said['high'] / said['efficiency']:.2g}: take more units" in said["warning"]


def test_a_plan_pays_for_its_surrogates_and_is_right_about_them(mixture_generator):
    """The planned variance is that of a run with `controls.surrogate`, and evaluations of one pilot count once."""
    fitted = antinb.sample(mixture_generator, noise.iid(64), seed=5, progress=False)
    near = surrogates.gaussian(mixture_generator, fitted, rank=4)
    options = {"seed": 0, "units": 32, "points": 16, "half_width": 0.003}
    table = planning.plan(mixture_generator, BRIGHT, CONTRAST, surrogates=[near], **options)
    chosen = table.loc[table["recommended"], ["design", "surrogates", "levels"]]
    assert len(chosen) == 2
    assert len(chosen.drop_duplicates()) == 1
    plain = planning.plan(mixture_generator, BRIGHT, CONTRAST, **options)
    assert table["pilot_evaluations"].unique().tolist() == [plain["pilot_evaluations"].iloc[0] + 64 * 10]
    twice = planning.plan(mixture_generator, BRIGHT, CONTRAST, surrogates=[near, near], **options)
    assert twice["pilot_evaluations"].unique().tolist() == table["pilot_evaluations"].unique().tolist()
    row = table.query("statistic == 'contrast' and design == 'sobol(8)' and surrogates == 1").iloc[0]
    design, far = noise.sobol(400, 8), noise.sobol(16, 64)
    runs = (mixture_generator, design, 7), (near, design, 7), (near, far, 8)
    fine, *tables = (
        statistics.measure(antinb.sample(model, kind, seed=seed, progress=False), CONTRAST)
        for model, kind, seed in runs
    )
    rest = controls.surrogate(fine, *tables).mean("member").var(ddof=1).item()
    assert row["efficiency"] == pytest.approx(fine.var(ddof=1).item() / 8 / rest, rel=0.35)


def test_a_half_width_is_met_by_the_fewest_units_and_a_budget_is_kept(mixture_generator):
    options = {"seed": 0, "units": 16, "points": 16}
    aims = [0.002, 0.001]
    table = planning.plan(mixture_generator, BRIGHT, CONTRAST, half_width=aims, **options)
    t = stats.t.ppf(0.975, table["units"] - 1)
    t_less = stats.t.ppf(0.975, table["units"] - 2)
    variance = (table["half_width"] / t) ** 2 * table["units"]
    wanted = table["statistic"].map(dict(zip(["brightness", "contrast"], aims, strict=True)))
    assert (table["half_width"] <= wanted).all()
    assert ((t_less**2 * variance / (table["units"] - 1) > wanted**2) | (table["units"] == 20)).all()
    needed = table.groupby("design")["evaluations"].max()
    assert table.loc[table["recommended"], "design"].unique().tolist() == [needed.idxmin()]
    coarse = mixture_generator.with_(steps=2)
    table = planning.plan(mixture_generator, BRIGHT, CONTRAST, budget=50_000, coarse=coarse, **options)
    assert (table["evaluations"] + table["pilot_evaluations"] <= 50_000).all()
    assert table["pilot_evaluations"].unique().tolist() == [16 * 16 * (10 + 2)]
    assert ((table["low"] <= table["efficiency"]) & (table["efficiency"] <= table["high"])).all()
    chosen = table[table["recommended"]]
    worst = table[table["units"] >= 20].groupby(["design", "levels"])["efficiency"].min()
    assert (chosen["design"].iloc[0], chosen["levels"].iloc[0]) == worst.idxmax()


def test_the_planned_width_is_the_width_of_the_run(mixture_generator):
    table = planning.plan(mixture_generator, BRIGHT, seed=0, half_width=0.003, units=64, points=16)
    row = table[table["recommended"]].iloc[0]
    design = planning.designs(16)[row["design"]](2 * int(row["units"]))
    values = statistics.measure(antinb.sample(mixture_generator, design, seed=1, progress=False), BRIGHT)
    found = estimation.interval(values).iloc[0]
    half = (found["high"] - found["low"]) / 2
    assert half * 2**0.5 == pytest.approx(row["half_width"], rel=0.35)


def test_two_stages_stop_when_the_interval_is_narrow_enough(mixture_generator, tmp_path):
    store, first = tmp_path / "run.zarr", noise.antithetic(20)
    table = planning.run_until(
        mixture_generator, first, BRIGHT, CONTRAST, half_width=[0.01, 0.004], seed=3, store=store
    )
    assert (table["high"] - table["low"] <= 2 * np.array([0.01, 0.004]) + 1e-12).all()
    units = int(table["units"].iloc[0])
    assert units > 20
    values = statistics.measure(dataset.open(store), BRIGHT, CONTRAST)
    assert values.sizes["unit"] == units
    means = values.mean("member").values
    for row, mean in zip(table.itertuples(), means, strict=True):
        spreads = [stats.t.ppf(0.975, n - 1) * mean[:n].std(ddof=1) for n in (row.df + 1, units)]
        half, hall = max(spreads) / units**0.5, intervals.hall_interval(mean, 0.95)
        known = [min(mean.mean() - half, hall[0]), max(mean.mean() + half, hall[1])]
        np.testing.assert_allclose([row.low, row.high], known)
        assert row.df + 1 == intervals.first_stage(mean, 20)
    start = stats.t.ppf(0.975, 19) * means[:, :20].std(1, ddof=1) / np.array([0.01, 0.004])
    assert np.ceil(start.max() ** 2) <= units < 2 * start.max() ** 2
    np.testing.assert_allclose(table["estimate"], values.mean(["unit", "member"]))
    assert table["evaluations"].tolist() == [units * 2 * 10] * 2
    for place in (None, store):
        again = planning.run_until(
            mixture_generator, first, BRIGHT, CONTRAST, half_width=[0.01, 0.004], seed=3, store=place
        )
        np.testing.assert_allclose(again["estimate"], table["estimate"], atol=1e-6)
        np.testing.assert_allclose(again["low"], table["low"], atol=1e-6)
    narrower = planning.run_until(mixture_generator, first, BRIGHT, half_width=0.002, seed=3, store=store)
    assert narrower["units"].item() > units


def test_a_run_that_would_cost_too_much_keeps_its_first_stage(mixture_generator, tmp_path):
    store = tmp_path / "run.zarr"
    with pytest.raises(ValueError, match=r"needs \d+ evaluations, \d+ units; most is 500$"):
        planning.run_until(
            mixture_generator, noise.antithetic(20), BRIGHT, half_width=0.001, seed=3, store=store, most=500
        )
    assert dataset.open(store).sizes["unit"] == 20


@pytest.mark.slow
def test_a_budget_is_kept_to_the_last_evaluation(mixture_generator):
    options = {"half_width": 0.002, "seed": 3}
    needed = planning.run_until(mixture_generator, noise.antithetic(20), BRIGHT, **options)["evaluations"].item()
    assert needed > 400
    within = planning.run_until(mixture_generator, noise.antithetic(20), BRIGHT, most=needed, **options)
    assert within["evaluations"].item() == needed
    with pytest.raises(ValueError, match=f"most is {needed - 1}$"):
        planning.run_until(mixture_generator, noise.antithetic(20), BRIGHT, most=needed - 1, **options)


@pytest.mark.slow
def test_two_stages_cover_whatever_the_spread_and_the_skewness():
    """The wanted width is met where a fixed N = 20 misses it; s_N mends what Stein's s_n lacks on skewed units."""
    rng = np.random.default_rng(0)
    laws = {0.5: rng.standard_normal(50_000), 3.0: rng.standard_normal(50_000), 1.0: rng.gamma(3, size=50_000)}
    for scale, units in laws.items():
        found = intervals.coverage(scale * units, 20, half_width=0.4, experiments=4000).iloc[0]
        assert found["high"] >= (0.94 if scale == 1 else 0.95)
        assert found["width"] <= 0.8
    means = np.array([0.0, 3, 1, 2, 9])
    stein, final = (stats.t.ppf(0.975, n - 1) * means[:n].std(ddof=1) / 5**0.5 for n in (4, 5))
    assert intervals.two_stage(means, 4, 0.95) == pytest.approx(final)
    assert intervals.two_stage(means[:4], 4, 0.95) == pytest.approx(stein * 5**0.5 / 2)
    assert intervals.two_stage(np.r_[means[:4], 1.5], 4, 0.95) == pytest.approx(stein)


def test_a_skewed_first_stage_is_lengthened_at_most_fivefold():
    rng = np.random.default_rng(0)
    normal, skewed = rng.standard_normal(200), rng.exponential(size=200) ** 2
    assert intervals.first_stage(np.where(np.arange(200) % 2, 1.0, -1.0), 20) == 20
    assert intervals.first_stage(np.ones(30), 20) == 20
    assert intervals.first_stage(normal, 20) <= 100
    some = np.r_[normal[:19], 3.0]
    wanted = np.ceil((stats.skew(some) / 0.15) ** 2)
    assert intervals.first_stage(some, 20) == np.clip(wanted, 20, 100)
    assert 20 < wanted < 100
    assert intervals.first_stage(skewed, 20) == 100
    at = intervals.first_stage(normal, 40)
    assert abs(stats.skew(normal[:at])) <= 0.15 * at**0.5


def test_a_skewed_interval_reaches_out_to_halls():
    means = np.random.default_rng(1).exponential(size=60)
    half, hall = intervals.two_stage(means, 20, 0.95), intervals.hall_interval(means, 0.95)
    low, high = intervals.two_stage_interval(means, 20, 0.95)
    assert (low, high) == (means.mean() - half, hall[1])
    every, *ends = intervals.two_stages(means[:20], lambda size: means[20 : 20 + size], 2 * half, 0.95)
    assert ends == list(intervals.two_stage_interval(every, intervals.first_stage(every, 20), 0.95))
    assert max(every.mean() - ends[0], ends[1] - every.mean()) <= 2 * half


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({}, "either half_width or budget; got 1, None, None"),
        ({"half_width": 0.1, "budget": 10**6}, "either half_width or budget"),
        ({"half_width": 0}, "half_width must be a positive number, or one for each of 1; got 0"),
        ({"half_width": [0.1, 0.1]}, "one for each of 1"),
        ({"half_width": float("nan")}, "half_width must be"),
        ({"budget": 100}, "the pilot alone costs 640 evaluations; got a budget of 100"),
        ({"budget": 700}, "the budget gives no design 20 units beyond the pilot; got 700"),
        ({"budget": 10**5, "units": 4}, "the pilot's units must be an integer of at least 8; got 4"),
        ({"budget": 10**5, "points": 12}, "must be a power of 2"),
        ({"budget": 10**5, "points": 2048}, "points must be an integer of at most 1024; got 2048"),
        ({"budget": 10**5, "level": 1}, "level must be a number from"),
    ],
)
def test_bad_plans_are_one_line(settings, reason, mixture_generator):
    options = {"seed": 0, "units": 8, "points": 8, **settings}
    with pytest.raises(ValueError, match=reason) as error:
        planning.plan(mixture_generator, BRIGHT, **options)
    assert "\n" not in str(error.value)


def test_more_bad_plans_are_one_line(mixture_generator):
    options = {"seed": 0, "units": 8, "points": 8, "budget": 10**5}
    cases = [
        (lambda: planning.plan(mixture_generator, **options), "statistics and either"),
        (lambda: planning.plan(mixture_generator, BRIGHT, coarse=mixture_generator, **options), "evaluations an image"),
        (
            lambda: planning.plan(mixture_generator, statistics.event(BRIGHT, above=2.0), **options),
            "brightness > 2 is constant",
        ),
        (lambda: planning.candidates(run(noise.antithetic(9), rough, 0)), "a pilot is a run of noise.sobol"),
        (
            lambda: planning.candidates(run(PILOT, rough, 0), surrogates=[run(PILOT, rough, 1)]),
            "of the same noise; their seed is 0 and 1",
        ),
        (
            lambda: planning.plan(mixture_generator, BRIGHT, surrogates=[mixture_generator], **options),
            "10 units for each surrogate; got 8 for 1",
        ),
        (
            lambda: planning.run_until(mixture_generator, noise.iid(19), BRIGHT, half_width=1, seed=0),
            "first stage must be an integer of at least 20; got 19",
        ),
        (
            lambda: planning.run_until(mixture_generator, noise.iid(20), BRIGHT, half_width=-1, seed=0),
            "half_width must be a positive number",
        ),
        (
            lambda: planning.run_until(mixture_generator, noise.iid(20), BRIGHT, half_width=1, seed=0, most=np.nan),
            "most must be an integer or None; got nan",
        ),
        (
            lambda: planning.run_until(mixture_generator, noise.iid(20), BRIGHT, half_width=1e-200, seed=0, most=10**6),
            "the half-width needs .* most is 1000000",
        ),
        (lambda: planning.plan(mixture_generator, BRIGHT, BRIGHT, **options), "names of their own"),
    ]
    for call, reason in cases:
        with pytest.raises(ValueError, match=reason) as error:
            call()
        assert "\n" not in str(error.value)


def test_units_drawn_again_are_planned_with_but_given_no_interval():
    """Efficiencies of units that stand twice are those of the same numbers under other labels."""
    fine = run(noise.sobol(20, 8, antithetic=True), rough, 0).assign_coords(unit=np.arange(20))
    drawn = fine.isel(unit=np.r_[np.arange(20), np.arange(10)])
    pd.testing.assert_frame_equal(
        planning.candidates(drawn), planning.candidates(drawn.assign_coords(unit=np.arange(30)))
    )
    with pytest.raises(ValueError, match="unit 0 stands twice"):
        planning.candidates(drawn, level=0.95)


def test_a_run_goes_on_in_a_store_that_is_one(tmp_path):
    place = tmp_path / "notes"
    place.mkdir()
    (place / "mine").write_text("x")
    options = {"half_width": 0.1, "seed": 0}
    with pytest.raises(ValueError, match="no run"):
        planning.run_until(
            antinb.load(torch.tanh, shape=SHAPE), noise.antithetic(20), statistics.brightness, store=place, **options
        )
    assert [path.name for path in place.iterdir()] == ["mine"]
    store = tmp_path / "run.zarr"
    first = planning.run_until(
        antinb.load(torch.tanh, shape=SHAPE), noise.antithetic(20), statistics.brightness, store=store, **options
    )
    again = planning.run_until(
        antinb.load(torch.tanh, shape=SHAPE), noise.antithetic(20), statistics.brightness, store=store, **options
    )
    pd.testing.assert_frame_equal(first, again)


def test_a_plan_without_a_twin_may_say_so():
    options = {"half_width": 0.1, "seed": 0, "units": 8, "points": 4}
    found = planning.plan(antinb.load(torch.tanh, shape=SHAPE), statistics.brightness, coarse=None, **options)
    pd.testing.assert_frame_equal(
        found, planning.plan(antinb.load(torch.tanh, shape=SHAPE), statistics.brightness, **options)
    )
