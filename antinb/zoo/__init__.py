"""Files in, models out: what comes with the package, and the folders, hub ids and objects of others."""

from antinb.zoo.loading import load, mixture, untrained
from antinb.zoo.shipped import DATA, held_out, models, registry, truths

__all__ = ["DATA", "held_out", "load", "mixture", "models", "registry", "truths", "untrained"]
