"""A run made by the workers of a dask cluster: the bytes of one process, whatever happens to the workers."""

import os
import pickle
import shutil
import signal
import threading
from pathlib import Path
from types import SimpleNamespace

import dask
import pandas as pd
import pytest
import torch
import xarray as xr
import zarr

import antinb
from antinb import correlation, diversity, estimation, inverse, noise, operators, statistics, workers
from antinb.zoo import DATA, sources

distributed = pytest.importorskip("distributed")
DESIGN = noise.antithetic(24)
OPTIONS = {"seed": 3, "batch": 4, "progress": False}
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]  # dask tells of every worker that leaves


@pytest.fixture(scope="module")
def model():
    return antinb.load("fashion-ddpm", steps=3)


@pytest.fixture(scope="module")
def alone(model, tmp_path_factory):
    """Return the files of a run of one process."""
    store = tmp_path_factory.mktemp("alone") / "run.zarr"
    antinb.sample(model, DESIGN, store=store, **OPTIONS)
    return files(store)


@pytest.fixture(scope="module")
def cluster():
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=":0", silence_logs=50
    ) as cluster:
        with distributed.Client(cluster) as client:
            client.wait_for_workers(2)
            yield cluster, client


def files(store):
    return {
        str(path.relative_to(store)): path.read_bytes() for path in sorted(Path(store).rglob("*")) if path.is_file()
    }


def kill_a_worker(client, sign=signal.SIGKILL):
    os.kill(next(iter(client.run(os.getpid).values())), sign)


def test_two_workers_write_the_bytes_of_one_process(cluster, model, alone, tmp_path):
    antinb.sample(model, DESIGN, store=tmp_path / "run.zarr", client=cluster[1], **OPTIONS)
    assert files(tmp_path / "run.zarr") == alone


@pytest.mark.parametrize("name", ["fashion-ddpm", "fashion-dit", "fashion-ldm", "fashion-cm", "fashion-flow"])
def test_a_model_from_files_goes_by_its_name_and_arrives_as_it_was(name):
    model = antinb.load(name)
    message = sources.message(model)
    there, z = sources.opened(message), torch.randn(2, *model.shape, generator=torch.Generator().manual_seed(0))
    given = {"draw": lambda stream, shape: torch.full((2, *shape), 0.1)}
    given |= {"condition": torch.tensor([0, 1])} if getattr(model, "conditions", 0) else {}
    if name != "fashion-flow":
        model, there = (each.with_(steps=2) for each in (model, there))
        assert any(there.like is part for network in sources.networks(there) for part in network.parameters())
    assert len(message) < len(sources.message(model, whole=True)) / 200
    assert there.describe() == model.describe()
    assert torch.equal(there.generate(z, **given), model.generate(z, **given))


def test_a_solver_is_sent_with_the_name_of_its_model():
    model = antinb.load("fashion-ddpm", steps=3, eta=1.0)
    operator = operators.superresolution(model.shape, 4)
    solver = inverse.DPS(model, operator, operators.observe(operator, torch.zeros(model.shape), sigma=0.05, seed=0))
    message, z = sources.message(solver), torch.ones(2, *model.shape)
    given = {"draw": lambda stream, shape: torch.full((2, *shape), 0.1)}
    assert len(message) < 10**5
    assert torch.equal(sources.opened(message).generate(z, **given), solver.generate(z, **given))


def test_a_model_that_is_no_more_what_its_files_hold_is_sent_whole(cluster, tmp_path):
    """One whose weights were changed in place, and one whose folder is gone."""
    shutil.copytree(DATA / "models" / "fashion-ddpm", tmp_path / "model")
    for change in (lambda model: model.like.data.mul_(0.5), lambda model: shutil.rmtree(tmp_path / "model")):
        model = antinb.load(tmp_path / "model", steps=2)
        change(model)
        with pytest.raises((pickle.PicklingError, ValueError)):
            sources.opened(sources.message(model))
        stores = [tmp_path / f"{len(list(tmp_path.iterdir()))}.{kind}.zarr" for kind in ("alone", "spread")]
        for store, client in zip(stores, (None, cluster[1]), strict=True):
            antinb.sample(model, noise.antithetic(4), store=store, client=client, **OPTIONS)
        assert files(stores[0]) == files(stores[1])


@pytest.mark.parametrize("error", [distributed.KilledWorker("task", None, 3), distributed.CancelledError("task")])
def test_lost_workers_are_told_in_one_line(error):
    def result():
        raise error

    with pytest.raises(OSError, match="(several workers died while they made units 4 to 7|are lost).*, run again"):
        workers._received(range(4, 8), SimpleNamespace(result=result))


def test_a_run_that_was_stopped_goes_on_with_workers_and_without(cluster, model, alone, tmp_path):
    store, client = tmp_path / "run.zarr", cluster[1]
    antinb.sample(model, noise.antithetic(6), store=store, **OPTIONS)
    antinb.sample(model, noise.antithetic(14), store=store, client=client, **OPTIONS)
    antinb.sample(model, DESIGN, store=store, **OPTIONS)
    xr.testing.assert_identical(antinb.open(store).load(), reopened(alone, tmp_path))


def reopened(contents, folder):
    for name, content in contents.items():
        path = folder / "alone.zarr" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return antinb.open(folder / "alone.zarr").load()


def test_what_goes_wrong_on_a_worker_is_told_here_and_what_is_stored_stays(cluster, model, tmp_path):
    client, store = cluster[1], tmp_path / "run.zarr"
    broken = antinb.load(
        lambda z: torch.where(z.abs().amax((1, 2, 3), keepdim=True) > 3.4, torch.nan, z / 5), shape=(1, 8, 8)
    )
    with pytest.raises(ValueError, match="NaN or infinity in 1 of 2 units, first in unit"):
        antinb.sample(broken, noise.antithetic(400), store=store, client=client, **OPTIONS)
    assert 0 < (zarr.open_array(store / "done")[:] > 0).sum() < 400
    held = threading.Lock()
    stuck = antinb.load(lambda z: z if held else -z, shape=(1, 2, 2))
    with pytest.raises(ValueError, match="workers need a model that can be pickled; this Function cannot: "):
        antinb.sample(stuck, DESIGN, store=tmp_path / "other.zarr", client=client, **OPTIONS)


def test_a_client_is_one_of_dask_and_needs_a_store(model, tmp_path):
    with pytest.raises(ValueError, match=r"must be a dask\.distributed\.Client .* got a int"):
        antinb.sample(model, DESIGN, store=tmp_path / "run.zarr", client=3, **OPTIONS)
    with distributed.Client(processes=False, n_workers=1, threads_per_worker=1, dashboard_address=":0") as client:
        with pytest.raises(ValueError, match="a run of several workers needs a store; got store=None"):
            antinb.sample(model, DESIGN, client=client, **OPTIONS)
    assert not list(tmp_path.iterdir())


def test_workers_that_die_leave_and_join_change_nothing(cluster, model, alone, tmp_path):
    """A worker is killed while the first shards are made, and another one joins."""
    store, seen = tmp_path / "run.zarr", []

    def write(self, units, values, write=antinb.dataset.Store.write):
        if not seen:
            kill_a_worker(cluster[1])
            cluster[0].scale(3)
        seen.append(units)
        write(self, units, values)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(antinb.dataset.Store, "write", write)
        antinb.sample(model, DESIGN, store=store, client=cluster[1], **OPTIONS)
    assert [unit for units in seen for unit in units] == list(range(24))
    assert files(store) == alone


def test_analysis_on_the_workers_gives_the_numbers_of_this_process(cluster, model, tmp_path):
    """Chunks are read, and their checksums compared, by workers, as the tasks in their logs say."""
    stored = antinb.sample(model, DESIGN, store=tmp_path / "run.zarr", **OPTIONS)
    analyses = (
        lambda run: correlation.summary(run),
        lambda run: statistics.measure(run, statistics.brightness, statistics.contrast).to_dataframe("value"),
        lambda run: estimation.pixelwise(run).to_dataframe(),
        lambda run: diversity.scores(run, lambda images: images.reshape(*images.shape[:2], -1)).to_dataframe("value"),
    )
    for analysis in analyses:
        with dask.config.set(scheduler="synchronous"):
            here = analysis(stored)
        with distributed.get_task_stream(cluster[1]) as stream:
            pd.testing.assert_frame_equal(analysis(stored), here, check_exact=True)
        assert stream.data


def test_as_many_workers_as_were_asked_for_see_a_gpu_each(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with workers.connected(3, None) as client:
        client.wait_for_workers(3)
        assert sorted(client.run(os.getenv, "CUDA_VISIBLE_DEVICES").values()) == ["0", "0", "1"]
