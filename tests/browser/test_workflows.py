"""The workflows that ship with the pack, and its nodes, as the page sees them."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from dev.comfy import PACK_NAME, ROOT, ComfyClient, api_workflow
from dev.workflows import BRING_YOUR_OWN, NOTE

WORKFLOWS = {path.stem: path for path in sorted((ROOT / "workflows").glob("*.json"))}
SAVED = {
    f"{path.parents[1].name}/{path.stem}": path
    for path in sorted((ROOT / "tests" / "server" / "saved_workflows").glob("*/page/*.json"))
}
"""What users of earlier versions have."""
LEAST_GAP = 40


def missing_nodes(page) -> list[str]:
    """Types that the page does not know. (Newer pages also mark nodes whose files are missing.)"""
    return page.page.evaluate(
        "app.graph.nodes.filter(n => !(n.type in LiteGraph.registered_node_types)).map(n => n.type)"
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
    prompt = page.prompt()
    for node, entry in twin.items():
        if not entry["class_type"].startswith(
            "SViMo"
        ):  # newer core nodes have inputs more, which the page presets
            known = entry["inputs"].keys()
            prompt[node]["inputs"] = {
                key: value for key, value in prompt[node]["inputs"].items() if key in known
            }
    assert prompt == twin


@pytest.mark.parametrize("name", sorted(set(WORKFLOWS) - set(BRING_YOUR_OWN)))
def test_chosen_files_exist(page, name):
    page.load(json.loads(WORKFLOWS[name].read_text(encoding="utf-8")))
    unknown = page.page.evaluate(
        """app.graph.nodes.flatMap(node => (node.widgets ?? [])
            .filter(w => Array.isArray(w.options?.values) && !w.options.values.includes(w.value))
            .map(w => `${node.type}.${w.name} = ${w.value}`))"""
    )
    assert unknown == []


def boxes(page) -> list[tuple[str, float, float, float, float]]:
    """Type, left, top, right and bottom of every node with its title, once the page has drawn and sized them all."""
    before = None
    while True:
        page.settle(1500)
        now = page.page.evaluate(
            """() => {
                app.canvas.setDirty(true, true);
                return app.graph.nodes.map(node => {
                    const element = document.querySelector(`[data-node-id="${node.id}"]`);  // Nodes 2.0
                    const title = LiteGraph.NODE_TITLE_HEIGHT;
                    const [left, top] = [node.pos[0], node.pos[1] - title];
                    const width = element?.offsetWidth ?? node.size[0];
                    const height = element?.offsetHeight ?? node.size[1] + title;
                    return [node.type, left, top, left + width, top + height, node.getBounding()[2] > 0];
                });
            }"""
        )
        if now == before and all(drawn for *_, drawn in now):
            return [box for *box, _ in now]
        before = now


def close_together(boxes, least: float) -> list[tuple[str, str, int]]:
    """Pairs of nodes with less space between them, and how much they have."""
    found = []
    for i, (a, *first) in enumerate(boxes):
        for b, *second in boxes[i + 1 :]:
            across = max(second[0] - first[2], first[0] - second[2])
            down = max(second[1] - first[3], first[1] - second[3])
            if max(across, down) < least:
                found.append((a, b, round(max(across, down))))
    return found


@pytest.mark.parametrize("name", WORKFLOWS)
def test_nodes_have_room(page, name):
    """In either way to draw them, as the page sizes them: newer core nodes are taller."""
    workflow = json.loads(WORKFLOWS[name].read_text(encoding="utf-8"))
    page.load(workflow)
    found = boxes(page)
    if [left for _, left, *_ in found] != [node["pos"][0] for node in workflow["nodes"]]:
        assert page.page.evaluate("!!document.querySelector('[data-node-id]')")
        pytest.skip("Nodes 2.0 of ComfyUI 0.3.75 draws everything apart, again at each loading")
    assert close_together(found, LEAST_GAP) == []


@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_note_says_what_it_is_for(page, name):
    page.load(json.loads(WORKFLOWS[name].read_text(encoding="utf-8")))
    (text,) = page.page.evaluate(
        "type => app.graph.nodes.filter(n => n.type === type).map(n => n.widgets[0].value)", NOTE
    )
    assert text.startswith("# ")


@pytest.mark.parametrize("name", SAVED)
def test_saved_workflow_loads_and_queues(page, name):
    """No missing node, no lost link, no value in another place: the page queues what it queued when it was saved."""
    path = SAVED[name]
    workflow = json.loads(path.read_text(encoding="utf-8"))
    page.load(workflow)
    assert missing_nodes(page) == []
    links = page.page.evaluate(
        """app.graph.nodes.flatMap(node => (node.inputs ?? []).map((input, slot) => {
            const link = input.link == null ? null : (app.graph.getLink?.(input.link) ?? app.graph.links[input.link]);
            return link && [String(link.origin_id), link.origin_slot, String(node.id), input.name];
        }).filter(Boolean))"""
    )
    names = {node["id"]: [slot["name"] for slot in node["inputs"]] for node in workflow["nodes"]}
    expected = [
        [str(source), output, str(target), names[target][slot]]
        for _, source, output, target, slot, _ in workflow["links"]
    ]
    assert sorted(links) == sorted(expected)

    twin = json.loads((path.parents[1] / "api" / path.name).read_text(encoding="utf-8"))
    prompt = page.prompt()
    assert set(prompt) == set(twin)
    for node, entry in twin.items():
        assert prompt[node]["class_type"] == entry["class_type"]
        queued = prompt[node]["inputs"]
        assert {key: queued[key] for key in entry["inputs"]} == entry["inputs"]


@pytest.mark.parametrize("page", [False], ids=["classic"], indirect=True)
def test_saved_workflow_runs_in_the_page(page):
    path = SAVED["0.1/image_to_video_and_motion"]
    page.load(json.loads(path.read_text(encoding="utf-8")))
    set_steps(page, 2)
    page.run(300)
    page.page.locator(".svimo-viewer.svimo-ready").wait_for()


def set_steps(page, steps: int) -> None:
    page.page.evaluate(
        """steps => {
            const sampler = app.graph.nodes.find(node => node.type === "SViMoSampler");
            sampler.widgets.find(widget => widget.name === "steps").value = steps;
        }""",
        steps,
    )


@pytest.mark.parametrize("page", [False], ids=["classic"], indirect=True)
def test_main_workflow_runs_in_the_page(page):
    """As a user does it: load, queue, look at the results in the nodes."""
    page.load(json.loads(WORKFLOWS["image_to_video_and_motion"].read_text(encoding="utf-8")))
    set_steps(page, 2)
    page.run(300)
    assert close_together(boxes(page), 0) == []  # videos and previews fit into the room for them
    viewer = page.page.locator(".svimo-viewer.svimo-ready")
    viewer.wait_for()
    assert viewer.locator(".svimo-picture").count() == 2
    shown = page.page.evaluate("Object.keys(app.nodeOutputs).map(id => app.graph.getNodeById(id).type)")
    assert {"SaveVideo", "SViMoSaveMotion", "SViMoMotionViewer"} <= set(shown)


@pytest.mark.parametrize("page", [False], ids=["classic"], indirect=True)
def test_saved_glb_plays_in_core_preview_3d(page):
    page.page.evaluate(
        """() => {
            const add = (type, x, y) => {
                const node = LiteGraph.createNode(type);
                node.pos = [x, y];
                app.graph.add(node);
                return node;
            };
            const load = add("SViMoLoadMotion", 0, 0);
            load.widgets[0].value = "stir_cup.npz [example]";
            const rig = add("SViMoRigMotion", 0, 200);
            const save = add("SViMoSaveGLB", 0, 420);
            const view = add("Preview3D", 400, 0);
            load.connect(0, rig, 0);
            rig.connect(0, save, 0);
            save.connect(0, view, "model_file");
            view.setSize([600, 600]);
            app.canvas.ds.scale = 1;
            app.canvas.ds.offset = [80, 120];
            app.canvas.setDirty(true, true);
        }"""
    )
    page.settle()
    page.run(60)
    widget = page.page.locator(".dom-widget:has(canvas)")
    play = widget.locator("button:has([class*=play])")
    play.wait_for()  # only there for a file with an animation

    def drawn() -> np.ndarray:
        """Colours of the middle of the view, away from buttons, axes and grid; all else is black."""
        page.settle(400)
        image = Image.open(io.BytesIO(widget.locator("canvas").screenshot())).convert("RGB")
        width, height = image.size
        middle = image.crop((width // 4, height // 4, 3 * width // 4, 3 * height // 4))
        pixels = np.asarray(middle).astype(int)
        return np.where(np.ptp(pixels, axis=-1, keepdims=True) > 40, pixels, 0)

    def differ(a, b) -> float:
        return (np.abs(a - b).max(axis=-1) > 40).sum() / (b.any(axis=-1).sum())

    page.page.wait_for_function("document.querySelector('.dom-widget canvas').width > 300")
    rest = drawn()
    red, green, blue = np.moveaxis(rest, -1, 0)
    for hand in (red > np.maximum(green, blue) + 25, green > np.maximum(red, blue) + 25):
        assert hand.sum() > 300
    play.click()
    frames = [drawn() for _ in range(3)]
    assert differ(rest, frames[0]) > 0.2  # from the flat rest pose into the motion
    assert max(differ(frames[0], frames[1]), differ(frames[1], frames[2])) > 0.05


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
