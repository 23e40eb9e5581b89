"""The loss curves of an ablation as one figure: mean over seeds, and their spread as a band.

python -m dev.ablation_figure output/train/ablation docs/images/ablation.png
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from svimo_train.ablation import VARIANTS, run_folder
from svimo_train.trainer import LOG

LOSSES = {
    "video": "error of the video latent",
    "motion": "error of the drawing's latent",
    "hands": "hand error of VID's reading",
}
WINDOW = 31
"""Steps of the moving average: a step sees few clips, at noise levels of all kinds."""


def curve(log: Path, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and smoothed values of one loss."""
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    steps, values = (np.array([line[name] for line in lines]) for name in ("step", key))
    mean = np.convolve(values, np.ones(WINDOW) / WINDOW, "valid")
    return steps[WINDOW // 2 : WINDOW // 2 + len(mean)], mean


def main(arguments: list[str]) -> int:
    """Read the runs' logs and draw."""
    parser = argparse.ArgumentParser(prog="python -m dev.ablation_figure", description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="output of svimo_train.ablation")
    parser.add_argument("picture", type=Path, help="PNG to write")
    args = parser.parse_args(arguments)
    folder, picture = args.folder, args.picture
    if not any(folder.glob(f"*/{LOG}")):
        parser.error(f"{folder} has no runs with a {LOG}: run svimo_train.ablation first")
    figure, panels = plt.subplots(1, len(LOSSES), figsize=(13, 3.8), layout="constrained")
    for (key, title), panel in zip(LOSSES.items(), panels, strict=True):
        for name in VARIANTS:
            logs = sorted(folder.glob(f"{run_folder(name, '*')}/{LOG}"))
            curves = [curve(log, key) for log in logs]
            if not curves:
                continue
            length = min(len(steps) for steps, _ in curves)  # one of them may still run
            steps, values = curves[0][0][:length], np.stack([value[:length] for _, value in curves])
            (line,) = panel.plot(steps, values.mean(0), label=name, linewidth=1.4)
            panel.fill_between(
                steps, values.min(0), values.max(0), color=line.get_color(), alpha=0.12, linewidth=0
            )
        panel.set(title=title, xlabel="step")
        panel.grid(alpha=0.25)
    panels[0].legend(fontsize=8)
    figure.savefig(picture, dpi=110)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
