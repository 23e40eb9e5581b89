"""SViMo checkpoints: one safetensors file that says what it is, read strictly.

A file holds any of the four parts (`backbone`, `interaction`, `vae`, `text_encoder`), its tensors prefixed by the
part's name, and in its metadata the configuration to build them, the motion statistics, and where it came from.
Nothing else is loaded: a pickle is never opened, a foreign or damaged file is refused with a reason.

    python -m svimo_core.checkpoint inspect FILE
"""

from __future__ import annotations

import json
import os
import struct
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from .config import SViMoConfig
from .model.interaction import InteractionModel
from .model.layers import AttentionFunction, Operations, scaled_dot_product_attention
from .model.mmdit import MMDiT
from .model.text import build_text_encoder
from .model.vae import build_vae
from .normalization import MotionNormalizer

FORMAT = "svimo"
FORMAT_VERSION = 1
PARTS = ("backbone", "interaction", "vae", "text_encoder")


@dataclass(frozen=True, kw_only=True, eq=False)
class CheckpointHeader:
    """Everything a checkpoint says about itself; its tensors stay on disk."""

    path: Path
    config: SViMoConfig
    normalizer: MotionNormalizer | None
    """Motion statistics; present with the interaction part."""
    preview: Tensor | None
    """17 x 3 latent-to-RGB matrix; may come with the VAE."""
    provenance: dict[str, str]
    """Where the weights came from, in words: source, training, hashes."""
    tensors: dict[str, tuple[str, tuple[int, ...]]]
    """Tensor name to (dtype, shape)."""

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts this file holds."""
        return tuple(part for part in PARTS if any(name.startswith(part + ".") for name in self.tensors))


def save_checkpoint(
    path: str | os.PathLike,
    config: SViMoConfig,
    parts: dict[str, nn.Module],
    normalizer: MotionNormalizer | None = None,
    preview: Tensor | None = None,
    provenance: dict[str, str] | None = None,
    dtype: torch.dtype | None = None,
) -> Path:
    """Write parts to one file; it appears whole or not at all.

    Raises:
        ValueError: an unknown part, or an interaction part without its statistics.
    """
    path = Path(path)
    unknown = set(parts) - set(PARTS)
    if unknown or not parts:
        raise ValueError(f"a checkpoint holds one or more of {PARTS}, got {sorted(parts)}")
    if "interaction" in parts and normalizer is None:
        raise ValueError("the interaction part needs its motion statistics (normalizer)")
    tensors = {
        f"{part}.{key}": (value if dtype is None else value.to(dtype)).detach().contiguous().cpu()
        for part, module in parts.items()
        for key, value in _own_weights(part, module.state_dict()).items()
    }
    metadata = {
        "format": FORMAT,
        "version": str(FORMAT_VERSION),
        "config": json.dumps(config.to_dict()),
        "statistics": json.dumps(normalizer.to_dict() if normalizer is not None else None),
        "preview": json.dumps(preview.tolist() if preview is not None else None),
        "provenance": json.dumps(provenance or {}),
    }
    partial = path.with_name(path.name + ".partial")
    try:
        save_file(tensors, partial, metadata=metadata)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def read_header(path: str | os.PathLike) -> CheckpointHeader:
    """Read what a checkpoint says about itself, or refuse the file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a complete SViMo checkpoint; the message says what it is and what to do.
    """
    path = Path(path)
    header = _safetensors_header(path)
    metadata = header.pop("__metadata__", {})
    tensors = {name: (entry["dtype"], tuple(entry["shape"])) for name, entry in header.items()}
    if metadata.get("format") != FORMAT:
        raise ValueError(f"{path.name} is not a SViMo checkpoint: {_guess(tensors)}")
    if int(metadata["version"]) > FORMAT_VERSION:
        raise ValueError(
            f"{path.name} has checkpoint format {metadata['version']}; this version of the pack reads up to "
            f"{FORMAT_VERSION}: update the pack"
        )
    try:
        statistics, preview = json.loads(metadata["statistics"]), json.loads(metadata["preview"])
        return CheckpointHeader(
            path=path,
            config=SViMoConfig.from_dict(json.loads(metadata["config"])),
            normalizer=MotionNormalizer.from_dict(statistics) if statistics is not None else None,
            preview=torch.tensor(preview) if preview is not None else None,
            provenance=json.loads(metadata["provenance"]),
            tensors=tensors,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path.name} has damaged SViMo metadata: {error}") from error


def load_part(
    header: CheckpointHeader,
    part: str,
    dtype: torch.dtype | None = None,
    operations: Operations = nn,
    attention: AttentionFunction = scaled_dot_product_attention,
) -> nn.Module:
    """Build one part and load its weights, strictly: every weight must be there, fit, and be used.

    Args:
        dtype: storage type of the loaded weights; None keeps the file's.
        operations, attention: see :mod:`svimo_core.model.layers`; the VAE and the text encoder bring their own.

    Raises:
        ValueError: the file does not hold this part, or its tensors do not match its own configuration.
    """
    if part not in header.parts:
        raise ValueError(
            f"{header.path.name} holds {', '.join(header.parts)}, but no {part}: choose a file that has it"
        )
    with torch.device("meta"):  # no memory and no initialisation for weights that are about to be replaced
        module = _build(header.config, part, operations, attention)
    expected = {key: tuple(value.shape) for key, value in _own_weights(part, module.state_dict()).items()}
    found = {
        name.removeprefix(part + "."): shape
        for name, (_, shape) in header.tensors.items()
        if name.startswith(part + ".")
    }
    _check_match(header.path.name, part, expected, found)
    with safe_open(header.path, framework="pt") as file:
        state = {key: file.get_tensor(f"{part}.{key}") for key in expected}
    if dtype is not None:
        state = {key: value.to(dtype) for key, value in state.items()}
    module.load_state_dict(
        state, strict=False, assign=True
    )  # strictness: _check_match above, tied weights excepted
    if part == "text_encoder":
        module.encoder.embed_tokens = module.shared
    return module.eval().requires_grad_(False)


def init_part(config: SViMoConfig, part: str, seed: int) -> nn.Module:
    """An untrained part with seeded random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _build(config, part, nn, scaled_dot_product_attention).eval()


def _build(config: SViMoConfig, part: str, operations: Operations, attention: AttentionFunction) -> nn.Module:
    if part == "backbone":
        return MMDiT(config.backbone, operations, attention)
    if part == "interaction":
        return InteractionModel(config.interaction, operations, attention)
    if part == "vae":
        return build_vae(config.vae)
    if config.text is None:
        raise ValueError(
            f"a {config.name} model has no text encoder of its own: load T5-XXL with ComfyUI's CLIP loader"
        )
    return build_text_encoder(config.text)


def _own_weights(part: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without T5's second name for its embedding table, which safetensors cannot store twice."""
    return {
        k: v for k, v in state.items() if not (part == "text_encoder" and k == "encoder.embed_tokens.weight")
    }


def _check_match(name: str, part: str, expected: dict[str, tuple], found: dict[str, tuple]) -> None:
    problems = [f"lacks {key}" for key in expected.keys() - found.keys()]
    problems += [f"has an unknown {key}" for key in found.keys() - expected.keys()]
    problems += [
        f"{key} is {found[key]}, expected {shape}"
        for key, shape in expected.items()
        if key in found and found[key] != shape
    ]
    if problems:
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        raise ValueError(
            f"{name}: {part} does not match the file's own configuration: {'; '.join(sorted(problems)[:3])}{more}"
        )


def _safetensors_header(path: Path) -> dict[str, Any]:
    """Parse a safetensors header and check that all its data is there, without touching the data."""
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint file at {path}")
    size = path.stat().st_size
    with open(path, "rb") as file:
        start = file.read(8)
        if start[:2] == b"PK" or start[:1] == b"\x80":
            raise ValueError(
                f"{path.name} is a PyTorch pickle, whatever its name says. Pickles can run code and are never opened: "
                "ask for a .safetensors file"
            )
        if start[:4] == b"GGUF":
            raise ValueError(
                f"{path.name} is a GGUF file, which this pack does not read: use a .safetensors file"
            )
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= size - 8:
            raise ValueError(
                f"{path.name} is not a complete safetensors file ({size} bytes): download or copy it again"
            )
        try:
            header = json.loads(file.read(length))
            end = max(
                (entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"),
                default=0,
            )
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(
                f"{path.name} is not a safetensors file: its header cannot be read ({error})"
            ) from error
    if size != 8 + length + end:
        raise ValueError(
            f"{path.name} is damaged: its header announces {8 + length + end} bytes, the file has {size}. "
            "Download or copy it again"
        )
    return header


def _guess(tensors: dict[str, tuple[str, tuple[int, ...]]]) -> str:
    names = " ".join(tensors)
    if "lora" in names:
        return "it looks like a LoRA; load it with ComfyUI's LoRA loader on top of a model"
    if "patch_embed.text_proj.weight" in names:
        return "it looks like a CogVideoX transformer, not yet converted to SViMo"
    if "encoder.block.0.layer.0" in names:
        return "it looks like a T5 text encoder; load it with ComfyUI's CLIP loader"
    return "it has no SViMo metadata. Choose a file written by this pack"


def describe(header: CheckpointHeader) -> str:
    """A few lines for people: parts, sizes, native clip, provenance."""
    config = header.config
    lines = [
        f"{header.path.name}: SViMo checkpoint, model {config.name!r}",
        f"  native clip: {config.frames} frames of {config.width} x {config.height} at {config.fps:g} fps, "
        f"{config.num_tokens(config.frames, config.height, config.width)} tokens",
    ]
    for part in header.parts:
        chosen = [
            (dtype, shape) for name, (dtype, shape) in header.tensors.items() if name.startswith(part + ".")
        ]
        count = sum(torch.Size(shape).numel() for _, shape in chosen)
        lines.append(
            f"  {part}: {count / 1e6:.2f} M parameters, {', '.join(sorted({dtype for dtype, _ in chosen}))}"
        )
    lines += [f"  {key}: {value}" for key, value in header.provenance.items()]
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    """Command line: `inspect FILE`."""
    if len(arguments) != 2 or arguments[0] != "inspect":
        sys.stderr.write("usage: python -m svimo_core.checkpoint inspect FILE\n")
        return 2
    try:
        sys.stdout.write(describe(read_header(arguments[1])) + "\n")
    except (OSError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
