"""TACO's sequences -> folders of training clips, with a report of what was left out.

The clips are the trainer's own kind (:mod:`svimo_core.train.clips`): `OUT/train` and `OUT/test` are folders for `clips`
and `held_out` of its configurations. Beside them lie `split/` (lists of sequences), `report.txt` and `report.json`,
`settings.json`, and `records/`, which tells the next run what is finished.
"""

from __future__ import annotations

import json
import multiprocessing
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from tqdm import tqdm

from svimo_core.files import whole_file
from svimo_core.importing.objects import read_mesh, sample_surface
from svimo_core.motion import HAND_NAMES, HandObjectMotion
from svimo_core.train.clips import Clip, write_clip

from .crop import Box, crop_around
from .hands import load_hands, world_joints
from .layout import (
    FPS,
    METRES_PER_MESH_UNIT,
    Sequence,
    View,
    find_sequences,
    find_video,
    find_views,
    read_hand,
    read_object,
    read_view,
)
from .split import HELD_OUT, TEST_SHARE, split_sequences
from .video import VideoSize, read_frames, video_size

ROLES = ("tool", "target")
"""The objects of a clip, by the names that the models know."""
NEAR = 0.05
"""Metres in front of a camera; what should be nearer is out of view."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What decides how clips look; one folder of clips has one.

    Raises:
        ValueError: a setting that makes no clip.
    """

    frames: int = 49
    stride: float = FPS / 8
    """Frames of TACO from one frame of a clip to the next, which is the nearest: 3.75 is 8 fps, 4 is 7.5 fps."""
    hop: int = 16
    """Frames of a clip from the start of one to the start of the next of the same sequence."""
    width: int = 624
    height: int = 416
    margin: float = 0.1
    """Around hands and objects, as a share of their extent on each side."""
    points: int = 128
    """On each object."""
    markers: str = "removed-first"
    """A key of :data:`.layout.MARKERS`."""
    hands_in_view: float = 0.9
    """Least share of the joints of each hand, over a clip, that lie within its crop."""
    lost_frames: int = 0
    """Most frames by which a sequence's video, cameras and poses may differ in number. No one knows which are lost, so
    TACO's own loader takes none that differs."""
    test_share: float = TEST_SHARE
    held_out: dict[str, tuple[str, ...]] = field(default_factory=lambda: dict(HELD_OUT))
    seed: int = 0
    """Of the split and of the points on objects."""

    def __post_init__(self):
        if min(self.frames, self.hop, self.width, self.height, self.points) < 1 or self.stride < 1:
            raise ValueError(f"frames, stride, hop, width, height and points must be 1 or more, got {self}")

    @property
    def fps(self) -> float:
        """Of the clips."""
        return FPS / self.stride

    def windows(self, frames: int) -> list[np.ndarray]:
        """The frames of each clip of a sequence that has so many."""
        steps = np.arange(self.frames) * self.stride
        starts = np.arange(0, max(frames - steps[-1], 0), self.hop * self.stride)
        windows = [np.floor(start + steps + 0.5).astype(int) for start in starts]
        return [window for window in windows if window[-1] < frames]


class LeftOut(Exception):
    """A clip, or all of a view or sequence, that is not made."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


class Job(NamedTuple):
    """All clips of one view of one sequence."""

    source: Path
    out: Path
    mano: Path
    sequence: Sequence
    view: str
    part: str
    """Of the split: "train" or "test"."""
    settings: Settings

    @property
    def name(self) -> str:
        """Of its record, and what its clips' names begin with."""
        return f"{self.sequence.name}_{self.view}"

    @property
    def record(self) -> Path:
        """What came of it, as JSON."""
        return self.out / "records" / f"{self.name}.json"

    def has(self, clip: str) -> bool:
        """Whether a clip is there; its motion is written last."""
        return (self.out / self.part / f"{clip}.npz").is_file()


def prepare(
    source: Path,
    out: Path,
    mano: Path,
    settings: Settings,
    *,
    views: Iterable[str] = ("egocentric",),
    sequences: Iterable[Sequence] | None = None,
    leave_out: Iterable[str] = (),
    workers: int = 1,
) -> dict[str, Any]:
    """Make all clips that are not there yet, and write the report.

    Args:
        source: TACO's folder.
        out: folder for the clips, made if missing.
        mano: folder with MANO_LEFT and MANO_RIGHT.
        settings: of the clips.
        views: "egocentric", "allocentric" for all cameras around the table, or serial numbers of some.
        sequences: to split and prepare, such as TACO's list of all, so that the split does not depend on what has been
            downloaded; None for those in the source.
        leave_out: names of sequences that are known to be bad.
        workers: processes.

    Returns:
        What `report.json` has.

    Raises:
        FileNotFoundError: no sequences, or no MANO.
        ValueError: the folder was filled with other settings or another split.
        OSError: a clip cannot be written.
    """
    load_hands(mano)
    listed, unwanted = list(sequences or find_sequences(source)), set(leave_out)
    for part in ("train", "test", "records"):
        (out / part).mkdir(parents=True, exist_ok=True)
    _keep_settings(out / "settings.json", settings)
    split = split_sequences(
        listed, test_share=settings.test_share, held_out=settings.held_out, seed=settings.seed
    )
    split.write(out / "split")

    jobs, left_out, views = [], [], tuple(views)
    for part, members in (("train", split.train), ("test", split.test)):
        for sequence in members:
            if sequence.name in unwanted:
                left_out.append(_entry(sequence, None, None, LeftOut("on the list of those to leave out")))
            elif not (source / "Object_Poses" / sequence.folder).is_dir():
                left_out.append(_entry(sequence, None, None, LeftOut("not in the source")))
            else:
                found = find_views(source, sequence, views, settings.markers)
                jobs += [Job(source, out, mano, sequence, view, part, settings) for view in found]
    records = list(_run(jobs, workers))
    report = {
        "clips": {
            part: sum(len(r["clips"]) for r in records if r["part"] == part) for part in ("train", "test")
        },
        "sequences": {"train": len(split.train), "test": len(split.test), "held_out": len(split.held_out)},
        "left_out": left_out + [entry for record in records for entry in record["left_out"]],
    }
    report["reasons"] = dict(Counter(entry["reason"] for entry in report["left_out"]).most_common())
    _write_json(out / "report.json", report)
    with whole_file(out / "report.txt") as partial:
        partial.write_text(report_text(report))
    return report


def report_text(report: dict[str, Any]) -> str:
    """The report for people."""
    lines = ["{train} clips to train on and {test} to test with.".format(**report["clips"])]
    lines += [
        "Sequences: {train} to train on, {test} to test with, of which {held_out} have held-out words.".format(
            **report["sequences"]
        )
    ]
    if report["reasons"]:
        lines += ["", "Left out (clips, or all of a view or sequence at once):"]
        lines += [f"{count:7d}  {reason}" for reason, count in report["reasons"].items()]
        lines += [""]
    for entry in report["left_out"]:
        where = [
            entry["sequence"],
            entry["view"] or "",
            f"from frame {entry['start']}" if entry["start"] else "",
        ]
        lines.append(f"{' '.join(filter(None, where))}: {entry['reason']}. {entry['detail']}".rstrip(" ."))
    return "\n".join(lines) + "\n"


def _keep_settings(path: Path, settings: Settings) -> None:
    ours = json.loads(json.dumps(asdict(settings)))
    if not path.is_file():
        _write_json(path, ours)
    elif (theirs := json.loads(path.read_text())) != ours:
        other = ", ".join(f"{key} {theirs.get(key)}" for key in ours if theirs.get(key) != ours[key])
        raise ValueError(
            f"{path.parent} was filled with {other}: choose another folder, or the same settings"
        )


def _write_json(path: Path, content: Any) -> None:
    with whole_file(path) as partial:
        partial.write_text(json.dumps(content, indent=1))


def _entry(sequence: Sequence, view: str | None, start: int | None, why: LeftOut) -> dict[str, Any]:
    return {
        "sequence": str(sequence),
        "view": view,
        "start": start,
        "reason": why.reason,
        "detail": why.detail,
    }


# Jobs


def _run(jobs: list[Job], workers: int) -> Iterator[dict[str, Any]]:
    """The records of all jobs, in any order."""
    if workers == 1:
        yield from map(run_job, tqdm(jobs, unit="view"))
        return
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        try:
            futures = [pool.submit(run_job, job) for job in jobs]
            for future in tqdm(as_completed(futures), total=len(jobs), unit="view"):
                yield future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def run_job(job: Job) -> dict[str, Any]:
    """Make the clips of a view that are not there yet, and its record: names of clips, and what was left out and why.

    Raises:
        OSError: a clip cannot be written.
        ImportError: PyAV or trimesh is missing.
    """
    if job.record.is_file():
        record = json.loads(job.record.read_text())
        if not record["left_out"] and all(map(job.has, record["clips"])):
            return record
    clips: dict[str, _Planned] = {}
    left_out = []
    try:
        scene = _read_scene(job)
        for window in scene.windows:
            name = f"{job.name}_{window[0]:04d}"
            try:
                clips[name] = _plan(job, scene, window)
            except LeftOut as why:
                left_out.append(_entry(job.sequence, job.view, int(window[0]), why))
        missing = {name: clip for name, clip in clips.items() if not job.has(name)}
        for name, video in _film(scene.video, missing, job.settings).items():
            write_clip(job.out / job.part, name, Clip(video, missing[name].motion))
    except LeftOut as why:
        left_out.append(_entry(job.sequence, job.view, None, why))
    record = {"part": job.part, "clips": list(filter(job.has, clips)), "left_out": left_out}
    _write_json(job.record, record)
    return record


@contextmanager
def _reading(what: str) -> Iterator[None]:
    """Make whatever is wrong with a file of TACO a reason to leave it out."""
    try:
        yield
    except FileNotFoundError as error:
        raise LeftOut(f"missing {what}", str(error)) from error
    except ImportError:
        raise
    except Exception as error:  # damaged files fail in any way
        raise LeftOut(f"bad {what}", str(error) or repr(error)) from error


class _Scene(NamedTuple):
    """One view of one sequence, as it lies on disk; N frames."""

    hands: np.ndarray
    """N x 2 x 21 x 3, metres, in the world."""
    objects: dict[str, np.ndarray]
    """N x K x 3 each."""
    view: View
    """For the video's size."""
    video: Path
    windows: list[np.ndarray]


def _read_scene(job: Job) -> _Scene:
    """Everything but pixels.

    Raises:
        LeftOut: it is not all there.
    """
    source, sequence, settings = job.source, job.sequence, job.settings
    with _reading("video"):
        video = find_video(source, sequence, job.view, settings.markers)
        size = video_size(video)
    with _reading("calibration"):
        view = _resized(read_view(source, sequence, job.view), size)
    with _reading("object poses"):
        things = {role: read_object(source, sequence, role) for role in ROLES}
    with _reading("hands"):
        hands = {side: read_hand(source, sequence, side) for side in HAND_NAMES}
    with _reading("mesh"):
        points = {
            role: _surface_points(thing.mesh, settings.points, settings.seed)
            for role, thing in things.items()
        }

    lengths = {
        **{side: len(hand.pose) for side, hand in hands.items()},
        **{role: len(thing.rotations) for role, thing in things.items()},
        **({"camera": len(view.world_to_camera)} if len(view.world_to_camera) > 1 else {}),
    }
    frames = min(size.frames, *lengths.values())
    if max(size.frames, *lengths.values()) - frames > settings.lost_frames:
        reason = "video shorter than poses" if size.frames == frames else "lengths differ"
        raise LeftOut(reason, ", ".join(f"{k} {v}" for k, v in {"video": size.frames, **lengths}.items()))
    windows = settings.windows(frames)
    if not windows:
        needed = int((settings.frames - 1) * settings.stride + 0.5) + 1
        raise LeftOut("too short", f"{frames} frames, and a clip takes {needed}")
    models = _models(job.mano)
    return _Scene(
        hands=np.stack([world_joints(models[side], hands[side])[:frames] for side in HAND_NAMES], axis=1),
        objects={
            role: (points[role] @ thing.rotations.swapaxes(1, 2) + thing.translations[:, None])[:frames]
            for role, thing in things.items()
        },
        view=view,
        video=video,
        windows=windows,
    )


_models = cache(load_hands)


@cache
def _surface_points(mesh: Path, count: int, seed: int) -> np.ndarray:
    """The points of an object, count x 3, metres in the mesh's own axes: the same ones in every clip."""
    vertices, faces = read_mesh(mesh, metres_per_unit=METRES_PER_MESH_UNIT)
    return sample_surface(vertices, faces, count, seed=seed)


def _resized(view: View, size: VideoSize) -> View:
    """The view at the size of its video."""
    camera = view.camera
    if abs(camera.width * size.height / (camera.height * size.width) - 1) > 0.01:
        raise ValueError(
            f"it is for {camera.width} x {camera.height} pixels, the video has {size.width} x {size.height}"
        )
    resized = camera.resized(size.width, size.height)
    return View(camera=resized, world_to_camera=view.world_to_camera)


class _Planned(NamedTuple):
    """A clip before it has pixels."""

    frames: np.ndarray
    box: Box
    motion: HandObjectMotion


def _plan(job: Job, scene: _Scene, frames: np.ndarray) -> _Planned:
    """Crop and motion of one clip.

    Raises:
        LeftOut: the hands are out of view.
    """
    settings, camera = job.settings, scene.view.camera
    hands = scene.view.look(scene.hands[frames].reshape(len(frames), -1, 3), frames)
    objects = {role: scene.view.look(cloud[frames], frames) for role, cloud in scene.objects.items()}
    everything = np.concatenate([hands, *objects.values()], axis=1)
    ahead = everything[..., 2] > NEAR
    if not ahead.any():
        raise LeftOut("hands out of view", "everything is behind the camera")
    image, size = (camera.width, camera.height), (settings.width, settings.height)
    box = crop_around(camera.project(everything[ahead]), image, size, settings.margin)
    ahead = hands[..., 2] > NEAR
    seen = ahead & box.contains(camera.project(np.where(ahead[..., None], hands, 1)))
    for side, share in zip(HAND_NAMES, seen.reshape(len(frames), 2, -1).mean(axis=(0, 2)), strict=True):
        if share < settings.hands_in_view:
            raise LeftOut("hands out of view", f"{share:.0%} of the {side} hand's joints are in the picture")
    action, tool, target = job.sequence.triplet
    motion = HandObjectMotion(
        hands=hands.reshape(len(frames), 2, -1, 3),
        objects=objects,
        camera=box.camera(camera).resized(settings.width, settings.height),
        fps=settings.fps,
        prompt=job.sequence.prompt,
        metadata={
            "tool": tool,
            "action": action,
            "target": target,
            "sequence": job.sequence.name,
            "view": job.view,
            "first_frame": str(frames[0]),
            "crop": " ".join(map(str, box)),
            "video": scene.video.relative_to(job.source).parts[0],
            "split": job.part,
            "source": "TACO (Liu et al., CVPR 2024), CC BY 4.0",
        },
    )
    return _Planned(frames, box, motion)


def _film(path: Path, clips: dict[str, _Planned], settings: Settings) -> dict[str, np.ndarray]:
    """The videos of clips, N x H x W x 3 uint8 each, from one pass over the file.

    Raises:
        LeftOut: the video is damaged.
    """
    size = (settings.width, settings.height)
    videos = {name: np.empty((settings.frames, *size[::-1], 3), np.uint8) for name in clips}
    wanted = [frame for clip in clips.values() for frame in clip.frames.tolist()]
    with _reading("video"):
        for number, image in read_frames(path, wanted) if wanted else ():
            for name, clip in clips.items():
                for i in np.flatnonzero(clip.frames == number):
                    videos[name][i] = cv2.resize(clip.box.cut(image), size, interpolation=cv2.INTER_AREA)
    return videos
