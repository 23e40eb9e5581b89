"""One real ComfyUI for the whole test session, with this pack linked into it."""

import shutil
import signal
from pathlib import Path

import pytest

from dev.comfy import EXAMPLES, ROOT, ComfyClient, ComfyServer


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    # A session that is told to end still stops the ComfyUI it started.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    base = tmp_path_factory.mktemp("comfyui")
    for folder in ("custom_nodes", "input", "models/svimo"):
        (base / folder).mkdir(parents=True)
    for nodes in ("broken_image.py", "queue_nodes.py"):
        shutil.copy(Path(__file__).with_name(nodes), base / "custom_nodes")
    for name in EXAMPLES:
        shutil.copy(ROOT / "assets" / name, base / "input")
    with ComfyServer(base) as server:
        yield server


@pytest.fixture
def client(server):
    with ComfyClient(server.url) as client:
        yield client
