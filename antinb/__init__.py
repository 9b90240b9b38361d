"""Antithetic noise for diffusion models: paired samples, their correlation, and what it buys.

`load` and `sample` make images from a noise design; `statistics`, `correlation`, `propagation`,
`estimation`, `controls`, `pixelwise`, `figures` and `report` take them from there without torch. `symmetry` asks the
network itself why the images of a pair oppose each other; `planning` spends a budget on both halves. `inverse` makes
generators of reconstructions from a measurement of `operators`, and `metrics` compares them with the truth; `editing`
turns images into others and `diversity` scores how different they are, compared unit by unit with `paired`.
"""

from importlib import import_module, metadata
from typing import Any

__version__ = metadata.version("antinb")

_HOME = {"load": "zoo", "sample": "sampling"}
_MODULES = (
    "controls",
    "correlation",
    "dataset",
    "diversity",
    "draws",
    "editing",
    "entry",
    "estimation",
    "exact",
    "figures",
    "generators",
    "integrator",
    "intervals",
    "inverse",
    "metrics",
    "modes",
    "networks",
    "noise",
    "operators",
    "paired",
    "parity",
    "perception",
    "pixelwise",
    "planning",
    "probing",
    "propagation",
    "report",
    "sampling",
    "statistics",
    "symmetry",
    "zoo",
)

__all__ = [*_HOME, *_MODULES]


def __getattr__(name: str) -> Any:  # noqa: ANN401
    if name in _HOME:
        return getattr(import_module(f"antinb.{_HOME[name]}"), name)
    if name in _MODULES:
        return import_module(f"antinb.{name}")
    raise AttributeError(f"module 'antinb' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
