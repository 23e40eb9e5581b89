"""The examples of how a run is started, with two processes on this machine's CPU in place of cards."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from conftest import FRAMES, HEIGHT, WIDTH, moving_motion

from svimo_train.clips import Clip, write_clip
from svimo_train.recipe import load_stages
from svimo_train.state import CHECKPOINT, steps_done

ROOT = Path(__file__).resolve().parents[2]
LAUNCH = ROOT / "svimo_train" / "launch"
TOOLS = {"scontrol": 'echo 127.0.0.1  # of "$SLURM_JOB_NODELIST"', "srun": 'exec "$@"'}
"""Slurm's, as far as one machine needs them."""


@pytest.mark.skipif(os.name == "nt", reason="Slurm and bash")
def test_slurm_example_runs_all_stages(tmp_path, checkpoint_file):
    """One process writes a checkpoint, and both start the next stage from it."""
    clip = torch.zeros(FRAMES, HEIGHT, WIDTH, 3, dtype=torch.uint8).numpy()
    (tmp_path / "clips").mkdir()
    for seed in range(2):
        write_clip(tmp_path / "clips", f"clip-{seed}", Clip(clip, moving_motion(seed)))
    shape = {"frames": FRAMES, "height": HEIGHT, "width": WIDTH, "batch_size": 1}
    fields = {
        "init": str(checkpoint_file),
        "clips": str(tmp_path / "clips"),
        "output": str(tmp_path / "out"),
        "sheet_every": 0,
        "phases": [{"steps": 1, "shapes": [shape]}],
        "stages": {
            "warm-up": {"stage": "interaction"},
            "joint": {"stage": "joint", "sharded": True},
        },
    }
    file = tmp_path / "recipe.json"
    file.write_text(json.dumps(fields))
    (tmp_path / "tools").mkdir()
    for name, does in TOOLS.items():
        (tmp_path / "tools" / name).write_text(f"#!/bin/sh\n{does}\n")
        (tmp_path / "tools" / name).chmod(0o755)
    job = {"SLURM_NNODES": "1", "SLURM_GPUS_ON_NODE": "2", "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "here"}
    path = os.pathsep.join([str(tmp_path / "tools"), str(Path(sys.executable).parent), os.environ["PATH"]])
    on_cpu = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PATH": path, "PORT": port()}
    done = subprocess.run(
        [shutil.which("bash"), str(LAUNCH / "two-nodes.sbatch"), "--config", str(file)],
        env=os.environ | job | on_cpu,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr

    for config in load_stages(file).values():
        assert steps_done(config.output, config.sharded) == 1
        text = (config.output / CHECKPOINT).read_bytes()[:20000].decode(errors="replace")
        assert f"{config.stage}: 1 steps, 2 samples, 0 minutes on 2 x cpu" in text


def test_accelerate_example_is_one_of_many_cards():
    found = load_config_from_file(str(LAUNCH / "one-node.yaml"))
    assert (found.distributed_type, found.num_processes, found.num_machines) == ("MULTI_GPU", 8, 1)
    assert found.fsdp_config == found.deepspeed_config == {}


def port() -> str:
    """One that is free now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])
