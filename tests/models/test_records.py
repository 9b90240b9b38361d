"""What a pipeline is beside its weights is part of the record, and what would paint over its images is left out."""

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel, DDIMScheduler, StableDiffusionControlNetPipeline, WanPipeline
from families import FAMILIES, PROMPTS, picture
from PIL import Image
from torch import nn

import antinb
from antinb import noise
from antinb.models import records
from antinb.models.networks import module_hash

Z = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return FAMILIES["stable diffusion"].save(tmp_path_factory.mktemp("text") / "model")


@pytest.fixture
def pipeline(folder):
    return antinb.load(folder, prompts=PROMPTS[:1]).pipeline


def model(pipeline, **options):
    return antinb.load(pipeline, steps=2, prompts=PROMPTS[:1], **options)


class Adapted(nn.Module):
    """A layer with a low-rank adapter, in the attributes of peft's layers."""

    def __init__(self, base, scale):
        super().__init__()
        self.base, self.scaling, self.active_adapters, self.disable_adapters = base, {"style": scale}, ["style"], False
        self.low = nn.Linear(base.in_features, base.out_features, bias=False)

    def forward(self, x):
        off = self.disable_adapters or not self.active_adapters
        return self.base(x) + (0 if off else self.scaling["style"] * self.low(x))


def adapt(pipeline, scale):
    torch.manual_seed(1)
    block = pipeline.unet.time_embedding
    block.linear_1 = Adapted(block.linear_1, scale).eval()
    return block.linear_1


def test_adapters_and_their_scales_are_recorded(pipeline, tmp_path):
    layer = adapt(pipeline, 1.0)
    record, images = model(pipeline).describe(), model(pipeline).generate(Z)
    assert record["switches"] == {"unet": {"adapters": {"style": [1.0]}}}
    given = {"seed": 0, "store": tmp_path / "run.zarr", "progress": False}
    antinb.sample(model(pipeline), noise.antithetic(2), **given)
    layer.scaling["style"] = 0.5
    assert model(pipeline).describe()["switches"]["unet"]["adapters"] == {"style": [0.5]}
    assert (model(pipeline).generate(Z) - images).abs().max() > 1e-6
    with pytest.raises(ValueError, match="switches"):
        antinb.sample(model(pipeline), noise.antithetic(4), **given)
    layer.disable_adapters = True
    assert model(pipeline).describe()["switches"] == {}


def test_switches_of_a_pipeline_are_recorded(pipeline):
    assert model(pipeline).describe()["switches"] == {}
    pipeline.vae.enable_tiling()
    pipeline.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
    found = model(pipeline).describe()["switches"]
    assert found == {"vae": {"use_tiling": True}, "unet": {"s1": 0.9, "s2": 0.2, "b1": 1.2, "b2": 1.4}}


class Blackening(nn.Module):
    """A safety checker that blackens every image."""

    dtype, device = torch.float32, torch.device("cpu")

    def forward(self, clip_input, images):
        return np.zeros_like(images), [True] * len(images)


class Painting:
    def apply_watermark(self, images):
        return torch.zeros_like(images)


def test_a_safety_checker_and_a_watermark_are_left_out(pipeline):
    known = model(pipeline).generate(Z)
    pipeline.safety_checker, pipeline.watermark = Blackening().eval(), Painting()
    pipeline.feature_extractor = lambda images, return_tensors: pytest.fail("the checker was asked")
    found = model(pipeline)
    torch.testing.assert_close(found.generate(Z), known)
    assert found.describe() == {**found.describe(), "clip_image": False}
    assert "safety_checker" not in found.describe()["networks_sha256"]
    assert isinstance(pipeline.safety_checker, Blackening)
    assert isinstance(pipeline.watermark, Painting)


def test_options_are_recorded_by_what_they_hold():
    """Images, arrays and tensors, alone or in lists, by their hash; equal ones alike."""
    image, other = picture(), picture(1)
    array = np.asarray(image)
    found = records.option({"image": [image, array, torch.from_numpy(array.copy())], "scale": [np.float32(0.5), 1]})
    assert found["scale"] == [0.5, 1]
    assert found["image"][0] == found["image"][1] == found["image"][2]
    assert records.option(other) != records.option(image)
    assert records.option(array[::2]) == records.option(array[::2].copy())
    few = image.convert("P")
    same, turned = few.copy(), few.copy()
    turned.putpalette(few.getpalette()[::-1])
    assert np.array_equal(few, turned)
    assert records.option(few) == records.option(same) != records.option(turned)
    assert records.option(few) != records.option(np.asarray(few))
    four = Image.frombytes("CMYK", (4, 4), bytes(range(64)))
    assert records.option(four) != records.option(Image.frombytes("RGBA", (4, 4), four.tobytes()))


ITSELF = []
ITSELF.append(ITSELF)


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize("value", [ITSELF, torch.eye(2).to_sparse(), torch.empty(2, device="meta"), object(), {1j}])
def test_what_no_record_can_hold_is_refused(value, pipeline):
    with pytest.raises(ValueError, match="options must be JSON, tensors or images; got cross_attention_kwargs="):
        model(pipeline, options={"cross_attention_kwargs": value})


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")  # torch moves its quantisation
def test_weights_that_are_elsewhere_or_packed_are_refused(pipeline):
    accelerate = pytest.importorskip("accelerate")
    pipeline.enable_sequential_cpu_offload(device="cpu")
    rule = "the weights of UNet2DConditionModel are offloaded layer by layer or packed.*enable_model_cpu_offload"
    with pytest.raises(ValueError, match=rule):
        model(pipeline)
    packed = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(4, 4)).eval())
    offloaded = nn.Sequential(nn.Conv2d(1, 1, 1)).eval()
    accelerate.cpu_offload(offloaded, execution_device="cpu")
    for module in (packed, offloaded, nn.Sequential(nn.Conv2d(1, 1, 1, device="meta")).eval()):
        for door in (module_hash, lambda module: antinb.load(module, shape=(1, 8, 8))):
            with pytest.raises(ValueError, match="Sequential are offloaded layer by layer or packed"):
                door(module)


def test_offload_of_whole_networks_works(folder, pipeline):
    pytest.importorskip("accelerate")
    known = model(pipeline).generate(Z)
    pipeline.enable_model_cpu_offload(device="cpu")
    torch.testing.assert_close(model(pipeline).generate(Z), known)


def test_calls_of_both_transformers_are_counted(tmp_path):
    """Wan 2.2 gives its first steps to one network and its last to another."""
    pytest.importorskip("accelerate")
    family = FAMILIES["wan, a video"]
    loaded = antinb.load(family.save(tmp_path / "wan"), options=family.options).pipeline
    parts = {
        name: part for name, part in loaded.components.items() if name not in ("boundary_ratio", "expand_timesteps")
    }
    parts["transformer_2"] = type(loaded.transformer).from_config(loaded.transformer.config).eval()
    both = WanPipeline(**parts, boundary_ratio=0.5)
    both.set_progress_bar_config(disable=True)
    one, two = (antinb.load(each, steps=6, options=family.options) for each in (loaded, both))
    assert one.evaluations == two.evaluations == 12
    assert set(two.describe()["networks_sha256"]) >= {"transformer", "transformer_2"}


def test_errors_from_below_name_the_pipeline(pipeline):
    pipeline.scheduler = DDIMScheduler(1000)
    pipeline.scheduler.step = None
    with pytest.raises(ValueError, match="StableDiffusionPipeline with DDIMScheduler does not run: TypeError"):
        model(pipeline).generate(Z)


@pytest.mark.slow
def test_several_control_networks_with_images_as_arrays(pipeline):
    torch.manual_seed(0)
    nets = [ControlNetModel.from_unet(pipeline.unet, conditioning_embedding_out_channels=(4,)) for _ in range(2)]
    steered = StableDiffusionControlNetPipeline(**pipeline.components, controlnet=nets, requires_safety_checker=False)
    steered.set_progress_bar_config(disable=True)
    pictures = [picture(), picture(1)]
    options = {"height": 8, "width": 8, "controlnet_conditioning_scale": [0.5, 1.0]}
    with pytest.raises(ValueError, match="MultiControlNetModel is in training mode"):
        model(steered, options=options | {"image": pictures}).generate(Z)
    steered.controlnet.eval()
    runs = [
        antinb.sample(model(steered, options=options | {"image": images}), noise.antithetic(2), seed=0, progress=False)
        for images in (pictures, [np.asarray(image)[None] / 255.0 for image in pictures])
    ]
    np.testing.assert_allclose(runs[0]["image"], runs[1]["image"], atol=1e-5)
    recorded = [antinb.dataset.config(run)["options"]["image"] for run in runs]
    assert [len({part["sha256"] for part in parts}) for parts in recorded] == [2, 2]
    assert recorded[0] != recorded[1]
