"""Notebooks as files: their parameters, checked before they run, and clean copies of what ran."""

from __future__ import annotations

import ast
import base64
import difflib
import hashlib
import io
import re
import sys
import tokenize
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import nbformat
from PIL import Image
from pydantic import TypeAdapter, ValidationError

from antinb.reporting import manifest

__all__: list[str] = []

TYPES = {kind.__name__: kind for kind in (int, float, str, bool, list, dict)}
EXAMPLES = {"int": "64", "float": "0.5", "str": "text", "bool": "true", "list": "'[1, 2]'", "dict": """'{"a": 1}'"""}
KERNEL = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
LARGE = 20_000  # bytes
QUOTED = re.compile(r'"([^"]*)"')
NUMBER = r"-?\d+(?:\.\d+)?"
BETWEEN = re.compile(rf"(?P<low>{NUMBER}) to (?P<high>{NUMBER})")
FROM = re.compile(rf"at least (?P<low>{NUMBER})")
OF_RUNS = {"papermill", "execution", "widgets", "ExecuteTime"}
WIDGET = "application/vnd.jupyter.widget-view+json"


class Parameter(NamedTuple):
    """The type of a parameter as it is written, None where there is none, its default, and the comment beside it."""

    kind: str | None
    default: ast.expr
    comment: str


def read(path: Path) -> nbformat.NotebookNode:
    """Return a notebook; ValueError if there is none or it is of another language."""
    if not path.is_file() or path.suffix != ".ipynb":
        raise ValueError(f"no notebook is at {str(path)!r}")
    faults: dict[str, Exception] = {}
    try:
        notebook = nbformat.read(path, 4, capture_validation_error=faults)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, nbformat.ValidationError) as error:
        faults["reading"] = error
    if faults:
        reason = " ".join(str(*faults.values()).split())[:100]
        raise ValueError(f"{str(path)!r} is no notebook: {reason}")
    kernel, language = (notebook.metadata.get(key, {}) for key in ("kernelspec", "language_info"))
    found = kernel.get("language") or language.get("name") or KERNEL["language"]
    if found != KERNEL["language"]:
        raise ValueError(f"{path.name} is in {found!r}; antinb run executes Python")
    return notebook


def declared(path: Path) -> dict[str, Parameter]:
    """Return the parameters of a notebook, those that the cell tagged `parameters` assigns.

    Raises:
        ValueError: if there is no such notebook, several cells are tagged, the cell is no Python, or a default is
            computed from another parameter, and would be stale once that is set.
    """
    cells = [cell for cell in read(path).cells if "parameters" in cell.metadata.get("tags", ())]
    if len(cells) > 1:
        raise ValueError(f"{path.name} has {len(cells)} cells tagged 'parameters': one may have that tag")
    found: dict[str, Parameter] = {}
    source = "\n".join(cell.source for cell in cells)
    try:
        lines = ast.parse(source).body
    except SyntaxError as error:
        raise ValueError(f"{path.name}: the cell tagged 'parameters' is no Python: {error.msg}") from None
    for line in lines:
        rest = source.split("\n")[(line.end_lineno or 1) - 1].encode()[line.end_col_offset :].decode()
        comment = rest.partition("#")[2]
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name) and line.value:
            found[line.target.id] = Parameter(ast.unparse(line.annotation), line.value, comment)
        elif isinstance(line, ast.Assign) and isinstance(line.targets[0], ast.Name):
            found[line.targets[0].id] = Parameter(None, line.value, comment)
    for name, parameter in found.items():
        used = {part.id for part in ast.walk(parameter.default) if isinstance(part, ast.Name)} & found.keys()
        if used:
            raise ValueError(f"{path.name} computes {name!r} from {min(used)!r}: move that line to the next cell")
    return found


def told(path: Path) -> str:
    """Return the parameters of a notebook as they are declared, a line each. Raises as `declared`."""
    return "\n".join(
        f"{name}{f': {kind}' if kind else ''} = {ast.unparse(default)}{f'  #{comment}' if comment else ''}"
        for name, (kind, default, comment) in declared(path).items()
    )


def parameters(path: Path, given: Mapping[str, str]) -> dict[str, object]:
    """Return the given parameters of a notebook, converted to the types that its cell declares.

    A declaration is one line, `name: type = default  # comment`, the type one of int, float, str, bool, list,
    dict or `Optional` of those. A comment may say what values there are: `8 to 1000`, `at least 8`, or, at its start,
    `"smoke" (a minute) or "full"`.

    Raises:
        ValueError: as `declared`, and if a name is not declared (with a close match), or a value is not of its type or
            not one that the comment allows.
    """
    known = declared(path)
    for name in given:
        if name not in known:
            close = difflib.get_close_matches(name.partition("=")[0], known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"it has {', '.join(known) or 'none'}"
            raise ValueError(f"{path.name} has no parameter {name!r}; {hint}")
    return {name: _convert(path.name, name, known[name], text) for name, text in given.items()}


def _convert(notebook: str, name: str, parameter: Parameter, text: str) -> object:
    default = ast.unparse(parameter.default)
    if parameter.kind is None:
        likely = type(parameter.default.value).__name__ if isinstance(parameter.default, ast.Constant) else ""
        example = f"{name}: {likely if likely in TYPES else 'Optional[int]'} = {default}"
        raise ValueError(f"{notebook} declares {name!r} without a type; write {example}")
    union = re.fullmatch(r"(\w+) \| None|None \| (\w+)", parameter.kind)
    if union:
        raise ValueError(
            f"{notebook} declares {name!r} as {parameter.kind}, which papermill does not read; "
            f"write {name}: Optional[{union[1] or union[2]}] = {default}"
        )
    optional = re.fullmatch(r"(?:typing\.)?Optional\[(\w+)\]", parameter.kind)
    kind = optional[1] if optional else parameter.kind
    if kind not in TYPES:
        raise ValueError(f"{notebook} declares {name!r} as {parameter.kind}; a parameter is one of {', '.join(TYPES)}")
    if optional and text == "None":
        return None
    adapter = TypeAdapter(TYPES[kind])
    try:
        value = adapter.validate_json(text) if kind in ("list", "dict") else adapter.validate_strings(text)
        return _allowed(notebook, name, value, parameter.comment)
    except ValidationError:
        example = f"-p {name} {EXAMPLES[kind]}{f' or -p {name} None' if optional else ''}"
        raise ValueError(f"{notebook}: {name!r} is {parameter.kind}, as in {example}; got {text!r}") from None


def _allowed(notebook: str, name: str, value: object, comment: str) -> object:
    """Return a value if the comment of its declaration allows it, otherwise raise a ValueError."""
    choices = QUOTED.findall(comment) if comment.strip().startswith('"') and ' or "' in comment else []
    if choices and value not in choices:
        raise ValueError(f"{notebook}: {name!r} is one of {', '.join(choices)}; got {value!r}")
    bounds = BETWEEN.search(comment) or FROM.search(comment)
    if bounds and isinstance(value, (int, float)):
        low, high = float(bounds["low"]), float(bounds.groupdict().get("high") or "inf")
        if not low <= value <= high:
            raise ValueError(f"{notebook}: {name!r} is {bounds[0]}; got {value}")
    return value


def sources_hash(notebook: nbformat.NotebookNode) -> str:
    """Return the sha256 of the code, which neither outputs nor prose, comments or given parameters change."""
    code = (_without_comments(cell.source) for cell in _own(notebook) if cell.cell_type == "code")
    return hashlib.sha256("\0".join(code).encode()).hexdigest()


def past_run(executed: Path, path: Path, values: Mapping[str, object]) -> nbformat.NotebookNode | None:
    """Return an executed copy if it is of a notebook's present code with these parameters, `out_dir` aside."""
    try:
        made = read(executed)
    except ValueError:
        return None
    both = made.metadata.get("papermill", {}).get("parameters", {}), values
    first, second = ({key: value for key, value in part.items() if key != "out_dir"} for part in both)
    return made if first == second and sources_hash(made) == sources_hash(read(path)) else None


def _own(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    """Return the cells that papermill did not inject."""
    return [cell for cell in notebook.cells if "injected-parameters" not in cell.metadata.get("tags", [])]


def _without_comments(source: str) -> str:
    lines = source.split("\n")
    try:
        tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    except (tokenize.TokenError, SyntaxError):  # a magic of IPython
        return source
    for token in tokens:
        if token.type == tokenize.COMMENT:
            lines[token.start[0] - 1] = lines[token.start[0] - 1][: token.start[1]].rstrip()
    return "\n".join(lines)


def write_back(executed: Path, path: Path) -> None:
    """Put the outputs of an executed notebook into its source, without traces of the run, progress bars or paths.

    Paths are those of this machine's own folders: where the command runs, the home folder, Python's. The notebook's
    metadata then are those that JupyterLab writes with this Python, so that it opens the notebook unchanged, and
    `antinb.sources_sha256`: outputs are stale when it does not fit.
    """
    notebook = still(read(executed))
    notebook.cells = _own(notebook)
    _forget(notebook.metadata)
    for cell in notebook.cells:
        _forget(cell.metadata)
        if cell.cell_type == "code":
            kept = [output for output in cell.outputs if output.get("name") != "stderr"]
            cell.outputs = [_clean(output) for output in kept]
    numbered = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for count, cell in enumerate(numbered, 1):
        cell.execution_count = count
        for output in cell.outputs:
            if output.output_type == "execute_result":
                output.execution_count = count
    about = {"kernelspec": KERNEL, "antinb": {"sources_sha256": sources_hash(notebook)}}
    notebook.metadata |= nbformat.from_dict(about)
    manifest.write(path.resolve(), nbformat.writes(notebook) + "\n")


def _forget(metadata: nbformat.NotebookNode) -> None:
    for key in [key for key in metadata if key in OF_RUNS or (key == "tags" and not metadata[key])]:
        del metadata[key]


def still(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Leave out the widgets, which need a kernel: progress bars, and those beside which a picture stands for them."""
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if output.get("data", {}).pop(WIDGET, None) and "image/png" not in output.data:
                output.data.clear()
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("data") != {}]
    return notebook


def _clean(output: nbformat.NotebookNode) -> nbformat.NotebookNode:
    if "text" in output:
        output.text = _without_paths(output.text)
    for kind, content in output.get("data", {}).items():
        if kind.startswith("text/") and isinstance(content, str):
            output.data[kind] = _without_paths(content)
        elif kind == "image/png":
            output.data[kind] = compressed(content)
    return output


def _without_paths(text: str) -> str:
    folders = {Path.home(), Path.cwd(), Path(sys.prefix), Path(sys.base_prefix), Path(__file__).parents[2]}
    own = sorted((str(folder) for folder in folders if len(folder.parts) > 1), key=len, reverse=True)
    return re.sub(rf"(?<![\w./:~-])(?:{'|'.join(map(re.escape, own))})(?![\w-])", "...", text) if own else text


def compressed(png: str) -> str:
    """Return the same picture in fewer bytes: a palette if that is exact, no alpha channel where all is opaque.

    A picture that is still larger than LARGE bytes keeps its 256 nearest colours.
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
