"""The random numbers that an unchanged PyTorch program draws are taken from a noise design instead."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode

from antinb.models.inputs import FirstInput
from antinb.noise import Design

__all__ = ["StepNoise", "using"]

NORMAL = {torch.ops.aten.randn, torch.ops.aten.randn_like, torch.ops.aten.normal, torch.ops.aten.normal_}
UNIFORM = {torch.ops.aten.rand, torch.ops.aten.rand_like, torch.ops.aten.uniform, torch.ops.aten.uniform_}
_active = threading.local()
REPEATS = "it expects the same noise again, which a stream of a design is not"

StepNoise = Callable[[int, tuple[int, ...]], torch.Tensor]


def rows(design: Design, shape: tuple[int, ...], *, seed: int, units: Sequence[int], stream: int = 0) -> torch.Tensor:
    """Return the noise of some units as a batch, `(units * members, *shape)`, with the members of a unit together."""
    values = design.draw(shape or (1,), seed=seed, units=units, stream=stream)
    return torch.from_numpy(values).reshape(-1, *shape)


@contextmanager
def using(
    design: Design,
    *,
    seed: int,
    units: Sequence[int] | None = None,
    shared: Sequence[tuple[int, ...]] = (),
    network: torch.nn.Module | None = None,
) -> Iterator[None]:
    """Draw every normal tensor of the enclosed program from a design, stream after stream.

    The k-th tensor `(units * members, ...)` that the program draws is stream k of the design, with the
    members of a unit next to each other. `randn`, `randn_like`, `normal_` and `torch.normal` return
    `mean + std w` with `w` from the design. Uniform numbers are `Phi(w)`, so an antithetic pair gets `u`
    and `1 - u`. A program may also draw `(1, ...)` from each of a list of generators, one a row: these
    draws fill one stream row by row. **The program's own generators and seeds are ignored.**

    Draws by numpy or in other threads cannot be replaced. To notice them, pass `network`: the first input
    of that module must be the design's first stream, up to a scale and up to a part that all members of a
    unit have in common (all rows, if the design has one member).

    Args:
        design: a design from `antinb.noise`.
        seed: non-negative integer, the only seed that counts.
        units: unit numbers of the batch, or all of them if None.
        shared: shapes of draws that are the same for the whole batch, such as a fixed projection.
        network: the denoiser, or whichever module takes the initial noise first. Without it a program may not draw as
            many tensors `(units * members, H, W)` as these have rows, for each may be one image of as many channels.

    Raises:
        ValueError: inside the block, if a draw has another shape or needs `network`, the program calls another random
            operation (`randint`, `bernoulli`, dropout, ...), a module is in training mode, a generator
            is reseeded between draws, blocks are nested, or the network's first input is not the
            design's noise; at the end of the block, if nothing was drawn or a batch of draws `(1, ...)`
            is incomplete.

    Examples:
        >>> import torch
        >>> from antinb import draws, noise
        >>> with draws.using(noise.antithetic(8), seed=0):
        ...     start, step = torch.randn(16, 3, 4, 4), torch.randn(16, 3, 4, 4)
        >>> bool((step[0::2] == -step[1::2]).all())
        True
    """
    numbers = range(design.units) if units is None else units

    def source(stream: int, shape: tuple[int, ...]) -> torch.Tensor:
        return rows(design, shape, seed=seed, units=numbers, stream=stream)

    mode = Draws(source, len(numbers) * design.members, map(tuple, shared), seed)
    mode.unchecked = network is None
    group = design.members if design.members > 1 else mode.rows
    check = FirstInput(mode.rows, lambda: mode.start, group)
    hooks = [] if network is None else [network.register_forward_pre_hook(check, with_kwargs=True)]
    try:
        with warnings.catch_warnings(), mode:
            warnings.filterwarnings("ignore", "Using `torch.compile.module.` when there are global hooks", UserWarning)
            yield
    finally:
        for hook in hooks:
            hook.remove()
    mode.finish()
    if not mode.streams:
        raise ValueError(f"the program drew no tensor of {mode.rows} rows: none of its noise is the design's")


class Draws(TorchDispatchMode):
    """The dispatch mode behind `using`, in which `source(stream, shape)` returns the numbers `(rows, *shape)`.

    Attributes:
        rows: first axis of every draw.
        shared: draws that are the same for all rows and come from `seed`, given by shape or by number among all draws.
        drawn: number of draws so far.
        streams: number of streams drawn so far.
        start: the numbers of stream 0.
        unchecked: whether no network tells a batch from an image with as many channels as there are rows.
    """

    def __init__(
        self, source: StepNoise, rows: int, shared: Iterable[tuple[int, ...] | int] = (), seed: int = 0
    ) -> None:
        super().__init__()
        self.source, self.rows, self.shared, self.seed = source, rows, set(shared), seed
        self.drawn, self.streams, self.unchecked = 0, 0, False
        self.start: torch.Tensor | None = None
        self._pending: list[torch.Tensor] = []
        self._row_generators: list[torch.Generator] = []
        self._common = 0
        self._generators: dict[int, tuple[torch.Generator, torch.Tensor]] = {}

    def __enter__(self) -> Draws:
        """Take over the draws of this thread, whose own random numbers stay where they are."""
        if getattr(_active, "mode", None) is not None:
            raise ValueError("draws cannot be nested: another design already supplies this program's noise")
        thread = threading.get_ident()

        def refuse_training(module: torch.nn.Module, _: object) -> None:
            if module.training and threading.get_ident() == thread:
                name = type(module).__name__
                rule = "modules must be in evaluation mode, call .eval() on the network"
                parts = "of a pipeline on each of its networks, also after load_lora_weights: pipeline.unet.eval()"
                raise ValueError(f"{rule}, {parts}; {name} is in training mode")

        _active.mode = self
        self._hook = register_module_forward_pre_hook(refuse_training)
        self._kept = torch.random.fork_rng(range(torch.cuda.device_count()) if torch.cuda.is_initialized() else [])
        self._kept.__enter__()
        return super().__enter__()

    def __exit__(self, *details: object) -> None:
        """Give the draws back."""
        self._hook.remove()
        _active.mode = None
        super().__exit__(*details)
        self._kept.__exit__(None, None, None)

    def finish(self) -> None:
        """Refuse a batch of single draws that is not complete."""
        if self._pending:
            drawn = self.rows - len(self._pending)
            raise ValueError(f"draws of shape (1, ...) must come {self.rows} at a time, one a row; got {drawn}")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # noqa: ANN001, ANN204
        """Run the operation; if it draws, put the design's numbers into its result."""
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **kwargs)
        names = [argument.name for argument in func._schema.arguments]
        given = {argument.name: argument.default_value for argument in func._schema.arguments}
        given |= dict(zip(names, args, strict=False)) | kwargs
        kind = func.overloadpacket
        if kind not in NORMAL | UNIFORM:
            odds = [given[key] for key in ("p", "dropout_p") if isinstance(given.get(key), (int, float))]
            if 0 in odds or False in (given.get("train"), given.get("training")):
                return func(*args, **kwargs)
            raise ValueError(f"only normal and uniform draws can follow a design; the program calls {kind.__name__!r}")
        result = self._watched(func, args, kwargs, given.get("generator"))
        if not result.is_floating_point():
            raise ValueError(f"only real floating-point draws can follow a design; got {result.dtype}")
        if result.numel() == 0:
            return result
        w = self._next(tuple(result.shape), given.get("generator")).to(result.device)
        if kind in UNIFORM:
            low, high = given.get("from", 0.0), given.get("to", 1.0)
            edge = torch.finfo(result.dtype).eps / 2
            return result.copy_(low + (high - low) * torch.special.ndtr(w.double()).clamp(edge, 1 - edge))
        mean, std = given.get("mean", 0.0), given.get("std", 1.0)
        result.copy_(mean + std * w.to(result.dtype))
        return result

    def _next(self, shape: tuple[int, ...], generator: torch.Generator | None) -> torch.Tensor:
        self.drawn += 1
        if shape in self.shared or self.drawn - 1 in self.shared:
            return self._same_for_all(shape)
        if shape and shape[0] == 1 < self.rows:
            if not self._pending:
                self._pending, self._row_generators = list(self._stream(shape[1:]).split(1)), []
            if generator is None or any(generator is other for other in self._row_generators):
                raise ValueError(f"draws of shape (1, ...) must come from {self.rows} generators, one a row")
            self._row_generators.append(generator)
            if self._pending[0].shape != shape:
                raise ValueError(f"draws (1, ...) of one batch must agree; got {shape} after {self._pending[0].shape}")
            return self._pending.pop(0)
        self.finish()
        if not shape or shape[0] != self.rows:
            raise ValueError(
                f"a draw must have {self.rows} rows, units times members, or a shape named in shared=; got {shape}"
            )
        return self._stream(shape[1:])

    def _same_for_all(self, shape: tuple[int, ...]) -> torch.Tensor:
        rng = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(self._common,)))
        self._common += 1
        return torch.from_numpy(rng.standard_normal(shape, np.float32))

    def _stream(self, shape: tuple[int, ...]) -> torch.Tensor:
        alike = self.start is not None and self.start.shape[1:] == shape
        if self.unchecked and alike and len(shape) == 2 and self.streams == self.rows - 1:
            found = f"{self.rows} draws {(self.rows, *shape)} are as many batches, or images of {self.rows} channels"
            raise ValueError(f"{found}: pass network=, whose input tells, or draw the batch at once")
        values = self.source(self.streams, shape)
        if self.streams == 0:
            self.start = values
        self.streams += 1
        return values

    def _watched(self, func, args, kwargs, generator: torch.Generator | None) -> torch.Tensor:  # noqa: ANN001
        """Run a draw for the shape and layout of its result; refuse a generator that was set back."""
        own = torch.default_generator if generator is None else generator
        known = self._generators.get(id(own))
        if known is not None and not torch.equal(own.get_state(), known[1]):
            raise ValueError(f"the program reseeds its generator between draws: {REPEATS}")
        seeds = [other.initial_seed() for other, _ in self._generators.values() if other is not torch.default_generator]
        if known is None and generator is not None and own.initial_seed() in seeds:
            raise ValueError(f"the program seeds another generator with {own.initial_seed()}: {REPEATS}")
        result = func(*args, **kwargs)
        self._generators[id(own)] = (own, own.get_state())
        return result


def supply(
    rows: int,
    draw: StepNoise | None,
    numbers: Iterator[int],
    start: torch.Tensor | None = None,
    shared: Iterable[int] = (),
) -> Draws:
    """Return the mode in which draws of `rows` rows are the streams `numbers` of `draw`, with `start` as stream 0.

    The draws whose numbers, counted from 0, are in `shared` are the same for all rows and all calls.

    Raises:
        ValueError: inside, if step noise is drawn and there is no `draw`, or a stream has not the shape drawn.
    """

    def source(_: int, shape: tuple[int, ...]) -> torch.Tensor:
        number = next(numbers)
        if number == 0 and start is not None:
            noise = start
        elif draw is not None:
            noise = draw(number, shape)
        else:
            raise ValueError("the sampler draws step noise: it needs draw=, which antinb.sample gives")
        if noise.shape != (rows, *shape):
            raise ValueError(f"the program draws {(rows, *shape)} as stream {number}; got {tuple(noise.shape)}")
        return noise

    return Draws(source, rows, shared)
