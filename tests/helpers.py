"""Small models and shapes that several tests share."""

import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiTTransformer2DModel, UNet2DModel

from antinb import exact

SHAPE = (1, 8, 8)
LINEAR = dict(DDIMScheduler(1000, clip_sample=False).config)


def random_mixture(components=3, dimension=64, rank=4, seed=0, dtype=torch.float32):
    rng = torch.Generator().manual_seed(seed)
    return exact.Mixture(
        torch.rand(components, generator=rng, dtype=dtype) + 0.2,
        torch.randn(components, dimension, generator=rng, dtype=dtype) / 2,
        torch.randn(components, dimension, rank, generator=rng, dtype=dtype) / 3,
        torch.rand(components, generator=rng, dtype=dtype) / 20 + 0.01,
    )


def tiny_unet(channels=1, **options):
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=8,
        in_channels=channels,
        out_channels=channels,
        layers_per_block=1,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        **options,
    )


def tiny_transformer(**options):
    torch.manual_seed(0)
    settings = {"num_attention_heads": 2, "attention_head_dim": 4, "num_layers": 1, "norm_num_groups": 2}
    settings |= {"in_channels": 1, "out_channels": 1, "num_embeds_ada_norm": 3} | options
    return DiTTransformer2DModel(sample_size=8, patch_size=2, **settings)


def tiny_autoencoder(**options):
    torch.manual_seed(0)
    settings = {"block_out_channels": (4,), "norm_num_groups": 2, "latent_channels": 1, "scaling_factor": 0.5}
    return AutoencoderKL(1, 1, **settings | {"mid_block_add_attention": False} | options)
