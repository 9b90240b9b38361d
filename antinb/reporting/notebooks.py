"""Notebooks as programs: parameters checked before, papermill in between, clean copies after."""

from __future__ import annotations

import base64
import difflib
import hashlib
import io
import json
import os
import re
import sys
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import nbformat
import papermill
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillExecutionError
from PIL import Image
from pydantic import TypeAdapter, ValidationError

from antinb.reporting import results

__all__: list[str] = []

TYPES = {kind.__name__: kind for kind in (int, float, str, bool, list, dict)}
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
QUIET = ["--IPKernelApp.log_level=ERROR"]
LARGE = 150_000  # bytes
HIDDEN = re.compile(r"/(?:root|home|work|tmp|Users|private|var)/[^\s\"']*")


class CellError(RuntimeError):
    """A cell that failed: its number, its source and what it raised."""


def parameters(path: Path, given: Mapping[str, str]) -> dict[str, object]:
    """Return the given parameters of a notebook, converted to the types that its cell declares.

    A declaration is one line, `name: type = default`, the type one of int, float, str, bool, list,
    dict or `Optional` of those.

    Raises:
        ValueError: if there is no such notebook, a name is not declared (with a close match), or a
            value is not of its type.
    """
    if not path.is_file() or path.suffix != ".ipynb":
        raise ValueError(f"no notebook is at {str(path)!r}")
    declared = papermill.inspect_notebook(str(path))
    values = {}
    for name, text in given.items():
        if name not in declared:
            close = difflib.get_close_matches(name, declared, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"it has {', '.join(declared)}"
            raise ValueError(f"{path.name} has no parameter {name!r}; {hint}")
        values[name] = _convert(path.name, name, declared[name]["inferred_type_name"], text)
    return values


def _convert(notebook: str, name: str, declared: str, text: str) -> object:
    optional = re.fullmatch(r"Optional\[(\w+)\]", declared)
    kind = TYPES.get(optional[1] if optional else declared)
    if kind is None:
        raise ValueError(f"{notebook} declares {name!r} as {declared!r}; a parameter is one of {', '.join(TYPES)}")
    if optional and text == "None":
        return None
    adapter = TypeAdapter(kind)
    try:
        return adapter.validate_json(text) if kind in (list, dict) else adapter.validate_strings(text)
    except ValidationError:
        raise ValueError(f"{notebook}: parameter {name!r} must be {declared}; got {text!r}") from None


def execute(path: Path, folder: Path, values: Mapping[str, object]) -> Path:
    """Run a notebook through papermill, its report going to `folder`, and return the executed copy there.

    The kernel is this Python, whatever kernels the machine has.

    Raises:
        CellError: if a cell fails or ends the kernel, or no manifest is left by a notebook that takes `out_dir`; the
            copy then holds the cells up to it.
        ValueError: if the notebook is of another language.
    """
    known, output = papermill.inspect_notebook(str(path)), folder / path.name
    language = nbformat.read(path, 4).metadata.get("kernelspec", {}).get("language", "python")
    if language != "python":
        raise ValueError(f"{path.name} is in {language}; antinb run executes Python")
    chosen = {name: value for name, value in values.items() if name in known}
    with _own_kernel() as kernel, _environment({results.PLACE: str(folder)}):
        try:
            papermill.execute_notebook(
                str(path), str(output), chosen, kernel_name=kernel, autosave_cell_every=0, extra_arguments=QUIET
            )
        except DeadKernelError:
            raise CellError(f"{path.name}: the kernel was killed, perhaps for want of memory") from None
        except PapermillExecutionError as error:
            place = f"{path.name}, cell {error.exec_count}"
            raise CellError(f"{place}:\n{error.source}\n{error.ename}: {error.evalue}") from None
        finally:
            _name_kernel(output)
    for number, cell in enumerate(nbformat.read(output, 4).cells, 1):
        if any(part.output_type == "error" for part in cell.get("outputs", ())):
            raise CellError(f"{path.name} was stopped in cell {number}:\n{cell.source}")
    if "out_dir" in known and not (folder / "manifest.json").exists():
        raise CellError(f"{path.name} takes out_dir and leaves no manifest: it needs report.open(out_dir, ...)")
    return output


@contextmanager
def _own_kernel() -> Iterator[str]:
    """Make the running Python known as a kernel of a new name for the time of a run."""
    with tempfile.TemporaryDirectory() as place:
        name = f"antinb-{uuid.uuid4().hex[:8]}"
        folder = Path(place, "kernels", name)
        folder.mkdir(parents=True)
        start = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        kernel = {"argv": start, "display_name": "Python 3", "language": "python"}
        (folder / "kernel.json").write_text(json.dumps(kernel))
        paths = os.pathsep.join(filter(None, (place, os.environ.get("JUPYTER_PATH"))))
        with _environment({"JUPYTER_PATH": paths}):
            yield name


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


def _name_kernel(output: Path) -> None:
    """Give an executed copy the kernel that JupyterLab knows."""
    if output.exists():
        notebook = nbformat.read(output, 4)
        notebook.metadata["kernelspec"] = nbformat.from_dict(KERNEL)
        nbformat.write(notebook, output)


def sources_hash(notebook: nbformat.NotebookNode) -> str:
    """Return the sha256 of the code, which neither outputs nor prose change."""
    code = (cell.source for cell in notebook.cells if cell.cell_type == "code")
    return hashlib.sha256("\0".join(code).encode()).hexdigest()


def write_back(executed: Path, path: Path) -> None:
    """Put the outputs of an executed notebook into its source, without run metadata, progress bars or paths.

    The notebook's metadata then hold `antinb.sources_sha256`: outputs are stale when it does not fit.
    """
    notebook = nbformat.read(executed, 4)
    notebook.cells = [cell for cell in notebook.cells if "injected-parameters" not in cell.metadata.get("tags", [])]
    for cell in notebook.cells:
        tags = cell.metadata.get("tags", [])
        cell.metadata = nbformat.from_dict({"tags": tags} if tags else {})
        if cell.cell_type == "code":
            cell.outputs = [_clean(output) for output in cell.outputs if _keep(output)]
    numbered = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for count, cell in enumerate(numbered, 1):
        cell.execution_count = count
        for output in cell.outputs:
            if output.output_type == "execute_result":
                output.execution_count = count
    about = {"kernelspec": KERNEL, "language_info": {"name": "python"}}
    notebook.metadata = nbformat.from_dict(about | {"antinb": {"sources_sha256": sources_hash(notebook)}})
    results.write(path, nbformat.writes(notebook) + "\n")


def _keep(output: nbformat.NotebookNode) -> bool:
    progress = "application/vnd.jupyter.widget-view+json" in output.get("data", {})
    return not progress and output.get("name") != "stderr"


def _clean(output: nbformat.NotebookNode) -> nbformat.NotebookNode:
    if "text" in output:
        output.text = HIDDEN.sub("...", output.text)
    for kind, content in output.get("data", {}).items():
        if kind.startswith("text/") and isinstance(content, str):
            output.data[kind] = HIDDEN.sub("...", content)
        elif kind == "image/png":
            output.data[kind] = _compressed(content)
    return output


def _compressed(png: str) -> str:
    """Return the same picture in fewer bytes: a palette if that is exact, no alpha channel where all is opaque.

    A picture that is still larger than LARGE bytes, a sheet of many images, keeps its 256 nearest colours.
    """
    image = Image.open(io.BytesIO(base64.b64decode(png)))
    opaque = image.mode == "RGB" or (image.mode == "RGBA" and image.getchannel("A").getextrema() == (255, 255))
    exact = image.convert("RGB") if opaque else image
    packed = _packed(exact.quantize(256, dither=Image.Dither.NONE) if opaque and exact.getcolors(256) else exact)
    if opaque and len(packed) > LARGE:
        packed = _packed(exact.quantize(256, dither=Image.Dither.NONE))
    return base64.b64encode(packed).decode()


def _packed(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return file.getvalue()
