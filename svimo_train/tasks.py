"""The other directions of a model, measured: video to motion, motion to video, clips that go on, and what lies between.

    python -m svimo_train.evaluate --task video-to-motion --count 128

Each is compared, clip by clip and from the same noise, with what the model makes of less.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from svimo_core.clean import trim
from svimo_core.config import ClipSize
from svimo_core.model.interaction import TEMPORAL_COMPRESSION
from svimo_core.motion import HandObjectMotion
from svimo_core.render import render_motion
from svimo_core.sampling.latents import Known
from svimo_core.sampling.pipeline import Generation, SViMo, generate, to_uint8
from svimo_core.sampling.sampler import SamplerReport
from svimo_core.windows import join_motions, join_videos, window_starts

from .data.synthetic import generate_clip
from .judges import Judges
from .metrics import MOVING, mpjpe_mm, psnr_moving_db, smoothness_mm
from .scores import errors, mean, motion_scores, other_action, paired, reprojection, scores_of, video_scores
from .truth import TrueClip

WINDOWS = 3
"""Of a clip that goes on."""
KEPT = 2
"""Latent frames of a clip that the next one begins with."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Setting:
    """A model, and how it samples."""

    model: SViMo
    judges: Judges | None
    """None where the clips are not of the synthetic world."""
    options: dict[str, Any]
    """Of :func:`svimo_core.sampling.pipeline.generate`."""
    window_overlap: int = 0
    """Frames that windows of a long video share; see :func:`svimo_core.windows.window_starts`."""

    @property
    def size(self) -> ClipSize:
        """Of one clip."""
        config = self.model.config
        return ClipSize(config.frames, config.height, config.width)

    @property
    def overlap(self) -> int:
        """Frames of a clip that the next one begins with."""
        return frames_of(KEPT)

    def make(self, clip: TrueClip, known: Known | None = None, prompt: str | None = None) -> Generation:
        """A clip from another's first frame and words (or these), and what is known."""
        prompt = clip.motion.prompt if prompt is None else prompt
        return generate(self.model, frames_in(clip)[0], prompt, clip.seed, known=known, **self.options)

    def known(self, clip: TrueClip, video: bool = True, motion: bool = True, **some: int) -> Known:
        """What is given of a clip: streams, or so many latent frames `first` and `last`."""
        streams = frames_in(clip) if video else None, clip.motion if motion else None
        return self.model.known(self.size, *streams, **some)


Measured = tuple[dict[str, Any], list[Generation]]
"""Scores, and what was made."""


def video_to_motion(setting: Setting, clips: Sequence[TrueClip]) -> Measured:
    """The motion in a given video, with the words and without, against that of first frame and words alone; or in a
    longer one than the model's, in windows."""
    if len(clips[0].video) > setting.size.frames:
        return _long_video_to_motion(setting, clips)
    joint, made, wordless = [], [], []
    for clip in _told(clips, "video to motion"):
        known = setting.known(clip, motion=False)
        made.append(setting.make(clip, known))
        wordless.append(setting.make(clip, known, prompt=""))
        joint.append(setting.make(clip))
    scores = {
        **scores_of(made, clips, setting.judges),
        "without_words": scores_of(wordless, clips, setting.judges),
        "joint": scores_of(joint, clips, setting.judges),
        "video_gain": paired(made, joint, clips),
    }
    return scores, made


def _long_video_to_motion(setting: Setting, clips: Sequence[TrueClip]) -> Measured:
    """A video cut into windows as *SViMo Video to Motion* does, what is made of each joined as by *SViMo Join Clips*.

    Returns:
        Errors and acceleration of the whole, and of windows by themselves: that at the beginning, and those from amid
        the action. `seam`: how far apart two windows have the hands where both show them (mm), and how hands
        accelerate there (mm a squared frame), made and true.
    """
    frames = setting.size.frames
    starts = window_starts(len(clips[0].video), frames, setting.window_overlap)
    shared = [range(start, before + frames) for before, start in itertools.pairwise(starts)]
    last = len(clips[0].video) - 1  # which has no acceleration, as the first
    seams = sorted({i for part in shared for i in range(part.start - 1, part.stop + 1) if 0 < i < last})
    made, seen, parts, apart = [], [], [], []
    for clip in _told(clips, "long video to motion"):
        cut = [_clip_cut(clip, range(start, start + frames)) for start in starts]
        windows = [setting.make(part, setting.known(part, motion=False)) for part in cut]
        motions = [window.motion for window in windows]
        made.append(
            Generation(
                video=join_videos([window.video for window in windows], starts, blend=True),
                drawing=join_videos([window.drawing for window in windows], starts, blend=True),
                motion=join_motions(motions, starts),
                report=windows[-1].report,
            )
        )
        for (one, two), part in zip(itertools.pairwise(motions), shared, strict=True):
            apart.append(mpjpe_mm(one.hands[-len(part) :], two.hands[: len(part)]))
        seen.append(motions)
        parts.append(cut)
    joined = [x.motion for x in made]
    seam, of_truth = (
        mean(_acceleration(motion)[i - 1] for motion in motions for i in seams)
        for motions in (joined, [clip.motion for clip in clips])
    )
    scores = {
        "clips": len(clips),
        "frames": len(clips[0].video),
        "windows": len(starts),
        **motion_scores(joined, clips, None),
        "first_window": motion_scores([x[0] for x in seen], [x[0] for x in parts], None),
        "other_windows": motion_scores(
            [motion for x in seen for motion in x[1:]], [clip for x in parts for clip in x[1:]], None
        ),
        "truth": {"smoothness": mean(smoothness_mm(clip.motion.hands) for clip in clips)},
        "seam": {"apart_mm": mean(apart), "acceleration": seam, "of_truth": of_truth},
    }
    return scores, made


def motion_to_video(setting: Setting, clips: Sequence[TrueClip]) -> Measured:
    """The video of a given motion, against first frame and words alone; what motion is seen in it; and the video
    of a motion that the words do not say, against the true video of that motion."""
    joint, made, seen, followed = [], [], [], []
    for clip in _told(clips, "motion to video"):
        made.append(setting.make(clip, setting.known(clip, video=False)))
        joint.append(setting.make(clip))
        shown = setting.model.known(setting.size, video=made[-1].video)
        seen.append(setting.make(clip, shown).motion)
        asked = None if clip.triplet is None else other_action(clip.triplet)
        if asked is not None:
            followed.append(_another_motion(setting, clip, asked))
    scores = {
        **video_scores([to_uint8(x.video) for x in made], clips),
        "reprojection_px": reprojection([clip.motion for clip in clips], [to_uint8(x.drawing) for x in made]),
        "joint": scores_of(joint, clips, setting.judges),
        "seen_in_the_video": motion_scores(seen, clips, setting.judges),
        "motion_gain": paired(made, joint, clips),
    }
    if followed:
        of_motion, of_words = np.array(followed).T
        scores["another_motion"] = {
            "clips": len(followed),
            "psnr_moving_db": float(of_motion.mean()),
            "psnr_moving_db_words_alone": float(of_words.mean()),
            "share_nearer_than_words_alone": float((of_motion > of_words).mean()),
        }
    return scores, made


def _another_motion(setting: Setting, clip: TrueClip, asked: Any) -> tuple[float, float]:
    """How near the video of another action's motion comes to its true one under the clip's own words: with the motion,
    and without."""
    frames, height, width = setting.size
    size = dict(frames=frames, height=height, width=width, fps=clip.motion.fps)
    made = generate_clip(clip.seed, clip.motion.metadata["split"], triplet=asked, **size)
    other, words = replace(clip, video=made.video, motion=made.motion), clip.motion.prompt
    made = (setting.make(other, known, words) for known in (setting.known(other, video=False), None))
    return tuple(psnr_moving_db(to_uint8(x.video), other.video) for x in made)


def go_on(setting: Setting, clips: Sequence[TrueClip]) -> Measured:
    """True clips, as long as all windows together, whose first window is given and the others go on from each other.

    Returns:
        By window: errors of what is new in it, those of the last given pose held, and PSNR to the reference image over
        what is still in the true clip. `seam`: the acceleration of hands where windows meet, over that elsewhere.
    """
    frames, overlap = setting.size.frames, setting.overlap
    starts = [i * (frames - overlap) for i in range(WINDOWS)]
    made = []
    for clip in _told(clips, "continue"):
        given = _clip_cut(clip, range(frames))
        shown = render_motion(given.motion, setting.size.width, setting.size.height)
        whole = Generation(
            video=frames_in(given), drawing=_in_01(shown), motion=given.motion, report=SamplerReport()
        )
        for start in starts[1:]:
            shared = range(start, start + overlap)
            end = _padded(
                replace(clip, video=to_uint8(whole.video[start:]), motion=_cut(whole.motion, shared)), frames
            )
            window = setting.make(end, setting.known(end, first=KEPT))
            whole = Generation(
                video=join_videos([whole.video, window.video], [0, start]),
                drawing=join_videos([whole.drawing, window.drawing], [0, start]),
                motion=join_motions([whole.motion, window.motion], [0, start], follow=True),
                report=window.report,
            )
        made.append(whole)
    seams = {start + overlap + shift for start in starts[1:] for shift in (-1, 0)}
    scores: dict[str, Any] = {"clips": len(clips), "seam": _seam([x.motion for x in made], seams)}
    for i, start in enumerate(starts):
        part = range(start + overlap if i else 0, start + frames)
        parts = [_clip_cut(clip, part) for clip in clips]
        still = [_padded(_clip_cut(clip, range(frames - 1, frames)), len(part)).motion for clip in clips]
        scores[f"window_{i + 1}"] = {
            **errors([_cut(x.motion, part) for x in made], parts),
            **{f"{name}_pose_held": value for name, value in errors(still, parts).items()},
            "psnr_still_db": mean(
                _psnr_still(to_uint8(x.video[part.start : part.stop]), clip.video)
                for x, clip in zip(made, clips, strict=True)
            ),
        }
    return scores, made


def between(setting: Setting, clips: Sequence[TrueClip]) -> Measured:
    """Clips whose first latent frame is known, with and without the last: errors of what is known in neither."""
    ends, starts = [], []
    for clip in _told(clips, "between"):
        ends.append(setting.make(clip, setting.known(clip, first=1, last=1)))
        starts.append(setting.make(clip, setting.known(clip, first=1)))
    middle = range(1, setting.size.frames - TEMPORAL_COMPRESSION)
    parts = [_clip_cut(clip, middle) for clip in clips]
    cut = [[_generation_cut(x, middle) for x in made] for made in (ends, starts)]
    scores = {
        **errors([x.motion for x in cut[0]], parts),
        **video_scores([to_uint8(x.video) for x in cut[0]], parts),
        "first_frame_only": errors([x.motion for x in cut[1]], parts)
        | video_scores([to_uint8(x.video) for x in cut[1]], parts),
        "last_frame_gain": paired(*cut, parts),
    }
    return scores, ends


MEASURES: dict[str, Callable[[Setting, Sequence[TrueClip]], Measured]] = {
    "video-to-motion": video_to_motion,
    "motion-to-video": motion_to_video,
    "continue": go_on,
    "between": between,
}


def frames_of(latent_frames: int) -> int:
    """Frames of so many latent frames at the beginning of a clip."""
    return 1 + TEMPORAL_COMPRESSION * (latent_frames - 1)


def frames_in(clip: TrueClip) -> Tensor:
    """N H W 3 in [0, 1]."""
    return _in_01(clip.video)


def _in_01(frames: np.ndarray) -> Tensor:
    return torch.from_numpy(frames).float() / 255


def _told(clips: Sequence[TrueClip], what: str) -> Iterable[TrueClip]:
    return tqdm(clips, desc=what, unit="clip")


def _padded(clip: TrueClip, frames: int) -> TrueClip:
    """A clip with its last frame held until it has so many."""
    index = np.minimum(np.arange(frames), len(clip.video) - 1)
    return replace(clip, video=clip.video[index], motion=clip.motion.take(index))


def _cut(motion: HandObjectMotion, part: range) -> HandObjectMotion:
    return trim(motion, part.start, part.stop - 1)


def _clip_cut(clip: TrueClip, part: range) -> TrueClip:
    return replace(clip, video=clip.video[part.start : part.stop], motion=_cut(clip.motion, part))


def _generation_cut(made: Generation, part: range) -> Generation:
    shown = slice(part.start, part.stop)
    return replace(made, video=made.video[shown], drawing=made.drawing[shown], motion=_cut(made.motion, part))


def _seam(motions: Sequence[HandObjectMotion], seams: Collection[int]) -> dict[str, float]:
    """Acceleration of hands (mm a squared frame) in these frames, and in all others."""
    near, far = [], []
    for motion in motions:
        for i, value in enumerate(_acceleration(motion), start=1):
            (near if i in seams else far).append(value)
    return {"smoothness": mean(near), "elsewhere": mean(far), "ratio": mean(near) / mean(far)}


def _acceleration(motion: HandObjectMotion) -> np.ndarray:
    """Of hands, mm a squared frame, in each frame but the first and the last."""
    return 1e3 * np.linalg.norm(np.diff(motion.hands, n=2, axis=0), axis=-1).mean(axis=(1, 2))


def _psnr_still(video: np.ndarray, truth: np.ndarray) -> float:
    """PSNR (dB) of a part of a clip to its first frame, over the pixels that never move in the true clip."""
    still = (np.abs(truth.astype(np.int16) - truth[0]) <= MOVING).all(axis=(0, -1))
    error = np.mean((video[:, still].astype(np.float64) - truth[0][still]) ** 2)
    return float(10 * np.log10(255**2 / error))
