"""The text encoder: T5 through transformers, with a small tokenizer that ships with the pack.

CogVideoX pads every prompt to a fixed length and lets the encoder see the padding (no attention mask); so do we. The
full size uses T5-XXL from its own file through ComfyUI instead of this class.
"""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import T5Config, T5EncoderModel

from ..config import TextConfig

TOKENIZER_FILE = Path(__file__).with_name("tokenizer.json")
PAD_TOKEN_ID = 0


def build_text_encoder(config: TextConfig) -> T5EncoderModel:
    """An untrained T5 encoder of this size."""
    return T5EncoderModel(
        T5Config(
            vocab_size=config.vocab_size,
            d_model=config.dim,
            d_ff=config.ff_dim,
            d_kv=config.head_dim,
            num_layers=config.num_layers,
            num_heads=config.num_heads,
            feed_forward_proj="gated-gelu",
            pad_token_id=PAD_TOKEN_ID,
            dropout_rate=0.0,
        )
    )


class TextEncoder:
    """Prompts to features, with the tokenizer that ships with the pack."""

    def __init__(self, model: T5EncoderModel, config: TextConfig):
        self.model = model
        self.config = config
        self.tokenizer = Tokenizer.from_file(str(TOKENIZER_FILE))
        assert self.tokenizer.get_vocab_size() <= config.vocab_size
        self.tokenizer.enable_padding(pad_id=PAD_TOKEN_ID, pad_token="<pad>", length=config.text_length)
        self.tokenizer.enable_truncation(config.text_length)

    def tokenize(self, prompts: list[str]) -> Tensor:
        """Token ids, B x text_length; long prompts are cut, as CogVideoX cuts them."""
        return torch.tensor([encoding.ids for encoding in self.tokenizer.encode_batch(prompts)])

    def encode_tokens(self, ids: Tensor) -> Tensor:
        """Token ids (B L) to features (B L dim)."""
        return self.model(input_ids=ids.to(self.model.device)).last_hidden_state

    def encode(self, prompts: list[str]) -> Tensor:
        """Prompts to features, B x text_length x dim."""
        return self.encode_tokens(self.tokenize(prompts))


def hand_object_prompt(tool: str, action: str, target: str) -> str:
    """The paper's prompt form: "use {tool} to {action} {target}".

    Raises:
        ValueError: one of the words is empty.
    """
    words = {"tool": tool.strip(), "action": action.strip(), "target": target.strip()}
    for name, word in words.items():
        if not word:
            raise ValueError(f'{name} is empty: name the {name}, as in "use spoon to stir cup"')
    return "use {tool} to {action} {target}".format(**words)
