"""Folders that others made are checked here before anything in them is built, and then read.

Only ordinary files that lie in the folder are read, and configurations are plain JSON; `weights` are checked next door.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from pathlib import Path
from typing import Any

from antinb.checks import plain, quoted

__all__: list[str] = []

LIMITS = {"sample_size": 8192, "num_train_timesteps": 10**6}  # what a configuration may ask for
JSON_BYTES = 10**7
INDEX = "model_index.json"
PARTS = ("unet", "transformer", "scheduler", "vae")
READ = {".json", ".safetensors", ".txt", ".model", ".jinja"}  # files of a model; others beside them are not read
FIRST = ("config", "diffusion_pytorch_model", "mixture", "model", "quality", "scheduler_config")  # of the folder itself
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


def enter(folder: Path) -> Path:
    """Return a folder whose model consists of ordinary files that lie in it.

    A snapshot in the hub's cache may use the blobs of its repository. What else lies in the folder does not count.

    Raises:
        ValueError: if a file of the model is a link that leads out of the folder, or no ordinary file.
    """
    root = Path(os.path.realpath(folder))
    places = [root, root.parents[1] / "blobs"] if root.parent.name == "snapshots" else [root]
    _look(folder, folder, places, FIRST)
    names = set(PARTS)
    if (folder / INDEX).is_file():
        index = config(folder, INDEX)
        names |= {name for name in index if name.isidentifier()}
        parts = [name for name, entry in index.items() if isinstance(entry, list) and any(entry)]
        if not all((folder / name).is_dir() for name in parts):  # the files of a part lie in the folder itself
            _look(folder, folder, places)
    for name in sorted(names):
        if os.path.lexists(folder / name):
            _look(folder / name, folder, places)
    return folder


def _look(place: Path, folder: Path, places: list[Path], begin: tuple[str, ...] = ("",)) -> None:
    """Refuse links out of the folder and special files in one of its places; of the folder itself only what is read.

    In it the names of files begin as `begin` says. Linked folders in a place are never read.
    """
    found = Path(os.path.realpath(place))
    if place != folder and not any(found.is_relative_to(allowed) for allowed in places):
        raise ValueError(f"{shown(folder)} must hold its own files; {plain(place.name)} leads out of it")
    if not found.is_dir():
        return
    with os.scandir(place) as entries:
        listed = [entry for entry in entries if not (entry.is_symlink() and os.path.isdir(entry.path))]
    if place == folder:
        listed = [entry for entry in listed if Path(entry.name).suffix in READ and entry.name.startswith(begin)]
    for entry in listed:
        name = plain(Path(entry.path).relative_to(folder))
        target = Path(os.path.realpath(entry.path))
        if not any(target.is_relative_to(allowed) for allowed in places):
            raise ValueError(f"{shown(folder)} must hold its own files; {name} leads out of it")
        if entry.is_dir(follow_symlinks=False):
            if place != folder:
                _look(Path(entry.path), folder, places)
            continue
        try:
            ordinary = stat.S_ISREG(entry.stat().st_mode)
        except OSError:
            ordinary = False
        if not ordinary:
            raise ValueError(f"{shown(folder)} must hold ordinary files; {name} is none")


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
    path, what = folder / name, f"{shown(folder)}/{plain(name)}"
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


def classes(folder: Path, name: str, found: dict[str, Any]) -> list[object]:
    """Return the classes that a part's configuration and the index, if there is one, name; diffusers takes the last."""
    entry = config(folder, INDEX).get(name) if (folder / INDEX).exists() else None
    library, kind = entry if isinstance(entry, list) and len(entry) == 2 else (None, None)
    return [found.get("_class_name"), *([] if entry is None else [kind if library == "diffusers" else entry])]


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


def sha256(*paths: Path) -> str:
    """Return the sha256 of a file, or of several one after the other."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            hashlib.file_digest(file, lambda: digest)
    return digest.hexdigest()


def shown(folder: Path) -> str:
    """Return the name of a folder, for messages."""
    return plain(folder.name or folder)
