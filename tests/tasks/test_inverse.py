"""Solvers against the sampler they follow, dense algebra and an affine recursion of their own."""

import math

import numpy as np
import pytest
import torch
from helpers import LINEAR, SHAPE, random_mixture, tiny_unet

import antinb
from antinb import exact, inverse, noise, operators, statistics
from antinb.models import diffusion

SIZE = math.prod(SHAPE)
BLUR = operators.deblurring(SHAPE, 1.0)
DOUBLE = {"rtol": 0, "atol": 1e-10}


def gaussian(steps=6, eta=1.0, components=1):
    mixture = random_mixture(components, SIZE, dtype=torch.float64)
    return mixture, diffusion.from_mixture(mixture, SHAPE, LINEAR).with_(steps=steps, eta=eta)


def measured(model, operator=BLUR):
    return operators.observe(operator, torch.linspace(-1, 1, SIZE).reshape(SHAPE).to(model.like), sigma=0.1, seed=0)


def step_noise(count, seed=1):
    rng = np.random.default_rng(seed)
    streams = torch.from_numpy(rng.standard_normal((20, count, *SHAPE)))
    return streams[0], lambda stream, shape: streams[stream]


def dense(mixture, generator, operator, y, advance):
    """Return the affine maps `(M, m)` of each step on one Gaussian, in numpy; `advance` is the solver's part."""
    mean = mixture.means[0].numpy()
    covariance = (mixture.factors[0] @ mixture.factors[0].T).numpy() + mixture.variances[0].item() * np.eye(SIZE)
    A, identity = operators.matrix(operator, SHAPE).numpy(), np.eye(SIZE)
    abars = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000), 0).double().numpy()  # single, as the scheduler's
    stride, steps = 1000 // generator.steps, []
    for t in [stride * k for k in reversed(range(generator.steps))]:
        here, there = abars[t], abars[t - stride] if t >= stride else 1.0
        gain = np.sqrt(here) * covariance @ np.linalg.inv(here * covariance + (1 - here) * identity)
        x0 = gain, mean - np.sqrt(here) * gain @ mean
        eps = ((identity - np.sqrt(here) * x0[0]) / np.sqrt(1 - here), -np.sqrt(here) * x0[1] / np.sqrt(1 - here))
        sd = generator.eta * np.sqrt((1 - there) / (1 - here)) * np.sqrt(1 - here / there)
        clean, extra = advance(x0, A, y.numpy().ravel())
        ahead = np.sqrt(1 - there - sd**2)
        steps.append((*(np.sqrt(there) * c + ahead * e + x for c, e, x in zip(clean, eps, extra, strict=True)), sd))
    return steps


def dps(scale):
    def advance(x0, A, y):
        back = 2 * scale * x0[0].T @ A.T
        return x0, (-back @ A @ x0[0], back @ (y - A @ x0[1]))

    return advance


def dds(gamma):
    def advance(x0, A, y):
        inverted = np.linalg.inv(np.eye(SIZE) + gamma * A.T @ A)
        return (inverted @ x0[0], inverted @ (x0[1] + gamma * A.T @ y)), (0, 0)

    return advance


SOLVERS = {
    "DPS": (lambda *parts: inverse.DPS(*parts, scale=0.3, squared=True), dps(0.3)),
    "DDS": (lambda *parts: inverse.DDS(*parts, gamma=2.0, iterations=80), dds(2.0)),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", SOLVERS)
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_solvers_on_one_gaussian_are_the_affine_recursion(kind, eta):
    mixture, model = gaussian(eta=eta)
    y = measured(model)
    build, advance = SOLVERS[kind]
    solver, steps = build(model, BLUR, y), dense(mixture, model, BLUR, y, advance)
    z, draw = step_noise(3)
    state, mean, covariance = z.flatten(1).numpy(), np.zeros(SIZE), np.eye(SIZE)
    for stream, (slope, shift, sd) in enumerate(steps, 1):
        state = state @ slope.T + shift + sd * draw(stream, SHAPE).flatten(1).numpy()
        mean, covariance = slope @ mean + shift, slope @ covariance @ slope.T + sd**2 * np.eye(SIZE)
    np.testing.assert_allclose(solver.generate(z, draw=draw).flatten(1), state, rtol=0, atol=1e-6)
    law = inverse.law(solver)
    np.testing.assert_allclose(law.mean, mean, rtol=0, atol=1e-6)
    np.testing.assert_allclose(law.covariances[0], covariance, rtol=0, atol=1e-6)


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_without_guidance_a_solver_is_the_sampler_of_diffusers(clip, eta):
    model = diffusion.from_network(tiny_unet().eval(), LINEAR).with_(steps=5, eta=eta, clip=clip)
    z, draw = step_noise(4)
    y, single = measured(model), {"draw": lambda stream, shape: draw(stream, shape).float()}
    expected = model.generate(z.float(), **single)
    free = [inverse.DPS(model, BLUR, y, scale=0.0), inverse.DDS(model, BLUR, y, gamma=1e-12)]
    for solver in free:
        torch.testing.assert_close(solver.generate(z.float(), **single), expected, rtol=0, atol=1e-4)


def test_dps_follows_the_gradient_of_the_norm_through_the_network():
    """One step to the data: the correction against central differences of `|y - A x0(x)|`."""
    mixture, model = gaussian(steps=1, eta=0.0, components=3)
    y = measured(model)
    z, _ = step_noise(2)
    abar = float(np.prod(1 - np.linspace(1e-4, 0.02, 1000)[:1]))

    def norm(x):
        x0 = (x - math.sqrt(1 - abar) * mixture.predict_noise(x, abar)) / math.sqrt(abar)
        return (y - BLUR.A(x0.unflatten(1, SHAPE))).flatten(1).square().sum(1).sqrt()

    moved = inverse.DPS(model, BLUR, y, scale=0.7).generate(z) - model.generate(z)
    for place in range(0, SIZE, 17):
        nudge = torch.zeros(SIZE, dtype=torch.float64)
        nudge[place] = 1e-5
        slope = (norm(z.flatten(1) + nudge) - norm(z.flatten(1) - nudge)) / 2e-5
        torch.testing.assert_close(moved.flatten(1)[:, place], -0.7 * slope, rtol=0, atol=1e-6)


def test_dds_solves_the_normal_equations():
    """One step ends at the solution of `(I + gamma A'A) v = x0 + gamma A'y`."""
    mixture, model = gaussian(steps=1, eta=0.0, components=3)
    y, (z, _) = measured(model), step_noise(3)
    found = inverse.DDS(model, BLUR, y, gamma=7.0, iterations=100).generate(z).flatten(1)
    A = operators.matrix(BLUR, SHAPE)
    right = model.generate(z).flatten(1) + 7 * (A.T @ y.flatten())
    torch.testing.assert_close(found, torch.linalg.solve(torch.eye(SIZE) + 7 * A.T @ A, right.T).T, rtol=0, atol=1e-8)
    few = inverse.DDS(model, BLUR, y, gamma=7.0, iterations=2).generate(z).flatten(1)
    assert (few - found).abs().max() > 1e-4


@pytest.mark.parametrize("kind", [inverse.DPS, inverse.DDS])
def test_a_reconstruction_is_a_function_of_its_own_noise(kind):
    _, model = gaussian(components=3)
    solver, (z, draw) = kind(model, BLUR, measured(model)), step_noise(5)
    together = solver.generate(z, draw=draw)
    alone = [
        solver.generate(z[k : k + 1], draw=lambda stream, shape, k=k: draw(stream, shape)[k : k + 1]) for k in range(5)
    ]
    torch.testing.assert_close(together, torch.cat(alone), **DOUBLE)


def test_cg_stops_where_an_image_is_solved_already():
    """A residual of exactly 0 divides nothing by nothing, and moves no other image of the batch."""
    like = torch.zeros((), dtype=torch.float64)
    model = diffusion.Diffusion(lambda x, t, condition: 0 * x, LINEAR, SHAPE, like, steps=1, clip=False)
    z, _ = step_noise(2)
    operator = operators.inpainting(SHAPE, np.ones(SHAPE[1:], bool))
    free = inverse.DPS(model, operator, torch.zeros(1, 1, SIZE), scale=0.0).generate(z)
    solver = inverse.DDS(model, operator, operator.A(free[:1]))
    pair = solver.generate(z)
    assert torch.equal(pair[0], free[0])
    torch.testing.assert_close(pair[1], solver.generate(z[1:])[0], **DOUBLE)
    assert (pair[1] - free[1]).abs().max() > 0.1


@pytest.mark.parametrize("kind", [inverse.DPS, inverse.DDS])
def test_the_network_is_called_as_often_as_the_record_says(kind):
    calls = []
    _, model = gaussian()

    def network(x, t, condition):
        calls.append(len(x))
        return x

    counted = diffusion.Diffusion(network, LINEAR, SHAPE, torch.zeros(()), steps=4, clip=False)
    solver = kind(counted, BLUR, measured(counted))
    solver.generate(torch.zeros(3, *SHAPE))
    assert sum(calls) == 3 * solver.evaluations == 3 * solver.describe()["evaluations"] == 12


def test_solvers_sample_measure_resume_and_refuse_another_measurement(tmp_path):
    _, model = gaussian(components=3)
    y = measured(model)
    solver, design = inverse.DDS(model, BLUR, y), noise.antithetic(6)
    run = antinb.sample(solver, design, seed=0, batch=4, progress=False)
    store = tmp_path / "run.zarr"
    for units in (2, 6):
        stored = antinb.sample(solver, noise.antithetic(units), seed=0, store=store, batch=4, progress=False)
    np.testing.assert_array_equal(stored["image"], run["image"])
    values = statistics.measure(run, statistics.psnr(np.zeros(SHAPE)))
    assert values.shape == (1, 6, 2)
    for other in (
        inverse.DDS(model, BLUR, y + 1),
        inverse.DDS(model, BLUR, y, gamma=6.0),
        inverse.DPS(model, BLUR, y),
        inverse.DDS(model, operators.deblurring(SHAPE, 1.1), y),
    ):
        with pytest.raises(ValueError, match="another configuration"):
            antinb.sample(other, design, seed=0, store=store, batch=4, progress=False)


class Scaling:
    """An operator of another library: it has `A` and `A_adjoint` and nothing else."""

    def __init__(self, adjoint=0.5):
        self.adjoint = adjoint

    def A(self, x):
        return 0.5 * x

    def A_adjoint(self, y):
        return self.adjoint * y


def test_operators_of_others_fit_as_they_are():
    _, model = gaussian(eta=0.0)
    y, (z, _) = measured(model, Scaling()), step_noise(2)
    own = operators.Linear("half", SHAPE, lambda x: 0.5 * x)
    for kind in (inverse.DPS, inverse.DDS):
        torch.testing.assert_close(kind(model, Scaling(), y).generate(z), kind(model, own, y).generate(z), **DOUBLE)
    assert inverse.DDS(model, Scaling(), y).describe()["operator"] == {"name": "Scaling"}


def test_the_law_of_one_gaussian_has_the_solvers_expected_error():
    """Bias in closed form: the squared error of many reconstructions against that of the law."""
    _, model = gaussian(steps=4)
    solver = inverse.DPS(model, BLUR, measured(model), scale=0.3, squared=True)
    truth = torch.zeros(SHAPE)
    run = antinb.sample(solver, noise.iid(4000), seed=0, batch=500, progress=False)
    errors = np.square(run["image"].values.astype(float)).mean((1, 2, 3, 4))
    assert abs(errors.mean() - inverse.law(solver).squared_error(truth)) < 4 * errors.std() / 4000**0.5


def _bad(kind=inverse.DPS, operator=BLUR, y=None, **settings):
    _, model = gaussian()
    return kind(model, operator, measured(model) if y is None else y, **settings)


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda: _bad(operator=Scaling(adjoint=1.0), y=torch.zeros(1, *SHAPE)), "must agree to 1e-05"),
        (
            lambda: _bad(operator=operators.superresolution(SHAPE, 2)),
            r"measurements \(1, 1, 4, 4\); got \(1, 1, 8, 8",
        ),
        (
            lambda: _bad(operator=operators.deblurring((3, 8, 8), 1.0)),
            r"takes images \(B, 3, 8, 8\); got \(2, 1, 8, 8",
        ),
        (lambda: _bad(y=torch.zeros(2, *SHAPE)), r"measurements \(1, 1, 8, 8\); got \(2, 1, 8, 8"),
        (lambda: _bad(y=torch.full((1, *SHAPE), float("nan"))), "must be finite; got 64 values"),
        (lambda: _bad(scale=-1.0), "scale must be a number from 0"),
        (lambda: _bad(squared=1), "squared must be True or False; got 1"),
        (lambda: _bad(inverse.DDS, gamma=0.0), "gamma must be a number from 1e-12"),
        (lambda: _bad(inverse.DDS, iterations=0), "iterations must be an integer of at least 1; got 0"),
        (
            lambda: inverse.DPS(gaussian(eta=0.0)[1].with_(scheduler="ddpm"), BLUR, measured(gaussian()[1])),
            "got 'ddpm'",
        ),
        (lambda: inverse.DPS(antinb.load(torch.tanh, shape=SHAPE), BLUR, torch.zeros(1, *SHAPE)), "got 'Function'"),
        (lambda: _bad().generate(torch.zeros(2, *SHAPE)), "needs draw="),
        (lambda: _bad().generate(torch.zeros(2, 3, 8, 8)), r"takes noise \(B, 1, 8, 8\)"),
        (lambda: inverse.law(_bad(squared=False)), "affine in its noise"),
        (lambda: inverse.law(_bad(inverse.DDS, iterations=1)), "DDS converged"),
    ],
)
def test_bad_input_is_refused(call, reason):
    with pytest.raises(ValueError, match=reason) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_the_three_halves_law():
    """Squared error of a calibrated Gaussian: pairs gain 3/2 and simplex groups 3 (K - 1) / K, averaged over truths.

    The truths are `m + C^(1/2) u` at `u = sqrt(d) e_i`, whose mean square is that of N(0, I).
    """
    posterior = exact.DenseMixture(torch.ones(1), torch.zeros(1, 4), torch.eye(4)[None] * torch.arange(1.0, 5))
    truths, spread = posterior(2 * torch.eye(4)), {}
    for design in (noise.iid(100_000), noise.antithetic(40_000), noise.simplex(20_000, 8)):
        draws = posterior(torch.from_numpy(design.draw((4,), seed=design.members)).flatten(0, 1))
        errors = torch.stack([(draws - truth).square().mean(1) for truth in truths]).double()
        spread[design.members] = design.members * errors.view(4, -1, design.members).mean(2).var(1).mean()
    assert spread[1] / spread[2] == pytest.approx(3 / 2, rel=0.05)
    assert spread[1] / spread[8] == pytest.approx(3 * 7 / 8, rel=0.05)
