"""What a run will cost, told from configurations before anything is downloaded, loaded or run."""

from __future__ import annotations

import functools
import json
import math
import os
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import diffusers
import pandas as pd
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from antinb import checks
from antinb.checks import plain
from antinb.zoo import folders, kinds, loading, settings, shipped, weights

__all__ = ["prices", "public", "rate"]

WORDS, TOKENS = 77, (512, 64 * 64)  # of a prompt; of a long prompt and of an image of 1,024 x 1,024 pixels
LEAST = 8  # pairs that are worth a row
LARGEST = {str(k): (10**9,) for k in range(300)}  # shapes of weights beyond those of all models
UNPRICED = {"parameters": math.nan, "tera_flop": math.nan, "activations_gb": math.nan}


def public() -> dict[str, dict[str, Any]]:
    """Return public models by their id on the hub, with the configurations of their networks, typed in by hand.

    Examples:
        >>> public()["google/ddpm-cifar10-32"]["network"]["sample_size"]
        32
    """
    return json.loads((shipped.DATA / "public.json").read_text(encoding="utf-8"))["models"]


@checks.typed
def prices(
    models: Sequence[str],
    *,
    pairs: int = 1000,
    runs: int = 2,
    steps: int | None = None,
    guidance: float | None = None,
    dtype: str = "float32",
    tera: float | None = None,
    hours: float | None = None,
) -> pd.DataFrame:
    """Return what pairs and other runs of as many images cost with each model, and how many pairs fit into a time.

    A network is built on torch's `meta` device, which allocates nothing, and called once on one image there: its
    floating-point operations are those of matrix products, convolutions and attention, its activations the most
    bytes that are alive at once, with attention counted in full. An evaluation is one network call for one image.

    Args:
        models: shipped names, folders, or ids of `public()`; of other ids nothing is known before a download.
        pairs: pairs of each model.
        runs: runs of as many images as there are in the pairs, the pairs counted: with independent images, 2.
        steps: steps of the samplers that take several; None takes 50, or what few-step models need.
        guidance: scale of classifier-free guidance, of which 1 halves the calls; None takes the pipeline's default.
        dtype: precision of weights and activations.
        tera: 10^12 operations that a device does in a second (see `rate`); None leaves hours open.
        hours: time for all models, in equal shares, which lowers `pairs`; it needs `tera`.

    Returns:
        One row a model, `parameters, weights_gb, activations_gb` (of one image), `tera_flop` (10^12 operations of an
        evaluation), `evaluations` of an image, `pairs, run_evaluations, hours, source`. 0 pairs do not fit.

    Raises:
        ValueError: if hours are given without `tera`, a number is out of its range, there is no such model, or a folder
            is not one that `load` takes.

    Examples:
        >>> table = prices(["google/ddpm-cifar10-32", "fashion-ddpm"], pairs=100, steps=20)
        >>> table[["parameters", "evaluations", "run_evaluations"]].astype(int).values.tolist()
        [[35746307, 20, 8000], [1474481, 20, 8000]]
    """
    if hours is not None and tera is None:
        raise ValueError(f"hours= needs tera=, what the device does in a second; got hours={hours!r}")
    pairs, each = checks.integer("pairs", pairs, LEAST), 2 * checks.integer("runs", runs, 1)
    per_second = math.nan if tera is None else checks.number("tera", tera, 1e-6, 1e9)
    share = None if hours is None else 3600 * checks.number("hours", hours, 0, 1e6) / max(len(models), 1)
    size = torch.finfo(getattr(torch, checks.choice("dtype", dtype, weights.DTYPES))).bits / 8
    rows = []
    for name in models:
        config, about = _network(name)
        row = _sketched(json.dumps(config), plain(name)) if config.get("_class_name") in [*EXAMPLES] else UNPRICED
        count = about["steps"] if steps is None or about["steps"] == 1 else checks.integer("steps", steps, 1)
        calls = count * (2 if about["guided"] and guidance != 1 else 1)
        image_seconds = calls * row["tera_flop"] / per_second
        fitting = pairs
        if share is not None and math.isfinite(image_seconds):
            most = int(share / (each * image_seconds))
            fitting = min(pairs, most) if most >= LEAST else 0
        rows.append(
            {
                **row,
                "weights_gb": (row["parameters"] + about["others"]) * size / 1e9,
                "activations_gb": row["activations_gb"] * size / 4,
                "evaluations": calls,
                "pairs": fitting,
                "run_evaluations": each * fitting * calls,
                "hours": each * fitting * image_seconds / 3600,
                "source": about["source"],
            }
        )
    columns = ["parameters", "weights_gb", "activations_gb", "tera_flop", "evaluations", "pairs", "run_evaluations"]
    return pd.DataFrame(rows, pd.Index(models, name="model"), [*columns, "hours", "source"])


@checks.typed
def rate(device: str = "cpu", dtype: str = "float32", *, size: int = 1024) -> float:
    """Return how many 10^12 operations a matrix product does in a second; networks reach a part of it.

    Examples:
        >>> rate(size=64) > 0
        True
    """
    number = getattr(torch, checks.choice("dtype", dtype, weights.DTYPES))
    left, begin = torch.full((checks.integer("size", size, 1), size), 0.5, device=device, dtype=number), 0.0
    for repeat in range(4):  # the first warms up
        begin = time.perf_counter() if repeat == 1 else begin
        product = left @ left
    float(product[0, 0])  # waits for the device
    return 3 * 2 * size**3 / (time.perf_counter() - begin) / 1e12


def _network(name: str) -> tuple[Mapping[str, Any], dict[str, Any]]:
    """Return the configuration of a model's network, empty if it has none, and what else is known of its cost."""
    if isinstance(name, str) and name in public() and not os.path.isdir(name):
        entry = public()[name]
        return entry["network"], {**entry, "source": "configuration typed in by hand"}
    about = {"steps": 1, "guided": False, "others": 0, "source": "unknown before it is downloaded"}
    folder = loading.local(name)
    if folder is None:
        return {}, about | {"steps": 50}
    about["source"] = "shipped" if name in shipped.registry() else "folder"
    part = next((name for name in kinds.DENOISERS if (folder / name / "config.json").is_file()), None)
    if part is None and not (folder / folders.INDEX).is_file():
        return {}, about | {"steps": 50 if (folder / "scheduler").is_dir() else 1}
    config = folders.config(folders.part(folder, part or kinds.DENOISERS[0]), "config.json")
    scheduler = folders.config(folders.part(folder, "scheduler"), "scheduler_config.json").get("_class_name")
    few = scheduler in ("LCMScheduler", "CMStochasticIterativeScheduler")
    kind = folders.config(folder, folders.INDEX).get("_class_name") if (folder / folders.INDEX).is_file() else None
    guided = kind is not None and ("text_encoder" in folders.config(folder, folders.INDEX) or kind == "DiTPipeline")
    return config, about | {"steps": 1 if few else 50, "guided": guided}


@functools.cache
def _sketched(config: str, name: str) -> Mapping[str, float]:
    """Return parameters, operations and live bytes of one call for one image, in single precision."""
    given = json.loads(config)
    kind: Any = getattr(diffusers, given["_class_name"])
    settings.check({key: given[key] for key in settings.RANGES.keys() & given.keys()}, [kind], name)
    network = weights.sketch(lambda: kind.from_config(given), LARGEST, name).eval()
    try:
        with torch.no_grad(), torch.device("meta"):
            example = EXAMPLES[given["_class_name"]](network.config)
            with FlopCounterMode(display=False) as counted, _Live(network) as live:
                network(**example)
    except Exception as error:
        raise ValueError(f"{name}: its network takes no images of its size: {checks.reason(error)}") from None
    return {
        "parameters": sum(part.numel() for part in network.parameters()),
        "tera_flop": counted.get_total_flops() / 1e12,
        "activations_gb": live.most / 1e9,
    }


class _Live(TorchDispatchMode):
    """Count the bytes of the tensors that are alive, the network's own left out."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.alive, self.most = 0, 0
        own = [*network.parameters(), *network.buffers()]
        self._seen: dict[int, object] = {part.untyped_storage()._cdata: part for part in own}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # noqa: ANN001, ANN204
        result = func(*args, **(kwargs or {}))
        for part in tree_leaves(result):
            if isinstance(part, torch.Tensor):
                self._add(part.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen:
            return

        def drop(_: object) -> None:
            self.alive -= size
            del self._seen[key]

        self._seen[key] = weakref.ref(storage, drop)
        self.alive += size
        self.most = max(self.most, self.alive)


def _images(config: Mapping[str, Any]) -> dict[str, Any]:
    size = config["sample_size"]
    height, width = (size, size) if isinstance(size, int) else size
    labels = config.get("num_class_embeds") or config.get("num_embeds_ada_norm")
    given = {"class_labels": torch.zeros(1, dtype=torch.long)} if labels else {}
    return {"timestep": torch.zeros(1), **given, "sample": torch.empty(1, config["in_channels"], height, width)}


def _transformed(config: Mapping[str, Any]) -> dict[str, Any]:
    given = _images(config)
    return {"hidden_states": given.pop("sample"), **given}


def _prompted(config: Mapping[str, Any]) -> dict[str, Any]:
    given = _images(config) | {"encoder_hidden_states": torch.empty(1, WORDS, config["cross_attention_dim"])}
    if config.get("addition_embed_type") == "text_time":
        pooled = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
        given["added_cond_kwargs"] = {"text_embeds": torch.empty(1, pooled), "time_ids": torch.empty(1, 6)}
    return given


def _packed(config: Mapping[str, Any]) -> dict[str, Any]:
    words, patches = TOKENS
    return {
        "hidden_states": torch.empty(1, patches, config["in_channels"]),
        "encoder_hidden_states": torch.empty(1, words, config["joint_attention_dim"]),
        "pooled_projections": torch.empty(1, config["pooled_projection_dim"]),
        "timestep": torch.empty(1),
        "img_ids": torch.empty(patches, 3),
        "txt_ids": torch.empty(words, 3),
        "guidance": torch.empty(1) if config.get("guidance_embeds") else None,
    }


EXAMPLES: dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    "UNet2DModel": _images,
    "DiTTransformer2DModel": _transformed,
    "UNet2DConditionModel": _prompted,
    "FluxTransformer2DModel": _packed,
}
