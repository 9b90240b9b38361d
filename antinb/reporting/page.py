"""All results in a folder as one page of HTML that needs nothing but a browser."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path
from typing import Any

import jinja2

from antinb.reporting import manifest, notebooks, results, texts

__all__: list[str] = []

NAME = "report.html"
MADE = b"<!-- antinb report -->"


def write(out: Path) -> Path:
    """Write `report.html` of the results in a folder and return its path.

    Raises:
        ValueError: if there are no results, a manifest cannot be read, or the file was made by something else.
        OSError: if it cannot be written.
    """
    place = out / NAME
    if os.path.lexists(place) and (place.is_symlink() or not place.is_file() or MADE not in place.read_bytes()[:100]):
        raise ValueError(f"{str(place)!r} was not made by antinb report: move it")
    folders = [folder for folder in manifest.folders(out) if folder.suffix != results.FAILED]
    if not folders:
        raise ValueError(f"{str(out)!r} holds no results of antinb run")
    parts = [_part(folder) for folder in folders]
    claims = [claim["state"] for part in parts for claim in part["claims"]]
    states = ", ".join(f"{claims.count(state)} {state}" for state in texts.MARKS if state in claims)
    figures = sum(len(part["figures"]) for part in parts)
    loader = jinja2.PackageLoader("antinb.reporting", ".")
    pages = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    summary = f"Notebooks: {len(parts)}. Figures: {figures}. Claims: {len(claims)}{f' ({states})' if states else ''}."
    about = {"title": "Results", "summary": summary, "parts": parts, "software": texts.software()}
    text = pages.get_template("page.html").render(about)
    manifest.write(place, text)
    return place


def _part(folder: Path) -> dict[str, Any]:
    """Return what the page says of a notebook."""
    made = manifest.read(folder / manifest.NAME)
    seconds = made.get("seconds")
    facts = [f"Profile {made['profile']}", made["date"], seconds and f"{seconds / 60:.1f} minutes"]
    return {
        "name": folder.name,
        "made": ", ".join(map(str, filter(None, facts))),
        "failed": results.is_marked(folder.with_name(f"{folder.name}{results.FAILED}")),
        "about": {
            **(made.get("parameters") or {}),
            **(made.get("versions") or {}),
            "commit of antinb": made.get("commit") or "a release",
        },
        "claims": [
            claim | dict(zip(texts.ENDS, texts.told(claim), strict=True)) | {"stated": texts.stated(claim)}
            for claim in made["claims"]
        ],
        "figures": [_figure(folder, figure, made) for figure in made["figures"]],
    }


def _figure(folder: Path, figure: dict[str, Any], made: dict[str, Any]) -> dict[str, Any]:
    png, about = folder / f"{figure['id']}.png", folder / f"{figure['id']}.json"
    details = json.loads(about.read_bytes()) if about.exists() else {}
    caption = figure.get("caption", figure["id"])
    return {
        **figure,
        "caption": caption,
        "png": notebooks.compressed(base64.b64encode(png.read_bytes()).decode()) if png.exists() else "",
        "entry": texts.entry(figure["id"], caption, f"Figure {figure['id']} of {folder.name}", made | details),
    }
