"""Runs that several tests share."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
from helpers import LINEAR, SHAPE, random_mixture

import antinb
from antinb import noise
from antinb.models import diffusion

collect_ignore = ["benchmarks"]


@pytest.fixture(scope="session")
def mixture_generator():
    return diffusion.from_mixture(random_mixture(), SHAPE, LINEAR).with_(steps=10)


@pytest.fixture(scope="session")
def pairs(mixture_generator):
    return antinb.sample(mixture_generator, noise.antithetic(200), seed=0, progress=False)
