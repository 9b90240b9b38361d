"""Any callable: a generator network in one line, and somebody's sampler that draws its own noise."""

import sys
import types
import warnings

import numpy as np
import pytest
import torch
from helpers import LINEAR, SHAPE, random_mixture, tiny_unet
from torch import nn

import antinb
from antinb import dataset, draws, noise, statistics
from antinb.models import consistency, diffusion, rectified

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
        (lambda z: (z * 50 + 128).to(torch.uint8), "floating-point numbers.*range=; got torch.uint8"),
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


@pytest.mark.parametrize("shape", [(3, 7, 7), (2, 8, 9), (5, 4, 4)])
def test_channels_last_of_any_size_are_refused_and_channels_first_are_not(shape):
    z = torch.randn(4, *shape)
    with pytest.raises(ValueError, match="channels first"):
        antinb.load(lambda z: z.movedim(1, -1), shape=shape).generate(z)
    for square in ((8, 8, 3), (9, 8, 1), (3, 3, 3), shape):
        z = torch.randn(4, *square)
        assert torch.equal(antinb.load(torch.clone, shape=np.array(square), range=np.array([-1, 1])).generate(z), z)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.bool, torch.int64, torch.uint8])
def test_numbers_of_networks_and_of_own_generators_are_real(dtype):
    """An integer network would be rounded, and of complex numbers half would be dropped."""

    def network(x, t, condition):
        return (x * 3).to(dtype)

    like = torch.zeros(())
    for model in (
        diffusion.Diffusion(network, LINEAR, SHAPE, like, steps=2),
        rectified.RectifiedFlow(network, SHAPE, like, steps=2),
        consistency.Consistency(network, {}, SHAPE, like),
    ):
        with pytest.raises(ValueError, match=f"the network must return floating-point numbers; got {dtype}"):
            model.generate(torch.randn(2, *SHAPE))
    own = types.SimpleNamespace(shape=SHAPE, evaluations=1, describe=lambda: {"model": "own"})
    own.generate = lambda z, draw, condition: network(z, 0, condition)
    with pytest.raises(ValueError, match=f"images must be floating-point numbers; got {dtype}"):
        antinb.sample(own, noise.antithetic(2), seed=0, progress=False)


@pytest.mark.parametrize("ends", [(0, 1), (0, 255), (-3.0, 5.0)])
def test_a_range_is_mapped_to_the_one_of_runs(ends):
    low, high = ends
    z = noise.antithetic(8).draw((1, 8, 8), seed=0)
    known = antinb.load(torch.tanh, shape=(1, 8, 8))
    other = antinb.load(lambda z: low + (high - low) * (torch.tanh(z) + 1) / 2, shape=(1, 8, 8), range=ends)
    runs = [antinb.sample(model, noise.antithetic(8), seed=0, progress=False) for model in (known, other)]
    np.testing.assert_allclose(runs[1]["image"], runs[0]["image"], atol=1e-5)
    np.testing.assert_allclose(runs[0]["image"], np.tanh(z), atol=1e-5)
    assert dataset.config(runs[1])["range"] == list(ends)
    assert "range" not in dataset.config(runs[0])


def test_bytes_are_images_where_their_range_is_said():
    model = antinb.load(lambda z: (z * 100 + 128).clamp(0, 255).to(torch.uint8), shape=(1, 8, 8), range=(0, 255))
    images = antinb.sample(model, noise.antithetic(4), seed=0, progress=False)["image"]
    assert images.min() == -1
    assert images.max() == 1
    np.testing.assert_allclose((images * 127.5 + 127.5) % 1, 0, atol=1e-4)


@pytest.mark.parametrize("ends", [(1, 0), (0,), (0, 0), "01", (0, np.nan), 3, (0, "1")])
def test_a_range_is_two_increasing_numbers(ends):
    with pytest.raises(ValueError, match="range"):
        antinb.load(torch.tanh, shape=(1, 8, 8), range=ends)


@pytest.mark.parametrize(
    ("function", "told"),
    [
        (torch.sigmoid, r"all values lie from 0\.\d+ to 0\.9\d*.*range=\(0, 1\)"),
        (lambda z: 127 + 127 * torch.tanh(z), r"\d\d% of the values lie beyond, from .* to 25\d.*range=\(0, 255\)"),
        (lambda z: 255 * (z > 1).float(), r"all values lie from 0 to 255.*range=\(0, 255\)"),
        (lambda z: 1.02 * torch.sigmoid(9 * z), r"all values lie from .* to 1\.02.*range=\(0, 1\)"),
    ],
)
def test_images_in_another_range_are_told_once(function, told):
    with pytest.warns(UserWarning, match=told) as seen:
        antinb.sample(antinb.load(function, shape=(1, 8, 8)), noise.antithetic(40), seed=0, batch=4, progress=False)
    assert len(seen) == 1


def test_images_in_the_range_are_not_told():
    with warnings.catch_warnings(record=True, action="always") as seen:
        for function in (torch.tanh, torch.zeros_like, torch.ones_like, torch.clone):
            antinb.sample(antinb.load(function, shape=(1, 8, 8)), noise.antithetic(40), seed=0, progress=False)
    assert not seen


def test_a_sampler_that_diverges_is_told():
    """An untrained network takes no noise away, and the last division by sqrt(alpha_bar) is by 0.006."""
    generator = diffusion.from_network(tiny_unet(), LINEAR).with_(steps=5, clip=False)
    with pytest.warns(UserWarning, match="load the model with clip=True or take more steps"):
        antinb.sample(generator, noise.antithetic(4), seed=0, progress=False)
    with warnings.catch_warnings(action="error"):
        antinb.sample(generator.with_(clip=True), noise.antithetic(4), seed=0, progress=False)


def test_signals_take_the_axes_of_images():
    """The mean of a random walk's end is 0, and pairs know it."""
    walk = antinb.load(lambda z: z.cumsum(-1), shape=(1, 1, 50), range=(-40, 40))
    run = antinb.sample(walk, noise.antithetic(30), seed=0, progress=False)

    def end(x):
        return 80 * x[..., 0, 0, -1] - 40

    values = statistics.measure(run, end)
    np.testing.assert_allclose(values.mean("member"), 0, atol=1e-5)
    np.testing.assert_allclose(
        values[0, :, 0], noise.antithetic(30).draw((1, 1, 50), seed=0)[:, 0].sum((1, 2, 3)), atol=1e-4
    )
    with pytest.raises(ValueError, match=r"or signals as \(60, 1, 1, length\); got \(60, 50\)"):
        antinb.sample(antinb.load(lambda z: z[:, 0, 0], shape=(1, 1, 50)), noise.antithetic(30), seed=0, progress=False)
