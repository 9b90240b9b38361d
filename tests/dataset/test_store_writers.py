"""Several processes at one store: one writes, the other is refused in one line, and readers see whole runs."""

import os
import signal
import time

import numpy as np
import pytest
import torch
from runs import child, contents, run

from antinb import dataset, noise


@pytest.mark.slow
def test_of_fifty_pairs_of_processes_one_writes_and_the_other_is_refused(tmp_path, processes):
    """They start one new store at once, with one seed or two; it holds the run of the one that was let in."""
    torch.set_num_threads(1)
    draws = {seed: np.tanh(noise.antithetic(16).draw((1, 8, 8), seed=seed)) for seed in (0, 1)}
    for number in range(50):
        store = tmp_path / f"{number}.zarr"
        seeds = (0, number % 2)
        pair = [processes.Process(target=child, args=(store, 16, seed)) for seed in seeds]
        for process in pair:
            process.start()
        for process in pair:
            process.join()
        codes = [process.exitcode for process in pair]
        assert sorted(codes) == [0, 3]
        stored, seed = dataset.open(store), seeds[codes.index(0)]
        assert dataset.config(stored)["seed"] == seed
        np.testing.assert_allclose(stored["image"], draws[seed], atol=1e-6)


@pytest.mark.slow
def test_extending_beside_finishing_and_a_reader_beside_both(tmp_path, processes):
    """The reader sees a whole run of some length, or is told that it is growing; no error comes from below."""
    store = tmp_path / "run.zarr"
    first = run(store, 8)["image"].values
    seen = set()
    for units in range(24, 24 + 8 * 16, 16):
        pair = [processes.Process(target=child, args=(store, count)) for count in (units, units + 8)]
        for process in pair:
            process.start()
        while any(process.is_alive() for process in pair):
            try:
                opened = dataset.open(store)
                assert np.array_equal(opened["image"][:8], first)
                seen.add(opened.sizes["unit"])
            except ValueError as error:
                assert "units are done" in str(error)
                assert "\n" not in str(error)
                seen.add("growing")
        assert {process.exitcode for process in pair} <= {0, 3}
    assert "growing" in seen
    assert len(seen) > 3
    units = dataset.open(store).sizes["unit"]
    run(tmp_path / "fresh.zarr", units)
    assert contents(store) == contents(tmp_path / "fresh.zarr")


@pytest.mark.slow
def test_the_holder_is_named_and_a_dead_one_holds_nothing(tmp_path, processes):
    store = tmp_path / "run.zarr"
    process = processes.Process(target=child, args=(store, 1200))
    process.start()
    while not store.exists():
        time.sleep(0.005)
    for call in (lambda: run(store, 8), lambda: run(store, 8000)):
        with pytest.raises(ValueError, match=f"taken, process {process.pid} on .* is writing it: wait"):
            call()
    with pytest.raises(ValueError, match=f"units are done; process {process.pid} on .* is writing it"):
        dataset.open(store)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    with pytest.raises(ValueError, match="units are done; run the same call again to go on"):
        dataset.open(store)
    assert run(store, 1200).sizes["unit"] == 1200


def test_a_folder_of_the_users_own_is_kept(tmp_path):
    for name in ("run.zarr.partial", ".run.zarr.new", "run.zarr.lock"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "notes").write_text("mine")
    run(tmp_path / "run.zarr", 8)
    assert len([path for path in tmp_path.rglob("notes") if path.read_text() == "mine"]) == 3
