"""Chunks of one shard, so that few units are many files."""

import multiprocessing
import os
import sys

import pytest

from antinb.dataset import store


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(store, "CHUNK", 1)


@pytest.fixture(scope="session")
def processes():
    """Children that start at once, the modules being there."""
    context = multiprocessing.get_context("forkserver")
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)  # the server of Python 3.11 has no other way to find modules
    context.set_forkserver_preload(["antinb.sampling", "antinb.zoo", "runs"])
    return context
