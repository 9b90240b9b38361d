"""Change one thing of the recipe of `emoji-ddpm` at a time, and tell what each change is worth.

Run `python data/recipes/sweep.py --data noto_emoji64.npz --work build/sweep`, or name some WAYS first; each goes on
where it was stopped, and `table.csv` in WORK holds those that are finished.

The loss is the squared error of the predicted noise on the 256 held-out pictures, 16 noises each, the same for all
ways; the weighted loss is the recipe's own, min-SNR-5, in which low noise counts less. Intervals of their differences
from the recipe's are over pictures; what another training would change is told by a second seed. Ways that differ in
arithmetic alone are not trained, only timed.
"""

from __future__ import annotations

import math
import time
from pathlib import Path

import click
import emoji_ddpm
import numpy as np
import pandas as pd
import torch
import training
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from antinb import intervals

WAYS = {
    "recipe": {},
    "second seed": {"seed": 1},
    "rate 3e-3": {"rate": 3e-3},
    "rate 3e-4": {"rate": 3e-4},
    "plain loss": {"gamma": math.inf},
    "velocity": {"velocity": True},
    "attention at 4 pixels only": {"attention": 1},
    "channels-last": {"layout": torch.channels_last},
    "bfloat16": {"precision": torch.bfloat16},
}
TIMED = ("channels-last", "bfloat16")
HALF_LIVES = (50, 150, 700)
NOISES = 16


class Velocity(nn.Module):
    """A network whose output is the velocity `v` (arXiv 2202.00512), read as noise: `a v + s x`, `a^2 + s^2 = 1`."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, noisy: Tensor, steps: Tensor) -> UNet2DOutput:
        """Return the predicted noise."""
        kept = training.SCHEDULER.alphas_cumprod[steps].view(-1, 1, 1, 1)
        return UNet2DOutput(sample=kept.sqrt() * self.network(noisy, steps).sample + (1 - kept).sqrt() * noisy)


class Averaged(nn.Module):
    """A network that averages its weights, with each of HALF_LIVES in steps, whenever a step of training calls it.

    The first weights are averaged evenly, until the half-life takes over: the warm-up of the recipe's own average lasts
    longer than a sweep does.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("means", parameters_to_vector(network.parameters()).detach().repeat(len(HALF_LIVES), 1))
        self.register_buffer("count", torch.zeros(()))

    def forward(self, *inputs: Tensor) -> UNet2DOutput:
        """Return what the network returns."""
        if torch.is_grad_enabled():
            self.count += 1
            shares = (1 - 0.5 ** (1 / torch.tensor(HALF_LIVES))).maximum(1 / self.count)
            self.means.lerp_(parameters_to_vector(self.network.parameters()).detach(), shares[:, None])
        return self.network(*inputs)


def prepare(
    *,
    seed: int = 0,
    rate: float = training.RATE,
    gamma: float = 5.0,
    velocity: bool = False,
    attention: int = 2,
    layout: torch.memory_format = torch.contiguous_format,
    precision: torch.dtype = torch.float32,
) -> tuple[nn.Module, training.Loss, dict[str, float]]:
    """Return the network of a way, its loss and the options of its training."""
    network = emoji_ddpm.build(attention, seed).to(memory_format=layout)
    network = Velocity(network) if velocity else network
    return network, training.noise_loss(precision=precision, gamma=gamma), {"seed": seed, "rate": rate}


@torch.no_grad()
def errors(network: nn.Module, pictures: Tensor) -> np.ndarray:
    """Return the loss and the weighted loss of each picture, of shape `(pictures, 2)`."""
    loss, source = training.noise_loss(precision=torch.float32), torch.Generator().manual_seed(0)
    return np.array([loss(network, source, one.expand(NOISES, *one.shape), one) for one in pictures])


def speed(network: nn.Module, loss: training.Loss, data: tuple[Tensor, Tensor]) -> float:
    """Return the training images of a CPU second, over 20 steps after five to warm up."""
    steps = training.Training(network, "cpu", training.BATCH, 0)
    for step in range(25):
        if step == 5:
            start = time.process_time()
        steps.step(loss, data, 1000)
    return 20 * training.BATCH / (time.process_time() - start)


def table(work: Path, total: int) -> pd.DataFrame:
    """Return a row for each finished way, compared with the recipe, and its averages, compared with its own."""
    found = {way: dict(np.load(work / way / "found.npz")) for way in WAYS if (work / way / "found.npz").exists()}
    base, rows = found["recipe"]["errors"], {}
    for way, values in found.items():
        rows[way] = {"images a CPU second": float(values.pop("speed"))}
        for name, each in values.items():
            other = base if name == "errors" else values["errors"]
            row = rows.setdefault(way if name == "errors" else f"{way}, half-life {name}", {})
            for column, measure in enumerate(("loss", "weighted loss")):
                change = 100 * (each - other)[:, column] / other[:, column].mean()
                row[measure], row[f"{measure}, percent"] = each[:, column].mean(), change.mean()
                row[f"{measure}, low"], row[f"{measure}, high"] = intervals.t_interval(change, 0.95)
    shown = pd.DataFrame(rows).T.rename_axis("way")
    return shown.assign(**{"CPU hours": total / 3600 / shown["images a CPU second"]})


@click.command()
@click.argument("ways", nargs=-1, type=click.Choice(list(WAYS)))
@training.options(total=100_000)
def sweep(ways: tuple[str, ...], data: Path, work: Path, total: int, device: str) -> None:
    """Train each of WAYS, all if none is named, and write `table.csv` in WORK."""
    if device != "cpu":
        raise click.UsageError(f"a sweep measures seconds of a CPU, not of {device}")
    train, held_out = (training.tensors("emoji", data, split, slice(None), device) for split in ("train", "test"))
    for way in ways or WAYS:
        network, loss, options = prepare(**WAYS[way])
        found = {}
        if way not in TIMED:
            averaged = Averaged(network)
            training.fit_to(train, held_out, averaged, loss, work=work / way, total=total, device=device, **options)
            found["errors"] = errors(network, held_out[0])
            for half_life, mean in zip(HALF_LIVES, averaged.means, strict=True):
                vector_to_parameters(mean, network.parameters())
                found[str(half_life)] = errors(network, held_out[0])
        (work / way).mkdir(parents=True, exist_ok=True)
        np.savez(work / way / "found.npz", **found, speed=speed(network, loss, train))
    if not (work / "recipe" / "found.npz").exists():
        raise click.ClickException("the table compares with the way 'recipe', which is not finished")
    rows = table(work, total)
    rows.to_csv(work / "table.csv", float_format="%.5g")
    click.echo(rows.to_string(float_format="{:.4f}".format))


if __name__ == "__main__":
    sweep()
