"""One way to a model: a shipped checkpoint by name, a diffusers folder, or any callable."""

from __future__ import annotations

import difflib
import hashlib
import inspect
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from diffusers import AutoencoderKL, DiffusionPipeline
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import nn

from antinb import consistency, decoders, flows, generators, networks, pipelines
from antinb.checks import SEEDS, at_least
from antinb.exact import Mixture

if TYPE_CHECKING:
    from antinb import couplings, perception

_HERE = Path(__file__).parent
DATA = next((path for path in (_HERE.parent / "data", _HERE / "data") if (path / "registry.json").exists()), None)
PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"}
OWN_KINDS = {"vae": ("latent", "width"), "normalizing flow": ("layers", "width", "size")}
PARTS, SCHEDULER = ("unet", "transformer"), "scheduler/scheduler_config.json"
DISGUISES = (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")  # zipped torch files, pickle protocols

Sampler = generators.Diffusion | flows.RectifiedFlow | consistency.Consistency


def registry() -> dict[str, dict]:
    """Return the shipped models by name: kind, licence, recipe, quality, files with sha256."""
    return json.loads((DATA / "registry.json").read_text(encoding="utf-8"))


def models() -> pd.DataFrame:
    """Return a table of the shipped models: `kind`, `licence`, `megabytes`, `quality`, indexed by name."""
    rows = {}
    for name, entry in registry().items():
        size = sum((DATA / "models" / name / file).stat().st_size for file in entry["files"])
        kind, licence, quality = (entry[key] for key in ("kind", "licence", "quality"))
        rows[name] = {"kind": kind, "licence": licence, "megabytes": size / 1e6, "quality": quality}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("name")


def load(
    source: str | Path | DiffusionPipeline | Callable[[torch.Tensor], torch.Tensor],
    *,
    steps: int | None = None,
    scheduler: str | None = None,
    clip: bool | None = None,
    eta: float | None = None,
    guidance: float | None = None,
    compile: bool | None = None,  # noqa: A002
    shape: tuple[int, ...] | None = None,
    device: str | torch.device = "cpu",
) -> generators.Generator:
    """Return the generator of a shipped model, a folder, a diffusers pipeline or a callable.

    Args:
        source: name of a shipped model (`antinb models` lists them), path of a diffusers folder with
            `unet/` or `transformer/`, `scheduler/` and maybe `vae/`, or of a one-call model with `config.json`, a
            diffusers pipeline with a UNet, which is called as it is, or a callable from noise `(B, *shape)` to
            images `(B, C, H, W)`.
        steps: number of steps, 50 if None, of a consistency model 1.
        scheduler: `"ddim"` (if None), `"ddpm"` or `"dpmsolver++"`; of a flow `"euler"` (if None) or `"heun"`; of
            a consistency model `"lcm"`.
        clip: whether the predicted clean image is clipped to [-1, 1]; None keeps the model's own rule.
        eta: step noise of DDIM (or of the pipeline, if it takes one), from 0 to 1.
        guidance: scale of classifier-free guidance of a conditional model; 1 is none.
        compile: whether the network runs through `torch.compile`.
        shape: shape of one noise, for a callable and for nothing else.
        device: where the network runs; a pipeline stays where it is.

    Raises:
        ValueError: if the source is unknown, a file is not the registered one, is truncated, is not
            safetensors, does not fit its configuration, or an option does not belong to the source.

    Examples:
        >>> import antinb
        >>> generator = antinb.load("fashion-mixture", steps=20)
        >>> generator.shape, generator.evaluations
        ((1, 28, 28), 20)
    """
    settings = {"steps": steps, "scheduler": scheduler, "clip": clip}
    settings |= {"eta": eta, "guidance": guidance, "compile": compile}
    given = {name: value for name, value in settings.items() if value is not None}
    if isinstance(source, DiffusionPipeline):
        return _pipeline(source, given, shape)
    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    except (AssertionError, RuntimeError, TypeError):
        raise ValueError(f"device must be one that torch has here, such as 'cpu' or 'cuda:0'; got {device!r}") from None
    if callable(source):
        if shape is None or given:
            raise ValueError(f"a callable needs shape= and takes no {', '.join(settings)}; got {shape=!r}, {given}")
        module = isinstance(source, torch.nn.Module)
        return pipelines.Function(source.to(place).eval() if module else source, shape, place)
    if not isinstance(source, (str, os.PathLike)):
        raise ValueError(f"a model is a name, a folder, a pipeline or a callable; got {source!r}")
    if shape is not None:
        raise ValueError(f"shape= belongs to a callable; {str(source)!r} has its own; got {shape!r}")
    shipped = registry()
    if str(source) in shipped:
        folder = DATA / "models" / str(source)
        _verify(folder, shipped[str(source)]["files"])
    elif Path(source).is_dir():
        folder = Path(source)
    else:
        close = difflib.get_close_matches(str(source), shipped, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"shipped are {', '.join(shipped)}"
        raise ValueError(f"no model or folder is called {str(source)!r}; {hint}")
    return _folder(folder, place).with_(**given)


def untrained(source: str | Path, *, seed: int, steps: int | None = None) -> Sampler:
    """Return the generator of a network with fresh random weights: what its architecture does by itself.

    Raises:
        ValueError: if there is no such network or the seed is negative.
    """
    folder = DATA / "models" / str(source) if str(source) in registry() else Path(source)
    seed = at_least(0, "seed", seed, SEEDS)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        _, network = _architecture(folder)
    identity = {"model": f"{folder.name}, untrained", "initialisation_seed": seed}
    return _from_network(network, _config(folder, SCHEDULER), **identity).with_(steps=steps)


def classifier(name: str | Path) -> perception.Classifier:
    """Return the shipped classifier of that name, such as `"fashion-classifier"`, or the one in a folder.

    Raises:
        ValueError: if there is no such classifier, or its weights are not whole.
    """
    from antinb import perception  # only who judges images imports torchmetrics

    shipped = sorted(path.name for path in (DATA / "models").glob("*-classifier"))
    folder = DATA / "models" / str(name) if name in shipped else Path(name)
    if not folder.is_dir():
        raise ValueError(f"a classifier is one of {', '.join(shipped)}, or a folder; got {str(name)!r}")
    _, tensors, _ = _tensors(folder, "model.safetensors", torch.device("cpu"))
    classes, colours = _config(folder, "quality.json")["classes"], tensors["0.weight"].shape[1]
    network = perception.network(colours, 32 if colours == 3 else 28, len(classes))
    return perception.Classifier(_filled(network, tensors, folder.name, torch.device("cpu")), classes)


def held_out(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return held-out images that no model was trained on, `(N, C, H, W)` in [-1, 1], and their classes `(N,)`.

    `"fashion"`: the first 40 test images of Fashion-MNIST of each of six classes, not selected further.

    Raises:
        ValueError: if none of that name are shipped.
    """
    folder = DATA / "images" / str(name)
    if not (folder / "images.png").exists():
        raise ValueError(f"held-out images are shipped for 'fashion'; got {name!r}")
    about = _config(folder, "images.json")
    with Image.open(folder / "images.png") as sheet:
        tiles = np.asarray(sheet).reshape(len(about["classes"]), about["size"], -1, about["size"]).swapaxes(1, 2)
    labels = np.repeat(about["classes"], tiles.shape[1])
    return tiles.reshape(-1, 1, about["size"], about["size"]).astype(np.float32) / 127.5 - 1, labels


def mixture(name: str) -> Mixture:
    """Return the exact mixture behind a shipped model, in double precision, for its closed forms.

    Raises:
        ValueError: if no shipped mixture has that name, or its file is not the registered one.
    """
    entry = registry().get(name, {"files": {}})
    if "mixture.safetensors" not in entry["files"]:
        raise ValueError(f"{name!r} is no shipped mixture")
    _verify(DATA / "models" / name, entry["files"])
    return _mixture(DATA / "models" / name, torch.device("cpu"))[0].to(torch.float64)


def _mixture(folder: Path, device: torch.device) -> tuple[Mixture, tuple[int, ...], Path]:
    path, tensors, metadata = _tensors(folder, "mixture.safetensors", device)
    missing = {"weights", "means", "factors", "variances"} - set(tensors) or {"shape"} - set(metadata)
    if missing:
        raise ValueError(f"{folder.name}/mixture.safetensors lacks {min(missing)!r}")
    parts = (tensors[key].float() for key in ("weights", "means", "factors", "variances"))
    return Mixture(*parts), tuple(json.loads(metadata["shape"])), path


def _pipeline(source: DiffusionPipeline, given: dict[str, object], shape: tuple[int, ...] | None) -> pipelines.Pipeline:
    name, taken = type(source).__name__, inspect.signature(source.__call__).parameters
    refused = sorted(key for key in given if key != "steps" and not (key == "eta" and "eta" in taken))
    if refused or shape is not None:
        raise ValueError(f"{name} is called as it is; it takes no {refused[0] if refused else 'shape'}= here")
    steps = {"steps": given.pop("steps")} if "steps" in given else {}
    return pipelines.Pipeline(source, **steps, options=given)


def _verify(folder: Path, files: dict[str, str]) -> None:
    for name, wanted in files.items():
        found = _sha256(folder / name) if (folder / name).exists() else "no file"
        if found != wanted:
            rule = f"{folder.name}/{name} is not the registered file: sha256 {wanted[:12]} expected"
            raise ValueError(f"{rule}; got {found[:12]}")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _folder(
    folder: Path, device: torch.device
) -> Sampler | decoders.Decoder | decoders.Latent | couplings.NormalizingFlow:
    if (folder / "config.json").exists():
        return _one_call(folder, device)
    config = _config(folder, SCHEDULER)
    if (folder / "mixture.safetensors").exists():
        known, size, path = _mixture(folder, device)
        return generators.from_mixture(known, size, config, model=folder.name, weights_sha256=_sha256(path))
    part, network = _architecture(folder)
    network, path = _weights(network, folder / part, device)
    sampler = _from_network(network, config, model=folder.name, weights_sha256=_sha256(path))
    if not (folder / "vae").is_dir():
        return sampler
    autoencoder, path = _weights(_known(folder, "vae", {"AutoencoderKL": AutoencoderKL}), folder / "vae", device)
    return decoders.Latent(sampler, autoencoder, {"autoencoder_sha256": _sha256(path)})


def _architecture(folder: Path) -> tuple[str, nn.Module]:
    """Return the subfolder of a diffusers folder that holds its network, and the network without its weights."""
    part = next((name for name in PARTS if (folder / name).is_dir()), PARTS[0])
    return part, _known(folder, part, networks.CLASSES)


def _known(folder: Path, part: str, classes: dict[str, type[nn.Module]]) -> nn.Module:
    settings = _config(folder, f"{part}/config.json")
    name = settings.get("_class_name")
    if name not in classes:
        raise ValueError(f"{folder.name}/{part} must be {' or '.join(classes)}; got {name!r}")
    return classes[name].from_config(settings)


def _weights(network: nn.Module, folder: Path, device: torch.device) -> tuple[nn.Module, Path]:
    path, tensors, _ = _tensors(folder, "diffusion_pytorch_model.safetensors", device)
    return _filled(network, tensors, f"{folder.parent.name}/{folder.name}", device), path


def _from_network(network: nn.Module, config: dict[str, object], **identity: object) -> Sampler:
    """Return the generator of a network by its scheduler, which says what the network predicts; else the noise."""
    kinds = {"FlowMatchEulerDiscreteScheduler": flows, "LCMScheduler": consistency}
    return kinds.get(config.get("_class_name"), generators).from_network(network, config, **identity)


def _one_call(folder: Path, device: torch.device) -> decoders.Decoder | couplings.NormalizingFlow:
    """Return a generator of antinb's own kinds, which make an image in one call."""
    settings = _config(folder, "config.json")
    kind = settings.get("kind")
    if kind not in OWN_KINDS:
        raise ValueError(f"{folder.name}/config.json: kind must be one of {', '.join(OWN_KINDS)}; got {kind!r}")
    missing = set(OWN_KINDS[kind]) - set(settings)
    if missing:
        raise ValueError(f"{folder.name}/config.json lacks {min(missing)!r}")
    if kind == "normalizing flow":  # only who loads one imports zuko, which turns off torch's checks of distributions
        from antinb import couplings
    build = decoders.decoder if kind == "vae" else couplings.flow
    path, tensors, _ = _tensors(folder, "model.safetensors", device)
    network = _filled(build(*(settings[name] for name in OWN_KINDS[kind])), tensors, folder.name, device)
    identity = {"model": folder.name, "weights_sha256": _sha256(path)}
    if kind == "vae":
        return decoders.Decoder(network, settings["latent"], identity)
    return couplings.NormalizingFlow(network, (1, settings["size"], settings["size"]), identity)


def _filled(network: nn.Module, tensors: dict[str, torch.Tensor], name: str, device: torch.device) -> nn.Module:
    """Return the network on its device with its weights, refusing those of another one."""
    wanted, found = ({(key, value.shape) for key, value in state.items()} for state in (network.state_dict(), tensors))
    if wanted != found:
        raise ValueError(f"{name}: weights and configuration differ, first in {min(wanted ^ found)[0]!r}")
    network.load_state_dict(tensors)
    return network.to(device)


def _config(folder: Path, name: str) -> dict[str, object]:
    try:
        settings = json.loads((folder / name).read_text())
    except FileNotFoundError:
        raise ValueError(f"{folder.name!r} is no diffusers folder: it lacks {name}") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{folder.name}/{name} is not JSON: {error}") from None
    if not isinstance(settings, dict):
        raise ValueError(f"{folder.name}/{name} must hold a JSON object; got {settings!r}")
    return settings


def _tensors(folder: Path, name: str, device: torch.device) -> tuple[Path, dict[str, torch.Tensor], dict[str, str]]:
    """Return the path, tensors and metadata of a safetensors file, refusing whatever is not one."""
    path = folder / name
    pickles = sorted(file.name for file in folder.glob("*") if file.suffix in PICKLES)
    if not path.exists():
        found = f"it holds the pickle {pickles[0]}, which is never loaded" if pickles else "it is missing"
        raise ValueError(f"{folder.name} needs {name}: {found}")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
        return path, load_file(path, str(device)), metadata
    except SafetensorError as error:
        with path.open("rb") as file:
            if file.read(2) in DISGUISES:
                raise ValueError(f"{folder.name}/{name} is a pickle; only safetensors is loaded") from None
        raise ValueError(f"{folder.name}/{name} is truncated or not safetensors: {error}") from None
