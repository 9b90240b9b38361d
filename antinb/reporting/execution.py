"""Notebooks as programs: papermill on this Python, and how a run ended."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any

import nbformat
import papermill
from jupyter_client.asynchronous.client import AsyncKernelClient
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from jupyter_client.utils import run_sync
from jupyter_core.utils import ensure_event_loop
from nbclient.exceptions import CellTimeoutError
from papermill.engines import NBClientEngine, papermill_engines
from papermill.exceptions import PapermillExecutionError
from tqdm import tqdm

from antinb.reporting import manifest, notebooks, results

__all__: list[str] = []

ENGINE = "antinb"
QUIET = ["--IPKernelApp.log_level=ERROR"]
LONGEST = 300  # characters of a message


class CellError(Exception):
    """A notebook that did not come to its end: in one line where and how, then the source of the cell."""


class _Kernel(AsyncKernelManager):
    """The running Python as a kernel, whatever kernels the machine has."""

    clients: tuple[AsyncKernelClient, ...] = ()

    @property
    def kernel_spec(self) -> KernelSpec:
        start = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        return KernelSpec(argv=start, display_name=notebooks.KERNEL["display_name"], language="python")

    def client(self, **settings: Any) -> AsyncKernelClient:  # noqa: ANN401
        new = super().client(**settings)
        self.clients = (*self.clients, new)
        return new

    def end(self) -> int | None:
        """Stop the process, if need be, and return the exit code that it had before."""
        process = getattr(self.provisioner, "process", None)
        code = process.poll() if process else None
        loop = ensure_event_loop()
        waiting = asyncio.all_tasks(loop)  # left by an interrupt
        for task in waiting:
            task.cancel()
        if waiting:
            loop.run_until_complete(asyncio.gather(*waiting, return_exceptions=True))
        for client in self.clients:
            client.stop_channels()
        if self.has_kernel:
            run_sync(self.shutdown_kernel)(now=True)
            run_sync(self.cleanup_resources)()
        return code


class _Bar(tqdm):
    """A bar that a cell moves by the seconds that it took in the last run, or by 1 where there was none."""

    def __init__(self, name: str, cells: int, seconds: Sequence[float]) -> None:
        known = len(seconds) == cells and sum(seconds) > 0
        self._seconds = list(seconds) if known else []
        *_, total = accumulate(seconds) if known else [cells]  # rounded as the bar's own sum, which ends there
        told = "{percentage:3.0f}%|{bar}| {elapsed}, about {remaining} left" if known else "cell {n_fmt} of {total}"
        super().__init__(total=total, desc=f"Executing {name}", bar_format=f"{{desc}}: {told}", smoothing=0)

    def update(self, n: float | None = 1) -> bool | None:
        return super().update(self._seconds.pop(0) if self._seconds else n)


class _Engine(NBClientEngine):
    """The engine of papermill with that bar."""

    @classmethod
    def execute_managed_notebook(cls, nb_man: Any, kernel_name: str, **settings: Any) -> None:  # noqa: ANN401
        name, seconds = settings.pop("name"), settings.pop("seconds")
        nb_man.pbar = None if sys.stderr is None else _Bar(name, len(nb_man.nb.cells), seconds)
        super().execute_managed_notebook(nb_man, kernel_name, **settings)


papermill_engines.register(ENGINE, _Engine)


def cell_seconds(path: Path, executed: Path, values: Mapping[str, object]) -> list[float]:
    """Return how long each cell of an executed copy took, nothing if its code or its parameters were others."""
    made = notebooks.past_run(executed, path, values)
    if made is None:
        return []
    return [cell.metadata.get("papermill", {}).get("duration") or 0.0 for cell in made.cells]


def execute(
    path: Path,
    folder: Path,
    values: Mapping[str, object],
    *,
    limit: float | None = None,
    seconds: Sequence[float] = (),
) -> Path:
    """Run a notebook through papermill, its report going to `folder`, and return the executed copy there.

    Args:
        path: of the notebook.
        folder: a new one.
        values: of parameters; those that the notebook does not declare are left out.
        limit: seconds that a cell may take, None for any.
        seconds: that each cell took the last time, from which the time left is told.

    Raises:
        CellError: if a cell fails, takes too long or ends the kernel, or no manifest is left by a notebook that takes
            `out_dir`; the copy then holds the cells up to it.
        ValueError: if it is no notebook of Python.
    """
    known, output, kernel = notebooks.declared(path), folder / path.name, _Kernel()
    chosen = {name: value for name, value in values.items() if name in known}
    ended: BaseException | None = None
    try:
        with _environment({results.PLACE: str(folder)}):
            papermill.execute_notebook(
                _escaped(path),
                _escaped(output),
                chosen,
                kernel_name=notebooks.KERNEL["name"],
                language=notebooks.KERNEL["language"],
                km=kernel,
                execution_timeout=limit,
                autosave_cell_every=0,
                extra_arguments=QUIET,
                progress_bar=False,
                engine_name=ENGINE,
                name=path.name,
                seconds=seconds,
            )
    except (PapermillExecutionError, CellTimeoutError, RuntimeError, KeyboardInterrupt) as error:
        ended = error
    finally:
        code = kernel.end()
    cells = _named(output).cells if output.exists() else []
    started = [cell for cell in cells if cell.metadata.get("papermill", {}).get("start_time")]
    ran = [cell for cell in started if cell.cell_type == "code" and cell.source.strip()]
    place = f"{path.name}, cell [{len(ran)}]," if ran else f"{path.name}, at its start,"
    if isinstance(ended, KeyboardInterrupt):
        raise type(ended)(f"{place} was interrupted") from None
    raised = [part for cell in ran for part in cell.outputs if part.output_type == "error"]
    if ended or raised:
        how = _told(raised[-1].ename, raised[-1].evalue) if raised else _ended(ended, code)
        raise CellError(f"{place} {how}", ran[-1].source if ran else "")
    if "out_dir" in known and not (folder / manifest.NAME).exists():
        raise CellError(f"{path.name} takes out_dir and leaves no manifest: it needs report.open(out_dir, ...)", "")
    return output


def _told(kind: str, text: str) -> str:
    """Return in words how a cell ended, from the name and the text of what it raised."""
    if kind == "SystemExit":
        return f"called exit({text})"
    hint = ", for want of memory" if kind == "MemoryError" else ""
    return f"raised {kind}{hint}: {' '.join(text.split())}"[:LONGEST]


def _ended(error: BaseException | None, code: int | None) -> str:
    """Return in words how a cell ended that raised nothing, from the exit code of the kernel's process."""
    if isinstance(error, CellTimeoutError):
        return "took longer than the limit"
    if code is None:
        return f"had no answer of the kernel: {error}"
    if code >= 0:
        return f"ended the kernel with exit code {code}"
    hint = ", as happens where memory runs out" if -code == signal.SIGKILL else ""
    return f"ended as the kernel was killed by {signal.Signals(-code).name}{hint}"


def _escaped(path: Path) -> str:
    """Return a path of which papermill, which formats paths, makes that path."""
    return str(path).replace("{", "{{").replace("}", "}}")


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _named(output: Path) -> nbformat.NotebookNode:
    """Return an executed copy, without widgets, to which the kernel that JupyterLab knows is given."""
    notebook = notebooks.still(notebooks.read(output))
    notebook.metadata["kernelspec"] = nbformat.from_dict(notebooks.KERNEL)
    manifest.write(output, nbformat.writes(notebook) + "\n")
    return notebook
