"""The noise that a network predicts along lines, against models whose symmetry is known."""

import itertools

import numpy as np
import pytest
import torch
from helpers import LINEAR, SHAPE, random_mixture, tiny_unet

import antinb
from antinb import exact, noise, probing, symmetry, zoo
from antinb.analysis.symmetry import affine_antisymmetry, nonlinear_odd_share
from antinb.models import diffusion
from antinb.probing import Probe

GRID = np.linspace(-1, 1, 65)


def network_generator(network, dtype=torch.float64, **settings):
    return diffusion.Diffusion(network, LINEAR, SHAPE, torch.zeros((), dtype=dtype), steps=10, **settings)


def two_component(weight, centre=0.3, dtype=torch.float64):
    offset = torch.linspace(0, 0.3, 64, dtype=dtype)
    mixture = exact.two_component(torch.full((64,), centre, dtype=dtype), offset, weight=weight)
    return diffusion.from_mixture(mixture, SHAPE, LINEAR).with_(steps=50)


@pytest.mark.parametrize("along", probing.ALONG)
def test_slices_are_those_of_the_network_at_the_same_states(along, mixture_generator):
    timesteps = mixture_generator.timesteps[2:4]
    data = Probe(mixture_generator, seed=0, timesteps=timesteps, along=along).score(directions=3, progress=False)
    run = antinb.sample(mixture_generator, noise.iid(3), seed=0, trajectory=True, progress=False)
    for (place, t), direction in itertools.product(enumerate(timesteps), range(3)):
        state = run["state"][direction, 0, 2 + place if along == "trajectory" else 0].values
        line = torch.from_numpy(GRID.reshape(-1, 1, 1, 1) * state).float()
        slices = mixture_generator.predict_noise(line, t).flatten(1).double().numpy().T
        here = data.sel(timestep=t).isel(direction=direction)
        np.testing.assert_allclose(here["affine_antisymmetry"], affine_antisymmetry(slices), atol=1e-6)
        np.testing.assert_allclose(here["nonlinear_odd_share"], nonlinear_odd_share(slices), atol=2e-3)


def test_batches_and_chosen_coordinates_change_nothing(mixture_generator):
    whole = Probe(mixture_generator, seed=0).score(directions=2, progress=False)
    part = Probe(mixture_generator, seed=0, coordinates=5, batch=7).score(directions=2, progress=False)
    assert part.sizes["coordinate"] == 5
    same = whole.sel(coordinate=part["coordinate"])
    np.testing.assert_allclose(part["affine_antisymmetry"], same["affine_antisymmetry"], atol=1e-5)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_a_network_of_known_parity_has_that_score(share):
    data = Probe(network_generator(exact.parity(share)), seed=0).score(directions=4, progress=False)
    np.testing.assert_allclose(data["affine_antisymmetry"], share, atol=1e-3)
    rest = data["nonlinear_odd_share"].values
    assert np.isnan(rest).all() if share == 1 else (rest < 1e-9).all()


def test_one_gaussian_is_affine_antisymmetric_and_nothing_is_left_after_the_fit():
    gaussian = diffusion.from_mixture(random_mixture(1, dtype=torch.float64), SHAPE, LINEAR).with_(steps=10)
    data = Probe(gaussian, seed=0, along="trajectory").score(directions=8, progress=False)
    np.testing.assert_allclose(data["affine_antisymmetry"], 1, atol=1e-9)
    table = symmetry.summary(data).set_index(["measure", "timestep", "quantity"])
    left = table.loc[("nonlinear_odd_share", "all", "mean")]
    assert left["undefined"] == data["nonlinear_odd_share"].size
    assert np.isnan(left["estimate"])


def test_a_mixture_symmetric_about_a_shifted_centre_is_so_about_that_centre_only():
    generator = two_component(0.5)
    abar = diffusion.make_scheduler(LINEAR).alphas_cumprod[250].double()
    direction = torch.linspace(-0.2, 0.5, 64, dtype=torch.float64)
    about = {}
    for name, centre in (("shifted", abar.sqrt() * 0.3), ("origin", 0)):
        line = centre + torch.from_numpy(GRID)[:, None] * direction
        about[name] = affine_antisymmetry(generator.predict_noise(line.reshape(-1, *SHAPE), 250).flatten(1).T.numpy())
    np.testing.assert_allclose(about["shifted"], 1, atol=1e-9)
    assert about["origin"].mean() < 0.99


def test_the_midpoint_of_a_pair_follows_a_shifted_centre():
    data = Probe(two_component(0.5), seed=0, along="trajectory").at_midpoint(directions=8, progress=False)
    means = data["affine_antisymmetry"].mean(["direction", "coordinate"])
    assert float(means.sel(centre="midpoint").min()) > 0.998
    assert float(means.sel(centre="origin").min()) < 0.99
    assert data["midpoint_rms"][0].max() < 1e-6
    np.testing.assert_allclose(data["midpoint_rms"][-1], 0.3, atol=0.05)


def test_slices_about_the_midpoint_run_from_one_state_of_the_pair_to_the_other(mixture_generator):
    t = mixture_generator.timesteps[6]
    data = Probe(mixture_generator, seed=0, timesteps=[t], along="trajectory").at_midpoint(directions=2, progress=False)
    run = antinb.sample(mixture_generator, noise.antithetic(2), seed=0, trajectory=True, progress=False)
    for direction in range(2):
        first, second = run["state"][direction, :, 6].values
        line = (first + second) / 2 + GRID.reshape(-1, 1, 1, 1) * (first - second) / 2
        slices = mixture_generator.predict_noise(torch.from_numpy(line).float(), t).flatten(1).double().numpy().T
        found = data["affine_antisymmetry"].sel(centre="midpoint", timestep=t)[direction]
        np.testing.assert_allclose(found, affine_antisymmetry(slices), atol=1e-5)
        half = data["half_difference_rms"].sel(timestep=t)[direction]
        assert float(half) == pytest.approx(np.sqrt((((first - second) / 2) ** 2).mean()), rel=1e-5)


def test_a_skewed_mixture_loses_the_symmetry_on_the_way_to_the_data():
    """The centre is 0: what breaks the symmetry is the weights alone."""
    skewed, even = (
        Probe(two_component(weight, centre=0.0), seed=0, along="trajectory").at_midpoint(directions=8, progress=False)
        for weight in (0.85, 0.5)
    )
    lost = skewed["affine_antisymmetry"].mean(["direction", "coordinate"])
    assert float(lost[:, :2].min()) > 0.9999
    assert float(lost.min("timestep").max()) < 0.995
    np.testing.assert_allclose(even["affine_antisymmetry"], 1, atol=1e-6)


def counting(calls):
    def network(x, t, condition):
        calls.append(len(x))
        return 0.3 * x + 0.1 * x.abs()

    return network_generator(network)


def test_evaluations_are_those_that_the_network_saw():
    calls = []
    generator = counting(calls)
    gaussian, trajectory = (Probe(generator, seed=0, points=9, along=along) for along in probing.ALONG)
    for measure in (gaussian.score, trajectory.score, trajectory.at_midpoint):
        calls.clear()
        assert int(measure(directions=3, progress=False).attrs["evaluations"]) == sum(calls)
    calls.clear()
    table = trajectory.vector(directions=8)
    assert (table["evaluations"] == sum(calls)).all()


def test_guidance_and_conditions_reach_the_network():
    torch.manual_seed(0)
    generator = diffusion.from_network(tiny_unet(num_class_embeds=3), LINEAR).with_(steps=4, guidance=2.0)
    classes = [
        Probe(generator, seed=0, points=5, condition=condition).score(directions=1, progress=False)
        for condition in (0, 0, 1)
    ]
    assert classes[0].identical(classes[1])
    assert not np.allclose(classes[0]["affine_antisymmetry"], classes[2]["affine_antisymmetry"], atol=1e-6)
    assert int(classes[0].attrs["evaluations"]) == 4 * 5 * 2


def test_vector_shares_have_their_closed_form():
    """E|x| = sqrt(2/pi), so the even part 2 sqrt(1-p) |x| has variance 4 (1-p) (1 - 2/pi)."""
    share = 0.6
    table = Probe(network_generator(exact.parity(share)), seed=0, timesteps=[5]).vector(directions=400)
    rows = table.set_index("quantity")
    even = 4 * (1 - share) * (1 - 2 / np.pi)
    known = {
        "odd share": share / (share + even),
        "odd rms": share**0.5,
        "even rms": even**0.5,
        "centre rms": 2 * ((1 - share) * 2 / np.pi) ** 0.5,
    }
    for name, value in known.items():
        half = (rows.loc[name, "high"] - rows.loc[name, "low"]) / 2
        assert abs(rows.loc[name, "estimate"] - value) < 2 * half
        assert half < 0.02
    assert rows.loc["displacement cosine", "estimate"] == pytest.approx(1 - 2 * known["odd share"], abs=0.03)


def test_the_constant_comes_from_the_other_directions():
    generator = network_generator(exact.parity(0.5))
    rows = Probe(generator, seed=3, timesteps=[5]).vector(directions=9).set_index("quantity")["estimate"]
    x = torch.from_numpy(noise.iid(9).draw(SHAPE, seed=3)[:, 0]).double()
    plus, minus = (generator.predict_noise(sign * x, 5).flatten(1).numpy() for sign in (1, -1))
    odd, even, power, cosines = (plus - minus) / 2, (plus + minus) / 2, 0.0, []
    for i in range(9):
        constant = np.delete(even, i, 0).mean(0)
        power += 8 / 9 * ((even[i] - constant) ** 2).sum()
        first, second = plus[i] - constant, minus[i] - constant
        cosines.append(first @ second / np.linalg.norm(first) / np.linalg.norm(second))
    assert rows["odd share"] == pytest.approx((odd**2).sum() / ((odd**2).sum() + power), rel=1e-9)
    assert rows["displacement cosine"] == pytest.approx(np.mean(cosines), rel=1e-9)
    centre = ((even.mean(0) ** 2).sum() - power / 81) / 64
    assert rows["centre rms"] == pytest.approx(centre**0.5, rel=1e-9)


def test_an_untrained_network_has_the_architecture_and_weights_of_its_own():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, again, other = (zoo.untrained("fashion-ddpm", seed=seed, steps=2) for seed in (0, 0, 1))
    assert torch.equal(torch.rand(1), expected)
    hashes = [generator.describe()["network_sha256"] for generator in (first, again, other)]
    assert hashes[0] == hashes[1] != hashes[2]
    assert first.shape == antinb.load("fashion-ddpm").shape


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"points": 64}, "points must be odd.*64"),
        ({"timesteps": [5, 5]}, r"timesteps must be different levels of the model, as a list; got \[5, 5\]"),
        ({"timesteps": 5}, "timesteps must be different levels of the model, as a list; got 5"),
        ({"timesteps": [5.0]}, "a timestep must be an integer of at least 0; got 5.0"),
        ({"condition": "a"}, "condition must be an integer of at least 0; got 'a'"),
        ({"points": 1}, "points must be an integer of at least 3; got 1"),
        ({"timesteps": [1000]}, "a timestep must be from 0 to 999; got 1000"),
        ({"timesteps": []}, "a timestep must be from 0 to 999; got none"),
        ({"timesteps": [5], "along": "trajectory"}, "a timestep must be one of the sampler's steps.*got 5"),
        ({"along": "pixel"}, "along must be one of .*'pixel'"),
        ({"coordinates": 65}, "coordinates must be an integer of at most 64; got 65"),
        ({"batch": 0}, "batch must be an integer of at least 1; got 0"),
    ],
)
def test_bad_arguments_are_one_line(options, reason, mixture_generator):
    with pytest.raises(ValueError, match=reason) as error:
        Probe(mixture_generator, seed=0, **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("measure", "directions", "reason"),
    [
        ("score", 0, "directions must be an integer of at least 1; got 0"),
        ("slices", 2.0, "directions must be an integer of at least 1; got 2.0"),
        ("at_midpoint", 0, "directions must be an integer of at least 1; got 0"),
        ("vector", 7, "directions must be an integer of at least 8; got 7"),
    ],
)
def test_too_few_directions_are_refused(measure, directions, reason, mixture_generator):
    probe = Probe(mixture_generator, seed=0, along="trajectory")
    with pytest.raises(ValueError, match=reason):
        getattr(probe, measure)(directions=directions)


def test_only_trajectories_have_midpoints(mixture_generator):
    with pytest.raises(ValueError, match="take along='trajectory'; got 'gaussian'"):
        Probe(mixture_generator, seed=0).at_midpoint()


def test_a_generator_without_a_score_is_refused():
    with pytest.raises(ValueError, match="needs a generator that predicts noise; got a Function"):
        Probe(antinb.load(torch.tanh, shape=SHAPE), seed=0)


@pytest.mark.slow
def test_about_which_centre_must_be_said(mixture_generator):
    data = Probe(mixture_generator, seed=0, points=5, along="trajectory").at_midpoint(directions=8, progress=False)
    with pytest.raises(ValueError, match="shares have the dimensions .*'centre'"):
        symmetry.summary(data)
    with pytest.raises(ValueError, match="shares have the dimensions .*'centre'"):
        symmetry.test(data["affine_antisymmetry"])
    means = data["affine_antisymmetry"].mean("coordinate")
    for centre in ("origin", "midpoint"):
        table = symmetry.summary(data.sel(centre=centre)).query(
            "measure == 'affine_antisymmetry' and quantity == 'mean'"
        )
        np.testing.assert_allclose(table["estimate"][:-1], means.sel(centre=centre).mean("direction"), rtol=1e-9)
        tested = symmetry.test(data["affine_antisymmetry"].sel(centre=centre))
        np.testing.assert_allclose(tested["estimate"], means.sel(centre=centre).mean("direction"), rtol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_rounding_of_an_affine_network_is_no_finding(dtype):
    affine = network_generator(lambda x, t, condition: 0.9 * x + 0.1, dtype)
    data = Probe(affine, seed=0).score(directions=np.int64(3), progress=False)
    assert np.isnan(data["nonlinear_odd_share"]).mean() > 0.99
    assert float(data["affine_antisymmetry"].min()) > 0.99


def test_a_network_that_fails_is_not_taken_for_a_constant():
    broken = network_generator(lambda x, t, condition: x / 0)
    with pytest.raises(ValueError, match="predicted noise must be finite; .* at timestep"):
        Probe(broken, seed=0).score(directions=2, progress=False)
