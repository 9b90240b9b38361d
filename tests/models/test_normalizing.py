"""A normalizing flow: invertible, with the Jacobian it says, and a density that integrates to one."""

import pytest
import torch
from helpers import SHAPE

import antinb
from antinb import noise
from antinb.models import normalizing
from antinb.models.normalizing import NormalizingFlow

SIZE = SHAPE[-1]


def random_flow(layers=6, size=SIZE, dtype=torch.float64):
    """Return a flow whose couplings do something: their last layers start at zero."""
    torch.manual_seed(0)
    flow = normalizing.flow(layers, 4, size, torch.full((size**2,), -0.5), torch.full((size**2,), 2.0))
    for name, parameter in flow.named_parameters():
        if "last" in name or "level" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return flow.to(dtype)


def draw(units=5, size=SIZE):
    return torch.from_numpy(noise.iid(units).draw((size**2,), seed=0)[:, 0]).double()


def test_the_map_to_images_is_the_inverse_of_that_to_noise():
    flow, z = random_flow(), draw()
    images = flow().transform.inv(z)
    torch.testing.assert_close(flow().transform(images), z, rtol=0, atol=1e-7)
    assert images.std(0).min() > 0.01


def test_the_log_determinant_is_that_of_the_jacobian():
    flow = random_flow(size=4)
    x = flow().transform.inv(draw(1, 4))
    _, found = flow().transform.call_and_ladj(x)
    jacobian = torch.autograd.functional.jacobian(lambda value: flow().transform(value), x)[0, :, 0]
    torch.testing.assert_close(found[0], torch.linalg.slogdet(jacobian).logabsdet, rtol=0, atol=1e-8)


def test_the_density_is_that_of_the_noise_changed_by_the_map():
    flow = random_flow(size=4)
    z = draw(3, 4)
    x = flow().transform.inv(z)
    normal = torch.distributions.Normal(0, 1).log_prob(z).sum(1)
    torch.testing.assert_close(flow().log_prob(x), normal + flow().transform.call_and_ladj(x)[1])


def test_a_coupling_keeps_what_is_under_its_mask_and_the_next_one_moves_it():
    masks = normalizing.masks(18, 8)
    assert torch.equal(masks[1::2], ~masks[::2])
    torch.manual_seed(0)
    layer = normalizing.Coupling(masks[0], 4).double()
    torch.nn.init.normal_(layer.last.weight)
    x = draw()
    y = layer()(x)
    kept = masks[0].flatten()
    assert torch.equal(y[:, kept], x[:, kept])
    assert (y != x)[:, ~kept].all()


def test_the_scale_of_a_coupling_is_bounded():
    layer = normalizing.Coupling(normalizing.masks(1, 8)[0], 4)
    torch.nn.init.constant_(layer.level, 1e6)
    scale = layer.transform(torch.zeros(1, 32)).base.scale
    torch.testing.assert_close(scale, torch.full_like(scale, 1 / normalizing.LEAST_SCALE), rtol=1e-4, atol=0)


def test_images_of_an_untrained_flow_are_in_closed_form():
    """Without couplings `x = tanh(sd z + mean over 2) / 0.9`: `0.5 + 0.45 x` is the sigmoid of `sd z + mean`."""
    mean, sd = torch.linspace(-2, 2, 64), torch.linspace(0.5, 1.5, 64)
    generator = NormalizingFlow(normalizing.flow(2, 4, SIZE, mean, sd), SHAPE)
    z = draw().float()
    expected = torch.tanh((sd * z + mean) / 2) / 0.9
    torch.testing.assert_close(generator.generate(z.view(-1, *SHAPE)).flatten(1), expected, rtol=0, atol=1e-5)


def test_pairs_of_an_odd_flow_are_opposite():
    generator = NormalizingFlow(normalizing.flow(2, 4, SIZE), SHAPE)
    run = antinb.sample(generator, noise.antithetic(4), seed=0, progress=False)
    assert float(abs(run["image"].sum("member")).max()) < 1e-5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: normalizing.flow(0, 4, 8), "layers"),
        (lambda: normalizing.flow(2, 4, 10), "multiple of 4; got 10"),
        (lambda: NormalizingFlow(random_flow(), SHAPE).with_(steps=3), "no setting 'steps'"),
        (lambda: NormalizingFlow(random_flow(), SHAPE).generate(torch.zeros(2, 1, 4, 4)), "takes noise"),
        (
            lambda: NormalizingFlow(random_flow(), SHAPE).generate(torch.zeros(1, *SHAPE), condition=torch.ones(1)),
            "takes no condition",
        ),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
