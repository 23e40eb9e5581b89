"""The 3D viewer in the page: what it draws, its controls, and what becomes of it as the graph changes around it."""

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from dev.comfy import ROOT
from svimo_core.export.json_ import write_json
from svimo_core.motion import HandObjectMotion

EXAMPLE = ROOT / "assets" / "motions" / "stir_cup.npz"
BUILD = """viewers => {
    const add = (type, x, y) => {
        const node = LiteGraph.createNode(type);
        node.pos = [x, y];
        app.graph.add(node);
        return node;
    };
    const load = add("SViMoLoadMotion", 0, 0);
    load.widgets[0].value = "stir_cup.npz [example]";
    const frames = add("SViMoPreviewMotion", 0, 150);
    frames.widgets[0].value = "camera";
    load.connect(0, frames, 0);
    for (let i = 0; i < viewers; i++) {
        const viewer = add("SViMoMotionViewer", 350 + 600 * i, 0);
        load.connect(0, viewer, "motion");
        if (i === 0) ["video", "rendered_motion"].forEach(input => frames.connect(0, viewer, input));
    }
    app.canvas.ds.scale = 0.8;
    app.canvas.ds.offset = [80, 120];
    app.canvas.setDirty(true, true);
}"""
LAST = 16


@pytest.fixture
def run_viewers(page):
    """Runs a graph with some viewers, of which the first has pictures beside it; returns the ready viewers."""

    def run(count=1):
        page.page.evaluate(BUILD, count)
        page.settle()  # the page catches up with new nodes a moment later
        page.page.evaluate(
            "app.graph.nodes.find(n => n.type === 'SViMoPreviewMotion').widgets[0].value = 'camera'"
        )
        page.run(60)
        return ready_viewers(page, count)

    return run


def ready_viewers(page, count=1):
    viewers = page.page.locator(".svimo-viewer")
    page.page.locator(".svimo-viewer.svimo-ready").nth(count - 1).wait_for()
    assert viewers.count() == count
    page.settle()
    return [viewers.nth(i) for i in range(count)]


def picture(page, locator) -> np.ndarray:
    page.settle(300)
    return np.asarray(Image.open(io.BytesIO(locator.screenshot())).convert("RGB")).astype(int)


def view(page, viewer) -> np.ndarray:
    """The 3D view alone, without the buttons over it."""
    return picture(page, viewer.locator("canvas"))[40:]


def seek(viewer, frame):
    viewer.locator("input[type=range]").fill(str(frame))


def frame_of(viewer) -> int:
    return int(viewer.get_attribute("data-frame"))


def press(viewer, name):
    viewer.get_by_role("button", name=name, exact=True).click()


def differing(a, b) -> float:
    """Share of pixels that differ visibly."""
    assert a.shape == b.shape
    return float((np.abs(a - b).max(axis=-1) > 24).mean())


def corner(page) -> tuple[float, float]:
    """The lower right corner of the viewer's node, where a person takes it to resize it."""
    return page.page.evaluate(
        """() => {
            const node = app.graph.nodes.find(n => n.type === "SViMoMotionViewer");
            const element = document.querySelector(`[data-node-id="${node.id}"]`); // in Nodes 2.0
            if (element) {
                const { right, bottom } = element.getBoundingClientRect();
                return [right - 3, bottom - 3];
            }
            const { left, top } = app.canvas.canvas.getBoundingClientRect();
            const { scale, offset } = app.canvas.ds;
            return [left, top].map((edge, i) => edge + (node.pos[i] + node.size[i] + offset[i]) * scale - 3);
        }"""
    )


def drag(page, start, dx, dy=0) -> None:
    page.page.mouse.move(*start)
    page.page.mouse.down()
    page.page.mouse.move(start[0] + dx, start[1] + dy, steps=4)
    page.page.mouse.up()
    page.settle()


def test_draws_every_frame_with_its_pictures(page, run_viewers):
    (viewer,) = run_viewers()
    first = view(page, viewer)
    assert first.std() > 5
    pane = viewer.locator(".svimo-picture").first
    first_pane = picture(page, pane)
    assert viewer.locator(".svimo-picture").count() == 2

    seek(viewer, 10)
    assert frame_of(viewer) == 10
    assert differing(view(page, viewer), first) > 0.01
    assert differing(picture(page, pane), first_pane) > 0.01

    seek(viewer, 0)
    assert differing(view(page, viewer), first) < 0.001
    assert differing(picture(page, pane), first_pane) < 0.001


def test_view_through_the_camera_agrees_with_the_projection(page, run_viewers):
    """Axes, units and intrinsics: the page projects the right hand to where the core does."""
    _, viewer = run_viewers(2)
    motion = HandObjectMotion.load(EXAMPLE)
    press(viewer, "Camera")
    for name in ("left hand", "tool", "target", "trails", "contacts"):
        press(viewer, name)
    seek(viewer, 5)
    page.settle(300)
    canvas = viewer.locator("canvas")
    drawn = picture(page, canvas)
    height, width, _ = drawn.shape

    camera = motion.camera
    fit = min(width / camera.width, height / camera.height)
    origin = (width - fit * camera.width) / 2, (height - fit * camera.height) / 2
    expected = camera.project(motion.hands[5, 1]) * fit + origin
    red, green, blue = np.moveaxis(drawn, -1, 0)
    ys, xs = np.nonzero(green > np.maximum(red, blue) + 25)  # the right hand is green, and nothing else
    assert len(xs) > 200
    found = np.stack([xs, ys], axis=1)
    margin = 0.03 * width  # half a finger
    assert np.abs(found.min(axis=0) - expected.min(axis=0)).max() < margin
    assert np.abs(found.max(axis=0) - expected.max(axis=0)).max() < margin


def test_plays_pauses_and_stops_at_the_end(page, run_viewers):
    (viewer,) = run_viewers()
    press(viewer, "Play (space)")
    page.page.wait_for_function("document.querySelector('.svimo-viewer').dataset.frame > 2", timeout=5000)
    press(viewer, "Pause (space)")
    stopped = frame_of(viewer)
    page.settle(600)
    assert frame_of(viewer) == stopped

    seek(viewer, 5)
    viewer.locator("canvas").press("ArrowRight")
    assert frame_of(viewer) == 6

    press(viewer, "Play again from the start")  # off
    viewer.locator("select").select_option("2x")
    seek(viewer, 12)
    viewer.locator("canvas").press("Space")
    viewer.get_by_role("button", name="Pause (space)").wait_for()
    viewer.get_by_role("button", name="Play (space)").wait_for(timeout=5000)
    assert frame_of(viewer) == LAST


def test_keys_with_ctrl_are_the_pages(page, run_viewers):
    """To queue, save and undo; others may not reach it: Delete would take the node away."""
    (viewer,) = run_viewers()
    page.page.evaluate(
        """() => {
            window.heard = [];
            const hear = event => { window.heard.push(event.key); event.preventDefault(); };
            window.addEventListener("keydown", hear);
            window.stopHearing = () => window.removeEventListener("keydown", hear);
        }"""
    )
    for key in ("Delete", "ArrowRight", "Control+F8"):
        viewer.locator("canvas").press(key)
    assert page.page.evaluate("(stopHearing(), heard)")[-2:] == ["Control", "F8"]
    assert not {"Delete", "ArrowRight"} & set(page.page.evaluate("heard"))
    assert frame_of(viewer) == 1


def test_played_again_within_a_frame_ticks_once_per_frame(page, run_viewers):
    (viewer,) = run_viewers()
    page.page.evaluate(
        """() => {
            const request = window.requestAnimationFrame;
            window.ticks = {};
            window.requestAnimationFrame = callback => request(now => {
                if (callback.name === "tick") ticks[now] = (ticks[now] ?? 0) + 1;
                callback(now);
            });
            window.stopCounting = () => { window.requestAnimationFrame = request; };
            const button = document.querySelector(".svimo-viewer .svimo-bar button");
            for (let i = 0; i < 5; i++) button.click(); // play, pause, play, pause, play
        }"""
    )
    page.page.wait_for_function("document.querySelector('.svimo-viewer').dataset.frame > 2", timeout=5000)
    ticks = page.page.evaluate("ticks")
    press(viewer, "Pause (space)")
    page.page.evaluate("ticks = {}")
    page.settle(200)
    assert set(ticks.values()) == {1}
    assert page.page.evaluate("stopCounting() ?? ticks") == {}  # paused, nothing goes on


def test_toggles_orbit_and_home_change_the_view(page, run_viewers):
    _, viewer = run_viewers(2)
    seek(viewer, 8)
    before = view(page, viewer)
    for name in ("left hand", "right hand", "tool", "target", "trails", "grid", "camera"):
        press(viewer, name)
        assert differing(view(page, viewer), before) > 0.0005, name
        press(viewer, name)
        assert differing(view(page, viewer), before) < 0.0005, name

    box = viewer.locator("canvas").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    node = page.page.evaluate("[...app.graph.nodes.at(-1).pos]")
    drag(page, (x, y), 80, 20)
    assert differing(view(page, viewer), before) > 0.02
    assert (
        page.page.evaluate("[...app.graph.nodes.at(-1).pos]") == node
    )  # turned the view, not moved the node
    press(viewer, "Look at the whole clip again")
    assert differing(view(page, viewer), before) < 0.0005

    scale = page.page.evaluate("app.canvas.ds.scale")
    page.page.mouse.move(x, y)
    page.page.mouse.wheel(0, -300)
    assert differing(view(page, viewer), before) > 0.02
    assert page.page.evaluate("app.canvas.ds.scale") == scale  # zoomed the view, not the graph


def test_snapshot_is_a_picture_of_the_view(page, run_viewers):
    (viewer,) = run_viewers()
    seek(viewer, 4)
    with page.page.expect_download() as download:
        press(viewer, "Save this view as a picture")
    assert download.value.suggested_filename == "svimo_motion_frame_0005.png"
    image = np.asarray(Image.open(download.value.path()).convert("RGB"))
    assert image.std() > 5


def test_two_viewers_are_independent_and_removal_frees_one(page, run_viewers):
    first, second = run_viewers(2)
    seek(first, 12)
    assert (frame_of(first), frame_of(second)) == (12, 0)
    before = view(page, second)

    canvas = first.locator("canvas").element_handle()
    assert not canvas.evaluate("c => c.getContext('webgl2').isContextLost()")
    page.page.evaluate("app.graph.remove(app.graph.nodes.find(n => n.type === 'SViMoMotionViewer'))")
    page.settle()
    assert canvas.evaluate("c => c.getContext('webgl2').isContextLost()")
    (left,) = ready_viewers(page)
    assert differing(view(page, left), before) < 0.001


def test_a_saved_workflow_has_the_view_and_no_result(page, run_viewers):
    """Like core's previews: a file that a run wrote holds the graph as it was queued, with the results of before."""
    (viewer,) = run_viewers()
    press(viewer, "grid")
    press(viewer, "Camera")
    saved = page.page.evaluate("app.graph.serialize()")
    outputs = page.page.evaluate("app.nodeOutputs")
    (node,) = (node for node in saved["nodes"] if node["type"] == "SViMoMotionViewer")
    node["properties"]["svimo_files"] = outputs[str(node["id"])][
        "svimo_viewer"
    ]  # as workflows had it before 0.2
    page.open()
    page.load(saved)
    page.settle()
    assert page.page.locator(".svimo-viewer").count() == 0
    (node,) = (n for n in page.page.evaluate("app.graph.serialize()")["nodes"] if n["id"] == node["id"])
    assert "svimo_files" not in node["properties"]
    page.run(60)
    (viewer,) = ready_viewers(page)
    assert viewer.get_by_role("button", name="grid").get_attribute("aria-pressed") == "false"
    assert viewer.get_by_role("button", name="Camera", exact=True).get_attribute("aria-pressed") == "true"
    page.page.evaluate(
        "app.canvas.ds.scale = 0.6; app.canvas.ds.offset = [80, 120]; app.canvas.setDirty(true)"
    )
    before = view(page, viewer)
    assert before.std() > 5


def test_survives_collapse_and_resize(page, run_viewers):
    (viewer,) = run_viewers()
    before = view(page, viewer)
    toggle = "app.graph.nodes.find(n => n.type === 'SViMoMotionViewer').collapse()"
    page.page.evaluate(toggle)
    page.settle()
    assert not page.page.locator(".svimo-viewer").is_visible()
    page.page.evaluate(toggle)
    (viewer,) = ready_viewers(page)
    assert differing(view(page, viewer), before) < 0.01

    width = viewer.locator("canvas").bounding_box()["width"]
    drag(page, corner(page), 150)
    assert viewer.locator("canvas").bounding_box()["width"] > width + 50
    assert view(page, viewer).std() > 5


def test_a_run_is_no_edit_and_an_undo_keeps_what_it_made(page, run_viewers):
    tracker = "app.extensionManager.workflow.activeWorkflow.changeTracker"
    look = f"() => {{ const t = {tracker}; t.captureCanvasState ? t.captureCanvasState() : t.checkState(); }}"
    fps = "app.graph.nodes.find(n => n.type === 'SViMoLoadMotion').widgets[1].value"
    page.page.evaluate("name => app.extensionManager.command.execute(name)", "Comfy.NewBlankWorkflow")
    run_viewers()
    node = "app.graph.nodes.find(n => n.type === 'SViMoMotionViewer').serialize()"
    before = page.page.evaluate(node)
    page.page.evaluate(look)
    page.page.evaluate(f"{fps} = 9")
    page.page.evaluate(look)
    page.run(60)
    assert page.page.evaluate(node) == before

    page.page.evaluate(f"{tracker}.undo()")
    (viewer,) = ready_viewers(page)
    assert page.page.evaluate(fps) == 0
    assert view(page, viewer).std() > 5


@pytest.mark.parametrize("page", [True], ids=["nodes2"], indirect=True)
def test_inside_a_subgraph_a_run_is_shown_and_an_undo_keeps_it(page):
    tracker = "app.extensionManager.workflow.activeWorkflow.changeTracker"
    look = f"() => {{ const t = {tracker}; t.captureCanvasState ? t.captureCanvasState() : t.checkState(); }}"
    fps = "app.graph.nodes.find(n => n.type === 'SViMoLoadMotion').widgets[1].value"
    page.page.evaluate("name => app.extensionManager.command.execute(name)", "Comfy.NewBlankWorkflow")
    page.page.evaluate(BUILD, 1)
    page.page.evaluate(
        """() => {
            const viewer = app.graph.nodes.find(n => n.type === "SViMoMotionViewer");
            app.canvas.setGraph(app.graph.convertToSubgraph(new Set([viewer])).subgraph);
        }"""
    )
    page.run(60)
    ready_viewers(page)
    page.page.evaluate(look)
    page.page.evaluate(f"{fps} = 9")
    page.page.evaluate(look)
    page.page.evaluate(f"{tracker}.undo()")
    page.settle()
    (viewer,) = ready_viewers(page)
    assert page.page.evaluate(fps) == 0
    assert view(page, viewer).std() > 5
    # front end 1.32 complains about itself there
    page.problems = [
        said for said in page.problems if "listeners for graph that was never set up" not in said
    ]


def test_survives_a_switch_of_tabs(page, run_viewers):
    """The page keeps of a workflow what it was told had changed."""
    command = "name => app.extensionManager.command.execute(name)"
    page.page.evaluate(command, "Comfy.NewBlankWorkflow")
    (viewer,) = run_viewers()
    press(viewer, "grid")
    page.page.evaluate(command, "Comfy.NewBlankWorkflow")
    page.page.locator(".svimo-viewer").wait_for(state="detached")
    page.page.evaluate(command, "Workspace.PreviousOpenedWorkflow")
    (viewer,) = ready_viewers(page)
    assert viewer.get_by_role("button", name="grid").get_attribute("aria-pressed") == "false"
    assert view(page, viewer).std() > 5


def test_result_picked_from_the_history_is_shown(page, run_viewers):
    run_viewers()
    outputs = page.page.evaluate("app.nodeOutputs")
    saved = page.page.evaluate("app.graph.serialize()")
    for node in saved["nodes"]:
        node["properties"] = {}
    page.load(saved)
    assert page.page.locator(".svimo-viewer").count() == 0
    page.page.evaluate("outputs => { app.nodeOutputs = outputs; }", outputs)
    (viewer,) = ready_viewers(page)
    assert view(page, viewer).std() > 5


@pytest.mark.parametrize("page", [False], ids=["classic"], indirect=True)
def test_draws_odd_motions(page, server):
    """No hand to measure, none at all, one frame, no object; millimetres instead of metres."""
    example = HandObjectMotion.load(EXAMPLE)
    left_alone = example.hands.copy()
    left_alone[:, 1] = np.nan
    left_alone[1:3, 0] = np.nan
    odd = {
        "no_hands": replace(example, hands=np.full_like(example.hands, 0.5)),
        "one_frame": replace(example, hands=example.hands[:1], objects={}),
        "left_alone": replace(example, hands=left_alone, objects={}),
        "objects_alone": replace(example, hands=np.full_like(example.hands, np.nan)),
        "millimetres": replace(
            example,
            hands=1000 * example.hands,
            objects={name: 1000 * points for name, points in example.objects.items()},
        ),
    }
    for name, motion in odd.items():
        motion.save(server.base_directory / "input" / f"{name}.npz")
        page.page.evaluate("app.graph.clear()")
        page.page.evaluate(BUILD, 1)
        page.page.evaluate(
            """name => {
                const node = type => app.graph.nodes.find(node => node.type === type);
                node("SViMoLoadMotion").widgets[0].value = `${name}.npz`;
                node("SViMoPreviewMotion").disconnectOutput(0);
            }""",
            name,
        )
        page.run(60)
        (viewer,) = ready_viewers(page)
        picture = view(page, viewer)
        assert picture.std() > 2, name
        greens = (picture[..., 1].astype(int) - picture[..., 0] > 60).sum()
        assert (greens == 0) == (name in ("left_alone", "objects_alone")), name


def test_says_so_when_the_file_is_gone_and_shows_it_when_it_is_there_again(page, server):
    page.page.evaluate(
        """() => {
            const node = LiteGraph.createNode("SViMoMotionViewer");
            app.graph.add(node);
            const file = { role: "motion", filename: "gone.json", subfolder: "", type: "temp" };
            node.onExecuted({ svimo_viewer: [file] });
        }"""
    )
    message = page.page.locator(".svimo-viewer [role=alert]")
    message.wait_for()
    assert message.inner_text() == "This motion is no longer on the server: run the workflow again."

    example = HandObjectMotion.load(EXAMPLE)
    called_as_a_part_of_the_view = {"camera": example.objects["tool"]}
    file = server.base_directory / "temp" / "gone.json"
    write_json(file, replace(example, objects=called_as_a_part_of_the_view))
    page.page.evaluate(
        """() => {
            const node = app.graph.nodes.find(node => node.type === "SViMoMotionViewer");
            const file = { role: "motion", filename: "gone.json", subfolder: "", type: "temp" };
            node.onExecuted({ svimo_viewer: [file] });
        }"""
    )
    (viewer,) = ready_viewers(page)
    assert viewer.get_by_role("button", name="camera (object)", exact=True).count() == 1
    file.unlink()
