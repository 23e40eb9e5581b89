"""ComfyUI's page, with this pack in it, in a real browser."""

import os
import shutil
import signal

import pytest

from dev.browser import comfy_page, find_browser
from dev.comfy import EXAMPLES, ROOT, ComfyServer


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    if find_browser() is None:
        # Where `CI` is set there has to be one.
        (pytest.fail if os.environ.get("CI") else pytest.skip)("no browser: install Chromium or Chrome")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    base = tmp_path_factory.mktemp("comfyui")
    (base / "input").mkdir()
    for name in EXAMPLES:
        shutil.copy(ROOT / "assets" / name, base / "input")
    with ComfyServer(base) as server:
        yield server


@pytest.fixture(scope="module", params=[False, True], ids=["classic", "nodes2"])
def page(server, request):
    """The page in both of its ways to draw nodes."""
    with comfy_page(server.url, settings={"Comfy.VueNodes.Enabled": request.param}) as page:
        yield page


@pytest.fixture(autouse=True)
def no_complaints(page):
    """Every test starts with an empty graph and must end without an error in the console or on the page."""
    page.page.evaluate("app.graph.clear()")
    yield
    problems, page.problems = page.problems, []
    assert problems + page.dialogs() == []
