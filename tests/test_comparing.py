"""`antinb compare`: verdicts and exit codes, a run that is killed, stores, and what is refused in one line."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from helpers import SHAPE
from PIL import Image
from runs import contents

import antinb
from antinb import comparing, comparison, dataset, noise, statistics
from antinb.cli import main

FEW = ("--steps", 2, "--pairs", 64)


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def compare(*arguments):
    return CliRunner().invoke(main, ["compare", *map(str, arguments)])


def stored(path, shift=0.0, units=32, seed=0, design=noise.antithetic, shape=SHAPE):
    model = antinb.load(lambda z: z / 6 + shift, shape=shape)
    antinb.sample(model, design(units), seed=seed, store=path, progress=False)
    return path


def refusal(*arguments):
    done = compare(*arguments)
    assert done.exit_code == 2, done.output
    assert len(done.output.strip().splitlines()) == 1, done.output
    return done.output


def test_a_model_is_equal_to_itself_at_the_first_look(workplace):
    done = compare("fashion-mixture", "fashion-mixture", "--steps", 2, "--pairs", 512)
    assert done.exit_code == 0, done.output
    table = pd.read_json("compare/comparison.json")
    assert table["verdict"].tolist() == ["equal", "equal"]
    assert table["decided_at"].tolist() == [64, 64]
    assert dataset.open("compare/a.zarr").sizes["unit"] == 64
    assert {"report.html", "comparison.csv", "images.csv", "question.json"} <= {*os.listdir("compare")}
    assert {"fig-00-91.png", "fig-00-92.pdf", "manifest.json"} <= {*os.listdir("compare/comparison")}
    page = Path("compare/report.html").read_text()
    assert "brightness of b less that of a: equal (margin 0.01)" in page
    again = compare("fashion-mixture", "fashion-mixture", "--steps", 2, "--pairs", 512)
    assert again.exit_code == 0
    assert again.output.split("statistic")[1] == done.output.split("statistic")[1]
    assert "take more units" not in done.output


def test_a_verdict_once_reached_stays_while_others_are_looked_at_again(tmp_path, monkeypatch):
    looks = iter([["equal", "undecided"], ["different", "undecided"], ["undecided", "different"], ["equal", "equal"]])

    def verdicts(runs, asked, _):
        return pd.DataFrame({"statistic": asked.statistics, "verdict": next(looks)})

    monkeypatch.setattr(comparing, "verdicts", verdicts)
    asked = comparing.Question(("brightness", "contrast"), {}, units=512)
    models = [antinb.load(lambda z, shift=shift: z / 6 + shift, shape=SHAPE) for shift in (0.0, 0.1)]
    table, runs = comparing.sampled(tuple(models), asked, tmp_path / "out")
    assert table["verdict"].tolist() == ["equal", "different"]
    assert table["decided_at"].tolist() == [64, 256]
    assert [run.sizes["unit"] for run in runs] == [256, 256]


def test_the_numbers_are_those_of_the_summary(workplace):
    compare("fashion-mixture", "fashion-mixture", *FEW, "--steps-b", 3, "--margin", "contrast=0.3", "--seed", 4)
    runs = [
        antinb.sample(antinb.load("fashion-mixture", steps=steps), noise.antithetic(64), seed=4) for steps in (2, 3)
    ]
    expected = comparison.summary(*runs, [statistics.contrast], {"contrast": 0.3}).iloc[0]
    found = pd.read_csv("compare/comparison.csv").iloc[0]
    columns = ["a", "b", "estimate", "low", "high", "p_equal"]
    np.testing.assert_allclose(found[columns].astype(float), expected[columns].astype(float), rtol=1e-6)


@pytest.mark.parametrize(
    ("shift", "code", "verdict"), [(0.02, 0, "equal"), (0.2, 1, "different"), (0.05, 3, "undecided")]
)
def test_the_exit_code_is_the_verdict(workplace, shift, code, verdict):
    """The brightness is shifted by half of the shift, and by an even part of the noise."""
    stored("a.zarr")
    noisy = antinb.load(lambda z: z / 6 + shift + z.mean((1, 2, 3), keepdim=True) ** 2, shape=SHAPE)
    antinb.sample(noisy, noise.antithetic(32), seed=0, store="b.zarr", progress=False)
    done = compare("a.zarr", "b.zarr", "--margin", "brightness=0.03")
    assert verdict in done.output
    assert done.exit_code == code


def test_looks_double_up_to_the_most():
    asked = comparing.question((), (), design="iid", units=300, seed=0, batch=8)
    assert asked.looks() == [64, 128, 256, 300]
    assert asked.margins == {"brightness": 0.01, "contrast": 0.01}


def test_statistics_have_the_names_that_a_command_can_write():
    asked = comparing.question(
        ("P(cat)", "centroid_x"), ("brightness>0.4=0.1",), design="iid", units=8, seed=0, batch=1
    )
    assert asked.statistics == ("P(cat)", "centroid_x", "brightness > 0.4")
    assert asked.margins == {"brightness > 0.4": 0.1}


@pytest.mark.slow
def test_verdicts_stay_and_looks_go_on_until_all_are_decided(workplace):
    margins = ("--margin", "brightness=0.2", "--margin", "contrast=0.0000001")
    done = compare("fashion-mixture", "fashion-mixture", "--steps", 2, "--steps-b", 3, "--pairs", 256, *margins)
    table = pd.read_json("compare/comparison.json").set_index("statistic")
    assert table["verdict"].tolist() == ["equal", "different"]
    assert table.loc["brightness", "decided_at"] == 64
    assert done.exit_code == comparing.code(table)
    runs = [dataset.open(f"compare/{name}.zarr") for name in "ab"]
    assert runs[0].sizes["unit"] == table.loc["contrast", "decided_at"]
    whole = comparison.summary(*runs, [statistics.brightness], {"brightness": 0.2}, looks=3).iloc[0]
    assert table.loc["brightness", "estimate"] == pytest.approx(whole["estimate"])


@pytest.mark.slow
def test_a_comparison_that_was_killed_goes_on_to_the_same_bytes(workplace):
    line = ["compare", "fashion-mixture", "fashion-mixture", "--steps", "12", "--steps-b", "10"]
    line += ["--pairs", "128", "--margin", "brightness=0.0000001", "--batch", "8", "--out"]
    child = [sys.executable, "-m", "antinb.cli", *line, "killed"]
    with subprocess.Popen(child, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 120
        while not list(Path("killed").glob("a.zarr/image/c.*")) and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    for place in ("killed", "whole"):
        assert CliRunner().invoke(main, [*line, place]).exit_code in (1, 3)
    for name in ("a.zarr", "b.zarr"):
        assert contents(f"killed/{name}") == contents(f"whole/{name}")
    assert Path("killed/comparison.csv").read_bytes() == Path("whole/comparison.csv").read_bytes()


def test_another_question_in_the_same_folder_is_refused(workplace):
    assert compare("fashion-mixture", "fashion-mixture", *FEW).exit_code == 0
    said = refusal("fashion-mixture", "fashion-mixture", *FEW, "--margin", "brightness=0.1")
    assert "margins is {'brightness': 0.01, 'contrast': 0.01} there, {'brightness': 0.1} here" in said
    assert "steps is 2 there, 3 here" in refusal("fashion-mixture", "fashion-mixture", *FEW, "--steps", 3)
    Path("compare/question.json").write_text("mine")
    assert "is no question of antinb compare" in refusal("fashion-mixture", "fashion-mixture", *FEW)


def test_a_reference_adds_distances(workplace):
    reference = antinb.zoo.DATA / "images" / "fashion" / "moments.npz"
    done = compare("fashion-mixture", "fashion-mixture", *FEW, "--steps-b", 3, "--reference", reference)
    assert "frechet difference" in done.output
    table = pd.read_csv("compare/distances.csv")
    assert table["features"].tolist() == [16, 16, 16]  # 128 images carry 16 of 64
    assert table["model"].tolist() == ["a", "b", "difference"]


def test_stores_that_do_not_fit_are_one_line(workplace):
    stored("a.zarr")
    for path, about, words in (
        ("seed.zarr", {"seed": 1}, "their seed is 0 and 1"),
        ("design.zarr", {"design": noise.iid}, "their design is"),
        ("units.zarr", {"units": 16}, "32 and 16, of which 16 are common"),
    ):
        stored(path, **about)
        assert words in refusal("a.zarr", path)
    stored("size.zarr", shape=(1, 6, 6), seed=1)
    done = compare("a.zarr", "size.zarr", "--margin", "brightness=0.5")
    assert done.exit_code == 0, done.output
    assert "no noise is shared" in done.output
    stored("same_seed.zarr", shape=(1, 6, 6))
    assert "need two seeds" in refusal("a.zarr", "same_seed.zarr")


def test_pictures_nan_and_one_image(workplace):
    (workplace / "photos").mkdir()
    for number in range(2):
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(workplace / "photos" / f"{number}.jpg")
    stored("a.zarr")
    assert "two models are compared, or two stored runs" in refusal("a.zarr", "photos")
    assert "a model is" in refusal("photos", "photos")
    holed = dataset.open("a.zarr").load().copy(deep=True)
    holed["image"][3, 0, 0, 0, 0] = np.nan
    holed.to_zarr("holed.zarr", zarr_format=3, consolidated=False)
    done = compare("a.zarr", "holed.zarr", "--margin", "brightness=0.1")
    assert done.exit_code == 0, done.output
    assert "brightness: undefined in 1 units, left out" in done.output
    stored("one.zarr", units=1, design=noise.iid)
    assert "at least two units with both values; brightness has 1" in refusal("one.zarr", "one.zarr")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--margin", "brightness"), "written brightness=0.005, a positive number; got 'brightness'"),
        (("--margin", "brightness=-1"), "a positive number; got 'brightness=-1'"),
        (("--margin", "brightnes=1"), "did you mean 'brightness'?"),
        (("--statistic", "P(trousers)"), "did you mean 'trouser'?"),
        (("--pairs", 4), "units must be an integer of at least 8; got 4"),
        (("--weights-b", "int3"), "did you mean"),
        (("--weights-b", "int8"), "got a Diffusion: round its modules before it is loaded"),
        (("--scheduler-b", "ddimm"), "did you mean 'ddim'?"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(workplace, arguments, words):
    assert words in refusal("fashion-mixture", "fashion-mixture", "--steps", 2, *arguments)
    assert not [*workplace.iterdir()] or not json.loads(Path("compare/question.json").read_text())["units"] >= 8
