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
    "pickles",
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
    "windows",
    "export",
    "importing",
]
"""svimo_core from the ground up: a module imports only from those before it."""
LAB = ROOT / "svimo_train"
LAB_ORDER = [
    "data",
    "metrics",
    "judges",
    "clips",
    "truth",
    "scores",
    "tasks",
    "vbench",
    "settings",
    "optimizers",
    "state",
    "sharded_state",
    "recipe",
    "objectives",
    "shards",
    "encoded",
    "text",
    "evaluate",
    "parallel",
    "encode",
    "drawing",
    "on_the_fly",
    "loader",
    "stages",
    "readings",
    "plan",
    "sheets",
    "trainer",
    "judge_training",
    "ablation",
    "data/taco/pickles",
    "data/taco/layout",
    "data/taco/split",
    "data/taco/settings",
    "data/taco/hands",
    "data/taco/video",
    "data/taco/crop",
    "data/taco/scene",
    "data/taco/clips",
    "data/taco/prepare",
    "data/taco/look",
]
"""svimo_train, which stands beside svimo_core and upon it."""
QUEUE = ROOT / "svimo_queue"
QUEUE_ORDER = [
    "patterns",
    "jobs",
    "sheet",
    "outputs",
    "display",
    "batch",
    "workflow",
    "server",
    "run",
    "definitions",
    "engine",
    "cluster",
]
"""svimo_queue: the first six know nothing of what runs the jobs."""


def modules(house: Path) -> dict[str, Path]:
    return {
        path.relative_to(house).with_suffix("").as_posix(): path
        for path in sorted(house.rglob("*.py"))
        if path.name not in ("__init__.py", "__main__.py")
    }


def imports(house: Path, path: Path) -> list[str]:
    """Modules of a house that one of its modules imports, as names in the order's form, and !outside packages."""
    found = []
    package = path.relative_to(house).parent.parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [f"!{alias.name.split('.')[0]}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.append(f"!{node.module.split('.')[0]}")
        elif isinstance(node, ast.ImportFrom):
            base = (*package[: len(package) - node.level + 1], *(node.module or "").split("."))
            base = "/".join(part for part in base if part)
            names = [f"{base}/{alias.name}".lstrip("/") for alias in node.names]
            found += [name if (house / f"{name}.py").exists() else base for name in names]
    return found


OUTSIDE = ("!comfy", "!comfy_api", "!folder_paths", "!nodes", "!dev")


@pytest.mark.parametrize(
    ("house", "order", "outside", "name"),
    [
        *((CORE, ORDER, (*OUTSIDE, "!svimo_train", "!svimo_queue"), name) for name in modules(CORE)),
        *((LAB, LAB_ORDER, (*OUTSIDE, "!svimo_queue"), name) for name in modules(LAB)),
        *((QUEUE, QUEUE_ORDER, (*OUTSIDE, "!svimo_train"), name) for name in modules(QUEUE)),
    ],
)
def test_modules_import_only_from_below(house, order, outside, name):
    """A folder without an order of its own (export, importing, data) is one row, free within itself."""
    row = name if name in order else name.split("/")[0]
    assert row in order, f"give {name} its place in the order of the house"
    below = order[: order.index(row)]
    for imported in imports(house, modules(house)[name]):
        if imported.startswith("!"):
            assert imported not in outside, f"{name} imports {imported[1:]}"
        elif imported.split("/")[0] != row:
            source = imported if imported in order else imported.split("/")[0]
            assert source in below, f"{name} may not import {imported}"


def test_core_and_package_import_without_comfyui():
    code = (
        "import importlib.util, sys\n"
        f"root = r'{ROOT}'\n"
        "start = root + '/__init__.py'\n"
        "spec = importlib.util.spec_from_file_location('pack', start, submodule_search_locations=[root])\n"
        "pack = importlib.util.module_from_spec(spec); sys.modules['pack'] = pack; spec.loader.exec_module(pack)\n"
        "import pack.svimo_core.sampling.pipeline\n"
        "assert not any('svimo_train' in name or 'svimo_queue' in name for name in sys.modules)\n"
        "assert callable(pack.comfy_entrypoint) and not any(name.startswith('comfy') for name in sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT.parent, capture_output=True)
