"""The spectral basis against its definition."""

import json
from fractions import Fraction
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from antinb.noise import modes

GOLDEN = json.loads((Path(__file__).parent / "golden" / "mode_order.json").read_text())
SHAPES = [(1, 4, 4), (3, 4, 6), (4, 3, 3), (3, 2, 4, 4), (7,), (3, 5)]


@pytest.mark.parametrize("shape", SHAPES)
def test_the_order_is_its_definition(shape):
    def key(place):
        channel, *rest = place
        frequency = sum((Fraction(index, size) for index, size in zip(rest, shape[1:], strict=True)), Fraction())
        difference = shape[0] == 3 and channel > 0
        return (2 * frequency + Fraction(1, 1000) if difference else frequency, place)

    expected = sorted(product(*map(range, shape)), key=key)
    found = np.stack(np.unravel_index(modes.order(shape), shape), 1)
    assert found.tolist() == [list(place) for place in expected]


@pytest.mark.parametrize("name", GOLDEN)
def test_the_order_stays_what_it_was(name):
    """Stored runs are drawn again from the order: it may never change."""
    shape = tuple(map(int, name.split("x")))
    assert modes.order(shape)[: len(GOLDEN[name])].tolist() == GOLDEN[name]


@pytest.mark.parametrize("shape", SHAPES)
def test_the_basis_is_orthonormal_and_undone(shape):
    d = int(np.prod(shape))
    basis = modes.to_noise(np.eye(d), shape)
    flat = basis.reshape(d, d)
    np.testing.assert_allclose(flat @ flat.T, np.eye(d), atol=1e-12)
    np.testing.assert_allclose(modes.to_modes(basis, shape), np.eye(d), atol=1e-12)


def test_modes_are_cosines_of_rotated_channels():
    shape, place = (3, 4, 6), (2, 1, 3)
    row = int(np.flatnonzero(modes.order(shape) == np.ravel_multi_index(place, shape))[0])
    y, x = np.indices((4, 6))
    wave = np.cos(np.pi * (2 * y + 1) / 8) * np.cos(3 * np.pi * (2 * x + 1) / 12)
    expected = np.array([1, -2, 1])[:, None, None] * wave
    mode = modes.to_noise(np.eye(72)[row], shape)
    np.testing.assert_allclose(mode, expected / np.linalg.norm(expected), atol=1e-12)
    first = modes.to_noise(np.eye(72)[0], shape)
    np.testing.assert_allclose(first, np.full(shape, 72**-0.5), atol=1e-12)


def test_reflection_lays_the_first_mode_along_the_direction():
    rng = np.random.default_rng(0)
    direction = rng.standard_normal(5)
    direction /= np.linalg.norm(direction)
    matrix = modes.reflect(np.eye(8), direction)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(8), atol=1e-12)
    np.testing.assert_allclose(matrix[0, :5], direction, atol=1e-12)
    assert np.array_equal(modes.reflect(np.eye(8), np.eye(5)[0]), np.eye(8))
