"""Mixtures of Gaussians of low rank fitted to images: mixtures of probabilistic principal component analysers."""

from __future__ import annotations

import numpy as np
import torch
from scipy.cluster.vq import kmeans2

from antinb import checks
from antinb.models.exact import Mixture

__all__: list[str] = []

RANK, ROUNDS, FEWEST = 64, 5, 8
MORE = 16  # directions that a randomised decomposition looks at beyond those wanted
LEAST = 1e-6  # share of an image that counts, variance of a pixel


def fit(source: object, shape: tuple[int, ...], components: int, rank: int | None) -> Mixture:
    """Return the mixture fitted to images `(N, *shape)` by five rounds of expectation maximisation from k-means.

    Raises:
        ValueError: for images of another shape, not finite, or fewer than 8 a component.
    """
    found = checks.array("an image", source)
    if found.shape[1:] != shape or len(found) < FEWEST * components or not np.isfinite(found).all():
        rule = (
            f"a surrogate is fitted to at least {FEWEST * components} finite images (N, {', '.join(map(str, shape))})"
        )
        raise ValueError(f"{rule}; got {found.shape}")
    rank = (
        min(RANK, len(found) // (2 * components)) if rank is None else checks.integer("rank", rank, 0, len(found) - 2)
    )
    data = torch.from_numpy(found).float().flatten(1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if components == 1:
            return maximised(data, torch.ones(len(data), 1), rank)
        labels = torch.from_numpy(kmeans2(data.numpy(), components, minit="++", rng=np.random.default_rng(0))[1]).long()
        known = maximised(data, torch.nn.functional.one_hot(labels, components).float(), rank)
        for _ in range(ROUNDS):
            known = maximised(data, known.responsibilities(data), rank)
    return known


def maximised(data: torch.Tensor, shares: torch.Tensor, rank: int) -> Mixture:
    """Return the mixture of highest likelihood given each image's shares `(N, K)` of the components.

    Components of fewer than 8 images are left out.
    """
    weights, means, factors, variances = [], [], [], []
    for share in shares.T[shares.sum(0) >= FEWEST]:
        mine = share > LEAST
        part, weight = data[mine], share[mine] / share[mine].sum()
        mean = weight @ part
        rows = weight.sqrt()[:, None] * (part - mean)
        kept, most = min(rank, rows.shape[1] - 1), min(rows.shape)
        _, singular, basis = torch.svd_lowrank(rows, q=min(kept + MORE, most), niter=4)
        kept = min(kept, len(rows) // 2)
        spread = singular[:kept].square()
        variance = ((rows.square().sum() - spread.sum()) / (rows.shape[1] - kept)).clamp(min=LEAST)
        weights.append(share.mean())
        means.append(mean)
        factor = basis[:, :kept] * (spread - variance).clamp(min=0).sqrt()
        factors.append(torch.nn.functional.pad(factor, (0, rank - kept)))
        variances.append(variance)
    if not weights:
        raise ValueError(f"no component has {FEWEST} images; take fewer components")
    return Mixture(torch.stack(weights), torch.stack(means), torch.stack(factors), torch.stack(variances))
