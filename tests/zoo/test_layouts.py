"""Layouts that diffusers' own saver has written over the years: equal to its pipeline from the same noise."""

import json
import os
import shutil

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline, DDPMScheduler, DiffusionPipeline
from families import FAMILIES, PROMPTS, autoencoder
from helpers import SHAPE, tiny_transformer, tiny_unet
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import load_file, save_file

import antinb
from antinb import inverse, noise, operators, zoo
from antinb.models import diffusion, pipelines
from antinb.zoo import loading

WEIGHTS = "diffusion_pytorch_model"
OLD = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
Z = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(1))


def save(folder, scheduler=None, cls=DDIMPipeline, *, large=True, network=None, **options):
    network = tiny_unet() if network is None else network
    cls(network, scheduler or DDIMScheduler(1000)).save_pretrained(folder, **options)
    return folder


def renamed(folder, part="unet"):
    """Write the attention of a part under the names of the first releases."""
    path = folder / part / f"{WEIGHTS}.safetensors"
    weights = {}
    for name, value in load_file(path).items():
        for new, old in OLD.items():
            name = name.replace(f"attentions.0.{new}.", f"attentions.0.{old}.")
        weights[name] = value
    assert any(".proj_attn." in name for name in weights)
    save_file(weights, path, {"format": "pt"})
    return folder


def flat(folder):
    """All files in the folder itself, as in the first pipelines."""
    for path in sorted(folder.glob("*/*")):
        shutil.move(path, folder / path.name)
    for part in ("unet", "scheduler"):
        (folder / part).rmdir()
    return folder


def cached(folder):
    """A snapshot of the hub's cache, whose files are links into the blobs beside it."""
    root = folder.parent / "models--owner--name"
    snapshot = root / "snapshots" / "abc"
    (root / "blobs").mkdir(parents=True)
    for number, path in enumerate(sorted(path for path in folder.rglob("*") if path.is_file())):
        link = snapshot / path.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(path, root / "blobs" / str(number))
        os.symlink(os.path.relpath(root / "blobs" / str(number), link.parent), link)
    return snapshot


def sharded(folder):
    """Deal the weights of a network to two files with an index, as the savers of large models do."""
    whole = folder / "unet" / f"{WEIGHTS}.safetensors"
    tensors, shares = load_file(whole), {}
    for number, key in enumerate(sorted(tensors)):
        shares.setdefault(f"{WEIGHTS}-{number % 2 + 1:05d}-of-00002.safetensors", {})[key] = tensors[key]
    for name, share in shares.items():
        save_file(share, folder / "unet" / name, {"format": "pt"})
    places = {key: name for name, share in shares.items() for key in share}
    index = {"metadata": {"total_size": sum(part.nbytes for part in tensors.values())}, "weight_map": places}
    (folder / "unet" / f"{WEIGHTS}.safetensors.index.json").write_text(json.dumps(index))
    whole.unlink()
    return folder


def spaced(folder):
    return shutil.move(folder, folder.parent / "my best  model (final)")


def scheduled(**options):
    return DDIMScheduler(1000, clip_sample=False, **options)


LAYOUTS = {
    "plain": lambda folder: save(folder),
    "attention of the first releases": lambda folder: renamed(save(folder)),
    "all in one folder, old names": lambda folder: renamed(save(folder), "unet") and flat(folder),
    "variant fp16": lambda folder: save(folder, variant="fp16", network=tiny_unet().half()),
    "variant FP16": lambda folder: save(folder, variant="FP16"),
    "variant fp16-v2": lambda folder: save(folder, variant="fp16-v2"),
    "shards of the variant 8bit": lambda folder: save(folder, max_shard_size="20KB", variant="8bit"),
    "shards": lambda folder: save(folder, max_shard_size="20KB"),
    "shards of a variant": lambda folder: save(folder, max_shard_size="20KB", variant="fp16"),
    "the hub's cache": lambda folder: cached(save(folder)),
    "a variant in shards in the hub's cache": lambda folder: cached(save(folder, max_shard_size="9KB", variant="bf16")),
    "spaces": lambda folder: spaced(save(folder)),
    "prediction of the image": lambda folder: save(folder, scheduled(prediction_type="sample")),
    "prediction of the velocity": lambda folder: save(folder, scheduled(prediction_type="v_prediction")),
    "velocity, clipped": lambda folder: save(folder, DDIMScheduler(1000, prediction_type="v_prediction")),
    "no signal at the last level": lambda folder: save(
        folder,
        scheduled(prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing"),
    ),
    "time steps to the end": lambda folder: save(folder, scheduled(timestep_spacing="trailing")),
    "levels by a cosine": lambda folder: save(folder, scheduled(beta_schedule="squaredcos_cap_v2")),
    "scaled levels": lambda folder: save(folder, scheduled(beta_schedule="scaled_linear", set_alpha_to_one=False)),
    "trained levels": lambda folder: save(
        folder, DDIMScheduler(num_train_timesteps=50, trained_betas=np.linspace(0.001, 0.2, 50).tolist())
    ),
    "thresholds": lambda folder: save(folder, scheduled(thresholding=True)),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_gives_the_images_of_its_own_pipeline(name, tmp_path):
    folder = LAYOUTS[name](tmp_path / "model")
    names = ("fp16-v2", "fp16", "bf16", "FP16", "8bit")
    variant = next(({"variant": each} for each in names if any(folder.rglob(f"*.{each}*"))), {})
    pipeline = DDIMPipeline.from_pretrained(folder, local_files_only=True, **variant).to(torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    model = antinb.load(folder, steps=5)
    rng = torch.Generator().manual_seed(4)
    expected = pipeline(batch_size=3, num_inference_steps=5, generator=rng, output_type="np").images
    z = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(4))
    found = (model.generate(z) / 2 + 0.5).clamp(0, 1).movedim(1, -1)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.ptp(expected) > 0.1
    pairs = antinb.sample(model, noise.antithetic(2), seed=0, progress=False)
    assert pairs["image"].shape == (2, 2, *SHAPE)


def test_old_names_in_shards_are_those_of_the_whole(tmp_path):
    """Here diffusers itself leaves the attention untrained: it translates the names of whole files only."""
    known, found = save(tmp_path / "whole"), sharded(renamed(save(tmp_path / "shards")))
    images = [antinb.load(folder, steps=3).generate(Z) for folder in (known, found)]
    torch.testing.assert_close(images[1], images[0], rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["learned", "learned_range"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_learned_variances_are_those_of_the_pipeline(kind, prediction, tmp_path):
    torch.manual_seed(0)
    network = tiny_unet(2)
    network.conv_out = torch.nn.Conv2d(8, 4, 3, padding=1)
    with torch.no_grad():
        network.conv_out.weight[2:] /= 10
        network.conv_out.bias[2:] = 0.5  # the variance itself, or its place between two bounds
    network.register_to_config(out_channels=4)
    scheduler = DDPMScheduler(1000, variance_type=kind, prediction_type=prediction, clip_sample=True)
    DDPMPipeline(network, scheduler).save_pretrained(tmp_path / "model")
    pipeline = DDPMPipeline.from_pretrained(tmp_path / "model", local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    design = noise.antithetic(2)
    with antinb.draws.using(design, seed=2, network=pipeline.unet):
        inside = pipeline(batch_size=4, num_inference_steps=4, output_type="np").images
    model = antinb.load(tmp_path / "model", steps=4, scheduler="ddpm")
    run = antinb.sample(model, design, seed=2, progress=False)["image"].values.reshape(4, 2, 8, 8)
    np.testing.assert_allclose((run / 2 + 0.5).clip(0, 1), inside.transpose(0, 3, 1, 2), atol=1e-5)
    assert model.learned
    ddim = model.with_(scheduler="ddim", steps=3)
    assert ddim.generate(torch.zeros(1, 2, 8, 8)).shape == ddim.predict_noise(torch.zeros(1, 2, 8, 8), 5).shape
    assert model.with_(scheduler="dpmsolver++", clip=False, steps=3).generate(torch.zeros(1, 2, 8, 8)).shape[1] == 2


def test_variances_that_a_network_does_not_return(tmp_path):
    folder = save(tmp_path / "model", DDPMScheduler(1000, variance_type="learned_range"), DDPMPipeline)
    assert antinb.load(folder, steps=2).generate(Z).shape == Z.shape
    with pytest.raises(ValueError, match="'ddpm' with variance_type 'learned_range' needs a network that returns"):
        antinb.load(folder, scheduler="ddpm")


def test_guidance_leaves_the_variance_of_the_condition():
    network = tiny_transformer(out_channels=2)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) / 10)
    config = DDPMScheduler(1000, variance_type="learned_range").config
    model = diffusion.from_network(network, config).with_(steps=3, scheduler="ddpm", guidance=3.0)
    condition = torch.tensor([0, 2])
    with torch.no_grad():
        towards = network(Z, torch.tensor([7, 7]), class_labels=condition).sample
        free = network(Z, torch.tensor([7, 7]), class_labels=torch.tensor([3, 3])).sample
    output = model._guided(Z, torch.tensor(7), condition)
    torch.testing.assert_close(output[:, 1:], towards[:, 1:])
    torch.testing.assert_close(output[:, :1], free[:, :1] + 3 * (towards - free)[:, :1])
    torch.testing.assert_close(model.predict_noise(Z, 7, condition), output[:, :1])


@pytest.mark.parametrize("kind", ["sample", "v_prediction"])
def test_the_noise_of_other_predictions(kind):
    """One network and its noise: `x = sqrt(abar) x0 + sqrt(1 - abar) e`, and `v = sqrt(abar) e - sqrt(1 - abar) x0`."""
    network, config = tiny_unet().double(), {**scheduled().config, "prediction_type": kind}
    model, x = diffusion.from_network(network, config), Z.double()
    for t in (0, 500, 999):
        abar = diffusion.make_scheduler(config).alphas_cumprod[t].double()
        with torch.no_grad():
            output = network(x, t).sample
        eps = model.predict_noise(x, t)
        image = (x - (1 - abar).sqrt() * eps) / abar.sqrt()
        wanted = image if kind == "sample" else abar.sqrt() * eps - (1 - abar).sqrt() * image
        torch.testing.assert_close(output, wanted, rtol=1e-4, atol=1e-4)
    _, parts = model.with_(steps=3).trajectory(x)
    torch.testing.assert_close(
        parts["predicted_noise"][:, 0], model.predict_noise(x, model.with_(steps=3).timesteps[0])
    )


def test_inverse_solvers_need_an_image_at_every_level(tmp_path):
    options = {"prediction_type": "v_prediction", "timestep_spacing": "trailing"}
    models = [
        diffusion.from_network(tiny_unet(), scheduled(rescale_betas_zero_snr=zero, **options).config).with_(steps=5)
        for zero in (False, True)
    ]
    operator = operators.superresolution(SHAPE, 2)
    y = operator.A(torch.zeros(1, *SHAPE))
    assert inverse.DPS(models[0], operator, y, scale=0.1).generate(Z).isfinite().all()
    with pytest.raises(ValueError, match="some of the image at every level"):
        inverse.DPS(models[1], operator, y)


def test_a_velocity_that_no_loop_knows(tmp_path):
    folder = save(tmp_path / "model")
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"prediction_type": "flow_prediction"}))
    with pytest.raises(ValueError, match="prediction_type must be one of .*'v_prediction'.*got 'flow_prediction'"):
        antinb.load(folder)


def test_two_variants_without_a_plain_one_are_ambiguous(tmp_path):
    folder = save(tmp_path / "model", variant="fp16")
    shutil.copy(folder / "unet" / f"{WEIGHTS}.fp16.safetensors", folder / "unet" / f"{WEIGHTS}.ema.safetensors")
    with pytest.raises(ValueError, match=r"must hold one variant of its weights; got \['ema', 'fp16'\]"):
        antinb.load(folder)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return FAMILIES["stable diffusion"].save(tmp_path_factory.mktemp("text") / "model")


def stripped(folder):
    """Write every network of a pipeline anew, in its variant fp16 and in shards where the saver makes them."""
    pipeline = DiffusionPipeline.from_pretrained(folder, local_files_only=True, safety_checker=None)
    shutil.rmtree(folder)
    pipeline.save_pretrained(folder, variant="fp16", max_shard_size="8KB")
    assert len(list(folder.rglob("*.safetensors"))) > 5
    return folder


@pytest.mark.parametrize("spoil", [stripped, cached, spaced])
def test_layouts_of_whole_pipelines(spoil, text, tmp_path):
    folder = spoil(shutil.copytree(text, tmp_path / "model"))
    z = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    known, found = (
        antinb.load(source, steps=1, prompts=PROMPTS).generate(z, condition=torch.tensor([0, 1]))
        for source in (text, folder)
    )
    torch.testing.assert_close(found, known, rtol=0, atol=1e-5)


def test_an_autoencoder_of_the_first_releases(text, tmp_path):
    folder = shutil.copytree(text, tmp_path / "new")
    diffusers.AutoencoderKL(block_out_channels=(4,), norm_num_groups=2, sample_size=8).save_pretrained(folder / "vae")
    z = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    old = renamed(shutil.copytree(folder, tmp_path / "old"), "vae")
    known, found = (antinb.load(source, steps=1, prompts=PROMPTS[:1]).generate(z) for source in (folder, old))
    torch.testing.assert_close(found, known)


def test_names_of_classes_in_an_index(tmp_path):
    """DiT's own folders hold a table of labels, and a transformer under the name of an older class."""
    torch.manual_seed(0)
    network = diffusers.DiTTransformer2DModel(2, 4, 4, 8, 1, norm_num_groups=2, sample_size=8)
    labels = {number: f"class {number}" for number in range(10)}
    pipeline = diffusers.DiTPipeline(network, autoencoder(), DDIMScheduler(1000, clip_sample=False), id2label=labels)
    pipeline.save_pretrained(tmp_path / "dit")
    index = tmp_path / "dit" / "model_index.json"
    about = json.loads(index.read_text()) | {"id2label": {str(key): value for key, value in labels.items()}}
    about["transformer"] = ["diffusers", "Transformer2DModel"]
    index.write_text(json.dumps(about))
    config = tmp_path / "dit" / "transformer" / "config.json"
    older = {"_class_name": "Transformer2DModel", "norm_type": "ada_norm_zero", "num_vector_embeds": None}
    config.write_text(json.dumps(json.loads(config.read_text()) | older))
    model = antinb.load(tmp_path / "dit", steps=2)
    assert isinstance(model, pipelines.Pipeline)
    assert model.evaluations == 4
    assert type(model.pipeline.transformer).__name__ == "DiTTransformer2DModel"
    assert model.pipeline.get_label_ids(["class 3"]) == [3]
    z = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    images = model.generate(z, condition=torch.tensor([0, 3]))
    assert (images[0] - model.generate(z, condition=torch.tensor([3, 3]))[0]).abs().max() > 1e-6


def test_a_hub_that_holds_halves_only_gives_the_halves(tmp_path, monkeypatch):
    folder, given = save(tmp_path / "model", variant="fp16"), []

    def download(name, allow_patterns, ignore_patterns):
        files = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
        kept = list(filter_repo_objects(files, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns))
        place = tmp_path / f"snapshot {len(given)}"
        given.append(kept)
        for file in kept:
            (place / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(folder / file, place / file)
        return str(place)

    monkeypatch.setattr(loading, "snapshot_download", download)
    assert antinb.load("owner/name", steps=1).shape == SHAPE
    assert len(given) == 2
    save(folder)
    antinb.load("owner/name", steps=1)
    assert len(given) == 3
    assert not any("fp16" in file for file in given[2])


def test_a_link_out_of_the_cache_is_refused(tmp_path):
    snapshot = cached(save(tmp_path / "model"))
    link = snapshot / "unet" / f"{WEIGHTS}.safetensors"
    shutil.move(link.resolve(), tmp_path / "elsewhere")
    link.unlink()
    os.symlink(tmp_path / "elsewhere", link)
    for load in (antinb.load, lambda source: zoo.untrained(source, seed=0)):
        with pytest.raises(ValueError, match="leads out of it"):
            load(snapshot)


def test_a_pickle_is_refused_with_the_lines_that_convert_it(tmp_path):
    folder = save(tmp_path / "model")
    tiny_unet().save_pretrained(folder / "unet", safe_serialization=False)
    (folder / "unet" / f"{WEIGHTS}.safetensors").unlink()
    with pytest.raises(ValueError, match="it holds the pickle") as caught:
        antinb.load(folder)
    _, *lines = str(caught.value).split("; ")
    code = "\n".join(line.removeprefix("where you trust it, convert it: ") for line in lines)
    names = {"DiffusionPipeline": DiffusionPipeline, "FOLDER": folder, "NEW": tmp_path / "new"}
    exec(code, names)
    torch.testing.assert_close(
        antinb.load(tmp_path / "new", steps=2).generate(Z), antinb.load(save(folder), steps=2).generate(Z)
    )
