"""Loading: what is shipped works from anywhere, and a wrong file is refused with the reason."""

import json
import pickle
import shutil
import subprocess
import sys

import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, FlowMatchEulerDiscreteScheduler, LCMScheduler
from helpers import SHAPE, tiny_autoencoder, tiny_transformer, tiny_unet
from safetensors.torch import load_file, save_file

import antinb
from antinb import noise, zoo
from antinb.models import consistency, decoders, diffusion, normalizing, rectified
from antinb.models.networks import module_hash
from antinb.zoo import folders

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def folder(tmp_path):
    DDIMPipeline(tiny_unet(), DDIMScheduler(1000)).save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


@pytest.fixture
def flow_folder(tmp_path):
    tiny_unet(num_class_embeds=3).save_pretrained(tmp_path / "flow" / "unet")
    FlowMatchEulerDiscreteScheduler(1000, shift=2.0).save_pretrained(tmp_path / "flow" / "scheduler")
    return tmp_path / "flow"


@pytest.fixture
def vae_folder(tmp_path):
    torch.manual_seed(0)
    folder = tmp_path / "vae"
    folder.mkdir()
    save_file(decoders.decoder(5, 2).half().state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"kind": "vae", "latent": 5, "width": 2}))
    return folder


def test_a_folder_in_the_home_folder(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    assert antinb.load("~/tiny", steps=1).describe() == antinb.load(folder, steps=1).describe()


@pytest.mark.parametrize("name", list(zoo.registry()))
def test_shipped_models_give_finite_images(name):
    generator = antinb.load(name)
    if "steps" in getattr(generator, "settings", ()):
        generator = generator.with_(steps=2)
    condition = None if getattr(generator, "null", None) is None else torch.tensor([0, generator.null])
    z = torch.zeros(2, *generator.shape)
    images = generator.generate(z, draw=lambda _, shape: torch.zeros(2, *shape), condition=condition)
    assert (images.ndim, len(images)) == (4, 2)
    assert images.isfinite().all()
    assert generator.describe()["model"] == name
    assert generator.describe()["weights_sha256"] in zoo.registry()[name]["files"].values()


def test_the_table_of_models():
    table = zoo.models()
    assert {"fashion-ddpm", "fashion-mixture", "cifar10-mixture"} <= set(table.index)
    assert (table["megabytes"].drop("cifar10-ddpm") < 6).all()
    assert table["megabytes"]["cifar10-ddpm"] < 12.5
    assert table[["kind", "licence", "quality"]].map(len).to_numpy().min() > 0


def test_a_folder_is_loaded_like_a_shipped_model(folder):
    generator = antinb.load(folder, steps=3, scheduler="dpmsolver++")
    assert generator.shape == SHAPE
    assert generator.describe()["scheduler"] == "dpmsolver++"
    x = torch.randn(2, *SHAPE)
    torch.testing.assert_close(generator.predict_noise(x, 5), tiny_unet().eval()(x, 5).sample)


def test_half_precision_weights_run_in_single(folder):
    save_file({key: value.half() for key, value in load_file(folder / WEIGHTS).items()}, folder / WEIGHTS)
    assert antinb.load(folder, steps=1).like.dtype == torch.float32


def test_a_flow_is_told_by_its_scheduler(flow_folder):
    model = antinb.load(flow_folder, steps=4, scheduler="heun", guidance=2.0)
    assert isinstance(model, rectified.RectifiedFlow)
    assert (model.shape, model.shift, model.null, model.evaluations) == (SHAPE, 2.0, 2, 14)
    assert model.describe()["model"] == "flow"
    z, classes = torch.from_numpy(noise.iid(2).draw(SHAPE, seed=0)[:, 0]), torch.tensor([0, 1])
    direct = rectified.from_network(
        tiny_unet(num_class_embeds=3), FlowMatchEulerDiscreteScheduler(1000, shift=2.0).config
    )
    expected = direct.with_(steps=4, scheduler="heun", guidance=2.0).generate(z, condition=classes)
    torch.testing.assert_close(model.generate(z, condition=classes), expected)


def test_an_untrained_flow_is_a_flow(flow_folder):
    one, other = (zoo.untrained(flow_folder, seed=seed, steps=2) for seed in (0, 1))
    assert isinstance(one, rectified.RectifiedFlow)
    assert one.describe()["network_sha256"] != other.describe()["network_sha256"]


def test_a_decoder_is_told_by_its_configuration(vae_folder):
    model = antinb.load(vae_folder)
    assert model.shape == (5,)
    assert model.like.dtype == torch.float32
    assert model.describe()["weights_sha256"] == folders.sha256(vae_folder / "model.safetensors")
    network = decoders.decoder(5, 2)
    network.load_state_dict(load_file(vae_folder / "model.safetensors"))
    z = torch.from_numpy(noise.iid(3).draw((5,), seed=0)[:, 0])
    torch.testing.assert_close(model.generate(z), torch.tanh(network(z) / 2))


@pytest.mark.parametrize(
    ("part", "network", "scheduler", "kind"),
    [
        ("transformer", tiny_transformer(), DDIMScheduler(1000), diffusion.Diffusion),
        ("unet", tiny_unet(), LCMScheduler(1000), consistency.Consistency),
    ],
)
def test_the_folder_tells_the_network_and_the_scheduler_what_it_predicts(part, network, scheduler, kind, tmp_path):
    network.save_pretrained(tmp_path / part)
    scheduler.save_pretrained(tmp_path / "scheduler")
    model = antinb.load(tmp_path, steps=2)
    assert type(model) is kind
    assert model.describe()["weights_sha256"] == folders.sha256(tmp_path / part / "diffusion_pytorch_model.safetensors")
    assert model.describe()["network_sha256"] == module_hash(network)
    assert type(zoo.untrained(tmp_path, seed=0)) is kind


def test_a_normalizing_flow_is_told_by_its_configuration(tmp_path):
    network = normalizing.flow(2, 4, 8)
    (tmp_path / "config.json").write_text(json.dumps({"kind": "normalizing flow", "layers": 2, "width": 4, "size": 8}))
    save_file(network.state_dict(), tmp_path / "model.safetensors")
    model = antinb.load(tmp_path)
    assert (model.shape, model.evaluations) == (SHAPE, 1)
    z = torch.from_numpy(noise.iid(2).draw(SHAPE, seed=0)[:, 0])
    torch.testing.assert_close(model.generate(z).flatten(1), network().transform.inv(z.flatten(1)))


def test_a_folder_with_an_autoencoder_is_latent_diffusion(tmp_path):
    tiny_unet().save_pretrained(tmp_path / "unet")
    tiny_autoencoder().save_pretrained(tmp_path / "vae")
    DDIMScheduler(1000, clip_sample=False).save_pretrained(tmp_path / "scheduler")
    model = antinb.load(tmp_path, steps=3)
    assert (type(model), model.evaluations) == (decoders.Latent, 4)
    assert model.describe()["decoder_sha256"] == module_hash(tiny_autoencoder())
    (tmp_path / "vae" / "config.json").write_text(json.dumps({"_class_name": "VQModel"}))
    with pytest.raises(ValueError, match="vae must be AutoencoderKL; got 'VQModel'"):
        antinb.load(tmp_path)


@pytest.mark.slow
def test_it_works_from_another_folder(tmp_path):
    code = "import antinb; print(antinb.load('fashion-mixture', steps=2).shape)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "(1, 28, 28)"


def refusal(source, **options):
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        antinb.load(source, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_an_unknown_name_gets_a_close_match():
    assert "did you mean 'fashion-mixture'?" in refusal("fashion_mixture")
    assert "shipped are" in refusal("zzz")


def test_a_pickle_is_refused(folder):
    (folder / WEIGHTS).unlink()
    torch.save({}, folder / "unet" / "diffusion_pytorch_model.bin")
    assert "pickle diffusion_pytorch_model.bin" in refusal(folder)


def test_a_pickle_in_disguise_is_refused(folder):
    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("unpickled",))

    (folder / WEIGHTS).write_bytes(pickle.dumps(Bomb()))
    assert "is a pickle" in refusal(folder)
    torch.save({}, folder / WEIGHTS)
    assert "is a pickle" in refusal(folder)


def test_a_truncated_file_is_refused(folder):
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(whole[:-100])
    assert "truncated" in refusal(folder)
    (folder / WEIGHTS).write_bytes(b"")
    assert "truncated" in refusal(folder)


def test_weights_of_another_network_are_refused(folder):
    tensors = load_file(folder / WEIGHTS)
    save_file({key: value for key, value in tensors.items() if key != "conv_in.bias"}, folder / WEIGHTS)
    assert "conv_in.bias" in refusal(folder)
    save_file({**tensors, "conv_in.bias": torch.zeros(3)}, folder / WEIGHTS)
    assert "conv_in.bias" in refusal(folder)


def test_a_changed_shipped_file_is_refused(tmp_path, monkeypatch):
    shutil.copytree(zoo.DATA / "models" / "fashion-mixture", tmp_path / "models" / "fashion-mixture")
    shutil.copy(zoo.DATA / "registry.json", tmp_path)
    monkeypatch.setattr("antinb.zoo.shipped.DATA", tmp_path)
    changed = tmp_path / "models" / "fashion-mixture" / "mixture.safetensors"
    changed.write_bytes(changed.read_bytes()[:-1] + b"\x01")
    assert "is not the registered file: sha256" in refusal("fashion-mixture")
    changed.unlink()
    assert "no file" in refusal("fashion-mixture")


def test_broken_configurations_name_the_file(folder):
    (folder / "unet" / "config.json").write_text("{")
    assert "unet/config.json is not JSON" in refusal(folder)
    (folder / "unet" / "config.json").write_text("{}")
    assert "got None" in refusal(folder)
    (folder / "unet" / "config.json").unlink()
    assert "unet/config.json is missing" in refusal(folder)
    save_file({"means": torch.zeros(2, 3)}, folder / "mixture.safetensors")
    assert "lacks 'factors'" in refusal(folder)


def test_broken_decoders_name_what_is_wrong(vae_folder):
    config, weights = vae_folder / "config.json", vae_folder / "model.safetensors"
    config.write_text(json.dumps({"kind": "vae", "latent": 6, "width": 2}))
    assert "vae: weights and configuration differ, first in '1.weight'" in refusal(vae_folder)
    config.write_text(json.dumps({"kind": "vae", "latent": "5", "width": 2}))
    assert "latent must be an integer of at least 1; got '5'" in refusal(vae_folder)
    config.write_text(json.dumps({"kind": "vae", "latent": 5}))
    assert "config.json lacks 'width'" in refusal(vae_folder)
    config.write_text(json.dumps({"kind": "gan", "latent": 5, "width": 2}))
    assert "kind must be one of vae, normalizing flow; got 'gan'" in refusal(vae_folder)
    config.write_text("[]")
    assert "config.json must hold a JSON object; got []" in refusal(vae_folder)
    config.write_text(json.dumps({"kind": "vae", "latent": 5, "width": 2}))
    weights.unlink()
    assert "needs model.safetensors: it is missing" in refusal(vae_folder)
    torch.save({}, vae_folder / "model.pt")
    assert "pickle model.pt" in refusal(vae_folder)


def test_settings_belong_to_the_kind(flow_folder, vae_folder):
    assert "a RectifiedFlow has no setting 'eta'" in refusal(flow_folder, eta=0.5)
    assert "a RectifiedFlow has no setting 'clip'" in refusal(flow_folder, clip=True)
    assert "'heun'); got 'ddim'" in refusal(flow_folder, scheduler="ddim")
    assert "a Decoder has no setting 'steps'" in refusal(vae_folder, steps=5)
    assert "'dpmsolver++'); got 'heun'" in refusal("fashion-ddpm", scheduler="heun")


def test_a_module_is_put_in_evaluation_mode():
    module = torch.nn.Sequential(torch.nn.Dropout(0.5)).train()
    ones = torch.ones(2, *SHAPE)
    assert torch.equal(antinb.load(module, shape=SHAPE).generate(ones), ones)


def test_options_belong_to_their_source(folder):
    assert "needs shape=" in refusal(abs)
    assert "steps" in refusal(abs, shape=SHAPE, steps=3)
    assert "shape=" in refusal("fashion-mixture", shape=SHAPE)
    shutil.rmtree(folder / "scheduler")
    assert "scheduler_config.json" in refusal(folder)


def test_a_shipped_mixture_is_the_one_that_its_generator_samples():
    mixture, generator = zoo.mixture("fashion-mixture"), antinb.load("fashion-mixture")
    x = torch.randn(2, *generator.shape, generator=torch.Generator().manual_seed(0))
    abar = diffusion.make_scheduler(generator.config).alphas_cumprod[300]
    known = mixture.predict_noise(x.flatten(1).double(), abar).float()
    torch.testing.assert_close(generator.predict_noise(x, 300).flatten(1), known, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="'fashion-ddpm' is no shipped mixture"):
        zoo.mixture("fashion-ddpm")
