"""Editors: affine velocities have every edit in closed form, and two independent loops make the others."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from helpers import LINEAR, SHAPE, tiny_transformer, tiny_unet

import antinb
from antinb import classifier, dataset, editing, exact, noise, statistics, zoo
from antinb.models import diffusion, rectified

SIZE = (1, 2, 2)
MEANS, SCALES = torch.tensor([0.3, -0.4, 0.1], dtype=torch.float64), torch.tensor([0.5, 0.5, 0.2], dtype=torch.float64)
ZERO = torch.zeros((), dtype=torch.float64)
SOURCES = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(3, *SIZE)
EVERY = torch.arange(3)


def velocity(x, level, condition):
    """`E(n - x | x_t)` of Gaussian classes, N(MEANS, SCALES^2)."""
    t = level / 1000
    mean, scale = (table[condition].reshape(-1, 1, 1, 1) for table in (MEANS, SCALES))
    return (t - (1 - t) * scale**2) / ((1 - t) ** 2 * scale**2 + t**2) * (x - (1 - t) * mean) - mean


def gaussian_flow(network=velocity, **settings):
    return rectified.RectifiedFlow(network, SIZE, ZERO, **{"steps": 8, "null": 3} | settings)


def network_flow(network):
    return rectified.from_network(network, dict(FlowMatchEulerDiscreteScheduler(1000).config)).with_(steps=5)


def draw_of(design, seed=0, shape=SIZE):
    def draw(stream, size=shape):
        values = design.draw(size, seed=seed, stream=stream)
        return torch.from_numpy(values).flatten(0, 1).double()

    return draw


def edit(editor, design, condition=EVERY):
    draw = draw_of(design, shape=editor.shape)
    return editor.generate(draw(0), draw=draw, condition=condition.repeat_interleave(design.members))


@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_classes_of_one_scale_differ_by_a_shift_whatever_the_noise(strength):
    """`D' = D + (t' - t)(a (D - (1 - t) d) - d)` for the shift D, d the difference of the means: no noise in it."""
    model, shift, difference = gaussian_flow(), 0.0, float(MEANS[1] - MEANS[0])
    for t, after in zip(model.times[-1 - int(8 * strength) :], model.times[-int(8 * strength) :], strict=False):
        slope = (t - (1 - t) * 0.25) / ((1 - t) ** 2 * 0.25 + t**2)
        shift += (after - t) * (slope * (shift - (1 - t) * difference) - difference)
    editor = editing.flow_edit(model, SOURCES, 0, 1, strength=strength, repeats=1)
    torch.testing.assert_close(edit(editor, noise.iid(3)), SOURCES + shift, rtol=0, atol=1e-6)


def test_many_steps_move_a_source_by_the_difference_of_the_means():
    editor = editing.flow_edit(gaussian_flow(steps=500), SOURCES, 0, 1, strength=1)
    torch.testing.assert_close(edit(editor, noise.iid(3)), SOURCES - 0.7, rtol=0, atol=2e-3)


@pytest.mark.parametrize("design", [noise.antithetic(3), noise.simplex(3, 4), noise.latin(3, 4, antithetic=True)])
def test_members_that_sum_to_zero_reach_the_limit_of_an_affine_flow(design):
    """With classes of two scales noise enters linearly: coupled repeats end where noise 0 does, iid ones do not."""
    editor = editing.flow_edit(gaussian_flow(), SOURCES, 0, 2, strength=1, repeats=design.members)
    zero = torch.zeros(3 * design.members, *SIZE, dtype=torch.float64)
    condition = EVERY.repeat_interleave(design.members)
    limit = editor.generate(zero, draw=lambda stream, shape: zero, condition=condition)
    free = edit(editor, noise.iid(3, design.members))
    assert (free - limit).abs().min() > 1e-3
    torch.testing.assert_close(edit(editor, design), limit, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "network", [tiny_unet(num_class_embeds=4), tiny_transformer(num_embeds_ada_norm=3)], ids=["unet", "transformer"]
)
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_algorithm_1_of_flowedit_source_by_source(network, guidance):
    model = network_flow(network).with_(guidance=guidance)
    sources = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(1))
    design, befores, afters = noise.simplex(2, 3), [0, 1], [1, 2]
    weak = model.with_(guidance=1.5)
    editor = editing.flow_edit(model, sources, befores, afters, strength=0.6, repeats=3, source_guidance=1.5)
    found = antinb.sample(editor, design, seed=4, condition=[0, 1], progress=False)["image"].values[:, 0]
    for number, (source, before, after) in enumerate(zip(sources, befores, afters, strict=True)):
        x = source[None]
        for step, t in enumerate((0.6, 0.4, 0.2)):
            changes = []
            for n in design.draw(SHAPE, seed=4, units=[number], stream=step)[0]:
                u = (1 - t) * source[None] + t * torch.from_numpy(n)[None]
                with torch.no_grad():
                    towards = model.velocity(x + u - source[None], t, torch.tensor([after]))
                    changes.append(towards - weak.velocity(u, t, torch.tensor([before])))
            x = x - 0.2 * sum(changes) / 3
        np.testing.assert_allclose(found[number], x[0].numpy(), rtol=0, atol=1e-5)
    assert abs(found - sources.numpy()).max() > 0.01


def test_network_calls_are_counted():
    rows = []

    def counting(x, level, condition):
        rows.append(len(x))
        return velocity(x, level, condition.clamp(max=2))

    for model in (gaussian_flow(counting), gaussian_flow(counting, guidance=2.0)):
        for editor, design in (
            (editing.flow_edit(model, SOURCES, 0, 1, strength=0.5, repeats=4), noise.simplex(3, 4)),
            (editing.flow_edit(model, SOURCES, 0, 1, repeats=2, source_guidance=3.0), noise.antithetic(3)),
            (editing.sd_edit(model, SOURCES, 1, strength=0.5), noise.iid(3)),
        ):
            rows.clear()
            edit(editor, design)
            assert sum(rows) == 3 * editor.evaluations
            assert editor.describe()["evaluations"] == editor.evaluations
    heun = gaussian_flow(counting, scheduler="heun")
    rows.clear()
    edit(editing.sd_edit(heun, SOURCES, 1, strength=0.5), noise.iid(3))
    assert sum(rows) == 3 * editing.sd_edit(heun, SOURCES, 1, strength=0.5).evaluations == 21


def test_one_run_edits_every_source_and_batches_change_nothing():
    editor = editing.flow_edit(gaussian_flow(), SOURCES, [0, 0, 1], [2, 1, 2], strength=1, repeats=2)
    runs = [
        antinb.sample(editor, noise.antithetic(3), seed=2, condition=[2, 0, 1], batch=batch, progress=False)
        for batch in (2, 64)
    ]
    np.testing.assert_allclose(runs[0]["image"], runs[1]["image"], rtol=0, atol=1e-6)
    assert dict(runs[0].sizes) == {"unit": 3, "member": 1, "channel": 1, "y": 2, "x": 2}
    assert "sign" not in runs[0].coords
    alone = editing.flow_edit(gaussian_flow(), SOURCES[2], 1, 2, strength=1, repeats=2)
    one = antinb.sample(alone, noise.antithetic(1), seed=2, progress=False)
    np.testing.assert_allclose(one["image"][0], runs[0]["image"][0], rtol=0, atol=1e-6)


def test_a_stored_run_of_edits_is_extended(tmp_path):
    editor = editing.flow_edit(gaussian_flow(), SOURCES, 0, 2, repeats=2)
    options = {"seed": 0, "store": tmp_path / "edits.zarr", "progress": False, "batch": 4}
    antinb.sample(editor, noise.antithetic(2), condition=[0, 1], **options)
    longer = antinb.sample(editor, noise.antithetic(3), condition=[0, 1, 2], **options)
    whole = antinb.sample(editor, noise.antithetic(3), condition=[0, 1, 2], seed=0, progress=False)
    np.testing.assert_allclose(longer["image"], whole["image"], rtol=0, atol=1e-6)
    record = dataset.config(longer)
    assert (record["editor"], record["repeats"], record["from_class"]) == ("FlowEdit", 2, [0, 0, 0])


def test_sdedit_of_full_strength_forgets_the_source_of_a_flow():
    model, z = gaussian_flow(), draw_of(noise.iid(3))(0)
    found = editing.sd_edit(model, SOURCES, 1, strength=1).generate(z, condition=EVERY)
    assert torch.equal(found, model.generate(z, condition=torch.ones(3, dtype=torch.int64)))


def test_sdedit_of_a_gaussian_flow_in_closed_form():
    """One last step from t = 1/8: `x - t v(x)` of `x = (1 - t) source + t n`."""
    z, t = draw_of(noise.iid(3))(0), 1 / 8
    x = (1 - t) * SOURCES + t * z
    found = editing.sd_edit(gaussian_flow(), SOURCES, 2, strength=0.01).generate(z, condition=EVERY)
    torch.testing.assert_close(found, x - t * velocity(x, 125.0, torch.tensor([2, 2, 2])), rtol=0, atol=1e-6)


@pytest.mark.parametrize("settings", [{"eta": 0.0}, {"eta": 1.0}, {"scheduler": "ddpm"}])
def test_resumed_steps_are_the_end_of_a_trajectory(settings, mixture_generator):
    model, draw = mixture_generator.with_(**settings), draw_of(noise.iid(3), shape=SHAPE)
    images, recorded = model.trajectory(draw(0).float(), draw=lambda stream, shape: draw(stream).float())
    later = model.resume(recorded["state"][:, 6], 6, draw=lambda stream, shape: draw(stream + 6).float())
    torch.testing.assert_close(later, images, rtol=0, atol=1e-6)


def test_states_are_noised_as_diffusers_does(mixture_generator):
    scheduler = DDIMScheduler.from_config(LINEAR)
    scheduler.set_timesteps(10)
    images, z = (draw_of(noise.iid(3), seed=seed, shape=SHAPE)(0) for seed in (1, 2))
    expected = scheduler.add_noise(images, z, scheduler.timesteps[4].expand(3))
    torch.testing.assert_close(mixture_generator.noised(images, z, 4), expected)


@pytest.mark.parametrize("settings", [{}, {"eta": 1.0}, {"scheduler": "ddpm"}, {"scheduler": "dpmsolver++"}])
def test_pairs_of_sdedit_on_gaussian_data_average_to_the_edit_without_noise(settings):
    one = exact.Mixture(torch.ones(1), torch.full((1, 4), 0.2), torch.zeros(1, 4, 1), torch.full((1,), 0.1))
    model = diffusion.from_mixture(one, SIZE, LINEAR).with_(steps=10, **settings)
    editor = editing.sd_edit(model, SOURCES.float(), strength=0.5)
    pairs = antinb.sample(editor, noise.antithetic(3), seed=1, condition=[0, 1, 2], progress=False)["image"]
    zero = torch.zeros(3, *SIZE)
    middle = editor.generate(zero, draw=lambda stream, shape: zero, condition=EVERY)
    np.testing.assert_allclose(pairs.mean("member"), middle, rtol=0, atol=1e-5)
    assert abs(pairs[:, 0] - pairs[:, 1]).max() > 0.1
    assert abs(middle.numpy() - SOURCES.numpy()).max() > 0.1


UNET = network_flow(tiny_unet(num_class_embeds=4))
IMAGES = torch.zeros(2, *SHAPE)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: editing.flow_edit(UNET, IMAGES, 1, 1), "one class to another"),
        (lambda: editing.flow_edit(UNET, IMAGES, [0, 1], [2, 1]), "one class to another"),
        (lambda: editing.flow_edit(UNET, IMAGES, 0, 3), "to_class must be a class from 0 to 2; got 3"),
        (lambda: editing.flow_edit(UNET, IMAGES, -1, 2), "from_class .* got -1"),
        (lambda: editing.flow_edit(UNET, IMAGES, [0, 1, 0], 2), "one for each of 2 sources"),
        (lambda: editing.flow_edit(UNET, IMAGES, "sneaker", 2), "sneaker"),
        (lambda: editing.flow_edit(UNET, IMAGES, 0, 1, strength=0), "strength must be above 0; got 0"),
        (lambda: editing.flow_edit(UNET, IMAGES, 0, 1, strength=1.1), "strength must be .* got 1.1"),
        (lambda: editing.sd_edit(UNET, IMAGES, 1, strength=-0.2), "strength must be .* got -0.2"),
        (lambda: editing.flow_edit(UNET, IMAGES, 0, 1, repeats=0), "repeats must be .* got 0"),
        (lambda: editing.flow_edit(UNET, IMAGES[:, :, :4], 0, 1), r"sources are finite images .* \(2, 1, 4, 8\)"),
        (lambda: editing.flow_edit(UNET, IMAGES * torch.nan, 0, 1), "sources are finite images"),
        (lambda: editing.flow_edit(UNET.with_(scheduler="heun"), IMAGES, 0, 1), "'heun'"),
        (lambda: editing.sd_edit(UNET, IMAGES), "to_class=None"),
        (lambda: editing.sd_edit(antinb.load("fashion-cm"), IMAGES), "got a Consistency"),
    ],
)
def test_bad_edits_are_refused_with_the_value(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_models_of_the_wrong_kind_are_refused(mixture_generator):
    with pytest.raises(ValueError, match="model must be a RectifiedFlow; got a Diffusion"):
        editing.flow_edit(mixture_generator, IMAGES, 0, 1)
    with pytest.raises(ValueError, match="no classes; got to_class=1"):
        editing.sd_edit(mixture_generator, IMAGES, 1)


@pytest.mark.parametrize(
    ("design", "options", "words"),
    [
        (noise.iid(2), {"condition": [0, 1]}, "an image of 2 members of a unit, .* design of 1 members"),
        (noise.antithetic(2), {"condition": [0, 1], "batch": 1}, "batch 1"),
        (noise.antithetic(2), {}, "the condition of a unit is its source, from 0 to 1; got None"),
        (noise.antithetic(2), {"condition": [0, 2]}, r"from 0 to 1; got \[0, 0, 2, 2\]"),
    ],
)
def test_runs_that_do_not_fit_the_editor_are_refused(design, options, words):
    editor = editing.flow_edit(UNET, IMAGES, 0, 1, repeats=2)
    with pytest.raises(ValueError, match=words):
        antinb.sample(editor, design, seed=0, progress=False, **options)


def test_flowedit_without_step_noise_or_with_half_a_unit_is_refused():
    editor = editing.flow_edit(gaussian_flow(), SOURCES, 0, 1, repeats=2)
    z = draw_of(noise.antithetic(3))(0)
    with pytest.raises(ValueError, match="needs draw="):
        editor.generate(z, condition=EVERY.repeat_interleave(2))
    with pytest.raises(ValueError, match="units of 2 members; got 3 rows"):
        editor.generate(z[:3], condition=EVERY)
    with pytest.raises(ValueError, match="first step must be an integer of at most 7; got 8"):
        gaussian_flow().resume(z, 8, condition=EVERY.repeat_interleave(2))


def test_measures_of_edits_that_are_the_source_another_image_and_the_target():
    """Edits given outright: source 1 itself, then source 0; what is measured is against source 1."""
    images, _ = zoo.held_out("fashion")
    judge, flow = classifier.load("fashion-classifier"), antinb.load("fashion-rf", steps=2)
    editor = editing.sd_edit(flow, images[[0, 200]], [1, 9], strength=0.5)
    run = antinb.sample(editor, noise.iid(2, 2), seed=0, condition=[1, 1], progress=False)
    run["image"].values[0] = images[[200, 0]]
    found, scaled = editing.measure(run, editor, judge), (images[[200, 0]] + 1) / 2
    assert found.dims == ("measure", "unit", "member")
    np.testing.assert_allclose(found.sel(measure="target")[0], judge.probabilities(scaled)[:, 9], atol=1e-6)
    np.testing.assert_allclose(found.sel(measure="ssim")[0], [1, statistics.structural_similarity(*scaled)], atol=1e-6)
    apart = np.linalg.norm(np.subtract(*judge.features(scaled)))
    np.testing.assert_allclose(found.sel(measure="feature distance")[0], [0, apart], atol=1e-4)
    with pytest.raises(ValueError, match="from 0 to 1; got"):
        editing.measure(run.assign_coords(condition=("unit", [1, 2])), editor, judge)


def test_a_target_needs_classes(mixture_generator):
    editor, judge = editing.sd_edit(mixture_generator, IMAGES), classifier.load("fashion-classifier")
    run = antinb.sample(editor, noise.iid(2), seed=0, condition=[0, 1], progress=False)
    with pytest.raises(ValueError, match="needs an editor with classes"):
        editing.measure(run, editor, judge)
