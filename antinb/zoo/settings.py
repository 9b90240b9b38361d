"""Configurations are compared with what the classes of diffusers take, before anything is built from them."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

import diffusers
import numpy as np
import torch
from torch import nn

from antinb import checks
from antinb.checks import plain, quoted, reason
from antinb.models import consistency, diffusion, networks, rectified
from antinb.zoo import folders

__all__: list[str] = []

LEVELS = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas")
DIFFUSIONS = (  # their noise levels are sqrt(abar) and sqrt(1 - abar), so that DDIM runs the model too
    "DDIMScheduler",
    "DDPMScheduler",
    "PNDMScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "DPMSolverSDEScheduler",
    "DEISMultistepScheduler",
    "UniPCMultistepScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "LMSDiscreteScheduler",
    "DDIMParallelScheduler",
    "DDPMParallelScheduler",
    "SASolverScheduler",
)
KINDS = {"LCMScheduler": consistency, "FlowMatchEulerDiscreteScheduler": rectified}
KINDS |= dict.fromkeys(DIFFUSIONS, diffusion)
OTHER_LEVELS = {"use_flow_sigmas": (False, None), "timestep_type": ("discrete", None)}  # what DDIM can run
COUNT = (1, 10**12)
RANGES = {  # of a number or of each number of a list, both ends included
    "num_train_timesteps": (1, 10**6),
    "original_inference_steps": (1, 10**6),
    "steps_offset": (0, 10**6),
    "beta_start": (1e-12, 1 - 1e-6),
    "beta_end": (1e-12, 1 - 1e-6),
    "trained_betas": (1e-12, 1 - 1e-6),
    "clip_sample_range": (1e-6, 1e6),
    "sample_max_value": (1e-6, 1e6),
    "dynamic_thresholding_ratio": (1e-6, 1),
    "timestep_scaling": (1e-6, 1e6),
    "sigma_data": (1e-6, 1e6),
    "shift": (0.01, 100),
    "scaling_factor": (1e-6, 1e6),
    "shift_factor": (-1e6, 1e6),
    "null_class": (0, COUNT[1]),
    "sample_size": (1, 8192),
    "norm_eps": (0, 1),
    **dict.fromkeys(("in_channels", "out_channels", "latent_channels", "layers_per_block", "norm_num_groups"), COUNT),
    **dict.fromkeys(("num_class_embeds", "num_embeds_ada_norm", "patch_size", "num_layers"), COUNT),
}
NAMES = {
    "beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid", "laplace"),
    "timestep_spacing": ("leading", "trailing", "linspace"),
    "prediction_type": (*diffusion.PREDICTIONS, "flow_prediction", "original_sample", "trigflow"),
}


def scheduler(folder: Path) -> dict[str, Any]:
    """Return the configuration of a folder's scheduler if antinb's own loop runs such models.

    What it leaves out of its noise levels has the defaults of its own class.

    Raises:
        ValueError: for a scheduler of another kind, or settings that its class or the sampler's does not take.
    """
    config = folders.config(folders.part(folder, "scheduler"), "scheduler_config.json")
    where, name = f"{plain(folder.name)}/scheduler_config.json", ""
    for name in folders.classes(folder, "scheduler", config):
        if not isinstance(name, str) or name not in KINDS:
            rule = f"antinb's own loop runs models of {', '.join(KINDS)}"
            raise ValueError(f"{where}: {rule}; got {quoted(name)}. Load the whole pipeline if it is one")
    config["_class_name"], own = name, getattr(diffusers, name)
    check(config, [own, *((diffusers.DDIMScheduler,) if KINDS[name] is diffusion else ())], where)
    if KINDS[name] is rectified:
        return config
    defaults = inspect.signature(own.__init__).parameters
    config = {key: defaults[key].default for key in LEVELS if key in defaults} | config
    for key, values in OTHER_LEVELS.items():
        if config.get(key) not in values:
            raise ValueError(f"{where}: antinb's own loop runs no model with {key}; got {quoted(config[key])}")
    checks.choice(f"{where}: prediction_type", config.get("prediction_type", "epsilon"), diffusion.PREDICTIONS)
    original, count = config.get("original_inference_steps", 50), config["num_train_timesteps"]
    if KINDS[name] is consistency and original > count:
        raise ValueError(f"{where}: original_inference_steps must be at most the {count} levels; got {original}")
    _check_levels(config, diffusers.LCMScheduler if name == "LCMScheduler" else diffusers.DDIMScheduler, where)
    return config


def _check_levels(config: dict[str, Any], kind: Any, where: str) -> None:  # noqa: ANN401
    """Refuse noise levels that are no decreasing numbers between 0 and 1; the last is 0 for no prediction of noise."""
    try:
        levels = networks.scheduler(kind, config).alphas_cumprod
    except Exception as error:
        raise ValueError(f"{where} describes no {kind.__name__}: {reason(error)}") from None
    last = levels[-1] > 0 or (levels[-1] == 0 and config.get("prediction_type", "epsilon") != "epsilon")
    if not (last and levels[0] < 1 and (levels.diff() <= 0).all()):  # NaN compares as false
        raise ValueError(f"{where}: the share of the image must fall from below 1 to above 0; got {quoted(levels)}")


def check(config: Mapping[str, Any], classes: Iterable[Any], where: str) -> None:
    """Refuse settings whose types are not those that classes of diffusers take, or that are out of their range.

    Raises:
        ValueError: naming the first of them.
    """
    for kind in classes:
        taken = inspect.signature(kind.__init__).parameters
        for key in taken.keys() & config.keys():
            known, inner = (_kinds(taken[key].annotation, deep) | _kinds(type(taken[key].default)) for deep in (0, 1))
            if known - {NoneType} and not _fits(config[key], known, inner | {NoneType}):
                names = ", ".join(sorted(part.__name__ for part in known)).replace("NoneType", "null")
                raise ValueError(f"{where}: {key} must be of type {names}; got {quoted(config[key])}")
    for key, (low, high) in RANGES.items():
        values = config.get(key)
        for value in values if isinstance(values, list) else [values]:
            known = isinstance(value, (int, float)) and not isinstance(value, bool)
            if value is not None and not (known and low <= value <= high):
                raise ValueError(f"{where}: {key} must be from {low:g} to {high:g}; got {quoted(value)}")
    for key, names in NAMES.items():
        if config.get(key) is not None:
            checks.choice(f"{where}: {key}", config[key], names)
    betas, count = config.get("trained_betas"), config.get("num_train_timesteps")
    if betas is not None and count is not None and len(betas) != count:
        raise ValueError(f"{where}: there must be {count} trained_betas; got {len(betas)}")


def _kinds(annotation: object, deep: int = 0) -> set[type]:
    """Return which of bool, int, float, str, list and None an annotation names, if `deep` within its lists too."""
    if get_origin(annotation) is Literal:
        return {type(value) for value in get_args(annotation)}
    many = get_origin(annotation) in (tuple, list) or annotation in (tuple, list, np.ndarray)
    if not many and not get_args(annotation):
        return {annotation} if annotation in (bool, int, float, str, NoneType) else set()  # type: ignore[arg-type]
    parts = get_args(annotation) if deep or not many else ()
    return ({list} if many else set()).union(*(_kinds(part, deep) for part in parts))


def _fits(value: object, known: set[type], inner: set[type]) -> bool:
    if isinstance(value, list):
        return list in known and all(_fits(part, inner, inner) for part in value)
    if isinstance(value, float) and not math.isfinite(value):
        return float in known and value == -math.inf  # the lowest of all log-SNR
    return type(value) in known or (type(value) is int and float in known)


def check_images(network: nn.Module, where: str) -> None:
    """Refuse the sketch of a denoiser that does not take images of its own size and return as large ones.

    Raises:
        ValueError: with the reason, or if it has no size.
    """
    config: Mapping[str, Any] = getattr(network, "config")  # noqa: B009
    try:
        shape = (1, *networks.noise_shape(network))  # pyright: ignore[reportArgumentType]
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    classes = config.get("num_class_embeds") or config.get("num_embeds_ada_norm")
    labels = torch.zeros(1, dtype=torch.long, device="meta") if classes else None
    try:
        with torch.no_grad(), torch.device("meta"):
            found = tuple(network(torch.empty(shape), torch.empty(1), class_labels=labels).sample.shape)
    except Exception as error:
        raise ValueError(f"{where}: its network takes no images {quoted(shape[1:])}: {reason(error)}") from None
    if found[2:] != shape[2:]:
        raise ValueError(f"{where}: its network must return images {quoted(shape[2:])}; got {found[2:]}")
