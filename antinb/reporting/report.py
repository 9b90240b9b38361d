"""Figures that can be cited and claims that can fail: files, their provenance, one manifest a notebook."""

from __future__ import annotations

import hashlib
import json
import math
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import xarray as xr
from matplotlib.figure import Figure
from scipy import stats
from statsmodels.stats.multitest import multipletests

from antinb import dataset

__all__ = ["Report", "open", "size", "versions"]

PROFILES = ("smoke", "full")
LEVEL = 0.95
ENDS = ("estimate", "low", "high")
PACKAGES = ("antinb", "torch", "diffusers", "numpy", "scipy", "xarray", "matplotlib")
FIGURE_ID = re.compile(r"fig-\d\d-\d+")
RULE = re.compile(r"(?:(?P<side>[<>])\s*(?P<margin>[-+]?\d*\.?\d+))|within\s+(?P<width>\d*\.?\d+)")


def size(given: int | None, profile: str, *, smoke: int, full: int) -> int:
    """Return a size of a notebook's work: the given one, or the profile's if it is None.

    Raises:
        ValueError: if the profile is neither `"smoke"` nor `"full"`, or the given size is below 1.

    Examples:
        >>> size(None, "smoke", smoke=16, full=512), size(100, "smoke", smoke=16, full=512)
        (16, 100)
    """
    if profile not in PROFILES:
        raise ValueError(f"profile must be one of {PROFILES}; got {profile!r}")
    if given is not None and given < 1:
        raise ValueError(f"a size must be at least 1; got {given}")
    return {"smoke": smoke, "full": full}[profile] if given is None else given


def open(out_dir: str | Path, notebook: str, parameters: Mapping[str, object]) -> Report:
    """Return the report of a notebook, which writes to `<out_dir>/<notebook>/`.

    `parameters` are recorded with every figure. Tables then show texts, such as those of claims, at full length.

    Examples:
        >>> import tempfile
        >>> book = open(tempfile.mkdtemp(), "01_example", {"profile": "smoke"})
        >>> row = {"estimate": -0.5, "low": -0.6, "high": -0.4}
        >>> book.claim("01.example", "pairs are negatively correlated", row, "<-0.1")
        >>> book.claims()["state"].tolist()
        ['holds']
    """
    pd.set_option("display.max_colwidth", None)
    return Report(Path(out_dir) / notebook, notebook, dict(parameters))


class Report:
    """The figures and claims of one notebook; every call brings `manifest.json` up to date."""

    def __init__(self, folder: Path, notebook: str, parameters: dict[str, object]) -> None:
        self.folder, self.notebook, self.parameters = folder, notebook, parameters
        self._figures: dict[str, dict] = {}
        self._claims: dict[str, dict] = {}
        folder.mkdir(parents=True, exist_ok=True)
        self._write()

    def save_figure(self, fig: Figure, id: str, caption: str, data: pd.DataFrame | xr.DataArray) -> None:  # noqa: A002
        """Write the figure as PNG, SVG and PDF, the numbers drawn as CSV, and what made it as JSON.

        Caption, parameters, sha256 of the numbers, versions and commit are in the metadata of all.

        Args:
            fig: the figure.
            id: `"fig-NN-K"`, unique in the notebook.
            caption: one or two sentences that stand alone.
            data: the numbers drawn.

        Raises:
            ValueError: if the id has another form or the caption is empty.
        """
        if not FIGURE_ID.fullmatch(id) or not caption.strip():
            raise ValueError(f"a figure needs an id such as 'fig-01-2' and a caption; got {id!r}, {caption!r}")
        if isinstance(data, xr.DataArray):
            data = data.rename(data.name or "value").to_dataframe().reset_index()
        numbers = data.to_csv(index=False, float_format="%.7g")
        about = {
            "id": id,
            "caption": caption,
            "notebook": self.notebook,
            "parameters": self.parameters,
            "data_sha256": hashlib.sha256(numbers.encode()).hexdigest(),
            "versions": versions(),
            "commit": _commit(),
        }
        text = json.dumps(about, sort_keys=True)
        metadata = {
            "png": {"Title": id, "Description": text},
            "svg": {"Title": id, "Description": text, "Date": None},
            "pdf": {"Title": id, "Subject": text, "CreationDate": None},
        }
        with plt.rc_context({"svg.hashsalt": id, "svg.fonttype": "none"}):
            for kind, entries in metadata.items():
                fig.savefig(self.folder / f"{id}.{kind}", metadata=entries, dpi=200, bbox_inches="tight")
        (self.folder / f"{id}.csv").write_text(numbers)
        (self.folder / f"{id}.json").write_text(json.dumps(about, indent=1, sort_keys=True) + "\n")
        files = [f"{id}.{kind}" for kind in (*metadata, "csv", "json")]
        self._figures[id] = {"id": id, "caption": caption, "files": files}
        self._write()

    def claim(
        self,
        id: str,  # noqa: A002
        text: str,
        row: Mapping[str, Any] | pd.Series | pd.DataFrame,
        rule: str | None = None,
    ) -> None:
        """Record a claim: a result with its 95% interval and the margin fixed for it beforehand.

        A claim made again under the same id, as when a cell is run again, takes the place of the first.

        Args:
            id: `"NN.subject.quantity"`, unique in the notebook.
            text: what is claimed, in words.
            row: one row of a table of results, with `estimate, low, high`; NaN where there is no estimate.
            rule: `"<m"`, `">m"`, `"within m"` (between -m and m), or None for a description.

        Raises:
            ValueError: if the rule has another form, the row is not one result with a 95% interval, or the
                estimate lies outside its interval.
        """
        if rule is not None and not RULE.fullmatch(rule):
            raise ValueError(f"a rule is '<m', '>m', 'within m' or None; got {rule!r}")
        if isinstance(row, pd.DataFrame):
            if len(row) != 1:
                raise ValueError(f"{id}: a claim is one row of results; got {len(row)}")
            row = row.iloc[0]
        found: dict[str, Any] = dict(row)
        missing = [name for name in ENDS if name not in found]
        if missing:
            raise ValueError(f"{id}: a claim takes a row with {', '.join(ENDS)}; it lacks {', '.join(missing)}")
        if found.get("level", LEVEL) != LEVEL:
            raise ValueError(f"{id}: claims are judged by {100 * LEVEL:g}% intervals; got level {found['level']}")
        estimate, low, high = (float(found[name]) for name in ENDS)
        if not any(map(math.isnan, (estimate, low, high))) and not low <= estimate <= high:
            raise ValueError(f"{id}: the estimate must lie in its interval; got {estimate:g} in [{low:g}, {high:g}]")
        self._claims[id] = {"id": id, "text": text, "estimate": estimate, "low": low, "high": high, "rule": rule}
        self._write()

    def claims(self) -> pd.DataFrame:
        """Return the claims with their states, one row each, indexed by id."""
        return pd.DataFrame(judge(list(self._claims.values()))).set_index("id")

    def _write(self) -> None:
        claims = judge(list(self._claims.values()))
        for claim in claims:
            claim |= {key: None for key in ENDS if not math.isfinite(claim[key])}
        manifest = {"figures": list(self._figures.values()), "claims": claims}
        (self.folder / "manifest.json").write_text(json.dumps(manifest, indent=1, allow_nan=False) + "\n")


def judge(claims: list[dict]) -> list[dict]:
    """Return the claims with their `state`: holds, refuted, undecided or descriptive.

    A claim without a rule is descriptive. For the others the margin m is tested one-sidedly at 2.5%
    by `(m - estimate) / se`, the standard error read from the side of the 95% interval that faces
    the margin; "within" takes the worse of two such tests (TOST). The p-values of all claims with a
    rule are adjusted together (Holm), once for "holds" and once for "refuted". With one claim,
    "holds" means that the whole interval lies beyond the margin. The standard error is the half
    width over 1.96: for a t interval of few units slightly too large, its p-value slightly too small
    where several claims are adjusted.
    """
    ruled = [claim for claim in claims if claim["rule"] is not None]
    holds, refuted = (
        multipletests([_p_value(claim, beyond) for claim in ruled], (1 - LEVEL) / 2, method="holm")[0] if ruled else []
        for beyond in (True, False)
    )
    verdicts = {
        claim["id"]: "holds" if yes else "refuted" if no else "undecided"
        for claim, yes, no in zip(ruled, holds, refuted, strict=True)
    }
    return [{**claim, "state": verdicts.get(claim["id"], "descriptive")} for claim in claims]


def _p_value(claim: dict, beyond: bool) -> float:
    """Return the p-value against "not beyond the margin", or against "beyond" if `beyond` is false."""
    [(side, margin, width)] = RULE.findall(claim["rule"])
    estimate, low, high = (claim[key] for key in ENDS)
    if any(map(math.isnan, (estimate, low, high))):
        return 1.0

    def below(limit: float) -> float:
        return _one_sided(limit - estimate, high - estimate)

    def above(limit: float) -> float:
        return _one_sided(estimate - limit, estimate - low)

    if width:
        limit = float(width)
        return max(below(limit), above(-limit)) if beyond else min(above(limit), below(-limit))
    return below(float(margin)) if (side == "<") == beyond else above(float(margin))


def _one_sided(distance: float, half_width: float) -> float:
    if half_width == 0:
        return 0.0 if distance > 0 else 1.0
    return float(stats.norm.sf(distance / half_width * stats.norm.ppf((1 + LEVEL) / 2)))


def merge(folders: list[Path], out_dir: Path) -> list[dict]:
    r"""Write `manifest.json` and `claims.tex` of several notebooks to `out_dir`; return their claims.

    `\antinb{ID}` in LaTeX gives a claim's estimate, `\antinb[low]{ID}` and `\antinb[high]{ID}` its interval.
    """
    union: dict[str, list] = {"figures": [], "claims": []}
    for folder in folders:
        if not (folder / "manifest.json").exists():
            continue
        manifest = json.loads((folder / "manifest.json").read_text())
        for figure in manifest["figures"]:
            union["figures"].append({**figure, "files": [f"{folder.name}/{file}" for file in figure["files"]]})
        union["claims"] += manifest["claims"]
    (out_dir / "manifest.json").write_text(json.dumps(union, indent=1) + "\n")
    lines = [r"\newcommand{\antinb}[2][estimate]{\csname antinb@#2@#1\endcsname}"]
    for claim in union["claims"]:
        for key in ENDS:
            value = "--" if claim[key] is None else f"{claim[key]:.4g}"
            lines.append(rf"\expandafter\def\csname antinb@{claim['id']}@{key}\endcsname{{{value}}}")
    (out_dir / "claims.tex").write_text("\n".join(lines) + "\n")
    return union["claims"]


def versions() -> dict[str, str]:
    """Return the versions of the packages that make the numbers."""
    return dataset.versions(*PACKAGES)


def _commit() -> str | None:
    """Return the commit of the repository in which the notebook runs, None outside of one."""
    try:
        found = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
        return found.stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
