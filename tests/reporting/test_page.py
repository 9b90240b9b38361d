"""The page of all results holds every figure and claim, reaches for nothing outside, and replaces no other file."""

import base64
import io
import re
from html.parser import HTMLParser

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from PIL import Image

from antinb import report
from antinb.cli import main
from antinb.reporting import page


class Tags(HTMLParser):
    """Collects the tags of a page with their attributes, and what was not closed."""

    VOID = ("meta", "img", "br", "link")

    def __init__(self):
        super().__init__()
        self.found, self.open = [], []

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        self.open += [] if tag in self.VOID else [tag]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture
def out(tmp_path):
    book = report.open(tmp_path, "01_test", {"profile": "smoke", "model": "<b>"})
    fig, ax = plt.subplots(figsize=(2, 1))
    ax.plot([0, 1])
    book.save_figure(fig, "fig-01-1", "A line & <script>alert(1)</script>.", pd.DataFrame({"x": [0.0, 1.0]}))
    plt.close(fig)
    for id, rule in (("01.a", "<0"), ("01.b", ">0"), ("01.c", None)):  # noqa: A001
        book.claim(id, "a < b", {"estimate": -0.5, "low": -0.6, "high": -0.4}, rule)
    report.open(tmp_path, "02_other", {"profile": "full"})
    return tmp_path


def test_the_page_is_whole_and_alone(out):
    done = CliRunner().invoke(main, ["report", str(out)])
    assert done.exit_code == 0, done.output
    text = (out / page.NAME).read_text()
    tags = Tags()
    tags.feed(text)
    assert tags.open == []
    assert {tag for tag, _ in tags.found} <= {
        *("html", "head", "meta", "title", "style", "body", "h1", "h2", "p", "nav", "a", "br", "details", "summary"),
        *("table", "tr", "th", "td", "div", "span", "figure", "img", "figcaption", "pre", "script"),
    }
    addresses = [about[key] for _, about in tags.found for key in ("src", "href") if key in about]
    assert not [
        address for address in addresses if "//" in address and not address.startswith("data:image/png;base64,")
    ]
    assert all((out / address).exists() for address in addresses if address[0] != "#" and "base64" not in address)
    assert {"#01_test", "#02_other"} <= set(addresses)
    assert {about["id"] for _, about in tags.found if "id" in about} >= {"01_test", "fig-01-1", "01.a", "01.b", "01.c"}
    assert "Notebooks: 2. Figures: 1. Claims: 3 (1 holds, 1 refuted, 1 descriptive)." in text
    assert "alert(1)" not in re.sub(r"&lt;script&gt;alert\(1\)&lt;/script&gt;", "", text)
    assert "&lt;b&gt;" in text
    [shown] = [about["src"] for tag, about in tags.found if tag == "img"]
    files = io.BytesIO(base64.b64decode(shown.split(",")[1])), out / "01_test" / "fig-01-1.png"
    pictures = [Image.open(file) for file in files]
    np.testing.assert_array_equal(*(np.asarray(picture.convert("RGB")) for picture in pictures))
    assert CliRunner().invoke(main, ["report", str(out)]).exit_code == 0


def test_what_antinb_did_not_write_stays(out, tmp_path_factory):
    (out / page.NAME).write_text("mine")
    done = CliRunner().invoke(main, ["report", str(out)])
    assert done.exit_code == 1
    assert "report.html' was not made by antinb report: move it" in done.output
    assert (out / page.NAME).read_text() == "mine"
    done = CliRunner().invoke(main, ["report", str(tmp_path_factory.mktemp("empty"))])
    assert "holds no results of antinb run" in done.output
