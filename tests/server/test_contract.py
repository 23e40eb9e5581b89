"""Node ids, inputs, their order, and outputs are a public contract: saved workflows depend on them.

After an intended change, write the new snapshot with `UPDATE_CONTRACT=1 pytest tests/server/test_contract.py`; the diff
is then part of the review. New inputs go last.
"""

import json
import os
from pathlib import Path

import pytest

from dev.help import LATER_OUTPUTS

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


def test_nodes_keep_their_contract(client, nodes):
    now = {name: contract(node) for name, node in sorted(nodes.items())}
    if os.environ.get("UPDATE_CONTRACT"):
        SNAPSHOT.write_text(json.dumps(now, indent=1) + "\n")
    expected = json.loads(SNAPSHOT.read_text())
    if "Preview3DAdvanced" in client.object_info():  # newer than the snapshot's 0.3.75
        for name, outputs in LATER_OUTPUTS.items():
            expected[name]["outputs"] += [[output, kind] for output, kind, _ in outputs]
    assert now == expected


def test_the_search_finds_nodes_by_other_words(client, nodes):
    known = {name for name, node in nodes.items() if node.get("search_aliases")}
    if "search_aliases" not in client.object_info()["KSampler"]:  # ComfyUI 0.3.75
        assert not known
        return
    for words, name in {
        "mocap": "SViMoImportMotion",
        "3d viewer": "SViMoMotionViewer",
        "bvh": "SViMoSaveBVH",
        "cogvideo": "SViMoSampler",
        "mm-dit": "SViMoDiffusionModelLoader",
        "hand object interaction": "SViMoCheckpointLoader",
        "closed loop": "SViMoFeedbackLoop",
    }.items():
        assert words in nodes[name]["search_aliases"]
    assert known == {name for name, node in nodes.items() if not node.get("deprecated")}


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
