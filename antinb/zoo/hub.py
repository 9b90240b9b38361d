"""Models from the Hugging Face hub: configurations, vocabularies and safetensors, nothing else."""

from __future__ import annotations

import re
from pathlib import Path

from huggingface_hub import snapshot_download

ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
WANTED = ["*.json", "*.txt", "*.model", "*/*.safetensors", "diffusion_pytorch_model.safetensors"]
UNWANTED = ["*.fp16.*", "*.fp16-*", "*.non_ema.*", "*.ema.*", "safety_checker/*", "*onnx*", "*openvino*", "*flax*"]


def download(name: str) -> Path:
    """Return the folder of a model of the hub, downloaded if it is not there: no pickles, no code.

    Raises:
        ValueError: if the hub cannot be reached and the model is not in its cache, or there is no such model.
    """
    try:
        return Path(snapshot_download(name, allow_patterns=WANTED, ignore_patterns=UNWANTED))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"the hub gives no model {name!r} ({type(error).__name__}): fetch it where there is a network, "
            f"'hf download {name} --local-dir FOLDER', and load the folder"
        ) from None
