"""Diversity scores on images whose scores are known, and the kernel distance by its sums."""

import itertools
import json

import numpy as np
import pytest
import xarray as xr

import antinb
from antinb import classifier, diversity, noise, statistics, zoo


def as_run(images):
    """Return `(unit, member, C, H, W)` in [0, 1] as a run."""
    images = np.asarray(images, float)
    data = xr.DataArray(images, dims=("unit", "member", "channel", "y", "x"), attrs={"range": json.dumps([0.0, 1.0])})
    return data.assign_coords(unit=np.arange(len(images))).to_dataset(name="image")


def corner(images):
    """Four pixels as features."""
    return images[..., 0, :2, :2].reshape(*images.shape[:-3], 4)


def textures(*shape):
    return np.random.default_rng(0).uniform(size=(*shape, 1, 16, 16))


def test_identical_images():
    found = diversity.scores(as_run(np.repeat(textures(3, 1), 4, axis=1)), corner)
    np.testing.assert_allclose(found.sel(score="ssim"), 1, atol=1e-12)
    np.testing.assert_allclose(found.sel(score="feature distance"), 0, atol=1e-12)
    np.testing.assert_allclose(found.sel(score="vendi"), 1, atol=1e-6)


def test_inverted_images_have_negative_ssim():
    x = textures(3)
    found = diversity.scores(as_run(np.stack([x, 1 - x], 1)), corner)
    assert found.sel(score="ssim").max() < -0.8
    expected = np.linalg.norm(corner(2 * x - 1), axis=-1)
    np.testing.assert_allclose(found.sel(score="feature distance"), expected, rtol=1e-12)


def test_ssim_of_two_flat_images_is_its_first_factor():
    """`(2 m m' + c) / (m^2 + m'^2 + c)` with c = 0.01^2."""
    flat = [np.full((1, 16, 16), level) for level in (0.2, 0.7)]
    assert statistics.structural_similarity(*flat) == pytest.approx((2 * 0.14 + 1e-4) / (0.04 + 0.49 + 1e-4), rel=1e-9)


@pytest.mark.parametrize("channels", [1, 3])
def test_ssim_is_that_of_scikit_image(channels):
    metrics = pytest.importorskip("skimage.metrics")
    rng = np.random.default_rng(0)
    first = rng.uniform(size=(4, channels, 20, 17))
    second = np.clip(first + rng.normal(0, 0.2, first.shape), 0, 1)
    options = {"data_range": 1.0, "gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    expected = [
        metrics.structural_similarity(x, y, channel_axis=0, **options) for x, y in zip(first, second, strict=True)
    ]
    np.testing.assert_allclose(statistics.structural_similarity(first, second), expected, rtol=0, atol=1e-12)
    many = statistics.structural_similarity(np.tile(first, (200, 1, 1, 1)), np.tile(second, (200, 1, 1, 1)))
    np.testing.assert_allclose(many, np.tile(expected, 200), rtol=0, atol=1e-12)


@pytest.mark.parametrize("k", [2, 3, 8])
def test_vendi_counts_copies_once_and_orthogonal_items_each(k):
    item = np.random.default_rng(0).normal(size=5)
    assert diversity.vendi(np.tile(item, (k, 1))) == pytest.approx(1, abs=1e-6)
    assert diversity.vendi(7 * np.eye(k)) == pytest.approx(k)
    assert diversity.vendi(np.repeat(np.eye(k), 3, axis=0)) == pytest.approx(k)


def test_vendi_of_two_items_has_eigenvalues_one_plus_and_minus_their_cosine():
    cosine = 0.6
    shares = np.array([1 + cosine, 1 - cosine]) / 2
    found = diversity.vendi([[[2.0, 0.0], [3 * cosine, 3 * 0.8]]])
    assert found == pytest.approx(np.exp(-(shares * np.log(shares)).sum()))
    assert np.isnan(diversity.vendi([[1.0, 0.0], [0.0, 0.0]]))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # their imports are those of an older SciPy
def test_vendi_is_that_of_its_authors():
    oracle = pytest.importorskip("vendi_score.vendi")
    features = np.random.default_rng(0).uniform(size=(12, 6))
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    assert diversity.vendi(features) == pytest.approx(oracle.score_K(unit @ unit.T), rel=1e-10)


def slow_kid(first, second):
    """The mean over tuples of members of all pairs of distinct units, one kernel at a time."""

    def kernel(a, b):
        return (a @ b / len(a) + 1) ** 3

    total, units = 0.0, range(len(first))
    for i, j in itertools.permutations(units, 2):
        for sign, left, right in ((1, first, first), (1, second, second), (-1, first, second), (-1, second, first)):
            total += sign * np.mean([kernel(a, b) for a in left[i] for b in right[j]])
    return total / (len(first) * (len(first) - 1))


def test_kid_is_its_sum_over_distinct_units():
    first, second = textures(9, 2), textures(9, 3)[::-1] ** 2
    found = diversity.kid(as_run(first), as_run(second), corner).iloc[0]
    assert found["estimate"] == pytest.approx(slow_kid(corner(first), corner(second)), rel=1e-10)
    assert found["low"] <= found["estimate"] <= found["high"]


def test_kid_in_blocks_of_kernels_is_the_same(monkeypatch):
    runs = as_run(textures(9, 2)), as_run(textures(9, 3)[::-1] ** 2)
    whole = diversity.kid(*runs, corner)
    monkeypatch.setattr(diversity, "KERNELS", 9 * 9 * 4)
    np.testing.assert_allclose(*(part.select_dtypes("number") for part in (diversity.kid(*runs, corner), whole)))


def test_features_that_change_their_images_leave_the_scores():
    run = as_run(textures(3, 2))
    found = diversity.scores(run, lambda images: np.multiply(images, 0, out=images)[..., 0, 0, :])
    assert not found.sel(score="feature distance").any()
    expected = diversity.scores(run, corner).sel(score="ssim")
    np.testing.assert_array_equal(found.sel(score="ssim"), expected)


def points(rng, members, *, copies=False, shift=0.0):
    """Return 12 units of images whose corner is normal, the members of a unit equal if they are `copies`."""
    drawn = rng.normal(0.5 + shift, 0.1, (12, 1 if copies else members, 1, 2, 2))
    return as_run(np.repeat(drawn, members, axis=1) if copies else drawn)


@pytest.mark.slow
def test_coupling_within_units_does_not_bias_kid_and_its_interval_covers():
    """Copies within a unit: over 200 experiments with equal laws the mean is 0 up to four standard errors."""
    rng = np.random.default_rng(0)
    found = [diversity.kid(points(rng, 3, copies=True), points(rng, 3), corner).iloc[0] for _ in range(200)]
    values = np.array([row["estimate"] for row in found])
    assert abs(values.mean()) < 4 * values.std() / 200**0.5
    assert np.mean([row["low"] <= 0 <= row["high"] for row in found]) > 0.95
    shifted = diversity.kid(points(rng, 3, copies=True), points(rng, 3, shift=0.2), corner).iloc[0]
    assert shifted["low"] > 4 * values.std()


@pytest.mark.slow
def test_noise_that_unit_i_of_both_runs_shares_does_not_bias_kid():
    rng, values = np.random.default_rng(0), []
    for _ in range(200):
        run = points(rng, 2)
        values.append(diversity.kid(run, run.isel(member=[0]), corner)["estimate"].item())
    assert abs(np.mean(values)) < 4 * np.std(values) / 200**0.5


def test_pairs_of_a_linear_generator_are_more_different_than_independent_ones():
    """The distance of z and -z is 2 |z|, that of two draws sqrt(2) |z| on average."""
    line = antinb.load(lambda z: z, shape=(1, 12, 12))
    runs = [
        antinb.sample(line, design, seed=0, progress=False) for design in (noise.antithetic(400), noise.iid(400, 2))
    ]
    wide = [run.assign(image=run["image"].assign_attrs(range="[-9, 9]")) for run in runs]
    flat = [diversity.scores(run, lambda images: 18 * images.reshape(*images.shape[:-3], -1)) for run in wide]
    distances = [found.sel(score="feature distance").values for found in flat]
    np.testing.assert_allclose(distances[0], 2 * np.linalg.norm(runs[0]["image"][:, 0], axis=(-2, -1))[:, 0], rtol=1e-5)
    assert distances[0].mean() / distances[1].mean() == pytest.approx(2**0.5, abs=0.02)


FASHION = classifier.load("fashion-classifier")


def test_held_out_images_are_recognised():
    """Binomial: 240 images, 92.8% right over all ten classes."""
    images, labels = zoo.held_out("fashion")
    assert images.shape == (240, 1, 28, 28)
    assert np.unique(labels, return_counts=True)[1].tolist() == [40] * 6
    probabilities = FASHION.probabilities((images + 1) / 2)
    np.testing.assert_allclose(probabilities.sum(-1), 1, rtol=1e-12)
    assert (probabilities.argmax(-1) == labels).mean() == pytest.approx(0.928, abs=0.05)


def test_the_last_layer_of_the_features_gives_the_probabilities():
    images = (zoo.held_out("fashion")[0][:6].reshape(2, 3, 1, 28, 28) + 1) / 2
    last = FASHION.network[-1]
    scores = FASHION.features(images) @ last.weight.detach().double().numpy().T + last.bias.detach().double().numpy()
    odds = np.exp(scores - scores.max(-1, keepdims=True))
    np.testing.assert_allclose(FASHION.probabilities(images), odds / odds.sum(-1, keepdims=True), rtol=0, atol=1e-5)
    sneaker = FASHION.probability("sneaker")
    assert sneaker.__name__ == "P(sneaker)"
    np.testing.assert_array_equal(sneaker(images), FASHION.probabilities(images)[..., 7])


@pytest.mark.parametrize("name", ["mnist-classifier", "cifar10-classifier"])
def test_other_shipped_classifiers_load(name):
    if not (zoo.DATA / "models" / name).is_dir():
        pytest.skip("not shipped")
    assert len(classifier.load(name).classes) == 10


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: diversity.scores(as_run(textures(3, 1)), corner), "at least two images a unit; got 1"),
        (lambda: diversity.vendi(np.ones((1, 4))), r"at least two items .* got \(1, 4\)"),
        (lambda: diversity.scores(as_run(textures(3, 2)), lambda x: x), "features are"),
        (lambda: diversity.scores(as_run(textures(3, 2)[..., :10, :10]), corner), "at least 11 pixels"),
        (
            lambda: statistics.structural_similarity(np.ones((1, 16, 16)), np.ones((2, 16, 16))),
            r"\(1, 16, 16\) and \(2, 16, 16\)",
        ),
        (lambda: diversity.kid(as_run(textures(9, 2)), as_run(textures(8, 2)), corner), "got 9 and 8"),
        (lambda: diversity.kid(as_run(textures(7, 2)), as_run(textures(7, 2)), corner), "at least 8; got 7"),
        (lambda: FASHION.probability("spaceship"), "a class must be one of .*t-shirt.* got 'spaceship'"),
        (lambda: classifier.load("fashion"), "is called 'fashion'; shipped are cifar10-classifier"),
        (lambda: zoo.held_out("faces"), "shipped for 'fashion'; got 'faces'"),
    ],
)
def test_bad_input_is_refused_with_the_value(call, words):
    with pytest.raises(ValueError, match=words):
        call()
