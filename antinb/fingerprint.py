"""What a network is, in one hash: another one never goes on with its runs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

import torch


def tensors_hash(tensors: Mapping[str, torch.Tensor], about: object = None) -> str:
    """Return the sha256 of named tensors and of what describes them."""
    digest = hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode())
    for name, value in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def module_hash(module: torch.nn.Module) -> str:
    """Return the sha256 of a network's class, layers, configuration (where it has one) and weights."""
    config = getattr(module, "config", {})
    if isinstance(config, Mapping):
        config = {key: value for key, value in config.items() if not key.startswith("_")}
    return tensors_hash(module.state_dict(), [repr(module), config])
