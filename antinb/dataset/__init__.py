"""What a run is, and how it is stored."""

from antinb.dataset.run import (
    DIMS,
    RANGE,
    build,
    check,
    check_same_generator,
    config,
    cost,
    defined,
    design,
    evaluations,
    limits,
    scaled,
    versions,
)
from antinb.dataset.store import Memory, Store, open  # noqa: A004

__all__ = ["build", "config", "open"]  # the other names are for the rooms around it
