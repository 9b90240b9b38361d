"""Networks and schedulers of diffusers, in the form in which the generators use them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypedDict, TypeVar

import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DiTTransformer2DModel,
    DPMSolverMultistepScheduler,
    LCMScheduler,
    UNet2DModel,
)

from antinb import checks
from antinb.models.generator import Network

__all__: list[str] = []

CLASSES = {cls.__name__: cls for cls in (UNet2DModel, DiTTransformer2DModel)}
NULL = "null_class"  # the entry of a network's configuration that says which class stands for no condition
Scheduler = TypeVar("Scheduler", DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, LCMScheduler)


class Parts(TypedDict):
    """What a generator takes of a network, by the names of its attributes."""

    network: Network
    shape: tuple[int, ...]
    like: torch.Tensor
    null: int | None
    conditions: int
    identity: Mapping[str, object]


def scheduler(kind: type[Scheduler], config: Mapping[str, Any]) -> Scheduler:
    """Return a diffusers scheduler with the settings of a configuration that it knows."""
    try:
        made = kind.from_config(settings(config))
    except Exception as error:
        raise ValueError(f"the configuration describes no {kind.__name__}: {checks.reason(error)}") from None
    return made[0] if isinstance(made, tuple) else made


def settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration without the entries that diffusers keeps for itself."""
    return {key: value for key, value in config.items() if not key.startswith("_")}


def noise_shape(network: UNet2DModel | DiTTransformer2DModel) -> tuple[int, ...]:
    """Return the `(C, H, W)` that the network takes."""
    size = network.config["sample_size"]
    if size is None:
        raise ValueError("sample_size must say how large the images are; got None")
    return (network.config["in_channels"], *((size, size) if isinstance(size, int) else size))


def learned(network: UNet2DModel | DiTTransformer2DModel) -> bool:
    """Return whether a network returns a variance beside each number, in as many channels again."""
    return network.config["out_channels"] == 2 * network.config["in_channels"]


def parts(
    network: UNet2DModel | DiTTransformer2DModel, identity: Mapping[str, object], *, variance: bool = False
) -> Parts:
    """Put a network in evaluation mode and return the attributes of its generator.

    With `variance` the network may return as many channels again, its own variances.

    The null class of guidance is the one that the configuration names, `network.register_to_config(null_class=10)`;
    else the one after the last of a transformer, and none of a conditional UNet, for all of its classes may be real.

    Raises:
        ValueError: if the network does not return as many channels as it takes, or has no such null class.
    """
    config = network.config
    taken, returned = config["in_channels"], config["out_channels"]
    if returned not in (taken, None) and not (variance and learned(network)):
        raise ValueError(f"the network must return its {taken} channels; got {returned}")
    unet = isinstance(network, UNet2DModel)
    classes = config["num_class_embeds"] if unet else config["num_embeds_ada_norm"] + 1
    null = config.get(NULL, None if unet else classes - 1)
    if null is not None:
        null = checks.integer(NULL, null, 0, (classes or 0) - 1)
    network.eval()
    return {
        "network": Called(network, classes),
        "shape": noise_shape(network),
        "like": next(network.parameters()),
        "null": null,
        "conditions": (classes or 0) - (null is not None),
        "identity": {**identity, "network_sha256": module_hash(network)},
    }


@dataclass(frozen=True)
class Called:
    """A network of diffusers as a generator calls it; `classes` is how many it knows, None if it takes none."""

    module: UNet2DModel | DiTTransformer2DModel
    classes: int | None

    def __call__(self, x: torch.Tensor, t: torch.Tensor, condition: torch.Tensor | None) -> torch.Tensor:
        """Return the output `(B, C, H, W)`; ValueError for a condition that the network does not know."""
        if (self.classes is None) != (condition is None):
            raise ValueError(
                f"the model {'takes no' if self.classes is None else 'needs'} condition; got {condition!r}"
            )
        if condition is not None and not 0 <= condition.min() <= condition.max() < (self.classes or 0):
            raise ValueError(f"the model has classes 0 to {(self.classes or 0) - 1}; got {condition.tolist()}")
        labels = condition if condition is None else condition.to(x.device)
        return self.module(x, t.expand(len(x)), class_labels=labels).sample


def tensors_hash(tensors: Mapping[str, torch.Tensor], about: object = None) -> str:
    """Return the sha256 of named tensors and of what describes them."""
    digest = hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode())
    for name, value in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def weights(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return the weights of a network.

    Raises:
        ValueError: if they are elsewhere, as after sequential offload, or packed, as in quantised layers.
    """
    found = module.state_dict()
    for name, value in found.items():
        if not isinstance(value, torch.Tensor) or value.is_meta or value.is_quantized:
            rule = f"the weights of {type(module).__name__} are offloaded layer by layer or packed, first {name}"
            remedy = "use enable_model_cpu_offload or enable_group_offload, and bfloat16 for less memory"
            raise ValueError(f"{rule}, so that a run could not say what it ran: {remedy}")
    return found


def module_hash(module: torch.nn.Module) -> str:
    """Return the sha256 of a network's class, layers, configuration (where it has one) and weights."""
    config = getattr(module, "config", {})
    if isinstance(config, Mapping):
        config = {key: value for key, value in settings(config).items() if key != NULL}
    return tensors_hash(weights(module), [repr(module), config])
