"""Consistency models: Gaussian data has the whole consistency function in closed form; diffusers has the sampler."""

import numpy as np
import pytest
import torch
from diffusers import LCMScheduler
from helpers import SHAPE, tiny_unet

import antinb
from antinb import noise
from antinb.models import consistency

MEAN, SCALE, SIZE = 0.3, 0.5, (1, 2, 2)
SCHEDULER = LCMScheduler(
    1000, beta_start=0.0001, beta_end=0.02, beta_schedule="linear", original_inference_steps=20, clip_sample=False
)
SIGNALS = SCHEDULER.alphas_cumprod.double()


def spread(signal):
    """Return the variance of `sqrt(abar) x + sqrt(1 - abar) n` for x from N(MEAN, SCALE^2)."""
    return signal * SCALE**2 + 1 - signal


def end(x, signal):
    """Return the end of the probability flow through x: `m + s (x - sqrt(abar) m) / sd`."""
    return MEAN + SCALE * (x - signal.sqrt() * MEAN) / spread(signal).sqrt()


def network(x, t, condition):
    """Return the noise that makes the implied clean image the end of the path."""
    signal = SIGNALS[t]
    return (x - signal.sqrt() * end(x, signal)) / (1 - signal).sqrt()


def gaussian(**settings):
    return consistency.Consistency(network, SCHEDULER.config, SIZE, torch.zeros((), dtype=torch.float64), **settings)


def unet_model(classes=None):
    return consistency.from_network(tiny_unet(num_class_embeds=classes), SCHEDULER.config)


def test_one_step_is_the_end_of_the_path():
    z = torch.from_numpy(noise.iid(4).draw(SIZE, seed=0)[:, 0]).double()
    found = gaussian().generate(z)
    torch.testing.assert_close(found, end(z, SIGNALS[999]), rtol=0, atol=3e-5)


def test_two_steps_put_the_step_noise_on_the_first_image():
    z, w = torch.from_numpy(noise.iid(8).draw(SIZE, seed=0)[:, 0]).double().chunk(2)
    streams = []

    def draw(stream, shape):
        streams.append((stream, tuple(shape)))
        return w

    model = gaussian(steps=2)
    found, signal = model.generate(z, draw=draw), SIGNALS[model.timesteps[1]]
    again = signal.sqrt() * end(z, SIGNALS[999]) + (1 - signal).sqrt() * w
    torch.testing.assert_close(found, end(again, signal), rtol=0, atol=3e-5)
    assert streams == [(1, SIZE)]
    assert (model.timesteps[0], model.evaluations) == (999, 2)


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_images_of_gaussian_data_have_its_law_whatever_the_steps(steps):
    """Mean 0.3 and SD 0.5; 8,000 pixels: five standard errors are 0.028 and 0.020."""
    run = antinb.sample(gaussian(steps=steps), noise.iid(2000), seed=1, progress=False)
    assert abs(float(run["image"].mean()) - MEAN) < 0.028
    assert abs(float(run["image"].std()) - SCALE) < 0.020


@pytest.mark.parametrize("steps", [1, 3])
def test_pairs_of_an_affine_model_mirror_about_the_mean(steps):
    run = antinb.sample(gaussian(steps=steps), noise.antithetic(5), seed=0, progress=False)
    np.testing.assert_allclose(run["image"].sum("member"), 2 * MEAN, atol=0.01)


def test_a_network_of_diffusers_runs_as_its_scheduler_wants():
    unet, scheduler = tiny_unet().double(), LCMScheduler.from_config(SCHEDULER.config)
    model = consistency.from_network(unet, SCHEDULER.config).with_(steps=2)
    x, w = torch.from_numpy(noise.iid(6).draw(SHAPE, seed=2)[:, 0]).double().chunk(2)
    z = x
    scheduler.set_timesteps(2)
    with torch.no_grad():
        image = scheduler.step(unet(x, 999).sample, scheduler.timesteps[0], x).denoised
        signal = scheduler.alphas_cumprod[scheduler.timesteps[1]]
        x = signal.sqrt() * image + (1 - signal).sqrt() * w
        expected = scheduler.step(unet(x, scheduler.timesteps[1]).sample, scheduler.timesteps[1], x).denoised
    torch.testing.assert_close(model.generate(z, draw=lambda *_: w), expected, rtol=0, atol=1e-9)


def test_a_trajectory_holds_the_noise_that_the_image_implies():
    z = torch.from_numpy(noise.iid(3).draw(SHAPE, seed=2)[:, 0])
    images, parts = unet_model().trajectory(z)
    torch.testing.assert_close(parts["state"][:, 0], z)
    signal = SIGNALS[999].float()
    again = signal.sqrt() * images + (1 - signal).sqrt() * parts["predicted_noise"][:, 0]
    torch.testing.assert_close(again, z, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "at least 1; got 0"),
        ({"steps": 21}, "at most 20; got 21"),
        ({"scheduler": "ddim"}, r"one of \('lcm',\); got 'ddim'"),
        ({"guidance": 2.0}, "null class"),
        ({"eta": 0.5}, "no setting 'eta'"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        unet_model().with_(**settings)


def test_several_steps_need_step_noise():
    with pytest.raises(ValueError, match="draw"):
        unet_model().with_(steps=2).generate(torch.zeros(1, *SHAPE))
