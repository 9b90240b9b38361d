"""Cross-fitted correlations against a plain double loop; lazy, transposed, half-precision and broken runs."""

import itertools

import dask.array
import numpy as np
import pytest
import xarray as xr

from antinb import correlation, dataset, diversity, estimation, statistics
from antinb.analysis import crossfit, intervals

RNG = np.random.default_rng(0)
LABELS = RNG.permutation(np.repeat(["a", "b", "c"], (16, 13, 11)))


def run_of(images, dtype=np.float64, **coords):
    return dataset.build({"image": np.asarray(images, dtype)}, {"evaluations": 1}, **coords)


def drawn(units=40, members=2, size=(1, 3, 4)):
    """Images with a common structure, members that oppose each other, and mean values that vary."""
    shared, own = RNG.normal(size=(units, 1, *size)), RNG.normal(size=(units, members, *size))
    signs = (-1.0) ** np.arange(members)[:, None, None, None]
    return RNG.normal(size=size) + signs * shared + own + RNG.normal(size=(units, 1, 1, 1, 1))


def slow(images, labels, kept, centred):
    """Return mean and pooled ratio of PN and RR, `(4,)`, from all pairs of images of the kept units, one by one."""
    flat = images.reshape(*images.shape[:2], -1)
    folds = np.empty(len(flat), int)
    for label in np.unique(labels):
        folds[labels == label] = np.arange((labels == label).sum()) * 4 // (labels == label).sum()

    def mean(label, fold):
        return flat[(labels == label) & (folds == fold) & kept].mean((0, 1))

    totals = np.zeros((2, 4))  # PN mean, PN pooled, RR mean, RR pooled, and what each is divided by
    for label, half in itertools.product(np.unique(labels), (0, 1) if centred else (None,)):
        units = np.flatnonzero((labels == label) & kept & (folds // 2 == half if centred else True))
        sides = [mean(label, fold) for fold in (2 - 2 * half, 3 - 2 * half)] if centred else [0 * flat[0, 0]] * 2
        left, right = (flat[units] - side for side in sides)
        left, right = (side - side.mean(-1, keepdims=True) for side in (left, right))
        power = np.mean([x @ y for x, y in zip(np.concatenate(left), np.concatenate(right), strict=True)])
        images_of = list(itertools.product(range(len(units)), range(flat.shape[1])))
        for (i, k), (j, m) in itertools.permutations(images_of, 2):
            product, place = left[i, k] @ right[j, m], 0 if i == j else 2
            lengths = np.linalg.norm(left[i, k]) * np.linalg.norm(right[j, m])
            totals[:, place] += product / lengths, 1
            totals[:, place + 1] += product, power
    return totals[0] / totals[1]


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize(("members", "labels"), [(2, None), (2, LABELS), (3, LABELS)])
def test_estimates_and_leave_outs_are_those_of_a_plain_double_loop(centred, members, labels):
    images = drawn(members=members)
    run = run_of(images, condition=labels)
    units = crossfit.split(run)
    (found,) = crossfit.correlate(dataset.images(run), units, centred, leave_out=True)
    estimates = found.estimates()
    labels = np.zeros(40) if labels is None else labels
    for column in (0, 1, 7):
        expected = slow(images, labels, units.block != column - 1, centred)
        np.testing.assert_allclose(estimates[:2, :, column].ravel(), expected, rtol=0, atol=1e-10)
    np.testing.assert_array_equal(estimates[2], estimates[0] - estimates[1])


@pytest.mark.parametrize("centred", [False, True])
def test_single_correlations_are_those_of_each_pair(centred):
    images = drawn()
    run = run_of(images)
    flat, folds = images.reshape(40, 2, -1), np.arange(40) // 10
    means = [flat[folds == fold].mean((0, 1)) * centred for fold in range(4)]

    def single(i, k, j, m):
        one, other = (2, 3) if folds[i] < 2 else (0, 1)
        roles = ((one, other), (other, one))
        return np.mean([np.corrcoef(flat[i, k] - means[a], flat[j, m] - means[b])[0, 1] for a, b in roles])

    np.testing.assert_allclose(
        correlation.pn(run, centred=centred), [single(i, 0, i, 1) for i in range(40)], rtol=0, atol=1e-10
    )
    pairs = [
        pair for pair in itertools.combinations(range(40), 2) if not centred or len({*(np.array(pair) // 20)}) == 1
    ]
    expected = [single(i, k, j, m) for i, j in pairs for k, m in itertools.product((0, 1), repeat=2)]
    np.testing.assert_allclose(np.sort(correlation.rr(run, centred=centred)), np.sort(expected), rtol=0, atol=1e-10)


def test_intervals_are_those_of_the_jackknife():
    run = run_of(drawn(), condition=LABELS)
    kinds, numbers = np.unique(LABELS, return_inverse=True)

    def pooled(kept):
        return slow(run["image"].values, LABELS, np.isin(np.arange(40), kept), False)[3]

    expected = intervals.jackknife(pooled, 40, 0.9, strata=numbers)
    row = correlation.summary(run, level=0.9).set_index(["pairs", "centred"]).loc[("RR", False)]
    np.testing.assert_allclose(row[["estimate", "low", "high"]].astype(float), expected, atol=1e-10)
    assert len(kinds) == 3


def test_few_large_images_keep_their_inner_products_in_fewer_coordinates(monkeypatch):
    images = drawn(units=10, size=(3, 24, 24))
    images[4, 1] = 0.3
    turned = crossfit.compact(dataset.images(run_of(images)))
    assert turned.shape == (10, 2, 21)
    here, there = (part.reshape(20, -1) for part in (images, turned.values))
    np.testing.assert_allclose(there @ there.T, here @ here.T, rtol=0, atol=1e-8)
    np.testing.assert_allclose(there.mean(1) * 21**0.5, here.mean(1) * here.shape[1] ** 0.5, atol=1e-10)
    monkeypatch.setattr(crossfit, "PANEL", 5000)
    panels = crossfit.compact(dataset.images(run_of(images)))
    np.testing.assert_allclose(crossfit.gram(panels)[0], crossfit.gram(turned)[0], rtol=0, atol=1e-8)
    compact = correlation.summary(run_of(images))
    monkeypatch.setattr(crossfit, "FEW", 0)
    xr.testing.assert_allclose(compact.to_xarray(), correlation.summary(run_of(images)).to_xarray(), rtol=0, atol=1e-10)


def numbers(run):
    """Return everything that is read by blocks, as one vector."""
    pairs = run.isel(unit=slice(20))
    along = run.drop_vars("image").assign(
        state=run["image"].expand_dims(step=2), predicted_noise=run["image"].expand_dims(step=2), image=run["image"]
    )
    flatten = [
        correlation.summary(run).select_dtypes("number"),
        correlation.histogram(run, centred=True)["density"],
        *(function(run, centred=True) for function in (correlation.pn, correlation.rr)),
        correlation.along(along, centred=True)["estimate"],
        correlation.pixel_map(run, min_sd=0),
        statistics.measure(run, statistics.brightness, statistics.contrast),
        diversity.scores(run, lambda images: images[..., 0, :, 0]),
        diversity.kid(pairs, pairs.assign(image=2 * pairs["image"]), lambda images: images[..., 0, :, 0])["low"],
        estimation.pixelwise(run).to_array(),
    ]
    return np.concatenate([np.ravel(part) for part in flatten])


def test_lazy_and_transposed_runs_give_the_same_numbers(monkeypatch):
    run = run_of(drawn(size=(1, 12, 12)) / 5)
    lazy = run_of(drawn()).assign(
        image=(dataset.DIMS, dask.array.from_array(run["image"].values, chunks=(7, 2, 1, 12, 12)), run["image"].attrs)
    )
    whole = numbers(run)
    assert np.isfinite(whole[:40]).sum() > 20
    np.testing.assert_array_equal(numbers(run.transpose("x", "unit", "channel", "member", "y")), whole)
    monkeypatch.setattr(dataset.blocks, "__defaults__", (9 * 2 * 144,))
    monkeypatch.setattr(crossfit.parts, "__defaults__", (9 * 2 * 144,))
    np.testing.assert_allclose(numbers(lazy), whole, rtol=0, atol=1e-9)


def test_blocks_read_each_stored_chunk_once():
    read = []

    def load(block, block_info=None):
        if block_info:
            read.append(block_info[0]["chunk-location"][0])
        return block

    stored = dask.array.from_array(np.arange(40.0).reshape(20, 2), chunks=(3, 2)).map_blocks(load)
    for size, stops in ((16, [6, 12, 18, 20]), (4, [2, 3, 5, 6, 8, 9, 11, 12, 14, 15, 17, 18, 20])):
        read.clear()
        found = list(dataset.blocks(xr.DataArray(stored, dims=["unit", "x"]), size))
        assert [units.stop for units, _ in found] == stops
        np.testing.assert_array_equal(np.concatenate([part for _, part in found]), np.arange(40).reshape(20, 2))
        assert sorted(read) == list(range(7))


def test_images_without_a_correlation_are_left_out_and_counted():
    images = drawn()
    images[3, 0], images[17, 1], images[30, 0, 0, 1, 1] = 0.5, np.nan, np.inf
    table = correlation.summary(run_of(images)).set_index(["pairs", "centred"])
    assert (table.loc["PN", "undefined"] == [3, 2]).all()  # 0.5 less a mean image is not constant
    assert table.loc[("RR", False), "undefined"] == np.isnan(correlation.rr(run_of(images))).sum()
    assert table.loc[("RR", True), "undefined"] == np.isnan(correlation.rr(run_of(images), centred=True)).sum()
    assert table.loc[("RR", False), "singles"] == 4 * 40 * 39 / 2 - table.loc[("RR", False), "undefined"]
    others = correlation.summary(run_of(np.delete(images, [3, 17, 30], 0))).set_index(["pairs", "centred"])
    assert table.loc[("PN", False), "mean"] == pytest.approx(others.loc[("PN", False), "mean"], abs=1e-12)
    assert np.isfinite(table[["estimate", "low", "high", "mean_low", "mean_high"]].to_numpy()).all()


def test_equal_images_have_nothing_left_after_centring():
    images = np.tile(drawn(units=1, members=1), (16, 2, 1, 1, 1))
    table = correlation.summary(run_of(images)).set_index(["pairs", "centred"])
    assert table.loc["PN", "undefined"].tolist() == [0, 16]
    assert table.loc["RR", "undefined"].tolist() == [0, 2 * 4 * 8 * 7 / 2]
    assert table.loc[("RR", False), "estimate"] == pytest.approx(1, abs=1e-12)
    assert np.isnan(table.loc[("RR", True), "estimate"])


def test_what_rounding_leaves_of_equal_images_is_no_pooled_ratio():
    """The sum of 24 equal images is rounded, so that centring leaves about 1e-16 of each."""
    images = np.tile(drawn(units=1, members=1), (48, 2, 1, 1, 1)) / 3
    table = correlation.summary(run_of(images)).query("centred")
    assert table[["estimate", "low", "high", "mean"]].isna().all(axis=None)


def test_of_many_pairs_a_fixed_part_gives_the_quantiles(monkeypatch):
    run = run_of(drawn(units=200), condition=np.arange(200) % 2)
    every = correlation.summary(run).set_index(["pairs", "centred"])
    monkeypatch.setattr(crossfit, "SINGLES", 5000)
    part = correlation.summary(run).set_index(["pairs", "centred"])
    assert every.loc[("RR", False), "singles"] == 2 * 4 * 100 * 99 / 2
    assert 4000 < part.loc[("RR", False), "singles"] < 5500
    np.testing.assert_allclose(
        part.loc[("RR", False), ["sd", "q50"]].astype(float),
        every.loc[("RR", False), ["sd", "q50"]].astype(float),
        atol=0.03,
    )
    same = ["estimate", "low", "high", "mean", "mean_low", "mean_high", "undefined"]
    np.testing.assert_array_equal(part[same], every[same])
    np.testing.assert_array_equal(correlation.rr(run), correlation.rr(run))


def test_sums_of_half_precision_images_do_not_overflow():
    images = (200 + 50 * RNG.standard_normal((8, 2, 3, 256, 256), np.float32)).astype(np.float16)
    half, single = run_of(images, np.float16), run_of(images, np.float32)
    np.testing.assert_array_equal(correlation.pn(half), correlation.pn(single))
    limits = {"range": "[0, 400]"}
    half, single = (run.assign(image=run["image"].assign_attrs(limits)) for run in (half, single))
    found = [statistics.measure(run, lambda x: x.sum((-3, -2, -1))) for run in (half, single)]
    np.testing.assert_array_equal(*found)
    np.testing.assert_array_equal(*(correlation.pixel_map(run) for run in (half, single)))


IMAGES = run_of(drawn())
READERS = {
    "summary": correlation.summary,
    "histogram": correlation.histogram,
    "pn": correlation.pn,
    "rr": correlation.rr,
    "along": correlation.along,
    "pixel_map": correlation.pixel_map,
    "measure": lambda run: statistics.measure(run, statistics.contrast),
    "scores": lambda run: diversity.scores(run, lambda images: images[..., 0, 0]),
    "kid": lambda run: diversity.kid(run, run, lambda images: images[..., 0, 0]),
    "pixelwise": estimation.pixelwise,
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    ("given", "words"),
    [
        (IMAGES["image"], "a run is a Dataset with a variable 'image' by .*; got a DataArray"),
        (IMAGES["image"].values, "a run is .*; got a ndarray"),
        (None, "a run is .*; got a NoneType"),
        (IMAGES.rename(image="state"), "a run is .*; got {'state'"),
        (IMAGES.rename(y="height"), "a run is .*; got .*'height'"),
        (IMAGES.assign_coords(unit=np.arange(40) // 2), "unit 0 stands twice"),
        (IMAGES.astype(np.uint8), "images are floating-point numbers; got uint8"),
        (IMAGES > 0, "images are floating-point numbers; got bool"),
    ],
)
def test_what_is_no_run_is_refused_in_one_line(reader, given, words):
    with pytest.raises(ValueError, match=words) as caught:
        READERS[reader](given)
    assert "\n" not in str(caught.value)
