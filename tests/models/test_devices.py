"""Where and how precisely a network runs changes its images by rounding, and the noise not at all."""

import numpy as np
import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, FlowMatchEulerDiscreteScheduler, LCMScheduler
from families import FAMILIES, PROMPTS
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
    ("cpu", torch.float32),
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
    assert error < TOLERANCE[dtype]
    assert error > 0 or dtype == torch.float32


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


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    pipeline = DDIMPipeline(tiny_unet(), DDIMScheduler(1000))
    pipeline.set_progress_bar_config(disable=True)
    place = tmp_path_factory.mktemp("door") / "model"
    pipeline.save_pretrained(place)
    return place


def odd(z):
    return torch.tanh(z)


@pytest.mark.parametrize(("device", "dtype"), PLACES)
@pytest.mark.parametrize("door", ["folder", "pipeline", "module", "function", "text"])
def test_every_door_takes_a_device_and_a_precision(door, device, dtype, folder, tmp_path):
    """The record names the precision, the images differ from those in single precision by rounding."""
    source, options = folder, {"steps": 2}
    if door == "pipeline":
        source = DDIMPipeline.from_pretrained(folder, local_files_only=True)
        source.set_progress_bar_config(disable=True)
    elif door in ("module", "function"):
        source = torch.nn.Conv2d(1, 1, 3, padding=1) if door == "module" else odd
        options = {"shape": SHAPE}
    elif door == "text":
        source = FAMILIES["stable diffusion"].save(tmp_path / "text")
        options = {"steps": 2, "prompts": PROMPTS[:1]}
    plain = antinb.load(source, **options)
    reference = antinb.sample(plain, noise.antithetic(8), seed=0, progress=False)["image"]
    model = antinb.load(source, device=device, dtype=str(dtype).removeprefix("torch."), **options)
    if door == "pipeline" and dtype == torch.bfloat16:  # numpy, to which this pipeline turns its images, has none
        with pytest.raises(ValueError, match="DDIMPipeline with DDIMScheduler does not run: .*BFloat16"):
            antinb.sample(model, noise.antithetic(8), seed=0, progress=False)
        return
    run = antinb.sample(model, noise.antithetic(8), seed=0, progress=False)["image"]
    assert antinb.dataset.config(antinb.sample(model, noise.iid(1), seed=0, progress=False))["dtype"] in str(dtype)
    error = float(((run - reference) ** 2).mean() ** 0.5 / reference.std())
    assert run.dtype == np.float32
    assert error < TOLERANCE[dtype]
    assert error > 0 or dtype == torch.float32
    for part in model.pipeline.components.values() if door in ("pipeline", "text") else ():
        assert not isinstance(part, torch.nn.Module) or {p.dtype for p in part.parameters()} == {dtype}


@pytest.mark.parametrize(
    ("given", "rule"), [("float8", "dtype must be one of"), (torch.int8, "got 'int8'"), (16, "16")]
)
def test_a_precision_is_one_that_networks_run_in(given, rule, folder):
    with pytest.raises(ValueError, match=rule):
        antinb.load(folder, dtype=given)
    with pytest.raises(ValueError, match="device must be one that torch has here"):
        antinb.load(folder, device="nowhere")


def test_formulas_run_in_single_precision_at_least():
    assert antinb.load("fashion-mixture", steps=1, dtype="float64").like.dtype == torch.float64
    for name in ("fashion-mixture", "fashion-flow"):
        with pytest.raises(ValueError, match=f"{name} runs in float32 or float64; got torch.bfloat16"):
            antinb.load(name, dtype="bfloat16")


def test_prompts_come_from_a_file(tmp_path):
    source = FAMILIES["stable diffusion"].save(tmp_path / "text")
    (tmp_path / "prompts.txt").write_text("a b\n\n  c \n", encoding="utf-8")
    assert antinb.load(source, prompts=tmp_path / "prompts.txt").prompts == ("a b", "c")
    (tmp_path / "prompts.txt").write_text("\n", encoding="utf-8")
    for given, rule in ((tmp_path / "prompts.txt", "holds none"), ("a cat", "a file with one a line; got 'a cat'")):
        with pytest.raises(ValueError, match=rule):
            antinb.load(source, prompts=given)
    (tmp_path / "prompts.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="no text in UTF-8"):
        antinb.load(source, prompts=str(tmp_path / "prompts.txt"))
