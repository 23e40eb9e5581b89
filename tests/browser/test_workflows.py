"""The workflows that ship with the pack, and its nodes, as the page sees them."""

import json

import pytest

from dev.comfy import PACK_NAME, ROOT, ComfyClient, api_workflow
from dev.workflows import BRING_YOUR_OWN

WORKFLOWS = {path.stem: path for path in sorted((ROOT / "workflows").glob("*.json"))}


def missing_nodes(page) -> list[str]:
    return page.page.evaluate(
        "app.graph.nodes.filter(n => n.has_errors || !(n.type in LiteGraph.registered_node_types)).map(n => n.type)"
    )


@pytest.mark.parametrize("name", WORKFLOWS)
def test_workflow_loads_and_is_its_api_twin(page, name):
    workflow = json.loads(WORKFLOWS[name].read_text(encoding="utf-8"))
    page.load(workflow)

    assert len(page.page.evaluate("app.graph.nodes.map(n => n.id)")) == len(workflow["nodes"])
    assert missing_nodes(page) == []
    twin = {
        node: {key: value for key, value in entry.items() if key != "_meta"}
        for node, entry in api_workflow(name).items()
    }
    assert page.prompt() == twin


@pytest.mark.parametrize("name", sorted(set(WORKFLOWS) - set(BRING_YOUR_OWN)))
def test_chosen_files_exist(page, name):
    page.load(json.loads(WORKFLOWS[name].read_text(encoding="utf-8")))
    unknown = page.page.evaluate(
        """app.graph.nodes.flatMap(node => (node.widgets ?? [])
            .filter(w => Array.isArray(w.options?.values) && !w.options.values.includes(w.value))
            .map(w => `${node.type}.${w.name} = ${w.value}`))"""
    )
    assert unknown == []


@pytest.mark.parametrize("page", [False], ids=["classic"], indirect=True)  # Nodes 2.0 places nodes anew
@pytest.mark.parametrize("name", WORKFLOWS)
def test_nodes_do_not_overlap(page, name):
    page.load(json.loads(WORKFLOWS[name].read_text(encoding="utf-8")))
    boxes = page.page.evaluate("app.graph.nodes.map(n => [n.type, ...n.getBounding()])")
    overlaps = [
        (a, b)
        for i, (a, ax, ay, aw, ah) in enumerate(boxes)
        for b, bx, by, bw, bh in boxes[i + 1 :]
        if ax < bx + bw and bx < ax + aw and ay < by + bh and by < ay + ah
    ]
    assert overlaps == []


@pytest.mark.parametrize("page", [False], ids=["classic"], indirect=True)
def test_main_workflow_runs_in_the_page(page):
    """As a user does it: load, queue, look at the results in the nodes."""
    page.load(json.loads(WORKFLOWS["image_to_video_and_motion"].read_text(encoding="utf-8")))
    page.page.evaluate(
        """() => {
            const sampler = app.graph.nodes.find(node => node.type === "SViMoSampler");
            sampler.widgets.find(widget => widget.name === "steps").value = 2;
        }"""
    )
    page.run(300)
    viewer = page.page.locator(".svimo-viewer.svimo-ready")
    viewer.wait_for()
    assert viewer.locator(".svimo-picture").count() == 2
    shown = page.page.evaluate("Object.keys(app.nodeOutputs).map(id => app.graph.getNodeById(id).type)")
    assert {"SaveVideo", "SViMoSaveMotion", "SViMoMotionViewer"} <= set(shown)


def test_template_opens_from_its_address(page):
    page.open(f"/?template=image_to_video_and_motion&source={PACK_NAME}")
    page.page.wait_for_function("app.graph.nodes.some(n => n.type === 'SViMoSampler')", timeout=20_000)
    assert missing_nodes(page) == []
    page.open()


def test_every_node_can_be_added(page, server):
    with ComfyClient(server.url) as client:
        ours = {
            name: info
            for name, info in client.object_info().items()
            if info["python_module"].endswith(PACK_NAME)
        }
    assert "SViMoSampler" in ours
    added = page.page.evaluate(
        """types => types.map(type => {
            const node = LiteGraph.createNode(type);
            app.graph.add(node);
            return {
                type: node.type,
                title: node.title,
                inputs: [...new Set([...(node.inputs ?? []), ...(node.widgets ?? [])].map(x => x.name))],
                outputs: (node.outputs ?? []).map(x => x.name),
            };
        })""",
        list(ours),
    )
    page.settle()
    assert missing_nodes(page) == []
    for node in added:
        info = ours[node["type"]]
        assert node["title"] == info["display_name"]
        assert node["outputs"] == info["output_name"]
        expected = {name for group in info["input"].values() for name in group} - set(
            info["input"].get("hidden", {})
        )
        assert expected <= set(node["inputs"])
