"""Two models, or two stored runs, to a verdict: sampled on the same noise until every statistic is decided."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import xarray as xr

from antinb import checks, dataset, noise, sampling
from antinb.analysis import comparison, naming, statistics
from antinb.analysis.statistics import Statistic
from antinb.models.generator import Generator
from antinb.reporting import figures, manifest, page, report
from antinb.tasks import classifier

__all__: list[str] = []

FIRST = 64  # units of the first look; each further one has twice as many
CODES = {"equal": 0, "different": 1, "undecided": 3}
MARGINS = {"brightness": 0.01, "contrast": 0.01}  # where none is given
JUDGES = ("fashion-classifier", "cifar10-classifier", "mnist-classifier")
FEATURES: dict[tuple[int, ...], str] = {(1, 28, 28): JUDGES[0], (3, 32, 32): JUDGES[1]}
SHOWN = {name: name for name in ("statistic", "a", "b", "estimate", "low", "high", "margin", "verdict", "decided_at")}
SHOWN |= {"estimate": "b - a", "decided_at": "units"}
SHARED = {"start": "only the start is shared, not the noise of the steps", "nothing": "no noise is shared"}
EVENT = re.compile(r"(\w+)\s*>\s*(-?[0-9.]+)")
PROBABILITY = re.compile(r"P\((.+)\)")
NAME, RESULTS = "question.json", "comparison"


@dataclass(frozen=True)
class Question:
    """What is asked of two models, as values that JSON can hold.

    Attributes:
        statistics: their names, such as `"contrast"`, `"brightness > 0.35"` and `"P(trouser)"`.
        margins: by the name of a statistic, how large a difference does not matter.
        design: `"antithetic"` or `"iid"`.
        units: the most units that are sampled.
        seed: of the noise.
        batch: images that the network sees at once.
    """

    statistics: tuple[str, ...]
    margins: dict[str, float]
    design: str = "antithetic"
    units: int = 1024
    seed: int = 0
    batch: int = 64

    def looks(self) -> list[int]:
        """Return after how many units the verdicts are asked for: 64, 128, 256, and so on, and the most."""
        checks.integer("units", self.units, 8)
        sizes = [FIRST * 2**k for k in range(32) if FIRST * 2**k < self.units]
        return [*sizes, self.units]


def statistic(text: str) -> Statistic:
    """Return the statistic of a name; ValueError with the closest name if there is none."""
    event, probability = EVENT.fullmatch(text.strip()), PROBABILITY.fullmatch(text.strip())
    if event:
        return statistics.event(statistic(event[1]), above=float(event[2]))
    if probability:
        judges = [classifier.load(name) for name in JUDGES]
        known = {label: judge for judge in reversed(judges) for label in judge.classes}
        return known[checks.choice("a class", probability[1], known)].probability(probability[1])
    return getattr(statistics, checks.choice("a statistic", text.strip(), naming.IMAGES))


def question(
    asked: tuple[str, ...], margins: tuple[str, ...], *, design: str, units: int, seed: int, batch: int
) -> Question:
    """Return a question from the texts of a command, margins written `brightness=0.005`.

    Raises:
        ValueError: for an unknown statistic, or a margin that is no positive number.
    """
    given = {}
    for text in margins:
        name, _, size = text.rpartition("=")
        try:
            width = float(size)
        except ValueError:
            width = np.nan
        if not name or not 0 < width < np.inf:
            raise ValueError(f"a margin is written brightness=0.005, a positive number; got {checks.quoted(text)}")
        [label] = naming.named([statistic(name)])
        given[label] = width
    names = [*dict.fromkeys([*naming.named([statistic(text) for text in asked]), *given])]
    if not names:
        names, given = [*MARGINS], dict(MARGINS)
    return Question(tuple(names), given, design, units, checks.seed(seed), checks.integer("batch", batch, 1))


def is_store(path: str) -> bool:
    """Return whether a path or an address is that of a stored run."""
    return "://" in path or (Path(path) / "zarr.json").is_file()


def sampled(models: tuple[Generator, Generator], asked: Question, out: Path) -> tuple[pd.DataFrame, list[xr.Dataset]]:
    """Return the verdicts on two models and their runs, sampled to `a.zarr` and `b.zarr` look by look.

    A run that was killed goes on where it was. Each look has an equal part of the error, so that it is held over all.

    Raises:
        ValueError: if the folder holds another question, or as `sampling.sample` and `comparison.summary`.
        OSError: if the folder cannot be written.
    """
    sizes, kept = asked.looks(), {}
    _keep(asked, out)
    runs, table = [], pd.DataFrame()
    for size in sizes:
        runs = []
        for name, model in zip("ab", models, strict=True):
            store = out / f"{name}.zarr"
            design = getattr(noise, asked.design)(max(size, dataset.stored_units(store)))
            run = sampling.sample(model, design, seed=asked.seed, store=store, batch=asked.batch)
            runs.append(run.isel(unit=slice(size)))
        table = verdicts(runs, asked, len(sizes))
        for label, verdict in zip(table["statistic"], table["verdict"], strict=True):
            if verdict != "undecided":
                kept.setdefault(label, (verdict, size))
        if len(kept) == len(table):
            break
    return _decided(table, kept), runs


def verdicts(runs: list[xr.Dataset], asked: Question, looks: int = 1) -> pd.DataFrame:
    """Return the rows of `comparison.summary` for a question."""
    measures = [statistic(name) for name in asked.statistics]
    return comparison.summary(runs[0], runs[1], measures, asked.margins, looks=looks)


def opened(paths: tuple[str, str], asked: Question) -> tuple[pd.DataFrame, list[xr.Dataset]]:
    """Return the verdicts on two stored runs, and the runs."""
    runs = [dataset.open(path) for path in paths]
    table, units = verdicts(runs, asked), runs[0].sizes["unit"]
    found = zip(table["statistic"], table["verdict"], strict=True)
    return _decided(table, {label: (verdict, units) for label, verdict in found if verdict != "undecided"}), runs


def _decided(table: pd.DataFrame, kept: dict[str, tuple[str, int]]) -> pd.DataFrame:
    """Return the rows with the verdicts that were reached and after how many units each was."""
    found = [kept.get(label, ("undecided", None)) for label in table["statistic"]]
    return table.assign(
        verdict=[verdict for verdict, _ in found], decided_at=pd.array([units for _, units in found], "Int64")
    )


def distances(runs: list[xr.Dataset], reference: Path | None, features: str | None) -> pd.DataFrame:
    """Return the Fréchet distances of both runs and their difference, on as many axes as the images allow."""
    if reference is None:
        return pd.DataFrame()
    images = dataset.images(runs[0])
    shape, count = images.shape[2:], images[..., 0, 0, 0].size
    name = features or FEATURES.get(shape)
    if name is None:
        raise ValueError(f"no classifier is shipped for images {shape}: name a folder of one, --features FOLDER")
    judge = classifier.load(name)
    width = judge.features(np.zeros((1, 1, *shape), np.float32)).shape[-1]
    axes = None if count >= 8 * width else max(1, count // 8)
    return comparison.frechet(runs[0], reference, judge.features, against=runs[1], axes=axes)


def code(table: pd.DataFrame) -> int:
    """Return the exit code: 1 if any statistic is different, 3 if any other is undecided, 0 if all are equal."""
    found = set(table["verdict"])
    return next(CODES[verdict] for verdict in ("different", "undecided", "equal") if verdict in found)


def told(table: pd.DataFrame, more: pd.DataFrame) -> str:
    """Return verdicts and distances to be read in a terminal, and the warnings."""
    parts = [pd.DataFrame({title: table[name] for name, title in SHOWN.items()})]
    parts += [more[["distance", "model", "estimate", "low", "high", "plain", "features", "kept"]]] if len(more) else []
    lines = [part.to_string(index=False, float_format="%.4g", na_rep="-") for part in parts]
    for row in table.to_dict("records"):
        lines += [f"{row['statistic']}: {row['warning']}"] if row["warning"] else []
        lines += [f"{row['statistic']}: undefined in {row['dropped']} units, left out"] if row["dropped"] else []
        lines += [f"{row['statistic']}: {SHARED[row['shared']]}"] if row["shared"] in SHARED else []
    return "\n".join(lines)


def written(
    out: Path, models: tuple[str, str], asked: Question, table: pd.DataFrame, runs: list[xr.Dataset], more: pd.DataFrame
) -> Path:
    """Write tables as JSON and CSV, the figures and the page `report.html`, and return its path.

    Raises:
        ValueError: if something else lies in their place.
        OSError: if they cannot be written.
    """
    book = report.Report(out / RESULTS, RESULTS, {"profile": RESULTS, "a": models[0], "b": models[1], **asdict(asked)})
    for row in table.to_dict("records"):
        margin = f" (margin {row['margin']:g})" if row["margin"] > 0 else ""
        key = re.sub(r"[^A-Za-z0-9]+", "_", row["statistic"]).strip("_")
        book.claim(f"compare.{key}", f"{row['statistic']} of b less that of a: {row['verdict']}{margin}", row)
    unit = table["margin"].fillna((table["estimate"] / table["in_sd"]).abs()).fillna(1)
    relative = table.assign(**{name: table[name] / unit for name in ("estimate", "low", "high")})
    fig, ax = plt.subplots(figsize=(5, 0.55 * len(table) + 1), layout="constrained")
    figures.forest(relative, label="statistic", at=[-1, 1], ax=ax)
    ax.set_xlabel("b less a, in margins (without one, in SD of an image)")
    book.save_figure(fig, "fig-00-91", "Difference of b from a, with intervals; dashed are the margins.", table)
    plt.close(fig)
    if set(table["shared"]) != {"nothing"} and runs[0]["image"].shape == runs[1]["image"].shape:
        apart = comparison.images(runs[0], runs[1])
        worst = apart.loc[apart["metric"] == "RMSE", "worst"].iloc[0]
        fig, ax = plt.subplots(figsize=(5, 3), layout="constrained")
        grid = comparison.side_by_side(runs[0], runs[1], worst)
        figures.image_grid(grid, rows=["a", "b", "difference"], columns=[str(number) for number in worst], ax=ax)
        caption = "The most different images of one noise, with the numbers of their units, and b less a; grey is 0."
        book.save_figure(fig, "fig-00-92", caption, apart.astype({"worst": str}))
        plt.close(fig)
        _tables(out, "images", apart)
    if len(more):
        _tables(out, "distances", more)
    _tables(out, RESULTS, table)
    return page.write(out)


def _tables(out: Path, name: str, table: pd.DataFrame) -> None:
    manifest.write(out / f"{name}.csv", table.to_csv(index=False, float_format="%.9g"))
    manifest.write(out / f"{name}.json", f"{table.to_json(orient='records', double_precision=12, indent=1)}\n")


def _keep(asked: Question, out: Path) -> None:
    """Record the question in a folder; refuse a folder that holds another one, naming the difference."""
    path, wanted = out / NAME, json.loads(json.dumps(asdict(asked)))
    out.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        manifest.write(path, json.dumps(wanted, indent=1) + "\n")
        return
    try:
        there = dict(json.loads(path.read_bytes()))
    except ValueError:
        raise ValueError(f"{str(path)!r} is no question of antinb compare: move it, or choose --out") from None
    differing = [key for key in sorted({*there, *wanted}) if there.get(key) != wanted.get(key)]
    if differing:
        found = "; ".join(f"{key} is {there.get(key)!r} there, {wanted.get(key)!r} here" for key in differing)
        raise ValueError(f"{str(out)!r} holds a comparison by another question: {found}; choose --out")
