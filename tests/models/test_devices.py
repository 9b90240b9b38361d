"""Where and how precisely a network runs changes its images by rounding, and the noise not at all."""

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, LCMScheduler
from helpers import LINEAR, SHAPE, tiny_autoencoder, tiny_unet

import antinb
from antinb import noise
from antinb.models import consistency, decoders, diffusion, rectified

FLOW = FlowMatchEulerDiscreteScheduler(1000).config
SAMPLERS = {
    "ddim": lambda unet: diffusion.from_network(unet, LINEAR).with_(steps=4),
    "ddpm": lambda unet: diffusion.from_network(unet, LINEAR).with_(steps=4, scheduler="ddpm"),
    "euler": lambda unet: rectified.from_network(unet, FLOW).with_(steps=4),
    "consistency": lambda unet: consistency.from_network(unet, LCMScheduler(1000).config).with_(steps=2),
}
ACCELERATOR = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
PLACES = [
    ("cpu", torch.bfloat16),
    *(
        pytest.param(ACCELERATOR, dtype, marks=pytest.mark.skipif(ACCELERATOR is None, reason="no accelerator here"))
        for dtype in (torch.float32, torch.float16, torch.bfloat16)
    ),
]
TOLERANCE = {torch.float32: 1e-4, torch.float16: 0.01, torch.bfloat16: 0.05}


@pytest.mark.parametrize(("device", "dtype"), PLACES)
@pytest.mark.parametrize("name", SAMPLERS)
def test_a_network_elsewhere_or_in_half_precision_makes_the_same_images(name, device, dtype):
    seen, unet = [], tiny_unet().to(device, dtype)
    unet.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    run, reference = (
        antinb.sample(SAMPLERS[name](net), noise.antithetic(8), seed=0, progress=False) for net in (unet, tiny_unet())
    )
    z = torch.from_numpy(noise.antithetic(8).draw(SHAPE, seed=0)).flatten(0, 1)
    assert torch.equal(seen[0].cpu(), z.to(dtype))
    spread = float(reference["image"].std())
    error = float(((run["image"] - reference["image"]) ** 2).mean() ** 0.5) / spread
    assert run["image"].dtype == "float32"
    assert 0 < error < TOLERANCE[dtype]


@pytest.mark.parametrize(("device", "dtype"), PLACES)
def test_decoders_too(device, dtype):
    torch.manual_seed(0)
    network = decoders.decoder(4, 2)
    z = torch.from_numpy(noise.iid(5).draw((4,), seed=0)[:, 0])
    expected = decoders.Decoder(network, 4).generate(z)
    found = decoders.Decoder(network.to(device, dtype), 4).generate(z)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.cpu(), expected, rtol=0, atol=TOLERANCE[dtype])


@pytest.mark.parametrize(("device", "dtype"), PLACES)
def test_latent_diffusion_too(device, dtype):
    def build(device, dtype):
        sampler = diffusion.from_network(tiny_unet().to(device, dtype), LINEAR).with_(steps=2)
        return decoders.Latent(sampler, tiny_autoencoder().to(device, dtype))

    z = torch.from_numpy(noise.iid(5).draw(SHAPE, seed=0)[:, 0])
    expected, found = build("cpu", torch.float32).generate(z), build(device, dtype).generate(z)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.cpu() / expected.std(), expected / expected.std(), rtol=0, atol=TOLERANCE[dtype])
