"""A synthetic world of two hands at work, in the manner of TACO: "use {tool} to {action} {target}".

The right hand grips a tool and the left one steadies the target. Each clip is drawn from one seed: words, shapes,
colours, table, light, camera and timing. It comes as RGB video with its 3D motion and camera, so that a model that
learns from it can be judged against the truth. Write some to look at:

    python -m svimo_train.data.synthetic --out clips --count 8

Read on in words (what may happen), scene (how it moves), film (how it looks).
"""

from __future__ import annotations

import argparse
import logging
from dataclasses import dataclass
from pathlib import Path
from string import ascii_lowercase

import cv2
import numpy as np

from svimo_core.motion import HandObjectMotion
from svimo_core.render import render_motion

from .film import film
from .scene import Change, Scene, View, make_scene, make_view
from .targets import TARGETS
from .tools import TOOLS
from .words import ACTIONS, SPLITS, Triplet, check_split, draw_triplet

log = logging.getLogger(__name__)

VARIED_SHARE = 0.45
"""Chance of each of tool, action and target of a varied clip to have no word; one of them always has none."""
VARIED_TARGET = (0.85, 1.45), (0.75, 1.35)
"""Factor on a target's width, and on its height beside that. The fingers do not reach around a large box."""
VARIED_TOOL, VARIED_VESSEL = ((0.7, 1.45), (0.75, 1.3)), ((0.85, 1.2), (0.85, 1.15))
"""Factors on the length and on the width of a tool's head, and of one that is carried upright as a whole."""


@dataclass(frozen=True, kw_only=True)
class Clip:
    """One example to learn from."""

    video: np.ndarray
    """N x H x W x 3 uint8 RGB."""
    motion: HandObjectMotion
    triplet: Triplet
    seed: int
    split: str


def generate_clip(
    seed: int,
    split: str = "train",
    *,
    frames: int = 17,
    height: int = 96,
    width: int = 144,
    fps: float = 8.0,
    points: int = 128,
    triplet: Triplet | None = None,
    varied: bool = False,
    drawn: slice = slice(None),
) -> Clip:
    """Make one clip.

    The same seed and split give the same clip, at any image size of the same shape and any number of points. No seed of
    one split repeats a clip of the other.

    Args:
        seed: number of the clip in its split, from 0.
        split: "train" or "test"; see :func:`triplet_weights`.
        points: per object, sampled from its surface; index k is the same spot in all frames.
        triplet: these words instead of drawn ones; the rest of the clip is still drawn from the seed.
        varied: a tool or target of a size and shape that no word has, or a motion that no word has, or several of
            these, under made-up words in the prompt: from such clips a model learns what to do with what it does not
            know, which is to measure by the hands, and to expect no certain motion.
        drawn: frames that the video shall have, of those of the motion. Drawing is most of the work.

    Raises:
        ValueError: an unknown split, unknown words, or an empty size.
    """
    scene, view, prompt, rng = _stage(seed, split, frames, height, width, fps, triplet, varied)
    motion = _motion(scene, view, prompt, points, seed, split)
    video = film(scene, view, rng, drawn)
    return Clip(video=video, motion=motion, triplet=scene.triplet, seed=seed, split=split)


def generate_motion(
    seed: int,
    split: str = "train",
    *,
    frames: int = 17,
    height: int = 96,
    width: int = 144,
    fps: float = 8.0,
    points: int = 128,
    triplet: Triplet | None = None,
    varied: bool = False,
) -> HandObjectMotion:
    """The motion of :func:`generate_clip` without its video."""
    scene, view, prompt, _ = _stage(seed, split, frames, height, width, fps, triplet, varied)
    return _motion(scene, view, prompt, points, seed, split)


def _motion(scene: Scene, view: View, prompt: str, points: int, seed: int, split: str) -> HandObjectMotion:
    return HandObjectMotion(
        hands=view.look(scene.joints()),
        objects={name: view.look(cloud) for name, cloud in scene.points(points).items()},
        camera=view.camera,
        fps=scene.fps,
        prompt=prompt,
        metadata={
            **scene.triplet._asdict(),
            "seed": str(seed),
            "split": split,
            "source": "svimo synthetic world",
        },
    )


def _made_up_word(rng: np.random.Generator) -> str:
    """Four to seven letters, so that it is neither "pot" nor "dip", which training must not have."""
    return "".join(rng.choice(list(ascii_lowercase), rng.integers(4, 8)))


def _stage(
    seed: int,
    split: str,
    frames: int,
    height: int,
    width: int,
    fps: float,
    triplet: Triplet | None,
    varied: bool,
) -> tuple[Scene, View, str, np.random.Generator]:
    """Everything the seed decides about motion, view and prompt, and the generator for how it looks."""
    check_split(split)
    if min(frames, height, width, fps) <= 0 or seed < 0:
        raise ValueError(
            "a clip needs a seed from 0 and positive frames, height, width and fps, "
            f"got {seed=}, {frames=}, {height=}, {width=}, {fps=}"
        )
    if triplet and (
        triplet.tool not in TOOLS or triplet.action not in ACTIONS or triplet.target not in TARGETS
    ):
        raise ValueError(
            f"unknown words in {tuple(triplet)}; tools: {', '.join(TOOLS)}; actions: {', '.join(ACTIONS)}; "
            f"targets: {', '.join(TARGETS)}"
        )
    rng = np.random.default_rng([SPLITS.index(split), seed])
    drawn = draw_triplet(rng, split)
    # of its own each, so that another tool does not change the table
    tool_rng, target_rng, motion_rng, view_rng, look_rng, change_rng = rng.spawn(6)
    words, change = triplet or drawn, Change()
    named = words
    if varied:
        change, named = _without_words(words, change_rng)
    time = np.arange(frames) / fps
    scene = make_scene(words, tool_rng, target_rng, motion_rng, time, fps, change)
    view = make_view(view_rng, scene, height, width)
    return scene, view, named.prompt, look_rng


def _without_words(triplet: Triplet, rng: np.random.Generator) -> tuple[Change, Triplet]:
    """What of a clip becomes something without a word, and the words of its prompt."""
    tool, action, target = rng.random(3) < VARIED_SHARE
    target |= not (tool or action)
    across, up = (rng.uniform(*limits) for limits in VARIED_TARGET)
    length, width = (
        rng.uniform(*limits) for limits in (VARIED_VESSEL if triplet.action == "pour" else VARIED_TOOL)
    )
    change = Change(
        tool=(length, width) if tool else (1.0, 1.0),
        target=(across, across * up) if target else (1.0, 1.0),
        action=bool(action),
    )
    made_up = {
        part: _made_up_word(rng)
        for part, changed in zip(Triplet._fields, (tool, action, target), strict=True)
        if changed
    }
    return change, triplet._replace(**made_up)


def contact_sheet(clips: list[Clip], columns: int = 5) -> np.ndarray:
    """One picture: for each clip a row of frames over a row of its rendered motion, with the prompt above."""
    rows = []
    for clip in clips:
        chosen = np.linspace(0, len(clip.video) - 1, columns).astype(int)
        height, width = clip.video.shape[1:3]
        drawn = render_motion(clip.motion, width, height)
        strip = [np.concatenate(list(frames[chosen]), 1) for frames in (clip.video, drawn)]
        banner = np.full((22, strip[0].shape[1], 3), 245, np.uint8)
        text = f"{clip.split} {clip.seed}: {clip.motion.prompt}"
        cv2.putText(banner, text, (4, 15), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (20, 20, 20), 1, cv2.LINE_AA)
        rows.append(np.concatenate([banner, *strip]))
    return np.concatenate(rows)


def write_video(path: Path, video: np.ndarray, fps: float) -> None:
    """Write N x H x W x 3 uint8 RGB frames as an mp4.

    Raises:
        OSError: OpenCV has no writer for it, or the place cannot be written.
    """
    height, width = video.shape[1:3]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), fps, (width, height))
    if not writer.isOpened():
        raise OSError(
            f"cannot write {path}: does its folder exist, and is this OpenCV built with video output?"
        )
    for frame in video:
        writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
    writer.release()


def main(arguments: list[str] | None = None) -> None:
    """Write clips as asked on the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m svimo_train.data.synthetic", description="Write synthetic clips."
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the clips, made if missing")
    parser.add_argument("--count", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0, help="of the first clip; the others follow")
    parser.add_argument("--split", choices=SPLITS, default="train")
    parser.add_argument("--frames", type=int, default=17)
    parser.add_argument("--height", type=int, default=96)
    parser.add_argument("--width", type=int, default=144)
    parser.add_argument("--fps", type=float, default=8.0)
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    args.out.mkdir(parents=True, exist_ok=True)
    size = dict(frames=args.frames, height=args.height, width=args.width, fps=args.fps)
    clips = [generate_clip(seed, args.split, **size) for seed in range(args.seed, args.seed + args.count)]
    for clip in clips:
        name = f"{clip.split}_{clip.seed:06d}"
        write_video(args.out / f"{name}.mp4", clip.video, args.fps)
        clip.motion.save(args.out / f"{name}.npz")
    cv2.imwrite(str(args.out / "sheet.png"), contact_sheet(clips)[..., ::-1])
    log.info("wrote %d clips and sheet.png to %s", len(clips), args.out)


if __name__ == "__main__":
    main()
