"""Write the sha256 of every shipped file into `data/registry.json`; the other entries are kept.

Run `python data/recipes/register.py`.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

DATA = Path(__file__).resolve().parents[1]
LOADED = ("*.safetensors", "*config.json", "*/*.safetensors", "*/*config.json")

registry = json.loads((DATA / "registry.json").read_text(encoding="utf-8"))
for name, entry in registry.items():
    folder = DATA / "models" / name
    files = sorted(path for pattern in LOADED for path in folder.glob(pattern))
    entry["files"] = {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
(DATA / "registry.json").write_text(json.dumps(registry, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
