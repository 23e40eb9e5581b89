"""The synchronized video-motion diffusion transformer (paper section 3.1): CogVideoX-I2V with a motion stream.

Modules carry CogVideoX's published weight names, so its checkpoints and LoRAs map onto this model key by key; only
the motion patch embedding (`patch_embed.motion_proj`) and the motion rows of the modulation layers are new.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..config import BackboneConfig
from ..once import OnceForEach
from .layers import (
    AttentionFunction,
    FeedForward,
    Operations,
    SelfAttention,
    TimestepMLP,
    rotary_3d,
    scaled_dot_product_attention,
    timestep_embedding,
)

RunBlock = Callable[[int, Callable[[list[Tensor]], list[Tensor]], list[Tensor]], list[Tensor]]
"""(index, block, token streams) to updated token streams; `block(streams)` runs the block itself."""


class PatchEmbed(nn.Module):
    """Text features and latent patches to tokens of the transformer's width."""

    def __init__(self, config: BackboneConfig, operations: Operations):
        super().__init__()
        self.config = config
        channels, size = 2 * config.latent_channels, config.patch_size
        self.text_proj = operations.Linear(config.text_dim, config.dim)
        self.proj = operations.Conv2d(channels, config.dim, kernel_size=size, stride=size)
        if config.motion:
            self.motion_proj = operations.Conv2d(channels, config.dim, kernel_size=size, stride=size)
        if config.position_table is not None:
            t, h, w = config.position_table
            self.position_table = operations.Embedding(config.text_length + t * h * w, config.dim)

    def patches(self, projection: nn.Module, noisy: Tensor, condition: Tensor) -> Tensor:
        """Noisy latent and its condition (B C T h w each) to tokens (B T*h/2*w/2 dim)."""
        frames = rearrange(torch.cat([noisy, condition], dim=1), "b c t h w -> (b t) c h w")
        return rearrange(projection(frames), "(b t) d h w -> b (t h w) d", b=len(noisy))

    def positions(self, grid: tuple[int, int, int], device: torch.device) -> tuple[Tensor, Tensor] | None:
        """Learned text and patch positions. The table only fits its own grid; elsewhere it is left out, which
        CogVideoX's maintainers confirm is harmless (its values are near zero)."""
        if self.config.position_table is None or tuple(self.config.position_table) != grid:
            return None
        table = self.position_table(torch.arange(self.position_table.num_embeddings, device=device))
        return table[: self.config.text_length], table[self.config.text_length :]


class Times(NamedTuple):
    """How noisy each part of each stream is, as the modulation layers hear it."""

    embedding: Tensor
    """B K time_embed_dim, of all timesteps: one, or the text's, then those of the video's and the drawing's frames."""
    spans: list[slice]
    """Which of the K belong to text, video, drawing: one for the whole stream, or one for each latent frame."""

    def of(self, stream: int, rows: Tensor) -> Tensor:
        """What of rows (B K ...) belongs to a stream."""
        return rows if rows.shape[1] == 1 else rows[:, self.spans[stream]]


def modulate(base: Tensor, x: Tensor, factor: Tensor) -> Tensor:
    """base + x * factor on tokens (B N dim), of which each K-th part has rows of its own (B K 1 dim)."""
    if factor.shape[1] == 1:  # without views of views, which a small model would notice
        return torch.addcmul(*(t.squeeze(1) if t.ndim == 4 else t for t in (base, x, factor)))
    base, x = (t if t.ndim == 4 else t.unflatten(1, (factor.shape[1], -1)) for t in (base, x))
    return torch.addcmul(base, x, factor).flatten(1, 2)


class Modulation(nn.Module):
    """Layer norm shared by all tokens, then shift, scale and gate per modality from its timestep's embedding.

    The linear layer's rows are in the order video, text, motion: CogVideoX's two come first.
    """

    def __init__(self, config: BackboneConfig, operations: Operations):
        super().__init__()
        self.modalities = 3 if config.motion else 2
        self.linear = operations.Linear(config.time_embed_dim, 3 * self.modalities * config.dim)
        self.norm = operations.LayerNorm(config.dim, eps=config.norm_eps)

    def forward(self, streams: list[Tensor], time: Times) -> tuple[Tensor, list[Tensor]]:
        """Normalise and modulate the [text, video, motion] streams.

        Returns:
            All tokens in one sequence (B N dim), and each stream's gate (B K 1 dim, for :func:`modulate`).
        """
        rows = rearrange(self.linear(F.silu(time.embedding)), "b k (m d) -> m b k 1 d", m=3 * self.modalities)
        order = (1, 0, 2)[: len(streams)]  # text, video, motion in the linear layer's rows
        shifts, scales, gates = (
            [time.of(stream, rows[3 * m + part]) for stream, m in enumerate(order)] for part in range(3)
        )
        modulated = [
            modulate(shift, self.norm(stream), 1 + scale)
            for stream, scale, shift in zip(streams, scales, shifts, strict=True)
        ]
        return torch.cat(modulated, dim=1), gates


class Block(nn.Module):
    """3D full attention and feed-forward over one sequence of all modalities (paper equation 3)."""

    def __init__(self, config: BackboneConfig, operations: Operations, attention: AttentionFunction):
        super().__init__()
        self.norm1 = Modulation(config, operations)
        self.attn1 = SelfAttention(config.dim, config.num_heads, operations, attention)
        self.norm2 = Modulation(config, operations)
        self.ff = FeedForward(config.dim, operations)

    def forward(
        self,
        streams: list[Tensor],
        time: Times,
        rotary: tuple[Tensor, Tensor],
        options: dict[str, Any] | None = None,
    ) -> list[Tensor]:
        """Update the [text, video, drawing] token streams, each B N_m dim; `options` go to the attention function."""
        lengths = [stream.shape[1] for stream in streams]
        tokens, gates = self.norm1(streams, time)
        update = self.attn1(tokens, rotary, options).split(lengths, dim=1)
        streams = [modulate(f, u, gate) for f, gate, u in zip(streams, gates, update, strict=True)]
        tokens, gates = self.norm2(streams, time)
        update = self.ff(tokens).split(lengths, dim=1)
        return [modulate(f, u, gate) for f, gate, u in zip(streams, gates, update, strict=True)]


class FinalModulation(nn.Module):
    """Layer norm with shift and scale from the timestep embedding, before the output projection."""

    def __init__(self, config: BackboneConfig, operations: Operations):
        super().__init__()
        self.linear = operations.Linear(config.time_embed_dim, 2 * config.dim)
        self.norm = operations.LayerNorm(config.dim, eps=config.norm_eps)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Tokens of one stream (B N dim), with its timesteps' embedding (B K time_embed_dim)."""
        shift, scale = self.linear(F.silu(time))[:, :, None].chunk(2, dim=-1)
        return modulate(shift, self.norm(x), 1 + scale)


class MMDiT(nn.Module):
    """Predicts the velocities of the video and the motion latent together.

    Without motion latents it is CogVideoX-I2V exactly; a config with `motion=False` has no motion weights at all.
    """

    def __init__(
        self,
        config: BackboneConfig,
        operations: Operations = nn,
        attention: AttentionFunction = scaled_dot_product_attention,
    ):
        super().__init__()
        self.config = config
        self.patch_embed = PatchEmbed(config, operations)
        self.time_embedding = TimestepMLP(config.dim, config.time_embed_dim, operations)
        self.transformer_blocks = nn.ModuleList(
            Block(config, operations, attention) for _ in range(config.num_layers)
        )
        self.norm_final = operations.LayerNorm(config.dim, eps=config.norm_eps)
        self.norm_out = FinalModulation(config, operations)
        self.proj_out = operations.Linear(config.dim, config.patch_size**2 * config.latent_channels)
        self.rotary = OnceForEach(self._rotary)

    def _rotary(
        self, streams: int, frames: int, height: int, width: int, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """Cosines and sines of all patches; those of the drawing sit where the video's that they overlay sit."""
        tables = rotary_3d(frames, height, width, self.config.head_dim, device, self.config.rotary_grid)
        return tuple(torch.cat([table] * streams) for table in tables)

    def forward(
        self,
        video: Tensor,
        image: Tensor,
        text: Tensor,
        timestep: Tensor,
        drawing: Tensor | None = None,
        guidance: Tensor | None = None,
        run_block: RunBlock | None = None,
        attention_options: dict[str, Any] | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Predict v for one noise level.

        Args:
            video, drawing: noisy latents, B C T h w; `drawing` (of the motion) None is video-only mode.
            image, guidance: their conditions, same shape (see :meth:`image_condition`).
            text: B L text_dim features.
            timestep: training timesteps: (B,) for everything, or for each latent frame of each stream (B S T). Known
                frames are clean latents at timestep 0; the text hears the timestep of the video's noisiest frame.
            run_block: runs each block in its own way; None just runs it.
            attention_options: for the attention function.

        Returns:
            v of video and of drawing (None in video-only mode), B C T h w.
        """
        config = self.config
        grid = (video.shape[2], video.shape[3] // config.patch_size, video.shape[4] // config.patch_size)

        # 1. tokens and positions
        time = self._times(timestep, video, 1 if drawing is None else 2)
        streams = [
            self.patch_embed.text_proj(text),
            self.patch_embed.patches(self.patch_embed.proj, video, image),
        ]
        if drawing is not None:
            streams.append(self.patch_embed.patches(self.patch_embed.motion_proj, drawing, guidance))
        learned = self.patch_embed.positions(grid, video.device)
        if learned is not None:
            streams = [stream + learned[min(i, 1)].to(stream) for i, stream in enumerate(streams)]
        rotary = self.rotary(len(streams) - 1, *grid, video.device)

        # 2. joint blocks
        for i, block in enumerate(self.transformer_blocks):
            run = partial(block, time=time, rotary=rotary, options=attention_options)
            streams = run(streams) if run_block is None else run_block(i, run, streams)

        # 3. each stream back to a latent
        velocities = [
            rearrange(
                self.proj_out(self.norm_out(self.norm_final(stream), time.of(i, time.embedding))),
                "b (t h w) (c p q) -> b c t (h p) (w q)",
                **dict(zip("thw", grid, strict=True)),
                p=config.patch_size,
                q=config.patch_size,
            )
            for i, stream in enumerate(streams[1:], start=1)
        ]
        return velocities[0], velocities[1] if drawing is not None else None

    def _times(self, timestep: Tensor, video: Tensor, streams: int) -> Times:
        """Embed timesteps, (B,) or B S T, for text and this many streams of latents."""
        if timestep.ndim == 1:
            times, spans = timestep[:, None], [slice(0, 1)] * (1 + streams)
        else:
            frames = timestep.shape[2]
            times = torch.cat([timestep[:, 0].amax(dim=1, keepdim=True), timestep.flatten(1)], dim=1)
            spans = [slice(0, 1), *(slice(1 + s * frames, 1 + (s + 1) * frames) for s in range(streams))]
        embedded = timestep_embedding(times, self.config.dim).to(video.dtype)
        return Times(self.time_embedding(embedded), spans)

    def image_condition(self, image: Tensor, latent_frames: int) -> Tensor:
        """Spread one image latent (B C h w) over time as this checkpoint was trained: B C T h w."""
        image = image[:, :, None]
        if self.config.image_padding == "repeat":
            return image.expand(-1, -1, latent_frames, -1, -1)
        return F.pad(image, (0, 0, 0, 0, 0, latent_frames - 1))


class SeparateMMDiT(nn.Module):
    """One network for the video and one for the motion, which hear nothing of each other: the paper's ablation.

    Both read text and reference image; there is no guidance. It stands wherever an :class:`MMDiT` does.
    """

    def __init__(
        self,
        config: BackboneConfig,
        operations: Operations = nn,
        attention: AttentionFunction = scaled_dot_product_attention,
    ):
        super().__init__()
        self.config = config
        alone = replace(config, motion=False, separate=False)
        self.video = MMDiT(alone, operations, attention)
        self.motion = MMDiT(alone, operations, attention)

    def forward(
        self,
        video: Tensor,
        image: Tensor,
        text: Tensor,
        timestep: Tensor,
        drawing: Tensor,
        guidance: Tensor | None = None,
        run_block: RunBlock | None = None,
        attention_options: dict[str, Any] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """As of :class:`MMDiT`; `guidance` is ignored."""
        options = dict(run_block=run_block, attention_options=attention_options)
        times = [timestep] * 2 if timestep.ndim == 1 else timestep.split(1, dim=1)
        networks = ((self.video, video, times[0]), (self.motion, drawing, times[1]))
        first, second = (network(noisy, image, text, time, **options)[0] for network, noisy, time in networks)
        return first, second

    def image_condition(self, image: Tensor, latent_frames: int) -> Tensor:
        """See :meth:`MMDiT.image_condition`."""
        return self.video.image_condition(image, latent_frames)


def start_from_nothing(model: nn.Module) -> None:
    """Weights to train an MM-DiT from, where no pretrained ones are: as DiT starts (Peebles and Xie, arXiv 2212.09748,
    section 3.2), every block is the identity and the output zero; and guidance changes nothing until it is trained."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            if name.endswith(("norm1.linear", "norm2.linear", "norm_out.linear", "proj_out")):
                nn.init.zeros_(module.weight)
            else:
                nn.init.xavier_uniform_(module.weight.flatten(1))
            if name.endswith("motion_proj"):
                nn.init.zeros_(module.weight[:, module.in_channels // 2 :])
            nn.init.zeros_(module.bias)


def extend_with_motion(
    video_only: Iterable[tuple[str, Tensor]], config: BackboneConfig
) -> Iterator[tuple[str, Tensor]]:
    """Start a three-modality MM-DiT from CogVideoX-I2V weights (method, section 3, "Init from CogVideoX").

    Motion modulation rows and the noisy half of the motion patch kernel copy the video ones; the guidance half starts
    at zero, so an untrained guidance changes nothing.

    Args:
        video_only: weights by name of an MMDiT built with `motion=False`; read one by one, so that 5 B parameters
            need not be held.
        config: the config of the model to start, with `motion=True`.
    """
    for key, value in video_only:
        if ".norm1.linear." in key or ".norm2.linear." in key:
            yield key, torch.cat([value, value[: 3 * config.dim]])
            continue
        yield key, value
        if key == "patch_embed.proj.weight":
            kernel = value.clone()
            kernel[:, config.latent_channels :] = 0
            yield "patch_embed.motion_proj.weight", kernel
        elif key == "patch_embed.proj.bias":
            yield "patch_embed.motion_proj.bias", value.clone()


def split_streams(
    joint: Iterable[tuple[str, Tensor]], config: BackboneConfig
) -> Iterator[tuple[str, Tensor]]:
    """Start a :class:`SeparateMMDiT` from a three-modality MM-DiT's weights by name: each network takes what its stream
    used, and the motion's reads the reference image where there was guidance."""
    weights = dict(joint)
    rows, channels = 3 * config.dim, config.latent_channels
    for key, value in weights.items():
        if ".norm1.linear." in key or ".norm2.linear." in key:  # rows of video, text, motion
            yield f"video.{key}", value[: 2 * rows]
            yield f"motion.{key}", torch.cat([value[2 * rows :], value[rows : 2 * rows]])
        elif key == "patch_embed.proj.weight":
            noisy = weights["patch_embed.motion_proj.weight"][:, :channels]
            yield f"video.{key}", value
            yield f"motion.{key}", torch.cat([noisy, value[:, channels:]], dim=1)
        elif key == "patch_embed.proj.bias":
            yield f"video.{key}", value
            yield f"motion.{key}", weights["patch_embed.motion_proj.bias"]
        elif not key.startswith("patch_embed.motion_proj."):
            yield f"video.{key}", value
            yield f"motion.{key}", value
