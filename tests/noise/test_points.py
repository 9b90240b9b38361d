"""Low-discrepancy designs: normal members, stratified coordinates, nets, and points at the middle of their cells."""

import numpy as np
import pytest
from scipy import special, stats
from scipy.stats import qmc

from antinb import noise
from antinb.noise import modes

QUADRATURES = {
    "sobol, pixel": lambda units: noise.sobol(units, 8, basis="pixel"),
    "sobol, spectral": lambda units: noise.sobol(units, 8),
    "sobol, learned": lambda units: noise.sobol(units, 8, basis="learned", direction=np.arange(1, 9.0)),
    "sobol, antithetic": lambda units: noise.sobol(units, 8, antithetic=True),
    "latin, pixel": lambda units: noise.latin(units, 6, basis="pixel"),
    "latin, antithetic": lambda units: noise.latin(units, 6, antithetic=True),
}
SHAPE = (3, 8, 8)


@pytest.mark.slow
@pytest.mark.parametrize("name", QUADRATURES)
def test_every_member_is_standard_normal(name):
    design = QUADRATURES[name](1000)
    values = design.draw(SHAPE, seed=7).reshape(1000, design.members, 192)
    projection = np.random.default_rng(1).standard_normal(192)
    projection /= np.linalg.norm(projection)
    squares = np.square(values.astype(np.float64)).sum(2)
    p_values = []
    for member in range(design.members):
        p_values += [stats.kstest(column, "norm").pvalue for column in values[:, member, ::24].T]
        p_values.append(stats.kstest(values[:, member] @ projection, "norm").pvalue)
        p_values.append(stats.kstest(squares[:, member], stats.chi2(192).cdf).pvalue)
    assert min(p_values) * len(p_values) > 0.001


@pytest.mark.parametrize("name", ["pixel", "spectral"])
def test_every_coordinate_of_a_unit_is_stratified(name):
    """Each mode (or pixel) has one of n points in each interval of probability 1/n."""
    for design in (noise.sobol(5, 16, basis=name, leading=8), noise.latin(5, 10, basis=name)):
        values = design.draw(SHAPE, seed=0).astype(np.float64)
        coordinates = values.reshape(*values.shape[:2], -1) if name == "pixel" else modes.to_modes(values, SHAPE)
        strata = np.floor(stats.norm.cdf(coordinates) * design.members).astype(int)
        sound = np.sort(strata, 1) == np.arange(design.members)[None, :, None]
        assert sound.mean() > 0.999  # a point on the edge of a stratum may round across it


def test_leading_modes_form_a_net():
    """16 points of the first two modes fill every box of 2^-a x 2^(a-4) once: a (0, 4, 2)-net."""
    values = noise.sobol(20, 16).draw(SHAPE, seed=3).astype(np.float64)
    u = stats.norm.cdf(modes.to_modes(values, SHAPE)[..., :2])
    for a in range(5):
        boxes = np.floor(u * [2**a, 2 ** (4 - a)]).astype(int)
        keys = boxes[..., 0] * 2 ** (4 - a) + boxes[..., 1]
        assert (np.sort(keys, 1) == np.arange(16)).all()


def test_the_learned_basis_stratifies_the_direction():
    direction = np.arange(1, 17.0)
    design = noise.sobol(50, 32, basis="learned", direction=direction)
    values = modes.to_modes(design.draw(SHAPE, seed=0).astype(np.float64), SHAPE)[..., :16]
    along = values @ direction / np.linalg.norm(direction)
    strata = np.sort(np.floor(stats.norm.cdf(along) * 32).astype(int), 1)
    assert (strata == np.arange(32)).mean() > 0.999


def test_points_lie_at_the_middle_of_their_cells(monkeypatch):
    """Scrambled points are multiples of 2^-30; half a cell up, the lowest and the highest are mirror images."""
    ends = np.array([[0.0], [1 - 2.0**-30]])
    monkeypatch.setattr(qmc.Sobol, "random", lambda self, count: np.repeat(ends, self.d, 1))
    values = noise.sobol(1, 2, basis="pixel").draw((1, 2, 2), seed=0)[0]
    np.testing.assert_allclose(values[0], special.ndtri(2.0**-31), rtol=1e-6)
    np.testing.assert_allclose(values[1], -values[0], rtol=1e-6)


@pytest.mark.parametrize("make", [noise.sobol, noise.latin])
def test_half_the_points_are_negatives(make):
    design = make(3, 16, antithetic=True)
    for stream in (0, 2):
        values = design.draw(SHAPE, seed=0, stream=stream)
        assert np.array_equal(values[:, 8:], -values[:, :8])


def test_variance_of_a_smooth_function_falls_faster_than_one_over_n():
    variances = {}
    for n in (8, 64):
        z = modes.to_modes(noise.sobol(200, n).draw((1, 4, 4), seed=1).astype(np.float64), (1, 4, 4))
        means = np.exp(z[..., :3].sum(-1) / 3).mean(1)
        assert abs(means.mean() - np.exp(1 / 6)) < 5 * means.std() / 200**0.5
        variances[n] = means.var()
    assert variances[64] < variances[8] / 20


def test_step_noise_is_independent_and_units_do_not_depend_on_the_cut():
    design = noise.sobol(6, 8)
    assert np.array_equal(design.draw(SHAPE, seed=0, units=[4])[0], design.draw(SHAPE, seed=0)[4])
    steps = noise.latin(300, 16).draw((1, 2, 2), seed=0, stream=1)
    gram = np.corrcoef(steps.reshape(300, 64).T)[np.triu_indices(64, 1)]
    assert np.square(gram).sum() * 300 < stats.chi2(len(gram)).ppf(0.9999)


@pytest.mark.parametrize("shape", [(3, 256, 256), (4, 32, 32), (1, 28, 28), (3, 4, 16, 16), (100,)])
def test_any_shape_of_noise(shape):
    values = noise.sobol(1, 4).draw(shape, seed=0)
    assert values.shape == (1, 4, *shape)
    assert np.isfinite(values).all()


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda: noise.sobol(2, 12), "n must be a power of 2 and at least 2; got n = 12"),
        (lambda: noise.sobol(2, 12, antithetic=True), "n / 2 must be a power of 2 and at least 2; got n = 12"),
        (lambda: noise.sobol(2, 8, leading=30_000), "leading must be an integer of at most 21201; got 30000"),
        (
            lambda: noise.sobol(2, 8, leading=17).draw((1, 4, 4), seed=0),
            "leading must be at most the noise's 16 coordinates; got 17",
        ),
        (lambda: noise.sobol(2, 8, basis="wavelet"), "basis must be one of .*; got 'wavelet'"),
        (lambda: noise.latin(2, 5, antithetic=True), "n must be even .* got 5"),
        (lambda: noise.latin(2, 1), "n must be an integer of at least 2; got 1"),
        (lambda: noise.latin(2, 4, basis="learned"), "the learned basis, and no other, takes a direction"),
        (lambda: noise.latin(2, 4, direction=np.ones(3)), "the learned basis, and no other, takes a direction"),
        (lambda: noise.latin(2, 4, basis="learned", direction=np.zeros(3)), "a finite vector that is not 0"),
        (
            lambda: noise.latin(2, 4, basis="learned", direction=np.ones(20)).draw((1, 4, 4), seed=0),
            "in the 16 modes of the noise; got 20",
        ),
    ],
)
def test_bad_arguments_are_one_line(call, reason):
    with pytest.raises(ValueError, match=reason) as error:
        call()
    assert "\n" not in str(error.value)
