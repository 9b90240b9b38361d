"""Folders that others made are checked here before anything in them is built, and then read.

Only ordinary files that lie in the folder are read. Configurations are plain JSON and weights are safetensors. The
headers of the weights say how many numbers there are, and a network is sketched on torch's `meta` device, which
allocates nothing, before it is built.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import nn
from torch.nn.modules import module as registration

from antinb.checks import plain, quoted, reason

__all__: list[str] = []

PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"}
DISGUISES = (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")  # zipped torch files, pickle protocols
CONVERT = "convert it where you trust it, with save_pretrained(folder, safe_serialization=True)"
LIMITS = {"sample_size": 8192, "num_train_timesteps": 10**6}  # what a configuration may ask for
JSON_BYTES = 10**7
INDEX = "model_index.json"
WEIGHTS = "diffusion_pytorch_model"
PARTS = ("unet", "transformer", "scheduler", "vae")
READ = {".json", ".safetensors", ".txt", ".model", ".jinja"}  # files of a model; others beside them are not read
FOREIGN = {  # keys that make a library fetch or run what is not in the folder, unless they have these values
    "auto_map": (None,),
    "custom_pipeline": (None,),
    "custom_pipelines": (None,),
    "trust_remote_code": (None, False),
    "_attn_implementation": (None, "eager", "sdpa"),
    "_attn_implementation_internal": (None, "eager", "sdpa"),
    "attn_implementation": (None, "eager", "sdpa"),
    "experts_implementation": (None, "eager"),
    "_experts_implementation": (None, "eager"),
    "use_kernels": (None, False),
    "kernel_config": (None,),
    "quantization_config": (None,),
    "transformers_weights": (None,),
    "base_model_name_or_path": (None,),
    "gguf_file": (None,),
}
FLOATS = {"F64", "F32", "F16", "BF16"}
COUNTERS = {"position_ids", "num_batches_tracked"}  # tensors of integers that are no weights


class Header(NamedTuple):
    """What the headers of weights say of each tensor: its shape and its type, in the names of safetensors."""

    shapes: dict[str, tuple[int, ...]]
    types: dict[str, str]
    metadata: dict[str, str]


def enter(folder: Path) -> Path:
    """Return a folder whose model consists of ordinary files that lie in it.

    A snapshot in the hub's cache may use the blobs of its repository. What else lies in the folder does not count.

    Raises:
        ValueError: if a file of the model is a link that leads out of the folder, or no ordinary file.
    """
    root = Path(os.path.realpath(folder))
    places = [root, root.parents[1] / "blobs"] if root.parent.name == "snapshots" else [root]
    _look(folder, folder, places)
    names = set(PARTS)
    if (folder / INDEX).is_file():
        names |= {name for name in config(folder, INDEX) if name.isidentifier()}
    for name in sorted(names):
        if os.path.lexists(folder / name):
            _look(folder / name, folder, places)
    return folder


def _look(place: Path, folder: Path, places: list[Path]) -> None:
    """Refuse links out of the folder and special files in one of its places; of the folder itself only what is read."""
    found = Path(os.path.realpath(place))
    if place != folder and not any(found.is_relative_to(allowed) for allowed in places):
        raise ValueError(f"{_name(folder)} must hold its own files; {plain(place.name)} leads out of it")
    if not found.is_dir():
        return
    with os.scandir(place) as entries:
        listed = [entry for entry in entries if place != folder or Path(entry.name).suffix in READ]
    for entry in listed:
        name = plain(Path(entry.path).relative_to(folder))
        target = Path(os.path.realpath(entry.path))
        if not any(target.is_relative_to(allowed) for allowed in places):
            raise ValueError(f"{_name(folder)} must hold its own files; {name} leads out of it")
        if entry.is_dir(follow_symlinks=False):
            if place != folder:
                _look(Path(entry.path), folder, places)
            continue
        try:
            ordinary = stat.S_ISREG(entry.stat().st_mode)
        except OSError:
            ordinary = False
        if not ordinary:
            raise ValueError(f"{_name(folder)} must hold ordinary files; {name} is none")


def part(folder: Path, name: str) -> Path:
    """Return the subfolder of a part of a pipeline, or the folder itself, as in the first pipelines."""
    own = folder / name
    return folder if not own.is_dir() and (folder / INDEX).exists() else own


def config(folder: Path, name: str) -> dict[str, Any]:
    """Return a configuration.

    Raises:
        ValueError: if it is missing or not a JSON object, or asks for code, kernels or weights from the hub, or for
            sizes beyond all models.
    """
    path, what = folder / name, f"{_name(folder)}/{plain(name)}"
    if not path.is_file():
        raise ValueError(f"{what} is {'no file' if os.path.lexists(path) else 'missing'}: this is no diffusers folder")
    if path.stat().st_size > JSON_BYTES:
        raise ValueError(f"{what} must have at most {JSON_BYTES} bytes; got {path.stat().st_size}")
    try:
        settings = json.loads(path.read_bytes(), parse_constant=_constant)
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{what} is not JSON: {quoted(str(error))[1:-1]}") from None
    if not isinstance(settings, dict):
        raise ValueError(f"{what} must hold a JSON object; got {quoted(settings)}")
    _refuse_foreign(settings, what)
    for key, most in LIMITS.items():
        sizes = settings.get(key)
        for size in sizes if isinstance(sizes, list) else [sizes]:
            if isinstance(size, (int, float)) and size > most:
                raise ValueError(f"{what}: {key} must be at most {most}; got {quoted(size)}")
    return settings


def _constant(name: str) -> float:
    if name == "NaN":
        raise ValueError("it holds NaN")
    return float(name.replace("Infinity", "inf"))


def _refuse_foreign(settings: dict[str, Any], what: str) -> None:
    """Refuse keys, at any depth, that ask for what is not in the folder."""
    rest: list[object] = [settings]
    while rest:
        found = rest.pop()
        if isinstance(found, dict):
            for key in FOREIGN.keys() & found.keys():
                if not any(found[key] is value or found[key] == value for value in FOREIGN[key]):
                    wish = "asks for code of its own, which is never run" if key == "auto_map" else f"sets {key}"
                    raise ValueError(f"{what} {wish}; only files of the folder are used: got {quoted(found[key])}")
        if isinstance(found, (dict, list)):
            rest.extend(found.values() if isinstance(found, dict) else found)


def header(folder: Path, stem: str) -> Header:
    """Return what the headers of `stem.safetensors`, or of the shards of its index, say.

    Raises:
        ValueError: if there are no weights, a shard lies elsewhere or is missing, or a file is truncated or not
            safetensors.
    """
    names, index = [f"{stem}.safetensors"], f"{stem}.safetensors.index.json"
    if (folder / index).exists() and not (folder / names[0]).exists():
        places = config(folder, index).get("weight_map")
        if not isinstance(places, dict) or not all(isinstance(place, str) for place in places.values()):
            raise ValueError(f"{_name(folder)}/{index} must map weights to files; got {type(places).__name__}")
        names = sorted(set(places.values()))
        for name in names:
            if Path(name).name != name or Path(name).suffix != ".safetensors":
                raise ValueError(
                    f"{_name(folder)}/{index}: a shard is a safetensors file beside it; got {quoted(name)}"
                )
    found = Header({}, {}, {})
    for name in names:
        own = _header(folder, name)
        found = Header(found.shapes | own.shapes, found.types | own.types, found.metadata | own.metadata)
    return found


def tensors(folder: Path, name: str, device: torch.device) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Return the tensors and the metadata of a safetensors file.

    Raises:
        ValueError: if it is missing, truncated or not safetensors.
    """
    found = _header(folder, name)
    return load_file(folder / name, str(device)), found.metadata


def _header(folder: Path, name: str) -> Header:
    path, where = folder / name, _name(folder)
    if not path.is_file():
        pickles = sorted(file.name for file in folder.glob("*") if file.suffix in PICKLES)
        found = f"it holds the pickle {plain(pickles[0])}, which is never loaded: {CONVERT}" if pickles else None
        found = found or ("it is no file" if os.path.lexists(path) else "it is missing")
        raise ValueError(f"{where} needs {plain(name)}: {found}")
    try:
        with safe_open(path, "pt") as file:
            slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118
            sizes = {key: tuple(part.get_shape()) for key, part in slices.items()}
            return Header(sizes, {key: part.get_dtype() for key, part in slices.items()}, file.metadata() or {})
    except (SafetensorError, OSError) as error:
        with path.open("rb") as file:
            if file.read(2) in DISGUISES:
                raise ValueError(f"{where}/{plain(name)} is a pickle; only safetensors is loaded: {CONVERT}") from None
        raise ValueError(f"{where}/{plain(name)} is truncated or not safetensors: {reason(error)}") from None


def check_types(found: Header, network: nn.Module, name: str) -> None:
    """Refuse weights that are not floating-point numbers, such as quantised ones, where the network has such numbers.

    Raises:
        ValueError: naming the first of them.
    """
    whole = {key for key, value in network.state_dict().items() if not value.is_floating_point()}
    for key, kind in found.types.items():
        if kind not in FLOATS and key not in whole and key.rpartition(".")[2] not in COUNTERS:
            rule = "weights are floating-point numbers; quantised ones are not run"
            raise ValueError(f"{name}: {rule}; {plain(key)} has the type {plain(kind)}")


class _TooMuch(Exception):  # noqa: N818
    """The network grows beyond its weights."""


def sketch(build: Callable[[], nn.Module], found: Mapping[str, tuple[int, ...]], name: str) -> nn.Module:
    """Return the network that `build` returns, without its numbers, for weights of the shapes `found`.

    The sketch stops as soon as the network has far more parameters or modules than the weights can fill.

    Raises:
        ValueError: if it has too many, or its configuration does not describe a network.
    """
    most, size, count = numbers(found), 0, 0

    def grow(_: nn.Module, __: str, part: nn.Module | nn.Parameter | None) -> None:
        nonlocal size, count
        size += part.numel() if isinstance(part, nn.Parameter) else 0
        count += 1
        if size > 4 * most or count > 1000 + 100 * len(found):  # tied weights are registered more than once
            raise _TooMuch(f"its configuration asks for far more than the {most} numbers of its weights")

    hooks = [
        registration.register_module_parameter_registration_hook(grow),
        registration.register_module_module_registration_hook(grow),
    ]
    try:
        with torch.device("meta"):
            return build()
    except _TooMuch as error:
        raise ValueError(f"{name}: {error}") from None
    except Exception as error:
        raise ValueError(f"{name}: its configuration describes no network: {reason(error)}") from None
    finally:
        for hook in hooks:
            hook.remove()


def numbers(found: Mapping[str, tuple[int, ...]]) -> int:
    """Return how many numbers weights of these shapes have."""
    return sum(map(math.prod, found.values()))


def sha256(path: Path) -> str:
    """Return the sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _name(folder: Path) -> str:
    """Return the name of a folder, for messages."""
    return plain(folder.name or folder)
