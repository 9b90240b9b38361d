"""What a run is, and how it is stored."""

from antinb.dataset.agreement import check_same_generator, check_same_noise, generator_of, same_units
from antinb.dataset.memory import Memory
from antinb.dataset.reader import damage, open, stored_batch, stored_units  # noqa: A004
from antinb.dataset.run import (
    BLOCK,
    DIMS,
    RANGE,
    blocks,
    build,
    calls,
    check,
    config,
    cost,
    defined,
    design,
    evaluations,
    images,
    limits,
    measured,
    pilots,
    range_of,
    scaled,
    versions,
)
from antinb.dataset.store import Store

__all__ = ["build", "config", "open"]  # the other names are for the rooms around it
