"""A design in place of a program's own draws: every way to draw, and what cannot follow a design."""

import math
import threading

import numpy as np
import pytest
import torch
from diffusers.utils.torch_utils import randn_tensor
from scipy import stats

import antinb
from antinb import draws, noise

DESIGN, ROWS = noise.antithetic(4), 8
SIZE = (ROWS, 3, 5)


def stream(number, design=DESIGN, seed=7, shape=SIZE[1:]):
    return torch.from_numpy(design.draw(shape, seed=seed, stream=number)).flatten(0, 1)


def drawn(program, design=DESIGN, **options):
    with draws.using(design, seed=7, **options):
        return program()


def permuted():
    """Return a tensor whose memory runs along another axis than its shape."""
    return torch.empty(5, 3, ROWS).permute(2, 1, 0)


ONES = torch.ones(SIZE)
NORMAL = {
    "randn": (lambda: torch.randn(SIZE), 0, 1),
    "randn with a generator": (lambda: torch.randn(SIZE, generator=torch.Generator()), 0, 1),
    "randn into out": (lambda: torch.randn(SIZE, out=torch.empty(SIZE)), 0, 1),
    "randn_like": (lambda: torch.randn_like(ONES), 0, 1),
    "randn_like, channels last": (lambda: torch.randn_like(permuted()), 0, 1),
    "randn_tensor of diffusers": (lambda: randn_tensor(SIZE), 0, 1),
    "normal_": (lambda: torch.empty(SIZE).normal_(), 0, 1),
    "normal_ with mean": (lambda: torch.empty(SIZE).normal_(2, std=3), 2, 3),
    "normal_, not contiguous": (lambda: permuted().normal_(2, 3), 2, 3),
    "normal_ of a slice": (lambda: torch.zeros(ROWS, 3, 10)[:, :, ::2].normal_(2, 3), 2, 3),
    "normal, two tensors": (lambda: torch.normal(2 * ONES, 3 * ONES), 2, 3),
    "normal, tensor and number": (lambda: torch.normal(2 * ONES, 3.0), 2, 3),
    "normal, number and tensor": (lambda: torch.normal(2.0, 3 * ONES), 2, 3),
    "normal, numbers": (lambda: torch.normal(2.0, 3.0, SIZE), 2, 3),
    "normal into out": (lambda: torch.normal(2 * ONES, 3 * ONES, out=torch.empty(SIZE)), 2, 3),
    "distribution": (lambda: torch.distributions.Normal(2 * ONES, 3.0).sample(), 2, 3),
    "reparametrized": (lambda: torch.distributions.Normal(2 * ONES, 3.0).rsample(), 2, 3),
}


@pytest.mark.parametrize("name", NORMAL)
def test_every_normal_draw_is_the_design(name):
    program, mean, std = NORMAL[name]
    torch.testing.assert_close(drawn(program), mean + std * stream(0), rtol=0, atol=1e-6)


@pytest.mark.parametrize("design", [noise.iid(8), noise.antithetic(4), noise.simplex(2, 4)])
def test_streams_follow_in_order(design):
    values = drawn(lambda: [torch.randn(SIZE), torch.randn(ROWS, 2), torch.randn_like(ONES)], design)
    expected = [stream(0, design), stream(1, design, shape=(2,)), stream(2, design)]
    assert all(map(torch.equal, values, expected))


def test_only_the_units_asked_for():
    assert torch.equal(
        drawn(lambda: torch.randn(4, 3, 5), units=[3, 1]), stream(0).view(4, 2, 3, 5)[[3, 1]].flatten(0, 1)
    )


def test_means_are_kept_and_only_the_deviation_is_mirrored():
    mean = torch.arange(8.0)[:, None, None].expand(SIZE)
    values = drawn(lambda: torch.normal(mean, 0.1))
    deviation = (values - mean).view(4, 2, 3, 5)
    torch.testing.assert_close(deviation[:, 0], -deviation[:, 1], rtol=0, atol=2e-6)


def test_the_random_numbers_of_the_caller_stay_where_they_are():
    """Also after an error, a seed set inside, and a run of a sampler with step noise."""

    def broken():
        torch.randn(SIZE)
        raise KeyError

    before = torch.get_rng_state()
    drawn(lambda: [torch.randn(SIZE), torch.rand(SIZE)])
    drawn(lambda: [torch.manual_seed(1), torch.randn(SIZE)])
    with pytest.raises(KeyError):
        drawn(broken)
    model = antinb.load(lambda z: z + torch.randn_like(z), shape=(1, 8, 8))
    antinb.sample(model, DESIGN, seed=0, progress=False)
    antinb.sample(antinb.load("fashion-mixture", steps=2, eta=1.0), DESIGN, seed=0, progress=False)
    assert math.isfinite(antinb.zoo.rate(size=8))
    assert torch.equal(torch.get_rng_state(), before)


def test_the_programs_own_generator_is_ignored():
    values = [
        drawn(lambda seed=seed: torch.randn(SIZE, generator=torch.Generator().manual_seed(seed))) for seed in (0, 1)
    ]
    assert torch.equal(*values)


def test_uniform_draws_are_mirrored_about_one_half():
    design = noise.antithetic(2000)
    with draws.using(design, seed=0):
        u = torch.rand(4000, 2)
        v = torch.empty(4000).uniform_(-1, 3)
    torch.testing.assert_close(u[::2], 1 - u[1::2], rtol=0, atol=1e-7)
    torch.testing.assert_close(v[::2], 2 - v[1::2], rtol=0, atol=1e-6)
    for column in (*u[::2].T.numpy(), (v[::2].numpy() + 1) / 4):
        assert stats.kstest(column, "uniform").pvalue > 1e-4


def test_single_draws_fill_a_stream_row_by_row():
    generators = [torch.Generator().manual_seed(row) for row in range(ROWS)]
    first, second = drawn(lambda: [randn_tensor(SIZE, generator=generators) for _ in range(2)])
    assert torch.equal(first, stream(0))
    assert torch.equal(second, stream(1))


def test_a_shared_shape_is_one_draw_for_all():
    one, batch, two = drawn(lambda: [torch.randn(6, 6), torch.randn(SIZE), torch.randn(6, 6)], shared=[(6, 6)])
    again, *_ = drawn(lambda: [torch.randn(6, 6), torch.randn(SIZE)], shared=[(6, 6)])
    assert torch.equal(one, again)
    assert not torch.equal(one, two)
    assert torch.equal(batch, stream(0))


@pytest.mark.slow
def test_a_compiled_program_draws_the_design_before_and_after_it_was_compiled():
    @torch.compile
    def program(x):
        return x + torch.randn_like(x)

    cold = drawn(lambda: program(ONES))
    program(ONES)
    assert torch.equal(cold, 1 + stream(0))
    assert torch.equal(drawn(lambda: program(ONES)), cold)


def test_a_compiled_network_in_a_plain_loop():
    network = torch.compile(torch.nn.Linear(5, 5).eval())

    def loop():
        x = torch.randn(SIZE)
        for _ in range(2):
            x = network(x) + torch.randn_like(x)
        return x

    with torch.no_grad():
        expected = network(network(stream(0)) + stream(1)) + stream(2)
        torch.testing.assert_close(drawn(loop), expected, rtol=0, atol=1e-6)


def with_generator(*generators):
    return [torch.randn(SIZE, generator=generator) for generator in generators]


def seeded(seed=3):
    return torch.Generator().manual_seed(seed)


def nested():
    with draws.using(DESIGN, seed=0):
        torch.randn(SIZE)


def reseed_the_default():
    for _ in range(2):
        torch.manual_seed(0)
        torch.randn(SIZE)


OWN = torch.Generator()
REFUSED = {
    "another number of rows": (lambda: torch.randn(7, 3), r"8 rows.*\(7, 3\)"),
    "a scalar": (lambda: torch.randn(()), r"8 rows.*\(\)"),
    "members first": (lambda: torch.randn(2, 4, 3), r"8 rows.*\(2, 4, 3\)"),
    "too few single draws": (
        lambda: [torch.randn(1, 3, generator=seeded(row)) for row in range(5)],
        "at a time.*got 5",
    ),
    "single draws cut short": (lambda: [torch.randn(1, 3, generator=OWN), torch.randn(8, 3)], "at a time.*got 1"),
    "single draws of two shapes": (
        lambda: [torch.randn(1, size, generator=seeded(size)) for size in (3, 4)],
        r"\(1, 4\)",
    ),
    "single draws of the default generator": (lambda: torch.randn(1, 3), "8 generators"),
    "an image at a time": (lambda: [torch.randn(1, 3, generator=OWN) for _ in range(8)], "8 generators"),
    "integers": (lambda: torch.randint(0, 9, SIZE), "'randint'"),
    "bernoulli": (lambda: torch.bernoulli(ONES / 2), "'bernoulli'"),
    "dropout": (lambda: torch.nn.functional.dropout(ONES), "'bernoulli_'"),
    "native dropout": (lambda: torch.native_dropout(ONES, 0.5, True), "'native_dropout'"),
    "multinomial": (lambda: torch.multinomial(torch.ones(8, 3), 1), "'multinomial'"),
    "permutation": (lambda: torch.randperm(8), "'randperm'"),
    "exponential": (lambda: torch.empty(SIZE).exponential_(), "'exponential_'"),
    "complex": (lambda: torch.randn(SIZE, dtype=torch.complex64), "complex64"),
    "a module in training mode": (lambda: torch.nn.Identity()(ONES), "Identity is in training mode"),
    "nested use": (nested, "nested"),
    "the default generator reseeded": (reseed_the_default, "reseeds"),
    "a generator reseeded": (
        lambda: [torch.randn(SIZE, generator=OWN.manual_seed(1)) for _ in range(2)],
        "reseeds",
    ),
    "two generators of one seed": (lambda: with_generator(seeded(), seeded()), "another generator with 3"),
    "no draw at all": (lambda: None, "drew no tensor of 8 rows"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_follow_a_design_is_refused_by_name(name):
    program, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        drawn(program)
    torch.nn.Identity()(torch.randn(3))  # nothing stays behind


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_uniform_draws_stay_below_one(dtype):
    with draws.using(noise.antithetic(500), seed=0):
        u = torch.rand(1000, 400, dtype=dtype)
    assert 0 < u.min() <= u.max() < 1


def test_harmless_operations_pass():
    query = torch.ones(ROWS, 1, 3, 4)

    def program():
        torch.nn.functional.scaled_dot_product_attention(query, query, query)
        torch.nn.functional.dropout(ONES, training=False)
        torch.native_dropout(ONES, 0.5, False)
        torch.nn.RReLU().eval()(ONES)
        g = seeded()
        return with_generator(g, g, seeded(4))[2]

    assert torch.equal(drawn(program), stream(2))


def affine(x):
    return 5 + 0.3 * x


def threaded():
    found = []
    thread = threading.Thread(target=lambda: found.append(torch.randn(SIZE)))
    thread.start()
    thread.join()
    return found[0]


def test_the_first_input_of_the_network_is_checked():
    network = torch.nn.Identity().eval()

    def guided(x):
        network(torch.cat([x, x]))
        network(ONES)  # only the first input is looked at

    start = torch.arange(4.0).repeat_interleave(2)[:, None, None]
    drawn(lambda: guided(affine(torch.randn(SIZE))), network=network)
    drawn(lambda: network(start + 2 * torch.randn(SIZE)), network=network)
    rng = np.random.default_rng(0)
    for program in (
        lambda: [torch.randn(SIZE), network(torch.from_numpy(rng.standard_normal(SIZE)))],
        lambda: network(threaded()),
        lambda: network(torch.randn(SIZE).flip(0)),
        lambda: [torch.randn(SIZE), network(torch.zeros(SIZE))],
    ):
        with pytest.raises(ValueError, match="numpy, in another thread"):
            drawn(program, network=network)
    assert not network._forward_pre_hooks


def test_an_image_of_as_many_channels_as_rows_is_not_taken_for_a_batch():
    """Without the network nobody knows; with it, noise that the caller stacks image by image is noticed."""
    design, network = noise.antithetic(2), torch.nn.Identity().eval()

    def stacked():
        return network(torch.stack([torch.randn(4, 8, 8) for _ in range(4)]))

    def filled():
        x = torch.empty(4, 4, 8, 8)
        for row in x:
            row.normal_()

    for program in (
        stacked,
        filled,
        lambda: torch.stack([14.6 * torch.randn(4, 8, 8) for _ in range(4)]),
        lambda: torch.cat([torch.rand(4, 8, 8)[None].half() for _ in range(4)]),
        lambda: np.stack([torch.randn(4, 8, 8).numpy() for _ in range(8)]),
    ):
        with pytest.raises(ValueError, match="4 draws .* pass network="), draws.using(design, seed=0):
            program()
    with (
        pytest.raises(ValueError, match="no draw of 4 rows went into"),
        draws.using(design, seed=0, network=network),
    ):
        stacked()
    with draws.using(design, seed=0, network=network):
        x = network(torch.randn(4, 8, 8))
    torch.testing.assert_close(x[0::2], -x[1::2])
