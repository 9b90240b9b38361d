"""Models from files: the shipped ones, and folders, hub ids, pipelines and callables of your own."""

from antinb.models.rounding import rounded
from antinb.zoo.loading import load, mixture, untrained
from antinb.zoo.pricing import prices, public, rate
from antinb.zoo.shipped import DATA, held_out, models, registry

__all__ = [
    "DATA",
    "held_out",
    "load",
    "mixture",
    "models",
    "prices",
    "public",
    "rate",
    "registry",
    "rounded",
    "untrained",
]
