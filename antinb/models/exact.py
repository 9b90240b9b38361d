"""Gaussian mixtures and functions with closed forms, which are the ground truth of tests and tutorials."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from antinb import checks

__all__ = ["DenseMixture", "Mixture", "parity", "two_component"]

NEGLIGIBLE = 1e-12  # weight of a component


class Mixture:
    r"""A mixture of low-rank Gaussians, `p(x) = sum_k w_k N(x; mu_k, W_k W_k' + v_k I)`.

    Diffused to the level `abar`, `x_t = sqrt(abar) x + sqrt(1 - abar) e`, it is still such a mixture: the means
    shrink by `sqrt(abar)`, the spreads by `abar`, and `v` becomes `abar v + 1 - abar`.

    Args:
        weights: `(K,)`, positive; they are scaled to sum to one.
        means: `(K, d)`, in the units of the images, [-1, 1].
        factors: `(K, d, r)`, any matrices `W` with `r < d`.
        variances: `(K,)`, positive: the variance `v` outside the factors.

    Raises:
        ValueError: if the shapes do not fit or a weight or variance is not positive.

    Examples:
        >>> means = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
        >>> mixture = Mixture(torch.ones(2), means, torch.zeros(2, 2, 0), torch.ones(2))
        >>> mixture.mean.tolist(), mixture.score(torch.tensor([[0.0, 2.0]])).tolist()
        ([0.0, 0.0], [[0.0, -2.0]])
    """

    def __init__(
        self, weights: torch.Tensor, means: torch.Tensor, factors: torch.Tensor, variances: torch.Tensor
    ) -> None:
        shapes = [tuple(tensor.shape) for tensor in (weights, means, factors, variances)]
        components, dimension = shapes[1] if len(shapes[1]) == 2 else (0, 0)
        wanted = [(components,), (components, dimension), (components, dimension, *shapes[2][2:]), (components,)]
        if shapes != wanted or len(shapes[2]) != 3 or not 0 <= shapes[2][2] < dimension:
            rule = "a mixture needs weights (K,), means (K, d), factors (K, d, r < d), variances (K,)"
            raise ValueError(f"{rule}; got {shapes}")
        if not (weights > 0).all() or not (variances > 0).all():
            raise ValueError("the weights and variances of a mixture must be positive")
        self.weights = weights / weights.sum()
        self.means, self.factors, self.variances = means, factors, variances
        self.basis, spread, _ = torch.linalg.svd(factors, full_matrices=False)
        self.spread = spread.square()

    def to(self, place: torch.device | torch.dtype | str) -> Mixture:
        """Return the mixture on another device or in another floating-point type, as `Tensor.to` does."""
        tensors = (self.weights, self.means, self.factors, self.variances)
        if isinstance(place, torch.dtype):
            return Mixture(*(tensor.to(dtype=place) for tensor in tensors))
        return Mixture(*(tensor.to(device=place) for tensor in tensors))

    @property
    def mean(self) -> torch.Tensor:
        """The mean image `sum_k w_k mu_k`, `(d,)`."""
        return self.weights @ self.means

    def gaussian(self) -> Mixture:
        """Return the one Gaussian with the mean and covariance of the mixture: its score is affine.

        Examples:
            >>> two_component(torch.zeros(2), torch.ones(2), variance=0.5).gaussian().score(torch.ones(1, 2))
            tensor([[-0.4000, -0.4000]])
        """
        weights, size = self.weights[:, None], len(self.mean)
        within = (weights[..., None].sqrt() * self.factors).movedim(0, 1).flatten(1)
        between = (weights.sqrt() * (self.means - self.mean)).T
        basis, spread, _ = torch.linalg.svd(torch.cat([within, between], 1), full_matrices=False)
        floor = spread[-1].square() if len(spread) == size else spread.new_zeros(())
        factor = basis * (spread.square() - floor).clamp(min=0).sqrt()
        variance = (self.weights @ self.variances + floor)[None]
        return Mixture(torch.ones_like(variance), self.mean[None], factor[None, :, : size - 1], variance)

    def sample(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """Return `count` exact draws `mu_k + W_k a + sqrt(v_k) e`, `(count, d)`."""
        kind = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        inner = torch.randn(count, self.factors.shape[2], generator=generator, dtype=self.means.dtype)
        outer = torch.randn(count, self.means.shape[1], generator=generator, dtype=self.means.dtype)
        inside = torch.stack([self.factors[k] @ part for k, part in zip(kind.tolist(), inner, strict=True)])
        return self.means[kind] + inside + self.variances[kind].sqrt()[:, None] * outer

    def log_density(self, x: torch.Tensor, abar: float | torch.Tensor = 1.0) -> torch.Tensor:
        """Return `log p_t(x)` at the noise level `abar` in (0, 1], `(B, d)` to `(B,)`."""
        return self._components(x, abar)[0].logsumexp(1)

    def responsibilities(self, x: torch.Tensor, abar: float | torch.Tensor = 1.0) -> torch.Tensor:
        """Return the posterior shares of the components, `p_t(k | x)`, `(B, d)` to `(B, K)`."""
        return self._components(x, abar)[0].softmax(1)

    def score(self, x: torch.Tensor, abar: float | torch.Tensor = 1.0) -> torch.Tensor:
        r"""Return the score `grad log p_t(x) = -sum_k p_t(k|x) S_k^-1 (x - sqrt(abar) mu_k)`, `(B, d)` to `(B, d)`.

        By Woodbury `S_k^-1 = (I - U diag(a / (a + v)) U') / v`, with `U` the orthonormal basis of
        `W_k`, `a` its spreads times `abar` and `v = abar v_k + 1 - abar`.
        """
        logits, inner, shrink, noise = self._components(x, abar)
        share = logits.softmax(1) / noise
        centre = share @ (self.means * self._root(abar, x))
        inside = torch.einsum("kdr,bkr->bd", self.basis, share[..., None] * shrink * inner)
        return inside + centre - share.sum(1, keepdim=True) * x

    def predict_noise(self, x: torch.Tensor, abar: float | torch.Tensor) -> torch.Tensor:
        """Return the expected noise `E[e | x_t = x] = -sqrt(1 - abar) score(x)`, `(B, d)` to `(B, d)`."""
        return -self._root(1 - abar, x) * self.score(x, abar)

    def relative_fisher(self, abar: float, count: int, generator: torch.Generator) -> torch.Tensor:
        r"""Return `|score(x) + x|^2` at `count` draws x from `p_t`, `(count,)`.

        Their mean is the Fisher information relative to N(0, I). Under the Ornstein-Uhlenbeck process,
        `abar = exp(-2t)`, it is at most `abar` times its value at `abar = 1`, because noise pulls the score
        towards `-x`, which is odd.

        Source: Jia et al., arXiv 2506.06185, section 3.
        """
        clean = self.sample(count, generator)
        noise = torch.randn(clean.shape, generator=generator, dtype=clean.dtype)
        x = self._root(abar, clean) * clean + self._root(1 - abar, clean) * noise
        return (self.score(x, abar) + x).square().sum(1)

    def posterior(self, matrix: torch.Tensor, measurement: torch.Tensor, sigma: float) -> DenseMixture:
        r"""Return the distribution of x given `y = A x + sigma e`, which is a mixture again.

        With `S_k = W_k W_k' + v_k I` and the gain `K = S_k A' (A S_k A' + sigma^2 I)^-1`, a component has the mean
        `mu_k + K (y - A mu_k)`, the covariance `S_k - K A S_k` and a weight in proportion to
        `w_k N(y; A mu_k, A S_k A' + sigma^2 I)`. Components with a weight below 1e-12 are left out.

        Args:
            matrix: A, `(m, d)`, for example from `antinb.operators.matrix`.
            measurement: y, m values in any shape.
            sigma: standard deviation of the measurement's noise, positive.

        Raises:
            ValueError: if sigma is not positive, the shapes do not fit or the measurement is not finite.
        """
        checks.number("sigma", sigma, 1e-12, 1e12)
        y = measurement.flatten().to(self.means)
        if matrix.ndim != 2 or tuple(matrix.shape) != (len(y), self.means.shape[1]):
            wanted = (len(y), self.means.shape[1])
            raise ValueError(f"the matrix of {len(y)} values must be {wanted}; got {tuple(matrix.shape)}")
        if not torch.isfinite(y).all():
            raise ValueError(f"a measurement must be finite; got {int((~torch.isfinite(y)).sum())} values that are not")
        seen = matrix.to(self.means)
        noise = sigma**2 * torch.eye(len(y)).to(self.means)
        logits, parts = [], []
        for weight, mean, factor, variance in zip(self.weights, self.means, self.factors, self.variances, strict=True):
            cross = factor @ (seen @ factor).T + variance * seen.T
            root = torch.linalg.cholesky(seen @ cross + noise)
            normal = torch.distributions.MultivariateNormal(seen @ mean, scale_tril=root)
            logits.append(weight.log() + normal.log_prob(y))
            parts.append((mean, factor, variance, cross, root))
        weights = torch.stack(logits).softmax(0)
        kept = (weights > NEGLIGIBLE).nonzero().flatten().tolist()
        means, covariances = [], []
        for mean, factor, variance, cross, root in (parts[k] for k in kept):
            gain = torch.cholesky_solve(cross.T, root).T
            means.append(mean + gain @ (y - seen @ mean))
            prior = factor @ factor.T + variance * torch.eye(len(mean)).to(mean)
            covariances.append(prior - gain @ cross.T)
        return DenseMixture(weights[kept], torch.stack(means), torch.stack(covariances))

    @staticmethod
    def _root(value: float | torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(value, dtype=like.dtype, device=like.device).sqrt()

    def _components(
        self, x: torch.Tensor, abar: float | torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return `log w_k N(x; ...)` `(B, K)`, `U'(x - m)` `(B, K, r)`, `a / (a + v)` `(K, r)`, `v` `(K,)`."""
        abar = torch.as_tensor(abar, dtype=x.dtype, device=x.device)
        means, spread = self.means * abar.sqrt(), self.spread * abar
        noise = self.variances * abar + 1 - abar
        shrink = spread / (spread + noise[:, None])
        inner = torch.einsum("kdr,bd->bkr", self.basis, x) - torch.einsum("kdr,kd->kr", self.basis, means)
        distance = x.square().sum(1)[:, None] - 2 * x @ means.T + means.square().sum(1)
        quadratic = (distance - (shrink * inner.square()).sum(2)) / noise
        dimension, rank = self.basis.shape[1:]
        volume = (dimension - rank) * noise.log() + (spread + noise[:, None]).log().sum(1)
        constant = dimension * math.log(2 * math.pi)
        return self.weights.log() - (quadratic + volume + constant) / 2, inner, shrink, noise


class DenseMixture:
    r"""A mixture of Gaussians with any covariances, `p(x) = sum_k w_k N(x; m_k, C_k)`, as a map from noise to draws.

    Called with noise `(B, ...)` of d values a row, it returns `m_k + C_k^(1/2) z` of the same shape, with the
    symmetric root. If there are several components, `torch.rand` draws one, and `antinb.sample` takes these numbers
    from the design. `antinb.load(mixture, shape=(C, H, W))` returns its generator.

    Args:
        weights: `(K,)`, positive; they are scaled to sum to one.
        means: `(K, d)`.
        covariances: `(K, d, d)`, symmetric and not negative.

    Raises:
        ValueError: if the shapes do not fit, a weight is not positive or a covariance has a negative eigenvalue.

    Examples:
        >>> bell = DenseMixture(torch.ones(1), torch.zeros(1, 4), 9 * torch.eye(4)[None])
        >>> bell(torch.ones(2, 1, 2, 2)).flatten(1)[0].tolist()
        [3.0, 3.0, 3.0, 3.0]
    """

    def __init__(self, weights: torch.Tensor, means: torch.Tensor, covariances: torch.Tensor) -> None:
        shapes = [tuple(tensor.shape) for tensor in (weights, means, covariances)]
        components, dimension = shapes[1] if len(shapes[1]) == 2 else (0, 0)
        if shapes != [(components,), (components, dimension), (components, dimension, dimension)]:
            raise ValueError(f"a dense mixture needs weights (K,), means (K, d), covariances (K, d, d); got {shapes}")
        self.weights, self.means, self.covariances = weights / weights.sum(), means, covariances
        spreads, basis = torch.linalg.eigh((covariances + covariances.mT) / 2)
        if not (weights > 0).all() or not (spreads.amin(1) >= -1e-6 * spreads.amax(1)).all():
            raise ValueError("the weights of a mixture must be positive, and its covariances not negative")
        self.roots = basis * spreads.clamp(min=0).sqrt()[:, None] @ basis.mT

    def __call__(self, noise: torch.Tensor) -> torch.Tensor:
        """Return draws of the noise's shape, `(B, ...)`."""
        z = noise.flatten(1).to(self.means)
        if len(self.weights) == 1:
            return (self.means + z @ self.roots[0]).view(noise.shape)
        uniform = torch.rand(len(z), 1, dtype=z.dtype)
        kind = (uniform > self.weights.cumsum(0)[:-1]).sum(1)
        draws = torch.stack([self.means[k] + self.roots[k] @ row for k, row in zip(kind.tolist(), z, strict=True)])
        return draws.view(noise.shape)

    @property
    def mean(self) -> torch.Tensor:
        """The mean `sum_k w_k m_k`, `(d,)`."""
        return self.weights @ self.means

    @property
    def variance(self) -> torch.Tensor:
        """The variance of each value, `(d,)`."""
        return self.weights @ (self._variances + (self.means - self.mean).square())

    def squared_error(self, truth: torch.Tensor) -> float:
        """Return the expected `mean (x - truth)^2` over d values, `sum_k w_k (|m_k - truth|^2 + tr C_k) / d`."""
        distance = (self.means - truth.flatten().to(self.means)).square() + self._variances
        return float(self.weights @ distance.mean(1))

    def absolute_error(self, truth: torch.Tensor) -> float:
        r"""Return the expected `mean |x - truth|` over d values, where each term is a folded normal.

        With the distance a and standard deviation s it is `s sqrt(2 / pi) exp(-a^2 / (2 s^2)) + a erf(a / (s sqrt 2))`.
        """
        a = self.means - truth.flatten().to(self.means)
        s = self._variances.clamp(min=torch.finfo(a.dtype).tiny).sqrt()
        ratio = a / (math.sqrt(2) * s)
        return float(self.weights @ (s * math.sqrt(2 / math.pi) * torch.exp(-ratio.square()) + a * ratio.erf()).mean(1))

    @property
    def _variances(self) -> torch.Tensor:
        return self.covariances.diagonal(dim1=1, dim2=2)


@checks.typed
def two_component(centre: torch.Tensor, offset: torch.Tensor, *, weight: float = 0.5, variance: float = 0.1) -> Mixture:
    """Return `weight N(centre + offset, v I) + (1 - weight) N(centre - offset, v I)`, centre and offset `(d,)`.

    With equal weights it is symmetric about the centre, and its score is affine antisymmetric about
    `sqrt(abar) centre`, not about 0. With other weights there is no such point. With offset 0 it is one
    Gaussian, whose score is affine.

    Raises:
        ValueError: if the weight is not in (0, 1), the variance is not positive or the shapes differ.

    Examples:
        >>> two_component(torch.zeros(3), torch.ones(3), weight=0.75).mean.tolist()
        [0.5, 0.5, 0.5]
    """
    checks.number("variance", variance, 1e-300, 1e300)
    if not 0 < weight < 1:
        raise ValueError(f"weight must lie in (0, 1); got {weight!r}")
    if centre.ndim != 1 or centre.shape != offset.shape:
        raise ValueError(f"centre and offset must be (d,) both; got {tuple(centre.shape)}, {tuple(offset.shape)}")
    factors = torch.zeros(2, len(centre), 0, dtype=centre.dtype)
    weights, variances = torch.tensor([[weight, 1 - weight], [variance, variance]], dtype=centre.dtype)
    return Mixture(weights, torch.stack([centre + offset, centre - offset]), factors, variances)


@checks.typed
def parity(odd_share: float) -> Callable[..., torch.Tensor]:
    """Return `f(x) = sqrt(p) x + 2 sqrt(1 - p) |x|`, whose slices all have the affine-antisymmetry score p.

    On [-1, 1] the variance of `s` is 1/3 and that of `|s|` is 1/12. The function is even for p = 0 and odd for
    p = 1. It takes the arguments of a network, `(x, t, condition)`, and ignores the last two.

    Raises:
        ValueError: if the share is not from 0 to 1.

    Examples:
        >>> parity(1.0)(torch.tensor([-0.5, 0.5])).tolist()
        [-0.5, 0.5]
    """
    share = checks.number("odd_share", odd_share, 0, 1)
    return lambda x, t=None, condition=None: math.sqrt(share) * x + 2 * math.sqrt(1 - share) * x.abs()
