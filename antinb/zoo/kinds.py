"""What kind of model a folder holds, told by its files and its scheduler, and the generator of each kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from diffusers import AutoencoderKL
from torch import nn

from antinb import checks
from antinb.checks import plain, quoted
from antinb.models import consistency, decoders, diffusion, networks, rectified
from antinb.zoo import folders, mixtures, settings, weights
from antinb.zoo.mixtures import MIXTURE
from antinb.zoo.weights import Place

if TYPE_CHECKING:
    from antinb.models import normalizing

__all__: list[str] = []

OWN_KINDS = {"vae": ("latent", "width"), "normalizing flow": ("layers", "width", "size")}
DENOISERS = ("unet", "transformer")
Sampler = diffusion.Diffusion | rectified.RectifiedFlow | consistency.Consistency


def read(folder: Path, place: Place) -> Sampler | decoders.Decoder | decoders.Latent | normalizing.NormalizingFlow:
    """Return the generator of a folder that antinb's own loop runs.

    Raises:
        ValueError: if its files are not those of a model.
    """
    if (folder / "config.json").exists() and not (folder / folders.INDEX).exists():
        return _one_call(folder, place)
    config = settings.scheduler(folder)
    if (folder / MIXTURE).exists():
        _refuse_half(folder, place)
        if settings.KINDS[config["_class_name"]] is not diffusion:
            raise ValueError(f"{plain(folder.name)}: a mixture is a diffusion model; got {config['_class_name']}")
        known, size, path = mixtures.read(folder, place.device)
        identity = {"model": folder.name, "weights_sha256": folders.sha256(path)}
        return diffusion.from_mixture(known.to(place.dtype), size, config, **identity)
    build, own = denoiser(folder)
    network, digest = weights.filled(build, own, weights.WEIGHTS, place, settings.check_images)
    sampler = from_network(network, config, model=folder.name, weights_sha256=digest)
    index = folders.config(folder, folders.INDEX) if (folder / folders.INDEX).exists() else {"vae": None}
    if not (folder / "vae").is_dir() or "vae" not in index:
        return sampler
    build, own = _known(folder, "vae", {"AutoencoderKL": AutoencoderKL})
    autoencoder, digest = weights.filled(build, own, weights.WEIGHTS, place)
    return decoders.Latent(sampler, autoencoder, {"autoencoder_sha256": digest})


def denoiser(folder: Path) -> tuple[Callable[[], nn.Module], Path]:
    """Return what builds the network of a diffusers folder, and the folder of its weights."""
    part = next((name for name in DENOISERS if (folder / name).is_dir()), DENOISERS[0])
    return _known(folder, part, networks.CLASSES)


def _known(
    whole: Path, part: str, classes: Mapping[str, type[weights.Built]]
) -> tuple[Callable[[], weights.Built], Path]:
    folder = folders.part(whole, part)
    config, where, name = folders.config(folder, "config.json"), f"{plain(folder.parent.name)}/{plain(folder.name)}", ""
    for name in folders.classes(whole, part, config):
        if not isinstance(name, str) or name not in classes:
            raise ValueError(f"{where} must be {' or '.join(classes)}; got {quoted(name)}")
    settings.check(config, [classes[name]], f"{where}/config.json")
    null = config.pop(networks.NULL, None)

    def build() -> weights.Built:
        network = getattr(classes[name], "from_config")(config)  # noqa: B009
        if null is not None:
            network.register_to_config(**{networks.NULL: null})
        return network

    return build, folder


def from_network(network: nn.Module, config: dict[str, Any], **identity: object) -> Sampler:
    """Return the generator of a network; its scheduler says what the network predicts, by default the noise."""
    return settings.KINDS[config["_class_name"]].from_network(network, config, **identity)


def _one_call(folder: Path, place: Place) -> decoders.Decoder | normalizing.NormalizingFlow:
    """Return the generator of a folder in antinb's own format, which makes an image in one call."""
    config, where = folders.config(folder, "config.json"), f"{plain(folder.name)}/config.json"
    kind = config.get("kind")
    if not isinstance(kind, str) or kind not in OWN_KINDS:
        raise ValueError(f"{where}: kind must be one of {', '.join(OWN_KINDS)}; got {quoted(kind)}")
    missing = set(OWN_KINDS[kind]) - set(config)
    if missing:
        raise ValueError(f"{where} lacks {min(missing)!r}")
    sizes = [checks.integer(f"{where}: {name}", config[name], 1) for name in OWN_KINDS[kind]]
    if kind == "vae":
        network, digest = weights.filled(partial(decoders.decoder, *sizes), folder, "model", place)
        return decoders.Decoder(network, config["latent"], {"model": folder.name, "weights_sha256": digest})
    _refuse_half(folder, place)
    from antinb.models import normalizing  # zuko turns off torch's checks of distributions, so it is imported here only

    network, digest = weights.filled(partial(normalizing.flow, *sizes), folder, "model", place)
    identity = {"model": folder.name, "weights_sha256": digest}
    return normalizing.NormalizingFlow(network, (1, config["size"], config["size"]), identity)


def _refuse_half(folder: Path, place: Place) -> None:
    if place.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"{plain(folder.name)} runs in float32 or float64; got {place.dtype}")
