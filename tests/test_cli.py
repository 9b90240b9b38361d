"""The command line and the committed notebooks."""

import base64
import io
import json
import re
import subprocess
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest
from click.testing import CliRunner
from helpers import BODY, PARAMETERS, ROW, write
from PIL import Image

from antinb import dataset, noise, zoo
from antinb.cli import main
from antinb.reporting import notebooks, results

COMMITTED = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_a_run_leaves_its_results_in_one_folder(workplace):
    write(BODY)
    assert run("run", "tiny.ipynb", "-p", "profile", "smoke").exit_code == 0
    done = run("run", "tiny.ipynb", "-p", "profile", "smoke", "-p", "pairs", "12", "-p", "scale", "2")
    assert done.exit_code == 0, done.output
    assert re.search(r"holds\s+99\.a\s+-1 \[-2, -0\.5\]\s+<0", done.output)
    executed = nbformat.read("out/tiny/tiny.ipynb", 4)
    assert "14.0" in executed.cells[-1].outputs[0].text
    assert json.loads(Path("out/manifest.json").read_text())["claims"][0]["state"] == "holds"
    assert "99.a@high" in Path("out/claims.tex").read_text()


@pytest.mark.slow
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
        (("-p", "pairs", "many"), "'pairs' is Optional[int], as in -p pairs 64 or -p pairs None; got 'many'"),
        (("-p", "pairs", "2.5"), "got '2.5'"),
        (("-p", "scale", "wide"), "'scale' is float, as in -p scale 0.5; got 'wide'"),
    ],
)
def test_wrong_parameters_are_refused_before_anything_runs(workplace, given, message):
    write(BODY)
    done = run("run", "tiny.ipynb", *given)
    assert done.exit_code == 2
    assert message in done.output
    assert len(done.output.strip().splitlines()) == 1
    assert not (workplace / "out").exists()


def test_a_failing_cell_is_shown(workplace):
    write("x = 1\nraise ValueError(f'x is {x}')")
    done = run("run", "tiny.ipynb", "-p", "profile", "smoke")
    assert done.exit_code == 2
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
    kept = base64.b64decode(notebooks.compressed(base64.b64encode(file.getvalue()).decode()))
    found = np.asarray(Image.open(io.BytesIO(kept)).convert("RGB"))
    assert len(kept) < len(file.getvalue())
    assert np.array_equal(found, drawn) == exact
    assert np.sqrt(((found.astype(float) - drawn) ** 2).mean()) < 25


@pytest.mark.slow
def test_in_place_commits_outputs_without_traces(workplace):
    write(BODY)
    assert run("run", "--in-place", "tiny.ipynb", "-p", "pairs", "3").exit_code == 2
    done = run("run", "--in-place", "tiny.ipynb")
    assert done.exit_code == 0, done.output
    notebook = nbformat.read("tiny.ipynb", 4)
    assert [cell.metadata for cell in notebook.cells] == [{"tags": ["parameters"]}, {}]
    assert set(notebook.metadata) == {"kernelspec", "language_info", "antinb"}
    assert notebook.metadata["antinb"]["sources_sha256"] == notebooks.sources_hash(notebook)
    assert notebook.cells[1].outputs[0].text == ".../x 7.0\n"
    assert [cell.execution_count for cell in notebook.cells] == [1, 2]


def test_parameters_are_listed_as_they_are_declared(workplace):
    write("x = 1")
    done = run("run", "tiny.ipynb", "--parameters")
    assert done.exit_code == 0
    assert done.output.splitlines() == ["tiny.ipynb", *PARAMETERS.replace('"', "'").splitlines()[1:]]
    assert not (workplace / "out").exists()


def test_what_a_run_did_not_make_is_never_replaced(workplace):
    """The notebook itself, a folder or a file of the user's in the way, in whatever place: refused, nothing changed."""
    write(BODY)
    write(BODY, "study.ipynb")
    (workplace / "study").mkdir()
    write(BODY, "study/tiny.ipynb")
    (workplace / "study" / "notes").write_text("mine")
    (workplace / "mine").mkdir()
    (workplace / "mine" / "manifest.json").write_text('{"mine": 1}')
    (workplace / "tex").mkdir()
    (workplace / "tex" / "claims.tex").write_text("mine")
    (workplace / "file").write_text("mine")
    (workplace / "link").symlink_to("study")
    before = {path: path.read_bytes() for path in workplace.rglob("*") if path.is_file()}
    for arguments, message in [
        (("study.ipynb", "--out", "."), "study' was not made by antinb run and would be replaced"),
        (("study.ipynb", "study/tiny.ipynb", "--out", "."), "would be replaced"),
        (("tiny.ipynb", "--out", "mine"), "manifest.json' was not made by antinb run"),
        (("tiny.ipynb", "--out", "tex"), "claims.tex' was not made by antinb run"),
        (("tiny.ipynb", "study/tiny.ipynb"), "two notebooks are called 'tiny'"),
        (("tiny.ipynb", "--out", "file"), "file"),
        (("tiny.ipynb", "-p", "out_dir", "x"), "--out"),
        (("tiny.ipynb", "-p", "pairs"), "A parameter is written -p units 64."),
    ]:
        done = run("run", *arguments)
        assert done.exit_code == 2
        assert message in done.output
    assert {path: path.read_bytes() for path in workplace.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        ("touch out", "out'"),
        ("ln -s nowhere out", "out'"),
        ("mkdir out && echo mine > out/.antinb.lock", ".antinb.lock' was not made by antinb run"),
        ("mkdir out && ln -s ../tiny.ipynb out/.antinb.lock", ".antinb.lock' was not made by antinb run"),
        ("mkdir out && echo '{\"made_by\": 1}' > out/manifest.json", "manifest.json' was not made by antinb run"),
        ("mkdir -p out/tiny && echo mine > out/tiny/x", "tiny' was not made by antinb run"),
        ("mkdir -p out/tiny && touch out/tiny/.antinb out/tiny/x", "x' was not made by antinb run"),
        (
            "mkdir -p out/tiny/y && touch out/tiny/.antinb && echo y > out/tiny/.antinb && touch out/tiny/y/x",
            "y/x' was",
        ),
        ("mkdir -p out/tiny.failed && touch out/tiny.failed/x", "tiny.failed' was not made by antinb run"),
    ],
)
def test_what_is_in_the_way_is_named_in_one_line(workplace, prepare, message):
    write(BODY)
    subprocess.run(prepare, shell=True, check=True)
    before = {path: path.read_bytes() for path in workplace.rglob("*") if path.is_file()}
    done = run("run", "tiny.ipynb", "-p", "profile", "smoke")
    assert done.exit_code == 2
    assert message in done.output
    assert len(done.output.strip().splitlines()) == 1
    assert {path: path.read_bytes() for path in workplace.rglob("*") if path.is_file()} == before


@pytest.mark.slow
@pytest.mark.parametrize("model", ["fashion-dit", "fashion-ldm", "mnist-vae"])
def test_the_first_tutorial_takes_models_with_classes_with_latents_and_without_steps(workplace, model):
    done = run("run", str(COMMITTED[0]), "-p", "profile", "smoke", "-p", "model", model)
    assert done.exit_code == 0, done.output
    figures = {figure["id"] for figure in json.loads(Path("out/manifest.json").read_text())["figures"]}
    assert figures == ({"fig-00-1", "fig-00-2"} if model == "fashion-dit" else {"fig-00-1"})


@pytest.mark.slow
def test_results_stay_until_new_ones_are_whole(workplace):
    write(BODY)
    assert run("run", "tiny.ipynb", "-p", "profile", "smoke").exit_code == 0
    before = {path: path.read_bytes() for path in (workplace / "out" / "tiny").rglob("*") if path.is_file()}
    macros = Path("out/claims.tex").read_text()
    assert run("run", "tiny.ipynb", "-p", "profil", "smoke").exit_code == 2
    write(BODY + "raise ValueError('late')")
    done = run("run", "tiny.ipynb", "-p", "profile", "smoke")
    assert done.exit_code == 2
    assert "ValueError: late" in done.output
    after = {path: path.read_bytes() for path in (workplace / "out" / "tiny").rglob("*") if path.is_file()}
    assert after == before
    assert [line for line in macros.splitlines() if line[0] != "%"] == [
        line for line in Path("out/claims.tex").read_text().splitlines() if line[0] != "%"
    ]
    assert "older than its failed run" in Path("out/claims.tex").read_text()
    assert "late" in Path("out/tiny.failed/tiny.ipynb").read_text()
    write(BODY)
    assert run("run", "tiny.ipynb", "-p", "profile", "smoke").exit_code == 0
    assert not (workplace / "out" / "tiny.failed").exists()
    assert sorted(path.name for path in (workplace / "out").iterdir()) == [
        ".antinb.lock",
        "claims.tex",
        "manifest.json",
        "tiny",
    ]


@pytest.mark.slow
def test_a_copied_notebook_has_results_of_its_own_and_ids_stand_once(workplace):
    write(BODY)
    write(BODY.replace("99.a", "98.a"), "copy.ipynb")
    done = run("run", "tiny.ipynb", "copy.ipynb", "-p", "profile", "smoke")
    assert done.exit_code == 0, done.output
    assert "98.a" in done.output
    assert "99.a" in done.output
    assert [claim["notebook"] for claim in json.loads(Path("out/manifest.json").read_text())["claims"]] == [
        "copy",
        "tiny",
    ]
    write(BODY, "copy.ipynb")
    done = run("run", "copy.ipynb", "-p", "profile", "smoke")
    assert done.exit_code == 2
    assert "'99.a' is in copy and in tiny" in done.output


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("import sys\nsys.exit(0)", "cell [3], called exit(0)"),
        ("import os\nos._exit(5)", "cell [3], ended the kernel with exit code 5"),
        ("import os\nos.kill(os.getpid(), 9)", "killed by SIGKILL, as happens where memory runs out"),
        ("raise MemoryError", "raised MemoryError, for want of memory"),
        ("x = 1", "leaves no manifest"),
    ],
)
def test_a_notebook_that_ends_early_or_without_a_manifest_fails(workplace, body, message):
    write(body)
    done = run("run", "tiny.ipynb", "-p", "profile", "smoke")
    assert done.exit_code == 2
    assert message in done.output
    assert (workplace / "out" / "tiny.failed" / "tiny.ipynb").exists()


@pytest.mark.slow
def test_an_edit_during_the_run_is_not_overwritten(workplace):
    write(BODY + "\nopen('tiny.ipynb', 'a').write(' ')")
    done = run("run", "--in-place", "tiny.ipynb")
    assert done.exit_code == 2
    assert "was changed while it ran" in done.output
    assert Path("tiny.ipynb").read_text().endswith(" ")


def test_a_folder_is_held_by_one_command(workplace):
    write(BODY)
    with results.Results(Path("out"), ()):
        done = run("run", "tiny.ipynb", "-p", "profile", "smoke")
    assert done.exit_code == 2
    assert "another antinb run is writing" in done.output


@pytest.mark.slow
def test_the_union_is_made_anew(workplace):
    write(BODY)
    run("run", "tiny.ipynb", "-p", "profile", "smoke")
    before = Path("out/claims.tex").read_text()
    Path("out/claims.tex").unlink()
    assert run("merge").output == "1 claims\n"
    assert Path("out/claims.tex").read_text() == before
    Path("out/tiny/manifest.json").write_text("{")
    done = run("merge", "out")
    assert done.exit_code == 2
    assert "is damaged: move it, or run its notebook again" in done.output


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


def test_sample_takes_device_precision_batch_and_prompts(workplace):
    where = ("--device", "cpu", "--dtype", "float64", "--batch", "auto")
    done = run("sample", "fashion-mixture", *where, "--units", 3, "--seed", 5, "--steps", 2, "--store", "run.zarr")
    assert done.exit_code == 0, done.output
    config = dataset.config(dataset.open("run.zarr"))
    assert (config["dtype"], config["batch"]) == ("float64", 4)
    in_turn = ("--units", 3, "--seed", 5, "--steps", 1, "--condition", "in turn", "--store", "turns.zarr")
    done = run("sample", "fashion-dit", *in_turn)
    assert done.exit_code == 0, done.output
    assert dataset.open("turns.zarr")["condition"].values.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("fashion-mixture", "--prompts-file", "none.txt"), "a file with one a line; got 'none.txt'"),
        (("fashion-mixture", "--prompts-file", "p.txt", "--prompt", "a"), "one by one or as a file"),
        (("fashion-mixture", "--dtype", "int8"), "dtype must be one of"),
        (("fashion-mixture", "--device", "nowhere"), "device must be one that torch has here"),
        (("fashion-mixture", "--batch", "most"), "batch must be an integer"),
        (("fashion-mixture", "--condition", "1.5"), "or 'in turn'; got '1.5'"),
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
    pinned = re.search(r"python=([\d.]+)", (path.parents[1] / "environment.yml").read_text())[1]
    assert notebook.metadata["kernelspec"] == notebooks.KERNEL
    assert notebook.metadata["language_info"]["version"] == pinned
    assert len(notebook.metadata["language_info"]) == 7
    assert path.stat().st_size < 500_000
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert not any(output.output_type == "error" for output in outputs)
    pictures = [output.data["image/png"] for output in outputs if "image/png" in output.get("data", {})]
    assert len(set(pictures)) == len(pictures)


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_committed_notebooks_keep_the_anatomy(path):
    cells = nbformat.read(path, 4).cells
    code = [cell for cell in cells if cell.cell_type == "code"]
    assert cells[0].source.startswith(f"# {path.stem[:2]} ")
    assert cells[0].source.splitlines()[0].endswith("?")
    assert code[0].metadata["tags"] == ["parameters"]
    declared = [line for line in code[0].source.splitlines() if line and not line.startswith("from typing")]
    assert all(re.fullmatch(r"\w+: [\w\[\]]+ = \S.*  # .+", line) for line in declared)
    assert all(len(cell.source.splitlines()) <= 15 for cell in code[1:])
    assert len(declared) <= 17
    assert not any(re.search(r"^\s*(def|class) ", cell.source, re.M) for cell in code)
    assert any(cell.source.startswith("## Exercise") or "\n## Exercise" in cell.source for cell in cells)
    assert "book.claims()" in [cell for cell in code if not cell.source.startswith("antinb.explore(")][-2].source
