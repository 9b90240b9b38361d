"""A notebook at every point of a grid of parameters: a folder a point, and one table and figure of all claims."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from antinb.reporting import manifest, notebooks, results

__all__: list[str] = []

SUMMARY = "claims"
STRANGE = re.compile(r"[^\w.+-]")  # in a folder's name
COLUMNS = 3  # of panels
TOLD = ("id", "text", *manifest.ENDS, "rule", "state")


def folder(path: Path) -> str:
    """Return the name of the folder in which the points of a notebook's sweep lie."""
    return f"{path.stem}.sweep"


def points(axes: Mapping[str, Sequence[str]]) -> dict[str, dict[str, str]]:
    """Return the points of a grid by the names of their folders, such as `steps=5,model=a`.

    Raises:
        ValueError: if two points have one name, as values that differ in signs a file cannot be named by.
    """
    found: dict[str, dict[str, str]] = {}
    for values in itertools.product(*axes.values()):
        point = dict(zip(axes, values, strict=True))
        name = ",".join(f"{key}={STRANGE.sub('_', value)}" for key, value in point.items())
        if name in found:
            raise ValueError(f"two points of the sweep are called {name!r}: {found[name]} and {point}")
        found[name] = point
    return found


def is_done(place: Path, path: Path, values: Mapping[str, object]) -> bool:
    """Return whether a folder holds the whole results of this code with these parameters."""
    whole = results.is_marked(place) and (place / manifest.NAME).exists()
    return whole and notebooks.past_run(place / path.name, path, values) is not None


def summarise(place: results.Results, axes: Mapping[str, Sequence[str]]) -> str:
    """Write the claims of all points as `claims/claims.csv` and draw them as `claims/claims.png`; return a line."""
    rows = [
        {**point, "point": name.replace(",", ", "), **{key: claim[key] for key in TOLD}}
        for name, point in points(axes).items()
        for claim in manifest.claims(place.out / name)
    ]
    with place.build(SUMMARY) as made:
        table = pd.DataFrame(rows)
        table.drop(columns="point", errors="ignore").to_csv(made / f"{SUMMARY}.csv", index=False)
        drawn = table.dropna(subset=list(manifest.ENDS)) if rows else table
        if len(drawn):
            _draw(drawn, made / f"{SUMMARY}.png")
    return f"{len(rows)} claims of {len(points(axes))} points -> {place.out / SUMMARY}"


def _draw(table: pd.DataFrame, file: Path) -> None:
    from antinb.reporting import figures

    panels, lines = len({*table["id"]}), len({*table["point"]})
    rows = -(-panels // COLUMNS)
    size = (4.0 * min(panels, COLUMNS) + 1, rows * (0.35 * lines + 1.2))
    figures.facets(table, figures.forest, by="id", label="point", size=size, rows=rows, sharey=True).savefig(
        file, dpi=150
    )
