"""Model files: SViMo checkpoints and CogVideoX's, each read strictly through one header.

A SViMo checkpoint is one safetensors file that says what it is. It holds any of the five parts (`backbone`,
`interaction`, `vae`, `text_encoder`, `drawing_encoder`), its tensors prefixed by the part's name, and in its metadata
the configuration to build them, the motion statistics, and where it came from. CogVideoX files
(:mod:`svimo_core.cogvideox`) answer as a checkpoint with a video-only backbone, a VAE, or both. Nothing else is loaded:
a pickle is never opened, a foreign or damaged file is refused with a reason.

    python -m svimo_core.checkpoint inspect FILE
    python -m svimo_core.checkpoint convert SOURCE TARGET
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from .cogvideox import TABLE_GRID_5B, CogVideoXFiles, is_pipeline, open_cogvideox
from .config import COGVIDEOX_5B_I2V, SViMoConfig
from .files import reading, whole_file
from .model.alignment import start_without_corrections
from .model.drawing import DrawingEncoder
from .model.interaction import InteractionModel
from .model.mmdit import MMDiT, SeparateMMDiT, extend_with_motion
from .model.text import build_text_encoder
from .model.vae import build_vae
from .normalization import MotionNormalizer
from .weights import StoredTensor, check_match, fill, open_weights, read_tensors, write_weights

FORMAT = "svimo"
FORMAT_VERSION = 1
PARTS = ("backbone", "interaction", "vae", "text_encoder", "drawing_encoder")
SAVED_HEADER = "svimo_header"
"""Where the metadata lies in files that nodes of ComfyUI's write: bytes of JSON beside the weights."""
DAMAGED = "has damaged SViMo metadata"
SHARED_WEIGHTS = {"encoder.embed_tokens.weight": "shared.weight"}
"""T5's second name for its embedding table, which safetensors cannot store twice."""


@dataclass(frozen=True, kw_only=True, eq=False)
class CheckpointHeader:
    """Everything a checkpoint says about itself; its tensors stay on disk."""

    path: Path
    kind: str
    """What the file is, in words."""
    config: SViMoConfig
    """Of CogVideoX files: what they hold as found, the rest as in the preset of that size."""
    normalizer: MotionNormalizer | None
    """Motion statistics; present with the interaction part."""
    preview: Tensor | None
    """17 x 3 latent-to-RGB matrix; may come with the VAE."""
    provenance: dict[str, str]
    """Where the weights came from, in words: source, training, hashes."""
    tensors: dict[str, StoredTensor]

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts this file holds."""
        return tuple(part for part in PARTS if self.part_tensors(part))

    def part_tensors(self, part: str) -> dict[str, StoredTensor]:
        """The tensors of one part, by their names in its network."""
        prefix = part + "."
        return {name.removeprefix(prefix): t for name, t in self.tensors.items() if name.startswith(prefix)}

    def part_dtype(self, part: str) -> torch.dtype:
        """The type that most weights of a part have once loaded as they are stored.

        Raises:
            ValueError: the file does not hold this part.
        """
        self.check_has(part)
        sizes = Counter()
        for tensor in self.part_tensors(part).values():
            sizes[tensor.loaded_dtype] += tensor.numel
        return max(sizes, key=sizes.__getitem__)

    def check_has(self, part: str) -> None:
        """Refuse a file that does not hold a part.

        Raises:
            ValueError: it does not.
        """
        if part not in self.parts:
            raise ValueError(
                f"{self.path.name} holds {', '.join(self.parts)}, but no {part}: choose a file that has it"
            )

    def metadata(self, *parts: str) -> dict[str, str]:
        """What a file with these parts says about itself."""
        normalizer = self.normalizer if "interaction" in parts else None
        return _metadata(self.config, normalizer, self.preview, self.provenance)


def save_checkpoint(
    path: str | os.PathLike,
    config: SViMoConfig,
    parts: dict[str, nn.Module],
    normalizer: MotionNormalizer | None = None,
    preview: Tensor | None = None,
    provenance: dict[str, str] | None = None,
    dtype: torch.dtype | None = None,
    whole: Callable[[Tensor], Tensor] = lambda tensor: tensor,
) -> Path:
    """Write parts to one file; it appears whole or not at all.

    Args:
        dtype: type to write all weights in, one at a time; None keeps theirs.
        whole: makes one of :func:`stored_tensors` of what a process has of it, in their order.

    Raises:
        ValueError: an unknown part, or an interaction part without its statistics.
    """
    unknown = set(parts) - set(PARTS)
    if unknown or not parts:
        raise ValueError(f"a checkpoint holds one or more of {PARTS}, got {sorted(parts)}")
    if "interaction" in parts and normalizer is None:
        raise ValueError("the interaction part needs its motion statistics (normalizer)")
    tensors, metadata = stored_tensors(parts), _metadata(config, normalizer, preview, provenance)
    if dtype is None:
        with whole_file(path) as partial:
            save_file({name: whole(t).contiguous().cpu() for name, t in tensors.items()}, partial, metadata)
    else:
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        streamed = ((name, whole(tensor).to(dtype).cpu()) for name, tensor in tensors.items())
        write_weights(path, shapes, dtype, streamed, metadata)
    return Path(path)


def stored_tensors(parts: dict[str, nn.Module]) -> dict[str, Tensor]:
    """What a checkpoint holds of parts, by its names and in its order."""
    tensors = {
        f"{part}.{key}": value.detach()
        for part, module in parts.items()
        for key, value in module.state_dict().items()
        if key not in SHARED_WEIGHTS
    }
    return dict(sorted(tensors.items()))


def _metadata(
    config: SViMoConfig,
    normalizer: MotionNormalizer | None,
    preview: Tensor | None,
    provenance: dict[str, str] | None,
) -> dict[str, str]:
    return {
        "format": FORMAT,
        "version": str(FORMAT_VERSION),
        "config": json.dumps(config.to_dict()),
        "statistics": json.dumps(normalizer.to_dict() if normalizer is not None else None),
        "preview": json.dumps(preview.tolist() if preview is not None else None),
        "provenance": json.dumps(provenance or {}),
    }


def read_header(path: str | os.PathLike) -> CheckpointHeader:
    """Read what a model file says about itself, or refuse it.

    Args:
        path: a SViMo checkpoint, or CogVideoX-5b-I2V in any form (see :mod:`svimo_core.cogvideox`): a file, one of
            several shards, or a diffusers folder.

    Raises:
        FileNotFoundError: no such file, or a shard is missing.
        ValueError: another model, or not complete; the message says what it is and what to do.
    """
    path = Path(path)
    if is_pipeline(path):
        return _cogvideox_header(path)
    tensors, metadata = open_weights(path)
    if SAVED_HEADER in tensors:
        tensors, metadata = _saved_by_comfyui(tensors)
    if metadata.get("format") != FORMAT:
        return _cogvideox_header(path)
    with reading(path, DAMAGED, "get it again"):
        if not metadata.get("version", "").isdecimal():
            raise ValueError("it does not say its version")
        if int(metadata["version"]) > FORMAT_VERSION:
            raise ValueError(
                f"{path.name} has checkpoint format {metadata['version']}; this version of the pack reads up to "
                f"{FORMAT_VERSION}: update the pack"
            )
        statistics, preview = json.loads(metadata["statistics"]), json.loads(metadata["preview"])
        if preview is not None and (preview := torch.tensor(preview, dtype=torch.float32)).shape[1:] != (3,):
            raise ValueError(f"its preview must be channels + 1 x 3, got {tuple(preview.shape)}")
        return CheckpointHeader(
            path=path,
            kind="SViMo checkpoint",
            config=SViMoConfig.from_dict(json.loads(metadata["config"])),
            normalizer=MotionNormalizer.from_dict(statistics) if statistics is not None else None,
            preview=preview,
            provenance=dict(json.loads(metadata["provenance"])),
            tensors=tensors,
        )


def _saved_by_comfyui(
    tensors: dict[str, StoredTensor],
) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """Tensors and metadata of a file that a node of ComfyUI's wrote (ModelSave), by our names.

    Raises:
        ValueError: its header is not one.
    """
    stored = tensors[SAVED_HEADER]
    with reading(stored.file, DAMAGED, "get it again"), safe_open(stored.file, framework="np") as opened:
        metadata = dict(json.loads(opened.get_tensor(stored.name).tobytes()))
    prefix = "model.diffusion_model."
    parts = {
        f"backbone.{name.removeprefix(prefix)}": tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }
    return parts, metadata


def _cogvideox_header(path: Path) -> CheckpointHeader:
    """CogVideoX files as a video-only checkpoint, at the size that the transformer was made for."""
    found = open_cogvideox(path)
    with reading(path, "is no CogVideoX model of a possible size", "download it again"):
        return _as_header(path, found)


def _as_header(path: Path, found: CogVideoXFiles) -> CheckpointHeader:
    backbone = found.backbone or replace(COGVIDEOX_5B_I2V.backbone, motion=False, image_padding="zero")
    vae = found.vae or COGVIDEOX_5B_I2V.vae
    frames, height, width = found.grid
    cell = backbone.patch_size * vae.spatial_compression
    return CheckpointHeader(
        path=path,
        kind=f"CogVideoX image-to-video, {found.layout}",
        config=replace(
            COGVIDEOX_5B_I2V,
            frames=(frames - 1) * vae.temporal_compression + 1,
            height=height * cell,
            width=width * cell,
            backbone=backbone,
            interaction=replace(COGVIDEOX_5B_I2V.interaction, latent_channels=backbone.latent_channels),
            vae=vae,
            schedule=found.schedule,
        ),
        normalizer=None,
        preview=None,
        provenance={},
        tensors=found.tensors,
    )


def with_diffusers_positions(header: CheckpointHeader) -> CheckpointHeader:
    """The same weights under diffusers' rule for rotary positions off the native size (`BackboneConfig.rotary_grid`):
    every clip's rows and columns are fitted into the grid of CogVideoX's own clips."""
    config = header.config
    if config.backbone.position_table is not None:
        grid = config.backbone.position_table[1:]
    elif config.backbone.motion:  # converted from the 5b, whose clips have another size than its own
        grid = TABLE_GRID_5B[1:]
    else:
        grid = config.height // config.pixel_multiple, config.width // config.pixel_multiple
    return replace(header, config=replace(config, backbone=replace(config.backbone, rotary_grid=grid)))


Build = Callable[[SViMoConfig], nn.Module]
"""A configuration to a network, on whatever device is the default."""


def load_part(
    header: CheckpointHeader, part: str, dtype: torch.dtype | None = None, build: Build | None = None
) -> nn.Module:
    """Build one part and load its weights, strictly: every weight must be there, fit, and be used.

    Args:
        dtype: storage type of the loaded weights; None keeps the file's, memory-mapped. fp8 weights with scales become
            bfloat16, since their scales cannot be kept in fp8.
        build: makes the network from other layers than `torch.nn`'s, with the same weight names. What it expects is
            never asked of it, since such layers may be born without their weights.

    Raises:
        ValueError: the file does not hold this part, or its tensors do not match its own configuration.
    """
    module, expected = _on_meta(header, part, build)
    source = f"{header.path.name}: {part}"
    fill(module, header.part_tensors(part), source, dtype, SHARED_WEIGHTS, expected)
    if part == "text_encoder":
        module.encoder.embed_tokens = module.shared
    return module.eval().requires_grad_(False)


def empty_part(header: CheckpointHeader, part: str) -> nn.Module:
    """One part on the meta device, whose weights are to be read later (`header.part_tensors`): they are all there and
    fit.

    Raises:
        ValueError: as :func:`load_part`.
    """
    module, expected = _on_meta(header, part)
    found = {name: stored.shape for name, stored in header.part_tensors(part).items()}
    check_match(expected, found, f"{header.path.name}: {part}")
    return module.eval().requires_grad_(False)


def _on_meta(
    header: CheckpointHeader, part: str, build: Build | None = None
) -> tuple[nn.Module, dict[str, tuple[int, ...]]]:
    """A part, and its weights' shapes by name. Neither memory nor initialisation for weights that are about to be
    replaced."""
    header.check_has(part)
    with (
        reading(header.path, f"has a configuration that makes no {part}", "get it again"),
        torch.device("meta"),
    ):
        plain = _build(header.config, part)
        module = plain if build is None else build(header.config)
    return module, {name: tuple(weight.shape) for name, weight in plain.state_dict().items()}


def init_part(config: SViMoConfig, part: str, seed: int) -> nn.Module:
    """An untrained part with seeded random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _build(config, part).eval()
    if part == "interaction" and network.alignment is not None:
        start_without_corrections(network.alignment)
    return network


def _build(config: SViMoConfig, part: str) -> nn.Module:
    if part == "backbone":
        return (SeparateMMDiT if config.backbone.separate else MMDiT)(config.backbone)
    if part == "interaction":
        return InteractionModel(config.interaction)
    if part == "vae":
        return build_vae(config.vae)
    if part == "drawing_encoder":
        if config.drawing is None:
            raise ValueError(f"the configuration of this {config.name} model has no drawing encoder")
        return DrawingEncoder(config.drawing, config.vae)
    if config.text is None:
        raise ValueError(
            f"a {config.name} model has no text encoder of its own: load T5-XXL with ComfyUI's CLIP loader"
        )
    return build_text_encoder(config.text)


def convert(
    source: str | os.PathLike,
    target: str | os.PathLike,
    dtype: torch.dtype | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Path:
    """Start a SViMo checkpoint from CogVideoX-I2V: its transformer with a motion stream, and its VAE if it is there.

    Tensors pass through one at a time, and the file appears whole or not at all. The metadata names every source file
    with its SHA-256, as model hubs publish it.

    Args:
        dtype: type to write; None keeps the transformer's, or bfloat16 for an fp8 file.
        on_progress: told bytes done and bytes in all; raise there to stop.

    Raises:
        FileNotFoundError, ValueError: see :func:`read_header`; or the source is not a CogVideoX transformer.
        OSError: the target cannot be written.
    """
    # 1. what is there, and what becomes of it
    header = read_header(source)
    if "backbone" not in header.parts or header.config.backbone.motion:
        raise ValueError(
            f"{header.path.name} is a {header.kind} with {', '.join(header.parts)}: convert starts from the "
            "transformer of CogVideoX-5b-I2V"
        )
    config = replace(
        COGVIDEOX_5B_I2V,
        backbone=replace(header.config.backbone, motion=True, image_padding="repeat"),
        interaction=header.config.interaction,
        vae=header.config.vae,
        schedule=header.config.schedule,
    )
    if dtype is None:
        dtype = header.part_dtype("backbone")
        dtype = dtype if dtype.itemsize > 1 else torch.bfloat16

    def extended(part: str, tensors: Iterator[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        if part == "backbone":
            tensors = extend_with_motion(tensors, config.backbone)
        return ((f"{part}.{name}", tensor) for name, tensor in tensors)

    shapes = {}
    for part in header.parts:
        empty = ((name, torch.empty(t.shape, device="meta")) for name, t in header.part_tensors(part).items())
        found = {name: tuple(tensor.shape) for name, tensor in extended(part, empty)}
        with torch.device("meta"):
            network = _build(config, part).state_dict()
        check_match({f"{part}.{k}": tuple(v.shape) for k, v in network.items()}, found, header.path.name)
        shapes |= found

    # 2. provenance
    files = sorted({tensor.file for tensor in header.tensors.values()})
    total = sum(file.stat().st_size for file in files)
    total += sum(torch.Size(shape).numel() for shape in shapes.values()) * dtype.itemsize
    done = 0

    def advance(size: int) -> None:
        nonlocal done
        done += size
        on_progress(done, total)

    root = header.path if header.path.is_dir() else header.path.parent
    provenance = {"source": f"{header.kind}, {header.path.name}; motion stream started from its video stream"}
    provenance |= {f"sha256 of {file.relative_to(root).as_posix()}": _sha256(file, advance) for file in files}

    # 3. tensor by tensor
    tensors = chain.from_iterable(
        extended(part, read_tensors(header.part_tensors(part), stream=True)) for part in header.parts
    )
    write_weights(target, shapes, dtype, tensors, _metadata(config, None, None, provenance), advance)
    return Path(target)


def _sha256(file: Path, on_bytes: Callable[[int], None]) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        while piece := opened.read(2**24):
            digest.update(piece)
            on_bytes(len(piece))
    return digest.hexdigest()


def describe(header: CheckpointHeader) -> str:
    """A few lines for people: parts, sizes, native clip, provenance."""
    config = header.config
    lines = [
        f"{header.path.name}: {header.kind}, model {config.name!r}",
        f"  native clip: {config.frames} frames of {config.width} x {config.height} at {config.fps:g} fps, "
        f"{config.num_tokens(config.frames, config.height, config.width)} tokens",
    ]
    for part in header.parts:
        sizes = Counter()
        for tensor in header.part_tensors(part).values():
            sizes[tensor.dtype + " with scales" * (tensor.scale is not None)] += tensor.numel
        types = ", ".join(dtype for dtype, _ in sizes.most_common())
        lines.append(f"  {part}: {sizes.total() / 1e6:.2f} M parameters, {types}")
        if part == "backbone":
            c = config.backbone
            lines += [
                f"    {c.num_layers} blocks of {c.num_heads} heads x {c.head_dim}, text {c.text_length} x {c.text_dim}",
                f"    {'video and motion' if c.motion else 'video only'}, image latent: {c.image_padding}, "
                f"position table: {c.position_table}",
            ]
    lines += [f"  {key}: {value}" for key, value in header.provenance.items()]
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    """Command line: `inspect FILE`, `convert SOURCE TARGET`."""
    parser = argparse.ArgumentParser(
        prog="python -m svimo_core.checkpoint", description="Look at and convert model files."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    inspect = commands.add_parser("inspect", help="say what a model file or folder is")
    inspect.add_argument("file", type=Path)
    start = commands.add_parser("convert", help="start a SViMo checkpoint from CogVideoX-5b-I2V")
    start.add_argument("source", type=Path, help="its pipeline folder, transformer folder, or file")
    start.add_argument("target", type=Path, help="the .safetensors file to write")
    start.add_argument(
        "--dtype", choices=("bfloat16", "float16", "float32"), help="default: as in the source"
    )
    chosen = parser.parse_args(arguments)
    try:
        if chosen.command == "convert":
            dtype = getattr(torch, chosen.dtype) if chosen.dtype else None
            with tqdm(unit="B", unit_scale=True) as bar:

                def show(done: int, total: int) -> None:
                    bar.total = total
                    bar.update(done - bar.n)

                convert(chosen.source, chosen.target, dtype, show)
        sys.stdout.write(
            describe(read_header(chosen.target if chosen.command == "convert" else chosen.file)) + "\n"
        )
    except (OSError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
