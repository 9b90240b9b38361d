"""Load a model from a shipped name, a folder, a hub id, a diffusers pipeline or any callable."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from diffusers import AutoencoderKL, DiffusionPipeline
from huggingface_hub import snapshot_download
from torch import nn

from antinb import checks, dataset
from antinb.checks import plain, quoted
from antinb.models import consistency, decoders, diffusion, functions, networks, pipelines, rectified
from antinb.models.exact import Mixture
from antinb.models.generator import Generator
from antinb.zoo import folders, mixtures, settings, shipped
from antinb.zoo.mixtures import MIXTURE
from antinb.zoo.shipped import registry

if TYPE_CHECKING:
    from antinb.models import normalizing

__all__ = ["load", "mixture", "untrained"]

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
WANTED = ["*.json", "*.txt", "*.model", "*/*.safetensors", "diffusion_pytorch_model.safetensors"]
UNWANTED = ["*.fp16.*", "*.fp16-*", "*.non_ema.*", "*.ema.*", "safety_checker/*", "*onnx*", "*openvino*", "*flax*"]
OWN_KINDS = {"vae": ("latent", "width"), "normalizing flow": ("layers", "width", "size")}
DENOISERS = ("unet", "transformer")
MARKS = (folders.INDEX, "config.json", MIXTURE, *folders.PARTS)  # one of them is in the folder of any model
A_MODEL = (
    "a model is a shipped name, an id 'owner/name' of the hub, a diffusers pipeline, a callable, or a folder with "
    "model_index.json, config.json, or unet/ or transformer/ beside scheduler/"
)
OWN_LOOP = ("DDPMPipeline", "DDIMPipeline")  # pipelines that antinb's own sampler repeats step by step

Built = TypeVar("Built", bound=nn.Module)
Look = Callable[[nn.Module, str], None]
Sampler = diffusion.Diffusion | rectified.RectifiedFlow | consistency.Consistency


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
    prompts: Sequence[str] = (),
    options: Mapping[str, object] | None = None,
    device: str | torch.device = "cpu",
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
        prompts: the prompts that the conditions 0, 1, ... of a text pipeline stand for.
        options: further arguments of a pipeline's call, such as `{"height": 512, "image": picture}`.
        device: where the network runs; a pipeline object stays where it is.

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
    extras = {"prompts": prompts, "options": options or {}}
    if (shape, range) != (None, None) and (isinstance(source, DiffusionPipeline) or not callable(source)):
        found = f"shape={quoted(shape)}, range={quoted(range)}"
        raise ValueError(f"shape= and range= belong to a callable, other models have their own; got {found}")
    if isinstance(source, DiffusionPipeline):
        return _pipeline(source, given, **extras)
    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    except (AssertionError, RuntimeError, TypeError):
        rule = "device must be one that torch has here, such as 'cpu' or 'cuda:0'"
        raise ValueError(f"{rule}; got {quoted(device)}") from None
    if callable(source):
        if shape is None or given or extras["prompts"] or extras["options"]:
            raise ValueError(f"a callable needs shape= and takes no {refused}; got {shape=!r}, {quoted(given)}")
        module = isinstance(source, torch.nn.Module)
        return functions.Function(source.to(place).eval() if module else source, shape, place, range or dataset.RANGE)
    folder = _place(source)
    with torch.random.fork_rng(devices=[]):
        if (folder / folders.INDEX).exists():
            if folders.config(folder, folders.INDEX).get("_class_name") not in OWN_LOOP:
                from antinb.zoo import components

                return _pipeline(components.load(folder, place), given, **extras)
        if extras["prompts"] or extras["options"]:
            rule = "prompts= and options= belong to a pipeline"
            raise ValueError(f"{rule}; {quoted(str(source))} runs in antinb's own loop")
        return _folder(folder, place).with_(**given)


def _place(source: str | Path) -> Path:
    """Return the folder of a model, whose files are ordinary ones inside it.

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
        return folders.enter(_download(name))
    raise ValueError(checks.unknown("no model or folder", name, known, "shipped are"))


def untrained(source: str | Path, *, seed: int, steps: int | None = None) -> Sampler:
    """Return the generator of a network with fresh random weights, which shows what its architecture does by itself.

    Raises:
        ValueError: if there is no such network or the seed is negative.

    Examples:
        >>> untrained("fashion-dit", seed=0, steps=5).describe()["model"]
        'fashion-dit, untrained'
    """
    folder, seed = _place(source), checks.seed(seed)
    config = settings.scheduler(folder)
    build, path = _denoiser(folder)
    _check(build, path, settings.check_images)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build()
    identity = {"model": f"{folder.name}, untrained", "initialisation_seed": seed}
    return _from_network(network, config, **identity).with_(steps=steps)


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


def _folder(
    folder: Path, device: torch.device
) -> Sampler | decoders.Decoder | decoders.Latent | normalizing.NormalizingFlow:
    if (folder / "config.json").exists() and not (folder / folders.INDEX).exists():
        return _one_call(folder, device)
    config = settings.scheduler(folder)
    if (folder / MIXTURE).exists():
        known, size, path = mixtures.read(folder, device)
        return diffusion.from_mixture(known, size, config, model=folder.name, weights_sha256=folders.sha256(path))
    network, path = filled(*_denoiser(folder), device, settings.check_images)
    sampler = _from_network(network, config, model=folder.name, weights_sha256=folders.sha256(path))
    if not (folder / "vae").is_dir():
        return sampler
    autoencoder, path = filled(*_known(folder / "vae", {"AutoencoderKL": AutoencoderKL}), device)
    return decoders.Latent(sampler, autoencoder, {"autoencoder_sha256": folders.sha256(path)})


def _denoiser(folder: Path) -> tuple[Callable[[], nn.Module], Path]:
    """Return what builds the network of a diffusers folder, and the path of its weights."""
    part = next((name for name in DENOISERS if (folder / name).is_dir()), DENOISERS[0])
    return _known(folders.part(folder, part), networks.CLASSES)


def _known(folder: Path, classes: Mapping[str, type[Built]]) -> tuple[Callable[[], Built], Path]:
    config, where = folders.config(folder, "config.json"), f"{plain(folder.parent.name)}/{plain(folder.name)}"
    name = config.get("_class_name")
    if not isinstance(name, str) or name not in classes:
        raise ValueError(f"{where} must be {' or '.join(classes)}; got {quoted(name)}")
    settings.check(config, [classes[name]], f"{where}/config.json")
    null = config.pop(networks.NULL, None)

    def build() -> Built:
        network = getattr(classes[name], "from_config")(config)  # noqa: B009
        if null is not None:
            network.register_to_config(**{networks.NULL: null})
        return network

    return build, folder / f"{folders.WEIGHTS}.safetensors"


def _check(build: Callable[[], nn.Module], path: Path, look: Look | None = None) -> None:
    """Refuse a network, before it is built, whose configuration does not fit the weights at `path`."""
    name, found = plain(path.parent.name), folders.header(path.parent, path.stem)
    network = folders.sketch(build, found.shapes, name)
    wanted = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    if wanted != found.shapes:
        first = min(wanted.items() ^ found.shapes.items())[0]
        raise ValueError(f"{name}: weights and configuration differ, first in {quoted(first)}")
    folders.check_types(found, network, name)
    if look:
        look(network, name)


def filled(
    build: Callable[[], Built], path: Path, device: torch.device, look: Look | None = None
) -> tuple[Built, Path]:
    """Return a network on its device with its weights, and their path; `look` may refuse its sketch."""
    _check(build, path, look)
    network = build()
    network.load_state_dict(folders.tensors(path.parent, path.name, device)[0])
    return network.to(device), path


def _from_network(network: nn.Module, config: dict[str, Any], **identity: object) -> Sampler:
    """Return the generator of a network; its scheduler says what the network predicts, by default the noise."""
    return settings.KINDS[config["_class_name"]].from_network(network, config, **identity)


def _one_call(folder: Path, device: torch.device) -> decoders.Decoder | normalizing.NormalizingFlow:
    """Return the generator of a folder in antinb's own format, which makes an image in one call."""
    config, where = folders.config(folder, "config.json"), f"{plain(folder.name)}/config.json"
    kind = config.get("kind")
    if not isinstance(kind, str) or kind not in OWN_KINDS:
        raise ValueError(f"{where}: kind must be one of {', '.join(OWN_KINDS)}; got {quoted(kind)}")
    missing = set(OWN_KINDS[kind]) - set(config)
    if missing:
        raise ValueError(f"{where} lacks {min(missing)!r}")
    sizes = [checks.integer(f"{where}: {name}", config[name], 1) for name in OWN_KINDS[kind]]
    weights = folder / "model.safetensors"
    if kind == "vae":
        network, path = filled(partial(decoders.decoder, *sizes), weights, device)
        identity = {"model": folder.name, "weights_sha256": folders.sha256(path)}
        return decoders.Decoder(network, config["latent"], identity)
    from antinb.models import normalizing  # zuko turns off torch's checks of distributions, so it is imported here only

    network, path = filled(partial(normalizing.flow, *sizes), weights, device)
    identity = {"model": folder.name, "weights_sha256": folders.sha256(path)}
    return normalizing.NormalizingFlow(network, (1, config["size"], config["size"]), identity)
