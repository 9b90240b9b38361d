"""Rounded weights: by hand, by PyTorch's own quantisation of a tensor, and nothing of the original is changed."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from helpers import SHAPE, tiny_unet

import antinb
from antinb import noise, zoo
from antinb.models import diffusion


def model(steps=2):
    return diffusion.from_network(tiny_unet(), dict(DDIMScheduler(1000).config)).with_(steps=steps)


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")  # PyTorch keeps the function until it has another
@pytest.mark.parametrize(("kind", "bits"), [("int8", 8), ("int4", 4)])
def test_integers_are_those_of_torch_a_channel_at_a_time(kind, bits):
    plain, found = model(), zoo.rounded(model(), kind)
    most = 2 ** (bits - 1) - 1
    for (name, before), (_, after) in zip(
        plain.network.module.named_parameters(), found.network.module.named_parameters(), strict=True
    ):
        if before.ndim < 2 or "norm" in name:
            torch.testing.assert_close(after, before, rtol=0, atol=0)
            continue
        scale = before.detach().flatten(1).abs().amax(1).double() / most
        zero = torch.zeros(len(scale), dtype=torch.long)
        oracle = torch.quantize_per_channel(before.detach(), scale, zero, 0, torch.qint8).dequantize()
        torch.testing.assert_close(after.detach(), oracle, rtol=1e-4, atol=1e-7)
        assert len(np.unique((after.detach().flatten(1) / scale[:, None]).round())) <= 2 * most + 1


@pytest.mark.parametrize("kind", ["bfloat16", "float16"])
def test_floats_are_the_nearest_ones(kind):
    found = zoo.rounded(model(), kind)
    for before, after in zip(model().network.module.parameters(), found.network.module.parameters(), strict=True):
        torch.testing.assert_close(after, before.to(getattr(torch, kind)).float(), rtol=0, atol=0)
        assert after.dtype == torch.float32


def test_the_original_stays_and_the_record_says_what_was_rounded():
    plain = model()
    before = {name: value.clone() for name, value in plain.network.module.state_dict().items()}
    found = zoo.rounded(plain, "int4")
    for name, value in plain.network.module.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    told = [generator.describe() for generator in (plain, found)]
    assert told[1]["weights"] == "int4"
    assert told[0]["network_sha256"] != told[1]["network_sha256"]
    assert {key for key in told[1] if told[0].get(key) != told[1][key]} == {"weights", "network_sha256"}
    runs = [antinb.sample(part, noise.iid(2), seed=0, progress=False)["image"].values for part in (plain, found)]
    assert np.abs(runs[0] - runs[1]).max() > 1e-4


def test_the_sampler_of_a_latent_model_is_rounded():
    latent = antinb.load("fashion-ldm", steps=1)
    found = zoo.rounded(latent, "int8")
    assert found.describe()["weights"] == "int8"
    assert found.sampler.network is not latent.sampler.network
    assert found.generate(torch.zeros(1, *found.shape)).shape == (1, 1, 28, 28)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: zoo.rounded(model(), "int3"), "did you mean"),
        (lambda: zoo.rounded(antinb.load(torch.tanh, shape=SHAPE), "int8"), "got a Function: round its modules"),
        (lambda: zoo.rounded(antinb.load("fashion-mixture"), "int8"), "got a Diffusion: round its modules"),
    ],
)
def test_what_cannot_be_rounded_is_one_line(call, words):
    with pytest.raises(ValueError, match=words):
        call()
