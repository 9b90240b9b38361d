"""Load a model from a shipped name, a folder, a hub id, a diffusers pipeline or any callable."""

from __future__ import annotations

import difflib
import inspect
import json
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

from antinb import checks
from antinb.models import consistency, decoders, diffusion, functions, networks, pipelines, rectified
from antinb.models.exact import Mixture
from antinb.models.generator import Generator
from antinb.zoo import folders, shipped
from antinb.zoo.shipped import registry

if TYPE_CHECKING:
    from antinb.models import normalizing

__all__ = ["load", "mixture", "untrained"]

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
WANTED = ["*.json", "*.txt", "*.model", "*/*.safetensors", "diffusion_pytorch_model.safetensors"]
UNWANTED = ["*.fp16.*", "*.fp16-*", "*.non_ema.*", "*.ema.*", "safety_checker/*", "*onnx*", "*openvino*", "*flax*"]
OWN_KINDS = {"vae": ("latent", "width"), "normalizing flow": ("layers", "width", "size")}
PARTS = ("unet", "transformer")
OWN_LOOP = ("DDPMPipeline", "DDIMPipeline")  # pipelines that antinb's own sampler repeats step by step

Built = TypeVar("Built", bound=nn.Module)
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
    settings = {"steps": steps, "scheduler": scheduler, "clip": clip}
    settings |= {"eta": eta, "guidance": guidance, "compile": compile}
    given = {name: value for name, value in settings.items() if value is not None}
    extras = {"prompts": prompts, "options": options or {}}
    if isinstance(source, DiffusionPipeline):
        return _pipeline(source, given, shape, **extras)
    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    except (AssertionError, RuntimeError, TypeError):
        raise ValueError(f"device must be one that torch has here, such as 'cpu' or 'cuda:0'; got {device!r}") from None
    if callable(source):
        if shape is None or given or any(extras.values()):
            refused = ", ".join(settings | extras)
            raise ValueError(f"a callable needs shape= and takes no {refused}; got {shape=!r}, {given}")
        module = isinstance(source, torch.nn.Module)
        return functions.Function(source.to(place).eval() if module else source, shape, place)
    if not isinstance(source, (str, os.PathLike)):
        raise ValueError(f"a model is a name, a folder, a pipeline or a callable; got {source!r}")
    if shape is not None:
        raise ValueError(f"shape= belongs to a callable; {str(source)!r} has its own; got {shape!r}")
    known = registry()
    if str(source) in known:
        folder = shipped.folder(str(source))
    elif Path(source).expanduser().is_dir():
        folder = Path(source).expanduser()
    elif HUB_ID.fullmatch(str(source)):
        folder = _download(str(source))
    else:
        close = difflib.get_close_matches(str(source), known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"shipped are {', '.join(known)}"
        raise ValueError(f"no model or folder is called {str(source)!r}; {hint}")
    folders.inside(folder)
    if (folder / folders.INDEX).exists() and folders.config(folder, folders.INDEX).get("_class_name") not in OWN_LOOP:
        from antinb.zoo import components

        return _pipeline(components.load(folder, place), given, shape, **extras)
    if any(extras.values()):
        raise ValueError(f"prompts= and options= belong to a pipeline; {str(source)!r} runs in antinb's own loop")
    return _folder(folder, place).with_(**given)


def untrained(source: str | Path, *, seed: int, steps: int | None = None) -> Sampler:
    """Return the generator of a network with fresh random weights, which shows what its architecture does by itself.

    Raises:
        ValueError: if there is no such network or the seed is negative.

    Examples:
        >>> untrained("fashion-dit", seed=0, steps=5).describe()["model"]
        'fashion-dit, untrained'
    """
    folder = shipped.DATA / "models" / str(source) if str(source) in registry() else Path(source)
    seed = checks.seed(seed)
    build, path = _denoiser(folder)
    _check(build, path)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build()
    identity = {"model": f"{folder.name}, untrained", "initialisation_seed": seed}
    return _from_network(network, _levels(folder), **identity).with_(steps=steps)


def mixture(name: str) -> Mixture:
    """Return the exact mixture behind a shipped model, in double precision, for its closed forms.

    Raises:
        ValueError: if no shipped mixture has that name, or its file is not the registered one.

    Examples:
        >>> mixture("fashion-mixture").mean.shape
        torch.Size([784])
    """
    if "mixture.safetensors" not in registry().get(name, {"files": {}})["files"]:
        raise ValueError(f"{name!r} is no shipped mixture")
    return _mixture(shipped.folder(name), torch.device("cpu"))[0].to(torch.float64)


def _download(name: str) -> Path:
    """Return the folder of a model of the hub, downloaded without pickles and code if it is not in the cache.

    Raises:
        ValueError: if the hub cannot be reached and the model is not in its cache, or there is no such model.
    """
    try:
        return Path(snapshot_download(name, allow_patterns=WANTED, ignore_patterns=UNWANTED))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"the hub gives no model {name!r} ({type(error).__name__}): fetch it where there is a network, "
            f"'hf download {name} --local-dir FOLDER', and load the folder"
        ) from None


def _mixture(folder: Path, device: torch.device) -> tuple[Mixture, tuple[int, ...], Path]:
    tensors, metadata = folders.tensors(folder, "mixture.safetensors", device)
    missing = {"weights", "means", "factors", "variances"} - set(tensors) or {"shape"} - set(metadata)
    if missing:
        raise ValueError(f"{folder.name}/mixture.safetensors lacks {min(missing)!r}")
    parts = (tensors[key].float() for key in ("weights", "means", "factors", "variances"))
    return Mixture(*parts), tuple(json.loads(metadata["shape"])), folder / "mixture.safetensors"


def _pipeline(
    source: DiffusionPipeline,
    given: dict[str, Any],
    shape: tuple[int, ...] | None,
    prompts: Sequence[str],
    options: Mapping[str, object],
) -> pipelines.Pipeline:
    name, taken = type(source).__name__, inspect.signature(source.__call__).parameters
    arguments = {"eta": "eta", "guidance": "guidance_scale"}
    refused = sorted(key for key in given if key != "steps" and arguments.get(key) not in taken)
    if refused or shape is not None:
        raise ValueError(f"{name} is called as it is; it takes no {refused[0] if refused else 'shape'}= here")
    steps = {"steps": given["steps"]} if "steps" in given else {}
    own = {arguments[key]: value for key, value in given.items() if key != "steps"}
    return pipelines.Pipeline(source, **steps, options={**options, **own}, prompts=prompts)


def _folder(
    folder: Path, device: torch.device
) -> Sampler | decoders.Decoder | decoders.Latent | normalizing.NormalizingFlow:
    if (folder / "config.json").exists() and not (folder / folders.INDEX).exists():
        return _one_call(folder, device)
    config = _levels(folder)
    if (folder / "mixture.safetensors").exists():
        known, size, path = _mixture(folder, device)
        return diffusion.from_mixture(known, size, config, model=folder.name, weights_sha256=folders.sha256(path))
    network, path = filled(*_denoiser(folder), device)
    sampler = _from_network(network, config, model=folder.name, weights_sha256=folders.sha256(path))
    if not (folder / "vae").is_dir():
        return sampler
    autoencoder, path = filled(*_known(folder / "vae", {"AutoencoderKL": AutoencoderKL}), device)
    return decoders.Latent(sampler, autoencoder, {"autoencoder_sha256": folders.sha256(path)})


def _levels(folder: Path) -> dict[str, Any]:
    """Return the configuration of a folder's scheduler."""
    return folders.config(folders.part(folder, "scheduler"), "scheduler_config.json")


def _denoiser(folder: Path) -> tuple[Callable[[], nn.Module], Path]:
    """Return what builds the network of a diffusers folder, and the path of its weights."""
    part = next((name for name in PARTS if (folder / name).is_dir()), PARTS[0])
    return _known(folders.part(folder, part), networks.CLASSES)


def _known(folder: Path, classes: Mapping[str, type[Built]]) -> tuple[Callable[[], Built], Path]:
    settings = folders.config(folder, "config.json")
    name = settings.get("_class_name")
    if not isinstance(name, str) or name not in classes:
        raise ValueError(f"{folder.parent.name}/{folder.name} must be {' or '.join(classes)}; got {name!r}")
    build: Callable[..., Built] = getattr(classes[name], "from_config")  # noqa: B009
    return partial(build, settings), folder / f"{folders.WEIGHTS}.safetensors"


def _check(build: Callable[[], nn.Module], path: Path) -> None:
    """Refuse a network, before it is built, whose configuration does not fit the weights at `path`."""
    name, found = path.parent.name, folders.shapes(path.parent, path.stem)
    wanted = {key: tuple(value.shape) for key, value in folders.sketch(build, found, name).state_dict().items()}
    if wanted != found:
        first = min(wanted.items() ^ found.items())[0]
        raise ValueError(f"{name}: weights and configuration differ, first in {first!r}")


def filled(build: Callable[[], Built], path: Path, device: torch.device) -> tuple[Built, Path]:
    """Return a network on its device with its weights, and their path."""
    _check(build, path)
    network = build()
    network.load_state_dict(folders.tensors(path.parent, path.name, device)[0])
    return network.to(device), path


def _from_network(network: nn.Module, config: dict[str, Any], **identity: object) -> Sampler:
    """Return the generator of a network; its scheduler says what the network predicts, by default the noise."""
    kinds = {"FlowMatchEulerDiscreteScheduler": rectified, "LCMScheduler": consistency}
    return kinds.get(str(config.get("_class_name")), diffusion).from_network(network, config, **identity)


def _one_call(folder: Path, device: torch.device) -> decoders.Decoder | normalizing.NormalizingFlow:
    """Return the generator of a folder in antinb's own format, which makes an image in one call."""
    settings = folders.config(folder, "config.json")
    kind = settings.get("kind")
    if kind not in OWN_KINDS:
        raise ValueError(f"{folder.name}/config.json: kind must be one of {', '.join(OWN_KINDS)}; got {kind!r}")
    missing = set(OWN_KINDS[kind]) - set(settings)
    if missing:
        raise ValueError(f"{folder.name}/config.json lacks {min(missing)!r}")
    sizes, weights = [settings[name] for name in OWN_KINDS[kind]], folder / "model.safetensors"
    if kind == "vae":
        network, path = filled(partial(decoders.decoder, *sizes), weights, device)
        identity = {"model": folder.name, "weights_sha256": folders.sha256(path)}
        return decoders.Decoder(network, settings["latent"], identity)
    from antinb.models import normalizing  # zuko turns off torch's checks of distributions, so it is imported here only

    network, path = filled(partial(normalizing.flow, *sizes), weights, device)
    identity = {"model": folder.name, "weights_sha256": folders.sha256(path)}
    return normalizing.NormalizingFlow(network, (1, settings["size"], settings["size"]), identity)
