"""Runs that several tests share."""

import gc
import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the suite runs in two processes

import pytest
from helpers import LINEAR, SHAPE, random_mixture

import antinb
from antinb import noise
from antinb.models import diffusion

collect_ignore = ["benchmarks", "browser.py"]


def pytest_collection_finish():
    """Leave what was imported out of the garbage collections that statsmodels asks for in every adjustment."""
    gc.freeze()


@pytest.fixture(scope="session")
def mixture_generator():
    return diffusion.from_mixture(random_mixture(), SHAPE, LINEAR).with_(steps=10)


@pytest.fixture(scope="session")
def pairs(mixture_generator):
    return antinb.sample(mixture_generator, noise.antithetic(200), seed=0, progress=False)
