"""Surrogates against the loop of the exact model, dense algebra and the images that they are fitted to."""

import json
import math

import numpy as np
import pytest
import torch
from helpers import LINEAR, SHAPE, random_mixture, tiny_autoencoder, tiny_unet

import antinb
from antinb import noise, surrogates
from antinb.models import diffusion, fitting
from antinb.models.decoders import Latent
from antinb.models.rectified import RectifiedFlow

BELL = random_mixture(1, dtype=torch.float64)
Z = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def draw(stream, shape):
    rng = torch.Generator().manual_seed(100 + stream)
    return torch.randn(len(Z), *shape, generator=rng, dtype=torch.float64)


@pytest.mark.parametrize(
    "settings",
    [
        {"steps": 20},
        {"steps": 1},
        {"steps": 7, "eta": 0.6},
        {"steps": 9, "scheduler": "ddpm"},
        {"steps": 8, "scheduler": "dpmsolver++"},
    ],
)
def test_the_gaussian_is_the_loop_of_the_exact_model_in_closed_form(settings):
    model = diffusion.from_mixture(BELL, SHAPE, LINEAR).with_(**settings)
    found = surrogates.gaussian(model, BELL).generate(Z, draw=draw)
    assert (found - model.generate(Z, draw=draw)).abs().max() < 1e-6
    again = surrogates.mixture(model, BELL).generate(Z, draw=draw)
    assert (again - found).abs().max() < 1e-6


def velocity(x, t):
    """`E[n - x | x_t]` of one Gaussian with its dense covariance, in pixels."""
    covariance = BELL.factors[0] @ BELL.factors[0].T + BELL.variances * torch.eye(64)
    state = (1 - t) ** 2 * covariance + t**2 * torch.eye(64)
    gain = torch.linalg.solve(state, t * torch.eye(64) - (1 - t) * covariance).T
    return (x.flatten(1) - (1 - t) * BELL.mean) @ gain.T - BELL.mean


@pytest.mark.parametrize("scheduler", ["euler", "heun"])
def test_the_surrogate_of_a_flow_follows_the_exact_velocity(scheduler):
    def exact(x, t, condition):
        return velocity(x, float(t) / 1000).view_as(x)

    model = RectifiedFlow(exact, SHAPE, BELL.mean, steps=6, scheduler=scheduler, shift=3.0)
    for kind in (surrogates.gaussian, surrogates.mixture):
        assert (kind(model, BELL).generate(Z) - model.generate(Z)).abs().max() < 1e-6


def test_the_gaussian_of_a_mixture_has_its_mean_and_covariance():
    """In many steps the images of noise and its negative are mirrored at the mean, and their covariance is known."""
    known = random_mixture(3, dtype=torch.float64)
    model = diffusion.from_mixture(known, SHAPE, LINEAR).with_(steps=1000)
    cheap = surrogates.gaussian(model, known)
    middle = cheap.generate(torch.zeros(1, *SHAPE)).flatten()
    torch.testing.assert_close(middle, known.mean, atol=2e-2, rtol=0)
    root = cheap.generate(torch.eye(64, dtype=torch.float64).view(64, *SHAPE)).flatten(1) - middle
    within = (known.factors @ known.factors.mT + known.variances[:, None, None] * torch.eye(64)).mul(
        known.weights[:, None, None]
    )
    between = (known.means - known.mean).T @ (known.weights[:, None] * (known.means - known.mean))
    torch.testing.assert_close(root.T @ root, within.sum(0) + between, atol=0.05, rtol=0.05)


def test_a_run_of_the_surrogate_takes_the_noise_of_the_model_and_records_itself():
    model = diffusion.from_mixture(BELL, SHAPE, LINEAR, model="bell").with_(steps=4, scheduler="ddpm")
    pilot = antinb.sample(model, noise.iid(40), seed=3, progress=False)
    cheap = surrogates.gaussian(model.with_(steps=4), BELL)
    runs = [antinb.sample(part, noise.antithetic(3), seed=0, progress=False) for part in (model, cheap)]
    assert np.abs(runs[0]["image"] - runs[1]["image"]).max() < 1e-6
    about = {key: json.loads(value) for key, value in runs[1].attrs.items() if key != "config_hash"}
    assert (about["evaluations"], about["model"], about["scheduler"], about["steps"]) == (
        0,
        "gaussian for bell",
        "ddpm",
        4,
    )
    fitted = surrogates.gaussian(model, pilot).describe()
    assert (fitted["pilot_evaluations"], fitted["pilot_seed"]) == (160, 3)
    assert fitted["network_sha256"] != about["network_sha256"]


def test_predicted_images_are_not_clipped_in_closed_form_and_the_record_says_so():
    network = diffusion.from_network(tiny_unet(), {**LINEAR, "clip_sample": True}).with_(steps=3)
    assert network.describe()["clip_sample"]
    assert not surrogates.gaussian(network, BELL).describe()["clip_sample"]
    assert surrogates.mixture(network, BELL).describe()["clip_sample"]


def test_the_fit_finds_the_gaussian_and_the_clusters_of_images():
    rng = torch.Generator().manual_seed(0)
    data = BELL.sample(4000, rng)
    model = diffusion.from_mixture(BELL, SHAPE, LINEAR).with_(steps=10)
    images = data.view(-1, *SHAPE).numpy()
    found = surrogates.gaussian(model, images, rank=4).generate(Z)
    assert (found - model.generate(Z)).square().mean() < 0.02 * model.generate(Z).var()
    apart = np.concatenate([images[:300] + 1.5, images[300:1200] - 1.5])
    both = surrogates.mixture(model.with_(steps=100), apart, components=2, rank=4)
    means = both.generate(torch.randn(400, *SHAPE, generator=rng)).flatten(1).mean(1)
    share = float((means > 0).double().mean())
    assert abs(share - 0.25) < 4 * math.sqrt(0.25 * 0.75 / 400)


def test_the_fitted_gaussian_has_the_whole_variance_of_the_images():
    images = BELL.sample(500, torch.Generator().manual_seed(0))
    found = fitting.fit(images.view(-1, *SHAPE).numpy(), SHAPE, 1, 2)
    whole = found.factors.square().sum() + images.shape[1] * found.variances.sum()
    assert float(whole) == pytest.approx(float(images.var(0, correction=0).sum()), rel=1e-4)


def test_a_fitted_mixture_is_near_what_one_more_round_of_its_fit_gives():
    """Of two clusters that overlap: k-means alone leaves a step of 0.03, five rounds one of 0.004."""
    rng = torch.Generator().manual_seed(0)
    second = torch.rand(4000, 1, generator=rng) < 0.25
    images = 0.25 * second + 0.5 * torch.randn(4000, 64, generator=rng)
    found = fitting.fit(images.view(-1, *SHAPE).numpy(), SHAPE, 2, 2)
    again = fitting.maximised(images, found.responsibilities(images), 2)
    assert (again.means - found.means).norm() < 0.01
    assert float(found.weights.min()) == pytest.approx(0.25, abs=0.02)


def test_the_surrogate_of_a_latent_model_is_fitted_to_latents_and_decoded():
    sampler = diffusion.from_network(tiny_unet(), LINEAR).with_(steps=2)
    model = Latent(sampler, tiny_autoencoder())
    pilot = antinb.sample(sampler, noise.iid(24), seed=1, progress=False)
    cheap, latents = surrogates.gaussian(model, pilot), surrogates.gaussian(sampler, pilot)
    assert (cheap.evaluations, latents.evaluations, cheap.describe()["pilot_evaluations"]) == (1, 0, 48)
    z = Z.float()
    torch.testing.assert_close(
        cheap.generate(z),
        Latent(sampler.with_(), model.autoencoder).autoencoder.decode(latents.generate(z) / 0.5).sample,
    )


@pytest.mark.parametrize(
    ("call", "rule"),
    [
        (lambda model: surrogates.gaussian(antinb.load(torch.tanh, shape=SHAPE), BELL), "got a Function"),
        (lambda model: surrogates.gaussian(model, random_mixture(dimension=9)), "dimension 9"),
        (lambda model: surrogates.gaussian(model, np.zeros((20, 1, 4, 4))), "at least 8 finite images"),
        (lambda model: surrogates.mixture(model, np.zeros((20, *SHAPE)), components=4), "at least 32"),
        (lambda model: surrogates.gaussian(model, np.full((20, *SHAPE), np.nan)), "finite"),
        (lambda model: surrogates.gaussian(model, np.zeros((20, *SHAPE)), rank=19), "rank must be"),
        (lambda model: surrogates.gaussian(model, BELL).generate(Z, condition=torch.tensor([1])), "no condition"),
        (lambda model: surrogates.gaussian(model, BELL).generate(Z[..., :3]), "takes noise"),
        (lambda model: surrogates.gaussian(model.with_(scheduler="ddpm"), BELL).generate(Z), "needs draw="),
    ],
)
def test_what_cannot_be_is_refused(call, rule):
    with pytest.raises(ValueError, match=rule):
        call(diffusion.from_mixture(BELL, SHAPE, LINEAR).with_(steps=3))


def test_a_surrogate_predicts_noise_whatever_its_model_predicts():
    known = surrogates.gaussian(diffusion.from_mixture(BELL, SHAPE, LINEAR).with_(steps=7), BELL).generate(Z)
    for more in ({"prediction_type": "v_prediction"}, {"prediction_type": "sample", "variance_type": "learned_range"}):
        model = diffusion.from_network(tiny_unet().double(), {**LINEAR, **more}).with_(steps=7)
        torch.testing.assert_close(surrogates.gaussian(model, BELL).generate(Z), known, rtol=0, atol=1e-6)
    ended = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    with pytest.raises(ValueError, match="some of the image at every level"):
        surrogates.gaussian(diffusion.from_network(tiny_unet().double(), {**LINEAR, **ended}).with_(steps=7), BELL)


def test_a_network_of_variances_has_a_surrogate_with_the_smaller_fixed_variance():
    fixed = diffusion.from_mixture(BELL, SHAPE, LINEAR).with_(steps=7, scheduler="ddpm")
    network = tiny_unet(out_channels=2 * SHAPE[0]).double()
    own = diffusion.from_network(network, {**LINEAR, "variance_type": "learned_range"})
    found = surrogates.gaussian(own.with_(steps=7, scheduler="ddpm"), BELL).generate(Z, draw=draw)
    assert own.learned
    torch.testing.assert_close(found, fixed.generate(Z, draw=draw), rtol=0, atol=1e-6)
