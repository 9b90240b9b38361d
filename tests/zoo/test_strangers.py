"""Folders of strangers, row by row: ordinary files inside, settings that the classes take, and one line otherwise."""

import io
import json
import logging
import os
import random
import re
import shutil

import numpy as np
import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, FlowMatchEulerDiscreteScheduler, LCMScheduler
from families import FAMILIES, PROMPTS
from helpers import SHAPE, tiny_autoencoder, tiny_unet
from safetensors.torch import load_file, save_file

import antinb
from antinb import classifier, noise, zoo
from antinb.models import decoders, diffusion

FILE = "diffusion_pytorch_model.safetensors"
SCHEDULER, NETWORK, INDEX = "scheduler/scheduler_config.json", "unet/config.json", "model_index.json"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    place = tmp_path_factory.mktemp("made")
    DDIMPipeline(tiny_unet(), DDIMScheduler(1000)).save_pretrained(place / "ddim")
    FAMILIES["stable diffusion"].save(place / "text")
    return place


@pytest.fixture
def folder(made, tmp_path):
    return shutil.copytree(made / "ddim", tmp_path / "model")


@pytest.fixture
def text(made, tmp_path):
    return shutil.copytree(made / "text", tmp_path / "text")


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refusal(source, load=antinb.load, **options):
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        load(source, **options)
    message = str(caught.value)
    assert message.isprintable(), message
    assert len(message) < 1000
    return message


def untrained(source):
    return zoo.untrained(source, seed=0)


SETTINGS = [
    (NETWORK, "sample_size", 15, "takes no images|must return images"),
    (NETWORK, "sample_size", True, "sample_size must be of type"),
    (NETWORK, "sample_size", None, "sample_size must say how large"),
    (NETWORK, "sample_size", [8], "describes no network|takes no images"),
    (NETWORK, "sample_size", [8] * 10**5, "takes no images|describes no network"),
    (NETWORK, "in_channels", "1", "in_channels must be of type int"),
    (NETWORK, "in_channels", 0, "in_channels must be from 1"),
    (NETWORK, "down_block_types", "DownBlock2D", "down_block_types must be of type"),
    (NETWORK, "act_fn", "\x1b[31mred\n", r"\\x1b\[31mred"),
    (NETWORK, "norm_num_groups", 3, "describes no network"),
    (NETWORK, "center_input_sample", "no", "center_input_sample must be of type bool"),
    (NETWORK, "null_class", 3, "null_class must be an integer"),
    (SCHEDULER, "num_train_timesteps", "100", "num_train_timesteps must be of type int"),
    (SCHEDULER, "num_train_timesteps", 1e5, "num_train_timesteps must be of type int"),
    (SCHEDULER, "num_train_timesteps", -5, "num_train_timesteps must be from 1"),
    (SCHEDULER, "num_train_timesteps", None, "num_train_timesteps must be of type int"),
    (SCHEDULER, "beta_schedule", "cubic", "beta_schedule must be one of .*linear"),
    (SCHEDULER, "beta_schedule", "laplace", "describes no DDIMScheduler"),
    (SCHEDULER, "beta_start", -0.1, "beta_start must be from"),
    (SCHEDULER, "beta_end", 1.5, "beta_end must be from"),
    (SCHEDULER, "beta_end", float("inf"), "beta_end must be of type"),
    (SCHEDULER, "beta_end", float("nan"), "is not JSON: it holds NaN"),
    (SCHEDULER, "trained_betas", [0.5, 0.5], "there must be 1000 trained_betas; got 2"),
    (SCHEDULER, "trained_betas", [2.0] * 1000, "trained_betas must be from"),
    (SCHEDULER, "steps_offset", -1, "steps_offset must be from 0"),
    (SCHEDULER, "clip_sample_range", -1, "clip_sample_range must be from"),
    (SCHEDULER, "clip_sample", "no", "clip_sample must be of type bool"),
    (SCHEDULER, "timestep_spacing", "Leading", "timestep_spacing must be one of .*did you mean 'leading'"),
    (SCHEDULER, "rescale_betas_zero_snr", True, "must fall from below 1 to above 0"),
    (SCHEDULER, "use_flow_sigmas", True, "no model with use_flow_sigmas"),
    (SCHEDULER, "auto_map", {"A": "b.C"}, "asks for code of its own"),
]


@pytest.mark.parametrize(
    ("file", "key", "value", "rule"), SETTINGS, ids=[f"{row[1]}={row[2]!r:.20}" for row in SETTINGS]
)
def test_settings_that_the_classes_do_not_take_are_refused(file, key, value, rule, folder):
    edit(folder / file, **{key: value})
    for load in (antinb.load, untrained):
        assert re.search(rule, refusal(folder, load))


FOREIGN = ["EDMEulerScheduler", "FlowMatchHeunDiscreteScheduler", "ScoreSdeVeScheduler", "KarrasVeScheduler"]
FOREIGN += ["CMStochasticIterativeScheduler", "RePaintScheduler", "VQDiffusionScheduler", "IPNDMScheduler"]


@pytest.mark.parametrize("name", [*FOREIGN, None, ["DDIMScheduler"], "DDIM\x1b[1m"])
def test_a_model_of_another_scheduler_is_refused_by_name(name, folder):
    """In its configuration, beside an index of DDIM or alone, or in the index, which diffusers follows."""
    edit(folder / SCHEDULER, _class_name=name)
    found = [refusal(folder, load) for load in (antinb.load, untrained)]
    edit(folder / SCHEDULER, _class_name="DDIMScheduler")
    edit(folder / INDEX, scheduler=["diffusers", name] if name else [name, name])
    found += [refusal(folder, load) for load in (antinb.load, untrained)]
    edit(folder / SCHEDULER, _class_name=name)
    (folder / INDEX).unlink()
    found += [refusal(folder, load) for load in (antinb.load, untrained)]
    assert all("antinb's own loop runs models of" in each and repr(name) in each for each in found)


def test_the_index_says_which_parts_there_are(folder):
    for entry in (["os", "system"], ["diffusers", "UNet1DModel"], "xy"):
        edit(folder / INDEX, unet=entry)
        assert "unet must be UNet2DModel or DiTTransformer2DModel" in refusal(folder)
    edit(folder / INDEX, unet=["diffusers", "UNet2DModel"])
    tiny_autoencoder().save_pretrained(folder / "vae")
    assert isinstance(antinb.load(folder, steps=1), diffusion.Diffusion)
    (folder / INDEX).unlink()
    assert isinstance(antinb.load(folder, steps=1), decoders.Latent)


def test_levels_left_out_are_those_of_the_own_class(folder):
    """Without an index; with one of DDIM they are DDIM's, as in diffusers."""
    (folder / SCHEDULER).write_text(json.dumps({"_class_name": "HeunDiscreteScheduler"}))
    assert antinb.load(folder, steps=2).describe()["scheduler_config"]["beta_end"] == 0.02
    (folder / INDEX).unlink()
    assert antinb.load(folder, steps=2).describe()["scheduler_config"]["beta_end"] == 0.012


@pytest.mark.parametrize(
    ("scheduler", "changes", "rule"),
    [
        (LCMScheduler(1000), {"timestep_scaling": 0}, "timestep_scaling must be from"),
        (LCMScheduler(1000), {"original_inference_steps": 0}, "original_inference_steps must be from 1"),
        (LCMScheduler(1000), {"original_inference_steps": 2000}, "must be at most the 1000 levels; got 2000"),
        (LCMScheduler(1000), {"num_train_timesteps": 1}, "must be at most the 1 levels; got 50"),
        (FlowMatchEulerDiscreteScheduler(1000), {"shift": -1}, "shift must be from 0.01"),
        (FlowMatchEulerDiscreteScheduler(1000), {"shift": "3"}, "shift must be of type float"),
    ],
)
def test_other_kinds_are_compared_too(scheduler, changes, rule, tmp_path):
    tiny_unet().save_pretrained(tmp_path / "unet")
    scheduler.save_pretrained(tmp_path / "scheduler")
    edit(tmp_path / SCHEDULER, **changes)
    assert rule in refusal(tmp_path)


def test_a_string_of_two_letters_in_the_index_runs_no_code(text):
    (text / "unet" / "x.py").write_text("raise SystemExit('code ran')")
    for entry in ("xy", {"x": 1, "y": 2}, ["x", "y"], ["x"], "diffusers"):
        edit(text / INDEX, unet=entry)
        assert "unet must be a class of diffusers or transformers; got" in refusal(text)


FOREIGN_KEYS = {
    "text_encoder/config.json": {"_attn_implementation": "kernels-community/flash-attn"},
    "unet/config.json": {"quantization_config": {"quant_method": "bitsandbytes"}},
    "vae/config.json": {"deep": [{"auto_map": {"A": "b.C"}}]},
    "tokenizer/tokenizer_config.json": {"trust_remote_code": True},
    "scheduler/scheduler_config.json": {"custom_pipeline": "owner/name"},
    "model_index.json": {"custom_pipelines": "owner/name"},
}


TEXT_SETTINGS = [
    ("vae/config.json", "scaling_factor", -1, "scaling_factor must be from"),
    ("vae/config.json", "scaling_factor", 0, "scaling_factor must be from"),
    ("vae/config.json", "scaling_factor", 1e9, "scaling_factor must be from"),
    ("vae/config.json", "scaling_factor", "1", "scaling_factor must be of type float"),
    ("vae/config.json", "shift_factor", 1e9, "shift_factor must be from"),
    (NETWORK, "sample_size", True, "sample_size must be of type"),
    (NETWORK, "sample_size", -3, "sample_size must be from"),
    (NETWORK, "sample_size", "8", "sample_size must be of type"),
    (SCHEDULER, "prediction_type", "bogus", "prediction_type must be one of"),
    (SCHEDULER, "prediction_type", "a\x1b[31m\n" * 10**5, r"got 'a\\x1b\[31m\\n"),
]


@pytest.mark.parametrize(
    ("file", "key", "value", "rule"), TEXT_SETTINGS, ids=[f"{row[1]}={row[2]!r:.20}" for row in TEXT_SETTINGS]
)
def test_networks_of_pipelines_are_compared_too(file, key, value, rule, text):
    edit(text / file, **{key: value})
    assert re.search(rule, refusal(text))


@pytest.mark.parametrize("file", FOREIGN_KEYS)
def test_keys_that_ask_for_code_kernels_or_weights_of_a_hub(file, text):
    edit(text / file, **FOREIGN_KEYS[file])
    assert "only files of the folder are used" in refusal(text)


def test_an_adapter_beside_a_text_encoder_is_refused(text):
    (text / "text_encoder" / "adapter_config.json").write_text("{}")
    assert "holds an adapter" in refusal(text)


def test_a_tokenizer_has_its_words_and_a_limit(text):
    tokenizer = text / "tokenizer"
    for most in (None, 10**30, 77):
        edit(tokenizer / "tokenizer_config.json", model_max_length=most)
        assert antinb.load(text, prompts=PROMPTS).pipeline.tokenizer.model_max_length == 6
    for most in (2, 0, -1, True, "77", [6]):
        edit(tokenizer / "tokenizer_config.json", model_max_length=most)
        assert "model_max_length must be a number of at least 3" in refusal(text)
    for path in tokenizer.glob("*"):
        if path.name != "tokenizer_config.json":
            path.unlink()
    assert "a tokenizer needs its vocabulary" in refusal(text)


@pytest.mark.parametrize("kind", [torch.int8, torch.int64, torch.complex64, torch.bool, torch.float8_e4m3fn])
def test_weights_are_floating_point_numbers(kind, folder, text):
    for place in (folder / "unet", text / "vae", text / "text_encoder"):
        path = next(place.glob("*.safetensors"))
        weights = load_file(path)
        first = next(name for name, value in weights.items() if value.is_floating_point() and value.ndim > 1)
        save_file(weights | {first: weights[first].to(kind)}, path, {"format": "pt"})
        assert "weights are floating-point numbers; quantised ones are not run" in refusal(place.parent)
        save_file(weights, path, {"format": "pt"})


def test_names_of_files_and_tensors_are_quoted(folder):
    os.symlink("/etc/passwd", folder / "unet" / "a\x1b[31m\n.json")
    assert r"a\x1b[31m\n.json' leads out of it" in refusal(folder)
    (folder / "unet" / "a\x1b[31m\n.json").unlink()
    weights = load_file(folder / "unet" / FILE)
    save_file(weights | {"0\x1b[31m\n": torch.zeros(1)}, folder / "unet" / FILE)
    assert r"\x1b[31m" in refusal(folder)
    (folder / "unet" / FILE).unlink()
    (folder / "unet" / "b\x1b[31m\n.bin").write_bytes(b"")
    assert r"b\x1b[31m\n.bin" in refusal(folder)
    shutil.rmtree(folder / "unet")
    moved = shutil.move(folder, folder.parent / "c\x1b[31m\n")
    assert r"c\x1b[31m" in refusal(moved)


def test_a_long_configuration_is_cut(folder, text):
    (folder / NETWORK).write_text(json.dumps(["x" * 100] * 90_000))
    assert "must hold a JSON object" in refusal(folder)
    edit(text / INDEX, unet="x" * 9_000_000)
    assert "unet must be a class of" in refusal(text)
    (folder / NETWORK).write_text('{"sample_size": ' + "9" * 5000 + "}")
    assert "unet/config.json is not JSON" in refusal(folder)


SPECIAL = {
    "a pipe as weights": (FILE, os.mkfifo, "must hold ordinary files"),
    "a pipe as configuration": ("config.json", os.mkfifo, "must hold ordinary files"),
    "a folder as weights": (FILE, os.mkdir, "it is no file"),
    "a folder as configuration": ("config.json", os.mkdir, "is no file"),
    "a link to itself": (FILE, lambda path: os.symlink(path, path), "must hold ordinary files"),
    "a link to nothing": (FILE, lambda path: os.symlink("nothing", path), "must hold ordinary files"),
    "a device": (FILE, lambda path: os.symlink("/dev/zero", path), "leads out of it"),
}


@pytest.mark.parametrize("name", SPECIAL)
def test_only_ordinary_files_are_read(name, folder):
    file, make, rule = SPECIAL[name]
    (folder / "unet" / file).unlink()
    make(folder / "unet" / file)
    for load in (antinb.load, untrained):
        assert rule in refusal(folder, load)


def test_only_files_of_the_model_count(folder, tmp_path):
    """A tracker's links, a pipe of its own and a part linked inside the folder are no harm."""
    (folder / "runs").mkdir()
    os.symlink("/etc", folder / "runs" / "latest")
    for name in ("wandb", "unet/runs", "trainer_state.json", "requirements.txt", "optimizer.safetensors"):
        os.symlink(tmp_path, folder / name)
    for name in ("log", "log.txt", "logs.json"):
        os.mkfifo(folder / name)
    shutil.move(folder / "unet", folder / "checkpoint-500")
    os.symlink("checkpoint-500", folder / "unet")
    assert antinb.load(folder, steps=1).shape == SHAPE
    shutil.move(folder / "checkpoint-500", tmp_path / "elsewhere")
    (folder / "unet").unlink()
    os.symlink(tmp_path / "elsewhere", folder / "unet")
    for load in (antinb.load, untrained):
        assert "unet leads out of it" in refusal(folder, load)


def test_in_a_folder_of_loose_files_each_may_be_of_a_part(text):
    os.mkfifo(text / "merges.txt")
    assert antinb.load(text, prompts=PROMPTS).conditions == 2
    shutil.rmtree(text / "tokenizer")
    assert "merges.txt is none" in refusal(text)


def test_what_libraries_log_is_printable(text):
    stream = io.StringIO()
    logger, handler = logging.getLogger("transformers"), logging.StreamHandler(stream)
    handler.terminator = ""
    logger.addHandler(handler)
    try:
        edit(text / "text_encoder/config.json", model_type="a\x1b[31m\n")
        path = text / "text_encoder/model.safetensors"
        save_file(load_file(path) | {"q\x1b[31m\n": torch.zeros(1)}, path, {"format": "pt"})
        antinb.load(text, prompts=PROMPTS)
    finally:
        logger.removeHandler(handler)
    assert r"a\x1b[31m" in stream.getvalue()
    assert stream.getvalue().isprintable()
    assert not any(each.filters for each in logger.handlers)


def test_a_snapshot_uses_the_blobs_of_its_own_cache_only(folder, tmp_path):
    snapshot = tmp_path / "models--a--b" / "snapshots" / "0"
    shutil.move(folder, snapshot)
    blob = tmp_path / "models--a--b" / "blobs" / "1"
    blob.parent.mkdir()
    shutil.move(snapshot / "unet" / FILE, blob)
    os.symlink(os.path.relpath(blob, snapshot / "unet"), snapshot / "unet" / FILE)
    assert antinb.load(snapshot, steps=1).shape == SHAPE
    shutil.move(blob, blob.parents[1] / "refs")
    (snapshot / "unet" / FILE).unlink()
    os.symlink(blob.parents[1] / "refs", snapshot / "unet" / FILE)
    assert "leads out of it" in refusal(snapshot)


def test_a_classifier_of_strangers(tmp_path):
    folder = shutil.copytree(zoo.DATA / "models" / "fashion-classifier", tmp_path / "judge")
    assert len(classifier.load(folder).classes) == 10
    weights = load_file(folder / "model.safetensors")
    for classes in (None, "abc", ["one"], [1] * 10, {"a": 1}):
        edit(folder / "quality.json", classes=classes)
        assert "must name the classes in a list" in refusal(folder, classifier.load)
    edit(folder / "quality.json", classes=["a"] * 9)
    assert "weights and configuration differ" in refusal(folder, classifier.load)
    save_file({"0.weight": torch.zeros(3)}, folder / "model.safetensors")
    assert "the first layer of a classifier" in refusal(folder, classifier.load)
    save_file(weights, tmp_path / "model.safetensors")
    (folder / "model.safetensors").unlink()
    os.symlink(tmp_path / "model.safetensors", folder / "model.safetensors")
    assert "leads out of it" in refusal(folder, classifier.load)
    assert "did you mean 'fashion-classifier'" in refusal("fashion-clasifier", classifier.load)
    refusal(7, classifier.load)


def test_a_mixture_of_strangers(tmp_path):
    folder = shutil.copytree(zoo.DATA / "models" / "fashion-mixture", tmp_path / "bells")
    path = folder / "mixture.safetensors"
    parts, shape = load_file(path), {"shape": "[1, 28, 28]"}
    assert antinb.load(folder, steps=2).shape == (1, 28, 28)
    wrong = [
        (parts | {"means": parts["means"][:, :5]}, shape, "needs weights"),
        (parts | {"weights": parts["weights"].long()}, shape, "weights are floating-point"),
        (parts | {"variances": -parts["variances"]}, shape, "above 0"),
        (parts | {"means": parts["means"] * float("nan")}, shape, "finite numbers"),
        (parts, {"shape": "[1, 28, 2"}, "needs weights"),
        (parts, {"shape": "[28, 28.0]"}, "needs weights"),
        (parts | {"means": torch.zeros(())}, shape, "needs weights"),
    ]
    for tensors, about, rule in wrong:
        save_file({key: value.contiguous() for key, value in tensors.items()}, path, about)
        assert rule in refusal(folder)
    save_file(parts, path, shape)
    known = json.loads((folder / SCHEDULER).read_text())
    for changes, rule in (
        ({"prediction_type": "v_prediction"}, "a mixture predicts the noise, 'epsilon'; got 'v_prediction'"),
        ({"prediction_type": "sample"}, "a mixture predicts the noise"),
        ({"_class_name": "LCMScheduler"}, "a mixture is a diffusion model; got LCMScheduler"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "a mixture is a diffusion model"),
    ):
        (folder / SCHEDULER).write_text(json.dumps(known | changes))
        assert rule in refusal(folder)
    for name in ("fashion-ddpm", 7, None, [], "\x1b[1m"):
        assert "is no shipped mixture" in refusal(name, zoo.mixture)


@pytest.mark.parametrize("source", ["", ".", " ", "/", "~", 7, None, b"fashion-ddpm", ["a"]])
def test_no_model_at_all_says_what_a_model_is(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for load in (antinb.load, untrained):
        assert "a model is a shipped name" in refusal(source, load)


@pytest.mark.parametrize("source", ["x" * 5000, "a\0b", "\x1b[31m", "fashion\nddpm"])
def test_an_odd_name_is_quoted(source):
    assert "no model or folder is called" in refusal(source)


def test_loading_leaves_the_random_numbers_of_the_caller(made, folder):
    shared = {"prompts": PROMPTS}
    for source, options in ((folder, {}), (made / "text", shared), ("mnist-vae", {}), ("fashion-ldm", {})):
        before = torch.get_rng_state(), random.getstate(), np.random.default_rng(0), np.random.get_state()[1].copy()  # noqa: NPY002
        antinb.load(source, **options)
        assert torch.equal(before[0], torch.get_rng_state())
        assert before[1] == random.getstate()
        assert (before[3] == np.random.get_state()[1]).all()  # noqa: NPY002


def test_numpy_scalars_are_settings(folder):
    plainly = antinb.load(folder, steps=2, eta=0.5, clip=True)
    given = antinb.load(folder, steps=np.int64(2), eta=np.float32(0.5), clip=np.True_, guidance=np.int64(1))
    runs = [
        antinb.sample(model, design, seed=seed, batch=batch, progress=False)
        for model, design, seed, batch in (
            (plainly, noise.sobol(1, n=4, leading=4), 3, 4),
            (given, noise.sobol(np.int64(1), n=np.int64(4), leading=np.int16(4)), np.uint8(3), np.int32(4)),
        )
    ]
    assert runs[0].identical(runs[1])


def test_a_class_may_be_real_and_is_then_no_null_class(tmp_path):
    tiny_unet(num_class_embeds=10, null=False).save_pretrained(tmp_path / "unet")
    DDIMScheduler(1000).save_pretrained(tmp_path / "scheduler")
    assert "guidance needs a conditional model with a null class" in refusal(tmp_path, guidance=3.0)
    model, z, condition = antinb.load(tmp_path, steps=2), torch.zeros(1, *SHAPE), torch.tensor([2])
    assert model.null is None
    for null in (0, 4, 9):
        edit(tmp_path / NETWORK, null_class=null)
        named, told = antinb.load(tmp_path, steps=2, guidance=3.0), model.with_(null=null, guidance=3.0)
        assert named.null == told.null == named.describe()["null"] == null
        assert (model.conditions, named.conditions, told.conditions, told.with_(null=1).conditions) == (10, 9, 9, 9)
        for each, classes in ((model, range(10)), (named, {*range(10)} - {null}), (told, {*range(10)} - {null})):
            run = antinb.sample(each.with_(steps=1), noise.iid(11), seed=0, condition="in turn", progress=False)
            assert run["condition"].values.tolist() == [*classes, *classes][:11]
    assert torch.equal(named.generate(z, condition=condition), told.generate(z, condition=condition))
    assert not torch.equal(named.generate(z, condition=condition), model.generate(z, condition=condition))
    assert named.describe()["network_sha256"] == model.describe()["network_sha256"]
