"""Surrogates: generators without a network that make, of a model's own noise, images much like the model's.

A surrogate runs the sampler of a model, with its scheduler, steps and step noise, on the score of a Gaussian or of a
mixture of Gaussians. Its statistics are correlated with those of the model on the same noise, and their means cost
nothing: `antinb.controls.surrogate` takes out what they explain.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
import xarray as xr

from antinb import checks, dataset
from antinb.models.decoders import Latent
from antinb.models.diffusion import Diffusion, make_scheduler
from antinb.models.draws import StepNoise
from antinb.models.exact import Mixture
from antinb.models.fitting import fit
from antinb.models.generator import Generator, check_noise
from antinb.models.networks import tensors_hash
from antinb.models.rectified import RectifiedFlow

__all__ = ["gaussian", "mixture"]

Prediction = Callable[[torch.Tensor, torch.Tensor | float], torch.Tensor]


@dataclass(frozen=True, eq=False)
class Surrogate:
    """A generator without a network: no evaluation, and the same noise and step noise as its model.

    Attributes:
        images: `(noise (B, *shape), draw) -> images (B, *shape)`.
        shape: shape of one noise, that of the model.
        record: what determines the images; `pilot_evaluations` are those of the run it was fitted to.
        evaluations: network calls for one image, none.

    Examples:
        >>> import antinb
        >>> from antinb import surrogates, zoo
        >>> model = antinb.load("fashion-ddpm", steps=5)
        >>> cheap = surrogates.gaussian(model, zoo.mixture("fashion-mixture"))
        >>> cheap.evaluations, cheap.generate(torch.zeros(2, *cheap.shape)).shape
        (0, torch.Size([2, 1, 28, 28]))
    """

    images: Callable[[torch.Tensor, StepNoise | None], torch.Tensor]
    shape: tuple[int, ...]
    record: Mapping[str, object] = field(default_factory=dict)
    evaluations: int = 0

    @torch.no_grad()
    def generate(
        self, noise: torch.Tensor, *, draw: StepNoise | None = None, condition: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the images of the noise, `(B, *shape)` to the same, unclipped.

        Raises:
            ValueError: for noise of another shape, a condition, or a stochastic sampler without `draw`.
        """
        check_noise(noise, self.shape)
        if condition is not None:
            raise ValueError(f"a surrogate takes no condition, it is that of its images; got {condition.tolist()}")
        return self.images(noise, draw)

    def describe(self) -> dict[str, object]:
        """Return the model's sampler, the surrogate's numbers by their hash, and the evaluations of its pilot."""
        return dict(self.record)


@checks.typed
def gaussian(
    model: Generator, source: Mixture | np.ndarray | xr.Dataset, *, rank: int | None = None
) -> Surrogate | Latent:
    r"""Return the surrogate that runs the sampler of a model on the score of one Gaussian, in closed form.

    With the covariance `U diag(a) U' + v I` the predicted noise is affine and diagonal in the axes U, and a sampler is
    linear in what it is given. So the image is `m' + sum_k (s_k w_k + U diag(r_k - s_k) U' w_k)` of the noise `w_0` and
    the step noise `w_1, w_2, ...`, for any number of steps: one affine map. Its slopes and offsets come from a run of
    the model's own sampler on one number an axis. Left out is the clipping of predicted images to [-1, 1], which is
    not affine: the record says `clip_sample` false.

    Args:
        model: a diffusion model or a rectified flow of `antinb.load`, or a latent one.
        source: a mixture, of which the Gaussian of its mean and covariance is taken; images `(N, *shape)` in [-1, 1],
            such as a data set; or a run, such as a pilot of the model itself, whose evaluations are recorded. For a
            latent model they are latents: a run of `model.sampler`.
        rank: number of axes that are fitted; None takes 64, or half the images if those are fewer.

    Returns:
        A generator for `antinb.sample`, without network calls; that of a latent model calls its decoder.

    Raises:
        ValueError: for another kind of model, images of another shape, or fewer than 8.

    Source: Tipping and Bishop, JRSS B 61 (1999), 611-622, for the remainder v; Wang and Vastola, arXiv 2412.09726,
        for the linear score.

    Examples:
        >>> import antinb
        >>> from antinb import noise, surrogates
        >>> model = antinb.load("fashion-mixture", steps=5)
        >>> pilot = antinb.sample(model, noise.iid(32), seed=1, progress=False)
        >>> surrogates.gaussian(model, pilot).describe()["pilot_evaluations"]
        160
    """
    sampler, known, about = _parts(model, source, 1, rank)
    bell = known.gaussian()
    sampler = sampler.with_(clip=False) if isinstance(sampler, Diffusion) else sampler
    loop = _loop(sampler, bell.predict_noise, bell.mean, sampler.shape)
    about |= {"model": f"gaussian for {_name(sampler)}"}
    return _packed(model, bell, Surrogate(_affine(sampler, bell), sampler.shape, loop.describe() | about))


@checks.typed
def mixture(
    model: Generator, source: Mixture | np.ndarray | xr.Dataset, *, components: int = 16, rank: int | None = None
) -> Surrogate | Latent:
    """Return the surrogate that runs the sampler of a model on the score of a mixture of Gaussians, step by step.

    A mixture of images is fitted by expectation maximisation from k-means, five rounds.

    Args:
        model: as for `gaussian`.
        source: as for `gaussian`; a mixture is taken as it is, such as `zoo.mixture("cifar10-mixture")`.
        components: number of Gaussians fitted; those of fewer than 8 images are left out.
        rank: number of axes of each, as for `gaussian`.

    Raises:
        ValueError: as `gaussian`, or for fewer than 8 images a component.

    Examples:
        >>> import antinb
        >>> from antinb import noise, surrogates
        >>> model = antinb.load("fashion-mixture", steps=5)
        >>> pilot = antinb.sample(model, noise.iid(64), seed=1, progress=False)
        >>> surrogates.mixture(model, pilot, components=4).evaluations
        0
    """
    components = checks.integer("components", components, 1, 10_000)
    sampler, known, about = _parts(model, source, components, rank)
    loop = _loop(sampler, known.predict_noise, known.mean, sampler.shape)
    about |= {"model": f"mixture for {_name(sampler)}"}

    def images(noise: torch.Tensor, draw: StepNoise | None) -> torch.Tensor:
        return loop.generate(noise, draw=draw)

    return _packed(model, known, Surrogate(images, sampler.shape, loop.describe() | about))


def _packed(model: Generator, known: Mixture, cheap: Surrogate) -> Surrogate | Latent:
    """Return the surrogate with its numbers in its record, before the decoder of a latent model."""
    numbers = {name: getattr(known, name) for name in ("weights", "means", "factors", "variances")}
    found = replace(cheap, record={**cheap.record, "network_sha256": tensors_hash(numbers), "evaluations": 0})
    return replace(model, sampler=found) if isinstance(model, Latent) else found


def _parts(
    model: Generator, source: object, components: int, rank: int | None
) -> tuple[Diffusion | RectifiedFlow, Mixture, dict[str, object]]:
    """Return the sampler of a model, the mixture of a source in its shape and on its device, and the pilot's record."""
    sampler = model.sampler if isinstance(model, Latent) else model
    if not isinstance(sampler, (Diffusion, RectifiedFlow)):
        raise ValueError(
            f"surrogates are those of diffusion models and rectified flows; got a {type(sampler).__name__}"
        )
    about: dict[str, object] = {"pilot_evaluations": 0}
    if isinstance(source, xr.Dataset):
        config, images = dataset.config(source), dataset.images(source)
        about = {"pilot_evaluations": dataset.cost(source), "pilot_seed": config.get("seed")}
        source = images.values.reshape(-1, *images.shape[2:])
    if isinstance(source, Mixture) and rank is not None:
        raise ValueError(f"a mixture is taken as it is, and rank= belongs to images; got {rank}")
    known = source if isinstance(source, Mixture) else fit(source, sampler.shape, components, rank)
    if len(known.mean) != math.prod(sampler.shape):
        raise ValueError(f"the mixture has dimension {len(known.mean)}; the model's noise {sampler.shape}")
    return sampler, known.to(sampler.like.device), about


def _name(sampler: Diffusion | RectifiedFlow) -> object:
    return sampler.identity.get("model", type(sampler).__name__)


def _loop(
    sampler: Diffusion | RectifiedFlow, predicted: Prediction, mean: torch.Tensor, shape: tuple[int, ...]
) -> Diffusion | RectifiedFlow:
    """Return the sampler on another prediction of the noise, `(x (B, d), abar) -> (B, d)`, with the mean `(d,)`."""
    levels = make_scheduler(sampler.config).alphas_cumprod.to(mean) if isinstance(sampler, Diffusion) else None

    def network(x: torch.Tensor, t: torch.Tensor, condition: torch.Tensor | None) -> torch.Tensor:
        if levels is not None:
            return predicted(x.flatten(1), levels[t]).view_as(x)
        time = float(t) / sampler.levels
        if time == 1:
            return x - mean.view(shape)
        scale = math.hypot(time, 1 - time)
        noise = predicted(x.flatten(1) / scale, ((1 - time) / scale) ** 2)
        return (noise.view_as(x) - x) / (1 - time)

    own = {"network": network, "shape": shape, "like": mean, "guidance": 1.0, "null": None, "compile": False}
    if isinstance(sampler, Diffusion):
        if levels is not None and levels[-1] == 0:
            raise ValueError(
                "a surrogate needs some of the image at every level; got a model whose last level has none"
            )
        fixed = {"variance_type": "fixed_small"} if sampler.learned else {}
        own |= {"config": {**sampler.config, "prediction_type": "epsilon", **fixed}, "learned": False}
    return replace(sampler, identity={}, **own)


def _affine(
    sampler: Diffusion | RectifiedFlow, bell: Mixture
) -> Callable[[torch.Tensor, StepNoise | None], torch.Tensor]:
    """Return the images of one Gaussian as a map of the noise, see `gaussian`.

    The sampler runs once on two numbers for each axis and for the remainder, with the mean 0 and 1. Its rows are the
    noise and each step noise alone, set to 1: at mean 0 they give the slopes, and at mean 1 without noise the offset.
    """
    basis, centre = bell.basis[0], bell.mean
    spread = torch.cat([bell.spread[0] + bell.variances, bell.variances]).double()
    count, rows, streams = len(spread), sampler.steps + 1, [0]
    variance, mean = spread.repeat(2), torch.arange(2).repeat_interleave(count).to(spread)

    def predicted(x: torch.Tensor, abar: torch.Tensor | float) -> torch.Tensor:
        signal = torch.as_tensor(abar).to(x)
        return (1 - signal).sqrt() * (x - signal.sqrt() * mean) / (signal * variance + 1 - signal)

    def ones(stream: int, shape: tuple[int, ...]) -> torch.Tensor:
        streams.append(stream)
        drawn = torch.zeros(rows, *shape)
        drawn[stream] = 1
        return drawn

    start = torch.zeros(rows, 1, 1, 2 * count).to(spread)
    start[0, ..., :count] = 1
    found = _loop(sampler, predicted, mean, (1, 1, 2 * count)).generate(start, draw=ones).flatten(1).to(centre)
    slopes, offset = found[streams, :count], found[0, count:]

    def spread_out(slope: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return slope[-1] * x + (x @ basis * (slope[:-1] - slope[-1])) @ basis.T

    middle = spread_out(offset, centre)

    def images(noise: torch.Tensor, draw: StepNoise | None) -> torch.Tensor:
        if draw is None and len(streams) > 1:
            raise ValueError("the sampler draws step noise: it needs draw=, which antinb.sample gives")
        drawn = [noise, *(draw(stream, sampler.shape) for stream in streams[1:])] if draw else [noise]
        moved = sum(spread_out(slope, part.flatten(1).to(centre)) for slope, part in zip(slopes, drawn, strict=True))
        return (middle + moved).view_as(noise)

    return images
