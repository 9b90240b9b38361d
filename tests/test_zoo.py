"""Loading: what is shipped works from anywhere, and a wrong file is refused with the reason."""

import pickle
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import SHAPE, tiny_unet
from diffusers import DDIMPipeline, DDIMScheduler
from safetensors.torch import load_file, save_file

import antinb
from antinb import generators, zoo

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def folder(tmp_path):
    DDIMPipeline(tiny_unet(), DDIMScheduler(1000)).save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


@pytest.mark.parametrize("name", list(zoo.registry()))
def test_shipped_models_give_finite_images(name):
    generator = antinb.load(name, steps=2)
    images = generator.generate(torch.zeros(2, *generator.shape))
    assert images.shape == (2, *generator.shape)
    assert images.isfinite().all()
    assert generator.describe()["model"] == name
    assert generator.describe()["weights_sha256"] in zoo.registry()[name]["files"].values()


def test_the_table_of_models():
    table = zoo.models()
    assert {"fashion-ddpm", "fashion-mixture", "cifar10-mixture"} <= set(table.index)
    assert (table["megabytes"] < 6).all()
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
    monkeypatch.setattr(zoo, "DATA", tmp_path)
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
    assert "lacks unet/config.json" in refusal(folder)
    save_file({"means": torch.zeros(2, 3)}, folder / "mixture.safetensors")
    assert "lacks 'factors'" in refusal(folder)


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
    abar = generators.make_scheduler(generator.config).alphas_cumprod[300]
    known = mixture.predict_noise(x.flatten(1).double(), abar).float()
    torch.testing.assert_close(generator.predict_noise(x, 300).flatten(1), known, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="'fashion-ddpm' is no shipped mixture"):
        zoo.mixture("fashion-ddpm")
