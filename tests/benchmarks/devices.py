"""What sampling costs beyond the network on an accelerator: one UNet in half precision, through `torch.compile`.

Run `python tests/benchmarks/devices.py --device cuda` on an idle machine; it prints a table and exits with 1 if the
bound is broken. The network is that of a public model of 36 million parameters, with random weights.
"""

from __future__ import annotations

import click
import torch
from diffusers import UNet2DModel
from timing import Task, ratio, report, seconds

import antinb
from antinb import noise, zoo
from antinb.models import diffusion

CONFIG = zoo.public()["google/ddpm-cifar10-32"]["network"]
LEVELS = {"num_train_timesteps": 1000, "clip_sample": True}


def bare_calls(generator: diffusion.Diffusion, batch: int, batches: int) -> Task:
    """Return the task of calling the compiled network as often as `sample` does, and nothing else."""
    x = torch.randn(batch, *generator.shape, device=generator.like.device, dtype=generator.like.dtype)

    def run() -> None:
        with torch.no_grad():
            for _ in range(batches):
                for t in generator.timesteps:
                    generator._compiled(x, torch.tensor(t, device=x.device), None)
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()

    return run


@click.command()
@click.option("--device", default="cuda", show_default=True)
@click.option("--dtype", default="bfloat16", show_default=True)
@click.option("--batch", default=256, show_default=True, help="Images at once.")
@click.option("--batches", default=4, show_default=True)
@click.option("--steps", default=20, show_default=True)
@click.option("--repeats", default=5, show_default=True, help="Pairs of runs behind the ratio.")
def main(device: str, dtype: str, batch: int, batches: int, steps: int, repeats: int) -> None:
    """Measure, print the table, and exit with 1 if the bound is broken."""
    torch.manual_seed(0)
    network: UNet2DModel = UNet2DModel.from_config(dict(CONFIG)).to(device, getattr(torch, dtype))
    generator = diffusion.from_network(network, LEVELS).with_(steps=steps, compile=True)
    design = noise.antithetic(batch * batches // 2)

    def sample() -> None:
        antinb.sample(generator, design, seed=0, batch=batch, progress=False)

    warm_up = seconds(sample)
    click.echo(f"{device}, {dtype}, torch {torch.__version__}, batch {batch}, warm-up {warm_up:.0f} s\n")
    report([("`sample` / bare network calls", ratio(sample, bare_calls(generator, batch, batches), repeats), 1.02)])


if __name__ == "__main__":
    main()
