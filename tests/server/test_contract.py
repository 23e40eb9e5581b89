"""Node ids, inputs, their order, and outputs are a public contract: saved workflows depend on them.

After an intended change, write the new snapshot with `UPDATE_CONTRACT=1 pytest tests/server/test_contract.py`; the diff
is then part of the review. New inputs go last.
"""

import json
import os
from pathlib import Path

import pytest

SNAPSHOT = Path(__file__).with_name("node_contract.json")


@pytest.fixture
def nodes(client) -> dict[str, dict]:
    info = client.object_info()
    return {name: node for name, node in info.items() if node["python_module"].endswith("ComfyUI-SViMo")}


def contract(node: dict) -> dict:
    def kind(value):
        return "COMBO" if isinstance(value[0], list) else value[0]

    return {
        group: [[name, kind(value)] for name, value in node["input"].get(group, {}).items()]
        for group in ("required", "optional")
    } | {"outputs": [list(pair) for pair in zip(node["output_name"], node["output"], strict=True)]}


def test_nodes_keep_their_contract(nodes):
    now = {name: contract(node) for name, node in sorted(nodes.items())}
    if os.environ.get("UPDATE_CONTRACT"):
        SNAPSHOT.write_text(json.dumps(now, indent=1) + "\n")
    assert now == json.loads(SNAPSHOT.read_text())


def test_every_node_explains_itself(nodes):
    assert nodes
    for name, node in nodes.items():
        assert name.startswith("SViMo")
        assert node["display_name"] != name
        assert node["description"]
        assert all(node["output_tooltips"]), f"{name} has outputs without a tooltip"
        for group in ("required", "optional"):
            for key, (_, options) in node["input"].get(group, {}).items():
                assert options.get("tooltip"), f"{name}.{key} has no tooltip"
