"""Pipelines of many families, saved to and loaded from a folder: what each does with its noise."""

import json

import diffusers
import numpy as np
import pytest
import torch
from families import FAMILIES, Family

import antinb
from antinb import correlation, noise
from antinb.models import pipelines
from antinb.zoo import loading

UNITS = 16
DESIGN = noise.antithetic(UNITS)


@pytest.fixture(scope="session", params=FAMILIES)
def case(request, tmp_path_factory):
    family = FAMILIES[request.param]
    if family.cls == "WanPipeline":
        pytest.importorskip("accelerate")
    folder = family.save(tmp_path_factory.mktemp("family") / "model")
    source = folder
    if family.cls in loading.OWN_LOOP:  # the folder runs in antinb's own loop; here the pipeline itself is asked
        source = getattr(diffusers, family.cls).from_pretrained(folder, low_cpu_mem_usage=False)
        source.set_progress_bar_config(disable=True)
    return family, antinb.load(source, steps=2, prompts=family.prompts, options=family.options)


def conditions(family: Family):
    several = len(family.prompts) or family.classes
    return [unit % 2 for unit in range(UNITS)] if several else None


def sampled(case, design=DESIGN, **options):
    family, generator = case
    return antinb.sample(generator, design, seed=3, condition=conditions(family), progress=False, **options)


def draw(sign=1):
    def numbers(stream, shape):
        units = DESIGN.draw(shape, seed=5, stream=stream)[:2, 0]
        return sign * torch.from_numpy(units)

    return numbers


def inputs(case, z, sign=1, silenced=False):
    """Return what the network takes, call after call, as seen by a hook of the test: tensors by argument."""
    family, generator = case
    seen = []

    def silence(_, __, output):
        if isinstance(output, tuple):
            return tuple(torch.zeros_like(part) for part in output)
        return type(output)(sample=torch.zeros_like(output.sample))

    def look(_, args, kwargs):
        named = {**dict(enumerate(args)), **kwargs}
        seen.append({key: value.double() for key, value in named.items() if isinstance(value, torch.Tensor)})

    hooks = [generator.network.register_forward_pre_hook(look, with_kwargs=True)]
    if silenced:
        hooks.append(generator.network.register_forward_hook(silence))
    several = len(family.prompts) or family.classes
    try:
        generator.generate(sign * z, draw=draw(sign), condition=torch.tensor([0, 1]) if several else None)
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def starts(generator, seed):
    return torch.randn(2, *generator.shape, generator=torch.Generator().manual_seed(seed))


def test_what_a_generator_says_of_its_pipeline(case):
    family, generator = case
    assert isinstance(generator, pipelines.Pipeline)
    assert (generator.shape, generator.evaluations) == (family.shape, family.evaluations)
    record = json.loads(json.dumps(generator.describe()))
    assert (record["model"], record["clip_image"]) == (family.cls, family.clipped)
    assert set(record["options"]) == set(family.options)


@pytest.mark.slow
def test_the_same_noise_makes_the_same_images_at_any_batch_size(case):
    whole, again, cut = (sampled(case, batch=batch)["image"] for batch in (64, 64, 3))
    np.testing.assert_allclose(again, whole, atol=1e-5)
    np.testing.assert_allclose(cut, whole, atol=5e-5)  # another batch size rounds otherwise
    assert whole.std("unit").max() > 0.01


def test_the_network_starts_from_z_and_from_minus_z(case):
    _, generator = case
    z, other = starts(generator, 0), starts(generator, 1)
    plus, minus, again, back = (inputs(case, *given)[0] for given in ((z,), (z, -1), (other,), (other, -1)))
    moved = [key for key in plus if not torch.equal(plus[key], minus[key])]
    assert len(moved) == 1
    one, two, three, four = (values[moved[0]] for values in (plus, minus, again, back))
    torch.testing.assert_close(one + two, three + four, rtol=1e-5, atol=1e-5)
    half = ((one - two) / 2)[:2].flatten(1)
    found = half[half != 0].reshape(2, -1).sort(1).values
    wanted = z.double().flatten(1).sort(1).values
    torch.testing.assert_close(found / found.norm(), wanted / wanted.norm(), rtol=1e-4, atol=1e-5)


def test_all_noise_is_mirrored_step_after_step(case):
    """With the network silenced a sampler is odd in its noise, up to what does not depend on the noise at all."""
    family, generator = case
    z, other = starts(generator, 0), starts(generator, 1)
    plus, minus, again, back = (
        inputs(case, *given, silenced=True)[-1][generator.entry.key]
        for given in ((z, 1), (z, -1), (other, 1), (other, -1))
    )
    torch.testing.assert_close(plus + minus, again + back, rtol=1e-4, atol=1e-4)
    assert (plus - minus).norm() > 0.01
    needed = torch.tensor([0, 1]) if conditions(family) else None
    if family.stochastic:
        with pytest.raises(ValueError, match="draw="):
            generator.generate(z, condition=needed)
    else:
        assert generator.generate(z, condition=needed).isfinite().all()


def test_pairs_are_correlated_end_to_end(case):
    table = correlation.summary(sampled(case))
    kinds = table.query("not centred").set_index("pairs")
    assert kinds[["estimate", "low", "high"]].notna().all(axis=None)
    assert {"PN", "RR"} <= set(kinds.index)


def test_conditions_reach_the_network(case):
    family, generator = case
    z = starts(generator, 0)
    if not conditions(family):
        with pytest.raises(ValueError, match="condition"):
            generator.generate(z, draw=draw(), condition=torch.tensor([0, 1]))
        return
    first, second = (generator.generate(z, draw=draw(), condition=torch.tensor(pair)) for pair in ([0, 0], [0, 1]))
    torch.testing.assert_close(first[0], second[0], rtol=1e-5, atol=1e-5)
    assert (first[1] - second[1]).abs().max() > 1e-5
    with pytest.raises(ValueError, match="needs a condition from 0"):
        generator.generate(z, draw=draw())


@pytest.mark.parametrize("name", ["sdxl", "flux"])
def test_the_images_are_those_of_latents_passed_by_hand(name, tmp_path):
    family = FAMILIES[name]
    generator = antinb.load(family.save(tmp_path / "m"), steps=2, prompts=family.prompts, options=family.options)
    z, pipeline = starts(generator, 0), generator.pipeline
    given = {key: value.repeat_interleave(2, 0) if "embeds" in key else value for key, value in family.options.items()}
    if family.prompts:
        given |= {"prompt": list(family.prompts), "latents": z}
    else:
        given |= {"latents": pipeline._pack_latents(z, *z.shape)}
    images = pipeline(**given, num_inference_steps=2, output_type="np").images
    raw = generator.generate(z, condition=torch.tensor([0, 1]) if family.prompts else None).numpy()
    np.testing.assert_allclose((raw / 2 + 0.5).clip(0, 1), images.transpose(0, 3, 1, 2), atol=1e-5)
    assert np.abs(raw).max() > 1
