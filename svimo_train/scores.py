"""What generated clips are measured by, all of it together: means over clips, and gains clip by clip."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from svimo_core.motion import HandObjectMotion
from svimo_core.sampling.pipeline import Generation, to_uint8

from .data.words import Triplet, triplet_weights
from .judges import Judges
from .metrics import (
    chamfer_mm2,
    frechet_distance,
    mpjpe_mm,
    psnr_db,
    psnr_moving_db,
    reprojection_px,
    smoothness_mm,
    ssim,
)
from .truth import TrueClip


def scores_of(
    made: Sequence[Generation], clips: Sequence[TrueClip], judges: Judges | None
) -> dict[str, float | None]:
    """Of generated clips against the true ones; see :func:`motion_scores` about the judges."""
    motions = [generation.motion for generation in made]
    drawings = [to_uint8(generation.drawing) for generation in made]
    return {
        **motion_scores(motions, clips, judges),
        "reprojection_px": reprojection(motions, drawings),
        **video_scores([to_uint8(generation.video) for generation in made], clips),
    }


def errors(motions: Sequence[HandObjectMotion], clips: Sequence[TrueClip]) -> dict[str, float]:
    """How far hands and objects are from those of the true clips."""
    pairs = [(motion, clip.motion) for motion, clip in zip(motions, clips, strict=True)]
    return {
        "mpjpe_mm": mean(mpjpe_mm(motion.hands, truth.hands) for motion, truth in pairs),
        "chamfer_mm2": mean(chamfer(*pair) for pair in pairs),
    }


def motion_scores(
    motions: Sequence[HandObjectMotion], clips: Sequence[TrueClip], judges: Judges | None
) -> dict[str, float | None]:
    """Of 3D motion against that of the true clips. Without judges that know such clips there is no FID, and without a
    classifier among them no obedience."""
    truth = [clip.motion for clip in clips]
    several = len(motions) > 1
    scores = {
        **errors(motions, clips),
        "smoothness": mean(smoothness_mm(motion.hands) for motion in motions),
    }
    if judges is not None:
        scores["fid"] = frechet_distance(judges.codes(motions), judges.codes(truth)) if several else None
    if judges is not None and judges.actions:
        scores["prompt_obedience"] = judges.obedience(motions, [clip.triplet.action for clip in clips])
    return scores


def video_scores(videos: Sequence[np.ndarray], clips: Sequence[TrueClip]) -> dict[str, float]:
    """Of videos (N H W 3 uint8 each) against those of the true clips."""
    pairs = [(video, clip.video) for video, clip in zip(videos, clips, strict=True)]
    return {
        "psnr_db": mean(psnr_db(*pair) for pair in pairs),
        "psnr_moving_db": mean(psnr_moving_db(*pair) for pair in pairs),
        "ssim": mean(ssim(*pair) for pair in pairs),
    }


def paired(
    made: Sequence[Generation], others: Sequence[Generation], clips: Sequence[TrueClip]
) -> dict[str, dict[str, float]]:
    """How much lower errors are than those of others, clip by clip: mean and its standard error."""
    errors = {
        "mpjpe_mm": lambda made, clip: mpjpe_mm(made.motion.hands, clip.motion.hands),
        "chamfer_mm2": lambda made, clip: chamfer(made.motion, clip.motion),
        "reprojection_px": lambda made, clip: reprojection_px(made.motion, to_uint8(made.drawing)),
        "psnr_moving_db": lambda made, clip: -psnr_moving_db(to_uint8(made.video), clip.video),
    }
    gains = {}
    for name, error in errors.items():
        gain = np.array([error(b, c) - error(a, c) for a, b, c in zip(made, others, clips, strict=True)])
        gains[name] = {"mean": float(gain.mean()), "standard_error": float(gain.std() / np.sqrt(len(gain)))}
    return gains


def chamfer(motion: HandObjectMotion, truth: HandObjectMotion) -> float:
    """Mean over the motion's objects, all of which the truth has; see :func:`svimo_train.metrics.chamfer_mm2`."""
    return mean(chamfer_mm2(points, truth.objects[name]) for name, points in motion.objects.items())


def reprojection(motions: Iterable[HandObjectMotion], drawings: Iterable[np.ndarray]) -> float:
    """Mean over clips; see :func:`svimo_train.metrics.reprojection_px`."""
    return mean(reprojection_px(motion, video) for motion, video in zip(motions, drawings, strict=True))


def other_action(triplet: Triplet) -> Triplet | None:
    """The same tool and target with another action that training has for them, if there is one."""
    options = [
        other
        for other in triplet_weights("train")
        if (other.tool, other.target) == (triplet.tool, triplet.target) and other.action != triplet.action
    ]
    return options[0] if options else None


def mean(values: Iterable[float]) -> float:
    """Of numbers, as a plain one."""
    return float(np.mean(list(values)))
