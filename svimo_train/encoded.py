"""Encoded clips: what every stage but the VAE's and the drawing encoder's learns from, ready to be read.

    FOLDER/manifest.json              which VAE made it, and in which shard each clip of each size is
    FOLDER/49x240x368/*.safetensors   latents of video and drawing, first frame, motion and prompt of each clip
    FOLDER/text.safetensors           T5's features of each prompt, for a model without a text encoder of its own

:mod:`svimo_train.encode` makes such a folder. Latents are float16 and not scaled; the first frame is uint8 pixels,
since its noise is drawn anew at each use; motion is in metres, so that a model's statistics may change.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from svimo_core.config import ClipSize
from svimo_core.files import reading, whole_file
from svimo_core.motion import Camera, HandObjectMotion

from .shards import Record, Shard

MANIFEST, TEXT = "manifest.json", "text.safetensors"
FORMAT = "svimo-encoded-clips-1"


class EncodedClip(NamedTuple):
    """One clip at one size."""

    motion: HandObjectMotion
    image: Tensor
    """First frame, H W 3 uint8."""
    latents: Tensor | None
    """Of the video and of the drawing of its motion, 2 C T h w float16, not scaled; None where there is no video."""

    def record(self) -> Record:
        """As a shard keeps it."""
        motion = self.motion
        tensors = {"image": self.image, "hands": torch.from_numpy(motion.hands)}
        tensors |= {
            f"object_{i}": torch.from_numpy(points) for i, points in enumerate(motion.objects.values())
        }
        if self.latents is not None:
            tensors["latents"] = self.latents
        notes = {
            "prompt": motion.prompt,
            "fps": motion.fps,
            "camera": asdict(motion.camera),
            "objects": list(motion.objects),
        }
        return Record(tensors, notes)

    @classmethod
    def of(cls, record: Record) -> EncodedClip:
        """What :meth:`record` gave."""
        tensors, notes = record
        motion = HandObjectMotion(
            hands=tensors["hands"].numpy(),
            objects={name: tensors[f"object_{i}"].numpy() for i, name in enumerate(notes["objects"])},
            camera=Camera(**notes["camera"]),
            fps=notes["fps"],
            prompt=notes["prompt"],
        )
        return cls(motion, tensors["image"], tensors.get("latents"))


class Text(NamedTuple):
    """Features of prompts."""

    t5: str
    """Fingerprint of what made them."""
    features: dict[str, Tensor]
    """Of each prompt, L D bfloat16, mapped into memory."""

    def save(self, folder: Path) -> None:
        """Write them to a folder of encoded clips; the file appears whole or not at all."""
        metadata = {"t5": self.t5, "prompts": json.dumps(list(self.features))}
        with whole_file(folder / TEXT) as partial:
            save_file({"features": torch.stack(list(self.features.values()))}, partial, metadata)


class EncodedFolder:
    """One folder, as its manifest has it.

    Raises:
        ValueError: the manifest is damaged or of another format.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        again = (
            f"delete it from {folder} and encode the clips again, as training or `python -m svimo_train encode` does; "
            "shards that are good are kept"
        )
        with reading(folder / MANIFEST, "is damaged", again):
            manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
            if manifest["format"] != FORMAT:
                raise ValueError(f"its format is {manifest['format']!r}, expected {FORMAT!r}")
            self.made_by = str(manifest["made_by"])
            self.sizes: dict[str, dict[str, list[str]]] = manifest["sizes"]
            if not all(_is_name(name) for shards in self.sizes.items() for name in (shards[0], *shards[1])):
                raise ValueError("it has sizes or shards with names that no file has")
            self._places: dict[str, dict[str, str]] = {
                size: {str(name): file for file, names in shards.items() for name in names}
                for size, shards in self.sizes.items()
            }
        self._shards: dict[Path, Shard] = {}

    @staticmethod
    def is_one(folder: Path) -> bool:
        """Whether this is a folder of encoded clips."""
        return (folder / MANIFEST).is_file()

    @cached_property
    def names(self) -> list[str]:
        """Of the clips, in order."""
        return sorted(next(iter(self._places.values()), {}))

    def require_vae(self, vae: str) -> None:
        """Refuse latents of another VAE than the one with this fingerprint.

        Raises:
            ValueError: it says what to do.
        """
        if vae != self.made_by:
            raise ValueError(
                f"{self.folder} was encoded by another VAE ({self.made_by}) than this model's ({vae}): encode its "
                "clips again with `python -m svimo_train encode`, or set init to a checkpoint with the VAE of before"
            )

    def require_sizes(self, sizes: Iterable[ClipSize]) -> None:
        """Refuse a folder that does not have the same clips at all of these sizes, which are its `names` from now on:
        what it has at other sizes may be of before clips came or went.

        Raises:
            ValueError: it says what to do.
        """
        wanted = list(map(size_name, sizes))
        self.names = sorted(self._places.get(wanted[0], {}))
        for size in wanted:
            if not self.names or self._places.get(size, {}).keys() != set(self.names):
                there = ", ".join(f"{len(names)} of {name}" for name, names in self._places.items())
                raise ValueError(
                    f"{self.folder} does not have all its clips at {size} (it has {there}): run "
                    "`python -m svimo_train encode` with this configuration"
                )

    def notes(self, name: str, size: ClipSize) -> dict[str, Any]:
        """What is known of a clip before it is read: `prompt`, `fps`, `camera`, `objects`."""
        return self._shard(name, size).records[name]["notes"]

    def has_latents(self, name: str, size: ClipSize) -> bool:
        """Whether a clip has more than its first frame."""
        return "latents" in self._shard(name, size).records[name]["tensors"]

    def checksum(self, name: str, size: ClipSize) -> int:
        """Of a clip's bytes."""
        return self._shard(name, size).records[name]["crc32"]

    def stamp(self, name: str, size: ClipSize) -> list[Any]:
        """What makes a clip another one under the same name, JSON-able: its bytes, and its prompt beside them."""
        return [self.checksum(name, size), self.notes(name, size)["prompt"]]

    def record(self, name: str, size: ClipSize) -> Record:
        """One clip.

        Raises:
            ValueError: its shard is damaged; the message names it.
        """
        return self._shard(name, size).read(name)

    def clip(self, name: str, size: ClipSize) -> EncodedClip:
        """What :meth:`EncodedClip.record` was given.

        Raises:
            ValueError: its shard is damaged; the message names it.
        """
        record = self.record(name, size)
        with reading(
            self._shard(name, size).path, "is a damaged shard", "delete it and encode the clips again"
        ):
            return EncodedClip.of(record)

    def text(self) -> Text | None:
        """T5's features, if there are any.

        Raises:
            ValueError: the file is damaged.
        """
        path = self.folder / TEXT
        if not path.is_file():
            return None
        again = "delete it and run `python -m svimo_train encode` again"
        with reading(path, "is damaged", again), safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            prompts = json.loads(metadata["prompts"])
            return Text(metadata["t5"], dict(zip(prompts, file.get_tensor("features"), strict=True)))

    def prompts(self) -> set[str]:
        """Of which there are features. The file is not left open, so that it can be replaced on Windows, too.

        Raises:
            ValueError: it is damaged.
        """
        text = self.text()
        return set() if text is None else set(text.features)

    def _shard(self, name: str, size: ClipSize) -> Shard:
        path = self.folder / size_name(size) / self._places[size_name(size)][name]
        if path not in self._shards:
            shard = Shard(path)
            if name not in shard.records:
                raise ValueError(
                    f"shard {path} lacks {name}, which {MANIFEST} has in it: encode the clips again"
                )
            self._shards[path] = shard
        return self._shards[path]


class EncodedClips:
    """The clips of encoded folders, one folder after the other.

    Raises:
        ValueError: there are none.
    """

    def __init__(self, folders: Sequence[EncodedFolder]):
        self.folders = folders
        self.places = [(folder, name) for folder in folders for name in folder.names]
        if not self.places:
            raise ValueError(f"no clips in {', '.join(str(folder.folder) for folder in folders)}")

    def __len__(self) -> int:
        return len(self.places)

    def clip(self, index: int, size: ClipSize) -> EncodedClip:
        """One of them; see :meth:`EncodedFolder.clip`."""
        folder, name = self.places[index]
        return folder.clip(name, size)

    def has_latents(self, index: int, size: ClipSize) -> bool:
        """Whether it has more than its first frame."""
        folder, name = self.places[index]
        return folder.has_latents(name, size)

    def features(self) -> dict[str, Tensor]:
        """T5's features of all prompts.

        Raises:
            ValueError: they are of several T5s.
        """
        texts = [text for folder in self.folders if (text := folder.text()) is not None]
        if len({text.t5 for text in texts}) > 1:
            raise ValueError(
                "these folders have text features of several T5s: "
                + ", ".join(str(folder.folder) for folder in self.folders)
                + f"; delete {TEXT} in each and run `python -m svimo_train encode` with one text_model"
            )
        return {prompt: x for text in texts for prompt, x in text.features.items()}


def write_manifest(folder: Path, made_by: str, sizes: dict[str, dict[str, list[str]]]) -> None:
    """Name the shards of a folder and the clips in each; the file appears whole or not at all.

    Args:
        made_by: fingerprint of the networks behind the latents.
    """
    text = json.dumps({"format": FORMAT, "made_by": made_by, "sizes": sizes}, indent=1)
    with whole_file(folder / MANIFEST) as partial:
        partial.write_text(text + "\n", encoding="utf-8")


def _is_name(text: str) -> bool:
    return 0 < len(text) < 100 and text == Path(text).name


def size_name(size: ClipSize) -> str:
    """Of the folder for clips of a size."""
    return f"{size.frames}x{size.height}x{size.width}"


def fingerprint(weights: Mapping[str, Tensor]) -> str:
    """A name for these exact weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]
