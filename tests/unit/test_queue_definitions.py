"""What runs without ComfyUI, and how it is said that something does not."""

import json
from pathlib import Path

import pytest

from svimo_queue.definitions import definitions, execution_order, make_task
from svimo_queue.engine import NODES
from svimo_queue.jobs import InputFile, Job

API = Path(__file__).resolve().parents[2] / "workflows" / "api"
PICTURE = InputFile(path=Path("a.png"), text="a.png", sha256="0" * 64)
TINY = "svimo-tiny.safetensors"


def workflow(name: str = "image_to_video_and_motion") -> dict:
    return json.loads((API / f"{name}.json").read_text())


def problems(graph: dict, checkpoint: str = TINY, **values) -> list[str]:
    where = dict(identity="1f" * 32, name="x", job_file="jobs.csv", row=2, workflow=Path("w.json"))
    unread = frozenset(column for column, value in values.items() if value is None)
    values = {c: value for c, value in ({"image": PICTURE} | values).items() if c not in unread}
    return make_task(Job(**where, graph=graph, values=values, unread=unread), checkpoint).problems


@pytest.mark.parametrize("name", sorted(path.stem for path in API.glob("*.json")))
def test_a_shipped_workflow_runs_or_says_which_node_does_not(name):
    graph, found = workflow(name), problems(workflow(name))
    if name in ("image_to_video_and_motion", "image_to_video_and_motion_without_feedback"):
        assert found == []
        order = execution_order(graph)
        assert order.index("1") < order.index("7") < order.index("8") < order.index("9")
    else:
        strange = {key for key, node in graph.items() if node["class_type"] not in NODES}
        assert {line.split()[1] for line in found} == strange
        assert all("does not run without ComfyUI" in line for line in found)


def test_every_node_has_a_definition_and_the_other_way_round():
    assert NODES.keys() == definitions(TINY).keys()


@pytest.mark.parametrize(
    ("node", "change", "said"),
    [
        ("8", {"denoise": 0.5}, '8.denoise (SViMoSampler "SViMo Sampler") expects 1 without ComfyUI'),
        ("8", {"solver": "dpmpp_2m_sde"}, "expects 'ddim' without ComfyUI"),
        ("8", {"sequential_cfg": True}, "expects False without ComfyUI"),
        ("8", {"steps": 0}, "expects a whole number from 1 to 1000, got 0"),
        ("8", {"model": ["1", 2]}, "expects MODEL, got VAE of node 1 (SViMoCheckpointLoader)"),
        ("8", {"feedback": ["7", 0]}, "there is no such input without ComfyUI"),
        ("8", {"latent_image": ["8", 0]}, "of one SViMoImageEncode without ComfyUI"),
        ("8", {"negative": ["6", 0]}, "of one SViMoImageEncode without ComfyUI"),
        ("8", {"model": "tiny"}, "expects a connection (MODEL), got tiny"),
        ("9", {"latent": ["6", 2]}, "expects latent of one SViMoSampler without ComfyUI"),
        ("12", {"hands": "mano"}, "expects 'capsule' without ComfyUI"),
        ("12", {"rigid_parts": "scissors: 2"}, "expects '' without ComfyUI"),
        ("6", {"image": ["2", 1]}, "LoadImage has no output 1 without ComfyUI"),
        ("15", {"format": "webm"}, "expects one of auto, mp4, got webm"),
        ("15", {"filename_prefix": "%year%/video"}, "expects a plain name without ComfyUI"),
        ("7", {"model": ["7", 0]}, "nodes 7, 7 wait for each other"),
    ],
)
def test_what_the_engine_cannot_do_is_named(node, change, said):
    graph = workflow()
    graph[node]["inputs"] |= change
    found = problems(graph)
    assert any(said in line for line in found), found


def test_files_are_ours_and_the_checkpoint_is_the_runs():
    (found,) = problems(workflow(), "other.safetensors")
    assert "expects one of other.safetensors, got svimo-tiny.safetensors" in found
    (found,) = problems(workflow(), image="stir_cup.png")
    assert "expects a file beside the job file, as there is no server that has 'stir_cup.png'" in found
    assert problems(workflow(), image=None) == []  # its cell is wrong, which was said
