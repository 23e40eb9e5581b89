"""CLIP: the small T5 that ships in a SViMo checkpoint, with the methods that core's text nodes call."""

from __future__ import annotations

from typing import Any

import comfy.model_management
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..svimo_core.model.text import TextEncoder


class SViMoCLIP:
    """A CLIP as core's text nodes use one, around the small T5 that ships in a SViMo checkpoint."""

    def __init__(self, text_encoder: TextEncoder, patcher: ModelPatcher):
        self.text_encoder = text_encoder
        self.patcher = patcher

    def tokenize(self, text: str, **_options: Any) -> dict[str, Tensor]:
        """Token ids of one prompt."""
        return {"svimo": self.text_encoder.tokenize([text])}

    def encode_from_tokens_scheduled(self, tokens: dict[str, Tensor], **_options: Any) -> list:
        """CONDITIONING of one prompt: text features, 1 x text_length x dim."""
        comfy.model_management.load_models_gpu([self.patcher], force_full_load=True)
        return [[self.text_encoder.encode_tokens(tokens["svimo"]).float().cpu(), {}]]
