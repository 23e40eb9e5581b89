"""Text features for training: of the model's own encoder, or T5's, which are stored beside the encoded clips."""

from __future__ import annotations

import hashlib
import string
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor
from transformers import AutoTokenizer, T5EncoderModel

from svimo_core.files import reading
from svimo_core.model.text import TextEncoder

from .encoded import EncodedClips

BATCH = 32


def prompt_encoder(model: SimpleNamespace, clips: EncodedClips) -> Callable[[list[str]], Tensor]:
    """From prompts to features (B L text_dim): the model's own encoder, or a look-up of the clips' stored ones."""
    if "text_encoder" in model.parts:
        return TextEncoder(model.parts["text_encoder"], model.config.text).encode
    return KnownText(clips.features()).encode


class KnownText:
    """Features that were made beforehand, where a model has no text encoder of its own."""

    def __init__(self, features: dict[str, Tensor]):
        self.features = features

    def encode(self, prompts: list[str]) -> Tensor:
        """Prompts to features, B x L x text_dim."""
        return torch.stack([self.features[prompt] for prompt in prompts]).float()


@torch.no_grad()
def t5_features(prompts: list[str], folder: Path, length: int, device: torch.device) -> Tensor:
    """Features (B length 4096 bfloat16, on the CPU) of prompts by a T5 in transformers' form, loaded for this.

    Raises:
        FileNotFoundError, ValueError: no such folder, or it holds something else.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}: give one with T5 in transformers' form")
    with reading(folder, "holds no T5 in transformers' form with its tokenizer", "give a folder that does"):
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        t5 = T5EncoderModel.from_pretrained(folder, local_files_only=True, dtype=torch.bfloat16).to(device)
    features = []
    for first in range(0, len(prompts), BATCH):
        some = prompts[first : first + BATCH]
        ids = tokenizer(
            some, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        ).input_ids
        features.append(t5(input_ids=ids.to(device)).last_hidden_state.to("cpu", torch.bfloat16))
    return torch.cat(features)


def t5_fingerprint(folder: Path) -> str:
    """A name for the exact files of a T5."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.iterdir() if path.suffix in (".safetensors", ".bin")):
        with path.open("rb") as file:
            while piece := file.read(2**24):
                digest.update(piece)
    return digest.hexdigest()[:16]


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
