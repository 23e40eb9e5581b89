"""What artists do with long motions: seconds for each step, and per thousand frames.

python -m benchmarks.motion --frames 10000
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter1d

from svimo_core.clean import resample, smooth
from svimo_core.export.bvh import write_bvh
from svimo_core.export.glb import write_glb
from svimo_core.export.json_ import write_json
from svimo_core.importing.read import read_motion
from svimo_core.motion import Camera, HandObjectMotion
from svimo_core.render import draw_view
from svimo_core.rigged import rig_motion

EXAMPLE = Path(__file__).resolve().parent.parent / "assets" / "motions" / "stir_cup.npz"
DRAWN = 100


def long_motion(frames: int, fps: float = 30.0, seed: int = 0) -> HandObjectMotion:
    """The example's hands and objects wandering slowly, with a tracker's noise of a millimetre."""
    example = HandObjectMotion.load(EXAMPLE)
    rng = np.random.default_rng(seed)
    order = np.abs((np.arange(frames) // 4) % (2 * len(example) - 2) - (len(example) - 1))  # to and fro
    way = gaussian_filter1d(rng.normal(size=(frames, 3)), 30, axis=0) * 0.3

    def moved(points: np.ndarray) -> np.ndarray:
        places = points[order] + way.reshape(frames, *(1,) * (points.ndim - 2), 3)
        return places + rng.normal(0, 1e-3, places.shape)

    objects = {name: moved(points) for name, points in example.objects.items()}
    camera = Camera.from_fov(624, 416)
    return HandObjectMotion(hands=moved(example.hands), objects=objects, camera=camera, fps=fps)


def main() -> None:
    """Time each step and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=10_000)
    frames = parser.parse_args().frames
    motion = long_motion(frames)
    rows: list[tuple[str, float, float]] = []

    def timed(name: str, work: Callable, of: int = frames):
        start = time.perf_counter()
        result = work()
        seconds = time.perf_counter() - start
        rows.append((name, seconds, 1000 * seconds / of))
        return result

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        timed("smooth", lambda: smooth(motion, 0.05))
        rigged = timed("rig with capsule hands", lambda: rig_motion(motion))
        timed("save .npz", lambda: motion.save(path / "m.npz"))
        timed("load .npz", lambda: read_motion(path / "m.npz"))
        timed("save .glb", lambda: write_glb(path / "m.glb", rigged))
        timed("save .bvh, one hand", lambda: write_bvh(path / "left.bvh", rigged.hands[0], motion.fps))
        timed("import .bvh, one hand", lambda: read_motion(path / "left.bvh"))
        half = HandObjectMotion(
            hands=motion.hands[: frames // 2], objects={}, camera=motion.camera, fps=motion.fps
        )
        timed("save .json, hands alone", lambda: write_json(path / "m.json", half), frames // 2)
        timed("load .json", lambda: read_motion(path / "m.json"), frames // 2)
        timed("resample to 24", lambda: resample(motion, 24.0))
        drawing = draw_view(motion, 480, 320)
        timed("draw a preview", lambda: [next(drawing) for _ in range(DRAWN)], DRAWN)

    print(
        f"| {frames:,} frames, {motion.duration:.0f} s of motion | seconds | seconds per 1,000 frames |\n|---|---|---|"
    )
    for name, seconds, each in rows:
        print(f"| {name} | {seconds:.2f} | {each:.2f} |")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"\nPeak memory of the process: {peak:.1f} GB.")


if __name__ == "__main__":
    main()
