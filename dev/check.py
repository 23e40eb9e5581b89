"""The static checks of `make lint` that no ready-made linter does. Run as `python -m dev.check`."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import tomlkit

from dev.comfy import ROOT, find_comfyui

SOURCES = {".css", ".js", ".mjs", ".py", ".toml", ".yaml"}

UNSHIPPED = {"benchmarks", "dev", "docs", "tests"}
COMES_WITH_COMFYUI = {"PIL", "numpy", "torch"}
MODULES = {"opencv-python": "cv2"}
"""Of requirements whose module has another name."""


def project_files() -> list[Path]:
    """Every file that is, or could be, committed."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    return [path for name in listing.stdout.split("\0") if name and (path := ROOT / name).is_file()]


def sources_are_ascii() -> list[str]:
    """Sources that a Windows console or editor could garble."""
    problems = []
    for path in project_files():
        if path.suffix in SOURCES:
            for number, line in enumerate(path.read_bytes().splitlines(), 1):
                if not line.isascii():
                    problems.append(f"{path.relative_to(ROOT)}:{number}: not ASCII")
    return problems


def json_files_parse() -> list[str]:
    """Workflows and the like that nothing could load."""
    problems = []
    for path in project_files():
        if path.suffix == ".json":
            try:
                json.loads(path.read_text(encoding="utf-8"))
            except ValueError as error:
                problems.append(f"{path.relative_to(ROOT)}: {error}")
    return problems


def requirements_agree() -> list[str]:
    """Differences between pyproject.toml and requirements.txt, and requirements that could change what came
    with ComfyUI.
    """
    declared = tomlkit.parse((ROOT / "pyproject.toml").read_text())["project"]["dependencies"].unwrap()
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    listed = [line for line in lines if line and not line.startswith("#")]
    problems = [f"{line}: ranges only" for line in listed if "==" in line]
    problems += [f"{line}: comes with ComfyUI" for line in listed if re.match(r"(torch|numpy)", line)]
    if declared != listed:
        problems.append(f"requirements.txt lists {listed}, but pyproject.toml {declared}")
    return problems


def imports_are_declared() -> list[str]:
    """Packages that what ships imports without requiring them, and the other way round."""
    project = tomlkit.parse((ROOT / "pyproject.toml").read_text())["project"].unwrap()
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    names = [re.match(r"[\w-]+", requirement)[0] for group in groups for requirement in group]
    declared = {MODULES.get(name, name) for name in names}
    own = {path.stem for folder in (ROOT, find_comfyui()) for path in folder.iterdir()}

    imported = {}
    for path in project_files():
        place = path.relative_to(ROOT)
        if path.suffix == ".py" and place.parts[0] not in UNSHIPPED:
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Import):
                    modules = [alias.name for alias in node.names]
                elif isinstance(node, ast.ImportFrom) and not node.level:
                    modules = [node.module]
                else:
                    continue
                imported |= {module.split(".")[0]: f"{place}:{node.lineno}" for module in modules}
    known = declared | own | COMES_WITH_COMFYUI | sys.stdlib_module_names
    problems = [f"{where}: {name} is not required" for name, where in imported.items() if name not in known]
    return problems + [f"pyproject.toml: {name} is never imported" for name in declared - set(imported)]


def ruff_versions_agree() -> list[str]:
    """Differences between the ruff of `make lint` and the one of pre-commit."""
    versions = {
        name: set(re.findall(r"ruff==([\d.]+)", (ROOT / name).read_text()))
        for name in ("dev/requirements.txt", ".pre-commit-config.yaml")
    }
    return [] if len(set.union(*versions.values())) == 1 else [f"more than one ruff version: {versions}"]


def registry_accepts() -> list[str]:
    """Complaints of `comfy node validate`, whose warnings leave its exit status at 0."""
    validation = subprocess.run(
        [Path(sys.executable).with_name("comfy"), "--skip-prompt", "node", "validate"],
        cwd=ROOT,
        env={**os.environ, "DO_NOT_TRACK": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    output = validation.stdout + validation.stderr
    return [f"comfy node validate:\n{output}"] if validation.returncode or "warning" in output.lower() else []


CHECKS = (
    sources_are_ascii,
    json_files_parse,
    requirements_agree,
    imports_are_declared,
    ruff_versions_agree,
    registry_accepts,
)


def main() -> int:
    """Runs every check and reports what it finds; the exit status is the number of checks that failed."""
    failed = 0
    for check in CHECKS:
        problems = check()
        failed += bool(problems)
        print(f"{check.__name__}: {'FAILED' if problems else 'ok'}", *problems, sep="\n  ")
    return failed


if __name__ == "__main__":
    sys.exit(main())
