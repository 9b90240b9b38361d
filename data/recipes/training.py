"""The training that the recipes share: resumable, with an average of the weights (EMA) and a trapezoid learning rate.

Step `k` takes its batch and all else that is random from a generator seeded with `k`. A training stopped and
started again so goes on from its last checkpoint with the very batches it would have seen, and a later,
different `--images` moves only the decay at the end. On a GPU the network is compiled.
"""

from __future__ import annotations

import csv
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import images
import torch
from diffusers import DDPMScheduler, UNet2DModel
from diffusers.training_utils import EMAModel, compute_snr
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

SCHEDULER = DDPMScheduler(1000)
BATCH, RATE, WARMUP, DECAY, EMA, SEED, EVERY = 32, 1e-3, 500, 0.35, 0.9995, 0, 500

Loss = Callable[[nn.Module, torch.Generator, Tensor, Tensor], tuple[Tensor, Tensor]]

start = click.option(
    "--start", type=click.Path(exists=True, path_type=Path), default=None, help="pipeline to train further"
)


def unet(
    widths: tuple[int, ...],
    *,
    size: int = 28,
    channels: int = 1,
    attention: int = 1,
    seed: int = SEED,
    null: int | None = None,
    **settings: object,
) -> UNet2DModel:
    """Return an untrained UNet of `size` by `size` images, with attention at the coarsest `attention` of its levels.

    With a null class it has the classes 0 to `null`, and its configuration names the last one.
    """
    torch.manual_seed(seed)
    plain = len(widths) - attention
    classes = {} if null is None else {"num_class_embeds": null + 1}
    network = UNet2DModel(
        sample_size=size,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=widths,
        down_block_types=("DownBlock2D",) * plain + ("AttnDownBlock2D",) * attention,
        up_block_types=("AttnUpBlock2D",) * attention + ("UpBlock2D",) * plain,
        attention_head_dim=16,
        norm_num_groups=8,
        **{"layers_per_block": 1} | classes | settings,
    )
    if null is not None:
        network.register_to_config(null_class=null)
    return network


def noise_loss(null: int | None = None, precision: torch.dtype = torch.bfloat16, gamma: float = 5.0) -> Loss:
    """Return the loss of noise prediction: mean squared error to report, weighted by min-SNR-gamma to minimise.

    With a null class one label in ten is replaced by it; without one the labels are left out.
    """

    def loss(network: nn.Module, generator: torch.Generator, clean: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        steps = torch.randint(0, len(SCHEDULER), (len(clean),), generator=generator, device=clean.device)
        noise = torch.randn(clean.shape, generator=generator, device=clean.device)
        condition = {} if null is None else {"class_labels": dropped(labels, null, generator)}
        with torch.autocast(clean.device.type, precision, enabled=precision != torch.float32):
            predicted = network(SCHEDULER.add_noise(clean, noise, steps), steps, **condition).sample
        error = (predicted.float() - noise).square().mean((1, 2, 3))
        snr = compute_snr(SCHEDULER, steps)
        return error.mean(), (error * snr.clamp(max=gamma) / snr).mean()

    return loss


def dropped(labels: Tensor, null: int, generator: torch.Generator) -> Tensor:
    """Return the labels with one in ten replaced by the null class."""
    return labels.masked_fill(torch.rand(len(labels), generator=generator, device=labels.device) < 0.1, null)


def options(total: int) -> Callable:
    """Return a decorator that adds the options of every training; `total` is the default of `--images`."""
    chain = (
        click.option("--data", type=click.Path(path_type=Path), default=None, help="npz of images; else fetched"),
        click.option("--work", type=click.Path(path_type=Path), required=True, help="folder of checkpoint and result"),
        click.option("--images", "total", default=total, help="training images in all, with repeats"),
        click.option("--device", default="cpu"),
    )

    def decorate(command: Callable) -> Callable:
        for option in reversed(chain):
            command = option(command)
        return command

    return decorate


def tensors(name: str, data: Path | None, split: str, rows: slice, device: str) -> tuple[Tensor, Tensor]:
    """Return images of a data set in [-1, 1] and their labels."""
    pixels, labels = (part[rows] for part in images.load(name, data, split))
    return torch.from_numpy(images.scaled(pixels)).to(device), torch.from_numpy(labels).to(device)


class Training:
    """A network with its optimizer and EMA; `done` counts its steps, `origin` those that came with `--start`."""

    def __init__(self, network: nn.Module, device: str, batch: int, seed: int, rate: float = RATE) -> None:
        self.network, self.device, self.batch, self.seed = network.to(device), torch.device(device), batch, seed
        self.highest = rate
        on_gpu = self.device.type == "cuda"
        if on_gpu:
            network.compile()
        self.optimizer = torch.optim.AdamW(network.parameters(), rate, weight_decay=1e-4, fused=on_gpu)
        self.ema = EMAModel(network.parameters(), decay=EMA, use_ema_warmup=True, power=0.75, foreach=True)
        self.origin = self.done = 0
        self.names = [name for name, _ in network.named_parameters()]

    def start_from(self, folder: Path) -> None:
        """Take the weights and the count of steps of a finished pipeline."""
        self.network.load_state_dict(type(self.network).from_pretrained(folder / "unet").state_dict())
        for value, shadow in zip(self.network.parameters(), self.ema.shadow_params, strict=True):
            shadow.data.copy_(value.data)
        self.origin = self.done = json.loads((folder / "training.json").read_text())["images"] // self.batch
        self.ema.optimization_step = self.done

    def save(self, path: Path) -> None:
        """Write network, optimizer moments and EMA to one safetensors file, in place of the last."""
        state = {f"network.{name}": value for name, value in self.network.state_dict().items()}
        for index, moments in self.optimizer.state_dict()["state"].items():
            state |= {f"{key}.{self.names[index]}": value for key, value in moments.items()}
        state |= {f"ema.{name}": value for name, value in zip(self.names, self.ema.shadow_params, strict=True)}
        partial = path.with_suffix(".partial")
        save_file({key: value.contiguous() for key, value in state.items()}, partial, {"step": str(self.done)})
        os.replace(partial, path)

    def resume(self, path: Path) -> None:
        """Restore what `save` wrote."""
        with safe_open(path, "pt") as file:
            saved, step = {key: file.get_tensor(key) for key in file.keys()}, int(file.metadata()["step"])
        self.network.load_state_dict({name: saved[f"network.{name}"] for name in self.network.state_dict()})
        state, keys = self.optimizer.state_dict(), ("step", "exp_avg", "exp_avg_sq")
        state["state"] = {i: {key: saved[f"{key}.{name}"] for key in keys} for i, name in enumerate(self.names)}
        self.optimizer.load_state_dict(state)
        for name, shadow in zip(self.names, self.ema.shadow_params, strict=True):
            shadow.data.copy_(saved[f"ema.{name}"])
        self.done = self.ema.optimization_step = step

    def rate(self, steps: int) -> float:
        """Return the learning rate of the next of `steps` steps: up, level, and down at the end."""
        up, down = self.done + 1 - self.origin, (steps - self.done) / (DECAY * (steps - self.origin))
        return self.highest * min(1, up / WARMUP, down)

    def generator(self, number: int) -> torch.Generator:
        """Return the source of all that is random in step `number`."""
        return torch.Generator(self.device).manual_seed(number + (self.seed << 24))

    def step(self, loss: Loss, data: tuple[Tensor, Tensor], steps: int) -> Tensor:
        """Take the next of `steps` steps and return the loss to report."""
        generator = self.generator(self.done)
        rows = torch.randint(0, len(data[0]), (self.batch,), generator=generator, device=self.device)
        reported, minimised = loss(self.network, generator, *(part[rows] for part in data))
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate(steps)
        self.optimizer.zero_grad()
        minimised.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        self.ema.step(self.network.parameters())
        self.done += 1
        return reported.detach()

    @torch.no_grad()
    @torch.compiler.set_stance("force_eager")
    def validate(self, loss: Loss, held_out: tuple[Tensor, Tensor]) -> float:
        """Return the loss of the EMA weights on held-out images, always with the same noise."""
        self.ema.store(self.network.parameters())
        self.ema.copy_to(self.network.parameters())
        value = loss(self.network, torch.Generator(self.device).manual_seed(-1), *held_out)[0].item()
        self.ema.restore(self.network.parameters())
        return value


def fit(
    network: nn.Module,
    loss: Loss,
    name: str,
    *,
    data: Path | None,
    device: str,
    validation: slice = slice(1000),
    **options: Any,
) -> Path:
    """Train the network on the images of a data set; `validation` picks the test images, the rest is `fit_to`'s."""
    train = tensors(name, data, "train", slice(None), device)
    held_out = tensors(name, data, "test", validation, device)
    return fit_to(train, held_out, network, loss, device=device, **options)


def fit_to(
    train: tuple[Tensor, Tensor],
    held_out: tuple[Tensor, Tensor],
    network: nn.Module,
    loss: Loss,
    *,
    work: Path,
    total: int,
    device: str,
    start: Path | None = None,
    batch: int | None = None,
    seed: int = SEED,
    rate: float = RATE,
) -> Path:
    """Train the network, give it its EMA weights and return the folder WORK/pipeline.

    `loss(network, generator, *rows of the data)` returns the loss to report and the loss to minimise; the rest are
    the options. The folder then holds `training.json`, the recipe adds the weights.
    """
    work.mkdir(parents=True, exist_ok=True)
    batch = batch or BATCH
    training, checkpoint, steps = (
        Training(network, device, batch, seed, rate),
        work / "checkpoint.safetensors",
        total // batch,
    )
    if start:
        training.start_from(start)
    if checkpoint.exists():
        training.resume(checkpoint)
    first, losses, started = training.done, [], time.monotonic()
    while training.done < steps:
        losses.append(training.step(loss, train, steps))
        if training.done % EVERY == 0 or training.done == steps:
            mean = torch.stack(losses).mean().item()
            row = [training.done, training.done * batch, mean, training.validate(loss, held_out)]
            with (work / "curve.csv").open("a", newline="") as file:
                csv.writer(file).writerow(row)
            speed = (training.done - first) * batch / (time.monotonic() - started)
            click.echo(f"step {row[0]}/{steps} train {row[2]:.4f} held out {row[3]:.4f}, {speed:.0f} images/s")
            losses.clear()
            training.save(checkpoint)
    training.ema.copy_to(network.parameters())
    folder = work / "pipeline"
    folder.mkdir(exist_ok=True)
    (folder / "training.json").write_text(json.dumps({"images": training.done * batch, "batch": batch, "ema": EMA}))
    return folder
