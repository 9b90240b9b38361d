"""A training that is stopped and started again goes on to the bit."""

import sys
from pathlib import Path

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import EMAModel

RECIPES = Path(__file__).parents[1] / "data" / "recipes"


@pytest.fixture
def recipe(monkeypatch):
    monkeypatch.syspath_prepend(RECIPES)
    import fashion_ddpm

    yield fashion_ddpm
    for name in ("fashion_ddpm", "images"):
        sys.modules.pop(name)


def test_a_resumed_training_equals_one_never_stopped(recipe, tmp_path):
    def fresh():
        network = recipe.build()
        average = EMAModel(network.parameters(), decay=recipe.EMA, use_ema_warmup=True, power=0.75)
        return network, torch.optim.AdamW(network.parameters(), recipe.RATE), average

    def train(network, optimizer, average, steps):
        for step in steps:
            generator = torch.Generator().manual_seed(step)
            clean = torch.randn(2, 1, 28, 28, generator=generator)
            optimizer.zero_grad()
            recipe.noise_loss(network, DDPMScheduler(1000), clean, generator)[1].backward()
            optimizer.step()
            average.step(network.parameters())

    whole, first, second = fresh(), fresh(), fresh()
    train(*whole, range(5))
    train(*first, range(3))
    recipe.save(tmp_path / "checkpoint.safetensors", *first, 3)
    done = recipe.resume(tmp_path / "checkpoint.safetensors", *second)
    train(*second, range(done, 5))
    assert done == 3
    assert all(map(torch.equal, whole[0].parameters(), second[0].parameters()))
    assert all(map(torch.equal, whole[2].shadow_params, second[2].shadow_params))
    assert not any(map(torch.equal, first[2].shadow_params, second[2].shadow_params))
