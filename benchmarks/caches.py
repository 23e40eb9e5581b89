"""What ComfyUI's caches and fewer steps cost and save with the bundled model, the loop closed.

    python -m benchmarks.caches [--clips 64] [--comfyui PATH]

Run it with the interpreter of a ComfyUI that has EasyCache for two streams (0.28 and newer); --comfyui, or else
COMFYUI_PATH, names its folder. Every setting generates the same test clips from the same noise through SViMo Sampler,
which runs core's guider, and SViMo's decoders. On a clip the settings take turns, so that a busy machine slows all of
them alike. What is measured goes to a file as it comes; the same command goes on from there.

Prints Markdown, which docs/results.md holds, and writes the same numbers as JSON.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
CHECKPOINT = "svimo-tiny.safetensors"
HEADER = "run"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One way to sample."""

    steps: int = 10
    cache: str | None = None
    """Core's node, EasyCache or LazyCache."""
    threshold: float = 0.2
    """Its reuse_threshold; 0.2 is core's default."""
    cache_first: bool = False
    """The cache between the loader and SViMo Feedback, in place of behind it: what it skips, the loop misses."""

    @property
    def name(self) -> str:
        """For tables."""
        if self.cache is None:
            return f"{self.steps} steps"
        return f"{self.cache} {self.threshold:g}" + (", before SViMo Feedback" if self.cache_first else "")


BASE = Setting()
SETTINGS = (
    BASE,
    *(Setting(cache="EasyCache", threshold=value) for value in (0.2, 0.4)),
    *(Setting(cache="LazyCache", threshold=value) for value in (0.05, 0.2)),
    *(Setting(steps=steps) for steps in (6, 4)),
)
"""The base, core's default thresholds and another one each, and fewer steps."""

READINGS = {
    "mean": "every step's clean latents, their mean (SViMo Sampler)",
    "finished": "finished latents, their first frame as image (other samplers, refine)",
    "finished_own_image": "finished latents, the reference image's own latent as image",
}
"""Where the 3D motion of a run is read."""


# --- inside ComfyUI ---


def import_pack(comfyui: Path) -> Any:
    """ComfyUI's modules on the path, and the pack as `pack`, as in ComfyUI's own process."""
    if not (comfyui / "main.py").is_file():
        raise FileNotFoundError(f"no ComfyUI in {comfyui}: expected a main.py there, set COMFYUI_PATH")
    sys.path.insert(0, str(comfyui))  # before the pack's own folder, whose `nodes` has ComfyUI's name
    sys.argv = ["main.py", "--cpu"]
    importlib.import_module("comfy.options").enable_args_parsing()
    spec = importlib.util.spec_from_file_location(
        "pack", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    pack = importlib.util.module_from_spec(spec)
    sys.modules["pack"] = pack
    spec.loader.exec_module(pack)
    importlib.import_module("pack.nodes")
    return pack


class Bench:
    """The pack's nodes and core's caches, as a graph would chain them."""

    def __init__(self):
        import comfy.utils
        from comfy.patcher_extension import WrappersMP
        from comfy_extras import nodes_easycache
        from pack.nodes import condition, decode, load, sample
        from pack.svimo_core import metrics
        from pack.svimo_core.sampling.pipeline import to_uint8

        comfy.utils.PROGRESS_BAR_ENABLED = False
        self.caches = {"EasyCache": nodes_easycache.EasyCacheNode, "LazyCache": nodes_easycache.LazyCacheNode}
        self.innermost = WrappersMP.DIFFUSION_MODEL
        self.condition, self.decode, self.sample = condition, decode, sample
        self.metrics, self.to_uint8 = metrics, to_uint8
        loaded = load.SViMoCheckpointLoader.execute(CHECKPOINT).result
        self.model, self.interaction, self.vae, self.clip = loaded

    @property
    def config(self) -> Any:
        """The checkpoint's."""
        return self.vae.config

    def chain(self, setting: Setting, count: Callable) -> Any:
        """MODEL of a setting; `count` wraps each call that reaches the network."""
        model = self.model
        if setting.cache and setting.cache_first:
            model = self._cached(model, setting)
        loop = dict(enabled=True, start_percent=0.2, end_percent=1.0, every=1, iterations=1, strength=1.0)
        (model,) = self.sample.SViMoFeedbackLoop.execute(model, self.interaction, self.vae, **loop).result
        if setting.cache and not setting.cache_first:
            model = self._cached(model, setting)
        model = model.clone()
        model.add_wrapper_with_key(self.innermost, "benchmark", count)
        return model

    def run(self, setting: Setting, clip: Any) -> dict[str, Any]:
        """Generate a clip from its first frame and measure it."""
        import torch

        calls: list[float] = []

        def count(executor: Callable, *args: Any, **kwargs: Any) -> Any:
            began = time.process_time()
            out = executor(*args, **kwargs)
            calls.append(time.process_time() - began)
            return out

        # 1. prompt and image
        prompts = [
            self.condition.SViMoTextEncode.execute(self.clip, text).result[0]
            for text in (clip.triplet.prompt, "")
        ]
        image = torch.from_numpy(clip.video[:1]).float() / 255
        encoded = self.condition.SViMoImageEncode.execute(*prompts, self.vae, image, 0, 0, 0, 0.02).result
        positive, negative, empty = encoded

        # 2. sample
        model = self.chain(setting, count)
        began, began_cpu = time.perf_counter(), time.process_time()
        made = self.sample.SViMoSampler.execute(
            model,
            positive,
            negative,
            empty,
            seed=clip.seed,
            steps=setting.steps,
            cfg=1.0,
            cfg_schedule="constant",
            solver="ddim",
            denoise=1.0,
            sequential_cfg=False,
        )
        seconds, cpu = time.perf_counter() - began, time.process_time() - began_cpu
        (latent,) = made.result
        report = made.ui["svimo"][0]

        # 3. decode and measure
        motions = {
            "mean": self.decode.SViMoDecodeMotion.execute(self.interaction, latent, False).result[0],
            "finished": self.decode.SViMoDecodeMotion.execute(self.interaction, latent, True).result[0],
            "finished_own_image": self._read_with(positive, latent),
        }
        video = {"samples": self.decode.streams_of(latent).video}
        frames = self.decode.SViMoDecodeVideo.execute(self.vae, video, False).result[0]
        return {
            "calls": len(calls),
            "feedback_passes": report["feedback_passes"],
            "seconds": seconds,
            "cpu_seconds": cpu,
            "network_cpu_seconds": sum(calls),
            "psnr_moving_db": self.metrics.psnr_moving_db(self.to_uint8(frames), clip.video),
            **{name: self._errors(motion, clip.motion) for name, motion in motions.items()},
        }

    def _cached(self, model: Any, setting: Setting) -> Any:
        node = self.caches[setting.cache]
        return node.execute(model, setting.threshold, 0.15, 0.95, False).result[0]  # the rest as core has it

    def _read_with(self, positive: list, latent: dict) -> Any:
        """What SViMo Decode Motion reads off finished latents, with the reference image's own latent as image."""
        from pack.nodes.backbone import IMAGE_LATENT

        scale = self.interaction.vae_config.scaling_factor
        streams, reader = self.decode.streams_of(latent), self.interaction.reader()
        image = positive[0][1][IMAGE_LATENT][:, :, 0]
        reading = reader.align(reader.look(image * scale), reader.read(*(x * scale for x in streams)))
        size = self.config.vae.clip_size(streams.video.shape)
        return reader.to_motions(reading, size.width, size.height, self.interaction.fps)[0]

    def _errors(self, motion: Any, truth: Any) -> dict[str, float]:
        return {
            "mpjpe_mm": self.metrics.mpjpe_mm(motion.hands, truth.hands),
            "chamfer_mm2": float(
                np.mean(
                    [self.metrics.chamfer_mm2(motion.objects[k], truth.objects[k]) for k in truth.objects]
                )
            ),
        }


def measure(comfyui: Path, first: int, count: int, file: Path) -> None:
    """Append what the file lacks of clips first to count - 1, a line for each setting and clip.

    Raises:
        ValueError: the file is of another run.
    """
    import_pack(comfyui)
    import torch
    from comfyui_version import __version__
    from pack.svimo_train.truth import synthetic_clips
    from tqdm import tqdm

    with torch.inference_mode():
        bench = Bench()
        weights = hashlib.sha256((ROOT / "assets" / "models" / CHECKPOINT).read_bytes()).hexdigest()
        run = {"comfyui": __version__, "torch": torch.__version__, "weights": weights}
        run["threads"] = torch.get_num_threads()
        done = read_lines(file)
        if not done:
            file.parent.mkdir(parents=True, exist_ok=True)
            _append(file, {HEADER: run})
        elif done[0].get(HEADER) != run:
            raise ValueError(
                f"{file} is of another run ({done[0].get(HEADER)}, this one: {run}): give another --lines"
            )
        known = {(line["setting"], line["clip"]) for line in done[1:]}
        clips = synthetic_clips(0, count, "test", bench.config)
        missing = [
            (setting, number)
            for number in range(first, count)
            for setting in _in_turn(number)
            if (setting.name, number) not in known
        ]
        if missing:
            bench.run(BASE, clips[0])  # loads and warms up
        for setting, number in tqdm(missing, unit="run"):
            found = bench.run(setting, clips[number])
            _append(file, {"setting": setting.name, "clip": number, **found})


def _in_turn(number: int) -> tuple[Setting, ...]:
    """The settings, each first at its turn."""
    turn = number % len(SETTINGS)
    return SETTINGS[turn:] + SETTINGS[:turn]


def read_lines(file: Path) -> list[dict[str, Any]]:
    """What a file holds; a last line that a killed run left unfinished is cut off it."""
    if not file.exists():
        return []
    whole, newline, rest = file.read_text(encoding="utf-8").rpartition("\n")
    if rest:
        file.write_text(whole + newline, encoding="utf-8")
    return [json.loads(line) for line in whole.splitlines()]


def _append(file: Path, line: dict[str, Any]) -> None:
    with file.open("a", encoding="utf-8") as out:
        out.write(json.dumps(line) + "\n")


# --- tables ---


def summary(lines: list[dict[str, Any]], count: int) -> dict[str, Any]:
    """Means over clips, and their difference to the base and its standard error, clip by clip."""
    run, *rows = lines
    found = {
        setting.name: {
            row["clip"]: row for row in rows if row["setting"] == setting.name and row["clip"] < count
        }
        for setting in SETTINGS
    }
    common = sorted(set.intersection(*(set(clips) for clips in found.values())))
    if len(common) < 2:
        raise ValueError(f"all settings together have {len(common)} clips: a comparison needs two")

    def column(setting: Setting, *path: str) -> np.ndarray:
        values = [found[setting.name][clip] for clip in common]
        for key in path:
            values = [value[key] for value in values]
        return np.array(values, dtype=float)

    measures = {
        "mpjpe_mm": ("mean", "mpjpe_mm"),
        "chamfer_mm2": ("mean", "chamfer_mm2"),
        "psnr_moving_db": ("psnr_moving_db",),
        "finished_mpjpe_mm": ("finished", "mpjpe_mm"),
        "finished_chamfer_mm2": ("finished", "chamfer_mm2"),
    }
    settings = {}
    for setting in SETTINGS:
        seconds, cpu = column(setting, "seconds"), column(setting, "cpu_seconds")
        settings[setting.name] = {
            "calls": column(setting, "calls").mean(),
            "feedback_passes": column(setting, "feedback_passes").mean(),
            "seconds": np.median(seconds),
            "cpu_seconds": np.median(cpu),
            "seconds_ratio": np.median(seconds / column(BASE, "seconds")),
            "cpu_seconds_ratio": np.median(cpu / column(BASE, "cpu_seconds")),
            "network_share": column(setting, "network_cpu_seconds").sum() / cpu.sum(),
            **{name: compared(column(setting, *at), column(BASE, *at)) for name, at in measures.items()},
        }
    readings = {
        name: {
            error: compared(column(BASE, name, error), column(BASE, "mean", error))
            for error in ("mpjpe_mm", "chamfer_mm2")
        }
        for name in READINGS
    }
    return {**run[HEADER], "clips": len(common), "settings": settings, "readings": readings}


def compared(values: np.ndarray, base: np.ndarray) -> dict[str, float]:
    """Mean of some values, and of their differences to others with its standard error."""
    difference = values - base
    error = difference.std(ddof=1) / np.sqrt(len(difference))
    return {"mean": values.mean(), "difference": difference.mean(), "standard_error": error}


def tables(result: dict[str, Any]) -> str:
    """Markdown."""
    base = result["settings"][BASE.name]
    about = (
        f"{result['clips']} clips, ComfyUI {result['comfyui']}, torch {result['torch']}, "
        f"{result['threads']} thread(s). {BASE.name}: median {base['seconds']:.2f} s in the sampler, "
        f"{base['cpu_seconds']:.2f} s of CPU time, of which {base['network_share']:.0%} in the MM-DiT."
    )
    measured = [
        (
            name,
            f"{row['calls']:.1f}",
            f"{row['seconds_ratio']:.2f}",
            f"{row['cpu_seconds_ratio']:.2f}",
            *_errors(row["mpjpe_mm"], row["chamfer_mm2"]),
            *_change(row["psnr_moving_db"], 2, 2),
            f"{row['finished_mpjpe_mm']['mean']:.1f}",
        )
        for name, row in result["settings"].items()
    ]
    read = [
        (READINGS[name], *_errors(row["mpjpe_mm"], row["chamfer_mm2"]))
        for name, row in result["readings"].items()
    ]
    errors = "hands, mm", "change", "objects, mm2", "change"
    heads = (
        "",
        "calls",
        "time",
        "CPU time",
        *errors,
        "PSNR moving, dB",
        "change",
        "hands, mm, finished latents",
    )
    return "\n\n".join(
        [about, _markdown(heads, measured), _markdown((f"{BASE.name}, motion read off", *errors), read)]
    )


def _errors(hands: dict[str, float], objects: dict[str, float]) -> tuple[str, ...]:
    return *_change(hands, 1, 2), *_change(objects, 0, 0)


def _change(value: dict[str, float], digits: int, finer: int) -> tuple[str, str]:
    mean, error = f"{value['mean']:.{digits}f}", value["standard_error"]
    return mean, f"{value['difference']:+.{finer}f} +- {error:.{finer}f}" if error else ""


def _markdown(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    heads = list(heads)
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


# --- command ---


def main() -> None:
    """Measure what is missing, print the tables, write JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.caches", description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=64, help="how many test clips, at least 2")
    parser.add_argument("--first", type=int, default=0, help="begin here: several processes may share a file")
    parser.add_argument("--comfyui", type=Path, default=os.environ.get("COMFYUI_PATH"), help="its folder")
    parser.add_argument(
        "--lines", type=Path, default=ROOT / "output" / "caches.jsonl", help="grows as it goes"
    )
    parser.add_argument("--json", type=Path, default=ROOT / "output" / "caches.json", help="the numbers")
    parser.add_argument("--only-tables", action="store_true", help="of what is measured so far")
    arguments = parser.parse_args()
    if arguments.clips < 2:
        parser.error("a comparison needs at least 2 clips")
    if not arguments.only_tables:
        if arguments.comfyui is None:
            parser.error("set --comfyui or COMFYUI_PATH to a ComfyUI folder, 0.28 or newer")
        measure(arguments.comfyui.resolve(), arguments.first, arguments.clips, arguments.lines.resolve())
    result = summary(read_lines(arguments.lines), arguments.clips)
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(tables(result))


if __name__ == "__main__":
    main()
