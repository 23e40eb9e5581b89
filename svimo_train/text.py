"""Text features of a folder's prompts, from the model's own encoder or from a T5 on disk."""

from __future__ import annotations

import string
from types import SimpleNamespace

import torch
from torch import Tensor
from transformers import AutoTokenizer, T5EncoderModel

from svimo_core.model.text import TextEncoder

from .clips import ClipFolder
from .settings import TrainConfig

BATCH = 32


@torch.no_grad()
def prompt_features(config: TrainConfig, model: SimpleNamespace) -> dict[str, Tensor]:
    """Features (L text_dim float32) of every prompt of the training and held-out clips and of the empty one.

    Raises:
        ValueError: the model has no text encoder and the configuration names none.
    """
    folders = [ClipFolder(folder) for folder in (config.clips, config.held_out) if folder is not None]
    prompts = sorted({"", *(clips.motion(i).prompt for clips in folders for i in range(len(clips)))})
    if "text_encoder" in model.parts:
        encode = TextEncoder(model.parts["text_encoder"], model.config.text).encode
    elif config.text_model is not None:
        tokenizer = AutoTokenizer.from_pretrained(config.text_model, local_files_only=True)
        t5 = T5EncoderModel.from_pretrained(config.text_model, local_files_only=True, dtype=torch.bfloat16)

        def encode(some: list[str]) -> Tensor:
            length = model.config.backbone.text_length
            ids = tokenizer(
                some, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
            ).input_ids
            return t5(input_ids=ids).last_hidden_state
    else:
        raise ValueError(
            f"a {model.config.name} model has no text encoder of its own: set text_model to a folder with T5-XXL"
        )
    features = torch.cat(
        [encode(prompts[i : i + BATCH]).float().cpu() for i in range(0, len(prompts), BATCH)]
    )
    return dict(zip(prompts, features, strict=True))


def with_unknown_words(prompt: str, share: float, generator: torch.Generator) -> str:
    """A prompt in which each word has this chance to become two to seven letters that mean nothing."""
    if not share:
        return prompt

    def unknown() -> str:
        length = torch.randint(2, 8, (1,), generator=generator).item()
        letters = torch.randint(26, (length,), generator=generator).tolist()
        return "".join(string.ascii_lowercase[i] for i in letters)

    words = prompt.split()
    replaced = (torch.rand(len(words), generator=generator) < share).tolist()
    return " ".join(unknown() if drop else word for word, drop in zip(words, replaced, strict=True))
