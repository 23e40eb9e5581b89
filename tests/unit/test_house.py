"""The floors of the house: what may import what, and what must stay out of the sources."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CORE = ROOT / "svimo_core"
ORDER = [
    "config",
    "files",
    "once",
    "motion",
    "render",
    "rasterize",
    "schedule",
    "normalization",
    "model/layers",
    "model/mmdit",
    "model/alignment",
    "model/interaction",
    "model/vae",
    "model/drawing",
    "model/text",
    "weights",
    "cogvideox",
    "checkpoint",
    "sampling/latents",
    "sampling/reader",
    "sampling/painter",
    "sampling/guidance",
    "sampling/sampler",
    "sampling/pipeline",
    "tracks",
    "hand_rig",
    "mano",
    "rigged",
    "clean",
    "export",
    "importing",
    "metrics",
    "data",
    "judges",
    "evaluate",
    "train",
]
"""svimo_core from the ground up: a module imports only from those before it."""


def modules() -> dict[str, Path]:
    return {
        path.relative_to(CORE).with_suffix("").as_posix(): path
        for path in sorted(CORE.rglob("*.py"))
        if path.name not in ("__init__.py", "__main__.py")
    }


def imports(path: Path) -> list[str]:
    """Modules of svimo_core that a module imports, as names in ORDER's form, and outside packages."""
    found = []
    package = path.relative_to(CORE).parent.parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [f"!{alias.name.split('.')[0]}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.append(f"!{node.module.split('.')[0]}")
        elif isinstance(node, ast.ImportFrom):
            base = (*package[: len(package) - node.level + 1], *(node.module or "").split("."))
            base = "/".join(part for part in base if part)
            names = [f"{base}/{alias.name}".lstrip("/") for alias in node.names]
            found += [name if (CORE / f"{name}.py").exists() else base for name in names]
    return found


@pytest.mark.parametrize("name", modules())
def test_modules_import_only_from_below(name):
    """A folder without an order of its own (export, data, train) is one row, free within itself."""
    row = name if name in ORDER else name.split("/")[0]
    assert row in ORDER, f"give {name} its place in the order of the house"
    below = ORDER[: ORDER.index(row)]
    for imported in imports(modules()[name]):
        if imported.startswith("!"):
            outside = ("!comfy", "!comfy_api", "!folder_paths", "!nodes", "!dev")
            assert imported not in outside, f"{name} imports {imported[1:]}"
        elif imported.split("/")[0] != row:
            source = imported if imported in ORDER else imported.split("/")[0]
            assert source in below, f"{name} may not import {imported}"


def test_core_and_package_import_without_comfyui():
    code = (
        "import importlib.util, sys\n"
        f"root = r'{ROOT}'\n"
        "start = root + '/__init__.py'\n"
        "spec = importlib.util.spec_from_file_location('pack', start, submodule_search_locations=[root])\n"
        "pack = importlib.util.module_from_spec(spec); sys.modules['pack'] = pack; spec.loader.exec_module(pack)\n"
        "import pack.svimo_core.sampling.pipeline\n"
        "assert callable(pack.comfy_entrypoint) and not any(name.startswith('comfy') for name in sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT.parent, capture_output=True)
