"""A run to look into in JupyterLab: its pairs, the half circle from `z` to `-z`, the steps of the sampler."""

from __future__ import annotations

import base64
import io
import json
from functools import lru_cache
from typing import Any

import ipywidgets
import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from antinb import checks, dataset
from antinb.analysis import correlation
from antinb.models.generator import Generator
from antinb.noise import Design
from antinb.reporting.pictures import image_grid
from antinb.sampling import check_equal, generate

__all__ = ["explore"]

ENDS, HALF_CIRCLE = (0, 180), range(0, 181, 15)  # degrees
NOISE_RANGE = (-3, 3)  # black and white of a state
DPI, KEPT = 150, 16


@checks.typed
def explore(run: xr.Dataset, generator: Generator | None = None) -> ipywidgets.VBox:
    r"""Return a widget with a slider for the pairs of a run, the most opposed pair first, and a picture of one.

    Pairs are in the order of their centred correlation. With the generator a second slider walks the noise along the
    half circle `cos(a) z + sin(a) w` from `z` to `-z`, w independent of z, in steps of 15 degrees; every point of it is
    exactly N(0, I). If the generator's sampler has steps, or the run has a trajectory, a third one shows the state and
    the predicted noise at each step. Where widgets are not shown, such as in a notebook that `antinb run` wrote, three
    pairs stand instead: the most opposed one, the middle one and the least opposed one.

    Args:
        run: of `noise.antithetic`, with 8 pairs a condition or more.
        generator: the one that made the run; an image of the half circle costs as many evaluations as one of the run.

    Raises:
        ValueError: if the run is none of `noise.antithetic`, has fewer than 8 pairs a condition, or, once a pair is
            shown, the generator makes other images of its noise.

    Examples:
        >>> import antinb
        >>> model = antinb.load("fashion-mixture", steps=3)
        >>> run = antinb.sample(model, antinb.noise.antithetic(8), seed=0, progress=False)
        >>> pair, angle, step, picture = antinb.explore(run, model).children
        >>> pair.max, angle.value, step.max
        (8, 90, 2)
    """
    return _Explorer(_Pairs(run, generator))


class _Pairs:
    """The pairs of a run, the most opposed first, and what lies between their members."""

    def __init__(self, run: xr.Dataset, generator: Generator | None) -> None:
        found = dataset.config(run).get("design")
        self.design: dict[str, Any] = found if isinstance(found, dict) else {}
        if self.design.get("name") != "antithetic":
            raise ValueError(f"to explore is a run of noise.antithetic; got one of {checks.quoted(found)}")
        found = correlation.pn(run, centred=True)
        self.correlations = found[np.argsort(found.values)]
        self.run, self.generator, self.config = run, generator, dataset.config(run)
        self.angles = ENDS if generator is None else tuple(HALF_CIRCLE)
        self.between = lru_cache(KEPT)(self._between)

    def _between(self, rank: int) -> dict[str, np.ndarray]:
        """Return `image`, and `state` and `predicted_noise` where there are steps, at each angle of a pair."""
        pair = self.run.sel(unit=self.correlations["unit"][rank])
        names = [name for name in ("image", "state", "predicted_noise") if name in pair]
        ends = {name: pair[name].transpose("member", ..., "channel", "y", "x").values for name in names}
        if self.generator is None:
            return ends
        unit = int(pair["unit"])
        classes = np.full(unit + 1, int(pair["condition"])) if "condition" in pair.coords else None
        how: dict[str, Any] = {"seed": self.config["seed"], "classes": classes, "batch": self.config["batch"]}
        made = generate(self.generator, self._half_circle(unit + 1), range(unit, unit + 1), trajectory=True, **how)
        found = {name: part[0] for name, part in made.items()}
        if not getattr(self.generator, "amplifies", False):
            check_equal(ends["image"], found["image"][[0, -1]], unit, self.config)
        return found

    def _half_circle(self, units: int) -> Design:
        """Return the design whose members lie between `z`, the first, and `-z`, the last, of the run's."""
        radians = np.radians(self.angles)

        def points(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
            z, w = rng.standard_normal((2, *shape))
            return np.multiply.outer(np.cos(radians), z) + np.multiply.outer(np.sin(radians), w)

        def shared(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
            return np.broadcast_to(rng.standard_normal(shape), (len(radians), *shape))

        step_noise = shared if self.design.get("start_only") else None
        return Design("half circle", units, len(radians), points, step_noise=step_noise)

    def picture(self, rank: int, angle: int, step: int) -> Figure:
        """Return the figure of a pair: its images, the image at an angle, and all of them at a step."""
        parts = self.between(rank)
        places = [0, self.angles.index(angle), -1] if self.generator else [0, -1]
        columns = ["from z", *[f"at {angle}°"] * (len(places) > 2), "from −z", "mean of z, −z"]
        sheets = {"image": parts["image"]}
        if "state" in parts:
            sheets |= {"state": parts["state"][:, step], "predicted noise": parts["predicted_noise"][:, step]}
        size = 1.3 * len(columns) + 1.3, 1.2 * len(sheets) + 0.5
        fig, axes = plt.subplots(len(sheets), figsize=size, squeeze=False, layout="constrained")
        for ax, (name, values) in zip(axes.flat, sheets.items(), strict=True):
            shown = np.concatenate([values[places], values[[0, -1]].mean(0, keepdims=True)])[:, None]
            under = columns if ax is axes[-1, 0] else None
            _sheet(shown, [name], under, NOISE_RANGE if name != "image" else dataset.RANGE, ax)
        unit, value = int(self.correlations["unit"][rank]), float(self.correlations[rank])
        fig.suptitle(f"pair {unit} of the run, centred correlation {value:.2f}", fontsize="medium")
        return fig

    def static(self) -> Figure:
        """Return the figure of three pairs, with seven images from `z` to `-z` if there is a generator."""
        last = len(self.correlations) - 1
        ranks = sorted({0, last // 2, last})
        places = range(0, len(self.angles), max(1, len(self.angles) // 6))
        rows = np.stack([self.between(rank)["image"][places] for rank in ranks], 1)
        fig, ax = plt.subplots(figsize=(len(places) + 1, 1.1 * len(ranks)), layout="constrained")
        labels = [f"r = {value:.2f}" for value in self.correlations.values[ranks]]
        _sheet(rows, labels, ["z", *(f"{self.angles[place]}°" for place in places[1:-1]), "−z"], dataset.RANGE, ax)
        return fig


class _Explorer(ipywidgets.VBox):
    """Sliders above a picture; its bundle holds the static figure too, for a reader without widgets."""

    def __init__(self, pairs: _Pairs) -> None:
        self.pairs = pairs
        last = pairs.between(0).get("state", np.empty((2, 1))).shape[1] - 1
        common = {"continuous_update": False, "style": {"description_width": "4em"}, "layout": {"width": "36em"}}
        self.pair = ipywidgets.IntSlider(1, 1, len(pairs.correlations), description="pair", **common)
        middle = pairs.angles[len(pairs.angles) // 2]
        self.angle = ipywidgets.SelectionSlider(options=pairs.angles, value=middle, description="angle", **common)
        self.step = ipywidgets.IntSlider(last // 2, 0, last, description="step", **common)
        self.shown = ipywidgets.Image(format="png")
        chosen = [self.pair, *[self.angle] * (len(pairs.angles) > 2), *[self.step] * (last > 0)]
        super().__init__([*chosen, self.shown])
        for slider in chosen:
            slider.observe(self.draw, "value")
        self.draw()

    def draw(self, _: object = None) -> None:
        """Show the pair, angle and step that the sliders say."""
        self.shown.value = _png(self.pairs.picture(self.pair.value - 1, self.angle.value, self.step.value))

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, object]:  # noqa: ANN401
        bundle = super()._repr_mimebundle_(**kwargs) or {}
        static = base64.b64encode(_png(self.pairs.static())).decode()
        return {**bundle, "text/plain": f"{len(self.pairs.correlations)} pairs to explore", "image/png": static}


def _sheet(
    images: np.ndarray, rows: list[str], columns: list[str] | None, limits: tuple[float, float], ax: Axes
) -> None:
    """Draw images `(column, row, channel, y, x)`; of latents, the first channel."""
    shown = images if images.shape[2] in (1, 3) else images[:, :, :1]
    values = xr.DataArray(shown, dims=["column", "row", "channel", "y", "x"], attrs={"range": json.dumps(limits)})
    image_grid(values, rows=rows, columns=columns, ax=ax)


def _png(fig: Figure) -> bytes:
    file = io.BytesIO()
    fig.savefig(file, format="png", dpi=DPI)
    plt.close(fig)
    return file.getvalue()
