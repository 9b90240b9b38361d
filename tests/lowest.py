"""Print the lowest versions that `pyproject.toml` allows, as requirements: `python tests/lowest.py`.

The libraries that load folders of others, of which the tests name two, are among them.
torch is left out: its oldest release may have no build for the CPU where the tests run.
"""

import re
import tomllib
from pathlib import Path

PROJECT = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]

LOADERS = [name for name in PROJECT["optional-dependencies"]["test"] if name.startswith(("accelerate", "transformers"))]

for requirement in [*PROJECT["dependencies"], *LOADERS]:
    name, lowest = re.fullmatch(r"([\w-]+(?:\[\w+\])?)>=([\d.]+).*", requirement).groups()
    if name != "torch":
        print(f"{name}=={lowest}")
