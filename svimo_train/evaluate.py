"""How good is a model? Generate clips that it never saw from their first frames, and measure them against the truth.

    python -m svimo_train.evaluate --checkpoint assets/models/svimo-tiny.safetensors --seed 0 --count 64
    python -m svimo_train.evaluate --checkpoint FILE --clips output/taco/test --count 64

The clips come from the synthetic world and from the seed alone; their numbers lie far beyond those of training clips.
With `--clips` they are a folder's. Everything is measured a second time with the loop open (`feedback_off`), and beside
baselines that know less:

- `baseline_triplet_mean`: the mean training motion of the prompt's words, which ignores the image. For words that no
  training clip has, the mean over the training triplets that share most words with them. Synthetic clips only.
- `baseline_first_pose`: the generated first pose, held still.
- `baseline_repeat_image`: the reference image as every frame.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from tqdm import tqdm

from svimo_core.checkpoint import CheckpointHeader, read_header
from svimo_core.files import reading, whole_file
from svimo_core.motion import HandObjectMotion
from svimo_core.render import render_motion
from svimo_core.sampling.guidance import FeedbackOptions
from svimo_core.sampling.pipeline import Generation, SViMo, generate, to_uint8
from svimo_core.windows import window_starts

from . import vbench
from .data.synthetic import generate_motion
from .data.words import HELD_OUT, SPLITS, Triplet, triplet_weights
from .judges import Judges
from .scores import motion_scores, other_action, paired, reprojection, scores_of, video_scores
from .tasks import KEPT, MEASURES, WINDOWS, Setting, frames_of
from .text import KnownText, t5_features
from .truth import TrueClip, folder_clips, synthetic_clips

log = logging.getLogger(__name__)

MEAN_CLIPS = 48
"""Training motions behind the mean of a triplet."""

SPLIT = "test"
PRECISIONS = {"no": torch.float32, "bf16": torch.bfloat16}
NEEDED = "backbone", "interaction", "vae"
"""Parts of a checkpoint; text can be encoded by others."""
COMPARISONS = "loop", "drawing"
COLUMNS = {
    "mpjpe_mm": "hands mm",
    "chamfer_mm2": "objects mm2",
    "smoothness": "accel. mm",
    "fid": "FID",
    "prompt_obedience": "obeys",
    "obedience_changed_action": "changed",
    "reprojection_px": "reproj. px",
    "psnr_db": "PSNR",
    "psnr_moving_db": "moving",
    "ssim": "SSIM",
}
"""What is measured (:mod:`svimo_train.metrics`), and its heading in the table."""
LEFT_OUT = (
    "Obedience of words and the mean motion of a prompt are left out: their judge and training motions are of the "
    "synthetic world, and know nothing of other clips."
)
NO_FID = (
    "FID is left out for want of judges of such clips: train some, python -m svimo_train.judge_training --clips "
    "TRAINING_FOLDER --out FILE, and give them as --judges FILE."
)


def evaluate(
    model: SViMo,
    clips: Sequence[TrueClip],
    judges: Judges | None,
    *,
    steps: int = 10,
    guidance_scale: float = 1.0,
    guidance_schedule: str = "constant",
    options: FeedbackOptions | None = None,
    compare: str | None = "loop",
) -> tuple[dict[str, Any], list[Generation]]:
    """Generate every clip from its first frame and prompt, with and without feedback, and measure.

    The noise of a clip comes from its own seed, so both runs and every repetition start alike.

    Args:
        judges: who know such clips; None leaves out what only they can tell.
        compare: "loop": also generate with the loop open, and from the same image with only the action's word changed;
            and measure the baselines. "drawing": also generate with OpenCV and the VAE in place of the drawing encoder.
            None: nothing.

    Returns:
        Scores of the model at the top level, others under `feedback_off`, `baseline_...`, `truth`, `seen_words` and
        `held_out_words`, or `exact_drawing`; how much lower errors are than without something, clip by clip, under
        `..._gain`; and the generations with feedback.

    Raises:
        ValueError: nothing of that name to compare with, or a model without drawing encoder and "drawing".
    """
    if compare not in (*COMPARISONS, None):
        raise ValueError(f"an evaluation compares with one of {', '.join(COMPARISONS)}, got {compare!r}")
    if compare == "drawing" and model.drawing_encoder is None:
        raise ValueError("the checkpoint has no drawing encoder, so both ways to draw would be the same")
    settings = dict(steps=steps, guidance_scale=guidance_scale, guidance_schedule=guidance_schedule)
    options = options or FeedbackOptions()

    # 1. generate
    closed, opened, exact, changed, asked = [], [], [], [], []
    for clip in tqdm(clips, desc="generate", unit="clip"):
        image, seed = torch.from_numpy(clip.video[0]).float() / 255, clip.seed
        prompt = clip.motion.prompt
        closed.append(generate(model, image, prompt, seed, options=options, **settings))
        if compare == "drawing":
            exactly = replace(options, exact=True)
            exact.append(generate(model, image, prompt, seed, options=exactly, **settings))
        if compare != "loop":
            continue
        off = replace(options, enabled=False)
        opened.append(generate(model, image, prompt, seed, options=off, **settings))
        other = None if clip.triplet is None else other_action(clip.triplet)
        if other is not None:
            made = generate(model, image, other.prompt, seed, options=options, **settings)
            changed.append(made.motion)
            asked.append(other.action)

    # 2. measure, all of it and by whether training had the words
    passes = closed[0].report.feedback_passes
    scores: dict[str, Any] = {
        "clips": len(clips),
        "feedback_passes": passes,
        **scores_of(closed, clips, judges),
    }
    if compare == "drawing":
        scores["exact_drawing"] = scores_of(exact, clips, judges)
        scores["drawing_encoder_gain"] = paired(closed, exact, clips)
    if compare != "loop":
        return scores, closed
    if changed:
        scores["obedience_changed_action"] = judges.obedience(changed, asked)
        scores["clips_changed_action"] = len(changed)
    scores["feedback_off"] = scores_of(opened, clips, judges)
    scores["feedback_gain"] = paired(closed, opened, clips)
    worded = [(i, clip.triplet) for i, clip in enumerate(clips) if clip.triplet is not None]
    for name, held_out in (("seen_words", False), ("held_out_words", True)):
        chosen = [i for i, triplet in worded if bool(HELD_OUT.intersection(triplet)) == held_out]
        if len(chosen) > 1:
            part = [clips[i] for i in chosen]
            scores[name] = {"clips": len(chosen), **scores_of([closed[i] for i in chosen], part, judges)}

    # 3. baselines
    truth = [clip.motion for clip in clips]
    if worded:
        means = [mean_motion(clip.triplet, clip.motion) for clip in clips]
        scores["baseline_triplet_mean"] = motion_scores(means, clips, judges)
    held = [made.motion.take(np.zeros(len(made.motion), int)) for made in closed]
    scores["baseline_first_pose"] = motion_scores(held, clips, judges)
    scores["baseline_repeat_image"] = video_scores(
        [np.repeat(c.video[:1], len(c.video), 0) for c in clips], clips
    )
    drawn = [render_motion(m, m.camera.width, m.camera.height) for m in truth]
    scores["truth"] = motion_scores(truth, clips, judges) | {"reprojection_px": reprojection(truth, drawn)}
    return scores, closed


def mean_motion(triplet: Triplet, like: HandObjectMotion) -> HandObjectMotion:
    """Mean over training motions of these words, or of the nearest words that training has; size and rate as `like`."""
    camera = like.camera
    hands, objects = _mean_of(triplet, len(like), camera.height, camera.width, like.fps, _points(like))
    return replace(like, hands=hands, objects=objects)


@cache
def _mean_of(
    triplet: Triplet, frames: int, height: int, width: int, fps: float, points: int
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    seen = list(triplet_weights("train"))
    shared = [sum(a == b for a, b in zip(triplet, other, strict=True)) for other in seen]
    nearest = [other for other, common in zip(seen, shared, strict=True) if common == max(shared)]
    size = dict(frames=frames, height=height, width=width, fps=fps, points=points)
    motions = [
        generate_motion(number, "train", triplet=nearest[number % len(nearest)], **size)
        for number in range(MEAN_CLIPS)
    ]
    hands = np.mean([motion.hands for motion in motions], axis=0)
    return hands, {name: np.mean([m.objects[name] for m in motions], axis=0) for name in motions[0].objects}


def contact_sheet(clips: Sequence[TrueClip], made: Sequence[Generation], columns: int = 5) -> np.ndarray:
    """For each clip: frames of the true video and drawing, over the generated video, its motion video, and the drawn 3D
    motion."""
    rows = []
    for clip, generation in zip(clips, made, strict=True):
        chosen = np.linspace(0, len(clip.video) - 1, columns).astype(int)
        height, width = clip.video.shape[1:3]
        blank = np.zeros_like(clip.video)
        true = (clip.video, render_motion(clip.motion, width, height), blank)
        generated = (
            to_uint8(generation.video),
            to_uint8(generation.drawing),
            render_motion(generation.motion, width, height),
        )
        strips = [
            np.concatenate([np.concatenate(list(video[chosen]), 1) for video in row], 1)
            for row in (true, generated)
        ]
        banner = np.full((18, strips[0].shape[1], 3), 245, np.uint8)
        text = f"{clip.motion.prompt}   (above: truth, below: generated)"
        cv2.putText(banner, text, (4, 13), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (20, 20, 20), 1, cv2.LINE_AA)
        rows.append(np.concatenate([banner, *strips]))
    return np.concatenate(rows)


def table(scores: dict[str, Any]) -> str:
    """The scores as text for people, in the columns that there is something for."""
    names = [name for name, value in scores.items() if isinstance(value, dict) and not name.endswith("_gain")]
    rows = [("model", scores), *((name, scores[name]) for name in names)]
    columns = [key for key in COLUMNS if any(row.get(key) is not None for _, row in rows)]
    lines = [" " * 24 + "".join(f"{COLUMNS[key]:>12}" for key in columns)]
    for name, row in rows:
        if row.keys().isdisjoint(COLUMNS) and row is not scores:
            continue
        cells = (f"{row[key]:12.3f}" if row.get(key) is not None else " " * 12 for key in columns)
        lines.append(f"{name:24}" + "".join(cells))
    for name, gain in scores.items():
        if name.endswith("_gain"):
            cells = (f"{key} {x['mean']:.3f} +- {x['standard_error']:.3f}" for key, x in gain.items())
            lines.append(f"{name:24}" + ", ".join(cells))
    for name, row in rows[1:]:
        others = ", ".join(
            f"{key} {value:.3f}" for key, value in row.items() if key not in COLUMNS and key != "clips"
        )
        if others:
            lines.append(f"{name:24}{others}")
    if "left_out" in scores:
        lines.append(scores["left_out"])
    return "\n".join(lines)


def _points(motion: HandObjectMotion) -> int:
    return next(iter(motion.objects.values())).shape[1]


# --- command ---


def main(arguments: list[str] | None = None) -> int:
    """0 when done; 1 with a message on stderr when it cannot be."""
    parser = argparse.ArgumentParser(
        prog="python -m svimo_train.evaluate",
        description="Generate clips that the model never saw, and measure them.",
    )
    default = Path(__file__).resolve().parents[1] / "assets" / "models" / "svimo-tiny.safetensors"
    parser.add_argument("--checkpoint", type=Path, default=default, help="a whole SViMo checkpoint")
    parser.add_argument(
        "--clips",
        type=Path,
        metavar="FOLDER",
        help="of plain clips to measure on; without it the synthetic world's",
    )
    parser.add_argument(
        "--judges",
        type=Path,
        metavar="FILE",
        help="for FID on --clips: made by judge_training --clips on the folder that the model was trained on",
    )
    parser.add_argument("--seed", type=int, default=0, help="which clips, and their noise")
    parser.add_argument(
        "--count", type=int, default=64, help="how many clips, at most those that a folder has"
    )
    parser.add_argument(
        "--split", choices=SPLITS, help=f"whose words synthetic clips have (default: {SPLIT})"
    )
    parser.add_argument(
        "--text-model",
        type=Path,
        metavar="FOLDER",
        help="T5 in transformers' form, for a model without a text encoder of its own",
    )
    parser.add_argument("--steps", type=int, default=10, help="sampling steps")
    parser.add_argument("--guidance-scale", type=float, default=1.0, help="classifier-free guidance")
    parser.add_argument(
        "--dynamic-guidance", action="store_true", help="let it grow over the steps, as CogVideoX does"
    )
    parser.add_argument(
        "--compare",
        choices=COMPARISONS,
        default="loop",
        help="with the loop open, other words and baselines; or with the VAE in place of the drawing encoder",
    )
    parser.add_argument(
        "--task",
        choices=("joint", *MEASURES),
        default="joint",
        help="joint: image and words to both; others need a model that was trained with known streams and frames",
    )
    parser.add_argument(
        "--frames",
        type=int,
        help="of each clip, for --task video-to-motion: longer ones than the model's are seen in windows",
    )
    parser.add_argument(
        "--overlap", type=int, default=0, help="frames that such windows share (default: half of one)"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--precision",
        choices=tuple(PRECISIONS),
        default="no",
        help='"bf16": weights and computation in bfloat16',
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the scores here")
    parser.add_argument(
        "--export-vbench", type=Path, metavar="FOLDER", help="also write the videos and prompts for VBench"
    )
    parser.add_argument(
        "--vbench-results",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="generate nothing; show what VBench found of exported videos, beside the scores in --json, which get it",
    )
    parser.add_argument("--sheet", type=Path, metavar="FILE.png", help="also draw the first eight clips")
    args = parser.parse_args(arguments)
    if args.vbench_results is not None:
        return _add_vbench(args.vbench_results, args.json)
    began = time.perf_counter()
    try:
        if args.export_vbench is not None:
            vbench.place_for_videos(args.export_vbench)  # before hours go into what cannot be written there
        header = read_header(args.checkpoint)
        for part in NEEDED:
            header.check_has(part)
        if args.task != "joint" and not header.config.backbone.any_to_any:
            raise ValueError(
                f"{args.checkpoint.name} was not trained with known streams and frames: {args.task} needs it"
            )
        clips, judges = _clips(args, header)
        text = _text(header, args.text_model, clips, args.device)
        model = SViMo.load(args.checkpoint, args.device, PRECISIONS[args.precision], text)
        settings = dict(
            steps=args.steps,
            guidance_scale=args.guidance_scale,
            guidance_schedule="dynamic" if args.dynamic_guidance else "constant",
        )
        if args.task == "joint":
            scores, made = evaluate(model, clips, judges, compare=args.compare, **settings)
        else:
            setting = Setting(model=model, judges=judges, options=settings, window_overlap=args.overlap)
            scores, made = MEASURES[args.task](setting, clips)
        run = dict(
            task=args.task,
            seed=args.seed,
            checkpoint=args.checkpoint.name,
            precision=args.precision,
            **settings,
        )
        if args.clips is None:
            run["split"] = args.split or SPLIT
        else:
            run |= dict(folder=str(args.clips), left_out=LEFT_OUT if judges else f"{NO_FID} {LEFT_OUT}")
        if args.judges is not None:
            run["judges"] = args.judges.name
        scores = {**run, "seconds": round(time.perf_counter() - began, 1), **scores}
        if args.json is not None:
            _write(args.json, json.dumps(scores, indent=2).encode())
        if args.export_vbench is not None:
            names, prompts = [clip.name for clip in clips], [clip.motion.prompt for clip in clips]
            videos = [to_uint8(generation.video) for generation in made]
            vbench.export(args.export_vbench, names, prompts, videos, model.config.fps)
        if args.sheet is not None:
            sheet = contact_sheet(clips[:8], made[:8])
            _write(args.sheet, cv2.imencode(".png", sheet[..., ::-1])[1].tobytes())
    except (OSError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(f"{table(scores)}\n")
    return 0


def _clips(args: argparse.Namespace, header: CheckpointHeader) -> tuple[list[TrueClip], Judges | None]:
    """What to measure on, and who judges it."""
    config = header.config
    frames = config.frames
    if (args.frames or args.overlap) and args.task != "video-to-motion":
        raise ValueError("--frames and --overlap are about long videos: give --task video-to-motion, too")
    if args.frames:
        if args.frames < frames:
            raise ValueError(
                f"{header.path.name} sees {frames} frames at a time: --frames must be at least that"
            )
        frames = args.frames
    window_starts(frames, config.frames, args.overlap)  # before hours go into what cannot be cut
    if args.task == "continue":
        frames += (WINDOWS - 1) * (frames - frames_of(KEPT))
    if args.clips is None:
        if args.judges is not None:
            raise ValueError("--judges is for --clips: the synthetic world's own ship with the pack")
        return synthetic_clips(args.seed, args.count, args.split or SPLIT, config, frames), Judges.load()
    if args.split is not None:
        raise ValueError("--split is about synthetic clips: leave it out, or give another folder for --clips")
    judges = None if args.judges is None else _judges(args.judges)
    clips = folder_clips(args.clips, args.seed, args.count, config, header.normalizer, frames)
    for clip in clips if judges is not None else ():
        try:
            judges.codes([clip.motion])
        except ValueError as error:  # before hours go into it
            raise ValueError(
                f"clip {args.clips / clip.name}: {error}; leave --judges out, or the clip"
            ) from error
    return clips, judges


def _judges(file: Path) -> Judges:
    judges = Judges.load(file)
    if judges.actions:
        raise ValueError(
            f"{file.name} knows the synthetic world and no other clips: train judges on the folder that the model "
            "was trained on, python -m svimo_train.judge_training --clips FOLDER --out FILE"
        )
    return judges


def _text(
    header: CheckpointHeader, folder: Path | None, clips: Iterable[TrueClip], device: str
) -> KnownText | None:
    """Features of all prompts of an evaluation, by the T5 in a folder; None for a model that encodes them itself."""
    own = "text_encoder" in header.parts
    if own and folder is not None:
        raise ValueError(f"{header.path.name} has a text encoder of its own: leave --text-model out")
    if own:
        return None
    if folder is None:
        raise ValueError(
            f"{header.path.name} has no text encoder of its own: set --text-model to the folder of the T5-XXL "
            "that it was trained with"
        )
    prompts = {"", *(clip.motion.prompt for clip in clips)}
    others = (other_action(clip.triplet) for clip in clips if clip.triplet is not None)
    prompts |= {other.prompt for other in others if other is not None}
    length, dim = header.config.backbone.text_length, header.config.backbone.text_dim
    features = t5_features(sorted(prompts), folder, length, torch.device(device))
    if features.shape[-1] != dim:
        raise ValueError(
            f"{folder} gives text features of {features.shape[-1]} numbers, and {header.path.name} reads {dim}: give "
            "the T5 that it was trained with"
        )
    return KnownText(dict(zip(sorted(prompts), features, strict=True)))


def _add_vbench(results: Sequence[Path], file: Path | None) -> int:
    """Show VBench's answer, and add it to an evaluation's scores."""
    try:
        scores: dict[str, Any] = {}
        if file is not None:
            with reading(file, "does not hold the scores of an evaluation", "give what --json wrote"):
                scores = dict(json.loads(file.read_text(encoding="utf-8")))
        scores["vbench"] = vbench.read_results(results)
        if file is not None:
            _write(file, json.dumps(scores, indent=2).encode())
    except (OSError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(f"{table(scores)}\n")
    return 0


def _write(path: str | os.PathLike, data: bytes) -> None:
    with whole_file(Path(path)) as partial:
        partial.write_bytes(data)


if __name__ == "__main__":
    sys.exit(main())
