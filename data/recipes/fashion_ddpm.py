"""Train `fashion-ddpm`: an unconditional noise-prediction UNet on Fashion-MNIST.

Run `python data/recipes/fashion_ddpm.py --data fashion_mnist.npz --work build/fashion-ddpm`.

Linear betas, T = 1000, min-SNR-5 weighted noise loss (arXiv 2303.09556), bfloat16 products, AdamW
with a trapezoid learning rate, EMA. Stopped and started again, it goes on from its last checkpoint
with the very batches it would have seen; a later, different `--images` moves only the decay at the
end. `--start FOLDER` trains a finished pipeline further, with a fresh optimizer.
"""

from __future__ import annotations

import csv
import json
import os
import time
from pathlib import Path

import click
import images
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from diffusers.training_utils import EMAModel, compute_snr
from safetensors.torch import load_file, save_file

BATCH, RATE, WARMUP, DECAY, EMA, SEED = 32, 1e-3, 500, 0.35, 0.9995, 0


def build() -> UNet2DModel:
    """Return the untrained network."""
    torch.manual_seed(SEED)
    return UNet2DModel(
        sample_size=28,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(16, 48, 96),
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        attention_head_dim=16,
        norm_num_groups=8,
    )


def noise_loss(
    network, scheduler, clean: torch.Tensor, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the plain and the min-SNR-5 weighted mean squared error of the predicted noise."""
    steps = torch.randint(0, len(scheduler), (len(clean),), generator=generator)
    noise = torch.randn(clean.shape, generator=generator)
    steps, noise = steps.to(clean.device), noise.to(clean.device)
    with torch.autocast(clean.device.type, torch.bfloat16):
        predicted = network(scheduler.add_noise(clean, noise, steps), steps).sample
    error = (predicted.float() - noise).square().mean((1, 2, 3))
    snr = compute_snr(scheduler, steps)
    return error.mean(), (error * snr.clamp(max=5) / snr).mean()


def save(path: Path, network, optimizer, ema: EMAModel, step: int) -> None:
    """Write network, optimizer moments and EMA to one safetensors file, in place of the last."""
    names = [name for name, _ in network.named_parameters()]
    tensors = {f"network.{name}": value for name, value in network.state_dict().items()}
    for index, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"{key}.{names[index]}": value for key, value in moments.items()}
    tensors |= {f"ema.{name}": value for name, value in zip(names, ema.shadow_params, strict=True)}
    partial = path.with_suffix(".partial")
    save_file({key: value.contiguous() for key, value in tensors.items()}, partial, {"step": str(step)})
    os.replace(partial, path)


def resume(path: Path, network, optimizer, ema: EMAModel) -> int:
    """Restore what `save` wrote and return the number of steps done."""
    tensors = load_file(path)
    names = [name for name, _ in network.named_parameters()]
    network.load_state_dict({name: tensors[f"network.{name}"] for name in network.state_dict()})
    state = optimizer.state_dict()
    keys = ("step", "exp_avg", "exp_avg_sq")
    state["state"] = {index: {key: tensors[f"{key}.{name}"] for key in keys} for index, name in enumerate(names)}
    optimizer.load_state_dict(state)
    for name, value in zip(names, ema.shadow_params, strict=True):
        value.data.copy_(tensors[f"ema.{name}"])
    step = int(tensors["step." + names[0]])
    ema.optimization_step = step
    return step


def start_from(folder: Path, network, ema: EMAModel) -> int:
    """Load the weights of a finished pipeline and return the number of steps they were trained for."""
    network.load_state_dict(UNet2DModel.from_pretrained(folder / "unet").state_dict())
    for value, shadow in zip(network.parameters(), ema.shadow_params, strict=True):
        shadow.data.copy_(value.data)
    ema.optimization_step = json.loads((folder / "training.json").read_text())["images"] // BATCH
    return ema.optimization_step


@click.command()
@click.option("--data", type=click.Path(path_type=Path), default=None, help="fashion_mnist.npz; else fetched")
@click.option("--work", type=click.Path(path_type=Path), required=True, help="folder of checkpoint and result")
@click.option("--images", "total", default=272_000, help="training images in all, with repeats")
@click.option("--start", type=click.Path(exists=True, path_type=Path), default=None, help="pipeline to train further")
@click.option("--device", default="cpu")
def train(data: Path | None, work: Path, total: int, start: Path | None, device: str) -> None:
    """Train the network and write a diffusers pipeline folder to WORK/pipeline."""
    work.mkdir(parents=True, exist_ok=True)
    clean = torch.from_numpy(images.scaled(images.load("fashion_mnist", data)[0])).to(device)
    held_out = torch.from_numpy(images.scaled(images.load("fashion_mnist", data, "test")[0][:1000])).to(device)
    network, scheduler = build().to(device), DDPMScheduler(1000)
    optimizer = torch.optim.AdamW(network.parameters(), RATE, weight_decay=1e-4)
    ema = EMAModel(network.parameters(), decay=EMA, use_ema_warmup=True, power=0.75)
    checkpoint, curve = work / "checkpoint.safetensors", work / "curve.csv"
    origin = start_from(start, network, ema) if start else 0
    first = resume(checkpoint, network, optimizer, ema) if checkpoint.exists() else origin
    steps, losses, started = total // BATCH, [], time.monotonic()

    def validate() -> float:
        ema.store(network.parameters())
        ema.copy_to(network.parameters())
        with torch.no_grad():
            loss = noise_loss(network, scheduler, held_out, torch.Generator().manual_seed(-1))[0].item()
        ema.restore(network.parameters())
        return loss

    for step in range(first, steps):
        generator = torch.Generator().manual_seed(step)
        batch = clean[torch.randint(0, len(clean), (BATCH,), generator=generator)]
        plain, weighted = noise_loss(network, scheduler, batch, generator)
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1, (step + 1 - origin) / WARMUP, (steps - step) / (DECAY * (steps - origin)))
        optimizer.zero_grad()
        weighted.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        ema.step(network.parameters())
        losses.append(plain.item())
        if (step + 1) % 500 == 0 or step + 1 == steps:
            row = [step + 1, (step + 1) * BATCH, sum(losses) / len(losses), validate()]
            with curve.open("a", newline="") as file:
                csv.writer(file).writerow(row)
            speed = (step + 1 - first) * BATCH / (time.monotonic() - started)
            click.echo(f"step {row[0]}/{steps} train {row[2]:.4f} held out {row[3]:.4f}, {speed:.0f} images/s")
            losses.clear()
            save(checkpoint, network, optimizer, ema, step + 1)

    ema.copy_to(network.parameters())
    DDPMPipeline(network.half(), scheduler).save_pretrained(work / "pipeline")
    (work / "pipeline" / "training.json").write_text(json.dumps({"images": steps * BATCH, "batch": BATCH, "ema": EMA}))


if __name__ == "__main__":
    train()
