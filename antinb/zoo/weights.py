"""Weights are safetensors, in one file, in shards or as a variant, and are checked before a network is built for them.

Their headers say how many numbers there are, and a network is sketched on torch's `meta` device, which allocates
nothing, before it is built.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import nn
from torch.nn.modules import module as registration

from antinb.checks import plain, quoted, reason
from antinb.zoo import folders
from antinb.zoo.folders import shown

__all__: list[str] = []

WEIGHTS = "diffusion_pytorch_model"
PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"}
DISGUISES = (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")  # zipped torch files, pickle protocols
CONVERT = (
    "where you trust it, convert it: pipeline = DiffusionPipeline.from_pretrained(FOLDER, use_safetensors=False); "
    "pipeline.save_pretrained(NEW, safe_serialization=True)"
)
DTYPES = ("float32", "bfloat16", "float16", "float64")  # that networks run in
FLOATS = {"F64", "F32", "F16", "BF16"}
COUNTERS = {"position_ids", "num_batches_tracked"}  # tensors of integers that are no weights
OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}  # of attention, before 2023
VARIANT = r"\.([\w-]+)-\d+-of-\d+\.safetensors|\.([\w-]+)\.safetensors|\.safetensors\.index\.([\w-]+)\.json"

Built = TypeVar("Built", bound=nn.Module)
Look = Callable[[nn.Module, str], None]


class Place(NamedTuple):
    """Where networks run and in which precision."""

    device: torch.device = torch.device("cpu")
    dtype: torch.dtype = torch.float32


class Header(NamedTuple):
    """What the headers of weights say of each tensor: its shape and its type, in the names of safetensors."""

    shapes: dict[str, tuple[int, ...]]
    types: dict[str, str]
    metadata: dict[str, str]


def variant(folder: Path, stem: str) -> str | None:
    """Return the variant, such as `"fp16"`, of weights that are there in one variant only, else None.

    Raises:
        ValueError: if there are several variants, and none without a name.
    """
    if any((folder / f"{stem}.safetensors{end}").exists() for end in ("", ".index.json")):
        return None
    matches = [re.fullmatch(f"{re.escape(stem)}(?:{VARIANT})", path.name) for path in folder.glob(f"{stem}.*")]
    names = sorted({next(filter(None, match.groups())) for match in matches if match})
    if len(names) > 1:
        raise ValueError(f"{shown(folder)} must hold one variant of its weights; got {quoted(names)}")
    return names[0] if names else None


def files(folder: Path, stem: str) -> list[Path]:
    """Return the files of the weights `stem`: one, or the shards that an index names.

    Raises:
        ValueError: if a shard lies elsewhere, or there are several variants.
    """
    kind = variant(folder, stem)
    one, index = f"{stem}.safetensors", f"{stem}.safetensors.index.json"
    if kind:
        one, index = f"{stem}.{kind}.safetensors", f"{stem}.safetensors.index.{kind}.json"
    if (folder / one).exists() or not (folder / index).exists():
        return [folder / one]
    places = folders.config(folder, index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(place, str) for place in places.values()):
        raise ValueError(f"{shown(folder)}/{index} must map weights to files; got {type(places).__name__}")
    for name in set(places.values()):
        if Path(name).name != name or Path(name).suffix != ".safetensors":
            raise ValueError(f"{shown(folder)}/{index}: a shard is a safetensors file beside it; got {quoted(name)}")
    return [folder / name for name in sorted(set(places.values()))]


def header(folder: Path, stem: str) -> Header:
    """Return what the headers of the weights `stem` say.

    Raises:
        ValueError: if there are no weights, a shard lies elsewhere or is missing, or a file is truncated or not
            safetensors.
    """
    found = Header({}, {}, {})
    for path in files(folder, stem):
        own = _header(path)
        found = Header(found.shapes | own.shapes, found.types | own.types, found.metadata | own.metadata)
    return found


def tensors(folder: Path, stem: str, device: torch.device) -> dict[str, torch.Tensor]:
    """Return the tensors of the weights `stem`, whose headers have been read."""
    return {name: value for path in files(folder, stem) for name, value in load_file(path, str(device)).items()}


def _header(path: Path) -> Header:
    folder, where = path.parent, shown(path.parent)
    if not path.is_file():
        pickles = sorted(file.name for file in folder.glob("*") if file.suffix in PICKLES)
        found = f"it holds the pickle {plain(pickles[0])}, which is never loaded; {CONVERT}" if pickles else None
        found = found or ("it is no file" if os.path.lexists(path) else "it is missing")
        raise ValueError(f"{where} needs {plain(path.name)}: {found}")
    try:
        with safe_open(path, "pt") as file:
            slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118
            sizes = {key: tuple(part.get_shape()) for key, part in slices.items()}
            return Header(sizes, {key: part.get_dtype() for key, part in slices.items()}, file.metadata() or {})
    except (SafetensorError, OSError) as error:
        with path.open("rb") as file:
            if file.read(2) in DISGUISES:
                raise ValueError(f"{where}/{plain(path.name)} is a pickle, which is never loaded; {CONVERT}") from None
        raise ValueError(f"{where}/{plain(path.name)} is truncated or not safetensors: {reason(error)}") from None


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


def check(build: Callable[[], nn.Module], folder: Path, stem: str, look: Look | None = None) -> None:
    """Refuse a network, before it is built, whose configuration does not fit its weights; `look` sees its sketch.

    Raises:
        ValueError: naming the first difference.
    """
    name, found = shown(folder), header(folder, stem)
    network = sketch(build, found.shapes, name)
    wanted = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    shapes = {_known(key, wanted): shape for key, shape in found.shapes.items()}
    if wanted != shapes:
        first = min(wanted.items() ^ shapes.items())[0]
        raise ValueError(f"{name}: weights and configuration differ, first in {quoted(first)}")
    check_types(found, network, name)
    if look:
        look(network, name)


def filled(
    build: Callable[[], Built], folder: Path, stem: str, place: Place, look: Look | None = None
) -> tuple[Built, str]:
    """Return a network in its place with its weights, and their sha256.

    Raises:
        ValueError: as `check`.
    """
    check(build, folder, stem, look)
    network = build()
    wanted = network.state_dict()
    network.load_state_dict({_known(key, wanted): value for key, value in tensors(folder, stem, place.device).items()})
    nn.Module.to(network, place.device, place.dtype)  # that of diffusers warns of parts that it does not have
    return network, folders.sha256(*files(folder, stem))


def _known(name: str, wanted: Mapping[str, object]) -> str:
    """Return the name of a tensor of the first releases of diffusers as it is today, if the network has that one."""
    place, _, kind = name.rpartition(".")
    before, _, last = place.rpartition(".")
    new = f"{before}.{OLD_NAMES[last]}.{kind}" if last in OLD_NAMES else name
    return new if name not in wanted and new in wanted else name


class _TooMuch(Exception):  # noqa: N818
    """The network grows beyond its weights."""


def sketch(build: Callable[[], Built], found: Mapping[str, tuple[int, ...]], name: str) -> Built:
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
