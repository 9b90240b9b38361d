"""Hostile and broken folders: each is refused for its own reason, in one line, before anything is built."""

import json
import os
import pickle
import resource
import shutil

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler
from families import FAMILIES, PROMPTS
from helpers import SHAPE, tiny_unet
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import load_file, save_file

import antinb
from antinb import zoo
from antinb.zoo import components, folders, loading, weights

WEIGHTS = "diffusion_pytorch_model.safetensors"
MEGABYTES = 64  # that refusing a folder may add to the peak of memory


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    return FAMILIES["stable diffusion"].save(tmp_path_factory.mktemp("whole") / "model")


@pytest.fixture
def folder(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "model")


@pytest.fixture
def ddpm(tmp_path):
    DDPMPipeline(tiny_unet(), DDPMScheduler(1000)).save_pretrained(tmp_path / "ddpm")
    return tmp_path / "ddpm"


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def shards(folder, places=("a.safetensors", "b.safetensors")):
    """Cut the weights of the UNet in two; the index says that they are at `places`."""
    tensors = load_file(folder / "unet" / WEIGHTS)
    (folder / "unet" / WEIGHTS).unlink()
    names, cut = sorted(tensors), len(tensors) // 2
    parts = dict(zip(("a.safetensors", "b.safetensors"), (names[:cut], names[cut:]), strict=True))
    for file, part in parts.items():
        save_file({name: tensors[name] for name in part}, folder / "unet" / file)
    index = {name: place for place, part in zip(places, parts.values(), strict=True) for name in part}
    (folder / "unet" / f"{WEIGHTS}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))


def replaced(path, content):
    path.unlink()
    path.write_bytes(content)


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("unpickled",))


def pickled(folder):
    (folder / "unet" / WEIGHTS).unlink()
    torch.save({}, folder / "unet" / "diffusion_pytorch_model.bin")


def linked(folder):
    elsewhere = shutil.move(folder / "unet" / WEIGHTS, folder.parent / WEIGHTS)
    os.symlink(elsewhere, folder / "unet" / WEIGHTS)


def truncated(folder):
    shards(folder)
    path = folder / "unet" / "b.safetensors"
    path.write_bytes(path.read_bytes()[:-50])


def custom(folder):
    (folder / "pipeline.py").write_text("raise SystemExit")
    edit(folder / "model_index.json", _class_name=["pipeline", "Own"])


CASES = {
    "a class of another library": (
        lambda folder: edit(folder / "model_index.json", vae=["os", "system"]),
        "vae must be a class of diffusers or transformers; got ['os', 'system']",
    ),
    "a function of transformers": (
        lambda folder: edit(folder / "model_index.json", text_encoder=["transformers", "pipeline"]),
        "text_encoder must be a class of diffusers or transformers, a network",
    ),
    "a class that is no part": (
        lambda folder: edit(folder / "model_index.json", vae=["diffusers", "DiffusionPipeline"]),
        "vae must be a class of diffusers or transformers, a network",
    ),
    "no pipeline of diffusers": (
        lambda folder: edit(folder / "model_index.json", _class_name="AutoencoderKL"),
        "must name a pipeline of diffusers; got 'AutoencoderKL'",
    ),
    "a pipeline of its own": (custom, "must name a pipeline of diffusers; got ['pipeline', 'Own']"),
    "code of its own for a network": (
        lambda folder: edit(folder / "text_encoder" / "config.json", auto_map={"AutoModel": "own.Model"}),
        "text_encoder/config.json asks for code of its own, which is never run",
    ),
    "code of its own for a tokenizer": (
        lambda folder: edit(folder / "tokenizer" / "tokenizer_config.json", auto_map={"AutoTokenizer": "own.T"}),
        "tokenizer/tokenizer_config.json asks for code of its own, which is never run",
    ),
    "pickles only": (
        pickled,
        "it holds the pickle diffusion_pytorch_model.bin, which is never loaded; where you trust it",
    ),
    "a pickle called safetensors": (
        lambda folder: replaced(folder / "unet" / WEIGHTS, pickle.dumps(Bomb())),
        "is a pickle, which is never loaded; where you trust it",
    ),
    "10^12 parameters": (
        lambda folder: edit(folder / "unet" / "config.json", block_out_channels=[300_000, 300_000]),
        "model/unet: its configuration asks for far more than the",
    ),
    "10^12 words": (
        lambda folder: edit(folder / "text_encoder" / "config.json", vocab_size=10**12),
        "model/text_encoder: its configuration asks for far more than the",
    ),
    "10^9 layers": (
        lambda folder: edit(folder / "unet" / "config.json", layers_per_block=10**9),
        "model/unet: its configuration asks for far more than the",
    ),
    "a little more than there is": (
        lambda folder: edit(folder / "vae" / "config.json", layers_per_block=2),
        "model/vae: its configuration asks for 3583 numbers, its weights hold 2959",
    ),
    "10^12 noise levels": (
        lambda folder: edit(folder / "scheduler" / "scheduler_config.json", num_train_timesteps=10**12),
        "num_train_timesteps must be at most 1000000; got 1000000000000",
    ),
    "images of 10^12 pixels": (
        lambda folder: edit(folder / "unet" / "config.json", sample_size=10**6),
        "sample_size must be at most 8192; got 1000000",
    ),
    "no network at all": (
        lambda folder: edit(folder / "unet" / "config.json", down_block_types=["Nothing"] * 2),
        "model/unet: its configuration describes no network",
    ),
    "a link out of the folder": (linked, f"unet/{WEIGHTS} leads out of it"),
    "a shard outside of the folder": (
        lambda folder: shards(folder, ("../../a.safetensors", "b.safetensors")),
        "a shard is a safetensors file beside it; got '../../a.safetensors'",
    ),
    "a part outside of the folder": (
        lambda folder: edit(folder / "model_index.json", **{"../unet": ["diffusers", "UNet2DConditionModel"]}),
        "a part is named like a variable; got '../unet'",
    ),
    "a truncated shard": (truncated, "unet/b.safetensors is truncated or not safetensors"),
    "a missing shard": (
        lambda folder: shards(folder, ("c.safetensors", "b.safetensors")),
        "unet needs c.safetensors: it is missing",
    ),
    "no JSON": (lambda folder: (folder / "unet" / "config.json").write_bytes(b"\xff{"), "unet/config.json is not JSON"),
    "JSON without end": (
        lambda folder: (folder / "unet" / "config.json").write_text("[" * 200_000),
        "unet/config.json is not JSON",
    ),
    "a long configuration": (
        lambda folder: (folder / "vae" / "config.json").write_text(" " * (folders.JSON_BYTES + 1)),
        "vae/config.json must have at most",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_hostile_folder_is_refused_before_anything_is_built(name, folder, monkeypatch):
    spoil, reason = CASES[name]
    spoil(folder)
    monkeypatch.setattr(components, "_load", lambda *_: pytest.fail("a part was built"))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        antinb.load(folder)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < MEGABYTES


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"block_out_channels": [300_000, 300_000]}, "far more than the"),
        ({"layers_per_block": 10**9}, "far more than the"),
        ({"block_out_channels": [8, 20]}, "weights and configuration differ, first in"),
        ({"sample_size": [8, 10**6]}, "sample_size must be at most 8192; got 1000000"),
    ],
)
def test_networks_of_the_own_loop_are_checked_alike(changes, reason, ddpm, monkeypatch):
    edit(ddpm / "unet" / "config.json", **changes)
    monkeypatch.setattr(weights, "tensors", lambda *_: pytest.fail("weights were loaded"))
    for load in (antinb.load, lambda source: zoo.untrained(source, seed=0)):
        with pytest.raises(ValueError, match=reason):
            load(ddpm)


def test_decoders_are_sketched_too(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"kind": "vae", "latent": 10**6, "width": 10**6}))
    save_file({"1.weight": torch.zeros(3)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="asks for far more than the 3 numbers of its weights"):
        antinb.load(tmp_path)


def test_weights_under_other_names_are_refused(folder):
    path = folder / "unet" / WEIGHTS
    tensors = load_file(path)
    save_file({f"other.{name}": value for name, value in tensors.items()}, path)
    with pytest.raises(ValueError, match="model/unet: weights and configuration differ, first in"):
        antinb.load(folder)


def test_shards_are_one_network(folder, whole):
    shards(folder)
    z = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    one, two = (antinb.load(source, steps=1, prompts=PROMPTS[:1]).generate(z) for source in (whole, folder))
    torch.testing.assert_close(one, two)


def test_a_safety_checker_is_left_out(folder):
    index = {"safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"], "requires_safety_checker": True}
    edit(folder / "model_index.json", **index, feature_extractor=["transformers", "CLIPImageProcessor"])
    pipeline = antinb.load(folder, steps=1, prompts=PROMPTS).pipeline
    assert pipeline.safety_checker is None
    assert pipeline.config.requires_safety_checker is False


def test_the_first_pipelines_keep_all_files_in_one_folder(ddpm, tmp_path):
    old = tmp_path / "old"
    for path in [*ddpm.glob("*/*"), ddpm / "model_index.json"]:
        old.mkdir(exist_ok=True)
        shutil.copy(path, old)
    z = torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(antinb.load(old, steps=2).generate(z), antinb.load(ddpm, steps=2).generate(z))


def test_a_hub_that_cannot_be_reached_says_what_to_do():
    with pytest.raises(
        ValueError, match="'hf download nobody/nothing --local-dir FOLDER', and load the folder"
    ) as caught:
        antinb.load("nobody/nothing")
    assert "\n" not in str(caught.value)


def test_the_hub_gives_neither_pickles_nor_code(ddpm, tmp_path, monkeypatch):
    """What is downloaded lies in a snapshot of links to blobs, as in the hub's cache."""
    asked = {}
    snapshot = tmp_path / "models--owner--name" / "snapshots" / "abc"

    def download(name, allow_patterns, ignore_patterns):
        files = [str(path.relative_to(ddpm)) for path in ddpm.rglob("*") if path.is_file()]
        files += ["unet/diffusion_pytorch_model.bin", "train.py", "unet/diffusion_pytorch_model.fp16.safetensors"]
        files += ["model.ckpt", "everything.safetensors", "tokenizer/spiece.model", "tokenizer/merges.txt"]
        asked[name] = set(filter_repo_objects(files, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns))
        for number, file in enumerate(sorted(asked[name] & set(files[:4]))):
            blob = snapshot.parents[1] / "blobs" / str(number)
            blob.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ddpm / file, blob)
            (snapshot / file).parent.mkdir(parents=True, exist_ok=True)
            (snapshot / file).symlink_to(blob)
        return str(snapshot)

    monkeypatch.setattr(loading, "snapshot_download", download)
    assert antinb.load("owner/name", steps=2).shape == SHAPE
    wanted = {"model_index.json", "unet/config.json", f"unet/{WEIGHTS}", "scheduler/scheduler_config.json"}
    assert asked["owner/name"] == wanted | {"tokenizer/spiece.model", "tokenizer/merges.txt"}
