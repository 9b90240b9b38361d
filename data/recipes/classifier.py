"""Train `fashion-classifier`, `mnist-classifier` or `cifar10-classifier`, which measure the models of their data.

Run `python data/recipes/classifier.py fashion_mnist --data fashion_mnist.npz --out data/models/fashion-classifier`.

Three convolution blocks with batch normalisation, a 64-dimensional feature layer, ten classes.
"""

from __future__ import annotations

import json
from pathlib import Path

import click
import images
import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from antinb import classifier

CLASSES = {
    "fashion_mnist": "t-shirt,trouser,pullover,dress,coat,sandal,shirt,sneaker,bag,ankle boot".split(","),
    "mnist": list("0123456789"),
    "cifar10": "airplane,automobile,bird,cat,deer,dog,frog,horse,ship,truck".split(","),
}
EPOCHS = {"fashion_mnist": 6, "mnist": 2, "cifar10": 12}
BATCH, SEED = 128, 0


@torch.no_grad()
def outputs(network: nn.Module, pixels: np.ndarray, batch: int = 500) -> np.ndarray:
    """Return the network's output on images `(N, C, H, W)` in [-1, 1], batch after batch."""
    parts = np.array_split(pixels, -(-len(pixels) // batch))
    return torch.cat([network(torch.from_numpy(part)) for part in parts]).numpy()


@click.command()
@click.argument("name", type=click.Choice(list(CLASSES)))
@click.option("--data", type=click.Path(path_type=Path), default=None, help="npz of images; else fetched")
@click.option("--out", type=click.Path(path_type=Path), required=True)
def train(name: str, data: Path | None, out: Path) -> None:
    """Train the classifier and write its folder."""
    pixels, labels = images.load(name, data)
    pixels, labels = torch.from_numpy(images.scaled(pixels)), torch.from_numpy(labels)
    test_pixels, test_labels = images.load(name, data, "test")
    torch.manual_seed(SEED)
    network = classifier.network(*pixels.shape[1:3], len(CLASSES[name]))
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=1e-2)
    steps = EPOCHS[name] * (len(pixels) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    order = torch.cat([torch.randperm(len(pixels)) for _ in range(EPOCHS[name])])
    for step in range(steps):
        batch = order[step * BATCH : (step + 1) * BATCH]
        loss = nn.functional.cross_entropy(network(pixels[batch]), labels[batch], label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if (step + 1) % 200 == 0:
            click.echo(f"step {step + 1}/{steps} loss {loss.item():.3f}")
    out.mkdir(parents=True, exist_ok=True)
    weights = network.state_dict()
    weights = {name: value.half() if value.is_floating_point() else value for name, value in weights.items()}
    save_file(weights, out / "model.safetensors")
    network.load_state_dict(weights)  # as it is stored
    correct = outputs(network.eval(), images.scaled(test_pixels)).argmax(1) == test_labels
    card = {"classes": CLASSES[name], "test_accuracy": float(correct.mean()), "test_images": len(correct)}
    (out / "quality.json").write_text(json.dumps(card, indent=1) + "\n")
    click.echo(f"test accuracy {card['test_accuracy']:.4f}")


if __name__ == "__main__":
    train()
