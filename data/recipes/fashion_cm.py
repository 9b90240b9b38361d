"""Distil `fashion-cm` from `fashion-ddpm`: a consistency model of one or two steps (arXiv 2303.01469).

Run `python data/recipes/fashion_cm.py --work build/fashion-cm`; the teacher makes its own data.

The teacher runs from noise to images by 25 steps of DDIM, and the student learns the consistency function of
these paths, from every state to the path's end, by the pseudo-Huber distance of arXiv 2310.14189. The levels that
one and two steps start from are half of its examples. (Pulling each state's image to the next state's, algorithm 2
of the first paper, kept the noise in the images after as much training.) Boundary condition and scheduler are
those of latent consistency models (arXiv 2310.04378); the student has the teacher's network and first weights, but
predicts v (arXiv 2202.00512), which is of the size of an image at the noisiest level. Resumable, see `training.py`.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import click
import torch
import training
from diffusers import LCMScheduler, UNet2DModel
from safetensors.torch import load_file, save_file
from torch import Tensor

import antinb

TEACHER, STEPS = "fashion-ddpm", 25
HELD_OUT = 500
SCHEDULER = LCMScheduler(
    1000,
    beta_start=0.0001,
    beta_end=0.02,
    beta_schedule="linear",
    original_inference_steps=STEPS,
    clip_sample=True,
    prediction_type="v_prediction",
)
SCHEDULER.set_timesteps(STEPS)
LEVELS = SCHEDULER.timesteps
USED = (0, 12)  # where one and two steps start: 999 and 519


def build() -> UNet2DModel:
    """Return the student before its training: the teacher's network and weights."""
    return UNet2DModel.from_pretrained(antinb.zoo.DATA / "models" / TEACHER / "unet", torch_dtype=torch.float32)


def draw_paths(count: int, work: Path, device: str, batch: int = 100) -> tuple[Tensor, Tensor]:
    """Return the teacher's states at LEVELS `(N, STEPS, 1, 28, 28)` and its images; WORK/paths keeps them."""
    folder = work / "paths"
    folder.mkdir(parents=True, exist_ok=True)
    teacher = antinb.load(TEACHER, steps=STEPS, device=device)
    teacher = replace(teacher, config={**teacher.config, "timestep_spacing": "trailing"})
    assert teacher.timesteps == LEVELS.tolist()
    for first in range(0, count, batch):
        path = folder / f"{first:06d}.safetensors"
        if path.exists():
            continue
        design = antinb.noise.iid(first + batch)
        noise = antinb.draws.rows(design, teacher.shape, seed=training.SEED, units=range(first, first + batch))
        with torch.autocast(device, torch.bfloat16):
            images, parts = teacher.trajectory(noise.to(device))
        save_file({"states": parts["state"].half(), "images": images.half()}, path.with_suffix(".partial"))
        os.replace(path.with_suffix(".partial"), path)
    parts = [load_file(path) for path in sorted(folder.glob("*.safetensors"))[: count // batch]]
    return torch.cat([part["states"] for part in parts]), torch.cat([part["images"] for part in parts]).float()


def endpoint(network: UNet2DModel, x: Tensor, t: Tensor) -> Tensor:
    """Return the image `c_skip x + c_out (sqrt(abar) x - sqrt(1 - abar) v)` at the end of the path through x."""
    skip, out = (part[:, None, None, None].to(x) for part in SCHEDULER.get_scalings_for_boundary_condition_discrete(t))
    signal = SCHEDULER.alphas_cumprod.to(x.device)[t][:, None, None, None]
    with torch.autocast(x.device.type, torch.bfloat16):
        v = network(x, t).sample
    return skip * x + out * (signal.sqrt() * x - (1 - signal).sqrt() * v.float())


def loss(network: UNet2DModel, generator: torch.Generator, states: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean squared and the pseudo-Huber distance of the student's images to the ends of the paths."""
    count, device = len(images), images.device
    steps = torch.randint(0, STEPS, (count,), generator=generator, device=device)
    used = torch.tensor(USED).to(device)[torch.randint(0, len(USED), (count,), generator=generator, device=device)]
    steps = torch.where(torch.rand(count, generator=generator, device=device) < 0.5, used, steps)
    x = states[torch.arange(count), steps].float()
    size = images[0].numel()
    error = (endpoint(network, x, LEVELS.to(device)[steps]) - images).square().sum((1, 2, 3))
    width = 0.00054 * size**0.5
    return error.mean() / size, ((error + width**2).sqrt() - width).mean() / size**0.5


@click.command()
@training.options(total=100_000)
@click.option("--paths", default=6_000, help=f"paths of the teacher, the first {HELD_OUT} held out")
def train(data: Path | None, paths: int, **options) -> None:  # noqa: ARG001
    """Train the student and write WORK/pipeline, a folder with `unet` and `scheduler`."""
    drawn = [part.to(options["device"]) for part in draw_paths(paths, options["work"], options["device"])]
    train, held_out = (tuple(part[rows] for part in drawn) for rows in (slice(HELD_OUT, None), slice(HELD_OUT)))
    network = build()
    folder = training.fit_to(train, held_out, network, loss, **options)
    network.half().save_pretrained(folder / "unet")
    SCHEDULER.save_pretrained(folder / "scheduler")


if __name__ == "__main__":
    train()
