"""Make the tiny checkpoint that ships: from seeds alone, or of a training run.

python dev/make_tiny.py assets/models/svimo-tiny.safetensors [output/train/tiny-joint/model.safetensors [REMARK]]
"""

import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from svimo_core.checkpoint import PARTS, init_part, load_part, read_header, save_checkpoint
from svimo_core.config import TINY
from svimo_core.model.vae import VideoVAE, fit_preview
from svimo_core.normalization import MotionNormalizer
from svimo_train.data.synthetic import generate_clip, generate_motion

STATISTICS_CLIPS, PREVIEW_CLIPS = 512, 8
LARGEST = 17_000_000  # bytes


def from_seeds(path: str) -> Path:
    """Weights from fixed seeds, statistics and preview from synthetic clips."""
    size = dict(frames=TINY.frames, height=TINY.height, width=TINY.width, fps=TINY.fps)
    parts = {part: init_part(TINY, part, seed) for seed, part in enumerate(PARTS)}
    motions = [generate_motion(seed, **size) for seed in range(STATISTICS_CLIPS)]
    frames = np.stack([generate_clip(seed, **size).video for seed in range(PREVIEW_CLIPS)])
    with torch.inference_mode():
        preview = fit_preview(VideoVAE(parts["vae"], TINY.vae), torch.from_numpy(frames).float() / 255)
    normalizer = MotionNormalizer.fit(motions, TINY.interaction.object_names)
    provenance = {
        "training": f"none: weights from seeds 0 to {len(PARTS) - 1}",
        "statistics": f"synthetic training clips 0 to {STATISTICS_CLIPS - 1}",
        "preview": f"fitted to synthetic training clips 0 to {PREVIEW_CLIPS - 1}",
    }
    return save_checkpoint(path, TINY, parts, normalizer, preview, provenance, torch.float16)


def from_training(path: str, trained: str, remark: str) -> Path:
    """The checkpoint of a run, in half the bytes."""
    header = read_header(trained)
    parts = {part: load_part(header, part) for part in header.parts}
    provenance = header.provenance | ({"remark": remark} if remark else {})
    return save_checkpoint(
        path, header.config, parts, header.normalizer, header.preview, provenance, torch.float16
    )


target, *source = sys.argv[1:]
made = from_training(target, source[0], " ".join(source[1:])) if source else from_seeds(target)
made.chmod(0o644)
print(f"{made}: {made.stat().st_size / 1e6:.2f} MB")
assert made.stat().st_size <= LARGEST, "too large to ship"
