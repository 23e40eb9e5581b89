"""What the alignment stage corrects, made once: the sampler's first readings of each clip.

The MM-DiT and VID take nearly all of an alignment step and learn nothing in it. Readings lie beside the encoded clips,
apart by all that made them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from types import SimpleNamespace

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch import nn

from svimo_core.config import ClipSize

from .encode import fill
from .encoded import EncodedClips, EncodedFolder, fingerprint
from .loader import Load, TrainingData
from .settings import Batch, Shape, TrainConfig
from .shards import Record
from .stages import AlignmentStage

TENSORS = "hands", "points", "image"
"""Of a record, each with one more dimension in front: the reading's number."""


def with_readings(
    data: TrainingData,
    stage: AlignmentStage,
    config: TrainConfig,
    model: SimpleNamespace,
    accelerator: Accelerator,
) -> TrainingData:
    """Clips with their readings; whatever is missing is made now, by all processes."""
    for part in ("backbone", "interaction", "vae", "text_encoder"):
        if part in model.parts:
            model.parts[part].to(accelerator.device)
    made_by = f"read-{config.interaction.readings}-{_made_by(config, model)}"
    shapes = {shape.size: shape for phase in config.phases for shape in phase.shapes}
    folders, first = [], 0
    for folder in data.clips.folders:
        numbers = {name: first + number for number, name in enumerate(folder.names)}
        first += len(numbers)
        for size, shape in shapes.items():
            fill(
                folder.folder / made_by,
                size,
                {name: folder.stamp(name, size) for name in folder.names},
                _maker(data.load, stage, folder, numbers, shape, config, accelerator),
                model.config,
                made_by,
                accelerator,
            )
        folders.append(EncodedFolder(folder.folder / made_by))
        folders[-1].require_sizes(shapes)
    return replace(data, load=WithReadings(data.load, EncodedClips(folders)))


def _maker(
    load: Load,
    stage: AlignmentStage,
    folder: EncodedFolder,
    numbers: dict[str, int],
    shape: Shape,
    config: TrainConfig,
    accelerator: Accelerator,
) -> Callable[[str], Record]:
    @torch.no_grad()
    def make(name: str) -> Record:
        generator = torch.Generator().manual_seed(folder.checksum(name, shape.size))
        batch = load([numbers[name]] * config.interaction.readings, shape, generator)
        with accelerator.autocast():
            read = stage.first_reading(send_to_device(batch, accelerator.device), generator)
        return Record({key: x.half().cpu().contiguous() for key, x in zip(TENSORS, read, strict=True)}, {})

    return make


def _made_by(config: TrainConfig, model: SimpleNamespace) -> str:
    """A name for all that readings come from: weights, but not those of the alignment, statistics and settings."""
    networks = {
        name: child for name, child in model.parts["interaction"].named_children() if name != "alignment"
    }
    networks |= {part: model.parts[part] for part in ("backbone", "text_encoder") if part in model.parts}
    text = json.dumps(
        [fingerprint(nn.ModuleDict(networks).state_dict()), model.normalizer.to_dict(), asdict(config.joint)]
    )
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class WithReadings:
    """Batches of clips, each with one of its readings."""

    load: Load
    readings: EncodedClips

    def __call__(self, indices: list[int], shape: Shape, generator: torch.Generator) -> Batch:
        """As of `load`, and `read`: normalised hands and points (B N 42 3, B N P 3) and image latents (B C h w).

        Raises:
            ValueError: a shard that is damaged; the message names it.
        """
        batch = self.load(indices, shape, generator)
        records = [self._record(index, shape.size).tensors for index in indices]
        count = len(records[0]["image"])
        chosen = torch.randint(count, (len(indices),), generator=generator).tolist()
        read = (
            torch.stack(
                [tensors[key][number].float() for tensors, number in zip(records, chosen, strict=True)]
            )
            for key in TENSORS
        )
        return batch | {"read": tuple(read)}

    def _record(self, index: int, size: ClipSize) -> Record:
        folder, name = self.readings.places[index]
        return folder.record(name, size)
