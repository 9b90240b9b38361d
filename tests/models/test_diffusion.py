"""The one sampling loop against diffusers' own pipelines."""

import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, DPMSolverMultistepScheduler
from helpers import LINEAR, SHAPE, random_mixture, tiny_transformer, tiny_unet

import antinb
from antinb import noise
from antinb.models import diffusion, functions


@pytest.mark.parametrize("clip", [True, False])
def test_same_pixels_as_the_diffusers_pipeline(clip):
    unet, scheduler = tiny_unet(), DDIMScheduler(1000, clip_sample=clip)
    pipeline = DDIMPipeline(unet.double(), scheduler)
    pipeline.set_progress_bar_config(disable=True)
    rng = torch.Generator().manual_seed(4)
    expected = pipeline(batch_size=3, num_inference_steps=7, generator=rng, output_type="np")
    z = torch.randn((3, 1, 8, 8), generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    images = diffusion.from_network(unet, scheduler.config).with_(steps=7).generate(z)
    found = (images / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
    torch.testing.assert_close(found, torch.from_numpy(expected.images), rtol=0, atol=1e-5)
    assert not torch.equal(images, images.clamp(-1, 1)) or clip


def test_same_pixels_as_the_shipped_pipeline():
    folder = antinb.zoo.DATA / "models" / "fashion-ddpm"
    pipeline = DDIMPipeline.from_pretrained(folder, local_files_only=True, low_cpu_mem_usage=False)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.to(torch.float32)
    rng = torch.Generator().manual_seed(0)
    expected = pipeline(batch_size=2, num_inference_steps=5, generator=rng, output_type="np")
    z = torch.randn((2, 1, 28, 28), generator=torch.Generator().manual_seed(0))
    images = antinb.load("fashion-ddpm", steps=5).generate(z)
    found = (images / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
    torch.testing.assert_close(found, torch.from_numpy(expected.images), rtol=0, atol=1e-5)


def test_dpm_solver_is_the_scheduler_of_diffusers():
    unet = tiny_unet().double()
    scheduler = DPMSolverMultistepScheduler(1000, beta_schedule="linear")
    scheduler.set_timesteps(6)
    x = z = torch.randn((2, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(unet(x, t).sample, t, x).prev_sample
    found = diffusion.from_network(unet, LINEAR).with_(scheduler="dpmsolver++", steps=6).generate(z)
    torch.testing.assert_close(found, x, rtol=1e-5, atol=1e-5)


def test_samplers_converge_to_one_another():
    """Both integrate the same equation: with many steps they agree, and DPM-Solver++ needs fewer."""
    generator = diffusion.from_mixture(random_mixture(), SHAPE, LINEAR)
    z = torch.from_numpy(noise.iid(20).draw(SHAPE, seed=0)[:, 0])
    limit = generator.with_(steps=500).generate(z)
    ddim = (generator.with_(steps=25).generate(z) - limit).square().mean()
    dpm = (generator.with_(steps=25, scheduler="dpmsolver++").generate(z) - limit).square().mean()
    assert dpm < ddim < 0.05 * limit.var()


def test_options_are_recorded_and_survive_a_change_of_scheduler():
    generator = diffusion.from_network(tiny_unet(), LINEAR)
    clipped = generator.with_(clip=True, steps=9)
    assert clipped.describe()["clip_sample"]
    assert not generator.describe()["clip_sample"]
    assert clipped.describe()["evaluations"] == clipped.evaluations == 9
    there = generator.with_(scheduler="dpmsolver++")
    assert there.describe()["scheduler"] == "dpmsolver++"
    assert not there.with_(scheduler="ddim").describe()["clip_sample"]


def test_a_run_leaves_the_generator_as_it_was(mixture_generator):
    z = torch.from_numpy(noise.iid(4).draw(SHAPE, seed=0)[:, 0])
    first = mixture_generator.generate(z)
    mixture_generator.with_(steps=3).generate(z)
    assert torch.equal(mixture_generator.generate(z), first)


def test_noise_levels_are_part_of_the_record():
    one, two = (diffusion.from_network(tiny_unet(), {**LINEAR, "beta_end": end}) for end in (0.02, 0.01))
    assert one.describe() != two.describe()


def test_conditions_reach_the_network():
    generator = diffusion.from_network(tiny_unet(num_class_embeds=3), LINEAR).with_(steps=2)
    z = torch.zeros(2, *SHAPE)
    one, two = generator.generate(z, condition=torch.tensor([0, 1]))
    assert not torch.equal(one, two)
    with pytest.raises(ValueError, match="needs condition"):
        generator.generate(z)
    with pytest.raises(ValueError, match="takes no condition"):
        diffusion.from_network(tiny_unet(), LINEAR).generate(z, condition=torch.tensor([0, 1]))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda g: g.with_(steps=0), "got 0"),
        (lambda g: g.with_(steps=2.5), "got 2.5"),
        (lambda g: g.with_(scheduler="euler"), "euler"),
        (lambda g: g.with_(scheduler="dpmsolver++", clip=True), "clip=True"),
        (lambda g: g.generate(torch.zeros(2, 1, 7, 8)), r"\(2, 1, 7, 8\)"),
        (lambda g: diffusion.from_mixture(random_mixture(), (1, 5, 5), LINEAR), r"\(1, 5, 5\)"),
        (lambda g: diffusion.make_scheduler({"prediction_type": "flow_prediction"}), "flow_prediction"),
        (lambda g: functions.Function(abs, (3, 0)), r"\(3, 0\)"),
        (lambda g: functions.Function(lambda z: z[0], SHAPE).generate(torch.zeros(2, *SHAPE)), r"\(1, 8, 8\)"),
        (lambda g: functions.Function(lambda z: None, SHAPE).generate(torch.zeros(2, *SHAPE)), "NoneType"),
    ],
)
def test_bad_input_is_refused_with_the_value(mixture_generator, call, message):
    with pytest.raises(ValueError, match=message):
        call(mixture_generator)


def unit_noise(stream):
    return torch.from_numpy(noise.antithetic(3).draw(SHAPE, seed=5, stream=stream)).flatten(0, 1)


def test_ddpm_is_the_ancestral_sampler():
    """Algorithm 2 of arXiv 2006.11239 at all of its levels, with the posterior variance."""
    unet = tiny_unet().double()
    generator = diffusion.from_network(unet, {**LINEAR, "num_train_timesteps": 50}).with_(steps=50, scheduler="ddpm")
    betas = torch.linspace(1e-4, 0.02, 50, dtype=torch.float64)
    abar = (1 - betas).cumprod(0)
    x = unit_noise(0).double()
    with torch.no_grad():
        for step, t in enumerate(range(49, -1, -1), 1):
            x = (x - betas[t] / (1 - abar[t]).sqrt() * unet(x, t).sample) / (1 - betas[t]).sqrt()
            if t:
                variance = (1 - abar[t - 1]) / (1 - abar[t]) * betas[t]
                x = x + variance.sqrt() * unit_noise(step)
    found = generator.generate(unit_noise(0), draw=lambda stream, shape: unit_noise(stream))
    torch.testing.assert_close(found, x, rtol=0, atol=1e-4)  # the noise levels are float32 in diffusers


def test_full_eta_is_ddpm_and_no_eta_draws_nothing(mixture_generator):
    asked = []

    def draw(stream, shape):
        asked.append((stream, shape))
        return unit_noise(stream)

    eta, ddpm, ddim = (mixture_generator.with_(**kind) for kind in ({"eta": 1.0}, {"scheduler": "ddpm"}, {}))
    images = eta.generate(unit_noise(0), draw=draw)
    assert asked == [(stream, SHAPE) for stream in range(1, 11)]
    torch.testing.assert_close(ddpm.generate(unit_noise(0), draw=draw), images, rtol=0, atol=1e-4)
    assert [stream for stream, _ in asked[10:]] == list(range(1, 10))
    assert torch.equal(ddim.generate(unit_noise(0), draw=None), ddim.generate(unit_noise(0), draw=draw))
    assert len(asked) == 19


def test_guidance_is_the_extrapolated_noise():
    unet = tiny_unet(num_class_embeds=4)
    generator = diffusion.from_network(unet, LINEAR).with_(steps=3, guidance=2.5)
    x, classes = unit_noise(0), torch.tensor([0, 0, 1, 1, 2, 2])
    with torch.no_grad():
        towards, free = (unet(x, 400, class_labels=labels).sample for labels in (classes, torch.full((6,), 3)))
        found = generator.predict_noise(x, 400, classes)
    torch.testing.assert_close(found, free + 2.5 * (towards - free), rtol=0, atol=1e-5)
    assert generator.evaluations == generator.describe()["evaluations"] == 6
    plain, unguided = generator.with_(guidance=1.0), diffusion.from_network(unet, LINEAR).with_(steps=3)
    assert plain.evaluations == 3
    assert torch.equal(plain.generate(x, condition=classes), unguided.generate(x, condition=classes))


def test_a_trajectory_is_the_run(mixture_generator):
    """Its states start at the noise, its predictions are the network's, each step leads to the next state."""
    ddim = mixture_generator.with_(eta=0.0, steps=6)
    z = unit_noise(0)
    images, recorded = ddim.trajectory(z)
    state, eps = recorded["state"], recorded["predicted_noise"]
    assert state.shape == eps.shape == (6, 6, *SHAPE)
    assert torch.equal(images, ddim.generate(z))
    assert torch.equal(state[:, 0], z)
    abar = diffusion.make_scheduler(LINEAR).alphas_cumprod
    for step, t in enumerate(ddim.timesteps):
        torch.testing.assert_close(eps[:, step], ddim.predict_noise(state[:, step], t))
        before, after = abar[t], abar[ddim.timesteps[step + 1]] if step < 5 else torch.tensor(1.0)
        clean = (state[:, step] - (1 - before).sqrt() * eps[:, step]) / before.sqrt()
        following = state[:, step + 1] if step < 5 else images
        torch.testing.assert_close(
            after.sqrt() * clean + (1 - after).sqrt() * eps[:, step], following, rtol=0, atol=1e-4
        )


@pytest.mark.slow
def test_a_compiled_network_gives_the_same_images():
    generator = diffusion.from_network(tiny_unet(), LINEAR).with_(steps=3)
    compiled = generator.with_(compile=True)
    torch.testing.assert_close(compiled.generate(unit_noise(0)), generator.generate(unit_noise(0)), rtol=0, atol=1e-5)
    assert compiled.describe() == {**generator.describe(), "compile": True}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"eta": 2}, "from 0 to 1; got 2"),
        ({"eta": 0.5, "scheduler": "ddpm"}, "eta=0.5 with 'ddpm'"),
        ({"guidance": 3.0}, "null class; got guidance=3.0"),
        ({"guidance": float("nan")}, "got nan"),
        ({"stride": 3}, "'stride'"),
    ],
)
def test_bad_settings_are_refused_with_the_value(mixture_generator, settings, message):
    with pytest.raises(ValueError, match=message):
        mixture_generator.with_(**settings)


def test_a_model_of_few_levels_has_few_steps():
    generator = diffusion.from_network(tiny_unet(), {**LINEAR, "num_train_timesteps": 20})
    assert generator.steps == 20
    with pytest.raises(ValueError, match="at most 19; got 20"):
        generator.with_(scheduler="dpmsolver++")
    assert torch.isfinite(generator.with_(scheduler="dpmsolver++", steps=19).generate(unit_noise(0))).all()
    with pytest.raises(ValueError, match="20 steps start at level 20"):
        diffusion.from_network(tiny_unet(), {**LINEAR, "num_train_timesteps": 20, "steps_offset": 1})


def test_the_record_tells_networks_apart():
    config = {"flip_sin_to_cos": False}
    one, other = (diffusion.from_network(tiny_unet(**options), LINEAR).describe() for options in ({}, config))
    assert one["network_sha256"] != other["network_sha256"]


def test_classes_are_those_of_the_model():
    generator = diffusion.from_network(tiny_unet(num_class_embeds=3), LINEAR).with_(steps=1)
    with pytest.raises(ValueError, match=r"classes 0 to 2; got \[0, 3, "):
        generator.generate(unit_noise(0), condition=torch.tensor([0, 3, 1, 1, 1, 1]))


def test_a_stochastic_sampler_needs_its_noise(mixture_generator):
    for stochastic in (mixture_generator.with_(eta=0.3), mixture_generator.with_(scheduler="ddpm")):
        with pytest.raises(ValueError, match="draw="):
            stochastic.generate(unit_noise(0))
        with pytest.raises(ValueError, match=r"got \(2, 1, 8, 8\)"):
            stochastic.generate(unit_noise(0), draw=lambda stream, shape: unit_noise(stream)[:2])


def test_a_transformer_is_a_conditional_generator_with_a_null_class():
    transformer, z = tiny_transformer(), torch.from_numpy(noise.iid(2).draw(SHAPE, seed=0)[:, 0])
    with torch.no_grad():  # its last layers start at zero
        for parameter in transformer.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) / 10)
    generator = diffusion.from_network(transformer, LINEAR).with_(steps=3, guidance=2.0)
    assert (generator.shape, generator.null, generator.evaluations) == (SHAPE, 3, 6)
    classes, t = torch.tensor([0, 2]), torch.tensor(500)
    with torch.no_grad():
        towards = transformer(z, t.expand(2), class_labels=classes).sample
        free = transformer(z, t.expand(2), class_labels=torch.full((2,), 3)).sample
        found = generator.predict_noise(z, t, classes)
    torch.testing.assert_close(found, free + 2 * (towards - free), rtol=0, atol=1e-6)
    assert (towards - free).abs().max() > 1e-3
    with pytest.raises(ValueError, match="classes 0 to 3; got"):
        generator.with_(guidance=1.0).generate(z, condition=torch.tensor([0, 4]))
    with pytest.raises(ValueError, match="must return its 1 channels; got 3"):
        diffusion.from_network(tiny_transformer(out_channels=3), LINEAR)
