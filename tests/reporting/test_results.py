"""Whatever happens to a run, no file of a user changes, and results are those of one whole run."""

import contextlib
import json
import os
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import example, given, settings

from antinb import report
from antinb.reporting import execution, manifest, results, runs

NAMES = ("a", "b", "a.failed", "mine", ".antinb-a-0", "manifest.json", "claims.tex", ".antinb.lock", "a.ipynb")
PLACES = st.lists(st.sampled_from(NAMES), min_size=1, max_size=3).map("/".join)
TREES = st.dictionaries(PLACES, st.sampled_from(["", "mine", "{}", "[]"]), max_size=4)
ENDS = {"whole": None, "fails": execution.CellError("a.ipynb, cell [1], raised", ""), "stops": KeyboardInterrupt("x")}
COMMANDS = st.tuples(st.lists(st.sampled_from("ab"), min_size=1, max_size=2), st.sampled_from([*ENDS]))


def plant(folder, tree):
    for place, text in tree.items():
        with contextlib.suppress(OSError):
            (folder / place).parent.mkdir(parents=True, exist_ok=True)
            (folder / place).write_text(text)


def files(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def fill(monkeypatch, end, number):
    """Let a notebook be a claim and a file, and end in the given way."""

    def execute(path, folder, values, *, limit, seconds):
        monkeypatch.setenv(results.PLACE, str(folder))
        book = report.open("out", path.stem, {"profile": "smoke"})
        monkeypatch.delenv(results.PLACE)
        book.claim(f"{path.stem}.x", "x", {"estimate": number, "low": number, "high": number})
        for name in (f"{path.stem}.ipynb", "x", "y", "z"):
            (folder / name).write_text(str(number))
        if ENDS[end]:
            raise ENDS[end]

    monkeypatch.setattr(execution, "execute", execute)


@pytest.mark.slow
@example(around={}, later={"a/mine": "mine"}, commands=[("a", "whole")] * 2)
@example(around={}, later={"a.failed/mine": "mine", "a/a.ipynb/x": ""}, commands=[("a", "fails")] * 2)
@example(around={".antinb-a-0/mine": "", "claims.tex": ""}, later={}, commands=[("a", "whole")])
@settings(max_examples=300, deadline=None)
@given(around=TREES, later=TREES, commands=st.lists(COMMANDS, max_size=6))
def test_no_file_of_a_user_changes(tmp_path_factory, around, later, commands):
    """Files of a user lie anywhere before and between the runs; what no run wrote is afterwards as it was."""
    work = tmp_path_factory.mktemp("work")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(work)
        plant(work, {"a.ipynb": NOTEBOOK, "b.ipynb": NOTEBOOK})
        plant(work / "out", around)
        mine = files(work)
        for number, (names, end) in enumerate(commands):
            fill(monkeypatch, end, number)
            runs.run([Path(f"{name}.ipynb") for name in names], {}, Path("out"), in_place=False, limit=None)
            assert {path: text for path, text in files(work).items() if path in mine} == mine
            before = files(work)
            plant(work / "out", {place: text for place, text in later.items() if work / "out" / place not in before})
            mine |= {path: text for path, text in files(work).items() if path not in before}


def stop_after(monkeypatch, number):
    """Let a number of system calls that move, make or remove something pass, and end the process at the next."""
    left = iter(range(number))

    def patched(call):
        return lambda *args, **kwargs: os._exit(9) if next(left, None) is None else call(*args, **kwargs)

    for name in ("rename", "replace", "unlink", "rmdir", "mkdir"):
        monkeypatch.setattr(os, name, patched(getattr(os, name)))


NOTEBOOK = json.dumps({"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 4})


@pytest.mark.slow
@pytest.mark.parametrize("at_once", [True, False])
def test_results_are_wholly_old_or_wholly_new_at_each_rename(tmp_path, monkeypatch, at_once):
    """A run is stopped before each system call that moves or removes something; the next run ends as if it had not."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runs.time, "monotonic", lambda: 0.0)
    plant(tmp_path, {"a.ipynb": NOTEBOOK})
    if not at_once:
        monkeypatch.setattr(results, "_exchange", lambda first, second: False)

    def command(number, end="whole"):
        fill(monkeypatch, end, number)
        return runs.run([Path("a.ipynb")], {}, Path("out"), in_place=False, limit=None)

    command(0)
    old = {path.name: path.read_text() for path in Path("out/a").iterdir()}
    stopped = 0
    while True:
        child = os.fork()
        if not child:
            stop_after(monkeypatch, stopped)
            command(1)
            os._exit(0)
        ended = os.waitpid(child, 0)[1] == 0
        manifest.read(Path("out/manifest.json"))
        command(1, "fails")
        assert (Path("out/a/x")).read_text() in "01"
        manifest.read(Path("out/a/manifest.json"))
        command(0)
        assert {path.name: path.read_text() for path in Path("out/a").iterdir()} == old
        assert {path.name for path in Path("out").iterdir()} - {".antinb.lock"} == {"a", "manifest.json", "claims.tex"}
        stopped += 1
        if ended:
            break
    assert stopped > 5


@pytest.mark.parametrize("name", ["a.failed", ".antinb-x", "manifest.json", "claims.tex"])
def test_names_of_its_own_are_no_names_of_notebooks(tmp_path, name):
    with pytest.raises(ValueError, match="is one of antinb's own"):
        results.Results(tmp_path, [Path(f"{name}.ipynb")])


def test_results_are_not_put_into_results(tmp_path):
    report.open(tmp_path, "a", {})
    with pytest.raises(ValueError, match="holds the results of a notebook"):
        results.Results(tmp_path / "a" / "deeper", [Path("b.ipynb")])


def test_a_copy_opened_in_jupyterlab_has_a_folder_of_its_own(tmp_path, monkeypatch):
    """A session's name is that of the notebook, or, where a notebook starts others, of one that opens no report."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "copy.ipynb").write_text('book = report.open(out_dir, "01_original", {})')
    (tmp_path / "driver.ipynb").write_text("papermill.execute_notebook('01_original.ipynb', 'out.ipynb')")
    for session, folder in [("copy.ipynb", "copy"), ("driver.ipynb", "01_original"), ("no", "01_original")]:
        monkeypatch.setenv("JPY_SESSION_NAME", str(tmp_path / session))
        assert report.open("out", "01_original", {}).folder == tmp_path / "out" / folder


@example(seconds=[0.1] * 10)
@given(seconds=st.lists(st.integers(0, 10**9).map(lambda millionths: millionths / 1e6), min_size=1, max_size=30))
def test_a_bar_ends_at_its_total(seconds):
    bar = execution._Bar("a.ipynb", len(seconds), seconds)
    for _ in seconds:
        bar.update()
        bar.refresh()  # warns of more than the total
    bar.close()
    assert bar.n == bar.total
