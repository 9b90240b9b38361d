"""Prices from configurations: parameters known from elsewhere, operations counted by hand, plans that fit."""

import json
import math

import numpy as np
import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel
from families import FAMILIES
from helpers import LINEAR, tiny_unet

from antinb import zoo
from antinb.models import diffusion
from antinb.zoo import pricing

PARAMETERS = {  # of the published weights
    "google/ddpm-cifar10-32": 35_746_307,
    "google/ddpm-church-256": 113_673_219,
    "google/ddpm-celebahq-256": 113_673_219,
    "facebook/DiT-XL-2-256": 749_826_464,
    "stable-diffusion-v1-5/stable-diffusion-v1-5": 859_520_964,
    "stabilityai/stable-diffusion-xl-base-1.0": 2_567_463_684,
    "black-forest-labs/FLUX.1-schnell": 11_891_178_560,
    "openai/diffusers-cd_imagenet64_l2": 295_897_731,
}
TERA = 0.1


def test_the_configurations_typed_in_by_hand_give_the_published_parameters():
    assert list(zoo.public()) == list(PARAMETERS)
    small = ["google/ddpm-cifar10-32", "facebook/DiT-XL-2-256"]
    table = zoo.prices(small, pairs=10)
    assert table["parameters"].astype(int).to_dict() == {name: PARAMETERS[name] for name in small}
    assert table["evaluations"].tolist() == [50, 100]
    assert set(table["source"]) == {"configuration typed in by hand"}
    assert table["hours"].isna().all()


@pytest.mark.slow
def test_the_large_ones_too():
    table = zoo.prices(list(PARAMETERS), dtype="bfloat16")
    assert table["parameters"].astype(int).to_dict() == PARAMETERS
    assert table["evaluations"].tolist() == [50, 50, 50, 100, 100, 100, 4, 1]
    np.testing.assert_allclose(table["weights_gb"][-3:], [6.94, 33.7, 0.592], rtol=0.01)


def test_operations_and_live_bytes_of_a_layer():
    """A convolution of k x k on c channels to d at s x s does 2 k k c d s s operations."""
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 5, 3, padding=1, bias=False), torch.nn.Conv2d(5, 2, 1, bias=False))
    meta = network.to("meta")
    with pricing.FlopCounterMode(display=False) as counted, pricing._Live(meta) as live:
        meta(torch.empty(1, 3, 8, 8, device="meta"))
    assert counted.get_total_flops() == 2 * 64 * (9 * 3 * 5 + 5 * 2)
    assert live.most == 4 * 64 * (3 + 5 + 2)
    assert live.alive == 0


def test_folders_and_shipped_models_are_priced_alike(tmp_path):
    DDIMPipeline(tiny_unet(), DDIMScheduler(1000)).save_pretrained(tmp_path / "pixels")
    FAMILIES["stable diffusion"].save(tmp_path / "text")
    FAMILIES["consistency"].save(tmp_path / "quick")
    names = [str(tmp_path / name) for name in ("pixels", "text", "quick")]
    names += ["fashion-ddpm", "fashion-dit", "mnist-vae", "nobody/nothing"]
    table = zoo.prices(names, pairs=10)
    assert table["evaluations"].tolist() == [50, 100, 1, 50, 50, 1, 50]
    assert table["source"].tolist() == [*["folder"] * 3, *["shipped"] * 3, "unknown before it is downloaded"]
    assert table["parameters"].iloc[0] == sum(part.numel() for part in tiny_unet().parameters())
    assert table["tera_flop"].notna().tolist() == [True] * 5 + [False] * 2
    assert zoo.prices(names[1:2], pairs=10, guidance=1.0, steps=7)["evaluations"].tolist() == [7]
    half = zoo.prices(names[:1], pairs=10, dtype="float16")
    np.testing.assert_allclose(half[["weights_gb", "activations_gb"]], table[["weights_gb", "activations_gb"]][:1] / 2)


def test_a_plan_fits_its_hours():
    names = ["google/ddpm-cifar10-32", "fashion-ddpm"]
    whole = zoo.prices(names, tera=TERA)
    np.testing.assert_allclose(whole["hours"], 4000 * 50 * whole["tera_flop"] / TERA / 3600)
    for hours in (0, 0.01, 3, 1e5):
        plan = zoo.prices(names, tera=TERA, hours=hours)
        assert plan["hours"].sum() <= hours
        assert ((plan["pairs"] == 0) | (plan["pairs"] >= 8)).all()
        more = 4 * 50 * plan["tera_flop"] / TERA / 3600
        full = (plan["pairs"] == 1000) | (plan["pairs"] == 0)
        assert (full | (plan["hours"] + more > hours / 2)).all()
    assert plan["pairs"].tolist() == [1000] * 2


def test_what_cannot_be_priced_is_said():
    for given, rule in (
        ({"hours": 2.0}, "hours= needs tera="),
        ({"pairs": 7}, "pairs must be an integer of at least 8"),
        ({"tera": 0}, "tera must be a number"),
        ({"dtype": "int8"}, "dtype must be one of"),
        ({"tera": 1.0, "hours": -1.0}, "hours must be a number"),
    ):
        with pytest.raises(ValueError, match=rule):
            zoo.prices(["fashion-ddpm"], **given)
    assert math.isfinite(zoo.rate(size=32))
    with pytest.raises(ValueError, match="dtype must be one of"):
        zoo.rate(dtype="int8")


UNET = "unet/config.json"
STRANGE = [
    (UNET, "layers_per_block", 10**9, "asks for far more"),
    (UNET, "sample_size", None, "takes no images of its size"),
    (UNET, "sample_size", "8", "sample_size must be of type"),
    (UNET, "sample_size", 15, "takes no images of its size"),
    (UNET, "in_channels", -1, "in_channels must be from 1"),
    ("scheduler/scheduler_config.json", "auto_map", {"A": "b.C"}, "asks for code of its own"),
]


@pytest.mark.parametrize(("file", "key", "value", "rule"), STRANGE)
def test_folders_of_strangers_are_priced_or_refused_in_a_line(file, key, value, rule, tmp_path):
    DDIMPipeline(tiny_unet(), DDIMScheduler(1000)).save_pretrained(tmp_path / "a")
    path = tmp_path / "a" / file
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(ValueError, match=rule):
        zoo.prices([str(tmp_path / "a")])


def test_only_models_are_priced(tmp_path):
    for name in ("", ".", "/", None, ["a"], "fashion-dpm"):
        with pytest.raises(ValueError, match="a model is a shipped name|did you mean 'fashion-ddpm'"):
            zoo.prices([name])
    tiny_unet().save_pretrained(tmp_path / "b" / "unet")
    (tmp_path / "b/unet/config.json").rename(tmp_path / "config.json")
    (tmp_path / "b/unet/config.json").symlink_to(tmp_path / "config.json")
    with pytest.raises(ValueError, match="leads out of it"):
        zoo.prices([str(tmp_path / "b")])
    with pytest.raises(ValueError, match="sample_size must say how large"):
        diffusion.from_network(UNet2DModel.from_config({**tiny_unet().config, "sample_size": None}), LINEAR)


def test_nothing_is_allocated(monkeypatch):
    real = UNet2DModel.forward

    def forward(self, sample, *args, **given):
        assert sample.is_meta
        assert all(part.is_meta for part in self.parameters())
        return real(self, sample, *args, **given)

    monkeypatch.setattr(UNet2DModel, "forward", forward)
    pricing._sketched.cache_clear()
    zoo.prices(["google/ddpm-cifar10-32"])
