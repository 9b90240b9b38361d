"""The house as `CONTRIBUTING.md` draws it: its rooms, the wall, the direction of imports, the size of the face."""

import ast
import inspect
import itertools
import subprocess
import sys
from graphlib import TopologicalSorter
from importlib import import_module
from pathlib import Path

import pytest

import antinb

TESTS = Path(__file__).parent
PACKAGE = TESTS.parent / "antinb"
MODULES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
    if "data" not in path.relative_to(PACKAGE).parts
}
ROOMS = [
    "noise",
    "models",
    "zoo",
    "tasks",
    "workers",
    "sampling",
    "probing",
    "planning",
    "dataset",
    "analysis",
    "reporting",
]
BELOW = {
    "checks": set(),
    "noise": {"checks"},
    "dataset": {"checks", "noise"},
    "models": {"checks", "noise", "dataset"},
    "analysis": {"checks", "noise", "dataset"},
    "zoo": {"checks", "noise", "dataset", "models"},
    "tasks": {"checks", "noise", "dataset", "models", "zoo", "analysis"},
    "workers": {"checks", "models", "zoo"},
    "sampling": {"checks", "noise", "dataset", "workers", "models"},
    "probing": {"checks", "noise", "dataset", "models", "analysis", "sampling"},
    "planning": {"checks", "noise", "dataset", "models", "analysis", "workers", "sampling"},
    "reporting": {"checks", "noise", "dataset", "analysis"},
    "comparing": {"checks", "noise", "models", "zoo", "tasks", "sampling", "dataset", "analysis", "reporting"},
    "exploring": {"checks", "noise", "models", "sampling", "dataset", "analysis", "reporting"},
    "cli": {"checks", "noise", "models", "zoo", "workers", "sampling", "comparing", "dataset", "reporting"},
}
WALLED = [name for name in MODULES if name.split(".")[1:2] in (["noise"], ["dataset"], ["analysis"], ["reporting"])]
HEAVY = {"torch", "diffusers", "zuko", "transformers", "torchvision", "torchmetrics"}


def imports(path):
    """Return the modules that a file imports, at its head or inside a function, as dotted names."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            deeper = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else node.module for name in deeper}
    return found


def room(module):
    return module.split(".")[1] if "." in module else module


def test_the_folder_list_is_the_flow():
    entries = {path.name for path in PACKAGE.iterdir()} - {"__pycache__", "data", "__init__.py", "py.typed"}
    assert entries == {
        *("noise", "models", "zoo", "tasks", "dataset", "analysis", "reporting"),
        *("checks.py", "workers.py", "sampling.py", "probing.py", "planning.py", "comparing.py", "exploring.py"),
        "cli.py",
    }
    assert max(path.read_text().count("\n") for path in MODULES.values()) <= 320


def test_nothing_is_imported_from_a_later_room():
    wrong = [
        f"{module} imports {found}"
        for module, path in MODULES.items()
        if module != "antinb"
        for found in imports(path)
        if found.startswith("antinb.") and room(found) not in BELOW[room(module)] | {room(module)}
    ]
    assert not wrong
    assert "models" not in BELOW["analysis"]
    assert "analysis" not in BELOW["models"]


def test_no_modules_import_each_other_in_a_circle():
    graph = {
        module: {found for found in imports(path) if found.startswith("antinb.")} - {module}
        for module, path in MODULES.items()
        if path.name != "__init__.py"
    }
    order = list(TopologicalSorter(graph).static_order())
    assert set(order) >= set(graph)


def test_no_file_behind_the_wall_names_a_heavy_package():
    assert len(WALLED) > 15
    named = {name: {found.split(".")[0] for found in imports(MODULES[name])} & HEAVY for name in WALLED}
    assert not {name: found for name, found in named.items() if found}


@pytest.mark.slow
def test_what_is_behind_the_wall_loads_without_torch():
    program = f"""
import sys
from importlib import import_module
for name in {WALLED!r}:
    import_module(name)
import antinb
antinb.open, antinb.statistics.measure
print(sorted({HEAVY!r} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_face_is_short_and_an_editor_knows_it():
    assert len(antinb.__all__) == len(set(antinb.__all__)) <= 26
    typed = {
        alias.asname or alias.name
        for block in ast.walk(ast.parse((PACKAGE / "__init__.py").read_text()))
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert typed == set(antinb.__all__)
    assert all(getattr(antinb, name) is not None for name in antinb.__all__)
    assert dir(antinb) == sorted([*antinb.__all__, "__version__"])


def public():
    """Return the public functions and classes, once each, by the module that defines them."""
    found = set()
    for name in MODULES:
        module = import_module(name)
        for key in getattr(module, "__all__", []):
            value = getattr(module, key)
            if inspect.isclass(value) or inspect.isfunction(value):
                found.add(f"{value.__module__}.{value.__qualname__}")
    return sorted(found)


def test_the_public_functions_and_classes_are_counted():
    assert all(hasattr(import_module(name), "__all__") for name in MODULES if name.count(".") == 2)
    assert len(public()) <= 134, "\n".join(public())


def names_used(tree):
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} | {
        node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)
    }


@pytest.mark.parametrize("path", sorted(TESTS.rglob("test_*.py")), ids=lambda path: path.stem)
def test_no_test_is_lost(path):
    """Each function at the top of a file is a test, a fixture, or used somewhere else in that file."""
    tree = ast.parse(path.read_text())
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    lost = []
    for function in functions:
        decorators = "".join(ast.dump(decorator) for decorator in function.decorator_list)
        others = [node for node in tree.body if node is not function]
        used = function.name in set(itertools.chain.from_iterable(map(names_used, others)))
        if not (function.name.startswith("test_") or "fixture" in decorators or used):
            lost.append(function.name)
    assert not lost, f"neither a test, nor a fixture, nor used: {lost}"
    assert len({function.name for function in functions}) == len(functions), "a later function hides an earlier one"


def test_tests_lie_where_what_they_test_lies():
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name not in ("__pycache__", "data")}
    mirrored = {path.parent.name for path in TESTS.rglob("test_*.py")} - {"tests"}
    assert mirrored == folders
    imported = [
        path for path in TESTS.rglob("*.py") for name in imports(path) if name.startswith(("test_", "conftest"))
    ]
    assert not imported


if __name__ == "__main__":
    print(*public(), sep="\n")
