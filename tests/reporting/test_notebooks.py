"""Parameters are those that a cell declares; clean copies lose the traces of a run and nothing else."""

import os
from pathlib import Path

import nbformat
import pytest

from antinb.reporting import notebooks


def write(path, *cells, **metadata):
    made = [nbformat.v4.new_code_cell(source, metadata={"tags": ["parameters"]}) for source in cells]
    nbformat.write(nbformat.v4.new_notebook(cells=made, metadata=metadata), path)
    return path


@pytest.mark.parametrize(
    ("line", "text", "value"),
    [
        ("units: int = 4", "64", 64),
        ("units: Optional[int] = None", "None", None),
        ("units: typing.Optional[int] = 3", "5", 5),
        ("units: float = 1", "1e-3", 0.001),
        ("units: float = 1", "nan", pytest.approx(float("nan"), nan_ok=True)),
        ("units: bool = True", "false", False),
        ("units: str = ''", "None", "None"),
        ("units: list = []", "[1, 2]", [1, 2]),
        ("units: dict = {}", '{"a": null}', {"a": None}),
        ("units: list = [  # two lines\n    1]", "[]", []),
        ("import os; units: int = 1", "2", 2),
        ("units: int = 4  # 1 to 10", "10", 10),
        ("units: Optional[int] = 4  # at least 8", "None", None),
        ('units: str = \'x # 1 to 2\'  # one of "a" or "b", say', "c", "c"),
    ],
)
def test_values_are_of_the_declared_type(tmp_path, line, text, value):
    assert notebooks.parameters(write(tmp_path / "a.ipynb", line), {"units": text})["units"] == value


@pytest.mark.parametrize(
    ("line", "given", "message"),
    [
        ("units: int | None = None", {"units": "4"}, r"write units: Optional\[int\] = None"),
        ("units: None | int = 5", {"units": "4"}, r"write units: Optional\[int\] = 5"),
        ("units = 4", {"units": "4"}, "without a type; write units: int = 4"),
        ("units = None", {"units": "4"}, r"write units: Optional\[int\] = None"),
        ("units: Sequence[int] = ()", {"units": "4"}, "a parameter is one of int, float"),
        ("units: int = 4\ntwice: int = 2 * units", {}, "computes 'twice' from 'units': move that line"),
        ("units: int = (", {}, "is no Python"),
        ("units: int = 4  # 1 to 10", {"units": "11"}, "'units' is 1 to 10; got 11"),
        ("units: int = 4  # pairs, at least 8", {"units": "7"}, "'units' is at least 8; got 7"),
        ("units: float = 4  # -1 to 0.5 or so", {"units": "nan"}, "'units' is -1 to 0.5; got nan"),
        ('units: str = \'a\'  # "a" (é) or "b"', {"units": "c"}, "'units' is one of a, b; got 'c'"),
        ("units: int = 4", {"unit": "8"}, "did you mean 'units'"),
        ("", {"units": "8"}, "it has none"),
        ("units: list = []", {"units": "1, 2"}, r"as in -p units '\[1, 2\]'; got '1, 2'"),
        ("units: Optional[int] = None", {"units": "null"}, "as in -p units 64 or -p units None; got 'null'"),
        ("units: bool = True", {"units": "perhaps"}, "as in -p units true"),
    ],
)
def test_what_does_not_fit_is_refused_with_an_example(tmp_path, line, given, message):
    with pytest.raises(ValueError, match=message) as caught:
        notebooks.parameters(write(tmp_path / "a.ipynb", line), given)
    assert len(str(caught.value).splitlines()) == 1


def test_parameters_are_told_as_they_are_declared(tmp_path):
    lines = ["units: Optional[int] = None  # pairs", "name = 'a # b'"]
    assert notebooks.told(write(tmp_path / "a.ipynb", "import os\n" + "\n".join(lines))) == "\n".join(lines)


@pytest.mark.parametrize("other", ["x = 1  # more", "x = 1", "# more\nx = 1"])
def test_comments_do_not_make_outputs_stale(tmp_path, other):
    first, second = (notebooks.read(write(tmp_path / f"{name}.ipynb", name)) for name in ("x = 1  # less", other))
    assert (notebooks.sources_hash(first) == notebooks.sources_hash(second)) == (not other.startswith("#"))
    assert notebooks.sources_hash(notebooks.read(write(tmp_path / "b.ipynb", "x = 2"))) != notebooks.sources_hash(first)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "is no notebook"),
        (b"[]", "is no notebook"),
        (b"3", "is no notebook"),
        (b'{"a": 1}', "is no notebook"),
        (b'{"cells": 3, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}', "is no notebook"),
        (b'{"cells": [], "metadata": {}, "nbformat": 99, "nbformat_minor": 5}', "is no notebook"),
        ('{"cells": "\xe9"}'.encode("latin-1"), "is no notebook"),
        (b"[" * 100_000, "is no notebook"),
    ],
)
def test_what_is_no_notebook_is_refused_in_one_line(tmp_path, content, message, capfd):
    (tmp_path / "a.ipynb").write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        notebooks.read(tmp_path / "a.ipynb")
    assert len(str(caught.value).splitlines()) == 1
    assert capfd.readouterr() == ("", "")


def test_other_languages_and_two_cells_of_parameters_are_refused(tmp_path):
    r = {"kernelspec": {"name": "ir", "display_name": "R", "language": "R"}}
    for path, message in [
        (write(tmp_path / "r.ipynb", "x <- 1", **r), "is in 'R'"),
        (write(tmp_path / "julia.ipynb", "x = 1", language_info={"name": "julia"}), "is in 'julia'"),
        (write(tmp_path / "two.ipynb", "a: int = 1", "b: int = 2"), "2 cells tagged 'parameters'"),
        (tmp_path / "none.ipynb", "no notebook is at"),
        (Path(__file__), "no notebook is at"),
    ]:
        with pytest.raises(ValueError, match=message):
            notebooks.declared(path)


def test_only_the_paths_of_this_machine_are_cut(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/reader")
    kept = "/tmp/a /data/x https://a.org/home/reader/x x/home/reader /home/readers /home/reader-2 ./home/reader"
    assert notebooks._without_paths(f"{kept}\n{tmp_path}/out/x.png '{tmp_path}' /home/reader/.cache") == (
        f"{kept}\n.../out/x.png '...' .../.cache"
    )


def test_metadata_that_are_no_traces_of_a_run_stay(tmp_path):
    cell = nbformat.v4.new_code_cell("x", metadata={"papermill": {"status": "completed"}, "tags": [], "slide": 1})
    cell.metadata["execution"] = {"iopub.execute_input": "2020"}
    text = nbformat.v4.new_markdown_cell("y", metadata={"tags": ["kept"]}, attachments={"a": {"text/plain": "z"}})
    about = {"authors": [{"name": "A"}], "widgets": {}, "papermill": {}, "title": "T"}
    about["language_info"] = {"name": "python", "version": "3.0"}
    nbformat.write(nbformat.v4.new_notebook(cells=[cell, text], metadata=about), tmp_path / "run.ipynb")
    source = tmp_path / "source.ipynb"
    source.touch()
    source.chmod(0o640)
    (tmp_path / "link.ipynb").symlink_to(source)
    notebooks.write_back(tmp_path / "run.ipynb", tmp_path / "link.ipynb")
    kept = nbformat.read(source, 4)
    assert [cell.metadata for cell in kept.cells] == [{"slide": 1}, {"tags": ["kept"]}]
    assert kept.cells[1].attachments == {"a": {"text/plain": "z"}}
    assert kept.metadata.keys() == {"authors", "title", "kernelspec", "language_info", "antinb"}
    assert kept.metadata["language_info"] == about["language_info"]
    assert os.stat(source).st_mode & 0o777 == 0o640
    assert (tmp_path / "link.ipynb").is_symlink()
