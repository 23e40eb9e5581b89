"""Workflows that users of earlier versions have saved still run, and give what they gave."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from dev.comfy import api_workflow
from svimo_core.motion import HandObjectMotion

BRING_YOUR_OWN = ("cogvideox_image_to_video", "svimo_from_converted_checkpoint")
SAVED = Path(__file__).with_name("saved_workflows")
WORKFLOWS = {
    f"{path.parents[1].name}/{path.stem}": path
    for path in sorted(SAVED.glob("*/api/*.json"))
    if path.stem not in BRING_YOUR_OWN
}
seeds = itertools.count(7000)


def the_node(workflow: dict, class_type: str) -> tuple[str, dict]:
    (found,) = (item for item in workflow.items() if item[1]["class_type"] == class_type)
    return found


def motion_of(client, workflow: dict, tmp_path: Path) -> HandObjectMotion:
    name, _ = the_node(workflow, "SViMoSaveMotion")
    (file,) = client.run(workflow).files(name)
    path = tmp_path / file["filename"]
    path.write_bytes(client.download(file))
    return HandObjectMotion.load(path)


@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_saved_workflow_runs(client, name):
    workflow = json.loads(WORKFLOWS[name].read_text(encoding="utf-8"))
    for content in workflow.values():
        if content["class_type"] == "SViMoSampler":
            content["inputs"].update({"steps": 5, "seed": next(seeds)})
    result = client.run(workflow)  # which refuses one that ComfyUI takes only in part
    savers = {key for key, content in workflow.items() if "filename_prefix" in content["inputs"]}
    assert savers
    assert all(result.files(saver) for saver in savers)
    for key, content in workflow.items():
        if content["class_type"] == "SViMoSampler":
            passes = 4 * (name == "0.1/image_to_video_and_motion")
            assert result.outputs[key]["svimo"][0]["feedback_passes"] == passes


def test_the_old_loop_gives_what_the_new_one_gives(client, tmp_path):
    made = []
    for workflow in (
        json.loads(WORKFLOWS["0.1/image_to_video_and_motion"].read_text(encoding="utf-8")),
        api_workflow("image_to_video_and_motion"),
    ):
        the_node(workflow, "SViMoSampler")[1]["inputs"].update({"steps": 3, "seed": 70})
        made.append(motion_of(client, workflow, tmp_path))
    np.testing.assert_array_equal(made[0].hands, made[1].hands)


def test_the_old_loop_is_marked_as_old(client):
    assert client.object_info()["SViMoFeedback"]["deprecated"]
