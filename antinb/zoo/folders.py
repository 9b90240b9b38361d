"""Folders that others made are checked here before anything in them is built, and then read.

Configurations are plain JSON and weights are safetensors. The headers of the weights say how many numbers there
are, and a network is sketched on torch's `meta` device, which allocates nothing, before it is built.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import nn
from torch.nn.modules import module as registration

__all__: list[str] = []

PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"}
DISGUISES = (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")  # zipped torch files, pickle protocols
CONVERT = "convert it where you trust it, with save_pretrained(folder, safe_serialization=True)"
LIMITS = {"sample_size": 8192, "num_train_timesteps": 10**6}  # what a configuration may ask for
JSON_BYTES = 10**7
INDEX = "model_index.json"
WEIGHTS = "diffusion_pytorch_model"


def inside(folder: Path) -> None:
    """Refuse a folder with links that lead out of it; a snapshot in the hub's cache may use its repository's blobs.

    Raises:
        ValueError: if there is such a link.
    """
    root = folder.resolve()
    root = root.parents[1] if root.parent.name == "snapshots" else root
    for path in folder.rglob("*"):
        if not path.resolve().is_relative_to(root):
            raise ValueError(f"{folder.name} must hold its own files; {path.relative_to(folder)} leads out of it")


def part(folder: Path, name: str) -> Path:
    """Return the subfolder of a part of a pipeline, or the folder itself, as in the first pipelines."""
    own = folder / name
    return folder if not own.is_dir() and (folder / INDEX).exists() else own


def config(folder: Path, name: str) -> dict[str, Any]:
    """Return a configuration.

    Raises:
        ValueError: if it is missing or not a JSON object, or asks for code from the hub or sizes beyond all models.
    """
    path = folder / name
    if not path.is_file():
        raise ValueError(f"{folder.name}/{name} is missing: this is no diffusers folder")
    if path.stat().st_size > JSON_BYTES:
        raise ValueError(f"{folder.name}/{name} must have at most {JSON_BYTES} bytes; got {path.stat().st_size}")
    try:
        settings = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{folder.name}/{name} is not JSON: {error}") from None
    if not isinstance(settings, dict):
        raise ValueError(f"{folder.name}/{name} must hold a JSON object; got {settings!r}")
    if "auto_map" in settings:
        raise ValueError(f"{folder.name}/{name} asks for code of its own, which is never run: {settings['auto_map']!r}")
    for key, most in LIMITS.items():
        sizes = settings.get(key)
        for size in sizes if isinstance(sizes, list) else [sizes]:
            if isinstance(size, (int, float)) and size > most:
                raise ValueError(f"{folder.name}/{name}: {key} must be at most {most}; got {size}")
    return settings


def shapes(folder: Path, stem: str) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the weights in `stem.safetensors`, or in the shards of its index, from the headers alone.

    Raises:
        ValueError: if there are no weights, a shard lies elsewhere or is missing, or a file is truncated or not
            safetensors.
    """
    names, index = [f"{stem}.safetensors"], f"{stem}.safetensors.index.json"
    if (folder / index).exists() and not (folder / names[0]).exists():
        places = config(folder, index).get("weight_map")
        if not isinstance(places, dict) or not all(isinstance(place, str) for place in places.values()):
            raise ValueError(f"{folder.name}/{index} must map weights to files; got {type(places).__name__}")
        names = sorted(set(places.values()))
        for name in names:
            if Path(name).name != name or Path(name).suffix != ".safetensors":
                raise ValueError(f"{folder.name}/{index}: a shard is a safetensors file beside it; got {name!r}")
    found = {}
    for name in names:
        found |= _header(folder, name)[0]
    return found


def tensors(folder: Path, name: str, device: torch.device) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Return the tensors and the metadata of a safetensors file.

    Raises:
        ValueError: if it is missing, truncated or not safetensors.
    """
    _, metadata = _header(folder, name)
    return load_file(folder / name, str(device)), metadata


def _header(folder: Path, name: str) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
    path = folder / name
    if not path.exists():
        pickles = sorted(file.name for file in folder.glob("*") if file.suffix in PICKLES)
        found = f"it holds the pickle {pickles[0]}, which is never loaded: {CONVERT}" if pickles else "it is missing"
        raise ValueError(f"{folder.name} needs {name}: {found}")
    try:
        with safe_open(path, "pt") as file:
            return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        with path.open("rb") as file:
            if file.read(2) in DISGUISES:
                raise ValueError(f"{folder.name}/{name} is a pickle; only safetensors is loaded: {CONVERT}") from None
        raise ValueError(f"{folder.name}/{name} is truncated or not safetensors: {error}") from None


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
        reason = " ".join(str(error).split())
        raise ValueError(f"{name}: its configuration describes no network: {type(error).__name__}: {reason}") from None
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
