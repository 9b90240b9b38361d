"""The union is derived from what lies there, and an article takes its numbers from it or does not compile."""

import json
import re
import shutil
import subprocess

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from antinb import report
from antinb.reporting import manifest, results, texts


def claimed(out, name, *claims):
    book = report.open(out, name, {"profile": "smoke"})
    for id, *ends in claims:  # noqa: A001
        book.claim(id, "text", dict(zip(manifest.ENDS, ends, strict=True)))
    return book


def merge(out):
    return results.Results(out, ()).merge()


def test_the_union_has_the_parts_of_all(tmp_path):
    book = claimed(tmp_path, "01_test", ("01.a", -0.123456, -0.2, -0.1))
    book.save_figure(plt.figure(), "fig-01-1", "A line.", pd.DataFrame({"x": [0.0]}))
    plt.close()
    claimed(tmp_path, "02_other", ("02.a", *[float("nan")] * 3))
    assert [claim["id"] for claim in merge(tmp_path)] == ["01.a", "02.a"]
    union = json.loads((tmp_path / "manifest.json").read_text())
    assert "01_test/fig-01-1.svg" in union["figures"][0]["files"]
    macros = dict(re.findall(r"antinb@([\w.@]+)\\endcsname\{([^}]*)\}", (tmp_path / "claims.tex").read_text()))
    assert macros["01.a@estimate"] == "-0.1235"
    assert macros["02.a@low"] == "--"


@pytest.mark.parametrize(
    ("ends", "shown"),
    [
        ((123456.7, 123456.1, 123457.2), ["123456.70", "123456.10", "123457.20"]),
        ((0.5, 0.4, 0.6), ["0.5", "0.4", "0.6"]),
        ((-1e-9, -2e-9, 0.0), ["-1e-09", "-2e-09", "0"]),
        ((1 / 3, 1 / 3, 1 / 3), ["0.3333"] * 3),
        ((None, None, None), ["--"] * 3),
    ],
)
def test_digits_tell_the_ends_apart(ends, shown):
    found = texts.told(dict(zip(manifest.ENDS, ends, strict=True)))
    assert [text if text == "--" else float(text) for text in found] == [t if t == "--" else float(t) for t in shown]


@pytest.mark.parametrize(
    "damage",
    [
        {"made_by": "someone"},
        {"claims": None},
        {"claims": [{"id": "a"}]},
        {"claims": [{"id": "x\\endcsname", "state": "", "rule": None, "estimate": 1, "low": 1, "high": 1}]},
        {"claims": [{"id": "a", "state": "", "rule": None, "estimate": float("inf"), "low": 1, "high": 1}]},
        {"figures": [{"id": "a"}]},
    ],
)
def test_a_damaged_manifest_is_named(tmp_path, damage):
    claimed(tmp_path, "a", ("a", 1, 1, 1))
    path = tmp_path / "a" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | damage))
    with pytest.raises(ValueError, match=r"a/manifest.json' was not made by antinb run, or is damaged"):
        merge(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a"]


def test_a_profile_cannot_add_a_line_to_the_macros(tmp_path):
    report.open(tmp_path, "a", {"profile": "x\n\\input{/etc/passwd}"})
    merge(tmp_path)
    assert "\n\\input" not in (tmp_path / "claims.tex").read_text()


def test_a_union_that_cannot_be_made_leaves_the_old_one(tmp_path):
    claimed(tmp_path, "a", ("x", 1, 1, 1))
    merge(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    claimed(tmp_path, "b", ("x", 2, 2, 2))
    with pytest.raises(ValueError, match="'x' is in a and in b: an id stands once"):
        merge(tmp_path)
    assert before.items() <= {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}.items()


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs LaTeX")
@pytest.mark.parametrize(
    ("body", "error"),
    [
        (r"\input{claims} \antinb{a.x-1_2} \antinb[low]{a.x-1_2} \antinb[high]{a.x-1_2}", None),
        (r"\input{claims} \input{claims} \antinb{a.x-1_2}", None),
        (r"\input{claims} \input{other/claims} \antinb{a.x-1_2} \antinb{b}", None),
        (r"\input{claims} \section{\antinb{a.x-1_2}} $\antinb{a.x-1_2}$ \antinbmath[low]{a.x-1_2}", None),
        (r"\input{claims} \edef\x{\antinb[low]{a.x-1_2}} \ifdim \x pt < -0.7pt\else\undefined\fi", None),
        (r"\input{claims} \antinb[caption]{fig-01-1}", None),
        (r"\section{\texorpdfstring{\antinb{a.x-1_2}}{}} \input{claims} \antinb{a.x-1_2}", "Undefined control"),
        (r"\input{claims} \antinb{a.x-1_3}", "nothing has the id a.x-1_3 and the key estimate"),
        (r"\input{claims} \antinb[middle]{a.x-1_2}", "the key middle"),
    ],
)
def test_an_article_takes_the_numbers_or_stops(tmp_path, body, error):
    book = claimed(tmp_path, "a", ("a.x-1_2", -0.5, -0.75, -0.25))
    book.save_figure(plt.figure(), "fig-01-1", r"5% & {more} of x_1 ~ y^2 − $z$ #1 \foo", pd.DataFrame({"x": [0.0]}))
    plt.close()
    claimed(tmp_path / "other", "b", ("b", 17, 16, 18))
    merge(tmp_path)
    merge(tmp_path / "other")
    (tmp_path / "x.tex").write_text(rf"\documentclass{{article}}\begin{{document}}{body}\end{{document}}")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "x.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace")
    assert (done.returncode != 0) == (error is not None), done.stdout
    assert error is None or error in done.stdout.replace("\n", " ")


ARTICLE = r"""\documentclass{article}\usepackage{graphicx,hyperref}\input{out/claims}\begin{document}
\section{A correlation of \antinb{a.r}} From \antinbmath[low]{a.r} to \antinbmath[high]{a.r}, an interval of
$[\antinb[low]{a.r}, \antinb[high]{a.r}]$, or \textbf{\antinb[estimate]{a.r}}.
\begin{figure}\includegraphics{out/a/fig-01-1.pdf}\caption{\antinb[caption]{fig-01-1}}\end{figure}
\begin{figure}\includegraphics[width=4cm]{out/a/fig-01-2.png}\end{figure}\end{document}"""


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs LaTeX")
@pytest.mark.parametrize("typo", ["", "{a.r}", "[high]{a.r}]", "[caption]{fig-01-1}", "fig-01-2.png"])
def test_a_whole_article_with_figures_compiles_and_a_typo_stops_it(tmp_path, typo):
    book = claimed(tmp_path / "out", "a", ("a.r", -0.5, -0.75, -0.25))
    for name in ("fig-01-1", "fig-01-2"):
        book.save_figure(plt.figure(figsize=(1, 1)), name, "A line & a point.", pd.DataFrame({"x": [0.0]}))
        plt.close()
    merge(tmp_path / "out")
    text = ARTICLE.replace(typo, typo.replace("a.r", "a.rr").replace("-1}", "-3}").replace("-2.", "-4."), bool(typo))
    assert (text == ARTICLE) == (typo == "")
    (tmp_path / "x.tex").write_text(text)
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "x.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace")
    assert (done.returncode == 0) == (tmp_path / "x.pdf").exists() == (typo == ""), done.stdout
    words = done.stdout.replace("\n", "")
    assert not typo or ("fig-01-4" if "png" in typo else "nothing has the id") in words
