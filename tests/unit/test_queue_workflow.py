"""Readable names in a workflow, and what `check` finds, against definitions that a real server gave."""

import json
from pathlib import Path

import pytest

from svimo_queue.jobs import InputFile, Job, say_problems
from svimo_queue.workflow import Place, make_prompt, problems_of

ROOT = Path(__file__).resolve().parents[2]
DEFINITIONS = json.loads((ROOT / "tests" / "helpers" / "definitions.json").read_text())
OURS = json.loads((ROOT / "workflows" / "api" / "image_to_video_and_motion.json").read_text())
PICTURE = InputFile(path=Path("a.png"), text="a.png", sha256="0" * 64)


def job(graph: dict, row: int = 2, unread: tuple[str, ...] = (), **values) -> Job:
    where = dict(identity="1f" * 32, name="x", job_file="jobs.csv", row=row, workflow=Path("w.json"))
    return Job(**where, graph=graph, values=values, unread=frozenset(unread))


def node(kind: str, **inputs) -> dict:
    return {"class_type": kind, "inputs": inputs}


def core_graph(**more) -> dict:
    """Two texts through a ControlNet into core's sampler."""
    return {
        "model": node("CheckpointLoaderSimple", ckpt_name="sd15.safetensors"),
        "good": node("CLIPTextEncode", clip=["model", 1], text="a"),
        "bad": node("CLIPTextEncode", clip=["model", 1], text="b"),
        "net": node("ControlNetLoader", control_net_name="none"),
        "load": node("LoadImage", image="x.png"),
        "control": node(
            "ControlNetApplyAdvanced",
            positive=["good", 0],
            negative=["bad", 0],
            control_net=["net", 0],
            image=["load", 0],
            strength=1.0,
            start_percent=0.0,
            end_percent=1.0,
        ),
        "empty": node("EmptyLatentImage", width=64, height=64, batch_size=1),
        "sample": node(
            "KSampler",
            model=["model", 0],
            positive=["control", 0],
            negative=["control", 1],
            latent_image=["empty", 0],
            seed=1,
            steps=4,
            cfg=7,
            sampler_name="euler",
            scheduler="normal",
            denoise=1,
        ),
        "decode": node("VAEDecode", samples=["sample", 0], vae=["model", 2]),
        "save": node("SaveImage", images=["decode", 0], filename_prefix="made/picture"),
        **more,
    }


def test_readable_names_find_their_inputs():
    prompt = make_prompt(
        job(core_graph(), prompt="new", negative_prompt="no", seed="7", steps=9, image=PICTURE), DEFINITIONS
    )
    graph = prompt.graph
    assert (graph["good"]["inputs"]["text"], graph["bad"]["inputs"]["text"]) == ("new", "no")
    assert (graph["sample"]["inputs"]["seed"], graph["sample"]["inputs"]["steps"]) == (7, 9)
    assert prompt.uploads == {Place("load", "image"): PICTURE}
    assert prompt.models == {"sd15.safetensors"}
    assert graph["save"]["inputs"]["filename_prefix"] == "made/picture_1f1f1f1f"
    assert prompt.problems == [
        "net.control_net_name (ControlNetLoader) expects one of none, for the server has none, got none"
    ]


def test_ours_takes_a_prompt_in_place_of_its_parts():
    values = {
        "prompt": "use spoon",
        "seed": 3,
        "image": PICTURE,
        "SViMo Sampler.cfg": "2",
    }
    prompt = make_prompt(job(OURS, **values), DEFINITIONS)
    assert prompt.problems == []
    assert prompt.graph["4"]["inputs"]["text"] == "use spoon"
    assert prompt.graph["8"]["inputs"]["cfg"] == 2.0
    assert OURS["4"]["inputs"]["text"] == ["3", 0]  # the job's graph stays as it was


def test_names_with_other_meanings():
    graph = {
        "noise": node("RandomNoise", noise_seed=1),
        "guide": node("BasicGuider", conditioning=["flux", 0]),
        "flux": node("FluxGuidance", conditioning=["text", 0], guidance=3.5),
        "text": node("CLIPTextEncode", text="a"),
        "film": node("LoadVideo", file="x.mp4"),
        "show": node("PreviewImage"),
    }
    film = InputFile(path=Path("a.mp4"), text="a.mp4", sha256="0" * 64)
    prompt = make_prompt(job(graph, seed=5, prompt="b", video=film), DEFINITIONS)
    assert prompt.graph["noise"]["inputs"]["noise_seed"] == 5
    assert prompt.graph["text"]["inputs"]["text"] == "b"
    assert list(prompt.uploads) == [Place("film", "file")]
    motion = InputFile(path=Path("a.npz"), text="a.npz", sha256="0" * 64)
    graph = json.loads((ROOT / "workflows" / "api" / "motion_to_video.json").read_text())
    assert list(make_prompt(job(graph, motion=motion), DEFINITIONS).uploads) == [Place("20", "motion")]


def test_an_ambiguous_name_names_the_choices():
    graph = core_graph(second={**core_graph()["sample"], "_meta": {"title": "Hires"}})
    (seed, _) = make_prompt(job(graph, seed=1), DEFINITIONS).problems[:2]
    assert seed == (
        'column seed: could mean each of sample.seed (KSampler), second.seed (KSampler "Hires"); '
        "name one as node.input"
    )
    prompt = make_prompt(job(graph, **{"Hires.seed": 8}), DEFINITIONS)
    assert (prompt.graph["second"]["inputs"]["seed"], prompt.graph["sample"]["inputs"]["seed"]) == (8, 1)


@pytest.mark.parametrize(
    ("column", "value", "problem"),
    [
        ("step", 3, "the workflow has no such input; did you mean steps"),
        ("8.step", 3, "the workflow has no such input; did you mean 8.steps"),
        ("promt", "x", "the workflow has no such input; did you mean prompt"),
        ("Negative Promt", "x", "the workflow has no such input; did you mean negative_prompt"),
        ("SViMo Sampler.sed", 3, "the workflow has no such input; did you mean SViMo Sampler.seed"),
        ("wheels", 3, "the workflow has no such input; it has action, "),
        ("steps", 0, '8.steps (SViMoSampler "SViMo Sampler") expects a whole number from 1 to 1000, got 0'),
        ("steps", "many", "expects a whole number from 1 to 1000, got many"),
        ("steps", 1.5, "expects a whole number from 1 to 1000, got 1.5"),
        ("steps", True, "expects a whole number from 1 to 1000, got True"),
        ("cfg", "nan", "expects a number from"),
        ("solver", "dimm", "expects one of ddim"),
        ("enabled", "maybe", "expects true or false, got maybe"),
        ("8.model", "x", "takes a connection (MODEL), not a value"),
        ("ckpt_name", "no.safetensors", "expects one of svimo-tiny.safetensors, got no.safetensors"),
        ("1.ckpt_name", PICTURE, "takes no file of yours, got a.png"),
        (
            "2.image",
            "gone.png",
            "expects a file beside the job file or on the server, got gone.png: give a column image, or put",
        ),
    ],
)
def test_a_wrong_value_is_one_sentence(column, value, problem):
    values = {"image": PICTURE} if column != "2.image" else {}
    (said,) = make_prompt(job(OURS, **values, **{column: value}), DEFINITIONS).problems
    assert said.startswith(f"column {column}: ")
    assert problem in said


def test_all_problems_of_all_rows_with_each_said_once():
    broken = json.loads(json.dumps(OURS))
    broken["8"]["inputs"]["steps"] = -1
    del broken["6"]["inputs"]["frames"]
    broken["7"]["inputs"]["model"] = ["99", 0]
    jobs = [job(broken, row, image=PICTURE, seed=seed) for row, seed in ((2, 1), (3, -1), (4, 2))]
    said = say_problems(p for job in jobs for p in problems_of(job, make_prompt(job, DEFINITIONS)))
    everywhere = "jobs.csv, rows 2, 3, 4, w.json: "
    said = said.splitlines()
    assert len(said) == 4
    assert said[-1].startswith("jobs.csv, row 3, w.json: column seed: 8.seed (SViMoSampler")
    for problem in ("8.steps (SViMoSampler", "6.frames (SViMoImageEncode", "7.model (SViMoFeedbackLoop"):
        assert sum(line.startswith(everywhere + problem) for line in said) == 1

    unknown = make_prompt(job({"1": node("FancyNode")}), DEFINITIONS).problems
    assert unknown == [
        "node 1: the server has no node FancyNode; install the pack that has it, and restart the server"
    ]
    assert (
        "saves nothing" in make_prompt(job({"1": node("RandomNoise", noise_seed=1)}), DEFINITIONS).problems[0]
    )


def test_a_column_that_cannot_be_read_hides_nothing():
    assert make_prompt(job(OURS, unread=("image",)), DEFINITIONS).problems == []
    assert len(make_prompt(job(OURS), DEFINITIONS).problems) == 1  # without the column, the file is missed
    said = make_prompt(job(OURS, unread=("image", "step"), steps=0), DEFINITIONS).problems
    assert [line.split(":")[0] for line in said] == ["column steps", "column step"]


def test_a_column_that_acts_on_nothing():
    parts = {"SViMoPrompt.tool": "fork", "action": "cut"}
    said = make_prompt(job(OURS, image=PICTURE, prompt="use spoon", seed=1, **parts), DEFINITIONS).problems
    assert len(said) == 2
    assert said[0].startswith("column SViMoPrompt.tool: 3.tool (")
    assert said[0].endswith(" acts on nothing, as column prompt replaces it; leave it out")
    assert make_prompt(job(OURS, image=PICTURE, **parts), DEFINITIONS).problems == []

    graph = core_graph(
        net=node("ControlNetLoader", control_net_name="x"), other=node("LoadImage", image="x.png")
    )
    said = make_prompt(job(graph, **{"other.image": PICTURE}), DEFINITIONS).problems
    assert (
        "column other.image: other.image (LoadImage) acts on nothing, as no output node comes"
        in "\n".join(said)
    )


def test_two_columns_for_one_input():
    (said,) = make_prompt(job(OURS, image=PICTURE, seed=1, **{"8.seed": 2}), DEFINITIONS).problems
    assert "means the same input as column seed" in said
