"""Decoders, which turn a latent vector, or the latents that a sampler returns, into an image in one network call."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Self

import torch
from diffusers import AutoencoderKL
from torch import nn

from antinb import checks
from antinb.models.draws import StepNoise
from antinb.models.generator import Integrator, check_noise
from antinb.models.networks import module_hash

__all__ = ["Decoder", "Latent"]


def decoder(latent: int, width: int) -> nn.Sequential:
    """Return an untrained convolutional decoder from latents `(N, latent)` to logits of grey values `(N, 1, 28, 28)`.

    It has one linear layer to `4 width` channels of 7 by 7, two transposed convolutions to 14 and 28, and one
    convolution.

    Raises:
        ValueError: if a size is not a positive integer.
    """
    latent, width = checks.integer("latent", latent, 1), checks.integer("width", width, 1)
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(latent, 4 * width * 7 * 7),
        nn.SiLU(),
        nn.Unflatten(1, (4 * width, 7, 7)),
        nn.ConvTranspose2d(4 * width, 2 * width, 4, stride=2, padding=1),
        nn.SiLU(),
        nn.ConvTranspose2d(2 * width, width, 4, stride=2, padding=1),
        nn.SiLU(),
        nn.Conv2d(width, 1, 3, padding=1),
    )


class OneCall(ABC):
    """A generator without settings that makes images in one call of `network`; its subclasses are dataclasses."""

    network: nn.Module
    shape: tuple[int, ...]
    identity: Mapping[str, object]

    @abstractmethod
    def _images(self, noise: torch.Tensor) -> torch.Tensor:
        """Return the images of noise that has the network's device and type."""

    def __post_init__(self) -> None:
        """Put the network in evaluation mode."""
        self.network.eval()

    @property
    def evaluations(self) -> int:
        """Network calls for one image."""
        return 1

    @property
    def like(self) -> torch.Tensor:
        """A tensor that sets the device and dtype."""
        return next(self.network.parameters())

    def with_(self, **settings: object) -> Self:
        """Return the generator itself, since it has no settings to change; None is accepted for any setting.

        Raises:
            ValueError: if a setting has a value.
        """
        unknown = [name for name, value in settings.items() if value is not None]
        if unknown:
            raise ValueError(f"a {type(self).__name__} has no setting {min(unknown)!r}")
        return self

    @torch.no_grad()
    def generate(
        self, noise: torch.Tensor, *, draw: StepNoise | None = None, condition: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the images of the noise, `(B, *shape)` to `(B, C, H, W)`, unclipped.

        Raises:
            ValueError: if the noise has another shape, or there is a condition.
        """
        check_noise(noise, self.shape)
        if condition is not None:
            raise ValueError(f"a {type(self).__name__} takes no condition; got {condition.tolist()}")
        return self._images(noise.to(self.like))

    def describe(self) -> dict[str, object]:
        """Return model, weights, shape of the noise and network calls."""
        return {
            **self.identity,
            "network_sha256": module_hash(self.network),
            "shape": list(self.shape),
            "evaluations": self.evaluations,
            "clip_image": False,
            "dtype": str(self.like.dtype).removeprefix("torch."),
        }


@dataclass(frozen=True, eq=False)
class Decoder(OneCall):
    """The decoder of a variational autoencoder as a generator from latent noise `(B, latent)` to images.

    The network returns the logits `l` of Bernoulli grey values. The image is their mean, `2 sigmoid(l) - 1` in
    [-1, 1]. The prior of the latents is N(0, I).

    Attributes:
        network: a network from latents to logits; it is put in evaluation mode.
        latent: size of a latent vector.
        identity: name and sha256 of the weights, for the record.
        shape: shape of one noise, `(latent,)`.

    Source: Kingma and Welling, arXiv 1312.6114, appendix C.1.

    Examples:
        >>> model = Decoder(decoder(5, 2), 5)
        >>> model.generate(torch.zeros(3, 5)).shape
        torch.Size([3, 1, 28, 28])
    """

    network: nn.Module
    latent: int
    identity: Mapping[str, object] = field(default_factory=dict)
    shape: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        """Derive the shape, and put the network in evaluation mode."""
        object.__setattr__(self, "shape", (self.latent,))
        super().__post_init__()

    def _images(self, noise: torch.Tensor) -> torch.Tensor:
        logits = self.network(noise)
        return 2 * logits.to(torch.promote_types(logits.dtype, torch.float32)).sigmoid() - 1


@dataclass(frozen=True, eq=False)
class Latent:
    """Latent diffusion: a sampler makes latents, and the decoder D of an autoencoder returns `D(latent / scale)`.

    The noise and its design have the shape of the latents; the images are in pixels.

    Attributes:
        sampler: the generator of scaled latents.
        autoencoder: a diffusers autoencoder, which is put in evaluation mode; its configuration holds the scale.
        identity: sha256 of the autoencoder's weights, for the record.

    Raises:
        ValueError: if the autoencoder has another number of latent channels than the sampler.

    Source: Rombach et al., arXiv 2112.10752.

    Examples:
        >>> import antinb
        >>> model = antinb.load("fashion-ldm", steps=4)
        >>> model.sampler.evaluations, model.evaluations
        (4, 5)
    """

    sampler: Integrator
    autoencoder: AutoencoderKL
    identity: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse parts that do not fit."""
        wanted, found = self.autoencoder.config["latent_channels"], self.shape[0]
        if wanted != found:
            raise ValueError(f"the autoencoder has {wanted} latent channels; got a sampler of {found}")
        self.autoencoder.eval()

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one noise, the `(C, H, W)` of the latents."""
        return self.sampler.shape

    @property
    def evaluations(self) -> int:
        """Network calls for one image, those of the sampler and one of the decoder."""
        return self.sampler.evaluations + 1

    @property
    def null(self) -> int | None:
        """The class that stands for no condition, where there is one."""
        return self.sampler.null

    @property
    def conditions(self) -> int:
        """Number of classes, the one for no condition not counted."""
        return self.sampler.conditions

    @property
    def like(self) -> torch.Tensor:
        """A tensor that sets the device and dtype."""
        return self.sampler.like

    def with_(self, **settings: object) -> Latent:
        """Return the same model with other settings of its sampler; None leaves a setting unchanged.

        Raises:
            ValueError: for another setting, or one out of its range.
        """
        return replace(self, sampler=self.sampler.with_(**settings))

    @torch.no_grad()
    def generate(
        self, noise: torch.Tensor, *, draw: StepNoise | None = None, condition: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the images of the latent noise, `(B, *shape)` to `(B, C, H, W)`, unclipped.

        Raises:
            ValueError: as the sampler's `generate`.
        """
        latents = self.sampler.generate(noise, draw=draw, condition=condition)
        scaled = latents / self.autoencoder.config["scaling_factor"]
        return self.autoencoder.decode(scaled.to(self.autoencoder.dtype), return_dict=False)[0].to(latents.dtype)

    def describe(self) -> dict[str, object]:
        """Return what determines the images of the sampler and the autoencoder, and the network calls of both."""
        own = {"decoder_sha256": module_hash(self.autoencoder), "evaluations": self.evaluations}
        return {**self.sampler.describe(), **self.identity, **own}
