"""Encode clips for training: `python -m svimo_train encode --config FILE`, on one process or many.

    torchrun --nproc_per_node 8 -m svimo_train encode --config FILE --out FOLDER

Clips are encoded at every size of the configuration's phases, with the VAE of its `init`; prompts by the T5 of its
`text_model` where the stage needs them and the model has no encoder of its own. What is there is not made again, so a
stop of any kind costs the shards at hand, and clips that came in since are added. Training does the same for plain
folders when it starts, so that this command is only needed for clips that many GPUs encode or that go elsewhere.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import math
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor, nn
from tqdm import tqdm

from svimo_core.checkpoint import load_part, read_header
from svimo_core.config import ClipSize, SViMoConfig
from svimo_core.model.vae import VideoVAE
from svimo_core.motion import NUM_JOINTS
from svimo_core.render import render_motion
from svimo_core.sampling.pipeline import SViMo, encode_image

from .clips import ClipFolder, resize_video
from .encoded import (
    TEXT,
    EncodedClip,
    EncodedClips,
    EncodedFolder,
    Text,
    fingerprint,
    size_name,
    write_manifest,
)
from .parallel import precision
from .recipe import Stages, add_config_arguments, named_stages
from .settings import TrainConfig
from .shards import SUFFIX, Record, Shard, write_shard
from .text import prompt_encoder, t5_features, t5_fingerprint

log = logging.getLogger(__name__)

SHARD_BYTES, SHARD_CLIPS = 2**28, 1000
"""Of one shard, at most."""
INSIDE = "encoded"
"""Where the encoded clips of a plain folder are, inside it."""


def encoded_clips(
    config: TrainConfig, model: SimpleNamespace, accelerator: Accelerator, out: Path | None = None
) -> EncodedClips:
    """The clips of a configuration, encoded at all its sizes; whatever is missing is made now, by all processes.

    Args:
        model: `config` and `parts`, of which the VAE is used, and the text encoder if there is one.
        out: where to, in place of inside the folder.

    Raises:
        ValueError: clips that cannot be read, are too short or were encoded by another VAE; the message names them.
        FileNotFoundError, ValueError: as :func:`encode_prompts`.
        OSError: the folder cannot be written.
    """
    sizes = list(dict.fromkeys(shape.size for phase in config.phases for shape in phase.shapes))
    if takes_features(config, model):
        for folder in (source.folder for source in config.sources if not EncodedFolder.is_one(source.folder)):
            if not any((out or folder / INSIDE).rglob(TEXT)):
                require_t5(config, model)  # before hours go into the clips
    folders = [encode_folder(source.folder, model, sizes, accelerator, out=out) for source in config.sources]
    encode_prompts(folders, sizes[0], config, model, accelerator)
    return EncodedClips(folders)


def held_out_clips(
    config: TrainConfig, count: int, model: SimpleNamespace, accelerator: Accelerator
) -> EncodedClips:
    """The held-out clips at the size of the last phase; of plain ones, no more are encoded than so many that have
    video."""
    size, only = config.phases[-1].shapes[0].size, None
    if not EncodedFolder.is_one(config.held_out):
        clips = ClipFolder(config.held_out)
        with_video = filter(clips.has_video, range(len(clips)))
        only = [clips.names[index] for index in itertools.islice(with_video, count)] or clips.names[:1]
    folder = encode_folder(config.held_out, model, [size], accelerator, only)
    encode_prompts([folder], size, config, model, accelerator)
    return EncodedClips([folder])


def encode_folder(
    folder: Path,
    model: SimpleNamespace,
    sizes: Sequence[ClipSize],
    accelerator: Accelerator,
    only: Sequence[str] | None = None,
    out: Path | None = None,
) -> EncodedFolder:
    """The encoded form of one folder: itself, or what is made of its clips now, as far as it is not there.

    Args:
        only: names of the clips to encode; None: all.
        out: where to, in place of inside the folder.
    """
    vae = VideoVAE(model.parts["vae"].to(accelerator.device), model.config.vae)
    made_by = fingerprint(vae.model.state_dict())
    if not EncodedFolder.is_one(folder):
        clips = ClipFolder(folder)
        numbers = {name: index for index, name in enumerate(clips.names)}
        out = out or folder / INSIDE / made_by
        if EncodedFolder.is_one(out):
            EncodedFolder(out).require_vae(made_by)
        for size in sizes:
            with accelerator.autocast():
                fill(
                    out,
                    size,
                    {name: [made_by, *clips.stamp(index)] for name, index in numbers.items()},
                    lambda name, size=size: encode_clip(clips, numbers[name], size, vae),
                    model.config,
                    made_by,
                    accelerator,
                    only,
                )
        folder = out
    found = EncodedFolder(folder)
    found.require_vae(made_by)
    found.require_sizes(sizes)
    return found


@torch.no_grad()
def encode_clip(clips: ClipFolder, index: int, size: ClipSize, vae: VideoVAE) -> Record:
    """One clip as training reads it.

    Raises:
        ValueError: it is broken or too short; the message names it.
    """
    motion, video, latents = clips.motion(index), clips.video(index), None
    if len(video) > 1 or len(motion) == 1:
        clip = clips.clip(index, size.frames)
        frames = resize_video(clip.video, size.height, size.width)
        drawing = render_motion(clip.motion, size.width, size.height)
        encoded = vae.encode(torch.from_numpy(np.stack([frames, drawing])).float() / 255)
        latents = (encoded.float().cpu() / vae.config.scaling_factor).half()
    image = torch.from_numpy(resize_video(video[:1], size.height, size.width)[0].copy())
    return EncodedClip(clips.motion(index, size.frames), image, latents).record()


def fill(
    folder: Path,
    size: ClipSize,
    stamps: dict[str, Any],
    make: Callable[[str], Record],
    config: SViMoConfig,
    made_by: str,
    accelerator: Accelerator,
    only: Sequence[str] | None = None,
) -> None:
    """Make the records of one size that a folder does not have, all processes together, and name them in its manifest.

    Args:
        stamps: of every clip; one whose record has another is made again.
        only: the clips to make, if not all.

    Raises:
        ValueError: some cannot be made, after all others were; the message names them.
    """
    # 1. what there is, and what is to do, in parts that become a shard each
    there: dict[str, str] = {}
    parts: list[list[str]] = []
    if accelerator.is_main_process:
        for path in sorted((folder / size_name(size)).glob(f"*{SUFFIX}")):
            for name, listed in Shard(path).records.items():
                if stamps.get(name) == listed["notes"]["stamp"]:
                    there[name] = path.name
        missing = [name for name in (stamps if only is None else only) if name not in there]
        count = min(clips_per_shard(size, config), -(-len(missing) // accelerator.num_processes) or 1)
        parts = [missing[first : first + count] for first in range(0, len(missing), count)]
    (parts,) = broadcast_object_list([parts])

    # 2. this process's share of it
    mine = parts[accelerator.process_index :: accelerator.num_processes]
    made, broken, began = [], [], time.perf_counter()
    with tqdm(
        total=sum(map(len, mine)),
        desc=f"encode {size_name(size)}",
        unit="clip",
        disable=not (mine and accelerator.is_main_process),
    ) as bar:
        for part in mine:
            records = {}
            for name in part:
                try:
                    tensors, notes = make(name)
                    records[name] = Record(tensors, notes | {"stamp": stamps[name]})
                except ValueError as error:
                    broken.append(str(error))
                bar.update()
            if records:
                path = write_shard(folder / size_name(size), records)
                made.append((path.name, list(records), path.stat().st_size))

    # 3. everybody's
    made, broken = gather_object(made), gather_object(broken)
    if broken:
        more = f"\n... and {len(broken) - NAMED} more" if len(broken) > NAMED else ""
        raise ValueError(
            f"{len(broken)} clips cannot be encoded at {size_name(size)} (all others are): delete them, or write them "
            "again:\n" + "\n".join(broken[:NAMED]) + more
        )
    if accelerator.is_main_process:
        there |= {name: file for file, names, _ in made for name in names}
        shards = defaultdict(list)
        for name, file in sorted(there.items()):
            shards[file].append(name)
        known = EncodedFolder(folder).sizes if EncodedFolder.is_one(folder) else {}
        if known.get(size_name(size)) != shards:
            write_manifest(folder, made_by, known | {size_name(size): shards})
        if made:
            log.info(
                "%s: %d clips of %s encoded (%.2f GB in %.0f s), %d in all",
                folder,
                sum(len(names) for _, names, _ in made),
                size_name(size),
                sum(size for *_, size in made) / 1e9,
                time.perf_counter() - began,
                len(there),
            )
    accelerator.wait_for_everyone()


NAMED = 20
"""Broken clips in a message."""


def clips_per_shard(size: ClipSize, config: SViMoConfig) -> int:
    """So that a shard has some hundred MB."""
    latents = 2 * 2 * math.prod(config.vae.latent_shape(*size))
    motion = 4 * 3 * size.frames * (NUM_JOINTS + config.interaction.num_points)
    return max(1, min(SHARD_CLIPS, SHARD_BYTES // (latents + motion + 3 * size.height * size.width)))


def encode_prompts(
    folders: Sequence[EncodedFolder],
    size: ClipSize,
    config: TrainConfig,
    model: SimpleNamespace,
    accelerator: Accelerator,
) -> None:
    """Store the features of each prompt, and of the empty one, in each folder that lacks some, where the stage takes
    them.

    Raises:
        FileNotFoundError, ValueError: as :func:`takes_features`, and, where some are missing, :func:`require_t5`.
    """
    if not takes_features(config, model):
        return
    if accelerator.is_main_process:
        prompts = {
            folder.folder: sorted({"", *(folder.notes(name, size)["prompt"] for name in folder.names)})
            for folder in folders
        }
        lacking = {
            folder.folder: prompts[folder.folder]
            for folder in folders
            if not set(prompts[folder.folder]) <= folder.prompts()
        }
        if lacking:
            require_t5(config, model)
            every = sorted({prompt for some in lacking.values() for prompt in some})
            length = model.config.backbone.text_length
            features = dict(
                zip(every, t5_features(every, config.text_model, length, accelerator.device), strict=True)
            )
            t5 = t5_fingerprint(config.text_model)
            for folder, some in lacking.items():
                Text(t5, {prompt: features[prompt] for prompt in some}).save(folder)
    accelerator.wait_for_everyone()


def takes_features(config: TrainConfig, model: SimpleNamespace) -> bool:
    """Whether a stage reads prompts by features that T5 made: the model has no text encoder of its own.

    Raises:
        ValueError: the configuration asks for what needs one.
    """
    blind = config.stage == "interaction" and not config.interaction.sampled_share
    if blind or "text_encoder" in model.parts:
        return False
    if config.joint.word_dropout or config.train_text:
        raise ValueError(
            "joint.word_dropout and train_text need the model's own text encoder, and a "
            f"{model.config.name} model has none: features of T5 are computed once"
        )
    return True


def require_t5(config: TrainConfig, model: SimpleNamespace) -> None:
    """See that the configuration names a folder for T5.

    Raises:
        FileNotFoundError, ValueError: there is no such folder, or it names none.
    """
    if config.text_model is None:
        raise ValueError(
            f"a {model.config.name} model has no text encoder of its own: set text_model to a folder with T5-XXL"
        )
    if not config.text_model.is_dir():
        raise FileNotFoundError(f"text_model names {config.text_model}, which is not there: correct it")


def sampled_clips(
    clips: EncodedClips, config: TrainConfig, model: SimpleNamespace, accelerator: Accelerator
) -> EncodedClips:
    """Latents that the MM-DiT takes for clean at each of `sampled_steps` steps from a clip's first frame and prompt,
    with the loop open.

    They are kept beside the encoded clips, apart by the weights of all that makes them, and like them but for latents
    alone, with the step as one more dimension in front.

    Raises:
        ValueError: more steps than the schedule has timesteps, or clips that cannot be read; the message names them.
    """
    steps, most = config.interaction.sampled_steps, model.config.schedule.num_train_timesteps
    if steps > most:
        raise ValueError(
            f"interaction.sampled_steps must be at most {most}, the schedule's timesteps, got {steps}"
        )
    networks = {part: model.parts[part] for part in ("backbone", "text_encoder") if part in model.parts}
    for network in networks.values():
        network.to(accelerator.device)
    made_by = f"sampled-at-each-of-{steps}-{fingerprint(nn.ModuleDict(networks).state_dict())}"
    vae = VideoVAE(model.parts["vae"], model.config.vae)
    sampler = SViMo(config=model.config, backbone=model.parts["backbone"], vae=vae)
    encode_text = prompt_encoder(model, clips)
    sizes = dict.fromkeys(shape.size for phase in config.phases for shape in phase.shapes)
    folders = []

    @torch.no_grad()
    def sample(folder: EncodedFolder, seed: int, name: str, size: ClipSize) -> Record:
        generator = torch.Generator().manual_seed(seed)
        clip = folder.clip(name, size)
        image = encode_image(
            vae.encode, clip.image.float() / 255, size.width, size.height, generator=generator
        )
        text = encode_text([clip.motion.prompt]).to(image)
        clean: list[Tensor] = []
        sampler.denoise(
            image,
            text,
            text,
            size,
            generator,
            steps,
            guidance_scale=1.0,
            guidance_schedule="constant",
            on_step=lambda _, streams: clean.append(torch.cat(streams)),
        )
        unscaled = torch.stack(clean).float().cpu() / vae.config.scaling_factor
        return Record({"latents": unscaled.half()}, {})

    for folder in clips.folders:
        seeds = {name: seed for seed, name in enumerate(folder.names)}
        for size in sizes:
            with accelerator.autocast():
                fill(
                    folder.folder / made_by,
                    size,
                    {name: folder.stamp(name, size) for name in folder.names},
                    lambda name, folder=folder, seeds=seeds, size=size: sample(
                        folder, seeds[name], name, size
                    ),
                    model.config,
                    made_by,
                    accelerator,
                )
        folders.append(EncodedFolder(folder.folder / made_by))
        folders[-1].require_sizes(sizes)
    return EncodedClips(folders)


def main(arguments: list[str] | None = None) -> int:
    """0 when every clip is encoded; 1 with a message on stderr when some are not."""
    parser = argparse.ArgumentParser(
        prog="python -m svimo_train encode",
        description="Encode a configuration's clips at the sizes of its phases, so that training only reads them. Run "
        "the same command again to go on after a stop, or under torchrun or accelerate launch on many GPUs.",
    )
    add_config_arguments(parser)
    parser.add_argument(
        "--out", type=Path, help=f"folder for the encoded clips; without it {INSIDE}, inside the clips' own"
    )
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        stages = encoded_stages(named_stages(args))
        if args.out is not None and any(len(config.sources) != 1 for config in stages):
            raise ValueError("--out takes the clips of one folder: encode them folder by folder")
        accelerator = Accelerator(mixed_precision=precision(stages[0].precision))
        folders = {}
        for config in stages:
            model = _encoders(config)
            config.check_sizes(model.config)
            clips = encoded_clips(config, model, accelerator, args.out)
            folders |= {folder.folder: None for folder in clips.folders}
    except (OSError, ValueError, KeyboardInterrupt) as error:
        sys.stderr.write(f"{error or 'stopped'}\n")
        return 1
    if accelerator.is_main_process:
        for folder in folders:
            sys.stdout.write(f"{folder}\n")
    return 0


def encoded_stages(stages: Stages) -> list[TrainConfig]:
    """Those that learn from encoded clips, each with an `init` that is there before the stages before it have run.

    Raises:
        ValueError: there are none.
    """
    found, start = [], None
    for config in stages.values():
        if config.init is not None and (start is None or config.init.exists()):
            start = config.init
        if config.stage == "vae":
            start = None  # it makes another VAE
        elif config.stage != "drawing" and not config.on_the_fly:
            found.append(replace(config, init=start or config.init))
    if not found:
        names = " and ".join(stages)
        raise ValueError(
            f"{names} learns from clips as they are, or as they are drawn: nothing is encoded beforehand"
        )
    return found


def _encoders(config: TrainConfig) -> SimpleNamespace:
    """The VAE of `init`, and its text encoder if it has one; nothing else is loaded."""
    header = read_header(config.init) if config.init is not None else None
    if header is None or "vae" not in header.parts:
        raise ValueError("clips are encoded by a trained VAE: set init to a checkpoint that has one")
    parts = {
        part: load_part(header, part, torch.float32)
        for part in ("vae", "text_encoder")
        if part in header.parts
    }
    return SimpleNamespace(config=header.config, parts=parts)
