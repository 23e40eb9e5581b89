"""A sound file of every kind that is read, and how it is read: what the fuzz test damages."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
import trimesh
from helpers.moving_hands import hand_animation
from helpers.moving_hands import motion as moving_motion
from helpers.synthetic_mano import mano_arrays
from helpers.taco_writer import SERIAL, write_video
from helpers.tiny_cogvideox import save_file_of, save_pipeline, tiny_transformer, tiny_vae
from torch import nn

from svimo_core.checkpoint import load_part, read_header
from svimo_core.config import ClipSize
from svimo_core.export.bvh import write_bvh
from svimo_core.export.json_ import write_json
from svimo_core.importing.decide import ImportOptions
from svimo_core.importing.objects import read_markers, read_mesh, read_poses, sample_surface
from svimo_core.importing.read import import_motion
from svimo_core.mano import load_mano
from svimo_core.motion import HandObjectMotion
from svimo_core.weights import open_weights, read_tensors
from svimo_queue.definitions import make_task
from svimo_queue.jobs import Job, read_jobs, read_workflow
from svimo_queue.outputs import Failure, Outputs, Record, read_written
from svimo_queue.workflow import make_prompt
from svimo_train.clips import Clip, ClipFolder, write_clip
from svimo_train.data.taco.layout import Sequence, read_hand, read_object, read_sequences, read_view
from svimo_train.data.taco.video import read_frames, video_size
from svimo_train.encoded import (
    MANIFEST,
    TEXT,
    EncodedClip,
    EncodedClips,
    EncodedFolder,
    Text,
    size_name,
    write_manifest,
)
from svimo_train.judges import SHIPPED, Judges
from svimo_train.settings import TrainConfig
from svimo_train.sharded_state import ShardedSaves, load_sharded_state
from svimo_train.shards import write_shard
from svimo_train.state import EMA, load_state, save_state, sharded_state

FRAMES = 5
OPTIONS = ImportOptions(fps=8, unit="metres", sides="keep")


class Readable(NamedTuple):
    """A sound file, and what reads it."""

    file: Path
    read: Callable[[], Any]
    folder: str | None = None
    """The name of the whole that the file is a part of, where an error may name that."""


def readables(folder: Path, checkpoint: Path) -> dict[str, Readable]:
    """One of every kind, written to a folder.

    Args:
        checkpoint: of a tiny model with all its parts.
    """
    made = {}

    def add(path: Path, read: Callable[[Path], Any], name: str | None = None) -> None:
        read(path)  # a sound file is read
        made[name or path.name] = Readable(path, lambda: read(path))

    # Models
    model = folder / "model.safetensors"
    model.write_bytes(checkpoint.read_bytes())
    add(model, read_model)
    made |= cogvideox_files(folder)
    save_file_of(folder / "plain.safetensors", {"a": torch.zeros(3, 4), "b": torch.ones(5).half()})
    add(folder / "plain.safetensors", read_weights)
    (folder / "judges.safetensors").write_bytes(SHIPPED.read_bytes())
    add(folder / "judges.safetensors", Judges.load)

    # Motions
    motion = moving_motion(frames=FRAMES)
    add(motion.save(folder / "own.npz"), HandObjectMotion.load)
    add(write_json(folder / "own.json", motion), import_motion)
    add(write_bvh(folder / "right_hand.bvh", hand_animation("right", FRAMES), 8.0), import_motion)
    for path, content in foreign_motions(folder, motion):
        if path.suffix == ".json":
            path.write_text(json.dumps(content))
        else:
            (np.savez if path.suffix == ".npz" else np.save)(path, **content)
        add(path, lambda path: import_motion(path, OPTIONS))
    add(motion.save(folder / "imported.npz"), import_motion)

    # Hands
    small = {
        key: value.astype(np.float16) if value.dtype == np.float64 else value
        for key, value in mano_arrays().items()
    }
    np.savez_compressed(folder / "MANO_RIGHT.npz", **small)
    add(folder / "MANO_RIGHT.npz", lambda path: load_mano(path, "right"))
    (folder / "MANO_RIGHT.pkl").write_bytes(pickle.dumps(small, 2))
    add(folder / "MANO_RIGHT.pkl", lambda path: load_mano(path, "right"))
    models = {"right": load_mano(folder / "MANO_RIGHT.npz", "right")}
    rng = np.random.default_rng(0)
    hands = {
        "pred_mano_params.global_orient": rng.normal(size=(4, 1, 3)),
        "pred_mano_params.hand_pose": rng.normal(size=(4, 15, 3)),
        "pred_mano_params.betas": rng.normal(size=(4, 10)),
        "pred_cam_t_full": rng.normal(size=(4, 3)) + (0, 0, 5),
        "right": np.array([1.0, 0, 1, 0]),
        "frame": np.array([0, 0, 1, 1]),
    }
    np.savez(folder / "hamer.npz", **hands)
    add(folder / "hamer.npz", lambda path: import_motion(path, OPTIONS, mano=lambda: models))

    # Objects
    box = trimesh.creation.box(extents=(0.1, 0.2, 0.1))
    for suffix in ("obj", "ply", "stl", "glb", "off"):
        box.export(folder / f"box.{suffix}")
        add(folder / f"box.{suffix}", read_surface)
    (folder / "ascii.ply").write_bytes(trimesh.exchange.ply.export_ply(box, encoding="ascii"))
    add(folder / "ascii.ply", read_surface)
    np.save(folder / "poses.npy", np.tile(np.eye(4), (FRAMES, 1, 1)))
    add(folder / "poses.npy", read_poses)
    np.savez(folder / "poses.npz", a=np.zeros((FRAMES, 6)))
    add(folder / "poses.npz", read_poses)
    markers = rng.normal(size=(FRAMES, 4, 3)) * 0.05
    np.savez(folder / "markers.npz", a=markers, b=markers)
    add(folder / "markers.npz", read_markers)
    rows = [",".join(f"{value:.5f}" for value in row) for row in markers.reshape(FRAMES, -1)]
    (folder / "markers.csv").write_text("\n".join(rows))
    add(folder / "markers.csv", read_markers)

    return made | training_files(folder, motion) | taco_files(folder / "taco") | queue_files(folder / "queue")


def read_model(path: Path) -> None:
    header = read_header(path)
    for part in header.parts:
        load_part(header, part)


def read_weights(path: Path) -> None:
    tensors, _ = open_weights(path)
    for _ in read_tensors(tensors, torch.float32):
        pass


def read_surface(path: Path) -> None:
    sample_surface(*read_mesh(path), 8)


def cogvideox_files(folder: Path) -> dict[str, Readable]:
    pipeline = save_pipeline(folder / "pipeline", tiny_transformer(), tiny_vae(), shard_size="60KB")
    transformer = pipeline / "transformer"
    read = lambda: read_model(pipeline)  # noqa: E731
    read()
    (index,), (shard, *_) = transformer.glob("*.index.json"), sorted(transformer.glob("*.safetensors"))
    files = [index, shard, transformer / "config.json", pipeline / "vae" / "config.json"]
    files.append(pipeline / "scheduler" / "scheduler_config.json")
    return {f"cogvideox {file.parent.name}/{file.name}": Readable(file, read, "pipeline") for file in files}


def foreign_motions(folder: Path, motion: HandObjectMotion):
    rows = motion.hands.reshape(-1, 21, 3).astype(np.float64)
    detections = {
        "pred_keypoints_3d": rows - rows[:, :1],
        "pred_cam_t_full": rows[:, 0],
        "frame": np.repeat(np.arange(FRAMES), 2),
        "frame_count": np.array(FRAMES),
        "is_right": np.tile([0, 1], FRAMES),
        "focal_length": np.array(300.0),
        "image_size": np.array([144, 96]),
    }
    yield folder / "detections.npz", detections
    yield folder / "hands.npy", {"arr": motion.hands}
    yield (
        folder / "lists.json",
        {"left": motion.hands[:, 0].tolist(), "right": motion.hands[:, 1].tolist(), "fps": 8},
    )
    mediapipe = [
        {
            "worldLandmarks": [
                [dict(zip("xyz", joint, strict=True)) for joint in hand] for hand in frame.tolist()
            ],
            "handedness": [[{"categoryName": "Left"}], [{"categoryName": "Right"}]],
        }
        for frame in motion.hands
    ]
    yield folder / "mediapipe.json", {"fps": 8, "frames": mediapipe}


def training_files(folder: Path, motion: HandObjectMotion) -> dict[str, Readable]:
    clips = folder / "clips"
    clips.mkdir()
    write_clip(clips, "clip", Clip(np.zeros((FRAMES, 16, 24, 3), np.uint8), motion))
    read_clip = lambda: ClipFolder(clips).clip(0, 4)  # noqa: E731

    settings = Path(__file__).parents[2] / "svimo_train" / "configs" / "tiny-joint.json"
    (folder / "settings.json").write_bytes(settings.read_bytes())

    layer = nn.PReLU(3)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(-torch.ones(1, 3)).sum().backward()
    optimizer.step()
    parameters, state = dict(layer.named_parameters()), folder / "state.safetensors"
    save_state(state, 1, parameters, EMA(parameters, 0.9), optimizer, {"loss": 1.0})

    def read_state():
        fresh = nn.PReLU(3)
        parameters = dict(fresh.named_parameters())
        load_state(state, parameters, EMA(parameters, 0.9), torch.optim.AdamW(fresh.parameters()))

    saves = ShardedSaves(folder, background=False)
    saves.begin(1, parameters, EMA(parameters, 0.9), optimizer, {"loss": 1.0})
    saves.wait()
    sharded = sharded_state(folder)
    (shard,) = sharded.glob("*.safetensors")

    def read_sharded():
        fresh = nn.PReLU(3)
        parameters = dict(fresh.named_parameters())
        load_sharded_state(sharded, parameters, EMA(parameters, 0.9), torch.optim.AdamW(fresh.parameters()))

    encoded, size = folder / "encoded", ClipSize(FRAMES, 16, 24)
    clip = EncodedClip(motion, torch.zeros(16, 24, 3, dtype=torch.uint8), torch.zeros(2, 4, 2, 2, 3).half())
    packed = write_shard(encoded / size_name(size), {"stir": clip.record()})
    write_manifest(encoded, "vae", {size_name(size): {packed.name: ["stir"]}})
    Text("t5", {motion.prompt: torch.zeros(7, 8).bfloat16()}).save(encoded)

    def read_encoded():
        folder = EncodedFolder(encoded)
        folder.require_vae("vae")
        folder.require_sizes([size])
        clips = EncodedClips([folder])
        return clips.clip(0, size), clips.has_latents(0, size), clips.features()

    made = {
        "encoded shard": Readable(packed, read_encoded, encoded.name),
        "encoded manifest": Readable(encoded / MANIFEST, read_encoded, encoded.name),
        "encoded text": Readable(encoded / TEXT, read_encoded, encoded.name),
        "sharded state": Readable(shard, read_sharded, sharded.name),
        "sharded notes": Readable(sharded / "notes.json", read_sharded, sharded.name),
        "clip.npy": Readable(clips / "clip.npy", read_clip, "clip"),
        "clip.npz": Readable(clips / "clip.npz", read_clip, "clip"),
        "settings.json": Readable(
            folder / "settings.json", lambda: TrainConfig.load(folder / "settings.json")
        ),
        "state.safetensors": Readable(state, read_state),
    }
    for readable in made.values():
        readable.read()
    return made


def queue_files(folder: Path) -> dict[str, Readable]:
    folder.mkdir()
    api = Path(__file__).parents[2] / "workflows" / "api" / "image_to_video_and_motion.json"
    workflow, image = folder / "mine.json", folder / "cup.png"
    workflow.write_bytes(api.read_bytes())
    image.write_bytes(b"picture")
    rows = [
        {"workflow": "mine.json", "image": "*.png", "prompt": "use spoon to stir cup", "seed": "0-3, 7"},
        {"workflow": "mine.json", "image": "cup.png", "prompt": "pour | cut", "8.cfg": 1.5},
        {"workflow": api.stem, "steps": [4, 5], "8.solver": "ddim", "enabled": True, "name": "short"},
    ]
    (folder / "jobs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "jobs.csv").write_text(
        'workflow,image,prompt,seed,8.cfg\nmine.json,*.png,"stir, slowly","0-3, 7",\nmine.json,cup.png,cut,,1.5\n'
    )
    definitions = json.loads(Path(__file__).with_name("definitions.json").read_text())

    def read_the_workflow():
        graph, values = (
            read_workflow(workflow),
            {"prompt": "cut", "negative_prompt": "", "seed": 1, "8.cfg": 2},
        )
        where = dict(identity="0" * 64, name="x", job_file="jobs.csv", row=2, workflow=workflow)
        job = Job(**where, graph=graph, values=values)
        return make_prompt(job, definitions), make_task(job, "svimo-tiny.safetensors")

    jobs = read_jobs(folder / "jobs.csv")
    with Outputs(folder / "out", jobs) as outputs:
        done = outputs.begin(jobs[0])
        with done.file("motion.npz") as path:
            path.write_bytes(b"motion")
        now = datetime.now(timezone.utc)
        done.finish(started=now, seconds=1.5, where="here", versions={"torch": "2"})
        outputs.fail(jobs[1], "out of memory", details="trace", where="there", tries=2)
    (record,), (failure,) = folder.glob("out/*/job.json"), folder.glob("out/*/error.json")
    made = {
        "jobs.csv": Readable(folder / "jobs.csv", lambda: read_jobs(folder / "jobs.csv")),
        "jobs.jsonl": Readable(folder / "jobs.jsonl", lambda: read_jobs(folder / "jobs.jsonl")),
        "workflow": Readable(workflow, read_the_workflow),
        "job.json": Readable(record, lambda: read_written(record, Record)),
        "error.json": Readable(failure, lambda: read_written(failure, Failure)),
    }
    for readable in made.values():
        readable.read()
    return made


def taco_files(root: Path) -> dict[str, Readable]:
    sequence = Sequence("stir", "spoon", "bowl", "20230927_032")
    made = {}

    def add(name: str, place: str, write: Callable[[Path], None], read: Callable[[], Any]) -> None:
        path = root / place / sequence.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path)
        made[f"TACO {name}"] = Readable(path, read)

    rng = np.random.default_rng(0)
    poses = {
        f"{i + 1:05d}": {"hand_pose": torch.zeros(48), "hand_trans": torch.zeros(FRAMES, 3)[i]}
        for i in range(FRAMES)
    }
    shape = {"hand_shape": rng.normal(size=10)}
    hand = lambda: read_hand(root, sequence, "left")  # noqa: E731
    add("left_hand.pkl", "Hand_Poses", lambda path: path.write_bytes(pickle.dumps(poses)), hand)
    add("left_hand_shape.pkl", "Hand_Poses", lambda path: path.write_bytes(pickle.dumps(shape)), hand)

    tool = np.tile(np.eye(4), (FRAMES, 1, 1))
    add(
        "tool_017.npy",
        "Object_Poses",
        lambda p: np.save(p, tool),
        lambda: read_object(root, sequence, "tool"),
    )

    camera = "Egocentric_Camera_Parameters"
    ego = lambda: read_view(root, sequence, "egocentric")  # noqa: E731
    lens = np.array([[1700.0, 0, 960], [0, 1700, 540], [0, 0, 1]])
    add("egocentric_intrinsic.txt", camera, lambda path: np.savetxt(path, lens), ego)
    add("egocentric_frame_extrinsic.npy", camera, lambda path: np.save(path, tool), ego)
    calibration = {
        SERIAL: {
            "imgSize": [1920, 1080],
            "K": lens.ravel().tolist(),
            "R": np.eye(3).ravel().tolist(),
            "T": [0, 0, 1],
        }
    }
    add(
        "calibration.json",
        "Allocentric_Camera_Parameters",
        lambda path: path.write_text(json.dumps(calibration)),
        lambda: read_view(root, sequence, SERIAL),
    )

    video = root / "Egocentric_RGB_Videos" / sequence.folder / "color.mp4"
    frames = np.stack([np.full((48, 64, 3), 40 * i, np.uint8) for i in range(FRAMES)])
    for frame in frames:
        cv2.circle(frame, (30, 20), 9, (255, 0, 0), -1)
    add(
        video.name,
        "Egocentric_RGB_Videos",
        lambda path: write_video(path, frames),
        lambda: (video_size(video), list(read_frames(video, range(FRAMES)))),
    )
    listed = root / "v1_train_sequences.txt"
    listed.write_text(f"{sequence}\n")
    made["TACO list"] = Readable(listed, lambda: read_sequences(listed))
    for readable in made.values():
        readable.read()
    return made
