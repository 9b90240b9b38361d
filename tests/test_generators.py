"""The one sampling loop against diffusers' own pipelines."""

import pytest
import torch
from conftest import LINEAR, SHAPE, random_mixture, tiny_unet
from diffusers import DDIMPipeline, DDIMScheduler, DPMSolverMultistepScheduler

import antinb
from antinb import generators, noise


@pytest.mark.parametrize("clip", [True, False])
def test_same_pixels_as_the_diffusers_pipeline(clip):
    unet, scheduler = tiny_unet(), DDIMScheduler(1000, clip_sample=clip)
    pipeline = DDIMPipeline(unet.double(), scheduler)
    pipeline.set_progress_bar_config(disable=True)
    rng = torch.Generator().manual_seed(4)
    expected = pipeline(batch_size=3, num_inference_steps=7, generator=rng, output_type="np")
    z = torch.randn((3, 1, 8, 8), generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    images = generators.from_unet(unet, scheduler.config).with_(steps=7).generate(z)
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
    found = generators.from_unet(unet, LINEAR).with_(scheduler="dpmsolver++", steps=6).generate(z)
    torch.testing.assert_close(found, x, rtol=1e-5, atol=1e-5)


def test_samplers_converge_to_one_another():
    """Both integrate the same equation: with many steps they agree, and DPM-Solver++ needs fewer."""
    generator = generators.from_mixture(random_mixture(), SHAPE, LINEAR)
    z = torch.from_numpy(noise.iid(20).draw(SHAPE, seed=0)[:, 0])
    limit = generator.with_(steps=500).generate(z)
    ddim = (generator.with_(steps=25).generate(z) - limit).square().mean()
    dpm = (generator.with_(steps=25, scheduler="dpmsolver++").generate(z) - limit).square().mean()
    assert dpm < ddim < 0.05 * limit.var()


def test_options_are_recorded_and_survive_a_change_of_scheduler():
    generator = generators.from_unet(tiny_unet(), LINEAR)
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
    one, two = (generators.from_unet(tiny_unet(), {**LINEAR, "beta_end": end}) for end in (0.02, 0.01))
    assert one.describe() != two.describe()


def test_conditions_reach_the_network():
    generator = generators.from_unet(tiny_unet(num_class_embeds=3), LINEAR).with_(steps=2)
    z = torch.zeros(2, *SHAPE)
    one, two = generator.generate(z, condition=torch.tensor([0, 1]))
    assert not torch.equal(one, two)
    with pytest.raises(ValueError, match="needs condition"):
        generator.generate(z)
    with pytest.raises(ValueError, match="takes no condition"):
        generators.from_unet(tiny_unet(), LINEAR).generate(z, condition=torch.tensor([0, 1]))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda g: g.with_(steps=0), "got 0"),
        (lambda g: g.with_(steps=2.5), "got 2.5"),
        (lambda g: g.with_(scheduler="euler"), "euler"),
        (lambda g: g.with_(scheduler="dpmsolver++", clip=True), "clip=True"),
        (lambda g: g.generate(torch.zeros(2, 1, 7, 8)), r"\(2, 1, 7, 8\)"),
        (lambda g: generators.from_mixture(random_mixture(), (1, 5, 5), LINEAR), r"\(1, 5, 5\)"),
        (lambda g: generators.make_scheduler({"prediction_type": "v_prediction"}), "v_prediction"),
        (lambda g: generators.Function(abs, (3, 0)), r"\(3, 0\)"),
        (lambda g: generators.Function(lambda z: z[0], SHAPE).generate(torch.zeros(2, *SHAPE)), r"\(1, 8, 8\)"),
        (lambda g: generators.Function(lambda z: None, SHAPE).generate(torch.zeros(2, *SHAPE)), "NoneType"),
    ],
)
def test_bad_input_is_refused_with_the_value(mixture_generator, call, message):
    with pytest.raises(ValueError, match=message):
        call(mixture_generator)
