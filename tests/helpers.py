"""Small models, shapes and a notebook that several tests share."""

import nbformat
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiTTransformer2DModel, UNet2DModel

from antinb import exact

SHAPE = (1, 8, 8)
LINEAR = dict(DDIMScheduler(1000, clip_sample=False).config)

PARAMETERS = """\
from typing import Optional
profile: str = "full"  # smoke or full
pairs: Optional[int] = None  # number of pairs
scale: float = 1.0  # any float
low: float = -2.0  # of the claim
out_dir: str = "out"  # results
"""
ROW = "estimate=-1.0, low=low, high=-0.5"
BODY = f"""\
from antinb import report
book = report.open(out_dir, "tiny", dict(profile=profile, pairs=pairs))
book.claim("99.a", "a claim", dict({ROW}), "<0")
import os; print(os.path.abspath("x"), 7 * scale)
"""


def random_mixture(components=3, dimension=64, rank=4, seed=0, dtype=torch.float32):
    rng = torch.Generator().manual_seed(seed)
    return exact.Mixture(
        torch.rand(components, generator=rng, dtype=dtype) + 0.2,
        torch.randn(components, dimension, generator=rng, dtype=dtype) / 2,
        torch.randn(components, dimension, rank, generator=rng, dtype=dtype) / 3,
        torch.rand(components, generator=rng, dtype=dtype) / 20 + 0.01,
    )


def tiny_unet(channels=1, null=True, **options):
    """Return an untrained UNet; with classes the last one is its null class, unless `null` is false."""
    torch.manual_seed(0)
    network = UNet2DModel(
        sample_size=8,
        in_channels=channels,
        layers_per_block=1,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        **{"out_channels": channels} | options,
    )
    if null and options.get("num_class_embeds"):
        network.register_to_config(null_class=options["num_class_embeds"] - 1)
    return network


def tiny_transformer(**options):
    torch.manual_seed(0)
    settings = {"num_attention_heads": 2, "attention_head_dim": 4, "num_layers": 1, "norm_num_groups": 2}
    settings |= {"in_channels": 1, "out_channels": 1, "num_embeds_ada_norm": 3} | options
    return DiTTransformer2DModel(sample_size=8, patch_size=2, **settings)


def tiny_autoencoder(**options):
    torch.manual_seed(0)
    settings = {"block_out_channels": (4,), "norm_num_groups": 2, "latent_channels": 1, "scaling_factor": 0.5}
    return AutoencoderKL(1, 1, **settings | {"mid_block_add_attention": False} | options)


def write(body, name="tiny.ipynb"):
    cells = [nbformat.v4.new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]}), nbformat.v4.new_code_cell(body)]
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=metadata), name)
