"""Pipelines keep their own schedulers: each is mirrored step by step, or refused by name."""

import diffusers
import pytest
import torch
from families import FAMILIES, PROMPTS

import antinb
from antinb import noise

DESIGN = noise.antithetic(2)
SCHEDULERS = {
    "Euler ancestral": ("EulerAncestralDiscreteScheduler", {}, 4),
    "Euler, Karras sigmas": ("EulerDiscreteScheduler", {"use_karras_sigmas": True}, 4),
    "UniPC": ("UniPCMultistepScheduler", {"use_karras_sigmas": True}, 4),
    "DPM++ SDE": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}, 4),
    "DPM++ 2M, Karras sigmas": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}, 4),
    "DPM2 ancestral": ("KDPM2AncestralDiscreteScheduler", {}, 7),
    "Heun": ("HeunDiscreteScheduler", {}, 7),
    "DDPM": ("DDPMScheduler", {}, 4),
    "SA-Solver": ("SASolverScheduler", {}, 4),
    "LCM": ("LCMScheduler", {}, 4),
    "TCD": ("TCDScheduler", {}, 4),
}
QUICK, SLOW = ("Euler ancestral", "UniPC", "DPM++ SDE"), pytest.mark.slow
STOCHASTIC = {"Euler ancestral", "DPM++ SDE", "DPM2 ancestral", "DDPM", "SA-Solver", "LCM"}
LEVELS = {"num_train_timesteps": 1000, "beta_start": 0.001, "beta_end": 0.01, "beta_schedule": "linear"}


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    folder = FAMILIES["stable diffusion"].save(tmp_path_factory.mktemp("text") / "model")
    return antinb.load(folder, prompts=PROMPTS[:1]).pipeline


@pytest.fixture
def latents(pipeline, monkeypatch):
    """What the decoder is given; the network is silenced, so that a sampler is linear in its noise."""
    found, decode = [], pipeline.vae.decode
    monkeypatch.setattr(pipeline.vae, "decode", lambda z, **given: (found.append(z), decode(z, **given))[1])
    hook = pipeline.unet.register_forward_hook(lambda _, __, output: (torch.zeros_like(output[0]),))
    yield found
    hook.remove()


@pytest.mark.filterwarnings("ignore:__array_wrap__ must accept")  # diffusers takes logarithms the way numpy 1 did
@pytest.mark.parametrize("name", [name if name in QUICK else pytest.param(name, marks=SLOW) for name in SCHEDULERS])
def test_all_noise_of_a_scheduler_is_mirrored(name, pipeline, latents):
    kind, options, calls = SCHEDULERS[name]
    pipeline.scheduler = getattr(diffusers, kind)(**LEVELS, **options)
    model = antinb.load(pipeline, steps=4, prompts=PROMPTS[:1], guidance=1.0)
    assert model.evaluations == calls
    record = model.describe()
    assert record["scheduler"] == kind
    assert options.items() <= record["scheduler_config"].items()
    latents.clear()
    antinb.sample(model, DESIGN, seed=0, progress=False)
    plus, minus = latents[0].reshape(2, 2, -1).unbind(1)
    torch.testing.assert_close(plus, -minus)
    assert (plus - minus).norm() > 1
    antinb.sample(model, noise.antithetic(2, start_only=True), seed=0, progress=False)
    first, second = latents[-2 if len(latents) > 2 else -1].reshape(2, 2, -1).unbind(1)
    assert torch.allclose(first, -second) == (name not in STOCHASTIC)


@pytest.mark.parametrize("name", ["DPMSolverSDEScheduler", "CosineDPMSolverMultistepScheduler"])
def test_a_scheduler_with_a_noise_source_of_its_own_is_refused_by_name(name, pipeline):
    kind = type(name, (diffusers.DDIMScheduler,), {})
    pipeline.scheduler = kind(**LEVELS)
    with pytest.raises(ValueError, match=f"{name} draws noise of its own.*algorithm_type='sde-dpmsolver"):
        antinb.load(pipeline, prompts=PROMPTS[:1])


@pytest.mark.parametrize(
    "kind", ["FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler", "ScoreSdeVeScheduler"]
)
def test_a_scheduler_that_does_not_fit_its_pipeline_is_named(kind, pipeline):
    pipeline.scheduler = getattr(diffusers, kind)(num_train_timesteps=1000)
    with pytest.raises(ValueError, match=f"StableDiffusionPipeline with {kind} does not run: ") as caught:
        antinb.sample(antinb.load(pipeline, steps=4, prompts=PROMPTS[:1]), DESIGN, seed=0, progress=False)
    assert "\n" not in str(caught.value)
