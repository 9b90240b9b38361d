"""Figures that can be cited and claims that can fail: files, their provenance, one manifest a notebook."""

from __future__ import annotations

import gzip
import hashlib
import html
import io
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.figure import Figure
from scipy import stats
from statsmodels.stats.multitest import multipletests

from antinb import checks, dataset
from antinb.reporting import manifest, results, texts

__all__ = ["Report", "open", "size", "versions"]

ENDS = manifest.ENDS
PROFILES, EXPECTED = ("smoke", "full"), ("holds", "refuted")
LEVEL = 0.95
TRUETYPE, LONG = 42, 500_000  # a kind of font in PDF; characters of a CSV
PACKAGES = ("antinb", "torch", "diffusers", "numpy", "scipy", "xarray", "matplotlib")
FIGURE_ID = re.compile(r"fig-\d\d-\d+")
RULE = re.compile(r"(?:(?P<side>[<>])\s*(?P<margin>[-+]?\d*\.?\d+))|within\s+(?P<width>\d*\.?\d+)")


@checks.typed
def size(given: int | None, profile: str, *, smoke: int, full: int) -> int:
    """Return a size of a notebook's work: the given one, or the profile's if it is None.

    Raises:
        ValueError: if the profile is neither `"smoke"` nor `"full"`, or the given size is below 1.

    Examples:
        >>> size(None, "smoke", smoke=16, full=512), size(100, "smoke", smoke=16, full=512)
        (16, 100)
    """
    checks.choice("profile", profile, PROFILES)
    sizes = {"smoke": smoke, "full": full, "given": smoke if given is None else given}
    sizes = {name: checks.integer(f"the size {name!r}", number, 1) for name, number in sizes.items()}
    return sizes[profile] if given is None else sizes["given"]


@checks.typed
def open(out_dir: str | Path, notebook: str, parameters: Mapping[str, object]) -> Report:
    """Return the report of a notebook, which writes to `<out_dir>/<notebook>/`, or where `antinb run` says.

    A relative `out_dir` is seen from the folder in which the kernel started, that of the notebook in JupyterLab, where
    a copy of a notebook writes to a folder of the copy's name. `parameters` are recorded with every figure. Figures
    and claims that are there already stay until they are made again. Tables then show texts at full length.

    Raises:
        ValueError: if the folder is there and no report made it.

    Examples:
        >>> import tempfile
        >>> book = open(tempfile.mkdtemp(), "01_example", {"profile": "smoke"})
        >>> row = {"estimate": -0.5, "low": -0.6, "high": -0.4}
        >>> book.claim("01.example", "pairs are negatively correlated", row, "<-0.1")
        >>> book.claims().loc["01.example"].tolist()
        ['pairs are negatively correlated', '-0.5', '-0.6 to -0.4', '<-0.1', '✓ holds']
    """
    pd.set_option("display.max_colwidth", None)
    told = os.environ.get(results.PLACE)
    start = Path(ipython.get_ipython().starting_dir) if (ipython := _notebook()) else Path.cwd()
    folder = Path(told) if told else start / Path(out_dir).expanduser() / _own_name(notebook)
    return Report(folder, notebook, dict(parameters))


def _notebook() -> ModuleType | None:
    """Return the module IPython if it runs this code, otherwise None."""
    ipython = sys.modules.get("IPython")
    return ipython if ipython and ipython.get_ipython() else None


def _own_name(notebook: str) -> str:
    """Return the name of the notebook that JupyterLab runs if its code opens a report: a copy has its own."""
    path = Path(os.environ.get("JPY_SESSION_NAME", ""))
    own = path.suffix == ".ipynb" and path.is_file() and "report.open(" in path.read_text(encoding="utf-8")
    return path.stem if own else notebook


class Report:
    """The figures and claims of one notebook; every call brings `manifest.json` up to date."""

    def __init__(self, folder: Path, notebook: str, parameters: dict[str, object]) -> None:
        self.folder, self.notebook, self.parameters = folder, notebook, parameters
        self._made_with = {"versions": versions(), "commit": _commit()}
        there = results.claim_folder(folder)
        self._figures: dict[str, dict] = {figure["id"]: figure for figure in there["figures"]}
        self._claims: dict[str, dict] = {claim["id"]: claim for claim in there["claims"]}
        for claim in self._claims.values():
            claim |= {key: math.nan for key in ENDS if claim[key] is None}
        self._write()

    def save_figure(self, fig: Figure, id: str, caption: str, data: pd.DataFrame | xr.DataArray) -> None:  # noqa: A002
        """Write the figure as PNG, SVG and PDF, the numbers drawn as CSV (gzipped if long), and what made it as JSON.

        Caption, parameters, sha256 of the numbers, versions and commit are in the metadata of all. In a notebook the
        figure is shown, with id and caption under it.

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
            "parameters": _plain(self.parameters),
            "data_sha256": hashlib.sha256(numbers.encode()).hexdigest(),
            **self._made_with,
        }
        text = json.dumps(about, sort_keys=True)
        metadata = {
            "png": {"Title": id, "Description": text},
            "svg": {"Title": id, "Description": text, "Date": None},
            "pdf": {"Title": f"{id}. {caption}", "Subject": text, "CreationDate": None},
        }
        with plt.rc_context({"svg.hashsalt": id, "svg.fonttype": "none", "pdf.fonttype": TRUETYPE}):
            for kind, entries in metadata.items():
                file = io.BytesIO()
                fig.savefig(file, format=kind, metadata=entries, dpi=200, bbox_inches="tight")
                manifest.write(self.folder / f"{id}.{kind}", file.getvalue())
        table = f"{id}.csv.gz" if len(numbers) > LONG else f"{id}.csv"
        content = numbers.encode()
        manifest.write(self.folder / table, gzip.compress(content, mtime=0) if len(numbers) > LONG else content)
        manifest.write(self.folder / f"{id}.json", json.dumps(about, indent=1, sort_keys=True) + "\n")
        files = [*(f"{id}.{kind}" for kind in metadata), table, f"{id}.json"]
        self._figures[id] = {"id": id, "caption": caption, "files": files}
        self._write()
        if ipython := _notebook():
            under = {"text/plain": f"{id}. {caption}", "text/html": f"<b>{id}.</b> {html.escape(caption)}"}
            ipython.display.display(fig)
            ipython.display.display(under, raw=True)
            plt.close(fig)

    def claim(
        self,
        id: str,  # noqa: A002
        text: str,
        row: Mapping[str, Any] | pd.Series | pd.DataFrame,
        rule: str | None = None,
        *,
        expected: str = "holds",
        reason: str = "",
    ) -> None:
        """Record a claim: a result with its 95% interval and the margin fixed for it beforehand.

        A claim made again under the same id, as when a cell is run again, takes the place of the first. A rule that
        was fixed and failed stays: the claim is marked as expected to be refuted, with the reason. `antinb run` exits
        with 1 if a claim with a rule has another state than the expected one.

        Args:
            id: `"NN.subject.quantity"`, of letters, digits, `.`, `_` and `-`, unique among notebooks.
            text: what is claimed, in words.
            row: one row of a table of results, with `estimate, low, high`; NaN where there is no estimate.
            rule: `"<m"`, `">m"`, `"within m"` (between -m and m), or None for a description.
            expected: the state that is known from earlier runs, `"holds"` or `"refuted"`.
            reason: why the rule fails, in one sentence; for a claim that is expected to be refuted only.

        Raises:
            ValueError: if the id or the rule has another form, the row is not one result with a 95% interval, the
                estimate lies outside its interval, or a claim is expected to be refuted without a rule or a reason.
        """
        if not isinstance(id, str) or not re.fullmatch(manifest.CLAIM_ID, id):
            raise ValueError(f"a claim's id is of letters, digits, '.', '_' and '-', such as '01.pn'; got {id!r}")
        if rule is not None and not RULE.fullmatch(rule):
            raise ValueError(f"a rule is '<m', '>m', 'within m' or None; got {rule!r}")
        if expected not in EXPECTED:
            raise ValueError(f"{id}: a claim is expected to be one of {EXPECTED}; got {expected!r}")
        if (expected == "refuted") != bool(reason.strip()) or (expected == "refuted" and rule is None):
            given = f"rule {rule!r}, expected {expected!r}, reason {reason!r}"
            raise ValueError(
                f"{id}: a claim that is expected to be refuted, no other, needs a rule and a reason; {given}"
            )
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
        for name in ENDS:
            if not np.isscalar(found[name]) or isinstance(found[name], (str, bytes, complex)):
                raise ValueError(f"{id}: {name} is one number, NaN if there is none; got {found[name]!r}")
        estimate, low, high = (float(found[name]) for name in ENDS)
        if not any(map(math.isnan, (estimate, low, high))) and not low <= estimate <= high:
            raise ValueError(f"{id}: the estimate must lie in its interval; got {estimate:g} in [{low:g}, {high:g}]")
        numbers = {"estimate": estimate, "low": low, "high": high}
        self._claims[id] = {"id": id, "text": text, **numbers, "rule": rule, "expected": expected, "reason": reason}
        self._write()

    def claims(self) -> pd.DataFrame:
        """Return the claims to be read, one row each, indexed by id: `text, estimate, interval, rule, state`.

        Numbers have the digits that matter; a state that is not the expected one says so, and a column `reason` why
        claims were expected to be refuted, if any are. The numbers themselves are in `manifest.json`.
        """
        rows = []
        for claim in judge(list(self._claims.values())):
            known = {key: claim[key] if math.isfinite(claim[key]) else None for key in ENDS}
            estimate, low, high = texts.told(known)
            shown = {"id": claim["id"], "text": claim["text"], "estimate": estimate, "interval": f"{low} to {high}"}
            rows.append(shown | {"rule": claim["rule"] or "", "state": texts.stated(claim), "reason": claim["reason"]})
        table = pd.DataFrame(rows, columns=["id", "text", "estimate", "interval", "rule", "state", "reason"])
        explained = any(row["reason"] for row in rows)
        return table.set_index("id").drop(columns=[] if explained else ["reason"])

    def _write(self) -> None:
        claims = judge(list(self._claims.values()))
        for claim in claims:
            claim |= {key: None for key in ENDS if not math.isfinite(claim[key])}
        about = {"notebook": self.notebook, "profile": str(self.parameters.get("profile")), "date": manifest.today()}
        about |= {"parameters": _plain(self.parameters), **self._made_with}
        entries = {"made_by": manifest.MAKER, **about, "figures": list(self._figures.values()), "claims": claims}
        manifest.write(self.folder / manifest.NAME, json.dumps(entries, indent=1, allow_nan=False) + "\n")


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
    if not all(map(math.isfinite, (estimate, low, high))):
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


def _plain(value: object) -> object:
    """Return a value as JSON can hold it: null for numbers that are not finite, a text for what it does not know."""
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)


def versions() -> dict[str, str]:
    """Return the versions of the packages that make the numbers."""
    return dataset.versions(*PACKAGES)


def _commit() -> str | None:
    """Return the commit of antinb, None where it was installed from a package."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        subprocess.run([*git, "ls-files", "--error-unmatch", Path(__file__).name], capture_output=True, check=True)
        return subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
