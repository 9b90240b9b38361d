"""Pipelines of diffusers in a folder are checked part by part and loaded, with code of two libraries only."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import NoneType
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline, ModelMixin, SchedulerMixin
from diffusers.utils import is_accelerate_available
from torch import nn

from antinb.checks import plain, quoted, reason
from antinb.zoo import folders, settings, weights
from antinb.zoo.weights import Place

__all__: list[str] = []

LIBRARIES = ("diffusers", "transformers")
LABELS = {"id2label"}  # entries of an index that are tables of names, as in pipelines of DiT
SHORTEST_TEXT, LONGEST_TEXT = 3, 512  # a word between its ends; words of a text whose encoder names no limit
SAFETY = (
    "safety_checker",
    "feature_extractor",
)  # left out, since an image that a checker blackens says nothing about its noise


@contextmanager
def _printable() -> Iterator[None]:
    """Let the libraries log what others wrote, such as the names of tensors, in printable characters only."""

    def clean(record: logging.LogRecord) -> bool:
        text = record.getMessage()
        record.msg, record.args = text if text.isprintable() else quoted(text)[1:-1], ()
        return True

    handlers = [handler for library in LIBRARIES for handler in logging.getLogger(library).handlers]
    for handler in handlers:
        handler.addFilter(clean)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(clean)


@_printable()
def load(folder: Path, place: Place) -> DiffusionPipeline:
    """Return the pipeline in a folder, in evaluation mode, without its safety checker and without a watermark.

    Every part is checked before the first is built. The classes must be public ones of diffusers or transformers,
    and the weights must be safetensors, complete, and as many as the configuration asks for. The pipeline is built
    from its parts by its class alone: nothing else of its index is followed.

    Raises:
        ValueError: if a check fails, or weights are missing for a part of a network.
    """
    index, where = folders.config(folder, folders.INDEX), f"{plain(folder.name)}/{folders.INDEX}"
    kind = index.get("_class_name")
    cls = getattr(diffusers, kind, None) if isinstance(kind, str) else None
    if not (isinstance(cls, type) and issubclass(cls, DiffusionPipeline)):
        raise ValueError(f"{where} must name a pipeline of diffusers; got {quoted(kind)}")
    entries = {name: entry for name, entry in index.items() if not name.startswith("_")}
    plainer = {name: entry for name, entry in entries.items() if isinstance(entry, (bool, int, float, NoneType))}
    plainer |= {name: entries[name] for name in LABELS & entries.keys() if isinstance(entries[name], dict)}
    parts = {name: entry for name, entry in entries.items() if name not in plainer}
    unused = SAFETY if SAFETY[0] in parts else ()
    classes = {name: None if name in unused else _part_class(folder, name, part) for name, part in parts.items()}
    taken = inspect.signature(cls.__init__).parameters
    needed = {name for name, given in taken.items() if given.default is given.empty and name != "self"}
    missing = sorted(needed - set(parts) - set(cls._optional_components))
    if missing:
        raise ValueError(f"{where}: a {kind} needs {missing[0]}; got {quoted(sorted(parts))}")
    for name, part in classes.items():
        if part is not None:
            _check(folder, name, part)
    loaded = dict.fromkeys(needed) | plainer
    loaded |= {name: None if part is None else _load(folder, name, part, place.dtype) for name, part in classes.items()}
    loaded |= dict.fromkeys(("requires_safety_checker", "add_watermarker"), False)
    for name, tokenizer in loaded.items():
        if hasattr(tokenizer, "model_max_length"):
            _cap(tokenizer, loaded.get(name.replace("tokenizer", "text_encoder")), f"{plain(folder.name)}/{name}")
    try:
        pipeline: Any = cls(**{name: value for name, value in loaded.items() if name in taken})
    except Exception as error:
        raise ValueError(f"{where}: the parts make no {kind}: {reason(error)}") from None
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(place.device)


def _cap(tokenizer: Any, encoder: Any, where: str) -> None:  # noqa: ANN401
    """Refuse a tokenizer without words, or with more than its encoder knows; limit its texts to what that takes."""
    words = tokenizer.get_vocab()
    if len(set(words) - set(tokenizer.all_special_tokens)) < 2:
        raise ValueError(f"{where}: a tokenizer needs its vocabulary; got {len(words)} words")
    config = getattr(encoder, "config", None)
    known = getattr(config, "vocab_size", None)
    if known is not None and max(words.values()) >= known:
        raise ValueError(f"{where}: its encoder knows {known} words; got a vocabulary up to {max(words.values())}")
    most, own = getattr(config, "max_position_embeddings", None) or LONGEST_TEXT, tokenizer.model_max_length
    if isinstance(own, bool) or not isinstance(own, (int, float)) or not own >= SHORTEST_TEXT:
        raise ValueError(f"{where}: model_max_length must be a number of at least {SHORTEST_TEXT}; got {quoted(own)}")
    tokenizer.model_max_length = int(min(own, most))


def _part_class(folder: Path, name: str, part: object) -> Any:  # noqa: ANN401
    where = f"{plain(folder.name)}/{folders.INDEX}"
    rule = f"{where}: {plain(name)} must be a class of {' or '.join(LIBRARIES)}"
    if not name.isidentifier():
        raise ValueError(f"{where}: a part is named like a variable; got {quoted(name)}")
    if part == [None, None]:
        return None
    library, kind = part if isinstance(part, list) and len(part) == 2 else (None, None)
    if not isinstance(library, str) or library not in LIBRARIES or not isinstance(kind, str):
        raise ValueError(f"{rule}; got {quoted(part)}")
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
        raise ValueError(f"{rule}, a network, scheduler or tokenizer; got {quoted(part)}")
    return found


def _check(folder: Path, name: str, part: type) -> None:
    known: Any = part  # the classes of the two libraries have no typed base in common
    own, where = folders.part(folder, name), f"{plain(folder.name)}/{plain(name)}"
    if issubclass(part, SchedulerMixin):
        settings.check(folders.config(own, "scheduler_config.json"), [part], f"{where}/scheduler_config.json")
        return
    for path in sorted(own.glob("*.json")):
        if path.name.endswith("config.json"):
            folders.config(own, path.name)
    if not issubclass(part, nn.Module):
        _check_vocabulary(own, getattr(part, "vocab_files_names", {}), where)
        return
    if (own / "adapter_config.json").exists():
        raise ValueError(f"{where} holds an adapter, adapter_config.json, whose network is elsewhere; merge it first")
    config = folders.config(own, "config.json")
    if issubclass(part, ModelMixin):
        ranged = {key: config[key] for key in settings.RANGES.keys() & config.keys()}
        settings.check(ranged, [part], f"{where}/config.json")
        stem, build = weights.WEIGHTS, lambda: known.from_config(config)
    else:
        stem, build = "model", lambda: known(known.config_class.from_dict(config))
    found = weights.header(own, stem)
    network = weights.sketch(build, found.shapes, where)
    wanted, held = sum(parameter.numel() for parameter in network.parameters()), weights.numbers(found.shapes)
    if wanted > held:
        raise ValueError(f"{where}: its configuration asks for {wanted} numbers, its weights hold {held}")
    weights.check_types(found, network, where)


def _check_vocabulary(own: Path, files: Mapping[str, str], where: str) -> None:
    """Refuse a tokenizer without its files: it would be built, and would give the same ids for every text."""
    whole, parts = files.get("tokenizer_file"), [file for key, file in files.items() if key != "tokenizer_file"]
    if files and not (whole and (own / whole).is_file()) and not all((own / file).is_file() for file in parts):
        lost = [file for file in parts if not (own / file).is_file()] or [whole]
        raise ValueError(f"{where}: a tokenizer needs its vocabulary; {lost[0]} is missing")


def _load(folder: Path, name: str, part: type, dtype: torch.dtype) -> object:
    known: Any = part
    local: dict[str, object] = {"local_files_only": True}
    own, where = folders.part(folder, name), f"{plain(folder.name)}/{plain(name)}"
    network = issubclass(part, nn.Module)
    if network:
        stem = weights.WEIGHTS if issubclass(part, ModelMixin) else "model"
        local |= {"use_safetensors": True, "output_loading_info": True, "variant": weights.variant(own, stem)}
    if issubclass(part, ModelMixin):
        local["torch_dtype"] = dtype
        local["low_cpu_mem_usage"] = is_accelerate_available()
        if part._keep_in_fp32_modules and not is_accelerate_available():
            raise ValueError(f"{where}: a {part.__name__} needs accelerate: pip install accelerate")
    elif network:
        local["dtype"] = dtype
    try:
        loaded = known.from_pretrained(own, **local)
    except Exception as error:
        rule = "weights and configuration differ" if network else f"its files make no {part.__name__}"
        raise ValueError(f"{where}: {rule}: {reason(error)}") from None
    if not network:
        return loaded[0] if isinstance(loaded, tuple) else loaded
    missing = sorted(loaded[1]["missing_keys"])
    if missing:
        raise ValueError(f"{where}: weights and configuration differ, first in {quoted(missing[0])}")
    return loaded[0].eval()
