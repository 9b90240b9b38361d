"""The site, without network: `python -m sphinx -W notebooks DEST`, after `pip install ".[site]"`."""

import ast
import inspect
from importlib import metadata
from pathlib import Path

import nbformat
from docutils import nodes
from docutils.parsers.rst import Directive
from latex2mathml.converter import convert
from sphinx.application import Sphinx

import antinb
from antinb.reporting import texts

NOTEBOOKS = sorted(Path(__file__).parent.glob("[0-9]*.ipynb"))

project = "antinb"
author = "The antinb developers"
release = metadata.version("antinb")
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
exclude_patterns = ["out", "jupyter_execute", "**.ipynb_checkpoints"]
html_css_files = html_static_path = ["site.css"]
html_theme = "sphinx_book_theme"
html_title = f"antinb {release}"
html_theme_options = {"show_navbar_depth": 1, "navbar_persistent": [], "use_download_button": True}
html_context = {"default_mode": "auto"}
html_sourcelink_suffix = ""
html_math_renderer = "mathml"
nb_execution_mode = "off"
nb_merge_streams = True
myst_enable_extensions = ["dollarmath", "amsmath"]
add_module_names = False
autodoc_default_options = {"members": True}
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
default_role = "literal"
python_maximum_signature_line_length = 90
toc_object_entries_show_parents = "hide"


class Gallery(Directive):
    """Every figure of the committed notebooks, with its caption and its BibTeX entry."""

    def run(self) -> list[nodes.Node]:
        """Return a figure and a listing for each."""
        found = []
        for path in NOTEBOOKS:
            self.state.document.settings.record_dependencies.add(str(path))
            notebook = nbformat.read(path, 4)
            outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
            about = {"versions": _versions(outputs), "profile": "full", "date": str(texts.YEAR)}
            for shown, under in zip(outputs, outputs[1:], strict=False):
                id, _, caption = under.get("data", {}).get("text/plain", "").partition(". ")  # noqa: A001
                if id.startswith("fig-") and "image/png" in shown.get("data", {}):
                    found += _figure(path, id, caption, shown.data["image/png"], about)
        return found


def _versions(outputs: list[nbformat.NotebookNode]) -> dict[str, str]:
    printed = [output.get("data", {}).get("text/plain", "") for output in outputs]
    return ast.literal_eval([text for text in printed if text.startswith("{'antinb'")][-1])


def _figure(path: Path, id: str, caption: str, png: str, about: dict[str, object]) -> list[nodes.Node]:  # noqa: A002
    image = nodes.image(uri=f"data:image/png;base64,{png}", alt=caption)
    link = nodes.reference("", path.stem, refuri=f"{path.stem}.html")
    under = nodes.caption("", "", nodes.strong("", id), nodes.Text(f". {caption} From "), link, nodes.Text("."))
    entry = texts.entry(id, caption, f"Figure {id} of {path.stem}", about)
    return [nodes.figure("", image, under, ids=[id]), nodes.literal_block(entry, entry, language="bibtex")]


def _inline(translator: nodes.NodeVisitor, node: nodes.Element) -> None:
    translator.body.append(convert(node.astext()))  # pyright: ignore[reportAttributeAccessIssue]
    raise nodes.SkipNode


def _block(translator: nodes.NodeVisitor, node: nodes.Element) -> None:
    translator.body.append(f"<p>{convert(node.astext(), display='block')}</p>")  # pyright: ignore[reportAttributeAccessIssue]
    raise nodes.SkipNode


def _reference(_: Sphinx, page: str, source: list[str]) -> None:
    if page == "reference":
        for name in antinb.__all__:
            found = getattr(antinb, name)
            what = f"automodule:: {found.__name__}" if inspect.ismodule(found) else f"autofunction:: antinb.{name}"
            source[0] += f"{name}\n{'-' * len(name)}\n\n.. {what}\n\n"


def setup(app: Sphinx) -> None:
    """Register the gallery and the reference, and formulas as MathML, which browsers draw without a script."""
    app.add_directive("gallery", Gallery)
    app.connect("source-read", _reference)
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
