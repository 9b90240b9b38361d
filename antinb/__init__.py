"""Antithetic noise for diffusion models: paired samples, their correlation, and what it buys.

`load` gets a model and `sample` makes images from a noise design; everything after that is analysis of the stored
run. The nouns below are modules, in the order of the flow: noise, models, tasks, bridges, analysis, reporting.
"""

from importlib import import_module, metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from antinb import dataset, noise, planning, probing, zoo
    from antinb.analysis import (
        comparison,
        controls,
        correlation,
        diversity,
        estimation,
        intervals,
        statistics,
        symmetry,
    )
    from antinb.dataset import open  # noqa: A004
    from antinb.exploring import explore
    from antinb.models import draws, exact, surrogates
    from antinb.reporting import figures, report
    from antinb.sampling import sample
    from antinb.tasks import classifier, editing, inverse, operators
    from antinb.zoo import load

__version__ = metadata.version("antinb")

__all__ = [
    "load",
    "sample",
    "open",
    "explore",
    "noise",
    "draws",
    "exact",
    "surrogates",
    "zoo",
    "operators",
    "inverse",
    "editing",
    "classifier",
    "probing",
    "planning",
    "dataset",
    "statistics",
    "correlation",
    "symmetry",
    "intervals",
    "estimation",
    "controls",
    "comparison",
    "diversity",
    "figures",
    "report",
]

_FUNCTIONS = {
    "load": "zoo",
    "sample": "sampling",
    "open": "dataset",
    "explore": "exploring",
}
_ROOMS = {
    "models": ("draws", "exact", "surrogates"),
    "tasks": ("operators", "inverse", "editing", "classifier"),
    "analysis": (
        "statistics",
        "correlation",
        "symmetry",
        "intervals",
        "estimation",
        "controls",
        "comparison",
        "diversity",
    ),
    "reporting": ("figures", "report"),
}
_HOME = {name: f"antinb.{room}.{name}" for room, names in _ROOMS.items() for name in names}


def __getattr__(name: str) -> Any:  # noqa: ANN401
    if name in _FUNCTIONS:
        return getattr(import_module(f"antinb.{_FUNCTIONS[name]}"), name)
    if name in __all__:
        return import_module(_HOME.get(name, f"antinb.{name}"))
    raise AttributeError(f"module 'antinb' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
