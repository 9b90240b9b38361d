"""Fréchet and kernel distances: closed forms, SciPy's root of a matrix, sums by hand, and coverage on Gaussians."""

import itertools

import numpy as np
import pytest
from helpers import SHAPE
from PIL import Image
from scipy import linalg

import antinb
from antinb import comparison, dataset, noise
from antinb.analysis import blocks

WIDE = 12.0  # a pixel is a feature divided by this, so that none is clipped


def features(images):
    """The pixels of a row as features, as they were before they became pixels."""
    return WIDE * (2 * images[..., 0, 0, :].astype(float) - 1)


def as_run(values, seed=0):
    """Return a run whose features are these values, `(unit, member, d)`."""
    pixels = np.asarray(values, np.float32)[:, :, None, None] / WIDE
    return dataset.build({"image": pixels}, {"design": {}, "seed": seed, "evaluations": 2})


def drawn(rng, units, members, d, scale=1.0):
    """Return units of d normal features, the second half of the members the negatives of the first."""
    half = rng.standard_normal((units, members // 2, d))
    return np.concatenate([half, -half], 1) * scale


def stored(folder, mean, covariance):
    np.savez(folder / "reference.npz", mu=mean, sigma=covariance)
    return folder / "reference.npz"


def plain_frechet(values, mean, covariance):
    """The definition, by SciPy's root of the product of both covariances."""
    flat = values.reshape(-1, values.shape[-1])
    own = np.cov(flat.T)
    root = linalg.sqrtm(own @ covariance).real
    return ((flat.mean(0) - mean) ** 2).sum() + np.trace(own + covariance - 2 * root)


def test_the_plain_estimate_is_that_of_the_definition(tmp_path):
    rng = np.random.default_rng(0)
    spread = rng.standard_normal((8, 8))
    values, covariance = drawn(rng, 40, 2, 8) @ spread, np.cov(rng.standard_normal((8, 50)))
    found = comparison.frechet(as_run(values), stored(tmp_path, np.ones(8), covariance), features).iloc[0]
    seen = features(dataset.scaled(as_run(values)["image"].values, -1, 1))
    assert found["plain"] == pytest.approx(plain_frechet(seen, np.ones(8), covariance), rel=1e-6)
    assert (found["features"], found["images"], found["kept"], found["reference"]) == (8, 80, 1.0, "as it is")


def test_the_estimate_is_the_jackknife_of_blocks_of_units(tmp_path):
    """40 units in 20 blocks of two, left out one at a time and ten at a time: the parabola in 1 / n, at 0."""
    rng = np.random.default_rng(1)
    values = features(dataset.scaled(as_run(drawn(rng, 40, 2, 3))["image"].values, -1, 1))
    found = comparison.frechet(as_run(values), stored(tmp_path, np.zeros(3), np.eye(3)), features).iloc[0]
    place = np.arange(40) % 20
    windows = [[(start + step) % 20 for step in range(10)] for start in range(20)]

    def mean(left_out):
        return np.mean([plain_frechet(values[~np.isin(place, left)], np.zeros(3), np.eye(3)) for left in left_out])

    means = [mean([[]]), mean([[block] for block in range(20)]), mean(windows)]
    assert found["estimate"] == pytest.approx(np.polynomial.polynomial.polyfit([1, 20 / 19, 2], means, 2)[0], rel=1e-5)
    left = np.array([plain_frechet(values[place != block], np.zeros(3), np.eye(3)) for block in range(20)])
    se = (19 / 20 * ((left - left.mean()) ** 2).sum()) ** 0.5
    assert (found["high"] - found["low"]) / 2 == pytest.approx(2.093024 * se, rel=1e-4)


@pytest.mark.slow
def test_blocks_of_two_sizes_leave_no_bias_in_a_variance(tmp_path):
    """The distance of one feature from a point mass is `m^2 + s^2`; with 45 units, blocks of two and of three."""
    values = np.random.default_rng(1).standard_normal((400, 45, 1, 1))
    path = stored(tmp_path, np.zeros(1), np.zeros((1, 1)))
    found = [comparison.frechet(as_run(part), path, features).iloc[0] for part in values]
    errors = np.array([row["estimate"] - 1 for row in found])
    assert abs(errors.mean()) < 4 * errors.std() / 20
    widths = np.array([row["high"] - row["low"] for row in found])
    assert np.sqrt((widths**2).mean()) / (2 * 2.093) == pytest.approx(errors.std(), rel=0.15)


def test_axes_keep_the_leading_variance_of_the_reference(tmp_path):
    """A reference with variances 5, 3, 1 along rotated axes: two keep 8/9, and the distance is that along them."""
    rng = np.random.default_rng(2)
    rotation = linalg.qr(rng.standard_normal((3, 3)))[0]
    path = stored(tmp_path, np.zeros(3), rotation @ np.diag([5.0, 3.0, 1.0]) @ rotation.T)
    run = as_run(drawn(rng, 200, 2, 3))
    found = comparison.frechet(run, path, features, axes=2).iloc[0]
    seen = features(dataset.scaled(run["image"].values, -1, 1)) @ rotation[:, :2]
    assert found["kept"] == pytest.approx(8 / 9)
    assert found["plain"] == pytest.approx(plain_frechet(seen, np.zeros(2), np.diag([5.0, 3.0])), rel=1e-5)


def test_the_difference_of_two_models_is_narrower_than_its_parts(tmp_path):
    rng = np.random.default_rng(3)
    base = drawn(rng, 300, 2, 6)
    runs = [as_run(base), as_run(1.1 * base + 0.05)]
    path = stored(tmp_path, np.full(6, 0.4), np.eye(6))
    table = comparison.frechet(runs[0], path, features, against=runs[1]).set_index("model")
    width = table["high"] - table["low"]
    assert table.index.tolist() == ["a", "b", "difference"]
    assert table.loc["difference", "estimate"] == pytest.approx(table.loc["b", "estimate"] - table.loc["a", "estimate"])
    assert width["difference"] < width[["a", "b"]].sum() / 1.5
    alone = comparison.frechet(runs[1], path, features)
    np.testing.assert_allclose(
        alone[["estimate", "low", "high"]].iloc[0], table.loc["b", ["estimate", "low", "high"]].astype(float)
    )
    assert table["evaluations"].tolist() == [1200, 1200, 2400]
    assert set(table["warning"]) == {""}
    few = comparison.frechet(runs[0].isel(unit=slice(127)), path, features)
    assert few["warning"].item() == "of fewer than 256 images the interval may be too short: take more"


def slow_kid(first, second, apart):
    """The mean over pairs of units, of members of the first and the second, one kernel at a time."""

    def mean(x, y, apart):
        pairs = [(i, j) for i, j in itertools.product(range(len(x)), range(len(y))) if i != j or not apart]
        return np.mean([np.mean([(a @ b / len(a) + 1) ** 3 for a in x[i] for b in y[j]]) for i, j in pairs])

    return mean(first, first, True) + mean(second, second, True) - 2 * mean(first, second, apart)


@pytest.mark.parametrize("others", [9, 11])
def test_kid_is_its_sum_over_distinct_units(others, monkeypatch):
    rng = np.random.default_rng(4)
    first, second = as_run(drawn(rng, 9, 2, 3)), as_run(drawn(rng, others, 4, 3, 1.2), 1)
    seen = [features(dataset.scaled(run["image"].values, -1, 1)) for run in (first, second)]
    found = comparison.kid(first, second, features).iloc[0]
    expected = slow_kid(*seen, apart=others == 9)
    assert found["estimate"] == pytest.approx(expected, rel=1e-6)
    flat = [part.reshape(-1, 1, 3) for part in seen]
    assert found["plain"] == pytest.approx(slow_kid(*flat, apart=False), rel=1e-6)
    monkeypatch.setattr(blocks, "KERNELS", 80)
    assert comparison.kid(first, second, features).iloc[0]["estimate"] == pytest.approx(found["estimate"])


def test_kid_agrees_with_that_of_diversity():
    rng = np.random.default_rng(5)
    runs = as_run(drawn(rng, 40, 2, 3)), as_run(drawn(rng, 40, 2, 3, 1.3), 1)
    found, other = comparison.kid(*runs, features).iloc[0], antinb.diversity.kid(*runs, features).iloc[0]
    assert found["estimate"] == pytest.approx(other["estimate"], rel=1e-6)
    assert found["high"] - found["low"] == pytest.approx(other["high"] - other["low"], rel=0.4)


def test_a_folder_of_pictures_is_a_reference(tmp_path):
    rng = np.random.default_rng(6)
    pixels = rng.integers(0, 256, (30, 4, 4), np.uint8)
    for number, picture in enumerate(pixels):
        Image.fromarray(picture).save(tmp_path / f"{number:02}.png")
    (tmp_path / "notes.txt").write_text("no picture")
    run = as_run(drawn(rng, 40, 2, 4)[:, :, None].repeat(1, 2).reshape(40, 2, 4))
    run = dataset.build({"image": np.repeat(run["image"].values, 4, 3)}, {"design": {}, "seed": 0, "evaluations": 1})
    known = features(pixels[:, None, None].astype(np.float32) / 255)[:, 0]
    found = comparison.frechet(run, tmp_path, features).iloc[0]
    seen = features(dataset.scaled(run["image"].values, -1, 1))
    assert found["plain"] == pytest.approx(plain_frechet(seen, known.mean(0), np.cov(known.T)), rel=1e-4)
    again = comparison.kid(run, str(tmp_path), features).iloc[0]
    assert again["plain"] == pytest.approx(slow_kid(seen.reshape(-1, 1, 4), known[:, None], False), rel=1e-4)
    Image.fromarray(np.zeros((4, 5), np.uint8)).save(tmp_path / "wide.jpg")
    with pytest.raises(ValueError, match="4 x 4; wide.jpg is 5 x 4"):
        comparison.frechet(run, tmp_path, features)
    (tmp_path / "wide.jpg").write_bytes(b"junk")
    with pytest.raises(ValueError, match="wide.jpg is no picture that can be read"):
        comparison.frechet(run, tmp_path, features)


def test_pictures_in_colour_are_read_as_they_are_stored(tmp_path):
    pixels = np.random.default_rng(7).integers(0, 256, (3, 5, 4, 3), np.uint8)
    for number, picture in enumerate(pixels):
        Image.fromarray(picture).save(tmp_path / f"{number}.png")
    [found] = antinb.analysis.references.pictures(tmp_path, (3, 5, 4))
    np.testing.assert_allclose(found, pixels.transpose(0, 3, 1, 2) / 255, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("d", "units", "members"), [(8, 32, 2), (64, 256, 2), (8, 32, 8)])
def test_intervals_cover_from_eight_images_a_feature_on(tmp_path, d, units, members):
    """Gaussians whose distances are known; 120 repetitions, nominal 95%, three standard errors of 2% below."""
    scales, shift = (1.0, 1.15), 0.3
    truth = [d * (shift**2 + (scale - 1) ** 2) for scale in scales]
    path, hits, found = stored(tmp_path, np.full(d, shift), np.eye(d)), [], []
    for seed in range(120):
        base = drawn(np.random.default_rng(seed), units, members, d)
        runs = [as_run(scale * base) for scale in scales]
        table = comparison.frechet(runs[0], path, features, against=runs[1])
        known = np.array([*truth, truth[1] - truth[0]])
        hits.append((table["low"] <= known) & (known <= table["high"]))
        found.append((table["estimate"] - known) / known[0])
    assert np.mean(hits, 0).min() > 0.89
    assert np.abs(np.mean(found, 0)).max() < 4 * np.max(np.std(found, 0)) / 120**0.5


RUN = as_run(drawn(np.random.default_rng(8), 40, 2, 4))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda path: comparison.frechet(RUN.isel(unit=slice(15)), path, features),
            "30 images for 4: take 32 images, ",
        ),
        (lambda path: comparison.frechet(RUN.isel(unit=slice(7)), path, features), "at least 8 units; got 7"),
        (lambda path: comparison.frechet(RUN, path, features, axes=5), "axes must be an integer of at most 4; got 5"),
        (
            lambda path: comparison.frechet(RUN, path, lambda x: features(x)[..., :2]),
            "reference has 4 features; the run has 2",
        ),
        (
            lambda path: comparison.frechet(RUN, path, lambda x: np.where(features(x) > 0, np.nan, 1)),
            "features must be finite; those of",
        ),
        (lambda path: comparison.frechet(RUN, path, lambda x: x), "features are"),
        (lambda path: comparison.frechet(RUN, path.parent / "none", features), "a folder of pictures or a file .npz"),
        (lambda path: comparison.frechet(RUN, path.parent, features), "holds at least two of"),
        (lambda path: comparison.frechet(RUN, path.parent / "x.npz", features), "with mu and sigma; .*FileNotFound"),
        (
            lambda path: comparison.frechet(RUN, path, features, against=as_run(features(RUN["image"].values), 1)),
            "their seed is 0 and 1",
        ),
        (lambda path: comparison.kid(RUN, path, features), "got the moments"),
        (lambda path: comparison.kid(RUN, path.parent, features), "holds at least two of"),
    ],
)
def test_bad_input_is_refused_with_the_value(tmp_path, call, words):
    with pytest.raises(ValueError, match=words):
        call(stored(tmp_path, np.zeros(4), np.eye(4)))


def test_stored_moments_that_are_none_are_refused(tmp_path):
    for content in (
        {"mu": np.zeros(4)},
        {"mu": np.zeros(4), "sigma": np.eye(3)},
        {"mu": np.zeros(4), "sigma": np.eye(4) * np.nan},
    ):
        np.savez(tmp_path / "bad.npz", **content)
        with pytest.raises(ValueError, match=r"bad\.npz"):
            comparison.frechet(RUN, tmp_path / "bad.npz", features)


def test_a_model_has_no_distance_from_a_copy_of_its_own_law():
    line = antinb.load(lambda z: z / 8, shape=SHAPE)
    runs = [antinb.sample(line, noise.antithetic(200), seed=seed, progress=False) for seed in (0, 1)]
    found = comparison.frechet(*runs, lambda images: 8 * images[..., 0, 0, :]).iloc[0]
    assert found["reference"] == "a run"
    assert found["low"] < 0 < found["high"]
    assert abs(found["estimate"]) < found["plain"] / 3
