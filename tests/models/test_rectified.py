"""Rectified flows: Gaussian data has every step in closed form, and diffusers has the grid."""

import math

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from diffusers import FlowMatchEulerDiscreteScheduler
from helpers import SHAPE, tiny_unet

import antinb
from antinb import dataset, noise
from antinb.cli import main
from antinb.models import SCHEDULERS, rectified
from antinb.probing import Probe

MEAN, SCALE = 0.3, 0.5
SIZE = (1, 2, 2)


def spread(t):
    """Return the variance of `(1 - t) x + t n` for x from N(MEAN, SCALE^2)."""
    return (1 - t) ** 2 * SCALE**2 + t**2


def gaussian_velocity(x, level, condition):
    """`E(n - x | x_t)`, affine in x."""
    t = level / 1000
    return (t - (1 - t) * SCALE**2) / spread(t) * (x - (1 - t) * MEAN) - MEAN


def flow(network=gaussian_velocity, **settings):
    return rectified.RectifiedFlow(network, SIZE, torch.zeros((), dtype=torch.float64), **settings)


def unet_flow(classes=3, **config):
    config = dict(FlowMatchEulerDiscreteScheduler(1000, **config).config)
    return rectified.from_network(tiny_unet(num_class_embeds=classes), config)


def draw(units=3, shape=SHAPE):
    return torch.from_numpy(noise.iid(units).draw(shape, seed=5)[:, 0])


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_euler_on_gaussian_data_is_the_product_of_its_steps(shift):
    """`x_0 = m + z prod_k (1 + (t_(k+1) - t_k) (t_k - (1 - t_k) s^2) / spread(t_k))`."""
    steps, factor = 7, 1.0
    u = [1 - k / steps for k in range(steps + 1)]
    t = [shift * value / (1 + (shift - 1) * value) for value in u]
    for now, after in zip(t, t[1:], strict=False):
        factor *= 1 + (after - now) * (now - (1 - now) * SCALE**2) / spread(now)
    z = draw(shape=SIZE).double()
    found = flow(steps=steps, shift=shift).generate(z)
    torch.testing.assert_close(found, MEAN + factor * z, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("scheduler", "order"), [("euler", 1), ("heun", 2)])
def test_the_order_of_convergence_to_the_exact_flow(scheduler, order):
    """The flow of Gaussian data is `z -> m + s z`; the error falls as `steps^-order`."""
    z = draw(shape=SIZE).double()
    errors = [
        (flow(steps=steps, scheduler=scheduler).generate(z) - (MEAN + SCALE * z)).norm().item() for steps in (64, 128)
    ]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize("scheduler", SCHEDULERS["rectified"])
def test_pairs_of_an_affine_flow_average_to_the_image_of_no_noise(scheduler):
    z, affine = draw(shape=SIZE).double(), flow(steps=9, scheduler=scheduler)
    middle = affine.generate(torch.zeros_like(z))
    torch.testing.assert_close((affine.generate(z) + affine.generate(-z)) / 2, middle, rtol=0, atol=1e-14)


@pytest.mark.parametrize("level", [0, 399, 999])
def test_the_predicted_noise_is_the_mean_of_the_noise_given_the_state(level):
    x, t = draw(shape=SIZE).double(), (level + 1) / 1000
    expected = t * (x - (1 - t) * MEAN) / spread(t)
    torch.testing.assert_close(flow().predict_noise(x, level), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(
        flow().velocity(x, t), (expected - x) / (1 - t) if t < 1 else x - MEAN, rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("scheduler", SCHEDULERS["rectified"])
def test_a_trajectory_is_the_run(scheduler):
    z, run = draw(shape=SIZE).double(), flow(steps=5, scheduler=scheduler)
    images, recorded = run.trajectory(z)
    state, predicted = recorded["state"], recorded["predicted_noise"]
    assert torch.equal(images, run.generate(z))
    assert torch.equal(state[:, 0], z)
    assert torch.equal(predicted[:, 0], z)
    assert run.timesteps == [999, 799, 599, 399, 199]
    for step, level in enumerate(run.timesteps):
        torch.testing.assert_close(predicted[:, step], run.predict_noise(state[:, step], level))
        if scheduler == "euler":
            v = run.velocity(state[:, step], (level + 1) / 1000)
            following = state[:, step + 1] if step < 4 else images
            torch.testing.assert_close(state[:, step] - v / 5, following)


def test_levels_are_the_nearest_to_the_times():
    assert flow(steps=3).timesteps == [999, 666, 332]
    assert flow(steps=1000).timesteps == list(range(999, -1, -1))


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_the_same_pixels_as_the_scheduler_of_diffusers(shift):
    unet, classes, steps = tiny_unet(num_class_embeds=3).eval(), torch.tensor([0, 1, 1]), 7
    scheduler = FlowMatchEulerDiscreteScheduler(1000, shift=shift)
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps))
    x = z = draw()
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(unet(x, t, class_labels=classes).sample, t, x).prev_sample
    found = rectified.from_network(unet, dict(scheduler.config)).with_(steps=steps).generate(z, condition=classes)
    torch.testing.assert_close(found, x, rtol=0, atol=1e-5)
    assert (x - z).abs().max() > 0.1


def test_guidance_is_the_extrapolated_velocity():
    guided, x, classes = unet_flow(4).with_(guidance=2.5), draw(), torch.tensor([0, 1, 2])
    unet = tiny_unet(num_class_embeds=4).eval()
    with torch.no_grad():
        towards, free = (unet(x, 400.0, class_labels=labels).sample for labels in (classes, torch.full((3,), 3)))
        v, eps = guided.velocity(x, 0.4, classes), guided.predict_noise(x, 399, classes)
    torch.testing.assert_close(v, free + 2.5 * (towards - free), rtol=0, atol=1e-5)
    torch.testing.assert_close(eps, x + 0.6 * v, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("scheduler", "guidance", "calls"), [("euler", 1, 4), ("heun", 1, 7), ("heun", 3.0, 14)])
def test_network_calls_are_counted(scheduler, guidance, calls):
    rows = []

    def network(x, level, condition):
        rows.append(len(x))
        return torch.zeros_like(x)

    counted = flow(network, steps=4, scheduler=scheduler, guidance=guidance, null=1)
    counted.generate(draw(1, SIZE), condition=torch.tensor([0]))
    assert sum(rows) == counted.evaluations == counted.describe()["evaluations"] == calls


def test_the_score_of_an_even_and_an_odd_prediction():
    """`v = (f(20 x) - x) / (1 - t)` predicts the noise f(20 x): AS is 0 if f is even, 1 if it is odd."""

    def predicting(f):
        return flow(lambda x, level, condition: (f(20 * x) - x) / (1 - level / 1000))

    options = {"seed": 0, "timesteps": [99, 499], "points": 9}
    probes = (Probe(predicting(f), **options) for f in (torch.cos, torch.sin))
    even, odd = (probe.score(directions=3, progress=False) for probe in probes)
    np.testing.assert_allclose(even["affine_antisymmetry"], 0, atol=1e-6)
    np.testing.assert_allclose(odd["affine_antisymmetry"], 1, atol=1e-6)
    np.testing.assert_allclose(odd["nonlinear_odd_share"], 1, atol=1e-6)


def test_the_score_along_the_trajectories_of_a_conditional_flow():
    model = unet_flow().with_(steps=4)
    probe = Probe(model, seed=0, along="trajectory", points=5, coordinates=3, condition=1)
    data = probe.score(directions=2, progress=False)
    assert data["timestep"].values.tolist() == [999, 749, 499, 249]
    np.testing.assert_allclose(data["affine_antisymmetry"].sel(timestep=999), 1, atol=1e-6)
    assert np.isfinite(data["affine_antisymmetry"]).all()


def test_conditions_go_with_the_units_of_a_run():
    model, design = unet_flow().with_(steps=2, guidance=2.0), noise.antithetic(3)
    run = antinb.sample(model, design, seed=5, condition=[0, 1, 0], batch=4, progress=False)
    z = torch.from_numpy(design.draw(SHAPE, seed=5)[1])
    np.testing.assert_allclose(run["image"][1], model.generate(z, condition=torch.tensor([1, 1])), atol=1e-5)
    assert run["condition"].values.tolist() == [0, 1, 0]


def test_the_command_line_takes_scheduler_and_class(tmp_path):
    unet, scheduler = tiny_unet(num_class_embeds=3), FlowMatchEulerDiscreteScheduler(1000)
    unet.save_pretrained(tmp_path / "flow" / "unet")
    scheduler.save_pretrained(tmp_path / "flow" / "scheduler")
    options = "--units 2 --seed 5 --steps 2 --scheduler heun --condition 1 --store"
    done = CliRunner().invoke(main, ["sample", str(tmp_path / "flow"), *options.split(), str(tmp_path / "run.zarr")])
    assert done.exit_code == 0, done.output
    z = torch.from_numpy(noise.antithetic(2).draw(SHAPE, seed=5)[1])
    expected = rectified.from_network(unet, scheduler.config).with_(steps=2, scheduler="heun")
    found = dataset.open(tmp_path / "run.zarr")["image"][1]
    np.testing.assert_allclose(found, expected.generate(z, condition=torch.tensor([1, 1])), atol=1e-5)


def test_grid_and_settings_are_part_of_the_record():
    records = [unet_flow(shift=shift).describe() for shift in (1.0, 2.0)]
    records += [unet_flow().with_(**kind).describe() for kind in ({"steps": 9}, {"scheduler": "heun"})]
    assert len({str(record) for record in records}) == 4


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda f: f.with_(steps=0), "at least 1; got 0"),
        (lambda f: f.with_(steps=1001), "at most 1000; got 1001"),
        (lambda f: f.with_(scheduler="ddim"), "'heun'.*got 'ddim'"),
        (lambda f: f.with_(eta=0.5), "no setting 'eta'"),
        (lambda f: f.with_(shift=2.0), "no setting 'shift'"),
        (lambda f: f.with_(guidance=-1.0), "got -1.0"),
        (lambda f: f.with_(compile="yes"), "got 'yes'"),
        (lambda f: flow(guidance=2.0), "null class; got guidance=2.0"),
        (lambda f: flow(shift=0), "from 0.01 to 100; got 0"),
        (lambda f: flow(levels=0), "got 0"),
        (lambda f: f.velocity(draw(), 1.5, torch.tensor([0, 0, 0])), "from 0 to 1; got 1.5"),
        (lambda f: f.generate(draw(shape=(1, 7, 8))), r"\(3, 1, 7, 8\)"),
        (lambda f: f.generate(draw()), "needs condition; got None"),
        (lambda f: f.with_(guidance=2.0).generate(draw()), "needs a condition; got None"),
        (lambda f: f.generate(draw(), condition=torch.tensor([0, 3, 1])), r"classes 0 to 2; got \[0, 3, 1\]"),
        (lambda f: unet_flow(None).generate(draw(), condition=torch.tensor([0, 0, 0])), "takes no condition"),
        (lambda f: flow(lambda x, level, condition: x[:, 0]).generate(draw(shape=SIZE)), r"got \(3, 2, 2\)"),
        (lambda f: unet_flow(use_karras_sigmas=True), "without use_karras_sigmas; got True"),
        (lambda f: unet_flow(stochastic_sampling=True), "without stochastic_sampling; got True"),
    ],
)
def test_bad_input_is_refused_in_one_line(call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call(unet_flow())
    assert "\n" not in str(caught.value)
