"""Sizes and switches of every model, as frozen dataclasses, and the two named presets.

A checkpoint stores one :class:`SViMoConfig` in its metadata, so a file says by itself how to build what it holds.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

MOST_LAYERS, LARGEST = 100, 2**20
"""What no configuration goes beyond: layers of one network or entries of one list, and any other number."""


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """The MM-DiT (paper section 3.1): CogVideoX-I2V's transformer with a third, motion, stream.

    Raises:
        ValueError: a size that the rotary embedding or the patches cannot divide.
    """

    num_layers: int
    num_heads: int
    head_dim: int
    """Split 2:3:3 over time, height and width by the rotary embedding, so a multiple of 16."""
    latent_channels: int = 16
    """Channels of one latent. Each stream reads twice as many: noisy latent + image (or guidance) latent."""
    time_embed_dim: int = 512
    text_dim: int = 4096
    text_length: int = 226
    patch_size: int = 2
    norm_eps: float = 1e-5
    motion: bool = True
    """False builds CogVideoX-I2V itself: no motion patch embedding, two modulated modalities instead of three."""
    separate: bool = False
    """Two networks that hear nothing of each other, one for each stream: the paper's ablation."""
    image_padding: str = "repeat"
    """How the image latent fills time: "repeat" (SViMo) or "zero" after the first latent frame (CogVideoX)."""
    position_table: tuple[int, int, int] | None = None
    """Latent frames, height and width of CogVideoX's learned position table in tokens' own grid; None drops it."""
    rotary_grid: tuple[int, int] | None = None
    """Where rotary positions lie off the native size. None, as in training: a token keeps its own row and column at
    every size. A height and width in tokens, such as (30, 45): stretch or shrink every clip's rows and columns into
    that grid, as diffusers' CogVideoX pipelines do. Both agree at the grid's own size."""

    any_to_any: bool = False
    """Trained with known streams and known frames, clean at timestep 0: it serves video to motion, motion to video, and
    clips that go on."""

    def __post_init__(self):
        if self.head_dim % 16:
            raise ValueError(
                f"head_dim must be a multiple of 16 (2:3:3 rotary split in pairs), got {self.head_dim}"
            )
        if self.image_padding not in ("repeat", "zero"):
            raise ValueError(f'image_padding must be "repeat" or "zero", got {self.image_padding!r}')

    @property
    def dim(self) -> int:
        """Transformer width D."""
        return self.num_heads * self.head_dim


@dataclass(frozen=True, kw_only=True)
class InteractionConfig:
    """The vision-aware 3D interaction diffusion model, VID (paper section 3.2)."""

    latent_channels: int = 16
    pyramid_channels: tuple[int, ...]
    """Width of each level of the two latent pyramids, finest first; the denoiser has as many levels."""
    denoiser_channels: tuple[int, ...]
    """Width of each level of the temporal UNet, finest first."""
    num_heads: int
    patch: int = 1
    """Cells of the latent, across and down, that VID takes for one."""
    num_joints: int = 42
    object_names: tuple[str, ...] = ("tool", "target")
    points_per_object: int = 128
    norm_groups: int = 8
    snr_shift: float = 100.0
    """How many times lower the signal-to-noise ratio of hands and points is than that of the latents at the same
    timestep. Thousands of coordinates say where one hand is: at the latents' own ratio their noise averages out, and a
    model that trains on the truth with noise learns to believe them rather than the latents."""
    read_grid: tuple[int, int] = (8, 12)
    """Rows and columns, pooled, that the reader sees of each latent frame."""
    read_channels: tuple[int, int, int] = (32, 16, 128)
    """Widths of the reader: of its convolutions, of what it keeps of each place, and of its perceptron."""
    read_blocks: int = 3
    """Residual blocks of the reader."""
    align_channels: tuple[int, int] | None = None
    """Widths of what holds a reading against the reference image: of its convolutions over the image, and of its
    perceptron. None: there is no such part, and the loop draws what was read."""
    align_points: int = 16
    """Points of each object that are looked for in the image."""

    def __post_init__(self):
        if not self.pyramid_channels or len(self.pyramid_channels) != len(self.denoiser_channels):
            raise ValueError(
                "pyramid_channels and denoiser_channels must have the same number of levels, at least one, got "
                f"{len(self.pyramid_channels)} and {len(self.denoiser_channels)}"
            )

        if not 0 < self.snr_shift < math.inf:
            raise ValueError(f"snr_shift must be above 0 and finite, got {self.snr_shift}")
        if min(self.patch, self.read_blocks) < 1:
            raise ValueError(f"patch and read_blocks must be from 1, got {self.patch} and {self.read_blocks}")
        if len(self.read_grid) != 2 or min(self.read_grid) < 1:
            raise ValueError(
                f"read_grid must be rows and columns, at least one of each, got {self.read_grid}"
            )
        if (
            len(self.read_channels) != 3
            or min(self.read_channels) < 1
            or self.read_channels[0] % self.norm_groups
        ):
            raise ValueError(
                "read_channels must be three widths from 1, the first divisible by norm_groups "
                f"({self.norm_groups}), got {self.read_channels}"
            )
        if self.align_channels is not None and (
            len(self.align_channels) != 2
            or min(self.align_channels) < 1
            or self.align_channels[0] % self.norm_groups
        ):
            raise ValueError(
                f"align_channels must be two widths from 1, the first divisible by norm_groups ({self.norm_groups}), "
                f"got {self.align_channels}"
            )
        if self.align_channels is not None and not 0 < self.align_points <= self.points_per_object:
            raise ValueError(
                f"align_points must be 1 to points_per_object ({self.points_per_object}), got {self.align_points}"
            )

    @property
    def num_points(self) -> int:
        """Points of all objects together."""
        return len(self.object_names) * self.points_per_object


class ClipSize(NamedTuple):
    """A clip in frames and pixels."""

    frames: int
    height: int
    width: int


@dataclass(frozen=True, kw_only=True)
class VAEConfig:
    """Arguments of diffusers' AutoencoderKLCogVideoX that differ between sizes."""

    block_out_channels: tuple[int, ...]
    layers_per_block: int
    norm_groups: int
    latent_channels: int = 16
    scaling_factor: float = 0.7

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """Channels, frames, height and width of what the encoder makes of a clip, decodable or not."""
        return (
            self.latent_channels,
            (frames - 1) // self.temporal_compression + 1,
            height // self.spatial_compression,
            width // self.spatial_compression,
        )

    def clip_size(self, shape: Sequence[int]) -> ClipSize:
        """Of the clip that a latent of this shape (B C T h w) holds."""
        t, h, w = shape[-3:]
        cell = self.spatial_compression
        return ClipSize((t - 1) * self.temporal_compression + 1, h * cell, w * cell)

    @property
    def spatial_compression(self) -> int:
        """Pixels per latent cell along height and width."""
        return 2 ** (len(self.block_out_channels) - 1)

    @property
    def temporal_compression(self) -> int:
        """Frames per latent frame after the first."""
        return 4

    @property
    def frame_step(self) -> int:
        """Clips have this times k, plus 1 frames: CogVideoX's VAE decodes the latent frames after the first in pairs,
        and gives too many frames for an even number of them."""
        return 2 * self.temporal_compression


@dataclass(frozen=True, kw_only=True)
class DrawingConfig:
    """The drawing encoder: what one VAE makes of rendered motion, at a fraction of the work."""

    channels: int
    blocks: int
    pixel: int = 2
    """It sees the drawing at so many times less height and width."""

    def __post_init__(self):
        if min(self.channels, self.blocks, self.pixel) < 1 or self.channels % 8:
            raise ValueError(
                f"a drawing encoder needs channels (a multiple of 8), blocks and pixel from 1, got {self}"
            )


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """Arguments of transformers' T5EncoderModel that differ between sizes."""

    vocab_size: int
    dim: int
    ff_dim: int
    num_layers: int
    num_heads: int
    head_dim: int
    text_length: int
    """Prompts are padded or cut to this many tokens."""


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """CogVideoX's noise schedule (defaults are CogVideoX-5b-I2V's, which differ from diffusers' class defaults)."""

    num_train_timesteps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    snr_shift_scale: float = 1.0
    """Divides the signal-to-noise ratio of every timestep."""

    def shifted(self, scale: float) -> ScheduleConfig:
        """The same schedule at a signal-to-noise ratio so many times lower."""
        return dataclasses.replace(self, snr_shift_scale=self.snr_shift_scale * scale)


@dataclass(frozen=True, kw_only=True)
class SViMoConfig:
    """One complete model and its native clip size.

    Raises:
        ValueError: a clip size that the models cannot represent.
    """

    name: str
    frames: int
    """Frames of a clip, 8k + 1."""
    height: int
    width: int
    fps: float = 8.0
    backbone: BackboneConfig
    interaction: InteractionConfig
    vae: VAEConfig
    text: TextConfig | None
    """None: the text encoder is not part of the model (T5-XXL comes from its own file)."""
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    drawing: DrawingConfig | None = None
    """None: there is no drawing encoder, and the VAE encodes drawings."""

    def __post_init__(self):
        for section, values in dataclasses.asdict(self).items():
            self._check_size(section, values)
        if self.drawing is not None and self.vae.spatial_compression % self.drawing.pixel:
            raise ValueError(
                f"drawing.pixel must divide the VAE's {self.vae.spatial_compression} pixels of a latent cell, got "
                f"{self.drawing.pixel}"
            )
        if self.backbone.patch_size % self.interaction.patch:
            raise ValueError(
                "interaction.patch must divide backbone.patch_size, of which clips are multiples, got "
                f"{self.interaction.patch} and {self.backbone.patch_size}"
            )
        self.check_clip(self.frames, self.height, self.width)

    def _check_size(self, name: str, value: Any) -> None:
        """Refuse what would take a builder forever, or all memory, before it has built anything to compare."""
        if isinstance(value, dict):
            for part, inner in value.items():
                self._check_size(f"{name}.{part}", inner)
        elif isinstance(value, tuple):
            if len(value) > MOST_LAYERS:
                raise ValueError(f"{name} has {len(value)} entries, and no model has more than {MOST_LAYERS}")
            for inner in value:
                self._check_size(name, inner)
        elif isinstance(value, (int, float)):
            most = MOST_LAYERS if name.endswith(("num_layers", "layers_per_block", "blocks")) else LARGEST
            if not abs(value) <= most:
                raise ValueError(f"{name} is {value:g}, and no model has more than {most}")

    @property
    def motion_schedule(self) -> ScheduleConfig:
        """Of hands and points, which share the latents' timesteps."""
        return self.schedule.shifted(self.interaction.snr_shift)

    @property
    def pixel_multiple(self) -> int:
        """Height and width must be multiples of this: VAE compression times patch size."""
        return self.vae.spatial_compression * self.backbone.patch_size

    def check_clip(self, frames: int, height: int, width: int) -> None:
        """Refuse a clip size that cannot be encoded and patched without a remainder."""
        step = self.vae.frame_step
        if frames < 1 or (frames - 1) % step:
            nearest = max(0, round((frames - 1) / step)) * step + 1
            raise ValueError(
                f"frames must be {step}k + 1 (1, 9, 17, 25, ...), got {frames}; the nearest is {nearest}"
            )
        for axis, size in (("height", height), ("width", width)):
            if size < self.pixel_multiple or size % self.pixel_multiple:
                nearest = max(1, round(size / self.pixel_multiple)) * self.pixel_multiple
                raise ValueError(
                    f"{axis} must be a positive multiple of {self.pixel_multiple} pixels, got {size}; "
                    f"the nearest is {nearest}"
                )

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """Channels, latent frames, latent height and latent width of one stream for a clip of this size."""
        self.check_clip(frames, height, width)
        return self.vae.latent_shape(frames, height, width)

    def num_tokens(self, frames: int, height: int, width: int) -> int:
        """Length of the transformer's sequence: text + video + motion tokens."""
        _, t, h, w = self.latent_shape(frames, height, width)
        streams = 2 if self.backbone.motion else 1
        return self.backbone.text_length + streams * t * (h // self.backbone.patch_size) * (
            w // self.backbone.patch_size
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-able form; :meth:`from_dict` is its inverse."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> SViMoConfig:
        """Rebuild a config from its plain form, refusing fields this version does not know.

        Raises:
            ValueError: unknown or missing fields.
        """
        parts = {
            "backbone": BackboneConfig,
            "interaction": InteractionConfig,
            "vae": VAEConfig,
            "text": TextConfig,
            "schedule": ScheduleConfig,
            "drawing": DrawingConfig,
        }
        try:
            built = {
                key: parts[key](**{k: tuple(v) if isinstance(v, list) else v for k, v in value.items()})
                if key in parts and value is not None
                else value
                for key, value in values.items()
            }
            return cls(**built)
        except (TypeError, AttributeError) as error:
            raise ValueError(f"not a SViMo configuration this version understands: {error}") from error


TINY = SViMoConfig(
    name="tiny",
    frames=9,
    height=64,
    width=96,
    backbone=BackboneConfig(
        num_layers=6, num_heads=6, head_dim=32, time_embed_dim=32, text_dim=128, text_length=16
    ),
    interaction=InteractionConfig(
        patch=2,
        pyramid_channels=(16,),
        denoiser_channels=(48,),
        num_heads=4,
        read_grid=(4, 6),
        read_channels=(32, 16, 96),
        read_blocks=1,
        align_channels=(40, 160),
    ),
    vae=VAEConfig(block_out_channels=(32, 32, 64, 64), layers_per_block=1, norm_groups=8),
    text=TextConfig(
        vocab_size=640, dim=128, ff_dim=256, num_layers=2, num_heads=4, head_dim=32, text_length=16
    ),
    drawing=DrawingConfig(channels=48, blocks=2),
)
"""Runs on two CPU cores in seconds; the size of the checkpoint that ships with the pack."""

SMALL = SViMoConfig(
    name="small",
    frames=17,
    height=96,
    width=144,
    backbone=BackboneConfig(
        num_layers=12, num_heads=6, head_dim=64, time_embed_dim=64, text_dim=128, text_length=16
    ),
    interaction=InteractionConfig(
        pyramid_channels=(32, 48, 64),
        denoiser_channels=(160, 128, 96),
        num_heads=8,
        read_channels=(64, 16, 256),
        align_channels=(64, 96),
    ),
    vae=VAEConfig(block_out_channels=(32, 64, 96, 96), layers_per_block=1, norm_groups=16),
    text=TextConfig(
        vocab_size=640, dim=128, ff_dim=256, num_layers=2, num_heads=4, head_dim=32, text_length=16
    ),
    drawing=DrawingConfig(channels=96, blocks=4),
)
"""For one GPU and ten minutes (39 M parameters); nobody has trained one yet."""

COGVIDEOX_5B_I2V = SViMoConfig(
    name="cogvideox-5b-i2v",
    frames=49,
    height=416,
    width=624,
    backbone=BackboneConfig(num_layers=42, num_heads=48, head_dim=64),
    interaction=InteractionConfig(
        pyramid_channels=(64, 128, 256, 256),
        denoiser_channels=(512, 512, 768, 768),
        num_heads=8,
        norm_groups=32,
        read_grid=(16, 24),
        read_channels=(128, 32, 1024),
        align_channels=(128, 256),
    ),
    vae=VAEConfig(block_out_channels=(128, 256, 256, 512), layers_per_block=3, norm_groups=32),
    text=None,
    drawing=DrawingConfig(channels=256, blocks=6),
)
"""The paper's size (6.0 B parameters): CogVideoX-5b-I2V with a motion stream, 49 frames of 416 x 624."""

PRESETS: dict[str, SViMoConfig] = {preset.name: preset for preset in (TINY, SMALL, COGVIDEOX_5B_I2V)}
