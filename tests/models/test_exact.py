"""Mixtures against autograd, against torch.distributions, and the affine map of one Gaussian."""

import numpy as np
import pytest
import torch
from helpers import LINEAR, SHAPE, random_mixture
from scipy import stats

import antinb
from antinb import correlation, exact, noise
from antinb.models import diffusion

LEVELS = [0.9999, 0.5, 1e-2, 4e-5]


def reference(mixture, abar):
    """The same diffused mixture with dense covariances."""
    identity = torch.eye(mixture.means.shape[1], dtype=mixture.means.dtype)
    covariance = mixture.factors @ mixture.factors.mT + mixture.variances[:, None, None] * identity
    diffused = abar * covariance + (1 - abar) * identity
    normal = torch.distributions.MultivariateNormal(abar**0.5 * mixture.means, diffused)
    return torch.distributions.MixtureSameFamily(torch.distributions.Categorical(mixture.weights), normal)


@pytest.mark.parametrize("abar", LEVELS)
def test_density_agrees_with_dense_covariances(abar):
    mixture = random_mixture(dtype=torch.float64)
    x = reference(mixture, abar).sample((20,))
    torch.testing.assert_close(mixture.log_density(x, abar), reference(mixture, abar).log_prob(x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("abar", LEVELS)
def test_noise_prediction_is_the_gradient_of_the_density(abar, dtype):
    mixture = random_mixture(dtype=torch.float64)
    x = reference(mixture, abar).sample((20,)).requires_grad_()
    (gradient,) = torch.autograd.grad(reference(mixture, abar).log_prob(x).sum(), x)
    predicted = mixture.to(dtype).predict_noise(x.detach().to(dtype), abar)
    torch.testing.assert_close(predicted.double(), -((1 - abar) ** 0.5) * gradient, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_samples_have_the_mean_and_covariance_of_the_mixture():
    mixture = random_mixture(dimension=6, rank=2, dtype=torch.float64)
    x = mixture.sample(200_000, torch.Generator().manual_seed(0))
    truth = reference(mixture, 1.0)
    error = (x.mean(0) - truth.mean) / (truth.variance / len(x)).sqrt()
    assert error.abs().max() < 5
    torch.testing.assert_close(mixture.mean, truth.mean)
    torch.testing.assert_close(x.var(0), truth.variance, rtol=0.02, atol=0)
    likelihood = truth.log_prob(x).mean() - truth.log_prob(truth.sample((200_000,))).mean()
    assert likelihood.abs() < 0.05


@pytest.mark.parametrize("rank", [0, 4, 30])
def test_the_gaussian_of_a_mixture_has_its_mean_and_covariance(rank):
    """The covariance is that within the components plus that between them, also where the factors span the space."""
    mixture = random_mixture(dtype=torch.float64)
    generator = torch.Generator().manual_seed(rank)
    factors = torch.randn(*mixture.means.shape, rank, dtype=torch.float64, generator=generator)
    mixture = exact.Mixture(mixture.weights, mixture.means, factors, mixture.variances)
    one, known = mixture.gaussian(), reference(mixture, 1.0)
    within = torch.einsum("k,kij->ij", mixture.weights, known.component_distribution.covariance_matrix)
    between = torch.cov(mixture.means.T, aweights=mixture.weights, correction=0)
    torch.testing.assert_close(one.mean, mixture.mean)
    torch.testing.assert_close(reference(one, 1.0).component_distribution.covariance_matrix[0], within + between)


def test_responsibilities_are_bayes():
    mixture = random_mixture(dtype=torch.float64)
    x = mixture.sample(5, torch.Generator().manual_seed(0))
    dense = reference(mixture, 0.3)
    joint = dense.mixture_distribution.probs * dense.component_distribution.log_prob(x[:, None]).exp()
    torch.testing.assert_close(mixture.responsibilities(x, 0.3), joint / joint.sum(1, keepdim=True))


@pytest.mark.parametrize("scheduler", ["ddim", "dpmsolver++"])
def test_one_gaussian_gives_an_affine_map(scheduler):
    one = random_mixture(components=1, dtype=torch.float64)
    generator = diffusion.from_mixture(one, SHAPE, LINEAR).with_(steps=20, scheduler=scheduler)
    centre = generator.generate(torch.zeros(1, *SHAPE))
    z = torch.from_numpy(noise.antithetic(50).draw(SHAPE, seed=0))
    plus, minus = generator.generate(z[:, 0]), generator.generate(z[:, 1])
    torch.testing.assert_close((plus + minus) / 2, centre.expand_as(plus), rtol=0, atol=1e-5)
    rows = torch.stack([(plus - centre).flatten(1), (minus - centre).flatten(1)], 1)
    worst = max(abs(np.corrcoef(pair.numpy())[0, 1] + 1) for pair in rows)
    assert worst < 1e-5


def test_a_mirrored_mixture_is_odd():
    """Where the density is symmetric about 0 the generator is odd, so pairs correlate at -1 exactly."""
    half = random_mixture(components=2)
    means = torch.cat([half.means, -half.means])
    twin = exact.Mixture(half.weights.repeat(2), means, half.factors.repeat(2, 1, 1), half.variances.repeat(2))
    run = antinb.sample(
        diffusion.from_mixture(twin, SHAPE, LINEAR).with_(steps=10), noise.antithetic(40), seed=0, progress=False
    )
    np.testing.assert_allclose(correlation.pn(run), -1, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"means": torch.zeros(3, 5)}, "weights"),
        ({"weights": torch.tensor([1.0, -1.0])}, "positive"),
        ({"variances": torch.zeros(2)}, "positive"),
        ({"factors": torch.zeros(2, 5, 5)}, "r < d"),
    ],
)
def test_bad_mixtures_are_refused(change, message):
    parts = {"weights": torch.ones(2), "means": torch.zeros(2, 5), "variances": torch.ones(2)}
    parts["factors"] = torch.ones(2, 5, 1)
    with pytest.raises(ValueError, match=message):
        exact.Mixture(**(parts | change))


def test_relative_fisher_information_of_one_gaussian_has_a_closed_form():
    """With eigenvalues L = abar l + 1 - abar of the covariance: sum (1 - 1/L)^2 L + abar |mu|^2."""
    mixture = random_mixture(1, dtype=torch.float64)
    eigenvalues = torch.linalg.eigvalsh(reference(mixture, 1.0).component_distribution.covariance_matrix[0])
    for abar in (1.0, 0.5, 0.01):
        values = mixture.relative_fisher(abar, 4000, torch.Generator().manual_seed(0))
        spread = abar * eigenvalues + 1 - abar
        known = ((1 - 1 / spread) ** 2 * spread).sum() + abar * mixture.means.square().sum()
        assert abs(values.mean() - known) < 4 * values.std() / 4000**0.5


def test_relative_fisher_information_falls_at_least_as_fast_as_the_bound():
    mixture = random_mixture(dtype=torch.float64)
    start = mixture.relative_fisher(1.0, 4000, torch.Generator().manual_seed(0))
    for abar in (0.9, 0.5, 0.1, 0.001):
        values = mixture.relative_fisher(abar, 4000, torch.Generator().manual_seed(1))
        assert values.mean() <= abar * start.mean()


def test_two_components_are_the_mixture_that_they_say():
    centre, offset = torch.tensor([0.3, 0.0]), torch.tensor([0.0, 1.0])
    mixture = exact.two_component(centre, offset, weight=0.25, variance=0.04)
    draws = mixture.sample(20_000, torch.Generator().manual_seed(0))
    torch.testing.assert_close(mixture.mean, centre - 0.5 * offset)
    torch.testing.assert_close(draws.mean(0), centre - 0.5 * offset, atol=0.03, rtol=0)
    torch.testing.assert_close(draws.var(0), torch.tensor([0.04, 0.04 + 0.75]), atol=0.03, rtol=0)


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda: exact.two_component(torch.zeros(2), torch.zeros(2), weight=1.0), "weight must lie in"),
        (lambda: exact.two_component(torch.zeros(2), torch.zeros(3)), r"must be \(d,\) both"),
        (lambda: exact.two_component(torch.zeros(2), torch.zeros(2), variance=-1.0), "variance must be"),
        (lambda: exact.parity(1.2), "odd_share must be a number from 0 to 1; got 1.2"),
    ],
)
def test_impossible_cases_are_refused(call, reason):
    with pytest.raises(ValueError, match=reason):
        call()


def observed(dimension=6, values=3):
    """Return a mixture, a matrix and a measurement."""
    mixture = random_mixture(dimension=dimension, rank=2, dtype=torch.float64)
    rng = torch.Generator().manual_seed(1)
    matrix = torch.randn(values, dimension, generator=rng, dtype=torch.float64)
    x = mixture.sample(1, rng)[0]
    return mixture, matrix, matrix @ x + 0.3 * torch.randn(values, generator=rng, dtype=torch.float64)


def density(mixture):
    normal = torch.distributions.MultivariateNormal(mixture.means, mixture.covariances)
    return torch.distributions.MixtureSameFamily(torch.distributions.Categorical(mixture.weights), normal)


def test_the_posterior_is_prior_times_likelihood():
    """`log p(x) + log p(y | x) - log p(x | y)` is one constant, the evidence, at every x."""
    mixture, matrix, y = observed()
    posterior = mixture.posterior(matrix, y, 0.3)
    x = torch.cat([mixture.sample(20, torch.Generator().manual_seed(2)), posterior.means])
    likelihood = torch.distributions.Normal(x @ matrix.T, 0.3).log_prob(y).sum(1)
    evidence = mixture.log_density(x) + likelihood - density(posterior).log_prob(x)
    torch.testing.assert_close(evidence, evidence[:1].expand_as(evidence), rtol=0, atol=1e-8)
    assert len(posterior.weights) == 3


def test_posterior_components_without_weight_are_left_out():
    means = torch.tensor([[5.0, 5.0], [-5.0, -5.0]], dtype=torch.float64)
    mixture = exact.Mixture(torch.ones(2).double(), means, torch.zeros(2, 2, 0).double(), torch.ones(2).double())
    posterior = mixture.posterior(torch.eye(2).double(), torch.tensor([5.0, 5.0]), 0.1)
    assert posterior.means.shape == (1, 2)
    torch.testing.assert_close(posterior.mean, means[0])
    torch.testing.assert_close(posterior.variance, torch.full((2,), 0.01 / 1.01, dtype=torch.float64))


@pytest.mark.slow
def test_dense_mixtures_draw_their_moments_from_a_design():
    mixture, matrix, y = observed()
    posterior = mixture.posterior(matrix, y, 2.0)  # so vague that all three components keep weight
    generator = antinb.load(posterior, shape=(1, 2, 3))
    run = antinb.sample(generator, noise.antithetic(20_000), seed=0, batch=2000, progress=False)["image"].values
    draws = torch.from_numpy(run.reshape(-1, 6)).double()
    truth = density(posterior)
    torch.testing.assert_close(posterior.mean, truth.mean)
    torch.testing.assert_close(posterior.variance, truth.variance)
    assert ((draws.mean(0) - truth.mean) / (truth.variance / 20_000).sqrt()).abs().max() < 5
    torch.testing.assert_close(draws.var(0), truth.variance, rtol=0.03, atol=0)
    share = density(posterior).log_prob(draws).mean() - truth.log_prob(truth.sample((40_000,))).mean()
    assert share.abs() < 0.05


def test_pairs_of_one_gaussian_are_mirrored_about_its_mean():
    posterior = random_mixture(1, 6, 2, dtype=torch.float64).posterior(torch.eye(6)[:2], torch.ones(2), 0.5)
    z = torch.from_numpy(noise.iid(5).draw((1, 2, 3), seed=0)[:, 0]).double()
    middle = (posterior(z) + posterior(-z)).flatten(1) / 2
    torch.testing.assert_close(middle, posterior.mean.expand_as(middle))
    root = posterior.roots[0]
    torch.testing.assert_close(root @ root, posterior.covariances[0])


def test_expected_errors_are_the_integrals():
    weights, means, sds = np.array([0.3, 0.7]), np.array([[-0.5, 1.0], [0.8, -0.2]]), np.array([[0.3, 0.6], [0.2, 1.1]])
    covariances = torch.from_numpy(sds**2).diag_embed()
    mixture = exact.DenseMixture(torch.from_numpy(weights), torch.from_numpy(means), covariances)
    truth = np.array([0.1, 0.4])
    for loss, found in ((np.square, mixture.squared_error), (np.abs, mixture.absolute_error)):
        integrals = [
            stats.norm(m, s).expect(lambda x, t=t, loss=loss: loss(x - t), epsabs=1e-11)
            for row in zip(means, sds, strict=True)
            for m, s, t in zip(*row, truth, strict=True)
        ]
        assert found(torch.from_numpy(truth)) == pytest.approx(
            weights @ np.reshape(integrals, (2, 2)).mean(1), rel=1e-7
        )


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda mixture, matrix, y: mixture.posterior(matrix, y, 0.0), "sigma must be a number from 1e-12"),
        (lambda mixture, matrix, y: mixture.posterior(matrix.T, y, 0.3), r"must be \(3, 6\); got \(6, 3\)"),
        (lambda mixture, matrix, y: mixture.posterior(matrix, y * torch.nan, 0.3), "finite; got 3 values"),
        (lambda *_: exact.DenseMixture(torch.ones(1), torch.ones(1, 2), torch.ones(1, 3, 3)), "covariances"),
        (lambda *_: exact.DenseMixture(torch.ones(1), torch.ones(1, 2), -torch.eye(2)[None]), "not negative"),
        (lambda *_: exact.DenseMixture(-torch.ones(1), torch.ones(1, 2), torch.eye(2)[None]), "positive"),
    ],
)
def test_impossible_posteriors_are_refused(call, reason):
    with pytest.raises(ValueError, match=reason):
        call(*observed())
