"""Programs of others, unchanged: whole pipelines of diffusers and plain functions that draw."""

import diffusers
import numpy as np
import pytest
import torch
from diffusers import (
    CMStochasticIterativeScheduler,
    ConsistencyModelPipeline,
    DanceDiffusionPipeline,
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    EulerDiscreteScheduler,
    IPNDMScheduler,
    UNet1DModel,
)
from families import CONSISTENCY, FAMILIES, PROMPTS
from helpers import LINEAR, SHAPE, random_mixture, tiny_unet

import antinb
from antinb import correlation, draws, estimation, noise, statistics
from antinb.models import diffusion, pipelines

DESIGN = noise.antithetic(4)


def quiet(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    pipeline.unet.eval()
    return pipeline


@pytest.fixture
def ddpm():
    return quiet(DDPMPipeline(tiny_unet(), DDPMScheduler(1000)))


@pytest.fixture
def ddim():
    return quiet(DDIMPipeline(tiny_unet(), DDIMScheduler(1000)))


@pytest.fixture
def consistency():
    return quiet(ConsistencyModelPipeline(tiny_unet(3), CMStochasticIterativeScheduler(num_train_timesteps=40)))


def pixels(run):
    images = run["image"].values
    return ((images.reshape(-1, *images.shape[2:]) + 1) / 2).clip(0, 1)


@pytest.mark.parametrize("kind", ["ddpm", "ddim"])
def test_an_unchanged_pipeline_follows_the_design(kind, request):
    """Draws inside the pipeline, the pipeline as a generator, and antinb's own loop give the same pixels."""
    pipeline = request.getfixturevalue(kind)
    options, own = ({}, {"scheduler": "ddpm"}) if kind == "ddpm" else ({"eta": 1.0}, {"eta": 1.0})
    with draws.using(DESIGN, seed=2, network=pipeline.unet):
        inside = pipeline(batch_size=8, num_inference_steps=6, output_type="np", **options).images
    loop = diffusion.from_network(pipeline.unet, pipeline.scheduler.config).with_(steps=6, **own)
    runs = [
        antinb.sample(generator, DESIGN, seed=2, progress=False, batch=8)
        for generator in (antinb.load(pipeline, steps=6, **options), loop)
    ]
    for run in runs:
        np.testing.assert_allclose(pixels(run), inside.transpose(0, 3, 1, 2), atol=2e-5)
    assert np.ptp(inside) > 0.5


def test_all_noise_is_negated_and_the_start_alone_is_not_enough():
    """For one Gaussian the stochastic sampler is affine: all noise negated, pairs are mirrored exactly."""
    generator = diffusion.from_mixture(random_mixture(components=1), SHAPE, LINEAR).with_(steps=20, scheduler="ddpm")
    whole = antinb.sample(generator, noise.antithetic(30), seed=0, progress=False)["image"].astype(float)
    start = antinb.sample(generator, noise.antithetic(30, start_only=True), seed=0, progress=False)["image"].astype(
        float
    )
    np.testing.assert_array_equal(whole[:, 0], start[:, 0])
    centre = whole.mean("member")
    np.testing.assert_allclose(centre, np.broadcast_to(centre[0], centre.shape), atol=1e-5)
    shared = start.mean("member") - centre
    assert (shared.var() / (whole - centre).var()).item() > 0.3


def test_latents_and_step_noise_of_a_consistency_model(consistency):
    run = antinb.sample(antinb.load(consistency, steps=3), DESIGN, seed=2, progress=False, batch=8)
    streams = [torch.from_numpy(DESIGN.draw((3, 8, 8), seed=2, stream=k)).flatten(0, 1) for k in range(3)]
    scheduler = consistency.scheduler
    scheduler.set_timesteps(3)
    x, rest = streams[0] * scheduler.init_noise_sigma, iter(streams[1:])
    sigmas = scheduler.sigmas
    with torch.no_grad():
        for step, t in enumerate(scheduler.timesteps):
            skip, out = scheduler.get_scalings_for_boundary_condition(sigmas[step])
            scaled = x / (sigmas[step] ** 2 + scheduler.config.sigma_data**2) ** 0.5
            x = (out * consistency.unet(scaled, t).sample + skip * x).clamp(-1, 1)
            following = sigmas[step + 1].clamp(scheduler.config.sigma_min, scheduler.config.sigma_max)
            if step < 2:
                x = x + (following**2 - scheduler.config.sigma_min**2) ** 0.5 * next(rest)
    np.testing.assert_allclose(pixels(run), (x.numpy() / 2 + 0.5).clip(0, 1), atol=2e-5)


def noisy(z):
    return z + torch.randn_like(z) * 0.5


def test_what_a_function_draws_is_step_noise():
    run = antinb.sample(antinb.load(noisy, shape=SHAPE), DESIGN, seed=1, progress=False, batch=3)
    expected = DESIGN.draw(SHAPE, seed=1) + 0.5 * DESIGN.draw(SHAPE, seed=1, stream=1)
    np.testing.assert_allclose(run["image"], expected, atol=1e-6)
    np.testing.assert_allclose(run["image"][:, 0], -run["image"][:, 1], atol=1e-6)
    with pytest.raises(ValueError, match="draw="):
        antinb.load(noisy, shape=SHAPE).generate(torch.zeros(2, *SHAPE))
    with pytest.raises(ValueError, match=r"2 rows.*\(5,\)"):
        antinb.load(lambda z: z + torch.randn(5).mean(), shape=SHAPE).generate(torch.zeros(2, *SHAPE))


def test_the_record_names_pipeline_weights_and_scheduler(ddpm, ddim):
    record = antinb.load(ddim, steps=6, eta=0.5).describe()
    assert (record["model"], record["scheduler"], record["options"]) == ("DDIMPipeline", "DDIMScheduler", {"eta": 0.5})
    assert record["evaluations"] == 6
    generator = antinb.load(ddpm, steps=6)
    before = generator.describe()["networks_sha256"]
    assert before == record["networks_sha256"]
    with torch.no_grad():
        next(ddpm.unet.parameters()).add_(1)
    assert generator.describe()["networks_sha256"] != before


def test_what_a_pipeline_does_not_take_is_refused(ddpm):
    for options, message in (({"eta": 0.5}, "eta="), ({"guidance": 2.0}, "guidance="), ({"shape": SHAPE}, "shape=")):
        with pytest.raises(ValueError, match=message):
            antinb.load(ddpm, **options)
    for call, message in (
        (lambda: antinb.load(ddpm, steps=0), "steps"),
        (lambda: pipelines.Pipeline(ddpm, options={"num_inference_steps": 7}), "num_inference_steps"),
        (lambda: pipelines.Pipeline(ddpm, options={"stride": 7}), "stride"),
        (lambda: antinb.load(ddpm, steps=1).generate(torch.zeros(1, *SHAPE), condition=torch.tensor([1])), "condition"),
        (lambda: pipelines.Pipeline(ddpm, options={"generator": 7}), "generator"),
        (lambda: antinb.load(ddpm, options={"eta": 1.0}), "eta"),
        (lambda: antinb.load(ddpm, prompts=["a"]), "prompts="),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    ddpm.unet.train()
    with pytest.raises(ValueError, match="UNet2DModel is in training mode"):
        antinb.load(ddpm, steps=2).generate(torch.zeros(2, *SHAPE))


def test_a_pipeline_that_changes_the_start_is_refused(ddpm, monkeypatch):
    from diffusers.pipelines.ddpm import pipeline_ddpm

    def by_numpy(shape, **_):
        return torch.from_numpy(np.random.default_rng(0).standard_normal(shape).astype(np.float32))

    found = antinb.load(ddpm, steps=2)
    assert found.shape == SHAPE
    monkeypatch.setattr(pipeline_ddpm, "randn_tensor", by_numpy)
    with pytest.raises(ValueError, match="not the design's noise"):
        found.generate(torch.randn(2, *SHAPE))
    with pytest.raises(ValueError, match="DDPMPipeline cannot be paired: it draws no noise"):
        antinb.load(ddpm, steps=2).generate(torch.randn(2, *SHAPE))


class OfImages(DDPMPipeline):
    def __call__(self, num_videos_per_prompt=1, num_inference_steps=2, output_type="np"):
        frames = super().__call__(
            num_videos_per_prompt, num_inference_steps=num_inference_steps, output_type=output_type
        )
        return (frames.images[:, None].repeat(3, 1),)


def test_frames_lie_below_each_other_and_a_batch_needs_no_prompt(ddpm):
    generator = antinb.load(quiet(OfImages(ddpm.unet, ddpm.scheduler)), steps=2)
    assert generator.shape == SHAPE
    z = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(0))
    given = {"draw": lambda stream, shape: torch.full((3, *shape), 1.0 * stream)}
    images = antinb.load(ddpm, steps=2).generate(z, **given)
    torch.testing.assert_close(generator.generate(z, **given), images.repeat(1, 1, 3, 1))


class Uneven(DDPMPipeline):
    def __call__(self, batch_size=1, num_inference_steps=2, output_type="np"):
        steps = num_inference_steps + (batch_size == 2)
        return super().__call__(batch_size=batch_size, num_inference_steps=steps, output_type=output_type)


def test_calls_are_counted_and_must_not_depend_on_the_batch():
    generator = antinb.load(quiet(Uneven(tiny_unet(), DDPMScheduler(1000))), steps=3)
    assert generator.evaluations == 3
    with pytest.raises(ValueError, match="4 times an image, and 3 before"):
        generator.generate(torch.randn(2, *SHAPE), draw=lambda _, shape: torch.zeros(2, *shape))


def test_a_pipeline_without_classes_does_not_take_a_network_with_classes():
    for kind, options in (
        (DDPMPipeline, {"num_class_embeds": 10}),
        (DDPMPipeline, {"class_embed_type": "timestep"}),
        (DDIMPipeline, {"class_embed_type": "identity"}),
    ):
        pipeline = kind(tiny_unet(**options), DDPMScheduler(1000))
        with pytest.raises(ValueError, match="calls its network without the classes that it needs: save it and load"):
            antinb.load(pipeline)
    assert antinb.load(ConsistencyModelPipeline(tiny_unet(num_class_embeds=10), CONSISTENCY)).conditions == 10


def test_sound_is_refused():
    blocks = {"down_block_types": ("DownBlock1DNoSkip", "AttnDownBlock1D"), "layers_per_block": 1}
    blocks |= {"up_block_types": ("AttnUpBlock1D", "UpBlock1DNoSkip"), "block_out_channels": (32, 32)}
    network = UNet1DModel(sample_size=64, extra_in_channels=16, in_channels=2, out_channels=2, **blocks)
    with pytest.raises(ValueError, match="DanceDiffusionPipeline makes sound, which is no image"):
        antinb.load(DanceDiffusionPipeline(network, IPNDMScheduler()))
    for name in (
        *("StableAudioPipeline", "StableAudio3Pipeline", "StableAudio3InpaintPipeline", "AceStepPipeline"),
        *("LongCatAudioDiTPipeline", "AudioLDMPipeline", "AudioLDM2Pipeline", "MusicLDMPipeline"),
    ):
        if cls := getattr(diffusers, name, None):  # some are newer than the oldest version that is supported
            own = type("Own", (cls,), {"__call__": lambda self, prompt, num_inference_steps=1: None})
            for kind in (cls, own):
                audio = object.__new__(kind)
                audio._internal_dict = {}
                audio.transformer = network
                with pytest.raises(ValueError, match=f"{kind.__name__} makes sound"):
                    antinb.load(audio)


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    return FAMILIES["stable diffusion"].save(tmp_path_factory.mktemp("words") / "model")


@pytest.mark.slow
def test_eta_needs_a_scheduler_that_takes_it(words):
    pipeline = antinb.load(words, prompts=PROMPTS).pipeline
    assert antinb.load(pipeline, prompts=PROMPTS, eta=np.float32(0.5)).describe()["options"] == {"eta": 0.5}
    pipeline.scheduler = EulerDiscreteScheduler.from_config(pipeline.scheduler.config)
    antinb.load(pipeline, prompts=PROMPTS, eta=0.0)
    with pytest.raises(ValueError, match="eta=0.5 with EulerDiscreteScheduler"):
        antinb.load(pipeline, prompts=PROMPTS, eta=0.5)


@pytest.mark.slow
def test_one_negative_prompt_is_for_all(words):
    z, both = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1])
    shared = {"steps": 1, "prompts": PROMPTS, "guidance": 3.0}

    def images(condition=both, noises=z, **options):
        return antinb.load(words, options=options, **shared).generate(noises, condition=condition)

    one = images(negative_prompt="b")
    torch.testing.assert_close(images(negative_prompt=["b", "b"]), one)
    torch.testing.assert_close(images(negative_prompt=["b"]), one)
    own = images(negative_prompt=["b", "c a"])
    torch.testing.assert_close(own[:1], one[:1], rtol=0, atol=1e-5)
    assert (own[1] - one[1]).abs().max() > 1e-4
    torch.testing.assert_close(images(both[1:], z[1:], negative_prompt=["b", "c a"]), own[1:], rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="negative_prompt is one text, or one for each of 2 prompts"):
        images(negative_prompt=["a", "b", "c"])


@pytest.mark.slow
def test_further_texts_and_embeddings_are_one_or_one_a_prompt(words, tmp_path):
    """Each of two prompts has its own row of what is given beside it, in whatever batch."""
    z, both = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1])
    pipeline, shared = antinb.load(words, prompts=PROMPTS).pipeline, {"steps": 1, "guidance": 3.0}

    def images(condition=both, noises=z, source=pipeline, prompts=PROMPTS, **options):
        return antinb.load(source, options=options, prompts=prompts, **shared).generate(noises, condition=condition)

    known = images(negative_prompt=["b", "c a"])
    with torch.no_grad():
        rows, negative = pipeline.encode_prompt(list(PROMPTS), "cpu", 1, True, ["b", "c a"])
    embedded = {"prompts": (), "prompt_embeds": rows}
    near = {"rtol": 0, "atol": 1e-5}
    torch.testing.assert_close(images(negative_prompt_embeds=negative), known, **near)
    torch.testing.assert_close(images(both[1:], z[1:], negative_prompt_embeds=negative), known[1:], **near)
    torch.testing.assert_close(images(**embedded, negative_prompt=["b", "c a"]), known, **near)
    torch.testing.assert_close(images(**embedded, negative_prompt="b"), images(negative_prompt="b"), **near)
    with pytest.raises(ValueError, match="negative_prompt_embeds is one row, or one for each of 2 prompts"):
        images(negative_prompt_embeds=negative.repeat(2, 1, 1)[:3])
    large = antinb.load(FAMILIES["sdxl"].save(tmp_path / "large"), prompts=PROMPTS).pipeline
    one, two = (images(source=large, prompt_2=text) for text in ("c", "b a"))
    assert (one - two).abs().max() > 1e-5
    torch.testing.assert_close(images(source=large, prompt_2=["c", "b a"]), torch.stack([one[0], two[1]]), **near)
    torch.testing.assert_close(
        images(both[1:], z[1:], source=large, prompt_2=["c", "b a"], negative_prompt_2=None), two[1:], **near
    )


def test_after_an_adapter_was_added_it_says_what_to_call(ddpm):
    ddpm.unet.conv_in.train()
    with pytest.raises(
        ValueError, match="also after load_lora_weights: pipeline.unet.eval.*Conv2d is in training mode"
    ):
        antinb.load(ddpm, steps=1).generate(torch.zeros(1, *SHAPE))


@pytest.mark.slow
def test_prompts_in_turn_are_strata(words):
    """Each pair has one prompt, correlations are within prompts, and so are intervals: forgetting them widens both."""
    model = antinb.load(words, steps=2, prompts=PROMPTS, guidance=20.0)
    run = antinb.sample(model, noise.antithetic(40), seed=0, condition="in turn", batch=64, progress=False)
    assert run["condition"].values.tolist() == [0, 1] * 20
    values = statistics.measure(run, statistics.pixel_mean)
    kept, forgotten = (estimation.interval(part)["se"].item() for part in (values, values.drop_vars("condition")))
    means = values.mean("member")[0].values
    by_hand = (np.var(means[0::2], ddof=1) / 20 + np.var(means[1::2], ddof=1) / 20) ** 0.5 / 2
    np.testing.assert_allclose(kept, by_hand, rtol=1e-6)
    table = correlation.summary(run).query("centred").set_index("pairs")["estimate"]
    apart = correlation.summary(run.drop_vars("condition")).query("centred").set_index("pairs")["estimate"]
    assert abs(table["RR"]) < 0.1
    assert kept <= forgotten
    assert table["PN"] <= apart["PN"] + 0.01
