"""Where the noise enters a program: recovered from packed, scaled and mixed inputs, refused where it cannot be."""

import pytest
import torch
from torch import nn

from antinb.models import entry

SHAPE = (2, 4, 6)


class Look(nn.Module):
    def forward(self, first, x=None):
        return first


def program(network, enter, shape=SHAPE, dtype=torch.float32):
    def run(rows):
        return network(torch.ones(()), x=enter(torch.randn(rows, *shape, dtype=dtype)))

    return run


def packed(z):
    return z.unflatten(2, (2, 2)).unflatten(4, (3, 2)).permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def found(enter, dtype=torch.float32):
    network = Look().eval()
    return entry.find(program(network, enter, dtype=dtype), network, "the program"), network


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_packed_scaled_and_mixed_noise_is_followed(dtype):
    picture = torch.linspace(-2, 2, 48, dtype=dtype).reshape(1, 6, 8)
    scale = torch.tensor([0.8, 14.6], dtype=dtype).repeat_interleave(3).reshape(6, 1)

    def enter(z):
        mixed = scale * packed(z) + picture
        return torch.cat([mixed, torch.full_like(mixed[..., :1], 7)], -1).repeat(2, 1, 1)

    known, network = found(enter, dtype)
    assert (known.shape, known.key, len(known.where)) == (SHAPE, "x", 48)
    z = torch.randn(5, *SHAPE, generator=torch.Generator().manual_seed(0)).to(dtype)
    known.check(network, {"x": enter(z)}, z)
    swapped = z[[1, 0, 2, 3, 4]]
    for wrong in (enter(swapped), enter(z * 1.1), enter(z.flip(-1)), enter(z)[:, :5], None):
        with pytest.raises(ValueError, match="the first input of Look is not the design's noise"):
            known.check(network, {"x": wrong}, z)


def test_places_and_scales_are_the_true_ones():
    known, _ = found(lambda z: 3 * z.flatten(1).flip(1) - 1)
    torch.testing.assert_close(known.place, torch.arange(47, -1, -1))
    torch.testing.assert_close(known.scale, torch.full((48,), 3.0, dtype=torch.float64))
    torch.testing.assert_close(known.rest, torch.full((48,), -1.0, dtype=torch.float64))


@pytest.mark.parametrize(
    ("enter", "reason"),
    [
        (lambda z: z + z.roll(1, -1), "mixed"),
        (lambda z: z[..., :3], "mixed"),
        (lambda z: z.abs() + 64 * z.sign(), "mixed"),
        (lambda z: z * 0 + 1, "does not reach its network as a batch"),
        (lambda z: z.sum(0), "does not reach its network as a batch"),
    ],
)
def test_noise_that_cannot_be_followed_is_refused(enter, reason):
    with pytest.raises(ValueError, match=f"the program cannot be paired: .*{reason}"):
        found(enter)


def test_a_program_must_draw_and_call_its_network():
    network = Look().eval()
    for run, reason in (
        (lambda rows: torch.randn(rows, 3), "does not call its Look"),
        (lambda rows: network(torch.zeros(rows, 3)), "draws no noise before"),
        (lambda rows: network(torch.randn(1, 3)), "draws no noise before"),
    ):
        with pytest.raises(ValueError, match=f"p cannot be paired: it {reason}"):
            entry.find(run, network, "p")
    with pytest.raises(ValueError, match="at most 16777216 numbers; the program draws 16777217"):
        entry.find(program(network, lambda z: z, (2**24 + 1,), torch.bfloat16), network, "p")


def test_draws_of_one_row_are_the_same_for_all_batches():
    network, seen = Look().eval(), []

    def run(rows):
        before, z, after = torch.randn(1, 3), torch.randn(rows, 3), torch.randn(1, 3)
        seen.append(torch.cat([before, after]))
        return network(z + before * after)

    one, two = (entry.find(run, network, "p") for _ in range(2))
    assert one.shared == {0, 2}
    torch.testing.assert_close(seen[0], seen[1])
    torch.testing.assert_close(one.rest, seen[0].prod(0).double())
    torch.testing.assert_close(two.rest, one.rest)
