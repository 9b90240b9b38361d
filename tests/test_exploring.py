"""What the sliders say is what the picture shows; the half circle begins at `z` and ends at `-z`."""

import base64
import io

import nbformat
import numpy as np
import pytest
import torch
from helpers import SHAPE
from PIL import Image

import antinb
from antinb import correlation, exploring, noise
from antinb.reporting import notebooks


def bent(z):
    return torch.tanh(z + 0.3 * z**2).reshape(len(z), *SHAPE)


@pytest.fixture
def generator():
    return antinb.load(bent, shape=SHAPE)


@pytest.fixture
def run(generator):
    return antinb.sample(generator, noise.antithetic(12), seed=5, progress=False).isel(unit=slice(2, 12))


def pixels(png):
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"), int)


def test_pairs_are_in_the_order_of_their_correlation(run):
    pairs = exploring._Pairs(run, None)
    expected = correlation.pn(run, centred=True).to_series().sort_values()
    assert pairs.correlations["unit"].values.tolist() == expected.index.tolist()
    for rank, unit in enumerate(expected.index):
        np.testing.assert_array_equal(pairs.between(rank)["image"], run["image"].sel(unit=unit))


def test_the_half_circle_is_of_normal_noise_from_z_to_minus_z(run, generator):
    pairs = exploring._Pairs(run, generator)
    drawn = pairs._half_circle(2000).draw(SHAPE, seed=5)
    expected = noise.antithetic(2000).draw(SHAPE, seed=5)
    np.testing.assert_allclose(drawn[:, [0, -1]], expected, rtol=1e-6, atol=1e-15)
    cosines = np.cos(np.radians(pairs.angles))
    products = np.einsum("umcyx,uncyx->mn", drawn, drawn) / drawn[:, 0].size
    np.testing.assert_allclose(products, np.cos(np.subtract.outer(*2 * [np.radians(pairs.angles)])), atol=0.015)
    np.testing.assert_allclose(products[0], cosines, atol=0.015)
    for rank in range(3):
        unit = pairs.correlations["unit"][rank]
        np.testing.assert_allclose(pairs.between(rank)["image"][[0, -1]], run["image"].sel(unit=unit), atol=1e-6)


def test_step_noise_is_that_of_the_design(generator):
    for start_only in (False, True):
        design = noise.antithetic(9, start_only=start_only)
        pairs = exploring._Pairs(antinb.sample(generator, design, seed=5, progress=False), generator)
        ends = pairs._half_circle(9).draw(SHAPE, seed=5, stream=1)[:, [0, -1]]
        np.testing.assert_allclose(ends, design.draw(SHAPE, seed=5, stream=1), rtol=1e-6, atol=1e-15)


def test_a_slider_changes_the_picture_to_that_of_its_value(run, generator):
    look = antinb.explore(run, generator)
    pair, angle, shown = look.children
    for slider, value, picture in [(pair, 4, (3, 90, 0)), (angle, 30, (3, 30, 0)), (pair, 1, (0, 30, 0))]:
        before = pixels(shown.value)
        slider.value = value
        expected = look.pairs.picture(*picture)
        assert f"pair {int(look.pairs.correlations['unit'][picture[0]])} " in expected.get_suptitle()
        np.testing.assert_array_equal(pixels(shown.value), pixels(exploring._png(expected)))
        assert (pixels(shown.value) != before).any()


def test_a_sampler_with_steps_shows_the_states_of_the_run(mixture_generator):
    traced = antinb.sample(mixture_generator, noise.antithetic(8), seed=1, trajectory=True, progress=False)
    for run, generator in [(traced, None), (traced, mixture_generator), (traced[["image"]], mixture_generator)]:
        look = antinb.explore(run, generator)
        step = look.children[-2]
        assert (step.description, step.max) == ("step", traced.sizes["step"] - 1)
        ends = traced.sel(unit=look.pairs.correlations["unit"][0])
        for name in ("state", "predicted_noise"):
            np.testing.assert_allclose(look.pairs.between(0)[name][[0, -1]], ends[name], atol=1e-4)
        before = pixels(look.shown.value)
        step.value = step.max
        assert (pixels(look.shown.value) != before).any()


def test_what_cannot_be_explored_is_refused(run, generator):
    with pytest.raises(ValueError, match="to explore is a run of noise.antithetic; got one of"):
        antinb.explore(antinb.sample(generator, noise.simplex(9, 2), seed=0, progress=False))
    other = antinb.load(lambda z: torch.tanh(z).reshape(len(z), *SHAPE), shape=SHAPE)
    with pytest.raises(ValueError, match="made again differs"):
        antinb.explore(run, other)


def test_without_widgets_a_picture_is_left(run, generator):
    bundle = antinb.explore(run, generator)._repr_mimebundle_()
    assert notebooks.WIDGET in bundle
    assert pixels(base64.b64decode(bundle["image/png"])).std() > 0
    bar = {notebooks.WIDGET: {"model_id": "1"}, "text/plain": "0%"}
    outputs = [nbformat.v4.new_output("display_data", data) for data in (bundle, bar, {"text/plain": "3"})]
    cells = [nbformat.v4.new_code_cell("x", outputs=outputs), nbformat.v4.new_markdown_cell("y")]
    left = notebooks.still(nbformat.v4.new_notebook(cells=cells, metadata={"widgets": {}}))
    kinds = [set(output.data) for output in left.cells[0].outputs]
    assert kinds == [{"text/plain", "image/png"}, {"text/plain"}]
    assert not left.metadata
