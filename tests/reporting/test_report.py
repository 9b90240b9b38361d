"""Claims are judged as defined, and every figure carries what made it."""

import hashlib
import json
import math

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from matplotlib.figure import Figure
from PIL import Image

from antinb import report
from antinb.reporting import manifest, runs

mpl.use("Agg")


def row(estimate, low, high, **more):
    return pd.DataFrame([{"estimate": estimate, "low": low, "high": high, **more}])


def state(rule, estimate, low, high, others=()):
    claims = [{"id": "a", "rule": rule, "estimate": estimate, "low": low, "high": high}, *others]
    return report.judge(claims)[0]["state"]


@pytest.mark.parametrize(
    ("rule", "interval", "expected"),
    [
        ("<-0.1", (-0.3, -0.4, -0.2), "holds"),
        ("<-0.1", (-0.15, -0.25, -0.05), "undecided"),
        ("<-0.1", (0.1, 0.0, 0.2), "refuted"),
        (">25", (30, 26, 34), "holds"),
        (">25", (30, 24, 36), "undecided"),
        (">25", (20, 18, 24), "refuted"),
        ("within 0.02", (0.001, -0.01, 0.012), "holds"),
        ("within 0.02", (0.001, -0.03, 0.032), "undecided"),
        ("within 0.02", (0.1, 0.05, 0.15), "refuted"),
        ("within 0.02", (-0.1, -0.15, -0.05), "refuted"),
        ("<0", (-1, -1, -1), "holds"),
        ("<0", (1, 1, 1), "refuted"),
        ("<0", (0, 0, 0), "undecided"),
        (None, (0.5, 0.4, 0.6), "descriptive"),
        ("<0", (math.nan, math.nan, math.nan), "undecided"),
    ],
)
def test_one_claim_holds_if_its_whole_interval_is_beyond_the_margin(rule, interval, expected):
    assert state(rule, *interval) == expected


def test_the_facing_side_of_a_lopsided_interval_decides():
    assert state("<0", -1, -9, -0.1) == "holds"
    assert state(">-10", -1, -9, -0.1) == "holds"
    assert state(">-8", -1, -9, -0.1) == "undecided"


def test_claims_are_adjusted_together():
    barely = ("<0", -1.0, -1.95, -0.05)
    assert state(*barely) == "holds"
    other = {"id": "b", "rule": ">0", "estimate": 0.1, "low": -0.5, "high": 0.7}
    assert state(*barely, others=[other]) == "undecided"
    descriptive = {**other, "rule": None}
    assert state(*barely, others=[descriptive]) == "holds"


def test_holm_levels_by_hand():
    """Three claims with one-sided p of 0.005, 0.010 and 0.024: Holm compares them with 2.5% over 3, 2 and 1."""
    z = {"a": 2.5758, "b": 2.3263, "c": 1.9774}
    claims = [
        {"id": key, "rule": ">0", "estimate": value, "low": value - 1.96, "high": value + 1.96}
        for key, value in z.items()
    ]
    assert [claim["state"] for claim in report.judge(claims)] == ["holds"] * 3
    claims[1] |= {"estimate": 2.2, "low": 2.2 - 1.96}
    assert [claim["state"] for claim in report.judge(claims)] == ["holds", "undecided", "undecided"]


@pytest.fixture
def book(tmp_path):
    return report.open(tmp_path, "01_test", {"profile": "smoke", "pairs": 3})


@pytest.fixture
def figure():
    fig = Figure()
    fig.subplots().plot([0, 1], [0, 1])
    return fig


def test_a_figure_carries_its_provenance(book, figure, tmp_path):
    numbers = pd.DataFrame({"x": [0, 1], "y": [0.25, 1 / 3]})
    book.save_figure(figure, "fig-01-1", "A line.", numbers)
    folder = tmp_path / "01_test"
    about = json.loads((folder / "fig-01-1.json").read_text())
    assert about["caption"] == "A line."
    assert about["parameters"] == {"profile": "smoke", "pairs": 3}
    assert about["data_sha256"] == hashlib.sha256((folder / "fig-01-1.csv").read_bytes()).hexdigest()
    assert set(about["versions"]) >= {"antinb", "torch", "diffusers"}
    assert json.loads(Image.open(folder / "fig-01-1.png").text["Description"]) == about
    assert about["data_sha256"] in (folder / "fig-01-1.svg").read_text()
    assert about["data_sha256"].encode() in (folder / "fig-01-1.pdf").read_bytes()
    np.testing.assert_allclose(pd.read_csv(folder / "fig-01-1.csv"), numbers, rtol=1e-6)
    written = json.loads((folder / "manifest.json").read_text())
    assert [set(entry) for entry in written["figures"]] == [{"id", "caption", "files"}]
    assert all((folder / file).exists() for file in written["figures"][0]["files"])


def test_a_notebook_shows_the_figure_once_with_its_caption_under_it(book):
    InteractiveShell.instance()
    try:
        with capture_output() as shown:
            book.save_figure(plt.figure(), "fig-01-1", "Less < more.", pd.DataFrame({"x": [0.0]}))
    finally:
        InteractiveShell.clear_instance()
    picture, under = (output.data for output in shown.outputs)
    assert picture["text/plain"].startswith("<Figure")
    assert under == {"text/plain": "fig-01-1. Less < more.", "text/html": "<b>fig-01-1.</b> Less &lt; more."}
    assert not plt.get_fignums()


def test_the_same_figure_twice_is_the_same_bytes(book, figure, tmp_path):
    numbers = pd.DataFrame({"x": [0.0]})
    contents = []
    for _ in range(2):
        book.save_figure(figure, "fig-01-1", "A line.", numbers)
        contents.append([path.read_bytes() for path in sorted((tmp_path / "01_test").glob("fig*"))])
    assert contents[0] == contents[1]


def test_the_manifest_holds_null_for_nan(book, tmp_path):
    book.claim("01.a", "nothing could be measured", row(*[math.nan] * 3), "<0")
    book.claim("01.b", "a number", row(-1.0, -2.0, -0.5))
    written = json.loads((tmp_path / "01_test" / "manifest.json").read_text())
    assert written["claims"][0] == {
        "id": "01.a",
        "text": "nothing could be measured",
        "estimate": None,
        "low": None,
        "high": None,
        "rule": "<0",
        "expected": "holds",
        "reason": "",
        "state": "undecided",
    }
    assert book.claims()["state"].tolist() == ["? undecided, expected to hold", "· descriptive"]
    assert book.claims().loc["01.a", ["estimate", "interval"]].tolist() == ["--", "-- to --"]


@pytest.mark.parametrize(
    ("profile", "expected", "interval", "code"),
    [
        ("full", "holds", (-1, -2, -0.5), 0),
        ("full", "holds", (1, 0.5, 2), 1),
        ("full", "holds", (0, -1, 1), 1),
        ("full", "refuted", (1, 0.5, 2), 0),
        ("full", "refuted", (-1, -2, -0.5), 1),
        ("full", "refuted", (0, -1, 1), 1),
        ("smoke", "holds", (1, 0.5, 2), 1),
        ("smoke", "holds", (0, -1, 1), 0),
        ("smoke", "refuted", (-1, -2, -0.5), 1),
        ("smoke", "refuted", (0, -1, 1), 0),
    ],
)
def test_a_state_that_is_not_the_expected_one_fails_the_run(tmp_path, capsys, profile, expected, interval, code):
    book = report.open(tmp_path, "01_test", {"profile": profile})
    book.claim("01.described", "no rule", row(5, 4, 6))
    book.claim("01.a", "a goal", row(*interval), "<0", expected=expected, reason="It is odd." * (expected != "holds"))
    folder = tmp_path / "01_test"
    assert runs._judge(folder, manifest.read(folder / "manifest.json")["claims"], every=True) == code
    assert (f"expected: {expected}" in capsys.readouterr().out) == (expected == "refuted" or code == 1)
    again = report.open(tmp_path, "01_test", {}).claims().loc["01.a"]
    assert (", expected to" in again["state"]) == (code == 1 or (profile, interval[0]) == ("smoke", 0))
    assert again["rule"] == "<0"


def test_claims_show_what_is_expected_and_why(book):
    book.claim("01.a", "a goal", row(1, 0.5, 2), "<0", expected="refuted", reason="It is even.")
    book.claim("01.b", "another", row(1, 0.5, 2), ">0")
    table = book.claims()
    assert table["state"].tolist() == ["✗ refuted, as expected", "✓ holds"]
    assert table["reason"].tolist() == ["It is even.", ""]
    assert table["interval"].tolist() == ["0.5 to 2"] * 2
    book.claim("01.a", "a goal", row(-1, -2, -0.5), "<0", expected="refuted", reason="It is even.")
    assert book.claims()["state"].tolist() == ["✓ holds, expected to be refuted", "✓ holds"]


def test_claims_without_an_expectation_were_expected_to_hold(book, tmp_path):
    book.claim("01.a", "a goal", row(1, 0.5, 2), ">0")
    path = tmp_path / "01_test" / "manifest.json"
    older = json.loads(path.read_text())
    del older["claims"][0]["expected"], older["claims"][0]["reason"]
    path.write_text(json.dumps(older))
    assert report.open(tmp_path, "01_test", {}).claims().loc["01.a", "state"] == "✓ holds"
    assert "reason" not in report.open(tmp_path, "01_test", {}).claims()


def test_claims_are_shown_at_full_length(tmp_path):
    text = "efficiency of " + " and ".join(["antithetic pairs"] * 9)
    with pd.option_context("display.max_colwidth", 50):
        book = report.open(tmp_path, "01_test", {})
        book.claim("01.a", text, row(1, 0.5, 1.5))
        assert text in book.claims()._repr_html_()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda book, fig: book.claim("a", "", row(0, 1, 2)), r"0 in \[1, 2\]"),
        (lambda book, fig: book.claim("a", "", row(0, -1, 2), "covers 0"), "covers 0"),
        (lambda book, fig: book.claim("a", "", row(0, -1, 2), "within -0.5"), "within -0.5"),
        (lambda book, fig: book.claim("a", "", pd.concat([row(0, -1, 2)] * 2)), "got 2"),
        (lambda book, fig: book.claim("a", "", row(0, -1, 2, level=0.9)), "got level 0.9"),
        (lambda book, fig: book.claim("a", "", {"estimate": 0, "low": -1}), "lacks high"),
        (lambda book, fig: book.claim("a", "", row(0, -1, 2), "<0", expected="refuted"), "a reason"),
        (lambda book, fig: book.claim("a", "", row(0, -1, 2), expected="refuted", reason="It is."), "rule None"),
        (lambda book, fig: book.claim("a", "", row(0, -1, 2), "<0", reason="It is."), "'It is.'"),
        (lambda book, fig: book.claim("a", "", row(0, -1, 2), "<0", expected="undecided"), "'undecided'"),
        (lambda book, fig: book.save_figure(fig, "figure 1", "A line.", pd.DataFrame()), "figure 1"),
        (lambda book, fig: book.save_figure(fig, "fig-01-1", " ", pd.DataFrame()), "caption"),
        (lambda book, fig: report.size(None, "tiny", smoke=1, full=2), "tiny"),
        (lambda book, fig: report.size(0, "smoke", smoke=1, full=2), "got 0"),
    ],
)
def test_bad_input_is_refused_with_the_value(book, figure, call, message, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=message):
        call(book, figure)
    assert sorted(tmp_path.rglob("*")) == before
