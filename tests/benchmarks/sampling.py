"""What sampling costs beyond the network: ratios within one run, each with its bound.

Run `python tests/benchmarks/sampling.py` on an idle machine; it prints a table and exits with 1 if
a bound is broken.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import click
import numpy as np
import torch
import xarray as xr
from diffusers import DDIMPipeline, DDIMScheduler
from diffusers.models.unets.unet_2d import UNet2DOutput
from timing import Task, ratio, report, seconds

import antinb
from antinb import controls, noise, statistics, surrogates
from antinb.models import diffusion
from antinb.models.generator import Generator

STEPS, BATCH, PAIRS, SEED = 5, 32, 128, 0
DESIGN = noise.antithetic(PAIRS)


def sample(generator: Generator) -> Task:
    """Return the task of sampling the design in memory."""
    return lambda: antinb.sample(generator, DESIGN, seed=SEED, batch=BATCH, progress=False)


def bare_calls(generator: diffusion.Diffusion) -> Task:
    """Return the task of calling the network as often, on batches of the same size, and nothing else."""
    batch = torch.randn(BATCH, *generator.shape)

    def run() -> None:
        with torch.no_grad():
            for _ in range(2 * PAIRS // BATCH):
                for t in generator.timesteps:
                    generator.network(batch, torch.tensor(t), None)

    return run


def pipeline(folder: Path, network: Callable | None = None, batch: int = BATCH) -> Task:
    """Return the task of making as many images with the pipeline of diffusers, to numpy; `network` replaces its own."""
    model = DDIMPipeline.from_pretrained(folder, local_files_only=True, low_cpu_mem_usage=False).to(torch.float32)
    model.scheduler = DDIMScheduler.from_config(model.scheduler.config)
    model.set_progress_bar_config(disable=True)
    if network is not None:
        model.unet.forward = network

    def run() -> list[np.ndarray]:
        count = 2 * PAIRS // batch
        return [model(batch_size=batch, num_inference_steps=STEPS, output_type="np").images for _ in range(count)]

    return run


def beyond_the_network(generator: diffusion.Diffusion, folder: Path, repeats: int) -> float:
    """Return the ratio of `sample` to the pipeline of diffusers when the network of both costs nothing."""

    def cheap(x: torch.Tensor, *_: object) -> torch.Tensor:
        return 0.5 * x

    task = pipeline(folder, lambda x, t: UNet2DOutput(cheap(x)))
    return ratio(sample(replace(generator, network=cheap)), task, repeats)


def drawing(generator: diffusion.Diffusion) -> Task:
    """Return the task of drawing the noise of the design."""
    return lambda: [
        DESIGN.draw(generator.shape, seed=SEED, units=range(start, start + BATCH // 2))
        for start in range(0, PAIRS, BATCH // 2)
    ]


def surrogate_overhead(steps: int, units: int, repeats: int) -> float:
    """Return the time of a surrogate, its expectation and its regression over that of a measured run of 64 points."""
    model, design, far = antinb.load("fashion-ddpm", steps=steps), noise.sobol(units, 64), noise.sobol(16, 512)
    cheap = surrogates.gaussian(model, antinb.zoo.mixture("fashion-mixture"))
    asked = (statistics.brightness, statistics.contrast)

    def measured(generator: Generator, kind: noise.Design, seed: int) -> xr.DataArray:
        return statistics.measure(antinb.sample(generator, kind, seed=seed, batch=BATCH, progress=False), *asked)

    values = measured(model, design, SEED)

    def less() -> None:
        controls.surrogate(values, measured(cheap, design, SEED), measured(cheap, far, SEED + 1))

    return ratio(less, lambda: measured(model, design, SEED), repeats)


def peak_megabytes(pairs: int) -> float:
    """Return the peak memory of a process that stores so many pairs of a cheap callable, 24.6 kB a pair (Linux)."""
    program = (
        "import sys, torch, antinb; from antinb import noise; from pathlib import Path\n"
        "generator = antinb.load(torch.tanh, shape=(3, 32, 32)); store = Path(sys.argv[1]) / 'run.zarr'\n"
        "antinb.sample(generator, noise.antithetic(int(sys.argv[2])), seed=0, store=store, progress=False)\n"
        "print(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0])"
    )
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", program, folder, str(pairs)]
        found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return int(found) / 1024


@click.command()
@click.option("--repeats", default=9, show_default=True, help="Pairs of runs behind each ratio.")
def main(repeats: int) -> None:
    """Measure, print the table, and exit with 1 if a bound is broken."""
    generator = antinb.load("fashion-ddpm", steps=STEPS)
    compiled = generator.with_(compile=True)
    warm_up = seconds(sample(compiled))
    folder = antinb.zoo.DATA / "models" / "fashion-ddpm"
    reference, whole = pipeline(folder), pipeline(folder, batch=2 * PAIRS)
    eager, fast = sample(generator), sample(compiled)
    rows = [
        ("`sample` / bare network calls", ratio(eager, bare_calls(generator), repeats), 1.05),
        ("`sample` / `DDIMPipeline` to numpy, all images in one call", ratio(eager, whole, repeats), 1.0),
        ("`sample` / `DDIMPipeline` to numpy, at the same batch", ratio(eager, reference, repeats), 1.02),
        (
            "the same, with a network that costs nothing",
            beyond_the_network(generator, folder, 5 * repeats),
            1.0,
        ),
        ("`sample` with `compile=True` / the same pipeline at the same batch", ratio(fast, reference, repeats), 1.0),
        (f"`sample` with `compile=True` / without (warm-up {warm_up:.0f} s, apart)", ratio(fast, eager, repeats), 0.9),
        ("drawing the noise / `sample`", ratio(drawing(generator), eager, repeats), 0.01),
        ("a surrogate and its expectation / a run of 2,560 images, 5 steps", surrogate_overhead(5, 40, 1), 0.05),
        ("the same, a run of 640 images, 20 steps", surrogate_overhead(20, 10, 1), 0.05),
        ("peak memory, 10,000 less 1,000 stored pairs (MB)", peak_megabytes(10_000) - peak_megabytes(1000), 100.0),
    ]
    click.echo(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, batch {BATCH}\n")
    report(rows)


if __name__ == "__main__":
    main()
