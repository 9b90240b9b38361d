"""500 random sets of parameters for each entrance: a result, or one clear line and nothing half-written."""

import importlib
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from click.testing import CliRunner
from helpers import BODY, LINEAR, SHAPE, random_mixture, write
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import antinb
from antinb import correlation, dataset, noise
from antinb.cli import main
from antinb.models import diffusion

RULES = settings(
    max_examples=500,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
MIXTURE = diffusion.from_mixture(random_mixture(rank=2), SHAPE, LINEAR)
JUNK = st.sampled_from(
    [None, "3", 2.5, True, -1, 0, float("nan"), float("inf"), 10**30, [], {}, (1, 2), b"x", object()]
)


def mostly(strategy):
    """Return a strategy that gives junk one time in twenty-four."""
    return st.integers(0, 23).flatmap(lambda number: strategy if number else JUNK)


def one_line(error):
    text = str(error)
    assert text
    assert "\n" not in text.strip()
    return text


FUNCTIONS = {
    "good": torch.tanh,
    "stochastic": lambda z: z + torch.randn_like(z),
    "nan": lambda z: z / 0 * 0,
    "late nan": lambda z: z.masked_fill(z > 2.4, float("nan")),
    "flat": lambda z: z.flatten(1),
    "short": lambda z: z[1:],
    "text": str,
    "shifted": lambda z: z + 1,
    "integers": lambda z: z.to(torch.int32),
    "failing draw": lambda z: z + torch.randint(0, 2, z.shape),
}
DESIGNS = {
    "iid": lambda units, k, mask: noise.iid(units),
    "antithetic": lambda units, k, mask: noise.antithetic(units),
    "start only": lambda units, k, mask: noise.antithetic(units, start_only=True),
    "simplex": lambda units, k, mask: noise.simplex(units, k),
    "partial": lambda units, k, mask: noise.partial(units, mask),
}
SHAPED = [np.ones(8, bool), np.ones((8, 1), bool), np.zeros((1, 8, 8), bool), np.ones(3, bool), np.full(8, 0.5)]
MASKS = st.sampled_from([*SHAPED, None, "mask"])
SETTINGS = st.fixed_dictionaries(
    {},
    optional={
        "steps": mostly(st.integers(1, 4)),
        "scheduler": mostly(st.sampled_from(["ddim", "ddim", "ddpm", "dpmsolver++"])),
        "clip": mostly(st.booleans()),
        "eta": mostly(st.sampled_from([0.0, 0.0, 0.5, 1.0])),
        "guidance": mostly(st.just(1.0)),
        "device": mostly(st.just("cpu")),
    },
)


@pytest.mark.slow
@RULES
@given(
    function=st.one_of(st.just("mixture"), st.sampled_from(sorted(FUNCTIONS))),
    shape=mostly(st.sampled_from([SHAPE, SHAPE, (2, 3, 3), (4,)])),
    options=SETTINGS,
    odd=st.sampled_from([None, None, None, "steps", "eta"]),
    kind=st.sampled_from(sorted(DESIGNS)),
    units=mostly(st.integers(1, 6)),
    k=mostly(st.integers(2, 4)),
    mask=MASKS,
    seed=mostly(st.integers(0, 9)),
    batch=mostly(st.integers(1, 9)),
    condition=st.sampled_from([None] * 9 + [0, -1, [0, 1], [0, 1, 2, 0], "cat"]),
    trajectory=st.sampled_from([False, False, True]),
    place=st.sampled_from(["memory", "memory", "new", "new", "resumed", "resumed", "occupied", "number"]),
)
def test_sample_gives_a_run_or_one_line(
    function, shape, options, odd, kind, units, k, mask, seed, batch, condition, trajectory, place
):
    folder = Path(tempfile.mkdtemp())
    store = {"memory": None, "number": 7}.get(place, folder / "run.zarr")
    arguments = {"seed": seed, "batch": batch, "condition": condition, "trajectory": trajectory, "progress": False}
    try:
        if place == "occupied":
            store.mkdir()
            (store / "notes").write_text("mine")
        if function == "mixture":
            options.pop("device", None)
            generator = MIXTURE.with_(**{"steps": 2, **options})
        else:
            own = {name: value for name, value in options.items() if name in ("device", odd)}
            generator = antinb.load(FUNCTIONS[function], shape=shape, **own)
        design = DESIGNS[kind](units, k, mask)
        if place == "resumed":
            antinb.sample(generator, DESIGNS[kind](1, k, mask), store=store, **arguments)
        run = antinb.sample(generator, design, store=store, **arguments)
        assert dataset.check(run).sizes["unit"] == units
        assert np.isfinite(run["image"]).all()
    except (ValueError, OSError) as error:
        one_line(error)
        if place == "occupied":
            assert [path.name for path in store.iterdir()] == ["notes"]
        elif isinstance(store, Path) and store.exists():
            done = (xr.open_zarr(store, consolidated=False)["done"].values > 0).all(1)
            if done.all():
                dataset.open(store)
            else:
                with pytest.raises(ValueError, match=f"{done.sum()} of {done.size} units are done"):
                    dataset.open(store)
    finally:
        shutil.rmtree(folder)


CALLS = {
    "summary": lambda run, options: correlation.summary(run, level=options["level"]),
    "pn": lambda run, options: correlation.pn(run, centred=options["centred"]),
    "rr": lambda run, options: correlation.rr(run, centred=options["centred"]),
    "histogram": lambda run, options: correlation.histogram(run, bins=options["bins"]),
    "pixel_map": lambda run, options: correlation.pixel_map(run, min_sd=options["min_sd"]),
    "along": lambda run, options: correlation.along(run, centred=options["centred"], level=options["level"]),
    "difference": lambda run, options: correlation.paired_difference(run, run, level=options["level"]),
}


@pytest.mark.slow
@RULES
@given(
    call=st.sampled_from(sorted(CALLS)),
    units=st.sampled_from([1, 7, 8, 9, 13, 20, 30]),
    members=st.sampled_from([1, 2, 2, 3]),
    channels=st.sampled_from([1, 3]),
    kinds=st.lists(st.sampled_from(["normal", "constant", "nan", "tiny", "huge"]), min_size=1, max_size=3),
    classes=st.sampled_from([None, None, 1, 2, 3]),
    steps=st.sampled_from([None, 2, 2]),
    centred=st.booleans(),
    level=mostly(st.floats(0.5, 0.99)),
    bins=mostly(st.integers(1, 20)),
    min_sd=mostly(st.floats(0, 0.1)),
)
def test_correlations_are_numbers_or_one_line(
    call, units, members, channels, kinds, classes, steps, centred, level, bins, min_sd
):
    rng = np.random.default_rng(units)
    images = rng.standard_normal((units, members, channels, 4, 4)).astype(np.float32)
    for index, kind in enumerate(kinds):
        scale = {"normal": 1, "constant": 0, "nan": np.nan, "tiny": 1e-30, "huge": 1e15}[kind]
        images[index :: len(kinds)] *= np.float32(scale)
    variables = {"image": images}
    if steps:
        variables |= {name: np.stack([images] * steps, 2) for name in ("state", "predicted_noise")}
    condition = None if classes is None else np.arange(units) % classes
    run = dataset.build(variables, {"seed": 0}, condition=condition)
    try:
        result = CALLS[call](run, {"centred": centred, "level": level, "bins": bins, "min_sd": min_sd})
    except ValueError as error:
        one_line(error)
        return
    if call in ("pn", "rr", "pixel_map"):
        values = np.asarray(result)
        assert ((np.abs(values) <= 1 + 1e-4) | np.isnan(values)).all()
    elif call in ("summary", "along"):
        known = result.dropna(subset=["estimate", "low", "high"])
        assert ((known["low"] <= known["estimate"]) & (known["estimate"] <= known["high"])).all()


NAMES = st.sampled_from(["profile", "pairs", "scale", "low", "pears", "profil", "Pairs", "", "x y", "__class__"])
VALUES = st.one_of(
    st.sampled_from(["smoke", "full", "None", "1e5", "12", "-3", "0.5", "nan", "true", "", "[1, 2]", "{", "1 2", "é"]),
    st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), max_size=5),
)


@pytest.mark.slow
@settings(RULES, max_examples=150)
@given(given=st.lists(st.tuples(NAMES, VALUES), min_size=2, max_size=5))
@example(given=[("profile", "smoke"), ("pairs", "12"), ("low", "-0.75")])
@example(given=[("profile", "smoke"), ("low", "nan")])
@example(given=[("profile", "smok")])
@example(given=[("scale", "inf")])
def test_a_run_of_a_notebook_ends_in_results_or_one_line(tmp_path, monkeypatch, given):
    monkeypatch.chdir(tmp_path)
    if not Path("tiny.ipynb").exists():
        write(BODY + "report.size(pairs, profile, smoke=1, full=2)")
    shutil.rmtree("out", ignore_errors=True)
    arguments = [word for name, value in given for word in ("-p", name, value)]
    done = CliRunner().invoke(main, ["run", "tiny.ipynb", *arguments])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    if done.exit_code == 0:
        assert Path("out/manifest.json").exists()
    elif "Executing" not in done.output:
        assert len([line for line in done.output.splitlines() if line.startswith("Error")]) == 1
        assert "Traceback" not in done.output
        assert not Path("out").exists()


@pytest.fixture(scope="module")
def kinds():
    """Return the table of values, whose runs are made when it is imported; few resamples are drawn."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("antinb.analysis.resampling.RESAMPLES", 19)
        patched.setattr("antinb.analysis.pixels.MULTIPLIERS", 19)
        yield importlib.import_module("kinds")


@pytest.mark.slow
@settings(RULES, max_examples=2000)
@given(data=st.data())
@pytest.mark.filterwarnings("ignore")
def test_every_public_function_is_right_or_refuses_in_one_line(kinds, data):
    functions = {path: function for path, function in kinds.found().items() if kinds.kinds(path, function)}
    path = data.draw(st.sampled_from(sorted(functions)))
    known = kinds.kinds(path, functions[path])
    keys = data.draw(st.lists(st.sampled_from(sorted(known)), min_size=1, max_size=2, unique=True))
    changes = {key: data.draw(st.integers(0, kinds.count(path, functions[path], key) - 1)) for key in keys}
    verdict, seen = kinds.outcome(path, functions[path], changes)
    assert verdict in ("right", "refused"), f"{path} {changes}: {seen}"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_plain_calls_of_the_table_are_right(kinds):
    for path, function in kinds.found().items():
        assert kinds.outcome(path, function, {}) == ("right", ""), path
