"""Run a piece of test code inside ComfyUI's own process environment, with the pack imported as `pack`.

Some things cannot be asked through the API: how weights are offloaded, what a text encoder really sees.
"""

import subprocess
import sys
import textwrap

from dev.comfy import ROOT, find_comfyui

PRELUDE = f"""
import importlib, importlib.util, sys
sys.path.insert(0, {str(find_comfyui())!r})
sys.argv = ["main.py", "--cpu"]
import comfy.options
comfy.options.enable_args_parsing()
import torch
spec = importlib.util.spec_from_file_location(
    "pack", {str(ROOT / "__init__.py")!r}, submodule_search_locations=[{str(ROOT)!r}]
)
pack = importlib.util.module_from_spec(spec)
sys.modules["pack"] = pack
spec.loader.exec_module(pack)
importlib.import_module("pack.nodes")
torch.manual_seed(0)
"""


def run_inside(code: str, *arguments: str) -> str:
    """What the code prints; its `arguments` are in `args`. A failure fails the test with its traceback."""
    program = PRELUDE + f"args = {list(arguments)!r}\n" + textwrap.dedent(code)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout
