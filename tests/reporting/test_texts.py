"""Entries of BibTeX name what made a figure, and the software's entry is that of the citation file."""

import re
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import pytest
import yaml
from click.testing import CliRunner

from antinb import report
from antinb.cli import main
from antinb.reporting import texts


def fields(entry):
    """Return the fields of an entry, each in one line."""
    assert entry.count("{") == entry.count("}")
    return dict(re.findall(r"^  (\w+) = \{(.*)\},$", entry, re.MULTILINE))


def cite(out, *arguments):
    return CliRunner().invoke(main, ["cite", "--out", str(out), *arguments])


@pytest.fixture
def results(tmp_path):
    book = report.open(tmp_path, "01_test", {"profile": "smoke"})
    book.save_figure(plt.figure(), "fig-01-1", "Shares of 5% & less_than {x}.", pd.DataFrame({"x": [0.0]}))
    plt.close()
    return tmp_path


def test_the_entry_of_a_figure_says_what_made_it(results):
    first, *others = cite(results, "fig-01-1").output.strip().split("\n\n")
    assert first.startswith("@misc{antinb-fig-01-1,")
    found = fields(first)
    assert found["title"] == r"Shares of 5\% \& less\_than \{x\}."
    assert found["howpublished"].startswith(r"Figure fig-01-1 of 01\_test, made with antinb ")
    assert re.search(r"profile smoke; date 2\d{3}-\d\d-\d\d;.*sha256 of its numbers [0-9a-f]{64}$", found["note"])
    assert "\n\n".join(others) == texts.software()


def test_a_run_and_the_software_have_entries(results):
    assert fields(cite(results, "01_test").output)["howpublished"].startswith(r"Notebook 01\_test")
    assert cite(results).output.strip() == texts.software()
    done = cite(results, "fig-01-2")
    assert done.exit_code == 1
    assert "holds no figure and no notebook 'fig-01-2'; it has 01_test, fig-01-1" in done.output


def test_the_entry_of_the_software_is_that_of_the_citation_file():
    about = yaml.safe_load((Path(__file__).parents[2] / "CITATION.cff").read_text())
    entry, paper = map(fields, texts.software().split("\n\n"))
    assert entry["title"] == about["title"]
    assert entry["version"] == about["version"]
    assert entry["year"] == str(about["date-released"].year)
    (reference,) = about["references"]
    assert paper["title"] == reference["title"]
    assert paper["year"] == str(reference["year"])
    assert paper["eprint"] in reference["notes"]
    assert paper["author"].split(" and ") == [author["family-names"] for author in reference["authors"]]


def test_a_long_table_is_compressed(results):
    book = report.open(results, "02_test", {})
    numbers = pd.DataFrame({"x": range(200_000)})
    book.save_figure(plt.figure(), "fig-02-1", "Many.", numbers)
    plt.close()
    pd.testing.assert_frame_equal(pd.read_csv(results / "02_test" / "fig-02-1.csv.gz"), numbers)
    assert not (results / "02_test" / "fig-02-1.csv").exists()
