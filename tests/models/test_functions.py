"""Any callable: a generator network in one line, and somebody's sampler that draws its own noise."""

import sys
import types

import numpy as np
import pytest
import torch
from helpers import SHAPE, random_mixture
from torch import nn

import antinb
from antinb import draws, noise

DESIGN = noise.antithetic(6)
SIGMAS = [14.6, 5.0, 2.0, 0.7, 0.2, 0.0]


class Gan(nn.Module):
    """A generator with classes: `tanh(A z + b_class)`."""

    def __init__(self, classes=3):
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.bias = nn.Linear(5, 64, bias=False), nn.Embedding(classes, 64)

    def forward(self, z, condition):
        return torch.tanh(self.linear(z) + self.bias(condition)).unflatten(1, SHAPE)


def euler_ancestral(denoise, x, sigmas):
    """Algorithm 2 of EDM's notation with k-diffusion's split of a step into a deterministic and a random part."""
    for sigma, following in zip(sigmas, sigmas[1:], strict=False):
        up = min(following, (following**2 * (sigma**2 - following**2) / sigma**2) ** 0.5)
        down = (following**2 - up**2) ** 0.5
        x = x + (x - denoise(x, sigma)) / sigma * (down - sigma)
        x = x + up * torch.randn_like(x)
    return x


def denoiser():
    mixture = random_mixture(components=1)

    def denoise(x, sigma):
        abar = torch.tensor(1 / (1 + sigma**2))
        scaled = x.flatten(1) * abar.sqrt()
        return (x.flatten(1) - sigma * mixture.predict_noise(scaled, abar)).reshape(x.shape)

    return denoise


def test_a_network_that_makes_images_of_noise():
    gan = Gan()
    generator = antinb.load(gan, shape=(5,))
    labels = [0, 1, 2, 0, 1, 2]
    run = antinb.sample(generator, DESIGN, seed=0, condition=labels, batch=3, progress=False)
    z = torch.from_numpy(DESIGN.draw((5,), seed=0))
    with torch.no_grad():
        expected = torch.stack([gan(z[:, member], torch.tensor(labels)) for member in range(2)], 1)
    np.testing.assert_allclose(run["image"], expected, atol=1e-6)
    assert generator.describe()["evaluations"] == 1


@pytest.mark.parametrize("module", ["__main__", "__mp_main__", "script"])
def test_a_function_of_a_script_has_one_name_in_every_process(monkeypatch, module):
    """A script is `__main__` where it is run, `__mp_main__` in its spawned processes, `script` where it is imported."""

    def sampler(z):
        return z

    sampler.__module__, sampler.__qualname__ = module, "sampler"
    monkeypatch.setitem(sys.modules, module, types.SimpleNamespace(__file__="somewhere/script.py"))
    assert antinb.load(sampler, shape=(1, 2, 2)).describe()["model"] == "script.sampler"


def test_an_ancestral_sampler_is_mirrored_inside_and_outside():
    """The denoiser of one Gaussian is affine, so a pair of paths has a fixed centre if all noise is negated."""
    denoise = denoiser()
    with draws.using(DESIGN, seed=4):
        inside = euler_ancestral(denoise, torch.randn(12, *SHAPE) * SIGMAS[0], SIGMAS)

    def sampler(z):
        return euler_ancestral(denoise, z * SIGMAS[0], SIGMAS)

    run = antinb.sample(antinb.load(sampler, shape=SHAPE), DESIGN, seed=4, batch=5, progress=False)
    np.testing.assert_allclose(run["image"], inside.unflatten(0, (6, 2)), atol=1e-4)
    centre = run["image"].mean("member").values
    np.testing.assert_allclose(centre, np.broadcast_to(centre[0], centre.shape), atol=1e-4)
    start = noise.antithetic(6, start_only=True)
    other = antinb.sample(antinb.load(sampler, shape=SHAPE), start, seed=4, progress=False)
    assert np.ptp(other["image"].mean("member").values, 0).max() > 0.1


def test_what_belongs_to_a_pipeline_is_refused():
    for given in ({"prompts": ["a"]}, {"options": {"eta": 1.0}}, {"guidance": 2.0}):
        with pytest.raises(ValueError, match="a callable needs shape= and takes no"):
            antinb.load(Gan(), shape=(5,), **given)
        with pytest.raises(ValueError, match="own loop|no setting|guidance needs"):
            antinb.load("fashion-ddpm", **given)


@pytest.mark.parametrize(
    ("function", "rule"),
    [
        (lambda z: z.movedim(1, -1), r"channels first; got \(4, 8, 8, 1\)"),
        (lambda z: z.repeat(1, 3, 1, 1).movedim(1, -1), r"channels first; got \(4, 8, 8, 3\)"),
        (lambda z: (z * 50 + 128).to(torch.uint8), "floating-point numbers.*got torch.uint8"),
        (lambda z: z > 0, "got torch.bool"),
        (lambda z: z.to(torch.complex64), "got torch.complex64"),
        (lambda z: z.long(), "got torch.int64"),
        (lambda z: z[:, :, 0], "must return a tensor"),
        (lambda z: z.numpy(), "must return a tensor"),
    ],
)
def test_what_is_no_image_is_refused(function, rule):
    with pytest.raises(ValueError, match=rule):
        antinb.load(function, shape=(1, 8, 8)).generate(torch.randn(4, 1, 8, 8))


def test_images_from_0_to_1_are_told():
    z = torch.randn(4, 1, 8, 8)
    with pytest.warns(UserWarning, match="If 0 is its black, let it return 2 x - 1"):
        antinb.load(torch.sigmoid, shape=(1, 8, 8)).generate(z)
    for function in (torch.tanh, torch.zeros_like, torch.ones_like):
        antinb.load(function, shape=(1, 8, 8)).generate(z)
