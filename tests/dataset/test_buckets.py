"""Runs in a bucket, on a server of this machine: the bytes of a folder, one writer, nothing half-made, kills."""

import os
import signal
import sys
import time
from datetime import datetime, timedelta

import numpy as np
import pytest
import xarray as xr
from runs import CALLS, cheap, child, contents, run

import antinb
from antinb import dataset
from antinb.dataset import buckets

obstore = pytest.importorskip("obstore")
moto = pytest.importorskip("moto.server")
boto3 = pytest.importorskip("boto3")
STORE = "s3://bucket/some/run.zarr"
HERE = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_REGION": "us-east-1"}


@pytest.fixture(scope="module")
def address():
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield "http://{}:{}".format(*server.get_host_and_port())
    server.stop()


@pytest.fixture
def bucket(address, monkeypatch):
    """Return the objects of an empty bucket."""
    for name, value in {**HERE, "AWS_ENDPOINT_URL": address}.items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3", endpoint_url=address, region_name="us-east-1")
    client.create_bucket(Bucket="bucket")
    yield obstore.store.S3Store("bucket", client_options={"allow_http": True})
    for part in client.list_objects_v2(Bucket="bucket").get("Contents", ()):
        client.delete_object(Bucket="bucket", Key=part["Key"])
    client.close()


def names(bucket):
    return sorted(part["path"] for batch in bucket.list() for part in batch)


def objects(bucket, prefix="some/run.zarr/"):
    found = [name for name in names(bucket) if name.startswith(prefix)]
    return {name.removeprefix(prefix): bytes(bucket.get(name).bytes()) for name in found}


def test_a_run_in_a_bucket_is_that_of_a_folder_and_goes_on_like_it(bucket, tmp_path):
    for units in (16, 24):
        stored, local = run(STORE, units), run(tmp_path / "run.zarr", units)
        xr.testing.assert_identical(stored.load(), local.load())
        assert objects(bucket) == contents(tmp_path / "run.zarr")
    CALLS.clear()
    xr.testing.assert_identical(run(f"{STORE}/", 24).load(), local)
    assert CALLS == [2]
    assert [name for name in names(bucket) if "run.zarr/" not in name] == ["some/.run.zarr.lock"]
    assert dataset.damage(STORE) == []
    with pytest.raises(ValueError, match=r"'s3://bucket/some/run\.zarr' holds a run of another conf.* seed is 3 there"):
        run(STORE, 24, seed=4)


def test_what_a_bucket_lost_is_named_and_made_again(bucket):
    first = run(STORE, 24).load()
    before = objects(bucket)
    bucket.delete("some/run.zarr/image/c.2.0.0.0.0")
    bucket.put("some/run.zarr/image/c.1.0.0.0.0", before["image/c.2.0.0.0.0"])
    with pytest.raises(ValueError, match="image of units 8 to 11 is missing"):
        antinb.open(STORE)
    with pytest.warns(UserWarning, match="is mended, 8 units are made again"):
        xr.testing.assert_identical(run(STORE, 24).load(), first)
    assert objects(bucket) == before


def test_a_copy_in_a_bucket_opens(bucket):
    first = run(STORE, 16).load()
    first.to_zarr(buckets.Bucket("bucket", "copy.zarr").zarr, consolidated=False)
    xr.testing.assert_identical(antinb.open("s3://bucket/copy.zarr").load(), first)
    with pytest.raises(ValueError, match="is a copy or of antinb 0.1"):
        run("s3://bucket/copy.zarr", 16)


class Cut(Exception):
    """The process ends here."""


@pytest.mark.parametrize("last", [0, 1, 5, 8, 9])
def test_a_creation_that_is_cut_between_two_objects_is_not_seen_and_begun_again(bucket, monkeypatch, last):
    """The last object makes it a run, all units of which are still to be made."""
    run(STORE, 8)
    whole = objects(bucket)
    for name in names(bucket):
        bucket.delete(name)
    left = last

    class Failing:
        def __init__(self, files):
            self.files = files

        def put(self, name, *args):
            nonlocal left
            left -= 1
            if left < 0:
                raise Cut
            return self.files.put(name, *args)

        def __getattr__(self, name):
            return getattr(self.files, name)

    def failing(*args, begin=buckets.Bucket.__init__):
        begin(*args)
        args[0]._files = Failing(args[0]._files)

    with monkeypatch.context() as patched:
        patched.setattr(buckets.Bucket, "__init__", failing)
        try:
            run(STORE, 8)
        except Cut:
            with pytest.raises(FileNotFoundError, match="no run is stored at 's3://bucket/some/run.zarr'"):
                antinb.open(STORE)
    run(STORE, 8)
    assert objects(bucket) == whole
    assert (left < 0) == (last < 9)


def test_what_is_no_run_in_a_bucket_is_left_alone(bucket):
    for name in ("image/mine", "notes"):
        bucket.put(f"some/run.zarr/{name}", b"mine")
        before = names(bucket)
        with pytest.raises(ValueError, match="'s3://bucket/some/run.zarr' exists and is no run of antinb"):
            run(STORE, 8)
        assert names(bucket) == before
        bucket.delete(f"some/run.zarr/{name}")


def test_a_lease_has_one_holder_who_notices_its_loss(bucket, monkeypatch):
    """A live process of this machine, one of another machine for a minute; a lease that was taken over ends writing."""
    lease, first = "some/.run.zarr.lock", buckets.Bucket("bucket", "some/run.zarr")
    first.take()
    with pytest.raises(ValueError, match=f"taken, process {os.getpid()} on .* is writing it: wait, or take another"):
        run(STORE, 8)
    first.hold()
    bucket.put(lease, b"process 1 on elsewhere\nabc")
    with pytest.raises(ValueError, match="taken, process 1 on elsewhere is writing it: wait"):
        run(STORE, 8)
    first._renewed -= buckets.LEASE
    with pytest.raises(OSError, match="its lease is lost, process 1 on elsewhere is writing it"):
        first.hold()
    first.release()
    assert bytes(bucket.get(lease).bytes()) == b"process 1 on elsewhere\nabc"

    class Later(datetime):
        @classmethod
        def now(cls, zone):
            return datetime.now(zone) + timedelta(seconds=buckets.LEASE + 2)

    monkeypatch.setattr(buckets, "datetime", Later)
    assert run(STORE, 8).sizes["unit"] == 8
    assert bytes(bucket.get(lease).bytes()) == b""


def test_a_run_whose_lease_is_taken_stops_writing_and_goes_on_later(bucket, monkeypatch):
    calls = []

    def stolen(z):
        calls.append(len(z))
        if len(calls) == 4:
            bucket.put("some/.run.zarr.lock", b"process 1 on elsewhere\nabc")
            monkeypatch.setattr(buckets, "LEASE", 0)
        return cheap(z)

    stolen.__qualname__, stolen.__module__ = cheap.__qualname__, cheap.__module__
    with pytest.raises(OSError, match="cannot be written: its lease is lost, .*; what is stored stays, run again"):
        run(STORE, 64, stolen)
    assert 0 < dataset.stored_units(STORE)
    assert run(STORE, 64).sizes["unit"] == 64


def test_a_bucket_that_cannot_be_reached_is_named(bucket, monkeypatch):
    with pytest.raises(OSError, match=r"'s3://nowhere/run\.zarr' cannot be read: .*NoSuchBucket"):
        run("s3://nowhere/run.zarr", 8)
    opened = run(STORE, 8)
    get = buckets.zarr.storage.ObjectStore.get

    async def away(*args, **options):
        raise obstore.exceptions.GenericError("no route to host")

    monkeypatch.setattr(buckets.zarr.storage.ObjectStore, "get", away)
    with pytest.raises(OSError, match="image of units 0 to 3 cannot be read: no route to host"):
        opened["image"][:4].load()
    monkeypatch.setattr(buckets.zarr.storage.ObjectStore, "get", get)
    assert np.isfinite(opened["image"].values).all()


@pytest.mark.parametrize("store", ["s3://", "s3://bucket", "s3://bucket//run", "gs://bucket/run", "memory://run"])
def test_other_addresses_are_refused(tmp_path, monkeypatch, store):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="a store is a folder of this machine, or a text such as 's3://bucket/run"):
        run(store, 4)
    assert not list(tmp_path.iterdir())


def test_without_its_package_an_address_is_refused_with_the_extra(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "obstore", None)
    for call in (lambda: run(STORE, 4), lambda: antinb.open(STORE)):
        with pytest.raises(ValueError, match=r'needs obstore: pip install "antinb\[s3\]"; got \'s3://bucket/some/run'):
            call()
    assert not list(tmp_path.iterdir())


def far(address, store, units):
    """Run in a process of its own, which knows the server."""
    os.environ.update(HERE, AWS_ENDPOINT_URL=address)
    child(store, units)


@pytest.mark.slow
def test_twenty_kills_change_no_object(bucket, address, processes):
    """A process is killed by SIGKILL at 20 random moments after it has the lease; half-way the run is extended."""
    rng, killed, lock = np.random.default_rng(0), 0, "some/.run.zarr.lock"
    seen = set()
    bucket.put(lock, b"")
    for number in range(20):
        before = bucket.head(lock)["e_tag"]
        process = processes.Process(target=far, args=(address, STORE, 200 if number < 10 else 400))
        process.start()
        while process.is_alive() and bucket.head(lock)["e_tag"] == before:
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 1.5))
        process.kill()
        process.join()
        killed += process.exitcode == -signal.SIGKILL
        seen.add(len(objects(bucket)))
    assert killed == 20
    assert len(seen) > 3
    for store in (STORE, "s3://bucket/whole.zarr"):
        process = processes.Process(target=far, args=(address, store, 400))
        process.start()
        process.join()
        assert process.exitcode == 0
    assert objects(bucket) == objects(bucket, "whole.zarr/")
