"""Make the tiny checkpoint without training: weights from fixed seeds, statistics from synthetic clips.

python dev/make_tiny.py assets/models/svimo-tiny.safetensors
"""

import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from svimo_core.checkpoint import PARTS, init_part, save_checkpoint
from svimo_core.config import TINY
from svimo_core.data.synthetic import generate_clip, generate_motion
from svimo_core.model.vae import VideoVAE, fit_preview
from svimo_core.normalization import MotionNormalizer

STATISTICS_CLIPS, PREVIEW_CLIPS = 512, 8

size = dict(frames=TINY.frames, height=TINY.height, width=TINY.width, fps=TINY.fps)
parts = {part: init_part(TINY, part, seed) for seed, part in enumerate(PARTS)}
motions = [generate_motion(seed, **size) for seed in range(STATISTICS_CLIPS)]
frames = np.stack([generate_clip(seed, **size).video for seed in range(PREVIEW_CLIPS)])
with torch.inference_mode():
    vae = VideoVAE(parts["vae"], TINY.vae)
    preview = fit_preview(vae, torch.from_numpy(frames).float() / 255)
path = save_checkpoint(
    sys.argv[1],
    TINY,
    parts,
    MotionNormalizer.fit(motions, TINY.interaction.object_names),
    preview,
    {
        "training": f"none: weights from seeds 0 to {len(PARTS) - 1}",
        "statistics": f"synthetic training clips 0 to {STATISTICS_CLIPS - 1}",
        "preview": f"fitted to synthetic training clips 0 to {PREVIEW_CLIPS - 1}",
    },
    torch.float16,
)
path.chmod(0o644)
print(f"{path}: {path.stat().st_size / 1e6:.2f} MB")
