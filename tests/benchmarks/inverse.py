"""What a reconstruction costs beyond its network calls: ratios within one run, each with its bound.

Run `python tests/benchmarks/inverse.py` on an idle machine; it prints a table and exits with 1 if a bound is broken.
"""

from __future__ import annotations

import os
import platform

os.environ["HF_HUB_OFFLINE"] = "1"

import click
import torch
from timing import Task, ratio, report

import antinb
from antinb import inverse, noise, operators
from antinb.models import diffusion

STEPS, BATCH, SEED, BOUND = 5, 32, 0, 1.10


def bare_calls(generator: diffusion.Diffusion, gradient: bool) -> Task:
    """Return the task of calling the network on one batch a step, with its gradient or without, and nothing else."""
    batch = torch.randn(BATCH, *generator.shape)

    def run() -> None:
        for t in generator.timesteps:
            with torch.set_grad_enabled(gradient):
                x = batch.clone().requires_grad_(gradient)
                output = generator.network(x, torch.tensor(t), None)
                if gradient:
                    torch.autograd.grad(output.sum(), x)

    return run


@click.command()
@click.option("--repeats", default=9, show_default=True, help="Pairs of runs behind each ratio.")
def main(repeats: int) -> None:
    """Measure, print the table, and exit with 1 if a bound is broken."""
    generator = antinb.load("fashion-ddpm", steps=STEPS, eta=1.0)
    shape, size = generator.shape, generator.shape[1:]
    seen = {
        "inpainting": operators.inpainting(shape, operators.random_mask(size, 0.3, seed=SEED)),
        "superresolution x4": operators.superresolution(shape, 4),
        "deblurring": operators.deblurring(shape, 1.5),
        "Fourier": operators.fourier(shape, operators.line_mask(size, 0.2, seed=SEED)),
        "tomography": operators.tomography(shape, 8),
    }
    image, design, rows = torch.from_numpy(antinb.zoo.held_out("fashion", sample="random")[0][0]), noise.iid(BATCH), []
    for name, operator in seen.items():
        y = operators.observe(operator, image, sigma=0.05, seed=SEED)
        for kind in (inverse.DPS, inverse.DDS):
            solver, gradient = kind(generator, operator, y), kind is inverse.DPS

            def solve(solver: inverse.Solver = solver) -> object:
                return antinb.sample(solver, design, seed=SEED, batch=BATCH, progress=False)

            label = f"{kind.__name__}, {name} / bare network calls{' with gradient' if gradient else ''}"
            rows.append((label, ratio(solve, bare_calls(generator, gradient), repeats), BOUND))
    click.echo(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, batch {BATCH}\n")
    report(rows)


if __name__ == "__main__":
    main()
