"""The same model with rounded weights: what a smaller number format does to its images, simulated on any device."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any, TypeVar, cast

import torch
from torch import nn

from antinb import checks
from antinb.models.generator import Generator
from antinb.models.networks import Called, parts

__all__ = ["rounded"]

FLOATS = {"bfloat16": torch.bfloat16, "float16": torch.float16}
BITS = {"int8": 8, "int4": 4}

Model = TypeVar("Model", bound=Generator)


@checks.typed
def rounded(generator: Model, weights: str) -> Model:
    r"""Return the generator with its network's weights rounded; it computes in the precision in which it did.

    `"bfloat16"` and `"float16"` round every parameter to the nearest number of that type. `"int8"` and `"int4"` round
    the weights of convolutions and linear layers, `(out, ...)`, a channel at a time and symmetrically about 0:
    `w <- s round(w / s)` with `s = max|w| / (2^(b - 1) - 1)` over the output channel; biases and norms are kept.

    Args:
        generator: a model whose network runs in antinb's own loop, as `antinb.load` returns it.
        weights: `"bfloat16"`, `"float16"`, `"int8"` or `"int4"`.

    Raises:
        ValueError: for another type, or a generator without such a network, such as a pipeline or a function: round
            their modules before they are loaded.

    Examples:
        >>> import antinb
        >>> model = antinb.load("fashion-ddpm", steps=5)
        >>> rounded(model, "int8").describe()["weights"]
        'int8'
    """
    checks.choice("weights", weights, (*FLOATS, *BITS))
    sampler = getattr(generator, "sampler", None)
    if sampler is not None:
        return cast(Model, replace(cast(Any, generator), sampler=rounded(sampler, weights)))
    network = getattr(generator, "network", None)
    if not isinstance(network, Called):
        rule = "weights are rounded of a network that runs in antinb's own loop"
        raise ValueError(f"{rule}; got a {type(generator).__name__}: round its modules before it is loaded")
    module = copy.deepcopy(network.module)
    with torch.no_grad():
        for layer in module.modules():
            for name, value in layer.named_parameters(recurse=False):
                value.copy_(
                    _nearest(
                        value, weights, isinstance(layer, (nn.Linear, nn.modules.conv._ConvNd)) and name == "weight"
                    )
                )
    identity = {**cast(Any, generator).identity, "weights": weights}
    made = parts(module, identity, variance=True)
    return cast(
        Model, replace(cast(Any, generator), network=made["network"], like=made["like"], identity=made["identity"])
    )


def _nearest(value: torch.Tensor, weights: str, channels: bool) -> torch.Tensor:
    if weights in FLOATS:
        return value.to(FLOATS[weights]).to(value)
    if not channels:
        return value
    scale = value.abs().amax(tuple(range(1, value.ndim)), keepdim=True) / (2 ** (BITS[weights] - 1) - 1)
    return torch.where(scale > 0, (value / scale).round() * scale, value)
