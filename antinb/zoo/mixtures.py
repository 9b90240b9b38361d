"""The files of exact mixtures, whose numbers are checked before a model is made of them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from torch import nn

from antinb import checks
from antinb.checks import plain, quoted
from antinb.models.exact import Mixture
from antinb.zoo import weights

__all__: list[str] = []

MIXTURE = "mixture.safetensors"


def read(folder: Path, device: torch.device) -> tuple[Mixture, tuple[int, ...], Path]:
    """Return the mixture in a folder, the shape of its images and the path of its file.

    Raises:
        ValueError: if the file is not whole, or its tensors are not those of a mixture of images.
    """
    what, keys = f"{plain(folder.name)}/{MIXTURE}", ("weights", "means", "factors", "variances")
    found = weights.header(folder, Path(MIXTURE).stem)
    missing = set(keys) - set(found.shapes) or {"shape"} - set(found.metadata)
    if missing:
        raise ValueError(f"{what} lacks {min(missing)!r}")
    weights.check_types(found, nn.Identity(), what)
    count, *rest = found.shapes["means"] or (0,)
    rank = found.shapes["factors"][-1:]
    wanted = {"weights": (count,), "means": (count, *rest), "factors": (count, *rest, *rank), "variances": (count,)}
    sizes = {key: found.shapes[key] for key in keys}
    try:
        shape = checks.shape(json.loads(found.metadata["shape"]))
    except (ValueError, RecursionError):
        shape = ()
    if sizes != wanted or len(rest) != 1 or not count or math.prod(shape) != rest[0] or not shape:
        rule = (
            "needs weights (K), means (K, d), factors (K, d, r), variances (K), and in its metadata a shape of d values"
        )
        raise ValueError(f"{what} {rule}; got {quoted(sizes)}, {quoted(found.metadata['shape'])}")
    tensors = weights.tensors(folder, Path(MIXTURE).stem, device)
    parts = [tensors[key].float() for key in keys]
    if not all(part.isfinite().all() for part in parts) or min(parts[0].min(), parts[3].min()) <= 0:
        raise ValueError(f"{what} must hold finite numbers, and weights and variances above 0")
    return Mixture(*parts), shape, folder / MIXTURE
