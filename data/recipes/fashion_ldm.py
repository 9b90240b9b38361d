"""Train `fashion-ldm`: latent diffusion on Fashion-MNIST (arXiv 2112.10752), an autoencoder and then a UNet.

Run `python data/recipes/fashion_ldm.py --data fashion_mnist.npz --work build/fashion-ldm`.

The autoencoder maps 28 by 28 pixels to 4 channels of 7 by 7, with the absolute error and a small weight on the
divergence from N(0, I). The UNet predicts noise in these latents, scaled to variance 1, as in `fashion_ddpm.py`.
Both trainings are resumable, see `training.py`.
"""

from __future__ import annotations

import click
import torch
import training
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DModel
from torch import Tensor, nn

PRIOR, AUTOENCODER_IMAGES = 1e-3, 100_000


def build_autoencoder() -> AutoencoderKL:
    """Return the untrained autoencoder."""
    torch.manual_seed(training.SEED)
    return AutoencoderKL(
        in_channels=1,
        out_channels=1,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 64),
        latent_channels=4,
        norm_num_groups=8,
        sample_size=28,
        mid_block_add_attention=False,
    )


def build() -> UNet2DModel:
    """Return the untrained network of the latents."""
    return training.unet((96,), size=7, channels=4, layers_per_block=2)


def reconstruction_loss(network: AutoencoderKL, generator: torch.Generator, clean: Tensor, _: Tensor) -> tuple:
    """Return the mean absolute error, and with it the weighted divergence of the posterior, to minimise."""
    with torch.autocast(clean.device.type, torch.bfloat16):
        moments = network.quant_conv(network.encoder(clean))
    mean, log_variance = moments.float().chunk(2, 1)
    noise = torch.randn(mean.shape, generator=generator, device=mean.device)
    with torch.autocast(clean.device.type, torch.bfloat16):
        decoded = network.decode(mean + (log_variance / 2).exp() * noise).sample
    error = (decoded.float() - clean).abs().mean()
    divergence = (mean.square() + log_variance.exp() - 1 - log_variance).mean() / 2
    return error, error + PRIOR * divergence


@torch.no_grad()
def latents(autoencoder: AutoencoderKL, clean: Tensor) -> Tensor:
    """Return the posterior means of images, `(N, 1, 28, 28)` to `(N, 4, 7, 7)`."""
    return torch.cat([autoencoder.encode(part).latent_dist.mean for part in clean.split(500)])


def latent_loss(autoencoder: AutoencoderKL) -> training.Loss:
    """Return the loss of noise prediction on the scaled latents of images."""
    noise_loss = training.noise_loss()

    def loss(network: nn.Module, generator: torch.Generator, clean: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        return noise_loss(network, generator, latents(autoencoder, clean) * autoencoder.config.scaling_factor, labels)

    return loss


@click.command()
@training.options(total=300_000)
def train(**options) -> None:
    """Train both and write WORK/pipeline, a folder with `vae`, `unet` and `scheduler`."""
    autoencoder, work = build_autoencoder(), options.pop("work")
    first = options | {"work": work / "autoencoder", "total": min(AUTOENCODER_IMAGES, options["total"])}
    training.fit(autoencoder, reconstruction_loss, "fashion_mnist", **first)
    autoencoder.requires_grad_(False)
    sample = training.tensors("fashion_mnist", options["data"], "train", slice(10_000), options["device"])[0]
    autoencoder.register_to_config(scaling_factor=1 / latents(autoencoder, sample).std().item())
    network = build()
    folder = training.fit(network, latent_loss(autoencoder), "fashion_mnist", work=work, **options)
    autoencoder.half().save_pretrained(folder / "vae")
    network.half().save_pretrained(folder / "unet")
    DDPMScheduler.from_config(training.SCHEDULER.config, clip_sample=False).save_pretrained(folder / "scheduler")


if __name__ == "__main__":
    train()
