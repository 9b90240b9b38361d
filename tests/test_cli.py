"""The command line and the committed notebooks."""

import base64
import io
import json
import re
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest
from click.testing import CliRunner
from helpers import BODY, ROW, write
from PIL import Image

from antinb import dataset, noise, zoo
from antinb.cli import main
from antinb.reporting import notebooks

COMMITTED = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_a_run_leaves_its_results_in_one_folder(workplace):
    write(BODY)
    (workplace / "out" / "tiny").mkdir(parents=True)
    (workplace / "out" / "tiny" / "stale.png").touch()
    done = run("run", "tiny.ipynb", "-p", "profile", "smoke", "-p", "pairs", "12", "-p", "scale", "2")
    assert done.exit_code == 0, done.output
    assert re.search(r"holds\s+99\.a\s+-1\.0000 \[-2\.0000, -0\.5000\]\s+<0", done.output)
    assert not (workplace / "out" / "tiny" / "stale.png").exists()
    executed = nbformat.read("out/tiny/tiny.ipynb", 4)
    assert "14.0" in executed.cells[-1].outputs[0].text
    assert json.loads(Path("out/manifest.json").read_text())["claims"][0]["state"] == "holds"
    assert "99.a@high" in Path("out/claims.tex").read_text()


@pytest.mark.parametrize(
    ("low", "estimate", "profile", "code"),
    [(-2, -1.0, "smoke", 0), (-2, 1.0, "smoke", 1), (-2, -0.5, "full", 1), (-2, -0.5, "smoke", 0)],
)
def test_the_exit_code_says_what_became_of_the_claims(workplace, low, estimate, profile, code):
    """Holds: 0. Refuted: 1. Undecided: 1 at the full profile only."""
    high = {-1.0: -0.5, 1.0: 1.5, -0.5: 0.5}[estimate]
    write(BODY.replace(ROW, f"estimate={estimate}, low={estimate - 0.5}, high={high}"))
    assert run("run", "tiny.ipynb", "-p", "profile", profile).exit_code == code


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("-p", "pair", "3"), "no parameter 'pair'; did you mean 'pairs'?"),
        (("-p", "zzz", "3"), "it has profile, pairs"),
        (("-p", "pairs", "many"), "'pairs' must be Optional[int]; got 'many'"),
        (("-p", "pairs", "2.5"), "got '2.5'"),
        (("-p", "scale", "wide"), "'scale' must be float; got 'wide'"),
    ],
)
def test_wrong_parameters_are_refused_before_anything_runs(workplace, given, message):
    write(BODY)
    done = run("run", "tiny.ipynb", *given)
    assert done.exit_code == 1
    assert message in done.output
    assert len(done.output.strip().splitlines()) == 1
    assert not (workplace / "out").exists()


def test_a_failing_cell_is_shown(workplace):
    write("x = 1\nraise ValueError(f'x is {x}')")
    done = run("run", "tiny.ipynb", "-p", "profile", "smoke")
    assert done.exit_code == 1
    assert "raise ValueError" in done.output
    assert "ValueError: x is 1" in done.output


def test_pictures_written_back_are_smaller_and_the_same_to_the_pixel(tmp_path):
    plt.plot([0, 1, 0.5])
    plt.savefig(tmp_path / "drawn.png")
    plt.close()
    drawn = (tmp_path / "drawn.png").read_bytes()
    output = nbformat.v4.new_output("display_data", {"image/png": base64.b64encode(drawn).decode()})
    cell = nbformat.v4.new_code_cell("plot()", outputs=[output])
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "run.ipynb")
    notebooks.write_back(tmp_path / "run.ipynb", tmp_path / "kept.ipynb")
    kept = base64.b64decode(nbformat.read(tmp_path / "kept.ipynb", 4).cells[0].outputs[0].data["image/png"])
    assert len(kept) < 0.95 * len(drawn)
    first, second = (np.asarray(Image.open(io.BytesIO(png)).convert("RGB")) for png in (drawn, kept))
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize(("colours", "exact"), [(200, True), (5000, False)])
def test_only_a_large_picture_of_many_colours_loses_some(colours, exact):
    random = np.random.default_rng(0)
    palette = random.integers(0, 256, (colours, 3), np.uint8)
    drawn = palette[random.integers(0, colours, (500, 500))]
    file = io.BytesIO()
    Image.fromarray(drawn).save(file, "PNG")
    kept = base64.b64decode(notebooks._compressed(base64.b64encode(file.getvalue()).decode()))
    found = np.asarray(Image.open(io.BytesIO(kept)).convert("RGB"))
    assert len(kept) < len(file.getvalue())
    assert np.array_equal(found, drawn) == exact
    assert np.sqrt(((found.astype(float) - drawn) ** 2).mean()) < 25


def test_in_place_commits_outputs_without_traces(workplace):
    write(BODY)
    assert run("run", "--in-place", "tiny.ipynb", "-p", "pairs", "3").exit_code == 2
    done = run("run", "--in-place", "tiny.ipynb")
    assert done.exit_code == 0, done.output
    notebook = nbformat.read("tiny.ipynb", 4)
    assert [cell.metadata for cell in notebook.cells] == [{"tags": ["parameters"]}, {}]
    assert set(notebook.metadata) == {"kernelspec", "language_info", "antinb"}
    assert notebook.metadata["antinb"]["sources_sha256"] == notebooks.sources_hash(notebook)
    assert notebook.cells[1].outputs[0].text == "... 7.0\n"
    assert [cell.execution_count for cell in notebook.cells] == [1, 2]


def test_a_run_never_clears_its_own_input(workplace):
    (workplace / "out" / "tiny").mkdir(parents=True)
    write(BODY, "out/tiny/tiny.ipynb")
    write(BODY)
    done = run("run", "out/tiny/tiny.ipynb")
    assert done.exit_code == 2
    assert "which a run clears" in done.output
    assert (workplace / "out" / "tiny" / "tiny.ipynb").exists()
    assert "filed by name" in run("run", "tiny.ipynb", "out/tiny/tiny.ipynb").output


def test_a_notebook_without_a_report_runs(workplace):
    write("x = 1")
    assert run("run", "tiny.ipynb").exit_code == 0
    assert json.loads(Path("out/manifest.json").read_text()) == {"figures": [], "claims": []}


def test_no_notebook(workplace):
    assert "no notebook is at 'none.ipynb'" in run("run", "none.ipynb").output


def test_sample_writes_a_run(workplace):
    done = run("sample", "fashion-mixture", "--units", 3, "--seed", 5, "--steps", 2, "--store", "run.zarr")
    assert done.exit_code == 0, done.output
    data = dataset.open("run.zarr")
    generator = zoo.load("fashion-mixture", steps=2)
    import torch

    z = noise.antithetic(3).draw(generator.shape, seed=5)
    np.testing.assert_allclose(data["image"][2], generator.generate(torch.from_numpy(z[2])), atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("fashion-mixtur",), "did you mean 'fashion-mixture'?"),
        (("fashion-mixture", "--k", "3"), "--k belongs to the simplex design"),
        (("fashion-mixture", "--design", "simplex"), "--k belongs to the simplex design"),
        (("fashion-mixture", "--prompt", "a cat"), "prompts= and options= belong to a pipeline"),
        (("nobody/nothing",), "'hf download nobody/nothing --local-dir FOLDER'"),
    ],
)
def test_sample_refuses_in_one_line(workplace, arguments, message):
    done = run("sample", *arguments, "--units", 3, "--seed", 5, "--store", "run.zarr")
    assert done.exit_code != 0
    assert message in done.output
    assert not (workplace / "run.zarr").exists()


def test_models_are_listed():
    lines = run("models").output.splitlines()
    assert [line.split()[0] for line in lines] == list(zoo.registry())
    assert all("MIT" in line and " MB " in line for line in lines)


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_committed_outputs_are_those_of_the_sources(path):
    notebook = nbformat.read(path, 4)
    assert notebook.metadata["antinb"]["sources_sha256"] == notebooks.sources_hash(notebook)
    assert path.stat().st_size < 500_000
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not any(output.output_type == "error" for cell in code for output in cell.outputs)


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_committed_notebooks_keep_the_anatomy(path):
    cells = nbformat.read(path, 4).cells
    code = [cell for cell in cells if cell.cell_type == "code"]
    assert cells[0].source.startswith(f"# {path.stem[:2]} ")
    assert cells[0].source.splitlines()[0].endswith("?")
    assert code[0].metadata["tags"] == ["parameters"]
    declared = [line for line in code[0].source.splitlines() if line and not line.startswith("from typing")]
    assert all(re.fullmatch(r"\w+: [\w\[\]]+ = \S.*  # .+", line) for line in declared)
    assert all(len(cell.source.splitlines()) <= 15 for cell in code)
    assert not any(re.search(r"^\s*(def|class) ", cell.source, re.M) for cell in code)
    assert any(cell.source.startswith("## Exercise") or "\n## Exercise" in cell.source for cell in cells)
    assert "book.claims()" in code[-2].source
