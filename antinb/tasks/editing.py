"""Editing by noise: from an image of one class to an image of another, behind the contract of a generator.

An editor has sources, images `(N, C, H, W)` in [-1, 1], and maps noise to an edit of one of them. The
condition of a unit is the number of its source, so that one run edits them all:
`antinb.sample(editor, design, seed=, condition=range(N))`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr

from antinb import checks, dataset
from antinb.analysis import statistics
from antinb.models.diffusion import Diffusion
from antinb.models.draws import StepNoise
from antinb.models.generator import check_noise
from antinb.models.networks import tensors_hash
from antinb.models.rectified import RectifiedFlow
from antinb.tasks.classifier import Classifier

__all__ = ["FlowEdit", "SDEdit", "flow_edit", "measure", "sd_edit"]

Images = np.ndarray | torch.Tensor
Classes = int | Sequence[int]


@dataclass(frozen=True, eq=False)
class Editor:
    """What both editors are: a model, sources, a class for each to become, and the step that the edit starts from."""

    model: Diffusion | RectifiedFlow
    sources: torch.Tensor
    to_class: torch.Tensor | None
    first: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one noise and of one image."""
        return self.model.shape

    @property
    def evaluations(self) -> int:
        """Network calls for one edit."""
        return self.model.with_(steps=self.model.steps - self.first).evaluations

    def describe(self) -> dict[str, object]:
        """Return model, editor, sources, classes, first step and network calls, for the record."""
        return {
            **self.model.describe(),
            "editor": type(self).__name__,
            "sources_sha256": tensors_hash({"sources": self.sources}),
            "to_class": None if self.to_class is None else self.to_class.tolist(),
            "first_step": self.first,
            "evaluations": self.evaluations,
        }

    def _numbers(self, noise: torch.Tensor, condition: torch.Tensor | None) -> torch.Tensor:
        """Return the number of the source of each row."""
        check_noise(noise, self.shape)
        count = len(self.sources)
        if condition is None and count == 1:
            return torch.zeros(len(noise), dtype=torch.int64)
        if condition is None or not 0 <= condition.min() <= condition.max() < count:
            found = None if condition is None else condition.tolist()
            raise ValueError(f"the condition of a unit is its source, from 0 to {count - 1}; got {found}")
        return condition


@dataclass(frozen=True, eq=False)
class SDEdit(Editor):
    """Noise on a source, then the steps from there on: every noise is another edit. See `sd_edit`."""

    def generate(
        self, noise: torch.Tensor, *, draw: StepNoise | None = None, condition: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the edits of the sources named by `condition`, `(B, C, H, W)` to the same.

        Raises:
            ValueError: if the noise has another shape, there is no such source, or step noise is missing.
        """
        numbers = self._numbers(noise, condition)
        start = self.model.noised(self.sources[numbers].to(noise), noise, self.first)
        classes = None if self.to_class is None else self.to_class[numbers]
        return self.model.resume(start, self.first, draw=draw, condition=classes)


@dataclass(frozen=True, eq=False)
class FlowEdit(Editor):
    """An ordinary differential equation from a source to its edit, its velocity a mean over noises. See `flow_edit`.

    Attributes:
        from_class: `(N,)`, the class of each source.
        backward: the model with the guidance of the source's velocity.
        members: noises a step, the members of one unit; the run has one image a unit.
    """

    model: RectifiedFlow
    to_class: torch.Tensor
    from_class: torch.Tensor
    backward: RectifiedFlow
    members: int

    @property
    def evaluations(self) -> int:
        """Network calls for one edit: two velocities for each repeat of each step, two calls for a guided one."""
        return (self.model.steps - self.first) * self.members * (self.model.calls + self.backward.calls)

    def describe(self) -> dict[str, object]:
        """Return what every editor says, the classes of the sources, their guidance and the repeats."""
        own = {"from_class": self.from_class.tolist(), "source_guidance": self.backward.guidance}
        return super().describe() | own | {"repeats": self.members}

    @torch.no_grad()
    def generate(
        self, noise: torch.Tensor, *, draw: StepNoise | None = None, condition: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return one edit for every `members` rows of noise, `(B, C, H, W)` to `(B / members, C, H, W)`.

        Raises:
            ValueError: if the noise is not of whole units, there is no such source, or step noise is missing.
        """
        numbers = self._numbers(noise, condition)
        if len(noise) % self.members:
            raise ValueError(f"noise comes in units of {self.members} members; got {len(noise)} rows")
        times = self.model.times[self.first :]
        if draw is None and len(times) > 2:
            raise ValueError("FlowEdit draws noise in every step: it needs draw=, which antinb.sample gives")
        source = self.sources[numbers].to(self.model.like.device, torch.promote_types(noise.dtype, torch.float32))
        before, after = self.from_class[numbers], self.to_class[numbers]
        edit = source[:: self.members]
        for stream, (t, following) in enumerate(zip(times, times[1:], strict=False)):
            drawn = (draw(stream, self.shape) if stream and draw else noise).to(source)
            noised = (1 - t) * source + t * drawn
            moved = edit.repeat_interleave(self.members, 0) + (noised - source)
            change = self.model.velocity(moved, t, after) - self.backward.velocity(noised, t, before)
            edit = edit + (following - t) * change.unflatten(0, (-1, self.members)).mean(1)
        return edit


@checks.typed
def sd_edit(
    model: Diffusion | RectifiedFlow, sources: Images, to_class: Classes | None = None, *, strength: float = 0.6
) -> SDEdit:
    r"""Return the editor that adds noise to a source and lets the sampler take it away again.

    Of K steps the last `k = max(1, round(strength K))` are made, from the state that the first of them starts
    from: `x = sqrt(abar) source + sqrt(1 - abar) n` of a diffusion model, `x = (1 - t) source + t n` of a flow.

    Args:
        model: a diffusion generator or a rectified flow, with its steps, scheduler, eta and guidance.
        sources: images in [-1, 1], `(C, H, W)` or `(N, C, H, W)`.
        to_class: the class that all sources, or each of them, are to become; None of a model without classes.
        strength: share of the sampler's steps that is made, above 0 and at most 1.

    Raises:
        ValueError: for another model, sources of another shape or not finite, a class that the model has not,
            or a strength out of its range.

    Source: Meng et al., arXiv 2108.01073, algorithm 1.

    Examples:
        >>> import antinb
        >>> model = antinb.load("fashion-rf", steps=4)
        >>> sources, labels = antinb.zoo.held_out("fashion")
        >>> editor = sd_edit(model, sources[:2], [3, 3], strength=0.5)
        >>> run = antinb.sample(editor, antinb.noise.antithetic(2), seed=0, condition=[0, 1], progress=False)
        >>> editor.evaluations, run["image"].shape
        (2, (2, 2, 1, 28, 28))
    """
    if not isinstance(model, Diffusion | RectifiedFlow):
        raise ValueError(f"SDEdit needs a diffusion generator or a rectified flow; got a {type(model).__name__}")
    images = _sources(model, sources)
    if (model.null is None) != (to_class is None):
        raise ValueError(f"the model has {'no ' if model.null is None else ''}classes; got to_class={to_class!r}")
    classes = None if to_class is None else _classes(model, "to_class", to_class, len(images))
    return SDEdit(model, images, classes, _first(model, strength))


@checks.typed
def flow_edit(
    model: RectifiedFlow,
    sources: Images,
    from_class: Classes,
    to_class: Classes,
    *,
    strength: float = 0.7,
    repeats: int = 1,
    source_guidance: float = 1.0,
) -> FlowEdit:
    r"""Return the editor that moves a source along the difference of two velocities, averaged over noises.

    The edit x starts at the source s. A step from t to t' draws R noises n and, with `u = (1 - t) s + t n`,

        x <- x + (t' - t) / R sum_n [v(x + u - s, t, to_class) - v(u, t, from_class)].

    Of K steps the last `k = max(1, round(strength K))` are made, by Euler's rule. The first velocity has the
    model's guidance, the second its own. The R noises of a step are the members of one unit, step j is stream
    j: a run has one image a unit, and costs `2 R k` network calls for it, up to `4 R k` with guidance. All steps
    count alike, so `noise.sobol` and `noise.latin` should be a `supercube` here.

    Args:
        model: a class-conditional rectified flow, on Euler steps.
        sources: images in [-1, 1], `(C, H, W)` or `(N, C, H, W)`.
        from_class: the class of all sources, or of each of them.
        to_class: the class that all sources, or each of them, are to become.
        strength: share of the sampler's steps that is made, above 0 and at most 1.
        repeats: R, the members of a unit of the design.
        source_guidance: scale of guidance of the source's velocity; 1 is none.

    Raises:
        ValueError: for another model or scheduler, sources of another shape or not finite, a class that the
            model has not, an edit from a class to itself, or a strength or repeats out of their range.

    Source: Kulikov et al., arXiv 2412.08629, algorithm 1 with n_min = 0 and n_max = k.

    Examples:
        >>> import antinb
        >>> from antinb import editing, noise
        >>> flow = antinb.load("fashion-rf", steps=4)
        >>> sneaker = antinb.sample(flow, noise.iid(1), seed=0, condition=7, progress=False)["image"][0, 0]
        >>> editor = editing.flow_edit(flow, sneaker, 7, 9, strength=0.5, repeats=2)
        >>> run = antinb.sample(editor, noise.antithetic(3), seed=1, progress=False)
        >>> editor.evaluations, run["image"].shape
        (8, (3, 1, 1, 28, 28))
    """
    if not isinstance(model, RectifiedFlow) or model.null is None or model.scheduler != "euler":
        found = f"a {type(model).__name__}, {getattr(model, 'scheduler', None)!r}"
        raise ValueError(f"FlowEdit needs a rectified flow with classes, on 'euler' steps; got {found}")
    images = _sources(model, sources)
    before, after = (
        _classes(model, what, given, len(images))
        for what, given in (("from_class", from_class), ("to_class", to_class))
    )
    if (before == after).any():
        raise ValueError(f"an edit goes from one class to another; got from {before.tolist()} to {after.tolist()}")
    backward = model.with_(guidance=source_guidance)
    return FlowEdit(
        model, images, after, _first(model, strength), before, backward, checks.integer("repeats", repeats, 1)
    )


@checks.typed
def measure(run: xr.Dataset, editor: Editor, classifier: Classifier) -> xr.DataArray:
    """Return what the edits of a run reach and what they keep, `(measure, unit, member)`.

    `target`: the probability of the class to become, in [0, 1]. `ssim`: structural similarity with the source, in
    [-1, 1]. `feature distance`: Euclidean distance from the source in the classifier's features.

    Args:
        run: edits, with the number of a unit's source in `condition` where there are several.
        editor: the editor that made them.
        classifier: from `antinb.classifier.load`, of the model's classes.

    Raises:
        ValueError: if the model has no classes, or a condition is no source of the editor.
    """
    images = dataset.images(run)
    if editor.to_class is None:
        raise ValueError("the probability of a target needs an editor with classes; got to_class=None")
    numbers = run["condition"].values if "condition" in run.coords else np.zeros(run.sizes["unit"], int)
    if not 0 <= numbers.min() <= numbers.max() < len(editor.sources):
        raise ValueError(f"the condition of a unit is its source, from 0 to {len(editor.sources) - 1}; got {numbers}")
    low, high = dataset.limits(run)
    both = images.values, editor.sources.cpu().numpy()[numbers][:, None]
    edits, sources = (dataset.scaled(images, low, high) for images in both)
    reached = classifier.probabilities(edits)[np.arange(len(edits)), :, editor.to_class.numpy()[numbers]]
    kept = statistics.structural_similarity(edits, np.broadcast_to(sources, edits.shape))
    moved = np.linalg.norm(classifier.features(edits) - classifier.features(sources), axis=-1)
    coords = {"measure": ["target", "ssim", "feature distance"], "unit": run["unit"]}
    return xr.DataArray(np.stack([reached, kept, moved]), coords, ["measure", "unit", "member"], attrs=run.attrs)


def _sources(model: Diffusion | RectifiedFlow, sources: Images) -> torch.Tensor:
    images = sources if isinstance(sources, torch.Tensor) else torch.from_numpy(np.array(sources))
    images = images[None] if images.ndim == len(model.shape) else images
    if tuple(images.shape[1:]) != model.shape or not len(images) or not images.isfinite().all():
        raise ValueError(f"sources are finite images (N, *{model.shape}); got {tuple(images.shape)}")
    return images


def _classes(model: Diffusion | RectifiedFlow, what: str, given: Classes, count: int) -> torch.Tensor:
    classes = np.asarray(given)
    if not np.issubdtype(classes.dtype, np.integer) or classes.shape not in ((), (count,)):
        raise ValueError(f"{what} must be one class, or one for each of {count} sources; got {given!r}")
    if model.null is None:
        raise ValueError(f"{what} needs a model with classes; got {given!r}")
    if not 0 <= classes.min() <= classes.max() < model.null:
        raise ValueError(f"{what} must be a class from 0 to {model.null - 1}; got {given!r}")
    return torch.from_numpy(np.broadcast_to(classes, (count,)).astype(np.int64))


def _first(model: Diffusion | RectifiedFlow, strength: float) -> int:
    if checks.number("strength", strength, 0, 1) == 0:
        raise ValueError(f"strength must be above 0; got {strength!r}")
    return model.steps - max(1, round(strength * model.steps))
