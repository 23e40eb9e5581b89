"""One real ComfyUI for the whole test session, with this pack linked into it."""

import signal

import pytest

from dev.comfy import ComfyClient, ComfyServer


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    # A session that is told to end still stops the ComfyUI it started.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with ComfyServer(tmp_path_factory.mktemp("comfyui")) as server:
        yield server


@pytest.fixture
def client(server):
    with ComfyClient(server.url) as client:
        yield client
