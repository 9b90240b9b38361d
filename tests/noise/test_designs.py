"""Designs: exact marginals, exact couplings, and the same numbers however the work is cut."""

import numpy as np
import pytest
from scipy import stats

from antinb import noise

SHAPE = (3, 32, 32)
MASK = np.arange(8)[:, None] < np.full(8, 3)
DESIGNS = {
    "iid": noise.iid,
    "antithetic": noise.antithetic,
    "simplex": lambda units: noise.simplex(units, 4),
    "partial": lambda units: noise.partial(units, np.ones(1, bool)),
    "partial, redrawn": lambda units: noise.partial(units, np.ones(1, bool), redraw=True),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", DESIGNS)
def test_every_member_is_standard_normal(name):
    design = DESIGNS[name](10_000)
    projection = np.random.default_rng(1).standard_normal(3072)
    projection /= np.linalg.norm(projection)
    members = design.members
    coordinates, projected, squares = [], [], []
    for start in range(0, design.units, 500):
        values = design.draw(SHAPE, seed=11, units=range(start, start + 500)).reshape(500, members, 3072)
        coordinates.append(values[:, :, ::171])
        projected.append(values @ projection)
        squares.append(np.square(values.astype(np.float64)).sum(2))
    coordinates, projected, squares = map(np.concatenate, (coordinates, projected, squares))
    p_values = [stats.kstest(column, "norm").pvalue for member in range(members) for column in coordinates[:, member].T]
    p_values += [stats.kstest(projected[:, member], "norm").pvalue for member in range(members)]
    p_values += [stats.kstest(squares[:, member], stats.chi2(3072).cdf).pvalue for member in range(members)]
    assert min(p_values) * len(p_values) > 0.001


def test_coordinates_of_one_member_are_uncorrelated():
    values = noise.antithetic(4000).draw((1, 2, 8), seed=2)[:, 1].reshape(4000, 16)
    gram = np.corrcoef(values.T)[np.triu_indices(16, 1)]
    assert np.square(gram).sum() * 4000 < stats.chi2(len(gram)).ppf(0.9999)


def test_the_second_of_a_pair_is_exactly_the_negative():
    values = noise.antithetic(50).draw(SHAPE, seed=0)
    assert np.array_equal(values[:, 1], -values[:, 0])


@pytest.mark.parametrize("k", [2, 3, 8])
def test_simplex_members_sum_to_zero_and_oppose_each_other(k):
    values = noise.simplex(400, k).draw(SHAPE, seed=0).astype(np.float64)
    assert np.abs(values.sum(1)).max() < 4e-6
    covariance = np.einsum("ukd,ujd->kj", *[values.reshape(400, k, -1)] * 2) / (400 * 3072)
    expected = np.where(np.eye(k, dtype=bool), 1, -1 / (k - 1))
    assert np.abs(covariance - expected).max() < 5 / np.sqrt(400 * 3072 / 2)


@pytest.mark.parametrize("name", DESIGNS)
def test_any_cut_gives_the_same_bits(name):
    design = DESIGNS[name](20)
    whole = design.draw((2, 3), seed=5, stream=3)
    pieces = [design.draw((2, 3), seed=5, stream=3, units=part) for part in (range(7), [7], range(8, 20))]
    assert np.array_equal(np.concatenate(pieces), whole)
    assert np.array_equal(design.draw((2, 3), seed=5, stream=3, units=[13, 2]), whole[[13, 2]])
    assert np.array_equal(DESIGNS[name](200).draw((2, 3), seed=5, stream=3, units=range(20)), whole)


def test_units_streams_and_seeds_are_independent():
    design = noise.iid(3)
    draws = [design.draw((1000,), seed=seed, stream=stream) for seed in (0, 1) for stream in (0, 1)]
    rows = np.concatenate(draws).reshape(12, 1000)
    assert np.abs(np.corrcoef(rows)[np.triu_indices(12, 1)]).max() < 5 / np.sqrt(1000)


@pytest.mark.parametrize(
    ("call", "value"),
    [
        (lambda: noise.iid(0), "0"),
        (lambda: noise.antithetic(-3), "-3"),
        (lambda: noise.antithetic(2.0), "2.0"),
        (lambda: noise.simplex(5, 1), "1"),
        (lambda: noise.partial(2, MASK * 0.5), "float64"),
        (lambda: noise.partial(2, MASK).draw((1, 4, 4), seed=0), r"\(1, 4, 4\); got \(8, 8\)"),
        (lambda: noise.iid(2).draw((), seed=0), r"\(\)"),
        (lambda: noise.iid(2).draw((3, 0), seed=0), r"\(3, 0\)"),
        (lambda: noise.iid(2).draw("ab", seed=0), "ab"),
        (lambda: noise.iid(2).draw((3,), seed=-1), "-1"),
        (lambda: noise.iid(2).draw((3,), seed=0, units=[2]), "unit 2"),
    ],
)
def test_bad_input_is_refused_with_the_value(call, value):
    with pytest.raises(ValueError, match=value):
        call()


@pytest.mark.parametrize("stream", [0, 2])
def test_partial_pairs_differ_where_the_mask_is_true(stream):
    negated, redrawn = (
        noise.partial(2000, MASK, redraw=redraw).draw((2, 8, 8), seed=3, stream=stream) for redraw in (False, True)
    )
    for z, other in ((negated[:, 0], negated[:, 1]), (redrawn[:, 0], redrawn[:, 1])):
        assert np.array_equal(z[..., ~MASK], other[..., ~MASK])
    assert np.array_equal(negated[:, 0][..., MASK], -negated[:, 1][..., MASK])
    assert np.array_equal(negated[:, 0], redrawn[:, 0])
    fresh = redrawn[..., MASK].reshape(2000, 2, -1).astype(np.float64)
    correlation = (fresh[:, 0] * fresh[:, 1]).mean()
    assert abs(correlation) < 4 / np.sqrt(fresh[:, 0].size)


def test_a_mask_of_everything_is_the_antithetic_design():
    whole = noise.partial(5, np.ones(1, bool)).draw((1, 4, 4), seed=0)
    assert np.array_equal(whole, noise.antithetic(5).draw((1, 4, 4), seed=0))


def test_step_noise_of_start_only_pairs_is_shared():
    design, plain = noise.antithetic(5, start_only=True), noise.antithetic(5)
    assert np.array_equal(design.draw((2, 2), seed=0), plain.draw((2, 2), seed=0))
    steps = design.draw((2, 2), seed=0, stream=1)
    assert np.array_equal(steps[:, 0], plain.draw((2, 2), seed=0, stream=1)[:, 0])
    assert np.array_equal(steps[:, 0], steps[:, 1])
    assert design.describe() != plain.describe()


def test_masks_are_part_of_the_record():
    other = MASK.copy()
    other[0, 0] = False
    records = [noise.partial(1, mask, redraw=redraw).describe() for mask in (MASK, other) for redraw in (False, True)]
    assert len({str(record) for record in records}) == 4
    assert records[0] == noise.partial(7, MASK).describe()


def test_members_of_an_iid_batch_are_independent_and_start_like_pairs():
    """Correlations of 4000 draws: five standard errors are 0.08."""
    batch = noise.iid(2000, 3).draw((2,), seed=0)
    np.testing.assert_allclose(np.corrcoef(batch.reshape(2000, 6).T), np.eye(6), rtol=0, atol=0.12)
    assert np.array_equal(batch[:, 0], noise.antithetic(2000).draw((2,), seed=0)[:, 0])
    with pytest.raises(ValueError, match="members of an iid unit must be .* got 0"):
        noise.iid(3, 0)


@pytest.mark.parametrize("points", [noise.sobol, noise.latin])
def test_a_supercube_stratifies_every_stream(points):
    """Of 8 points one lies in each eighth, in every coordinate and stream."""
    design = points(20, 8, basis="pixel", supercube=True)
    for stream in (0, 1, 2):
        cells = np.floor(8 * stats.norm.cdf(design.draw((5,), seed=1, stream=stream)))
        assert (np.sort(cells, axis=1) == np.arange(8)[:, None]).all()
    assert "supercube" not in points(20, 8).describe()
    assert design.describe()["supercube"]


def test_the_points_of_a_supercube_are_in_random_order():
    """Sobol points 2i and 2i + 1 lie on two sides of the middle; in random order 4 times in 7: 0.57, +- 0.18."""
    design = noise.sobol(200, 8, basis="pixel", supercube=True)
    apart = [
        (np.sign(first) != np.sign(second)).mean()
        for first, second in (design.draw((1,), seed=0, stream=stream)[:, :2, 0].T for stream in (0, 1))
    ]
    assert apart[0] == 1
    assert apart[1] == pytest.approx(4 / 7, abs=0.18)


def test_a_supercube_with_negatives_keeps_the_pairs_in_every_stream():
    points = noise.sobol(3, 8, antithetic=True, supercube=True).draw((1, 4, 4), seed=0, stream=3)
    assert np.array_equal(points[:, 4:], -points[:, :4])
