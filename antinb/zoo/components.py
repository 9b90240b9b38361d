"""Pipelines of diffusers in a folder are checked part by part and loaded, with code of two libraries only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline, ModelMixin, SchedulerMixin
from diffusers.utils import is_accelerate_available
from torch import nn

from antinb.zoo import folders

__all__: list[str] = []

LIBRARIES = ("diffusers", "transformers")
SAFETY = (
    "safety_checker",
    "feature_extractor",
)  # left out, since an image that a checker blackens says nothing about its noise


def load(folder: Path, device: torch.device) -> DiffusionPipeline:
    """Return the pipeline in a folder, in evaluation mode and single precision, without its safety checker.

    Every part is checked before the first is built. The classes must be public ones of diffusers or transformers,
    and the weights must be safetensors, complete, and as many as the configuration asks for.

    Raises:
        ValueError: if a check fails, or weights are missing for a part of a network.
    """
    index = folders.config(folder, folders.INDEX)
    kind = index.get("_class_name")
    cls = getattr(diffusers, kind, None) if isinstance(kind, str) else None
    if not (isinstance(cls, type) and issubclass(cls, DiffusionPipeline)):
        raise ValueError(f"{folder.name}/model_index.json must name a pipeline of diffusers; got {kind!r}")
    parts = {name: part for name, part in index.items() if isinstance(part, list) and not name.startswith("_")}
    unused = SAFETY if SAFETY[0] in parts else ()
    classes = {name: None if name in unused else _part_class(folder, name, part) for name, part in parts.items()}
    for name, part in classes.items():
        if part is not None:
            _check(folder, name, part)
    loaded = {name: None if part is None else _load(folder, name, part) for name, part in classes.items()}
    if "requires_safety_checker" in index:
        loaded["requires_safety_checker"] = False
    pipeline = cls.from_pretrained(folder, **loaded, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)


def _part_class(folder: Path, name: str, part: list[object]) -> Any:  # noqa: ANN401
    rule = f"{folder.name}/model_index.json: {name} must be a class of {' or '.join(LIBRARIES)}"
    if not name.isidentifier():
        raise ValueError(f"{folder.name}/model_index.json: a part is named like a variable; got {name!r}")
    if part == [None, None]:
        return None
    library, kind = part if len(part) == 2 else (None, None)
    if library not in LIBRARIES or not isinstance(kind, str):
        raise ValueError(f"{rule}; got {part!r}")
    if library == "diffusers":
        module, allowed = diffusers, (ModelMixin, SchedulerMixin)
    else:
        try:
            import transformers as module  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise ValueError(f"{folder.name}: {name} needs transformers: pip install transformers") from None
        allowed = (module.PreTrainedModel, module.PreTrainedTokenizerBase, module.ImageProcessingMixin)
    found = getattr(module, kind, None)
    if not (isinstance(found, type) and issubclass(found, allowed)):
        raise ValueError(f"{rule}, a network, scheduler or tokenizer; got {part!r}")
    return found


def _check(folder: Path, name: str, part: type) -> None:
    known: Any = part  # the classes of the two libraries have no typed base in common
    own = folders.part(folder, name)
    if issubclass(part, SchedulerMixin):
        folders.config(own, "scheduler_config.json")
    elif not issubclass(part, nn.Module):
        for path in own.glob("*config.json"):
            folders.config(own, path.name)
    else:
        settings = folders.config(own, "config.json")
        if issubclass(part, ModelMixin):
            stem, build = folders.WEIGHTS, lambda: known.from_config(settings)
        else:
            stem, build = "model", lambda: known(known.config_class.from_dict(settings))
        found = folders.shapes(own, stem)
        network = folders.sketch(build, found, f"{folder.name}/{name}")
        wanted, held = sum(parameter.numel() for parameter in network.parameters()), folders.numbers(found)
        if wanted > held:
            raise ValueError(
                f"{folder.name}/{name}: its configuration asks for {wanted} numbers, its weights hold {held}"
            )


def _load(folder: Path, name: str, part: type) -> object:
    known: Any = part
    local: dict[str, object] = {"local_files_only": True}
    own = folders.part(folder, name)
    if not issubclass(part, nn.Module):
        return known.from_pretrained(own, **local)
    local |= {"use_safetensors": True, "output_loading_info": True}
    if issubclass(part, ModelMixin):
        local["low_cpu_mem_usage"] = is_accelerate_available()
        if part._keep_in_fp32_modules and not is_accelerate_available():
            raise ValueError(f"{folder.name}/{name}: a {part.__name__} needs accelerate: pip install accelerate")
    else:
        local["dtype"] = torch.float32
    try:
        network, found = known.from_pretrained(own, **local)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{folder.name}/{name}: weights and configuration differ: {reason}") from None
    missing = sorted(found["missing_keys"])
    if missing:
        raise ValueError(f"{folder.name}/{name}: weights and configuration differ, first in {missing[0]!r}")
    return network.float().eval()
