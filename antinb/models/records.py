"""What determines the images of a pipeline beside its weights: options of its call, adapters and switches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from antinb.models.networks import tensors_hash

__all__: list[str] = []

SWITCHES = ("use_tiling", "use_slicing")  # attributes of autoencoders
FREE_U = ("s1", "s2", "b1", "b2")  # attributes of the blocks of a UNet
PLAIN = ("1", "L", "RGB", "RGBA")  # modes of images whose numbers alone are their colours
LEFT_OUT = ("safety_checker", "watermark")  # what would paint over an image


def option(value: object) -> object:
    """Return the value of an option for the record, with tensors, arrays and images replaced by their sha256."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return {str(key): option(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [option(part) for part in value]
    colours = None
    if isinstance(value, Image.Image) and value.mode not in PLAIN:
        colours = [value.mode, value.getpalette()]
    if isinstance(value, (Image.Image, np.ndarray)):
        value = torch.from_numpy(np.array(value))
    if isinstance(value, torch.Tensor):
        return {"shape": list(value.shape), "sha256": tensors_hash({"option": value}, colours)}
    return value


def switches(parts: Mapping[str, nn.Module]) -> dict[str, dict[str, object]]:
    """Return what is switched on in the networks of a pipeline, by part: tiles, slices, FreeU, adapters and attention.

    An adapter, such as LoRA, is recorded with the scales at which it is active.
    """
    found = {}
    for name, part in parts.items():
        own: dict[str, object] = {key: True for key in SWITCHES if getattr(part, key, False) is True}
        for block in getattr(part, "up_blocks", ()):
            own |= {key: getattr(block, key) for key in FREE_U if getattr(block, key, None) is not None}
        own |= {"adapters": adapters} if (adapters := _adapters(part)) else {}
        attention = {type(each) for each in getattr(part, "attn_processors", {}).values()}
        special = sorted(
            each.__name__ for each in attention if not each.__name__.endswith(("Processor", "Processor2_0"))
        )
        own |= {"attention": special} if special else {}
        if own:
            found[name] = own
    return found


def _adapters(part: nn.Module) -> dict[str, list[float]]:
    """Return the scales of each active adapter of a network whose layers keep them as peft does."""
    scales: dict[str, set[float]] = {}
    for layer in part.modules():
        kept = getattr(layer, "scaling", None)
        if isinstance(kept, dict) and not getattr(layer, "disable_adapters", False):
            active = getattr(layer, "active_adapters", kept)
            for adapter in set(active) & set(kept):
                scales.setdefault(str(adapter), set()).add(float(kept[adapter]))
    return {adapter: sorted(values) for adapter, values in sorted(scales.items())}


@contextmanager
def untouched(pipeline: Any, processors: list[Any]) -> Iterator[None]:  # noqa: ANN401
    """Run a pipeline without safety checker, watermark and clipping: its processors scale from [-1, 1] to [0, 1]."""
    kept = {name: vars(pipeline)[name] for name in LEFT_OUT if vars(pipeline).get(name) is not None}
    for name in kept:
        object.__setattr__(pipeline, name, None)  # the pipeline's own __setattr__ would change its configuration
    for processor in processors:
        processor.denormalize = lambda images: images / 2 + 0.5
    try:
        yield
    finally:
        for name, part in kept.items():
            object.__setattr__(pipeline, name, part)
        for processor in processors:
            del processor.denormalize
