"""A decoder is a generator: with linear logits its images are in closed form."""

import numpy as np
import pytest
import torch
from helpers import LINEAR, SHAPE, tiny_autoencoder, tiny_unet
from torch import nn

import antinb
from antinb import correlation, noise, probing, statistics
from antinb.models import decoders, diffusion

LATENT = 4


def linear(bias=0.0):
    """Return the decoder whose logit at pixel i is `3 z_i + bias`."""
    network = nn.Sequential(nn.Linear(LATENT, LATENT), nn.Unflatten(1, (1, 2, 2)))
    with torch.no_grad():
        network[0].weight.copy_(3 * torch.eye(LATENT))
        network[0].bias.fill_(bias)
    return decoders.Decoder(network, LATENT)


def convolutional(latent=16, width=2):
    torch.manual_seed(0)
    return decoders.Decoder(decoders.decoder(latent, width), latent)


def test_images_are_the_mean_grey_values():
    """`2 sigmoid(l) - 1 = tanh(l / 2)`."""
    z = torch.from_numpy(noise.iid(5).draw((LATENT,), seed=0)[:, 0])
    found = linear(bias=0.7).generate(z)
    torch.testing.assert_close(found, torch.tanh((3 * z + 0.7) / 2).reshape(5, 1, 2, 2))


def test_the_pairs_of_an_odd_decoder_are_opposite():
    run = antinb.sample(linear(), noise.antithetic(20), seed=0, progress=False)
    np.testing.assert_allclose(run["image"][:, 0], -run["image"][:, 1], atol=1e-6)
    np.testing.assert_allclose(correlation.pn(run), -1, atol=1e-6)
    np.testing.assert_allclose(statistics.measure(run, statistics.brightness).mean("member"), 0.5, atol=1e-6)


@pytest.mark.parametrize(
    "design",
    [
        noise.iid(6),
        noise.antithetic(3),
        noise.simplex(2, 3),
        noise.partial(3, np.arange(16) < 5),
        noise.sobol(2, 4),
        noise.sobol(2, 4, basis="pixel"),
        noise.latin(2, 4, antithetic=True),
    ],
    ids=lambda design: design.name,
)
def test_every_design_gives_the_images_of_its_latents(design):
    model = convolutional()
    run = antinb.sample(model, design, seed=3, batch=4, progress=False)
    assert dict(run.sizes) == {"unit": design.units, "member": design.members, "channel": 1, "y": 28, "x": 28}
    z = torch.from_numpy(design.draw((16,), seed=3)[-1])
    np.testing.assert_allclose(run["image"][-1], model.generate(z), atol=1e-6)


def test_each_pixel_of_the_network_sees_its_part_of_the_seven_by_seven_grid():
    """One unit of the grid, through convolutions of known width, reaches rows 4 i - 4 to 4 i + 7."""
    model = convolutional(latent=1, width=1)
    bias = model.network[1].bias.data.zero_()
    images = [model.generate(torch.zeros(1, 1))]
    bias.view(4, 7, 7)[:, 3, 3] = 5.0
    images.append(model.generate(torch.zeros(1, 1)))
    rows = (images[1] - images[0]).abs().amax((0, 1, 3)).nonzero().flatten().tolist()
    assert min(rows) == 8
    assert max(rows) == 19


def test_the_record_tells_decoders_apart():
    one, other = linear().describe(), linear(bias=1.0).describe()
    assert one["network_sha256"] != other["network_sha256"]
    assert one["evaluations"] == 1


def test_a_decoder_does_not_drop_out():
    network = nn.Sequential(*linear().network, nn.Dropout(0.5)).train()
    z = torch.ones(1, LATENT)
    torch.testing.assert_close(decoders.Decoder(network, LATENT).generate(z), linear().generate(z))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: linear().generate(torch.zeros(2, 5)), r"noise \(B, 4\); got \(2, 5\)"),
        (lambda: linear().generate(torch.zeros(2, 4), condition=torch.tensor([1, 2])), r"no condition; got \[1, 2\]"),
        (lambda: linear().with_(steps=3), "no setting 'steps'"),
        (lambda: decoders.decoder(0, 8), "latent.*got 0"),
        (lambda: decoders.decoder(4, 2.5), "width.*got 2.5"),
        (lambda: antinb.sample(linear(), noise.iid(2), seed=0, trajectory=True), "got a Decoder"),
        (lambda: probing.Probe(linear(), seed=0), "got a Decoder"),
    ],
)
def test_bad_input_is_refused_in_one_line(call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def latent(**options):
    sampler = diffusion.from_network(tiny_unet(**options), LINEAR).with_(steps=2)
    return decoders.Latent(sampler, tiny_autoencoder(), {"autoencoder_sha256": "0"})


def test_latent_diffusion_is_the_sampler_then_the_decoder():
    model, z = latent(), torch.from_numpy(noise.iid(3).draw(SHAPE, seed=0)[:, 0])
    with torch.no_grad():
        expected = model.autoencoder.decode(model.sampler.generate(z) / 0.5).sample
    torch.testing.assert_close(model.generate(z), expected)
    assert (model.shape, model.evaluations, model.with_(steps=5).evaluations) == (SHAPE, 3, 6)
    assert model.describe()["evaluations"] == 3
    assert model.describe()["decoder_sha256"] != model.sampler.describe()["network_sha256"]


def test_latent_diffusion_passes_step_noise_and_classes_on():
    model = latent(num_class_embeds=3).with_(scheduler="ddpm", steps=2, guidance=1.5)
    run = antinb.sample(model, noise.antithetic(2), seed=0, condition=1, progress=False)
    z = torch.from_numpy(noise.antithetic(2).draw(SHAPE, seed=0).reshape(4, *SHAPE))
    steps = {k: torch.from_numpy(noise.antithetic(2).draw(SHAPE, seed=0, stream=k).reshape(4, *SHAPE)) for k in (1, 2)}
    found = model.generate(z, draw=lambda stream, _: steps[stream], condition=torch.ones(4, dtype=torch.long))
    np.testing.assert_allclose(run["image"].to_numpy().reshape(found.shape), found, atol=1e-6)
    assert (model.null, model.evaluations) == (2, 5)


def test_an_autoencoder_of_other_latents_is_refused():
    sampler = diffusion.from_network(tiny_unet(), LINEAR)
    with pytest.raises(ValueError, match="has 4 latent channels; got a sampler of 1"):
        decoders.Latent(sampler, tiny_autoencoder(latent_channels=4))
