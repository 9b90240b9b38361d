"""Values for the parameters of every public function: plain ones, others that mean the same, and wrong ones.

The fuzz test replaces one or two arguments of a plain call. What means the same gives the same result or one line; what
is wrong gives one line.
"""

import inspect
import os
import pkgutil
from importlib import import_module
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
import xarray as xr
from helpers import LINEAR, SHAPE, random_mixture, tiny_unet

import antinb
from antinb import dataset, noise, operators, statistics
from antinb.models import diffusion, rectified

mpl.use("Agg")
RNG = np.random.default_rng(0)
MIXTURE = random_mixture(rank=2)
MODEL = diffusion.from_mixture(MIXTURE, SHAPE, LINEAR).with_(steps=2)
FLOW = rectified.from_network(tiny_unet(num_class_embeds=3), {"num_train_timesteps": 1000}).with_(steps=2)
PAIRS, PLAIN = noise.antithetic(24), noise.iid(24)


def sampled(design, seed, **options):
    return antinb.sample(MODEL, design, seed=seed, progress=False, **options)


RUN, OTHER, TRACED = sampled(PAIRS, 0), sampled(PLAIN, 1), sampled(noise.antithetic(12), 0, trajectory=True)
SHIFTED = RUN.assign(image=RUN["image"] + 0.1)
LARGE = dataset.build({"image": noise.antithetic(8).draw((1, 12, 12), seed=0)}, {"seed": 0})
AGAIN = statistics.measure(sampled(PAIRS, 7), statistics.brightness, statistics.contrast)
VALUES, BASELINE = (statistics.measure(run, statistics.brightness, statistics.contrast) for run in (RUN, OTHER))
PILOT = statistics.measure(sampled(noise.sobol(20, 8, antithetic=True), 2), statistics.brightness)
KNOWN = antinb.controls.features(PAIRS, SHAPE, seed=0, leading=1)
COARSE = statistics.measure(
    antinb.sample(MODEL.with_(steps=1), PAIRS, seed=0, progress=False), statistics.brightness, statistics.contrast
)
MANY = statistics.measure(
    antinb.sample(MODEL.with_(steps=1), PAIRS, seed=5, progress=False), statistics.brightness, statistics.contrast
)
LEVELS = [
    statistics.measure(
        antinb.sample(MODEL.with_(steps=steps), PAIRS, seed=6, progress=False),
        statistics.brightness,
        statistics.contrast,
    )
    for steps in (2, 1)
]
SCORES = antinb.probing.Probe(MODEL, seed=0, timesteps=[500], points=5, coordinates=4).score(
    directions=9, progress=False
)
IMAGE = RNG.uniform(-1, 1, SHAPE)
UNITS = RNG.standard_normal(16)
SHARES = RNG.uniform(0.2, 1, 30)
TABLE = pd.DataFrame({"label": ["a", "b"], "estimate": [1.0, 2.0], "low": [0.5, 1.5], "high": [1.5, 2.5], "x": [1, 2]})
TABLE = TABLE.assign(pairs="PN", centred=True, left=[-1.0, 0.0], right=[0.0, 1.0], density=[0.2, 0.8])
TABLE = TABLE.assign(variable="state", step=[0, 1], timestep=[9, 8])
GRIDS = xr.DataArray(
    np.zeros((3, 2, 1, 4, 4)), dims=["unit", "member", "channel", "y", "x"], attrs={"range": "[-1, 1]"}
)
LINES = xr.DataArray(np.ones((2, 3, 5)), {"s": np.linspace(-1, 1, 5)}, ["direction", "coordinate", "s"])
GRID = xr.DataArray(np.eye(4), dims=["y", "x"])
OPERATOR = operators.superresolution(SHAPE, 2)


def flat(images):
    return images.reshape(*images.shape[:2], -1)


def row(images):
    return images[..., 0, 0, :4]


def turned(data):
    return data.transpose(*reversed(list(data.dims)))


def renamed(data):
    return data.rename(unit="draw")


class Thing:
    """An object of no known kind, with a long repr of several lines."""

    def __repr__(self):
        return "thing\n" * 5000 + "\x1b[31m"


INFINITE = float("inf")
WRONG = [None, "no", "3", "\x1b[1m\n", b"x", object(), Thing(), [], {}, (), [None], [[1], [1, 2]], np.array(["a"])]
WRONG += [float("nan"), 1j, np.datetime64("2020"), np.array(object()), ..., NotImplemented]
NUMBERS = [*WRONG, True, np.True_, INFINITE, 10**400, [1.0], np.ones(2), xr.DataArray([1.0, 2.0])]
COUNTS = [*NUMBERS, -1, 10**30, 2.5, np.float64(2.5)]


def whole(value, *more):
    return value, [np.int64(value), np.int16(value)], [*COUNTS, *more]


def real(value, *more):
    return value, [np.float64(value), *([np.float32(value)] if np.float32(value) == value else [])], [*NUMBERS, *more]


def flag(value):
    return value, [np.bool_(value)], [*WRONG, 0, 1, "yes", "False", 1.0, np.int64(1), np.array([True, False])]


def name(value, *more):
    return value, [], [part for part in [*WRONG, value.upper() + "x", 1, True, value + " ", *more] if part is not None]


def run(data, *more):
    same = [turned(data), data.chunk(), data.copy(deep=True), data.isel(unit=slice(None))]
    wrong = [*WRONG, 1, True, data["image"], data["image"].values, renamed(data), data.drop_vars("image"), xr.Dataset()]
    wrong += [xr.concat([data, data], "unit"), data.isel(unit=slice(0)), data.isel(channel=0, drop=True)]
    wrong += [data.assign(image=data["image"].astype(kind)) for kind in ("uint8", bool, complex, object)]
    wrong += [data.assign(image=data["image"].assign_attrs(range=text)) for text in ("junk", "[1, 1]", 7, '["a", 1]')]
    return data, same, [*wrong, *more]


def values(data, *more):
    same = [turned(data), data.copy(deep=True), data.chunk()]
    wrong = [*WRONG, 1, True, data.values, data.to_dataset(name="a"), renamed(data), xr.concat([data, data], "unit")]
    wrong += [data.isel(unit=slice(0)), data.isel(member=0, drop=True), data.astype(complex), data.astype(object)]
    return data, same, [*wrong, *more]


def array(data, *more, lists=True, wide=False):
    same = [data.copy(), np.asfortranarray(data), *([data.tolist()] if lists else [])]
    wrong = [part for part in WRONG if not isinstance(part, float)]
    wrong += [] if wide else [data[None, None]]
    return data, same, [*wrong, data.astype(complex), data.astype(object), data.astype(str), *more]


def thing(value, *more):
    return value, [], [*WRONG, 1, True, *more]


def drawn(columns):
    """Return a table for a drawing that needs these columns, of which some hold numbers."""
    texts = {"label", "pairs", "centred", "variable"}
    wrong = [*WRONG, 1, TABLE.iloc[:0], TABLE["low"], TABLE.to_dict("list"), TABLE.values]
    wrong += [TABLE.drop(columns=[column]) for column in columns]
    wrong += [TABLE.assign(**{column: ["x", "y"]}) for column in {*columns} - texts]
    return TABLE, [TABLE.copy(), TABLE.iloc[:]], wrong


def optional(value, *wrong):
    return value, [], [*(part for part in WRONG if part is not None), *wrong]


AT = (
    1.0,
    [np.float64(1.0), [1.0], np.array([1.0])],
    [part for part in NUMBERS if not isinstance(part, (list, tuple, np.ndarray, xr.DataArray))],
)
LEVEL = real(0.95, 0, 1, 95, -0.5, 1.5)
SEED = whole(3, -1)
SIZE = ((8, 8), [[8, 8], np.array([8, 8])], [*WRONG, (8,), (0, 8), (8, -8), (8.0, 8), 8, True, (True, 8), "88"])
SHAPED = (SHAPE, [list(SHAPE), np.array(SHAPE)], [*WRONG, (0, 8, 8), (1, 8.0, 8), -1, 8, True, "188", (1, 8, True)])
MASK = (np.eye(8, dtype=bool), [np.asfortranarray(np.eye(8, dtype=bool))], [*WRONG, np.eye(8), np.eye(8, dtype=int), 1])
TRUTH = array(IMAGE, (IMAGE * 127 + 128).astype(np.uint8), IMAGE > 0, IMAGE[0], IMAGE * np.nan, 0.5, lists=False)
BATCH = array(np.abs(RNG.standard_normal((2, 3, 1, 4, 4))), np.ones((2, 4, 4)) * 1j, UNITS, wide=True)
TENSOR = (torch.zeros(3), [], [*WRONG, 1, True, np.zeros(3), torch.zeros(3, 3)])
STATISTIC = (
    statistics.brightness,
    [],
    ["brightness", "brigthness", *(part for part in WRONG if not callable(part)), 1],
)
DESIGNED = (PAIRS, [], [*WRONG, "antithetic", noise.antithetic, 1])
MODELLED = (MODEL, [], [*WRONG, 1, "fashion-ddpm", torch.tanh])

# by function and parameter, then by parameter alone
KINDS = {
    "densities.table": drawn(["pairs", "left", "right", "density"]),
    "intervals.table": drawn(["estimate", "low", "high", "label", "pairs", "centred"]),
    "table": drawn(["estimate", "low", "high"]),
    "bands.table": drawn(["estimate", "low", "high", "x"]),
    "facets.table": drawn(["label"]),
    "trajectory.table": drawn(["estimate", "low", "high", "variable", "step"]),
    "by_timestep.table": drawn(["estimate", "low", "high", "timestep"]),
    "label": name("label", "lable"),
    "by": name("label", "lable"),
    "x": name("x", "y", "label"),
    "hue": optional(None, "lable"),
    "log": flag(False),
    "bands.log": (("x", [], [part for part in WRONG if not isinstance(part, str)])),
    "forest.at": AT,
    "bands.at": AT,
    "ax": optional(None, 1, plt),
    "figsize": ((3, 2), [[3, 2]], [*WRONG, (1,), 3]),
    "image_grid.images": (GRIDS, [GRIDS.copy()], [*WRONG, GRID, GRIDS.drop_attrs(), turned(GRIDS), GRIDS.values, 1]),
    "image_grid.rows": (["a", "b"], [], [*WRONG, ["a"], 2]),
    "columns": optional(None, ["a"]),
    "pixel_map.values": (GRID, [GRID.copy()], [*WRONG, GRIDS, GRID.values, GRID.astype(str), turned(GRID)]),
    "limits": ((-1, 1), [[-1, 1]], [*WRONG, (1, -1), (0,), 3]),
    "slices.values": (LINES, [LINES.copy()], [*WRONG, GRID, turned(LINES), LINES.drop_vars("s"), LINES.values]),
    "draw": thing(antinb.figures.densities, "forest"),
    "facets.size": ((3, 2), [[3, 2]], [*WRONG, (1,), 3, (-1, 2)]),
    "facets.rows": whole(1, 0),
    "sharex": flag(True),
    "sharey": flag(True),
    "xlabel": (None, [], [1, b"x", [], object(), True]),
    "ylabel": (None, [], [1, b"x", [], object(), True]),
    "plan.half_width": (
        0.1,
        [np.float64(0.1), [0.1]],
        [*(part for part in NUMBERS if not isinstance(part, (list, np.ndarray, xr.DataArray))), 0.0, -1.0],
    ),
    "plan.budget": optional(None, 1000, 0),
    "plan.coarse": optional(None, MODEL),
    "plan.surrogates": ([], [()], [MODEL, 1, "no", None, [1], ["no"], [None]]),
    "plan.units": whole(8, 7),
    "points": whole(4, 2, 3, 2**40),
    "run_until.half_width": (
        0.1,
        [np.float64(0.1), [0.1]],
        [*(part for part in NUMBERS if not isinstance(part, (list, np.ndarray, xr.DataArray))), 0.0, -1.0],
    ),
    "first": (noise.antithetic(20), [], [*WRONG, noise.antithetic(19), 20]),
    "most": optional(None, 0, 10, 2.5),
    "bounded_p_value.values": array(SHARES, SHARES + 1, -SHARES, SHARES[:0]),
    "bounded_p_value.mean": real(0.75, 0, 1, 2, -1),
    "difference.first": array(UNITS, UNITS[:1], UNITS[:5]),
    "ratio.first": array(UNITS, UNITS[:1], UNITS[:5]),
    "win_rate.first": array(UNITS, UNITS[:1], UNITS[:5]),
    "difference.second": array(UNITS[::-1].copy(), UNITS[:1]),
    "ratio.second": array(UNITS + 5, UNITS[:1]),
    "win_rate.second": array(UNITS[::-1].copy(), UNITS[:1]),
    "tie": (0.5, [np.float32(0.5)], [part for part in NUMBERS if part is not INFINITE]),
    "target": array(np.linspace(0, 1, 48).reshape(2, 3, 8), UNITS),
    "kept": array(np.linspace(1, 0, 48).reshape(2, 3, 8), UNITS),
    "matched.target": array(np.tile(np.array([[0.0], [0.5], [1.0]]), (2, 1, 8)), UNITS),
    "at": real(0.5, 7, -7),
    "coefficients.values": values(VALUES, BASELINE),
    "regression.values": values(VALUES, BASELINE),
    "surrogate.values": values(VALUES, BASELINE),
    "surrogate.known": (None, [], [part for part in WRONG if part is not None] + [VALUES]),
    "surrogates": values(COARSE, VALUES.isel(statistic=[0])),
    "expectations": values(MANY, COARSE),
    "known": values(KNOWN, VALUES),
    "coefficients.known": values(KNOWN),
    "fixed": (None, [], [part for part in WRONG if part is not None] + [VALUES]),
    "folds": whole(4, 1, 0),
    "direction.values": values(VALUES.isel(statistic=[0]), VALUES),
    "surrogate.learned": flag(False),
    "learned.values": values(VALUES, BASELINE),
    "learned.leading": (None, [], [part for part in COUNTS if part is not None] + [2]),
    "regressor": (None, [], [part for part in WRONG if part is not None]),
    "noise": DESIGNED,
    "leading": whole(2, 0, 10**6),
    "sobol.leading": (2, [np.int64(2)], [*(part for part in COUNTS if part is not None), 0, 10**6]),
    "shape": SHAPED,
    "fine": values(VALUES, BASELINE),
    "coarse": values(COARSE, VALUES),
    "many": values(MANY, COARSE),
    "coefficient": real(0.5),
    "groups": ([[VALUES, COARSE], [MANY]], [], [*WRONG, VALUES, [[VALUES, MANY]], [[1]], [VALUES]]),
    "pilot": (LEVELS, [], [*WRONG, VALUES, [*LEVELS, BASELINE], [VALUES, COARSE, 1]]),
    "candidates.fine": values(PILOT, VALUES),
    "candidates.surrogates": ([], [()], [1, "no", None, [1], ["no"], [None], [VALUES], PILOT]),
    "candidates.coarse": (None, [], [part for part in WRONG if part is not None]),
    "data": run(RUN),
    "along.data": run(TRACED, RUN),
    "predict_correlation.data": run(TRACED, RUN),
    "symmetry.summary.data": (SCORES, [turned(SCORES)], [*WRONG, RUN, 1, SCORES["affine_antisymmetry"]]),
    "config.data": run(RUN),
    "paired_difference.first": run(RUN, OTHER, RUN.isel(unit=slice(8))),
    "paired_difference.second": run(RUN.assign(image=RUN["image"] ** 2), OTHER),
    "centred": flag(True),
    "bins": whole(7, 0),
    "min_sd": real(0.0625, -1, 7),
    "run": run(RUN),
    "run_a": run(RUN, OTHER),
    "run_b": run(SHIFTED, OTHER),
    "summary.statistics": (
        [statistics.brightness],
        [(statistics.brightness,)],
        ["brightness", ["contrst"], [], None, 1],
    ),
    "margins": ({"brightness": 0.1}, [{"brightness": np.float64(0.1)}], [1, "no", {"brightnes": 1}, {"brightness": 0}]),
    "looks": whole(2, 0),
    "metrics": ([], [()], [["no"], "no", 1, [1], [lambda a, b: 1]]),
    "side_by_side.units": ([3, 1], [(3, 1), np.array([3, 1])], [[99], 3, "no", [[1]], [None], [0.5]]),
    "gain": real(2.0, 0, -1),
    "frechet.features": thing(row, lambda images: images[0], lambda images: "x", lambda images: row(images) * np.nan),
    "reference": (SHIFTED, [turned(SHIFTED), SHIFTED.chunk()], [*WRONG, 1, "nowhere", Path(__file__), RUN["image"]]),
    "against": (None, [], [part for part in WRONG if part is not None] + [1, OTHER, RUN["image"]]),
    "axes": (2, [np.int64(2)], [part for part in COUNTS if part is not None] + [0, 9]),
    "kid.baseline": run(OTHER),
    "scores.run": run(LARGE, RUN),
    "scores.features": thing(flat, lambda images: images[0], lambda images: "x"),
    "kid.features": thing(flat, lambda images: images[0], lambda images: "x"),
    "vendi.features": array(np.abs(RNG.standard_normal((3, 4))), UNITS[0:1], 1.0, wide=True),
    "values": values(VALUES),
    "compare.baseline": values(BASELINE, VALUES),
    "seed": SEED,
    "drop": flag(False),
    "interval.method": name("skew", "T"),
    "coverage.method": name("skew", "T"),
    "level": LEVEL,
    "candidates.level": (0.9, [np.float64(0.9)], [part for part in LEVEL[2] if part is not None]),
    "pool": array(UNITS, UNITS * 0, UNITS * np.nan, UNITS[:0]),
    "coverage.units": whole(5, 1, 0),
    "truth": TRUTH,
    "coverage.truth": (0.5, [np.float64(0.5)], [part for part in NUMBERS if part is not None]),
    "half_width": (None, [], [part for part in NUMBERS if part is not None] + [0.0, -1.0]),
    "experiments": whole(4, 0),
    "estimator": thing(lambda units: UNITS[units].mean()),
    "jackknife.units": whole(16, 7, 0),
    "strata": (None, [], [part for part in WRONG if part is not None]),
    "means": array(UNITS, UNITS[:1], 1.0, wide=True),
    "images": BATCH,
    "statistic": STATISTIC,
    "statistics": STATISTIC,
    "asked": STATISTIC,
    "above": real(0.5),
    "tables": ([VALUES, AGAIN], [], [*WRONG, VALUES, [VALUES, VALUES], [VALUES, 1], [RUN], 1]),
    "shares": (
        xr.DataArray(np.full((1, 20), 0.9), {"timestep": [5]}, ["timestep", "direction"]),
        [xr.DataArray(np.full((20, 1), 0.9), {"timestep": [5]}, ["direction", "timestep"])],
        [*WRONG, VALUES, SHARES, 1],
    ),
    "threshold": real(0.5, 0, 1, 2),
    "alternative": name("less", "two-sided"),
    "variables": ({"image": RUN["image"].values}, [], [*WRONG, {"image": 1}, {"image": UNITS}, RUN["image"], 1]),
    "build.config": ({"seed": 0}, [], [*(part for part in WRONG if not isinstance(part, dict)), {"seed": object()}, 1]),
    "config": (LINEAR, [], [part for part in WRONG if not isinstance(part, dict)] + [{"num_train_timesteps": "x"}, 1]),
    "make_scheduler.name": name("ddim", "DDPM"),
    "clip": (None, [], [part for part in flag(True)[2] if part is not None]),
    "mixture.name": name("fashion-mixture", "fashion-ddpm"),
    "mixture": thing(MIXTURE, "fashion-mixture"),
    "odd_share": real(0.5, -1, 2),
    "centre": TENSOR,
    "offset": (torch.ones(3), *TENSOR[1:]),
    "weight": real(0.25, 0, 1, 2),
    "variance": real(0.25, 0, -1),
    "units": whole(4, 0),
    "members": whole(2, 0),
    "start_only": flag(True),
    "redraw": flag(True),
    "mask": MASK,
    "fourier.mask": MASK,
    "k": whole(3, 1, 0),
    "n": whole(4, 1, 3, 2**40),
    "latin.n": whole(4, 1, 0, 2**40),
    "basis": name("pixel", "learned"),
    "antithetic": flag(False),
    "supercube": flag(True),
    "direction": (None, [], [part for part in WRONG if part is not None]),
    "to_noise.coefficients": array(RNG.standard_normal((2, 64)), UNITS, 1.0, wide=True),
    "generator": MODELLED,
    "design": DESIGNED,
    "explore.run": run(RUN, OTHER, RUN.isel(unit=slice(7))),
    "explore.generator": (None, [MODEL], [part for part in WRONG if part is not None] + [1, True]),
    "condition": (None, [], [part for part in COUNTS if part is not None] + [0, [0, 1]]),
    "store": (None, [], [1, True, 2.5, [], {}, "", "s3://a", "gs://a/b", object(), b"x"]),
    "client": (None, [], [1, True, 2.5, [], {}, "tcp://a:1", object(), b"x"]),
    "batch": whole(8, 0),
    "trajectory": flag(False),
    "progress": (False, [np.False_], flag(False)[2]),
    "load.name": name("fashion-classifier"),
    "rounded.generator": thing(FLOW, MODEL),
    "weights": name("int8", "int3"),
    "model": thing(MODEL, FLOW.network),
    "source": (MIXTURE, [], [*WRONG, 1, RUN["image"], RUN.isel(unit=slice(2)), torch.zeros(20, *SHAPE, dtype=bool)]),
    "rank": (None, [], [part for part in COUNTS if part is not None] + [47]),
    "components": whole(2, 0),
    "flow_edit.model": thing(FLOW, MODEL),
    "sources": (IMAGE.astype(np.float32), [torch.from_numpy(IMAGE).float()], [*WRONG, 1, IMAGE[0], IMAGE * np.nan]),
    "from_class": (0, [np.int64(0)], [*(part for part in COUNTS if part is not None), 1, 7]),
    "to_class": (1, [np.int64(1)], [*(part for part in COUNTS if part is not None), 0, 7]),
    "sd_edit.to_class": (None, [], [part for part in COUNTS if part is not None] + [0]),
    "strength": real(0.5, 0, 2),
    "repeats": whole(2, 0),
    "source_guidance": real(1.5, -1),
    "measure.editor": thing(antinb.editing.sd_edit(MODEL, IMAGE.astype(np.float32))),
    "measure.classifier": thing(antinb.classifier.load("fashion-classifier")),
    "solver": thing(MODEL),
    "size": SIZE,
    "side": whole(4, 0, 8),
    "deblurring.width": real(1.5, 0, 100),
    "operator": thing(OPERATOR, "superresolution"),
    "like": (None, [], [part for part in WRONG if part is not None]),
    "dtype": thing(torch.float64, "float64"),
    "share": real(0.5, -1, 2),
    "line_mask.centre": whole(4, 0, 9),
    "image": (torch.from_numpy(IMAGE), [], [*WRONG, 1, IMAGE[0]]),
    "sigma": real(0.5, -1),
    "factor": whole(2, 1, 3),
    "views": whole(3, 0),
    "held_out.name": name("fashion", "mnist"),
    "sample": name("random"),
    "size.given": (None, [], [part for part in COUNTS if part is not None] + [0]),
    "profile": name("smoke"),
    "smoke": whole(2, 0),
    "full": whole(3, 0),
}
SKIPPED = {
    "antinb.analysis.symmetry.predict_correlation": "slow: a second a call",
    "antinb.models.draws.using": "a context, tried in test_draws",
    "antinb.models.entry.find": "takes programs, tried in test_entry",
    "antinb.models.generator.Generator": "a protocol",
    "antinb.tasks.editing.measure": "takes an editor with classes, tried in test_editing",
    "antinb.tasks.inverse.law": "takes a solver, tried in test_inverse",
    "antinb.dataset.reader.open": "reads files, tried in test_mutations",
    "antinb.reporting.report.open": "writes files, tried in test_report",
    "antinb.zoo.loading.load": "reads files, tried in test_strangers",
    "antinb.zoo.loading.untrained": "reads files, tried in test_strangers",
    "antinb.zoo.pricing.prices": "reads files, tried in test_pricing",
    "antinb.zoo.pricing.rate": "measures a time, tried in test_pricing",
}


def found():
    """Return every public function of the package by its name, what `SKIPPED` names left out."""
    functions = {}
    for module in pkgutil.walk_packages(antinb.__path__, "antinb."):
        if not module.name.endswith("__main__"):
            room = import_module(module.name)
            for value in (getattr(room, key) for key in getattr(room, "__all__", [])):
                path = f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', '')}"
                if inspect.isfunction(value) and path not in SKIPPED:
                    functions[path.removeprefix("antinb.")] = value
    return functions


def kinds(path, function):
    """Return plain, equal and wrong values of each parameter of a function."""
    own, room = function.__name__, path.split(".")[-2]
    chosen = {}
    for key, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD:
            places = (f"{room}.{own}.{key}", f"{own}.{key}", key)
            chosen[key] = KINDS[next(place for place in places if place in KINDS)]
    return chosen


def call(function, arguments):
    """Call a function with arguments by name; those of a starred parameter stand alone."""
    starred = [key for key, p in inspect.signature(function).parameters.items() if p.kind is p.VAR_POSITIONAL]
    positional = []
    if starred:
        arguments = dict(arguments)
        before = list(inspect.signature(function).parameters)
        before = before[: before.index(starred[0])]
        positional = [*(arguments.pop(key) for key in before), arguments.pop(starred[0])]
    return function(*positional, **arguments)


def same(first, second):
    """Return whether two results agree, whatever they are."""
    if isinstance(first, (xr.DataArray, xr.Dataset)):
        xr.testing.assert_allclose(first, second.transpose(*first.dims), rtol=1e-4, atol=1e-6)
    elif isinstance(first, pd.DataFrame):
        pd.testing.assert_frame_equal(first, second, check_dtype=False, rtol=1e-4, atol=1e-6)
    elif isinstance(first, (float, np.ndarray, torch.Tensor)):
        np.testing.assert_allclose(np.asarray(first), np.asarray(second), rtol=1e-4, atol=1e-6)
    elif isinstance(first, noise.Design):
        assert first.describe() == second.describe()
        np.testing.assert_array_equal(first.draw(SHAPE, seed=0), second.draw(SHAPE, seed=0))
    elif isinstance(first, mpl.figure.Figure | mpl.axes.Axes):
        assert len(first.findobj()) == len(second.findobj())
    elif isinstance(first, tuple):
        for one, other in zip(first, second, strict=True):
            same(one, other)
    return True


def outcome(path, function, changes):
    """Return whether a call with changed arguments is "right", "refused", "raw" or "wrong", and what was seen.

    `changes` are places in the list of the equal values and then the wrong ones, by parameter.
    """
    known = kinds(path, function)
    plain, given, wrong = {key: values[0] for key, values in known.items()}, {}, False
    for key, place in changes.items():
        equal, bad = known[key][1:]
        given[key] = (equal + bad)[place]
        wrong |= place >= len(equal)
    try:
        found = call(function, plain | given)
    except (ValueError, TypeError) as error:
        message, trace = str(error), error.__traceback__
        while trace.tb_next:
            trace = trace.tb_next
        if not message.isprintable() or not 0 < len(message) < 1500:
            return "raw", f"not one short line: {message[:80]!r}"
        own = f"{Path(antinb.__file__).parent}{os.sep}"
        if not trace.tb_frame.f_code.co_filename.startswith(own):
            return "raw", f"{type(error).__name__}: {message[:120]}"
        return "refused", message
    except Exception as error:
        return "raw", f"{type(error).__name__}: {str(error)[:120]!r}"
    finally:
        plt.close("all")
    if wrong:
        return "wrong", f"taken: {given!r:.160}"
    try:
        same(call(function, plain), found)
    except AssertionError as error:
        return "wrong", f"another result: {str(error)[:120]!r}"
    return "right", ""


def count(path, function, key):
    """Return how many values there are to replace an argument."""
    _, equal, bad = kinds(path, function)[key]
    return len(equal) + len(bad)
