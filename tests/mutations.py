"""Seeded changes to the files of a folder: settings, headers, sizes, links, pipes, and code planted beside them."""

import contextlib
import json
import os
import shutil
import signal
import struct
from pathlib import Path

import numpy as np

JUNK = [None, True, False, 0, -1, 1, 3, 15, 2**31, 10**12, 10**400, -(2**63), 0.0, -0.5, 1.5, 1e5, 1e308, float("nan")]
JUNK += [float("inf"), "", "no", "100", "xy", "../x", "DDIMScheduler", "os", "\x1b[31m\n", "x" * 9999, [], {}, [1], [0]]
JUNK += [["x", "y"], [[8]], {"x": 1}, {"auto_map": {"A": "x.B"}}, ["diffusers", "UNet2DModel"], list(range(999))]
KEYS = ["auto_map", "_attn_implementation", "quantization_config", "custom_pipeline", "_class_name", "prediction_type"]
KEYS += ["sample_size", "num_train_timesteps", "shape", "chunk_grid", "codecs", "data_type", "fill_value", "attributes"]
TYPES = ["F16", "F64", "I8", "I64", "U8", "BOOL", "BF16", "F8_E4M3", "C64", "X9"]
CODE = "import pathlib\npathlib.Path(__file__).parent.joinpath('ran').touch()\nraise SystemExit('code ran')\n"
SECONDS = 10


class TooSlow(Exception):
    """A call has not answered in time."""


@contextlib.contextmanager
def limited(seconds=SECONDS):
    """Raise `TooSlow` inside the block when the seconds are over, also while a pipe is waited for."""

    def stop(*_):
        raise TooSlow(f"no answer after {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def mutate(folder, seed, outside):
    """Make one to three changes to a folder and return what they were; `outside` is a folder that links lead to."""
    rng, told = np.random.default_rng(seed), []
    for name in ("x.py", "unet/x.py", "scheduler/x.py", "pipeline.py"):
        if (folder / name).parent.is_dir():
            (folder / name).write_text(CODE)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        files = sorted(
            path
            for path in folder.rglob("*")
            if path.is_file() and not path.is_symlink() and path.suffix not in (".py", ".md")
        )
        path = files[rng.integers(len(files))] if files else None
        kinds = sorted(kind for kind, (suits, _) in CHANGES.items() if path and suits(path))
        if kinds:
            change = CHANGES[rng.choice(kinds)][1]
            told.append(f"{path.relative_to(folder)}: {change.__name__} {change(path, rng, outside) or ''}")
    return "; ".join(told)


def _other(value, rng):
    """Return something else than a value: half the time of its kind and near, else junk."""
    if isinstance(value, bool) and rng.random() < 0.5:
        return not value
    if isinstance(value, (int, float)) and rng.random() < 0.5:
        return value + type(value)(rng.integers(-1, 2)) if isinstance(value, int) else value * 1.01
    return JUNK[rng.integers(len(JUNK))]


def setting(path, rng, _):
    """Change, remove or add one entry of a document, at any depth."""
    whole = place = json.loads(path.read_bytes())
    while isinstance(place, (dict, list)) and len(place):
        keys = list(place) if isinstance(place, dict) else range(len(place))
        key = keys[rng.integers(len(keys))]
        if not isinstance(place[key], (dict, list)) or not place[key] or rng.random() < 0.3:
            break
        place = place[key]
    kind = rng.choice(["change", "change", "remove", "add", "whole"])
    known = isinstance(place, (dict, list)) and len(place)
    value = _other(place[key] if known else None, rng)
    if kind == "whole" or not known:
        whole, key = value, "everything"
    elif kind == "change":
        place[key] = value
    elif kind == "remove":
        del place[key]
    elif isinstance(place, dict):
        key = KEYS[rng.integers(len(KEYS))]
        place[key] = value
    else:
        place.append(value)
    path.write_text(json.dumps(whole))
    return f"{kind} {key!r} {value!r:.40}"


def header(path, rng, _):
    """Change the header of weights: a type, a shape, a name, an offset, or the length of the header."""
    content = path.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    head = json.loads(content[8 : 8 + size])
    name = sorted(key for key in head if key != "__metadata__")[0]
    kind = rng.choice(["dtype", "shape", "offsets", "name", "length", "more"])
    if kind == "dtype":
        head[name]["dtype"] = TYPES[rng.integers(len(TYPES))]
    elif kind == "shape":
        head[name]["shape"] = [[], [10**12], [-1], [0], [2, 2], "x", None][rng.integers(7)]
    elif kind == "offsets":
        head[name]["data_offsets"] = [[0, 10**15], [8, 0], [-8, 8], [0]][rng.integers(4)]
    elif kind == "name":
        head["\x1b[31mother\n"] = head.pop(name)
    elif kind == "more":
        head["more"] = {"dtype": "F32", "shape": [10**11], "data_offsets": [0, 4 * 10**11]}
    text = json.dumps(head).encode()
    length = int(rng.integers(2**62)) if kind == "length" else len(text)
    path.write_bytes(struct.pack("<Q", length) + text + content[8 + size :])
    return f"{kind} of {name}"


def shorter(path, rng, _):
    """Cut a file anywhere."""
    content = path.read_bytes()
    path.write_bytes(content[: rng.integers(len(content) + 1)])


def longer(path, rng, _):
    """Add bytes at the end, or make the file a hole of a terabyte."""
    with path.open("ab") as file:
        file.write(b"\0" * int(rng.integers(1, 99)))
        if rng.random() < 0.3:
            file.truncate(2**40)


def flipped(path, rng, _):
    """Change one bit."""
    content = bytearray(path.read_bytes())
    if content:
        content[rng.integers(len(content))] ^= 1 << int(rng.integers(8))
        path.write_bytes(content)


def pickled(path, rng, _):
    """Put the head of a pickle in its place."""
    path.write_bytes(b"\x80\x04" + rng.bytes(40))


def gone(path, *_):
    """Remove it."""
    path.unlink()


def pipe(path, *_):
    """Put a named pipe in its place."""
    path.unlink()
    os.mkfifo(path)


def directory(path, *_):
    """Put a folder in its place."""
    path.unlink()
    path.mkdir()


def link(path, rng, outside):
    """Put a link in its place: to its copy elsewhere, to itself, to nothing, to a device, to another file."""
    other = sorted(found for found in path.parent.iterdir() if found.is_file())[0]
    (outside / f"{path.name}.copy").write_bytes(path.read_bytes() if _is_small(path) else b"")
    targets = [outside / f"{path.name}.copy", path, "nothing", "/dev/zero", other, "/etc/hostname"]
    target = targets[rng.integers(len(targets))]
    path.unlink()
    path.symlink_to(target)
    return str(target)


def linked_folder(path, rng, outside):
    """Move the folder of a file elsewhere and put a link in its place."""
    place = outside / f"{path.parent.name}-{rng.integers(10**9)}"
    shutil.move(path.parent, place)
    path.parent.symlink_to(place)


def swapped(path, rng, _):
    """Put the content of another file of the folder in its place."""
    others = sorted(found for found in path.parent.iterdir() if found.is_file())
    path.write_bytes(others[rng.integers(len(others))].read_bytes())


def _is_document(path):
    with contextlib.suppress(ValueError, RecursionError):
        return path.suffix == ".json" and path.stat().st_size < 10**7 and bool(json.loads(path.read_bytes()) or 1)
    return False


def _is_whole(path):
    with contextlib.suppress(ValueError, struct.error, IndexError, KeyError):
        if path.suffix == ".safetensors" and path.stat().st_size < 10**8:
            content = path.read_bytes()
            head = json.loads(content[8 : 8 + struct.unpack("<Q", content[:8])[0]])
            return any(isinstance(head[key], dict) for key in head if key != "__metadata__")
    return False


def _is_small(path):
    return path.stat().st_size < 10**8


CHANGES = {f"setting {number}": (_is_document, setting) for number in range(8)}
CHANGES |= {f"header {number}": (_is_whole, header) for number in range(4)}
for _change in (shorter, longer, flipped, pickled, gone, pipe, directory, link, swapped):
    CHANGES[_change.__name__] = (_is_small, _change)
CHANGES["linked folder"] = (
    lambda path: (path.parent / path.name).parent.name in ("unet", "scheduler", "image"),
    linked_folder,
)


def copied(source, place):
    """Return a fresh copy of a folder."""
    shutil.rmtree(place, ignore_errors=True)
    return Path(shutil.copytree(source, place))
