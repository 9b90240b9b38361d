"""What a drawing shows is what its table holds: places, ends, references, scales, titles, legends."""

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import xarray as xr

from antinb import figures

mpl.use("Agg")
TABLE = pd.DataFrame(
    [
        {"model": model, "score": score, "design": design, "k": k, "estimate": e, "low": 0.8 * e, "high": 1.5 * e}
        for e, (model, score, design, k) in enumerate(
            [(m, s, d, k) for m in ("x", "y_z") for s in ("a_b", "c", "d") for d in ("u", "v") for k in (2, 8)], 1
        )
    ]
)
ONE = TABLE.query("score == 'c' and design == 'u' and k == 2")


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def dashed(ax, axis):
    """Return where the dashed reference lines stand."""
    lines = [line for line in ax.lines if line.get_linestyle() == "--"]
    return [float(np.unique(line.get_data()[axis])[0]) for line in lines]


def test_a_contact_sheet_names_its_rows_and_columns():
    images = xr.DataArray(np.zeros((3, 2, 1, 4, 4)), dims=["column", "row", "channel", "y", "x"])
    images.attrs["range"] = "[-1, 1]"
    ax = figures.image_grid(images, rows=["a", "b"], columns=["u", "v", "w"])
    assert [text.get_text() for text in ax.get_yticklabels()] == ["a", "b"]
    assert [text.get_text() for text in ax.get_xticklabels()] == ["u", "v", "w"]
    assert not len(figures.image_grid(images, rows=["a", "b"]).get_xticks())
    with pytest.raises(ValueError, match="3 column labels; got 2"):
        figures.image_grid(images, rows=["a", "b"], columns=["u", "v"])


def test_the_scale_of_a_map_has_the_name_of_its_values():
    values = xr.DataArray(np.eye(3), dims=["y", "x"], name="correlation")
    assert figures.pixel_map(values).figure.axes[1].get_ylabel() == "correlation"


def test_a_forest_puts_each_interval_on_its_line():
    ax = figures.forest(ONE, label="model", at=(1, 5), log=True)
    assert [text.get_text() for text in ax.get_yticklabels()] == ["x", "y_z"]
    (bars,) = ax.containers
    np.testing.assert_allclose(bars.lines[0].get_xdata().astype(float), ONE["estimate"])
    np.testing.assert_allclose(bars.lines[0].get_ydata().astype(float), [0, 1])
    ends = np.array([segment[:, 0] for segment in bars.lines[2][0].get_segments()])
    np.testing.assert_allclose(ends, ONE[["low", "high"]])
    assert dashed(ax, 0) == [1, 5]
    assert ax.get_xscale() == "log"
    assert ax.get_legend() is None


def test_colours_of_a_forest_are_named_and_lie_side_by_side():
    ax = figures.forest(TABLE.query("score == 'c' and k == 2"), label="model", hue="design")
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["u", "v"]
    first, second = (np.asarray(bars.lines[0].get_ydata()) for bars in ax.containers)
    assert (first < second).all()
    assert (np.abs(np.r_[first, second] - np.tile([0, 1], 2)) < 0.5).all()


def test_ticks_of_a_logarithmic_axis_are_plain_numbers():
    ax = figures.bands(TABLE.query("score == 'c' and model == 'x'"), x="k", hue="design", at=3, log="xy")
    ax.figure.canvas.draw()
    assert [text.get_text() for text in ax.get_xticklabels()] == ["2", "8"]
    assert {text.get_text() for text in ax.get_yticklabels()} >= {"3", "10"}
    assert dashed(ax, 1) == [3]
    assert not len(ax.xaxis.get_minorticklocs())


def test_facets_hold_the_rows_of_their_title_and_one_legend():
    options = {"label": "model", "hue": "design", "at": 0, "xlabel": "what", "sharey": True}
    fig = figures.facets(TABLE.query("k == 2"), figures.forest, by="score", rows=2, size=(6, 4), **options)
    shown = [ax for ax in fig.axes if ax.axison]
    assert [ax.get_title() for ax in shown] == ["a b", "c", "d"]
    assert [ax.get_legend() is not None for ax in shown] == [False, False, True]
    assert [ax.get_xlabel() for ax in shown] == ["", "what", "what"]
    for ax, (_, part) in zip(shown, TABLE.query("k == 2").groupby("score"), strict=True):
        drawn = np.concatenate([bars.lines[0].get_xdata() for bars in ax.containers])
        assert sorted(drawn) == sorted(part["estimate"])
        assert dashed(ax, 0) == [0]


def test_a_logarithmic_axis_of_many_decades_has_fewer_ticks():
    ax = figures.forest(ONE.assign(low=1e-3, high=1e3), label="model", log=True)
    ax.figure.canvas.draw()
    assert {0.01, 1, 100} <= set(ax.get_xticks())
    assert not {0.3, 3, 30} & set(ax.get_xticks())
    assert "$\\mathdefault{10^{-2}}$" in [text.get_text() for text in ax.get_xticklabels()]


@pytest.mark.parametrize("high", [1.3, 1.9, 4, 8, 25, 200])
def test_a_logarithmic_axis_has_at_least_three_ticks(high):
    ax = figures.forest(ONE.assign(low=0.9, estimate=1, high=high), label="model", log=True)
    left, right = ax.get_xlim()
    assert sum(left <= tick <= right for tick in ax.get_xticks()) >= 3


def test_lines_of_one_colour_each_stand_at_their_names():
    rows = TABLE.query("k == 2 and score == 'c'").drop_duplicates("model").assign(design=["u", "v"])
    ax = figures.forest(rows, label="model", hue="design")
    assert [float(*bars.lines[0].get_ydata()) for bars in ax.containers] == [0, 1]


@pytest.mark.parametrize(
    ("draw", "rule"),
    [
        (
            lambda: figures.forest(TABLE.drop(columns="low"), label="model"),
            r"columns \['estimate', 'low', 'high', 'model'\]",
        ),
        (lambda: figures.forest(TABLE, label="modell"), "'modell'"),
        (lambda: figures.forest(TABLE.iloc[:0], label="model"), "got 0 rows with"),
        (lambda: figures.bands(TABLE, x="design"), "the column 'design' must hold numbers"),
        (lambda: figures.forest(TABLE, label="model", at="1"), "a reference line must be a number"),
        (lambda: figures.facets(TABLE, figures.forest, by="modell", label="model"), "'modell'"),
        (
            lambda: figures.facets(TABLE, figures.forest, by="model", label="model", size=(3,)),
            "size must be two numbers",
        ),
        (lambda: figures.densities(TABLE), "'left', 'right', 'density', 'pairs'"),
        (lambda: figures.intervals(TABLE.assign(pairs="NP", centred=True)), "pairs must be one of"),
        (
            lambda: figures.image_grid(xr.DataArray(np.eye(3)), rows=[]),
            r"by \(..., ..., channel, y, x\); got {'dim_0': 3",
        ),
        (lambda: figures.pixel_map(xr.DataArray(np.eye(3), dims=["x", "y"])), r"by \(y, x\)"),
        (lambda: figures.pixel_map(xr.DataArray(np.eye(3), dims=["y", "x"]), limits=(1, 0)), "limits must be two incr"),
        (
            lambda: figures.slices(xr.DataArray(np.ones((1, 1, 3)), dims=["direction", "coordinate", "s"])),
            "coordinate s",
        ),
    ],
)
def test_what_cannot_be_drawn_is_refused_in_one_line(draw, rule):
    with pytest.raises(ValueError, match=rule):
        draw()
