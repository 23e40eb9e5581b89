"""MODEL: the MM-DiT as a model of ComfyUI's own kind, with two nested streams, the video and its drawing.

Being a `comfy.model_base.BaseModel` under core's own patcher, it gets from core what any model gets: samplers, guiders,
schedulers, caches, compile, choice of attention, LoRAs, context windows, offloading, and cancelling between layers.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable
from typing import Any, ClassVar

import comfy.conds
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.patcher_extension
import comfy.sampler_helpers
import comfy.samplers
import comfy.supported_models_base
import comfy.utils
import torch
import torch.nn.functional as F
from comfy.latent_formats import LatentFormat
from comfy.ldm.modules.attention import optimized_attention
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrapperExecutor, WrappersMP
from torch import Tensor, nn

from ..svimo_core.checkpoint import CheckpointHeader, load_part
from ..svimo_core.config import SViMoConfig
from ..svimo_core.model.mmdit import MMDiT, SeparateMMDiT
from ..svimo_core.sampling.latents import JointLatents, Known
from ..svimo_core.schedule import NoiseSchedule
from .latents import WINDOW
from .lora import with_checks

KEY = "svimo"
"""Of what this pack adds to a patcher."""
GUIDANCE = "svimo_guidance"
"""CONDITIONING key: the drawing latent of a given motion, B C T h w in VAE space, already scaled by its strength."""
IMAGE_LATENT = "concat_latent_image"
"""CONDITIONING key, core's own: the reference image's latent in VAE space, B C 1 h w."""
LOOP_MEMORY = "svimo_loop_memory"
"""Bytes that the loop needs beside the model, on their way to core's memory estimate."""
COMPUTE_DTYPES = torch.bfloat16, torch.float32
"""What MM-DiT and VID may compute in, best first. CogVideoX overflows float16."""
LATE = 0.1
"""Of the noise schedule: where a run begins to keep what its latent shows."""
NETWORK_BYTES = 16
"""Values per token and channel that one forward holds at its widest moment (docs/full-size.md)."""


class SViMoLatentFormat(LatentFormat):
    """Core's description of the latents, whose previews show the middle of the video."""

    latent_dimensions = 3
    spacial_downscale_ratio = 8
    temporal_downscale_ratio = 4

    def __init__(self, config: SViMoConfig, preview: Tensor | None):
        self.latent_channels = config.vae.latent_channels
        self.scale_factor = config.vae.scaling_factor
        self.video_shape: tuple[int, ...] | None = None
        """Of the run's video latent: up to 0.32 ComfyUI hands previews the packed latents without a word of it."""
        if preview is not None:
            self.latent_rgb_factors = (2 * preview[:-1]).tolist()  # core draws [-1, 1]
            self.latent_rgb_factors_bias = (2 * preview[-1] - 1).tolist()
            self.latent_rgb_factors_reshape = self._middle_frame

    def _middle_frame(self, x0: Tensor) -> Tensor:
        if x0.ndim == 3:
            count = math.prod(self.video_shape[1:])
            x0 = x0.flatten(1)[:, :count].reshape(len(x0), *self.video_shape[1:])
        middle = x0.shape[2] // 2
        return x0[:, :, middle : middle + 1]


class SViMoModelConfig(comfy.supported_models_base.BASE):
    """What core asks of a model family."""

    unet_extra_config: ClassVar[dict[str, Any]] = {}
    supported_inference_dtypes: ClassVar[list[torch.dtype]] = list(COMPUTE_DTYPES)

    def __init__(self, header: CheckpointHeader, weight_dtype: torch.dtype, compute_dtype: torch.dtype):
        super().__init__({"disable_unet_model_creation": True, "dtype": weight_dtype})
        self.svimo = header.config
        self.latent_format = SViMoLatentFormat(header.config, header.preview)
        self.manual_cast_dtype = compute_dtype if compute_dtype != weight_dtype else None
        schedule = header.config.schedule
        self.sampling_settings = {
            "beta_schedule": "linear",  # of the square roots, as CogVideoX's
            "linear_start": schedule.beta_start,
            "linear_end": schedule.beta_end,
            "timesteps": schedule.num_train_timesteps,
            "zsnr": True,
        }
        self.metadata = header.metadata("backbone")

    def process_unet_state_dict_for_saving(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """For ModelSave, whose files have no metadata of ours: what the file is lies beside the weights."""
        saved = super().process_unet_state_dict_for_saving(state_dict)
        encoded = json.dumps(self.metadata).encode()
        return saved | {"svimo_header": torch.frombuffer(bytearray(encoded), dtype=torch.uint8)}


class SViMoModel(comfy.model_base.BaseModel):
    """The MM-DiT as core's samplers call it, on packed latents of video and drawing (or on a video's alone)."""

    def __init__(self, model_config: SViMoModelConfig, network: nn.Module):
        # Not V_PREDICTION_DDPM, which core's CogVideoX has: its input is not scaled, and k-diffusion's samplers go wrong.
        super().__init__(model_config, comfy.model_base.ModelType.V_PREDICTION)
        self.config = model_config.svimo
        self.diffusion_model = network
        if self.config.schedule.snr_shift_scale != 1:
            abar = NoiseSchedule(self.config.schedule).abar.clamp(min=4.8973451890853435e-08)  # core's last
            self.model_sampling.set_sigmas(((1 - abar) / abar).sqrt())

    @property
    def compute_dtype(self) -> torch.dtype:
        """What the network computes in."""
        return self.manual_cast_dtype or self.get_dtype()

    def extra_conds(self, **kwargs: Any) -> dict[str, Any]:
        """Conditions of one prompt, as the network takes them.

        Raises:
            ValueError: latents, text, reference image or motion that do not fit the model or each other.
        """
        shapes = kwargs.get("latent_shapes") or [kwargs["noise"].shape]
        check_latents(shapes, self.config)
        self.latent_format.video_shape = tuple(shapes[0])
        device, text, image = kwargs["device"], kwargs.get("cross_attn"), kwargs.get(IMAGE_LATENT)
        name = kwargs.get("prompt_type", "the prompt")
        if WINDOW in kwargs:
            check_any_to_any(self.config)
        check_text(name, text, self.config)
        check_image(name, image, shapes[0])
        conds = {
            "c_crossattn": comfy.conds.CONDRegular(text.to(device)),
            "image": comfy.conds.CONDRegular(self.process_latent_in(image[:, :, :1].to(device))),
        }
        if len(shapes) > 1:
            conds["latent_shapes"] = comfy.conds.CONDConstant(shapes)
            given = kwargs.get(GUIDANCE)
            if given is None:
                given = torch.zeros(1, *shapes[1][1:])
            check_guidance(name, given, shapes[1])
            conds["guidance"] = comfy.conds.CONDRegular(self.process_latent_in(given.to(device)))
            conds |= self._known_conds(kwargs.get("denoise_mask"), kwargs.get("latent_image"), shapes)
        elif kwargs.get(GUIDANCE) is not None:
            raise ValueError(
                "this model makes video only, which a given motion cannot guide: leave SViMo Motion Encode out, or load "
                "a SViMo model"
            )
        return conds

    def _known_conds(self, mask: Tensor | None, latent: Tensor, shapes: list) -> dict[str, Any]:
        """Which latent frames are known, B S T, and their clean latents: those that a noise mask (packed) keeps whole.
        Other masked places are core's to paint in. Nothing for a model that was not trained with any."""
        if mask is None or not self.config.backbone.any_to_any:
            return {}
        masks = comfy.utils.unpack_latents(mask, [(len(mask), *shape[1:]) for shape in shapes])
        frames = torch.stack([x.amax(dim=(1, 3, 4)) == 0 for x in masks], dim=1)
        clean = comfy.utils.unpack_latents(latent, [(len(latent), *shape[1:]) for shape in shapes])
        if not frames.any():
            return {}
        values = dict(zip(("known", "known_video", "known_drawing"), (frames, *clean), strict=True))
        return {name: comfy.conds.CONDRegular(value.to(mask.device)) for name, value in values.items()}

    def apply_model(self, x: Tensor, t: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Core's, of packed latents; what is known comes out as it went in."""
        clean = super().apply_model(x, t, *args, **kwargs)
        if "known" not in kwargs:
            return clean
        video, drawing = comfy.utils.unpack_latents(clean, kwargs["latent_shapes"])
        frames = drawing.shape[2]
        put = known_of(kwargs, frames).put_into(JointLatents(video[:, :, -frames:], drawing))
        video = torch.cat([video[:, :, :-frames], put.video], dim=2)  # a window may have a frame before it
        return comfy.utils.pack_latents([video, put.drawing])[0]

    def extra_conds_shapes(self, **kwargs: Any) -> dict[str, list[int]]:
        """What :meth:`memory_required` shall know of a prompt's conditions."""
        return {LOOP_MEMORY: [kwargs[LOOP_MEMORY]]} if LOOP_MEMORY in kwargs else {}

    def memory_required(self, input_shape: list[int], cond_shapes: dict[str, list] | None = None) -> float:
        """Bytes of activations for latents of this shape, packed or not, and of the loop."""
        backbone = self.config.backbone
        values = math.prod(input_shape[1:])
        tokens = backbone.text_length + values / (backbone.latent_channels * backbone.patch_size**2)
        loop = max((shape[0] for shape in (cond_shapes or {}).get(LOOP_MEMORY, ())), default=0)
        network = NETWORK_BYTES * input_shape[0] * tokens * backbone.dim * self.compute_dtype.itemsize
        return max(network, loop)

    def map_context_window_to_modalities(self, primary_indices, latent_shapes, dim) -> list:
        """Context windows (0.28 and newer): the drawing has the video's frames."""
        return [list(primary_indices) for _ in latent_shapes]


class _CoreForward:
    """How core calls a network, for each of the networks there are."""

    def __init__(self, config, operations: Any = nn, dtype: torch.dtype | None = None):
        super().__init__(config, operations, attention)
        self.dtype = dtype

    def forward(self, x: Any, timestep: Tensor, context: Tensor, **conds: Any) -> Any:
        """Scaled noisy latents, a tensor or [video, drawing], to their velocities in the same form.

        Args:
            timestep: (B,).
            context: text, B L text_dim.
            conds: `image` (B C 1 h w), `guidance` (B C T h w), `transformer_options`.
        """
        options = conds.pop("transformer_options", {})
        if not isinstance(x, Tensor):
            check_cache(options)
        wrappers = comfy.patcher_extension.get_all_wrappers(WrappersMP.DIFFUSION_MODEL, options)
        executor = WrapperExecutor.new_class_executor(self._forward, self, wrappers)
        return executor.execute(x, timestep, context, options, **conds)

    def _forward(
        self,
        x: Any,
        timestep: Tensor,
        context: Tensor,
        transformer_options: dict[str, Any],
        image: Tensor,
        guidance: Tensor | None = None,
        **others: Any,
    ) -> Any:
        video, drawing = (x, None) if isinstance(x, Tensor) else x
        # Context windows may put a frame before the video's window, for causal models; ours sees both streams alike.
        before = 0 if drawing is None else video.shape[2] - drawing.shape[2]
        if before:
            video, guidance = video[:, :, before:], guidance[:, :, before:]
        if "known" in others:
            known = known_of(others, drawing.shape[2])
            video, drawing = known.put_into(JointLatents(video, drawing))
            timestep = known.timesteps(timestep)
        velocities = super().forward(
            video,
            self.image_condition(image[:, :, 0], video.shape[2]),
            context,
            timestep,
            drawing,
            guidance,
            run_block=block_runner(transformer_options),
            attention_options={"transformer_options": transformer_options},
        )
        if before:  # core takes it off again
            velocities = F.pad(velocities[0], (0, 0, 0, 0, before, 0)), velocities[1]
        return velocities[0] if drawing is None else list(velocities)


def known_of(conds: dict[str, Any], frames: int) -> Known:
    """What is given of a clip, in conditions as :meth:`SViMoModel.extra_conds` makes them: of its last latent frames."""
    latents = JointLatents(*(conds[name][:, :, -frames:] for name in ("known_video", "known_drawing")))
    return Known(latents, conds["known"][:, :, -frames:] > 0)


class CoreMMDiT(_CoreForward, MMDiT):
    """The MM-DiT under core."""


class CoreSeparateMMDiT(_CoreForward, SeparateMMDiT):
    """The paper's ablation under core."""


def attention(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
    """The attention that ComfyUI selected, or that a patch of the model brings."""
    return optimized_attention(q, k, v, heads=q.shape[1], skip_reshape=True, **options)


def block_runner(transformer_options: dict[str, Any]) -> Callable | None:
    """Runs blocks as patches of the model replace them (`patches_replace["dit"][("double_block", i)]`)."""
    replaced = transformer_options.get("patches_replace", {}).get("dit", {})
    if not replaced:
        return None

    def run(index: int, block: Callable, streams: list[Tensor]) -> list[Tensor]:
        patch = replaced.get(("double_block", index))
        if patch is None:
            return block(streams)
        text, *images = streams

        def original(args: dict[str, Any]) -> dict[str, Any]:
            lengths = [image.shape[1] for image in images]
            text, *split = block([args["txt"], *args["img"].split(lengths, dim=1)])
            return {"txt": text, "img": torch.cat(split, dim=1)}

        given = {"txt": text, "img": torch.cat(images, dim=1), "transformer_options": transformer_options}
        out = patch(given, {"original_block": original})
        return [out["txt"], *out["img"].split([image.shape[1] for image in images], dim=1)]

    return run


# --- loading ---


def load_backbone(
    header: CheckpointHeader, weight_dtype: torch.dtype | None = None, disable_dynamic: bool = False
) -> ModelPatcher:
    """MODEL: weights stay in the file's (or the chosen) type and are cast where they are used.

    Args:
        disable_dynamic: for core, which rebuilds a model without dynamic VRAM to compile it.
    """
    device = comfy.model_management.get_torch_device()
    stored, compute = dtypes_of(header, "backbone", weight_dtype, device)
    kind = CoreSeparateMMDiT if header.config.backbone.separate else CoreMMDiT
    operations = operations_for(stored, compute, device)
    main = weight_dtype or header.part_dtype("backbone")
    network = load_part(
        header, "backbone", weight_dtype, lambda config: kind(config.backbone, operations, main)
    )
    model = SViMoModel(SViMoModelConfig(header, main, compute), network)
    logging.info("SViMo: weights in %s, computing in %s", main, compute)
    patcher = make_patcher(model, disable_dynamic, checks_loras=True)
    patcher.cached_patcher_init = (load_backbone, (header, weight_dtype))
    patcher.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, guard_run)
    return patcher


def make_patcher(model: nn.Module, disable_dynamic: bool = False, checks_loras: bool = False) -> ModelPatcher:
    """The kind of patcher that core uses by now (main.py sets it), on the device of diffusion models."""
    device = comfy.model_management.get_torch_device()
    offload = comfy.model_management.unet_offload_device()
    kind = getattr(comfy.model_patcher, "CoreModelPatcher", ModelPatcher)
    if disable_dynamic or comfy.model_management.is_device_cpu(device):
        kind = ModelPatcher
    if not comfy.model_management.is_device_cpu(offload):
        model.to(offload)
    # Newer cores cast weights to the types noted here when they bring them to a card.
    if hasattr(comfy.model_management, "archive_model_dtypes"):
        comfy.model_management.archive_model_dtypes(model)
    return (with_checks(kind) if checks_loras else kind)(model, load_device=device, offload_device=offload)


def dtypes_of(
    header: CheckpointHeader, part: str, weight_dtype: torch.dtype | None, device: torch.device
) -> tuple[set[torch.dtype], torch.dtype]:
    """The types that a part's weights will be stored in, and the one it computes in on a device."""
    tensors = header.part_tensors(part).values()
    stored = {weight_dtype} if weight_dtype is not None else {t.loaded_dtype for t in tensors}
    main = weight_dtype or header.part_dtype(part)
    compute = comfy.model_management.unet_manual_cast(main, device, list(COMPUTE_DTYPES)) or main
    if compute not in COMPUTE_DTYPES:
        bf16 = comfy.model_management.should_use_bf16(device)
        compute = torch.bfloat16 if bf16 else torch.float32
    return stored, compute


def operations_for(stored: set[torch.dtype], compute: torch.dtype, device: torch.device) -> Any:
    """Core's layers: those that cast where any weight has another type than the network computes in."""
    other = next((dtype for dtype in stored if dtype != compute), compute)
    return comfy.ops.pick_operations(other, compute, load_device=device)


def backbone_of(model: ModelPatcher) -> SViMoModel:
    """The SViMo backbone in a MODEL.

    Raises:
        ValueError: another kind of model is connected.
    """
    if not isinstance(model.model, SViMoModel):
        name = type(model.model).__name__
        what = f"a {name}" if name != "CogVideoX" else "ComfyUI's own CogVideoX"
        raise ValueError(
            f"the model is {what}, not a SViMo model: load the file with Load SViMo Checkpoint or Load SViMo Diffusion "
            "Model (which reads CogVideoX-5b-I2V too)"
        )
    return model.model


# --- what can be wrong ---


def guard_run(
    executor: Any,
    noise: Tensor,
    latent_image: Tensor,
    sampler: Any,
    sigmas: Tensor,
    denoise_mask: Tensor | None = None,
    *args: Any,
    **kwargs: Any,
) -> Tensor:
    """Names what core would pass on, latents that are not finite or have no room for anything new; and gives back exactly
    what a noise mask keeps.

    Raises:
        ValueError: NaN or infinity came out, or given frames as :func:`check_given` refuses them.
    """
    shapes = kwargs.get("latent_shapes") or ()
    if len(shapes) > 1:
        check_areas(executor.class_obj.conds)
        if denoise_mask is not None and denoise_mask.shape != noise.shape:
            denoise_mask = packed_mask(denoise_mask, shapes)
        check_given(executor.class_obj.model_patcher.model, latent_image, denoise_mask, sigmas)
    options = executor.class_obj.model_options["transformer_options"]
    if type(options.get("easycache")).__name__ == "LazyCacheHolder":
        logging.warning(
            "LazyCache adds differences made at another noise level, which stay behind as noise: expect a broken picture, "
            "and take EasyCache or fewer steps instead"
        )
    try:
        made = executor(noise, latent_image, sampler, sigmas, denoise_mask, *args, **kwargs)
    except FloatingPointError:  # the loop meets them first
        made = None
    if made is None or not torch.isfinite(made).all():
        model = executor.class_obj.model_patcher.model
        raise ValueError(
            f"the sampled latents are not finite (NaN or infinity); the model computes in {model.compute_dtype} with "
            f"weights in {model.get_dtype()}: load it with weight_dtype bf16 or fp32, and look for a "
            "damaged model file, a broken LoRA or reference image"
        )
    if denoise_mask is not None and denoise_mask.shape == made.shape:
        made = torch.where(denoise_mask.to(made.device) == 0, latent_image.to(made), made)
    return made


def packed_mask(mask: Tensor, shapes: list[torch.Size]) -> Tensor:
    """A noise mask, of each stream or the first, packed as their latents are: newer cores than 0.3 come with it done."""
    masks = list(mask.unbind() if mask.is_nested else (mask,))
    masks += [torch.ones(1, 1, *shape[2:]) for shape in shapes[len(masks) :]]
    fitted = [
        comfy.sampler_helpers.prepare_mask(x.float(), shape, x.device)
        for x, shape in zip(masks, shapes, strict=True)
    ]
    return comfy.utils.pack_latents(fitted)[0]


def check_latents(shapes: list[torch.Size], config: SViMoConfig) -> None:
    """Refuse latents of other streams or sizes than the model makes.

    Raises:
        ValueError: not video latents that this model can patch, or without or with too many streams.
    """
    streams = 2 if config.backbone.motion else 1
    if len(shapes) != streams:
        expected = "video and drawing together" if streams == 2 else "one video"
        raise ValueError(
            f"the latent holds {len(shapes)} stream(s), and this model makes {expected}: take the latent from SViMo "
            "Image Encode with this model connected to it, or use SViMo Sampler"
        )
    for shape in shapes:
        if len(shape) != 5 or shape[1] != config.vae.latent_channels:
            raise ValueError(
                f"the latent must be batch x {config.vae.latent_channels} x frames x height x width, got "
                f"{' x '.join(map(str, shape))}: connect the latent of SViMo Image Encode"
            )
    if len({tuple(shape) for shape in shapes}) > 1:
        sizes = " and ".join(" x ".join(map(str, shape)) for shape in shapes)
        raise ValueError(f"the latents of video and drawing differ in size: {sizes}")
    config.check_clip(*config.vae.clip_size(shapes[0]))


def check_areas(conds: dict[str, list[dict[str, Any]]]) -> None:
    """Refuse prompts for a part of the picture, which core cannot fit to nested latents.

    Raises:
        ValueError: such a prompt.
    """
    for name, prompts in conds.items():
        if any("area" in prompt or "mask" in prompt for prompt in prompts or ()):
            raise ValueError(
                f"{name} is for a part of the picture (Conditioning Set Area or Set Mask), which ComfyUI cannot fit to "
                "latents of video and drawing: remove that node"
            )


def check_any_to_any(config: SViMoConfig) -> None:
    """Refuse given streams and frames where a model was not trained with any.

    Raises:
        ValueError: it was not.
    """
    if not config.backbone.any_to_any:
        raise ValueError(
            f"this model ({config.name}) knows one direction only, image and text to video and motion: it was not trained with "
            "given streams and frames. Load one that was, such as svimo-tiny-any, which comes with the pack"
        )


def check_given(model: SViMoModel, latent: Tensor, mask: Tensor | None, sigmas: Tensor) -> None:
    """Refuse a run whose given frames (packed latents under a noise mask) leave nothing to make, or that keeps a part of
    the others where they are empty.

    Raises:
        ValueError: it is such a run.
    """
    if mask is None or not model.config.backbone.any_to_any:
        return
    free = (mask > 0).to(latent.device)  # core has the mask on the card by now, and not the latent
    if not free.any():
        raise ValueError(
            "the latent's noise mask keeps all of video and motion, so there is nothing to make: give one of them, or some "
            "frames of both, as the nodes of SViMo/directions do"
        )
    late = len(sigmas) and float(sigmas[0]) < model.model_sampling.percent_to_sigma(LATE)
    if late and not free.all() and not latent[free].any():
        raise ValueError(
            "the latent is empty beside its given frames, and the sampler begins late in the noise schedule, as if to keep a "
            "part of what is there: sample it with denoise 1"
        )


def check_text(name: str, text: Tensor | None, config: SViMoConfig) -> None:
    """Refuse text features of another encoder.

    Raises:
        ValueError: another number of tokens or features.
    """
    expected = config.backbone.text_length, config.backbone.text_dim
    found = None if text is None else tuple(text.shape[1:])
    if found != expected:
        given = "no text features" if found is None else f"text features of {found[0]} tokens x {found[1]}"
        raise ValueError(
            f"{name} has {given}; this model needs {expected[0]} x {expected[1]}: encode it with SViMo Text Encode "
            "and the text encoder that belongs to the model"
        )


def check_image(name: str, image: Tensor | None, shape: torch.Size) -> None:
    """Refuse a prompt without a reference image, or with one of another size.

    Raises:
        ValueError: no image, or another size than the latents (B C T h w).
    """
    if image is None:
        raise ValueError(f"{name} has no reference image: connect it through SViMo Image Encode")
    if image.ndim != 5 or image.shape[1] != shape[1]:
        raise ValueError(
            f"the reference image in {name} was encoded to {' x '.join(map(str, image.shape))}, and this model needs "
            f"latents of {shape[1]} channels: encode it with the VAE that belongs to the model"
        )
    if image.shape[-2:] != shape[-2:]:
        raise ValueError(
            f"the latent is {shape[-1]} x {shape[-2]}, but the reference image in {name} was encoded at {image.shape[-1]} x "
            f"{image.shape[-2]} latent cells: take both from the same SViMo Image Encode"
        )


def check_guidance(name: str, given: Tensor, shape: torch.Size) -> None:
    """Refuse a given motion of another size than the latents (B C T h w).

    Raises:
        ValueError: it is.
    """
    if given.shape[-3:] != shape[-3:]:
        raise ValueError(
            f"the latent is {' x '.join(map(str, shape[-3:]))}, but the given motion in {name} was encoded at "
            f"{' x '.join(map(str, given.shape[-3:]))}: give SViMo Motion Encode the same latent"
        )


def check_cache(transformer_options: dict[str, Any]) -> None:
    """Refuse EasyCache where it only knows models of one stream.

    Raises:
        ValueError: such a ComfyUI (0.3).
    """
    if type(transformer_options.get("easycache")).__name__ == "EasyCacheHolder":
        from comfy_extras import nodes_easycache

        if not hasattr(nodes_easycache, "_extract_tensor"):
            raise ValueError(
                "EasyCache of this ComfyUI knows models of one stream only: update ComfyUI, or take fewer steps"
            )
