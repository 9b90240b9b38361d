"""Operators against other libraries, closed forms and their own dense matrices."""

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from antinb import operators

SIZE = (12, 12)
SHAPE = (2, *SIZE)
KINDS = {
    "random": lambda shape: operators.inpainting(shape, operators.random_mask(shape[1:], 0.3, seed=0)),
    "box": lambda shape: operators.inpainting(shape, operators.box_mask(shape[1:], 5)),
    "superresolution": lambda shape: operators.superresolution(shape, 2),
    "superresolution 4": lambda shape: operators.superresolution(shape, 4),
    "deblurring": lambda shape: operators.deblurring(shape, 1.3),
    "fourier": lambda shape: operators.fourier(shape, operators.line_mask(shape[1:], 0.3, seed=0)),
    "tomography": lambda shape: operators.tomography(shape, 5),
}


def images(count=3, shape=SHAPE):
    return torch.from_numpy(np.random.default_rng(0).standard_normal((count, *shape)))


@pytest.mark.parametrize("kind", KINDS)
def test_the_adjoint_is_the_transpose_of_the_matrix(kind):
    operator = KINDS[kind](SHAPE)
    dense, x = operators.matrix(operator, SHAPE), images()
    y = operator.A(x)
    torch.testing.assert_close(y.flatten(1), x.flatten(1) @ dense.T, rtol=0, atol=1e-12)
    back = operator.A_adjoint(torch.ones_like(y) * torch.arange(1.0, 4, dtype=y.dtype).view(-1, *[1] * (y.ndim - 1)))
    expected = torch.arange(1.0, 4, dtype=y.dtype)[:, None] * dense.sum(0)
    torch.testing.assert_close(back.flatten(1), expected, rtol=0, atol=1e-12)
    assert operators.dot_test(operator, SHAPE) < 1e-6


@pytest.mark.parametrize("factor", [2, 4])
def test_superresolution_is_the_bicubic_reduction_of_pillow(factor):
    x = images(1, (1, *SIZE))
    small = SIZE[0] // factor
    expected = np.asarray(Image.fromarray(x[0, 0].numpy().astype(np.float32)).resize((small, small), Image.BICUBIC))
    found = operators.superresolution((1, *SIZE), factor).A(x)[0, 0]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_deblurring_is_the_gaussian_filter_of_scipy():
    x = images()
    expected = ndimage.gaussian_filter(x.numpy(), 1.3, mode="mirror", axes=(2, 3))
    np.testing.assert_allclose(operators.deblurring(SHAPE, 1.3).A(x), expected, rtol=0, atol=1e-12)


def test_fourier_keeps_coefficients_and_is_unitary():
    x, mask = images(), operators.line_mask(SIZE, 0.3, seed=0)
    expected = np.fft.fft2(x.numpy(), norm="ortho")[..., mask]
    found = operators.fourier(SHAPE, mask).A(x).numpy()
    np.testing.assert_allclose(found[..., 0] + 1j * found[..., 1], expected, rtol=0, atol=1e-12)
    whole = operators.fourier(SHAPE, np.ones(SIZE, bool))
    torch.testing.assert_close(whole.A_adjoint(whole.A(x)), x, rtol=0, atol=1e-12)


def test_inpainting_keeps_pixels_and_puts_them_back():
    x, mask = images(), operators.random_mask(SIZE, 0.3, seed=0)
    operator = operators.inpainting(SHAPE, mask)
    np.testing.assert_array_equal(operator.A(x), x.numpy()[..., mask])
    np.testing.assert_array_equal(operator.A_adjoint(operator.A(x)), x.numpy() * mask)


def test_projections_along_the_axes_are_sums():
    x = images()
    found = operators.tomography(SHAPE, 2).A(x) * SIZE[0] ** 0.5
    torch.testing.assert_close(found[..., 0, :], x.sum(-2), rtol=0, atol=1e-10)
    across = torch.stack([x.sum(-1), x.sum(-1).flip(-1)])
    assert (found[..., 1, :] - across).abs().amax((1, 2, 3)).min() < 1e-10


@pytest.mark.slow
def test_projections_of_a_gaussian_are_gaussians_at_the_turned_centre():
    size, spread, centre = 64, 5.0, np.array([9.0, -6.0])
    grid = np.arange(size) - (size - 1) / 2
    y, x = np.meshgrid(grid, grid, indexing="ij")
    blob = np.exp(-((x - centre[0]) ** 2 + (y - centre[1]) ** 2) / (2 * spread**2))
    found = operators.tomography((1, size, size), 7).A(torch.from_numpy(blob)[None, None])[0, 0] * size**0.5
    angles = np.pi * np.arange(7) / 7
    misses = []
    for sign in (1, -1):  # the sense of turning is nobody's convention
        places = centre[0] * np.cos(angles) + sign * centre[1] * np.sin(angles)
        expected = spread * np.sqrt(2 * np.pi) * np.exp(-((grid - places[:, None]) ** 2) / (2 * spread**2))
        misses.append(np.abs(found.numpy() - expected).max() / expected.max())
    assert min(misses) < 0.02


def test_masks_keep_what_they_say():
    random = operators.random_mask((10, 20), 0.25, seed=1)
    assert random.sum() == 50
    assert (random != operators.random_mask((10, 20), 0.25, seed=2)).any()
    box = operators.box_mask((10, 20), 4)
    assert (~box).sum() == 16
    assert not box[3:7, 8:12].any()
    lines = operators.line_mask((20, 10), 0.25, seed=0)
    assert lines.all(1).sum() == lines.any(1).sum() == 4 + 4
    assert lines[[0, 1, -1]].all()


def test_observations_are_the_image_plus_noise_of_a_seed():
    operator, x = KINDS["deblurring"](SHAPE), images(1)[0]
    clean, noisy = (operators.observe(operator, x, sigma=sigma, seed=3) for sigma in (0.0, 0.5))
    torch.testing.assert_close(clean, operator.A(x[None]))
    expected = 0.5 * np.random.default_rng(3).standard_normal(clean.shape)
    np.testing.assert_allclose(noisy - clean, expected, rtol=0, atol=1e-12)


class Foreign:
    """Another library's operator: y = a x + b, with an adjoint of its own."""

    def __init__(self, factor=2.0, adjoint=2.0, shift=0.0, cut=None):
        self.factor, self.adjoint, self.shift, self.cut = factor, adjoint, shift, cut

    def A(self, x):
        return self.factor * x + self.shift

    def A_adjoint(self, y):
        return self.adjoint * y[:, : self.cut]


def test_the_dot_test_passes_a_right_adjoint_and_refuses_a_wrong_one():
    assert operators.dot_test(Foreign(), SHAPE) < 1e-6
    assert operators.dot_test(Foreign(), SHAPE, like=torch.zeros((), dtype=torch.float64)) < 1e-14
    for wrong in (Foreign(adjoint=2.01), Foreign(adjoint=-2.0), Foreign(shift=1.0), Foreign(adjoint=float("nan"))):
        with pytest.raises(ValueError, match="must agree to 1e-05"):
            operators.dot_test(wrong, SHAPE)
    with pytest.raises(ValueError, match="must keep the batch"):
        operators.dot_test(Foreign(cut=1), SHAPE)


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda: operators.inpainting(SHAPE, np.ones(SIZE)), "mask must be boolean"),
        (lambda: operators.inpainting(SHAPE, np.ones((3, 3), bool)), r"of shape \(12, 12\)"),
        (lambda: operators.fourier(SHAPE, np.zeros(SIZE, bool)), "keep something"),
        (lambda: operators.superresolution(SHAPE, 5), "divide height and width, 12 and 12; got 5"),
        (lambda: operators.superresolution(SHAPE, 1), "factor must be an integer of at least 2; got 1"),
        (lambda: operators.deblurring(SHAPE, 0), "width must be a number from 0.1 to 3; got 0"),
        (lambda: operators.tomography((1, 4, 5), 3), "square"),
        (lambda: operators.tomography((1, 65, 65), 3), "at most 64 pixels a side"),
        (lambda: operators.tomography(SHAPE, 0), "views must be an integer of at least 1; got 0"),
        (lambda: operators.Linear("none", (4, 4), torch.sin), r"shape \(C, H, W\); got \(4, 4\)"),
        (lambda: operators.random_mask(SIZE, 0.0, seed=0), "places of a mask must be an integer of at least 1; got 0"),
        (lambda: operators.random_mask(SIZE, 1.5, seed=0), "share must be a number from 0 to 1; got 1.5"),
        (lambda: operators.box_mask(SIZE, 12), "side must be an integer of at most 11; got 12"),
        (lambda: operators.line_mask(SIZE, 0.5, centre=13, seed=0), "centre must be an integer of at most 12; got 13"),
        (
            lambda: KINDS["box"](SHAPE).A(torch.zeros(1, 1, 12, 12)),
            r"takes images \(B, 2, 12, 12\); got \(1, 1, ",
        ),
        (
            lambda: KINDS["box"](SHAPE).A_adjoint(torch.zeros(1, 2, 5)),
            r"measurements \(1, 2, 119\); got \(1, 2, 5",
        ),
        (
            lambda: operators.observe(KINDS["box"](SHAPE), images(1)[0], sigma=-1, seed=0),
            "sigma must be a number from 0",
        ),
    ],
)
def test_bad_input_is_refused(call, reason):
    with pytest.raises(ValueError, match=reason):
        call()
