"""CLIP: the small T5 that ships in a SViMo checkpoint, and T5-XXL of core's loaders, read as CogVideoX reads it."""

from __future__ import annotations

import copy
from typing import Any, NoReturn

import comfy.model_management
import comfy.sd
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor
from transformers import T5EncoderModel

from ..svimo_core.config import TextConfig
from ..svimo_core.model.text import TextEncoder
from .whole import load_whole, whole_patcher

COGVIDEOX_TEXT_LENGTH = 226


class SViMoCLIP:
    """A CLIP as core's text nodes use one, around the small T5 that ships in a SViMo checkpoint.

    Prompts become text features of a fixed length with the padding in view, as CogVideoX has them. What core's CLIP
    has beyond that (other layers, tokenizer options, saving) is refused with a reason.
    """

    def __init__(self, network: T5EncoderModel, config: TextConfig):
        self.text_encoder = TextEncoder(network, config)
        self.patcher: ModelPatcher = whole_patcher(
            network,
            comfy.model_management.text_encoder_device(),
            comfy.model_management.text_encoder_offload_device(),
        )
        self.apply_hooks_to_conds = None  # core's Set CLIP Hooks writes it

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError(
            f"the small text encoder of a SViMo checkpoint has no {name!r}: it only encodes prompts. Use a CLIP of "
            "core's CLIP loader where more is needed"
        )

    @property
    def cond_stage_model(self) -> torch.nn.Module:
        """Where core's LoRA loaders look for names to patch. Published LoRAs address none of this T5's."""
        return self.patcher.model

    def clone(self) -> SViMoCLIP:
        """The same weights under a patcher of its own, for patches that the original shall not see."""
        other = copy.copy(self)
        other.patcher = self.patcher.clone()
        return other

    def add_patches(self, patches: dict, strength_patch: float = 1.0, strength_model: float = 1.0) -> list:
        """As core's CLIP has it: the names that were found here."""
        return self.patcher.add_patches(patches, strength_patch, strength_model)

    def clip_layer(self, layer_idx: int) -> None:
        """Core's CLIP Set Last Layer.

        Raises:
            ValueError: another layer than the last, which all SViMo models were trained on.
        """
        if layer_idx != -1:
            self._refuse(
                f"gives its last layer, not layer {layer_idx}: set stop_at_clip_layer to -1, or leave the node out"
            )

    def set_tokenizer_option(self, name: str, value: Any) -> None:
        """Core's T5TokenizerOptions.

        Raises:
            ValueError: always.
        """
        self._refuse(
            f"pads every prompt to {self.text_encoder.config.text_length} tokens, as it was trained, and takes no "
            f"{name}: leave the node with tokenizer options out"
        )

    def tokenize(self, text: str, return_word_ids: bool = False, **_options: Any) -> dict[str, Tensor]:
        """Token ids of one prompt."""
        return {"svimo": self.text_encoder.tokenize([text])}

    def encode_from_tokens(
        self, tokens: dict[str, Tensor], return_pooled: Any = False, return_dict: bool = False
    ) -> Any:
        """Text features of one prompt, 1 x text_length x dim; with them, in core's forms, what is pooled: None.

        Raises:
            ValueError: tokens of another text encoder.
        """
        if "svimo" not in tokens:
            self._refuse(
                f"was given tokens of another one ({', '.join(tokens)}): tokenize with the same CLIP"
            )
        load_whole(self.patcher)
        features = self.text_encoder.encode_tokens(tokens["svimo"]).float()
        features = features.to(comfy.model_management.intermediate_device())
        if return_dict:
            hooks = {"hooks": self.apply_hooks_to_conds} if self.apply_hooks_to_conds else {}
            return {"cond": features, "pooled_output": None} | hooks
        return (features, None) if return_pooled else features

    def encode_from_tokens_scheduled(
        self,
        tokens: dict[str, Tensor],
        unprojected: bool = False,
        add_dict: dict | None = None,
        **_options: Any,
    ) -> list:
        """CONDITIONING of one prompt, with `add_dict` among its extras."""
        values = self.encode_from_tokens(tokens, return_dict=True)
        return [[values.pop("cond"), values | (add_dict or {})]]

    def encode(self, text: str) -> Tensor:
        """Text features of one prompt, 1 x text_length x dim."""
        return self.encode_from_tokens(self.tokenize(text))

    def load_model(self, *_tokens: Any) -> ModelPatcher:
        """Bring the weights to their device."""
        load_whole(self.patcher)
        return self.patcher

    def get_sd(self) -> NoReturn:
        """Core's Save CLIP and Save Checkpoint.

        Raises:
            ValueError: always.
        """
        self._refuse(
            "cannot be saved by core, which keeps weights without their sizes and tokenizer: copy the SViMo "
            "checkpoint that it came from, or leave clip unconnected"
        )

    state_dict_for_saving = get_sd

    def is_dynamic(self) -> bool:
        """Whether core pages its weights in and out by itself."""
        return self.patcher.is_dynamic()

    @staticmethod
    def _refuse(reason: str) -> NoReturn:
        raise ValueError(f"the small text encoder of a SViMo checkpoint {reason}")


def tokenize_as_cogvideox(clip: Any, text: str) -> dict[str, list]:
    """T5-XXL tokens of one of core's CLIPs, padded or cut to 226 with the end token kept, as CogVideoX does.

    Raises:
        ValueError: the CLIP has no T5-XXL, or one that is set up for another video model.
    """
    advice = f"load T5-XXL with core's CLIP loader, type {t5_type()}"
    clip = clip.clone()
    clip.set_tokenizer_option("t5xxl_min_length", COGVIDEOX_TEXT_LENGTH)
    tokens = clip.tokenize(text)
    t5 = getattr(clip.cond_stage_model, "t5xxl", None)
    if "t5xxl" not in tokens or t5 is None:  # type sd3 makes its tokens even where it is not loaded
        raise ValueError(f"this CLIP has no T5-XXL ({', '.join(tokens)}): {advice}")
    if t5.enable_attention_masks:
        raise ValueError(
            "this CLIP hides the padding of a prompt from T5-XXL, as Mochi and LTX-Video want it; CogVideoX was trained "
            f"with the padding in view: {advice}"
        )
    padded = tokens["t5xxl"][0]
    if len(padded) > COGVIDEOX_TEXT_LENGTH:
        padded = [*padded[: COGVIDEOX_TEXT_LENGTH - 1], padded[-1]]
    return tokens | {"t5xxl": [padded]}


def t5_type() -> str:
    """The type of core's CLIP loader that reads T5-XXL as CogVideoX does: its own since 0.21, before that SD 3's."""
    return "cogvideox" if hasattr(comfy.sd.CLIPType, "COGVIDEOX") else "sd3"
