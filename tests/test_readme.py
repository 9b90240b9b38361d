"""The README's programs run as they stand, and its table names every notebook and every shipped model."""

import os
import re
import subprocess
import sys
from pathlib import Path

import matplotlib as mpl
import pytest

from antinb import zoo

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()


@pytest.mark.slow
def test_the_programs_of_the_readme_run_one_after_the_other(tmp_path, monkeypatch):
    mpl.use("Agg")
    programs = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    assert len(programs) == 4
    (tmp_path / "data").symlink_to(ROOT / "data")
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(programs)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "MPLBACKEND": "Agg", "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    assert "PN-RR" in done.stdout
    assert (tmp_path / "pairs.png").stat().st_size > 1000


def test_every_notebook_and_every_shipped_model_is_named():
    missing = [path.name for path in sorted((ROOT / "notebooks").glob("*.ipynb")) if path.name not in TEXT]
    assert not missing
    assert [name for name in zoo.models().index if f"`{name}`" not in TEXT] == []


def test_the_readme_is_short_and_its_links_lead_somewhere():
    assert len(TEXT.split()) < 1200
    links = [link for link in re.findall(r"\]\(([^)]+)\)", TEXT) if "://" not in link]
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
