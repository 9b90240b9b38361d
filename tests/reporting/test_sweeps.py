"""A sweep has a folder a point, goes on where it was stopped, and sums up the claims of all points."""

import json
import os
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner
from helpers import BODY, ROW, write

from antinb.cli import main
from antinb.reporting import sweeps

GRID = ("--sweep", "scale=1,2", "--sweep", "pairs=2,4")
VARYING = BODY.replace(ROW, "estimate=-scale, low=-scale - 1 / (pairs or 2), high=-scale + 1 / (pairs or 2)")


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments):
    return CliRunner().invoke(main, ["run", "tiny.ipynb", *arguments])


def test_points_are_a_grid_named_by_their_values():
    found = sweeps.points({"steps": ["5", "10"], "model": ["a/b", "c"]})
    assert list(found) == ["steps=5,model=a_b", "steps=5,model=c", "steps=10,model=a_b", "steps=10,model=c"]
    assert found["steps=10,model=a_b"] == {"steps": "10", "model": "a/b"}
    with pytest.raises(ValueError, match="two points of the sweep are called 'model=a_b'"):
        sweeps.points({"model": ["a/b", "a b"]})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--sweep", "scale"), "written --sweep steps=5,10,20; got 'scale'"),
        (("--sweep", "scale=1,,2"), "got 'scale=1,,2'"),
        (("--sweep", "pairs=2,many"), "'pairs' is Optional[int]"),
        (("--sweep", "size=2,3"), "no parameter 'size'"),
        (("--sweep", "out_dir=a,b"), "--out"),
        (("--sweep", "pairs=2", "--in-place"), "--in-place commits the default parameters"),
        (("tiny.ipynb", "--sweep", "pairs=2"), "a sweep is one of one notebook; got 2"),
    ],
)
def test_a_sweep_that_cannot_be_is_refused_before_it_starts(arguments, message):
    write(VARYING)
    done = run(*arguments)
    assert done.exit_code == 2
    assert message in done.output
    assert not Path("out").exists()


@pytest.mark.slow
def test_a_stopped_sweep_goes_on_and_tells_all_claims():
    write(VARYING + "if scale == 2 and pairs == 2 and not os.path.exists('go'): raise KeyError('stop')")
    done = run("-p", "profile", "smoke", *GRID)
    assert done.exit_code == 2
    assert "Not run: tiny.ipynb, scale=2,pairs=4." in done.output
    place = Path("out/tiny.sweep")
    before = {path: path.stat().st_mtime_ns for path in place.glob("scale=1,pairs=[24]/tiny.ipynb")}
    assert len(before) == 2
    assert (place / "scale=2,pairs=2.failed").is_dir()
    Path("go").touch()
    done = run("-p", "profile", "smoke", *GRID)
    assert done.exit_code == 0, done.output
    assert done.output.count("there already") == 2
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert not (place / "scale=2,pairs=2.failed").exists()
    table = pd.read_csv(place / "claims/claims.csv")
    assert table[["scale", "pairs"]].to_numpy().tolist() == [[s, p] for s in (1, 2) for p in (2, 4)]
    assert (table["estimate"] == -table["scale"]).all()
    assert (table["high"] - table["low"] == 2 / table["pairs"]).all()
    assert (place / "claims/claims.png").read_bytes()[:4] == b"\x89PNG"
    manifest = json.loads((place / "scale=1,pairs=2/manifest.json").read_text())
    assert manifest["parameters"] == {"profile": "smoke", "pairs": 2}
    assert 0 < manifest["seconds"] < 300
    assert {"versions", "commit", "date"} <= manifest.keys()


@pytest.mark.slow
def test_a_point_is_made_again_if_its_code_has_changed():
    grid = ("-p", "profile", "smoke", "--sweep", "scale=1")
    write(VARYING)
    assert run(*grid).exit_code == 0
    write(VARYING + "# a remark")
    assert "there already" in run(*grid).output
    write(VARYING.replace("-scale,", "-2 * scale,").replace("low=-scale", "low=-2 * scale"))
    assert "there already" not in run(*grid).output
    assert pd.read_csv("out/tiny.sweep/claims/claims.csv")["estimate"].tolist() == [-2]
    assert sorted(os.listdir("out/tiny.sweep")) == [".antinb.lock", "claims", "scale=1"]
