"""Load a model from a shipped name, a folder, a hub id, a diffusers pipeline or any callable."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from huggingface_hub import snapshot_download
from torch import nn

from antinb import checks, dataset
from antinb.checks import plain, quoted
from antinb.models import functions, networks, pipelines
from antinb.models.exact import Mixture
from antinb.models.generator import Generator
from antinb.zoo import folders, kinds, mixtures, settings, shipped, sources, weights
from antinb.zoo.mixtures import MIXTURE
from antinb.zoo.shipped import registry
from antinb.zoo.weights import Place

__all__ = ["load", "mixture", "untrained"]

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
WANTED = ["*.json", "*.txt", "*.model", "*/*.safetensors", "diffusion_pytorch_model.safetensors"]
UNWANTED = ["*.non_ema.*", "*.ema.*", "safety_checker/*", "*onnx*", "*openvino*", "*flax*"]
HALF = ["*.fp16.*", "*.fp16-*"]  # a second copy of the weights, but where it is the only one
MARKS = (folders.INDEX, "config.json", MIXTURE, *folders.PARTS)  # one of them is in the folder of any model
A_MODEL = (
    "a model is a shipped name, an id 'owner/name' of the hub, a diffusers pipeline, a callable, or a folder with "
    "model_index.json, config.json, or unet/ or transformer/ beside scheduler/"
)
OWN_LOOP = ("DDPMPipeline", "DDIMPipeline")  # pipelines that antinb's own sampler repeats step by step


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
    range: tuple[float, float] | None = None,  # noqa: A002
    prompts: Sequence[str] | str | Path = (),
    options: Mapping[str, object] | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
) -> Generator:
    """Return the generator of a shipped model, a folder, a model of the hub, a diffusers pipeline or a callable.

    Args:
        source: name of a shipped model (`antinb models` lists them); path of a diffusers folder, or an id
            `"owner/name"` of the hub, which is downloaded; path of a one-call model with `config.json`; a diffusers
            pipeline with a UNet or a transformer; or a callable from noise `(B, *shape)` to images `(B, C, H, W)`.
            Networks of DDPM and DDIM pipelines, and folders with only `unet/` or `transformer/`, `scheduler/` and
            maybe `vae/`, run in antinb's own loop; every other pipeline is called as it is (`antinb.models.pipelines`).
        steps: number of steps; None takes 50, or 1 for a consistency model.
        scheduler: `"ddim"` (the default), `"ddpm"` or `"dpmsolver++"` for a diffusion model, `"euler"` (the default)
            or `"heun"` for a flow, and `"lcm"` for a consistency model.
        clip: whether the predicted clean image is clipped to [-1, 1]; None follows the model's configuration.
        eta: step noise of DDIM, or of a pipeline that takes it, from 0 to 1.
        guidance: scale of classifier-free guidance of a conditional model or a text pipeline; 1 turns it off.
        compile: whether the network runs through `torch.compile`.
        shape: shape of one noise, which a callable needs and no other source takes.
        range: what a callable returns for black and white, such as `(0, 1)` or `(0, 255)`; None takes `(-1, 1)`.
        prompts: the prompts that the conditions 0, 1, ... of a text pipeline stand for, as a list or as the path of a
            file with one a line.
        options: further arguments of a pipeline's call, such as `{"height": 512, "image": picture}`.
        device: where the network runs, such as `"cuda"`; None takes the CPU, and leaves a pipeline object where it is.
        dtype: precision of the network, `"float32"`, `"bfloat16"`, `"float16"` or `"float64"`; None takes float32, and
            leaves a pipeline object or a module as it is. The noise is always drawn on the CPU, in single precision.

    Raises:
        ValueError: if the source is unknown or the hub cannot be reached; if a file is not the registered one,
            is truncated, is not safetensors, does not fit its configuration, lies outside the folder or asks
            for code other than that of diffusers and transformers; or if an option does not belong to the source.

    Examples:
        >>> import antinb
        >>> generator = antinb.load("fashion-mixture", steps=20)
        >>> generator.shape, generator.evaluations
        ((1, 28, 28), 20)
        >>> antinb.load(torch.tanh, shape=(1, 4, 4)).shape
        (1, 4, 4)
    """
    given = {"steps": steps, "scheduler": scheduler, "clip": clip, "eta": eta, "guidance": guidance, "compile": compile}
    refused = ", ".join([*given, "prompts", "options"])
    given = {name: value for name, value in given.items() if value is not None}
    extras = {"prompts": _prompts(prompts), "options": options or {}}
    if not (shape is None and range is None) and (isinstance(source, DiffusionPipeline) or not callable(source)):
        found = f"shape={quoted(shape)}, range={quoted(range)}"
        raise ValueError(f"shape= and range= belong to a callable, other models have their own; got {found}")
    place = _where(device, dtype)
    if isinstance(source, DiffusionPipeline):
        moved = {"device": place.device} if device is not None else {}
        moved |= {"dtype": place.dtype} if dtype is not None else {}
        return _pipeline(source.to(**moved) if moved else source, given, **extras)
    if callable(source):
        if shape is None or given or extras["prompts"] or extras["options"]:
            raise ValueError(f"a callable needs shape= and takes no {refused}; got {shape=!r}, {quoted(given)}")
        own = place.dtype if dtype is not None else None
        if isinstance(source, nn.Module):
            networks.weights(source)
            source = source.to(place.device, own).eval()
        return functions.Function(source, shape, place.device, dataset.RANGE if range is None else range, dtype=own)
    folder = _place(source)
    with torch.random.fork_rng(devices=[]):
        if (folder / folders.INDEX).exists():
            if folders.config(folder, folders.INDEX).get("_class_name") not in OWN_LOOP:
                from antinb.zoo import components

                made = _pipeline(components.load(folder, place), given, **extras)
                sources.note(made, load, source, device, dtype)
                return made
        if extras["prompts"] or extras["options"]:
            rule = "prompts= and options= belong to a pipeline"
            raise ValueError(f"{rule}; {quoted(str(source))} runs in antinb's own loop")
        made = kinds.read(folder, place)
        sources.note(made, load, source, device, dtype)
        return made.with_(**given)


def _where(device: str | torch.device | None, dtype: str | torch.dtype | None) -> Place:
    """Return the place of a device and a precision.

    Raises:
        ValueError: if torch has no such device here, or the precision is none that networks run in.
    """
    try:
        found = torch.device("cpu" if device is None else device)
        torch.empty(0, device=found)
    except (AssertionError, RuntimeError, TypeError):
        rule = "device must be one that torch has here, such as 'cpu' or 'cuda:0'"
        raise ValueError(f"{rule}; got {quoted(device)}") from None
    name = str(dtype).removeprefix("torch.") if isinstance(dtype, torch.dtype) else dtype
    return Place(found, getattr(torch, "float32" if name is None else checks.choice("dtype", name, weights.DTYPES)))


def _prompts(given: Sequence[str] | str | Path) -> Sequence[str]:
    """Return prompts, read from a file if a path is given, one a line.

    Raises:
        ValueError: if there is no such file, or it holds no prompts.
    """
    if not isinstance(given, (str, os.PathLike)):
        return given
    path = Path(given).expanduser()
    if not path.is_file():
        raise ValueError(f"prompts must be a list of strings, or a file with one a line; got {quoted(str(given))}")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except ValueError:
        raise ValueError(f"{plain(path.name)} is no text in UTF-8") from None
    found = [line.strip() for line in lines if line.strip()]
    if not found:
        raise ValueError(f"{plain(path.name)} must hold one prompt a line; it holds none")
    return found


def _place(source: str | Path) -> Path:
    """Return the folder of a model, downloaded if it is one of the hub."""
    return local(source) or folders.enter(_download(os.fspath(source)))


def local(source: str | Path) -> Path | None:
    """Return the folder of a model, whose files are ordinary ones inside it, or None for an id of the hub.

    Raises:
        ValueError: if there is no such model, or a file of it leads out of the folder.
    """
    if not isinstance(source, (str, os.PathLike)) or not isinstance(os.fspath(source), str):
        raise ValueError(f"{A_MODEL}; got {quoted(source)}")
    name, known = os.fspath(source), registry()
    path = os.path.expanduser(name)
    if name in known:
        return shipped.folder(name)
    if os.path.isdir(path) and any((Path(path) / mark).exists() for mark in MARKS):
        return folders.enter(Path(path))
    if os.path.isdir(path) or not name.strip():
        raise ValueError(f"{A_MODEL}; got {quoted(name)}")
    if HUB_ID.fullmatch(name):
        return None
    raise ValueError(checks.unknown("no model or folder", name, known, "shipped are"))


def untrained(source: str | Path, *, seed: int, steps: int | None = None) -> kinds.Sampler:
    """Return the generator of a network with fresh random weights, which shows what its architecture does by itself.

    Raises:
        ValueError: if there is no such network or the seed is negative.

    Examples:
        >>> untrained("fashion-dit", seed=0, steps=5).describe()["model"]
        'fashion-dit, untrained'
    """
    folder, seed = _place(source), checks.seed(seed)
    config = settings.scheduler(folder)
    build, own = kinds.denoiser(folder)
    weights.check(build, own, weights.WEIGHTS, settings.check_images)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build()
    identity = {"model": f"{folder.name}, untrained", "initialisation_seed": seed}
    return kinds.from_network(network, config, **identity).with_(steps=steps)


def mixture(name: str) -> Mixture:
    """Return the exact mixture behind a shipped model, in double precision, for its closed forms.

    Raises:
        ValueError: if no shipped mixture has that name, or its file is not the registered one.

    Examples:
        >>> mixture("fashion-mixture").mean.shape
        torch.Size([784])
    """
    if MIXTURE not in registry().get(name if isinstance(name, str) else "", {"files": {}})["files"]:
        raise ValueError(f"{quoted(name)} is no shipped mixture")
    return mixtures.read(shipped.folder(name), torch.device("cpu"))[0].to(torch.float64)


def _download(name: str) -> Path:
    """Return the folder of a model of the hub, downloaded without pickles and code if it is not in the cache.

    Raises:
        ValueError: if the hub cannot be reached and the model is not in its cache, or there is no such model.
    """
    try:
        folder = Path(snapshot_download(name, allow_patterns=WANTED, ignore_patterns=[*UNWANTED, *HALF]))
        parts = [path.parent for path in folder.glob("*/config.json")]
        if all(any(part.glob("*.safetensors")) for part in parts):
            return folder
        return Path(snapshot_download(name, allow_patterns=WANTED, ignore_patterns=UNWANTED))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"the hub gives no model {quoted(name)} ({type(error).__name__}): fetch it where there is a network, "
            f"'hf download {name} --local-dir FOLDER', and load the folder"
        ) from None


def _pipeline(
    source: DiffusionPipeline,
    given: dict[str, Any],
    prompts: Sequence[str],
    options: Mapping[str, object],
) -> pipelines.Pipeline:
    name, taken = type(source).__name__, inspect.signature(source.__call__).parameters
    arguments = {"eta": "eta", "guidance": "guidance_scale"}
    refused = sorted(key for key in given if key != "steps" and arguments.get(key) not in taken)
    if refused:
        raise ValueError(f"{name} is called as it is; it takes no {refused[0]}= here")
    steps = {"steps": given["steps"]} if "steps" in given else {}
    own = {arguments[key]: value for key, value in given.items() if key != "steps"}
    return pipelines.Pipeline(source, **steps, options={**options, **own}, prompts=prompts)
