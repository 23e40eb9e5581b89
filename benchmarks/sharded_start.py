"""How much memory of its host a process takes until a sharded stage can begin.

    python -m benchmarks.sharded_start [--layers 24] [--processes 2]

Writes a checkpoint of random bfloat16 weights, and starts processes (gloo, on the CPU) that spread its MM-DiT and VID
and fill them, as the trainer does. Each says by how much its peak (`VmHWM`) rose meanwhile; Linux only.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator

from svimo_core.checkpoint import init_part, save_checkpoint
from svimo_core.config import TINY
from svimo_core.motion import NUM_JOINTS
from svimo_core.normalization import MotionNormalizer
from svimo_train.parallel import fill, shard
from svimo_train.settings import Phase, Shape, TrainConfig
from svimo_train.trainer import load_model

MB = 1e6


def stage_of(file: Path) -> TrainConfig:
    """The joint stage from this checkpoint."""
    shape = Shape(frames=TINY.frames, height=TINY.height, width=TINY.width, batch_size=1)
    return TrainConfig(
        stage="joint",
        clips=file.parent,
        output=file.parent,
        init=file,
        phases=(Phase(steps=1, shapes=(shape,)),),
        sharded=True,
        sheet_every=0,
    )


def write_model(file: Path, layers: int) -> None:
    """A checkpoint with an MM-DiT of so many blocks and a VID."""
    backbone = replace(TINY.backbone, num_layers=layers, num_heads=16, head_dim=64, time_embed_dim=512)
    size = replace(TINY, backbone=backbone)
    parts = {part: init_part(size, part, 0) for part in ("backbone", "interaction")}
    objects = size.interaction.object_names
    normalizer = MotionNormalizer(
        hands_mean=torch.zeros(NUM_JOINTS, 3),
        hands_std=torch.ones(NUM_JOINTS, 3),
        objects_mean=torch.zeros(len(objects), 3),
        objects_std=torch.ones(len(objects), 3),
        object_names=objects,
        camera=(1.0, 1.0, 0.5, 0.5),
    )
    save_checkpoint(file, size, parts, normalizer, dtype=torch.bfloat16)


def load_and_spread(file: Path) -> str:
    """Load, spread and fill; what it took."""
    accelerator, before = Accelerator(), peak()
    model = load_model(stage_of(file))
    networks = [model.parts[part].requires_grad_(True) for part in model.unread]
    sizes = [weight.numel() for network in networks for weight in network.parameters()]
    for network in networks:
        shard(network, accelerator)
    for part, tensors in model.unread.items():
        fill(model.parts[part], tensors, accelerator.device)
    took = (peak() - before) / MB
    own = 4 * sum(sizes) / accelerator.num_processes / MB
    return (
        f"process {accelerator.process_index} of {accelerator.num_processes}: peak rose by {took:.0f} MB; its part of "
        f"{sum(sizes) / 1e6:.0f} M float32 weights is {own:.0f} MB, the largest tensor {4 * max(sizes) / MB:.0f} MB"
    )


def peak() -> int:
    """Bytes that this process has had in memory at once."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=24, help="blocks of 16 x 64 channels")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)  # what each of the processes is told
    args = parser.parse_args()
    if args.file is not None:
        print(load_and_spread(args.file))
        return
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "start.safetensors"
        write_model(file, args.layers)
        run = ["torch.distributed.run", "--standalone", f"--nproc_per_node={args.processes}", "-m"]
        on_cpu = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", *run, "benchmarks.sharded_start", "--file", str(file)]
        subprocess.run(command, env=on_cpu, check=True)


if __name__ == "__main__":
    main()
